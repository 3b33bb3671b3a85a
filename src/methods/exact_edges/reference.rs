//! What is put in place of what a source writes.

use crate::error::{Error, Result};
use crate::methods::activation_patching::{PatchSource, SourceModel, no_source_model};
use crate::scores::Direction;
use crate::spec::ModelSpec;
use crate::task::{Pair, Task};

/// What a source's output is replaced by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Serialize)]
pub enum Reference {
    /// Its output in the corrupted run of the pair.
    #[default]
    Pair,
    Zero,
    /// Its mean output over the corrupted prompts of the same template and length, position by position.
    Mean,
    /// Its output in another model's run of the same prompt ([`EdgeConfig::source_model`](super::EdgeConfig::source_model)).
    Same,
}

impl Reference {
    /// What kind of change this is, for the table.
    pub fn direction(self) -> Direction {
        match self {
            Reference::Pair => Direction::Noise,
            Reference::Zero | Reference::Mean | Reference::Same => Direction::Ablate,
        }
    }

    /// The same as what is patched in at nodes.
    pub fn source(self) -> PatchSource {
        match self {
            Reference::Pair => PatchSource::Pair,
            Reference::Zero => PatchSource::Zero,
            Reference::Mean => PatchSource::Mean,
            Reference::Same => PatchSource::Same,
        }
    }

    /// What a source writes otherwise begins where the two prompts of a pair begin to differ, or at the first token.
    pub(in crate::methods) fn first_difference(
        self,
        other: Option<&SourceModel>,
        pair: &Pair,
    ) -> usize {
        match (self, other) {
            (Reference::Pair, None) => pair.first_difference(),
            _ => 0,
        }
    }

    /// # Errors
    /// Another model without values, values without another model, or a model that does not fit.
    pub(in crate::methods) fn check(
        self,
        other: Option<&SourceModel>,
        spec: &ModelSpec,
        task: &Task,
    ) -> Result<()> {
        match (other, self) {
            (None, Reference::Same) => Err(no_source_model()),
            (None, _) => Ok(()),
            (Some(_), Reference::Zero) => Err(Error::invalid(
                "zeros are no model's values; leave the source model out, or take the source `same`, `pair` or `mean`",
            )),
            (Some(other), _) => other.check(spec, task),
        }
    }
}
