//! What one run of a question with its answer says of the sentences, without leaving any out: where attention goes from the positions that
//! write the answer, and how like the states of answer and sentences are.

use candle_core::DType;

use super::runs::Asked;
use crate::error::Result;
use crate::hooks::{Hook, Kind};
use crate::methods::captured::{captured, captured_bytes};
use crate::nn::host::to_host;

/// Of each sentence.
pub(super) struct Looks {
    /// The mean over layers, heads, tokens of the answer and tokens of the sentence.
    pub mean: Vec<f64>,
    /// The highest weight of the mean pattern, over tokens of the answer and of the sentence.
    pub highest_of_mean: Vec<f64>,
    /// Every head, layer by layer.
    pub heads: Vec<HeadLooks>,
    /// The cosine of the mean states of the answer and of the sentence.
    pub cosine: Vec<f64>,
}

/// Of one head.
#[derive(Debug, Clone)]
pub(super) struct HeadLooks {
    /// The highest weight on each sentence, over tokens of the answer and of the sentence.
    pub highest: Vec<f64>,
    /// Of its weights over the tokens of the context, scaled to sum to 1; the mean over tokens of the answer, in nats.
    pub entropy: f64,
}

/// Reads one run (several where memory does not hold the patterns of all layers). `layer` is where states are compared.
pub(super) fn look(asked: &Asked<'_>, layer: usize) -> Result<Looks> {
    let (model, spec) = (asked.model, &asked.model.spec);
    let n = asked.n_sentences();
    let mut tokens = asked.prompt(&vec![true; n])?;
    tokens.extend(asked.answer.last());
    let (length, m) = (tokens.len(), asked.answer.len());
    let sentences: Vec<&[usize]> = (0..n).map(|at| asked.positions(at)).collect();
    let per_layer = captured_bytes(&[Hook::at(Kind::Pattern, 0)], spec, length).max(1);
    let at_once = (asked.memory / per_layer).clamp(1, spec.n_layers);
    let weight = 1.0 / (spec.n_layers * spec.n_heads) as f64;
    let mut mean = vec![0.0; m * length]; // [query, key]
    let mut heads = Vec::with_capacity(spec.n_layers * spec.n_heads);
    let mut cosine = Vec::new();
    for first in (0..spec.n_layers).step_by(at_once) {
        let layers = first..(first + at_once).min(spec.n_layers);
        let mut hooks: Vec<Hook> = layers.clone().map(|l| Hook::at(Kind::Pattern, l)).collect();
        if layers.contains(&layer) {
            hooks.push(Hook::at(Kind::ResidPost, layer));
        }
        let cache = captured(model, std::slice::from_ref(&tokens), &hooks, &[])?;
        if layers.contains(&layer) {
            let states = cache.get(Hook::at(Kind::ResidPost, layer))?;
            let states = to_host(&states.to_dtype(DType::F32)?.contiguous()?)?; // [pos, d_model]
            let state = |positions: &mut dyn Iterator<Item = usize>| {
                summed(&states, spec.d_model, positions)
            };
            let answer = state(&mut (length - m..length));
            let of = |at: &&[usize]| cosine_of(&answer, &state(&mut at.iter().copied()));
            cosine = sentences.iter().map(of).collect();
        }
        for l in layers {
            // The position before a token is the one that writes it.
            let pattern = cache.get(Hook::at(Kind::Pattern, l))?.squeeze(0)?;
            let pattern = to_host(&pattern.narrow(1, length - m - 1, m)?.contiguous()?)?; // [head, query, key]
            for head in pattern.chunks_exact(m * length) {
                (mean.iter_mut().zip(head)).for_each(|(sum, &p)| *sum += weight * f64::from(p));
                let head: Vec<f64> = head.iter().map(|&p| f64::from(p)).collect();
                heads.push(HeadLooks {
                    highest: highest(&head, length, &sentences),
                    entropy: entropy(&head, length, &sentences),
                });
            }
        }
    }
    let mean_on = |at: &&[usize]| {
        let rows = mean.chunks_exact(length);
        let sum: f64 = rows
            .map(|row| at.iter().map(|&key| row[key]).sum::<f64>())
            .sum();
        sum / (m * at.len()) as f64
    };
    Ok(Looks {
        mean: sentences.iter().map(mean_on).collect(),
        highest_of_mean: highest(&mean, length, &sentences),
        heads,
        cosine,
    })
}

/// `pattern [query, key]`
fn highest(pattern: &[f64], length: usize, sentences: &[&[usize]]) -> Vec<f64> {
    let on = |at: &&[usize]| {
        let rows = pattern.chunks_exact(length);
        let weights = rows.flat_map(|row| at.iter().map(|&key| row[key]));
        weights.fold(0.0, f64::max)
    };
    sentences.iter().map(on).collect()
}

fn entropy(pattern: &[f64], length: usize, sentences: &[&[usize]]) -> f64 {
    let rows = pattern.chunks_exact(length);
    let n = rows.len() as f64;
    let of_row = |row: &[f64]| {
        let weights: Vec<f64> = sentences
            .iter()
            .flat_map(|at| at.iter().map(|&k| row[k]))
            .collect();
        let total: f64 = weights.iter().sum();
        let shares = weights
            .iter()
            .map(|w| w / total)
            .filter(|&share| share > 0.0);
        // A head that sees nothing of the context knows nothing of it.
        if total > 0.0 {
            -shares.map(|p| p * p.ln()).sum::<f64>()
        } else {
            (weights.len() as f64).ln()
        }
    };
    rows.map(of_row).sum::<f64>() / n
}

fn summed(states: &[f32], width: usize, positions: &mut dyn Iterator<Item = usize>) -> Vec<f64> {
    let mut sum = vec![0.0; width];
    for pos in positions {
        let state = &states[pos * width..][..width];
        sum.iter_mut()
            .zip(state)
            .for_each(|(sum, &x)| *sum += f64::from(x));
    }
    sum
}

fn cosine_of(a: &[f64], b: &[f64]) -> f64 {
    let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
    let size = (dot(a, a) * dot(b, b)).sqrt();
    if size > 0.0 { dot(a, b) / size } else { 0.0 }
}
