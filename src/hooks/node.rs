//! The vocabulary of circuits: nodes that write to the residual stream, and edges from what one writes to what another reads.
//!
//! A node is a whole component: `input` (the token embedding), `a5.h1` (head 1 of layer 5), `m3` (the MLP of layer 3), `logits`
//! (the stream that the final norm reads). A head reads in three places, so an edge into a head says which: `a5.h1->a9.h6<q>`.
//! These are the names of the interchange files that EAP-IG and the MIB benchmark share. Which edges a model has is for
//! [`Graph`](crate::circuit::Graph) to say; here stands only what can be said at all.

use std::cmp::Ordering;
use std::fmt;
use std::str::FromStr;

use super::Kind;
use crate::error::{Error, Result};
use crate::spec::ModelSpec;
use crate::text::shortened;

/// A component, seen as one node of the graph.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Node {
    /// The token embedding.
    Input,
    Head {
        layer: usize,
        head: usize,
    },
    /// The MLP of a layer.
    Mlp(usize),
    /// The final stream, before the last norm.
    Logits,
}

/// Which input of a head an edge ends in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Letter {
    Q,
    K,
    V,
}

/// What `src` writes, as `dst` reads it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Edge {
    pub src: Node,
    pub dst: Node,
    /// The input of `dst` where it is a head, else `None`.
    pub letter: Option<Letter>,
}

impl Node {
    /// Every head of a model, in the order of the forward pass.
    pub fn heads(spec: &ModelSpec) -> impl Iterator<Item = Node> + use<> {
        spec.heads().map(|(layer, head)| Node::Head { layer, head })
    }

    pub fn layer(self) -> Option<usize> {
        match self {
            Node::Head { layer, .. } | Node::Mlp(layer) => Some(layer),
            Node::Input | Node::Logits => None,
        }
    }

    /// The order of the forward pass; heads of one layer by their number.
    fn key(self) -> (usize, usize, usize) {
        match self {
            Node::Input => (0, 0, 0),
            Node::Head { layer, head } => (1 + layer, 0, head),
            Node::Mlp(layer) => (1 + layer, 1, 0),
            Node::Logits => (usize::MAX, 0, 0),
        }
    }
}

impl Letter {
    pub const ALL: [Letter; 3] = [Letter::Q, Letter::K, Letter::V];

    /// The hook of the stream that it is made from.
    pub fn input(self) -> Kind {
        match self {
            Letter::Q => Kind::QInput,
            Letter::K => Kind::KInput,
            Letter::V => Kind::VInput,
        }
    }
}

impl Edge {
    /// An edge into one of the three inputs of a head.
    pub fn to_head(src: Node, layer: usize, head: usize, letter: Letter) -> Self {
        Edge {
            src,
            dst: Node::Head { layer, head },
            letter: Some(letter),
        }
    }

    pub fn to_mlp(src: Node, layer: usize) -> Self {
        Edge {
            src,
            dst: Node::Mlp(layer),
            letter: None,
        }
    }

    pub fn to_logits(src: Node) -> Self {
        Edge {
            src,
            dst: Node::Logits,
            letter: None,
        }
    }

    /// The place that it ends in, as it is printed after the arrow: `a9.h6<q>`.
    pub fn reader(&self) -> String {
        match self.letter {
            Some(letter) => format!("{}<{letter}>", self.dst),
            None => self.dst.to_string(),
        }
    }

    /// By source, then by what it ends in: in a layer the queries of all heads, their keys, their values, then the MLP.
    fn key(&self) -> (Node, usize, bool, Option<Letter>, Node) {
        let layer = self.dst.layer().unwrap_or(usize::MAX);
        let is_mlp = matches!(self.dst, Node::Mlp(_));
        (self.src, layer, is_mlp, self.letter, self.dst)
    }
}

impl PartialOrd for Node {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Node {
    fn cmp(&self, other: &Self) -> Ordering {
        self.key().cmp(&other.key())
    }
}

impl PartialOrd for Edge {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Edge {
    fn cmp(&self, other: &Self) -> Ordering {
        self.key().cmp(&other.key())
    }
}

impl fmt::Display for Node {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Node::Input => f.write_str("input"),
            Node::Head { layer, head } => write!(f, "a{layer}.h{head}"),
            Node::Mlp(layer) => write!(f, "m{layer}"),
            Node::Logits => f.write_str("logits"),
        }
    }
}

impl fmt::Display for Letter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Letter::Q => "q",
            Letter::K => "k",
            Letter::V => "v",
        })
    }
}

impl fmt::Display for Edge {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}->{}", self.src, self.reader())
    }
}

impl FromStr for Node {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let text = text.trim();
        let node = match text {
            "input" => Some(Node::Input),
            "logits" => Some(Node::Logits),
            _ => component(text),
        };
        node.ok_or_else(|| {
            unreadable(
                "a node",
                text,
                "write `input`, `a5.h1` (head 1 of layer 5), `m3` (the MLP of layer 3) or `logits`",
            )
        })
    }
}

fn component(text: &str) -> Option<Node> {
    if let Some(layer) = text.strip_prefix('m') {
        return Some(Node::Mlp(index(layer)?));
    }
    let (layer, head) = text.strip_prefix('a')?.split_once(".h")?;
    Some(Node::Head {
        layer: index(layer)?,
        head: index(head)?,
    })
}

/// A number as it is printed: no sign and no leading zero, so that a node has one name.
fn index(text: &str) -> Option<usize> {
    let plain = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    let padded = text.len() > 1 && text.starts_with('0');
    text.parse().ok().filter(|_| plain && !padded)
}

impl FromStr for Edge {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let text = text.trim();
        let bad = |reason: &str| unreadable("an edge", text, reason);
        let (src, reader) = text.split_once("->").ok_or_else(|| {
            bad("write `SOURCE->READER`, as in `a5.h1->a9.h6<q>` or `m0->logits`")
        })?;
        let (dst, letter) = match reader
            .trim()
            .strip_suffix('>')
            .and_then(|rest| rest.split_once('<'))
        {
            Some((dst, "q")) => (dst, Some(Letter::Q)),
            Some((dst, "k")) => (dst, Some(Letter::K)),
            Some((dst, "v")) => (dst, Some(Letter::V)),
            Some(_) => return Err(bad("a head reads at `<q>`, `<k>` or `<v>`")),
            None => (reader, None),
        };
        let node = |part: &str| {
            part.parse::<Node>().map_err(|error| match error {
                Error::Parse {
                    text: part, reason, ..
                } => bad(&format!("`{part}` is no node; {reason}")),
                other => other,
            })
        };
        let (src, dst) = (node(src)?, node(dst)?);
        match (src, dst, letter) {
            (Node::Logits, ..) => Err(bad("nothing reads the logits; they only end edges")),
            (_, Node::Input, _) => Err(bad("the input reads nothing; it only begins edges")),
            (_, Node::Head { .. }, None) => Err(bad(&format!(
                "a head reads in three places; say which: `{dst}<q>`, `{dst}<k>` or `{dst}<v>`"
            ))),
            (_, Node::Mlp(_) | Node::Logits, Some(letter)) => Err(bad(&format!(
                "only heads have a `<{letter}>`; write `{src}->{dst}`"
            ))),
            _ => Ok(Edge { src, dst, letter }),
        }
    }
}

/// Names may come from files: what is repeated of them is short and printable.
fn unreadable(what: &'static str, text: &str, reason: &str) -> Error {
    Error::Parse {
        what,
        text: shortened(text),
        reason: reason.into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nodes_and_edges_print_and_parse_back() {
        for text in ["input", "a5.h1", "a0.h0", "m3", "m47", "logits"] {
            assert_eq!(text.parse::<Node>().expect(text).to_string(), text);
        }
        for text in [
            "a5.h1->a9.h6<q>",
            "input->a0.h0<k>",
            "m0->a1.h11<v>",
            "m0->m3",
            "input->logits",
            "a11.h2->logits",
        ] {
            assert_eq!(text.parse::<Edge>().expect(text).to_string(), text);
        }
        let edge: Edge = " a5.h1 -> a9.h6<q> ".parse().expect("spaces do no harm");
        let src = Node::Head { layer: 5, head: 1 };
        assert_eq!(edge, Edge::to_head(src, 9, 6, Letter::Q));
        assert_eq!(edge.reader(), "a9.h6<q>");
    }

    #[test]
    fn what_is_wrong_with_a_name_is_said() {
        for (text, says) in [
            ("a5.h1", "write `SOURCE->READER`"),
            ("a5.h1->a9.h6", "`a9.h6<q>`, `a9.h6<k>` or `a9.h6<v>`"),
            ("a5.h1->a9.h6<z>", "`<q>`, `<k>` or `<v>`"),
            ("m0->m3<q>", "only heads have a `<q>`; write `m0->m3`"),
            ("logits->m3", "nothing reads the logits"),
            ("m3->input", "the input reads nothing"),
            ("a5.x1->m3", "`a5.x1` is no node"),
            ("a+5.h1->m9", "`a+5.h1` is no node"),
            ("a05.h1->m9", "`a05.h1` is no node"),
            ("m99999999999999999999999->logits", "is no node"),
            ("a5.h1->", "`` is no node"),
            ("", "write `SOURCE->READER`"),
        ] {
            let message = text.parse::<Edge>().expect_err(text).to_string();
            assert!(message.contains(says), "{text}: {message}");
        }
        for text in [
            "", "a", "m", "a1", "a1.h", "h1", "m-1", "m1.5", "M1", "a1.h2.h3",
        ] {
            assert!(text.parse::<Node>().is_err(), "{text}");
        }
        let long = format!("x{}\ny", "é".repeat(1000));
        let message = long.parse::<Node>().expect_err("no node").to_string();
        assert!(message.len() < 300 && !message.contains('\n'), "{message}");
    }

    #[test]
    fn the_order_is_that_of_the_forward_pass() {
        let mut nodes: Vec<Node> = ["logits", "m1", "a1.h0", "m0", "a0.h10", "a0.h2", "input"]
            .map(|text| text.parse().expect(text))
            .to_vec();
        nodes.sort();
        let sorted: Vec<String> = nodes.iter().map(Node::to_string).collect();
        assert_eq!(
            sorted,
            ["input", "a0.h2", "a0.h10", "m0", "a1.h0", "m1", "logits"]
        );
        let mut edges: Vec<Edge> = [
            "m0->logits",
            "m0->m1",
            "m0->a1.h0<v>",
            "m0->a1.h1<q>",
            "input->m1",
        ]
        .map(|text| text.parse().expect(text))
        .to_vec();
        edges.sort();
        let sorted: Vec<String> = edges.iter().map(Edge::to_string).collect();
        assert_eq!(
            sorted,
            [
                "input->m1",
                "m0->a1.h1<q>",
                "m0->a1.h0<v>",
                "m0->m1",
                "m0->logits"
            ]
        );
    }
}
