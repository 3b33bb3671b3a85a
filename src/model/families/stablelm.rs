//! StableLM 2 and StableLM 3B: a Llama with LayerNorms, in which a quarter of each head rotates; its branches may stand side by
//! side. In the 12B of StableLM 2 each head norms its queries and keys with weights of its own.

use serde::Deserialize;

use super::config::Keys;
use super::decoder::{self, Biases, LlamaLike};
use super::llama_cpp::{self, Metadata};
use super::rope::DEFAULT_THETA as THETA;
use super::{Description, Family};
use crate::error::Result;
use crate::model::gguf::Gguf;
use crate::model::spec::{Block, NormKind, QkNorm};

pub const FAMILY: Family = Family {
    name: "stablelm",
    model_types: &["stablelm"],
    defaults: DEFAULTS,
    synonyms: &[],
    from_config: describe,
    gguf: Some(("stablelm", describe_gguf)),
    examples: &[
        "stabilityai/stablelm-2-1_6b",
        "stabilityai/stablelm-2-12b",
        "stabilityai/stablelm-3b-4e1t",
    ],
};

/// The share of each head that rotates, where a file leaves it out.
const PARTIAL: f64 = 0.25;

const DEFAULTS: &str = r#"{
    "vocab_size": 50304, "hidden_size": 2560, "intermediate_size": 6912, "num_hidden_layers": 32, "num_attention_heads": 32,
    "num_key_value_heads": 32, "max_position_embeddings": 4096, "layer_norm_eps": 1e-5, "hidden_act": "silu",
    "use_qkv_bias": false, "qk_layernorm": false, "use_parallel_residual": false, "tie_word_embeddings": false
}"#;

const DIFFERS: &str = "
    ln_final  norm +bias
    each      layers.{l}.
    ln1       input_layernorm +bias
    ln2       post_attention_layernorm +bias
    q_norm    self_attn.q_layernorm.norms.{h}
    k_norm    self_attn.k_layernorm.norms.{h}
";

#[derive(Deserialize)]
struct Own {
    layer_norm_eps: f64,
    hidden_act: String,
    use_qkv_bias: bool,
    use_parallel_residual: bool,
    qk_layernorm: bool,
}

fn describe(keys: &mut Keys) -> Result<Description> {
    let config = LlamaLike::<Own>::read(keys, &[], &[])?;
    let own = &config.own;
    let n_ctx = config.sizes.max_position_embeddings;
    let rope = config.rope.settings_or(keys, n_ctx, THETA, PARTIAL)?;
    let activation = ("hidden_act", own.hidden_act.as_str());
    let mut spec = config.spec_with(rope, "stablelm", own.layer_norm_eps, activation)?;
    spec.norm = NormKind::Layer;
    if own.qk_layernorm {
        spec.qk_norm = QkNorm::OwnLayer;
    }
    if own.use_parallel_residual {
        spec.block = Block::Parallel { shared_norm: true };
    }
    let biases = Biases {
        qkv: own.use_qkv_bias,
        ..Biases::default()
    };
    let layout = decoder::layout(&spec, DIFFERS, biases);
    Ok(Description::new(spec, layout))
}

/// llama.cpp goes by the tensors: without a second norm the branches stand side by side.
fn describe_gguf(gguf: &Gguf, keys: &mut Keys) -> Result<Description> {
    let metadata = Metadata::new(gguf, keys, "stablelm", &["use_parallel_residual"])?;
    let mut spec = metadata.spec("stablelm")?;
    spec.norm = NormKind::Layer;
    if !gguf.has("blk.0.ffn_norm.weight") {
        spec.block = Block::Parallel { shared_norm: true };
    }
    Ok(llama_cpp::describe_normed(spec, gguf, true))
}
