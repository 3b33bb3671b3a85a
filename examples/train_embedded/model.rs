//! A Llama small enough to train in minutes, written with composed operations only.
//!
//! candle's fused kernels (`softmax_last_dim`, `rms_norm`, `rope`) have no backward rule and cut the graph without a word,
//! so every norm, softmax and rotation here is spelled out. The library's own forward pass is tested elsewhere; this one
//! exists so that the optimiser can differentiate it, and so that the circuit check does not depend on what it is to check.

use std::collections::HashMap;
use std::path::Path;

use candle_core::{D, DType, Device, Result, Tensor, Var};
use candle_nn::ops::sigmoid;
use rand::Rng;
use rand_chacha::ChaCha8Rng;
use serde_json::{Value, json};

/// The sizes that `config.json` will say.
#[derive(Debug, Clone, Copy)]
pub struct Sizes {
    pub n_layers: usize,
    pub n_heads: usize,
    pub d_model: usize,
    pub d_head: usize,
    pub d_mlp: usize,
    pub d_vocab: usize,
    pub n_ctx: usize,
}

const ROPE_THETA: f64 = 10_000.0;
const NORM_EPS: f64 = 1e-5;
/// Standard deviation of the embedding at the start.
const EMBEDDING_STD: f64 = 0.3;

/// A place in the forward pass where the circuit check can read or replace a value.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Place {
    /// The stream entering a block, `[batch, pos, d_model]`.
    ResidPre(usize),
    /// The heads' mixed values, `[batch, pos, head, d_head]`.
    Z(usize),
    /// The attention pattern, `[batch, head, query, key]`.
    Pattern(usize),
    /// What the MLP adds, `[batch, pos, d_model]`.
    MlpOut(usize),
}

/// Weights under their names in a Hugging Face checkpoint; matrices are `[out, in]`.
pub struct Llama {
    sizes: Sizes,
    weights: HashMap<String, Var>,
    /// The order in which weights were drawn, which is the order the optimiser sees.
    names: Vec<String>,
    /// Cosines and sines, `[n_ctx, d_head]`.
    cos: Tensor,
    sin: Tensor,
    /// 0 on and below the diagonal, a large negative number above, `[n_ctx, n_ctx]`.
    mask: Tensor,
}

impl Llama {
    /// Draws every weight from `rng`: uniform, with variance 1 / (inputs), and less for what writes into the stream.
    pub fn new(sizes: Sizes, rng: &mut ChaCha8Rng) -> Result<Self> {
        let Sizes {
            n_layers,
            n_heads,
            d_model,
            d_head,
            d_mlp,
            d_vocab,
            n_ctx,
        } = sizes;
        let mut weights = HashMap::new();
        let mut names = Vec::new();
        let mut put = |name: String, tensor: Tensor| -> Result<()> {
            names.push(name.clone());
            weights.insert(name, Var::from_tensor(&tensor)?);
            Ok(())
        };
        let fan_in = |inputs: usize| 1.0 / (inputs as f64).sqrt();
        let writes = 1.0 / (2.0 * n_layers as f64).sqrt();

        put(
            "model.embed_tokens.weight".into(),
            uniform(rng, d_vocab, d_model, EMBEDDING_STD)?,
        )?;
        for layer in 0..n_layers {
            let at = |name: &str| format!("model.layers.{layer}.{name}.weight");
            let width = n_heads * d_head;
            put(at("input_layernorm"), ones(d_model)?)?;
            put(
                at("self_attn.q_proj"),
                uniform(rng, width, d_model, fan_in(d_model))?,
            )?;
            put(
                at("self_attn.k_proj"),
                uniform(rng, width, d_model, fan_in(d_model))?,
            )?;
            put(
                at("self_attn.v_proj"),
                uniform(rng, width, d_model, fan_in(d_model))?,
            )?;
            put(
                at("self_attn.o_proj"),
                uniform(rng, d_model, width, fan_in(width) * writes)?,
            )?;
            put(at("post_attention_layernorm"), ones(d_model)?)?;
            put(
                at("mlp.gate_proj"),
                uniform(rng, d_mlp, d_model, fan_in(d_model))?,
            )?;
            put(
                at("mlp.up_proj"),
                uniform(rng, d_mlp, d_model, fan_in(d_model))?,
            )?;
            put(
                at("mlp.down_proj"),
                uniform(rng, d_model, d_mlp, fan_in(d_mlp) * writes)?,
            )?;
        }
        put("model.norm.weight".into(), ones(d_model)?)?;
        put(
            "lm_head.weight".into(),
            uniform(rng, d_vocab, d_model, fan_in(d_model))?,
        )?;

        let (cos, sin) = rotary_tables(n_ctx, d_head)?;
        let mask = causal_mask(n_ctx)?;
        Ok(Self {
            sizes,
            weights,
            names,
            cos,
            sin,
            mask,
        })
    }

    /// The matrices, which weight decay shrinks, and the norm weights, which it must leave alone.
    pub fn parameters(&self) -> (Vec<Var>, Vec<Var>) {
        let vars = self.names.iter().map(|name| self.weights[name].clone());
        vars.partition(|var| var.rank() == 2)
    }

    /// Logits `[batch, pos, d_vocab]` of `tokens` `[batch, pos]`.
    pub fn forward(&self, tokens: &Tensor) -> Result<Tensor> {
        self.forward_with(tokens, &mut |_, value| Ok(value))
    }

    /// The same, with every [`Place`] handed to `tap`; the run goes on with what `tap` returns.
    pub fn forward_with(
        &self,
        tokens: &Tensor,
        tap: &mut dyn FnMut(Place, Tensor) -> Result<Tensor>,
    ) -> Result<Tensor> {
        let Sizes {
            n_layers, d_model, ..
        } = self.sizes;
        let (batch, pos) = tokens.dims2()?;
        let mut stream = self.weights["model.embed_tokens.weight"]
            .index_select(&tokens.flatten_all()?, 0)?
            .reshape((batch, pos, d_model))?; // [batch, pos, d_model]
        for layer in 0..n_layers {
            stream = tap(Place::ResidPre(layer), stream)?;
            let normed = self.norm(&stream, &format!("model.layers.{layer}.input_layernorm"))?;
            stream = (stream + self.attention(layer, &normed, tap)?)?;
            let normed = self.norm(
                &stream,
                &format!("model.layers.{layer}.post_attention_layernorm"),
            )?;
            let out = tap(Place::MlpOut(layer), self.mlp(layer, &normed)?)?;
            stream = (stream + out)?;
        }
        self.linear(&self.norm(&stream, "model.norm")?, "lm_head")
    }

    fn attention(
        &self,
        layer: usize,
        x: &Tensor,
        tap: &mut dyn FnMut(Place, Tensor) -> Result<Tensor>,
    ) -> Result<Tensor> {
        let Sizes {
            n_heads, d_head, ..
        } = self.sizes;
        let (batch, pos, _) = x.dims3()?;
        let heads = |part: &str| -> Result<Tensor> {
            self.linear(x, &format!("model.layers.{layer}.self_attn.{part}_proj"))?
                .reshape((batch, pos, n_heads, d_head))?
                .transpose(1, 2)? // [batch, head, pos, d_head]
                .contiguous()
        };
        let q = self.rotate(&heads("q")?)?;
        let k = self.rotate(&heads("k")?)?;
        let v = heads("v")?;
        let mask = self.mask.narrow(0, 0, pos)?.narrow(1, 0, pos)?;
        let scores = (q.matmul(&k.transpose(2, 3)?.contiguous()?)? / (d_head as f64).sqrt())?;
        let pattern = softmax(&scores.broadcast_add(&mask)?)?; // [batch, head, query, key]
        let pattern = tap(Place::Pattern(layer), pattern)?;
        let z = pattern.matmul(&v)?.transpose(1, 2)?.contiguous()?; // [batch, pos, head, d_head]
        let z = tap(Place::Z(layer), z)?.reshape((batch, pos, n_heads * d_head))?;
        self.linear(&z, &format!("model.layers.{layer}.self_attn.o_proj"))
    }

    fn mlp(&self, layer: usize, x: &Tensor) -> Result<Tensor> {
        let gate = self.linear(x, &format!("model.layers.{layer}.mlp.gate_proj"))?;
        let up = self.linear(x, &format!("model.layers.{layer}.mlp.up_proj"))?;
        let post = ((&gate * sigmoid(&gate)?)? * up)?; // [batch, pos, d_mlp]
        self.linear(&post, &format!("model.layers.{layer}.mlp.down_proj"))
    }

    /// `x` times the transpose of a stored `[out, in]` matrix.
    fn linear(&self, x: &Tensor, name: &str) -> Result<Tensor> {
        let (batch, pos, inputs) = x.dims3()?;
        let w = &self.weights[&format!("{name}.weight")];
        let y = x.reshape((batch * pos, inputs))?.matmul(&w.t()?)?;
        y.reshape((batch, pos, w.dim(0)?))
    }

    /// RMSNorm.
    fn norm(&self, x: &Tensor, name: &str) -> Result<Tensor> {
        let scale = (x.sqr()?.mean_keepdim(D::Minus1)? + NORM_EPS)?.sqrt()?;
        x.broadcast_div(&scale)?
            .broadcast_mul(&self.weights[&format!("{name}.weight")])
    }

    /// Rotary positions, half style: dimension `i` turns with `i + d_head / 2`.
    fn rotate(&self, x: &Tensor) -> Result<Tensor> {
        let (_, _, pos, d_head) = x.dims4()?;
        let cos = self.cos.narrow(0, 0, pos)?;
        let sin = self.sin.narrow(0, 0, pos)?;
        let first = x.narrow(3, 0, d_head / 2)?;
        let second = x.narrow(3, d_head / 2, d_head / 2)?;
        let turned = Tensor::cat(&[&second.neg()?, &first], 3)?;
        x.broadcast_mul(&cos)? + turned.broadcast_mul(&sin)?
    }

    /// Writes the weights as a Hugging Face checkpoint.
    pub fn save(&self, path: &Path) -> Result<()> {
        let tensors: HashMap<String, Tensor> = self
            .weights
            .iter()
            .map(|(name, var)| (name.clone(), var.as_tensor().clone()))
            .collect();
        candle_core::safetensors::save(&tensors, path)
    }

    /// Reads weights back, in place of those that were drawn.
    pub fn load(&self, path: &Path) -> Result<()> {
        let tensors = candle_core::safetensors::load(path, &Device::Cpu)?;
        for name in &self.names {
            let tensor = tensors
                .get(name)
                .ok_or_else(|| candle_core::Error::msg(format!("no tensor `{name}`")))?;
            self.weights[name].set(tensor)?;
        }
        Ok(())
    }

    /// The `config.json` that belongs to these weights.
    pub fn config(&self, bos: u32) -> Value {
        let Sizes {
            n_layers,
            n_heads,
            d_model,
            d_head,
            d_mlp,
            d_vocab,
            n_ctx,
        } = self.sizes;
        json!({
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "hidden_size": d_model,
            "intermediate_size": d_mlp,
            "num_hidden_layers": n_layers,
            "num_attention_heads": n_heads,
            "num_key_value_heads": n_heads,
            "head_dim": d_head,
            "vocab_size": d_vocab,
            "max_position_embeddings": n_ctx,
            "hidden_act": "silu",
            "rms_norm_eps": NORM_EPS,
            "rope_theta": ROPE_THETA,
            "rope_scaling": null,
            "attention_bias": false,
            "mlp_bias": false,
            "tie_word_embeddings": false,
            "bos_token_id": bos,
            "torch_dtype": "float32",
        })
    }
}

/// Softmax over the last axis.
fn softmax(scores: &Tensor) -> Result<Tensor> {
    // The maximum only shifts the exponents, so no gradient need pass through it.
    let shift = scores.max_keepdim(D::Minus1)?.detach();
    let weights = scores.broadcast_sub(&shift)?.exp()?;
    weights.broadcast_div(&weights.sum_keepdim(D::Minus1)?)
}

fn ones(len: usize) -> Result<Tensor> {
    Tensor::ones(len, DType::F32, &Device::Cpu)
}

/// `[rows, cols]`, uniform with the given standard deviation.
fn uniform(rng: &mut ChaCha8Rng, rows: usize, cols: usize, std: f64) -> Result<Tensor> {
    let bound = (3f64.sqrt() * std) as f32;
    let values: Vec<f32> = (0..rows * cols)
        .map(|_| rng.random_range(-bound..bound))
        .collect();
    Tensor::from_vec(values, (rows, cols), &Device::Cpu)
}

fn rotary_tables(n_ctx: usize, d_head: usize) -> Result<(Tensor, Tensor)> {
    let angle = |pos: usize, dim: usize| {
        let pair = dim % (d_head / 2);
        pos as f64 / ROPE_THETA.powf(2.0 * pair as f64 / d_head as f64)
    };
    let table = |of: fn(f64) -> f64| {
        let values: Vec<f32> = (0..n_ctx * d_head)
            .map(|i| of(angle(i / d_head, i % d_head)) as f32)
            .collect();
        Tensor::from_vec(values, (n_ctx, d_head), &Device::Cpu)
    };
    Ok((table(f64::cos)?, table(f64::sin)?))
}

fn causal_mask(n_ctx: usize) -> Result<Tensor> {
    let values: Vec<f32> = (0..n_ctx * n_ctx)
        .map(|i| if i % n_ctx > i / n_ctx { -1e9 } else { 0.0 })
        .collect();
    Tensor::from_vec(values, (n_ctx, n_ctx), &Device::Cpu)
}
