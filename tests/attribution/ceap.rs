//! CEAP: the conductance of edges.

use candle_core::Tensor;
use candlewick::circuit::Graph;
use candlewick::hooks::{Letter, Node};
use candlewick::methods::attribution::{EdgeAttributionConfig, EdgePath, GradientPath, StepRule};
use candlewick::model::Model;
use candlewick::scores::Direction;
use candlewick::spec::Activation;

use crate::models::task::task;
use crate::models::{every_kind, two_kinds};
use crate::{edges, matrices, measured, near};

#[test]
fn ceap_over_any_cut_sums_to_the_whole_change() {
    let task = task();
    for mut model in every_kind() {
        // A bias behind a post-norm moves with its scale, and is in no node.
        for block in &mut model.weights.blocks {
            if block.ln1_post.is_some() {
                block.b_o = None;
            }
        }
        let graph = Graph::new(&model.spec);
        let n_dst = graph.n_dst();
        let error = |steps: usize| -> f64 {
            let config = EdgeAttributionConfig::ceap(steps);
            let measured = measured(&model, &task, &config);
            let scores = matrices(&model, &measured, Direction::Noise);
            let mut worst = 0f64;
            for (scores, example) in scores.iter().zip(&measured.examples) {
                for layer in 0..=graph.n_layers {
                    let (border, after) = if layer == graph.n_layers {
                        (graph.n_src(), n_dst - 1)
                    } else {
                        let head = Node::Head { layer, head: 0 };
                        let column = graph.column(head, Some(Letter::Q)).unwrap();
                        (graph.row(head).unwrap(), column)
                    };
                    let crossing: f64 = (0..border)
                        .map(|row| {
                            scores[row * n_dst + after..(row + 1) * n_dst]
                                .iter()
                                .sum::<f64>()
                        })
                        .sum();
                    worst = worst.max((crossing - (example.corrupted - example.clean)).abs());
                }
            }
            worst
        };
        // The error of the trapezoid rule falls with the square of the steps, and with the steps alone where gradients jump.
        let (falls_to, most) = match (model.spec.activation, model.spec.qkv_clip) {
            (Activation::Relu, _) => (0.4, 2e-2),
            // A third of all queries, keys and values is cut off.
            (_, Some(_)) => (0.4, 5e-2),
            _ => (0.15, 2e-2),
        };
        let (coarse, fine) = (error(8), error(32));
        assert!(
            fine < most && fine < falls_to * coarse + 1e-4,
            "{}: {coarse} {fine}",
            model.spec.family
        );
    }
}

#[test]
fn a_source_that_does_not_move_along_the_line_has_no_conductance() {
    let (model, task) = (&two_kinds()[0], task());
    // The first head writes nothing, so it stays where it is whatever its readers ask for.
    let mut model = Model::clone(model);
    let w_o = &mut model.weights.blocks[0].w_o;
    let silenced = w_o.narrow(0, 0, model.spec.d_head).unwrap().zeros_like();
    let others = w_o.dim(0).unwrap() - model.spec.d_head;
    let rest = w_o.narrow(0, model.spec.d_head, others).unwrap();
    *w_o = Tensor::cat(&[&silenced.unwrap(), &rest], 0).unwrap();
    let graph = Graph::new(&model.spec);
    let row = graph.row(Node::Head { layer: 0, head: 0 }).unwrap();
    for scores in edges(&model, &task, &EdgeAttributionConfig::ceap(3)) {
        let own = &scores[row * graph.n_dst()..(row + 1) * graph.n_dst()];
        assert!(own.iter().all(|&score| score == 0.0));
        assert!(scores.iter().any(|&score| score != 0.0));
    }
}

#[test]
fn one_trapezoid_of_an_integral_is_the_mean_of_both_ends() {
    let task = task();
    for model in two_kinds() {
        let path = GradientPath::Inputs {
            steps: 1,
            rule: StepRule::Trapezoid,
        };
        let trapezoid = EdgeAttributionConfig::along(EdgePath::Along(path));
        let ends = EdgeAttributionConfig::clean_corrupted();
        let [trapezoid, ends] = [trapezoid, ends].map(|config| edges(&model, &task, &config));
        near(&trapezoid.concat(), &ends.concat(), 1e-5, "ends");
    }
}
