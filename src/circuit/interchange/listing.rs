//! What a graph of another format says: names with attributes, before and after it is a circuit.

use std::collections::BTreeMap;

use super::names;
use crate::circuit::{About, Circuit, EdgeSet, Graph, NodeNote};
use crate::error::{Error, Result};
use crate::hooks::{Edge, Node};
use crate::text::{clipped, shortened};

pub(super) type Attributes = BTreeMap<String, String>;

/// What is counted among what a circuit is about.
const COUNTS: [&str; 2] = ["requested", "seed"];

/// Names and attributes, not yet held against any model.
#[derive(Debug, Default)]
pub(super) struct Listing {
    /// Of the graph: sizes, what it is about (`about.x`), and numbers (`claimed.x`, `measured.x`).
    pub graph: Attributes,
    pub nodes: Vec<(String, Attributes)>,
    /// From, to, attributes.
    pub edges: Vec<(String, String, Attributes)>,
}

impl Listing {
    /// All of a circuit.
    /// # Errors
    /// [`Error::Invalid`] for a number that is not finite.
    pub fn of(circuit: &Circuit) -> Result<Self> {
        let graph = circuit.graph();
        let mut attributes = Attributes::from([
            ("n_layers".into(), graph.n_layers.to_string()),
            ("n_heads".into(), graph.n_heads.to_string()),
            ("d_model".into(), graph.d_model.to_string()),
            ("mlp".into(), graph.has_mlp.to_string()),
            ("parallel".into(), graph.parallel.to_string()),
        ]);
        if let Ok(serde_json::Value::Object(about)) = serde_json::to_value(&circuit.about) {
            let text = |value: serde_json::Value| match value {
                serde_json::Value::String(text) => text,
                other => other.to_string(),
            };
            let named = about.into_iter();
            attributes.extend(named.map(|(name, value)| (format!("about.{name}"), text(value))));
        }
        for (kind, numbers) in [
            ("claimed", &circuit.claimed),
            ("measured", &circuit.measured),
        ] {
            for (name, value) in numbers {
                attributes.insert(format!("{kind}.{name}"), number(*value)?);
            }
        }
        let mut nodes = Vec::new();
        let touched = circuit.edges.nodes().into_iter();
        let noted = circuit.nodes.keys().copied();
        let all: std::collections::BTreeSet<Node> = touched.chain(noted).collect();
        for node in all {
            let note = circuit.nodes.get(&node).cloned().unwrap_or_default();
            let mut attributes = Attributes::new();
            if let Some(class) = note.class {
                attributes.insert("class".into(), class);
            }
            if let Some(position) =
                (note.positions.iter()).find(|text| text.contains(char::is_whitespace))
            {
                return Err(Error::invalid(format!(
                    "the position `{}` of `{node}` is more than one word, which only `.toml` can hold",
                    shortened(position)
                )));
            }
            if !note.positions.is_empty() {
                attributes.insert("positions".into(), note.positions.join(" "));
            }
            if !note.dims.is_empty() {
                let dims: Vec<String> = note.dims.iter().map(usize::to_string).collect();
                attributes.insert("dims".into(), dims.join(" "));
            }
            if let Some(score) = note.score {
                attributes.insert("score".into(), number(score)?);
            }
            nodes.push((node.to_string(), attributes));
        }
        let mut edges = Vec::new();
        for edge in circuit.edges.edges() {
            let mut attributes = Attributes::new();
            if let Some(letter) = edge.letter {
                attributes.insert("letter".into(), letter.to_string());
            }
            if let Some(&score) = circuit.scores.get(&edge) {
                attributes.insert("score".into(), number(score)?);
            }
            edges.push((edge.src.to_string(), edge.dst.to_string(), attributes));
        }
        Ok(Listing {
            graph: attributes,
            nodes,
            edges,
        })
    }

    /// The circuit that it is, of the model of `like` where it does not say itself of which.
    /// # Errors
    /// One line that names the entry.
    pub fn into_circuit(self, like: Option<&Graph>) -> Result<Circuit, String> {
        let graph = match (sizes(&self.graph)?, like) {
            (Some(graph), _) => graph,
            (None, Some(graph)) => *graph,
            (None, None) => {
                return Err(
                    "it does not say of which model it is; name a circuit of the same model beside it (`interchange::like = FILE`)"
                        .into(),
                );
            }
        };
        let said = |error: Error| error.to_string();
        let mut circuit = Circuit::new(EdgeSet::empty(graph));
        for (name, attributes) in &self.nodes {
            let node = names::node(name).map_or_else(|| name.parse().map_err(said), Ok)?;
            graph.check_node(node).map_err(said)?;
            let note = NodeNote {
                class: attributes.get("class").cloned(),
                positions: (attributes.get("positions"))
                    .map(|text| text.split_whitespace().map(String::from).collect())
                    .unwrap_or_default(),
                dims: dims(attributes, &node)?,
                score: score(attributes, &node)?,
            };
            if circuit.nodes.insert(node, note).is_some() {
                return Err(format!("it has node `{node}` twice"));
            }
        }
        for (src, dst, attributes) in &self.edges {
            let edge = edge(src, dst, attributes.get("letter"))?;
            let (row, column) = graph.place(&edge).map_err(said)?;
            if circuit.edges.has(row, column) {
                return Err(format!("it has edge `{edge}` twice"));
            }
            circuit.edges.insert(row, column);
            if let Some(score) = score(attributes, &edge)? {
                circuit.scores.insert(edge, score);
            }
        }
        if self.edges.is_empty() {
            let nodes: Vec<Node> = circuit.nodes.keys().copied().collect();
            if nodes.is_empty() {
                return Err("it has no edge and no node".into());
            }
            circuit.edges = EdgeSet::between(graph, &nodes).map_err(said)?;
        }
        // Nodes of which nothing is said are there for their edges.
        circuit.nodes.retain(|_, note| *note != NodeNote::default());
        circuit.about = about(&self.graph)?;
        for (kind, numbers) in [
            ("claimed.", &mut circuit.claimed),
            ("measured.", &mut circuit.measured),
        ] {
            for (name, value) in &self.graph {
                if let Some(name) = name.strip_prefix(kind) {
                    numbers.insert(name.into(), finite(value, &name)?);
                }
            }
        }
        Ok(circuit)
    }
}

/// A number that reads back as the same one.
fn number(value: f64) -> Result<String> {
    if value.is_finite() {
        Ok(format!("{value:?}"))
    } else {
        Err(Error::invalid(
            "a number of the circuit is not finite; leave it out",
        ))
    }
}

fn finite(text: &str, of: &dyn std::fmt::Display) -> Result<f64, String> {
    match text.trim().parse::<f64>() {
        Ok(value) if value.is_finite() => Ok(value),
        _ => Err(format!(
            "`{}` of `{}` is no finite number",
            clipped(text, 80),
            clipped(&of.to_string(), 80)
        )),
    }
}

/// The dimensions that a node writes in the circuit.
fn dims(attributes: &Attributes, node: &Node) -> Result<Vec<usize>, String> {
    let of = attributes.get("dims").map_or("", String::as_str);
    let dim = |text: &str| {
        text.parse().map_err(|_| {
            format!(
                "the dimensions of `{node}` are no numbers: `{}`",
                shortened(text)
            )
        })
    };
    of.split_whitespace().map(dim).collect()
}

fn score(attributes: &Attributes, of: &dyn std::fmt::Display) -> Result<Option<f64>, String> {
    let score = attributes
        .get("score")
        .filter(|text| !text.trim().is_empty());
    score.map(|text| finite(text, of)).transpose()
}

/// An edge by our names or by AutoCircuit's, the letter in the name or beside it.
fn edge(src: &str, dst: &str, letter: Option<&String>) -> Result<Edge, String> {
    if let Some(edge) = names::edge(src, dst) {
        return Ok(edge);
    }
    let letter = letter.map_or(String::new(), |letter| format!("<{letter}>"));
    let name = format!("{src}->{dst}{letter}");
    name.parse().map_err(|error: Error| error.to_string())
}

/// The graph whose sizes stand there, if any do.
fn sizes(attributes: &Attributes) -> Result<Option<Graph>, String> {
    const NAMES: [&str; 3] = ["n_layers", "n_heads", "d_model"];
    if NAMES.iter().all(|name| !attributes.contains_key(*name)) {
        return Ok(None);
    }
    fn read<T: std::str::FromStr>(attributes: &Attributes, name: &str) -> Result<T, String> {
        let text = attributes
            .get(name)
            .ok_or_else(|| format!("it has some sizes of its model, and no `{name}`"))?;
        text.trim()
            .parse()
            .map_err(|_| format!("`{}` is no `{name}`", clipped(text, 80)))
    }
    let or = |name: &str, usual: bool| {
        if attributes.contains_key(name) {
            read(attributes, name)
        } else {
            Ok(usual)
        }
    };
    let graph = Graph {
        n_layers: read(attributes, NAMES[0])?,
        n_heads: read(attributes, NAMES[1])?,
        d_model: read(attributes, NAMES[2])?,
        has_mlp: or("mlp", true)?,
        parallel: or("parallel", false)?,
    };
    graph.check_sizes().map_err(|error| error.to_string())?;
    Ok(Some(graph))
}

fn about(attributes: &Attributes) -> Result<About, String> {
    let mut about = serde_json::Map::new();
    for (name, text) in attributes {
        if let Some(name) = name.strip_prefix("about.") {
            // Texts and whole numbers look alike here.
            let whole = text.parse::<u64>().ok().filter(|_| COUNTS.contains(&name));
            about.insert(
                name.into(),
                whole.map_or_else(|| text.clone().into(), Into::into),
            );
        }
    }
    let read = serde_json::from_value(serde_json::Value::Object(about));
    read.map_err(|error| clipped(&error.to_string(), 300))
}
