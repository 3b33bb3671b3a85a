//! candle-transformers' own llama, made from our canonical weights: the split and transposed matrices under their Hugging Face
//! names. Both sides then hold the same numbers and multiply with the same crate on the same threads.

use std::collections::HashMap;

use anyhow::{Context, Result, bail};
use candle_core::{D, DType, Device, Tensor};
use candle_nn::VarBuilder;
use candle_transformers::models::llama::{Cache, Config, Llama};
use candlewick::model::Model;
use candlewick::spec::Position;

pub struct Theirs {
    model: Llama,
    config: Config,
}

impl Theirs {
    pub fn new(model: &Model) -> Result<Self> {
        let spec = &model.spec;
        let Position::Rotary(rotary) = &spec.position else {
            bail!("the bench compares models of the llama family");
        };
        let config = Config {
            hidden_size: spec.d_model,
            intermediate_size: spec.d_mlp,
            vocab_size: spec.d_vocab,
            num_hidden_layers: spec.n_layers,
            num_attention_heads: spec.n_heads,
            num_key_value_heads: spec.n_kv_heads,
            use_flash_attn: false,
            rms_norm_eps: spec.norm_eps,
            rope_theta: rotary.bases[0].theta as f32,
            bos_token_id: None,
            eos_token_id: None,
            rope_scaling: None,
            max_position_embeddings: spec.n_ctx,
            tie_word_embeddings: spec.tied,
        };
        let builder = VarBuilder::from_tensors(weights(model)?, DType::F32, &Device::Cpu);
        Ok(Theirs {
            model: Llama::load(builder, &config)?,
            config,
        })
    }

    /// Logits at the last position.
    pub fn forward(&self, prompts: &[Vec<u32>]) -> Result<Tensor> {
        let mut cache = Cache::new(false, DType::F32, &self.config, &Device::Cpu)?;
        let ids = Tensor::new(prompts.concat(), &Device::Cpu)?
            .reshape((prompts.len(), prompts[0].len()))?;
        Ok(self.model.forward(&ids, 0, &mut cache)?)
    }
}

fn weights(model: &Model) -> Result<HashMap<String, Tensor>> {
    let spec = &model.spec;
    let (q, kv) = (spec.n_heads * spec.d_head, spec.n_kv_heads * spec.d_head);
    let mut named = HashMap::from([
        (
            "model.embed_tokens.weight".into(),
            model.weights.w_e.clone(),
        ),
        ("lm_head.weight".into(), model.weights.w_u.clone()),
    ]);
    let final_norm = model.weights.ln_final.as_ref().context("a final norm")?;
    named.insert("model.norm.weight".into(), final_norm.w.clone());
    for (layer, block) in model.weights.blocks.iter().enumerate() {
        let mlp = block.mlp.as_ref().context("an MLP")?;
        let norms = [
            ("input_layernorm", &block.ln1),
            ("post_attention_layernorm", &block.ln2),
        ];
        for (name, norm) in norms {
            let w = &norm.as_ref().context("a norm before each branch")?.w;
            named.insert(format!("model.layers.{layer}.{name}.weight"), w.clone());
        }
        let columns = [
            ("self_attn.q_proj", &block.w_qkv, 0, q),
            ("self_attn.k_proj", &block.w_qkv, q, kv),
            ("self_attn.v_proj", &block.w_qkv, q + kv, kv),
            ("self_attn.o_proj", &block.w_o, 0, spec.d_model),
            ("mlp.gate_proj", &mlp.w_in, 0, spec.d_mlp),
            ("mlp.up_proj", &mlp.w_in, spec.d_mlp, spec.d_mlp),
            ("mlp.down_proj", &mlp.w_out, 0, spec.d_model),
        ];
        for (name, matrix, start, count) in columns {
            let w = matrix.narrow(D::Minus1, start, count)?.t()?.contiguous()?;
            named.insert(format!("model.layers.{layer}.{name}.weight"), w);
        }
    }
    Ok(named)
}
