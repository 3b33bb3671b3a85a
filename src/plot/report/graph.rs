//! Edges of a table as a graph: rows whose `src` and `dst` name nodes of a transformer.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Value, json};

use super::rows::Rows;
use crate::hooks::{Edge, Node};
use crate::plot::columns::Columns;
use crate::scores::Scores;

/// Edges on the page.
const MOST_EDGES: usize = 5_000;

/// Nodes in the order in which they are computed, and edges as `[source, reader, letter, score, row]`, strongest first; nothing
/// if the rows are no edges. Rows of several pairs are averaged.
pub(super) fn graph(whole: &Scores, rows: &Rows) -> Option<Value> {
    let columns = Columns::of(whole);
    let mut edges: BTreeMap<String, (Edge, f64, usize, Option<usize>)> = BTreeMap::new();
    for row in rows.kept().filter(|&row| columns.is_own(row)) {
        let (Some(src), Some(dst)) = (columns.src[row], columns.dst[row]) else {
            continue;
        };
        let Some(score) = columns.score[row].filter(|score| score.is_finite()) else {
            continue;
        };
        let text = format!("{src}->{dst}");
        let Ok(edge) = text.parse::<Edge>() else {
            continue;
        };
        let known = edges.entry(text).or_insert((edge, 0.0, 0, rows.place(row)));
        known.1 += score;
        known.2 += 1;
        if known.2 > 1 {
            known.3 = None;
        }
    }
    if edges.len() < 2 {
        return None;
    }
    let n_all = edges.len();
    let mut edges: Vec<(Edge, f64, Option<usize>)> = edges
        .into_values()
        .map(|(edge, sum, n, row)| (edge, sum / n as f64, row))
        .collect();
    edges.sort_by(|a, b| b.1.abs().total_cmp(&a.1.abs()));
    edges.truncate(MOST_EDGES);
    let ends = edges.iter().flat_map(|(edge, ..)| [edge.src, edge.dst]);
    let nodes: BTreeSet<_> = ends.map(|node| (order(node), node.to_string())).collect();
    let names: BTreeMap<&str, usize> = nodes
        .iter()
        .enumerate()
        .map(|(at, (_, name))| (name.as_str(), at))
        .collect();
    let edge = |(edge, score, row): &(Edge, f64, Option<usize>)| {
        let at = |node: Node| names[node.to_string().as_str()];
        let letter = edge.letter.map(|letter| letter.to_string());
        json!([at(edge.src), at(edge.dst), letter, score, row])
    };
    let edges: Vec<Value> = edges.iter().map(edge).collect();
    let nodes: Vec<Value> = nodes
        .iter()
        .map(|((level, place), name)| json!([name, level, place]))
        .collect();
    Some(json!({ "all": n_all, "nodes": nodes, "edges": edges }))
}

/// The level of a node, from below, and its place there. An MLP stands above the heads of its layer.
fn order(node: Node) -> (usize, usize) {
    match node {
        Node::Input => (0, 0),
        Node::Head { layer, head } => (1 + 2 * layer, head),
        Node::Mlp(layer) => (2 + 2 * layer, 0),
        Node::Logits => (usize::MAX, 0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scores::{Cell, Detail, ExampleScores, Provenance, ScoresMeta};

    fn edges(ends: &[(&str, &str, f64)]) -> Scores {
        let cells: Vec<Cell> = ends
            .iter()
            .map(|(src, dst, _)| Cell {
                component: "edge".into(),
                src: Some(src.to_string()),
                dst: Some(dst.to_string()),
                ..Cell::default()
            })
            .collect();
        let example = ExampleScores {
            cells: (0..cells.len() as u32).collect(),
            values: ends.iter().map(|(.., score)| *score).collect(),
            ..ExampleScores::default()
        };
        let meta = ScoresMeta::default();
        Scores::assemble(
            &cells,
            &[example],
            &meta,
            Detail::Mean,
            Provenance::default(),
        )
        .unwrap()
    }

    #[test]
    fn nodes_stand_in_the_order_of_computing_and_edges_by_strength() {
        let scores = edges(&[
            ("input", "a0.h1<q>", 0.5),
            ("a0.h1", "m0", -2.0),
            ("m0", "logits", 1.0),
            ("·Mary", "a word", 9.0),
        ]);
        let graph = graph(&scores, &Rows::of(&scores)).unwrap();
        assert_eq!(
            graph["nodes"],
            json!([
                ["input", 0, 0],
                ["a0.h1", 1, 1],
                ["m0", 2, 0],
                ["logits", usize::MAX, 0]
            ])
        );
        assert_eq!(
            graph["edges"],
            json!([
                [1, 2, null, -2.0, 1],
                [2, 3, null, 1.0, 2],
                [0, 1, "q", 0.5, 0]
            ])
        );
    }

    #[test]
    fn pairs_of_heads_are_no_edges() {
        let scores = edges(&[("a0.h0", "a0.h1", 0.5), ("a0.h0", "a1.h1", 0.5)]);
        assert_eq!(graph(&scores, &Rows::of(&scores)), None);
    }
}
