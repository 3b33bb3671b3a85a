//! BERT and RoBERTa with their masked-language heads: attention in both directions, and a LayerNorm on the stream after each sum.
//!
//! In the words of [`NormPlacement::Stream`]: the norm on the embeddings is `ln1` of the first block, the norm on the attention output
//! is `ln2`, the norm on a layer's output is `ln1` of the next block, and that of the last layer is the final norm. Before the
//! unembedding stand a dense layer, the activation and a norm. Every token is taken to be of the first segment; a checkpoint without
//! the masked-language head has nothing to measure and does not load. So `hook_resid_pre` and `hook_resid_mid` are the sums before
//! their norms, and the stream into a block is what went out of the one before.

use serde::Deserialize;
use serde_json::{Map, Value};

use super::config::{Keys, activation};
use super::decoder::{self, Sizes};
use super::rope::RopeSettings;
use super::{Description, Family};
use crate::error::{Error, Result};
use crate::model::page;
use crate::model::spec::{Activation, Encoder, ModelSpec, NormPlacement, Position};

pub const BERT: Family = Family {
    name: "bert",
    model_types: &["bert"],
    defaults: DEFAULTS,
    synonyms: &[],
    from_config: describe_bert,
    gguf: None,
    examples: &["google-bert/bert-base-uncased"],
};

/// Its positions count from the row after the padding's, and skip padding, which no prompt has. XLM-RoBERTa is the same model of
/// another vocabulary.
pub const ROBERTA: Family = Family {
    name: "roberta",
    model_types: &["roberta", "xlm-roberta"],
    defaults: ROBERTA_DEFAULTS,
    synonyms: &[],
    from_config: describe_roberta,
    gguf: None,
    examples: &["FacebookAI/roberta-base", "FacebookAI/xlm-roberta-base"],
};

/// The other kinds of `position_embedding_type` were relative positions, which transformers no longer has.
const AT_DEFAULT: &[(&str, &str)] = &[
    ("position_embedding_type", "\"absolute\""),
    ("is_causal", "false"),
];
const CHANGES: &[(&str, &str)] = &[
    ("is_causal", "it sees only what went before"),
    ("position_embedding_type", "its positions are relative"),
];

const DEFAULTS: &str = r#"{
    "vocab_size": 30522, "hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "intermediate_size": 3072,
    "hidden_act": "gelu", "max_position_embeddings": 512, "type_vocab_size": 2, "layer_norm_eps": 1e-12, "is_decoder": false,
    "tie_word_embeddings": true
}"#;

const ROBERTA_DEFAULTS: &str = r#"{
    "vocab_size": 50265, "hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "intermediate_size": 3072,
    "hidden_act": "gelu", "max_position_embeddings": 512, "type_vocab_size": 2, "layer_norm_eps": 1e-12, "is_decoder": false,
    "tie_word_embeddings": true, "pad_token_id": 1
}"#;

#[derive(Deserialize)]
struct Config {
    #[serde(flatten)]
    sizes: Sizes,
    layer_norm_eps: f64,
    hidden_act: String,
    type_vocab_size: usize,
    is_decoder: bool,
    /// What RoBERTa's positions begin after.
    pad_token_id: Option<usize>,
    tie_word_embeddings: bool,
    #[serde(flatten)]
    rest: Map<String, Value>,
}

fn describe_bert(keys: &mut Keys) -> Result<Description> {
    let config: Config = keys.read()?;
    let spec = spec("bert", keys, &config)?;
    let layout = page::layout(BERT_LAYOUT, &spec);
    Ok(Description::new(spec, layout))
}

fn describe_roberta(keys: &mut Keys) -> Result<Description> {
    let config: Config = keys.read()?;
    let mut spec = spec("roberta", keys, &config)?;
    if spec.activation != Activation::Gelu {
        keys.refuse(
            "hidden_act",
            &config.hidden_act,
            "the head of this family has GELU whatever its layers have, which is handled only where they have it too",
        )?;
    }
    let skipped = config.pad_token_id.unwrap_or(1).saturating_add(1);
    spec.n_ctx = spec.n_ctx.saturating_sub(skipped);
    if spec.n_ctx == 0 {
        return Err(Error::BadConfig {
            key: "max_position_embeddings".to_string(),
            reason: format!("the first {skipped} rows are for padding, and none is left"),
        });
    }
    let page = format!("{ROBERTA_LAYOUT} positions embeddings.position_embeddings skip={skipped}");
    let layout = page::layout(&page, &spec);
    Ok(Description::new(spec, layout))
}

/// What the two have in common.
fn spec(family: &str, keys: &mut Keys, config: &Config) -> Result<ModelSpec> {
    keys.refuse_unhandled(&config.rest, AT_DEFAULT, CHANGES)?;
    if config.is_decoder {
        keys.refuse("is_decoder", "true", "it sees only what went before")?;
    }
    let heads = config.sizes.num_attention_heads;
    if let Some(grouped) = config
        .sizes
        .num_key_value_heads
        .filter(|grouped| *grouped != heads)
    {
        keys.refuse(
            "num_key_value_heads",
            &grouped.to_string(),
            "in this family every head has keys and values of its own",
        )?;
    }
    let sizes = Sizes {
        num_key_value_heads: None,
        head_dim: None,
        ..config.sizes.clone()
    };
    let spec = sizes.spec(family, config.layer_norm_eps, RopeSettings::default())?;
    let mut spec = decoder::gpt(spec, Position::Learned);
    spec.norm_placement = NormPlacement::Stream;
    spec.encoder = Some(Encoder {
        n_segments: Some(config.type_vocab_size),
        first_norm: true,
    });
    spec.activation = activation("hidden_act", &config.hidden_act)?;
    spec.tied = config.tie_word_embeddings;
    Ok(spec)
}

/// The next-sentence head is no part of this model, and the unembedding's bias is often stored twice.
const BERT_LAYOUT: &str = "
    prefix    bert.
    embed     embeddings.word_embeddings
    positions embeddings.position_embeddings
    segments  embeddings.token_type_embeddings
    ln1       embeddings.LayerNorm +bias
    ln_final  encoder.layer.{last}.output.LayerNorm +bias
    head      cls.predictions.transform.dense +bias
    ln_head   cls.predictions.transform.LayerNorm +bias
    unembed   cls.predictions.decoder
    unembed_bias cls.predictions
    second    cls.predictions.bias cls.predictions.decoder.bias
    each      encoder.layer.{l}.
    ln1       encoder.layer.{l-1}.output.LayerNorm +bias
    qkv       attention.self.query attention.self.key attention.self.value +bias
    o         attention.output.dense +bias
    ln2       attention.output.LayerNorm +bias
    mlp_in    intermediate.dense +bias
    mlp_out   output.dense +bias
    ignore    *embeddings.position_ids *pooler.dense.weight *pooler.dense.bias
    ignore    cls.seq_relationship.weight cls.seq_relationship.bias
";

const ROBERTA_LAYOUT: &str = "
    prefix    roberta.
    embed     embeddings.word_embeddings
    segments  embeddings.token_type_embeddings
    ln1       embeddings.LayerNorm +bias
    ln_final  encoder.layer.{last}.output.LayerNorm +bias
    head      lm_head.dense +bias
    ln_head   lm_head.layer_norm +bias
    unembed   lm_head.decoder
    unembed_bias lm_head
    second    lm_head.bias lm_head.decoder.bias
    each      encoder.layer.{l}.
    ln1       encoder.layer.{l-1}.output.LayerNorm +bias
    qkv       attention.self.query attention.self.key attention.self.value +bias
    o         attention.output.dense +bias
    ln2       attention.output.LayerNorm +bias
    mlp_in    intermediate.dense +bias
    mlp_out   output.dense +bias
    ignore    *embeddings.position_ids *pooler.dense.weight *pooler.dense.bias
";
