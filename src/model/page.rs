//! A layout as a page of text, to be read beside the checkpoint's own list of tensors.
//!
//! ```text
//! prefix    gpt_neox.
//! embed     embed_in
//! ln_final  final_layer_norm +bias
//! unembed   embed_out
//! each      layers.{l}.
//! ln1       input_layernorm +bias
//! qkv       attention.query_key_value by_head +bias
//! ignore    *.attention.bias *.attention.masked_bias
//! ```
//!
//! A line names what fills a slot, from left to right: tensors `NAME.weight`, and with `+bias` also `NAME.bias`. How wide each is
//! follows from the spec. Lines of slots that the spec has no place for are passed over, so one page serves a family's variants.
//! After `each`, names are those of every block behind its prefix; a name with `{l}` or the like in it is whole. One with `{h}` stands for
//! as many as there are heads.
//! Of two lines for one slot the later holds, so a family can take another's page and write below it what differs.
//!
//! | word | meaning |
//! |---|---|
//! | `+bias` | the bias lies beside the weight |
//! | `by_head` | one tensor has queries, keys and values of the first head, of the second, ... |
//! | `by_group` | one tensor has, for each key/value head, the queries that read it, its key, its value |
//! | `skip=N` | the first N rows are not taken |
//! | `plus=1` | one is added: the norm's weight is stored less 1 |
//! | `ones` | there is no tensor: the norm has no weight |
//! | `in_heads` | the weights of all heads' norms lie `[head, d_head]` |
//!
//! | line | meaning |
//! |---|---|
//! | `prefix P` | stands before all names, or before none |
//! | `matrices in_out` | matrices lie `[in, out]`, not as `torch.nn.Linear` keeps them |
//! | `second A B` | where the checkpoint has `B`, it is read in place of `A` |
//! | `ignore N ...` | may be there and changes nothing; `*` is any beginning or end |

use super::layout::{Layout, Need, Piece, Slot, Stored, Take};
use super::spec::{Mlp, ModelSpec};

/// The slots by their words, with that of the bias.
const SLOTS: [(&str, Slot, Option<Slot>); 19] = [
    ("embed", Slot::Embed, None),
    ("ln_embed", Slot::LnEmbed, Some(Slot::LnEmbedBias)),
    ("positions", Slot::Positions, None),
    ("segments", Slot::Segments, None),
    ("ln_final", Slot::LnFinal, Some(Slot::LnFinalBias)),
    ("unembed", Slot::Unembed, Some(Slot::UnembedBias)),
    // A bias that does not lie beside the weight.
    ("unembed_bias", Slot::UnembedBias, None),
    ("head", Slot::Head, Some(Slot::HeadBias)),
    ("ln_head", Slot::LnHead, Some(Slot::LnHeadBias)),
    ("ln1", Slot::Ln1, Some(Slot::Ln1Bias)),
    ("qkv", Slot::Qkv, Some(Slot::QkvBias)),
    ("q_norm", Slot::QNorm, Some(Slot::QNormBias)),
    ("k_norm", Slot::KNorm, Some(Slot::KNormBias)),
    ("o", Slot::O, Some(Slot::OBias)),
    ("ln1_post", Slot::Ln1Post, Some(Slot::Ln1PostBias)),
    ("ln2", Slot::Ln2, Some(Slot::Ln2Bias)),
    ("mlp_in", Slot::MlpIn, Some(Slot::MlpInBias)),
    ("mlp_out", Slot::MlpOut, Some(Slot::MlpOutBias)),
    ("ln2_post", Slot::Ln2Post, Some(Slot::Ln2PostBias)),
];

/// Reads a page for one spec.
/// # Panics
/// On a word that is not in the tables above: pages are constants, and a test reads all of them.
pub fn layout(page: &str, spec: &ModelSpec) -> Layout {
    let mut layout = Layout::default();
    let mut stored = Stored::OutIn;
    let mut each: Option<&str> = None;
    for line in page.lines() {
        let mut words = line.split_whitespace();
        let Some(first) = words.next() else { continue };
        let rest: Vec<&str> = words.collect();
        match (first, rest.as_slice()) {
            ("prefix", [prefix]) => layout.optional_prefix = (*prefix).to_string(),
            ("matrices", ["in_out"]) => stored = Stored::AsIs,
            ("each", [prefix]) => each = Some(prefix),
            ("second", [name, other]) => layout
                .instead
                .push(((*name).to_string(), (*other).to_string())),
            ("ignore", names) => layout
                .harmless
                .extend(names.iter().map(|name| (*name).to_string())),
            (word, rest) => {
                let slot = SLOTS.iter().find(|(known, ..)| *known == word);
                let (_, slot, bias) = slot.unwrap_or_else(|| panic!("no slot is called `{word}`"));
                // Wherever it is written, what a model has once has no prefix of a block.
                let each = each.filter(|_| !Slot::MODEL.contains(slot));
                let line = Line::new(rest, each.unwrap_or_default());
                if *slot == Slot::Unembed && spec.tied {
                    layout.tied_head = Some(format!("{}.weight", line.names[0]));
                } else {
                    let end = match slot {
                        Slot::UnembedBias => "bias",
                        _ => "weight",
                    };
                    put(&mut layout, each.is_some(), *slot, spec, |parts| {
                        line.pieces(parts, end, stored, spec)
                    });
                }
                if let Some(bias) = bias.filter(|_| line.has_bias) {
                    put(&mut layout, each.is_some(), bias, spec, |parts| {
                        line.pieces(parts, "bias", Stored::AsIs, spec)
                    });
                }
            }
        }
    }
    layout
}

/// Puts a slot's pieces in, in place of what an earlier line put there.
fn put(
    layout: &mut Layout,
    is_of_blocks: bool,
    slot: Slot,
    spec: &ModelSpec,
    pieces: impl Fn(&Parts) -> Vec<Piece>,
) {
    if slot.need(spec, spec.n_layers.saturating_sub(1)) == Need::Absent {
        return;
    }
    let list = if is_of_blocks {
        &mut layout.blocks
    } else {
        &mut layout.model
    };
    list.retain(|(other, _)| *other != slot);
    list.push((slot, pieces(&Parts::new(slot, spec))));
}

/// Stands for the number of a head in a name.
const HEAD: &str = "{h}";

/// Of what a slot's last axis is made.
struct Parts {
    whole: usize,
    widths: Vec<usize>,
    is_matrix: bool,
}

impl Parts {
    fn new(slot: Slot, spec: &ModelSpec) -> Self {
        let whole = *slot.shape(spec).last().expect("a slot has an axis");
        let widths = match slot {
            Slot::Qkv | Slot::QkvBias => {
                let (q, kv) = (spec.n_heads * spec.d_head, spec.n_kv_heads * spec.d_head);
                vec![q, kv, kv]
            }
            Slot::MlpIn | Slot::MlpInBias if spec.mlp == Mlp::Gated => vec![spec.d_mlp; 2],
            _ => vec![whole],
        };
        Parts {
            whole,
            widths,
            is_matrix: matches!(
                slot,
                Slot::Qkv | Slot::O | Slot::MlpIn | Slot::MlpOut | Slot::Head
            ),
        }
    }
}

/// What a line says of the tensors that fill a slot.
struct Line<'a> {
    names: Vec<String>,
    has_bias: bool,
    fused: Option<&'a str>,
    skip: usize,
    plus: f32,
    is_nowhere: bool,
    is_in_heads: bool,
}

impl<'a> Line<'a> {
    fn new(words: &[&'a str], prefix: &str) -> Self {
        let mut line = Line {
            names: Vec::new(),
            has_bias: false,
            fused: None,
            skip: 0,
            plus: 0.0,
            is_nowhere: false,
            is_in_heads: false,
        };
        for &word in words {
            match (word, word.split_once('=')) {
                ("+bias", _) => line.has_bias = true,
                ("in_heads", _) => line.is_in_heads = true,
                ("by_head" | "by_group", _) => line.fused = Some(word),
                (_, Some(("skip", rows))) => line.skip = rows.parse().expect("a number of rows"),
                (_, Some(("plus", one))) => line.plus = one.parse().expect("a number"),
                ("ones", _) => {
                    (line.is_nowhere, line.plus) = (true, 1.0);
                    line.names.push("ones".to_string());
                }
                (name, _) if name.replace(HEAD, "").contains('{') => {
                    line.names.push(name.to_string());
                }
                (name, _) => line.names.push(format!("{prefix}{name}")),
            }
        }
        line
    }

    fn pieces(&self, parts: &Parts, end: &str, stored: Stored, spec: &ModelSpec) -> Vec<Piece> {
        let (d_head, group) = (spec.d_head, spec.group());
        let piece = |name: &str, out: usize, take: Take| Piece {
            name: format!("{name}.{end}"),
            stored: match (self.is_nowhere, parts.is_matrix) {
                (true, _) => Stored::Nowhere,
                (false, true) => stored,
                (false, false) if self.is_in_heads => Stored::HeadColumns { d_head },
                (false, false) => Stored::AsIs,
            },
            out,
            take,
            plus: if end == "weight" { self.plus } else { 0.0 },
            skip: self.skip,
        };
        let takes = match self.fused {
            None => None,
            Some("by_head") => Some([0, 1, 2].map(|part| Take::WithinHeads {
                d_head,
                part,
                parts: 3,
            })),
            Some(_) => Some(
                [(0, group), (group, 1), (group + 1, 1)].map(|(first, heads)| Take::WithinGroups {
                    d_head,
                    first,
                    heads,
                    of: group + 2,
                }),
            ),
        };
        match (self.names.as_slice(), takes) {
            ([name], _) if name.contains(HEAD) => {
                let heads = 0..parts.whole / d_head;
                let names = heads.map(|head| name.replace(HEAD, &head.to_string()));
                names.map(|name| piece(&name, d_head, Take::All)).collect()
            }
            ([name], Some(takes)) => {
                let parts = parts.widths.iter().zip(takes);
                parts.map(|(&out, take)| piece(name, out, take)).collect()
            }
            // One tensor is the whole, in the canonical order.
            ([name], None) => vec![piece(name, parts.whole, Take::All)],
            (names, _) => {
                let parts = names.iter().zip(&parts.widths);
                parts
                    .map(|(name, &out)| piece(name, out, Take::All))
                    .collect()
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::families::from_config;
    use crate::model::spec::QkNorm;

    /// A Llama of 2 layers, 4 heads of 6 and 2 heads for keys.
    fn spec() -> ModelSpec {
        let config = r#"{"model_type": "llama", "hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 2,
            "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 9, "max_position_embeddings": 16}"#;
        from_config(config).unwrap().spec
    }

    fn pieces(layout: &Layout, slot: Slot) -> Vec<(String, usize)> {
        let mut all = layout.model.iter().chain(&layout.blocks);
        let found = all.find(|(other, _)| *other == slot);
        let pieces = found.map(|(_, pieces)| pieces.as_slice());
        let pieces = pieces.unwrap_or_default().iter();
        pieces
            .map(|piece| (piece.name.clone(), piece.out))
            .collect()
    }

    #[test]
    fn widths_follow_from_the_spec() {
        let layout = layout(
            "embed e \n each h.{l}. \n qkv q k v +bias \n mlp_in gate up \n mlp_out down",
            &spec(),
        );
        let named = |names: &[(&str, usize)]| -> Vec<(String, usize)> {
            names
                .iter()
                .map(|(name, out)| (name.to_string(), *out))
                .collect()
        };
        assert_eq!(pieces(&layout, Slot::Embed), named(&[("e.weight", 24)]));
        let qkv = [
            ("h.{l}.q.weight", 24),
            ("h.{l}.k.weight", 12),
            ("h.{l}.v.weight", 12),
        ];
        assert_eq!(pieces(&layout, Slot::Qkv), named(&qkv));
        let biases = [
            ("h.{l}.q.bias", 24),
            ("h.{l}.k.bias", 12),
            ("h.{l}.v.bias", 12),
        ];
        assert_eq!(pieces(&layout, Slot::QkvBias), named(&biases));
        let mlp_in = [("h.{l}.gate.weight", 40), ("h.{l}.up.weight", 40)];
        assert_eq!(pieces(&layout, Slot::MlpIn), named(&mlp_in));
        assert!(pieces(&layout, Slot::MlpInBias).is_empty());
    }

    #[test]
    fn the_later_line_holds_and_what_the_spec_has_no_place_for_is_passed_over() {
        let layout = layout(
            "ln_final old \n each h.{l}. \n ln1 old \n ln1 new plus=1 \n ln1_post no.place \n ln_final f.norm \n o here.{l}.o",
            &spec(),
        );
        assert_eq!(
            pieces(&layout, Slot::Ln1),
            [("h.{l}.new.weight".to_string(), 24)]
        );
        assert!(pieces(&layout, Slot::Ln1Post).is_empty());
        // What a model has once has no prefix of a block, and a name with a layer in it is whole.
        assert_eq!(
            pieces(&layout, Slot::LnFinal),
            [("f.norm.weight".to_string(), 24)]
        );
        assert_eq!(
            pieces(&layout, Slot::O),
            [("here.{l}.o.weight".to_string(), 24)]
        );
    }

    #[test]
    fn a_tensor_for_each_head_is_a_piece_of_its_own() {
        let spec = ModelSpec {
            qk_norm: QkNorm::OwnLayer,
            ..spec()
        };
        let layout = layout("each h.{l}. \n q_norm q in_heads \n k_norm k.{h}.n", &spec);
        let (_, q) = &layout.blocks[0];
        assert_eq!(q[0].stored_shape(&[24]), [4, 6]);
        let names = ["h.{l}.k.0.n.weight", "h.{l}.k.1.n.weight"];
        let k = pieces(&layout, Slot::KNorm);
        assert_eq!(k, names.map(|name| (name.to_string(), 6)));
    }

    #[test]
    fn fused_products_are_taken_apart_by_group() {
        let layout = layout("each h.{l}. \n qkv all by_group", &spec());
        let (_, pieces) = &layout.blocks[0];
        let takes: Vec<Take> = pieces.iter().map(|piece| piece.take).collect();
        let take = |first, heads| Take::WithinGroups {
            d_head: 6,
            first,
            heads,
            of: 4,
        };
        assert_eq!(takes, [take(0, 2), take(2, 1), take(3, 1)]);
        assert!(
            pieces
                .iter()
                .all(|piece| piece.stored_shape(&[24, 48]) == [48, 24])
        );
    }
}
