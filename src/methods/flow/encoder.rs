//! GlobEnc as a method: the tokens that a position of an encoder is a mixture of, by each rung of the ladder, and as flow.

use std::collections::BTreeMap;
use std::fmt;

use serde_json::{Value, json};

use super::globenc::{GlobEnc, Rung, globenc_of, hooks};
use super::layered::{Layered, LayeredCells, drop_weak};
use super::parts::{GAP, larger};
use super::place::{check_encoder, check_threshold, position};
use crate::error::{Error, Result};
use crate::hooks::Pos;
use crate::methods::activation_patching::{PatchConfig, PatchSource};
use crate::methods::captured::{captured_and_judged, captured_bytes};
use crate::methods::measure::{Watch, measurements};
use crate::methods::method::{
    Cost, Method, Needs, Preparation, Prepared, Running, Subject, Unit, pairs_of, unmeasured,
};
use crate::methods::sites::parse_sites;
use crate::methods::tokens::{TokenConfig, TokenMethod, passed_down};
use crate::run::Progress;
use crate::scores::statistics::rank_correlation;
use crate::scores::{Cell, Direction, ExampleScores, Measured, ScoresMeta, View};
use crate::spec::ModelSpec;
use crate::task::{Pair, Task};

/// What the rungs are held against, as sizes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Against {
    /// The change of the metric when a token's embedding is zeroed: a run a token.
    Occlusion,
    /// The gradient times the embedding: one backward pass.
    GradXInput,
}

impl fmt::Display for Against {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Against::Occlusion => "occlusion",
            Against::GradXInput => "grad-x-input",
        })
    }
}

/// Which position of an encoder is explained, and what that is held against.
///
/// Rows: a component for each [`Rung`], with the share of each token (`pos`); `flow` are edges between the states of the layers, as GlobEnc
/// has them. In the table beside, `spearman` is the rank correlation of a rung with what it is held against, over the tokens of a prompt.
/// # Units
/// `score`: a share of 1.
#[derive(Debug, Clone, PartialEq)]
pub struct GlobEncConfig {
    /// An edge has a row if, in the mean, more than this share passes along it.
    pub threshold: f64,
    /// The position that is explained, such as that of `[CLS]`; of a role of several tokens the last [default: where the answer is read].
    pub start: Option<Pos>,
    pub against: Option<Against>,
    /// Of the bootstrap [default: the task's].
    pub seed: Option<u64>,
}

impl Default for GlobEncConfig {
    fn default() -> Self {
        GlobEncConfig {
            threshold: 0.02,
            start: None,
            against: None,
            seed: None,
        }
    }
}

impl GlobEncConfig {
    /// The position that is explained.
    fn start_in(&self, pair: &Pair) -> Result<usize> {
        let length = pair.clean.len();
        match &self.start {
            Some(pos) => position(pos, length, &pair.roles),
            None => Ok(pair.target.positions(length).start),
        }
    }

    fn yardstick(&self, against: Against) -> Result<Box<dyn Method>> {
        Ok(match against {
            Against::Occlusion => Box::new(PatchConfig {
                direction: Direction::Ablate,
                source: PatchSource::Zero,
                ..PatchConfig::new(parse_sites("embed:pos")?)
            }),
            Against::GradXInput => Box::new(TokenConfig::new(TokenMethod::GradientTimesInput)),
        })
    }
}

impl Method for GlobEncConfig {
    fn header(&self, task: &Task) -> ScoresMeta {
        ScoresMeta::new(
            "flow_globenc",
            "share",
            "share of 1",
            Direction::Direct,
            self.seed.unwrap_or(task.seed),
        )
    }

    fn settings(&self) -> Value {
        json!({ "threshold": self.threshold, "start": self.start.as_ref().map(Pos::to_string), "against": self.against })
    }

    fn needs(&self, _: &Task) -> Needs {
        Needs::default()
    }

    fn check(&self, spec: &ModelSpec, task: &Task) -> Result<()> {
        check_encoder(spec)?;
        check_threshold(self.threshold)?;
        for pair in task.pairs() {
            self.start_in(pair)?;
        }
        if self.against.is_some() && self.start.is_some() {
            return Err(Error::invalid(
                "what a token does is read where the answer is; leave the position out, or what the shares are held against",
            ));
        }
        LayeredCells::check(spec, task)?;
        match self.against {
            Some(against) => {
                let yardstick = self.yardstick(against)?;
                crate::methods::measure::check(&*yardstick, spec, task)
            }
            None => Ok(()),
        }
    }

    fn prepare<'a>(&'a self, on: Subject<'a>, running: &'a Running) -> Preparation<'a> {
        let rungs = Rung::ALL.map(|rung| rung.to_string());
        Ok(Box::new(Mixing {
            on,
            config: self,
            running,
            cells: LayeredCells::new(on.model.spec.n_layers, on.task, "flow", false, &rungs),
        }))
    }

    fn views(&self, _: &Task) -> Vec<View> {
        vec![View::Graph, View::Grids, View::Strongest]
    }
}

/// A checked run in progress.
struct Mixing<'a> {
    on: Subject<'a>,
    config: &'a GlobEncConfig,
    running: &'a Running,
    cells: LayeredCells,
}

impl Prepared for Mixing<'_> {
    fn cells(&self) -> &[Cell] {
        &self.cells.all
    }

    fn bytes(&self, length: usize) -> usize {
        let spec = &self.on.model.spec;
        let matrices = 8 * Rung::ALL.len() * spec.n_layers * length * length;
        captured_bytes(&hooks(spec), spec, length) + matrices
    }

    fn cost(&self, unit: &Unit) -> Result<Cost> {
        let length = self.on.task.pairs()[unit.items[0]].clean.len() as f64;
        let against = match self.config.against {
            None => 0.0,
            Some(Against::Occlusion) => length,
            Some(Against::GradXInput) => 5.0,
        };
        Ok(Cost::passes((1.0 + against) * unit.items.len() as f64))
    }

    fn measure(&self, unit: &Unit, _: &dyn Progress) -> Result<Vec<ExampleScores>> {
        let Subject { model, task } = self.on;
        let pairs = pairs_of(task, &unit.items);
        let (cache, judged) = captured_and_judged(model, &pairs, &hooks(&model.spec))?;
        let all = globenc_of(model, &cache)?;
        let mut examples = Vec::with_capacity(pairs.len());
        for (i, (pair, globenc)) in pairs.iter().zip(&all).enumerate() {
            let start = self.config.start_in(pair)?;
            let flow = flow(globenc, start);
            let shares = Rung::ALL.map(|rung| globenc.shares(rung, start));
            let mut example = unmeasured(task, unit.items[i], f64::NAN, f64::NAN);
            example.judged(judged[i]);
            self.cells.fill(&mut example, pair, &flow, &shares);
            example
                .facts
                .insert("gap".into(), larger(globenc.gaps[0], globenc.gaps[1]));
            examples.push(example);
        }
        Ok(examples)
    }

    fn conclude(&self, measured: &mut Measured, progress: &dyn Progress) -> Result<()> {
        let gaps = measured
            .examples
            .iter()
            .filter_map(|one| one.facts.get("gap"));
        let gap = gaps.copied().fold(0.0, larger);
        measured.found.insert("largest_gap".into(), json!(gap));
        if gap.is_nan() || gap > GAP {
            measured.warnings.push(format!(
                "the parts of a state miss it by {:.2}% of its largest entry; this should not happen in f32: if the model is in f16 or bf16, \
                 try `LoadOptions::dtype = f32`",
                100.0 * gap
            ));
        }
        drop_weak(measured, self.config.threshold);
        let Some(against) = self.config.against else {
            return Ok(());
        };
        let yardstick = self.config.yardstick(against)?;
        let running = Running {
            verify: None,
            shard: None,
            ..self.running.clone()
        };
        let found = measurements(self.on, &*yardstick, &running, &Watch::progress(progress))?;
        let direction = yardstick.header(self.on.task).direction;
        // What each token is worth, by example and position.
        let mut worth: BTreeMap<usize, BTreeMap<i32, f64>> = BTreeMap::new();
        for example in &found.examples {
            let of = worth.entry(example.example).or_default();
            for (&cell, value) in example.cells.iter().zip(&example.values) {
                let cell = &found.cells[cell as usize];
                if let (Some(pos), "hook_embed") = (cell.pos, cell.component.as_str()) {
                    of.insert(pos, (value - example.base(direction)).abs());
                }
            }
        }
        let names = Rung::ALL.map(|rung| rung.to_string());
        let tokens: Vec<BTreeMap<usize, i32>> = names
            .iter()
            .map(|name| {
                let cells = measured.cells.iter().enumerate();
                let of = cells.filter(|(_, cell)| cell.component == *name);
                of.filter_map(|(at, cell)| Some((at, cell.pos?))).collect()
            })
            .collect();
        let cells = names.iter().map(|name| Cell {
            component: name.clone(),
            measure: Some("spearman".into()),
            dst: Some(against.to_string()),
            ..Cell::default()
        });
        let first = measured.append(cells.collect(), |_, example| {
            let worth = worth.get(&example.example);
            tokens
                .iter()
                .map(|places| {
                    let pairs = example.cells.iter().zip(&example.values);
                    let pairs = pairs.filter_map(|(&cell, share)| {
                        let pos = places.get(&(cell as usize))?;
                        Some((*share, *worth?.get(pos)?))
                    });
                    rank_correlation(&pairs.collect::<Vec<_>>())
                })
                .collect()
        });
        let means = measured.means(Direction::Direct, false);
        let each = names.iter().zip(&means[first..]);
        let each: Vec<String> = each
            .map(|(name, mean)| format!("{name} {mean:.2}"))
            .collect();
        measured.notes.push(format!(
            "rank correlation of each rung's shares with the sizes of {against} (of the metric {}), prompt by prompt, in the mean: {}; intervals \
             are in the table beside",
            self.on.task.metric,
            each.join(", ")
        ));
        Ok(())
    }
}

/// What passes from state to state on its way to a position.
fn flow(globenc: &GlobEnc, start: usize) -> Layered {
    let mixing = globenc.conserved(Rung::NResOut);
    let length = mixing[0].len().isqrt();
    let mut entering = vec![vec![0.0; length]; mixing.len() + 1];
    entering[mixing.len()][start] = 1.0;
    Layered {
        masses: passed_down(&mixing, &entering),
        mixing,
        read: Vec::new(),
        embed: 0.0,
    }
}
