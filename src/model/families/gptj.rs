//! GPT-J: parallel branches through one shared LayerNorm, the first dimensions of each head rotate in adjacent pairs.

use serde::Deserialize;
use serde_json::{Map, Value};

use super::config::{Keys, activation};
use super::decoder::{self, Sizes};
use super::gpt2::GPT_NAMES;
use super::rope::RopeSettings;
use super::{Description, Family};
use crate::error::Result;
use crate::model::layout::{Layout, Piece, Slot};
use crate::model::spec::{Block, ModelSpec, Position, Rotary, RotaryStyle};

pub const FAMILY: Family = Family {
    name: "gptj",
    model_types: &["gptj"],
    defaults: DEFAULTS,
    synonyms: GPT_NAMES,
    from_config: describe,
    gguf: None,
};

const AT_DEFAULT: &[(&str, &str)] = &[("rotary", "true"), ("scale_attn_weights", "true")];

const DEFAULTS: &str = r#"{
    "vocab_size": 50400, "n_positions": 2048, "n_embd": 4096, "n_layer": 28, "n_head": 16, "rotary_dim": 64, "n_inner": null,
    "activation_function": "gelu_new", "layer_norm_epsilon": 1e-5, "tie_word_embeddings": false
}"#;

#[derive(Deserialize)]
struct Config {
    n_embd: usize,
    n_head: usize,
    n_layer: usize,
    n_positions: usize,
    n_inner: Option<usize>,
    rotary_dim: usize,
    vocab_size: usize,
    layer_norm_epsilon: f64,
    activation_function: String,
    tie_word_embeddings: bool,
    #[serde(flatten)]
    rest: Map<String, Value>,
}

fn describe(keys: &mut Keys) -> Result<Description> {
    let config: Config = keys.read()?;
    keys.refuse_unhandled(&config.rest, AT_DEFAULT, &[])?;
    let sizes = Sizes {
        hidden_size: config.n_embd,
        intermediate_size: config.n_inner.unwrap_or(config.n_embd.saturating_mul(4)),
        num_hidden_layers: config.n_layer,
        num_attention_heads: config.n_head,
        num_key_value_heads: None,
        head_dim: None,
        vocab_size: config.vocab_size,
        max_position_embeddings: config.n_positions,
    };
    let rope = RopeSettings::default();
    let position = Position::Rotary(Rotary {
        dims: config.rotary_dim,
        style: RotaryStyle::Interleaved,
        base_of_layer: Vec::new(),
        bases: vec![rope.base.clone()],
    });
    let spec = sizes.spec("gptj", config.layer_norm_epsilon, rope)?;
    let mut spec = decoder::gpt(spec, position);
    if let Position::Rotary(rotary) = &mut spec.position {
        rotary.base_of_layer = vec![0; spec.n_layers];
    }
    spec.block = Block::Parallel { shared_norm: true };
    spec.activation = activation("activation_function", &config.activation_function)?;
    spec.tied = config.tie_word_embeddings;
    let layout = layout(&spec);
    Ok(Description::new(spec, layout))
}

/// Whole-model checkpoints put `transformer.` before each name but the unembedding's.
fn layout(spec: &ModelSpec) -> Layout {
    let (d, mlp) = (spec.d_model, spec.d_mlp);
    let (linear, as_is) = (Piece::linear, Piece::as_is);
    let mut model = vec![
        (Slot::Embed, vec![as_is("wte.weight", d)]),
        (Slot::LnFinal, vec![as_is("ln_f.weight", d)]),
        (Slot::LnFinalBias, vec![as_is("ln_f.bias", d)]),
        (Slot::UnembedBias, vec![as_is("lm_head.bias", spec.d_vocab)]),
    ];
    // The causal mask and the value that it writes were once saved with the weights.
    let harmless = vec![
        "*.attn.bias",
        "*.attn.masked_bias",
        "*.attn.embed_positions",
    ];
    if !spec.tied {
        model.push((Slot::Unembed, vec![as_is("lm_head.weight", d)]));
    }
    let blocks = vec![
        (Slot::Ln1, vec![as_is("h.{l}.ln_1.weight", d)]),
        (Slot::Ln1Bias, vec![as_is("h.{l}.ln_1.bias", d)]),
        (
            Slot::Qkv,
            vec![
                linear("h.{l}.attn.q_proj.weight", d),
                linear("h.{l}.attn.k_proj.weight", d),
                linear("h.{l}.attn.v_proj.weight", d),
            ],
        ),
        (Slot::O, vec![linear("h.{l}.attn.out_proj.weight", d)]),
        (Slot::MlpIn, vec![linear("h.{l}.mlp.fc_in.weight", mlp)]),
        (Slot::MlpInBias, vec![as_is("h.{l}.mlp.fc_in.bias", mlp)]),
        (Slot::MlpOut, vec![linear("h.{l}.mlp.fc_out.weight", d)]),
        (Slot::MlpOutBias, vec![as_is("h.{l}.mlp.fc_out.bias", d)]),
    ];
    Layout {
        model,
        blocks,
        optional_prefix: "transformer.",
        harmless,
        tied_head: Some("lm_head.weight"),
        ..Layout::default()
    }
}
