//! GPT-Neo: a GPT-2 whose layers see by turns everything and a local window, whose scores are not scaled, and whose q, k and v
//! have no biases.

use serde::Deserialize;
use serde_json::{Map, Value};

use super::config::{Keys, activation};
use super::decoder::{self, Sizes};
use super::rope::RopeSettings;
use super::{Description, Family};
use crate::error::{Error, Result};
use crate::model::layout::{Layout, Piece, Slot};
use crate::model::spec::{ModelSpec, Position};
use crate::text::shortened;

pub const FAMILY: Family = Family {
    name: "gpt_neo",
    model_types: &["gpt_neo"],
    defaults: DEFAULTS,
    synonyms: &[
        ("num_attention_heads", "num_heads"),
        ("num_hidden_layers", "num_layers"),
    ],
    from_config: describe,
    gguf: None,
};

#[derive(Deserialize)]
struct Config {
    hidden_size: usize,
    intermediate_size: Option<usize>,
    num_layers: usize,
    num_heads: usize,
    vocab_size: usize,
    max_position_embeddings: usize,
    layer_norm_epsilon: f64,
    activation_function: String,
    window_size: usize,
    /// `[[["global", "local"], 12]]`: kinds, and how often they repeat.
    attention_types: Vec<(Vec<String>, usize)>,
    /// The same written out.
    attention_layers: Option<Vec<String>>,
    tie_word_embeddings: bool,
    #[serde(flatten)]
    rest: Map<String, Value>,
}

const DEFAULTS: &str = r#"{
    "vocab_size": 50257, "max_position_embeddings": 2048, "hidden_size": 2048, "num_layers": 24, "num_heads": 16,
    "intermediate_size": null, "attention_types": [[["global", "local"], 12]], "window_size": 256,
    "activation_function": "gelu_new", "layer_norm_epsilon": 1e-5, "tie_word_embeddings": true
}"#;

fn describe(keys: &mut Keys) -> Result<Description> {
    let config: Config = keys.read()?;
    keys.refuse_unhandled(&config.rest, &[], &[])?;
    let sizes = Sizes {
        hidden_size: config.hidden_size,
        intermediate_size: config
            .intermediate_size
            .unwrap_or(config.hidden_size.saturating_mul(4)),
        num_hidden_layers: config.num_layers,
        num_attention_heads: config.num_heads,
        num_key_value_heads: None,
        head_dim: None,
        vocab_size: config.vocab_size,
        max_position_embeddings: config.max_position_embeddings,
    };
    let spec = sizes.spec(
        "gpt_neo",
        config.layer_norm_epsilon,
        RopeSettings::default(),
    )?;
    let mut spec = decoder::gpt(spec, Position::Learned);
    spec.activation = activation("activation_function", &config.activation_function)?;
    spec.tied = config.tie_word_embeddings;
    spec.attn_scale = vec![1.0; spec.n_layers];
    spec.windows = windows(&config)?;
    let layout = layout(&spec);
    Ok(Description::new(spec, layout))
}

fn windows(config: &Config) -> Result<Vec<Option<usize>>> {
    let bad = |key: &str, reason: String| Error::BadConfig {
        key: key.to_string(),
        reason,
    };
    let repeated = config.attention_types.iter().flat_map(|(kinds, times)| {
        // More repeats than layers are refused below without being written out.
        std::iter::repeat_n(kinds, (*times).min(config.num_layers + 1)).flatten()
    });
    let kinds: Vec<&String> = repeated.take(config.num_layers + 1).collect();
    if kinds.len() != config.num_layers {
        let reason = format!("they do not describe {} layers", config.num_layers);
        return Err(bad("attention_types", reason));
    }
    if config
        .attention_layers
        .as_ref()
        .is_some_and(|written| written.iter().ne(kinds.iter().copied()))
    {
        return Err(bad(
            "attention_layers",
            "contradicts `attention_types`".into(),
        ));
    }
    let window = |kind: &&String| match kind.as_str() {
        "global" => Ok(None),
        "local" => Ok(Some(config.window_size)),
        other => {
            let reason = format!(
                "`{}` is not handled; we have global, local",
                shortened(other)
            );
            Err(bad("attention_types", reason))
        }
    };
    kinds.iter().map(window).collect()
}

/// Whole-model checkpoints put `transformer.` before each name but the unembedding's.
fn layout(spec: &ModelSpec) -> Layout {
    let (d, mlp) = (spec.d_model, spec.d_mlp);
    let (linear, as_is) = (Piece::linear, Piece::as_is);
    let mut model = vec![
        (Slot::Embed, vec![as_is("wte.weight", d)]),
        (Slot::Positions, vec![as_is("wpe.weight", d)]),
        (Slot::LnFinal, vec![as_is("ln_f.weight", d)]),
        (Slot::LnFinalBias, vec![as_is("ln_f.bias", d)]),
    ];
    // The causal mask and the value that it writes were once saved with the weights.
    let harmless = vec!["*.attn.attention.bias", "*.attn.attention.masked_bias"];
    if !spec.tied {
        model.push((Slot::Unembed, vec![as_is("lm_head.weight", d)]));
    }
    let blocks = vec![
        (Slot::Ln1, vec![as_is("h.{l}.ln_1.weight", d)]),
        (Slot::Ln1Bias, vec![as_is("h.{l}.ln_1.bias", d)]),
        (
            Slot::Qkv,
            vec![
                linear("h.{l}.attn.attention.q_proj.weight", d),
                linear("h.{l}.attn.attention.k_proj.weight", d),
                linear("h.{l}.attn.attention.v_proj.weight", d),
            ],
        ),
        (
            Slot::O,
            vec![linear("h.{l}.attn.attention.out_proj.weight", d)],
        ),
        (
            Slot::OBias,
            vec![as_is("h.{l}.attn.attention.out_proj.bias", d)],
        ),
        (Slot::Ln2, vec![as_is("h.{l}.ln_2.weight", d)]),
        (Slot::Ln2Bias, vec![as_is("h.{l}.ln_2.bias", d)]),
        (Slot::MlpIn, vec![linear("h.{l}.mlp.c_fc.weight", mlp)]),
        (Slot::MlpInBias, vec![as_is("h.{l}.mlp.c_fc.bias", mlp)]),
        (Slot::MlpOut, vec![linear("h.{l}.mlp.c_proj.weight", d)]),
        (Slot::MlpOutBias, vec![as_is("h.{l}.mlp.c_proj.bias", d)]),
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
