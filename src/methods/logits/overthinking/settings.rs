//! The two settings that a prompt is run in, and what is measured in each.

use crate::hooks::{Hook, Kind};
use crate::model::ModelSpec;
use crate::scores::Cell;

/// What is read of each input after each layer, whatever the other inputs are.
const MEASURES: [&str; 3] = ["accuracy", "labels_on_top", "label_mass"];
pub(super) const FOLLOWS: &str = "follows_demonstrations";
/// Among the labels; what calibration needs of all inputs. It makes no rows.
pub(super) const OF_LABEL: &str = "label_prob";
pub(super) const MATCHING: &str = "prefix_matching";

/// What is measured of each pair, in this order: the measures of each stream and setting, prefix matching of each head, then the
/// labels' probabilities of each stream and setting.
pub(super) fn cells(hooks: &[Hook], spec: &ModelSpec, labels: usize) -> Vec<Cell> {
    let mut cells = Vec::new();
    for hook in hooks {
        for setting in SETTINGS {
            cells.extend(MEASURES.map(|measure| setting.cell(*hook, measure)));
        }
        cells.push(Setting::False.cell(*hook, FOLLOWS));
    }
    cells.extend(spec.heads().map(|(layer, head)| Cell {
        head: Some(head as u32),
        measure: Some(MATCHING.into()),
        ..Cell::in_layer(Kind::Pattern.name(), layer)
    }));
    for hook in hooks {
        for setting in SETTINGS {
            cells.extend((0..labels).map(|label| Cell {
                dst: Some(label.to_string()),
                ..setting.cell(*hook, OF_LABEL)
            }));
        }
    }
    cells
}

/// Which prompts of the pairs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Setting {
    True,
    False,
}

pub(super) const SETTINGS: [Setting; 2] = [Setting::True, Setting::False];

impl Setting {
    pub fn name(self) -> &'static str {
        match self {
            Setting::True => "true demonstrations",
            Setting::False => "false demonstrations",
        }
    }

    /// What is measured of a stream in this setting.
    pub fn cell(self, hook: Hook, measure: &str) -> Cell {
        Cell {
            measure: Some(measure.into()),
            target: Some(self.name().into()),
            ..Cell::in_layer(hook.kind.name(), hook.layer.unwrap_or(0))
        }
    }
}
