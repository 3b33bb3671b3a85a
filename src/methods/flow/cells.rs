//! The rows of a table of routes: edges by layer and token, the heads of each edge of attention, and what each head and each MLP
//! brings in all.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::route::{Route, Step, Via};
use crate::hooks::Kind;
use crate::methods::sites::Extent;
use crate::scores::{Cell, Direction, Measured};
use crate::spec::ModelSpec;
use crate::task::{Pair, Task};

/// Components of edges.
const STREAM: &str = "stream";
const ATTENTION: &str = "attention";
const HEAD: &str = "head";
const MLP: &str = "mlp";
const BIAS: &str = "bias";

/// Prompts that align: the text of their `template` column, and their length.
pub(super) type Group = (Option<String>, usize);

pub(super) struct Cells {
    pub all: Vec<Cell>,
    steps: Vec<Step>,
    spec: ModelSpec,
    extent: Extent,
    /// The first cell of the edges of each group; none where only totals are asked for.
    groups: BTreeMap<Group, usize>,
    /// The first total, and the first neuron.
    totals: usize,
    neurons: usize,
}

/// Cells of a state at a position, as far as it is told by the position alone: each source with its heads, then the
/// three others.
fn cells_of_state(step: &Step, n_heads: usize, pos: usize) -> usize {
    let attention = if step.attention {
        (pos + 1) * (1 + n_heads)
    } else {
        0
    };
    attention + 3
}

pub(super) fn groups(task: &Task, extent: &Extent) -> Vec<Group> {
    let pairs = task.pairs().iter();
    let mut groups: Vec<Group> = pairs.map(|pair| group_of(extent, pair)).collect();
    groups.sort();
    groups.dedup();
    groups
}

/// How many edges there could be.
pub(super) fn n_edges(spec: &ModelSpec, task: &Task) -> usize {
    let extent = Extent::new(task, &Default::default(), &Default::default());
    let of_group = |(_, length): &Group| -> usize {
        let steps = Step::all(spec);
        let states = steps
            .iter()
            .flat_map(|step| (0..*length).map(move |pos| cells_of_state(step, spec.n_heads, pos)));
        states.sum()
    };
    groups(task, &extent).iter().map(of_group).sum()
}

impl Cells {
    pub fn new(spec: &ModelSpec, task: &Task, only_totals: bool, has_neurons: bool) -> Self {
        let extent = Extent::new(task, &Default::default(), &Default::default());
        let steps = Step::all(spec);
        let mut all = Vec::new();
        let mut first = BTreeMap::new();
        if !only_totals {
            for group in groups(task, &extent) {
                first.insert(group.clone(), all.len());
                for step in &steps {
                    for pos in 0..group.1 {
                        all.extend(of_state(step, spec, &group, pos));
                    }
                }
            }
        }
        let totals = all.len();
        all.extend(spec.heads().map(|(layer, head)| Cell {
            head: Some(head as u32),
            ..Cell::in_layer(Kind::Z.name(), layer)
        }));
        let mlps = steps.iter().filter(|step| step.mlp);
        all.extend(mlps.map(|step| Cell::in_layer(Kind::MlpOut.name(), step.layer)));
        let neurons = all.len();
        let taken_apart = steps.iter().filter(|step| step.mlp && has_neurons);
        all.extend(taken_apart.flat_map(|step| {
            (0..spec.d_mlp as u32).map(|neuron| Cell {
                neuron: Some(neuron),
                ..Cell::in_layer(Kind::MlpPost.name(), step.layer)
            })
        }));
        Cells {
            all,
            steps,
            spec: spec.clone(),
            extent,
            groups: first,
            totals,
            neurons,
        }
    }

    /// Of the rows of neurons, the strongest so many over all examples; the others are left out.
    pub fn keep_strongest_neurons(&self, measured: &mut Measured, most: usize) {
        let means = measured.means(Direction::Direct, true);
        let mut neurons: Vec<usize> = (self.neurons..self.all.len()).collect();
        neurons.sort_by(|&a, &b| means[b].total_cmp(&means[a]));
        let weak: BTreeSet<u32> = neurons.iter().skip(most).map(|&cell| cell as u32).collect();
        for example in &mut measured.examples {
            let rows = example.cells.iter().zip(&example.values);
            let rows = rows.filter(|(cell, _)| !weak.contains(cell));
            let (cells, values): (Vec<u32>, Vec<f64>) = rows.unzip();
            (example.cells, example.values) = (cells.into(), values);
        }
    }

    /// The importances of a route, times `sign`, on top of what is known: of every total, and of the edges that are followed.
    pub fn add(&self, values: &mut BTreeMap<u32, f64>, pair: &Pair, route: &Route, sign: f64) {
        let n_heads = self.spec.n_heads;
        let group = group_of(&self.extent, pair);
        let first = self.groups.get(&group);
        for total in self.totals..self.all.len() {
            values.entry(total as u32).or_default();
        }
        let mlps: Vec<usize> = self
            .steps
            .iter()
            .filter(|step| step.mlp)
            .map(|step| step.layer)
            .collect();
        for (layer, neurons) in &route.neurons {
            let nth = mlps.iter().position(|mlp| mlp == layer);
            let first = self.neurons + nth.expect("a layer with an MLP") * self.spec.d_mlp;
            for (neuron, value) in neurons.iter().enumerate() {
                *values.entry((first + neuron) as u32).or_default() += sign * value;
            }
        }
        let mut add = |cell: usize, value: f64| {
            *values.entry(cell as u32).or_default() += sign * value;
        };
        for edge in &route.edges {
            let step = &self.steps[edge.step];
            for (head, value) in edge.heads.iter().enumerate() {
                add(self.totals + step.layer * n_heads + head, *value);
            }
            if edge.via == Via::Mlp {
                add(
                    self.totals + self.spec.n_layers * n_heads + step.layer,
                    edge.importance,
                );
            }
            let Some(&first) = first else { continue };
            let before = |step: &Step, until: usize| -> usize {
                (0..until)
                    .map(|pos| cells_of_state(step, n_heads, pos))
                    .sum()
            };
            let below: usize = self.steps[..edge.step]
                .iter()
                .map(|step| before(step, group.1))
                .sum();
            let state = first + below + before(step, edge.dst.pos());
            let others = cells_of_state(step, n_heads, edge.dst.pos()) - 3;
            match (edge.via, edge.src) {
                (Via::Attention, Some(src)) => {
                    let cell = state + src.pos() * (1 + n_heads);
                    add(cell, edge.importance);
                    for (head, value) in edge.heads.iter().enumerate() {
                        add(cell + 1 + head, *value);
                    }
                }
                (Via::Stream, _) => add(state + others, edge.importance),
                (Via::Mlp, _) => add(state + others + 1, edge.importance),
                (Via::Bias | Via::Attention, _) => add(state + others + 2, edge.importance),
            }
        }
    }
}

/// An edge that one example has counts 0 in the others that align with it; edges that none has have no row.
pub(super) fn complete(measured: &mut Measured, task: &Task) {
    let extent = Extent::new(task, &Default::default(), &Default::default());
    let pairs = task.pairs().iter();
    let group_of: BTreeMap<usize, Group> = pairs
        .map(|pair| (pair.index, group_of(&extent, pair)))
        .collect();
    let mut known: BTreeMap<&Group, Vec<u32>> = BTreeMap::new();
    for example in &measured.examples {
        if let Some(group) = group_of.get(&example.example) {
            known.entry(group).or_default().extend(example.cells.iter());
        }
    }
    let known: BTreeMap<&Group, Arc<[u32]>> = known
        .into_iter()
        .map(|(group, mut cells)| {
            cells.sort_unstable();
            cells.dedup();
            (group, cells.into())
        })
        .collect();
    for example in &mut measured.examples {
        let group = group_of.get(&example.example);
        let Some(cells) = group.and_then(|group| known.get(group)) else {
            continue;
        };
        let values = cells
            .iter()
            .map(|&cell| example.value(cell as usize).unwrap_or(0.0));
        example.values = values.collect();
        example.cells = Arc::clone(cells);
    }
    measured.drop_unmeasured();
}

pub(super) fn group_of(extent: &Extent, pair: &Pair) -> Group {
    (extent.label(pair), pair.clean.len())
}

/// The cells of one state: each source with its heads, then the stream, the MLP and the bias.
fn of_state(step: &Step, spec: &ModelSpec, group: &Group, pos: usize) -> Vec<Cell> {
    let edge = |component: &str, src: String| Cell {
        template: group.0.clone(),
        pos: Some(pos as i32),
        src: Some(src),
        dst: Some(step.dst(spec, pos).to_string()),
        ..Cell::in_layer(component, step.layer)
    };
    let mut cells = Vec::new();
    for source in 0..if step.attention { pos + 1 } else { 0 } {
        let src = step.src(source).to_string();
        let with_key = |cell: Cell| Cell {
            key: Some(source as u32),
            ..cell
        };
        cells.push(with_key(edge(ATTENTION, src.clone())));
        cells.extend((0..spec.n_heads as u32).map(|head| Cell {
            head: Some(head),
            ..with_key(edge(HEAD, src.clone()))
        }));
    }
    let src = step.src(pos).to_string();
    cells.push(edge(STREAM, src.clone()));
    cells.push(edge(MLP, src));
    cells.push(edge(BIAS, BIAS.into()));
    debug_assert_eq!(cells.len(), cells_of_state(step, spec.n_heads, pos));
    cells
}
