//! Senders and receivers as people choose them: `heads`, `a0.h1,m0`, `q`, `a3.h0.q,logits`.

use std::fmt;
use std::str::FromStr;

use crate::error::{Error, Result};
use crate::hooks::{Edge, Letter, Node};
use crate::spec::{Mlp, ModelSpec};

/// Who sends. Of `heads` and `all`, those that no receiver reads are left out.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum Senders {
    /// Every head.
    #[default]
    Heads,
    /// The input, every head and every MLP.
    All,
    /// These, each of which needs a receiver that reads after it.
    These(Vec<Node>),
}

/// Who receives.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Receivers(pub Vec<ReceiverChoice>);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ReceiverChoice {
    /// One input of every head that a sender can reach.
    EveryHead(Letter),
    /// This, which needs a sender before it.
    This(Receiver),
}

/// A place that reads the stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Receiver {
    pub node: Node,
    /// Which input, where it is a head.
    pub letter: Option<Letter>,
}

impl Receiver {
    pub const LOGITS: Receiver = Receiver {
        node: Node::Logits,
        letter: None,
    };
}

impl Senders {
    pub(super) fn nodes(&self, spec: &ModelSpec) -> Vec<Node> {
        match self {
            Senders::Heads => Node::heads(spec).collect(),
            Senders::All => {
                let mut all: Vec<Node> = Node::heads(spec).chain([Node::Input]).collect();
                if spec.mlp != Mlp::None {
                    all.extend((0..spec.n_layers).map(Node::Mlp));
                }
                all.sort();
                all
            }
            Senders::These(nodes) => nodes.clone(),
        }
    }
}

impl Receivers {
    /// The final stream alone.
    pub fn logits() -> Self {
        Receivers::from(vec![Receiver::LOGITS])
    }

    pub(super) fn places(&self, spec: &ModelSpec) -> Vec<Receiver> {
        let of_letter = |letter: Letter| {
            Node::heads(spec).map(move |node| Receiver {
                node,
                letter: Some(letter),
            })
        };
        let mut places = Vec::new();
        for choice in &self.0 {
            match *choice {
                ReceiverChoice::EveryHead(letter) => places.extend(of_letter(letter)),
                ReceiverChoice::This(receiver) => places.push(receiver),
            }
        }
        places
    }

    /// Those that are named one by one.
    pub(super) fn named(&self) -> Vec<Receiver> {
        let named = |choice: &ReceiverChoice| match choice {
            ReceiverChoice::This(receiver) => Some(*receiver),
            ReceiverChoice::EveryHead(_) => None,
        };
        self.0.iter().filter_map(named).collect()
    }
}

impl From<Vec<Node>> for Senders {
    fn from(nodes: Vec<Node>) -> Self {
        Senders::These(nodes)
    }
}

impl From<Vec<Receiver>> for Receivers {
    fn from(receivers: Vec<Receiver>) -> Self {
        Receivers(receivers.into_iter().map(ReceiverChoice::This).collect())
    }
}

impl FromStr for Senders {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        match text.trim() {
            "heads" => Ok(Senders::Heads),
            "all" => Ok(Senders::All),
            text => {
                let nodes: Vec<Node> = parts(text).map(str::parse).collect::<Result<_>>()?;
                if nodes.is_empty() {
                    return Err(Error::Parse {
                        what: "senders",
                        text: text.into(),
                        reason: "name nodes such as `a0.h1,m0`, or `heads` or `all`".into(),
                    });
                }
                Ok(Senders::These(nodes))
            }
        }
    }
}

impl FromStr for Receivers {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let choice = |part: &str| {
            Ok(match part {
                "q" => ReceiverChoice::EveryHead(Letter::Q),
                "k" => ReceiverChoice::EveryHead(Letter::K),
                "v" => ReceiverChoice::EveryHead(Letter::V),
                one => ReceiverChoice::This(one.parse()?),
            })
        };
        let choices: Vec<ReceiverChoice> = parts(text).map(choice).collect::<Result<_>>()?;
        if choices.is_empty() {
            return Err(Error::Parse {
                what: "receivers",
                text: text.into(),
                reason:
                    "name places such as `a3.h0.q,m3,logits`, or `q`, `k` or `v` for every head"
                        .into(),
            });
        }
        Ok(Receivers(choices))
    }
}

fn parts(text: &str) -> impl Iterator<Item = &str> {
    text.split(',')
        .map(str::trim)
        .filter(|part| !part.is_empty())
}

impl FromStr for Receiver {
    type Err = Error;

    /// As it is printed, or `a3.h0.q`, which a shell leaves alone.
    fn from_str(text: &str) -> Result<Self> {
        let text = match text.trim().rsplit_once('.') {
            Some((head, letter @ ("q" | "k" | "v"))) => format!("{head}<{letter}>"),
            _ => text.to_string(),
        };
        // What may stand after the arrow of an edge is what reads.
        let edge: Edge = format!("input->{text}").parse()?;
        Ok(Receiver {
            node: edge.dst,
            letter: edge.letter,
        })
    }
}

impl fmt::Display for Senders {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Senders::Heads => f.write_str("heads"),
            Senders::All => f.write_str("all"),
            Senders::These(nodes) => f.write_str(&names(nodes)),
        }
    }
}

impl fmt::Display for Receivers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&names(&self.0))
    }
}

impl fmt::Display for ReceiverChoice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ReceiverChoice::EveryHead(letter) => write!(f, "{letter}"),
            ReceiverChoice::This(receiver) => write!(f, "{receiver}"),
        }
    }
}

impl fmt::Display for Receiver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.letter {
            Some(letter) => write!(f, "{}<{letter}>", self.node),
            None => write!(f, "{}", self.node),
        }
    }
}

pub(super) fn names<T: ToString>(list: &[T]) -> String {
    let names: Vec<String> = list.iter().map(T::to_string).collect();
    names.join(",")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn receivers_print_and_parse_back() {
        for text in ["a3.h0<q>", "a10.h2<v>", "m4", "logits"] {
            let receiver: Receiver = text.parse().expect(text);
            assert_eq!(receiver.to_string(), text);
        }
        let typed: Receiver = "a3.h0.q".parse().expect("for shells");
        assert_eq!(typed.to_string(), "a3.h0<q>");
        for text in ["a3.h0", "a3.h0.z", "input", "m4<q>", ""] {
            assert!(text.parse::<Receiver>().is_err(), "{text}");
        }
    }

    #[test]
    fn choices_print_and_parse_back() {
        for text in ["heads", "all", "a0.h1,m0,input"] {
            assert_eq!(text.parse::<Senders>().expect(text).to_string(), text);
        }
        for text in ["q", "k,a3.h0<q>,logits"] {
            assert_eq!(text.parse::<Receivers>().expect(text).to_string(), text);
        }
        for text in ["", ",", "a0", "heads,a0.h1"] {
            assert!(text.parse::<Senders>().is_err(), "{text}");
        }
        for text in ["", " , ", "z", "heads"] {
            assert!(text.parse::<Receivers>().is_err(), "{text}");
        }
    }
}
