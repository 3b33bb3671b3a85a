//! Edges of a table as a graph for the page.

use serde_json::{Value, json};

use super::rows::Rows;
use crate::plot::graph::{Graph, Place, of_table};
use crate::scores::Scores;

/// Edges on the page.
const MOST_EDGES: usize = 5_000;

/// The graphs of a table, one for each template: nodes in the order in which they are computed, as `[name, level, place, label]`,
/// and edges as `[source, reader, via, score, row, detail]`, strongest first. Nothing if the rows are no edges. Rows of several pairs are
/// averaged.
pub(super) fn graphs(whole: &Scores, rows: &Rows) -> Vec<Value> {
    of_table(whole)
        .iter()
        .map(|graph| value(graph, rows))
        .collect()
}

fn value(graph: &Graph, rows: &Rows) -> Value {
    let nodes = graph.nodes.iter().map(|node| {
        let place = match node.place {
            Place::Column(column) => json!(column),
            Place::Beside => json!("beside"),
            Place::Middle => json!("middle"),
        };
        json!([node.name, node.level, place, node.label])
    });
    let edges = graph.edges.iter().take(MOST_EDGES).map(|edge| {
        let via = Some(&edge.via).filter(|via| !via.is_empty());
        let row = edge.row.and_then(|row| rows.place(row));
        json!([edge.src, edge.dst, via, edge.score, row, edge.detail])
    });
    json!({
        "title": graph.title,
        "all": graph.edges.len(),
        "nodes": nodes.collect::<Vec<_>>(),
        "edges": edges.collect::<Vec<_>>(),
        "columns": graph.columns,
    })
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
        let graphs = graphs(&scores, &Rows::of(&scores));
        assert_eq!(
            graphs[0]["nodes"],
            json!([
                ["input", 0, "middle", "input"],
                ["a0.h1", 1, 1, "a0.h1"],
                ["m0", 2, "beside", "m0"],
                ["logits", usize::MAX, "middle", "logits"]
            ])
        );
        assert_eq!(
            graphs[0]["edges"],
            json!([
                [1, 2, null, -2.0, 1, ""],
                [2, 3, null, 1.0, 2, ""],
                [0, 1, "q", 0.5, 0, ""]
            ])
        );
    }
}
