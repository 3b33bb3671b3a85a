//! The frequencies at which rotary positions turn, under every scaling that stretches them beyond the trained length.
//!
//! Everything is formed in f32 and in the order of the reference implementations, so that long prompts turn by the same angles.

use std::f64::consts::PI;

use crate::spec::{RopeScaling, RotaryBase};

/// What one base turns by in a run.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Frequencies {
    /// Radians per position, for each pair of dimensions.
    pub inverse: Vec<f32>,
    /// Multiplies cosines and sines.
    pub attention_factor: f32,
}

impl Frequencies {
    /// The frequencies for prompts of `length` tokens: some scalings depend on it.
    pub fn new(dims: usize, base: &RotaryBase, length: usize) -> Self {
        let plain = |i: usize| 1.0 / (base.theta as f32).powf(exponent(i, dims));
        let each = |f: &dyn Fn(usize) -> f32| (0..dims / 2).map(f).collect::<Vec<f32>>();
        let over = |factors: &[f64]| each(&|i| plain(i) / factors[i] as f32);
        let (inverse, attention_factor) = match &base.scaling {
            RopeScaling::None => (each(&plain), 1.0),
            RopeScaling::Linear { factor } => (each(&|i| plain(i) / *factor as f32), 1.0),
            RopeScaling::Factors { factors } => (over(factors), 1.0),
            RopeScaling::Llama3 {
                factor,
                low_freq_factor,
                high_freq_factor,
                original_max_position,
            } => {
                let turns = [*low_freq_factor as f32, *high_freq_factor as f32];
                let inverse_of =
                    |i| llama3(plain(i), *factor as f32, turns, *original_max_position);
                (each(&inverse_of), 1.0)
            }
            RopeScaling::Dynamic {
                factor,
                original_max_position,
            } => {
                let original = *original_max_position as f64;
                let stretch = factor * (length as f64).max(original) / original - (factor - 1.0);
                let theta = base.theta * stretch.powf(dims as f64 / (dims as f64 - 2.0));
                let inverse_of = |i| 1.0 / (theta as f32).powf(exponent(i, dims));
                (each(&inverse_of), 1.0)
            }
            RopeScaling::Yarn {
                factor,
                beta_fast,
                beta_slow,
                attention_factor,
                truncate,
                original_max_position,
            } => {
                let (low, high) = yarn_range(
                    [*beta_fast, *beta_slow],
                    dims,
                    base.theta,
                    *original_max_position as f64,
                    *truncate,
                );
                let inverse_of = |i: usize| {
                    let ramp = ((i as f32 - low) / (high - low)).clamp(0.0, 1.0);
                    let power = (base.theta as f32).powf(exponent(i, dims));
                    let stretched = 1.0 / (*factor as f32 * power);
                    stretched * ramp + (1.0 / power) * (1.0 - ramp)
                };
                (each(&inverse_of), *attention_factor)
            }
            RopeScaling::LongRope {
                short,
                long,
                attention_factor,
                original_max_position,
            } => {
                let is_long = length > *original_max_position;
                (over(if is_long { long } else { short }), *attention_factor)
            }
        };
        Frequencies {
            inverse,
            attention_factor: attention_factor as f32,
        }
    }
}

/// The power of the base that pair `i` has.
fn exponent(i: usize, dims: usize) -> f32 {
    2.0 * i as f32 / dims as f32
}

/// Wavelengths that fit often into the trained length stay, long ones are stretched, those between are mixed.
fn llama3(frequency: f32, factor: f32, [low, high]: [f32; 2], original: usize) -> f32 {
    let original = original as f32;
    let wavelength = 2.0 * std::f32::consts::PI / frequency;
    if wavelength < original / high {
        frequency
    } else if wavelength > original / low {
        frequency / factor
    } else {
        let smooth = (original / wavelength - low) / (high - low);
        (1.0 - smooth) * frequency / factor + smooth * frequency
    }
}

/// The pairs between which YaRN's ramp rises: where a frequency makes `beta_fast` and `beta_slow` turns over the trained length.
fn yarn_range(
    betas: [f64; 2],
    dims: usize,
    theta: f64,
    original: f64,
    truncate: bool,
) -> (f32, f32) {
    let pair_of =
        |turns: f64| dims as f64 * (original / (turns * 2.0 * PI)).ln() / (2.0 * theta.ln());
    let [mut low, mut high] = betas.map(pair_of);
    if truncate {
        (low, high) = (low.floor(), high.ceil());
    }
    let (low, high) = (low.max(0.0), high.min(dims as f64 - 1.0));
    // A ramp of no width would divide by zero.
    let high = if low == high { high + 0.001 } else { high };
    (low as f32, high as f32)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frequencies(scaling: RopeScaling, length: usize) -> Frequencies {
        let base = RotaryBase {
            theta: 100.0,
            scaling,
        };
        Frequencies::new(4, &base, length)
    }

    #[test]
    fn linear_scaling_divides_and_factors_divide_each() {
        let plain = frequencies(RopeScaling::None, 8).inverse;
        assert_eq!(plain, [1.0, 0.1]);
        let linear = frequencies(RopeScaling::Linear { factor: 4.0 }, 8);
        assert_eq!(linear.inverse, [0.25, 0.025]);
        let factors = vec![1.0, 2.0];
        let each = frequencies(RopeScaling::Factors { factors }, 8);
        assert_eq!(each.inverse, [1.0, 0.05]);
    }

    #[test]
    fn dynamic_scaling_begins_beyond_the_trained_length() {
        let at = |length| {
            let scaling = RopeScaling::Dynamic {
                factor: 2.0,
                original_max_position: 8,
            };
            frequencies(scaling, length).inverse
        };
        assert_eq!(at(5), [1.0, 0.1]);
        assert_eq!(at(8), [1.0, 0.1]);
        // Twice the length: the base grows by (2 * 2 - 1)^(4/2) = 9, and its root by 3.
        assert!((at(16)[1] - 0.1 / 3.0).abs() < 1e-7);
    }

    #[test]
    fn longrope_chooses_by_the_length_of_the_prompt() {
        let at = |length| {
            let scaling = RopeScaling::LongRope {
                short: vec![1.0, 2.0],
                long: vec![4.0, 5.0],
                attention_factor: 1.5,
                original_max_position: 8,
            };
            frequencies(scaling, length)
        };
        assert_eq!(at(8).inverse, [1.0, 0.05]);
        assert_eq!(at(9).inverse, [0.25, 0.02]);
        assert_eq!(at(9).attention_factor, 1.5);
    }

    #[test]
    fn yarn_keeps_fast_pairs_and_divides_slow_ones() {
        let scaling = RopeScaling::Yarn {
            factor: 4.0,
            beta_fast: 8.0,
            beta_slow: 4.0,
            attention_factor: 1.0,
            truncate: true,
            original_max_position: 100,
        };
        // Pair 0 turns 16 times in 100 positions, pair 1 less than twice.
        assert_eq!(frequencies(scaling, 8).inverse, [1.0, 0.025]);
    }
}
