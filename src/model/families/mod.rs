//! One thin file per family: from the real `config.json` (or GGUF metadata) to a [`ModelSpec`], and the checkpoint name of each weight.
//!
//! A family has no forward pass and no loading code. To add one: read [`llama`], write its sibling, and name it in [`FAMILIES`].

pub mod alibi;
pub mod bert;
pub mod cohere;
mod config;
mod decoder;
pub mod falcon;
pub mod gemma;
mod gguf_keys;
pub mod glm4;
pub mod gpt2;
pub mod gpt_bigcode;
pub mod gpt_neo;
pub mod gpt_neox;
pub mod gptj;
pub mod granite;
mod limits;
pub mod llama;
mod llama_cpp;
pub mod mistral;
pub mod modernbert;
mod multimodal;
pub mod olmo;
pub mod olmo2;
pub mod opt;
pub mod phi;
pub mod phi3;
pub mod qwen;
mod rope;
pub mod smollm3;
pub mod stablelm;
pub mod starcoder2;
pub mod transformer_lens;

pub use config::Keys;

use serde::Deserialize;

use super::gguf::Gguf;
use super::layout::Layout;
use super::spec::ModelSpec;
use crate::error::{Error, Result};
use crate::text::shortened;

/// What a family says of one model.
#[derive(Debug, Clone, PartialEq)]
pub struct Description {
    pub spec: ModelSpec,
    pub layout: Layout,
    /// Keys of the config that the user has taken on, as `key = value`.
    pub accepted: Vec<String>,
}

impl Description {
    /// A description in which nothing had to be taken on.
    pub fn new(spec: ModelSpec, layout: Layout) -> Self {
        Description {
            spec,
            layout,
            accepted: Vec::new(),
        }
    }
}

/// A family of models that share a config format and checkpoint names.
pub struct Family {
    /// The name in [`ModelSpec::family`].
    pub name: &'static str,
    /// What `config.json` has as `model_type`.
    pub model_types: &'static [&'static str],
    /// What transformers' class assumes for the keys that a `config.json` leaves out, as JSON: those that are read here, and those
    /// that would change the function at another value.
    pub defaults: &'static str,
    /// Other names of a key, before the name that is read here.
    pub synonyms: &'static [(&'static str, &'static str)],
    /// From the keys of a `config.json`.
    pub from_config: fn(&mut Keys) -> Result<Description>,
    /// What a GGUF has as `general.architecture`, and how its metadata is read, where llama.cpp has the family.
    pub gguf: Option<(&'static str, GgufReader)>,
    /// Published models of it.
    pub examples: &'static [&'static str],
}

/// Describes a model from a GGUF header.
pub type GgufReader = fn(&Gguf, &mut Keys) -> Result<Description>;

/// Every family we read.
pub const FAMILIES: &[Family] = &[
    llama::FAMILY,
    mistral::FAMILY,
    qwen::QWEN2,
    qwen::QWEN3,
    gemma::GEMMA,
    gemma::GEMMA2,
    gemma::GEMMA3,
    phi::FAMILY,
    phi3::FAMILY,
    olmo::FAMILY,
    olmo2::OLMO2,
    olmo2::OLMO3,
    granite::FAMILY,
    smollm3::FAMILY,
    cohere::COHERE,
    cohere::COHERE2,
    stablelm::FAMILY,
    glm4::FAMILY,
    starcoder2::FAMILY,
    gpt2::FAMILY,
    gpt_neo::FAMILY,
    gptj::FAMILY,
    gpt_neox::FAMILY,
    opt::FAMILY,
    falcon::FAMILY,
    gpt_bigcode::FAMILY,
    alibi::BLOOM,
    alibi::MPT,
    bert::BERT,
    bert::ROBERTA,
    modernbert::FAMILY,
];

/// What is often tried and is none of these, with the reason. A `*` stands for any end of the name.
const REFUSED: &[(&str, &str)] = &[
    ("gemma3n*", MULTIMODAL),
    ("idefics*", MULTIMODAL),
    ("internvl*", MULTIMODAL),
    ("llava*", MULTIMODAL),
    ("mllama", MULTIMODAL),
    ("paligemma", MULTIMODAL),
    ("qwen2_5_vl*", MULTIMODAL),
    ("qwen2_vl*", MULTIMODAL),
    ("qwen3_vl*", MULTIMODAL),
    ("smolvlm", MULTIMODAL),
    ("dbrx", EXPERTS),
    ("deepseek_v*", EXPERTS),
    ("ernie4_5_moe", EXPERTS),
    ("glm4_moe*", EXPERTS),
    ("gpt_oss", EXPERTS),
    ("granitemoe*", EXPERTS),
    ("llama4*", EXPERTS),
    ("mixtral", EXPERTS),
    ("olmoe", EXPERTS),
    ("phimoe", EXPERTS),
    ("qwen2_moe", EXPERTS),
    ("qwen3_moe", EXPERTS),
    ("bart", ENCODER_DECODER),
    ("m2m_100", ENCODER_DECODER),
    ("marian", ENCODER_DECODER),
    ("mbart", ENCODER_DECODER),
    ("mt5", ENCODER_DECODER),
    ("pegasus", ENCODER_DECODER),
    ("t5*", ENCODER_DECODER),
    ("umt5", ENCODER_DECODER),
    ("whisper", ENCODER_DECODER),
    ("falcon_mamba", RECURRENT),
    ("jamba", RECURRENT),
    ("mamba*", RECURRENT),
    ("recurrent_gemma", RECURRENT),
    ("rwkv*", RECURRENT),
    ("modernbert*", NO_FIRST_NORM),
];
const NO_FIRST_NORM: &str =
    "its first layer has no norm in front of attention, which is handled in encoders only";
const MULTIMODAL: &str = "it reads more than text, and only text models are handled";
const EXPERTS: &str = "its MLPs are mixtures of experts, which are not handled";
const ENCODER_DECODER: &str =
    "it is an encoder with a decoder, and only models of one stack are handled";
const RECURRENT: &str = "it has recurrent layers, and only attention is handled";

/// Describes a model from its `config.json`.
/// # Errors
/// [`Error::UnknownArchitecture`], [`Error::RefusedArchitecture`], [`Error::UnhandledConfig`], [`Error::RefusedConfig`],
/// [`Error::BadConfig`], [`Error::UnreadableConfig`].
pub fn from_config(config: &str) -> Result<Description> {
    from_config_accepting(config, &[])
}

/// [`from_config`], where the user takes on some of the keys that would be refused.
/// # Errors
/// As [`from_config`].
pub fn from_config_accepting(config: &str, accept: &[String]) -> Result<Description> {
    let (text, taken_on) = multimodal::text_part(config, accept)?;
    let config = text.as_deref().unwrap_or(config);
    let name = model_type(config)?;
    let family = FAMILIES
        .iter()
        .find(|family| family.model_types.contains(&name.as_str()))
        .ok_or_else(|| unknown(&name))?;
    let mut keys = Keys::new(
        family.name,
        config,
        family.defaults,
        family.synonyms,
        accept,
    )?;
    let description = (family.from_config)(&mut keys)?;
    limits::check_spec(&description.spec)?;
    let mut layout = description.layout;
    if text.is_some() {
        let other = multimodal::OTHER_PARTS.iter();
        layout
            .harmless
            .extend(other.map(|name| (*name).to_string()));
    }
    Ok(Description {
        layout,
        accepted: [taken_on, keys.accepted()].concat(),
        ..description
    })
}

/// Describes a model from a GGUF header.
/// # Errors
/// As [`from_config`], and [`Error::UnknownArchitecture`] for a family that we read only as safetensors.
pub fn from_gguf(gguf: &Gguf) -> Result<Description> {
    from_gguf_accepting(gguf, &[])
}

/// [`from_gguf`], where the user takes on some of the keys that would be refused.
/// # Errors
/// As [`from_gguf`], and [`Error::NotAModel`].
pub fn from_gguf_accepting(gguf: &Gguf, accept: &[String]) -> Result<Description> {
    gguf_keys::refuse_parts(gguf)?;
    let name = gguf.string("general.architecture")?;
    let mut readers = FAMILIES.iter().filter_map(|family| family.gguf);
    let (architecture, reader) = readers
        .find(|(architecture, _)| *architecture == name)
        .ok_or_else(|| unknown(name))?;
    let mut keys = Keys::new(architecture, "{}", "{}", &[], accept)?;
    let description = reader(gguf, &mut keys)?;
    limits::check_spec(&description.spec)?;
    Ok(Description {
        accepted: keys.accepted(),
        ..description
    })
}

/// The `model_type` of a `config.json`.
/// # Errors
/// [`Error::UnreadableConfig`] if there is none.
pub fn model_type(config: &str) -> Result<String> {
    #[derive(Deserialize)]
    struct Typed {
        model_type: String,
    }
    let typed: Typed = serde_json::from_str(config).map_err(|source| Error::UnreadableConfig {
        reason: source.to_string(),
    })?;
    Ok(typed.model_type)
}

/// Names of all families, for messages.
pub fn supported() -> String {
    FAMILIES
        .iter()
        .map(|family| family.name)
        .collect::<Vec<_>>()
        .join(", ")
}

/// Refuses a share of rotating dimensions, for the families that rotate all of them.
fn all_rotates(keys: &mut Keys, rope: &rope::RopeSettings) -> Result<()> {
    if rope.partial == 1.0 {
        return Ok(());
    }
    keys.refuse(
        "partial_rotary_factor",
        &rope.partial.to_string(),
        "in this family all dimensions of a head rotate",
    )
}

fn unknown(name: &str) -> Error {
    let fits = |pattern: &str| match pattern.strip_suffix('*') {
        Some(start) => name.starts_with(start),
        None => name == pattern,
    };
    match REFUSED.iter().find(|(pattern, _)| fits(pattern)) {
        Some((_, reason)) => Error::RefusedArchitecture {
            name: name.to_string(),
            reason,
        },
        None => Error::UnknownArchitecture {
            name: shortened(name),
            supported: supported(),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_two_families_claim_a_name() {
        let mut names: Vec<&str> = FAMILIES
            .iter()
            .flat_map(|family| family.model_types)
            .copied()
            .collect();
        let refused = REFUSED.iter().map(|(name, _)| *name);
        names.extend(refused);
        let count = names.len();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), count);
    }

    #[test]
    fn what_cannot_be_supported_says_why() {
        let message = |name: &str| {
            let config = format!(r#"{{"model_type": "{name}"}}"#);
            from_config(&config).unwrap_err().to_string()
        };
        assert!(message("mixtral").contains("mixtures of experts"));
        assert!(message("qwen2_vl").contains("only text models"));
        assert!(message("t5").contains("only models of one stack"));
        assert!(message("deepseek_v3").contains("mixtures of experts"));
        assert!(message("mamba2").contains("recurrent"));
        assert!(message("something_else").contains("supported: llama"));
    }
}
