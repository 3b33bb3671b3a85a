//! Where each weight of a model lies in a checkpoint, as a plain value.
//!
//! A family writes a [`Layout`]: for every [`Slot`] of the canonical weights, the [`Piece`]s of checkpoint tensors that fill it.
//! One loader (`load.rs`) executes all layouts, so a family needs no code of its own for fused, transposed or permuted tensors.

use std::collections::BTreeMap;

use crate::spec::ModelSpec;
pub use crate::spec::{Need, Slot};

/// Where every weight of a family lies.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Layout {
    /// Slots that the model has once, and those of the first block that lie elsewhere than the others'. A tied unembedding is left
    /// out: it is the embedding.
    pub model: Vec<(Slot, Vec<Piece>)>,
    /// Slots of every block; `{l}` in a name stands for the layer. Where it is `{l-1}`, the layer before, the first block is left out.
    pub blocks: Vec<(Slot, Vec<Piece>)>,
    /// A prefix that some checkpoints put before every name (`transformer.`) but those of the unembedding, or nothing.
    pub optional_prefix: String,
    /// What the unembedding is called where it has a tensor of its own, though the config ties it to the embedding.
    pub tied_head: Option<String>,
    /// Where the checkpoint has the second name, it is read in place of the first.
    pub instead: Vec<(String, String)>,
    /// Tensors that may be there and change nothing: a full name, `*` and the end of one, or the beginning of one and `*`.
    pub harmless: Vec<String>,
}

impl Layout {
    /// Every tensor of a whole checkpoint, by name, with its shape.
    pub fn tensors(&self, spec: &ModelSpec) -> BTreeMap<String, Vec<usize>> {
        let mut tensors = BTreeMap::new();
        for (slot, layer, pieces) in self.filled(spec) {
            for piece in pieces
                .iter()
                .filter(|piece| piece.stored != Stored::Nowhere)
            {
                let name = self.whole_name(&piece.resolved(layer, spec.n_layers));
                tensors.insert(name, piece.stored_shape(&slot.shape(spec)));
            }
        }
        tensors
    }

    /// The slots that are filled, with their layer (0 where a model has one of them) and pieces.
    pub(super) fn filled(&self, spec: &ModelSpec) -> impl Iterator<Item = (Slot, usize, &[Piece])> {
        let once = self.model.iter().map(|(slot, pieces)| (*slot, 0, pieces));
        let per_block = (0..spec.n_layers).flat_map(|layer| {
            let blocks = self.blocks.iter();
            blocks.map(move |(slot, pieces)| (*slot, layer, pieces))
        });
        once.chain(per_block)
            // What only later blocks have is `{l-1}` of some piece; the first block's lies among the slots that the model has once.
            .filter(|(_, layer, pieces)| {
                *layer > 0 || pieces.iter().all(|piece| !piece.name.contains("{l-1}"))
            })
            .filter(|(slot, layer, _)| slot.need(spec, *layer) != Need::Absent)
            .map(|(slot, layer, pieces)| (slot, layer, pieces.as_slice()))
    }

    /// A tensor's name in a whole checkpoint: what computes the logits stands beside the model that the prefix names.
    pub(super) fn whole_name(&self, name: &str) -> String {
        const HEADS: [&str; 3] = ["lm_head.", "embed_out.", "cls."];
        if HEADS.iter().any(|head| name.starts_with(head)) {
            return name.to_string();
        }
        format!("{}{name}", self.optional_prefix)
    }

    /// The same layout without some slots, as where a config turns biases off.
    pub fn without(mut self, slots: &[Slot]) -> Self {
        self.model.retain(|(slot, _)| !slots.contains(slot));
        self.blocks.retain(|(slot, _)| !slots.contains(slot));
        self
    }
}

/// One checkpoint tensor's share of a slot. The pieces of a slot fill its last axis from left to right.
#[derive(Debug, Clone, PartialEq)]
pub struct Piece {
    /// Name in the checkpoint; `{l}` stands for the layer, `{l-1}` for the one before, `{last}` for the last.
    pub name: String,
    pub stored: Stored,
    /// How many entries of the slot's last axis this piece fills.
    pub out: usize,
    /// Which entries of the stored output axis these are.
    pub take: Take,
    /// Added to every entry (Gemma stores norm weights less 1).
    pub plus: f32,
    /// Rows of the stored tensor before the first that is taken (OPT's positions begin at row 2).
    pub skip: usize,
}

/// Which way a checkpoint tensor lies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stored {
    /// `[out, in]`, as `torch.nn.Linear` keeps it: transposed at load.
    OutIn,
    /// As the slot has it: `[in, out]` (GPT-2's Conv1D), embeddings `[rows, d_model]`, vectors.
    AsIs,
    /// `[head, in, d_head]`, as TransformerLens keeps what reads the stream; its biases are `[head, d_head]`.
    HeadColumns { d_head: usize },
    /// `[head, d_head, out]`, as TransformerLens keeps what writes to the stream.
    HeadRows { d_head: usize },
    /// Not in the checkpoint: zeros, to which `plus` is added (the weight of a norm that was folded into its readers is one).
    Nowhere,
}

/// Which entries of the stored output axis a piece takes, in which order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Take {
    /// All, in order. A fused `q | k | v` or `gate | up` needs nothing more: this is the canonical order.
    All,
    /// A run from `start` of a tensor with `of` outputs.
    Range { start: usize, of: usize },
    /// Part `part` of `parts` inside each head: GPT-NeoX stores `[head, (q, k, v), d_head]`.
    WithinHeads {
        d_head: usize,
        part: usize,
        parts: usize,
    },
    /// `heads` heads from number `first` on of the `of` that each group has: Falcon 40B stores `[group, (queries, key, value), d_head]`.
    WithinGroups {
        d_head: usize,
        first: usize,
        heads: usize,
        of: usize,
    },
    /// llama.cpp stores each head's rows with the two rotary halves interleaved; this takes them back apart.
    UninterleaveHalves { d_head: usize },
}

impl Take {
    /// Outputs of the stored tensor, if the piece fills `out` entries.
    pub fn stored_len(self, out: usize) -> usize {
        match self {
            Take::All | Take::UninterleaveHalves { .. } => out,
            Take::Range { of, .. } => of,
            Take::WithinHeads { parts, .. } => out * parts,
            Take::WithinGroups { heads, of, .. } => out / heads * of,
        }
    }

    /// Index in the stored tensor of the piece's entry `i`.
    pub fn source(self, i: usize) -> usize {
        match self {
            Take::All => i,
            Take::Range { start, .. } => start + i,
            Take::WithinHeads {
                d_head,
                part,
                parts,
            } => (i / d_head * parts + part) * d_head + i % d_head,
            Take::WithinGroups {
                d_head,
                first,
                heads,
                of,
            } => {
                let (group, within) = (i / (heads * d_head), i % (heads * d_head));
                (group * of + first) * d_head + within
            }
            Take::UninterleaveHalves { d_head } => {
                let (head, within) = (i / d_head, i % d_head);
                let (half, pair) = (within / (d_head / 2), within % (d_head / 2));
                head * d_head + 2 * pair + half
            }
        }
    }
}

impl Piece {
    /// A `torch.nn.Linear` weight, `[out, in]`.
    pub fn linear(name: &str, out: usize) -> Self {
        Piece {
            name: name.to_string(),
            stored: Stored::OutIn,
            out,
            take: Take::All,
            plus: 0.0,
            skip: 0,
        }
    }

    /// A tensor that lies as its slot does: vectors, embeddings, Conv1D weights.
    pub fn as_is(name: &str, out: usize) -> Self {
        Piece {
            name: name.to_string(),
            stored: Stored::AsIs,
            out,
            take: Take::All,
            plus: 0.0,
            skip: 0,
        }
    }

    /// A tensor that lies some other way.
    pub fn stored(name: &str, out: usize, stored: Stored) -> Self {
        Piece {
            stored,
            ..Piece::as_is(name, out)
        }
    }

    /// Its name in one layer.
    pub(super) fn resolved(&self, layer: usize, n_layers: usize) -> String {
        self.name
            .replace("{l}", &layer.to_string())
            .replace("{l-1}", &layer.saturating_sub(1).to_string())
            .replace("{last}", &n_layers.saturating_sub(1).to_string())
    }

    /// The same piece from other entries of the stored tensor.
    pub fn take(self, take: Take) -> Self {
        Piece { take, ..self }
    }

    /// The same piece with a number added to every entry.
    pub fn plus(self, plus: f32) -> Self {
        Piece { plus, ..self }
    }

    /// The same piece without the first rows of the stored tensor, which has as many more.
    pub fn skip(self, rows: usize) -> Self {
        Piece { skip: rows, ..self }
    }

    /// The shape that the checkpoint tensor must have to fill its part of a slot of shape `slot`.
    pub fn stored_shape(&self, slot: &[usize]) -> Vec<usize> {
        let out = self.take.stored_len(self.out);
        match (slot, self.stored) {
            ([rows, _], Stored::OutIn) => vec![out, *rows],
            ([rows, _], Stored::HeadColumns { d_head }) => vec![out / d_head, *rows, d_head],
            (_, Stored::HeadColumns { d_head }) => vec![out / d_head, d_head],
            ([rows, _], Stored::HeadRows { d_head }) => vec![rows / d_head, d_head, out],
            ([rows, _], Stored::AsIs | Stored::Nowhere) => vec![self.skip + *rows, out],
            _ => vec![out],
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn order(take: Take, out: usize) -> Vec<usize> {
        (0..out).map(|i| take.source(i)).collect()
    }

    #[test]
    fn neox_heads_are_taken_apart() {
        // Two heads of two dimensions, stored q0 q0 k0 k0 v0 v0 q1 q1 k1 k1 v1 v1.
        let take = |part| Take::WithinHeads {
            d_head: 2,
            part,
            parts: 3,
        };
        assert_eq!(order(take(0), 4), [0, 1, 6, 7]);
        assert_eq!(order(take(2), 4), [4, 5, 10, 11]);
        assert_eq!(take(1).stored_len(4), 12);
    }

    #[test]
    fn groups_of_heads_are_taken_apart() {
        // Two groups of two queries, a key and a value of one dimension: q0 q1 k0 v0 q2 q3 k1 v1.
        let take = |first, heads| Take::WithinGroups {
            d_head: 1,
            first,
            heads,
            of: 4,
        };
        assert_eq!(order(take(0, 2), 4), [0, 1, 4, 5]);
        assert_eq!(order(take(2, 1), 2), [2, 6]);
        assert_eq!(order(take(3, 1), 2), [3, 7]);
        assert_eq!(take(0, 2).stored_len(4), 8);
        assert_eq!(take(3, 1).stored_len(2), 8);
    }

    #[test]
    fn interleaved_halves_are_taken_apart() {
        // One head of four dimensions: Hugging Face's 0 1 | 2 3 is stored as 0 2 1 3.
        let take = Take::UninterleaveHalves { d_head: 4 };
        assert_eq!(order(take, 8), [0, 2, 1, 3, 4, 6, 5, 7]);
    }

    #[test]
    fn a_run_begins_at_its_start() {
        assert_eq!(order(Take::Range { start: 5, of: 9 }, 3), [5, 6, 7]);
    }
}
