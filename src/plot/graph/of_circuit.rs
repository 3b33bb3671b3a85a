//! A circuit as a graph: heads and MLPs by layer between the input and the logits.

use std::collections::BTreeMap;
use std::fmt::Write;

use super::{Graph, GraphEdge, GraphNode, Place};
use crate::circuit::Circuit;
use crate::hooks::Node;
use crate::text::visible;

const INFALLIBLE: &str = "a String takes all";

/// The graph of a circuit, its edges strongest first.
pub(in crate::plot) fn of_circuit(circuit: &Circuit) -> Graph {
    let parallel = circuit.graph().parallel;
    let nodes = circuit.edges.nodes();
    let places: BTreeMap<Node, usize> = nodes.iter().copied().zip(0..).collect();
    let edge = |edge: crate::hooks::Edge| GraphEdge {
        src: places[&edge.src],
        dst: places[&edge.dst],
        via: edge
            .letter
            .map_or(String::new(), |letter| letter.to_string()),
        name: edge.to_string(),
        listed: edge.src.to_string(),
        detail: String::new(),
        score: circuit.scores.get(&edge).copied(),
        row: None,
    };
    let mut graph = Graph {
        edges: circuit.edges.edges().map(edge).collect(),
        nodes: nodes
            .iter()
            .map(|&node| said(circuit, node, node_of(node, parallel)))
            .collect(),
        has_sides: true,
        unit: circuit
            .about
            .metric
            .as_deref()
            .map_or("score".into(), visible),
        ..Graph::default()
    };
    graph.sort();
    graph
}

/// A node where it stands in a model.
pub(super) fn node_of(node: Node, parallel: bool) -> GraphNode {
    let (level, place) = match node {
        Node::Input => (0, Place::Middle),
        Node::Head { layer, head } => (1 + 2 * layer, Place::Column(head)),
        Node::Mlp(layer) if parallel => (1 + 2 * layer, Place::Beside),
        Node::Mlp(layer) => (2 + 2 * layer, Place::Beside),
        Node::Logits => (usize::MAX, Place::Middle),
    };
    let name = node.to_string();
    let listed = match node.layer() {
        Some(layer) => [format!("layer {layer}"), name.clone()],
        None => [name.clone(), String::new()],
    };
    GraphNode {
        label: name.clone(),
        note: name.clone(),
        name,
        level,
        place,
        listed,
    }
}

/// The same with what the circuit says of it.
fn said(circuit: &Circuit, node: Node, mut drawn: GraphNode) -> GraphNode {
    if let Some(note) = circuit.nodes.get(&node) {
        if let Some(class) = &note.class {
            let class = visible(class);
            write!(drawn.listed[1], " ({class})").expect(INFALLIBLE);
            write!(drawn.note, ", {class}").expect(INFALLIBLE);
        }
        if !note.positions.is_empty() {
            let at = visible(&note.positions.join(","));
            write!(drawn.listed[1], " @{at}").expect(INFALLIBLE);
            write!(drawn.note, ", at {}", at.replace(',', ", ")).expect(INFALLIBLE);
        }
    }
    drawn
}
