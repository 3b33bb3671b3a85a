//! `Circuit`: a set of edges of one model, with what was claimed of it and what was measured, and its file.

use std::collections::BTreeMap;
use std::path::Path;

use super::{EdgeSet, Graph, ScoredGraph};
use crate::error::{Error, Result};
use crate::hooks::{Edge, Node};

/// Edges of one model's graph that are said to do something together.
#[derive(Debug, Clone, PartialEq)]
pub struct Circuit {
    pub edges: EdgeSet,
    /// What the edges were chosen by, of those that are in the circuit and have a score.
    pub scores: BTreeMap<Edge, f64>,
    /// What is said of single nodes; most circuits say nothing.
    pub nodes: BTreeMap<Node, NodeNote>,
    pub about: About,
    /// Numbers of those who published it, under their names.
    pub claimed: BTreeMap<String, f64>,
    /// Our numbers: `faithfulness`, `faithfulness_low`, ...
    pub measured: BTreeMap<String, f64>,
}

/// What is said of a node of a circuit.
#[derive(Debug, Clone, Default, PartialEq, serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NodeNote {
    /// Its part in the circuit, such as `name mover`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub class: Option<String>,
    /// Where it acts: roles of the task, or positions counted from 0, or from the end below 0. Empty: everywhere.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub positions: Vec<String>,
    /// Which dimensions of the stream it writes in the circuit. Empty: all.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub dims: Vec<usize>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub score: Option<f64>,
}

impl NodeNote {
    /// Whether it says more than a score.
    pub fn says_more(&self) -> bool {
        self.class.is_some() || !self.positions.is_empty() || !self.dims.is_empty()
    }
}

/// Where a circuit comes from.
#[derive(Debug, Clone, Default, PartialEq, serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct About {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub model: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub task: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub metric: Option<String>,
    /// What scored the edges.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub method: Option<String>,
    /// What chose among them, such as `greedy`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub selection: Option<String>,
    /// Edges that were asked for; dead ends among them are not in the circuit.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub requested: Option<usize>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub seed: Option<u64>,
    /// The paper or the file that it was taken from.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub source: Option<String>,
    /// The command that made it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub command: Option<String>,
    /// What it is said to do, in words.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub claim: Option<String>,
}

/// The format of a circuit's file, which the ending of its name says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CircuitFormat {
    /// `.toml`: all of a [`Circuit`].
    Toml,
    /// `.json`, of EAP-IG and MIB: edges and scores alone.
    Json,
}

impl CircuitFormat {
    /// # Errors
    /// [`Error::Invalid`] for any other ending than `.toml` or `.json`.
    pub fn of(path: &Path) -> Result<Self> {
        let ending = path.extension().map(|ending| ending.to_ascii_lowercase());
        match ending.as_ref().and_then(|ending| ending.to_str()) {
            Some("toml") => Ok(CircuitFormat::Toml),
            Some("json") => Ok(CircuitFormat::Json),
            _ => Err(Error::invalid(format!(
                "`{}` does not say the format of a circuit: end the name in `.toml`, or in `.json` for EAP-IG and MIB",
                path.display()
            ))),
        }
    }
}

impl Circuit {
    /// These edges, and nothing said of them.
    pub fn new(edges: EdgeSet) -> Self {
        Circuit {
            edges,
            scores: BTreeMap::new(),
            nodes: BTreeMap::new(),
            about: About::default(),
            claimed: BTreeMap::new(),
            measured: BTreeMap::new(),
        }
    }

    pub fn graph(&self) -> &Graph {
        self.edges.graph()
    }

    /// Notes the scores of the circuit's edges, as far as they have one.
    /// # Errors
    /// [`Error::Invalid`] for scores of another graph.
    pub fn scored_by(mut self, scored: &ScoredGraph) -> Result<Self> {
        self.graph().check_same(scored.graph())?;
        for edge in self.edges.edges() {
            if let Some(score) = scored.score(&edge)? {
                self.scores.insert(edge, score);
            }
        }
        Ok(self)
    }

    /// The edges that a scored graph says are in the circuit.
    pub fn from_scored(scored: &ScoredGraph) -> Self {
        let mut circuit = Circuit::new(EdgeSet::empty(*scored.graph()));
        for (edge, score, is_in) in scored.edges().filter(|(.., is_in)| *is_in) {
            debug_assert!(is_in);
            let (row, column) = (circuit.graph().place(&edge)).expect("an edge of the graph");
            circuit.edges.insert(row, column);
            if let Some(score) = score {
                circuit.scores.insert(edge, score);
            }
        }
        circuit
    }

    /// The circuit as a scored graph: its edges with their scores, and the nodes that they touch.
    /// # Errors
    /// Those of [`Graph::place`], which the edges of a circuit do not meet.
    pub fn to_scored(&self) -> Result<ScoredGraph> {
        let mut scored = ScoredGraph::new(*self.graph());
        for edge in self.edges.edges() {
            scored.set_contains(&edge, true)?;
            if let Some(&score) = self.scores.get(&edge) {
                scored.set_score(&edge, score)?;
            }
        }
        for node in self.edges.nodes() {
            scored.set_contains_node(node, true)?;
        }
        for (&node, note) in &self.nodes {
            if let Some(score) = note.score {
                scored.set_node_score(node, score)?;
            }
        }
        Ok(scored)
    }

    /// Reads a circuit, by the ending of the name. A file says itself of which graph it is.
    /// # Errors
    /// Those of [`CircuitFormat::of`], [`Circuit::read_toml`] and [`ScoredGraph::read_alone`].
    pub fn read(path: &Path) -> Result<Self> {
        match CircuitFormat::of(path)? {
            CircuitFormat::Toml => Circuit::read_toml(path),
            CircuitFormat::Json => Ok(Circuit::from_scored(&ScoredGraph::read_alone(path)?)),
        }
    }

    /// Writes a circuit, whole or not at all, by the ending of the name.
    /// # Errors
    /// Those of [`CircuitFormat::of`]; [`Error::Invalid`] for an infinite score; [`Error::Write`]; for `.json`, notes of single
    /// nodes, which it cannot hold.
    pub fn write(&self, path: &Path) -> Result<()> {
        match CircuitFormat::of(path)? {
            CircuitFormat::Toml => self.write_toml(path),
            CircuitFormat::Json => {
                if let Some((node, _)) = self.nodes.iter().find(|(_, note)| note.says_more()) {
                    return Err(Error::invalid(format!(
                        "`{node}` has a class, positions or dimensions, which a JSON file cannot hold; end the name in `.toml`"
                    )));
                }
                self.to_scored()?.write(path)
            }
        }
    }

    /// Refuses a circuit of another model.
    /// # Errors
    /// [`Error::Invalid`] naming the first size that differs.
    pub fn check_fits(&self, graph: &Graph) -> Result<()> {
        graph.check_same(self.graph()).map_err(|_| {
            let sizes = |graph: &Graph| {
                let Graph { n_layers, n_heads, d_model, .. } = graph;
                let blocks = match (graph.has_mlp, graph.parallel) {
                    (false, _) => ", without MLPs",
                    (true, true) => ", parallel blocks",
                    (true, false) => "",
                };
                format!("{n_layers} layers of {n_heads} heads, d_model {d_model}{blocks}")
            };
            Error::invalid(format!(
                "the circuit is of a model with {}, and this one has {}; give the model that it was made with{}",
                sizes(self.graph()),
                sizes(graph),
                (self.about.model.as_ref()).map_or(String::new(), |m| format!(" (`{}`)", crate::text::shortened(m)))
            ))
        })
    }
}
