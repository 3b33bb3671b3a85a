//! `circuit.toml`: a circuit as a file that people read and write.
//!
//! ```toml
//! [model]
//! n_layers = 2
//! n_heads = 4
//! d_model = 64
//! mlp = true
//! parallel = false
//!
//! [about]
//! task = "ioi"
//! claim = "moves the name that stands once"
//!
//! [measured]
//! faithfulness = 0.93
//!
//! [nodes."a1.h2"]
//! class = "name mover"
//! positions = ["END"]         # acts there alone
//!
//! [edges]
//! "input->a1.h2<v>" = -0.25   # its score
//! "a1.h2->logits" = true      # in the circuit, without a score
//! ```
//!
//! A file with nodes and no edges is the circuit of all edges between its nodes.

use std::collections::BTreeMap;
use std::fmt;
use std::io::Write;
use std::path::Path;

use serde::de::{Deserialize, Deserializer, MapAccess, Visitor};
use serde::ser::{Serialize, Serializer};

use super::bounded::read_text;
use super::circuit::{About, Circuit, NodeNote};
use super::{EdgeSet, Graph};
use crate::error::{Error, Result};
use crate::hooks::{Edge, Node};
use crate::scores::write_whole;
use crate::text::clipped;

/// Two million edges, those of the largest model that circuits are found in.
const FILE_LIMIT: u64 = 128 << 20;
const FORMAT: &str = "circuit TOML";

#[derive(serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields)]
struct Contents {
    model: Sizes,
    #[serde(default)]
    about: About,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    claimed: BTreeMap<String, f64>,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    measured: BTreeMap<String, f64>,
    #[serde(default, skip_serializing_if = "Named::is_empty")]
    nodes: Named<NodeNote>,
    #[serde(default, skip_serializing_if = "Named::is_empty")]
    edges: Named<InCircuit>,
}

#[derive(serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields)]
struct Sizes {
    n_layers: usize,
    n_heads: usize,
    d_model: usize,
    #[serde(default = "is_usual")]
    mlp: bool,
    #[serde(default)]
    parallel: bool,
}

fn is_usual() -> bool {
    true
}

/// An edge with its score, or `true` where it has none.
#[derive(Clone, Copy, serde::Serialize, serde::Deserialize)]
#[serde(untagged)]
enum InCircuit {
    Score(f64),
    Whole(i64),
    Member(bool),
}

/// The entries of a table in their order.
struct Named<T>(Vec<(String, T)>);

impl<T> Named<T> {
    fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl<T> Default for Named<T> {
    fn default() -> Self {
        Named(Vec::new())
    }
}

impl<T: Serialize> Serialize for Named<T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.0.iter().map(|(name, value)| (name, value)))
    }
}

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Named<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Each<T>(std::marker::PhantomData<T>);
        impl<'de, T: Deserialize<'de>> Visitor<'de> for Each<T> {
            type Value = Named<T>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a table of names")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Named<T>, A::Error> {
                let mut entries = Vec::new();
                while let Some(entry) = map.next_entry()? {
                    entries.push(entry);
                }
                Ok(Named(entries))
            }
        }
        deserializer.deserialize_map(Each(std::marker::PhantomData))
    }
}

impl Circuit {
    /// Reads a `circuit.toml`.
    /// # Errors
    /// [`Error::Missing`] and [`Error::Read`]; [`Error::Malformed`] for what is no such file, and for nodes and edges that the
    /// graph of its own sizes does not have.
    pub fn read_toml(path: &Path) -> Result<Self> {
        let hint = "a circuit is a `.toml` or `.json` file; `candlewick circuit find` makes one";
        let text = read_text(path, FILE_LIMIT, FORMAT, hint)?;
        Circuit::from_toml(&text).map_err(|reason| Error::Malformed {
            path: path.to_path_buf(),
            format: FORMAT,
            reason,
        })
    }

    /// The circuit that a text is, or why it is none.
    /// # Errors
    /// One line that names the entry.
    pub fn from_toml(text: &str) -> Result<Self, String> {
        let file: Contents = ::toml::from_str(text).map_err(|error| {
            let line = error
                .span()
                .map(|at| text[..at.start].matches('\n').count() + 1);
            let place = line.map_or(String::new(), |line| format!("line {line}: "));
            format!("{place}{}", clipped(error.message(), 300))
        })?;
        let graph = Graph {
            n_layers: file.model.n_layers,
            n_heads: file.model.n_heads,
            d_model: file.model.d_model,
            has_mlp: file.model.mlp,
            parallel: file.model.parallel,
        };
        let said = |error: Error| error.to_string();
        graph.check_sizes().map_err(said)?;
        let numbers = file.claimed.iter().chain(&file.measured);
        if let Some((name, _)) = numbers.into_iter().find(|(_, value)| !value.is_finite()) {
            return Err(format!("`{}` is no finite number", clipped(name, 80)));
        }
        let mut circuit = Circuit::new(EdgeSet::empty(graph));
        for (name, note) in file.nodes.0 {
            let node: Node = name.parse().map_err(said)?;
            graph.check_node(node).map_err(said)?;
            if note.score.is_some_and(|score| !score.is_finite()) {
                return Err(format!("the score of `{node}` is no finite number"));
            }
            // Names are read with spaces around them, so two of them can be one node.
            if circuit.nodes.insert(node, note).is_some() {
                return Err(format!("it has node `{node}` twice"));
            }
        }
        let only_nodes = file.edges.is_empty();
        for (name, entry) in file.edges.0 {
            let edge: Edge = name.parse().map_err(said)?;
            let (row, column) = graph.place(&edge).map_err(said)?;
            if circuit.edges.has(row, column) {
                return Err(format!("it has edge `{edge}` twice"));
            }
            let score = match entry {
                InCircuit::Score(score) => Some(score),
                InCircuit::Whole(score) => Some(score as f64),
                InCircuit::Member(true) => None,
                InCircuit::Member(false) => {
                    return Err(format!(
                        "`{edge}` is `false`; leave out what is not in the circuit"
                    ));
                }
            };
            if let Some(score) = score {
                if !score.is_finite() {
                    return Err(format!(
                        "the score of `{edge}` is no finite number; write `true` for an edge without one"
                    ));
                }
                circuit.scores.insert(edge, score);
            }
            circuit.edges.insert(row, column);
        }
        if only_nodes {
            let nodes: Vec<Node> = circuit.nodes.keys().copied().collect();
            circuit.edges = match nodes.is_empty() {
                true => return Err("it has neither `[edges]` nor `[nodes]`".into()),
                false => EdgeSet::between(graph, &nodes).map_err(said)?,
            };
        }
        circuit.about = file.about;
        circuit.claimed = file.claimed;
        circuit.measured = file.measured;
        Ok(circuit)
    }

    /// The text of a `circuit.toml`.
    /// # Errors
    /// [`Error::Invalid`] for a number that is not finite.
    pub fn to_toml(&self) -> Result<String> {
        let graph = self.graph();
        let edge = |edge: Edge| {
            let score = self.scores.get(&edge);
            let entry = score.map_or(InCircuit::Member(true), |&score| InCircuit::Score(score));
            (edge.to_string(), entry)
        };
        let infinite = |values: &BTreeMap<String, f64>| values.values().any(|x| !x.is_finite());
        if let Some((edge, _)) = self.scores.iter().find(|(_, score)| !score.is_finite()) {
            return Err(Error::invalid(format!(
                "the score of `{edge}` is no finite number; leave the edge without a score"
            )));
        }
        if infinite(&self.claimed) || infinite(&self.measured) {
            return Err(Error::invalid(
                "a number of the circuit is not finite; leave it out",
            ));
        }
        let file = Contents {
            model: Sizes {
                n_layers: graph.n_layers,
                n_heads: graph.n_heads,
                d_model: graph.d_model,
                mlp: graph.has_mlp,
                parallel: graph.parallel,
            },
            about: self.about.clone(),
            claimed: self.claimed.clone(),
            measured: self.measured.clone(),
            nodes: Named(
                self.nodes
                    .iter()
                    .map(|(node, note)| (node.to_string(), note.clone()))
                    .collect(),
            ),
            edges: Named(self.edges.edges().map(edge).collect()),
        };
        ::toml::to_string(&file).map_err(|error| Error::invalid(clipped(&error.to_string(), 300)))
    }

    /// Writes a `circuit.toml`, whole or not at all.
    /// # Errors
    /// Those of [`Circuit::to_toml`]; [`Error::Write`].
    pub fn write_toml(&self, path: &Path) -> Result<()> {
        let text = self.to_toml()?;
        write_whole(path, |file| {
            file.write_all(text.as_bytes())
                .map_err(|source| Error::Write {
                    path: path.to_path_buf(),
                    source,
                })
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MODEL: &str = "[model]\nn_layers = 2\nn_heads = 2\nd_model = 8\n";

    fn refused(text: &str) -> String {
        Circuit::from_toml(text).expect_err(text)
    }

    #[test]
    fn a_circuit_is_read_back_as_it_was_written() {
        let text = format!(
            "{MODEL}[about]\ntask = \"ioi\"\nrequested = 5\nclaim = \"it\\nmoves \\\"names\\\"\"\n[claimed]\nfaithfulness = 1\n\
             [measured]\nfaithfulness = 0.5\n[nodes.\"a1.h0\"]\nclass = \"mover\"\npositions = [\"END\", \"-2\"]\n\
             [edges]\n\"input->a1.h0<v>\" = -0.1234567890123\n\"input->m1\" = 2\n\"a1.h0->logits\" = true\n"
        );
        let circuit = Circuit::from_toml(&text).expect("a circuit");
        assert_eq!(circuit.edges.len(), 3);
        assert_eq!(circuit.scores.len(), 2);
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("circuit.toml");
        circuit.write(&path).expect("writes");
        assert_eq!(Circuit::read(&path).expect("reads"), circuit);
        let json = folder.path().join("circuit.json");
        let message = circuit.write(&json).expect_err("positions").to_string();
        assert!(
            message.contains("`a1.h0` has a class, positions or dimensions"),
            "{message}"
        );
        let mut plain = Circuit {
            nodes: BTreeMap::new(),
            ..circuit
        };
        plain.write(&json).expect("writes");
        let read = Circuit::read(&json).expect("reads");
        (plain.about, plain.claimed, plain.measured) = Default::default();
        assert_eq!(read, plain);
    }

    #[test]
    fn nodes_without_edges_are_the_edges_between_them() {
        let text =
            format!("{MODEL}[nodes]\n\"a0.h1\" = {{}}\n\"a1.h0\" = {{ positions = [\"END\"] }}\n");
        let circuit = Circuit::from_toml(&text).expect("a circuit");
        // input into 3 letters of each head and the logits, a0.h1 into 3 letters and the logits, a1.h0 into the logits.
        assert_eq!(circuit.edges.len(), 7 + 4 + 1);
    }

    #[test]
    fn a_bad_file_is_refused_in_one_line_that_says_why() {
        let edges = |edges: &str| format!("{MODEL}[edges]\n{edges}\n");
        for (text, says) in [
            (
                edges("\"a9.h0->logits\" = 1.0"),
                "2 layers, counted from 0; the nearest is `a1.h0`",
            ),
            (edges("\"a1.h7->logits\" = 1.0"), "the nearest is `a1.h1`"),
            (
                edges("\"m1->a0.h0<q>\" = true"),
                "`m1` is computed after `a0.h0` reads",
            ),
            (edges("\"m1->m1\" = true"), "computed after"),
            (
                edges("\"input->a0.h0\" = true"),
                "`a0.h0<q>`, `a0.h0<k>` or `a0.h0<v>`",
            ),
            (edges("\"foo\" = true"), "write `SOURCE->READER`"),
            (
                edges("\"m0->m1\" = true\n\"m0->m1\" = true"),
                "line 7: duplicate key",
            ),
            (
                edges("\"m0->m1\" = true\n\" m0 -> m1\" = true"),
                "edge `m0->m1` twice",
            ),
            (edges("\"m0->m1\" = false"), "leave out"),
            (edges("\"m0->m1\" = nan"), "no finite number"),
            (edges("\"m0->m1\" = \"x\""), "line 6"),
            (
                format!("{MODEL}[nodes]\n\"m7\" = {{}}\n"),
                "the nearest is `m1`",
            ),
            (
                format!("{MODEL}[nodes]\n\"m1\" = {{ colour = 1 }}\n"),
                "unknown field `colour`",
            ),
            (
                format!("{MODEL}[measured]\nx = inf\n"),
                "`x` is no finite number",
            ),
            (MODEL.to_string(), "neither `[edges]` nor `[nodes]`"),
            (MODEL.replace("= 2", "= 0"), "no model has n_layers 0"),
            (
                MODEL.replace("= 2", "= 100000"),
                "no model has n_layers 100000",
            ),
            (MODEL.replace("= 8", "= -8"), "line 4"),
            (format!("{MODEL}mpl = true\n"), "unknown field `mpl`"),
            (String::new(), "missing field `model`"),
            ("\u{1b}[31m".to_string(), "line 1"),
            ("[".repeat(100_000), "line 1"),
        ] {
            let message = refused(&text);
            assert!(message.contains(says), "{says}: {message}");
            assert!(
                message.len() < 500 && !message.contains(char::is_control),
                "{message}"
            );
        }
    }

    #[test]
    fn damage_anywhere_is_no_panic() {
        let text = format!("{MODEL}[edges]\n\"input->a1.h0<v>\" = -0.125\n\"m0->m1\" = true\n");
        for at in 0..text.len() {
            let _ = Circuit::from_toml(&text[..at]);
            for other in ['"', '=', '\\', '9', '['] {
                let _ = Circuit::from_toml(&format!("{}{other}{}", &text[..at], &text[at + 1..]));
            }
        }
    }
}
