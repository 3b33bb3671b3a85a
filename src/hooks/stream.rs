//! `StreamNode`: the residual stream at one place of the model and one position, a node of information flow.

use std::fmt;
use std::str::FromStr;

use super::{Hook, Kind};
use crate::error::{Error, Result};

/// The stream that enters a layer, that stands between its attention and its MLP, or that leaves it, at one position. Written
/// `resid_pre3@14`. Order is that of computing, then of positions.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct StreamNode {
    level: usize,
    pos: usize,
}

impl StreamNode {
    /// What enters layer `layer`.
    pub fn pre(layer: usize, pos: usize) -> Self {
        StreamNode {
            level: 3 * layer,
            pos,
        }
    }

    /// What stands between its attention and its MLP.
    pub fn mid(layer: usize, pos: usize) -> Self {
        StreamNode {
            level: 3 * layer + 1,
            pos,
        }
    }

    /// What leaves it; of all layers but the last that is what enters the next one.
    pub fn post(layer: usize, pos: usize) -> Self {
        StreamNode {
            level: 3 * layer + 2,
            pos,
        }
    }

    pub fn layer(&self) -> usize {
        self.level / 3
    }

    pub fn pos(&self) -> usize {
        self.pos
    }

    /// The hook that reads it.
    pub fn hook(&self) -> Hook {
        let kind = [Kind::ResidPre, Kind::ResidMid, Kind::ResidPost][self.level % 3];
        Hook::at(kind, self.layer())
    }

    /// A number that grows from what is computed first to what is computed last.
    pub fn level(&self) -> usize {
        self.level
    }
}

impl fmt::Display for StreamNode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{}{}@{}",
            self.hook().kind.short(),
            self.layer(),
            self.pos
        )
    }
}

impl FromStr for StreamNode {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let node = || {
            let (hook, pos) = text.split_once('@')?;
            let hook: Hook = hook.parse().ok()?;
            let (layer, pos) = (hook.layer?, pos.parse().ok()?);
            match hook.kind {
                Kind::ResidPre => Some(StreamNode::pre(layer, pos)),
                Kind::ResidMid => Some(StreamNode::mid(layer, pos)),
                Kind::ResidPost => Some(StreamNode::post(layer, pos)),
                _ => None,
            }
        };
        node().ok_or_else(|| Error::Parse {
            what: "a state of the stream",
            text: text.into(),
            reason: "write `resid_pre3@14`, `resid_mid3@14` or `resid_post3@14`".into(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn states_print_and_parse_back_in_the_order_of_computing() {
        let nodes = [
            StreamNode::pre(0, 9),
            StreamNode::mid(0, 1),
            StreamNode::pre(11, 0),
            StreamNode::post(11, 4),
        ];
        assert!(nodes.is_sorted());
        assert_eq!(nodes[2].to_string(), "resid_pre11@0");
        for node in nodes {
            assert_eq!(node.to_string().parse::<StreamNode>().unwrap(), node);
        }
        for text in ["resid_pre3", "z3@1", "resid_pre@1", "resid_pre3@-1", "Mary"] {
            assert!(text.parse::<StreamNode>().is_err(), "{text}");
        }
    }
}
