//! From scores to a circuit that is checked on pairs that chose neither its edges nor its size.
//!
//! The pairs are split in three: on the first half a method scores edges or nodes; on a quarter the size is chosen, the smallest
//! whose faithfulness reaches what was asked for; on the last quarter the circuit is reported.

use super::evaluation::{CircuitEval, NamedCircuit, in_both_modes};
use super::scored::{Level, Scored, scored};
use super::split::split;
use crate::circuit::{
    About, Circuit, Graph, Helps, Parts, PieceScores, Pruning, Ranking, Resampling, Rule,
    ScoredGraph, Selected, Selection, Stability, consistent, select, stability,
};
use crate::error::{Error, Result};
use crate::methods::exact_edges::Reference;
use crate::methods::measure::{Watch, check, measure, measurements};
use crate::methods::method::{Method, Running, Subject};
use crate::scores::{Cell, Scores};
use crate::task::Task;

/// With fewer pairs than this the parts are too small to tell much.
const FEW_PAIRS: usize = 8;
/// Each size that is tried is so many times the one before, until one is faithful enough.
const STEP: f64 = 1.4;
/// Sizes that are evaluated together on the way up.
const AT_ONCE: usize = 4;

/// Which edges a size stands for.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum FindRule {
    /// The best.
    TopN,
    /// Best first from the logits.
    Greedy,
    /// The best of those whose sign agrees in this share of draws of the pairs.
    Consistent(f64),
    /// This share of them by how much they help, the rest by size of score.
    Ratio(f64),
}

/// How large the circuit is.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum FindSize {
    /// The smallest whose faithfulness reaches this.
    Until(f64),
    /// So many edges, or nodes (or their pieces) where the method scores these, before dead ends are dropped.
    N(usize),
    /// All that score so much or more.
    Threshold(f64),
}

/// How a circuit is found from scores.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct FindConfig {
    pub rule: FindRule,
    pub size: FindSize,
    /// By how much an edge helps, rather than by size of score.
    pub signed: bool,
    /// What edges outside of the circuit carry when it is evaluated.
    pub reference: Reference,
    /// Draws of pairs behind the stability and the rule `consistent`.
    pub draws: usize,
}

impl Default for FindConfig {
    fn default() -> Self {
        FindConfig {
            rule: FindRule::Greedy,
            size: FindSize::Until(0.85),
            signed: false,
            reference: Reference::Pair,
            draws: 200,
        }
    }
}

/// A circuit, and how it was arrived at.
#[derive(Debug, Clone)]
pub struct FoundCircuit {
    pub circuit: Circuit,
    /// All scores, of which the circuit's are a part.
    pub scored: ScoredGraph,
    /// What was scored, and is counted by `requested`.
    pub level: Level,
    /// `None` for a threshold.
    pub requested: Option<usize>,
    /// Edges before dead ends were dropped.
    pub chosen: usize,
    /// The sizes that were tried: what was requested, edges left, faithfulness.
    pub tried: Vec<(usize, usize, f64)>,
    /// How many pairs scored, chose the size, and report.
    pub parts: [usize; 3],
    /// The circuit on the pairs that chose its size, and on those that report.
    pub sized: Scores,
    pub reported: Scores,
    /// The same on the reporting pairs, where edges of the circuit are given their clean values; only against pairs.
    pub reported_edges: Option<Scores>,
    /// Of edges that two pairs or more scored.
    pub stability: Option<Stability>,
    pub warnings: Vec<String>,
}

/// Finds a circuit of a task by a method's scores.
/// # Errors
/// Before anything runs: fewer than 3 pairs, a size that no circuit can have, what the method refuses. A gap between clean and
/// corrupted runs that could be none where a size is chosen by faithfulness; a circuit of which nothing is left.
pub fn find_circuit(
    on: Subject<'_>,
    method: &dyn Method,
    config: &FindConfig,
    running: &Running,
    watch: &Watch<'_>,
) -> Result<FoundCircuit> {
    config.check(on.task)?;
    // Half of the pairs to score, a quarter to choose the size, a quarter to report.
    let n = on.task.pairs().len();
    let scoring = n / 2;
    let sizing = (n - scoring) / 2;
    let parts = split(on.task, [scoring, sizing, n - scoring - sizing])?;
    check(method, &on.model.spec, on.task)?;
    let [scoring, sizing, reporting] = [0, 1, 2].map(|part| Subject {
        model: on.model,
        task: &parts[part],
    });
    let graph = Graph::new(&on.model.spec);
    let header = method.header(on.task);
    let metric = header.metric.parse().unwrap_or(on.task.metric);
    let measured = measurements(scoring, method, running, watch)?;
    let resampling = Resampling {
        draws: config.draws,
        seed: on.task.seed,
    };
    let scores = scored(&measured, header.direction, scoring.task, graph)?;
    let mut pieces = None;
    let (scored, level) = match (&scores, config.rule) {
        (Scored::Edges(scores), FindRule::Consistent(share)) => {
            let kept = consistent(scores, share, resampling)?;
            (ScoredGraph::of_matrix(graph, kept), Level::Edges)
        }
        (Scored::Edges(scores), _) => (scores.scored()?, Level::Edges),
        (Scored::Nodes(scored), FindRule::TopN | FindRule::Greedy) => {
            (scored.clone(), Level::Nodes)
        }
        (Scored::Pieces(scores), FindRule::TopN | FindRule::Greedy) => {
            pieces = Some(scores);
            let mut scored = ScoredGraph::new(graph);
            for (node, sum) in scores.of_nodes() {
                scored.set_node_score(node, sum)?;
            }
            (scored, level_of(&measured.cells))
        }
        (Scored::Nodes(_) | Scored::Pieces(_), FindRule::Consistent(_) | FindRule::Ratio(_)) => {
            return Err(Error::invalid(
                "nodes are chosen by the best scores alone; leave the rule out, or take an edge method",
            ));
        }
    };
    let helps = Helps::of(metric, header.direction);
    let finding = Finding {
        sizing,
        config,
        scored: &scored,
        pieces,
        level,
        selection: Selection {
            rule: Rule::TopN(1),
            ranking: if config.signed {
                Ranking::Signed(helps)
            } else {
                Ranking::Absolute
            },
            helps,
            pruning: Pruning::Fixpoint,
        },
        running,
        watch,
    };
    let mut tried = Vec::new();
    let rule = match config.size {
        FindSize::Until(least) => finding.smallest(least, &mut tried)?,
        FindSize::N(n) => finding.rule(n),
        FindSize::Threshold(threshold) => Rule::Threshold(threshold),
    };
    let selection = Selection {
        rule,
        ..finding.selection
    };
    let (
        Selected {
            edges,
            requested,
            chosen,
        },
        pieces,
    ) = finding.choose(rule)?;
    if edges.is_empty() {
        return Err(Error::invalid(format!(
            "of the edges that were chosen ({chosen}) nothing is left once dead ends are dropped: no path of them leads from `input` to \
             `logits`; ask for more edges, or choose them from the logits (`greedy`)"
        )));
    }
    let named = NamedCircuit::new("circuit", edges.clone()).in_parts(&pieces);
    let sized = finding.table(sizing, std::slice::from_ref(&named))?;
    let (reported, reported_edges) =
        in_both_modes(reporting, &named, config.reference, running, watch)?;
    let stability = match &scores {
        Scored::Edges(scores) if scores.len() > 1 => {
            Some(stability(scores, &selection, resampling)?)
        }
        _ => None,
    };
    let parts = [scoring, sizing, reporting].map(|part| part.task.pairs().len());
    let mut warnings = Vec::new();
    if on.task.pairs().len() < FEW_PAIRS {
        warnings.push(format!(
            "{} pairs make parts of {}, {} and {}: too few to tell much; take more with `ExpandOptions::n_pairs`",
            on.task.pairs().len(), parts[0], parts[1], parts[2]
        ));
    }
    warnings.extend(reported.warnings().iter().cloned());
    let mut circuit = Circuit::new(edges).scored_by(&scored)?.in_parts(&pieces);
    circuit.about = About {
        model: Some(on.model.origin.id.clone()),
        task: Some(on.task.name.clone()),
        metric: Some(reported.provenance.metric.clone()),
        method: Some(header.method),
        // Nodes and their pieces are taken best first, whatever leads where.
        selection: Some(match level {
            Level::Edges => config.named(),
            _ => FindConfig {
                rule: FindRule::TopN,
                ..*config
            }
            .named(),
        }),
        requested,
        seed: Some(on.task.seed),
        ..About::default()
    };
    let mut found = FoundCircuit {
        circuit,
        scored: scored.clone(),
        level,
        requested,
        chosen,
        tried,
        parts,
        sized,
        reported,
        reported_edges,
        stability,
        warnings,
    };
    found.circuit.measured = found.numbers();
    Ok(found)
}

impl FindConfig {
    /// Refuses what can be told before anything runs.
    /// # Errors
    /// Too few pairs; sizes, shares and rules that do not go.
    pub fn check(&self, task: &Task) -> Result<()> {
        task.check_single_tokens("circuit-eval")?;
        let n = task.pairs().len();
        if n < 3 {
            return Err(Error::invalid(format!(
                "a circuit is scored, sized and reported on three parts of the pairs, and there {}; take {FEW_PAIRS} or more with `ExpandOptions::n_pairs`",
                if n == 1 {
                    "is 1 pair".to_string()
                } else {
                    format!("are {n} pairs")
                }
            )));
        }
        let refused = |reason: &str| Err(Error::invalid(reason.to_string()));
        match (self.size, self.rule) {
            (FindSize::Until(least), _) if !(least > 0.0 && least <= 1.0) => refused(
                "a faithfulness to reach lies above 0 and is at most 1, which the whole model has",
            ),
            (FindSize::N(0), _) => {
                refused("a circuit of 0 was asked for; ask for one edge or more")
            }
            (FindSize::Threshold(_), FindRule::Greedy | FindRule::Ratio(_)) => refused(
                "a threshold takes every edge that reaches it, so nothing is left for another rule to choose; take `topn` or `consistent` with it, or a number of edges",
            ),
            (_, FindRule::Consistent(share) | FindRule::Ratio(share))
                if !(0.0..=1.0).contains(&share) =>
            {
                refused("a share lies between 0 and 1")
            }
            _ => Ok(()),
        }
    }

    /// The rule in words, for the circuit's file.
    fn named(&self) -> String {
        let rule = match (self.rule, self.size) {
            (FindRule::TopN, FindSize::Threshold(_)) => "threshold".to_string(),
            (FindRule::TopN, _) => "topn".to_string(),
            (FindRule::Greedy, _) => "greedy".to_string(),
            (FindRule::Consistent(share), _) => format!("consistent {share}"),
            (FindRule::Ratio(share), _) => format!("ratio {share}"),
        };
        if self.signed {
            format!("{rule}, signed")
        } else {
            rule
        }
    }
}

fn level_of(cells: &[Cell]) -> Level {
    match cells.first().is_some_and(|cell| cell.neuron.is_some()) {
        true => Level::Dims,
        false => Level::Positions,
    }
}

struct Finding<'a> {
    sizing: Subject<'a>,
    config: &'a FindConfig,
    scored: &'a ScoredGraph,
    /// Where nodes are scored in pieces.
    pieces: Option<&'a PieceScores>,
    level: Level,
    selection: Selection,
    running: &'a Running,
    watch: &'a Watch<'a>,
}

impl Finding<'_> {
    fn rule(&self, n: usize) -> Rule {
        match (self.level, self.config.rule) {
            (Level::Nodes | Level::Positions | Level::Dims, _) => Rule::TopNodes(n),
            (_, FindRule::TopN | FindRule::Consistent(_)) => Rule::TopN(n),
            (_, FindRule::Greedy) => Rule::Greedy(n),
            (_, FindRule::Ratio(helpful)) => Rule::Ratio { n, helpful },
        }
    }

    /// What a rule chooses, and of which nodes only a part.
    fn choose(&self, rule: Rule) -> Result<(Selected, Parts)> {
        let selection = Selection {
            rule,
            ..self.selection
        };
        let Some(pieces) = self.pieces else {
            return Ok((select(self.scored, &selection)?, Parts::new()));
        };
        let (n, threshold) = match rule {
            Rule::Threshold(threshold) => (pieces.len(), Some(threshold)),
            Rule::TopN(n) | Rule::Greedy(n) | Rule::TopNodes(n) | Rule::Ratio { n, .. } => {
                (n, None)
            }
        };
        pieces.select(n, threshold, selection.ranking, selection.pruning)
    }

    fn table(&self, on: Subject<'_>, circuits: &[NamedCircuit]) -> Result<Scores> {
        let eval = CircuitEval {
            circuits: circuits.to_vec(),
            reference: self.config.reference,
            ..CircuitEval::of([])
        };
        let running = Running {
            shard: None,
            verify: None,
            ..self.running.clone()
        };
        // An evaluation is over before it would be worth going on with.
        measure(on, &eval, &running, &Watch::progress(self.watch.progress))
    }

    /// The faithfulness of sizes on the pairs that choose among them.
    fn faithfulness(&self, sizes: &[usize]) -> Result<Vec<(usize, usize, f64)>> {
        let circuit = |n: &usize| -> Result<NamedCircuit> {
            let (selected, parts) = self.choose(self.rule(*n))?;
            Ok(NamedCircuit::new(n.to_string(), selected.edges).in_parts(&parts))
        };
        let named = sizes.iter().map(circuit).collect::<Result<Vec<_>>>()?;
        let table = self.table(self.sizing, &named)?;
        let Some(found) = table.floats("normalised") else {
            return Err(Error::invalid(format!(
                "no faithfulness can be given, so none can be reached: {}; take more pairs, another corruption or metric, or say how many \
                 edges (`FindConfig::size`)",
                table
                    .warnings()
                    .first()
                    .map_or("the gap of the task could be none", String::as_str)
            )));
        };
        let found = found.into_iter().map(|value| value.unwrap_or(f64::NAN));
        Ok(sizes
            .iter()
            .zip(&named)
            .zip(found)
            .map(|((&n, circuit), f)| (n, circuit.edges.len(), f))
            .collect())
    }

    /// The smallest size that is faithful enough: growing steps until one is, then halving the last step.
    fn smallest(&self, least: f64, tried: &mut Vec<(usize, usize, f64)>) -> Result<Rule> {
        let most = match self.level {
            Level::Edges => self
                .scored
                .edges()
                .filter(|(_, score, _)| score.is_some())
                .count(),
            Level::Nodes => self.scored.graph().n_src(),
            Level::Positions | Level::Dims => self.pieces.map_or(0, PieceScores::len),
        };
        let mut sizes = vec![1];
        while *sizes.last().expect("one at least") < most {
            let last = *sizes.last().expect("one at least");
            let next = ((last as f64 * STEP) as usize).max(last + 1);
            sizes.push(next.min(most));
        }
        let (mut below, mut reached) = (0, None);
        for sizes in sizes.chunks(AT_ONCE) {
            let found = self.faithfulness(sizes)?;
            tried.extend(&found);
            let first = found.iter().position(|(.., f)| *f >= least);
            let fallen_short = first.unwrap_or(found.len());
            below = found[..fallen_short].last().map_or(below, |(n, ..)| *n);
            reached = first.map(|at| found[at].0);
            if reached.is_some() {
                break;
            }
        }
        let Some(mut reached) = reached else {
            return Err(Error::invalid(format!(
                "no size reaches a faithfulness of {least}, not even all {most} that have a score; take another rule, or scores of every edge"
            )));
        };
        while reached > below + 1 + below / 50 {
            let middle = below + (reached - below) / 2;
            let found = self.faithfulness(&[middle])?;
            tried.extend(&found);
            match found[0].2 >= least {
                true => reached = middle,
                false => below = middle,
            }
        }
        tried.sort_by_key(|(n, ..)| *n);
        Ok(self.rule(reached))
    }
}

impl FoundCircuit {
    /// Faithfulness with its interval, of a table of one circuit.
    pub fn faithfulness(table: &Scores) -> Option<(f64, Option<(f64, f64)>)> {
        let of = |column| table.floats(column)?.first().copied().flatten();
        let interval = of("normalised_low").zip(of("normalised_high"));
        Some((of("normalised")?, interval))
    }

    /// What was measured, for the circuit's file.
    fn numbers(&self) -> std::collections::BTreeMap<String, f64> {
        let mut numbers = std::collections::BTreeMap::new();
        let mut note = |name: &str, value: f64| {
            if value.is_finite() {
                numbers.insert(name.to_string(), value);
            }
        };
        let tables = [
            ("faithfulness", Some(&self.reported)),
            ("faithfulness_sizing", Some(&self.sized)),
            ("faithfulness_edge_mode", self.reported_edges.as_ref()),
        ];
        for (name, table) in tables {
            if let Some((value, interval)) = table.and_then(FoundCircuit::faithfulness) {
                note(name, value);
                if let Some((low, high)) = interval {
                    note(&format!("{name}_low"), low);
                    note(&format!("{name}_high"), high);
                }
            }
        }
        let pairs = ["pairs_scoring", "pairs_sizing", "pairs_reporting"];
        pairs
            .into_iter()
            .zip(self.parts)
            .for_each(|(name, n)| note(name, n as f64));
        note("edges_chosen", self.chosen as f64);
        if let Some(stability) = &self.stability {
            note("draws", stability.resampling.draws as f64);
            note("overlap_bootstrap", stability.bootstrap);
            note("overlap_split_half", stability.split_half);
        }
        numbers
    }
}
