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

use crate::error::{Error, Result};
use crate::hooks::{Edit, Hook, Kind, Node, Op, Site};
use crate::model::{Model, ModelSpec};
use crate::run::{GenerateRequest, Progress, Quiet, generate};
use crate::task::Task;

/// Prompts that run at once.
const BATCH: usize = 64;
/// Normal quantile of a 95% interval.
const Z: f64 = 1.959_963_984_540_054;

/// Which heads, and by how much.
#[derive(Debug, Clone, PartialEq)]
pub struct ScalingConfig {
    /// Each is scaled by itself.
    pub heads: Vec<Node>,
    pub factors: Vec<f32>,
}

impl ScalingConfig {
    /// The factors that are tried where nobody says which.
    pub const FACTORS: [f32; 11] = [-5.0, -2.0, -1.0, 0.0, 0.5, 1.0, 2.0, 3.0, 5.0, 8.0, 10.0];

    /// Checks what can be checked without a task, and gives layer and head of each node.
    /// # Errors
    /// [`Error::UnknownNode`] for a node that is no head of this model; [`Error::Invalid`] without heads or factors, or for a
    /// factor that is not finite.
    pub fn check(&self, spec: &ModelSpec) -> Result<Vec<(usize, usize)>> {
        if self.heads.is_empty() || self.factors.is_empty() {
            return Err(Error::invalid(
                "scaling needs at least one head (such as `a3.h1`) and one factor",
            ));
        }
        if let Some(factor) = self.factors.iter().find(|factor| !factor.is_finite()) {
            return Err(Error::invalid(format!(
                "a factor must be a finite number, not {factor}"
            )));
        }
        let head = |node: &Node| match *node {
            Node::Head { layer, head } if layer < spec.n_layers && head < spec.n_heads => {
                Ok((layer, head))
            }
            other => Err(Error::UnknownNode {
                node: other.to_string(),
                reason: format!(
                    "what is scaled is a head, written `a3.h1`; there are {} layers of {} heads",
                    spec.n_layers, spec.n_heads
                ),
            }),
        };
        self.heads.iter().map(head).collect()
    }
}

/// A head at one factor: how often the greedy next token was of each class.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Scaled {
    pub layer: usize,
    pub head: usize,
    pub factor: f32,
    /// One of the task's answers.
    pub answer: Share,
    /// One of its wrong answers.
    pub wrong: Share,
    /// Any other token.
    pub other: Share,
}

/// A count out of some, as a fraction with its Wilson 95% interval.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Share {
    pub count: usize,
    pub of: usize,
    pub fraction: f64,
    pub low: f64,
    pub high: f64,
}

impl Share {
    /// Wilson's interval: it stays within 0 and 1, and is not a point where all or none were counted.
    pub fn new(count: usize, of: usize) -> Self {
        let n = of.max(1) as f64;
        let fraction = count as f64 / n;
        let square = Z * Z / n;
        let centre = (fraction + square / 2.0) / (1.0 + square);
        let spread = fraction * (1.0 - fraction) / n + square / (4.0 * n);
        let half = Z * spread.sqrt() / (1.0 + square);
        Share {
            count,
            of,
            fraction,
            low: (centre - half).max(0.0),
            high: (centre + half).min(1.0),
        }
    }
}

/// The class of the greedy next token of every clean prompt, for each head and factor.
/// # Errors
/// Those of [`ScalingConfig::check`]; [`Error::Interrupted`].
pub fn scaling(
    model: &Model,
    task: &Task,
    config: &ScalingConfig,
    progress: &dyn Progress,
) -> Result<Vec<Scaled>> {
    let heads = config.check(&model.spec)?;
    let mut rows = Vec::with_capacity(heads.len() * config.factors.len());
    progress.start("scaling", (heads.len() * config.factors.len()) as u64);
    for &(layer, head) in &heads {
        for &factor in &config.factors {
            if progress.cancelled() {
                let kept = "a sweep of factors that is cut short is not kept".into();
                return Err(Error::Interrupted { kept });
            }
            rows.push(at_factor(model, task, layer, head, factor)?);
            progress.advance(1);
        }
    }
    progress.finish();
    Ok(rows)
}

fn at_factor(model: &Model, task: &Task, layer: usize, head: usize, factor: f32) -> Result<Scaled> {
    let site = Site::all(Hook::at(Kind::Z, layer)).heads([head]);
    let edits = [Edit::new(site, Op::Scale(factor))];
    let request = GenerateRequest {
        edits: &edits,
        max_tokens: 1,
        ..GenerateRequest::default()
    };
    let (mut answers, mut wrong) = (0, 0);
    for batch in task.batches(BATCH) {
        let prompts: Vec<Vec<u32>> = (batch.iter())
            .map(|&pair| task.pairs()[pair].clean.clone())
            .collect();
        let generation = generate(model, &prompts, &request, &Quiet)?;
        for (&pair, tokens) in batch.iter().zip(&generation.tokens) {
            let target = &task.pairs()[pair].target;
            if target.answers.contains(&tokens[0]) {
                answers += 1;
            } else if target.wrong.contains(&tokens[0]) {
                wrong += 1;
            }
        }
    }
    let n = task.pairs().len();
    Ok(Scaled {
        layer,
        head,
        factor,
        answer: Share::new(answers, n),
        wrong: Share::new(wrong, n),
        other: Share::new(n - answers - wrong, n),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{EMBEDDED, LoadOptions, load};
    use crate::run::{Request, run};
    use crate::task::{ExpandOptions, TaskFile, expand};

    #[test]
    fn wilson_intervals_are_those_of_the_formula() {
        // By hand: n = 10, z^2 / n = 0.384146; centre (0.5 + 0.192073) / 1.384146 = 0.5; half 1.96 sqrt(0.025 + 0.0096036) / 1.384146.
        let half = Share::new(5, 10);
        assert!((half.low - 0.236_593).abs() < 1e-5, "{half:?}");
        assert!((half.high - 0.763_407).abs() < 1e-5, "{half:?}");
        let all = Share::new(10, 10);
        assert!((all.low - 0.722_467).abs() < 1e-5, "{all:?}");
        assert!((all.high - 1.0).abs() < 1e-12, "{all:?}");
        let none = Share::new(0, 10);
        assert!(none.low.abs() < 1e-12, "{none:?}");
        assert!((none.high - 0.277_533).abs() < 1e-5, "{none:?}");
    }

    fn setting() -> (Model, Task) {
        let loaded = load(EMBEDDED, &LoadOptions::default()).expect("it is part of the binary");
        let options = ExpandOptions {
            n_pairs: Some(12),
            ..ExpandOptions::default()
        };
        let file = TaskFile::open(EMBEDDED).expect("it is part of the binary");
        let task = expand(&file, &loaded.tokenizer, &options).expect("expands");
        (loaded.model, task)
    }

    #[test]
    fn classes_are_those_of_the_most_probable_token_with_the_head_scaled() {
        let (model, task) = setting();
        let config = ScalingConfig {
            heads: vec![
                Node::Head { layer: 2, head: 0 },
                Node::Head { layer: 0, head: 1 },
            ],
            factors: vec![1.0, 0.0, -4.0],
        };
        let rows = scaling(&model, &task, &config, &Quiet).expect("scales");
        assert_eq!(rows.len(), 6);
        for row in &rows {
            let edit = format!("z{}[head={}] *= {}", row.layer, row.head, row.factor);
            let edits = [edit.parse().expect("an edit")];
            let (mut answers, mut wrong) = (0, 0);
            for pair in task.pairs() {
                let request = Request {
                    edits: &edits,
                    ..Request::default()
                };
                let run = run(&model, std::slice::from_ref(&pair.clean), &request).expect("runs");
                let token = run.logits.expect("asked for").argmax(1).expect("a row");
                let token = token.to_vec1::<u32>().expect("ids")[0];
                answers += usize::from(pair.target.answers.contains(&token));
                wrong += usize::from(pair.target.wrong.contains(&token));
            }
            let counts = [row.answer.count, row.wrong.count, row.other.count];
            assert_eq!(counts, [answers, wrong, 12 - answers - wrong], "{edit}");
        }
        // At factor 1 nothing is changed, and the model knows its task.
        assert_eq!(rows[0].answer, rows[3].answer);
        assert!(rows[0].answer.fraction > 0.9, "{:?}", rows[0]);
    }

    #[test]
    fn what_is_no_head_is_refused() {
        let (model, task) = setting();
        let refused = |heads: Vec<Node>, factors: Vec<f32>| {
            let config = ScalingConfig { heads, factors };
            scaling(&model, &task, &config, &Quiet).expect_err("refused")
        };
        let head = Node::Head { layer: 4, head: 0 };
        for node in [head, Node::Mlp(0)] {
            let error = refused(vec![node], vec![1.0]);
            assert!(matches!(error, Error::UnknownNode { .. }), "{error}");
        }
        let head = Node::Head { layer: 0, head: 0 };
        refused(vec![head], vec![]);
        refused(vec![head], vec![f32::NAN]);
        refused(vec![], vec![1.0]);
    }
}
