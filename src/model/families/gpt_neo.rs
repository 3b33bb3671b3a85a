//! GPT-Neo: a GPT-2 whose layers see by turns everything and a local window, whose scores are not scaled, and whose q, k and v
//! have no biases.

use serde::Deserialize;
use serde_json::{Map, Value};

use super::config::{Keys, activation};
use super::decoder::{self, Sizes};
use super::rope::RopeSettings;
use super::{Description, Family};
use crate::error::{Error, Result};
use crate::model::page;
use crate::model::spec::Position;
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
    examples: &["EleutherAI/gpt-neo-125m", "roneneldan/TinyStories-33M"],
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
    let layout = page::layout(LAYOUT, &spec);
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

/// The causal mask and the value that it writes were once saved with the weights.
const LAYOUT: &str = "
    prefix    transformer.
    embed     wte
    positions wpe
    ln_final  ln_f +bias
    unembed   lm_head
    each      h.{l}.
    ln1       ln_1 +bias
    qkv       attn.attention.q_proj attn.attention.k_proj attn.attention.v_proj
    o         attn.attention.out_proj +bias
    ln2       ln_2 +bias
    mlp_in    mlp.c_fc +bias
    mlp_out   mlp.c_proj +bias
    ignore    *.attn.attention.bias *.attn.attention.masked_bias
";
