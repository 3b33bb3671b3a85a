//! Sparse autoencoders and transcoders: dictionaries that write an activation as a few latents and what is left over.
//!
//! `x = decode(encode(x)) + error`. The error is always kept: a run in which nothing is changed is the model's own, to the bit, and an
//! edit of a latent adds `(a' - a) W_dec[latent]` to what was there. A *transcoder* reads one hook and writes another, as an MLP does.
//!
//! Read from disk ([`Sae::open`]): folders of SAELens (`cfg.json` beside `sae_weights.safetensors`) of the architectures standard, top-k,
//! batch-top-k, gated and JumpReLU, their transcoders with and without a skip, and Gemma Scope's `params.npz`. Where one of these trains
//! differently from how it is used, this is how it is used.
//!
//! Sources: Bricken et al. 2023, "Towards Monosemanticity"; Cunningham et al. 2023, arXiv 2309.08600; Gao et al. 2024, arXiv 2406.04093
//! (top-k); Rajamanoharan et al. 2024, arXiv 2404.16014 (gated) and 2407.14435 (JumpReLU); Bussmann et al. 2024, arXiv 2412.06410
//! (batch-top-k); Dunefsky et al. 2024, arXiv 2406.11944 (transcoders).

mod config;
mod npz;
mod open;
mod steer;

use std::fmt;

use crate::error::{Error, Result};
use crate::hooks::{Axes, Hook};
use crate::nn::linear::{Right, product};
use crate::spec::ModelSpec;

pub(crate) use npz::read_npy;
pub use steer::Steer;

/// The names under which SAELens attaches latents, error and reconstruction to a hook.
pub const LATENTS: &str = "hook_sae_acts_post";
pub const ERROR: &str = "hook_sae_error";
pub const RECONSTRUCTION: &str = "hook_sae_recons";

/// How the inputs of the latents become their activations.
#[derive(Debug, Clone, PartialEq)]
pub enum Activation {
    Relu,
    /// What is above a threshold of each latent stays as it is; thresholds are not negative.
    JumpRelu {
        threshold: Vec<f32>,
    },
    /// The `k` largest of each position, where they are positive; of equal ones those of the smaller index.
    TopK {
        k: usize,
    },
    /// Which latents are there, and how much, are told apart: `x W_enc + gate > 0`, and `x W_enc exp(scale) + b_enc`.
    Gated {
        gate: Vec<f32>,
        scale: Vec<f32>,
    },
}

/// What is done to the input before it is encoded, and undone after it is decoded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Normalize {
    None,
    /// To the length of the root of its width.
    Length,
    /// To mean 0 and standard deviation 1.
    Standard,
}

/// A dictionary of latents. Weights in f32.
#[derive(Clone)]
pub struct Sae {
    /// Where it was read from, as it was asked for.
    pub id: String,
    /// SHA-256 of its weights' file.
    pub hash: String,
    /// The model that it says it was trained on.
    pub model: Option<String>,
    /// What should be known before its latents are believed.
    pub doubts: Vec<String>,
    /// The hook that it reads, and the one that it writes: the same but for transcoders.
    pub reads: Hook,
    pub writes: Hook,
    pub activation: Activation,
    pub normalize: Normalize,
    /// The decoder's bias is taken off the input before it is encoded.
    pub centred: bool,
    /// The lengths of the decoder's rows, where latents are compared and written down in units of them.
    pub decoder_norms: Option<Vec<f32>>,
    pub d_in: usize,
    pub d_out: usize,
    pub d_sae: usize,
    /// `[d_in, d_sae]`
    pub w_enc: Vec<f32>,
    pub b_enc: Vec<f32>,
    /// `[d_sae, d_out]`
    pub w_dec: Vec<f32>,
    pub b_dec: Vec<f32>,
    /// `[d_out, d_in]`: what a transcoder passes on besides.
    pub w_skip: Option<Vec<f32>>,
}

/// The latents of some positions that are not zero, ascending, and how each position was normalised.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Latents {
    pub rows: Vec<Vec<(u32, f32)>>,
    /// What the decoder's output is multiplied by, and what is added to it.
    scales: Vec<(f32, f32)>,
}

impl Latents {
    /// What a unit of a latent adds at a row, as a multiple of its decoder row.
    pub fn scale(&self, row: usize) -> f32 {
        self.scales[row].0
    }

    /// One latent at one row; 0 where it is off.
    pub fn get(&self, row: usize, latent: u32) -> f32 {
        let row = &self.rows[row];
        (row.binary_search_by_key(&latent, |&(of, _)| of)).map_or(0.0, |at| row[at].1)
    }
}

/// Rows that are encoded together: their inputs of all latents are held at once.
const ROWS: usize = 128;

impl Sae {
    /// Whether it writes another hook than it reads.
    pub fn is_transcoder(&self) -> bool {
        self.reads != self.writes
    }

    /// The row of the decoder that a latent writes along.
    pub fn direction(&self, latent: usize) -> &[f32] {
        &self.w_dec[latent * self.d_out..][..self.d_out]
    }

    /// The multiple of its decoder row that a unit of a latent adds, before the position's scale.
    pub fn unit(&self, latent: usize) -> f32 {
        let norms = self.decoder_norms.as_ref();
        norms.map_or(1.0, |norms| 1.0 / norms[latent].max(f32::MIN_POSITIVE))
    }

    /// The latents of activations.
    /// # Shapes
    /// `x [rows, d_in]`.
    pub fn encode(&self, x: &[f32]) -> Latents {
        let mut latents = Latents::default();
        for x in x.chunks(ROWS * self.d_in) {
            let mut x = x.to_vec();
            for row in x.chunks_exact_mut(self.d_in) {
                latents.scales.push(self.normalise_input(row));
                if self.centred {
                    row.iter_mut().zip(&self.b_dec).for_each(|(x, b)| *x -= b);
                }
            }
            let rows = x.len() / self.d_in;
            let mut inputs = vec![0.0; rows * self.d_sae];
            let sizes = [rows, self.d_in, self.d_sae];
            product(&mut inputs, &x, &self.w_enc[..], sizes, Right::InOut, false);
            let of_rows = inputs.chunks_exact(self.d_sae);
            latents.rows.extend(of_rows.map(|row| self.activate(row)));
        }
        latents
    }

    /// Normalises a row that is read; what undoes it where the dictionary writes.
    fn normalise_input(&self, row: &mut [f32]) -> (f32, f32) {
        let undone = self.normalise(row);
        // What a transcoder writes is of another hook, and in that hook's own units.
        match self.is_transcoder() {
            true => (1.0, 0.0),
            false => undone,
        }
    }

    /// Normalises a row; what undoes it.
    fn normalise(&self, row: &mut [f32]) -> (f32, f32) {
        let n = row.len() as f32;
        match self.normalize {
            Normalize::None => (1.0, 0.0),
            Normalize::Length => {
                let factor = n.sqrt() / length(row).max(f32::MIN_POSITIVE);
                row.iter_mut().for_each(|x| *x *= factor);
                (1.0 / factor, 0.0)
            }
            Normalize::Standard => {
                let mean = row.iter().sum::<f32>() / n;
                row.iter_mut().for_each(|x| *x -= mean);
                let squares: f32 = row.iter().map(|x| x * x).sum();
                let deviation = (squares / (n - 1.0).max(1.0)).sqrt();
                row.iter_mut().for_each(|x| *x /= deviation + 1e-5);
                (deviation, mean)
            }
        }
    }

    /// The latents of one row that are on, from `x W_enc`.
    fn activate(&self, inputs: &[f32]) -> Vec<(u32, f32)> {
        let norm = |j: usize| self.decoder_norms.as_ref().map_or(1.0, |norms| norms[j]);
        let pre = |j: usize| (inputs[j] + self.b_enc[j]) * norm(j);
        let positive = |value: f32| Some(value).filter(|&value| value > 0.0);
        let on = |value: &dyn Fn(usize) -> Option<f32>| -> Vec<(u32, f32)> {
            let all = (0..self.d_sae).filter_map(|j| Some((j as u32, value(j)?)));
            all.collect()
        };
        match &self.activation {
            Activation::Relu => on(&|j| positive(pre(j))),
            Activation::JumpRelu { threshold } => {
                on(&|j| positive(pre(j)).filter(|&value| value > threshold[j]))
            }
            Activation::Gated { gate, scale } => on(&|j| {
                let is_there = inputs[j] + gate[j] > 0.0;
                positive(inputs[j] * scale[j].exp() + self.b_enc[j]).filter(|_| is_there)
            }),
            Activation::TopK { k } => {
                let mut all = on(&|j| positive(pre(j)));
                if all.len() > *k {
                    let by_size =
                        |a: &(u32, f32), b: &(u32, f32)| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0));
                    all.select_nth_unstable_by(*k, by_size);
                    all.truncate(*k);
                    all.sort_unstable_by_key(|latent| latent.0);
                }
                all
            }
        }
    }

    /// What latents write.
    /// # Shapes
    /// `[rows, d_out]`; `x [rows, d_in]` is what they were encoded from, for a transcoder that also passes its input on.
    pub fn decode(&self, latents: &Latents, x: &[f32]) -> Vec<f32> {
        let mut out = Vec::with_capacity(latents.rows.len() * self.d_out);
        for (row, &(scale, mean)) in latents.rows.iter().zip(&latents.scales) {
            let mut sum = self.b_dec.clone();
            for &(latent, value) in row {
                let value = value * self.unit(latent as usize);
                let direction = self.direction(latent as usize);
                (sum.iter_mut().zip(direction)).for_each(|(sum, w)| *sum += value * w);
            }
            out.extend(sum.iter().map(|sum| sum * scale + mean));
        }
        if let Some(w_skip) = &self.w_skip {
            let sizes = [latents.rows.len(), self.d_in, self.d_out];
            product(&mut out, x, &w_skip[..], sizes, Right::OutIn, true);
        }
        out
    }

    /// Whether a model has the hooks, at these widths.
    /// # Errors
    /// [`Error::Invalid`] naming both widths; [`Error::HookAbsent`], [`Error::OutOfRange`].
    pub fn check(&self, spec: &ModelSpec) -> Result<()> {
        for (hook, own) in [(self.reads, self.d_in), (self.writes, self.d_out)] {
            hook.check(spec)?;
            let width = width(hook, spec)?;
            if width != own {
                let of = self.model.as_deref().map(crate::text::visible);
                let trained = of.map_or(String::new(), |of| format!(" (it was trained on `{of}`)"));
                return Err(Error::invalid(format!(
                    "`{}` has activations of width {own} where this model's `{hook}` has {width}{trained}; take a sparse autoencoder of \
                     this model and hook",
                    crate::text::visible(&self.id)
                )));
            }
        }
        Ok(())
    }

    /// What decides its numbers, for plans and provenance.
    pub fn settings(&self) -> serde_json::Value {
        serde_json::json!({
            "id": self.id,
            "weights": self.hash,
            "model": self.model,
            "reads": self.reads.to_string(),
            "writes": self.writes.to_string(),
            "how": format!("{self}"),
            "normalize": format!("{:?}", self.normalize),
            "centred": self.centred,
            "in_decoder_norms": self.decoder_norms.is_some(),
        })
    }

    /// Whether it has a latent.
    /// # Errors
    /// [`Error::OutOfRange`].
    pub fn check_latent(&self, latent: usize) -> Result<()> {
        if latent < self.d_sae {
            return Ok(());
        }
        Err(Error::OutOfRange {
            hook: format!("`{}`", crate::text::visible(&self.id)),
            what: "latent",
            value: latent.to_string(),
            limit: format!("{} latents, 0 to {}", self.d_sae, self.d_sae - 1),
        })
    }
}

/// Values that a hook has for one position: heads together.
/// # Errors
/// [`Error::HookAbsent`] for a hook that is no activation of a position.
fn width(hook: Hook, spec: &ModelSpec) -> Result<usize> {
    match hook.kind.axes(spec) {
        Axes::Pattern | Axes::Scale => Err(Error::HookAbsent {
            hook: hook.to_string(),
            reason: "a sparse autoencoder reads activations of positions, such as `blocks.0.hook_resid_post`".into(),
        }),
        _ => Ok(hook.width(spec)),
    }
}

/// The Euclidean length.
fn length(x: &[f32]) -> f32 {
    x.iter().map(|x| x * x).sum::<f32>().sqrt()
}

/// Dictionaries are equal where all that decides their numbers is.
impl PartialEq for Sae {
    fn eq(&self, other: &Self) -> bool {
        self.settings() == other.settings()
    }
}

impl fmt::Debug for Sae {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "Sae({:?}, {} latents of {})",
            self.id, self.d_sae, self.reads
        )
    }
}

/// What it is in a line: `1,024 latents of blocks.2.hook_resid_post (topk 32)`.
impl fmt::Display for Sae {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} latents of {}", self.d_sae, self.reads)?;
        if self.is_transcoder() {
            write!(f, " that write {}", self.writes)?;
        }
        match &self.activation {
            Activation::Relu => f.write_str(" (standard)"),
            Activation::JumpRelu { .. } => f.write_str(" (JumpReLU)"),
            Activation::TopK { k } => write!(f, " (top {k})"),
            Activation::Gated { .. } => f.write_str(" (gated)"),
        }
    }
}
