//! Composition scores: how much of what one head writes another could read, from the weights alone.
//!
//! With `W_OV = W_V W_O` of the writing head and `W_QK = W_Q W_K^T` of the reading one (rows are vectors), the scores are
//! `||W_OV W_QK|| / (||W_OV|| ||W_QK||)` for queries, the same with `W_QK` transposed for keys, and with the reader's `W_OV` for
//! values; Frobenius norms throughout. A norm of a product of factors needs only products of width `d_head`:
//! `||V O Q K^T||^2 = sum (G_V M G_K) * M` with `M = O Q` and the Gram matrices `G_V = V^T V`, `G_K = K^T K`, so that no matrix of
//! `d_model x d_model` is made.
//!
//! Random matrices of these shapes do not score 0 but about `1/sqrt(d_model)`; the mean over seeded draws is taken off. Norms are folded into
//! the weights first. Under rotary positions `W_QK` is the one at offset zero, which is said beside the result. Where a norm stands on
//! attention's output, its weight is left out, and so is the q/k-norm.
//!
//! Source: Elhage et al. 2021, "A mathematical framework for transformer circuits".

use std::time::Instant;

use candle_core::{DType, Device, Tensor};
use rand::SeedableRng;
use rand::distr::{Distribution, StandardUniform};
use rand_chacha::ChaCha8Rng;
use serde_json::json;

use crate::error::{Error, Result};
use crate::hooks::{Letter, Node};
use crate::methods::record::{device_name, now};
use crate::model::processing::fold_ln;
use crate::model::{Model, ModelSpec};
use crate::scores::{Cell, Detail, Direction, ExampleScores, Provenance, Scores, ScoresMeta};
use crate::spec::{NormPlacement, Position, QkNorm};

/// What to score.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CompositionConfig {
    /// Draws of random matrices behind the baseline.
    pub draws: usize,
    pub seed: u64,
}

impl Default for CompositionConfig {
    fn default() -> Self {
        CompositionConfig { draws: 16, seed: 0 }
    }
}

/// One head's factors, f64 on the host: `W_Q`, `W_K`, `W_V` `[d_model, d_head]` and `W_O` `[d_head, d_model]`.
struct Factors {
    q: Tensor,
    k: Tensor,
    v: Tensor,
    o: Tensor,
    /// Gram matrices `Q^T Q`, `K^T K`, `V^T V`, `O O^T`, all `[d_head, d_head]`.
    gram: [Tensor; 4],
}

/// Scores every pair of a head and a later one: a row for each reading head and letter (`src`, `dst` as an edge).
/// # Units
/// `score`: the share of the product of norms that the norm of the product is, less its mean over random matrices.
/// # Errors
/// [`Error::Invalid`] for a model of one layer, or a baseline without draws.
pub fn composition_scores(model: &Model, config: &CompositionConfig) -> Result<Scores> {
    model.spec.check_decoder("composition scores")?;
    let spec = &model.spec;
    if spec.n_layers < 2 || config.draws == 0 {
        return Err(Error::invalid(
            "composition needs a model of two layers or more, and a baseline of at least one draw",
        ));
    }
    let began = Instant::now();
    let folded = match spec.norm_placement {
        NormPlacement::None => model.clone(),
        _ => fold_ln(model)?,
    };
    let mut heads = Vec::with_capacity(spec.n_layers);
    for layer in 0..spec.n_layers {
        let of_layer: Result<Vec<Factors>> = (0..spec.n_heads)
            .map(|head| factors(&folded, layer, head))
            .collect();
        heads.push(of_layer?);
    }
    let (baseline, deviation) = baseline(spec, config)?;
    let (mut cells, mut values) = (Vec::new(), Vec::new());
    for from in 0..spec.n_layers {
        for to in from + 1..spec.n_layers {
            for (a, writer) in heads[from].iter().enumerate() {
                for (b, reader) in heads[to].iter().enumerate() {
                    let src = Node::Head {
                        layer: from,
                        head: a,
                    };
                    let dst = Node::Head { layer: to, head: b };
                    for letter in Letter::ALL {
                        cells.push(Cell {
                            component: format!("{letter}_composition"),
                            src: Some(src.to_string()),
                            dst: Some(format!("{dst}<{letter}>")),
                            ..Cell::default()
                        });
                        values.push(composition(writer, reader, letter)? - baseline);
                    }
                }
            }
        }
    }
    let example = ExampleScores {
        cells: (0..cells.len() as u32).collect(),
        values,
        ..ExampleScores::default()
    };
    let mut notes = vec![format!(
        "random matrices of these shapes score {baseline:.4} (standard deviation {deviation:.4} over {} draws); that is taken off",
        config.draws
    )];
    if matches!(spec.position, Position::Rotary(_)) {
        notes.push("positions are rotary: query and key composition hold for equal positions (offset zero) alone".into());
    }
    if spec.qk_norm != QkNorm::None {
        notes.push("the norm of queries and keys is left out: weights alone do not show it".into());
    }
    if let Some(most) = spec.qkv_clip {
        notes.push(format!(
            "queries, keys and values are cut off at {most}, which weights alone do not show"
        ));
    }
    if spec.group() > 1 {
        notes.push(format!(
            "keys and values are shared by {} query heads each: their key and value composition is the same",
            spec.group()
        ));
    }
    let provenance = Provenance {
        seconds: began.elapsed().as_secs_f64(),
        config: json!({ "draws": config.draws, "baseline": baseline, "processing": folded.origin.processing }),
        model: folded.origin.clone(),
        spec: serde_json::to_value(spec).unwrap_or_default(),
        dtype: model.number_formats(),
        device: device_name(model),
        created: now(),
        notes,
        ..Provenance::default()
    };
    let meta = ScoresMeta::new(
        "composition",
        "composition",
        "share of the norms",
        Direction::Direct,
        config.seed,
    );
    Scores::assemble(&cells, &[example], &meta, Detail::Mean, provenance)
}

/// One head's factors from a model whose norms are folded in.
fn factors(model: &Model, layer: usize, head: usize) -> Result<Factors> {
    let (spec, weights) = (&model.spec, &model.weights.blocks[layer]);
    let d = spec.d_head;
    let kv = head / spec.group();
    let starts = [
        head * d,
        (spec.n_heads + kv) * d,
        (spec.n_heads + spec.n_kv_heads + kv) * d,
    ];
    let wide = |t: Tensor| -> Result<Tensor> {
        Ok(t.to_device(&Device::Cpu)?
            .to_dtype(DType::F64)?
            .contiguous()?)
    };
    let [q, k, v] = starts.map(|start| weights.w_qkv.narrow(1, start, d));
    Factors::new(
        wide(q?)?,
        wide(k?)?,
        wide(v?)?,
        wide(weights.w_o.narrow(0, head * d, d)?)?,
    )
}

impl Factors {
    fn new(q: Tensor, k: Tensor, v: Tensor, o: Tensor) -> Result<Self> {
        let gram = |t: &Tensor| t.t()?.contiguous()?.matmul(t);
        let gram = [
            gram(&q)?,
            gram(&k)?,
            gram(&v)?,
            o.matmul(&o.t()?.contiguous()?)?,
        ];
        Ok(Factors { q, k, v, o, gram })
    }
}

/// The score of one pair of heads, as it is.
fn composition(writer: &Factors, reader: &Factors, letter: Letter) -> Result<f64> {
    let [_, _, gram_v, gram_o] = &writer.gram;
    let [q, k, v, o] = &reader.gram;
    // The reader's matrix is `near far^T`: what it reads with, and the Gram matrix of what is behind it.
    let (near, gram_near, gram_far) = match letter {
        Letter::Q => (&reader.q, q, k),
        Letter::K => (&reader.k, k, q),
        Letter::V => (&reader.v, v, o),
    };
    let m = writer.o.matmul(near)?; // [d_head, d_head]
    let product = (gram_v.matmul(&m)?.matmul(gram_far)? * &m)?;
    let norms = inner(gram_v, gram_o)? * inner(gram_near, gram_far)?;
    let squared = product.sum_all()?.to_scalar::<f64>()?;
    Ok((squared.max(0.0) / norms.max(f64::MIN_POSITIVE)).sqrt())
}

/// `||A B||^2` from the Gram matrices `A^T A` and `B B^T`.
fn inner(a: &Tensor, b: &Tensor) -> Result<f64> {
    Ok((a * b)?.sum_all()?.to_scalar::<f64>()?)
}

/// Mean and standard deviation of the score of random heads of a model's shapes, entries uniform around 0.
fn baseline(spec: &ModelSpec, config: &CompositionConfig) -> Result<(f64, f64)> {
    let mut rng = ChaCha8Rng::seed_from_u64(config.seed);
    let mut random = |rows: usize, columns: usize| -> Result<Tensor> {
        let entries = StandardUniform.sample_iter(&mut rng).take(rows * columns);
        let entries: Vec<f64> = entries.map(|x: f64| x - 0.5).collect();
        Ok(Tensor::from_vec(entries, (rows, columns), &Device::Cpu)?)
    };
    let (d, e) = (spec.d_model, spec.d_head);
    let mut scores = Vec::with_capacity(config.draws);
    for _ in 0..config.draws {
        let mut head = || Factors::new(random(d, e)?, random(d, e)?, random(d, e)?, random(e, d)?);
        let (writer, reader) = (head()?, head()?);
        scores.push(composition(&writer, &reader, Letter::Q)?);
    }
    let n = scores.len() as f64;
    let mean = scores.iter().sum::<f64>() / n;
    let squares: f64 = scores.iter().map(|score| (score - mean).powi(2)).sum();
    Ok((mean, (squares / n).sqrt()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn matrix(rows: &[&[f64]]) -> Tensor {
        let (n, m) = (rows.len(), rows[0].len());
        Tensor::from_vec(rows.concat(), (n, m), &Device::Cpu).expect("a matrix")
    }

    /// Two heads of width 1 in a stream of width 2.
    fn head(q: [f64; 2], k: [f64; 2], v: [f64; 2], o: [f64; 2]) -> Factors {
        let column = |x: [f64; 2]| matrix(&[&[x[0]], &[x[1]]]);
        Factors::new(column(q), column(k), column(v), matrix(&[&o])).expect("shapes")
    }

    #[test]
    fn a_reader_of_what_is_written_scores_1_and_of_what_is_not_0() {
        let any = [0.3, -0.8];
        let writer = head(any, any, [2.0, 1.0], [3.0, 0.0]);
        let reader = head([5.0, 0.0], [0.0, 7.0], [1.0, 1.0], any);
        let score = |letter| composition(&writer, &reader, letter).expect("runs");
        assert!((score(Letter::Q) - 1.0).abs() < 1e-12);
        assert!(score(Letter::K).abs() < 1e-12);
        assert!((score(Letter::V) - 0.5f64.sqrt()).abs() < 1e-12);
    }

    #[test]
    fn the_factored_score_is_that_of_the_whole_matrices() {
        let spec = ModelSpec {
            d_model: 7,
            d_head: 3,
            ..crate::model::families::from_config(include_str!("../../models/embedded/config.json"))
                .expect("the embedded model")
                .spec
        };
        let mut rng = ChaCha8Rng::seed_from_u64(3);
        let mut random = |rows: usize, columns: usize| {
            let entries = StandardUniform.sample_iter(&mut rng).take(rows * columns);
            let entries: Vec<f64> = entries.map(|x: f64| x - 0.5).collect();
            Tensor::from_vec(entries, (rows, columns), &Device::Cpu).expect("a matrix")
        };
        let mut head = || {
            let (d, e) = (spec.d_model, spec.d_head);
            Factors::new(random(d, e), random(d, e), random(d, e), random(e, d)).expect("shapes")
        };
        let (a, b) = (head(), head());
        let norm = |t: &Tensor| {
            t.sqr()
                .and_then(|t| t.sum_all())
                .expect("sums")
                .to_scalar::<f64>()
                .expect("one")
                .sqrt()
        };
        let times = |a: &Tensor, b: &Tensor| a.matmul(b).expect("shapes");
        let transposed = |t: &Tensor| t.t().and_then(|t| t.contiguous()).expect("two axes");
        let ov = times(&a.v, &a.o);
        for (letter, whole) in [
            (Letter::Q, times(&b.q, &transposed(&b.k))),
            (Letter::K, times(&b.k, &transposed(&b.q))),
            (Letter::V, times(&b.v, &b.o)),
        ] {
            let expected = norm(&times(&ov, &whole)) / norm(&ov) / norm(&whole);
            let found = composition(&a, &b, letter).expect("runs");
            assert!(
                (found - expected).abs() < 1e-12,
                "{letter}: {found} {expected}"
            );
        }
    }
}
