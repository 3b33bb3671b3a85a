//! The interchange file of the field: scores of edges, and which nodes and edges are in a circuit, as JSON.
//!
//! ```json
//! {"cfg": {"n_layers": 12, "n_heads": 12, "parallel_attn_mlp": false, "d_model": 768},
//!  "nodes": {"input": {"in_graph": true}, "a0.h0": {"in_graph": false, "score": 0.25}},
//!  "edges": {"input->a0.h0<q>": {"score": -0.003, "in_graph": false}}}
//! ```
//!
//! EAP-IG writes it, and the MIB benchmark takes it. A file is read for a model whose graph is known, so that sizes, nodes and edges
//! are checked against something other than the file itself. An edge that the file leaves out has no score and is in no circuit;
//! `NaN`, which Python writes though JSON has no such number, is no score either. Left out on purpose: circuits of single
//! neurons, which a graph of whole components cannot hold and which are refused, and the PyTorch form of the file, a pickle.

use std::borrow::Cow;
use std::fmt;
use std::io::{BufWriter, Write};
use std::path::Path;

use serde::de::{Deserialize, Deserializer, MapAccess, Visitor};
use serde::ser::{Serialize, SerializeMap, Serializer};

use super::super::bounded::read_text;
use super::ScoredGraph;
use crate::circuit::{Graph, Helps};
use crate::error::{Error, Result};
use crate::hooks::{Edge, Node};
use crate::scores::write_whole;
use crate::text::clipped;

/// The largest file that is read: the edges of a model of 80 layers and 64 heads take about 3 GB, those of any smaller much less.
const FILE_LIMIT: u64 = 4 << 30;
const FORMAT: &str = "circuit JSON";
/// Places of a matrix that are made room for without a list of as many nodes: 40 MB.
const FEW_PLACES: usize = 1 << 22;

impl ScoredGraph {
    /// Writes the interchange file, whole or not at all. Edges that have no score and are not in the circuit are left out.
    /// # Errors
    /// [`Error::Invalid`] for an infinite score, which JSON cannot hold; [`Error::Write`].
    pub fn write(&self, path: &Path) -> Result<()> {
        if let Some((edge, ..)) = self
            .edges()
            .find(|(_, score, _)| score.is_some_and(f64::is_infinite))
        {
            return Err(Error::invalid(format!(
                "the score of `{edge}` is infinite, which a JSON file cannot hold; leave the edge without a score"
            )));
        }
        if self.node_scores.iter().any(|score| score.is_infinite()) {
            return Err(Error::invalid(
                "the score of a node is infinite, which a JSON file cannot hold; leave the node without a score",
            ));
        }
        write_whole(path, |file| {
            let failed = |source: std::io::Error| Error::Write {
                path: path.to_path_buf(),
                source,
            };
            let mut out = BufWriter::new(file);
            serde_json::to_writer(&mut out, self).map_err(|error| failed(error.into()))?;
            out.flush().map_err(failed)
        })
    }

    /// Reads the interchange file of a model with this graph.
    /// # Errors
    /// [`Error::Missing`] and [`Error::Read`]; [`Error::Malformed`] for what is no such file, for sizes of another model, for nodes and
    /// edges that this model does not have, and for circuits of neurons.
    pub fn read(path: &Path, graph: Graph) -> Result<Self> {
        Self::read_as(path, Some(graph))
    }

    /// Reads an interchange file for the graph of its own `cfg`. A model has MLPs if the file names one, or no nodes at all.
    /// # Errors
    /// Those of [`ScoredGraph::read`]; sizes that no model has.
    pub fn read_alone(path: &Path) -> Result<Self> {
        Self::read_as(path, None)
    }

    fn read_as(path: &Path, graph: Option<Graph>) -> Result<Self> {
        let hint = "a circuit is a JSON file with `cfg`, `nodes` and `edges`";
        let text = read_text(path, FILE_LIMIT, FORMAT, hint)?;
        Self::parse(&text, graph).map_err(|reason| Error::Malformed {
            path: path.to_path_buf(),
            format: FORMAT,
            reason,
        })
    }

    fn parse(text: &str, graph: Option<Graph>) -> Result<Self, String> {
        let text = without_nan(text);
        let file: Contents =
            serde_json::from_str(&text).map_err(|error| clipped(&error.to_string(), 300))?;
        let said = |error: Error| error.to_string();
        let graph = match graph {
            Some(graph) => {
                file.cfg.check(&graph)?;
                graph
            }
            None => {
                let graph = file.cfg.graph(&file.nodes);
                graph.check_sizes().map_err(said)?;
                if graph.n_src() * graph.n_dst() > FEW_PLACES && graph.n_src() > file.nodes.0.len()
                {
                    return Err(format!(
                        "its `cfg` is of a model with {} nodes, and it lists {}; list them all",
                        graph.n_src(),
                        file.nodes.0.len()
                    ));
                }
                graph
            }
        };
        let mut scored = ScoredGraph::new(graph);
        scored.helps = file.helps;
        for (name, entry) in file.nodes.0 {
            entry.check(&name)?;
            let node: Node = name.parse().map_err(said)?;
            let place = scored.node_place(node).map_err(said)?;
            scored.nodes_in_graph[place] = entry.in_graph;
            scored.node_scores[place] = entry.score.unwrap_or(f64::NAN);
        }
        let mut seen = vec![false; scored.scores.len()];
        for (name, entry) in file.edges.0 {
            entry.check(&name)?;
            let edge: Edge = name.parse().map_err(said)?;
            let place = scored.place(&edge).map_err(said)?;
            if std::mem::replace(&mut seen[place], true) {
                return Err(format!("it has edge `{edge}` twice"));
            }
            scored.in_graph[place] = entry.in_graph;
            scored.scores[place] = entry.score.unwrap_or(f64::NAN);
        }
        Ok(scored)
    }
}

/// The text with `null` for each `NaN` that stands where a value does.
fn without_nan(text: &str) -> Cow<'_, str> {
    if !text.contains("NaN") {
        return Cow::Borrowed(text);
    }
    let mut out = String::with_capacity(text.len() + text.len() / 8);
    // Quotes split a text into what is outside and inside of strings, but for those that a backslash escapes.
    let (mut inside, mut rest) = (false, text);
    while let Some(quote) = end_of_part(rest, inside) {
        push_part(&mut out, &rest[..quote], inside);
        out.push('"');
        rest = &rest[quote + 1..];
        inside = !inside;
    }
    push_part(&mut out, rest, inside);
    Cow::Owned(out)
}

fn end_of_part(text: &str, inside: bool) -> Option<usize> {
    let mut escaped = false;
    text.bytes().position(|byte| {
        let ends = byte == b'"' && !escaped;
        escaped = inside && byte == b'\\' && !escaped;
        ends
    })
}

fn push_part(out: &mut String, part: &str, inside: bool) {
    if inside || !part.contains("NaN") {
        out.push_str(part)
    } else {
        out.push_str(&part.replace("NaN", "null"))
    }
}

#[derive(serde::Deserialize)]
struct Contents {
    cfg: Config,
    /// Ours alone.
    #[serde(default)]
    helps: Option<Helps>,
    nodes: Entries,
    edges: Entries,
}

/// Sizes of the model that the file is of. Other keys say nothing about the graph.
#[derive(serde::Deserialize, serde::Serialize)]
struct Config {
    n_layers: usize,
    n_heads: usize,
    parallel_attn_mlp: bool,
    /// Older files have none.
    d_model: Option<usize>,
}

impl Config {
    fn of(graph: &Graph) -> Self {
        Config {
            n_layers: graph.n_layers,
            n_heads: graph.n_heads,
            parallel_attn_mlp: graph.parallel,
            d_model: Some(graph.d_model),
        }
    }

    /// The graph of these sizes. The file does not say whether there are MLPs; its nodes do.
    fn graph(&self, nodes: &Entries) -> Graph {
        Graph {
            n_layers: self.n_layers,
            n_heads: self.n_heads,
            d_model: self.d_model.unwrap_or(1),
            has_mlp: nodes.0.is_empty() || nodes.0.iter().any(|(name, _)| name.starts_with('m')),
            parallel: self.parallel_attn_mlp,
        }
    }

    fn check(&self, graph: &Graph) -> Result<(), String> {
        let model = Config::of(graph);
        let d_model = self.d_model.or(model.d_model);
        let sizes = [
            ("n_layers", self.n_layers, model.n_layers),
            ("n_heads", self.n_heads, model.n_heads),
            ("d_model", d_model.unwrap_or(0), graph.d_model),
        ];
        if let Some((what, file, model)) = sizes.into_iter().find(|(_, file, model)| file != model)
        {
            return Err(format!(
                "it is of a model with {what} {file}, this one has {model}; give the model that it was made with"
            ));
        }
        if self.parallel_attn_mlp == model.parallel_attn_mlp {
            Ok(())
        } else {
            Err(format!(
                "it is of a model with parallel_attn_mlp {}, this one has {}; give the model that it was made with",
                self.parallel_attn_mlp, model.parallel_attn_mlp
            ))
        }
    }
}

/// The entries of an object in their order, so that a name that comes twice is seen.
struct Entries(Vec<(String, Entry)>);

#[derive(serde::Deserialize)]
struct Entry {
    in_graph: bool,
    #[serde(default)]
    score: Option<f64>,
    #[serde(default)]
    neurons: Option<serde::de::IgnoredAny>,
}

impl Entry {
    fn check(&self, name: &str) -> Result<(), String> {
        match self.neurons {
            None => Ok(()),
            Some(_) => Err(format!(
                "`{}` is in the circuit by single neurons (`neurons`), and only whole nodes and edges are read here; \
                 export the circuit without neurons",
                clipped(name, 300)
            )),
        }
    }
}

impl<'de> Deserialize<'de> for Entries {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Each;
        impl<'de> Visitor<'de> for Each {
            type Value = Entries;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object of names and `{\"in_graph\": ..., \"score\": ...}`")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Entries, A::Error> {
                let mut entries = Vec::new();
                while let Some(entry) = map.next_entry()? {
                    entries.push(entry);
                }
                Ok(Entries(entries))
            }
        }
        deserializer.deserialize_map(Each)
    }
}

impl Serialize for ScoredGraph {
    /// The contents of the interchange file.
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut file = serializer.serialize_map(None)?;
        file.serialize_entry("cfg", &Config::of(&self.graph))?;
        if let Some(helps) = self.helps {
            file.serialize_entry("helps", &helps)?;
        }
        file.serialize_entry("nodes", &Nodes(self))?;
        file.serialize_entry("edges", &Edges(self))?;
        file.end()
    }
}

struct Nodes<'a>(&'a ScoredGraph);
struct Edges<'a>(&'a ScoredGraph);

#[derive(serde::Serialize)]
struct Written {
    #[serde(skip_serializing_if = "Option::is_none")]
    score: Option<f64>,
    in_graph: bool,
}

impl Serialize for Nodes<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let scored = self.0;
        let nodes = (0..).map_while(|row| scored.graph.source(row));
        serializer.collect_map(
            nodes
                .chain([Node::Logits])
                .enumerate()
                .map(|(place, node)| {
                    let score = scored.node_scores[place];
                    let written = Written {
                        score: (!score.is_nan()).then_some(score),
                        in_graph: scored.nodes_in_graph[place],
                    };
                    (node.to_string(), written)
                }),
        )
    }
}

impl Serialize for Edges<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let known = self
            .0
            .edges()
            .filter(|(_, score, in_graph)| score.is_some() || *in_graph);
        serializer.collect_map(
            known.map(|(edge, score, in_graph)| (edge.to_string(), Written { score, in_graph })),
        )
    }
}

#[cfg(test)]
mod tests;
