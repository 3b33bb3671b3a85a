//! The Token Lens and attention knockout: what attention to one group of tokens promotes, directly and through the MLPs.
//!
//! The lens reads what attention of a layer brings to the last position from the tokens of one role alone (the rest of the
//! pattern left out, nothing renormalised, `b_O` in a row of its own) through the final norm with the scale of the run's own
//! final stream. The knockout sets attention from the last position to a role to zero after the softmax, in every layer and
//! head, without renormalising, runs again, and compares what each MLP writes for the watched tokens.
//!
//! Source: Yan and Jia 2025, "Promote, suppress, iterate: how language models answer one-to-many factual queries". Logits are
//! read less their mean over the vocabulary, which is our choice: a raw logit carries a shift common to all tokens.

use std::sync::Arc;
use std::time::Instant;

use serde_json::json;

use super::dla::{OTHER, attention_bias, by_role, has_attention_bias, sources};
use super::readout::{Ends, Readout, every_layer, rowwise_dot};
use super::{BATCH, in_layer, provenance, roles_of, unmeasured};
use crate::error::{Error, Result};
use crate::hooks::{Edit, Hook, Kind, Ln, Op, Pos, Site};
use crate::model::Model;
use crate::run::{Progress, Request};
use crate::scores::{Cell, Detail, Direction, ExampleScores, Scores, ScoresMeta};
use crate::task::{Pair, Task};

/// What to look at.
#[derive(Debug, Clone)]
pub struct TokenLensConfig {
    /// Knock attention out and compare, rather than read what it brings.
    pub knockout: bool,
    /// Tokens watched beside the answers and the wrong answers of each pair.
    pub watch: Vec<u32>,
    pub detail: Detail,
    pub seed: u64,
}

impl TokenLensConfig {
    /// # Errors
    /// What cannot be run as asked, before anything is.
    pub fn check(&self, model_vocab: usize, task: &Task) -> Result<()> {
        if roles_of(task).is_empty() {
            return Err(Error::UnknownRole {
                role: "any".into(),
                known: "none; the Token Lens groups tokens by role".into(),
            });
        }
        if let Some(id) = self.watch.iter().find(|&&id| id as usize >= model_vocab) {
            return Err(Error::OutOfRange {
                hook: "the vocabulary".into(),
                what: "token",
                value: id.to_string(),
                limit: format!("{model_vocab} tokens"),
            });
        }
        match task
            .pairs()
            .iter()
            .find(|pair| pair.target.answers.is_empty())
        {
            None => Ok(()),
            Some(pair) => Err(Error::BadMetric {
                metric: "centred_logit".into(),
                reason: format!("needs an answer, and pair {} has none", pair.index),
            }),
        }
    }
}

/// The lens: for each watched token and layer a row for each role (`hook_attn_out` with that role), one for `b_O`, one for
/// `hook_attn_out` whole (their sum) and one for `hook_mlp_out`.
///
/// With `knockout`: for each watched token, role and layer what `hook_mlp_out` writes less what it writes without attention
/// to the role (`promoted`: positive means that the attention made the MLP promote the token), each with its own run's final
/// scale, and beside it with the clean run's (`promoted_at_clean_scale`); and a row `logits` for the whole model.
/// # Units
/// `score`: logits, less the mean over the vocabulary.
/// # Errors
/// Those of [`TokenLensConfig::check`].
pub fn token_lens(
    model: &Model,
    task: &Task,
    config: &TokenLensConfig,
    progress: &dyn Progress,
) -> Result<Scores> {
    model
        .spec
        .check_decoder("direct logit attribution and lenses")?;
    config.check(model.spec.d_vocab, task)?;
    let began = Instant::now();
    let roles = roles_of(task);
    let targets = targets(task, config);
    let cells: Vec<Cell> = match config.knockout {
        false => lens_cells(model, &roles, &targets),
        true => knockout_cells(model, &roles, &targets),
    };
    let mut all = Vec::with_capacity(task.pairs().len());
    progress.start("reading", task.pairs().len() as u64);
    for batch in task.batches(BATCH) {
        if progress.cancelled() {
            return Err(Error::Interrupted {
                kept: "nothing was asked to be kept".into(),
            });
        }
        let pairs: Vec<&Pair> = batch.iter().map(|&pair| &task.pairs()[pair]).collect();
        let columns = match config.knockout {
            false => lens(model, &roles, &targets, &pairs)?,
            true => knockout(model, &roles, &targets, &pairs)?,
        };
        debug_assert_eq!(columns.rows.len(), cells.len());
        for (i, pair) in pairs.iter().enumerate() {
            let mut example = unmeasured(task, pair, columns.clean[i]);
            let present = (columns.rows.iter().enumerate())
                .filter_map(|(cell, column)| Some((cell as u32, column.as_ref()?[i])));
            let (indices, values): (Vec<u32>, Vec<f64>) = present.unzip();
            (example.cells, example.values) = (Arc::from(indices), values);
            all.push(example);
        }
        progress.advance(pairs.len() as u64);
    }
    progress.finish();
    all.sort_by_key(|example: &ExampleScores| example.example);
    let settings = json!({ "knockout": config.knockout, "watch": config.watch });
    let provenance = provenance(model, task, settings, began.elapsed().as_secs_f64());
    let (method, metric) = match config.knockout {
        false => ("token_lens", "centred_logit"),
        true => ("attention_knockout", "promoted"),
    };
    let meta = ScoresMeta {
        method: method.into(),
        metric: metric.into(),
        unit: "logits".into(),
        direction: Direction::Direct,
        seed: config.seed,
    };
    Scores::assemble(&cells, &all, &meta, config.detail, provenance)
}

/// What is watched: the tokens of each pair's target, or one token in all.
#[derive(Debug, Clone)]
enum Watched {
    Answers,
    Wrong,
    Token(u32, String),
}

impl Watched {
    fn name(&self) -> &str {
        match self {
            Watched::Answers => "answer",
            Watched::Wrong => "wrong",
            Watched::Token(_, text) => text,
        }
    }

    fn coefficients(&self, pair: &Pair) -> Vec<(u32, f32)> {
        let tokens = match self {
            Watched::Answers => pair.target.answers.clone(),
            Watched::Wrong => pair.target.wrong.clone(),
            Watched::Token(id, _) => vec![*id],
        };
        let part = 1.0 / tokens.len() as f32;
        tokens.into_iter().map(|token| (token, part)).collect()
    }
}

fn targets(task: &Task, config: &TokenLensConfig) -> Vec<Watched> {
    let mut targets = vec![Watched::Answers];
    if task
        .pairs()
        .iter()
        .all(|pair| !pair.target.wrong.is_empty())
    {
        targets.push(Watched::Wrong);
    }
    let token = |&id: &u32| Watched::Token(id, task.text(id));
    targets.extend(config.watch.iter().map(token));
    targets
}

/// Values of one batch: `[cell][prompt]`, and the first target's logit.
struct Columns {
    rows: Vec<Option<Vec<f64>>>,
    clean: Vec<f64>,
}

fn lens_cells(model: &Model, roles: &[String], targets: &[Watched]) -> Vec<Cell> {
    let mut cells = Vec::new();
    for target in targets {
        for layer in 0..model.spec.n_layers {
            let cell = |component: &str, role: Option<&str>| Cell {
                role: role.map(String::from),
                target: Some(target.name().into()),
                ..in_layer(component, layer)
            };
            let by_role = roles.iter().map(String::as_str).chain([OTHER]);
            cells.extend(by_role.map(|role| cell(Kind::AttnOut.name(), Some(role))));
            if has_attention_bias(model, layer) {
                cells.push(cell("attn.b_O", None));
            }
            cells.push(Cell {
                measure: Some("whole".into()),
                ..cell(Kind::AttnOut.name(), None)
            });
            if Kind::MlpOut.absent(&model.spec).is_none() {
                cells.push(cell(Kind::MlpOut.name(), None));
            }
        }
    }
    cells
}

fn lens(model: &Model, roles: &[String], targets: &[Watched], pairs: &[&Pair]) -> Result<Columns> {
    let of = |kind| every_layer(model, kind);
    let scale = Kind::Scale(Ln::OnePost);
    let kinds = [Kind::Pattern, Kind::V, Kind::AttnOut, Kind::MlpOut, scale];
    let capture: Vec<Hook> = kinds.into_iter().flat_map(of).collect();
    let mut ends = run(model, pairs, &capture, &[])?;
    let groups: Vec<String> = roles.iter().cloned().chain([OTHER.to_string()]).collect();
    let (mut rows, mut clean) = (Vec::new(), Vec::new());
    for target in targets {
        let readout = readout(&ends, target, pairs)?;
        if clean.is_empty() {
            clean.clone_from(&readout.total);
        }
        for layer in 0..model.spec.n_layers {
            let heads = sources(&mut ends, &readout.reader, layer)?;
            let positions = (0..ends.length).map(|pos| {
                let sum = |i: usize| heads.iter().map(|head| head[pos][i]).sum();
                (0..pairs.len()).map(sum).collect::<Vec<f64>>()
            });
            let by_position: Vec<Vec<f64>> = positions.collect();
            let whole = ends.at_end(Hook::at(Kind::AttnOut, layer))?;
            let whole = rowwise_dot(&whole, &readout.reader)?;
            let bias = attention_bias(&mut ends, &readout.reader, layer)?;
            rows.extend(by_role(&by_position, &groups, pairs));
            rows.extend(has_attention_bias(model, layer).then_some(Some(bias)));
            rows.push(Some(whole));
            let mlp_out = Hook::at(Kind::MlpOut, layer);
            if ends.cache.contains(mlp_out) {
                rows.push(Some(rowwise_dot(&ends.at_end(mlp_out)?, &readout.reader)?));
            }
        }
    }
    Ok(Columns { rows, clean })
}

fn knockout_cells(model: &Model, roles: &[String], targets: &[Watched]) -> Vec<Cell> {
    let has_mlp = Kind::MlpOut.absent(&model.spec).is_none();
    let layers = if has_mlp { model.spec.n_layers } else { 0 };
    let mut cells = Vec::new();
    for role in roles {
        for target in targets {
            let of = |cell: Cell, measure: Option<&str>| Cell {
                role: Some(role.clone()),
                target: Some(target.name().into()),
                measure: measure.map(String::from),
                ..cell
            };
            for layer in 0..layers {
                let cell = || in_layer(Kind::MlpOut.name(), layer);
                cells.push(of(cell(), None));
                cells.push(of(cell(), Some("promoted_at_clean_scale")));
            }
            let whole = Cell {
                component: "logits".into(),
                ..Cell::default()
            };
            cells.push(of(whole, None));
        }
    }
    cells
}

fn knockout(
    model: &Model,
    roles: &[String],
    targets: &[Watched],
    pairs: &[&Pair],
) -> Result<Columns> {
    let capture = every_layer(model, Kind::MlpOut);
    let mut full = run(model, pairs, &capture, &[])?;
    let (mut rows, mut clean) = (Vec::new(), Vec::new());
    for role in roles {
        let has = |pair: &&Pair| pair.roles.get(role).is_some_and(|at| !at.is_empty());
        let is_there = pairs.iter().all(has);
        let edits = match is_there {
            true => knock_out(model, role),
            false => Vec::new(),
        };
        let mut knocked = run(model, pairs, &capture, &edits)?;
        for target in targets {
            let before = readout(&full, target, pairs)?;
            let after = readout(&knocked, target, pairs)?;
            if clean.is_empty() {
                clean.clone_from(&before.total);
            }
            let less = |a: &[f64], b: &[f64]| -> Option<Vec<f64>> {
                let gaps = a.iter().zip(b).map(|(a, b)| a - b);
                is_there.then(|| gaps.collect())
            };
            for &hook in &capture {
                let with = rowwise_dot(&full.at_end(hook)?, &before.reader)?;
                let out = knocked.at_end(hook)?;
                rows.push(less(&with, &rowwise_dot(&out, &after.reader)?));
                rows.push(less(&with, &rowwise_dot(&out, &before.reader)?));
            }
            rows.push(less(&before.total, &after.total));
        }
    }
    Ok(Columns { rows, clean })
}

/// Attention from the last position to a role, gone in every layer and head. After the softmax, so that what is attended to
/// besides keeps its weight.
fn knock_out(model: &Model, role: &str) -> Vec<Edit> {
    let site = |hook: Hook| {
        Site::all(hook)
            .at_positions([Pos::FromEnd(1)])
            .keys([Pos::Role(role.into())])
    };
    let layers = every_layer(model, Kind::Pattern);
    layers
        .into_iter()
        .map(|hook| Edit::new(site(hook), Op::Scale(0.0)))
        .collect()
}

fn run<'a>(
    model: &'a Model,
    pairs: &[&Pair],
    capture: &[Hook],
    edits: &[Edit],
) -> Result<Ends<'a>> {
    let prompts: Vec<Vec<u32>> = pairs.iter().map(|pair| pair.clean.clone()).collect();
    let roles: Vec<_> = pairs.iter().map(|pair| pair.roles.clone()).collect();
    let request = Request {
        capture,
        edits,
        roles: &roles,
        ..Request::default()
    };
    Ends::run(model, &prompts, &request)
}

fn readout(ends: &Ends<'_>, target: &Watched, pairs: &[&Pair]) -> Result<Readout> {
    let coefficients: Vec<_> = pairs.iter().map(|pair| target.coefficients(pair)).collect();
    ends.readout_of(&coefficients, true)
}
