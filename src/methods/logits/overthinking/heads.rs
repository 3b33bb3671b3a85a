//! The heads that are ablated, and random ones of the same layers.

use rand::SeedableRng;
use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;

use crate::hooks::{Edit, Hook, Kind, Node, Op, Pos, Site};

/// Heads silenced at the last position.
pub(super) fn zeroed(heads: &[Node]) -> Vec<Edit> {
    let silence = |head: &Node| match *head {
        Node::Head { layer, head } => {
            let site = Site::all(Hook::at(Kind::Z, layer)).heads([head]);
            Some(Edit::new(site.at_positions([Pos::FromEnd(1)]), Op::Zero))
        }
        Node::Input | Node::Mlp(_) | Node::Logits => None,
    };
    heads.iter().filter_map(silence).collect()
}

pub(super) fn names(heads: &[Node]) -> String {
    heads
        .iter()
        .map(Node::to_string)
        .collect::<Vec<_>>()
        .join(" ")
}

/// Sets of as many heads, drawn from the layers of `chosen`.
pub(super) fn random_sets(
    chosen: &[Node],
    n_heads: usize,
    seed: u64,
    sets: usize,
) -> Vec<(String, Vec<Node>)> {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let mut draw = |_| {
        let mut set = Vec::new();
        let mut layers: Vec<usize> = chosen.iter().filter_map(|head| head.layer()).collect();
        layers.sort_unstable();
        for layers in layers.chunk_by(|a, b| a == b) {
            let layer = layers[0];
            let heads = (0..n_heads).map(|head| Node::Head { layer, head });
            let mut heads: Vec<Node> = heads.collect();
            // The chosen ones come last: they are taken only where a layer has no others left.
            heads.shuffle(&mut rng);
            heads.sort_by_key(|head| chosen.contains(head));
            set.extend(&heads[..layers.len()]);
        }
        set
    };
    (0..sets)
        .map(|i| (format!("random heads {i}"), draw(i)))
        .collect()
}
