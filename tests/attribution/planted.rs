//! A circuit planted by hand is found by every method.

use candle_core::{Device, Tensor};
use candlewick::circuit::Graph;
use candlewick::methods::Reference;
use candlewick::methods::attribution::{
    EdgeAttributionConfig, EdgePath, GradientPath, NodeAttributionConfig, StepRule,
};
use candlewick::model::Model;
use candlewick::nn::rules::Rules;
use candlewick::scores::Direction;
use candlewick::spec::ModelSpec;

use crate::exactness::affine;
use crate::models::task::task;
use crate::{ceap, edges, exact_effects, nodes, patch};

/// Two heads carry everything: `a0.h0` reads the embedding's part of the stream and writes a second part, `a1.h1` reads that and
/// writes a third, which alone the unembedding reads. The other heads are noise.
fn planted() -> Model {
    let mut model = affine(4);
    let spec = ModelSpec {
        attn_scale: vec![0.3; 4],
        ..model.spec.clone()
    };
    let (d, heads, d_head) = (spec.d_model, spec.n_heads, spec.d_head);
    model.spec = spec;
    let third = d / 3;
    let keep = |t: &Tensor, of: &dyn Fn(usize, usize) -> f32| -> Tensor {
        let (rows, columns) = t.dims2().unwrap();
        let values = t.to_vec2::<f32>().unwrap();
        let mut kept = Vec::with_capacity(rows * columns);
        for (i, row) in values.iter().enumerate() {
            kept.extend(row.iter().enumerate().map(|(j, x)| x * of(i, j)));
        }
        Tensor::from_vec(kept, (rows, columns), &Device::Cpu).unwrap()
    };
    model.weights.w_e = keep(&model.weights.w_e, &|_, j| {
        if j < third { 1.0 } else { 0.0 }
    });
    model.weights.w_u = keep(&model.weights.w_u, &|_, j| {
        if j >= 2 * third { 1.0 } else { 0.0 }
    });
    for (layer, block) in model.weights.blocks.iter_mut().enumerate() {
        let reads = layer * third..(layer + 1) * third;
        let writes = (layer + 1) * third..(layer + 2) * third;
        let chosen = |head: usize| layer < 2 && head == layer;
        block.b_qkv = None;
        block.b_o = None;
        block.w_qkv = keep(&block.w_qkv, &|i, j| {
            let (letter, head) = (j / (heads * d_head), j % (heads * d_head) / d_head);
            match (letter, chosen(head)) {
                (2, true) if reads.contains(&i) => 1.0,
                (2, true) => 0.0,
                (2, false) => 0.05,
                _ => 0.3,
            }
        });
        block.w_o = keep(&block.w_o, &|i, j| match chosen(i / d_head) {
            true if writes.contains(&j) => 3.0,
            true => 0.0,
            false => 0.05,
        });
    }
    model
}

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
