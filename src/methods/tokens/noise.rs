//! Noise on embeddings, in units of their span, and what a method's shares come to under it (the noise tunnel).
//!
//! A tunnel runs a method at noisy copies of the prompt and takes the mean of its shares (SmoothGrad), of their squares (SmoothGrad-Sq)
//! or their variance (VarGrad). Everything that the method looks up itself, its baselines and its own draws, stays as it is; without
//! noise the first is the method.
//!
//! Sources: Smilkov et al. 2017 (SmoothGrad); Hooker et al. 2019 (SmoothGrad-Sq); Adebayo et al. 2018 (VarGrad).

use rand_chacha::ChaCha8Rng;
use serde::Serialize;

use super::batch::{Batch, Shares};
use crate::error::{Error, Result};
use crate::methods::gaussian::normal;

/// What is taken of the shares of noisy copies.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[cfg_attr(feature = "cli", derive(clap::ValueEnum))]
#[serde(rename_all = "kebab-case")]
pub enum OverNoise {
    /// Their mean.
    Smoothgrad,
    /// The mean of their squares, which has no sign.
    SmoothgradSq,
    /// Their variance: where a method's answer hangs on the noise.
    Vargrad,
}

impl OverNoise {
    pub fn name(self) -> &'static str {
        match self {
            OverNoise::Smoothgrad => "smoothgrad",
            OverNoise::SmoothgradSq => "smoothgrad-sq",
            OverNoise::Vargrad => "vargrad",
        }
    }

    fn of(self, draws: impl Iterator<Item = f64> + Clone) -> f64 {
        let n = draws.clone().count() as f64;
        let mean = draws.clone().sum::<f64>() / n;
        match self {
            OverNoise::Smoothgrad => mean,
            OverNoise::SmoothgradSq => draws.map(|x| x * x).sum::<f64>() / n,
            OverNoise::Vargrad => draws.map(|x| (x - mean).powi(2)).sum::<f64>() / n,
        }
    }
}

/// A method at noisy copies of the prompt.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct NoiseTunnel {
    pub over: OverNoise,
    pub draws: usize,
    /// Standard deviation of the noise, in units of the span (largest minus smallest entry) of the prompt's embeddings.
    pub noise: f64,
}

impl NoiseTunnel {
    /// 20 draws with SmoothGrad's noise.
    pub fn new(over: OverNoise) -> Self {
        NoiseTunnel {
            over,
            draws: 20,
            noise: 0.15,
        }
    }

    /// # Errors
    /// [`Error::Invalid`] for no draws, one draw of what varies, or noise that is none.
    pub(super) fn check(self) -> Result<()> {
        if self.over == OverNoise::Vargrad && self.draws == 1 {
            return Err(Error::invalid(
                "the variance of one draw is 0 whatever it is (`vargrad`); give the tunnel at least 2 draws",
            ));
        }
        check_draws(self.over.name(), self.draws)?;
        check_noise(self.over.name(), self.noise)
    }
}

/// More than anybody would wait for.
pub(super) const MAX_DRAWS: usize = 100_000;

/// # Errors
/// [`Error::Invalid`] for a number of draws that averages over nothing, or that nobody would wait for.
pub(super) fn check_draws(name: &str, draws: usize) -> Result<()> {
    match draws {
        0 => Err(Error::invalid(format!(
            "`{name}` with 0 draws averages over nothing; give it at least 1"
        ))),
        1..=MAX_DRAWS => Ok(()),
        _ => Err(Error::invalid(format!(
            "`{name}` takes at most {MAX_DRAWS} draws; its error falls with their root"
        ))),
    }
}

/// # Errors
/// [`Error::Invalid`] unless it is a share of a span.
pub(super) fn check_noise(name: &str, noise: f64) -> Result<()> {
    if noise.is_finite() && noise >= 0.0 {
        return Ok(());
    }
    Err(Error::invalid(format!(
        "the noise of `{name}` is {noise}; it is a share of the embeddings' span, such as 0.15"
    )))
}

/// The shares of a batch through a tunnel, by what gives the shares of a batch.
pub(super) fn through(
    batch: &Batch<'_>,
    tunnel: NoiseTunnel,
    shares_of: impl Fn(&Batch<'_>) -> Result<Vec<Shares>>,
) -> Result<Vec<Shares>> {
    let mut draws: Vec<Vec<Shares>> = Vec::with_capacity(tunnel.draws);
    for round in 1..=tunnel.draws {
        let moved = batch.moved(round as u64, |x, rng| {
            let deviation = (tunnel.noise * span(x)) as f32;
            noisy(x, deviation, rng)
        })?;
        draws.push(shares_of(&moved)?);
    }
    let of_prompt = |prompt: usize| {
        let first = &draws[0][prompt];
        let all = || draws.iter().map(|draw| &draw[prompt]);
        let each = |n: usize, get: fn(&Shares, usize) -> f64| -> Vec<f64> {
            (0..n)
                .map(|i| tunnel.over.of(all().map(|it| get(it, i))))
                .collect()
        };
        let parts = each(first.parts.len(), |it, i| it.parts[i].2);
        Shares {
            tokens: each(first.tokens.len(), |it, i| it.tokens[i]),
            positions: each(first.positions.len(), |it, i| it.positions[i]),
            parts: (first.parts.iter().zip(parts))
                .map(|(&(name, layer, _), share)| (name, layer, share))
                .collect(),
            // Sums of squares, and of variances, are promised to nobody.
            total: match tunnel.over {
                OverNoise::Smoothgrad => all().map(|it| it.total).sum::<Option<f64>>(),
                OverNoise::SmoothgradSq | OverNoise::Vargrad => None,
            }
            .map(|sum| sum / tunnel.draws as f64),
        }
    };
    Ok((0..batch.len()).map(of_prompt).collect())
}

pub(super) fn noisy(x: &[f32], deviation: f32, rng: &mut ChaCha8Rng) -> Vec<f32> {
    x.iter().map(|x| x + deviation * normal(rng)).collect()
}

/// Largest minus smallest entry.
pub(super) fn span(x: &[f32]) -> f64 {
    let least = x.iter().copied().fold(f32::INFINITY, f32::min);
    let most = x.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    f64::from(most) - f64::from(least)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tunnel_takes_means_squares_and_variances() {
        let draws = [1.0, 2.0, 6.0];
        let of = |over: OverNoise| over.of(draws.iter().copied());
        assert_eq!(of(OverNoise::Smoothgrad), 3.0);
        assert_eq!(of(OverNoise::SmoothgradSq), 41.0 / 3.0);
        assert!((of(OverNoise::Vargrad) - 14.0 / 3.0).abs() < 1e-12);
        let one = |over| NoiseTunnel {
            draws: 1,
            ..NoiseTunnel::new(over)
        };
        assert!(one(OverNoise::Vargrad).check().is_err());
        assert!(one(OverNoise::Smoothgrad).check().is_ok());
    }
}
