//! Nodes that are in a circuit at some positions, or in some dimensions of the stream.

use std::collections::BTreeMap;

use candlewick::circuit::{EdgeSet, Graph, Part, Parts, Pruning};
use candlewick::hooks::{Node, Pos, Positions};
use candlewick::methods::Method;
use candlewick::methods::attribution::{
    DimAttributionConfig, EdgeAttributionConfig, EdgePath, GradientPath,
};
use candlewick::methods::{
    CircuitEval, CircuitMode, NamedCircuit, PatchConfig, Reference, SiteSet, Subject,
    circuit_values_plain,
};
use candlewick::methods::{Running, Watch, measurements};
use candlewick::metric::Metric;
use candlewick::scores::{Cell, Direction, ExampleScores};
use candlewick::spec::NormPlacement;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use crate::models::every_kind;
use crate::models::made::affine;
use crate::models::task::{changed, task};
use crate::{REFERENCES, near, random, values};

fn at(positions: &[Pos]) -> Positions {
    Positions::These(positions.to_vec())
}

/// Every third node at some positions, every third in some dimensions, one at both.
fn parts(graph: &Graph, rng: &mut ChaCha8Rng) -> Parts {
    let mut parts = Parts::new();
    for row in 0..graph.n_src() {
        let node = graph.source(row).expect("a row");
        let dims: Vec<usize> = (0..graph.d_model)
            .filter(|_| rng.random_bool(0.5))
            .collect();
        let positions = at(&[
            Pos::Role("S2".into()),
            Pos::FromEnd(1),
            Pos::Index(rng.random_range(0..10)),
        ]);
        let part = match row % 3 {
            0 => Part {
                positions,
                dims: (row % 2 == 0).then_some(dims),
            },
            1 => Part {
                dims: Some(dims),
                ..Part::default()
            },
            _ => continue,
        };
        parts.insert(node, part);
    }
    parts
}

#[test]
fn parts_of_nodes_have_the_metric_of_a_whole_forward_with_full_masks() {
    let mut rng = ChaCha8Rng::seed_from_u64(5);
    for model in every_kind() {
        let (name, task, graph) = (&model.spec.family, task(), Graph::new(&model.spec));
        let full = EdgeSet::full(graph);
        let some = random(graph, 0.5, &mut rng).pruned(Pruning::Fixpoint);
        let (one, other) = (parts(&graph, &mut rng), parts(&graph, &mut rng));
        let circuit = |name: &str, edges: &EdgeSet, parts: &Parts| {
            NamedCircuit::new(name, edges.clone()).in_parts(parts)
        };
        let whole = Parts::new();
        let circuits = vec![
            circuit("full", &full, &whole),
            circuit("full in parts", &full, &one),
            circuit("full in other parts", &full, &other),
            circuit("some", &some, &whole),
            circuit("some in parts", &some, &one),
        ];
        for reference in REFERENCES {
            // A stream of nothing but zeros has no direction that a norm could keep.
            let circuits = match reference {
                Reference::Zero => {
                    let mut kept = circuits.clone();
                    for circuit in &mut kept {
                        circuit.parts.remove(&Node::Input);
                    }
                    kept.truncate(3);
                    kept
                }
                _ => circuits.clone(),
            };
            let config = CircuitEval {
                circuits,
                reference,
                ..CircuitEval::of([])
            };
            let on = Subject {
                model: &model,
                task: &task,
            };
            let slow = circuit_values_plain(on, &config).expect("it evaluates");
            let mut moved: f64 = 0.0;
            for (slow, (_, _, fast)) in slow.iter().zip(values(&model, &task, &config)) {
                for (i, (fast, slow)) in fast.iter().zip(slow).enumerate() {
                    let what = format!("{name}, {reference:?}, {}", config.circuits[i].name);
                    near(*fast, *slow, &what);
                }
                moved = moved.max((fast[1] - fast[0]).abs());
            }
            assert!(moved > 1e-3, "{name}, {reference:?}: parts change nothing");
        }
    }
}

#[test]
fn a_head_outside_of_its_positions_is_that_head_patched_there() {
    for model in every_kind() {
        // Where a norm stands on attention's sum, a head that is patched moves the others' scale too.
        if matches!(
            model.spec.norm_placement,
            NormPlacement::Sandwich | NormPlacement::Post
        ) {
            continue;
        }
        let (task, graph) = (task(), Graph::new(&model.spec));
        let head = Node::Head { layer: 0, head: 0 };
        let part = Part {
            positions: at(&[Pos::FromEnd(1), Pos::Role("S2".into())]),
            dims: None,
        };
        let parts = Parts::from([(head, part)]);
        let config = CircuitEval {
            circuits: vec![NamedCircuit::new("full", EdgeSet::full(graph)).in_parts(&parts)],
            ..CircuitEval::of([])
        };
        for (pair, (_, _, found)) in values(&model, &task, &config).into_iter().enumerate() {
            let roles = &task.pairs()[pair].roles;
            let length = task.pairs()[pair].clean.len();
            let elsewhere: Vec<String> = (0..length)
                .filter(|pos| *pos != length - 1 && !roles["S2"].contains(pos))
                .map(|pos| pos.to_string())
                .collect();
            let one = task.with_pairs([task.pairs()[pair].clone()]).expect("one");
            let on = Subject {
                model: &model,
                task: &one,
            };
            let site = format!("blocks.0.attn.hook_z[pos={}; head=0]", elsewhere.join(","));
            let patch = PatchConfig {
                direction: Direction::Noise,
                sets: vec![SiteSet {
                    cell: Cell::default(),
                    sites: vec![site.parse().expect("a site")],
                }],
                ..PatchConfig::new(Vec::new())
            };
            let patched = measurements(on, &patch, &Running::default(), &Watch::default());
            let patched = patched.expect("it patches").examples.remove(0);
            near(found[0], patched.values[0], &model.spec.family);
        }
    }
}

#[test]
fn in_the_corrupted_run_a_part_is_given_and_the_rest_is_not() {
    for model in every_kind() {
        let (task, graph) = (task(), Graph::new(&model.spec));
        let everywhere = |dims: Option<Vec<usize>>| -> Parts {
            let nodes = (0..graph.n_src()).map(|row| graph.source(row).expect("a row"));
            let part = Part {
                positions: Positions::All,
                dims,
            };
            nodes.map(|node| (node, part.clone())).collect()
        };
        let full = EdgeSet::full(graph);
        let named =
            |name: &str, parts: Parts| NamedCircuit::new(name, full.clone()).in_parts(&parts);
        let config = CircuitEval {
            circuits: vec![
                named("all", everywhere(Some((0..graph.d_model).collect()))),
                named("none", everywhere(Some(Vec::new()))),
            ],
            mode: CircuitMode::Edge,
            metric: Some(Metric::LogitDiff),
            ..CircuitEval::of([])
        };
        for (clean, corrupted, found) in values(&model, &task, &config) {
            near(found[0], clean, &model.spec.family);
            near(found[1], corrupted, &model.spec.family);
        }
    }
}

#[test]
fn dimensions_of_an_affine_model_are_estimated_exactly() {
    let (model, task) = (affine(2), task());
    let graph = Graph::new(&model.spec);
    let on = Subject {
        model: &model,
        task: &task,
    };
    let dims = DimAttributionConfig::along(GradientPath::Base);
    let estimated = measurements(on, &dims, &Running::default(), &Watch::default());
    let estimated = estimated.expect("it estimates");
    for cell in (0..estimated.cells.len()).step_by(37) {
        let node: Node = estimated.cells[cell]
            .src
            .as_ref()
            .expect("a node")
            .parse()
            .expect("its name");
        let out = estimated.cells[cell].neuron.expect("a dimension") as usize;
        let part = Part {
            positions: Positions::All,
            dims: Some((0..graph.d_model).filter(|dim| *dim != out).collect()),
        };
        let rest =
            NamedCircuit::new("rest", EdgeSet::full(graph)).in_parts(&Parts::from([(node, part)]));
        let config = CircuitEval {
            circuits: vec![rest],
            ..CircuitEval::of([])
        };
        for (example, (_, _, exact)) in estimated
            .examples
            .iter()
            .zip(values(&model, &task, &config))
        {
            near(example.values[cell], exact[0], &format!("{node} {out}"));
        }
    }
}

#[test]
fn dimensions_of_a_node_sum_to_its_edges() {
    for model in every_kind() {
        let (task, graph) = (task(), Graph::new(&model.spec));
        let on = Subject {
            model: &model,
            task: &task,
        };
        for path in [
            GradientPath::Base,
            GradientPath::Ends,
            GradientPath::inputs(3),
        ] {
            let of = |method: &dyn Method| {
                let found = measurements(on, method, &Running::default(), &Watch::default());
                found.expect("it estimates")
            };
            let dims = of(&DimAttributionConfig::along(path));
            let edges = of(&EdgeAttributionConfig::along(EdgePath::Along(path)));
            for (by_dim, by_edge) in dims.examples.iter().zip(&edges.examples) {
                let sums = |cells: &[Cell], example: &ExampleScores| {
                    let mut sums = BTreeMap::<Node, f64>::new();
                    for (cell, value) in cells.iter().zip(&example.values) {
                        let node = cell
                            .src
                            .as_ref()
                            .expect("a source")
                            .parse()
                            .expect("its name");
                        *sums.entry(node).or_default() += value - example.clean;
                    }
                    sums
                };
                let (dims, edges) = (sums(&dims.cells, by_dim), sums(&edges.cells, by_edge));
                assert_eq!(dims.len(), graph.n_src());
                for (node, sum) in dims {
                    let what = format!("{} {path} {node}", model.spec.family);
                    near(sum, edges[&node], &what);
                }
            }
        }
    }
}

#[test]
fn a_role_that_other_pairs_have_is_no_position_of_this_one() {
    let model = every_kind().remove(0);
    let (whole, graph) = (task(), Graph::new(&model.spec));
    let mut first = true;
    let lacking = changed(&whole, |pair| {
        if std::mem::take(&mut first) {
            pair.roles.remove("S2");
        }
    });
    let head = Node::Head { layer: 0, head: 0 };
    let part = Part {
        positions: at(&[Pos::Role("S2".into())]),
        dims: None,
    };
    let others: Vec<_> = graph.edges().filter(|edge| edge.src != head).collect();
    let without = EdgeSet::of(graph, &others).expect("edges of the graph");
    let config = CircuitEval {
        circuits: vec![
            NamedCircuit::new("at S2", EdgeSet::full(graph)).in_parts(&Parts::from([(head, part)])),
            NamedCircuit::new("without", without),
        ],
        ..CircuitEval::of([])
    };
    let (_, _, of_lacking) = values(&model, &lacking, &config).remove(0);
    near(of_lacking[0], of_lacking[1], "a pair without the role");
    let (_, _, of_whole) = values(&model, &whole, &config).remove(0);
    assert!((of_whole[0] - of_whole[1]).abs() > 1e-6, "the role acts");
}

#[test]
fn parts_that_a_prompt_or_a_model_does_not_have_are_refused() {
    let model = every_kind().remove(0);
    let (task, graph) = (task(), Graph::new(&model.spec));
    let on = Subject {
        model: &model,
        task: &task,
    };
    let refused = |node: Node, positions: Positions| {
        let part = Part {
            positions,
            dims: None,
        };
        let config = CircuitEval {
            circuits: vec![
                NamedCircuit::new("full", EdgeSet::full(graph))
                    .in_parts(&BTreeMap::from([(node, part)])),
            ],
            ..CircuitEval::of([])
        };
        let error = measurements(on, &config, &Running::default(), &Watch::default());
        error.expect_err("refused").to_string()
    };
    let input = Node::Input;
    assert!(refused(input, at(&[Pos::Role("IO".into())])).contains("IO"));
    assert!(refused(input, at(&[Pos::Index(10)])).contains("10"));
    assert!(refused(Node::Mlp(99), Positions::All).contains("m99"));
}
