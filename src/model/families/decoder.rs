//! What the families after Llama share: the words of their config files, and the names under which transformers keeps their weights.
//!
//! A family starts from [`Sizes::spec`], which describes a Llama of its sizes, and says how it differs.

use serde::Deserialize;

use super::config::{check_layers, head_width};
use super::rope::RopeSettings;
use crate::error::{Error, Result};
use crate::model::layout::{Layout, Piece, Slot};
use crate::model::spec::{
    Activation, Block, Mlp, ModelSpec, NormKind, NormPlacement, Position, QkNorm, RopeScaling,
    Rotary, RotaryStyle,
};

/// The sizes under Llama's names, to be flattened into a family's own config.
#[derive(Debug, Deserialize)]
pub struct Sizes {
    pub hidden_size: usize,
    pub intermediate_size: usize,
    pub num_hidden_layers: usize,
    pub num_attention_heads: usize,
    pub num_key_value_heads: Option<usize>,
    pub head_dim: Option<usize>,
    pub vocab_size: usize,
    pub max_position_embeddings: usize,
}

impl Sizes {
    /// A Llama of these sizes: RMS norms before each branch, rotary positions, grouped heads, a gated SiLU MLP, nothing tied.
    /// # Errors
    /// [`Error::BadConfig`] for sizes that decide allocations and are absurd, and for heads that do not divide the width.
    pub fn spec(&self, family: &str, norm_eps: f64, rope: RopeSettings) -> Result<ModelSpec> {
        let (n_layers, n_heads) = (self.num_hidden_layers, self.num_attention_heads);
        check_layers("num_hidden_layers", n_layers)?;
        let d_head = match self.head_dim {
            Some(d_head) => d_head,
            None => head_width("num_attention_heads", self.hidden_size, n_heads)?,
        };
        Ok(ModelSpec {
            family: family.to_string(),
            n_layers,
            n_heads,
            n_kv_heads: self.num_key_value_heads.unwrap_or(n_heads),
            d_model: self.hidden_size,
            d_head,
            d_mlp: self.intermediate_size,
            d_vocab: self.vocab_size,
            n_ctx: longest(self.max_position_embeddings, &rope.base.scaling),
            norm: NormKind::Rms,
            norm_eps,
            norm_placement: NormPlacement::Pre,
            block: Block::Sequential,
            position: Position::Rotary(Rotary {
                dims: (d_head as f64 * rope.partial) as usize,
                style: RotaryStyle::Half,
                base_of_layer: vec![0; n_layers],
                bases: vec![rope.base],
            }),
            attn_scale: vec![1.0 / (d_head as f32).sqrt(); n_layers],
            attn_softcap: None,
            windows: vec![None; n_layers],
            qk_norm: QkNorm::None,
            mlp: Mlp::Gated,
            activation: Activation::Silu,
            embed_scale: None,
            residual_multiplier: None,
            logit_scale: None,
            final_softcap: None,
            tied: false,
            encoder: None,
        })
    }
}

/// A GPT of the same sizes: LayerNorms and a plain tanh-GELU MLP.
pub fn gpt(spec: ModelSpec, position: Position) -> ModelSpec {
    ModelSpec {
        norm: NormKind::Layer,
        mlp: Mlp::Plain,
        activation: Activation::GeluTanh,
        position,
        ..spec
    }
}

/// Dynamic scaling is for prompts beyond `max_position_embeddings`; the other scalings write the stretched length there.
fn longest(positions: usize, scaling: &RopeScaling) -> usize {
    match scaling {
        RopeScaling::Dynamic { factor, .. } => (positions as f64 * factor) as usize,
        _ => positions,
    }
}

/// The window of each layer: what `layer_types` says where it is written, else what older files imply by `slides`.
/// # Errors
/// [`Error::BadConfig`] for a kind of layer that we do not know, a list of another length, and a sliding layer without a window.
pub fn windows(
    layer_types: Option<&[String]>,
    n_layers: usize,
    window: Option<usize>,
    slides: impl Fn(usize) -> bool,
) -> Result<Vec<Option<usize>>> {
    match layer_types {
        Some(kinds) => windows_of(kinds, n_layers, window),
        None => Ok((0..n_layers)
            .map(|layer| window.filter(|_| slides(layer)))
            .collect()),
    }
}

/// The window of each layer by its kind.
/// # Errors
/// As [`windows`].
pub fn windows_of(
    kinds: &[String],
    n_layers: usize,
    window: Option<usize>,
) -> Result<Vec<Option<usize>>> {
    let bad = |reason: String| {
        Err(Error::BadConfig {
            key: "layer_types".to_string(),
            reason,
        })
    };
    if kinds.len() != n_layers {
        return bad(format!("{} kinds for {n_layers} layers", kinds.len()));
    }
    let mut windows = Vec::with_capacity(n_layers);
    for kind in kinds {
        windows.push(match (kind.as_str(), window) {
            ("full_attention", _) => None,
            ("sliding_attention", Some(window)) => Some(window),
            ("sliding_attention", None) => {
                return bad("a layer slides, but no `sliding_window` is in force".into());
            }
            _ => {
                let kind = crate::text::shortened(kind);
                return bad(format!(
                    "`{kind}` is not handled; we have full_attention, sliding_attention"
                ));
            }
        });
    }
    Ok(windows)
}

/// Which products have a bias, for the families whose config decides.
#[derive(Debug, Clone, Copy, Default)]
pub struct Biases {
    pub qkv: bool,
    pub o: bool,
    pub mlp: bool,
}

/// Where transformers keeps the weights of a Llama and of what is built like it, the norms where the spec has them.
pub fn layout(spec: &ModelSpec, biases: Biases) -> Layout {
    let d = spec.d_model;
    let (linear, as_is) = (Piece::linear, Piece::as_is);
    let mut model = vec![
        (Slot::Embed, vec![as_is("embed_tokens.weight", d)]),
        (Slot::LnFinal, vec![as_is("norm.weight", d)]),
    ];
    let harmless = vec!["*.rotary_emb.inv_freq"];
    if !spec.tied {
        model.push((Slot::Unembed, vec![as_is("lm_head.weight", d)]));
    }
    let mut blocks = norms(spec);
    blocks.extend(attention(spec, biases));
    blocks.extend([
        (
            Slot::MlpIn,
            vec![
                linear("layers.{l}.mlp.gate_proj.weight", spec.d_mlp),
                linear("layers.{l}.mlp.up_proj.weight", spec.d_mlp),
            ],
        ),
        (
            Slot::MlpOut,
            vec![linear("layers.{l}.mlp.down_proj.weight", d)],
        ),
    ]);
    if biases.mlp {
        blocks.extend([
            (
                Slot::MlpInBias,
                vec![
                    as_is("layers.{l}.mlp.gate_proj.bias", spec.d_mlp),
                    as_is("layers.{l}.mlp.up_proj.bias", spec.d_mlp),
                ],
            ),
            (
                Slot::MlpOutBias,
                vec![as_is("layers.{l}.mlp.down_proj.bias", d)],
            ),
        ]);
    }
    Layout {
        model,
        blocks,
        optional_prefix: "model.",
        harmless,
        tied_head: Some("lm_head.weight"),
        ..Layout::default()
    }
}

type Filled = Vec<(Slot, Vec<Piece>)>;

/// The same two names mean other norms in other families: `post_attention_layernorm` stands before the MLP of a Llama,
/// and on the output of attention in Gemma 2 and OLMo 2.
fn norms(spec: &ModelSpec) -> Filled {
    const INPUT: &str = "layers.{l}.input_layernorm.weight";
    const AFTER_ATTENTION: &str = "layers.{l}.post_attention_layernorm.weight";
    const BEFORE_MLP: &str = "layers.{l}.pre_feedforward_layernorm.weight";
    const AFTER_MLP: &str = "layers.{l}.post_feedforward_layernorm.weight";
    let named: &[(Slot, &'static str)] = match spec.norm_placement {
        NormPlacement::Pre => &[(Slot::Ln1, INPUT), (Slot::Ln2, AFTER_ATTENTION)],
        NormPlacement::Post => &[(Slot::Ln1Post, AFTER_ATTENTION), (Slot::Ln2Post, AFTER_MLP)],
        NormPlacement::Sandwich => &[
            (Slot::Ln1, INPUT),
            (Slot::Ln1Post, AFTER_ATTENTION),
            (Slot::Ln2, BEFORE_MLP),
            (Slot::Ln2Post, AFTER_MLP),
        ],
        NormPlacement::Stream | NormPlacement::None => &[],
    };
    named
        .iter()
        .map(|&(slot, name)| (slot, vec![Piece::as_is(name, spec.d_model)]))
        .collect()
}

fn attention(spec: &ModelSpec, biases: Biases) -> Filled {
    let (d, q, kv) = (
        spec.d_model,
        spec.n_heads * spec.d_head,
        spec.n_kv_heads * spec.d_head,
    );
    let (linear, as_is) = (Piece::linear, Piece::as_is);
    let mut filled = vec![
        (
            Slot::Qkv,
            vec![
                linear("layers.{l}.self_attn.q_proj.weight", q),
                linear("layers.{l}.self_attn.k_proj.weight", kv),
                linear("layers.{l}.self_attn.v_proj.weight", kv),
            ],
        ),
        (
            Slot::O,
            vec![linear("layers.{l}.self_attn.o_proj.weight", d)],
        ),
    ];
    if biases.qkv {
        filled.push((
            Slot::QkvBias,
            vec![
                as_is("layers.{l}.self_attn.q_proj.bias", q),
                as_is("layers.{l}.self_attn.k_proj.bias", kv),
                as_is("layers.{l}.self_attn.v_proj.bias", kv),
            ],
        ));
    }
    if biases.o {
        filled.push((
            Slot::OBias,
            vec![as_is("layers.{l}.self_attn.o_proj.bias", d)],
        ));
    }
    let of_norm = match spec.qk_norm {
        QkNorm::None => None,
        QkNorm::PerHead => Some((spec.d_head, spec.d_head)),
        QkNorm::FullWidth => Some((q, kv)),
    };
    if let Some((q, k)) = of_norm {
        filled.extend([
            (
                Slot::QNorm,
                vec![as_is("layers.{l}.self_attn.q_norm.weight", q)],
            ),
            (
                Slot::KNorm,
                vec![as_is("layers.{l}.self_attn.k_norm.weight", k)],
            ),
        ]);
    }
    filled
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn windows_follow_the_list_or_the_rule() {
        let kinds = |text: &str| text.split(' ').map(String::from).collect::<Vec<_>>();
        let of_rule = windows(None, 3, Some(5), |layer| layer != 1).unwrap();
        assert_eq!(of_rule, [Some(5), None, Some(5)]);
        let of_list = kinds("full_attention sliding_attention");
        let of_list = windows(Some(&of_list), 2, Some(5), |_| true).unwrap();
        assert_eq!(of_list, [None, Some(5)]);
        for (list, window, word) in [
            ("full_attention", Some(5), "1 kinds"),
            ("full_attention sliding_attention", None, "sliding_window"),
            (
                "full_attention linear_attention",
                Some(5),
                "linear_attention",
            ),
        ] {
            let error = windows(Some(&kinds(list)), 2, window, |_| true).unwrap_err();
            assert!(error.to_string().contains(word), "{error}");
        }
    }
}
