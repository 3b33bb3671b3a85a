//! Gradient-SHAP and noise tunnels: what they are in the limit, and what they are without noise.

use candlewick::methods::tokens::{
    Baseline, NoiseTunnel, OverNoise, Quadrature, ReferenceSet, TokenConfig, TokenMethod,
};
use candlewick::scores::Measured;

use crate::models::{every_kind, two_kinds};
use crate::{SUMS, config, ig, measure, near, shares};

fn shap(draws: usize, noise: f64, reference: ReferenceSet) -> TokenConfig {
    config(TokenMethod::GradientShap {
        draws,
        noise,
        reference,
    })
}

/// Root of the summed squares of the differences, over all tokens of all prompts.
fn distance(a: &Measured, b: &Measured) -> f64 {
    let of = |measured: &Measured| -> Vec<f64> {
        (0..measured.examples.len())
            .flat_map(|example| shares(measured, example, "hook_embed"))
            .collect()
    };
    let squares = of(a).into_iter().zip(of(b)).map(|(a, b)| (a - b).powi(2));
    squares.sum::<f64>().sqrt()
}

#[test]
fn gradient_shap_of_one_baseline_without_noise_tends_to_integrated_gradients() {
    for model in two_kinds() {
        let exact = measure(
            &model,
            &config(ig(60, Quadrature::GaussLegendre, Baseline::Mean)),
        );
        let of = |draws, noise| {
            let one = ReferenceSet::One(Baseline::Mean);
            distance(&measure(&model, &shap(draws, noise, one)), &exact)
        };
        let (few, many, noisy) = (of(20, 0.0), of(600, 0.0), of(600, 0.15));
        // An error of the root of the draws: less than a fifth, with room for luck.
        assert!(many < 0.4 * few, "{}: {many} of {few}", model.spec.family);
        assert!(noisy > 2.0 * many, "{}: {noisy}, {many}", model.spec.family);
    }
}

#[test]
fn gradient_shap_without_noise_is_expected_gradients() {
    for model in two_kinds() {
        for reference in [ReferenceSet::Corrupted, ReferenceSet::Clean] {
            let expected = config(TokenMethod::ExpectedGradients {
                draws: 9,
                reference: reference.clone(),
            });
            let (a, b) = (
                measure(&model, &shap(9, 0.0, reference)),
                measure(&model, &expected),
            );
            assert_eq!(a.examples, b.examples);
        }
    }
}

fn through(method: &TokenMethod, over: OverNoise, noise: f64) -> TokenConfig {
    TokenConfig {
        tunnel: Some(NoiseTunnel {
            over,
            draws: 4,
            noise,
        }),
        ..config(method.clone())
    }
}

/// Those that a tunnel may lead through, with few points.
fn methods() -> Vec<TokenMethod> {
    let mut methods = TokenMethod::all();
    methods.retain(TokenMethod::goes_through_noise);
    for method in &mut methods {
        match method {
            TokenMethod::IntegratedGradients { steps, .. } => *steps = 3,
            TokenMethod::ExpectedGradients { draws, reference } => {
                // Two tunnels without noise differ in what they draw, unless there is one thing to draw.
                *draws = 3;
                *reference = ReferenceSet::One(Baseline::Pair);
            }
            _ => {}
        }
    }
    assert_eq!(methods.len(), 7);
    methods
}

#[test]
fn a_tunnel_without_noise_is_the_method() {
    for model in every_kind() {
        for method in methods() {
            let what = format!("{} {method}", model.spec.family);
            let plain = measure(&model, &config(method.clone()));
            let of = |over| measure(&model, &through(&method, over, 0.0));
            let (mean, square, variance) = (
                of(OverNoise::Smoothgrad),
                of(OverNoise::SmoothgradSq),
                of(OverNoise::Vargrad),
            );
            assert_eq!(plain.cells, mean.cells, "{what}");
            for (example, one) in plain.examples.iter().enumerate() {
                near(&what, &mean.examples[example].values, &one.values, SUMS);
                let squares: Vec<f64> = one.values.iter().map(|x| x * x).collect();
                near(
                    &what,
                    &square.examples[example].values,
                    &squares,
                    4.0 * SUMS,
                );
                let none = vec![0.0; squares.len()];
                near(&what, &variance.examples[example].values, &none, SUMS);
            }
        }
    }
}

#[test]
fn the_variance_is_the_mean_square_less_the_square_of_the_mean() {
    for model in two_kinds() {
        for method in methods() {
            let of = |over| measure(&model, &through(&method, over, 0.1));
            let (mean, square, variance) = (
                of(OverNoise::Smoothgrad),
                of(OverNoise::SmoothgradSq),
                of(OverNoise::Vargrad),
            );
            let plain = measure(&model, &config(method.clone()));
            for (example, variance) in variance.examples.iter().enumerate() {
                let means = &mean.examples[example].values;
                let squares = square.examples[example].values.iter().zip(means);
                let expected: Vec<f64> =
                    squares.map(|(square, mean)| square - mean * mean).collect();
                near(method.name(), &variance.values, &expected, 1e-9);
                assert_ne!(means, &plain.examples[example].values, "{method}");
            }
        }
    }
}
