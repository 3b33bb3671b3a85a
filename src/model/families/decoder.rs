//! What the families after Llama share: the words of their config files, and the names under which transformers keeps their weights.
//!
//! A family starts from [`Sizes::spec`], which describes a Llama of its sizes, and says how it differs.

use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

use super::all_rotates;
use super::config::{self, Keys};
use super::limits::{check_layers, check_sizes, head_width};
use super::rope::{DEFAULT_THETA, RopeConfig, RopeSettings};
use crate::error::{Error, Result};
use crate::model::layout::{Layout, Slot};
use crate::model::page;
use crate::model::spec::{
    Activation, Block, Mlp, ModelSpec, NormKind, NormPlacement, Position, QkNorm, RopeScaling,
    Rotary, RotaryBase, RotaryStyle,
};

/// The sizes under Llama's names, to be flattened into a family's own config.
#[derive(Debug, Clone, Deserialize)]
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
        let spec = ModelSpec {
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
                base_of_layer: vec![Some(0); n_layers],
                bases: vec![rope.base],
            }),
            attn_scale: vec![1.0 / (d_head as f32).sqrt(); n_layers],
            attn_softcap: None,
            windows: vec![None; n_layers],
            qk_norm: QkNorm::None,
            qkv_clip: None,
            mlp: Mlp::Gated,
            activation: Activation::Silu,
            embed_norm: false,
            embed_scale: None,
            residual_multiplier: None,
            logit_scale: None,
            final_softcap: None,
            tied: false,
            encoder: None,
        };
        check_sizes(&spec)?;
        Ok(spec)
    }
}

/// The keys that every family built like Llama reads, and beside them its own.
#[derive(Debug, Deserialize)]
pub struct LlamaLike<Own> {
    #[serde(flatten)]
    pub sizes: Sizes,
    #[serde(flatten)]
    pub rope: RopeConfig,
    pub tie_word_embeddings: bool,
    #[serde(flatten)]
    pub own: Own,
    #[serde(flatten)]
    pub rest: Map<String, Value>,
}

impl<Own: DeserializeOwned> LlamaLike<Own> {
    /// Reads the keys, and refuses what stands beside them as [`Keys::refuse_unhandled`] does.
    /// # Errors
    /// [`Error::UnreadableConfig`], [`Error::UnhandledConfig`], [`Error::RefusedConfig`].
    pub fn read(
        keys: &mut Keys,
        harmless_at: &[(&str, &str)],
        changes: &[(&str, &str)],
    ) -> Result<Self> {
        let config: Self = keys.read()?;
        keys.refuse_unhandled(&config.rest, harmless_at, changes)?;
        Ok(config)
    }

    /// A Llama of these sizes, in which all dimensions of a head rotate.
    /// # Errors
    /// As [`Sizes::spec`]; [`Error::RefusedConfig`] for a share of rotating dimensions.
    pub fn spec(
        &self,
        family: &str,
        norm_eps: f64,
        (key, activation): (&str, &str),
        keys: &mut Keys,
    ) -> Result<ModelSpec> {
        let rope = self.rope_of_whole_heads(keys, DEFAULT_THETA)?;
        self.spec_with(rope, family, norm_eps, (key, activation))
    }

    /// The rotary settings of a family in which all dimensions of a head rotate, with the base where none is written.
    /// # Errors
    /// Those of the settings; [`Error::RefusedConfig`] for a share of rotating dimensions.
    pub fn rope_of_whole_heads(&self, keys: &mut Keys, theta_or: f64) -> Result<RopeSettings> {
        let n_ctx = self.sizes.max_position_embeddings;
        let rope = self.rope.settings_or(keys, n_ctx, theta_or, 1.0)?;
        all_rotates(keys, &rope)?;
        Ok(rope)
    }

    /// A Llama of these sizes with other rotary settings than its keys say.
    /// # Errors
    /// As [`Sizes::spec`].
    pub fn spec_with(
        &self,
        rope: RopeSettings,
        family: &str,
        norm_eps: f64,
        (key, activation): (&str, &str),
    ) -> Result<ModelSpec> {
        Ok(ModelSpec {
            activation: config::activation(key, activation)?,
            tied: self.tie_word_embeddings,
            ..self.sizes.spec(family, norm_eps, rope)?
        })
    }
}

/// The same model with positions in some of its layers only.
pub fn rotating(mut spec: ModelSpec, rotates: impl Fn(usize) -> bool) -> ModelSpec {
    if let Position::Rotary(rotary) = &mut spec.position {
        let bases = rotary.base_of_layer.iter_mut().enumerate();
        bases
            .filter(|(layer, _)| !rotates(*layer))
            .for_each(|(_, base)| *base = None);
    }
    spec
}

/// The same model with a rotary base of their own for the layers that slide.
pub fn with_local_base(mut spec: ModelSpec, local: RotaryBase) -> ModelSpec {
    if let Position::Rotary(rotary) = &mut spec.position {
        rotary.bases.push(local);
        let slides = spec.windows.iter().map(Option::is_some);
        rotary.base_of_layer = slides.map(|slides| Some(usize::from(slides))).collect();
    }
    spec
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

/// Where transformers keeps the weights of a Llama; what is built like it writes below this page what differs.
pub const LLAMA: &str = "
    prefix    model.
    embed     embed_tokens
    ln_final  norm
    unembed   lm_head
    each      layers.{l}.
    ln1       input_layernorm
    qkv       self_attn.q_proj self_attn.k_proj self_attn.v_proj +bias
    o         self_attn.o_proj +bias
    ln2       post_attention_layernorm
    mlp_in    mlp.gate_proj mlp.up_proj +bias
    mlp_out   mlp.down_proj +bias
    q_norm    self_attn.q_norm
    k_norm    self_attn.k_norm
    ignore    *.rotary_emb.inv_freq
";

/// The layout of a Llama, with what a family writes below its page.
pub fn layout(spec: &ModelSpec, differs: &str, biases: Biases) -> Layout {
    let absent = [
        (biases.qkv, Slot::QkvBias),
        (biases.o, Slot::OBias),
        (biases.mlp, Slot::MlpInBias),
        (biases.mlp, Slot::MlpOutBias),
    ];
    let absent = absent.iter().filter(|(has, _)| !has);
    let absent: Vec<Slot> = absent.map(|(_, slot)| *slot).collect();
    page::layout(&format!("{LLAMA}{differs}"), spec).without(&absent)
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
