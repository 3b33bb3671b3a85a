//! BERT with its masked-language head: attention in both directions, and a LayerNorm on the stream after each sum.
//!
//! In the words of [`NormPlacement::Stream`]: the norm on the embeddings is `ln1` of the first block, the norm on the attention output
//! is `ln2`, the norm on a layer's output is `ln1` of the next block, and that of the last layer is the final norm. Before the
//! unembedding stand a dense layer, the activation and a norm. Every token is taken to be of the first segment; a checkpoint without
//! the masked-language head has nothing to measure and does not load. So `hook_resid_pre` and `hook_resid_mid` are the sums before
//! their norms, and the stream into a block is what went out of the one before.

use serde::Deserialize;
use serde_json::{Map, Value};

use super::config::{activation, parse, refuse_unhandled};
use super::decoder::{self, Sizes};
use super::rope::RopeSettings;
use super::{Description, Family};
use crate::error::Result;
use crate::model::layout::{Layout, Piece, Slot};
use crate::model::spec::{Encoder, ModelSpec, NormPlacement, Position};

pub const FAMILY: Family = Family {
    name: "bert",
    model_types: &["bert"],
    from_config: describe,
    gguf: None,
};

const AT_DEFAULT: &[(&str, &str)] = &[("position_embedding_type", "\"absolute\"")];

#[derive(Deserialize)]
struct Config {
    #[serde(flatten)]
    sizes: Sizes,
    layer_norm_eps: f64,
    hidden_act: String,
    type_vocab_size: usize,
    #[serde(default)]
    is_decoder: bool,
    #[serde(default = "yes")]
    tie_word_embeddings: bool,
    #[serde(flatten)]
    rest: Map<String, Value>,
}

fn yes() -> bool {
    true
}

fn describe(config: &str) -> Result<Description> {
    let config: Config = parse(config)?;
    refuse_unhandled("bert", &config.rest, AT_DEFAULT)?;
    if config.is_decoder {
        return Err(crate::error::Error::UnhandledConfig {
            family: "bert".to_string(),
            key: "is_decoder".to_string(),
            value: "true".to_string(),
        });
    }
    let spec = config
        .sizes
        .spec("bert", config.layer_norm_eps, RopeSettings::default())?;
    let mut spec = decoder::gpt(spec, Position::Learned);
    spec.norm_placement = NormPlacement::Stream;
    spec.encoder = Some(Encoder {
        n_segments: config.type_vocab_size,
    });
    spec.activation = activation("hidden_act", &config.hidden_act)?;
    spec.tied = config.tie_word_embeddings;
    let layout = layout(&spec);
    Ok(Description { spec, layout })
}

fn layout(spec: &ModelSpec) -> Layout {
    let (d, mlp) = (spec.d_model, spec.d_mlp);
    let (linear, as_is) = (Piece::linear, Piece::as_is);
    let mut model = vec![
        (
            Slot::Embed,
            vec![as_is("bert.embeddings.word_embeddings.weight", d)],
        ),
        (
            Slot::Positions,
            vec![as_is("bert.embeddings.position_embeddings.weight", d)],
        ),
        (
            Slot::Segments,
            vec![as_is("bert.embeddings.token_type_embeddings.weight", d)],
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
        (
            Slot::Ln1,
            vec![as_is("bert.embeddings.LayerNorm.weight", d)],
        ),
        (
            Slot::Ln1Bias,
            vec![as_is("bert.embeddings.LayerNorm.bias", d)],
        ),
        (
            Slot::LnFinal,
            vec![as_is(
                "bert.encoder.layer.{last}.output.LayerNorm.weight",
                d,
            )],
        ),
        (
            Slot::LnFinalBias,
            vec![as_is("bert.encoder.layer.{last}.output.LayerNorm.bias", d)],
        ),
    ];
    // The next-sentence head is no part of this model, and the unembedding's bias is often stored twice.
    let mut harmless = vec![
        "bert.embeddings.position_ids",
        "bert.pooler.dense.weight",
        "bert.pooler.dense.bias",
        "cls.seq_relationship.weight",
        "cls.seq_relationship.bias",
    ];
    let bias = |name| (Slot::UnembedBias, vec![as_is(name, spec.d_vocab)]);
    if spec.tied {
        harmless.extend([
            "cls.predictions.decoder.weight",
            "cls.predictions.decoder.bias",
        ]);
        model.push(bias("cls.predictions.bias"));
    } else {
        harmless.push("cls.predictions.bias");
        let weight = as_is("cls.predictions.decoder.weight", d);
        model.push((Slot::Unembed, vec![weight]));
        model.push(bias("cls.predictions.decoder.bias"));
    }
    let blocks = vec![
        (
            Slot::Ln1,
            vec![as_is("bert.encoder.layer.{l-1}.output.LayerNorm.weight", d)],
        ),
        (
            Slot::Ln1Bias,
            vec![as_is("bert.encoder.layer.{l-1}.output.LayerNorm.bias", d)],
        ),
        (
            Slot::Qkv,
            vec![
                linear("bert.encoder.layer.{l}.attention.self.query.weight", d),
                linear("bert.encoder.layer.{l}.attention.self.key.weight", d),
                linear("bert.encoder.layer.{l}.attention.self.value.weight", d),
            ],
        ),
        (
            Slot::QkvBias,
            vec![
                as_is("bert.encoder.layer.{l}.attention.self.query.bias", d),
                as_is("bert.encoder.layer.{l}.attention.self.key.bias", d),
                as_is("bert.encoder.layer.{l}.attention.self.value.bias", d),
            ],
        ),
        (
            Slot::O,
            vec![linear(
                "bert.encoder.layer.{l}.attention.output.dense.weight",
                d,
            )],
        ),
        (
            Slot::OBias,
            vec![as_is(
                "bert.encoder.layer.{l}.attention.output.dense.bias",
                d,
            )],
        ),
        (
            Slot::Ln2,
            vec![as_is(
                "bert.encoder.layer.{l}.attention.output.LayerNorm.weight",
                d,
            )],
        ),
        (
            Slot::Ln2Bias,
            vec![as_is(
                "bert.encoder.layer.{l}.attention.output.LayerNorm.bias",
                d,
            )],
        ),
        (
            Slot::MlpIn,
            vec![linear(
                "bert.encoder.layer.{l}.intermediate.dense.weight",
                mlp,
            )],
        ),
        (
            Slot::MlpInBias,
            vec![as_is("bert.encoder.layer.{l}.intermediate.dense.bias", mlp)],
        ),
        (
            Slot::MlpOut,
            vec![linear("bert.encoder.layer.{l}.output.dense.weight", d)],
        ),
        (
            Slot::MlpOutBias,
            vec![as_is("bert.encoder.layer.{l}.output.dense.bias", d)],
        ),
    ];
    Layout {
        model,
        blocks,
        optional_prefix: "",
        harmless,
    }
}
