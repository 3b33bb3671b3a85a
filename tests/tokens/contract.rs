//! Refusals, tables, and what shares do not depend on.

use candlewick::Error;
use candlewick::methods::tokens::{
    Baseline, NoiseTunnel, OverNoise, Prompts, Quadrature, ReferenceSet, TokenConfig, TokenMethod,
};
use candlewick::methods::{Running, Subject, Watch, measurements};
use candlewick::metric::Metric;
use candlewick::prelude::Lab;
use candlewick::scores::Detail;
use candlewick::task::Task;

use crate::models::task::{first, task, tokenizer};
use crate::models::two_kinds;
use crate::{completeness, config, ig, measure, measure_so, near, shares};

#[test]
fn a_metric_that_is_not_linear_in_the_logits_has_a_row_for_the_rest() {
    for model in two_kinds() {
        for method in [
            TokenMethod::Lrp,
            TokenMethod::AttnLrp,
            TokenMethod::AltiLogit,
        ] {
            let mut config = config(method);
            config.metric = Some(Metric::LogProb);
            let measured = measure(&model, &config);
            for (example, one) in completeness(&measured).iter().enumerate() {
                assert!(one.delta.abs() < 1e-3, "{}: {one:?}", model.spec.family);
                assert_eq!(shares(&measured, example, "metric").len(), 1);
            }
        }
    }
}

#[test]
fn nothing_depends_on_what_runs_together() {
    for model in two_kinds() {
        for method in TokenMethod::all() {
            let method = match method {
                TokenMethod::IntegratedGradients { .. } => {
                    ig(7, Quadrature::GaussLegendre, Baseline::Bos)
                }
                TokenMethod::ExpectedGradients { reference, .. } => {
                    TokenMethod::ExpectedGradients {
                        draws: 7,
                        reference,
                    }
                }
                TokenMethod::GradientShap {
                    noise, reference, ..
                } => TokenMethod::GradientShap {
                    draws: 7,
                    noise,
                    reference,
                },
                TokenMethod::SmoothGrad { noise, .. } => {
                    TokenMethod::SmoothGrad { draws: 5, noise }
                }
                other => other,
            };
            let method = match (&method, tokenizer().bos()) {
                (TokenMethod::IntegratedGradients { .. }, None) => {
                    ig(7, Quadrature::GaussLegendre, Baseline::Mean)
                }
                _ => method,
            };
            let config = config(method.clone());
            let with = |batch, memory| {
                let running = Running {
                    batch,
                    memory: Some(memory),
                    ..Running::default()
                };
                measure_so(&model, &task(), &config, &running)
            };
            let together = with(8, 1 << 30);
            for apart in [with(1, 1 << 30), with(2, 1 << 30), with(8, 1)] {
                for (a, b) in apart.examples.iter().zip(&together.examples) {
                    let what = format!("{} {method}", model.spec.family);
                    near(&what, &a.values, &b.values, 1e-5);
                }
            }
        }
    }
}

#[test]
fn what_cannot_be_explained_is_refused_before_anything_runs() {
    let model = two_kinds().remove(0);
    let refused_with = |task: &Task, config: &TokenConfig| {
        let on = Subject {
            model: &model,
            task,
        };
        measurements(on, config, &Running::default(), &Watch::default()).expect_err("refused")
    };
    let refused = |config: &TokenConfig| refused_with(&task(), config);
    let with = |method, metric, prompts| TokenConfig {
        prompts,
        metric: Some(metric),
        ..TokenConfig::new(method)
    };
    for method in TokenMethod::all() {
        if method.knows_metric() {
            let error = refused(&with(method.clone(), Metric::Rank, Prompts::Clean));
            assert!(
                matches!(error, Error::NoGradient { .. }),
                "{method}: {error}"
            );
        }
        let kl = with(method.clone(), Metric::Kl, Prompts::Clean);
        let path = matches!(
            method,
            TokenMethod::IntegratedGradients { .. }
                | TokenMethod::ExpectedGradients { .. }
                | TokenMethod::GradientShap { .. }
        );
        if !path && method.knows_metric() {
            let error = refused(&kl);
            assert!(
                matches!(error, Error::NoGradient { .. }),
                "{method}: {error}"
            );
            // At the corrupted prompt it has a slope.
            measure(&model, &with(method, Metric::Kl, Prompts::Corrupted));
        }
    }
    let kl = with(
        ig(40, Quadrature::GaussLegendre, Baseline::Pair),
        Metric::Kl,
        Prompts::Clean,
    );
    for one in completeness(&measure(&model, &kl)) {
        assert!(one.total < -1e-3 && one.delta.abs() < 1e-3, "{one:?}");
    }
    for (method, needle) in [
        (ig(0, Quadrature::Midpoint, Baseline::Zero), "0 steps"),
        (ig(1, Quadrature::Trapezoid, Baseline::Zero), "2 to"),
        (
            ig(5, Quadrature::Left, Baseline::Token("no such token".into())),
            "not in its vocabulary",
        ),
    ] {
        let message = refused(&config(method)).to_string();
        assert!(message.contains(needle), "{message}");
    }
    let mut through = config(TokenMethod::AltiLogit);
    through.tunnel = Some(NoiseTunnel::new(OverNoise::Smoothgrad));
    let message = refused(&through).to_string();
    assert!(message.contains("no noise tunnel"), "{message}");
    let mut through = config(TokenMethod::Lrp);
    through.tunnel = Some(NoiseTunnel {
        draws: 0,
        ..NoiseTunnel::new(OverNoise::Vargrad)
    });
    let message = refused(&through).to_string();
    assert!(message.contains("0 draws"), "{message}");
    let alone = first(&task(), 1);
    let method = TokenMethod::ExpectedGradients {
        draws: 3,
        reference: ReferenceSet::Clean,
    };
    let error = refused_with(&alone, &config(method));
    assert!(error.to_string().contains("more pairs"), "{error}");
}

#[test]
fn every_method_makes_a_table_of_the_embedded_model() {
    let lab = Lab::open("embedded", "embedded").expect("it is part of the binary");
    let mut lab = lab.first(2);
    for method in TokenMethod::all() {
        for (detail, prompts) in [
            (Detail::Mean, Prompts::Clean),
            (Detail::PerExample, Prompts::Corrupted),
        ] {
            let config = TokenConfig {
                prompts,
                ..TokenConfig::new(method.clone())
            };
            lab.running.detail = detail;
            let scores = lab.measure(&config).expect("runs");
            let score = scores.floats("score").expect("a column");
            assert!(
                score.iter().all(|s| s.is_some_and(f64::is_finite)),
                "{method}"
            );
            assert_eq!(scores.floats("value").expect("a column"), score);
            let base = match prompts {
                Prompts::Clean => "clean",
                Prompts::Corrupted => "corrupted",
            };
            assert!(
                scores
                    .texts("base")
                    .expect("a column")
                    .iter()
                    .all(|&b| b == Some(base))
            );
            assert_eq!(scores.provenance.method, method.name());
        }
    }
}
