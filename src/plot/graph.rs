//! A graph that is ready to be drawn, of a circuit or of a table's rows whose `src` and `dst` are nodes: on a terminal here, as SVG in
//! [`super::svg`], and on a page in [`super::report`].
//!
//! Nodes stand on levels, what is computed first below. Heads stand side by side with the MLP of their layer beside them; states of the
//! stream stand over their token.

mod of_circuit;
mod of_table;

use std::collections::{BTreeMap, BTreeSet};

use crate::text::{Align, aligned};

pub(super) use of_circuit::of_circuit;
pub(super) use of_table::of_table;

/// Sources of a reader that are named on a terminal; the others are counted.
const SOURCES: usize = 4;

/// Where a node stands on its level.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Place {
    Column(usize),
    /// Right of all columns.
    Beside,
    Middle,
}

#[derive(Debug, Clone, PartialEq)]
pub(super) struct GraphNode {
    pub name: String,
    /// What stands in its box.
    pub label: String,
    pub level: usize,
    pub place: Place,
    /// Where it stands in the model, and what it is called there, in a list.
    pub listed: [String; 2],
    /// What is known of it, for a tooltip.
    pub note: String,
}

#[derive(Debug, Clone, PartialEq)]
pub(super) struct GraphEdge {
    /// Indices into the nodes.
    pub src: usize,
    pub dst: usize,
    /// What it is read as: `q`, `k`, `v`, `attention`; empty where there is nothing to tell apart.
    pub via: String,
    pub name: String,
    /// Its source, in the list of what a node reads; empty where `via` says it.
    pub listed: String,
    /// What it consists of, such as its heads.
    pub detail: String,
    pub score: Option<f64>,
    /// Its row in the table.
    pub row: Option<usize>,
}

/// Nodes in the order of computing, and edges between them.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Graph {
    /// What tells it from the other graphs of a table.
    pub title: String,
    pub nodes: Vec<GraphNode>,
    pub edges: Vec<GraphEdge>,
    /// Labels under the columns, from the left; none where columns mean nothing.
    pub columns: Vec<String>,
    /// Sides on which a node is entered are told apart.
    pub has_sides: bool,
    /// Unit of the scores.
    pub unit: String,
}

impl Graph {
    pub fn size(edge: &GraphEdge) -> f64 {
        edge.score.map_or(0.0, f64::abs)
    }

    /// Strongest edges first; of equals, the earlier first.
    pub fn sort(&mut self) {
        self.edges
            .sort_by(|a, b| Graph::size(b).total_cmp(&Graph::size(a)));
    }

    /// The graph of the strongest edges.
    pub fn strongest(mut self, most: usize) -> Graph {
        self.sort();
        self.edges.truncate(most);
        let ends = self.edges.iter().flat_map(|edge| [edge.src, edge.dst]);
        let kept: BTreeSet<usize> = ends.collect();
        let place: BTreeMap<usize, usize> = kept.iter().copied().zip(0..).collect();
        for edge in &mut self.edges {
            (edge.src, edge.dst) = (place[&edge.src], place[&edge.dst]);
        }
        let nodes = self.nodes.into_iter().enumerate();
        let nodes = nodes.filter(|(at, _)| kept.contains(at));
        self.nodes = nodes.map(|(_, node)| node).collect();
        self
    }

    /// The drawing on a terminal, from the last node down: each node with the sources that it reads, the strongest first.
    /// At most `most` sources are named of each kind.
    pub fn listed(&self, most: Option<usize>) -> String {
        let most = most.unwrap_or(SOURCES).max(1);
        let mut vias: Vec<&str> = self.edges.iter().map(|edge| edge.via.as_str()).collect();
        vias.sort_by_key(|via| (order(via), *via));
        vias.dedup();
        let mut rows: Vec<[String; 3]> = Vec::new();
        let mut layer_before = None;
        for (at, node) in self.nodes.iter().enumerate().rev() {
            let [layer, name] = node.listed.clone();
            let is_new = layer_before.as_ref() != Some(&layer);
            let label = if is_new { layer.clone() } else { String::new() };
            layer_before = Some(layer);
            let read = vias.iter().filter_map(|via| {
                let is_it = |edge: &&GraphEdge| edge.dst == at && edge.via == **via;
                let mut edges: Vec<&GraphEdge> = self.edges.iter().filter(is_it).collect();
                edges.sort_by(|a, b| Graph::size(b).total_cmp(&Graph::size(a)));
                let list = strongest(&edges, most);
                let list = match (via.is_empty(), edges.first()?.listed.is_empty()) {
                    (true, _) => list,
                    (false, true) => format!("{via} {list}"),
                    (false, false) => format!("{via}: {list}"),
                };
                Some(list)
            });
            let read: Vec<String> = read.collect();
            rows.push([label, name, read.join(" | ")]);
        }
        aligned(&rows, &[Align::Left])
    }
}

/// Queries, keys and values in the order of their use; of the parts of a state the largest first.
fn order(via: &str) -> usize {
    let known = ["", "q", "k", "v", "stream", "attention", "mlp", "bias"];
    known
        .iter()
        .position(|known| *known == via)
        .unwrap_or(known.len())
}

fn strongest(edges: &[&GraphEdge], most: usize) -> String {
    let named = edges.iter().take(most).map(|edge| {
        let score = edge.score.map(|score| format!("{score:+.3}"));
        let detail = match edge.detail.is_empty() {
            true => None,
            false => Some(format!("({})", edge.detail)),
        };
        let name = Some(edge.listed.clone()).filter(|name| !name.is_empty());
        let parts: Vec<String> = [name, score, detail].into_iter().flatten().collect();
        parts.join(" ")
    });
    let mut list: Vec<String> = named.collect();
    if edges.len() > most {
        list.push(format!("{} more", edges.len() - most));
    }
    list.join(", ")
}
