//! What an engine hands to the table: which cells were changed, and what was measured for each example.

use std::collections::BTreeMap;
use std::fmt;
use std::hash::Hash;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::text::visible;

/// What was changed in one variant: the coordinates of a cell. Those that do not apply are `None`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Cell {
    /// Which prompts a position is one of, where prompts of several templates or lengths do not align.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub template: Option<String>,
    /// The hook without its layer (`hook_resid_pre`, `attn.hook_z`), or the name of a bundle.
    pub component: String,
    pub layer: Option<u32>,
    pub head: Option<u32>,
    /// Position, or query position of a pattern; negative counts from the end.
    pub pos: Option<i32>,
    /// Key position of a pattern cell.
    pub key: Option<u32>,
    /// Role of the task, where a cell is a role rather than a position.
    pub role: Option<String>,
    pub neuron: Option<u32>,
    /// Ends of an edge.
    pub src: Option<String>,
    pub dst: Option<String>,
    /// What the value is, if it is not the table's own metric: such a side quantity goes to a table beside it.
    pub measure: Option<String>,
    /// What a read-out watches, where one table watches several tokens: `answer`, `wrong`, a token.
    pub target: Option<String>,
    /// What the part was found to be.
    pub class: Option<String>,
}

impl Cell {
    /// What its value is.
    pub fn metric<'a>(&'a self, meta: &'a ScoresMeta) -> &'a str {
        self.measure.as_deref().unwrap_or(&meta.metric)
    }

    /// What tells its rows from those of all other cells: everything but what was found out about it.
    pub(super) fn key<'a>(&'a self, meta: &'a ScoresMeta) -> impl Eq + Hash + use<'a> {
        (
            self.metric(meta),
            &self.template,
            &self.component,
            self.layer,
            self.head,
            self.pos,
            self.key,
            &self.role,
            self.neuron,
            &self.src,
            &self.dst,
            &self.target,
        )
    }

    /// Its position in the prompt of an example, from 0.
    fn position_in(&self, example: &ExampleScores) -> Option<usize> {
        match self.pos? {
            pos @ 0.. => Some(pos as usize),
            pos => (example.tokens.len()).checked_sub(pos.unsigned_abs() as usize),
        }
    }

    /// The token at its position in the prompt of an example.
    pub(super) fn token_in<'a>(&self, example: &'a ExampleScores) -> Option<&'a str> {
        let token = example.tokens.get(self.position_in(example)?)?;
        Some(token)
    }

    /// The roles of its position in the prompt of an example, joined by commas if there are several.
    pub(super) fn role_in(&self, example: &ExampleScores) -> Option<String> {
        let position = self.position_in(example)?;
        let here = example
            .roles
            .iter()
            .filter(|(_, at)| at.contains(&position));
        let roles: Vec<&str> = here.map(|(role, _)| role.as_str()).collect();
        (!roles.is_empty()).then(|| roles.join(","))
    }
}

/// A cell in few words, safe to show: `z 3.1 @4`, `a0.h1->m3`.
impl fmt::Display for Cell {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let component = self.component.replace("attn.", "").replace("hook_", "");
        let name = match (&self.src, &self.dst) {
            (Some(src), Some(dst)) => format!("{src}->{dst}"),
            (Some(one), None) | (None, Some(one)) => format!("{component} {one}"),
            (None, None) => component,
        };
        f.write_str(&visible(&name))?;
        if let Some(layer) = self.layer {
            write!(f, " {layer}")?;
        }
        if let Some(unit) = self.head.or(self.neuron) {
            write!(f, ".{unit}")?;
        }
        if let Some(pos) = self.pos {
            write!(f, " @{pos}")?;
        }
        if let Some(role) = &self.role {
            write!(f, " @{}", visible(role))?;
        }
        if let Some(measure) = &self.measure {
            write!(f, " ({measure})")?;
        }
        Ok(())
    }
}

impl Cell {
    /// A component of one layer.
    pub fn in_layer(component: &str, layer: usize) -> Self {
        Cell {
            component: component.into(),
            layer: Some(layer as u32),
            ..Cell::default()
        }
    }
}

/// Everything measured for one pair.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct ExampleScores {
    /// Index of the pair in the task as written.
    pub example: usize,
    /// The metric of the two runs without a change; NaN where what is measured is no change of a metric. A score is the value less
    /// that of the run that was changed; under [`Direction::Direct`] nothing is changed, and the score is the value.
    pub clean: f64,
    pub corrupted: f64,
    /// Whether the clean run prefers the answer to the wrong answer, where there is one and somebody looked.
    pub beats: Option<bool>,
    /// Whether the answer is the clean run's likeliest token, where somebody looked.
    pub top1: Option<bool>,
    /// Text of each token of the base prompt, for labels.
    pub tokens: Vec<String>,
    /// Positions of each role in this prompt, for labels.
    pub roles: BTreeMap<String, Vec<usize>>,
    /// Indices into the list of cells, ascending; examples of one template may share the list.
    pub cells: Arc<[u32]>,
    /// The metric with each of `cells` changed.
    pub values: Vec<f64>,
    /// What else was measured of the example, by name; it has no rows.
    pub facts: BTreeMap<String, f64>,
}

/// What kind of change a table measures, which decides its base run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Direction {
    /// Clean values into the corrupted run.
    #[default]
    Denoise,
    /// Corrupted values into the clean run.
    Noise,
    /// Values removed from the clean run.
    Ablate,
    /// Nothing is changed: what a component adds directly.
    Direct,
}

impl Direction {
    /// The run that is changed.
    pub fn base(self) -> &'static str {
        match self {
            Direction::Denoise => "corrupted",
            Direction::Noise | Direction::Ablate | Direction::Direct => "clean",
        }
    }

    /// The base metric of one example, and the metric that a full effect would reach, if there is one.
    pub(super) fn ends(self, clean: f64, corrupted: f64) -> (f64, Option<f64>) {
        match self {
            Direction::Denoise => (corrupted, Some(clean)),
            Direction::Noise => (clean, Some(corrupted)),
            Direction::Ablate => (clean, None),
            // A share of the clean run's own value: there is nothing to subtract.
            Direction::Direct => (0.0, None),
        }
    }
}

impl fmt::Display for Direction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Direction::Denoise => "denoise",
            Direction::Noise => "noise",
            Direction::Ablate => "ablate",
            Direction::Direct => "direct",
        })
    }
}

/// What all rows of a table share.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct ScoresMeta {
    pub method: String,
    pub metric: String,
    /// Unit of the metric: `logits`, `probability`, `nats`, ...
    pub unit: String,
    pub direction: Direction,
    /// The run that rows are of, where it is not the one that the direction says.
    pub base: Option<&'static str>,
    /// Seeds the bootstrap.
    pub seed: u64,
}

impl ScoresMeta {
    /// Of a table whose rows are of the run that the direction says.
    pub fn new(
        method: impl Into<String>,
        metric: impl ToString,
        unit: impl Into<String>,
        direction: Direction,
        seed: u64,
    ) -> Self {
        ScoresMeta {
            method: method.into(),
            metric: metric.to_string(),
            unit: unit.into(),
            direction,
            base: None,
            seed,
        }
    }
}

/// Whether the table has a row for each cell and example, or one for each cell.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Detail {
    /// A row for each cell and example; `example` is the pair's index in the task.
    PerExample,
    /// A row for each cell: the mean over the examples that have it, with an interval.
    Mean,
}
