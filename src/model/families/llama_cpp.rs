//! GGUF files as llama.cpp writes them: one set of metadata keys and one set of tensor names for every architecture.
//!
//! A family starts from [`Metadata::spec`], which describes a Llama of the sizes in the file, and says how it differs. Weights are
//! found by the spec and by what the first block has: fused products and biases have no key, they are there or not.

use super::Description;
use super::config::Keys;
use super::decoder::Sizes;
use super::gguf_keys::refuse_unhandled_gguf;
use super::limits::{check_layers, head_width};
use super::rope::RopeSettings;
use crate::error::{Error, Result};
use crate::model::gguf::Gguf;
use crate::model::layout::{Slot, Take};
use crate::model::page;
use crate::model::spec::{Mlp, ModelSpec, Position, QkNorm, RopeScaling, RotaryBase};
use crate::text::shortened;

/// Keys that every architecture may have and that are read here.
const HANDLED: &[&str] = &[
    "attention.head_count",
    "attention.head_count_kv",
    "attention.key_length",
    "attention.layer_norm_epsilon",
    "attention.layer_norm_rms_epsilon",
    "attention.value_length",
    "block_count",
    "context_length",
    "embedding_length",
    "feed_forward_length",
    "rope.dimension_count",
    "rope.freq_base",
    "rope.scaling.attn_factor",
    "rope.scaling.factor",
    // What the model was stretched from; the stretching itself is the factor or the tensors of factors.
    "rope.scaling.finetuned",
    "rope.scaling.original_context_length",
    "rope.scaling.type",
    "rope.scaling.yarn_beta_fast",
    "rope.scaling.yarn_beta_slow",
    "rope.scaling.yarn_ext_factor",
    "vocab_size",
];
const AT_DEFAULT: &[(&str, f64)] = &[
    ("attention.causal", 1.0),
    ("expert_count", 0.0),
    ("expert_used_count", 0.0),
];

/// The metadata of one architecture in a file.
pub struct Metadata<'a> {
    pub gguf: &'a Gguf,
    architecture: &'static str,
}

impl<'a> Metadata<'a> {
    /// Refuses keys that are neither read here nor named by the family.
    /// # Errors
    /// [`Error::UnhandledConfig`].
    pub fn new(
        gguf: &'a Gguf,
        keys: &mut Keys,
        architecture: &'static str,
        own_keys: &[&str],
    ) -> Result<Self> {
        let handled: Vec<&str> = HANDLED.iter().chain(own_keys).copied().collect();
        refuse_unhandled_gguf(gguf, keys, architecture, &handled, AT_DEFAULT)?;
        Ok(Metadata { gguf, architecture })
    }

    /// The whole name of a key: `llama.block_count`.
    pub fn key(&self, name: &str) -> String {
        format!("{}.{name}", self.architecture)
    }

    /// A Llama of the sizes in this file.
    /// # Errors
    /// [`Error::BadConfig`] for what is missing or absurd, [`Error::UnhandledConfig`] for a rope scaling that we do not compute.
    pub fn spec(&self, family: &str) -> Result<ModelSpec> {
        let gguf = self.gguf;
        let size = |name: &str| gguf.size(&self.key(name));
        let maybe = |name: &str| gguf.maybe_size(&self.key(name));
        let heads = size("attention.head_count")?;
        let d_model = size("embedding_length")?;
        let d_head = match maybe("attention.key_length")? {
            Some(d_head) => d_head,
            None => head_width(&self.key("attention.head_count"), d_model, heads)?,
        };
        if let Some(other) = maybe("attention.value_length")?.filter(|other| *other != d_head) {
            return Err(Error::BadConfig {
                key: self.key("attention.value_length"),
                reason: format!(
                    "{other}, but a key has {d_head} dimensions; only equal ones are handled"
                ),
            });
        }
        let n_layers = size("block_count")?;
        check_layers(&self.key("block_count"), n_layers)?;
        let sizes = Sizes {
            hidden_size: d_model,
            intermediate_size: size("feed_forward_length")?,
            num_hidden_layers: n_layers,
            num_attention_heads: heads,
            num_key_value_heads: maybe("attention.head_count_kv")?,
            head_dim: Some(d_head),
            vocab_size: gguf.rows("token_embd.weight")?,
            max_position_embeddings: size("context_length")?,
        };
        let dims = maybe("rope.dimension_count")?.unwrap_or(d_head);
        let theta = gguf.maybe_number(&self.key("rope.freq_base"))?;
        let rope = RopeSettings {
            base: RotaryBase {
                theta: theta.unwrap_or(10_000.0),
                scaling: self.scaling(dims)?,
            },
            partial: 1.0,
        };
        let mut spec = sizes.spec(family, self.norm_eps()?, rope)?;
        if let Position::Rotary(rotary) = &mut spec.position {
            rotary.dims = dims;
        }
        spec.tied = !gguf.has("output.weight");
        Ok(spec)
    }

    fn norm_eps(&self) -> Result<f64> {
        let rms = self
            .gguf
            .maybe_number(&self.key("attention.layer_norm_rms_epsilon"))?;
        match rms {
            Some(eps) => Ok(eps),
            None => self.gguf.number(&self.key("attention.layer_norm_epsilon")),
        }
    }

    /// YaRN with what llama.cpp assumes where a key is missing; it makes scores as much steeper as transformers does.
    fn yarn(&self, factor: f64) -> Result<RopeScaling> {
        let gguf = self.gguf;
        let number = |name: &str, or: f64| -> Result<f64> {
            let key = self.key(&format!("rope.scaling.{name}"));
            Ok(gguf.maybe_number(&key)?.unwrap_or(or))
        };
        let original = gguf.maybe_size(&self.key("rope.scaling.original_context_length"))?;
        let context = gguf.size(&self.key("context_length"))?;
        let mix = number("yarn_ext_factor", 1.0)?;
        if mix != 1.0 {
            return Err(Error::RefusedConfig {
                family: self.architecture.to_string(),
                key: self.key("rope.scaling.yarn_ext_factor"),
                value: mix.to_string(),
                reason: "of YaRN's mixtures only the whole one (1) is computed".to_string(),
            });
        }
        Ok(RopeScaling::Yarn {
            factor,
            beta_fast: number("yarn_beta_fast", 32.0)?,
            beta_slow: number("yarn_beta_slow", 1.0)?,
            attention_factor: number("attn_factor", 1.0)? * (1.0 + 0.1 * factor.ln()),
            truncate: true,
            original_max_position: original.unwrap_or(context),
        })
    }

    fn scaling(&self, dims: usize) -> Result<RopeScaling> {
        let gguf = self.gguf;
        let kind_key = self.key("rope.scaling.type");
        let kind = gguf.maybe_string(&kind_key)?.unwrap_or("none");
        let factor = gguf.maybe_number(&self.key("rope.scaling.factor"))?;
        let factors = match gguf.has("rope_freqs.weight") {
            true => Some(gguf.small_vector("rope_freqs.weight", dims / 2)?),
            false => None,
        };
        match (kind, factor, factors) {
            ("none", None, Some(factors)) if factors.iter().all(|factor| *factor > 0.0) => {
                Ok(RopeScaling::Factors { factors })
            }
            ("none", None, None) => Ok(RopeScaling::None),
            ("linear", Some(factor), None) if factor > 0.0 => Ok(RopeScaling::Linear { factor }),
            ("yarn", Some(factor), None) if factor >= 1.0 => self.yarn(factor),
            _ => Err(Error::RefusedConfig {
                family: self.architecture.to_string(),
                key: kind_key,
                value: match factor {
                    Some(factor) => format!("{}, by {factor}", shortened(kind)),
                    None => shortened(kind),
                },
                reason: "of the ways to stretch positions in a GGUF, only `linear`, `yarn` and a tensor of factors are read; load the \
                         safetensors of the model"
                    .to_string(),
            }),
        }
    }
}

/// How the rows of q and k lie in a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Heads {
    AsTrained,
    /// The two rotary halves of each head interleaved: what llama.cpp does to Llama's.
    Interleaved,
}

/// Where llama.cpp keeps the weights of every architecture. The factors of rotary frequencies are part of the spec.
const LAYOUT: &str = "
    embed     token_embd
    positions position_embd
    ln_final  output_norm +bias
    unembed   output +bias
    each      blk.{l}.
    ln1       attn_norm +bias
    q_norm    attn_q_norm
    k_norm    attn_k_norm
    o         attn_output +bias
    ln1_post  post_attention_norm +bias
    ln2       ffn_norm +bias
    mlp_out   ffn_down +bias
    ln2_post  post_ffw_norm +bias
    ignore    rope_freqs.weight rope_factors_long.weight rope_factors_short.weight *.attn_rot_embd.weight
";

/// Where llama.cpp keeps the weights of a spec: what is fused, and what has biases, the first block shows.
pub fn describe(spec: ModelSpec, gguf: &Gguf, heads: Heads) -> Description {
    describe_with(spec, gguf, heads, "", true)
}

/// The same, of architectures whose queries and keys may have norms with weights of each head.
pub fn describe_normed(mut spec: ModelSpec, gguf: &Gguf, norm_biases: bool) -> Description {
    if gguf.has("blk.0.attn_q_norm.weight") {
        spec.qk_norm = QkNorm::OwnLayer;
    }
    let page = "each blk.{l}. \n q_norm attn_q_norm in_heads \n k_norm attn_k_norm in_heads";
    describe_with(spec, gguf, Heads::AsTrained, page, norm_biases)
}

/// The same, with what an architecture has elsewhere, lines of a page; and whether its norms of mean and variance must have biases.
pub fn describe_with(
    spec: ModelSpec,
    gguf: &Gguf,
    heads: Heads,
    differs: &str,
    norm_biases: bool,
) -> Description {
    let qkv = if gguf.has("blk.0.attn_qkv.weight") {
        "qkv attn_qkv +bias"
    } else {
        "qkv attn_q attn_k attn_v +bias"
    };
    let mlp_in = if spec.mlp == Mlp::Gated && gguf.has("blk.0.ffn_gate.weight") {
        "mlp_in ffn_gate ffn_up +bias"
    } else {
        "mlp_in ffn_up +bias"
    };
    let mut layout = page::layout(&format!("{LAYOUT}{qkv}\n{mlp_in}\n{differs}"), &spec);
    layout.tied_head = None;
    let of_norms = [
        Slot::LnFinalBias,
        Slot::Ln1Bias,
        Slot::Ln1PostBias,
        Slot::Ln2Bias,
        Slot::Ln2PostBias,
    ];
    let of_products = [
        Slot::UnembedBias,
        Slot::QkvBias,
        Slot::OBias,
        Slot::MlpInBias,
        Slot::MlpOutBias,
    ];
    let missing: Vec<Slot> = layout
        .filled(&spec)
        .filter(|(slot, layer, pieces)| {
            let is_optional = of_products.contains(slot) || !norm_biases && of_norms.contains(slot);
            *layer == 0 && is_optional && !gguf.has(&pieces[0].resolved(0, spec.n_layers))
        })
        .map(|(slot, ..)| slot)
        .collect();
    layout = layout.without(&missing);
    if heads == Heads::Interleaved {
        let d_head = spec.d_head;
        let blocks = layout.blocks.iter_mut();
        for (_, pieces) in blocks.filter(|(slot, _)| matches!(slot, Slot::Qkv | Slot::QkvBias)) {
            // Values do not rotate.
            let turned = pieces.iter_mut().take(2);
            turned.for_each(|piece| piece.take = Take::UninterleaveHalves { d_head });
        }
    }
    Description::new(spec, layout)
}

#[cfg(test)]
mod tests {
    use candle_core::{DType, Device, Tensor};

    use super::*;
    use crate::model::gguf::tests::Writer;
    use crate::model::layout::Need;
    use crate::model::load::{LoadOptions, load, read_weights};
    use crate::model::{Model, families};

    fn flat(tensor: &Tensor) -> Vec<f32> {
        tensor.flatten_all().unwrap().to_vec1().unwrap()
    }

    /// Writes a slot under llama.cpp's name for it; matrices are stored `[out, in]`, embeddings as they are.
    fn put(writer: &mut Writer, name: &str, slot: Slot, tensor: &Tensor) {
        let is_matrix =
            tensor.rank() == 2 && !matches!(slot, Slot::Embed | Slot::Unembed | Slot::Positions);
        let stored = if is_matrix {
            tensor.t().unwrap()
        } else {
            tensor.clone()
        };
        writer.tensor(name, stored.dims(), &flat(&stored));
    }

    fn name_of(slot: Slot) -> &'static str {
        match slot {
            Slot::Embed => "token_embd.weight",
            Slot::Positions => "position_embd.weight",
            Slot::LnFinal => "output_norm.weight",
            Slot::LnFinalBias => "output_norm.bias",
            Slot::Unembed => "output.weight",
            Slot::UnembedBias => "output.bias",
            Slot::LnEmbed
            | Slot::LnEmbedBias
            | Slot::Segments
            | Slot::Head
            | Slot::HeadBias
            | Slot::LnHead
            | Slot::LnHeadBias => {
                unreachable!("no encoder is written")
            }
            Slot::Ln1 => "attn_norm.weight",
            Slot::Ln1Bias => "attn_norm.bias",
            Slot::Qkv => "attn_qkv.weight",
            Slot::QkvBias => "attn_qkv.bias",
            Slot::QNorm => "attn_q_norm.weight",
            Slot::QNormBias => "attn_q_norm.bias",
            Slot::KNorm => "attn_k_norm.weight",
            Slot::KNormBias => "attn_k_norm.bias",
            Slot::O => "attn_output.weight",
            Slot::OBias => "attn_output.bias",
            Slot::Ln1Post => "post_attention_norm.weight",
            Slot::Ln1PostBias => "post_attention_norm.bias",
            Slot::Ln2 => "ffn_norm.weight",
            Slot::Ln2Bias => "ffn_norm.bias",
            Slot::MlpIn => "ffn_up.weight",
            Slot::MlpInBias => "ffn_up.bias",
            Slot::MlpOut => "ffn_down.weight",
            Slot::MlpOutBias => "ffn_down.bias",
            Slot::Ln2Post => "post_ffw_norm.weight",
            Slot::Ln2PostBias => "post_ffw_norm.bias",
        }
    }

    /// The outputs of queries or keys as llama.cpp turns Llama's: the other way round than they are taken.
    fn turned(part: &Tensor, d_head: usize) -> Tensor {
        let last = part.rank() - 1;
        let take = Take::UninterleaveHalves { d_head };
        let mut stored = vec![0u32; part.dims()[last]];
        for i in 0..stored.len() {
            stored[take.source(i)] = i as u32;
        }
        let stored = Tensor::new(stored, &Device::Cpu).unwrap();
        let part = part.contiguous().unwrap();
        part.index_select(&stored, last).unwrap()
    }

    /// The keys that an architecture has beside the sizes.
    fn put_own_keys(writer: &mut Writer, spec: &ModelSpec, architecture: &str) {
        let key = |name: &str| format!("{architecture}.{name}");
        let mut number = |name: &str, value: f32| {
            writer.float(&key(name), value);
        };
        match architecture {
            "granite" => {
                number("attention.scale", spec.attn_scale[0]);
                number("embedding_scale", spec.embed_scale.unwrap());
                number("residual_scale", spec.residual_multiplier.unwrap());
                number("logit_scale", 1.0 / spec.logit_scale.unwrap());
            }
            "command-r" | "cohere2" => number("logit_scale", spec.logit_scale.unwrap()),
            "olmo" => number("attention.clamp_kqv", spec.qkv_clip.unwrap()),
            _ => {}
        }
        if architecture == "cohere2" || architecture.starts_with("gemma") && architecture != "gemma"
        {
            writer.size(&key("attention.sliding_window"), 4);
        }
    }

    fn written(model: &Model, architecture: &str, is_fused: bool) -> Writer {
        let spec = &model.spec;
        let mut writer = Writer::default();
        let key = |name: &str| format!("{architecture}.{name}");
        let size = |n: usize| u32::try_from(n).unwrap();
        writer
            .text("general.architecture", architecture)
            .size(&key("block_count"), size(spec.n_layers))
            .size(&key("embedding_length"), size(spec.d_model))
            .size(&key("feed_forward_length"), size(spec.d_mlp))
            .size(&key("attention.head_count"), size(spec.n_heads))
            .size(&key("attention.head_count_kv"), size(spec.n_kv_heads))
            .size(&key("attention.key_length"), size(spec.d_head))
            .size(&key("context_length"), size(spec.n_ctx))
            .float(&key("attention.layer_norm_epsilon"), spec.norm_eps as f32);
        if spec.rotary_dims() > 0 {
            writer.size(&key("rope.dimension_count"), size(spec.rotary_dims()));
        }
        put_own_keys(&mut writer, spec, architecture);
        let is_turned = ["granite", "olmo", "smollm3"].contains(&architecture);
        // A norm without weights has no tensor.
        let has_tensor = |slot: Slot| {
            architecture != "olmo" || !matches!(slot, Slot::Ln1 | Slot::Ln2 | Slot::LnFinal)
        };
        if architecture == "gemma2" {
            writer
                .float(&key("attn_logit_softcapping"), 4.0)
                .float(&key("final_logit_softcapping"), 6.0);
        }
        for slot in Slot::MODEL {
            if let Some(tensor) = slot
                .get(&model.weights, 0)
                .filter(|_| slot != Slot::Unembed || !spec.tied)
                .filter(|_| has_tensor(slot))
            {
                put(&mut writer, name_of(slot), slot, tensor);
            }
        }
        let (q, kv) = (spec.n_heads * spec.d_head, spec.n_kv_heads * spec.d_head);
        for layer in 0..spec.n_layers {
            for slot in Slot::BLOCK {
                let tensor = slot.get(&model.weights, layer);
                let Some(tensor) = tensor.filter(|_| has_tensor(slot)) else {
                    continue;
                };
                if matches!(slot, Slot::QNorm | Slot::KNorm) && spec.qk_norm == QkNorm::OwnLayer {
                    let name = format!("blk.{layer}.{}", name_of(slot));
                    let heads = tensor.elem_count() / spec.d_head;
                    writer.tensor(&name, &[heads, spec.d_head], &flat(tensor));
                    continue;
                }
                let parts: Vec<(&str, usize)> = match slot {
                    Slot::Qkv if !is_fused => vec![
                        ("attn_q.weight", q),
                        ("attn_k.weight", kv),
                        ("attn_v.weight", kv),
                    ],
                    Slot::QkvBias if !is_fused => {
                        vec![("attn_q.bias", q), ("attn_k.bias", kv), ("attn_v.bias", kv)]
                    }
                    Slot::MlpIn if spec.mlp == Mlp::Gated => {
                        vec![
                            ("ffn_gate.weight", spec.d_mlp),
                            ("ffn_up.weight", spec.d_mlp),
                        ]
                    }
                    _ => vec![(name_of(slot), tensor.dims()[tensor.rank() - 1])],
                };
                let mut start = 0;
                for (name, width) in parts {
                    let part = tensor.narrow(tensor.rank() - 1, start, width).unwrap();
                    let is_read = name.starts_with("attn_q.") || name.starts_with("attn_k.");
                    let part = match is_turned && is_read {
                        true => turned(&part, spec.d_head),
                        false => part,
                    };
                    put(&mut writer, &format!("blk.{layer}.{name}"), slot, &part);
                    start += width;
                }
            }
        }
        writer
    }

    #[test]
    fn every_architecture_finds_the_weights_of_its_family() {
        for (fixture, architecture, is_fused) in [
            ("qwen2-tiny-yarn", "qwen2", false),
            ("qwen3-tiny-biased", "qwen3", false),
            ("gemma-tiny", "gemma", false),
            ("gemma2-tiny", "gemma2", false),
            ("gemma3-tiny", "gemma3", false),
            ("phi-tiny-grouped", "phi2", true),
            ("phi-tiny-grouped", "phi2", false),
            ("olmo2-tiny", "olmo2", false),
            ("starcoder2-tiny", "starcoder2", false),
            ("starcoder2-tiny-unbiased", "starcoder2", false),
            ("gpt_neox-tiny", "gptneox", true),
            ("gpt2-tiny-scaled", "gpt2", true),
            ("granite-tiny", "granite", false),
            ("smollm3-tiny", "smollm3", false),
            ("olmo-tiny-clipped", "olmo", false),
            ("stablelm-tiny", "stablelm", false),
            ("stablelm-tiny-normed", "stablelm", false),
            ("cohere-tiny", "command-r", false),
            ("cohere-tiny-normed", "command-r", false),
            ("cohere2-tiny", "cohere2", false),
        ] {
            let path = format!("{}/tests/fixtures/{fixture}", env!("CARGO_MANIFEST_DIR"));
            let model = load(&path, &LoadOptions::default()).unwrap().model;
            let file = tempfile::NamedTempFile::new().unwrap();
            std::fs::write(file.path(), written(&model, architecture, is_fused).bytes()).unwrap();
            let gguf = Gguf::open(file.path()).unwrap();
            let described =
                families::from_gguf(&gguf).unwrap_or_else(|error| panic!("{fixture}: {error}"));
            let weights = read_weights(&gguf, &described, Some(DType::F32), &Device::Cpu);
            let weights = weights.unwrap_or_else(|error| panic!("{fixture}: {error}"));
            let spec = &described.spec;
            assert_eq!(spec.family, model.spec.family);
            assert_eq!(
                (
                    spec.norm,
                    spec.norm_placement,
                    spec.block,
                    spec.qk_norm,
                    spec.mlp,
                    spec.tied,
                    spec.embed_scale
                ),
                (
                    model.spec.norm,
                    model.spec.norm_placement,
                    model.spec.block,
                    model.spec.qk_norm,
                    model.spec.mlp,
                    model.spec.tied,
                    model.spec.embed_scale
                ),
                "{fixture}"
            );
            let numbers =
                |spec: &ModelSpec| (spec.qkv_clip, spec.residual_multiplier, spec.rotary_dims());
            assert_eq!(numbers(spec), numbers(&model.spec), "{fixture}");
            let scale = |spec: &ModelSpec| spec.logit_scale.unwrap_or(1.0);
            let gap = (scale(spec) - scale(&model.spec)).abs();
            assert!(gap < 1e-6, "{fixture}: logits differ by a factor");
            let style = |spec: &ModelSpec| match &spec.position {
                Position::Rotary(rotary) => Some(rotary.style),
                _ => None,
            };
            assert_eq!(style(spec), style(&model.spec), "{fixture}");
            for slot in Slot::MODEL.into_iter().chain(Slot::BLOCK) {
                for layer in 0..spec.n_layers {
                    let [ours, theirs] = [&weights, &model.weights]
                        .map(|weights| slot.get(weights, layer).map(flat));
                    assert_eq!(ours, theirs, "{fixture}: {slot:?} of layer {layer}");
                    assert!(
                        ours.is_some() || slot.need(spec, layer) != Need::Required,
                        "{fixture}: {slot:?}"
                    );
                }
            }
        }
    }
    #[test]
    fn yarn_in_a_gguf_is_yarn_in_a_config() {
        let path = format!(
            "{}/tests/fixtures/llama-tiny-yarn",
            env!("CARGO_MANIFEST_DIR")
        );
        let model = load(&path, &LoadOptions::default()).unwrap().model;
        let scaling = |spec: &ModelSpec| match &spec.position {
            Position::Rotary(rotary) => rotary.bases[0].scaling.clone(),
            other => panic!("{other:?}"),
        };
        // The settings of the fixture, under llama.cpp's names.
        let mut writer = written(&model, "qwen2", false);
        writer
            .text("qwen2.rope.scaling.type", "yarn")
            .float("qwen2.rope.scaling.factor", 4.0)
            .float("qwen2.rope.scaling.yarn_beta_fast", 4.0)
            .float("qwen2.rope.scaling.yarn_beta_slow", 0.5)
            .size("qwen2.rope.scaling.original_context_length", 16);
        let described = |writer: &Writer| {
            let file = tempfile::NamedTempFile::new().unwrap();
            std::fs::write(file.path(), writer.bytes()).unwrap();
            families::from_gguf(&Gguf::open(file.path()).unwrap())
        };
        let read = described(&writer).unwrap();
        assert_eq!(scaling(&read.spec), scaling(&model.spec));
        writer.float("qwen2.rope.scaling.yarn_ext_factor", 0.5);
        let error = described(&writer).unwrap_err().to_string();
        assert!(error.contains("yarn_ext_factor"), "{error}");
    }
}
