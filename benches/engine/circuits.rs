//! Circuits evaluated and found, beside whole forward passes of our own over the same pairs.

use anyhow::{Context, Result};
use candlewick::circuit::{EdgeSet, Graph, Rule, ScoredGraph, Selection, select};
use candlewick::hooks::Edge;
use candlewick::methods::attribution::EdgeAttributionConfig;
use candlewick::methods::circuits::{AcdcConfig, FRACTIONS, acdc};
use candlewick::methods::{CircuitEval, NamedCircuit, Running, Subject, Watch, measurements};
use candlewick::metric::Metric;
use candlewick::model::{Model, Tokenizer};
use candlewick::prelude::Lab;
use candlewick::run::{self, Quiet};
use candlewick::scores::Direction;
use candlewick::task::{ExpandOptions, Pair, Task, TaskFile, expand};

use crate::edges::gpt2_small;
use crate::machine::{Time, peak_memory, time};
use crate::{cpu, wall};

const PAIRS: usize = 8;
const TIMES: usize = 5;
/// How many edges of the random model it leaves is printed; `CANDLEWICK_BENCH_THRESHOLD` sets another.
const THRESHOLD: f64 = 0.005;

/// Evaluations of circuits of several sizes, and of a curve.
pub fn evaluations(model: &Model, tokenizer: &Tokenizer) -> Result<()> {
    let options = ExpandOptions {
        n_pairs: Some(PAIRS),
        templates: vec![0],
        ..ExpandOptions::default()
    };
    let task = expand(&TaskFile::open("ioi")?, tokenizer, &options)?;
    let on = Subject { model, task: &task };
    let (running, watch) = (Running::default(), Watch::default());
    let graph = Graph::new(&model.spec);
    let measured = measurements(on, &EdgeAttributionConfig::eap_ig(5), &running, &watch)?;
    let mut scored = ScoredGraph::new(graph);
    for (edge, score) in graph.edges().zip(measured.means(Direction::Noise, false)) {
        scored.set_score(&edge, score)?;
    }
    let greedy = |share: f64| -> Result<EdgeSet> {
        let n = (share * graph.n_edges() as f64) as usize;
        Ok(select(&scored, &Selection::of(Rule::Greedy(n)))?.edges)
    };
    let scattered = |of: usize, kept: usize| {
        let edges: Vec<Edge> = (graph.edges().enumerate())
            .filter(|(i, _)| (i * 7919) % of < kept)
            .map(|(_, edge)| edge)
            .collect();
        EdgeSet::of(graph, &edges)
    };
    println!(
        "circuits: {} pairs of {} tokens, {} edges",
        task.pairs().len(),
        task.pairs()[0].clean.len(),
        graph.n_edges()
    );
    let evaluate = |circuits: Vec<EdgeSet>| -> Result<Time> {
        let named = circuits.into_iter().enumerate();
        let config = CircuitEval {
            circuits: named
                .map(|(i, edges)| NamedCircuit::new(i.to_string(), edges))
                .collect(),
            ..CircuitEval::of([])
        };
        let (took, done) = time(|| measurements(on, &config, &running, &watch));
        done?;
        Ok(took)
    };
    let prompts: Vec<Vec<u32>> = task.pairs().iter().map(|pair| pair.clean.clone()).collect();
    let forward = || -> Result<Time> {
        let (took, done) = time(|| run::logits(model, &prompts));
        done?;
        Ok(took)
    };
    let mut jobs = vec![(
        "the runs beneath, and no edge".to_string(),
        vec![EdgeSet::empty(graph)],
        "",
    )];
    for (share, target) in [
        (0.01, "(target 0.7)"),
        (0.05, "(target 1.5)"),
        (0.2, "(target 3)"),
        (0.5, "(target 3)"),
    ] {
        jobs.push((
            format!("one more, of {}%", 100.0 * share),
            vec![greedy(share)?],
            target,
        ));
    }
    jobs.push((
        "one more, half of all at random".into(),
        vec![scattered(100, 50)?],
        "(target 3)",
    ));
    jobs.push((
        "one more, nine tenths at random".into(),
        vec![scattered(100, 90)?],
        "(target 3)",
    ));
    jobs.push((
        "one more, of all edges".into(),
        vec![EdgeSet::full(graph)],
        "(target 3)",
    ));
    let curve = FRACTIONS
        .map(&greedy)
        .into_iter()
        .collect::<Result<Vec<_>>>()?;
    jobs.push(("a curve of ten, with the runs".into(), curve, "(target 12)"));
    forward()?;
    let mut beneath = [0.0; 2];
    for (i, (name, circuits, target)) in jobs.iter().enumerate() {
        evaluate(circuits.clone())?;
        let mut ratios: [Vec<f64>; 2] = [Vec::new(), Vec::new()];
        for _ in 0..TIMES {
            let (own, one) = (evaluate(circuits.clone())?, forward()?);
            for (ratios, of) in ratios.iter_mut().zip([wall as fn(&Time) -> f64, cpu]) {
                ratios.push(of(&own) / of(&one));
            }
        }
        let [wall, cpu] = ratios.map(|mut ratios| {
            ratios.sort_by(f64::total_cmp);
            ratios[TIMES / 2]
        });
        if i == 0 {
            beneath = [wall, cpu];
        }
        let less = if i > 0 && circuits.len() == 1 {
            beneath
        } else {
            [0.0; 2]
        };
        println!(
            "  {name:<34} {:>6} edges: {:5.2} forwards in wall time, {:5.2} in CPU time {target}",
            circuits.last().map_or(0, EdgeSet::len),
            wall - less[0],
            cpu - less[1],
        );
    }
    println!();
    Ok(())
}

/// ACDC over a model shaped as GPT-2 small.
pub fn acdc_of_gpt2() -> Result<()> {
    let lab = Lab::open("embedded", "embedded")?.first(1);
    let model = Model::random(gpt2_small(), 1)?;
    let pair = |i: u32| {
        let clean: Vec<u32> = (0..15).map(|j| 1000 + 977 * j + 331 * i).collect();
        let mut corrupted = clean.clone();
        for pos in [2, 10] {
            corrupted[pos] += 131;
        }
        Pair::new(clean, corrupted).answer(10 + i).wrong(20 + i)
    };
    // Its texts are never read, so that any tokenizer will do.
    let task = Task::new(
        "random",
        &lab.tokenizer,
        Metric::Kl,
        (0..PAIRS as u32).map(pair),
    )?;
    let threshold = match std::env::var("CANDLEWICK_BENCH_THRESHOLD") {
        Ok(text) => text.parse().context("a threshold")?,
        Err(_) => THRESHOLD,
    };
    let on = Subject {
        model: &model,
        task: &task,
    };
    let config = AcdcConfig::new(threshold);
    let (took, found) = time(|| acdc(on, &config, &Running::default(), &Quiet));
    let found = found?;
    println!(
        "acdc, random, shaped as GPT-2 small: {PAIRS} pairs of 15 tokens, threshold {threshold}: {} edges left, {} tried in {} runs, \
         distance {:.4}; {:.0} s wall, {:.0} s CPU (target 480 s), peak {:.0} MiB\n",
        found.edges.len(),
        found.tried,
        found.evaluated,
        found.distance,
        took.wall,
        took.cpu,
        peak_memory()
    );
    Ok(())
}
