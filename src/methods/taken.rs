//! What a method takes from an earlier result: of which model and prompts it is, and what is said where they are others, or the same.

use std::collections::HashSet;

use serde::Serialize;
use serde_json::{Value, json};

use crate::model::{Model, Origin};
use crate::scores::{Direction, Scores};
use crate::task::{Pair, Task};

/// The model that an earlier result is of.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct TakenModel {
    pub id: String,
    /// Empty where the result does not say it.
    pub weight_hash: String,
}

impl TakenModel {
    pub fn of(origin: &Origin) -> Self {
        TakenModel {
            id: origin.full_id(),
            weight_hash: origin.weight_hash.get().into(),
        }
    }

    /// That `what` is of another model than the one that is measured: other weights, or, where nobody knows them, another name.
    pub(super) fn warning(&self, what: &str, model: &Model) -> Option<String> {
        let here = TakenModel::of(&model.origin);
        let is_same = match (&*self.weight_hash, &*here.weight_hash) {
            ("", _) | (_, "") => self.id == here.id,
            (there, here) => there == here,
        };
        let name = |of: &TakenModel| match (of.id == self.id && of.id == here.id, &of.weight_hash) {
            (true, hash) => format!("`{}` with weights {:.12}", of.id, hash),
            (false, _) => format!("`{}`", of.id),
        };
        (!is_same).then(|| {
            format!(
                "{what} of another model, {}, and this is {}: the same numbers of layers and heads name other parts; measure the same model",
                name(self),
                name(&here)
            )
        })
    }
}

/// A table that a method acts on, as far as it decides what that means.
#[derive(Debug, Clone, PartialEq)]
pub struct TakenTable {
    pub method: String,
    pub metric: String,
    pub unit: String,
    pub direction: Direction,
    pub model: TakenModel,
    /// The clean prompts that it was measured on; empty where the table does not hold them.
    pub prompts: HashSet<Vec<u32>>,
}

impl TakenTable {
    pub fn of(scores: &Scores) -> Self {
        let about = &scores.provenance;
        TakenTable {
            method: about.method.clone(),
            metric: about.metric.clone(),
            unit: about.unit.clone(),
            direction: about.direction,
            model: TakenModel::of(&about.model),
            prompts: about.prompts.iter().map(|it| it.clean.clone()).collect(),
        }
    }

    /// What its scores are.
    pub(super) fn quantity(&self) -> String {
        format!(
            "`{}` of `{}` ({})",
            self.metric, self.method, self.direction
        )
    }

    /// Whether its scores are what a removal changes: of what is needed they have the sign of a loss.
    pub(super) fn is_of_removals(&self) -> bool {
        matches!(self.direction, Direction::Ablate | Direction::Noise)
    }

    pub(super) fn has_seen(&self, pair: &Pair) -> bool {
        self.prompts.contains(&pair.clean)
    }

    /// How many pairs of a task it was measured on.
    pub(super) fn seen(&self, task: &Task) -> usize {
        let pairs = task.pairs().iter();
        pairs.filter(|pair| self.has_seen(pair)).count()
    }

    pub(super) fn settings(&self) -> Value {
        json!({
            "method": self.method, "metric": self.metric, "unit": self.unit, "direction": self.direction.to_string(),
            "model": self.model, "prompts": self.prompts.len(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{LoadOptions, load};

    #[test]
    fn another_model_is_told_by_its_weights_and_else_by_its_name() {
        let model = load("embedded", &LoadOptions::default())
            .expect("it is part of the crate")
            .model;
        let own = TakenModel::of(&model.origin);
        let with = |id: &str, hash: &str| {
            let taken = TakenModel {
                id: id.into(),
                weight_hash: hash.into(),
            };
            taken.warning("the table is", &model)
        };
        assert_eq!(with("elsewhere", &own.weight_hash), None);
        assert_eq!(with(&own.id, ""), None);
        for (id, hash) in [("elsewhere", ""), (&own.id, "0123456789abcdef")] {
            let said = with(id, hash).expect("another model");
            assert!(
                said.starts_with("the table is of another model, `"),
                "{said}"
            );
            assert!(
                said.contains(id) && said.contains(&hash[..hash.len().min(12)]),
                "{said}"
            );
        }
    }
}
