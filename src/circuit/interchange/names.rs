//! AutoCircuit's names of nodes and edges: `Resid Start->A1.4.V`, `A1.4->MLP 2`, `MLP 2->Resid End`.
//!
//! Its `Resid Start` is the stream that enters the first block, position embeddings included; these are the same in both runs,
//! so that what the edge carries differently is what ours, from the token embedding, does.

use crate::hooks::{Edge, Letter, Node};

/// The name of an edge there.
pub(super) fn name(edge: &Edge) -> String {
    format!("{}->{}", end(edge.src, None), end(edge.dst, edge.letter))
}

/// The name of a source, or of a reader with its letter.
fn end(node: Node, letter: Option<Letter>) -> String {
    match (node, letter) {
        (Node::Input, _) => "Resid Start".into(),
        (Node::Logits, _) => "Resid End".into(),
        (Node::Mlp(layer), _) => format!("MLP {layer}"),
        (Node::Head { layer, head }, None) => format!("A{layer}.{head}"),
        (Node::Head { layer, head }, Some(letter)) => {
            format!(
                "A{layer}.{head}.{}",
                letter.to_string().to_ascii_uppercase()
            )
        }
    }
}

/// A node by its name here.
pub(super) fn node(text: &str) -> Option<Node> {
    match text {
        "Resid Start" => return Some(Node::Input),
        "Resid End" => return Some(Node::Logits),
        _ => {}
    }
    if let Some(layer) = text.strip_prefix("MLP ") {
        return Some(Node::Mlp(whole(layer)?));
    }
    let (layer, head) = text.strip_prefix('A')?.split_once('.')?;
    Some(Node::Head {
        layer: whole(layer)?,
        head: whole(head)?,
    })
}

/// An edge whose ends both have names of here.
pub(super) fn edge(src: &str, dst: &str) -> Option<Edge> {
    let src = node(src)?;
    let of_head = dst.rsplit_once('.').and_then(|(head, letter)| {
        let letter = match letter {
            "Q" => Letter::Q,
            "K" => Letter::K,
            "V" => Letter::V,
            _ => return None,
        };
        Some((node(head)?, Some(letter)))
    });
    let (dst, letter) = of_head.or_else(|| Some((node(dst)?, None)))?;
    Some(Edge { src, dst, letter })
}

/// Digits alone: no sign, no spaces.
fn whole(text: &str) -> Option<usize> {
    let digits = text.bytes().all(|byte| byte.is_ascii_digit());
    digits.then(|| text.parse().ok()).flatten()
}
