//! From the logits of one position to the next token.

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use crate::error::{Error, Result};

/// How the next token is chosen.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub enum Sampling {
    /// The most probable token; of equals, the one with the smallest id.
    #[default]
    Greedy,
    /// A draw from `softmax(logits / temperature)`, cut off first after the `top_k` most probable tokens, then after the fewest
    /// that hold `top_p` of what is left. Tokens as probable as the last one kept are cut by id.
    Temperature {
        temperature: f64,
        top_k: Option<usize>,
        top_p: Option<f64>,
    },
}

impl Sampling {
    /// # Errors
    /// [`Error::Invalid`] for a temperature or a cut-off that leaves nothing to draw from.
    pub(super) fn check(&self) -> Result<()> {
        let Sampling::Temperature {
            temperature,
            top_k,
            top_p,
        } = *self
        else {
            return Ok(());
        };
        if !(temperature.is_finite() && temperature > 0.0) {
            return Err(Error::invalid(format!(
                "a temperature must be a number above 0, not {temperature}; leave `Sampling::temperature` out for the most probable token"
            )));
        }
        if top_k == Some(0) {
            return Err(Error::invalid(
                "a top-k of 0 leaves no token to draw; use 1 or more",
            ));
        }
        match top_p.filter(|p| !(*p > 0.0 && *p <= 1.0)) {
            Some(p) => Err(Error::invalid(format!(
                "top-p is a share of the probability, above 0 and at most 1, not {p}"
            ))),
            None => Ok(()),
        }
    }
}

/// What chooses the tokens of all prompts of a generation.
pub(super) trait Choose {
    /// The token of a prompt at a step, from 0, and its log probability under the logits as they are. `None` for logits that are no
    /// numbers.
    fn choose(&mut self, prompt: usize, step: usize, logits: &[f32]) -> Option<(u32, f64)>;

    /// How many tokens a prompt gets at most.
    fn most(&self, _prompt: usize) -> usize {
        usize::MAX
    }
}

/// What chooses the tokens of one prompt by itself.
pub(super) struct Chooser {
    sampling: Sampling,
    draws: ChaCha8Rng,
}

impl Chooser {
    pub fn new(sampling: Sampling, seed: u64, stream: u64) -> Self {
        let mut draws = ChaCha8Rng::seed_from_u64(seed);
        draws.set_stream(stream);
        Chooser { sampling, draws }
    }

    /// A token and its log probability under the logits as they are. `None` if they hold a NaN or plus infinity, or nothing
    /// finite.
    pub fn choose(&mut self, logits: &[f32]) -> Option<(u32, f64)> {
        let normaliser = Normaliser::of(logits)?;
        let max = normaliser.max;
        let token = match self.sampling {
            Sampling::Greedy => argmax(logits)?,
            Sampling::Temperature {
                temperature,
                top_k,
                top_p,
            } => {
                let weight = |x: f32| ((f64::from(x) - max) / temperature).exp();
                let weights = logits.iter().map(|&x| weight(x)).enumerate().collect();
                draw(cut_off(weights, top_k, top_p), self.draws.random())
            }
        };
        Some((token as u32, normaliser.log_prob(logits[token])))
    }
}

impl Choose for Vec<Chooser> {
    fn choose(&mut self, prompt: usize, _: usize, logits: &[f32]) -> Option<(u32, f64)> {
        self[prompt].choose(logits)
    }
}

/// What makes log probabilities of the logits of one position.
#[derive(Debug, Clone, Copy)]
pub(super) struct Normaliser {
    max: f64,
    /// The logarithm of the sum of all probabilities, as multiples of the largest.
    log_sum: f64,
}

impl Normaliser {
    /// `None` if the logits hold a NaN or plus infinity, or nothing finite.
    pub fn of<T: Copy + PartialOrd + Into<f64>>(logits: &[T]) -> Option<Self> {
        let wide = || logits.iter().map(|&x| x.into());
        let is_lawful = |x: f64| x.is_finite() || x == f64::NEG_INFINITY;
        let max = logits[argmax(logits)?].into();
        if !max.is_finite() || !wide().all(is_lawful) {
            return None;
        }
        let sum: f64 = wide().map(|x| (x - max).exp()).sum();
        Some(Normaliser {
            max,
            log_sum: sum.ln(),
        })
    }

    pub fn log_prob(self, logit: impl Into<f64>) -> f64 {
        logit.into() - self.max - self.log_sum
    }
}

/// The first of the largest.
pub(super) fn argmax<T: PartialOrd>(values: &[T]) -> Option<usize> {
    let mut best = 0;
    for (at, value) in values.iter().enumerate() {
        if *value > values[best] {
            best = at;
        }
    }
    (!values.is_empty()).then_some(best)
}

/// The tokens that may be drawn, with their weights.
fn cut_off(
    mut weights: Vec<(usize, f64)>,
    top_k: Option<usize>,
    top_p: Option<f64>,
) -> Vec<(usize, f64)> {
    if top_k.is_none() && top_p.is_none() {
        return weights;
    }
    weights.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
    weights.truncate(top_k.unwrap_or(weights.len()));
    if let Some(p) = top_p {
        let wanted = p * weights.iter().map(|(_, weight)| weight).sum::<f64>();
        let mut held = 0.0;
        let enough = weights.iter().position(|(_, weight)| {
            held += weight;
            held >= wanted
        });
        weights.truncate(enough.map_or(weights.len(), |last| last + 1));
    }
    weights
}

/// The token under a point of the weights laid end to end; `point` from 0 to 1.
fn draw(weights: Vec<(usize, f64)>, point: f64) -> usize {
    let total: f64 = weights.iter().map(|(_, weight)| weight).sum();
    let mut left = point * total;
    let mut last = 0;
    for (token, weight) in weights.into_iter().filter(|(_, weight)| *weight > 0.0) {
        last = token;
        left -= weight;
        if left < 0.0 {
            break;
        }
    }
    last
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sampled(temperature: f64, top_k: Option<usize>, top_p: Option<f64>) -> Sampling {
        Sampling::Temperature {
            temperature,
            top_k,
            top_p,
        }
    }

    /// How often each of three tokens comes in 4,000 draws from probabilities 0.2, 0.5, 0.3.
    fn shares(sampling: Sampling) -> [f64; 3] {
        let logits = [0.2f32.ln(), 0.5f32.ln(), 0.3f32.ln()];
        let mut chooser = Chooser::new(sampling, 1, 0);
        let mut counts = [0f64; 3];
        for _ in 0..4000 {
            let (token, _) = chooser.choose(&logits).expect("finite");
            counts[token as usize] += 1.0 / 4000.0;
        }
        counts
    }

    /// Three standard deviations of a share of 4,000 draws.
    const NOISE: f64 = 0.025;

    fn check(sampling: Sampling, expected: [f64; 3]) {
        for (share, expected) in shares(sampling).into_iter().zip(expected) {
            let noise = if expected == 0.0 { 0.0 } else { NOISE };
            assert!(
                (share - expected).abs() <= noise,
                "{sampling:?}: {share} for {expected}"
            );
        }
    }

    #[test]
    fn draws_follow_the_probabilities_that_are_left() {
        check(Sampling::Greedy, [0.0, 1.0, 0.0]);
        check(sampled(1.0, None, None), [0.2, 0.5, 0.3]);
        // Squared and divided by their sum: 0.04, 0.25, 0.09 of 0.38.
        check(
            sampled(0.5, None, None),
            [0.04 / 0.38, 0.25 / 0.38, 0.09 / 0.38],
        );
        check(sampled(1.0, Some(2), None), [0.0, 0.625, 0.375]);
        check(sampled(1.0, None, Some(0.6)), [0.0, 0.625, 0.375]);
        check(sampled(1.0, None, Some(0.4)), [0.0, 1.0, 0.0]);
        check(sampled(1.0, Some(2), Some(0.6)), [0.0, 1.0, 0.0]);
        check(sampled(1e-9, None, None), [0.0, 1.0, 0.0]);
    }

    #[test]
    fn a_log_probability_is_of_the_logits_as_they_are() {
        let mut chooser = Chooser::new(sampled(0.1, Some(1), None), 1, 0);
        let (token, log_prob) = chooser
            .choose(&[0.0, 3f32.ln(), f32::NEG_INFINITY])
            .expect("finite");
        assert_eq!(token, 1);
        assert!((log_prob - 0.75f64.ln()).abs() < 1e-7, "{log_prob}");
    }

    #[test]
    fn of_equals_the_smallest_id_is_chosen() {
        let chosen = Chooser::new(Sampling::Greedy, 0, 0).choose(&[1.0, 2.0, 2.0]);
        assert_eq!(chosen.expect("finite").0, 1);
    }

    #[test]
    fn what_is_not_finite_chooses_nothing() {
        let mut chooser = Chooser::new(Sampling::Greedy, 0, 0);
        let bad = f32::NEG_INFINITY;
        for logits in [
            [f32::NAN, 1.0],
            [1.0, f32::NAN],
            [1.0, f32::INFINITY],
            [bad, bad],
        ] {
            assert_eq!(chooser.choose(&logits), None, "{logits:?}");
        }
        assert_eq!(chooser.choose(&[]), None);
    }

    #[test]
    fn nothing_to_draw_from_is_refused() {
        for sampling in [
            sampled(0.0, None, None),
            sampled(f64::NAN, None, None),
            sampled(1.0, Some(0), None),
            sampled(1.0, None, Some(0.0)),
            sampled(1.0, None, Some(1.5)),
        ] {
            assert!(sampling.check().is_err(), "{sampling:?}");
        }
        assert!(sampled(0.7, Some(50), Some(1.0)).check().is_ok());
    }
}
