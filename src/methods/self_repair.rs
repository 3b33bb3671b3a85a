//! Self-repair: what a part adds to the logit itself, against what the logit loses without it.
//!
//! The output of one attention, MLP or head is replaced at the last position by what it was in other prompts, one donor at a
//! time; effects are averaged, never the donors' vectors. With the final scale frozen at the clean run's, the change of the
//! logit is an exact account: the part's own direct change, and what every later part writes more or less. That sum over the
//! later parts is the compensation, `CE`. What the scale itself does is the norm term, which can be the larger of the two.
//!
//! With `DU` the direct effect in the clean run and `DU~` that of the value put in place, the frozen total effect is
//! `(DU~ - DU) + CE`, and `restored = CE / (DU - DU~)` is the share made good: a ratio of means, never a mean of ratios.
//!
//! A head whose direct effect is negative and whose loss raises the logit is a negative head, as copy-suppressing heads are.
//!
//! Sources: McGrath et al. 2023, "The Hydra effect" (there with the sign of the total effect turned in figures); McDougall et
//! al. 2023, "Copy suppression". Only the last position is ablated. Left out on purpose: zero ablation, which leaves the data.

mod account;
mod config;
mod effects;
mod parts;
mod report;

use serde_json::{Value, json};

use account::CleanRun;
pub use config::{RepairConfig, RepairParts, RepairTarget};
use effects::{Measure, Removed};
use parts::Repair;
use report::report;

use super::logits::dla::check_target;
use super::measure::{Watch, measure};
use super::method::{
    Cost, Method, Needs, Preparation, Prepared, Running, Subject, Unchanged, Unit, stop_if_asked,
};
use crate::error::{Error, Result};
use crate::hooks::Kind;
use crate::run::Progress;
use crate::scores::{Cell, Direction, ExampleScores, Measured, Scores, ScoresMeta};
use crate::spec::{Mlp, ModelSpec};
use crate::task::Task;

/// Measures direct effect, total effect and compensation of every part: [`measure`] with the defaults of [`Running`].
///
/// Rows of the table's own metric `total_effect` hold the change of the logit with everything recomputed; beside it stand the
/// other measures, `restored` and `r2` (of direct effect against the total effect turned around, over prompts) where there is
/// one value for all prompts, and rows `compensation` from the part (`src`) to each later part (`dst`).
/// `class` is `negative` where the direct effect is below 0 and the total effect above, each by two standard errors; `positive` the other way round.
/// # Units
/// `score`: logits before any soft-cap, with the change minus without; `direct_effect` and `direct_effect_ablated` are
/// contributions; `restored`, `r2` and `direct_above_total` (the share of prompts with `DU > -total`) have none.
/// # Errors
/// What cannot be run as asked, before anything runs.
pub fn self_repair(on: Subject<'_>, config: &RepairConfig) -> Result<Scores> {
    measure(on, config, &Running::default(), &Watch::default())
}

impl Method for RepairConfig {
    fn header(&self, task: &Task) -> ScoresMeta {
        ScoresMeta::new(
            "self_repair",
            Measure::Total.name(),
            "logits",
            Direction::Ablate,
            self.seed(task),
        )
    }

    fn settings(&self) -> Value {
        json!({
            "parts": self.parts,
            "target": self.target,
            "donors": self.donors,
            "layers": self.layers,
            "heads": self.heads,
            "position": "END",
        })
    }

    fn needs(&self, _: &Task) -> Needs {
        Needs {
            decoder: Some("direct effects"),
            ..Needs::default()
        }
    }

    fn check(&self, spec: &ModelSpec, task: &Task) -> Result<()> {
        if let RepairTarget::Of(target) = &self.target {
            check_target(target, spec, task)?;
        }
        if self.parts == RepairParts::Mlp && spec.mlp == Mlp::None {
            return Err(Error::HookAbsent {
                hook: Kind::MlpOut.name().into(),
                reason: "its blocks have no MLP".into(),
            });
        }
        if self.donors == 0 || task.pairs().len() < 2 {
            return Err(Error::invalid(format!(
                "values are taken from other prompts: {} donors of {} prompts are too few; use at least one donor and two prompts",
                self.donors,
                task.pairs().len()
            )));
        }
        self.layers.check(spec)?;
        self.heads.check(spec)?;
        if !self.heads.0.is_empty() && self.parts != RepairParts::Heads {
            return Err(Error::invalid(
                "attention and MLPs of whole layers have no heads to choose from; leave the heads out, or measure `heads`",
            ));
        }
        if self.removed(spec).is_empty() {
            return Err(Error::invalid(
                "none of these heads is in one of these layers; leave one of the two choices out",
            ));
        }
        Ok(())
    }

    fn prepare<'a>(&'a self, on: Subject<'a>, running: &'a Running) -> Preparation<'a> {
        Ok(Box::new(Repair::new(on, self, running)))
    }
}

impl Prepared for Repair<'_> {
    fn cells(&self) -> &[Cell] {
        &self.cells
    }

    fn bytes(&self, length: usize) -> usize {
        let spec = self.spec();
        let heads = (2 * spec.n_heads + 2 * spec.n_kv_heads) * spec.d_head;
        // The clean run, and what its parts contribute; variants hold one position each.
        4 * 4 * spec.n_layers * length * (4 * spec.d_model + heads)
    }

    fn splits(&self) -> bool {
        true
    }

    /// A pass for the clean run and one for the donors' values, and for each donor one row through the layers above.
    fn cost(&self, unit: &Unit) -> Result<Cost> {
        let item = unit.items[0];
        let length = self.on.task.pairs()[item].clean.len();
        let n_layers = self.spec().n_layers as f64;
        let donors = self.donors[item].len();
        let parts: Vec<&Removed> = self
            .parts_in(&unit.cells)
            .map(|at| &self.removed[at])
            .collect();
        let rows = |part: &&Removed| donors as f64 * (n_layers - part.layer as f64);
        let row_layers: f64 = parts.iter().map(rows).sum();
        Ok(Cost {
            variants: parts.len() * donors,
            passes: 3.0,
            packed: row_layers / (n_layers * length as f64),
            bytes: self.bytes(length),
            ..Cost::default()
        })
    }

    fn measure(&self, unit: &Unit, progress: &dyn Progress) -> Result<Vec<ExampleScores>> {
        let clean = CleanRun::new(self, &unit.items)?;
        let mut wanted: Vec<usize> = unit
            .items
            .iter()
            .flat_map(|&item| self.donors[item].iter().copied())
            .collect();
        wanted.sort_unstable();
        wanted.dedup();
        let ends = self.ends(&wanted)?;
        let mut values = vec![Vec::with_capacity(unit.cells.len()); unit.items.len()];
        for at in self.parts_in(&unit.cells) {
            stop_if_asked(progress)?;
            let rows = &self.rows[at];
            let here = rows.start.max(unit.cells.start)..rows.end.min(unit.cells.end);
            let of_part = clean.without(self.removed[at], &unit.items, &ends)?;
            for (values, of_part) in values.iter_mut().zip(of_part) {
                let own = here.start - rows.start..here.end - rows.start;
                values.extend_from_slice(&of_part[own]);
            }
            progress.advance((here.len() * unit.items.len()) as u64);
        }
        Ok(unit.examples(self.on.task, values, |i| Unchanged {
            judged: clean.judged[i],
            // An effect: without a change it is none.
            clean: 0.0,
            corrupted: 0.0,
        }))
    }

    fn conclude(&self, measured: &mut Measured, _: &dyn Progress) -> Result<()> {
        report(self, measured);
        Ok(())
    }
}
