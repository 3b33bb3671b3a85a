//! What all batches of one attribution share, and what is put in place where it is not the pair's other run.

use std::collections::BTreeMap;

use crate::error::{Error, Result};
use crate::hooks::Hook;
use crate::methods::activation_patching::passes_for_values;
use crate::methods::captured::captured;
use crate::methods::method::Subject;
use crate::methods::reference::ReferenceSet;
use crate::methods::{PatchSource, SourceModel};
use crate::metric::Metric;
use crate::model::Model;
use crate::run::{Progress, Source};
use crate::scores::{Direction, Measured};
use crate::task::{Pair, Task};

/// What all batches of one attribution share.
pub(super) struct Setting<'a> {
    pub model: &'a Model,
    pub task: &'a Task,
    pub metric: Metric,
    pub direction: Direction,
    pub source: PatchSource,
    /// The model whose values are put in place, if it is another.
    pub source_model: Option<&'a SourceModel>,
    /// Hooks whose values are compared between the runs.
    pub hooks: Vec<Hook>,
    /// Bytes for activations.
    pub memory: usize,
}

/// # Errors
/// [`Error::NoGradient`] if the metric has no gradient where it would be taken.
pub(super) fn check_metric(metric: Metric, direction: Direction, at_base: bool) -> Result<()> {
    metric.check_differentiable()?;
    if metric.needs_reference() && direction != Direction::Denoise && at_base {
        return Err(Error::NoGradient {
            metric: metric.to_string(),
            reason: "it is smallest at the clean run, where its gradient is zero by construction; use `GradientPath::Inputs` or \
                     another integral, `PatchConfig::direction = denoise`, `ExpandOptions::metric = logit_diff`, or patch exactly (`candlewick patch`)"
                .into(),
        });
    }
    Ok(())
}

impl Setting<'_> {
    /// Bytes that a pair of this length holds, with `per_row` values more for each token.
    pub fn bytes(&self, length: usize, per_row: usize) -> usize {
        4 * length * (self.row_width() + per_row)
    }

    /// Values that the runs of one token hold.
    fn row_width(&self) -> usize {
        let spec = &self.model.spec;
        let heads = (2 * spec.n_heads + 3 * spec.n_kv_heads) * spec.d_head;
        let of_layer = 3 * spec.d_model + heads + 2 * spec.d_mlp;
        let kept: usize = self.hooks.iter().map(|hook| hook.width(spec)).sum();
        let runs = 2 + usize::from(self.source_model.is_some());
        spec.n_layers * of_layer + runs * kept
    }

    /// Passes that a pair takes for what is put in place.
    pub fn passes_for_values(&self) -> f64 {
        passes_for_values(self.source, self.source_model, self.metric, 1.0, true)
    }

    /// Says how another model does whose values are put in place.
    /// # Errors
    /// Those of running it.
    pub fn tell(
        &self,
        batch: usize,
        measured: &mut Measured,
        progress: &dyn Progress,
    ) -> Result<()> {
        let on = Subject {
            model: self.model,
            task: self.task,
        };
        match self.source_model {
            Some(other) => other.tell(on, self.metric, batch, measured, progress),
            None => Ok(()),
        }
    }

    /// Another model's values in some hooks, in the runs of these prompts.
    pub fn of_other_model(
        &self,
        hooks: impl Iterator<Item = Hook>,
        prompts: impl Fn(bool) -> Vec<Vec<u32>>,
    ) -> Result<Option<Source>> {
        let clean_is_base = self.direction != Direction::Denoise;
        let (other, of_clean) = match (self.source_model, self.source) {
            (Some(other), PatchSource::Pair) => (other, !clean_is_base),
            (Some(other), PatchSource::Same) => (other, clean_is_base),
            _ => return Ok(None),
        };
        let hooks: Vec<Hook> = hooks.collect();
        let cache = captured(other.load()?, &prompts(of_clean), &hooks, &[])?;
        Ok(Some(Source::run(cache)?))
    }

    /// Means over the corrupted prompts, where they are what is put in place.
    pub fn means(&self, batch: usize) -> Result<BTreeMap<(usize, usize), Source>> {
        let by_position = match self.source {
            PatchSource::Mean => true,
            PatchSource::MeanAll => false,
            _ => return Ok(BTreeMap::new()),
        };
        let over = ReferenceSet {
            task: self.task,
            corrupted: true,
        };
        let batches = self.task.batches(batch);
        let model = match self.source_model {
            Some(other) => other.load()?,
            None => self.model,
        };
        let means = over.means(model, &self.hooks, by_position, &batches)?;
        let of = |pair: &Pair| Some(((pair.template, pair.clean.len()), means.of(pair)?.clone()));
        Ok(self.task.pairs().iter().filter_map(of).collect())
    }
}
