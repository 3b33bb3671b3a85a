//! GlobEnc: which tokens an encoder's position is a mixture of, with the residuals, the norms and nothing of the MLP's own.
//!
//! In an encoder a layer is `n = LN1(x + attention)`, `out = LN2(n + MLP)`. Attention takes `x_i + attn_i` apart by source position,
//! `p_ij = sum_h A_h[i, j] (x_j W_V[h] + b_V[h]) W_O[h] + [i = j] x_i`; each norm is linear with the divisor of the run, `n_ij = g1 (p_ij -
//! mean) / s1_i` and, past the MLP, `r_ij = g2 (n_ij - mean) / s2_i`. Its size in L2 says how much of `j` is in `i`, and the product
//! over the layers how much of each token. Biases go to no token, as in the source.
//!
//! [`Rung`] is the ladder of ablations that leads there from attention alone. What follows an MLP back too (DecompX) is left out.
//!
//! Source: Modarressi, Fayyaz, Yaghoobzadeh and Pilehvar 2022, "GlobEnc: Quantifying Global Token Attribution by Incorporating the Whole
//! Encoder Layer in Transformers", arXiv 2205.03286. Ours: the share of the residual in `W_Res` is Kobayashi et al. 2021's mixing ratio,
//! `|p_ii| / (|p_ii| + |sum of the others|)`.

use std::fmt;

use super::parts::{brought, larger};
use super::place::check_encoder;
use crate::error::Result;
use crate::hooks::{Hook, Kind, Ln};
use crate::methods::captured::captured;
use crate::model::Model;
use crate::nn::host::to_host;
use crate::run::Cache;
use crate::spec::{ModelSpec, NormKind, NormWeights};

/// What is taken into account, more from rung to rung.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Rung {
    /// Attention, the mean over heads.
    W,
    /// Half of it and half of the position itself.
    WFixedRes,
    /// As much of the position itself as the mixing ratio says.
    WRes,
    /// The size of what attention brings.
    N,
    /// With the residual.
    NRes,
    /// And through the norm behind it.
    NResLn,
    /// And through the norm at the layer's end: GlobEnc.
    NResOut,
}

impl Rung {
    pub const ALL: [Rung; 7] = [
        Rung::W,
        Rung::WFixedRes,
        Rung::WRes,
        Rung::N,
        Rung::NRes,
        Rung::NResLn,
        Rung::NResOut,
    ];
}

/// The names of the paper.
impl fmt::Display for Rung {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Rung::W => "W",
            Rung::WFixedRes => "W_FixedRes",
            Rung::WRes => "W_Res",
            Rung::N => "N",
            Rung::NRes => "N_Res",
            Rung::NResLn => "N_ResLN",
            Rung::NResOut => "GlobEnc",
        })
    }
}

/// How the positions of one prompt mix.
#[derive(Debug, Clone, PartialEq)]
pub struct GlobEnc {
    /// For each of [`Rung::ALL`] a matrix of each layer: row `i` says how much of each position is in position `i`.
    /// `[rungs][layers][pos * pos]`
    pub layers: Vec<Vec<Vec<f64>>>,
    /// Largest difference of an entry of `x + attention`, and of the norm's output behind it, and the sum of its parts and biases.
    pub gaps: [f64; 2],
}

impl GlobEnc {
    pub fn layers_of(&self, rung: Rung) -> &[Vec<f64>] {
        let at = Rung::ALL.iter().position(|one| *one == rung);
        &self.layers[at.expect("every rung is there")]
    }

    /// The share of each token in the last state of a position; they sum to 1.
    pub fn shares(&self, rung: Rung, pos: usize) -> Vec<f64> {
        let layers = self.layers_of(rung).iter().rev();
        let length = self.layers_of(rung)[0].len().isqrt();
        let mut row: Vec<f64> = (0..length).map(|i| f64::from(u8::from(i == pos))).collect();
        for layer in layers {
            row = times(&row, layer);
            // A factor for the whole row changes no share, and keeps deep products within range.
            let sum: f64 = row.iter().sum();
            row.iter_mut().for_each(|share| *share /= sum);
        }
        row
    }

    /// The layers of a rung with rows scaled so that they sum to 1 and the product of the layers has the shares of [`GlobEnc::shares`].
    pub(super) fn conserved(&self, rung: Rung) -> Vec<Vec<f64>> {
        let length = self.layers_of(rung)[0].len().isqrt();
        // How much comes down from each position of a level in all, up to a factor.
        let mut down = vec![1.0; length];
        let mut conserved = Vec::new();
        for layer in self.layers_of(rung) {
            let (mut scaled, mut up) = (layer.clone(), Vec::new());
            for row in scaled.chunks_exact_mut(length) {
                row.iter_mut()
                    .zip(&down)
                    .for_each(|(share, down)| *share *= down);
                let sum: f64 = row.iter().sum();
                row.iter_mut().for_each(|share| *share /= sum);
                up.push(sum);
            }
            let largest = up.iter().copied().fold(f64::MIN_POSITIVE, f64::max);
            down = up.iter().map(|sum| sum / largest).collect();
            conserved.push(scaled);
        }
        conserved
    }
}

/// A row times a square matrix.
fn times(row: &[f64], matrix: &[f64]) -> Vec<f64> {
    let mut product = vec![0.0; row.len()];
    for (weight, line) in row.iter().zip(matrix.chunks_exact(row.len())) {
        product
            .iter_mut()
            .zip(line)
            .for_each(|(sum, x)| *sum += weight * x);
    }
    product
}

/// What the mixing is read from.
pub(super) fn hooks(spec: &ModelSpec) -> Vec<Hook> {
    let kinds = [
        Kind::ResidPre,
        Kind::Scale(Ln::One),
        Kind::V,
        Kind::Pattern,
        Kind::ResidMid,
        Kind::Scale(Ln::Two),
        Kind::Normalized(Ln::Two),
    ];
    let all = kinds.into_iter();
    let all = all.flat_map(|kind| (0..spec.n_layers).map(move |layer| Hook::at(kind, layer)));
    all.chain([Hook::global(Kind::Scale(Ln::Final))]).collect()
}

/// GlobEnc and its ladder for some prompts of one length.
/// # Shapes
/// `prompts [batch, pos]`.
/// # Errors
/// [`Error::Invalid`](crate::Error::Invalid) for a model whose blocks do not norm the stream; those of a run.
pub fn globenc(model: &Model, prompts: &[Vec<u32>]) -> Result<Vec<GlobEnc>> {
    check_encoder(&model.spec)?;
    let cache = captured(model, prompts, &hooks(&model.spec), &[])?;
    globenc_of(model, &cache)
}

/// The same of what a run kept.
pub(super) fn globenc_of(model: &Model, cache: &Cache) -> Result<Vec<GlobEnc>> {
    let fresh = GlobEnc {
        layers: vec![Vec::new(); Rung::ALL.len()],
        gaps: [0.0; 2],
    };
    let mut all = vec![fresh; cache.batch];
    for index in 0..model.spec.n_layers {
        let layer = Layer::of(model, cache, index)?;
        for (prompt, globenc) in all.iter_mut().enumerate() {
            let (rungs, gaps) = layer.mixing(prompt)?;
            for (of_rung, matrix) in globenc.layers.iter_mut().zip(rungs) {
                of_rung.push(matrix);
            }
            for (known, gap) in globenc.gaps.iter_mut().zip(gaps) {
                *known = larger(*known, gap);
            }
        }
    }
    Ok(all)
}

/// A norm with its divisors, as a run had them.
struct Norm {
    kind: NormKind,
    w: Vec<f64>,
    b: Vec<f64>,
    /// `[batch * pos]`
    scale: Vec<f32>,
}

impl Norm {
    fn new(spec: &ModelSpec, weights: Option<&NormWeights>, scale: Vec<f32>) -> Result<Self> {
        let wide = |t: &candle_core::Tensor| -> Result<Vec<f64>> {
            Ok(to_host(t)?.into_iter().map(f64::from).collect())
        };
        let ones = || vec![1.0; spec.d_model];
        let b = weights.and_then(|weights| weights.b.as_ref());
        Ok(Norm {
            kind: spec.norm,
            w: weights.map_or(Ok(ones()), |weights| wide(&weights.w))?,
            b: b.map_or(Ok(vec![0.0; spec.d_model]), wide)?,
            scale,
        })
    }

    /// Of a part of what stands at a row: all but the bias.
    fn part(&self, part: &[f64], row: usize) -> Vec<f64> {
        let mean = match self.kind {
            NormKind::Layer => part.iter().sum::<f64>() / part.len() as f64,
            NormKind::Rms => 0.0,
        };
        let scale = f64::from(self.scale[row]);
        let each = part.iter().zip(&self.w);
        each.map(|(x, w)| (x - mean) / scale * w).collect()
    }

    /// The output of a normalised state.
    fn weighted(&self, normalized: &[f64]) -> Vec<f64> {
        let each = normalized.iter().zip(&self.w).zip(&self.b);
        each.map(|((x, w), b)| x * w + b).collect()
    }

    fn whole(&self, x: &[f64], row: usize) -> Vec<f64> {
        let part = self.part(x, row);
        part.iter().zip(&self.b).map(|(x, b)| x + b).collect()
    }
}

/// What one layer kept of all prompts.
struct Layer<'a> {
    model: &'a Model,
    index: usize,
    length: usize,
    resid_pre: Vec<f32>,
    resid_mid: Vec<f32>,
    /// What the norm behind attention divides to, before its weights.
    normalized: Vec<f32>,
    v: Vec<f32>,
    pattern: Vec<f32>,
    b_o: Vec<f64>,
    /// On what enters, behind attention, and behind the MLP.
    norms: [Norm; 3],
}

impl<'a> Layer<'a> {
    fn of(model: &'a Model, cache: &Cache, index: usize) -> Result<Self> {
        let spec = &model.spec;
        let read = |hook| to_host(&cache.get(hook)?);
        let at = |kind| read(Hook::at(kind, index));
        let weights = &model.weights.blocks[index];
        // The norm at a layer's end is the one that the next layer begins with.
        let (end, end_scale) = match model.weights.blocks.get(index + 1) {
            Some(next) => (next.ln1.as_ref(), Hook::at(Kind::Scale(Ln::One), index + 1)),
            None => (
                model.weights.ln_final.as_ref(),
                Hook::global(Kind::Scale(Ln::Final)),
            ),
        };
        let b_o = match &weights.b_o {
            Some(b_o) => to_host(b_o)?.into_iter().map(f64::from).collect(),
            None => vec![0.0; spec.d_model],
        };
        Ok(Layer {
            model,
            index,
            length: cache.length,
            resid_pre: at(Kind::ResidPre)?,
            resid_mid: at(Kind::ResidMid)?,
            normalized: at(Kind::Normalized(Ln::Two))?,
            v: at(Kind::V)?,
            pattern: at(Kind::Pattern)?,
            b_o,
            norms: [
                Norm::new(spec, weights.ln1.as_ref(), at(Kind::Scale(Ln::One))?)?,
                Norm::new(spec, weights.ln2.as_ref(), at(Kind::Scale(Ln::Two))?)?,
                Norm::new(spec, end, read(end_scale)?)?,
            ],
        })
    }

    /// The matrix of each rung on one prompt, and how far sums of parts are from what they are parts of.
    fn mixing(&self, prompt: usize) -> Result<(Vec<Vec<f64>>, [f64; 2])> {
        let spec = &self.model.spec;
        let (n, d, heads) = (self.length, spec.d_model, spec.n_heads);
        let kv = n * spec.n_kv_heads * spec.d_head;
        let v = &self.v[prompt * kv..(prompt + 1) * kv];
        let brought = brought(self.model, self.index, v, 0..n)?;
        let mut rungs = vec![vec![0.0; n * n]; Rung::ALL.len()];
        let mut gaps = [0f64; 2];
        for i in 0..n {
            let row = prompt * n + i;
            let wide = |values: &[f32]| -> Vec<f64> {
                values[row * d..(row + 1) * d]
                    .iter()
                    .map(|&x| f64::from(x))
                    .collect()
            };
            let x = self.norms[0].whole(&wide(&self.resid_pre), row);
            let mut others = vec![0.0; d];
            let mut sums = [self.b_o.clone(), self.norms[1].whole(&self.b_o, row)];
            for j in 0..n {
                let mut part = vec![0.0; d];
                for head in 0..heads {
                    let weight = f64::from(self.pattern[((prompt * heads + head) * n + i) * n + j]);
                    rungs[0][i * n + j] += weight / heads as f64;
                    let brought = &brought[(head * n + j) * d..][..d];
                    let each = part.iter_mut().zip(brought);
                    each.for_each(|(part, x)| *part += weight * f64::from(*x));
                }
                rungs[3][i * n + j] = size(&part);
                if i == j {
                    add(&mut part, &x);
                } else {
                    add(&mut others, &part);
                }
                let behind = self.norms[1].part(&part, row);
                rungs[4][i * n + j] = size(&part);
                rungs[5][i * n + j] = size(&behind);
                rungs[6][i * n + j] = size(&self.norms[2].part(&behind, row));
                add(&mut sums[0], &part);
                add(&mut sums[1], &behind);
            }
            let behind = self.norms[1].weighted(&wide(&self.normalized));
            let wholes = [wide(&self.resid_mid), behind];
            for ((gap, sum), whole) in gaps.iter_mut().zip(&sums).zip(&wholes) {
                let each = sum.iter().zip(whole);
                *gap = each.map(|(a, b)| (a - b).abs()).fold(*gap, larger);
            }
            let own = rungs[4][i * n + i];
            let kept = own / (own + size(&others));
            let elsewhere = 1.0 - rungs[0][i * n + i];
            for j in 0..n {
                let (at, is_own) = (i * n + j, f64::from(u8::from(i == j)));
                let weight = rungs[0][at];
                rungs[1][at] = 0.5 * weight + 0.5 * is_own;
                rungs[2][at] = match i == j {
                    true if elsewhere > 0.0 => kept,
                    true => 1.0,
                    false if elsewhere > 0.0 => (1.0 - kept) * weight / elsewhere,
                    false => 0.0,
                };
            }
        }
        Ok((rungs, gaps))
    }
}

fn add(sum: &mut [f64], part: &[f64]) {
    sum.iter_mut().zip(part).for_each(|(sum, x)| *sum += x);
}

/// In L2.
fn size(x: &[f64]) -> f64 {
    x.iter().map(|x| x * x).sum::<f64>().sqrt()
}
