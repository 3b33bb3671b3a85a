//! Names, refusals, and what scores do not depend on.

use candlewick::Error;
use candlewick::methods::attribution::{
    EdgeAttributionConfig, EdgePath, GradientPath, NodeAttributionConfig, StepRule,
};
use candlewick::methods::{
    Method, PatchConfig, PatchSource, Reference, Running, Subject, Watch, measurements,
};
use candlewick::metric::Metric;
use candlewick::model::Model;
use candlewick::nn::rules::Rules;
use candlewick::scores::Direction;
use candlewick::task::Task;

use crate::models::task::{changed, task};
use crate::models::{every_kind, two_kinds};
use crate::{edges, edges_so, measured_so, near, nodes, patch, scores};

fn refused(model: &Model, task: &Task, method: &dyn Method) -> Error {
    let on = Subject { model, task };
    measurements(on, method, &Running::default(), &Watch::default()).expect_err("refused")
}

#[test]
fn a_preset_has_the_name_of_what_it_does() {
    let z = || patch("z", Direction::Noise);
    for (config, name) in [
        (NodeAttributionConfig::atp(z()), "atp"),
        (NodeAttributionConfig::atp_star(z()), "atp-star"),
        (NodeAttributionConfig::relp(z()), "relp"),
        (NodeAttributionConfig::layer_ig(z(), 3), "layer-ig"),
        (NodeAttributionConfig::conductance(z(), 3), "conductance"),
    ] {
        assert_eq!(config.name(), name);
        assert_eq!(config.header(&task()).method, name);
        let with_rules = NodeAttributionConfig {
            rules: Rules::cp_lrp(),
            ..config
        };
        assert!(with_rules.name().ends_with(":cp-lrp"), "{name}");
    }
    let star = NodeAttributionConfig::atp_star(z());
    let dropped = NodeAttributionConfig {
        qk_fix: false,
        ..star.clone()
    };
    assert_eq!(dropped.name(), "atp-grad-drop");
    let fixed = NodeAttributionConfig {
        grad_drop: false,
        ..star
    };
    assert_eq!(fixed.name(), "atp-qk-fix");
    for (config, name) in [
        (EdgeAttributionConfig::eap(), "eap"),
        (EdgeAttributionConfig::eap_ig(3), "eap-ig"),
        (EdgeAttributionConfig::ceap(3), "ceap"),
        (EdgeAttributionConfig::clean_corrupted(), "clean-corrupted"),
        (
            EdgeAttributionConfig::eap_ig_activations(3),
            "eap-ig-activations",
        ),
        (EdgeAttributionConfig::relp(), "relp-edges"),
    ] {
        assert_eq!(config.name(), name);
        assert_eq!(config.header(&task()).method, name);
    }
}

#[test]
fn cells_that_are_asked_for_alone_have_the_same_estimates() {
    let (model, task) = (&two_kinds()[0], task());
    let whole = NodeAttributionConfig::atp(patch("z:pos,mlp_out", Direction::Noise));
    let (cells, all) = nodes(model, &task, &whole);
    let some: Vec<usize> = (0..cells.len()).step_by(5).collect();
    let few = NodeAttributionConfig::atp(PatchConfig {
        only: Some(some.iter().map(|&i| cells[i].clone()).collect()),
        ..whole.patch
    });
    let (found, few) = nodes(model, &task, &few);
    assert_eq!(found.len(), some.len());
    for (few, all) in few.iter().zip(&all) {
        let expected: Vec<f64> = some.iter().map(|&i| all[i]).collect();
        near(few, &expected, 1e-6, "alone");
    }
}

#[test]
fn nothing_differs_between_a_prompt_and_itself() {
    let task = changed(&task(), |pair| pair.corrupted = pair.clean.clone());
    let model = &every_kind()[5];
    for config in [
        EdgeAttributionConfig::eap(),
        EdgeAttributionConfig::eap_ig(3),
        EdgeAttributionConfig::ceap(3),
    ] {
        let scores = edges(model, &task, &config);
        assert!(scores.iter().flatten().all(|&x| x == 0.0));
    }
}

#[test]
fn scores_do_not_depend_on_batches_or_memory() {
    let task = task();
    let running = |batch, memory| Running {
        batch,
        memory: Some(memory),
        ..Running::default()
    };
    for model in two_kinds() {
        for path in [
            EdgePath::Along(GradientPath::Base),
            EdgePath::Along(GradientPath::Ends),
            EdgePath::Along(GradientPath::Inputs {
                steps: 3,
                rule: StepRule::Midpoint,
            }),
            EdgePath::Activations {
                steps: 2,
                rule: StepRule::Midpoint,
                every_edge: false,
            },
            EdgePath::Activations {
                steps: 2,
                rule: StepRule::Left,
                every_edge: true,
            },
            EdgePath::Conductance {
                steps: 2,
                rule: StepRule::Trapezoid,
            },
        ] {
            let config = EdgeAttributionConfig::along(path);
            let whole = edges_so(&model, &task, &config, &running(8, 1 << 30));
            for (batch, memory) in [(1, 1 << 30), (8, 1)] {
                let split = edges_so(&model, &task, &config, &running(batch, memory));
                for (a, b) in whole.iter().zip(&split) {
                    let gap = a
                        .iter()
                        .zip(b)
                        .map(|(a, b)| (a - b).abs())
                        .fold(0.0, f64::max);
                    assert!(gap < 1e-5, "{path:?} batch {batch}: {gap}");
                }
            }
        }
        let star = patch("z,q,k,mlp.post:pos,pattern", Direction::Noise);
        let star = NodeAttributionConfig::atp_star(star);
        let of = |batch, memory| {
            let measured = measured_so(&model, &task, &star, &running(batch, memory));
            scores(&measured, Direction::Noise)
        };
        for (a, b) in of(8, 1 << 30).iter().zip(&of(1, 1)) {
            near(b, a, 1e-5, "AtP*");
        }
    }
}

#[test]
fn what_has_no_gradient_is_refused_before_anything_runs() {
    let (model, task) = (&two_kinds()[0], task());
    let message = |config: &EdgeAttributionConfig| refused(model, &task, config);
    let at = |metric, config: EdgeAttributionConfig| EdgeAttributionConfig {
        metric: Some(metric),
        ..config
    };
    let error = message(&at(Metric::Kl, EdgeAttributionConfig::eap()));
    assert!(matches!(error, Error::NoGradient { .. }), "{error}");
    assert!(
        error.to_string().contains("`GradientPath::Inputs`"),
        "{error}"
    );
    assert!(matches!(
        message(&at(Metric::Rank, EdgeAttributionConfig::eap())),
        Error::NoGradient { .. }
    ));
    let none = message(&EdgeAttributionConfig::eap_ig(0));
    assert!(none.to_string().contains("at least one step"), "{none}");
    let zero = EdgeAttributionConfig {
        reference: Reference::Zero,
        ..EdgeAttributionConfig::eap_ig(5)
    };
    assert!(
        message(&zero)
            .to_string()
            .contains("`EdgePath::Activations`")
    );
    let mean = EdgeAttributionConfig {
        reference: Reference::Mean,
        ..EdgeAttributionConfig::ceap(5)
    };
    assert!(message(&mean).to_string().contains("the pair's other run"));
    let none = message(&EdgeAttributionConfig::ceap(0));
    assert!(none.to_string().contains("at least one step"), "{none}");
    // An integral away from the clean run has a gradient.
    let kl = at(Metric::Kl, EdgeAttributionConfig::eap_ig(3));
    assert!(edges(model, &task, &kl).iter().flatten().any(|&x| x != 0.0));
    let star = NodeAttributionConfig::atp_star(PatchConfig {
        source: PatchSource::Zero,
        ..patch("z", Direction::Ablate)
    });
    refused(model, &task, &star);
    let inputs = NodeAttributionConfig::atp(patch("q_input", Direction::Noise));
    let error = refused(model, &task, &inputs);
    assert!(error.to_string().contains("edge method"), "{error}");
}
