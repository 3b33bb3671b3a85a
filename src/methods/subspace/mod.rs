//! Which subspace of an activation carries the answer? A direction (or a few) is found on some pairs and judged on others: of two runs,
//! the part of the source's activation along it is put into the other one, `h' = h_b + (h_s - h_b) W W^T`.
//!
//! `score` is the log odds ratio: how far the changed run moved from its own answer towards the source's, in the mean over both ways
//! round (clean into corrupted, corrupted into clean). With [`SubspaceMethod::Full`] it is what activation patching of the whole hook
//! gives. Beside it stands `iia`, the share of runs that now prefer the source's answer (interchange intervention accuracy). A
//! `control` is the same for two arbitrary tokens as labels, and the `selectivity` of a direction its odds less those.
//!
//! The two labels of a pair are its answer and its wrong answer, so the corrupted prompt should ask for the latter. Methods that want classes
//! take the two answers of a task that has two; else clean prompts against corrupted ones.
//!
//! Sources: Arora, Jurafsky and Potts 2024, "CausalGym", arXiv 2402.12560 (methods, odds, selectivity); Geiger et al. 2024, arXiv
//! 2303.02536 (DAS); Wu et al. 2023, arXiv 2305.08809 (Boundless DAS). That a subspace changes the answer does not say that the model uses
//! it: Makelov, Lange and Nanda 2023, arXiv 2311.17030.

mod config;
mod data;
mod find;
mod fit;
mod judge;
mod places;
mod run;
mod save;
mod space;
mod split;
mod train;

use serde_json::{Value, json};

pub use config::{SplitBy, SubspaceConfig, SubspaceMethod, Training};
pub use data::das_loss;
pub use fit::{Points, Probe};
pub(super) use places::{check_kind, check_role};
pub use save::{model_of_directions, read_subspaces};
pub use space::Subspace;
pub use split::rank_one_edit;

use super::method::{Method, Needs, Preparation, Running, Subject};
use crate::error::{Error, Result};
use crate::hooks::Hook;
use crate::metric::Metric;
use crate::scores::{Direction, LayerColumn, Layers, ScoresMeta, View};
use crate::spec::ModelSpec;
use crate::task::Task;
use places::Split;
use run::{Exchanging, FLDD, IIA, ODDS, SELECTIVITY};
use split::Series;

const MOST_DRAWS: usize = 1000;
const MOST_STEPS: usize = 100_000;

impl Method for SubspaceConfig {
    fn header(&self, task: &Task) -> ScoresMeta {
        ScoresMeta::new("subspace", ODDS, "nats", Direction::Direct, task.seed)
    }

    fn settings(&self) -> Value {
        json!({
            "kind": self.kind.name(),
            "layers": self.layers,
            "roles": self.roles,
            "methods": self.methods,
            "dims": self.dims,
            "train": self.train,
            "training": self.training,
            "draws": self.draws,
            "control": self.control,
            "split": self.split,
        })
    }

    fn needs(&self, _: &Task) -> Needs {
        Needs {
            decoder: Some("subspaces"),
            metric: Some(Metric::LogitDiff),
            ..Needs::default()
        }
    }

    fn check(&self, spec: &ModelSpec, task: &Task) -> Result<()> {
        self.layers.check(spec)?;
        check_kind(self.kind)?;
        let mut layers = (0..spec.n_layers).filter(|&layer| self.layers.has(layer));
        layers.try_for_each(|layer| Hook::at(self.kind, layer).check(spec))?;
        if self.methods.is_empty() || self.roles.is_empty() {
            return Err(Error::invalid(
                "subspaces need a way to be found (`SubspaceConfig::methods`) and a place (`SubspaceConfig::roles`)",
            ));
        }
        let mut known = std::collections::BTreeSet::new();
        if let Some(twice) = self.methods.iter().find(|method| !known.insert(**method)) {
            return Err(Error::invalid(format!("`{twice}` is named twice")));
        }
        let mut known = std::collections::BTreeSet::new();
        if let Some(twice) = self.roles.iter().find(|role| !known.insert(*role)) {
            return Err(Error::invalid(format!("the role `{twice}` is named twice")));
        }
        let width = Hook::at(self.kind, 0).width(spec);
        let Training {
            steps,
            rate,
            most_dims,
        } = self.training;
        let of_width = format!(", the width of `{}`", self.kind.short());
        // The default is all of a narrower activation.
        let is_bounded = self.methods.contains(&SubspaceMethod::BoundlessDas);
        let default = Training::default().most_dims;
        let most_of_training = match is_bounded && most_dims != default {
            true => width,
            false => usize::MAX,
        };
        for (what, value, most, why) in [
            ("`SubspaceConfig::dims", self.dims, width, of_width.as_str()),
            (
                "`Training::most_dims",
                most_dims,
                most_of_training,
                of_width.as_str(),
            ),
            ("`SubspaceConfig::draws", self.draws, MOST_DRAWS, ""),
            ("`Training::steps", steps, MOST_STEPS, ""),
        ] {
            if value == 0 || value > most {
                return Err(Error::invalid(format!(
                    "{what} = {value}` is outside of what there is: {}",
                    match most {
                        usize::MAX => "at least 1".to_string(),
                        most => format!("1 to {most}{why}"),
                    }
                )));
            }
        }
        if !rate.is_finite() || rate <= 0.0 {
            return Err(Error::invalid(format!(
                "`Training::rate = {rate}` is no step; give a number above zero"
            )));
        }
        (self.roles.iter()).try_for_each(|role| check_role(task, role))?;
        if let Some(by) = &self.split {
            by.check(self, spec)?;
        }
        Split::of(self, task)?;
        Ok(())
    }

    fn prepare<'a>(&'a self, on: Subject<'a>, running: &'a Running) -> Preparation<'a> {
        Ok(Box::new(Exchanging::new(on, self, running)?))
    }

    fn views(&self, _: &Task) -> Vec<View> {
        let columns = |measure: &str| {
            let series = Series::all(self).into_iter();
            let column = series.map(|series| LayerColumn {
                title: series.to_string(),
                measure: measure.into(),
                target: Some(series.to_string()),
            });
            column.collect()
        };
        let mut measures = vec![ODDS, IIA];
        measures.extend(self.control.then_some(SELECTIVITY));
        measures.extend(self.split.as_ref().map(|_| FLDD));
        let view = |measure: &str| {
            View::Layers(Layers {
                heading: Some(measure.into()),
                columns: columns(measure),
                tokens: None,
            })
        };
        measures.into_iter().map(view).collect()
    }
}
