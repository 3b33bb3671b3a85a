//! `Graph`: which nodes and edges a model has, and their places in a matrix of scores.
//!
//! Rows are sources, columns are readers. An edge exists if its source is computed before its reader looks at the stream, so
//! the sources of a column are always the first so many rows. Under grouped heads, keys and values have a column for each *query*
//! head that uses them: a column is one use of the stream, not one weight matrix.
//! The numbering is that of EAP-IG, so that matrices and files can be compared.

use std::ops::Range;

use crate::error::{Error, Result};
use crate::hooks::{Edge, Letter, Node};
use crate::model::ModelSpec;
use crate::spec::{Block, Mlp};

/// The nodes and edges of one model.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Graph {
    pub n_layers: usize,
    pub n_heads: usize,
    pub d_model: usize,
    /// False in attention-only models.
    pub has_mlp: bool,
    /// Whether attention and MLP of a layer read the same stream, so that no edge leads from one to the other.
    pub parallel: bool,
}

impl Graph {
    pub fn new(spec: &ModelSpec) -> Self {
        let has_mlp = spec.mlp != Mlp::None;
        Graph {
            n_layers: spec.n_layers,
            n_heads: spec.n_heads,
            d_model: spec.d_model,
            has_mlp,
            parallel: has_mlp && spec.block != Block::Sequential,
        }
    }

    /// Rows of a matrix of scores: `input`, then the heads and the MLP of each layer.
    pub fn n_src(&self) -> usize {
        self.first_row(self.n_layers)
    }

    /// Columns of a matrix of scores: for each layer the queries of all heads, their keys, their values, and the MLP;
    /// `logits` last.
    pub fn n_dst(&self) -> usize {
        self.first_column(self.n_layers) + 1
    }

    pub fn n_edges(&self) -> usize {
        (0..self.n_dst()).map(|column| self.n_sources(column)).sum()
    }

    /// The first row of a layer, which is also how many sources its attention reads.
    fn first_row(&self, layer: usize) -> usize {
        1 + layer * (self.n_heads + usize::from(self.has_mlp))
    }

    fn first_column(&self, layer: usize) -> usize {
        layer * (3 * self.n_heads + usize::from(self.has_mlp))
    }

    /// The rows of a layer's heads.
    pub fn head_rows(&self, layer: usize) -> Range<usize> {
        let first = self.first_row(layer);
        first..first + self.n_heads
    }

    /// The row of a layer's MLP, in a model with MLPs.
    pub fn mlp_row(&self, layer: usize) -> usize {
        self.first_row(layer) + self.n_heads
    }

    /// The column of what a head reads as queries, keys or values.
    pub fn head_column(&self, layer: usize, letter: Letter, head: usize) -> usize {
        self.first_column(layer) + letter as usize * self.n_heads + head
    }

    /// The column of a layer's MLP, in a model with MLPs.
    pub fn mlp_column(&self, layer: usize) -> usize {
        self.first_column(layer) + 3 * self.n_heads
    }

    /// The row of a node that writes to the stream.
    /// # Errors
    /// [`Error::UnknownNode`] for `logits`, which writes nothing, and for a node that this model does not have.
    pub fn row(&self, node: Node) -> Result<usize> {
        self.check_node(node)?;
        match node {
            Node::Input => Ok(0),
            Node::Head { layer, head } => Ok(self.first_row(layer) + head),
            Node::Mlp(layer) => Ok(self.mlp_row(layer)),
            Node::Logits => Err(unknown(
                node,
                "as a source: nothing reads the logits".to_string(),
            )),
        }
    }

    /// The column of a place that reads the stream; `letter` for heads, and only for them.
    /// # Errors
    /// [`Error::UnknownNode`] for `input`, which reads nothing, and for a node that this model does not have.
    pub fn column(&self, node: Node, letter: Option<Letter>) -> Result<usize> {
        self.check_node(node)?;
        match (node, letter) {
            (Node::Head { layer, head }, Some(letter)) => Ok(self.head_column(layer, letter, head)),
            (Node::Mlp(layer), None) => Ok(self.mlp_column(layer)),
            (Node::Logits, None) => Ok(self.n_dst() - 1),
            (Node::Input, _) => Err(unknown(
                node,
                "as a reader: the input reads nothing".to_string(),
            )),
            (Node::Head { .. }, None) => Err(unknown(
                node,
                format!("as one reader: say `{node}<q>`, `{node}<k>` or `{node}<v>`"),
            )),
            (Node::Mlp(_) | Node::Logits, Some(letter)) => Err(unknown(
                node,
                format!("with a `<{letter}>`: only heads have one"),
            )),
        }
    }

    /// The node of a row; `None` past the last.
    pub fn source(&self, row: usize) -> Option<Node> {
        if row == 0 {
            return Some(Node::Input);
        }
        let width = self.first_row(1) - 1;
        let (layer, head) = ((row - 1) / width, (row - 1) % width);
        (layer < self.n_layers).then_some(if head == self.n_heads {
            Node::Mlp(layer)
        } else {
            Node::Head { layer, head }
        })
    }

    /// The reader of a column; `None` past the last.
    pub fn reader(&self, column: usize) -> Option<(Node, Option<Letter>)> {
        let width = self.first_column(1);
        let (layer, place) = (column / width, column % width);
        if layer >= self.n_layers {
            return (column + 1 == self.n_dst()).then_some((Node::Logits, None));
        }
        Some(match Letter::ALL.get(place / self.n_heads) {
            Some(&letter) => {
                let head = place % self.n_heads;
                (Node::Head { layer, head }, Some(letter))
            }
            None => (Node::Mlp(layer), None),
        })
    }

    /// The row of the node that reads at a column; `None` for `logits`.
    pub fn reader_row(&self, column: usize) -> Option<usize> {
        let (node, _) = self.reader(column)?;
        self.row(node).ok()
    }

    /// How many sources a column has: they are the rows `0..n_sources`.
    pub fn n_sources(&self, column: usize) -> usize {
        match self.reader(column) {
            None => 0,
            Some((Node::Mlp(layer), _)) if !self.parallel => self.mlp_row(layer),
            Some((Node::Head { layer, .. } | Node::Mlp(layer), _)) => self.first_row(layer),
            Some(_) => self.n_src(),
        }
    }

    /// Whether the source of this row is computed before the reader of this column looks.
    pub fn edge_exists(&self, row: usize, column: usize) -> bool {
        row < self.n_sources(column)
    }

    /// The edge at a place of the matrix, if there is one.
    pub fn edge(&self, row: usize, column: usize) -> Option<Edge> {
        let exists = self.edge_exists(row, column);
        let (src, (dst, letter)) = (self.source(row)?, self.reader(column)?);
        exists.then_some(Edge { src, dst, letter })
    }

    /// All edges, by row and then by column: the order that decides between equal scores.
    pub fn edges(&self) -> impl Iterator<Item = Edge> + '_ {
        let of_row = move |row| (0..self.n_dst()).filter_map(move |column| self.edge(row, column));
        (0..self.n_src()).flat_map(of_row)
    }

    /// The row and column of an edge.
    /// # Errors
    /// [`Error::UnknownNode`], or [`Error::NoSuchEdge`] where the source is computed after the reader looked.
    pub fn place(&self, edge: &Edge) -> Result<(usize, usize)> {
        let (row, column) = (self.row(edge.src)?, self.column(edge.dst, edge.letter)?);
        if self.edge_exists(row, column) {
            return Ok((row, column));
        }
        let same_layer = edge.src.layer() == edge.dst.layer();
        let reason = match (edge.src, edge.dst) {
            (Node::Head { .. }, Node::Mlp(_)) if same_layer && self.parallel => {
                "attention and MLP of its blocks read the same stream".to_string()
            }
            (Node::Head { .. }, Node::Head { .. }) if same_layer => {
                "heads of one layer do not read each other".to_string()
            }
            _ => format!("`{}` is computed after `{}` reads", edge.src, edge.dst),
        };
        Err(Error::NoSuchEdge {
            edge: edge.to_string(),
            reason,
        })
    }

    /// # Errors
    /// [`Error::UnknownNode`] for a node that this model does not have, with the nearest that it has.
    pub fn check_node(&self, node: Node) -> Result<()> {
        let (last_layer, last_head) = (self.n_layers - 1, self.n_heads - 1);
        let nearest = match node {
            Node::Input | Node::Logits => node,
            Node::Mlp(_) if !self.has_mlp => {
                return Err(unknown(node, "its blocks have no MLP".to_string()));
            }
            Node::Mlp(layer) => Node::Mlp(layer.min(last_layer)),
            Node::Head { layer, head } => Node::Head {
                layer: layer.min(last_layer),
                head: head.min(last_head),
            },
        };
        if nearest == node {
            return Ok(());
        }
        let sizes = if nearest.layer() == node.layer() {
            format!("its layers have {} heads", self.n_heads)
        } else {
            format!("it has {} layers", self.n_layers)
        };
        let reason = format!("{sizes}, counted from 0; the nearest is `{nearest}`");
        Err(unknown(node, reason))
    }
}

fn unknown(node: Node, reason: String) -> Error {
    Error::UnknownNode {
        node: node.to_string(),
        reason,
    }
}

#[cfg(test)]
impl Graph {
    /// A small sequential model with MLPs.
    pub(super) fn tiny(n_layers: usize, n_heads: usize) -> Self {
        Graph {
            n_layers,
            n_heads,
            d_model: 8,
            has_mlp: true,
            parallel: false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn graph(n_layers: usize, n_heads: usize, parallel: bool) -> Graph {
        Graph {
            n_layers,
            n_heads,
            d_model: 8,
            has_mlp: true,
            parallel,
        }
    }

    #[test]
    fn known_models_have_the_published_numbers_of_edges() {
        for (name, layers, heads, parallel, edges) in [
            ("gpt2", 12, 12, false, 32_491),
            ("gpt2-medium", 24, 16, false, 231_877),
            ("gpt2-large", 36, 20, false, 810_703),
            ("gpt2-xl", 48, 25, false, 2_235_025),
            ("pythia-160m", 12, 12, true, 32_347),
            ("pythia-2.8b", 32, 32, true, 1_591_857),
            ("qwen2.5-0.5b", 24, 14, false, 179_749),
            ("gemma-2-2b", 26, 8, false, 74_218),
            ("llama-3.2-1b", 16, 32, false, 386_713),
            ("llama-3.1-8b", 32, 32, false, 1_592_881),
        ] {
            assert_eq!(graph(layers, heads, parallel).n_edges(), edges, "{name}");
        }
    }

    #[test]
    fn an_attention_only_model_has_edges_between_heads_alone() {
        let graph = Graph {
            has_mlp: false,
            ..graph(3, 4, false)
        };
        // 3H (1 + (1 + H) + (1 + 2H)) + 1 + LH with H = 4.
        assert_eq!(graph.n_edges(), 12 * (1 + 5 + 9) + 13);
        assert_eq!((graph.n_src(), graph.n_dst()), (13, 37));
        let error = graph.row(Node::Mlp(0)).expect_err("no MLP").to_string();
        assert!(error.contains("no MLP"), "{error}");
    }

    #[test]
    fn places_and_edges_are_each_others_inverse() {
        for parallel in [false, true] {
            for has_mlp in [false, true] {
                let graph = Graph {
                    has_mlp,
                    ..graph(3, 2, parallel)
                };
                let edges: Vec<Edge> = graph.edges().collect();
                assert_eq!(edges.len(), graph.n_edges());
                assert!(edges.is_sorted() && edges.windows(2).all(|two| two[0] != two[1]));
                for edge in edges {
                    let (row, column) = graph.place(&edge).expect("a listed edge");
                    assert_eq!(graph.edge(row, column), Some(edge));
                }
            }
        }
    }

    #[test]
    fn rows_and_columns_stand_where_the_interchange_format_has_them() {
        let graph = graph(12, 12, false);
        let head = |layer, head| Node::Head { layer, head };
        assert_eq!(graph.row(Node::Input).expect("a source"), 0);
        assert_eq!(graph.row(head(2, 3)).expect("a source"), 1 + 2 * 13 + 3);
        assert_eq!(graph.row(Node::Mlp(2)).expect("a source"), 1 + 2 * 13 + 12);
        let column = |node, letter| graph.column(node, letter).expect("a reader");
        assert_eq!(column(head(2, 3), Some(Letter::V)), 2 * 37 + 24 + 3);
        assert_eq!(column(Node::Mlp(2), None), 2 * 37 + 36);
        assert_eq!(column(Node::Logits, None), 12 * 37);
    }

    #[test]
    fn what_is_no_edge_is_said() {
        let graph = |parallel| graph(4, 2, parallel);
        let refused = |parallel, text: &str| {
            let edge: Edge = text.parse().expect(text);
            let error = graph(parallel).place(&edge);
            error.expect_err(text).to_string()
        };
        for (text, says) in [
            ("m3->a3.h0<q>", "`m3` is computed after `a3.h0` reads"),
            ("a2.h0->a1.h1<v>", "computed after"),
            ("m2->m2", "computed after"),
            ("a1.h0->a1.h1<q>", "do not read each other"),
            ("a4.h0->logits", "4 layers"),
            ("a1.h2->logits", "2 heads"),
            ("m0->m4", "4 layers"),
        ] {
            let message = refused(false, text);
            assert!(message.contains(says), "{message}");
        }
        assert!(refused(true, "a1.h0->m1").contains("same stream"));
        let inside: Edge = "a1.h0->m1".parse().expect("an edge");
        assert!(graph(false).place(&inside).is_ok());
    }
}
