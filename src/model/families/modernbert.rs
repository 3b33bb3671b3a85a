//! ModernBERT with its masked-language head: an encoder built like Llama, with LayerNorms before its branches, rotary positions and a
//! gated MLP.
//!
//! Every third layer sees everything, the others so many tokens to each side, with a rotary base of their own. The embeddings are
//! normed, and so no norm stands before the first attention. Before the unembedding stand a dense layer, the activation and a norm, as
//! in BERT; unlike there the stream is the sum of what was written to it.

use serde::Deserialize;
use serde_json::{Map, Value};

use super::config::{Keys, activation};
use super::decoder::{self, Sizes};
use super::rope::RopeConfig;
use super::{Description, Family, all_rotates};
use crate::error::{Error, Result};
use crate::model::layout::Slot;
use crate::model::page;
use crate::model::spec::{Encoder, NormKind};

pub const FAMILY: Family = Family {
    name: "modernbert",
    model_types: &["modernbert"],
    defaults: DEFAULTS,
    synonyms: &[],
    from_config: describe,
    gguf: None,
    examples: &[
        "answerdotai/ModernBERT-base",
        "answerdotai/ModernBERT-large",
    ],
};

/// What the published files say beside what is read.
const AT_DEFAULT: &[(&str, &str)] = &[
    ("deterministic_flash_attn", "true"),
    ("is_causal", "false"),
    ("layer_norm_eps", "1e-5"),
    ("position_embedding_type", "\"absolute\""),
    ("reference_compile", "true"),
    ("repad_logits_with_grad", "true"),
    // How logits are spared where there are labels.
    ("sparse_pred_ignore_index", "-100"),
    ("sparse_prediction", "true"),
];
const CHANGES: &[(&str, &str)] = &[("is_causal", "it sees only what went before")];

const DEFAULTS: &str = r#"{
    "vocab_size": 50368, "hidden_size": 768, "intermediate_size": 1152, "num_hidden_layers": 22, "num_attention_heads": 12,
    "hidden_activation": "gelu", "max_position_embeddings": 8192, "norm_eps": 1e-5, "norm_bias": false, "attention_bias": false,
    "local_attention": 128, "global_attn_every_n_layers": 3, "mlp_bias": false, "decoder_bias": true, "classifier_bias": false,
    "classifier_activation": "gelu", "tie_word_embeddings": true
}"#;

/// The rotary bases of the layers that see everything, and of the others.
const THETAS: [f64; 2] = [160_000.0, 10_000.0];

const LAYOUT: &str = "
    embed     model.embeddings.tok_embeddings
    ln_embed  model.embeddings.norm +bias
    ln_final  model.final_norm +bias
    head      head.dense +bias
    ln_head   head.norm +bias
    unembed   decoder
    unembed_bias decoder
    each      model.layers.{l}.
    ln1       attn_norm +bias
    qkv       attn.Wqkv +bias
    o         attn.Wo +bias
    ln2       mlp_norm +bias
    mlp_in    mlp.Wi +bias
    mlp_out   mlp.Wo +bias
";

#[derive(Deserialize)]
struct Config {
    vocab_size: usize,
    hidden_size: usize,
    intermediate_size: usize,
    num_hidden_layers: usize,
    num_attention_heads: usize,
    max_position_embeddings: usize,
    hidden_activation: String,
    classifier_activation: String,
    norm_eps: f64,
    norm_bias: bool,
    attention_bias: bool,
    mlp_bias: bool,
    classifier_bias: bool,
    decoder_bias: bool,
    /// The tokens that a layer which does not see everything sees to both sides.
    local_attention: usize,
    /// Without `layer_types`: every so many layers sees everything, from the first on.
    global_attn_every_n_layers: usize,
    layer_types: Option<Vec<String>>,
    rope_parameters: Option<Map<String, Value>>,
    global_rope_theta: Option<f64>,
    local_rope_theta: Option<f64>,
    tie_word_embeddings: bool,
    #[serde(flatten)]
    rest: Map<String, Value>,
}

fn describe(keys: &mut Keys) -> Result<Description> {
    let config: Config = keys.read()?;
    keys.refuse_unhandled(&config.rest, AT_DEFAULT, CHANGES)?;
    let rope = RopeConfig {
        rope_parameters: config.rope_parameters.clone(),
        ..RopeConfig::default()
    };
    let thetas = [
        config.global_rope_theta.unwrap_or(THETAS[0]),
        config.local_rope_theta.unwrap_or(THETAS[1]),
    ];
    let n_ctx = config.max_position_embeddings;
    let [global, local] = rope.by_kind_of_layer(keys, n_ctx, thetas)?;
    all_rotates(keys, &global)?;
    all_rotates(keys, &local)?;
    let sizes = Sizes {
        hidden_size: config.hidden_size,
        intermediate_size: config.intermediate_size,
        num_hidden_layers: config.num_hidden_layers,
        num_attention_heads: config.num_attention_heads,
        num_key_value_heads: None,
        head_dim: None,
        vocab_size: config.vocab_size,
        max_position_embeddings: n_ctx,
    };
    let mut spec = sizes.spec("modernbert", config.norm_eps, global)?;
    spec.norm = NormKind::Layer;
    spec.embed_norm = true;
    spec.activation = activation("hidden_activation", &config.hidden_activation)?;
    if activation("classifier_activation", &config.classifier_activation)? != spec.activation {
        keys.refuse(
            "classifier_activation",
            &config.classifier_activation,
            "the activation of the head is handled only where the layers have it too",
        )?;
    }
    spec.tied = config.tie_word_embeddings;
    spec.encoder = Some(Encoder {
        n_segments: None,
        first_norm: false,
    });
    let every = config.global_attn_every_n_layers;
    if every == 0 && config.layer_types.is_none() {
        return Err(Error::BadConfig {
            key: "global_attn_every_n_layers".to_string(),
            reason: "is 0, and of so many layers one sees everything".to_string(),
        });
    }
    let every = every.max(1);
    spec.windows = decoder::windows(
        config.layer_types.as_deref(),
        spec.n_layers,
        // Half of them to each side, and the token itself.
        Some(config.local_attention / 2 + 1),
        |layer| !layer.is_multiple_of(every),
    )?;
    let spec = decoder::with_local_base(spec, local.base);
    let biases = [
        (config.norm_bias, Slot::LnEmbedBias),
        (config.norm_bias, Slot::LnFinalBias),
        (config.norm_bias, Slot::LnHeadBias),
        (config.norm_bias, Slot::Ln1Bias),
        (config.norm_bias, Slot::Ln2Bias),
        (config.attention_bias, Slot::QkvBias),
        (config.attention_bias, Slot::OBias),
        (config.mlp_bias, Slot::MlpInBias),
        (config.mlp_bias, Slot::MlpOutBias),
        (config.classifier_bias, Slot::HeadBias),
        (config.decoder_bias, Slot::UnembedBias),
    ];
    let absent = biases.into_iter().filter(|(has, _)| !has);
    let absent: Vec<Slot> = absent.map(|(_, slot)| slot).collect();
    let layout = page::layout(LAYOUT, &spec).without(&absent);
    Ok(Description::new(spec, layout))
}
