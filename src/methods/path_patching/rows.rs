//! Who sends and who receives in a model, and the rows that they make up.

use std::collections::BTreeSet;
use std::sync::Arc;

use super::choice::{Receiver, Senders, names};
use super::config::Over;
use super::config::PathConfig;
use crate::circuit::Graph;
use crate::error::{Error, Result};
use crate::hooks::{Edge, Kind, Node};
use crate::scores::Cell;
use crate::spec::ModelSpec;

impl PathConfig {
    /// Who sends and who receives in this model.
    /// # Errors
    /// What the model does not have; [`Error::NoSuchEdge`] for one that is named and has nobody to send to, or nobody to receive
    /// from.
    pub(super) fn ends(&self, spec: &ModelSpec) -> Result<Ends> {
        let graph = Graph::new(spec);
        let mut senders = self.senders.nodes(spec);
        let mut receivers = self.receivers.places(spec);
        for &sender in &senders {
            graph.row(sender)?;
        }
        for receiver in &receivers {
            graph.column(receiver.node, receiver.letter)?;
        }
        named_once(&senders)?;
        named_once(&receivers)?;
        if senders.is_empty() {
            return Err(Error::invalid(
                "nothing sends; name a sender such as `a0.h1`, or `heads`",
            ));
        }
        if receivers.is_empty() {
            return Err(Error::invalid(
                "nothing receives; name a receiver such as `a3.h0<q>` or `logits`",
            ));
        }
        let is_path = |sender: Node, receiver: Receiver| path_exists(&graph, sender, receiver);
        let sends = |sender: &Node| receivers.iter().any(|&receiver| is_path(*sender, receiver));
        if let Senders::These(named) = &self.senders
            && let Some(&idle) = named.iter().find(|sender| !sends(sender))
        {
            return Err(no_path(&graph, idle, &receivers));
        }
        let receives =
            |receiver: &Receiver| senders.iter().any(|&sender| is_path(sender, *receiver));
        let named = self.receivers.named();
        if let Some(idle) = receivers
            .iter()
            .find(|receiver| named.contains(receiver) && !receives(receiver))
        {
            return Err(Error::NoSuchEdge {
                edge: format!("{}->{idle}", self.senders),
                reason: format!("no sender is computed before `{idle}` reads"),
            });
        }
        // What was not named but meant as one of all is left out where it cannot be part of a path.
        let (sending, receiving): (Vec<bool>, Vec<bool>) = (
            senders.iter().map(sends).collect(),
            receivers.iter().map(receives).collect(),
        );
        keep(&mut senders, &sending);
        keep(&mut receivers, &receiving);
        if senders.is_empty() {
            return Err(Error::NoSuchEdge {
                edge: format!("{}->{}", self.senders, self.receivers),
                reason: "no sender is computed before a receiver reads".into(),
            });
        }
        Ok(Ends { senders, receivers })
    }

    /// The rows: who sends, who receives, and the row's place in the table.
    pub(super) fn rows(&self, spec: &ModelSpec) -> Result<Vec<PathRow>> {
        let graph = Graph::new(spec);
        let Ends { senders, receivers } = self.ends(spec)?;
        let all = Arc::<[Node]>::from(senders.as_slice());
        Ok(match self.over {
            Over::Senders => (senders.into_iter())
                .map(|sender| PathRow {
                    cell: sender_cell(sender),
                    senders: [sender].into(),
                    receivers: receivers.clone(),
                })
                .collect(),
            Over::Receivers => (receivers.into_iter())
                .map(|receiver| PathRow {
                    cell: receiver_cell(receiver),
                    senders: Arc::clone(&all),
                    receivers: vec![receiver],
                })
                .collect(),
            Over::Together => vec![PathRow {
                cell: path_cell(names(&senders), names(&receivers)),
                senders: all,
                receivers,
            }],
            Over::Both => {
                let of_sender = |sender: Node| {
                    let read = (receivers.iter())
                        .filter(|&&receiver| path_exists(&graph, sender, receiver));
                    let row = move |&receiver: &Receiver| PathRow {
                        cell: path_cell(sender.to_string(), receiver.to_string()),
                        senders: [sender].into(),
                        receivers: vec![receiver],
                    };
                    read.map(row).collect::<Vec<_>>()
                };
                senders.iter().copied().flat_map(of_sender).collect()
            }
        })
    }
}

/// Nodes that send and places that receive, each with at least one on the other side.
pub(super) struct Ends {
    senders: Vec<Node>,
    receivers: Vec<Receiver>,
}

/// One row of the table.
pub(super) struct PathRow {
    pub cell: Cell,
    pub senders: Arc<[Node]>,
    pub receivers: Vec<Receiver>,
}

fn path_exists(graph: &Graph, sender: Node, receiver: Receiver) -> bool {
    let edge = Edge {
        src: sender,
        dst: receiver.node,
        letter: receiver.letter,
    };
    graph.place(&edge).is_ok()
}

/// Why a sender reaches none of these receivers.
fn no_path(graph: &Graph, sender: Node, receivers: &[Receiver]) -> Error {
    if let [receiver] = receivers {
        let edge = Edge {
            src: sender,
            dst: receiver.node,
            letter: receiver.letter,
        };
        if let Err(error) = graph.place(&edge) {
            return error;
        }
    }
    Error::NoSuchEdge {
        edge: format!("{sender}->{}", names(receivers)),
        reason: format!("`{sender}` is computed after all of them read"),
    }
}

fn named_once<T: Ord + Copy + std::fmt::Display>(list: &[T]) -> Result<()> {
    let mut seen = BTreeSet::new();
    match list.iter().find(|&&one| !seen.insert(one)) {
        None => Ok(()),
        Some(twice) => Err(Error::invalid(format!("`{twice}` is named twice"))),
    }
}

fn keep<T>(list: &mut Vec<T>, kept: &[bool]) {
    let mut kept = kept.iter();
    list.retain(|_| kept.next().is_some_and(|&kept| kept));
}

/// A sender's row: a head in a grid of layers and heads.
fn sender_cell(sender: Node) -> Cell {
    let (kind, head) = match sender {
        Node::Head { head, .. } => (Kind::Result, Some(head as u32)),
        Node::Mlp(_) => (Kind::MlpOut, None),
        Node::Input | Node::Logits => (Kind::Embed, None),
    };
    node_cell(kind, sender, head)
}

/// A receiver's row.
fn receiver_cell(receiver: Receiver) -> Cell {
    let (kind, head) = match (receiver.node, receiver.letter) {
        (Node::Head { head, .. }, Some(letter)) => (letter.input(), Some(head as u32)),
        (Node::Mlp(_), _) => (Kind::MlpIn, None),
        _ => (Kind::ResidPost, None),
    };
    node_cell(kind, receiver.node, head)
}

fn node_cell(kind: Kind, node: Node, head: Option<u32>) -> Cell {
    Cell {
        component: kind.name().into(),
        layer: node.layer().map(|layer| layer as u32),
        head,
        ..Cell::default()
    }
}

/// A row with both ends.
pub(super) fn path_cell(src: String, dst: String) -> Cell {
    Cell {
        component: "path".into(),
        src: Some(src),
        dst: Some(dst),
        ..Cell::default()
    }
}
