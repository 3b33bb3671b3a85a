//! The noise behind a token: a draw from `softmax(phi)` is `argmax(phi + n)` with Gumbel noise `n`, and of a token that is known the
//! noise can be drawn in hindsight.

use rand::distr::Open01;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

/// Noise of the standard Gumbel distribution.
fn gumbel(uniform: f64) -> f64 {
    -(-uniform.ln()).ln()
}

/// The uniform draws of one step of one prompt, one a token: a function of seed, prompt and step alone, so that noise need not be
/// kept.
pub(super) fn uniforms(seed: u64, stream: u64, step: usize, d_vocab: usize) -> Vec<f64> {
    let mut draws = ChaCha8Rng::seed_from_u64(seed);
    // Apart from the streams by which tokens are drawn.
    draws.set_stream(!stream);
    draws.set_word_pos((step as u128) << 32);
    (0..d_vocab).map(|_| draws.sample(Open01)).collect()
}

/// Noise without anything known.
pub(super) fn fresh(uniforms: &[f64]) -> Vec<f64> {
    uniforms.iter().map(|&uniform| gumbel(uniform)).collect()
}

/// Noise by which `token` was the largest of `log_probs + noise`. The largest value is a Gumbel variable itself, whichever token has
/// it; the others are Gumbel variables cut off there.
/// # Shapes
/// `log_probs`, `uniforms`: `[d_vocab]`, the first normalised; gives the same.
/// # Source
/// Maddison, Tarlow, Minka 2014, "A* Sampling"; Oberst, Sontag 2019, "Counterfactual Off-Policy Evaluation with Gumbel-Max Structural
/// Causal Models".
pub(super) fn hindsight(log_probs: &[f64], token: usize, uniforms: &[f64]) -> Vec<f64> {
    let top = gumbel(uniforms[token]);
    let below = |(&log_prob, &uniform): (&f64, &f64)| -((log_prob - top).exp() - uniform.ln()).ln();
    let mut noise: Vec<f64> = log_probs.iter().zip(uniforms).map(below).collect();
    noise[token] = top - log_probs[token];
    noise
}

#[cfg(test)]
mod tests {
    use super::super::sampling::argmax;
    use super::*;

    const PROBABILITIES: [f64; 4] = [0.1, 0.55, 0.3, 0.05];
    const DRAWS: usize = 40_000;

    fn log_probs() -> Vec<f64> {
        PROBABILITIES.iter().map(|p: &f64| p.ln()).collect()
    }

    fn sums(log_probs: &[f64], noise: &[f64]) -> Vec<f64> {
        log_probs.iter().zip(noise).map(|(a, b)| a + b).collect()
    }

    /// Mean and standard deviation of each token's `log_prob + noise`.
    fn moments(draws: &[Vec<f64>]) -> Vec<(f64, f64)> {
        let n = draws.len() as f64;
        let of = |token: usize| {
            let mean = draws.iter().map(|draw| draw[token]).sum::<f64>() / n;
            let squares = draws.iter().map(|draw| (draw[token] - mean).powi(2));
            (mean, (squares.sum::<f64>() / n).sqrt())
        };
        (0..PROBABILITIES.len()).map(of).collect()
    }

    #[test]
    fn noise_in_hindsight_is_noise_that_happened_to_choose_the_token() {
        let log_probs = log_probs();
        // Draws in which a token won, out of all draws.
        let all = (0..DRAWS).map(|step| sums(&log_probs, &fresh(&uniforms(1, 0, step, 4))));
        let mut won: Vec<Vec<Vec<f64>>> = vec![Vec::new(); 4];
        all.for_each(|draw| won[argmax(&draw).expect("four")].push(draw));
        for (token, won) in won.iter().enumerate() {
            let share = won.len() as f64 / DRAWS as f64;
            assert!((share - PROBABILITIES[token]).abs() < 0.01, "{share}");
            let told = (0..DRAWS).map(|step| {
                let draw = sums(
                    &log_probs,
                    &hindsight(&log_probs, token, &uniforms(2, 0, step, 4)),
                );
                assert_eq!(argmax(&draw), Some(token));
                draw
            });
            let told: Vec<Vec<f64>> = told.collect();
            // Four standard deviations of the mean of as many as were kept, for numbers that vary by about 1.3.
            let noise = 4.0 * 1.3 / (won.len() as f64).sqrt();
            for (a, b) in moments(won).into_iter().zip(moments(&told)) {
                assert!((a.0 - b.0).abs() < noise, "{token}: means {a:?}, {b:?}");
                assert!(
                    (a.1 - b.1).abs() < noise,
                    "{token}: deviations {a:?}, {b:?}"
                );
            }
        }
    }

    #[test]
    fn noise_is_that_of_its_seed_prompt_and_step() {
        let of = |seed, stream, step| uniforms(seed, stream, step, 3);
        assert_eq!(of(1, 2, 3), of(1, 2, 3));
        for other in [of(2, 2, 3), of(1, 3, 3), of(1, 2, 4)] {
            assert_ne!(of(1, 2, 3), other);
        }
        // Those of a larger vocabulary begin alike, so steps do not run into each other.
        assert_eq!(uniforms(1, 2, 3, 1000)[..3], of(1, 2, 3));
    }

    #[test]
    fn a_token_that_cannot_be_has_noise_of_its_own() {
        let log_probs = [0.0, f64::NEG_INFINITY];
        let noise = hindsight(&log_probs, 0, &[0.5, 0.25]);
        assert_eq!(noise[1], gumbel(0.25));
        assert!(noise.iter().all(|x| x.is_finite()));
    }
}
