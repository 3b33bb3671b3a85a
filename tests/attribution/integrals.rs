//! Integrals along a line of inputs, and conductance.

use candlewick::circuit::Graph;
use candlewick::methods::attribution::{
    EdgeAttributionConfig, EdgePath, GradientPath, NodeAttributionConfig, StepRule,
};
use candlewick::scores::Direction;

use crate::models::task::task;
use crate::models::two_kinds;
use crate::{ALGEBRA, matrices, measured, near, nodes, patch};

#[test]
fn an_integral_over_the_inputs_is_complete_as_it_gets_finer() {
    let task = task();
    for model in two_kinds() {
        let graph = Graph::new(&model.spec);
        let error = |steps: usize, rule: StepRule| -> f64 {
            let config = EdgeAttributionConfig {
                path: EdgePath::Along(GradientPath::Inputs { steps, rule }),
                ..EdgeAttributionConfig::eap_ig(steps)
            };
            let measured = measured(&model, &task, &config);
            let rows = matrices(&model, &measured, Direction::Noise);
            let off = rows.iter().zip(&measured.examples).map(|(row, example)| {
                let row: f64 = row[..graph.n_dst()].iter().sum();
                (row - (example.corrupted - example.clean)).abs()
            });
            off.fold(0.0, f64::max)
        };
        let (coarse, fine) = (error(8, StepRule::Midpoint), error(32, StepRule::Midpoint));
        assert!(
            fine < 2e-3 && fine < 0.3 * coarse + 1e-4,
            "{}: {coarse} {fine}",
            model.spec.family
        );
        let left = error(32, StepRule::Left);
        assert!(left > fine, "{left} {fine}");
        // The same integral at the embedding as a node.
        let config = NodeAttributionConfig {
            path: GradientPath::Inputs {
                steps: 32,
                rule: StepRule::Midpoint,
            },
            ..NodeAttributionConfig::atp(patch("embed:all", Direction::Noise))
        };
        for example in measured(&model, &task, &config).examples {
            assert!((example.values[0] - example.corrupted).abs() < 2e-3);
        }
    }
}

#[test]
fn the_line_of_an_integral_goes_from_the_corrupted_run_to_the_clean_one_in_both_directions() {
    let task = task();
    for model in two_kinds() {
        let integral = |rule, direction| {
            let mut config = NodeAttributionConfig::layer_ig(patch("resid_pre,z", direction), 1);
            config.path = GradientPath::Inputs { steps: 1, rule };
            nodes(&model, &task, &config).1.concat()
        };
        let gradient = |direction| {
            let config = NodeAttributionConfig::atp(patch("resid_pre,z", direction));
            nodes(&model, &task, &config).1.concat()
        };
        let negated = |values: Vec<f64>| -> Vec<f64> { values.iter().map(|x| -x).collect() };
        // One step on the left is the gradient at the corrupted run, one on the right that at the clean run; the change of a
        // node is turned round where the other run is changed.
        let (at_corrupted, at_clean) = (gradient(Direction::Denoise), gradient(Direction::Noise));
        for (rule, direction, expected) in [
            (StepRule::Left, Direction::Denoise, at_corrupted.clone()),
            (StepRule::Left, Direction::Noise, negated(at_corrupted)),
            (StepRule::Right, Direction::Noise, at_clean.clone()),
            (StepRule::Right, Direction::Denoise, negated(at_clean)),
        ] {
            let what = format!("{} {rule:?} {direction}", model.spec.family);
            near(&integral(rule, direction), &expected, ALGEBRA, &what);
        }
    }
}

#[test]
fn conductance_of_a_full_cut_sums_to_the_change() {
    let task = task();
    for model in two_kinds() {
        let config = NodeAttributionConfig {
            path: GradientPath::Inputs {
                steps: 64,
                rule: StepRule::Midpoint,
            },
            conductance: true,
            ..NodeAttributionConfig::atp(patch("resid_pre:all", Direction::Noise))
        };
        let measured = measured(&model, &task, &config);
        for example in &measured.examples {
            for (cell, value) in measured.cells.iter().zip(&example.values) {
                let gap = (value - example.corrupted).abs();
                assert!(
                    gap < 3e-3,
                    "{} {cell:?}: {value} {}",
                    model.spec.family,
                    example.corrupted
                );
            }
        }
    }
}
