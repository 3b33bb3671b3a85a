//! Information flow routes: what flows to the answer's position, from where, through which heads.
//!
//! From the last state of one position the walk goes down, along every part whose share of a state is larger than a threshold
//! ([`super::parts`], [`super::route`]). It takes one forward pass, so that heads can be profiled over a corpus for the price of reading it:
//! what a head brings in all is the sum of its shares along the route. A share says what a state is made of and not what it does: an effect
//! is measured by patching, which `verify` does for heads and MLPs.
//!
//! Source: Ferrando and Voita 2024, "Information Flow Routes: Automatically Interpreting Language Models at Scale", arXiv
//! 2403.00824. L1 depends on the basis of the stream, as in the paper. Ours: the contrast of two prompts is that of shares along each
//! prompt's own route, where what is not followed counts 0.

use serde_json::{Value, json};

use super::cells::{Cells, complete, n_edges};
use super::parts::{GAP, larger};
use super::place::{check_threshold, position};
use super::route::{Route, RouteSettings, hooks, routes, routes_of};
use crate::error::{Error, Result};
use crate::hooks::{Kind, Pos};
use crate::methods::activation_patching::PatchConfig;
use crate::methods::captured::{captured_and_judged, captured_bytes};
use crate::methods::method::{
    Cost, Exact, Method, Needs, Preparation, Prepared, Running, Subject, Unit, pairs_of,
    stop_if_asked, unmeasured,
};
use crate::methods::sites::parse_sites;
use crate::run::Progress;
use crate::scores::{Cell, Direction, ExampleScores, Measured, ScoresMeta, View};
use crate::spec::{Mlp, ModelSpec};
use crate::task::{END, Task};

/// More possible edges than this are gigabytes of labels.
const MOST_EDGES: usize = 1_000_000;

/// Which routes are looked for.
///
/// Rows: `stream`, `attention`, `mlp` and `bias` are edges of the graph, from `src` to `dst`; `head` is the share of one head in an edge of
/// attention; `attn.hook_z` and `hook_mlp_out` are what a head or an MLP brings in all. A row is the mean over all pairs whose
/// prompts align, of which a pair whose route does not have the edge counts 0.
/// # Units
/// `score`: a share of 1 of the state at `dst`; of totals a sum of such shares.
#[derive(Debug, Clone, PartialEq)]
pub struct RouteConfig {
    pub settings: RouteSettings,
    /// The position whose last state is explained; of a role of several tokens the last.
    pub start: Pos,
    /// The clean prompt's shares less those of the corrupted one.
    pub contrast: bool,
    /// Only what heads and MLPs bring in all: prompts of any lengths share these rows.
    pub profile: bool,
    /// So many of the strongest neurons get rows (`mlp.hook_post`) of what they bring in all.
    pub neurons: usize,
    /// Of the bootstrap [default: the task's].
    pub seed: Option<u64>,
}

impl Default for RouteConfig {
    fn default() -> Self {
        RouteConfig {
            settings: RouteSettings::default(),
            start: Pos::FromEnd(1),
            contrast: false,
            profile: false,
            neurons: 0,
            seed: None,
        }
    }
}

impl RouteConfig {
    fn followed(&self) -> RouteSettings {
        RouteSettings {
            neurons: self.neurons > 0,
            ..self.settings
        }
    }
}

impl Method for RouteConfig {
    fn header(&self, task: &Task) -> ScoresMeta {
        ScoresMeta::new(
            "flow_routes",
            match self.contrast {
                true => "importance_difference",
                false => "importance",
            },
            "share of 1",
            Direction::Direct,
            self.seed.unwrap_or(task.seed),
        )
    }

    fn settings(&self) -> Value {
        json!({
            "threshold": self.settings.threshold,
            "renormalise": self.settings.renormalise,
            "start": self.start.to_string(),
            "contrast": self.contrast,
            "profile": self.profile,
            "neurons": self.neurons,
        })
    }

    fn needs(&self, _: &Task) -> Needs {
        Needs {
            decoder: Some("information flow"),
            aligned: self.contrast,
            whole_answers: true,
            ..Needs::default()
        }
    }

    fn check(&self, spec: &ModelSpec, task: &Task) -> Result<()> {
        check_threshold(self.settings.threshold)?;
        if self.neurons > 0 && spec.mlp == Mlp::None {
            return Err(Error::invalid(
                "its blocks have no MLP, so there are no neurons to rank; leave `RouteConfig::neurons` out",
            ));
        }
        for pair in task.pairs() {
            position(&self.start, pair.clean.len(), &pair.roles)?;
        }
        let n_edges = if self.profile { 0 } else { n_edges(spec, task) };
        if n_edges > MOST_EDGES {
            return Err(Error::invalid(format!(
                "there are {n_edges} edges between the states of these prompts, and a table takes {MOST_EDGES}; profile heads over them \
                 (`RouteConfig::profile`), or take prompts of one template or fewer"
            )));
        }
        Ok(())
    }

    fn prepare<'a>(&'a self, on: Subject<'a>, _: &'a Running) -> Preparation<'a> {
        Ok(Box::new(Following {
            on,
            config: self,
            cells: Cells::new(&on.model.spec, on.task, self.profile, self.neurons > 0),
        }))
    }

    fn views(&self, _: &Task) -> Vec<View> {
        match self.profile {
            true => Vec::new(),
            false => vec![View::Graph, View::Grids],
        }
    }

    /// Sizes: a share has no sign, and is held against the size of what patching the part does.
    fn exact(&self, cells: &[Cell]) -> Option<Exact> {
        let has_mlps = cells
            .iter()
            .any(|cell| cell.component == Kind::MlpOut.name());
        let sites = if has_mlps {
            "z:all,mlp_out:all"
        } else {
            "z:all"
        };
        // What patching does is read at the answer, so a route that starts elsewhere has no twin.
        let at_the_answer =
            self.start == Pos::FromEnd(1) || self.start == Pos::Role(END.to_string());
        (at_the_answer && !self.contrast).then_some(())?;
        Some(Exact {
            method: Box::new(PatchConfig {
                only: Some(cells.to_vec()),
                ..PatchConfig::new(parse_sites(sites).ok()?)
            }),
            sign: 1.0,
            sizes: true,
        })
    }

    /// What a head or an MLP brings in all; no single edge can be patched.
    fn exact_cell(&self, cell: &Cell) -> Option<Cell> {
        (cell.src.is_none() && cell.neuron.is_none()).then(|| cell.clone())
    }
}

/// A checked run in progress.
struct Following<'a> {
    on: Subject<'a>,
    config: &'a RouteConfig,
    cells: Cells,
}

impl Prepared for Following<'_> {
    fn cells(&self) -> &[Cell] {
        &self.cells.all
    }

    fn bytes(&self, length: usize) -> usize {
        let spec = &self.on.model.spec;
        captured_bytes(&hooks(spec, self.config.followed()), spec, length)
    }

    fn cost(&self, unit: &Unit) -> Result<Cost> {
        let runs = if self.config.contrast { 2.0 } else { 1.0 };
        let length = self.on.task.pairs()[unit.items[0]].clean.len();
        Ok(Cost {
            bytes: unit.items.len() * self.bytes(length),
            ..Cost::passes(runs * unit.items.len() as f64)
        })
    }

    fn measure(&self, unit: &Unit, progress: &dyn Progress) -> Result<Vec<ExampleScores>> {
        let Subject { model, task } = self.on;
        let pairs = pairs_of(task, &unit.items);
        let settings = self.config.followed();
        let starts: Vec<usize> = pairs
            .iter()
            .map(|pair| position(&self.config.start, pair.clean.len(), &pair.roles))
            .collect::<Result<_>>()?;
        let (cache, judged) = captured_and_judged(model, &pairs, &hooks(&model.spec, settings))?;
        let clean = routes_of(model, &cache, &starts, settings)?;
        drop(cache);
        stop_if_asked(progress)?;
        let corrupted: Vec<Route> = match self.config.contrast {
            true => {
                let prompts: Vec<_> = pairs.iter().map(|pair| pair.corrupted.clone()).collect();
                routes(model, &prompts, &starts, settings)?
            }
            false => Vec::new(),
        };
        let mut examples = Vec::with_capacity(pairs.len());
        for (i, pair) in pairs.iter().enumerate() {
            let mut values = Default::default();
            self.cells.add(&mut values, pair, &clean[i], 1.0);
            if let Some(route) = corrupted.get(i) {
                self.cells.add(&mut values, pair, route, -1.0);
            }
            let mut example = unmeasured(task, unit.items[i], f64::NAN, f64::NAN);
            example.judged(judged[i]);
            example.cells = values.keys().copied().collect();
            example.values = values.into_values().collect();
            let both = || [Some(&clean[i]), corrupted.get(i)].into_iter().flatten();
            let gap = both().map(|route| route.gap).fold(0.0, larger);
            let unmixed: usize = both().map(|route| route.unmixed).sum();
            let facts = [
                ("gap", gap),
                ("unmixed", unmixed as f64),
                ("edges", clean[i].edges.len() as f64),
                ("nodes", clean[i].nodes.len() as f64),
            ];
            example.facts = facts.map(|(name, value)| (name.to_string(), value)).into();
            examples.push(example);
        }
        Ok(examples)
    }

    fn conclude(&self, measured: &mut Measured, _: &dyn Progress) -> Result<()> {
        let facts = |name: &'static str| {
            let examples = measured.examples.iter();
            examples.filter_map(move |example| example.facts.get(name).copied())
        };
        let mean = |name| facts(name).sum::<f64>() / measured.examples.len().max(1) as f64;
        let gap = facts("gap").fold(0.0, larger);
        let unmixed = facts("unmixed").sum::<f64>() as u64;
        let note = format!(
            "a route has {:.1} edges between {:.1} states on average (of clean prompts; threshold {})",
            mean("edges"),
            mean("nodes"),
            self.config.settings.threshold
        );
        measured.notes.push(note);
        measured.found.insert("largest_gap".into(), json!(gap));
        measured
            .found
            .insert("unmixed_states".into(), json!(unmixed));
        if gap.is_nan() || gap > GAP {
            measured.warnings.push(format!(
                "the parts of a state miss it by {:.2}% of its largest entry; this should not happen in f32: if the model is in f16 or bf16, \
                 try `LoadOptions::dtype = f32`",
                100.0 * gap
            ));
        }
        if unmixed > 0 {
            measured.warnings.push(format!(
                "in {unmixed} states no part comes near what they are the sum of; the stream counts as all of it there"
            ));
        }
        if self.config.contrast {
            measured.notes.push(
                "each importance is that in the clean prompt less that in the corrupted one".into(),
            );
        }
        if self.config.neurons > 0 {
            self.cells
                .keep_strongest_neurons(measured, self.config.neurons);
        }
        complete(measured, self.on.task);
        Ok(())
    }
}
