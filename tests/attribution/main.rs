//! Attribution keeps its identities on models of every kind, agrees with reference gradients, and finds a planted circuit.

mod atp_star;
mod ceap;
mod contract;
mod dictionaries;
mod edges;
mod encoders;
mod exactness;
mod integrals;
mod interchange;
mod latents;
#[path = "../models/mod.rs"]
mod models;
mod planted;
mod source_model;
mod subspaces;

use candle_core::Tensor;
use candlewick::circuit::Graph;
use candlewick::hooks::{Edit, Hook, Kind, Node};
use candlewick::methods::attribution::{
    EdgeAttributionConfig, EdgePath, NodeAttributionConfig, StepRule,
};
use candlewick::methods::exact_edges::edge_of;
use candlewick::methods::{EdgeConfig, Method, PatchConfig, Running, Subject, Watch, measurements};
use candlewick::metric::Metric;
use candlewick::model::Model;
use candlewick::nn::rules::Rules;
use candlewick::run::{GradientRequest, gradients};
use candlewick::scores::{Cell, Direction, Measured};
use candlewick::task::Task;
use edges::wide;

use models::Pairs;

/// Algebraic identities in f32, relative to the largest value.
const ALGEBRA: f64 = 2e-4;

fn patch(sites: &str, direction: Direction) -> PatchConfig {
    PatchConfig {
        direction,
        ..PatchConfig::sites(sites).expect("known sites")
    }
}

fn measured_so(model: &Model, task: &Task, method: &dyn Method, running: &Running) -> Measured {
    let on = Subject { model, task };
    measurements(on, method, running, &Watch::default())
        .unwrap_or_else(|error| panic!("{method:?}: {error}"))
}

fn measured(model: &Model, task: &Task, method: &dyn Method) -> Measured {
    measured_so(model, task, method, &Running::default())
}

/// The scores of each pair, in the order of the cells; every pair has every one.
fn scores(measured: &Measured, direction: Direction) -> Vec<Vec<f64>> {
    let of_pair = |example: &candlewick::scores::ExampleScores| {
        assert_eq!(example.values.len(), measured.cells.len());
        let base = example.base(direction);
        example.values.iter().map(|value| value - base).collect()
    };
    measured.examples.iter().map(of_pair).collect()
}

/// The estimates of each pair, and their cells.
fn nodes(model: &Model, task: &Task, config: &NodeAttributionConfig) -> (Vec<Cell>, Vec<Vec<f64>>) {
    let measured = measured(model, task, config);
    let scores = scores(&measured, config.patch.direction);
    (measured.cells, scores)
}

/// Estimates of edges as matrices `[positions, n_src, n_dst]`, a pair each; zero where there is no edge.
fn matrices(model: &Model, measured: &Measured, direction: Direction) -> Vec<Vec<f64>> {
    let graph = Graph::new(&model.spec);
    let size = graph.n_src() * graph.n_dst();
    let places: Vec<usize> = (measured.cells.iter())
        .map(|cell| {
            let (row, column) = graph.place(&edge_of(cell).expect("an edge")).expect("ours");
            cell.pos.unwrap_or(0) as usize * size + row * graph.n_dst() + column
        })
        .collect();
    let positions = places.iter().max().expect("some edges") / size + 1;
    let matrix = |scores: Vec<f64>| {
        let mut matrix = vec![0.0; positions * size];
        for (place, score) in places.iter().zip(scores) {
            matrix[*place] = score;
        }
        matrix
    };
    scores(measured, direction)
        .into_iter()
        .map(matrix)
        .collect()
}

fn edges_so(
    model: &Model,
    task: &Task,
    config: &EdgeAttributionConfig,
    running: &Running,
) -> Vec<Vec<f64>> {
    let measured = measured_so(model, task, config, running);
    matrices(model, &measured, config.reference.direction())
}

fn edges(model: &Model, task: &Task, config: &EdgeAttributionConfig) -> Vec<Vec<f64>> {
    edges_so(model, task, config, &Running::default())
}

/// The exact effects of every edge, in the graph's order.
fn exact_effects(model: &Model, task: &Task) -> Vec<Vec<f64>> {
    let measured = measured(model, task, &EdgeConfig::all());
    scores(&measured, Direction::Noise)
}

#[track_caller]
fn near(found: &[f64], expected: &[f64], tolerance: f64, what: &str) {
    assert_eq!(found.len(), expected.len(), "{what}");
    let largest = expected.iter().fold(1e-6f64, |max, x| max.max(x.abs()));
    for (i, (a, b)) in found.iter().zip(expected).enumerate() {
        let gap = (a - b).abs() / largest;
        assert!(gap <= tolerance, "{what} {i}: {a} against {b}");
    }
}

/// Full-width differences `[batch, pos, n_src, d_model]` times full-width gradients at the edited clean run, one edge at a time.
fn products(model: &Model, delta: &Tensor, rules: Rules, edits: &[Edit]) -> Vec<Vec<f64>> {
    let (spec, pairs) = (&model.spec, Pairs::new());
    let graph = Graph::new(spec);
    let kinds = [
        Kind::QInput,
        Kind::KInput,
        Kind::VInput,
        Kind::MlpIn,
        Kind::ResidPost,
    ];
    let hooks: Vec<Hook> = Hook::all(spec)
        .into_iter()
        .filter(|hook| kinds.contains(&hook.kind))
        .collect();
    let request = GradientRequest {
        rules,
        edits,
        ..GradientRequest::new(Metric::LogitDiff, &pairs.targets, &hooks)
    };
    let slopes = gradients(model, &pairs.clean, &request)
        .expect("it differentiates")
        .cache;
    let mut scores = vec![vec![0.0; graph.n_src() * graph.n_dst()]; pairs.clean.len()];
    for edge in graph.edges() {
        let (row, column) = graph.place(&edge).unwrap();
        let slope = match (edge.dst, edge.letter) {
            (Node::Head { layer, head }, Some(letter)) => {
                let kind = [Kind::QInput, Kind::KInput, Kind::VInput][letter as usize];
                let all = slopes.get(Hook::at(kind, layer)).unwrap();
                all.narrow(2, head, 1).unwrap().squeeze(2).unwrap()
            }
            (Node::Mlp(layer), _) => slopes.get(Hook::at(Kind::MlpIn, layer)).unwrap(),
            _ => slopes
                .get(Hook::at(Kind::ResidPost, spec.n_layers - 1))
                .unwrap(),
        };
        let source = delta.narrow(2, row, 1).unwrap().squeeze(2).unwrap();
        let products = (source * slope)
            .unwrap()
            .flatten_from(1)
            .unwrap()
            .sum(1)
            .unwrap();
        for (scores, product) in scores.iter_mut().zip(wide(&products)) {
            scores[row * graph.n_dst() + column] = product;
        }
    }
    scores
}

fn ceap(steps: usize, rule: StepRule) -> EdgeAttributionConfig {
    EdgeAttributionConfig::along(EdgePath::Conductance { steps, rule })
}
