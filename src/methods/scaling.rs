//! Scaling heads while the model runs: what the next token becomes as one head is turned down, off, up or round.
//!
//! "Characterizing Mechanisms for Factual Recall in Language Models" (Yu, Merullo, Pavlick 2023) finds heads that push towards a
//! fact that the model remembers and heads that push towards one that its prompt says, and chooses between the two by scaling a
//! single head. Here z of a head is multiplied at all positions, which is the same as scaling that head's values; under grouped
//! heads, scaling the values themselves would take the whole group. The class of the greedy next token is counted: one of the
//! task's answers, one of its wrong answers, or any `other` token, which is what a broken model says. A task whose answer stands
//! in the prompt and whose wrong answer is the remembered one measures what the paper does.
//!
//! Choosing a head and a factor on these prompts and reporting them on the same ones flatters; use other prompts (`--seed`) for
//! one of the two.

mod modulation;

use std::collections::BTreeSet;
use std::fmt;

use candle_core::DType;
use serde_json::{Value, json};

pub use modulation::ModulationConfig;

use super::choice::Heads;
use super::measure::{Watch, measure};
use super::method::{
    Cost, Method, Needs, Preparation, Prepared, Running, Subject, Unchanged, Unit, check_answers,
    clean_prompts, pairs_of, stop_if_asked,
};
use crate::error::{Error, Result};
use crate::hooks::{Edit, Hook, Kind, Op, Site};
use crate::metric::{Judgement, Target};
use crate::run::{GenerateRequest, Logits, Progress, Quiet, Request, generate, run};
use crate::scores::statistics::wilson;
use crate::scores::{Cell, Direction, ExampleScores, Measured, Scores, ScoresMeta};
use crate::spec::ModelSpec;
use crate::task::Task;

/// Which heads, and by how much.
#[derive(Debug, Clone, PartialEq)]
pub struct ScalingConfig {
    /// Each is scaled by itself; none named means every head.
    pub heads: Heads,
    pub factors: Vec<f32>,
}

impl ScalingConfig {
    /// The factors that are tried where nobody says which.
    pub const FACTORS: [f32; 11] = [-5.0, -2.0, -1.0, 0.0, 0.5, 1.0, 2.0, 3.0, 5.0, 8.0, 10.0];

    /// These heads, each by all of [`ScalingConfig::FACTORS`].
    pub fn new(heads: Heads) -> Self {
        ScalingConfig {
            heads,
            factors: ScalingConfig::FACTORS.to_vec(),
        }
    }

    /// Each head with each factor.
    fn scaled(&self, spec: &ModelSpec) -> Vec<Scaled> {
        let heads = spec
            .heads()
            .filter(|&(layer, head)| self.heads.has(layer, head));
        let by_all = |(layer, head)| {
            self.factors.iter().map(move |&factor| Scaled {
                layer,
                head,
                factor,
            })
        };
        heads.flat_map(by_all).collect()
    }
}

/// A head and what it is multiplied by.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Scaled {
    layer: usize,
    head: usize,
    factor: f32,
}

/// What a next token is to the task.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Class {
    /// One of the task's answers.
    Answer,
    /// One of its wrong answers.
    Wrong,
    /// Any other token.
    Other,
}

impl Class {
    const ALL: [Class; 3] = [Class::Answer, Class::Wrong, Class::Other];

    fn of(token: u32, target: &Target) -> Self {
        if target.answers.contains(&token) {
            Class::Answer
        } else if target.wrong.contains(&token) {
            Class::Wrong
        } else {
            Class::Other
        }
    }
}

impl fmt::Display for Class {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Class::Answer => "answer",
            Class::Wrong => "wrong",
            Class::Other => "other",
        })
    }
}

/// The class of the greedy next token of every clean prompt, for each head and factor: [`measure`] with the defaults of
/// [`Running`]. A row for each head, factor (`src`) and class (`target`).
/// # Units
/// `score`: the share of prompts, with its Wilson 95% interval; of single prompts 0 or 1.
/// # Errors
/// What cannot be run as asked, before anything runs.
pub fn scaling(on: Subject<'_>, config: &ScalingConfig) -> Result<Scores> {
    measure(on, config, &Running::default(), &Watch::default())
}

impl Method for ScalingConfig {
    fn header(&self, task: &Task) -> ScoresMeta {
        ScoresMeta::new(
            "scaling",
            "next_token",
            "share of prompts",
            Direction::Direct,
            task.seed,
        )
    }

    fn settings(&self) -> Value {
        json!({ "heads": self.heads, "factors": self.factors })
    }

    fn needs(&self, _: &Task) -> Needs {
        Needs::default()
    }

    fn check(&self, spec: &ModelSpec, task: &Task) -> Result<()> {
        check_causal(spec)?;
        self.heads.check(spec)?;
        if self.factors.is_empty() {
            return Err(Error::invalid("scaling needs at least one factor"));
        }
        if let Some(factor) = self.factors.iter().find(|factor| !factor.is_finite()) {
            return Err(Error::invalid(format!(
                "a factor must be a finite number, not {factor}"
            )));
        }
        let mut seen = BTreeSet::new();
        // Of zero there is one: what is scaled by it is gone, whatever its sign.
        let mut factors = self.factors.iter();
        if let Some(factor) = factors.find(|factor| !seen.insert((**factor + 0.0).to_bits())) {
            return Err(Error::invalid(format!(
                "the factor {factor} is given twice"
            )));
        }
        check_answers(task, "next_token")
    }

    fn prepare<'a>(&'a self, on: Subject<'a>, _: &'a Running) -> Preparation<'a> {
        let scaled = self.scaled(&on.model.spec);
        let of_one = |scaled: &Scaled| {
            Class::ALL.map(|class| Cell {
                component: Kind::Z.name().into(),
                layer: Some(scaled.layer as u32),
                head: Some(scaled.head as u32),
                src: Some(scaled.factor.to_string()),
                target: Some(class.to_string()),
                ..Cell::default()
            })
        };
        Ok(Box::new(Scaling {
            on,
            cells: scaled.iter().flat_map(of_one).collect(),
            scaled,
        }))
    }
}

/// A checked run in progress.
struct Scaling<'a> {
    on: Subject<'a>,
    scaled: Vec<Scaled>,
    /// For each head and factor a cell for each class.
    cells: Vec<Cell>,
}

impl Scaling<'_> {
    /// The heads and factors that have one of these cells.
    fn scaled_in(&self, unit: &Unit) -> std::ops::Range<usize> {
        let classes = Class::ALL.len();
        unit.cells.start / classes..unit.cells.end.div_ceil(classes)
    }

    /// How the model does without any scaling.
    fn judged(&self, items: &[usize]) -> Result<Vec<Judgement>> {
        let request = Request {
            logits: Logits::Last,
            ..Request::default()
        };
        let logits = run(
            self.on.model,
            &clean_prompts(&pairs_of(self.on.task, items)),
            &request,
        )?
        .logits;
        let logits = match logits {
            Some(logits) => logits.to_dtype(DType::F32)?.to_vec2::<f32>()?,
            None => Vec::new(),
        };
        let judged = |(&item, row): (&usize, &Vec<f32>)| {
            let target = &self.on.task.pairs()[item].target;
            target.judge(row)
        };
        Ok(items.iter().zip(&logits).map(judged).collect())
    }

    /// The class of the greedy next token of each prompt.
    fn next(&self, items: &[usize], edits: &[Edit]) -> Result<Vec<Class>> {
        let pairs = self.on.task.pairs();
        let request = GenerateRequest {
            edits,
            max_tokens: 1,
            ..GenerateRequest::default()
        };
        let generation = generate(
            self.on.model,
            &clean_prompts(&pairs_of(self.on.task, items)),
            &request,
            &Quiet,
        )?;
        let class = |(&pair, tokens): (&usize, &Vec<u32>)| {
            let target = &pairs[pair].target;
            tokens
                .first()
                .map_or(Class::Other, |&token| Class::of(token, target))
        };
        Ok(items.iter().zip(&generation.tokens).map(class).collect())
    }
}

impl Prepared for Scaling<'_> {
    fn cells(&self) -> &[Cell] {
        &self.cells
    }

    fn bytes(&self, length: usize) -> usize {
        bytes_of_a_run(&self.on.model.spec, length)
    }

    fn splits(&self) -> bool {
        true
    }

    fn cost(&self, unit: &Unit) -> Result<Cost> {
        let length = self.on.task.pairs()[unit.items[0]].clean.len();
        Ok(Cost {
            variants: self.scaled_in(unit).len(),
            bytes: self.bytes(length),
            ..Cost::passes((unit.items.len() * (1 + self.scaled_in(unit).len())) as f64)
        })
    }

    fn measure(&self, unit: &Unit, progress: &dyn Progress) -> Result<Vec<ExampleScores>> {
        let n = unit.items.len();
        let mut values: Vec<Vec<f64>> = vec![Vec::with_capacity(unit.cells.len()); n];
        for at in self.scaled_in(unit) {
            stop_if_asked(progress)?;
            let Scaled {
                layer,
                head,
                factor,
            } = self.scaled[at];
            let site = Site::all(Hook::at(Kind::Z, layer)).heads([head]);
            let edits = [Edit::new(site, Op::Scale(factor))];
            let found = self.next(&unit.items, &edits)?;
            let first = at * Class::ALL.len();
            for (number, class) in Class::ALL.into_iter().enumerate() {
                if unit.cells.contains(&(first + number)) {
                    for (values, found) in values.iter_mut().zip(&found) {
                        values.push(f64::from(u8::from(*found == class)));
                    }
                    progress.advance(n as u64);
                }
            }
        }
        let judged = self.judged(&unit.items)?;
        Ok(unit.examples(self.on.task, values, |i| {
            let judged = judged.get(i).copied().unwrap_or_default();
            let right = f64::from(u8::from(judged.top1 == Some(true)));
            Unchanged {
                clean: right,
                corrupted: right,
                judged,
            }
        }))
    }

    /// Shares have Wilson's interval.
    fn conclude(&self, measured: &mut Measured, _: &dyn Progress) -> Result<()> {
        for cell in 0..measured.cells.len() {
            let values = measured
                .examples
                .iter()
                .filter_map(|example| example.value(cell));
            let (mut count, mut of) = (0, 0);
            for value in values {
                count += usize::from(value > 0.5);
                of += 1;
            }
            measured.intervals.insert(cell, Some(wilson(count, of)));
        }
        measured.notes.push(
            "the share of prompts whose most probable next token is an answer, a wrong answer or another token (`target`) while z of \
             one head is multiplied by a factor (`src`); intervals are Wilson's"
                .into(),
        );
        Ok(())
    }
}

/// Refuses a model that writes nothing after a prompt.
fn check_causal(spec: &ModelSpec) -> Result<()> {
    if spec.is_causal() {
        return Ok(());
    }
    Err(Error::invalid(format!(
        "family `{}` predicts no next token, so there is none to count",
        spec.family
    )))
}

/// Bytes of one run of a prompt at its widest place.
fn bytes_of_a_run(spec: &ModelSpec, length: usize) -> usize {
    let of_keys = 2 * spec.n_layers * spec.n_kv_heads * spec.d_head;
    let of_block = 4 * spec.d_model + 4 * spec.d_mlp + spec.n_heads * (2 * spec.d_head + length);
    4 * (length * (of_keys + of_block) + spec.d_vocab)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lab::Lab;

    fn lab() -> Lab {
        let options = crate::task::ExpandOptions {
            n_pairs: Some(12),
            ..Default::default()
        };
        let loading = crate::model::LoadOptions::default();
        Lab::open_with("embedded", &loading, "embedded", options).expect("it is in the binary")
    }

    #[test]
    fn classes_are_those_of_the_most_probable_token_with_the_head_scaled() {
        let lab = lab();
        let config = ScalingConfig {
            heads: "a2.h0,a0.h1".parse().expect("heads"),
            factors: vec![1.0, 0.0, -4.0],
        };
        let scores = lab.measure(&config).expect("scales");
        let column = |name: &str| -> Vec<f64> {
            let values = scores.floats(name).expect(name);
            values.into_iter().map(|value| value.expect(name)).collect()
        };
        let (shares, low, high) = (column("score"), column("ci_low"), column("ci_high"));
        assert_eq!(shares.len(), 18);
        for (row, scaled) in config.scaled(&lab.model.spec).into_iter().enumerate() {
            let Scaled {
                layer,
                head,
                factor,
            } = scaled;
            let edit = format!("z{layer}[head={head}] *= {factor}");
            let edits = [edit.parse().expect("an edit")];
            let (mut answers, mut wrong) = (0, 0);
            for pair in lab.task.pairs() {
                let request = Request {
                    edits: &edits,
                    ..Request::default()
                };
                let run =
                    run(&lab.model, std::slice::from_ref(&pair.clean), &request).expect("runs");
                let token = run.logits.expect("asked for").argmax(1).expect("a row");
                let token = token.to_vec1::<u32>().expect("ids")[0];
                answers += usize::from(pair.target.answers.contains(&token));
                wrong += usize::from(pair.target.wrong.contains(&token));
            }
            for (class, count) in [answers, wrong, 12 - answers - wrong]
                .into_iter()
                .enumerate()
            {
                let at = 3 * row + class;
                assert!((shares[at] - count as f64 / 12.0).abs() < 1e-12, "{edit}");
                assert_eq!((low[at], high[at]), wilson(count, 12), "{edit}");
            }
        }
        // At factor 1 nothing is changed, and the model knows its task.
        assert_eq!(shares[..3], shares[9..12]);
        assert_eq!(shares[0], scores.provenance.mean_clean);
        assert!(shares[0] > 0.9, "{}", shares[0]);
    }

    #[test]
    fn what_cannot_be_scaled_is_refused() {
        let lab = lab();
        let says = |heads: &str, factors: &[f32], what: &str| {
            let config = ScalingConfig {
                heads: heads.parse().expect(heads),
                factors: factors.to_vec(),
            };
            let message = lab.measure(&config).expect_err(what).to_string();
            assert!(message.contains(what), "{message}");
        };
        says("a4.h0", &[1.0], "`layer` = 4");
        says("9", &[1.0], "`head` = 9");
        says("a0.h0", &[], "one factor");
        says("a0.h0", &[f32::NAN], "finite");
        says("a0.h0", &[0.0, -0.0], "twice");
    }
}
