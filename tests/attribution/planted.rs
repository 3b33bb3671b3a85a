//! A circuit planted by hand is found by every method.

use candlewick::circuit::Graph;
use candlewick::methods::Reference;
use candlewick::methods::attribution::{
    EdgeAttributionConfig, EdgePath, GradientPath, NodeAttributionConfig, StepRule,
};
use candlewick::nn::rules::Rules;
use candlewick::scores::Direction;

use crate::models::made::planted;
use crate::models::task::task;
use crate::{ceap, edges, exact_effects, nodes, patch};

#[test]
fn every_method_finds_a_planted_circuit() {
    let (model, task) = (planted(), task());
    let graph = Graph::new(&model.spec);
    let circuit = ["a0.h0->a1.h1<v>", "a1.h1->logits", "input->a0.h0<v>"];
    let strongest = |scores: Vec<(String, f64)>, n: usize| -> Vec<String> {
        let mut scores = scores;
        scores.sort_by(|a, b| b.1.abs().total_cmp(&a.1.abs()));
        let mut names: Vec<String> = scores.into_iter().take(n).map(|(name, _)| name).collect();
        names.sort();
        names
    };
    let all: Vec<_> = graph.edges().collect();
    let exact = exact_effects(&model, &task);
    let size = |of: &dyn Fn(usize) -> f64| (0..exact.len()).map(|i| of(i).abs()).sum::<f64>();
    let named = all
        .iter()
        .enumerate()
        .map(|(e, edge)| (edge.to_string(), size(&|i| exact[i][e])));
    assert_eq!(strongest(named.collect(), 3), circuit);
    let eap = EdgeAttributionConfig::eap();
    let activations = |every_edge| EdgePath::Activations {
        steps: 3,
        rule: StepRule::Midpoint,
        every_edge,
    };
    for (path, rules, reference) in [
        (
            EdgePath::Along(GradientPath::Base),
            Rules::gradient(),
            Reference::Pair,
        ),
        (
            EdgePath::Along(GradientPath::Base),
            Rules::relp(),
            Reference::Pair,
        ),
        (
            EdgePath::Along(GradientPath::Ends),
            Rules::gradient(),
            Reference::Pair,
        ),
        (
            EdgePath::Along(GradientPath::Inputs {
                steps: 5,
                rule: StepRule::Midpoint,
            }),
            Rules::gradient(),
            Reference::Pair,
        ),
        (
            ceap(3, StepRule::Trapezoid).path,
            Rules::gradient(),
            Reference::Pair,
        ),
        (activations(false), Rules::gradient(), Reference::Pair),
        (activations(true), Rules::gradient(), Reference::Pair),
    ] {
        let config = EdgeAttributionConfig {
            path,
            rules,
            reference,
            ..eap.clone()
        };
        let found = edges(&model, &task, &config);
        let named = all.iter().map(|edge| {
            let (row, column) = graph.place(edge).unwrap();
            (
                edge.to_string(),
                size(&|i| found[i][row * graph.n_dst() + column]),
            )
        });
        assert_eq!(strongest(named.collect(), 3), circuit, "{path:?}");
    }
    let atp = NodeAttributionConfig::atp(patch("z", Direction::Noise));
    let ig = GradientPath::Inputs {
        steps: 5,
        rule: StepRule::Midpoint,
    };
    for config in [
        atp.clone(),
        NodeAttributionConfig::atp_star(atp.patch.clone()),
        NodeAttributionConfig::relp(atp.patch.clone()),
        NodeAttributionConfig {
            path: ig,
            ..atp.clone()
        },
        NodeAttributionConfig {
            path: ig,
            conductance: true,
            ..atp.clone()
        },
    ] {
        let (cells, found) = nodes(&model, &task, &config);
        let named = cells.iter().enumerate().map(|(c, cell)| {
            (
                format!("a{}.h{}", cell.layer.unwrap(), cell.head.unwrap()),
                size(&|i| found[i][c]),
            )
        });
        assert_eq!(
            strongest(named.collect(), 2),
            ["a0.h0", "a1.h1"],
            "{}",
            config.name()
        );
    }
}
