//! Trains a small top-k sparse autoencoder on the embedded model, with candle, and writes it as a SAELens folder.
//!
//!     cargo run --release --example train_sae -- models/embedded/sae
//!
//! The activations are those of stories like the ones that the model was trained on, without the first token (`<bos>`, which is the same
//! everywhere and far larger). After Gao et al. 2024, "Scaling and evaluating sparse autoencoders": the k largest latents of each token are
//! kept, decoder rows have length 1, and latents that have not been on for a while learn from what the others leave over. Everything is
//! drawn from one seed; held-out stories say how good it is.

#[allow(dead_code)]
#[path = "../train_embedded/corpus.rs"]
mod corpus;
#[allow(dead_code)]
#[path = "../train_embedded/words.rs"]
mod words;

use std::collections::BTreeMap;
use std::collections::HashMap;
use std::error::Error;
use std::path::{Path, PathBuf};

use candle_core::{D, DType, Device, Tensor, Var};
use candle_nn::{AdamW, Optimizer, ParamsAdamW};
use candlewick::hooks::{Hook, Kind};
use candlewick::prelude::*;
use candlewick::run::run_with_cache;
use candlewick::sae::Sae;
use rand::seq::SliceRandom;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde_json::json;
use words::Words;

const SEED: u64 = 1;
const LAYER: usize = 1;
const WIDTH: usize = 64;
const LATENTS: usize = 256;
const K: usize = 8;
const STORIES: usize = 6000;
const HELD_OUT: usize = 500;
const STEPS: usize = 6000;
const BATCH: usize = 512;
const RATE: f64 = 1e-3;
/// A latent that was off for so many steps is dead, and so many of the dead ones learn at a time.
const PATIENCE: usize = 100;
const REVIVED: usize = 32;

fn main() -> Result<(), Box<dyn Error>> {
    let folder = std::env::args()
        .nth(1)
        .map(PathBuf::from)
        .ok_or("name the folder to write to, for example models/embedded/sae")?;
    let mut rng = ChaCha8Rng::seed_from_u64(SEED);
    let data = activations(STORIES, &mut rng)?;
    println!("{} activations of {STORIES} stories", data.len() / WIDTH);
    let weights = train(&data, &mut rng)?;
    write(&folder, &weights)?;
    let sae = Sae::open(&folder, None)?;
    let held_out = activations(HELD_OUT, &mut rng)?;
    examine(&sae, &held_out);
    Ok(())
}

/// What the model has at the hook for every token of some stories but the first.
/// # Shapes
/// `[tokens, WIDTH]`
fn activations(stories: usize, rng: &mut ChaCha8Rng) -> Result<Vec<f32>, Box<dyn Error>> {
    let lab = Lab::open("embedded", "embedded")?;
    let words = Words::new();
    let mut by_length: BTreeMap<usize, Vec<Vec<u32>>> = BTreeMap::new();
    for _ in 0..stories {
        let long = rng.random_bool(0.3);
        let prompt = words.tokens(&corpus::story(rng, long).words);
        by_length.entry(prompt.len()).or_default().push(prompt);
    }
    let hook = Hook::at(Kind::ResidPost, LAYER);
    let mut all = Vec::new();
    for (length, prompts) in by_length {
        for prompts in prompts.chunks(64) {
            let (_, cache) = run_with_cache(&lab.model, prompts, &[hook])?;
            let kept = cache.get(hook)?.narrow(1, 1, length - 1)?;
            all.extend(kept.flatten_all()?.to_vec1::<f32>()?);
        }
    }
    Ok(all)
}

struct Weights {
    w_enc: Var,
    b_enc: Var,
    w_dec: Var,
    b_dec: Var,
}

impl Weights {
    fn new(data: &[f32], rng: &mut ChaCha8Rng) -> candle_core::Result<Self> {
        let mut mean = vec![0f32; WIDTH];
        let rows = data.chunks_exact(WIDTH);
        let n = rows.len() as f32;
        for row in rows {
            mean.iter_mut().zip(row).for_each(|(sum, x)| *sum += x / n);
        }
        let directions: Vec<f32> = (0..LATENTS)
            .flat_map(|_| {
                let row: Vec<f32> = (0..WIDTH).map(|_| rng.random::<f32>() - 0.5).collect();
                let length = row.iter().map(|x| x * x).sum::<f32>().sqrt();
                row.into_iter().map(move |x| x / length)
            })
            .collect();
        let directions = Tensor::from_vec(directions, (LATENTS, WIDTH), &Device::Cpu)?;
        Ok(Weights {
            w_enc: Var::from_tensor(&directions.t()?.contiguous()?)?,
            b_enc: Var::zeros(LATENTS, DType::F32, &Device::Cpu)?,
            w_dec: Var::from_tensor(&directions)?,
            b_dec: Var::from_tensor(&Tensor::from_vec(mean, WIDTH, &Device::Cpu)?)?,
        })
    }

    /// The inputs of the latents.
    fn encode(&self, x: &Tensor) -> candle_core::Result<Tensor> {
        x.broadcast_sub(&self.b_dec)?
            .matmul(&self.w_enc)?
            .broadcast_add(&self.b_enc)
    }

    /// Decoder rows at length 1.
    fn normalise(&self) -> candle_core::Result<()> {
        let lengths = self.w_dec.sqr()?.sum_keepdim(1)?.sqrt()?;
        self.w_dec.set(&self.w_dec.broadcast_div(&lengths)?)
    }
}

/// The k largest of each row where they are positive, the others 0.
fn top(inputs: &Tensor, k: usize) -> candle_core::Result<Tensor> {
    let (sorted, _) = inputs.detach().sort_last_dim(false)?;
    let least = sorted.narrow(D::Minus1, k - 1, 1)?;
    let mask = inputs.broadcast_ge(&least)?.to_dtype(DType::F32)?;
    inputs.relu()? * mask
}

fn train(data: &[f32], rng: &mut ChaCha8Rng) -> Result<Weights, Box<dyn Error>> {
    let weights = Weights::new(data, rng)?;
    let vars = [
        &weights.w_enc,
        &weights.b_enc,
        &weights.w_dec,
        &weights.b_dec,
    ];
    let params = ParamsAdamW {
        lr: RATE,
        weight_decay: 0.0,
        ..ParamsAdamW::default()
    };
    let mut optimizer = AdamW::new(vars.map(Clone::clone).to_vec(), params)?;
    let mut order: Vec<usize> = (0..data.len() / WIDTH).collect();
    let mut off_for = vec![0usize; LATENTS];
    let mut next = order.len();
    for step in 0..STEPS {
        if next + BATCH > order.len() {
            order.shuffle(rng);
            next = 0;
        }
        let rows = &order[next..next + BATCH];
        next += BATCH;
        let batch: Vec<f32> = (rows.iter())
            .flat_map(|&row| &data[row * WIDTH..(row + 1) * WIDTH])
            .copied()
            .collect();
        let x = Tensor::from_vec(batch, (BATCH, WIDTH), &Device::Cpu)?;
        let inputs = weights.encode(&x)?;
        let latents = top(&inputs, K)?;
        let decoded = latents
            .matmul(&weights.w_dec)?
            .broadcast_add(&weights.b_dec)?;
        let error = (&x - &decoded)?;
        let mut loss = error.sqr()?.sum(1)?.mean(0)?;
        let is_dead: Vec<f32> = off_for
            .iter()
            .map(|&n| f32::from(u8::from(n > PATIENCE)))
            .collect();
        let dead = is_dead.iter().sum::<f32>() as usize;
        if dead > 0 {
            // Only the dead ones stand for election.
            let dead_mask = Tensor::from_vec(is_dead, (1, LATENTS), &Device::Cpu)?;
            let away = ((1.0 - &dead_mask)? * -1e9)?;
            let of_dead = inputs.broadcast_mul(&dead_mask)?.broadcast_add(&away)?;
            let left = top(&of_dead, REVIVED.min(dead))?.matmul(&weights.w_dec)?;
            let missed = (error.detach() - left)?.sqr()?.sum(1)?.mean(0)?;
            loss = (loss + (missed * (1.0 / 32.0))?)?;
        }
        let share = step as f64 / STEPS as f64;
        optimizer.set_learning_rate(RATE * (1.0 - share).min(step as f64 / 100.0).max(0.0));
        optimizer.backward_step(&loss)?;
        weights.normalise()?;
        let on: Vec<f32> = latents
            .detach()
            .gt(0.0)?
            .to_dtype(DType::F32)?
            .sum(0)?
            .to_vec1()?;
        for (off_for, on) in off_for.iter_mut().zip(on) {
            *off_for = if on > 0.0 { 0 } else { *off_for + 1 };
        }
        if step % 500 == 0 || step + 1 == STEPS {
            println!(
                "step {step}: loss {:.4}, {dead} dead",
                loss.to_scalar::<f32>()?
            );
        }
    }
    Ok(weights)
}

/// As SAELens 6 writes it.
fn write(folder: &Path, weights: &Weights) -> Result<(), Box<dyn Error>> {
    std::fs::create_dir_all(folder)?;
    let hook = Hook::at(Kind::ResidPost, LAYER).to_string();
    let config = json!({
        "architecture": "topk", "d_in": WIDTH, "d_sae": LATENTS, "k": K, "dtype": "float32", "device": "cpu",
        "apply_b_dec_to_input": true, "normalize_activations": "none", "reshape_activations": "none",
        "rescale_acts_by_decoder_norm": false,
        "metadata": { "model_name": "candlewick embedded", "hook_name": hook, "hook_head_index": null },
    });
    std::fs::write(folder.join("cfg.json"), format!("{config:#}\n"))?;
    let tensors: HashMap<&str, Tensor> = HashMap::from([
        ("W_enc", weights.w_enc.as_tensor().clone()),
        ("b_enc", weights.b_enc.as_tensor().clone()),
        ("W_dec", weights.w_dec.as_tensor().clone()),
        ("b_dec", weights.b_dec.as_tensor().clone()),
    ]);
    candle_core::safetensors::save(&tensors, folder.join("sae_weights.safetensors"))?;
    Ok(())
}

/// How much of the variance of held-out activations it explains, how many latents are on, and how many never are.
fn examine(sae: &Sae, data: &[f32]) {
    let n = (data.len() / WIDTH) as f64;
    let latents = sae.encode(data);
    let decoded = sae.decode(&latents, data);
    let mut mean = vec![0f64; WIDTH];
    for row in data.chunks_exact(WIDTH) {
        mean.iter_mut()
            .zip(row)
            .for_each(|(sum, x)| *sum += f64::from(*x) / n);
    }
    let all = data.chunks_exact(WIDTH).zip(decoded.chunks_exact(WIDTH));
    let (mut left, mut whole) = (0.0, 0.0);
    for (x, decoded) in all {
        for ((x, decoded), mean) in x.iter().zip(decoded).zip(&mean) {
            left += f64::from(x - decoded).powi(2);
            whole += (f64::from(*x) - mean).powi(2);
        }
    }
    let on: usize = latents.rows.iter().map(Vec::len).sum();
    let mut ever = vec![false; LATENTS];
    let each = latents.rows.iter().flatten();
    each.for_each(|&(latent, _)| ever[latent as usize] = true);
    println!(
        "held out: {:.1}% of the variance explained, {:.2} latents on, {} of {LATENTS} never",
        100.0 * (1.0 - left / whole),
        on as f64 / n,
        ever.iter().filter(|ever| !**ever).count()
    );
}
