//! Sets of nodes as a table ranks them: its highest or lowest, and random ones of the same size beside them.

use std::collections::BTreeMap;

use rand::SeedableRng;
use rand::seq::index::sample;
use rand_chacha::ChaCha8Rng;

use super::config::NodeSet;
use super::ranked_by::RankedBy;
use crate::circuit::Graph;
use crate::error::{Error, Result};
use crate::hooks::Node;
use crate::methods::taken::TakenTable;
use crate::scores::statistics::mean;
use crate::scores::{Column, Scores};
use crate::spec::ModelSpec;

/// Nodes in the order of a number, the largest first.
#[derive(Debug, Clone, PartialEq)]
pub struct Ranking {
    nodes: Vec<(Node, f64)>,
    by: RankedBy,
}

const HIGHEST: &str = "highest";
const LOWEST: &str = "lowest";
/// Nodes of a set that are named.
const NAMED: usize = 20;
/// More random sets of a size than an interval needs.
const MOST_RANDOM: usize = 10_000;

impl Ranking {
    /// The heads and MLPs of a table by their mean scores.
    /// # Errors
    /// [`Error::Invalid`] if the table has none, or several of a node, or has them by position; that of a node which the model does not have.
    pub fn by_score(scores: &Scores, spec: &ModelSpec) -> Result<Ranking> {
        let values = node_values(scores, spec)?;
        let by = RankedBy {
            table: TakenTable::of(scores),
            against: None,
        };
        let ranked = values.into_iter().map(|(node, of)| (node, moments(&of).0));
        Ok(Ranking::new(ranked, by))
    }

    /// The same by how clearly the scores of one table are above those of another: Welch's t over their pairs, as Shah et al. 2024 choose
    /// what to remove (arXiv 2404.11534, section 5).
    /// # Errors
    /// Those of [`Ranking::by_score`]; [`Error::Invalid`] for tables of means, of different quantities or nodes, or of one and the same scores.
    pub fn by_t(scores: &Scores, against: &Scores, spec: &ModelSpec) -> Result<Ranking> {
        let (table, other) = (TakenTable::of(scores), TakenTable::of(against));
        let measures = |of: &TakenTable| (of.quantity(), of.unit.clone());
        if measures(&table) != measures(&other) {
            return Err(Error::invalid(format!(
                "the two tables do not measure one thing, but {} and {}; measure both alike",
                table.quantity(),
                other.quantity()
            )));
        }
        let (all, others) = (node_values(scores, spec)?, node_values(against, spec)?);
        let mut ranked = Vec::with_capacity(all.len());
        for (node, of) in all {
            let other = others.get(&node).ok_or_else(|| {
                Error::invalid(format!(
                    "`{node}` has a score in one of the two tables alone; measure the same nodes in both"
                ))
            })?;
            if of.len() < 2 || other.len() < 2 {
                return Err(Error::invalid(
                    "a t statistic takes scores of two pairs or more, and a table of means has none of single pairs; measure both tables with \
                     `Running::detail = Detail::PerExample`",
                ));
            }
            let ((own, variance), (of_other, variance_of_other)) = (moments(&of), moments(other));
            let error =
                (variance / of.len() as f64 + variance_of_other / other.len() as f64).sqrt();
            let apart = own - of_other;
            ranked.push((node, if apart == 0.0 { 0.0 } else { apart / error }));
        }
        if ranked.iter().all(|(_, t)| *t == 0.0) {
            return Err(Error::invalid(
                "the two tables have the same scores, so none is above another; give tables of two tasks, or of two kinds of prompts",
            ));
        }
        let by = RankedBy {
            table,
            against: Some(other),
        };
        Ok(Ranking::new(ranked, by))
    }

    fn new(nodes: impl IntoIterator<Item = (Node, f64)>, by: RankedBy) -> Ranking {
        let mut nodes: Vec<(Node, f64)> = nodes.into_iter().collect();
        nodes.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
        Ranking { nodes, by }
    }

    /// What they are ranked by, for whoever ablates them (`AblationConfig::ranked_by`).
    pub fn by(&self) -> &RankedBy {
        &self.by
    }

    /// From the largest.
    pub fn nodes(&self) -> impl DoubleEndedIterator<Item = Node> {
        self.nodes.iter().map(|ranked| ranked.0)
    }

    /// For each size the set of the highest so many nodes, or of the lowest, and random sets of as many.
    /// # Errors
    /// [`Error::Invalid`] for sizes that the ranking does not have.
    pub fn sets(
        &self,
        sizes: &[usize],
        lowest: bool,
        random: usize,
        seed: u64,
    ) -> Result<Vec<NodeSet>> {
        if random > MOST_RANDOM {
            return Err(Error::invalid(format!(
                "{random} random sets of each size; take at most {MOST_RANDOM} (`AblationConfig::sets`)"
            )));
        }
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let mut sets = Vec::new();
        let mut sizes = sizes.to_vec();
        sizes.sort_unstable();
        sizes.dedup();
        for size in sizes {
            if !(1..=self.nodes.len()).contains(&size) {
                return Err(Error::invalid(format!(
                    "a set of {size} of {} ranked nodes; take from 1 to {}",
                    self.nodes.len(),
                    self.nodes.len()
                )));
            }
            let (name, nodes): (_, Vec<Node>) = if lowest {
                (LOWEST, self.nodes().rev().take(size).collect())
            } else {
                (HIGHEST, self.nodes().take(size).collect())
            };
            sets.push(NodeSet {
                name: format!("{name} {size}"),
                nodes,
            });
            for draw in 1..=random {
                let drawn = sample(&mut rng, self.nodes.len(), size);
                sets.push(NodeSet {
                    name: format!("random {size} ({draw})"),
                    nodes: drawn.into_iter().map(|i| self.nodes[i].0).collect(),
                });
            }
        }
        Ok(sets)
    }
}

/// What a set holds that a table ranks so.
pub(super) fn words(set: &NodeSet) -> Option<String> {
    let is_ranked = [HIGHEST, LOWEST]
        .iter()
        .any(|how| set.name.starts_with(how));
    let nodes: Vec<String> = set.nodes.iter().take(NAMED).map(Node::to_string).collect();
    let more = match set.nodes.len() - nodes.len() {
        0 => String::new(),
        more => format!(" and {more} more"),
    };
    is_ranked.then(|| format!("{}: {}{more}", set.name, nodes.join(", ")))
}

/// Components whose rows with a layer and a head are about that head.
const OF_HEADS: [&str; 3] = ["attn.hook_z", "attn.hook_result", "attn.hook_pattern"];

/// The scores of each head and MLP of a table: of each pair, or one mean; one quantity of each.
/// # Errors
/// Those of [`Ranking::by_score`].
pub(in crate::methods) fn node_values(
    scores: &Scores,
    spec: &ModelSpec,
) -> Result<BTreeMap<Node, Vec<f64>>> {
    let height = scores.table.height();
    let integers = |column: Column| {
        let column = scores.integers(column.name());
        column.unwrap_or_else(|| vec![None; height])
    };
    let texts = |column: Column| {
        let column = scores.texts(column.name());
        column.unwrap_or_else(|| vec![None; height])
    };
    let (layers, heads, positions) = (
        integers(Column::Layer),
        integers(Column::Head),
        integers(Column::Pos),
    );
    let (components, roles) = (texts(Column::Component), texts(Column::Role));
    let quantities = [
        Column::Component,
        Column::Metric,
        Column::Src,
        Column::Dst,
        Column::Target,
    ];
    let quantities = quantities.map(|column| (column.name(), texts(column)));
    let mut first: BTreeMap<Node, usize> = BTreeMap::new();
    let values = scores.floats(Column::Score.name()).unwrap_or_default();
    let graph = Graph::new(spec);
    let mut found: BTreeMap<Node, Vec<f64>> = BTreeMap::new();
    let is_negative = |number: &Option<i64>| number.is_some_and(|number| number < 0);
    if let Some(row) =
        (0..height).find(|&row| is_negative(&layers[row]) || is_negative(&heads[row]))
    {
        return Err(Error::invalid(format!(
            "the results of `{}` have a row of layer {} and head {}, and there are none below 0",
            scores.provenance.method,
            layers[row].map_or("none".into(), |layer| layer.to_string()),
            heads[row].map_or("none".into(), |head| head.to_string()),
        )));
    }
    for (row, value) in values.into_iter().enumerate() {
        let node = match (components[row], layers[row], heads[row]) {
            (Some(of), Some(layer), Some(head)) if OF_HEADS.contains(&of) => Node::Head {
                layer: layer as usize,
                head: head as usize,
            },
            (Some("hook_mlp_out"), Some(layer), None) => Node::Mlp(layer as usize),
            _ => continue,
        };
        if positions[row].is_some() || roles[row].is_some() {
            return Err(Error::invalid(format!(
                "the results of `{}` have `{node}` by position, and nodes are ranked whole; measure `z:all,mlp_out:all`",
                scores.provenance.method
            )));
        }
        let first = *first.entry(node).or_insert(row);
        let mut differing = quantities.iter();
        if let Some((name, all)) = differing.find(|(_, all)| all[row] != all[first]) {
            return Err(Error::invalid(format!(
                "the results of `{}` say more than one thing of `{node}`, `{name}` being `{}` and `{}`, and nodes are ranked by one; give \
                 a table with one score of each head or MLP",
                scores.provenance.method,
                all[first].unwrap_or("none"),
                all[row].unwrap_or("none"),
            )));
        }
        graph.row(node)?;
        if let Some(value) = value.filter(|value| !value.is_finite()) {
            return Err(Error::invalid(format!(
                "the results of `{}` have a score of `{node}` that is not finite ({value}), and nodes are ranked by numbers; measure it again",
                scores.provenance.method
            )));
        }
        found.entry(node).or_default().extend(value);
    }
    found.retain(|_, values| !values.is_empty());
    if found.is_empty() {
        return Err(Error::invalid(format!(
            "the results of `{}` have no scores of heads ({}) or MLPs (`hook_mlp_out`)",
            scores.provenance.method,
            OF_HEADS.map(|of| format!("`{of}`")).join(", ")
        )));
    }
    Ok(found)
}

/// Mean and variance.
fn moments(values: &[f64]) -> (f64, f64) {
    let mean = mean(values);
    let squares: f64 = values.iter().map(|value| (value - mean).powi(2)).sum();
    (mean, squares / (values.len() as f64 - 1.0).max(1.0))
}
