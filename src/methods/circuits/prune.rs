//! Pruning by gradients: soft masks on candidate edges, or on nodes, are trained until a given number is left.
//!
//! Every candidate has a gate, open with a probability that is learned. In each step gates are drawn from the hard concrete
//! distribution, one forward and one backward pass give the slope of the distance from the clean run at each mask, and Adam
//! moves the gates. The number of gates that are open on average falls from all to what was asked for over the first part of
//! the steps and is then held there, by moving all gates alike. In the end the gates that are likeliest open are the circuit.
//!
//! Sources: Bhaskar et al. 2024, "Finding Transformer Circuits with Edge Pruning" (arXiv 2406.16778), for gates on edges; Cao, Sanh
//! and Rush 2021 (arXiv 2104.03514), for gates on nodes (subnetwork probing); Louizos, Welling and Kingma 2018 (arXiv 1712.01312),
//! for the distribution. Moving all gates alike stands in place of the Lagrange multipliers of the first and the penalty of
//! the second, which reach a size only roughly. Left out on purpose: pruning the weights.

use rand::seq::SliceRandom;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::evaluation::{NamedCircuit, check_evaluated, in_both_modes};
use super::ground::Ground;
use super::soft::{Candidates, Soft};
use super::split::split;
use crate::circuit::{About, Circuit, EdgeSet, Graph, Helps, Pruning, ScoredGraph};
use crate::error::{Error, Result};
use crate::hooks::Node;
use crate::methods::exact_edges::Reference;
use crate::methods::measure::Watch;
use crate::methods::method::{Running, Subject};
use crate::metric::Metric;
use crate::scores::Scores;
use crate::scores::statistics::sigmoid;
use crate::task::Task;

/// The share of the steps over which the number of open gates falls.
const FALLING: f64 = 0.6;
/// The share of the gates that are open in the first step.
const OPEN: f64 = 0.95;

/// What a gate opens and closes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Gates {
    Edges,
    /// Nodes with all their edges.
    Nodes,
}

/// What is left, and how it is trained.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct PruneConfig {
    /// Gates on edges, or on nodes with all their edges.
    pub gates: Gates,
    /// Edges or nodes that are left, before dead ends are dropped.
    pub n: usize,
    /// What is kept low: a divergence from the clean run, or how far a metric of the task is from that of the clean run, squared.
    /// [default: kl]
    pub metric: Metric,
    /// What edges carry whose gate is closed.
    pub reference: Reference,
    /// Each a forward and a backward pass over a batch of pairs.
    pub steps: usize,
    pub learning_rate: f64,
    /// Of the gates that are drawn.
    pub seed: u64,
}

impl PruneConfig {
    /// `n` edges, by the divergence from the clean run, against the pair's corrupted run.
    pub fn edges(n: usize) -> Self {
        PruneConfig {
            gates: Gates::Edges,
            n,
            metric: Metric::Kl,
            reference: Reference::Pair,
            steps: 120,
            learning_rate: 0.5,
            seed: 0,
        }
    }

    /// `n` nodes (heads and MLPs).
    pub fn nodes(n: usize) -> Self {
        PruneConfig {
            gates: Gates::Nodes,
            ..PruneConfig::edges(n)
        }
    }
}

/// What is left of the candidates.
#[derive(Debug, Clone)]
pub struct PrunedCircuit {
    pub circuit: Circuit,
    /// For each candidate the probability that its gate is open.
    pub scored: ScoredGraph,
    /// Edges before dead ends were dropped.
    pub chosen: usize,
    /// How many pairs trained the gates, and how many report.
    pub parts: [usize; 2],
    /// The circuit on the pairs that trained nothing.
    pub reported: Scores,
    /// The same, where edges of the circuit are given their clean values; only against pairs.
    pub reported_edges: Option<Scores>,
}

/// Prunes candidate edges on half of the pairs, and reports what is left on the other half.
/// # Errors
/// Before anything runs: fewer than 2 pairs, no candidates or not fewer than are to be left, a metric without a gradient, an
/// encoder, a model that is not f32 on the CPU. [`Error::Invalid`] where no path is left from `input` to `logits`.
pub fn prune_circuit(
    on: Subject<'_>,
    candidates: &EdgeSet,
    config: &PruneConfig,
    running: &Running,
    watch: &Watch<'_>,
) -> Result<PrunedCircuit> {
    let graph = Graph::new(&on.model.spec);
    graph.check_same(candidates.graph())?;
    check_evaluated(on, config.metric, config.reference)?;
    config.check(candidates, on.task)?;
    let candidates = &candidates.pruned(Pruning::Fixpoint);
    let gates = config.candidates(candidates);
    let n = on.task.pairs().len();
    let parts = split(on.task, [n / 2, n - n / 2])?;
    let [training, reporting] = [0, 1].map(|part| Subject {
        model: on.model,
        task: &parts[part],
    });
    let open = train(training, &gates, config, running, watch)?;

    let mut order: Vec<usize> = (0..open.len()).collect();
    order.sort_by(|&a, &b| open[b].total_cmp(&open[a]).then(a.cmp(&b)));
    let mut is_left = vec![false; open.len()];
    order[..config.n]
        .iter()
        .for_each(|&gate| is_left[gate] = true);
    let mut scored = ScoredGraph::new(graph).with_helps(Helps::Positive);
    let chosen = match config.gates {
        Gates::Edges => {
            let mut left = EdgeSet::empty(graph);
            for (gate, (row, column)) in candidates.places().enumerate() {
                let edge = graph.edge(row, column).expect("a place of the set");
                scored.set_score(&edge, open[gate])?;
                if is_left[gate] {
                    left.insert(row, column);
                }
            }
            left
        }
        Gates::Nodes => {
            let mut nodes: Vec<Node> = candidates.edges().map(|edge| edge.src).collect();
            nodes.dedup();
            nodes.retain(|&node| node != Node::Input);
            for (&node, &open) in nodes.iter().zip(&open) {
                scored.set_node_score(node, open)?;
            }
            let mut kept = is_left.iter();
            nodes.retain(|_| *kept.next().expect("a gate for each node"));
            EdgeSet::between(graph, &nodes)?.and(candidates)?
        }
    };
    let edges = chosen.pruned(Pruning::Fixpoint);
    if edges.is_empty() {
        return Err(Error::invalid(format!(
            "of the {} that are left no path leads from `input` to `logits`; leave more, or train longer (`PruneConfig::steps`)",
            config.n
        )));
    }
    let (reported, reported_edges) = in_both_modes(
        reporting,
        &NamedCircuit::new("circuit", edges.clone()),
        config.reference,
        running,
        watch,
    )?;
    let mut circuit = Circuit::new(edges);
    if config.gates == Gates::Edges {
        circuit = circuit.scored_by(&scored)?;
    }
    circuit.about = About {
        model: Some(on.model.origin.id.clone()),
        task: Some(on.task.name.clone()),
        metric: Some(config.metric.to_string()),
        method: Some(config.name().into()),
        requested: Some(config.n),
        seed: Some(on.task.seed),
        ..About::default()
    };
    Ok(PrunedCircuit {
        circuit,
        scored,
        chosen: chosen.len(),
        parts: [training, reporting].map(|part| part.task.pairs().len()),
        reported,
        reported_edges,
    })
}

impl PruneConfig {
    fn name(&self) -> &'static str {
        match self.gates {
            Gates::Edges => "edge-pruning",
            Gates::Nodes => "subnetwork-probing",
        }
    }

    fn candidates(&self, candidates: &EdgeSet) -> Candidates {
        match self.gates {
            Gates::Edges => Candidates::edges(candidates),
            Gates::Nodes => Candidates::nodes(candidates),
        }
    }

    /// Refuses what can be told before anything runs.
    /// # Errors
    /// Fewer than 2 pairs, a number that cannot be left of the candidates, a metric without a gradient, steps or a rate of nothing.
    pub fn check(&self, candidates: &EdgeSet, task: &Task) -> Result<()> {
        self.metric.check_differentiable()?;
        if task.pairs().len() < 2 {
            return Err(Error::invalid(
                "pruning trains on half of the pairs and reports on the other half, and there is 1 pair; take more with `ExpandOptions::n_pairs`",
            ));
        }
        let n_gates = self
            .candidates(&candidates.pruned(Pruning::Fixpoint))
            .n_masks;
        let what = match self.gates {
            Gates::Edges => "edges",
            Gates::Nodes => "nodes",
        };
        if self.n == 0 || self.n >= n_gates {
            return Err(Error::invalid(format!(
                "of {n_gates} candidate {what} {} cannot be left by pruning; ask for one at least, and fewer than there are",
                self.n
            )));
        }
        if self.steps == 0 || !(self.learning_rate > 0.0 && self.learning_rate.is_finite()) {
            return Err(Error::invalid(
                "training takes one step at least, and a learning rate above 0",
            ));
        }
        Ok(())
    }

    /// How many gates are open on average in a step.
    fn open(&self, step: usize, n_gates: usize) -> f64 {
        let (first, last) = (OPEN * n_gates as f64, self.n as f64);
        let fallen = (step as f64 / (FALLING * self.steps as f64)).min(1.0);
        first.max(last) * (last / first.max(last)).powf(fallen)
    }
}

/// Trains the gates; gives the probability that each is open.
fn train(
    on: Subject<'_>,
    candidates: &Candidates,
    config: &PruneConfig,
    running: &Running,
    watch: &Watch<'_>,
) -> Result<Vec<f64>> {
    let grounds = Ground::of_task(on, config.metric, config.reference, running.batch)?;
    let soft = grounds
        .iter()
        .map(|ground| Soft::new(on.model, ground, candidates));
    let soft: Vec<Soft<'_>> = soft.collect::<Result<_>>()?;
    let mut rng = ChaCha8Rng::seed_from_u64(config.seed);
    let mut gates = Training::new(candidates.n_masks);
    let mut order: Vec<usize> = Vec::new();
    watch.progress.start(config.name(), config.steps as u64);
    for step in 0..config.steps {
        if watch.progress.cancelled() {
            return Err(Error::Interrupted {
                kept: "nothing of the training is kept".into(),
            });
        }
        gates.hold_open(config.open(step, candidates.n_masks));
        if order.is_empty() {
            order = (0..soft.len()).collect();
            order.shuffle(&mut rng);
        }
        let batch = order.pop().expect("there are batches");
        let drawn = gates.draw(&mut rng);
        let masks: Vec<f32> = drawn.iter().map(|drawn| drawn.mask as f32).collect();
        let clean = &grounds[batch].clean;
        let weight = |pair: usize, value: f64| match config.metric.needs_reference() {
            true => 1.0,
            false => 2.0 * (value - clean[pair]),
        };
        let (_, slopes) = soft[batch].run(&masks, weight)?;
        let slopes = slopes.iter().zip(&drawn);
        let slopes: Vec<f64> = slopes
            .map(|(slope, drawn)| slope / clean.len() as f64 * drawn.slope)
            .collect();
        gates.step(&slopes, config.learning_rate);
        watch.progress.advance(1);
    }
    gates.hold_open(config.n as f64);
    watch.progress.finish();
    Ok((0..candidates.n_masks)
        .map(|gate| gates.open(gate))
        .collect())
}

/// The temperature of the concrete distribution, and how far it is stretched beyond 0 and 1.
const TEMPERATURE: f64 = 2.0 / 3.0;
const STRETCH: f64 = 0.1;

/// Hard concrete gates, and Adam's memory of them.
struct Training {
    log_odds: Vec<f64>,
    mean: Vec<f64>,
    square: Vec<f64>,
    steps: i32,
}

/// A gate that was drawn, and how its mask moves with its log-odds.
struct Drawn {
    mask: f64,
    slope: f64,
}

impl Training {
    fn new(n: usize) -> Self {
        Training {
            log_odds: vec![0.0; n],
            mean: vec![0.0; n],
            square: vec![0.0; n],
            steps: 0,
        }
    }

    /// The probability that a gate's mask is above 0.
    fn open(&self, gate: usize) -> f64 {
        sigmoid(self.log_odds[gate] + TEMPERATURE * ((1.0 + STRETCH) / STRETCH).ln())
    }

    /// Moves all gates alike until so many are open on average.
    fn hold_open(&mut self, n: f64) {
        let (mut low, mut high) = (-100.0, 100.0);
        let before = self.log_odds.clone();
        for _ in 0..60 {
            let middle = (low + high) / 2.0;
            self.log_odds.clone_from(&before);
            self.log_odds.iter_mut().for_each(|own| *own += middle);
            let open: f64 = (0..before.len()).map(|gate| self.open(gate)).sum();
            if open > n {
                high = middle;
            } else {
                low = middle;
            }
        }
    }

    fn draw(&self, rng: &mut ChaCha8Rng) -> Vec<Drawn> {
        let draw = |&log_odds: &f64| {
            let uniform: f64 = rng.random_range(1e-4..1.0 - 1e-4);
            let noise = (uniform / (1.0 - uniform)).ln();
            let s = sigmoid((noise + log_odds) / TEMPERATURE);
            let stretched = (1.0 + 2.0 * STRETCH) * s - STRETCH;
            let slope = if (0.0..=1.0).contains(&stretched) {
                (1.0 + 2.0 * STRETCH) * s * (1.0 - s) / TEMPERATURE
            } else {
                0.0
            };
            Drawn {
                mask: stretched.clamp(0.0, 1.0),
                slope,
            }
        };
        self.log_odds.iter().map(draw).collect()
    }

    /// A step of Adam downhill. A slope counts against its own size and that of all slopes together, so that a gate that hardly
    /// matters does not move as fast as one that does: few steps are enough then.
    fn step(&mut self, slopes: &[f64], rate: f64) {
        const DECAY: [f64; 2] = [0.9, 0.99];
        self.steps += 1;
        let unbiased = DECAY.map(|decay| 1.0 - decay.powi(self.steps));
        let of_all = self.square.iter().sum::<f64>() / (self.square.len() as f64 * unbiased[1]);
        for (gate, slope) in slopes.iter().enumerate() {
            let (mean, square) = (&mut self.mean[gate], &mut self.square[gate]);
            *mean += (1.0 - DECAY[0]) * (slope - *mean);
            *square += (1.0 - DECAY[1]) * (slope * slope - *square);
            let size = (*square / unbiased[1]).sqrt() + of_all.sqrt() + 1e-12;
            self.log_odds[gate] -= rate * (*mean / unbiased[0]) / size;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gates_are_held_open_in_number_and_drawn_as_often() {
        let mut gates = Training::new(400);
        gates
            .log_odds
            .iter_mut()
            .enumerate()
            .for_each(|(i, own)| *own = i as f64 / 50.0);
        gates.hold_open(100.0);
        let open: f64 = (0..400).map(|gate| gates.open(gate)).sum();
        assert!((open - 100.0).abs() < 1e-6, "{open}");
        let mut rng = ChaCha8Rng::seed_from_u64(1);
        let draws = 200;
        let drawn: usize = (0..draws)
            .map(|_| {
                gates
                    .draw(&mut rng)
                    .iter()
                    .filter(|drawn| drawn.mask > 0.0)
                    .count()
            })
            .sum();
        let mean = drawn as f64 / draws as f64;
        assert!((mean - 100.0).abs() < 2.0, "{mean}");
    }

    #[test]
    fn a_mask_moves_with_its_gate_as_its_slope_says() {
        let mut gates = Training::new(60);
        gates
            .log_odds
            .iter_mut()
            .enumerate()
            .for_each(|(i, own)| *own = i as f64 / 15.0 - 2.0);
        let of = |gates: &Training| gates.draw(&mut ChaCha8Rng::seed_from_u64(2));
        let slopes: Vec<f64> = of(&gates).iter().map(|drawn| drawn.slope).collect();
        let masks = |by: f64, gates: &mut Training| -> Vec<f64> {
            gates.log_odds.iter_mut().for_each(|own| *own += by);
            of(gates).iter().map(|drawn| drawn.mask).collect()
        };
        let (above, below) = (masks(1e-6, &mut gates), masks(-2e-6, &mut gates));
        for ((above, below), slope) in above.iter().zip(&below).zip(slopes) {
            assert!(((above - below) / 2e-6 - slope).abs() < 1e-5, "{slope}");
        }
    }

    #[test]
    fn gates_that_help_stay_open() {
        let mut gates = Training::new(10);
        for _ in 0..100 {
            gates.hold_open(3.0);
            let slopes: Vec<f64> = (0..10)
                .map(|gate| if gate < 3 { -1.0 } else { 0.1 })
                .collect();
            gates.step(&slopes, 0.2);
        }
        gates.hold_open(3.0);
        assert!((0..10).all(|gate| (gates.open(gate) > 0.95) == (gate < 3)));
    }
}
