//! Statistics of attention heads: where each looks, whether it copies what it looks at, and what it therefore looks like.
//!
//! Most are measured on random tokens that are repeated once (`r0 ... r(n-1) r0 ... r(n-1)`), where every way of looking back
//! goes to another place: to the token before (previous token), to the same token's first time (duplicate token), or to what
//! came after that (induction, also called prefix matching). A task adds where the heads look from its last position, by role.
//!
//! The copying score asks whether the head's output at a source raises that source's own token: among the tokens of the
//! sequence, for what share of the others is the logit lower, each token's logit less its mean over sources, from -1 (it
//! always lowers it most) over 0 (chance) to 1. The eigenvalue score of Elhage et al. answers the same question about weights
//! alone; this one needs no embedding to stand for what the head really reads.
//!
//! Sources: Elhage et al. 2021, "A mathematical framework for transformer circuits"; Olsson et al. 2022, "In-context learning
//! and induction heads". Left out on purpose: composition scores, which are about pairs of heads.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Instant;

use candle_core::{D, DType, Tensor};
use rand::SeedableRng;
use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;
use serde_json::json;

use super::logits::{in_layer, provenance, roles_of, unmeasured};
use crate::error::{Error, Result};
use crate::hooks::{Hook, Kind, Roles};
use crate::model::{Model, ModelSpec, Tokenizer};
use crate::nn::{embed::embed, linear, norm};
use crate::run::{Logits, Progress, Request, run};
use crate::scores::{Cell, Detail, Direction, ExampleScores, Lists, Scores, ScoresMeta, View};
use crate::spec::{NormKind, NormPlacement, QkNorm};
use crate::task::{Pair, Task};

/// What to measure.
#[derive(Debug, Clone)]
pub struct HeadConfig {
    /// Different random tokens in a sequence, each of which comes twice.
    pub block: usize,
    /// Sequences.
    pub samples: usize,
    /// Layer and head of those whose OV and QK circuits are read out.
    pub circuits: Vec<(usize, usize)>,
    /// Tokens that the circuits start from; if none is given, those at the roles of the task's first pair.
    pub from: Vec<u32>,
    /// Tokens listed for each of them.
    pub tokens: usize,
    pub detail: Detail,
    pub seed: u64,
}

impl HeadConfig {
    /// Eight sequences of 24 tokens twice, or as many as the model's context takes; no circuits.
    pub fn new(spec: &ModelSpec) -> Self {
        HeadConfig {
            block: 24.min((spec.n_ctx.saturating_sub(1)) / 2),
            samples: 8,
            circuits: Vec::new(),
            from: Vec::new(),
            tokens: 5,
            detail: Detail::Mean,
            seed: 0,
        }
    }

    /// # Errors
    /// [`Error::OutOfRange`], [`Error::Invalid`]: what cannot be run as asked, before anything is.
    pub fn check(&self, spec: &ModelSpec, task: &Task) -> Result<()> {
        let tokenizer = task.tokenizer();
        let length = 2 * self.block + usize::from(tokenizer.adds_bos());
        if self.block < 2 || length > spec.n_ctx || self.samples == 0 {
            return Err(Error::invalid(format!(
                "{} sequences of {} tokens twice need at least 1 and 2, and must fit the context of {} (`--block`, `--samples`)",
                self.samples, self.block, spec.n_ctx
            )));
        }
        let ordinary = ordinary(tokenizer, spec).len();
        if ordinary < self.block {
            return Err(Error::invalid(format!(
                "the vocabulary has {ordinary} ordinary tokens, a block needs {} different ones (`--block`)",
                self.block
            )));
        }
        for &(layer, head) in &self.circuits {
            Hook::at(Kind::Z, layer).check(spec)?;
            if head >= spec.n_heads {
                return Err(Error::OutOfRange {
                    hook: "the model".into(),
                    what: "head",
                    value: head.to_string(),
                    limit: format!("{} heads, 0 to {}", spec.n_heads, spec.n_heads - 1),
                });
            }
        }
        match self.from.iter().find(|&&id| id as usize >= spec.d_vocab) {
            None => Ok(()),
            Some(id) => Err(Error::OutOfRange {
                hook: "the vocabulary".into(),
                what: "token",
                value: id.to_string(),
                limit: format!("{} tokens", spec.d_vocab),
            }),
        }
    }
}

/// What is measured on repeated tokens, in the order of the table; the first is the table's own metric.
const MEASURES: [&str; 8] = [
    "induction",
    "previous_token",
    "duplicate_token",
    "first_token",
    "itself",
    "copying",
    "entropy",
    "distance",
];

/// What is measured at each role of the task: attention from the last position, and the copying score there, among the
/// tokens at all roles of the prompt.
const AT_ROLES: [&str; 2] = ["attention_from_end", "copying_at_role"];

/// Heads that are shown of each kind.
const STRONGEST: usize = 6;

/// From this much attention on, a head is called after where it looks.
const LOOKS: f64 = 0.4;
/// From this much attention on, a role is among those that the end looks at.
const SEES: f64 = 0.2;

/// From this copying score on (or its negative), a head is said to copy (or to suppress).
const COPIES: f64 = 0.5;

/// Every statistic of every head. `class` says what a head looks like, with the numbers behind it.
///
/// Rows with a `role`, on the task's clean prompts: `attention_from_end`, from the last position to that role, and
/// `copying_at_role`, the copying score there among the tokens at all roles. Rows with `src` and `dst`: the
/// strongest entries of the circuits asked for. `attn.ov` is what the head writes for token `dst` when it attends to token
/// `src`, `attn.qk` how much a query at token `src` wants a key at token `dst` (before the softmax, at distance zero where
/// positions are rotary); both read the token's embedding alone, which is all that layer 0 reads and less than later
/// layers do.
/// # Units
/// `score`: attention (mean over queries) for the first five, none for `copying`, nats for `entropy`, tokens for `distance`;
/// `attn.ov` logits at a final scale of 1, less their mean over the vocabulary.
/// # Errors
/// Those of [`HeadConfig::check`].
pub fn head_statistics(
    model: &Model,
    task: &Task,
    config: &HeadConfig,
    progress: &dyn Progress,
) -> Result<Scores> {
    config.check(&model.spec, task)?;
    let began = Instant::now();
    let sequences = sequences(model, task.tokenizer(), config);
    let roles = roles_of(task);
    let heads: Vec<(usize, usize)> = model.spec.heads().collect();
    let mut cells: Vec<Cell> = Vec::new();
    for &(layer, head) in &heads {
        cells.extend(MEASURES.iter().enumerate().map(|(i, measure)| Cell {
            measure: (i > 0).then(|| measure.to_string()),
            ..head_cell(Kind::Pattern.name(), layer, head)
        }));
    }
    for measure in AT_ROLES {
        for &(layer, head) in &heads {
            cells.extend(roles.iter().map(|role| Cell {
                role: Some(role.clone()),
                measure: Some(measure.into()),
                ..head_cell(Kind::Pattern.name(), layer, head)
            }));
        }
    }
    progress.start("measuring", (sequences.len() + task.pairs().len()) as u64);
    let mut all = Vec::new();
    for (index, sequence) in sequences.iter().enumerate() {
        stop_if_asked(progress)?;
        all.push(on_repeated(model, task, sequence, index, config)?);
        progress.advance(1);
    }
    let first_role = heads.len() * MEASURES.len();
    for batch in task.batches(super::logits::BATCH) {
        stop_if_asked(progress)?;
        let pairs: Vec<&Pair> = batch.iter().map(|&pair| &task.pairs()[pair]).collect();
        for mut example in on_task(model, task, &pairs, &roles, first_role)? {
            example.example += sequences.len();
            all.push(example);
        }
        progress.advance(pairs.len() as u64);
    }
    progress.finish();
    let means = means(&all, cells.len());
    for (i, cell) in cells.iter_mut().enumerate() {
        let head = match i < first_role {
            true => i / MEASURES.len(),
            false => (i - first_role) / roles.len() % heads.len(),
        };
        cell.class = Some(class(head, &means, &roles, first_role));
    }
    let from = match config.from.is_empty() {
        true => tokens_of_roles(task),
        false => config.from.clone(),
    };
    for &(layer, head) in &config.circuits {
        for row in circuits(model, task, layer, head, &from, config.tokens)? {
            // A fact about weights: it has one value, whatever the prompts.
            let example = &mut all[0];
            let next = cells.len() as u32;
            example.cells = example.cells.iter().copied().chain([next]).collect();
            example.values.push(row.1);
            cells.push(row.0);
        }
    }
    let settings = json!({
        "block": config.block,
        "samples": config.samples,
        "circuits": config.circuits,
        "from": from,
        "sequences": sequences,
    });
    let mut provenance = provenance(model, task, settings, began.elapsed().as_secs_f64());
    provenance.views = views();
    provenance.notes.push(format!(
        "examples 0 to {} are the sequences of repeated random tokens, the others the task's pairs",
        sequences.len() - 1
    ));
    let meta = ScoresMeta {
        method: "head_statistics".into(),
        metric: MEASURES[0].into(),
        unit: "attention".into(),
        direction: Direction::Direct,
        seed: config.seed,
    };
    Scores::assemble(&cells, &all, &meta, config.detail, provenance)
}

/// Induction by layer and head, then the strongest heads of each kind, and the circuits that were asked for.
fn views() -> Vec<View> {
    let of_kind = Lists {
        heading: Some(format!(
            "the strongest heads of each kind, on repeated random tokens (a head is called after a kind from {LOOKS} on)"
        )),
        component: Some(Kind::Pattern.name().into()),
        measures: MEASURES[..6]
            .iter()
            .map(|measure| measure.to_string())
            .collect(),
        title: "{measure}".into(),
        item: "{head}".into(),
        highest: Some(STRONGEST),
        ..Lists::default()
    };
    let at_roles = |measure: usize, least: f64| Lists {
        heading: Some(format!("on the task's prompts, from {least} on")),
        measures: vec![AT_ROLES[measure].into()],
        title: "{measure} {role}".into(),
        at_least: Some(least),
        ..of_kind.clone()
    };
    let (looks, copies) = (at_roles(0, SEES), at_roles(1, COPIES));
    let circuit = |component: &str, says: &str| Lists {
        component: Some(component.into()),
        measures: vec!["ov_logit".into(), "qk_score".into()],
        title: format!("{{head}} with {{src}} {says}"),
        item: "{dst}".into(),
        ..Lists::default()
    };
    vec![
        View::Grids,
        View::Lists(of_kind),
        View::Lists(looks),
        View::Lists(copies),
        View::Lists(circuit("attn.ov", "seen, it writes for")),
        View::Lists(circuit("attn.qk", "asking, it looks for")),
    ]
}

fn stop_if_asked(progress: &dyn Progress) -> Result<()> {
    match progress.cancelled() {
        true => Err(Error::Interrupted {
            kept: "nothing was asked to be kept".into(),
        }),
        false => Ok(()),
    }
}

fn head_cell(component: &str, layer: usize, head: usize) -> Cell {
    Cell {
        head: Some(head as u32),
        ..in_layer(component, layer)
    }
}

/// Tokens that can stand anywhere in text.
fn ordinary(tokenizer: &Tokenizer, spec: &ModelSpec) -> Vec<u32> {
    let largest = (spec.d_vocab as u32).min(tokenizer.max_id().saturating_add(1));
    let is_ordinary = |&id: &u32| {
        tokenizer.has_id(id) && !tokenizer.is_special(id) && tokenizer.unknown() != Some(id)
    };
    (0..largest).filter(is_ordinary).collect()
}

/// Random tokens, then the same ones again, behind a BOS where the tokenizer puts one.
fn sequences(model: &Model, tokenizer: &Tokenizer, config: &HeadConfig) -> Vec<Vec<u32>> {
    let mut rng = ChaCha8Rng::seed_from_u64(config.seed);
    let mut ordinary = ordinary(tokenizer, &model.spec);
    let bos = tokenizer.bos().filter(|_| tokenizer.adds_bos());
    let mut draw = |_| {
        let (block, _) = ordinary.partial_shuffle(&mut rng, config.block);
        bos.into_iter()
            .chain(block.iter().copied().cycle().take(2 * config.block))
            .collect()
    };
    (0..config.samples).map(&mut draw).collect()
}

/// The statistics of every head on one sequence.
fn on_repeated(
    model: &Model,
    task: &Task,
    sequence: &[u32],
    index: usize,
    config: &HeadConfig,
) -> Result<ExampleScores> {
    let spec = &model.spec;
    let kinds = [Kind::Pattern, Kind::V];
    let capture: Vec<Hook> = (0..spec.n_layers)
        .flat_map(|layer| kinds.map(|kind| Hook::at(kind, layer)))
        .collect();
    let request = Request {
        capture: &capture,
        logits: Logits::None,
        ..Request::default()
    };
    let cache = run(model, &[sequence.to_vec()], &request)?.cache;
    let first = sequence.len() - 2 * config.block;
    let sources = Sources {
        positions: (first as u32..sequence.len() as u32).collect(),
        tokens: &sequence[first..first + config.block],
        own: (0..2 * config.block).map(|i| i % config.block).collect(),
    };
    let mut values = Vec::new();
    for layer in 0..spec.n_layers {
        let pattern = cache.get(Hook::at(Kind::Pattern, layer))?.squeeze(0)?;
        let pattern: Vec<Vec<Vec<f32>>> = pattern.to_vec3()?; // [head, query, key]
        let v = cache.get(Hook::at(Kind::V, layer))?.squeeze(0)?; // [pos, n_kv_heads, d_head]
        let copying = copying(model, layer, &v, &sources)?;
        for (pattern, copying) in pattern.iter().zip(copying) {
            let copying = copying.iter().sum::<f64>() / copying.len() as f64;
            values.extend(statistics(pattern, config.block, copying));
        }
    }
    let unread = Pair {
        index,
        roles: Roles::new(),
        ..Pair::new(sequence, sequence)
    };
    Ok(ExampleScores {
        cells: (0..values.len() as u32).collect(),
        values,
        ..unmeasured(task, &unread, 0.0)
    })
}

/// What one pattern `[query][key]` over twice `block` tokens looks like, in the order of [`MEASURES`].
fn statistics(pattern: &[Vec<f32>], block: usize, copying: f64) -> [f64; 8] {
    let length = pattern.len();
    let first = length - 2 * block;
    let at = |query: usize, key: usize| f64::from(pattern[query][key]);
    let over = |queries: std::ops::Range<usize>, of: &dyn Fn(usize) -> f64| {
        let n = queries.len() as f64;
        queries.map(of).sum::<f64>() / n
    };
    let second = length - block..length;
    let later = first + 1..length;
    let row = |i: usize| (0..=i).map(move |j| (j, at(i, j)));
    let entropy = |i: usize| {
        let terms = row(i).filter(|(_, p)| *p > 0.0);
        -terms.map(|(_, p)| p * p.ln()).sum::<f64>()
    };
    [
        over(second.clone(), &|i| at(i, i + 1 - block)),
        over(later.clone(), &|i| at(i, i - 1)),
        over(second, &|i| at(i, i - block)),
        over(later.clone(), &|i| at(i, 0)),
        over(later.clone(), &|i| at(i, i)),
        copying,
        over(later.clone(), &entropy),
        over(later, &|i| row(i).map(|(j, p)| p * (i - j) as f64).sum()),
    ]
}

/// What is written about some tokens from some positions, and which of the tokens stands at each.
struct Sources<'a> {
    positions: Vec<u32>,
    tokens: &'a [u32],
    own: Vec<usize>,
}

/// For each head of a layer and each source, how far up the source's own token stands in what the head writes there: -1 to 1.
/// # Shapes
/// `v [pos, n_kv_heads, d_head]`; gives `[head][source]`.
fn copying(
    model: &Model,
    layer: usize,
    v: &Tensor,
    sources: &Sources<'_>,
) -> Result<Vec<Vec<f64>>> {
    let spec = &model.spec;
    let weights = &model.weights.blocks[layer];
    let mut readers = readers(model, sources.tokens)?;
    if let Some(norm) = &weights.ln1_post {
        // Its scale is positive and common to all tokens, so it changes no order.
        let scaled = readers.broadcast_mul(&norm.w.to_dtype(DType::F32)?)?;
        readers = centred(&scaled, spec)?;
    }
    let w_o = weights.w_o.to_dtype(DType::F32)?;
    let folded = w_o.matmul(&readers.t()?)?; // [n_heads * d_head, token]
    let folded = folded.reshape((spec.n_heads, spec.d_head, sources.tokens.len()))?;
    let positions = Tensor::new(sources.positions.as_slice(), &model.device)?;
    let v = v
        .to_dtype(DType::F32)?
        .index_select(&positions, 0)?
        .transpose(0, 1)?;
    let (n, kv) = (sources.positions.len(), spec.n_kv_heads);
    let v = v
        .unsqueeze(1)?
        .broadcast_as((kv, spec.group(), n, spec.d_head))?;
    let v = v.reshape((spec.n_heads, n, spec.d_head))?;
    let logits = v.contiguous()?.matmul(&folded)?; // [head, source, token]
    let logits = logits.broadcast_sub(&logits.mean_keepdim(1)?)?;
    let logits: Vec<Vec<Vec<f32>>> = logits.to_vec3()?;
    let of_head = |head: &Vec<Vec<f32>>| {
        let rows = head.iter().zip(&sources.own);
        rows.map(|(row, &own)| order_of(row, own)).collect()
    };
    Ok(logits.iter().map(of_head).collect())
}

/// How far up one entry stands: 1 above all others, -1 below all.
fn order_of(logits: &[f32], own: usize) -> f64 {
    let below = logits.iter().filter(|&&logit| logit < logits[own]).count() as f64;
    let above = logits.iter().filter(|&&logit| logit > logits[own]).count() as f64;
    (below - above) / (logits.len() - 1) as f64
}

/// Directions that the final norm and the unembedding read tokens by, without the norm's scale: `[token, d_model]`.
fn readers(model: &Model, tokens: &[u32]) -> Result<Tensor> {
    let ids = Tensor::new(tokens, &model.device)?;
    let u = model
        .weights
        .w_u
        .index_select(&ids, 0)?
        .to_dtype(DType::F32)?;
    let u = match &model.weights.ln_final {
        Some(norm) => u.broadcast_mul(&norm.w.to_dtype(DType::F32)?)?,
        None => u,
    };
    centred(&u, &model.spec)
}

fn centred(t: &Tensor, spec: &ModelSpec) -> Result<Tensor> {
    let is_centred = spec.norm == NormKind::Layer && spec.norm_placement != NormPlacement::None;
    Ok(match is_centred {
        true => t.broadcast_sub(&t.mean_keepdim(D::Minus1)?)?,
        false => t.clone(),
    })
}

/// Attention from the last position to each role, and copying there.
/// # Shapes
/// Cells from `first` on: `[measure][layer][head][role]`, the measures of [`AT_ROLES`].
fn on_task(
    model: &Model,
    task: &Task,
    pairs: &[&Pair],
    roles: &[String],
    first: usize,
) -> Result<Vec<ExampleScores>> {
    let spec = &model.spec;
    let kinds = [Kind::Pattern, Kind::V];
    let hooks = |layer| kinds.map(|kind| Hook::at(kind, layer));
    let capture: Vec<Hook> = (0..spec.n_layers).flat_map(hooks).collect();
    let request = Request {
        capture: &capture,
        logits: Logits::None,
        ..Request::default()
    };
    let prompts: Vec<Vec<u32>> = pairs.iter().map(|pair| pair.clean.clone()).collect();
    let length = prompts[0].len();
    let cache = run(model, &prompts, &request)?.cache;
    let per_measure = spec.n_layers * spec.n_heads * roles.len();
    // The cell and value of each measurement, for each pair.
    let mut measured: Vec<BTreeMap<u32, f64>> = vec![BTreeMap::new(); pairs.len()];
    for layer in 0..spec.n_layers {
        let pattern = cache.get(Hook::at(Kind::Pattern, layer))?;
        let rows = pattern.narrow(2, length - 1, 1)?.squeeze(2)?;
        let rows: Vec<Vec<Vec<f32>>> = rows.to_vec3()?; // [pair, head, key]
        let v = cache.get(Hook::at(Kind::V, layer))?;
        for (i, pair) in pairs.iter().enumerate() {
            let cell = |measure: usize, head: usize, role: usize| {
                let of_head = (layer * spec.n_heads + head) * roles.len() + role;
                (first + measure * per_measure + of_head) as u32
            };
            for (head, row) in rows[i].iter().enumerate() {
                for (r, role) in roles.iter().enumerate() {
                    if let Some(positions) = pair.roles.get(role) {
                        let sum = positions.iter().map(|&pos| f64::from(row[pos])).sum();
                        measured[i].insert(cell(0, head, r), sum);
                    }
                }
            }
            let (of_role, tokens) = places(pair, roles);
            if tokens.len() < 2 {
                continue;
            }
            let own = |pos: usize| tokens.iter().position(|&token| token == pair.clean[pos]);
            let sources = Sources {
                positions: of_role.iter().map(|&(_, pos)| pos as u32).collect(),
                tokens: &tokens,
                own: of_role
                    .iter()
                    .map(|&(_, pos)| own(pos).expect("listed"))
                    .collect(),
            };
            for (head, scores) in copying(model, layer, &v.get(i)?, &sources)?
                .iter()
                .enumerate()
            {
                for (&(role, _), score) in of_role.iter().zip(scores) {
                    measured[i].insert(cell(1, head, role), *score);
                }
            }
        }
    }
    let one = |(pair, measured): (&&Pair, BTreeMap<u32, f64>)| {
        let (cells, values): (Vec<u32>, Vec<f64>) = measured.into_iter().unzip();
        ExampleScores {
            cells: Arc::from(cells),
            values,
            ..unmeasured(task, pair, 0.0)
        }
    };
    Ok(pairs.iter().zip(measured).map(one).collect())
}

/// The last token of each role but the prompt's last, where there is nothing to look back at, and the different tokens there.
fn places(pair: &Pair, roles: &[String]) -> (Vec<(usize, usize)>, Vec<u32>) {
    let last = |role: &String| pair.roles.get(role)?.last().copied();
    let mut of_role: Vec<(usize, usize)> = (roles.iter().enumerate())
        .filter_map(|(r, role)| Some((r, last(role)?)))
        .collect();
    of_role.retain(|&(_, pos)| pos + 1 < pair.clean.len());
    let mut tokens: Vec<u32> = of_role.iter().map(|&(_, pos)| pair.clean[pos]).collect();
    tokens.sort_unstable();
    tokens.dedup();
    (of_role, tokens)
}

/// The mean of each cell over the examples that have it.
fn means(all: &[ExampleScores], cells: usize) -> Vec<f64> {
    let (mut sums, mut counts) = (vec![0.0; cells], vec![0.0f64; cells]);
    for example in all {
        for (&cell, value) in example.cells.iter().zip(&example.values) {
            sums[cell as usize] += value;
            counts[cell as usize] += 1.0;
        }
    }
    sums.iter()
        .zip(counts)
        .map(|(sum, n)| sum / n.max(1.0))
        .collect()
}

/// What a head looks like, and by which numbers.
fn class(head: usize, means: &[f64], roles: &[String], first_role: usize) -> String {
    let of = |measure: usize| means[head * MEASURES.len() + measure];
    let names = [
        "induction",
        "previous token",
        "duplicate token",
        "first token",
        "itself",
    ];
    let looks = (0..names.len()).max_by(|&a, &b| of(a).total_cmp(&of(b)));
    let looks = looks.expect("there are five");
    let mut said = vec![match of(looks) >= LOOKS {
        true => format!("{} {:.2}", names[looks], of(looks)),
        false => "no one place".to_string(),
    }];
    let copying = of(5);
    if copying.abs() >= COPIES {
        let verb = if copying > 0.0 {
            "copies"
        } else {
            "suppresses"
        };
        said.push(format!("{verb} {copying:+.2}"));
    }
    let per_measure = means.len().saturating_sub(first_role) / AT_ROLES.len();
    let at_role = |measure: usize, r: usize| {
        means[first_role + measure * per_measure + head * roles.len() + r]
    };
    let mut seen: Vec<usize> = (0..roles.len())
        .filter(|&r| at_role(0, r) >= SEES)
        .collect();
    seen.sort_by(|&a, &b| at_role(0, b).total_cmp(&at_role(0, a)));
    let at = |&r: &usize| {
        let verb = match at_role(1, r) {
            c if c >= COPIES => format!(" (copies {c:+.2})"),
            c if c <= -COPIES => format!(" (suppresses {c:+.2})"),
            _ => String::new(),
        };
        format!("{} {:.2}{verb}", roles[r], at_role(0, r))
    };
    if !seen.is_empty() {
        let seen: Vec<String> = seen.iter().map(at).collect();
        said.push(format!("END looks at {}", seen.join(", ")));
    }
    said.join("; ")
}

/// The tokens at the roles of the first pair, each once.
fn tokens_of_roles(task: &Task) -> Vec<u32> {
    let Some(pair) = task.pairs().first() else {
        return Vec::new();
    };
    let mut positions: Vec<usize> = pair.roles.values().flatten().copied().collect();
    positions.sort_unstable();
    let mut tokens = Vec::new();
    for pos in positions {
        if !tokens.contains(&pair.clean[pos]) {
            tokens.push(pair.clean[pos]);
        }
    }
    tokens
}

/// Rows of the embedding read at once: a vocabulary of keys is not made in one piece.
const ROWS: usize = 4096;

/// The strongest entries of a head's OV and QK circuits from each of some tokens.
fn circuits(
    model: &Model,
    task: &Task,
    layer: usize,
    head: usize,
    from: &[u32],
    tokens: usize,
) -> Result<Vec<(Cell, f64)>> {
    let spec = &model.spec;
    let (d_head, group) = (spec.d_head, spec.group());
    let [q, _, v] = read(model, layer, from)?;
    let own = |t: &Tensor, head: usize| -> Result<Tensor> {
        Ok(t.narrow(1, head, 1)?.squeeze(1)?.contiguous()?) // [token, d_head]
    };
    let w_o = &model.weights.blocks[layer].w_o;
    let w_o = w_o.narrow(0, head * d_head, d_head)?.to_dtype(DType::F32)?;
    let mut out = own(&v, head / group)?.matmul(&w_o)?; // [token, d_model]
    if let Some(norm) = &model.weights.blocks[layer].ln1_post {
        out = norm::forward(&out.to_dtype(model.dtype)?, norm, spec.norm, spec.norm_eps)?;
        out = out.to_dtype(DType::F32)?;
    }
    let q = own(&q, head)?;
    let (mut ov, mut qk) = (vec![Vec::new(); from.len()], vec![Vec::new(); from.len()]);
    let vocabulary: Vec<u32> = (0..spec.d_vocab as u32).collect();
    for ids in vocabulary.chunks(ROWS) {
        let logits: Vec<Vec<f32>> = out.matmul(&readers(model, ids)?.t()?)?.to_vec2()?;
        let [_, k, _] = read(model, layer, ids)?;
        let scores = q.matmul(&own(&k, head / group)?.t()?)?;
        let scores = (scores * f64::from(spec.attn_scale[layer]))?;
        let scores: Vec<Vec<f32>> = scores.to_vec2()?;
        for (all, part) in ov.iter_mut().zip(logits).chain(qk.iter_mut().zip(scores)) {
            all.extend(part);
        }
    }
    let mut rows = Vec::new();
    for (component, measure, all, is_centred) in [
        ("attn.ov", "ov_logit", ov, true),
        ("attn.qk", "qk_score", qk, false),
    ] {
        for (&source, values) in from.iter().zip(all) {
            let mean = values.iter().sum::<f32>() / values.len() as f32;
            let shift = if is_centred { mean } else { 0.0 };
            let mut order: Vec<u32> = vocabulary.clone();
            order.sort_by(|&a, &b| values[b as usize].total_cmp(&values[a as usize]));
            rows.extend(order.iter().take(tokens).map(|&token| {
                let cell = Cell {
                    src: Some(task.text(source)),
                    dst: Some(task.text(token)),
                    measure: Some(measure.into()),
                    ..head_cell(component, layer, head)
                };
                (cell, f64::from(values[token as usize] - shift))
            }));
        }
    }
    Ok(rows)
}

/// Queries, keys and values of tokens' embeddings in some layer, without positions, f32 `[token, heads, d_head]`.
fn read(model: &Model, layer: usize, tokens: &[u32]) -> Result<[Tensor; 3]> {
    let spec = &model.spec;
    let block = &model.weights.blocks[layer];
    let x = embed(&model.spec, &model.weights, tokens)?;
    let x = match &block.ln1 {
        Some(w) => norm::forward(&x, w, spec.norm, spec.norm_eps)?,
        None => x,
    };
    let qkv = linear::forward(&x, &block.w_qkv, block.b_qkv.as_ref())?;
    let counts = [spec.n_heads, spec.n_kv_heads, spec.n_kv_heads];
    let norms: [Option<&Tensor>; 3] = [block.q_norm.as_ref(), block.k_norm.as_ref(), None];
    let mut start = 0;
    let mut out = Vec::with_capacity(3);
    for (count, w) in counts.into_iter().zip(norms) {
        let width = count * spec.d_head;
        let t = qkv.narrow(1, start, width)?.contiguous()?;
        let t = t.reshape((tokens.len(), count, spec.d_head))?;
        start += width;
        let t = match (spec.qk_norm, w) {
            (QkNorm::None, _) | (_, None) => t,
            (QkNorm::PerHead | QkNorm::FullWidth, Some(w)) => norm::heads(&t, w, spec.norm_eps)?,
        };
        out.push(t.to_dtype(DType::F32)?);
    }
    Ok(out.try_into().expect("three letters"))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A pattern over six positions (three tokens twice) that looks at one place a query.
    fn pattern(of: impl Fn(usize) -> usize) -> Vec<Vec<f32>> {
        let row = |query: usize| {
            (0..6)
                .map(|key| f32::from(u8::from(key == of(query))))
                .collect()
        };
        (0..6).map(row).collect()
    }

    #[test]
    fn each_way_of_looking_back_has_its_statistic() {
        let looks = |of: fn(usize) -> usize| statistics(&pattern(of), 3, 0.0);
        let induction = looks(|i| if i >= 3 { i - 2 } else { 0 });
        assert_eq!(induction[0], 1.0);
        // Position 3 came first at 0, whose successor is 1; queries 1 and 2 look at 0, at distances 1 and 2.
        assert_eq!(induction[7], (1.0 + 2.0 + 2.0 + 2.0 + 2.0) / 5.0);
        assert_eq!(looks(|i| i.saturating_sub(1))[1], 1.0);
        assert_eq!(looks(|i| if i >= 3 { i - 3 } else { i })[2], 1.0);
        assert_eq!(looks(|_| 0)[3], 1.0);
        assert_eq!(looks(|i| i)[4], 1.0);
        let even: Vec<Vec<f32>> = (0..6)
            .map(|i| {
                (0..6)
                    .map(|j| if j <= i { 1.0 / (i + 1) as f32 } else { 0.0 })
                    .collect()
            })
            .collect();
        let entropy = (2..=6).map(|n| f64::from(n).ln()).sum::<f64>() / 5.0;
        assert!((statistics(&even, 3, 0.0)[6] - entropy).abs() < 1e-6);
    }

    #[test]
    fn copying_is_the_order_of_the_own_token() {
        assert_eq!(order_of(&[3.0, 2.0, 1.0], 0), 1.0);
        assert_eq!(order_of(&[3.0, 2.0, 1.0], 1), 0.0);
        assert_eq!(order_of(&[3.0, 2.0, 1.0], 2), -1.0);
        assert_eq!(order_of(&[2.0, 2.0, 2.0], 1), 0.0);
    }
}
