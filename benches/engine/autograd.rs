//! What a gradient costs with candle's own autograd: the model in composed operations, the embedding a variable, one `backward`.
//!
//! It gives the gradient at the embedding alone; every hook more would be a variable more, and a larger graph.

use anyhow::{Context, Result};
use candle_core::{D, DType, Device, Tensor, Var};
use candlewick::metric::Target;
use candlewick::model::Model;
use candlewick::spec::{NormWeights, Position};

/// One forward and one backward pass of a pre-norm, gated, rotary model (a Llama); gives the gradient at the embedding.
pub fn gradient(model: &Model, prompts: &[Vec<u32>], targets: &[Target]) -> Result<Tensor> {
    let spec = &model.spec;
    let (batch, length) = (prompts.len(), prompts[0].len());
    let (heads, kv, d) = (spec.n_heads, spec.n_kv_heads, spec.d_head);
    let ids = Tensor::new(prompts.concat(), &Device::Cpu)?;
    let embed = Var::from_tensor(&model.weights.w_e.index_select(&ids, 0)?)?;
    let (cos, sin) = rotations(model, length)?;
    let mask: Vec<f32> = (0..length)
        .flat_map(|q| (0..length).map(move |k| if k <= q { 0.0 } else { f32::NEG_INFINITY }))
        .collect();
    let mask = Tensor::from_vec(mask, (1, 1, length, length), &Device::Cpu)?;
    let split = |t: &Tensor, heads: usize| {
        t.reshape((batch, length, heads, d))?
            .transpose(1, 2)?
            .contiguous()
    };
    let rotate = |t: &Tensor| -> Result<Tensor> {
        let (first, second) = (t.narrow(3, 0, d / 2)?, t.narrow(3, d / 2, d / 2)?);
        let turned = Tensor::cat(&[second.neg()?, first], 3)?;
        Ok((t.broadcast_mul(&cos)? + turned.broadcast_mul(&sin)?)?)
    };
    let repeat = |t: &Tensor| -> Result<Tensor> {
        let wide = t
            .unsqueeze(2)?
            .broadcast_as((batch, kv, heads / kv, length, d))?;
        Ok(wide.contiguous()?.reshape((batch, heads, length, d))?)
    };
    let mut x = embed.as_tensor().clone();
    for (layer, block) in model.weights.blocks.iter().enumerate() {
        let read = norm(&x, block.ln1.as_ref().context("a pre-norm")?, spec.norm_eps)?;
        let qkv = read.matmul(&block.w_qkv)?;
        let q = rotate(&split(&qkv.narrow(1, 0, heads * d)?, heads)?)?;
        let k = rotate(&split(&qkv.narrow(1, heads * d, kv * d)?, kv)?)?;
        let v = split(&qkv.narrow(1, (heads + kv) * d, kv * d)?, kv)?;
        let scores =
            (q.matmul(&repeat(&k)?.t()?.contiguous()?)? * f64::from(spec.attn_scale[layer]))?;
        let scores = scores.broadcast_add(&mask)?;
        let scores = scores
            .broadcast_sub(&scores.max_keepdim(D::Minus1)?.detach())?
            .exp()?;
        let pattern = scores.broadcast_div(&scores.sum_keepdim(D::Minus1)?)?;
        let z = pattern
            .matmul(&repeat(&v)?)?
            .transpose(1, 2)?
            .contiguous()?;
        x = (x + z.reshape((batch * length, heads * d))?.matmul(&block.w_o)?)?;
        let mlp = block.mlp.as_ref().context("an MLP")?;
        let read = norm(&x, block.ln2.as_ref().context("a pre-norm")?, spec.norm_eps)?;
        let both = read.matmul(&mlp.w_in)?;
        let gate = both.narrow(1, 0, spec.d_mlp)?.silu()?;
        let post = (gate * both.narrow(1, spec.d_mlp, spec.d_mlp)?)?;
        x = (x + post.matmul(&mlp.w_out)?)?;
    }
    let last: Vec<u32> = (0..batch)
        .map(|i| (i * length + length - 1) as u32)
        .collect();
    let x = x.index_select(&Tensor::new(last, &Device::Cpu)?, 0)?;
    let x = norm(
        &x,
        model.weights.ln_final.as_ref().context("a final norm")?,
        spec.norm_eps,
    )?;
    let mut metric = Vec::with_capacity(batch);
    for (i, target) in targets.iter().enumerate() {
        let ids = Tensor::new(&[target.answers[0], target.wrong[0]], &Device::Cpu)?;
        let columns = model.weights.w_u.index_select(&ids, 0)?;
        let logits = x.get(i)?.unsqueeze(0)?.matmul(&columns.t()?)?;
        metric.push((logits.get(0)?.get(0)? - logits.get(0)?.get(1)?)?);
    }
    let gradients = Tensor::stack(&metric, 0)?.sum_all()?.backward()?;
    let gradient = gradients
        .get(embed.as_tensor())
        .context("the embedding has a gradient")?;
    Ok(gradient.clone())
}

fn norm(x: &Tensor, w: &NormWeights, eps: f64) -> Result<Tensor> {
    let scale = (x.sqr()?.mean_keepdim(D::Minus1)? + eps)?.sqrt()?;
    Ok(x.broadcast_div(&scale)?.broadcast_mul(&w.w)?)
}

/// Cosines and sines, `[1, 1, length, d_head]`.
fn rotations(model: &Model, length: usize) -> Result<(Tensor, Tensor)> {
    let Position::Rotary(rotary) = &model.spec.position else {
        anyhow::bail!("a rotary model")
    };
    let (d, theta) = (model.spec.d_head, rotary.bases[0].theta as f32);
    let angle =
        |pos: usize, j: usize| pos as f32 / theta.powf(2.0 * (j % (d / 2)) as f32 / d as f32);
    let all = |f: fn(f32) -> f32| -> Result<Tensor> {
        let values = (0..length).flat_map(|pos| (0..d).map(move |j| f(angle(pos, j))));
        Ok(
            Tensor::from_vec(values.collect(), (1, 1, length, d), &Device::Cpu)?
                .to_dtype(DType::F32)?,
        )
    };
    Ok((all(f32::cos)?, all(f32::sin)?))
}
