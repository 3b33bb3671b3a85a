//! What the parts of a model write to the logits, read off one run without changing it.
//!
//! - [`dla`]: direct logit attribution, by component, head, neuron, or head and source token; what a head or neuron writes.
//! - [`source_tokens`]: heads classed by where they read the answer from ("Summing Up the Facts").
//! - [`lens`]: the logit lens: each layer's stream through the final norm and the unembedding.
//! - [`token_lens`]: what attention to one group of tokens promotes, and attention knockout ("Promote, Suppress, Iterate").
//! - [`overthinking`]: early decoding under true and false demonstrations, false induction heads.
//!
//! All but the lens share [`readout`]: the final norm with the scale of the run itself, which makes the read-out linear, so
//! that contributions sum to the logit exactly.

pub mod dla;
pub mod lens;
pub mod overthinking;
pub(super) mod readout;
pub mod source_tokens;
pub mod token_lens;

pub(super) use super::activation_patching::roles_of;
use super::record;
use crate::model::Model;
use crate::scores::{Cell, ExampleScores, Provenance};
use crate::task::{Pair, Task};

pub use dla::{DlaConfig, Part, direct_logit_attribution};
pub use lens::{LensConfig, logit_lens};
pub use overthinking::{EarlyConfig, early_decoding};
pub use readout::DirectTarget;
pub use source_tokens::{SourceConfig, source_classes};
pub use token_lens::{TokenLensConfig, token_lens};

/// Prompts that run together, at most.
pub(crate) const BATCH: usize = 16;

/// An example that nothing was measured on yet: its labels, and the metric of its clean run.
pub(crate) fn unmeasured(task: &Task, pair: &Pair, clean: f64) -> ExampleScores {
    ExampleScores {
        example: pair.index,
        clean,
        corrupted: clean,
        tokens: task.texts(&pair.clean),
        roles: pair.roles.clone(),
        ..ExampleScores::default()
    }
}

/// A part of one layer.
pub(crate) fn in_layer(component: &str, layer: usize) -> Cell {
    Cell {
        component: component.into(),
        layer: Some(layer as u32),
        ..Cell::default()
    }
}

/// What a result knows of its model and task; `config` is the method's own.
pub(crate) fn provenance(
    model: &Model,
    task: &Task,
    config: serde_json::Value,
    seconds: f64,
) -> Provenance {
    let mut warnings = Vec::new();
    if task.pairs().len() < task.asked {
        warnings.push(format!(
            "{} of {} pairs are usable; `candlewick tokens` shows why the others were dropped",
            task.pairs().len(),
            task.asked
        ));
    }
    record::provenance(model, task, config, seconds, warnings)
}
