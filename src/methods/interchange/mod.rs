//! Does the model compute what a program says? Interchange interventions: a variable of a high-level program is set to what it is in
//! another prompt, and the activation where the model may hold it is set to what it is in the run of that prompt; if the model is the
//! program, both then say the same.
//!
//! A base `b`, and for each variable `V_i` that is exchanged a source `s_i` of its own: the model runs `b` with the activation at the place of
//! `V_i` taken from its run of `s_i`, the program runs `b` with `V_i <- V_i(s_i)`. `score` is interchange intervention accuracy (IIA), the share in
//! which the model's answer is the program's, over the exchanges that change what the program says; `iia_all` is that of all of them, half
//! of which change nothing where there are enough. Beside it stand two controls of each place: `iia_random`, a place of the same size (another
//! position for a whole activation, other heads or neurons, a random subspace), drawn anew for each exchange, and `iia_shuffled`, the same place
//! with the sources of another exchange, by which the program says something else. Three rows belong to no place: `constant`, the one answer that is right most often; `unchanged`, the
//! model with nothing exchanged; and the accuracy of the model on the bases, with what the program says of them for right.
//!
//! Sources: Geiger et al. 2021, "Causal Abstractions of Neural Networks", arXiv 2106.02997; Geiger et al. 2023, "Causal Abstraction: A
//! Theoretical Foundation for Mechanistic Interpretability", arXiv 2301.04709; for subspaces Geiger et al. 2024, arXiv 2303.02536. That
//! exchanges agree with a program does not say that no other program fits as well. Left out on purpose: training an alignment, which is
//! `subspace`'s, whose directions can be taken here.

mod changes;
mod config;
mod design;
mod expression;
mod file;
mod inputs;
mod node;
mod parse;
mod places;
mod program;
mod run;

use serde_json::Value as Json;

pub use config::{AlignedPart, Alignment, Decode, Draws, InterchangeConfig, PromptOf};
pub use expression::{Expression, Tables, Value};
pub use file::{ProgramFile, WrittenPlace};
pub use inputs::{InputTable, Side};
pub use program::{Function, Inputs, Known, Program};

use super::method::{Method, Needs, Preparation, Running, Subject};
use crate::error::Result;
use crate::scores::{Direction, LayerColumn, Layers, ScoresMeta, View};
use crate::spec::ModelSpec;
use crate::task::Task;
use design::Design;
use run::{IIA, Interchanging, RANDOM, SHUFFLED};

impl Method for InterchangeConfig {
    fn header(&self, task: &Task) -> ScoresMeta {
        ScoresMeta::new(
            "interchange",
            IIA,
            "fraction",
            Direction::Direct,
            self.seed(task),
        )
    }

    fn settings(&self) -> Json {
        InterchangeConfig::settings(self)
    }

    fn needs(&self, _: &Task) -> Needs {
        Needs {
            decoder: Some("interchange interventions"),
            ..Needs::default()
        }
    }

    fn check(&self, spec: &ModelSpec, task: &Task) -> Result<()> {
        Design::new(self, spec, task).map(|_| ())
    }

    fn prepare<'a>(&'a self, on: Subject<'a>, running: &'a Running) -> Preparation<'a> {
        Ok(Box::new(Interchanging::new(on, self, running)?))
    }

    fn views(&self, _: &Task) -> Vec<View> {
        let mut names: Vec<String> = self
            .aligned()
            .map(|(_, name, _)| name.to_string())
            .collect();
        if self.together {
            names.push(names.join("+"));
        }
        let columns = |name: &String| {
            let column = |title: &str, measure: &str| LayerColumn {
                title: title.into(),
                measure: measure.into(),
                target: Some(name.clone()),
            };
            [
                column(name, IIA),
                column("random", RANDOM),
                column("shuffled", SHUFFLED),
            ]
        };
        vec![View::Layers(Layers {
            heading: Some(IIA.into()),
            columns: names.iter().flat_map(columns).collect(),
            tokens: None,
        })]
    }
}
