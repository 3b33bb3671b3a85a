//! BERT with its masked-language head: attention in both directions, and a LayerNorm on the stream after each sum.
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
use crate::error::Result;
use crate::model::layout::{Layout, Piece, Slot};
use crate::model::spec::{Encoder, ModelSpec, NormPlacement, Position};

pub const FAMILY: Family = Family {
    name: "bert",
    model_types: &["bert"],
    defaults: DEFAULTS,
    synonyms: &[],
    from_config: describe,
    gguf: None,
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

#[derive(Deserialize)]
struct Config {
    #[serde(flatten)]
    sizes: Sizes,
    layer_norm_eps: f64,
    hidden_act: String,
    type_vocab_size: usize,
    is_decoder: bool,
    tie_word_embeddings: bool,
    #[serde(flatten)]
    rest: Map<String, Value>,
}

fn describe(keys: &mut Keys) -> Result<Description> {
    let config: Config = keys.read()?;
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
        ..config.sizes
    };
    let spec = sizes.spec("bert", config.layer_norm_eps, RopeSettings::default())?;
    let mut spec = decoder::gpt(spec, Position::Learned);
    spec.norm_placement = NormPlacement::Stream;
    spec.encoder = Some(Encoder {
        n_segments: config.type_vocab_size,
    });
    spec.activation = activation("hidden_act", &config.hidden_act)?;
    spec.tied = config.tie_word_embeddings;
    let layout = layout(&spec);
    Ok(Description::new(spec, layout))
}

fn layout(spec: &ModelSpec) -> Layout {
    let (d, mlp) = (spec.d_model, spec.d_mlp);
    let (linear, as_is) = (Piece::linear, Piece::as_is);
    let mut model = vec![
        (
            Slot::Embed,
            vec![as_is("embeddings.word_embeddings.weight", d)],
        ),
        (
            Slot::Positions,
            vec![as_is("embeddings.position_embeddings.weight", d)],
        ),
        (
            Slot::Segments,
            vec![as_is("embeddings.token_type_embeddings.weight", d)],
        ),
        (
            Slot::Head,
            vec![linear("cls.predictions.transform.dense.weight", d)],
        ),
        (
            Slot::HeadBias,
            vec![as_is("cls.predictions.transform.dense.bias", d)],
        ),
        (
            Slot::LnHead,
            vec![as_is("cls.predictions.transform.LayerNorm.weight", d)],
        ),
        (
            Slot::LnHeadBias,
            vec![as_is("cls.predictions.transform.LayerNorm.bias", d)],
        ),
        (Slot::Ln1, vec![as_is("embeddings.LayerNorm.weight", d)]),
        (Slot::Ln1Bias, vec![as_is("embeddings.LayerNorm.bias", d)]),
        (
            Slot::LnFinal,
            vec![as_is("encoder.layer.{last}.output.LayerNorm.weight", d)],
        ),
        (
            Slot::LnFinalBias,
            vec![as_is("encoder.layer.{last}.output.LayerNorm.bias", d)],
        ),
    ];
    // The next-sentence head is no part of this model, and the unembedding's bias is often stored twice.
    let harmless = vec![
        "*embeddings.position_ids",
        "*pooler.dense.weight",
        "*pooler.dense.bias",
        "cls.seq_relationship.weight",
        "cls.seq_relationship.bias",
    ];
    const DECODER: &str = "cls.predictions.decoder.weight";
    const BIAS: &str = "cls.predictions.bias";
    model.push((Slot::UnembedBias, vec![as_is(BIAS, spec.d_vocab)]));
    if !spec.tied {
        model.push((Slot::Unembed, vec![as_is(DECODER, d)]));
    }
    let blocks = vec![
        (
            Slot::Ln1,
            vec![as_is("encoder.layer.{l-1}.output.LayerNorm.weight", d)],
        ),
        (
            Slot::Ln1Bias,
            vec![as_is("encoder.layer.{l-1}.output.LayerNorm.bias", d)],
        ),
        (
            Slot::Qkv,
            vec![
                linear("encoder.layer.{l}.attention.self.query.weight", d),
                linear("encoder.layer.{l}.attention.self.key.weight", d),
                linear("encoder.layer.{l}.attention.self.value.weight", d),
            ],
        ),
        (
            Slot::QkvBias,
            vec![
                as_is("encoder.layer.{l}.attention.self.query.bias", d),
                as_is("encoder.layer.{l}.attention.self.key.bias", d),
                as_is("encoder.layer.{l}.attention.self.value.bias", d),
            ],
        ),
        (
            Slot::O,
            vec![linear("encoder.layer.{l}.attention.output.dense.weight", d)],
        ),
        (
            Slot::OBias,
            vec![as_is("encoder.layer.{l}.attention.output.dense.bias", d)],
        ),
        (
            Slot::Ln2,
            vec![as_is(
                "encoder.layer.{l}.attention.output.LayerNorm.weight",
                d,
            )],
        ),
        (
            Slot::Ln2Bias,
            vec![as_is(
                "encoder.layer.{l}.attention.output.LayerNorm.bias",
                d,
            )],
        ),
        (
            Slot::MlpIn,
            vec![linear("encoder.layer.{l}.intermediate.dense.weight", mlp)],
        ),
        (
            Slot::MlpInBias,
            vec![as_is("encoder.layer.{l}.intermediate.dense.bias", mlp)],
        ),
        (
            Slot::MlpOut,
            vec![linear("encoder.layer.{l}.output.dense.weight", d)],
        ),
        (
            Slot::MlpOutBias,
            vec![as_is("encoder.layer.{l}.output.dense.bias", d)],
        ),
    ];
    Layout {
        model,
        blocks,
        optional_prefix: "bert.",
        harmless,
        tied_head: Some(DECODER),
        instead: vec![(BIAS, "cls.predictions.decoder.bias")],
    }
}
