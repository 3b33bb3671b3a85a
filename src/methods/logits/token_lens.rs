//! The Token Lens and attention knockout: what attention to one group of tokens promotes, directly and through the MLPs.
//!
//! The lens reads what attention of a layer brings to the last position from the tokens of one role alone (the rest of the
//! pattern left out, nothing renormalised, `b_O` in a row of its own) through the final norm with the scale of the run's own
//! final stream. The knockout sets attention from the last position to a role to zero after the softmax, in every layer and
//! head, without renormalising, runs again, and compares what each MLP writes for the watched tokens.
//!
//! Source: Yan and Jia 2025, "Promote, suppress, iterate: how language models answer one-to-many factual queries". Logits are
//! read less their mean over the vocabulary, which is our choice: a raw logit carries a shift common to all tokens.

use candle_core::Tensor;
use serde_json::{Value, json};

use super::dla::{attention_bias, has_attention_bias, sources};
use super::groups::Groups;
use super::readout::{Ends, Readout, every_layer, rowwise_dot};
use super::{NEEDS_DECODER, check_tokens, distinct_texts};
use crate::error::Result;
use crate::hooks::{Edit, Hook, Kind, Ln, Op, Pos, Site};
use crate::methods::captured::captured_bytes;
use crate::methods::columns::{Columns, judged};
use crate::methods::method::{
    Cost, Method, Needs, Preparation, Prepared, Running, Subject, Unit, check_answers, pairs_of,
};
use crate::metric::Judgement;
use crate::model::{Model, ModelSpec};
use crate::run::{Progress, Request};
use crate::scores::{Cell, Direction, ExampleScores, Measured, ScoresMeta};
use crate::task::{Pair, Task};

/// What to look at.
///
/// The lens: for each watched token and layer a row for each role (`hook_attn_out` with that role), one for `b_O`, one for
/// `hook_attn_out` whole (their sum) and one for `hook_mlp_out`.
///
/// The knockout: for each watched token, role and layer what `hook_mlp_out` writes less what it writes without attention
/// to the role (`promoted`: positive means that the attention made the MLP promote the token), each with its own run's final
/// scale, and beside it with the clean run's (`promoted_at_clean_scale`); and a row `logits` for the whole model.
/// # Units
/// `score`: logits, less the mean over the vocabulary.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct TokenLensConfig {
    /// Knock attention out and compare, rather than read what it brings.
    pub knockout: bool,
    /// Tokens watched beside the answers and the wrong answers of each pair.
    pub watch: Vec<u32>,
    /// Of the bootstrap [default: the task's].
    pub seed: Option<u64>,
}

impl TokenLensConfig {
    /// What attention brings; answers and wrong answers are watched.
    pub fn lens() -> Self {
        TokenLensConfig::default()
    }

    /// What attention makes the MLPs write; answers and wrong answers are watched.
    pub fn knockout() -> Self {
        TokenLensConfig {
            knockout: true,
            ..TokenLensConfig::default()
        }
    }
}

impl Method for TokenLensConfig {
    fn header(&self, task: &Task) -> ScoresMeta {
        let (method, metric) = if self.knockout {
            ("attention_knockout", "promoted")
        } else {
            ("token_lens", "centred_logit")
        };
        ScoresMeta::new(
            method,
            metric,
            "logits",
            Direction::Direct,
            self.seed.unwrap_or(task.seed),
        )
    }

    fn settings(&self) -> Value {
        json!({ "watch": self.watch })
    }

    fn needs(&self, _: &Task) -> Needs {
        Needs {
            decoder: Some(NEEDS_DECODER),
            roles: true,
            ..Needs::default()
        }
    }

    fn check(&self, spec: &ModelSpec, task: &Task) -> Result<()> {
        check_tokens(&self.watch, spec)?;
        check_answers(task, "centred_logit")
    }

    fn prepare<'a>(&'a self, on: Subject<'a>, _: &'a Running) -> Preparation<'a> {
        let of = |kind| every_layer(on.model, kind);
        let mut capture = of(Kind::MlpOut);
        if !self.knockout {
            let kinds = [
                Kind::Pattern,
                Kind::V,
                Kind::AttnOut,
                Kind::Scale(Ln::OnePost),
            ];
            capture.extend(kinds.into_iter().flat_map(of));
        }
        let mut reading = Reading {
            on,
            is_knockout: self.knockout,
            capture,
            groups: Groups::of(on.task),
            roles: on.task.all_roles(),
            targets: targets(on.task, self),
            cells: Vec::new(),
        };
        reading.cells = if self.knockout {
            reading.knockout_cells()
        } else {
            reading.lens_cells()
        };
        Ok(Box::new(reading))
    }
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
    let has_wrong = |pair: &Pair| !pair.target.wrong.is_empty();
    if task.pairs().iter().all(has_wrong) {
        targets.push(Watched::Wrong);
    }
    let mut tokens: Vec<u32> = Vec::new();
    for &token in &config.watch {
        if !tokens.contains(&token) {
            tokens.push(token);
        }
    }
    let named = tokens.iter().zip(distinct_texts(task, &tokens));
    targets.extend(named.map(|(&token, name)| Watched::Token(token, name)));
    targets
}

/// A checked run in progress.
struct Reading<'a> {
    on: Subject<'a>,
    is_knockout: bool,
    capture: Vec<Hook>,
    /// Roles, and positions of none.
    groups: Groups,
    roles: Vec<String>,
    targets: Vec<Watched>,
    cells: Vec<Cell>,
}

impl Prepared for Reading<'_> {
    fn cells(&self) -> &[Cell] {
        &self.cells
    }

    fn bytes(&self, length: usize) -> usize {
        let runs = if self.is_knockout { 2 } else { 1 };
        runs * captured_bytes(&self.capture, &self.on.model.spec, length)
    }

    /// A knockout runs once more for each role.
    fn cost(&self, unit: &Unit) -> Result<Cost> {
        let more = if self.is_knockout {
            self.roles.len()
        } else {
            0
        };
        Ok(Cost::passes((unit.items.len() * (1 + more)) as f64))
    }

    fn measure(&self, unit: &Unit, _: &dyn Progress) -> Result<Vec<ExampleScores>> {
        let pairs = pairs_of(self.on.task, &unit.items);
        let (columns, clean, judgements) = if self.is_knockout {
            self.knockout(&pairs)?
        } else {
            self.lens(&pairs)?
        };
        debug_assert_eq!(columns.len(), self.cells.len());
        let examples = columns.into_examples(self.on.task, &unit.items, &clean);
        Ok(judged(examples, judgements))
    }

    fn conclude(&self, measured: &mut Measured, _: &dyn Progress) -> Result<()> {
        measured.drop_unmeasured();
        Ok(())
    }
}

impl Reading<'_> {
    fn lens_cells(&self) -> Vec<Cell> {
        let model = self.on.model;
        let mut cells = Vec::new();
        for target in &self.targets {
            for layer in 0..model.spec.n_layers {
                let cell = |component: &str| Cell {
                    target: Some(target.name().into()),
                    ..Cell::in_layer(component, layer)
                };
                cells.extend(self.groups.names.iter().map(|role| Cell {
                    role: Some(role.clone()),
                    ..cell(Kind::AttnOut.name())
                }));
                if has_attention_bias(model, layer) {
                    cells.push(cell("attn.b_O"));
                }
                cells.push(Cell {
                    measure: Some("whole".into()),
                    ..cell(Kind::AttnOut.name())
                });
                if Kind::MlpOut.absent(&model.spec).is_none() {
                    cells.push(cell(Kind::MlpOut.name()));
                }
            }
        }
        cells
    }

    /// What attention brings to each prompt of a batch, and the first target's logit.
    fn lens(&self, pairs: &[&Pair]) -> Result<(Columns, Vec<f64>, Vec<Judgement>)> {
        let model = self.on.model;
        let mut ends = self.run(pairs, &[])?;
        let (mut columns, mut clean) = (Columns::new(pairs.len()), Vec::new());
        for target in &self.targets {
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
                self.groups.push(&mut columns, &by_position, pairs);
                if has_attention_bias(model, layer) {
                    columns.push(&attention_bias(&mut ends, &readout.reader, layer)?);
                }
                let whole = ends.at_end(Hook::at(Kind::AttnOut, layer))?;
                columns.push(&rowwise_dot(&whole, &readout.reader)?);
                let mlp_out = Hook::at(Kind::MlpOut, layer);
                if ends.cache.contains(mlp_out) {
                    columns.push(&rowwise_dot(&ends.at_end(mlp_out)?, &readout.reader)?);
                }
            }
        }
        Ok((columns, clean, ends.judge(pairs)?))
    }

    fn knockout_cells(&self) -> Vec<Cell> {
        let mut cells = Vec::new();
        for role in &self.roles {
            for target in &self.targets {
                let of = |cell: Cell| Cell {
                    role: Some(role.clone()),
                    target: Some(target.name().into()),
                    ..cell
                };
                for hook in &self.capture {
                    let cell = of(Cell::in_layer(hook.kind.name(), hook.layer.unwrap_or(0)));
                    cells.push(cell.clone());
                    cells.push(Cell {
                        measure: Some("promoted_at_clean_scale".into()),
                        ..cell
                    });
                }
                cells.push(of(Cell {
                    component: "logits".into(),
                    ..Cell::default()
                }));
            }
        }
        cells
    }

    /// What attention to each role makes the MLPs of each prompt write, and the first target's logit.
    fn knockout(&self, pairs: &[&Pair]) -> Result<(Columns, Vec<f64>, Vec<Judgement>)> {
        let mut full = self.run(pairs, &[])?;
        let clean = readout(&full, &Watched::Answers, pairs)?.total;
        let mut columns = Columns::new(pairs.len());
        for role in &self.roles {
            // Only the prompts that have the role run again.
            let has = |&i: &usize| pairs[i].roles.get(role).is_some_and(|at| !at.is_empty());
            let there: Vec<usize> = (0..pairs.len()).filter(has).collect();
            if there.is_empty() {
                columns.skip(self.cells.len() / self.roles.len());
                continue;
            }
            let of_role: Vec<&Pair> = there.iter().map(|&i| pairs[i]).collect();
            let rows: Vec<u32> = there.iter().map(|&i| i as u32).collect();
            let rows = Tensor::new(rows, &self.on.model.device)?;
            let mut knocked = self.run(&of_role, &knock_out(self.on.model, role))?;
            for target in &self.targets {
                let before = readout(&full, target, pairs)?;
                let after = readout(&knocked, target, &of_role)?;
                let mut push = |with: &[f64], without: &[f64]| {
                    let place = |i: usize| there.iter().position(|&there| there == i);
                    columns.push_some(|i| Some(with[i] - without[place(i)?]));
                };
                let clean_reader = before.reader.index_select(&rows, 0)?;
                for &hook in &self.capture {
                    let with = rowwise_dot(&full.at_end(hook)?, &before.reader)?;
                    let out = knocked.at_end(hook)?;
                    push(&with, &rowwise_dot(&out, &after.reader)?);
                    push(&with, &rowwise_dot(&out, &clean_reader)?);
                }
                push(&before.total, &after.total);
            }
        }
        Ok((columns, clean, full.judge(pairs)?))
    }

    fn run(&self, pairs: &[&Pair], edits: &[Edit]) -> Result<Ends<'_>> {
        let roles: Vec<_> = pairs.iter().map(|pair| pair.roles.clone()).collect();
        let request = Request {
            capture: &self.capture,
            edits,
            roles: &roles,
            ..Request::default()
        };
        Ends::run(self.on.model, pairs, &request)
    }
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

fn readout(ends: &Ends<'_>, target: &Watched, pairs: &[&Pair]) -> Result<Readout> {
    let coefficients: Vec<_> = pairs.iter().map(|pair| target.coefficients(pair)).collect();
    ends.readout_of(&coefficients, true)
}
