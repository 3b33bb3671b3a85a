//! A circuit as a table of its edges, so that it is drawn like any other.

use crate::circuit::Circuit;
use crate::error::Result;
use crate::plot::circuit_facts;
use crate::scores::{Cell, Detail, Direction, ExampleScores, Provenance, Scores, ScoresMeta};

/// The edges of a circuit as rows, with what is said of it as notes. `score` is what an edge was chosen by, and 1 for every edge of a
/// circuit that has no scores.
/// # Errors
/// [`crate::Error::Polars`] if the table cannot be made.
pub fn circuit_table(circuit: &Circuit) -> Result<Scores> {
    let about = &circuit.about;
    let has_scores = !circuit.scores.is_empty();
    let mut cells = Vec::new();
    let mut values = Vec::new();
    for edge in circuit.edges.edges() {
        let class = |node| {
            circuit
                .nodes
                .get(node)
                .and_then(|note| note.class.as_deref())
        };
        let classes: Vec<&str> = [&edge.src, &edge.dst]
            .into_iter()
            .filter_map(class)
            .collect();
        cells.push(Cell {
            component: "edge".into(),
            src: Some(edge.src.to_string()),
            dst: Some(edge.reader()),
            class: (!classes.is_empty()).then(|| classes.join(" → ")),
            ..Cell::default()
        });
        let score = circuit.scores.get(&edge).copied();
        values.push(if has_scores {
            score.unwrap_or(f64::NAN)
        } else {
            1.0
        });
    }
    let text = |text: &Option<String>| text.clone().unwrap_or_default();
    let method = about.method.clone().unwrap_or_else(|| "circuit".into());
    let metric = about.metric.clone().unwrap_or_else(|| "score".into());
    let mut notes = vec![format!(
        "a circuit of {} edges between {} nodes",
        circuit.edges.len(),
        circuit.edges.nodes().len()
    )];
    if !has_scores {
        notes.push("its edges have no scores: each counts as 1".into());
    }
    // What else a file says stands in the facts of every table.
    let is_said = |name: &str| ["model", "task", "metric", "method"].contains(&name);
    let said = circuit_facts(circuit).into_iter();
    notes.extend(
        said.filter(|[name, _]| !is_said(name))
            .map(|[name, text]| format!("{name}: {text}")),
    );
    let mut provenance = Provenance {
        task: text(&about.task),
        notes,
        ..Provenance::default()
    };
    provenance.model.id = text(&about.model);
    let example = ExampleScores {
        clean: f64::NAN,
        corrupted: f64::NAN,
        cells: (0..cells.len() as u32).collect(),
        values,
        ..ExampleScores::default()
    };
    let meta = ScoresMeta {
        method,
        metric,
        direction: Direction::Direct,
        seed: about.seed.unwrap_or(0),
        ..ScoresMeta::default()
    };
    Scores::assemble(&cells, &[example], &meta, Detail::Mean, provenance)
}
