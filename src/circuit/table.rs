//! From a table of scores to a graph, and how well two graphs agree.

use std::collections::{BTreeSet, HashMap};
use std::fmt;

use super::{Graph, Helps, ScoredGraph};
use crate::error::{Error, Result};
use crate::hooks::Edge;
use crate::scores::{Agreement, Scores};

/// How well two graphs agree, over the edges that both have a score of.
#[derive(Debug, Clone, PartialEq)]
pub struct EdgeAgreement {
    pub scores: Agreement,
    /// The edge whose scores differ most, and by how much.
    pub largest: Option<(Edge, f64)>,
}

impl ScoredGraph {
    /// The scores of a table's edges: the mean over its examples where it has a row for each, and the sum over positions where
    /// edges are taken apart by position.
    /// # Errors
    /// [`Error::Invalid`] for a table without edges; [`Error::UnknownNode`] and [`Error::NoSuchEdge`] for one of another model.
    pub fn from_scores(scores: &Scores, graph: Graph) -> Result<Self> {
        let texts = |name| scores.texts(name);
        let (Some(sources), Some(readers), Some(values)) =
            (texts("src"), texts("dst"), scores.floats("score"))
        else {
            return Err(Error::invalid(format!(
                "a table of `{}` has no edges to make a graph of; take an edge method, such as `eap`",
                scores.provenance.method
            )));
        };
        let examples = scores.integers("example").unwrap_or_default();
        let n_examples = examples.iter().collect::<BTreeSet<_>>().len().max(1);
        let mut sums: HashMap<(&str, &str), f64> = HashMap::new();
        for ((src, dst), value) in sources.iter().zip(&readers).zip(values) {
            if let (Some(src), Some(dst), Some(value)) = (src, dst, value) {
                *sums.entry((src, dst)).or_default() += value;
            }
        }
        let mut scored = ScoredGraph::new(graph);
        if let Ok(metric) = scores.provenance.metric.parse() {
            scored = scored.with_helps(Helps::of(metric, scores.provenance.direction));
        }
        for ((src, dst), sum) in sums {
            let edge: Edge = format!("{src}->{dst}").parse()?;
            scored.set_score(&edge, sum / n_examples as f64)?;
        }
        Ok(scored)
    }

    /// How well the scores agree with another graph's.
    pub fn agreement(&self, other: &ScoredGraph) -> EdgeAgreement {
        let mut pairs = Vec::new();
        let mut largest: Option<(Edge, f64)> = None;
        for (edge, score, _) in self.edges() {
            let (Some(ours), Ok(Some(theirs))) = (score, other.score(&edge)) else {
                continue;
            };
            pairs.push((ours, theirs));
            let gap = (ours - theirs).abs();
            if largest.is_none_or(|(_, most)| gap > most) {
                largest = Some((edge, gap));
            }
        }
        EdgeAgreement {
            scores: Agreement::of(&pairs),
            largest,
        }
    }
}

impl fmt::Display for EdgeAgreement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Some((edge, gap)) = &self.largest else {
            return f.write_str("no edge has a score in both");
        };
        write!(
            f,
            "{} edges have a score in both; {}; the largest difference is {gap:.3e} ({edge})",
            self.scores.n,
            self.scores.line("score")
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scores::{Cell, Detail, Direction, ExampleScores, Provenance, ScoresMeta};

    fn graph() -> Graph {
        Graph::tiny(1, 1)
    }

    fn edge(text: &str) -> Edge {
        text.parse().expect(text)
    }

    /// Two edges at two positions each, in two examples, whose base metric is 1.
    fn table(detail: Detail) -> Scores {
        let cell = |dst: &str, pos: i32| Cell {
            component: "edge".into(),
            src: Some("input".into()),
            dst: Some(dst.into()),
            pos: Some(pos),
            ..Cell::default()
        };
        let cells = [
            cell("m0", 0),
            cell("m0", 1),
            cell("logits", 0),
            cell("logits", 1),
        ];
        let example = |example: usize, scores: [f64; 4]| ExampleScores {
            example,
            clean: 1.0,
            cells: (0..4).collect(),
            values: scores.map(|score| 1.0 + score).to_vec(),
            ..ExampleScores::default()
        };
        let meta = ScoresMeta {
            direction: Direction::Noise,
            ..ScoresMeta::default()
        };
        let examples = [
            example(3, [1.0, 2.0, 0.0, 0.5]),
            example(5, [3.0, 4.0, 0.0, -1.5]),
        ];
        Scores::assemble(&cells, &examples, &meta, detail, Provenance::default()).expect("a table")
    }

    #[test]
    fn a_table_becomes_a_graph_of_means_over_examples_and_sums_over_positions() {
        for detail in [Detail::Mean, Detail::PerExample] {
            let scored = ScoredGraph::from_scores(&table(detail), graph()).expect("its edges");
            let score = |text: &str| scored.score(&edge(text)).expect("an edge");
            assert_eq!(score("input->m0"), Some(5.0), "{detail:?}");
            assert_eq!(score("input->logits"), Some(-0.5), "{detail:?}");
            assert_eq!(score("m0->logits"), None, "{detail:?}");
        }
        let other = Graph {
            has_mlp: false,
            ..graph()
        };
        assert!(ScoredGraph::from_scores(&table(Detail::Mean), other).is_err());
    }

    #[test]
    fn agreement_is_over_the_edges_that_both_have() {
        let mut ours = ScoredGraph::new(graph());
        let mut theirs = ScoredGraph::new(graph());
        assert_eq!(
            ours.agreement(&theirs).to_string(),
            "no edge has a score in both"
        );
        let scores = [
            ("input->m0", Some(1.0), Some(2.0)),
            ("input->logits", Some(2.0), Some(4.5)),
            ("m0->logits", Some(3.0), Some(6.0)),
            ("a0.h0->m0", Some(9.0), None),
            ("a0.h0->logits", None, Some(9.0)),
        ];
        for (text, a, b) in scores {
            if let Some(a) = a {
                ours.set_score(&edge(text), a).expect("an edge");
            }
            if let Some(b) = b {
                theirs.set_score(&edge(text), b).expect("an edge");
            }
        }
        let found = ours.agreement(&theirs);
        assert_eq!(
            (found.scores.n, found.scores.rank_correlation),
            (3, Some(1.0))
        );
        assert_eq!(found.largest, Some((edge("m0->logits"), 3.0)));
        // Deviations -1, 0, 1 against -13/6, 2/6, 11/6: 4 / sqrt(2 * 294/36).
        let expected = 4.0 / (2.0f64 * 294.0 / 36.0).sqrt();
        assert!((found.scores.correlation.expect("both vary") - expected).abs() < 1e-12);
        assert!(
            found
                .to_string()
                .ends_with("the largest difference is 3.000e0 (m0->logits)")
        );
    }
}
