//! Direct logit attribution: how much each part of the model adds to a logit, by what it writes to the stream itself.
//!
//! The final stream is a sum of what its parts wrote, and the read-out with the run's own final scale is linear
//! ([`super::readout`]), so the logit is exactly the sum of the parts' contributions and a bias. That sum is taken, its
//! residual is stored, and a residual that is more than rounding is an error.
//!
//! It sees only what a part writes to the logits directly. What later parts make of it is the matter of patching, and removing
//! a part also changes the final scale, which is held fixed here.
//!
//! Sources: Elhage et al. 2021, "A mathematical framework for transformer circuits"; by source token Chughtai et al. 2024,
//! "Summing up the facts", arXiv 2402.07321.

use std::sync::Arc;
use std::time::Instant;

use candle_core::{DType, Tensor};
use serde_json::json;

use super::readout::{DirectTarget, Ends, Readout, every_layer, rowwise_dot};
use super::{BATCH, in_layer, provenance, roles_of, unmeasured};
use crate::error::{Error, Result};
use crate::hooks::{Hook, Kind, Ln};
use crate::model::{Model, ModelSpec};
use crate::run::{Progress, Request};
use crate::scores::{Cell, Detail, Direction, ExampleScores, Lists, Scores, ScoresMeta, View};
use crate::spec::Mlp;
use crate::task::{Pair, Task};

/// How far the stream is taken apart. Every choice sums to the same logit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Part {
    /// The output of each attention and each MLP.
    Component,
    /// Each head, with the output bias of its layer, where there is one, in a row of its own.
    #[default]
    Head,
    /// Each neuron, with the output bias of its layer, where there is one, in a row of its own.
    Neuron,
    /// Each head and the position that it reads. A value already mixes earlier tokens: this is where a head looks, not which word
    /// it is about.
    HeadSource,
    /// The same summed over the positions of each role of the task; the rest is `other`.
    HeadRole,
}

/// What to attribute, and how.
#[derive(Debug, Clone)]
pub struct DlaConfig {
    pub by: Part,
    pub target: DirectTarget,
    /// For so many of the strongest parts: which tokens they write for.
    pub writes: usize,
    /// Tokens listed for each of them, most promoted first, and as many most suppressed.
    pub tokens: usize,
    pub detail: Detail,
    pub seed: u64,
}

impl Default for DlaConfig {
    fn default() -> Self {
        DlaConfig {
            by: Part::Head,
            target: DirectTarget::Difference,
            writes: 0,
            tokens: 5,
            detail: Detail::Mean,
            seed: 0,
        }
    }
}

impl DlaConfig {
    /// # Errors
    /// What cannot be run as asked, before anything is.
    pub fn check(&self, spec: &ModelSpec, task: &Task) -> Result<()> {
        check_target(&self.target, spec, task)?;
        if self.by == Part::Neuron && spec.mlp == Mlp::None {
            return Err(Error::HookAbsent {
                hook: Kind::MlpPost.name().into(),
                reason: "its blocks have no MLP".into(),
            });
        }
        if self.by == Part::HeadRole && roles_of(task).is_empty() {
            return Err(Error::UnknownRole {
                role: "any".into(),
                known: "none; take heads apart by position instead".into(),
            });
        }
        Ok(())
    }
}

/// # Errors
/// [`Error::BadMetric`] naming the first pair that has no such target, [`Error::OutOfRange`] for a token that is not there.
pub(crate) fn check_target(target: &DirectTarget, spec: &ModelSpec, task: &Task) -> Result<()> {
    if let DirectTarget::Tokens { for_, against } = target {
        if for_.is_empty() {
            return Err(Error::invalid(
                "a target of tokens needs at least one token to be for (`--target`)",
            ));
        }
        let beyond = |id: &&u32| **id as usize >= spec.d_vocab;
        return match for_.iter().chain(against).find(beyond) {
            Some(id) => Err(Error::OutOfRange {
                hook: "the vocabulary".into(),
                what: "token",
                value: id.to_string(),
                limit: format!("{} tokens", spec.d_vocab),
            }),
            None => Ok(()),
        };
    }
    for pair in task.pairs() {
        let lacks = match (&pair.target.answers[..], &pair.target.wrong[..]) {
            ([], _) => "an answer",
            (_, []) if target.needs_wrong() => "a wrong answer",
            _ => continue,
        };
        return Err(Error::BadMetric {
            metric: target.name().into(),
            reason: format!(
                "needs {lacks}, and pair {} of task `{}` has none; add it, or choose `--target centred` or tokens",
                pair.index, task.name
            ),
        });
    }
    Ok(())
}

/// Takes the target's logit in each clean run apart.
/// # Units
/// `score`: logits, before any soft-cap. Rows with metric `share` hold the part's share of the sum of magnitudes over all
/// parts of its prompt, with its sign; rows with metric `written_logit` what a part (`src`) adds to the logit of a token
/// (`dst`), less the mean over the vocabulary.
/// # Errors
/// Those of [`DlaConfig::check`]; [`Error::Incomplete`] if contributions do not sum to the logit.
pub fn direct_logit_attribution(
    model: &Model,
    task: &Task,
    config: &DlaConfig,
    progress: &dyn Progress,
) -> Result<Scores> {
    model
        .spec
        .check_decoder("direct logit attribution and lenses")?;
    config.check(&model.spec, task)?;
    let began = Instant::now();
    let (mut cells, shares) = cells(config, model, task);
    let mut all: Vec<ExampleScores> = Vec::with_capacity(task.pairs().len());
    let mut kept = Vec::new();
    let mut worst = 0f64;
    let mut capped = 0f64;
    progress.start("attributing", task.pairs().len() as u64);
    for batch in task.batches(BATCH) {
        if progress.cancelled() {
            return Err(Error::Interrupted {
                kept: "nothing was asked to be kept".into(),
            });
        }
        let pairs: Vec<&Pair> = batch.iter().map(|&pair| &task.pairs()[pair]).collect();
        let mut ends = run_batch(model, config.by, &pairs)?;
        let readout = ends.readout(&config.target, &pairs)?;
        let columns = contributions(&mut ends, &readout, config.by, task, &pairs)?;
        let after_cap = ends.capped(&config.target, &pairs)?;
        capped += after_cap.iter().flatten().sum::<f64>();
        for (i, pair) in pairs.iter().enumerate() {
            let total = readout.total[i];
            let mut example = unmeasured(task, pair, total);
            let present: Vec<(u32, f64)> = (columns.iter().enumerate())
                .filter_map(|(cell, column)| Some((cell as u32, column.as_ref()?[i])))
                .collect();
            worst = worst.max(residual(model, pair, &present, total)?);
            let magnitude: f64 = present.iter().map(|(_, value)| value.abs()).sum();
            let of_all = present.iter().filter(|_| shares);
            let share = of_all.map(|(cell, value)| {
                (
                    cell + columns.len() as u32,
                    value / magnitude.max(f64::MIN_POSITIVE),
                )
            });
            let (indices, values) = present
                .iter()
                .copied()
                .chain(share)
                .unzip::<_, _, Vec<_>, _>();
            (example.cells, example.values) = (Arc::from(indices), values);
            all.push(example);
        }
        progress.advance(pairs.len() as u64);
        if config.writes > 0 {
            ends.keep_ends(&every_part(config.by, model))?;
            kept.push(ends);
        }
    }
    progress.finish();
    if config.writes > 0 {
        let parts = strongest(&cells, &all, config.writes);
        let written = written(model, task, &mut kept, &parts, config.tokens)?;
        add_written(&mut cells, &mut all, written);
    }
    all.sort_by_key(|example| example.example);
    let settings = json!({
        "by": config.by,
        "target": config.target,
        "writes": config.writes,
        "completeness": worst,
    });
    let mut provenance = provenance(model, task, settings, began.elapsed().as_secs_f64());
    provenance.views = views();
    provenance.notes.push(format!(
        "the rows of every prompt sum to its {}; the largest residual is {worst:.1e} of it",
        config.target.name()
    ));
    if let Some(cap) = model.spec.final_softcap {
        let mean = capped / all.len() as f64;
        provenance.notes.push(format!(
            "logits are taken apart before the soft-cap at {cap}; after it the mean {} is {mean:.4}",
            config.target.name()
        ));
    }
    let meta = ScoresMeta {
        method: "direct_logit_attribution".into(),
        metric: config.target.name().into(),
        unit: "logits".into(),
        direction: Direction::Direct,
        seed: config.seed,
    };
    Scores::assemble(&cells, &all, &meta, config.detail, provenance)
}

/// Relative to the target, or to 1 where it is smaller.
fn residual(model: &Model, pair: &Pair, parts: &[(u32, f64)], total: f64) -> Result<f64> {
    let sum: f64 = parts.iter().map(|(_, value)| value).sum();
    let magnitude: f64 = parts.iter().map(|(_, value)| value.abs()).sum();
    // In half precision the stream itself is rounded after every addition, in proportion to what is added.
    let (tolerance, scale) = match model.dtype {
        DType::F32 | DType::F64 => (1e-3, total.abs().max(1.0)),
        _ => (2e-2, magnitude.max(1.0)),
    };
    let residual = (sum - total).abs() / scale;
    match residual <= tolerance {
        true => Ok(residual),
        // A NaN comes here too.
        false => Err(Error::Incomplete {
            index: pair.index,
            sum,
            total,
        }),
    }
}

/// One run of a batch that keeps what the parts need.
fn run_batch<'a>(model: &'a Model, by: Part, pairs: &[&Pair]) -> Result<Ends<'a>> {
    let of = |kind| every_layer(model, kind);
    let mut capture = vec![Hook::global(Kind::Embed)];
    if model.weights.w_pos.is_some() {
        capture.push(Hook::global(Kind::PosEmbed));
    }
    capture.extend(match by {
        Part::Component | Part::Neuron => of(Kind::AttnOut),
        Part::Head => of(Kind::Z),
        Part::HeadSource | Part::HeadRole => [of(Kind::Pattern), of(Kind::V)].concat(),
    });
    capture.extend(match by {
        Part::Neuron => [of(Kind::MlpPost), of(Kind::Scale(Ln::TwoPost))].concat(),
        _ => of(Kind::MlpOut),
    });
    if by_head(by) {
        capture.extend(of(Kind::Scale(Ln::OnePost)));
    }
    let prompts: Vec<Vec<u32>> = pairs.iter().map(|pair| pair.clean.clone()).collect();
    let request = Request {
        capture: &capture,
        ..Request::default()
    };
    Ends::run(model, &prompts, &request)
}

fn by_head(by: Part) -> bool {
    matches!(by, Part::Head | Part::HeadSource | Part::HeadRole)
}

/// Whether attention writes something that is of no head.
pub(super) fn has_attention_bias(model: &Model, layer: usize) -> bool {
    let block = &model.weights.blocks[layer];
    let of_norm = block.ln1_post.as_ref().and_then(|norm| norm.b.as_ref());
    block.b_o.is_some() || of_norm.is_some()
}

/// Whether the MLP writes something that is of no neuron.
fn has_mlp_bias(model: &Model, layer: usize) -> bool {
    let block = &model.weights.blocks[layer];
    let of_norm = block.ln2_post.as_ref().and_then(|norm| norm.b.as_ref());
    let mlp = block.mlp.as_ref();
    of_norm.is_some() || mlp.is_some_and(|mlp| mlp.b_out.is_some())
}

/// Grids, what the strongest parts write for and against, and the strongest parts.
fn views() -> Vec<View> {
    let written = Lists {
        measures: vec!["written_logit".into()],
        title: "{src} writes for".into(),
        below_zero: Some("{src} writes against".into()),
        item: "{dst}".into(),
        ..Lists::default()
    };
    vec![View::Grids, View::Lists(written), View::Strongest]
}

/// The cells of the table in the order of [`contributions`], and whether each has a share beside it.
fn cells(config: &DlaConfig, model: &Model, task: &Task) -> (Vec<Cell>, bool) {
    let spec = &model.spec;
    let outside = |component: &str| Cell {
        component: component.into(),
        ..Cell::default()
    };
    let mut cells = vec![outside(Kind::Embed.name())];
    if Kind::PosEmbed.absent(spec).is_none() {
        cells.push(outside(Kind::PosEmbed.name()));
    }
    let longest = task.pairs().iter().map(|pair| pair.clean.len()).max();
    let longest = longest.unwrap_or(0);
    let groups = groups_of(task);
    for layer in 0..spec.n_layers {
        let head = |head: usize| Cell {
            head: Some(head as u32),
            ..in_layer(Kind::Result.name(), layer)
        };
        match config.by {
            Part::Component | Part::Neuron => cells.push(in_layer(Kind::AttnOut.name(), layer)),
            Part::Head => cells.extend((0..spec.n_heads).map(head)),
            Part::HeadSource => {
                for h in 0..spec.n_heads {
                    cells.extend((0..longest).map(|pos| Cell {
                        pos: Some(pos as i32),
                        ..head(h)
                    }));
                }
            }
            Part::HeadRole => {
                for h in 0..spec.n_heads {
                    cells.extend(groups.iter().map(|group| Cell {
                        role: Some(group.clone()),
                        ..head(h)
                    }));
                }
            }
        }
        if by_head(config.by) && has_attention_bias(model, layer) {
            cells.push(in_layer("attn.b_O", layer));
        }
        match (spec.mlp, config.by) {
            (Mlp::None, _) => {}
            (_, Part::Neuron) => {
                cells.extend((0..spec.d_mlp).map(|neuron| Cell {
                    neuron: Some(neuron as u32),
                    ..in_layer(Kind::MlpPost.name(), layer)
                }));
                if has_mlp_bias(model, layer) {
                    cells.push(in_layer("mlp.b_out", layer));
                }
            }
            _ => cells.push(in_layer(Kind::MlpOut.name(), layer)),
        }
    }
    cells.push(outside("bias"));
    let shares = matches!(config.by, Part::Component | Part::Head);
    if shares {
        let share = |cell: &Cell| Cell {
            measure: Some("share".into()),
            ..cell.clone()
        };
        let of_all: Vec<Cell> = cells.iter().map(share).collect();
        cells.extend(of_all);
    }
    (cells, shares)
}

/// The contribution of each part to each prompt of a batch; `None` where the prompts have no such position or role.
fn contributions(
    ends: &mut Ends<'_>,
    readout: &Readout,
    by: Part,
    task: &Task,
    pairs: &[&Pair],
) -> Result<Vec<Option<Vec<f64>>>> {
    let model = ends.model;
    let reader = &readout.reader;
    let mut columns: Vec<Option<Vec<f64>>> = Vec::new();
    let mut embeddings = vec![Hook::global(Kind::Embed), Hook::global(Kind::PosEmbed)];
    embeddings.retain(|&hook| ends.cache.contains(hook));
    for hook in embeddings {
        columns.push(Some(rowwise_dot(&ends.at_end(hook)?, reader)?));
    }
    let longest = task.pairs().iter().map(|pair| pair.clean.len()).max();
    let groups = groups_of(task);
    for layer in 0..model.spec.n_layers {
        match by {
            Part::Component | Part::Neuron => {
                let out = ends.at_end(Hook::at(Kind::AttnOut, layer))?;
                columns.push(Some(rowwise_dot(&out, reader)?));
            }
            Part::Head => columns.extend(heads(ends, reader, layer)?.into_iter().map(Some)),
            Part::HeadSource => {
                for by_position in sources(ends, reader, layer)? {
                    let missing = longest.unwrap_or(0) - by_position.len();
                    columns.extend(by_position.into_iter().map(Some));
                    columns.extend(std::iter::repeat_n(None, missing));
                }
            }
            Part::HeadRole => {
                for by_position in sources(ends, reader, layer)? {
                    columns.extend(by_role(&by_position, &groups, pairs));
                }
            }
        }
        if by_head(by) && has_attention_bias(model, layer) {
            columns.push(Some(attention_bias(ends, reader, layer)?));
        }
        if by == Part::Neuron {
            let (neurons, bias) = neurons(ends, reader, layer)?;
            columns.extend(neurons.into_iter().map(Some));
            columns.extend(has_mlp_bias(model, layer).then_some(Some(bias)));
        } else if model.spec.mlp != Mlp::None {
            let out = ends.at_end(Hook::at(Kind::MlpOut, layer))?;
            columns.push(Some(rowwise_dot(&out, reader)?));
        }
    }
    columns.push(Some(readout.bias.clone()));
    Ok(columns)
}

/// What each head of a layer contributes: `z_h . (W_O[h] reader)`.
/// # Shapes
/// `reader [batch, d_model]`; gives `[n_heads][batch]`.
fn heads(ends: &mut Ends<'_>, reader: &Tensor, layer: usize) -> Result<Vec<Vec<f64>>> {
    let per_head = head_readers(ends, reader, layer)?; // [batch, n_heads, d_head]
    let z = ends.at_end(Hook::at(Kind::Z, layer))?;
    let products = (z * per_head)?.to_dtype(DType::F64)?.sum(2)?; // [batch, n_heads]
    Ok(products.t()?.to_vec2()?)
}

/// What a reader of the stream reads from each head's `z`: `[batch, n_heads, d_head]`.
pub(crate) fn head_readers(ends: &mut Ends<'_>, reader: &Tensor, layer: usize) -> Result<Tensor> {
    let spec = &ends.model.spec;
    let (before, _) = ends.before_post_norm(reader, layer, Ln::OnePost)?;
    let w_o = &ends.model.weights.blocks[layer].w_o;
    let folded = before.matmul(&w_o.to_dtype(DType::F32)?.t()?)?; // [batch, n_heads * d_head]
    Ok(folded.reshape((ends.batch, spec.n_heads, spec.d_head))?)
}

/// What the output bias of attention contributes, and the bias of the norm after it, where there are any.
pub(super) fn attention_bias(
    ends: &mut Ends<'_>,
    reader: &Tensor,
    layer: usize,
) -> Result<Vec<f64>> {
    let bias = ends.model.weights.blocks[layer].b_o.clone();
    branch_bias(ends, reader, layer, Ln::OnePost, bias.as_ref())
}

fn branch_bias(
    ends: &mut Ends<'_>,
    reader: &Tensor,
    layer: usize,
    ln: Ln,
    bias: Option<&Tensor>,
) -> Result<Vec<f64>> {
    let (before, of_norm) = ends.before_post_norm(reader, layer, ln)?;
    let mut sums = of_norm.unwrap_or_else(|| vec![0.0; ends.batch]);
    if let Some(b) = bias {
        let b = b.to_dtype(DType::F32)?.broadcast_as(before.shape())?;
        let products = rowwise_dot(&b, &before)?;
        sums.iter_mut().zip(products).for_each(|(sum, p)| *sum += p);
    }
    Ok(sums)
}

/// What each head contributes by what it reads at each position: `pattern[end, k] v_k . (W_O[h] reader)`.
/// # Shapes
/// Gives `[n_heads][key position][batch]`.
pub(super) fn sources(
    ends: &mut Ends<'_>,
    reader: &Tensor,
    layer: usize,
) -> Result<Vec<Vec<Vec<f64>>>> {
    let spec = &ends.model.spec;
    let (batch, length, groups) = (ends.batch, ends.length, spec.n_kv_heads);
    let per_head = head_readers(ends, reader, layer)?
        .reshape((batch, groups, spec.group(), spec.d_head))?
        .transpose(2, 3)?
        .contiguous()?; // [batch, n_kv_heads, d_head, group]
    let v = ends
        .cache
        .get(Hook::at(Kind::V, layer))?
        .to_dtype(DType::F32)?;
    let v = v.transpose(1, 2)?.contiguous()?; // [batch, n_kv_heads, key, d_head]
    let read = v.matmul(&per_head)?.transpose(2, 3)?.contiguous()?; // [batch, n_kv_heads, group, key]
    let read = read.reshape((batch, spec.n_heads, length))?;
    let pattern = ends.at_end(Hook::at(Kind::Pattern, layer))?; // [batch, n_heads, key]
    let products = (read * pattern)?.to_dtype(DType::F64)?;
    Ok(products.permute((1, 2, 0))?.to_vec3()?)
}

/// The roles of a task and the rest of its prompts.
fn groups_of(task: &Task) -> Vec<String> {
    let mut groups = roles_of(task);
    groups.push(OTHER.into());
    groups
}

/// The group of positions without a role.
pub(super) const OTHER: &str = "other";

/// Sums over the positions of each role and of the rest. A position with several roles counts for the first of them in the
/// prompt, so that groups sum to the head.
/// # Shapes
/// `by_position [key position][batch]`; gives `[group][batch]`, `None` where a prompt lacks the role.
pub(super) fn by_role(
    by_position: &[Vec<f64>],
    groups: &[String],
    pairs: &[&Pair],
) -> Vec<Option<Vec<f64>>> {
    let group_at = |i: usize, pos: usize| {
        let roles = &pairs[i].roles;
        let has = |group: &String| roles.get(group).is_some_and(|at| at.contains(&pos));
        groups.iter().position(has).unwrap_or(groups.len() - 1)
    };
    let sums = by_group(by_position, groups.len(), pairs.len(), group_at);
    let has = |group: &str, pair: &Pair| pair.roles.get(group).is_some_and(|at| !at.is_empty());
    let present = |group: &str| group == OTHER || pairs.iter().all(|pair| has(group, pair));
    let sums = groups.iter().zip(sums);
    sums.map(|(group, sums)| present(group).then_some(sums))
        .collect()
}

/// Sums over positions, where `group_at(prompt, position)` says to which group one belongs.
/// # Shapes
/// `by_position [key position][batch]`; gives `[group][batch]`.
pub(super) fn by_group(
    by_position: &[Vec<f64>],
    groups: usize,
    batch: usize,
    group_at: impl Fn(usize, usize) -> usize,
) -> Vec<Vec<f64>> {
    let mut sums = vec![vec![0.0; batch]; groups];
    for (pos, values) in by_position.iter().enumerate() {
        for (i, value) in values.iter().enumerate() {
            sums[group_at(i, pos)][i] += value;
        }
    }
    sums
}

/// What each neuron contributes, `post_n (W_out[n] . reader)`, and what the output bias does.
/// # Shapes
/// Gives `[d_mlp][batch]` and `[batch]`.
fn neurons(
    ends: &mut Ends<'_>,
    reader: &Tensor,
    layer: usize,
) -> Result<(Vec<Vec<f64>>, Vec<f64>)> {
    let mlp = ends.model.weights.blocks[layer].mlp.as_ref();
    let mlp = mlp.expect("checked before anything ran");
    let (before, _) = ends.before_post_norm(reader, layer, Ln::TwoPost)?;
    let folded = before.matmul(&mlp.w_out.to_dtype(DType::F32)?.t()?)?; // [batch, d_mlp]
    let post = ends.at_end(Hook::at(Kind::MlpPost, layer))?;
    let products = (post * folded)?.to_dtype(DType::F64)?;
    let bias = branch_bias(ends, reader, layer, Ln::TwoPost, mlp.b_out.as_ref())?;
    Ok((products.t()?.to_vec2()?, bias))
}

/// One part of the model whose writing is read out over the whole vocabulary.
#[derive(Debug, Clone, PartialEq)]
struct Writer {
    /// The coordinates of the part.
    cell: Cell,
    kind: Kind,
}

/// What one part writes for: its rows, and the values of each prompt for each of them.
struct Written {
    cells: Vec<Cell>,
    /// `[prompt][cell]`
    values: Vec<Vec<f64>>,
}

/// The hooks that hold what the parts write.
fn every_part(by: Part, model: &Model) -> Vec<Hook> {
    let kinds: &[Kind] = match by {
        Part::Component => &[Kind::AttnOut, Kind::MlpOut],
        Part::Neuron => &[Kind::AttnOut, Kind::MlpPost, Kind::Scale(Ln::TwoPost)],
        Part::Head => &[Kind::Z, Kind::MlpOut, Kind::Scale(Ln::OnePost)],
        // A head's sources together write what its z does, which these runs do not keep.
        Part::HeadSource | Part::HeadRole => &[Kind::MlpOut],
    };
    kinds
        .iter()
        .flat_map(|&kind| every_layer(model, kind))
        .collect()
}

/// The parts whose mean contribution is largest in magnitude, among those whose writing can be read out.
fn strongest(cells: &[Cell], all: &[ExampleScores], n: usize) -> Vec<Writer> {
    let mut sums = vec![0f64; cells.len()];
    for example in all {
        for (&cell, value) in example.cells.iter().zip(&example.values) {
            sums[cell as usize] += value;
        }
    }
    let kinds = [Kind::Result, Kind::AttnOut, Kind::MlpOut, Kind::MlpPost];
    let mut writers: Vec<(f64, Writer)> = (cells.iter().zip(sums))
        .filter(|(cell, _)| cell.measure.is_none() && cell.pos.is_none() && cell.role.is_none())
        .filter_map(|(cell, sum)| {
            let kind = kinds
                .into_iter()
                .find(|kind| kind.name() == cell.component)?;
            let cell = cell.clone();
            Some((sum.abs(), Writer { cell, kind }))
        })
        .collect();
    writers.sort_by(|(a, _), (b, _)| b.total_cmp(a));
    writers.truncate(n);
    writers.into_iter().map(|(_, writer)| writer).collect()
}

/// For each part, the tokens whose logits it raises and lowers most on average, less what it does to all of them.
fn written(
    model: &Model,
    task: &Task,
    runs: &mut [Ends<'_>],
    parts: &[Writer],
    tokens: usize,
) -> Result<Vec<Written>> {
    let w_u = model.weights.w_u.to_dtype(DType::F32)?;
    let mean_u = w_u.mean_keepdim(0)?;
    let factor = f64::from(model.spec.logit_scale.unwrap_or(1.0));
    let mut all = Vec::with_capacity(parts.len());
    for part in parts {
        let mut rows = Vec::with_capacity(runs.len());
        for ends in runs.iter_mut() {
            let out = output(ends, part)?;
            let mut read = ends.centred(&out)?.broadcast_div(&ends.scale)?;
            if let Some(norm) = &model.weights.ln_final {
                read = read.broadcast_mul(&norm.w.to_dtype(DType::F32)?)?;
            }
            rows.push((read * factor)?);
        }
        let rows = Tensor::cat(&rows, 0)?; // [prompts, d_model]
        let mean = rows.mean_keepdim(0)?;
        let logits = mean.matmul(&w_u.t()?)?.squeeze(0)?.to_vec1::<f32>()?;
        let mut order: Vec<u32> = (0..logits.len() as u32).collect();
        order.sort_by(|&a, &b| logits[b as usize].total_cmp(&logits[a as usize]));
        let few = tokens.min(order.len() / 2);
        let chosen = [&order[..few], &order[order.len() - few..]].concat();
        let directions = w_u
            .index_select(&Tensor::new(chosen.as_slice(), &model.device)?, 0)?
            .broadcast_sub(&mean_u)?;
        let values = rows
            .matmul(&directions.t()?)?
            .to_dtype(DType::F64)?
            .to_vec2()?;
        let row = |&token: &u32| Cell {
            src: Some(node(part)),
            dst: Some(task.text(token)),
            measure: Some("written_logit".into()),
            ..part.cell.clone()
        };
        all.push(Written {
            cells: chosen.iter().map(row).collect(),
            values,
        });
    }
    Ok(all)
}

/// What a part adds to the stream at the end of each prompt: `[batch, d_model]`.
fn output(ends: &mut Ends<'_>, part: &Writer) -> Result<Tensor> {
    let layer = part.cell.layer.expect("every writer is in a layer") as usize;
    let block = &ends.model.weights.blocks[layer];
    let d_head = ends.model.spec.d_head;
    match part.kind {
        Kind::Result => {
            let head = part.cell.head.expect("a head") as usize;
            let z = ends
                .at_end(Hook::at(Kind::Z, layer))?
                .narrow(1, head, 1)?
                .squeeze(1)?;
            let w_o = block
                .w_o
                .narrow(0, head * d_head, d_head)?
                .to_dtype(DType::F32)?;
            ends.after_post_norm(&z.contiguous()?.matmul(&w_o)?, layer, Ln::OnePost)
        }
        Kind::MlpPost => {
            let neuron = part.cell.neuron.expect("a neuron") as usize;
            let mlp = block.mlp.as_ref().expect("a neuron has an MLP");
            let w_out = mlp.w_out.narrow(0, neuron, 1)?.to_dtype(DType::F32)?;
            let post = ends
                .at_end(Hook::at(Kind::MlpPost, layer))?
                .narrow(1, neuron, 1)?;
            ends.after_post_norm(&post.contiguous()?.matmul(&w_out)?, layer, Ln::TwoPost)
        }
        kind => ends.at_end(Hook::at(kind, layer)),
    }
}

/// The name of a part: `a3.h0`, `m2`, `m2.n17`.
fn node(part: &Writer) -> String {
    let layer = part.cell.layer.unwrap_or(0);
    match (part.kind, part.cell.head, part.cell.neuron) {
        (_, Some(head), _) => format!("a{layer}.h{head}"),
        (_, _, Some(neuron)) => format!("m{layer}.n{neuron}"),
        (Kind::AttnOut, ..) => format!("a{layer}"),
        _ => format!("m{layer}"),
    }
}

/// Appends the rows of what was written; examples stand in the order of the runs.
fn add_written(cells: &mut Vec<Cell>, all: &mut [ExampleScores], written: Vec<Written>) {
    for of_part in written {
        let first = cells.len() as u32;
        let indices: Vec<u32> = (0..of_part.cells.len() as u32).map(|i| first + i).collect();
        cells.extend(of_part.cells);
        for (example, values) in all.iter_mut().zip(of_part.values) {
            example.cells = example.cells.iter().chain(&indices).copied().collect();
            example.values.extend(values);
        }
    }
}
