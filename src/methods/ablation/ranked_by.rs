//! What the sets of an ablation were ranked by, and what is to be said of that beside their effects.

use serde_json::{Value, json};

use crate::methods::taken::TakenTable;
use crate::model::Model;
use crate::scores::Measured;
use crate::task::Task;

/// What nodes are ranked by: a table's scores, or how clearly they are above another's.
#[derive(Debug, Clone, PartialEq)]
pub struct RankedBy {
    pub table: TakenTable,
    pub against: Option<TakenTable>,
}

impl RankedBy {
    pub(super) fn settings(&self) -> Value {
        json!({
            "table": self.table.settings(), "against": self.against.as_ref().map(TakenTable::settings),
        })
    }

    /// What the highest are, and what is wrong with judging them here.
    pub(super) fn tell(&self, model: &Model, task: &Task, measured: &mut Measured) {
        let TakenTable { metric, .. } = &self.table;
        let of = self.table.quantity();
        measured.notes.push(match (&self.against, self.table.is_of_removals()) {
            (Some(_), _) => format!("ranked by how clearly {of} is above that of the other table (Welch's t)"),
            (None, true) => format!(
                "ranked by {of}, which is what a removal changes: without the highest `{metric}` rises most or falls least, without the lowest it \
                 falls most or rises least"
            ),
            (None, false) => format!("ranked by {of}"),
        });
        let tables = || std::iter::once(&self.table).chain(&self.against);
        let mut warnings: Vec<String> = tables()
            .filter_map(|table| table.model.warning("the table that ranks them is", model))
            .collect();
        warnings.dedup();
        measured.warnings.extend(warnings);
        let (seen, all) = (
            tables().map(|table| table.seen(task)).max().unwrap_or(0),
            task.pairs().len(),
        );
        if seen > 0 {
            measured.warnings.push(format!(
                "the table that ranks them was measured on {seen} of these {all} prompts too, and what chose the sets had better not judge \
                 them; draw others (`ExpandOptions::seed`)"
            ));
        } else if tables().any(|table| table.prompts.is_empty()) {
            measured.notes.push(
                "a table that ranks does not hold its prompts (the main file of a result does), so nobody knows whether it was measured on these"
                    .into(),
            );
        }
    }
}
