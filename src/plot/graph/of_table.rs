//! Edges of a table as graphs: rows whose `src` and `dst` name nodes of a transformer, or states of its stream.

use std::collections::{BTreeMap, BTreeSet};

use super::of_circuit::node_of;
use super::{Graph, GraphEdge, GraphNode, Place};
use crate::hooks::{Edge, Node, StreamNode};
use crate::plot::columns::Columns;
use crate::plot::places::Places;
use crate::scores::Scores;
use crate::text::visible;

/// The component of rows that say what an edge of attention consists of, and how many of them are named.
const HEAD: &str = "head";
const HEADS: usize = 2;

/// An end of an edge, in the order of computing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum End {
    Stream(StreamNode),
    Node(Node),
}

/// Ends, and what the one is read as by the other.
type Ends = (End, End, String);

/// The mean of some rows.
#[derive(Default)]
struct Mean {
    sum: f64,
    n: usize,
    row: usize,
}

impl Mean {
    fn add(&mut self, score: f64, row: usize) {
        self.sum += score;
        self.n += 1;
        self.row = row;
    }

    fn score(&self) -> f64 {
        self.sum / self.n as f64
    }
}

/// The edges of prompts that align.
#[derive(Default)]
struct Edges {
    edges: BTreeMap<Ends, Mean>,
    /// Of edges of attention.
    heads: BTreeMap<(End, End), BTreeMap<i64, Mean>>,
}

/// The graphs of a table, one for each template, edges strongest first; none where rows are no edges. Rows of several
/// pairs are averaged, and such a mean is no row of the table.
pub(in crate::plot) fn of_table(scores: &Scores) -> Vec<Graph> {
    let columns = Columns::of(scores);
    let height = columns.height;
    let templates = scores
        .texts("template")
        .unwrap_or_else(|| vec![None; height]);
    let mut groups: BTreeMap<Option<&str>, Edges> = BTreeMap::new();
    for row in (0..height).filter(|&row| columns.is_own(row)) {
        let (Some(src), Some(dst)) = (columns.src[row], columns.dst[row]) else {
            continue;
        };
        let Some(score) = columns.score[row].filter(|score| score.is_finite()) else {
            continue;
        };
        let component = columns.component[row].unwrap_or_default();
        let Some(ends) = ends(src, dst, component) else {
            continue;
        };
        let group = groups.entry(templates[row]).or_default();
        let mean = match (component, columns.head[row]) {
            (HEAD, Some(head)) => {
                let heads = group.heads.entry((ends.0, ends.1)).or_default();
                heads.entry(head).or_default()
            }
            _ => group.edges.entry(ends).or_default(),
        };
        mean.add(score, row);
    }
    let places = Places::of(&scores.provenance);
    groups.retain(|_, group| group.edges.len() > 1);
    groups
        .into_iter()
        .map(|(template, group)| {
            let number = template.and_then(|text| text.split(' ').next()?.parse().ok());
            let token = |pos: usize| places.token(pos as i64, number, None).unwrap_or_default();
            let mut graph = group.graph(&token);
            let title = template.map(|name| format!("template {}", visible(name)));
            graph.title = title.unwrap_or_default();
            graph.unit = visible(&scores.provenance.metric);
            graph
        })
        .collect()
}

fn ends(src: &str, dst: &str, component: &str) -> Option<Ends> {
    if let Ok(edge) = format!("{src}->{dst}").parse::<Edge>() {
        let letter = edge
            .letter
            .map_or(String::new(), |letter| letter.to_string());
        return Some((End::Node(edge.src), End::Node(edge.dst), letter));
    }
    let src = End::Stream(src.parse().ok()?);
    let dst = match dst.parse() {
        Ok(node) => End::Stream(node),
        Err(_) => End::Node(dst.parse().ok()?),
    };
    Some((src, dst, component.to_string()))
}

impl Edges {
    fn graph(self, token: &dyn Fn(usize) -> String) -> Graph {
        let ends = self.edges.keys().flat_map(|(src, dst, _)| [*src, *dst]);
        let nodes: BTreeSet<End> = ends.collect();
        let places: BTreeMap<End, usize> = nodes.iter().copied().zip(0..).collect();
        let positions = nodes.iter().filter_map(|end| match end {
            End::Stream(node) => Some(node.pos()),
            End::Node(_) => None,
        });
        let n_columns = positions.max().map_or(0, |last| last + 1);
        let mut graph = Graph {
            nodes: nodes.iter().map(|end| end.node(token)).collect(),
            columns: (0..n_columns).map(token).collect(),
            has_sides: n_columns == 0,
            ..Graph::default()
        };
        for ((src, dst, via), mean) in &self.edges {
            let detail = self.heads.get(&(*src, *dst)).filter(|_| via == "attention");
            let mut name = format!("{}->{}", src.name(), dst.name());
            match (src, via.is_empty()) {
                (_, true) => {}
                (End::Stream(_), false) => name += &format!(" ({via})"),
                (End::Node(_), false) => name += &format!("<{via}>"),
            }
            graph.edges.push(GraphEdge {
                src: places[src],
                dst: places[dst],
                via: via.clone(),
                name,
                listed: listed(*src, *dst, via, token),
                detail: detail.map_or(String::new(), said),
                score: Some(mean.score()),
                row: (mean.n == 1).then_some(mean.row),
            });
        }
        graph.sort();
        graph
    }
}

/// The strongest heads of an edge.
fn said(heads: &BTreeMap<i64, Mean>) -> String {
    let mut heads: Vec<(i64, f64)> = heads
        .iter()
        .map(|(head, mean)| (*head, mean.score()))
        .collect();
    heads.sort_by(|a, b| b.1.abs().total_cmp(&a.1.abs()));
    let named = heads.iter().take(HEADS);
    let named = named.filter(|(_, score)| score.abs() >= 0.0005);
    let named: Vec<String> = named
        .map(|(head, score)| format!("h{head} {score:.3}"))
        .collect();
    named.join(", ")
}

/// How a source is named in the list of what its reader reads.
fn listed(src: End, dst: End, via: &str, token: &dyn Fn(usize) -> String) -> String {
    match (src, dst) {
        (End::Node(node), _) => node.to_string(),
        // At the same position there is one state that a step starts from.
        (End::Stream(a), End::Stream(b)) if a.pos() == b.pos() && via != "attention" => {
            String::new()
        }
        (End::Stream(node), End::Stream(_)) => at(node.pos(), token),
        (End::Stream(node), End::Node(_)) => {
            format!("layer {} {}", node.layer(), at(node.pos(), token))
        }
    }
}

/// A position with its token.
fn at(pos: usize, token: &dyn Fn(usize) -> String) -> String {
    format!("@{pos} {}", token(pos)).trim_end().to_string()
}

impl End {
    fn name(&self) -> String {
        match self {
            End::Stream(node) => node.to_string(),
            End::Node(node) => node.to_string(),
        }
    }

    fn node(self, token: &dyn Fn(usize) -> String) -> GraphNode {
        let node = match self {
            // In a table, an MLP stands above the heads of its layer, and alone.
            End::Node(node) => return node_of(node, false),
            End::Stream(node) => node,
        };
        let name = node.to_string();
        let hook = node.hook();
        let short = hook.kind.short();
        let place = at(node.pos(), token);
        GraphNode {
            label: format!("{}{}", short.trim_start_matches("resid_"), node.layer()),
            level: node.level(),
            place: Place::Column(node.pos()),
            listed: [format!("{short}{}", node.layer()), place.clone()],
            note: format!("{name} {}", token(node.pos())),
            name,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scores::{Cell, Detail, ExampleScores, Provenance, ScoresMeta};

    /// Rows of a component, source, reader and head, with a score.
    fn table(rows: &[(&str, &str, &str, Option<u32>, f64)]) -> Scores {
        let cells: Vec<Cell> = rows
            .iter()
            .map(|(component, src, dst, head, _)| Cell {
                component: component.to_string(),
                src: Some(src.to_string()),
                dst: Some(dst.to_string()),
                head: *head,
                ..Cell::default()
            })
            .collect();
        let example = ExampleScores {
            cells: (0..cells.len() as u32).collect(),
            values: rows.iter().map(|row| row.4).collect(),
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
    fn states_stand_over_their_token_and_attention_says_its_heads() {
        let (pre, mid) = ("resid_pre0@1", "resid_mid0@1");
        let scores = table(&[
            ("attention", "resid_pre0@0", mid, None, 0.4),
            ("head", "resid_pre0@0", mid, Some(2), 0.3),
            ("head", "resid_pre0@0", mid, Some(0), 0.1),
            ("stream", pre, mid, None, 0.5),
            ("stream", mid, "resid_post0@1", None, 0.7),
            ("mlp", mid, "resid_post0@1", None, 0.3),
            ("bias", "bias", mid, None, 0.1),
        ]);
        let graphs = of_table(&scores);
        let [graph] = &graphs[..] else {
            panic!("one graph: {graphs:?}")
        };
        assert_eq!(graph.columns.len(), 2);
        assert_eq!(graph.edges.len(), 4);
        let labels: Vec<&str> = graph.nodes.iter().map(|node| node.label.as_str()).collect();
        assert_eq!(labels, ["pre0", "pre0", "mid0", "post0"]);
        assert_eq!(
            graph.listed(None),
            "resid_post0  @1  stream +0.700 | mlp +0.300\n\
             resid_mid0   @1  stream +0.500 | attention: @0 +0.400 (h2 0.300, h0 0.100)\n\
             resid_pre0   @1\n             \
             @0\n"
        );
        let places: Vec<Place> = graph.nodes.iter().map(|node| node.place).collect();
        let columns = [0, 1, 1, 1].map(Place::Column);
        assert_eq!(places, columns);
    }

    #[test]
    fn the_strongest_edges_keep_their_ends() {
        let scores = table(&[
            ("stream", "resid_pre0@1", "resid_mid0@1", None, 0.5),
            ("stream", "resid_mid0@1", "resid_post0@1", None, 0.7),
            ("attention", "resid_pre0@0", "resid_mid0@1", None, 0.1),
        ]);
        let graph = of_table(&scores).swap_remove(0).strongest(1);
        assert_eq!(
            graph.listed(None),
            "resid_post0  @1  stream +0.700\nresid_mid0   @1\n"
        );
    }

    #[test]
    fn pairs_of_heads_and_words_are_no_edges() {
        let heads = [
            ("edge", "a0.h0", "a0.h1", None, 0.5),
            ("edge", "a0.h0", "a1.h1", None, 0.5),
        ];
        assert_eq!(of_table(&table(&heads)), []);
        let words = [("attention", "Mary", "John", None, 0.5); 3];
        assert_eq!(of_table(&table(&words)), []);
    }
}
