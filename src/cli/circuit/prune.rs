//! `candlewick circuit prune`: gates on edges or nodes, trained until so many are left.

use std::io::{self, Write};

use candlewick::circuit::{EdgeSet, Graph};
use candlewick::methods::circuits::{
    FoundCircuit, Gates, PruneConfig, PrunedCircuit, prune_circuit,
};
use candlewick::methods::{Running, Subject, Watch};
use candlewick::metric::Metric;
use candlewick::model::{EMBEDDED, open};
use candlewick::plot;
use candlewick::scores::Scores;
use candlewick::text::shell_quoted;
use clap::Args;

use super::{CircuitOut, counts, faithfulness_said, files, pairs};
use crate::cli::Context;
use crate::cli::args::{ModelArgs, TaskArgs};
use crate::cli::attribute::SourceChoice;
use crate::cli::open::{load_options, open_task, read_weights};

/// Find a circuit by pruning: train a gate on every candidate edge, or on every node, until the number asked for is left open.
///
/// Half of the pairs train: the gates that keep the output near that of the clean run stay open (`kl`; with `--metric` of the task, its
/// squared distance from the clean run). The other half reports. Candidates are the edges of a circuit, such as many edges that
/// `circuit find --n` chose by their scores, or all edges of the model. A score in the file is the probability that an edge's gate is
/// open. With `--nodes` a gate stands on all edges of a head or an MLP (subnetwork probing).
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  candlewick circuit prune --n 40 --n-pairs 16 --out pruned.toml
  candlewick circuit prune --nodes --n 8 --n-pairs 8 --steps 40 --out pruned-nodes.toml")]
pub struct PruneArgs {
    /// The circuit whose edges are the candidates [default: every edge of the model].
    #[arg(value_name = "CIRCUIT")]
    pub candidates: Option<String>,
    /// How many edges are left, or nodes with `--nodes`, before dead ends are dropped.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub n: u32,
    /// Gates on nodes with all their edges.
    #[arg(long)]
    pub nodes: bool,
    /// Steps of training, each a forward and a backward pass over a batch of pairs.
    #[arg(long, value_name = "N", default_value_t = 120, value_parser = clap::value_parser!(u32).range(1..))]
    pub steps: u32,
    /// How far a gate moves in a step, in log-odds at most.
    #[arg(long, value_name = "X", default_value_t = 0.5)]
    pub learning_rate: f64,
    /// What an edge carries whose gate is closed.
    #[arg(long, default_value = "pair")]
    pub source: SourceChoice,
    #[command(flatten)]
    pub model: ModelArgs,
    #[command(flatten)]
    pub task: TaskArgs,
    #[command(flatten)]
    pub out: CircuitOut,
}

pub fn run(args: &PruneArgs, ctx: &Context) -> anyhow::Result<()> {
    let out = args.out.destination(ctx)?;
    let mut options = load_options(&args.model)?;
    options.show_download_progress &= !ctx.quiet;
    let id = &args.model.model;
    let opened = open(id, &options)?;
    let (tokenizer, spec) = (opened.tokenizer().clone(), opened.spec().clone());
    let graph = Graph::new(&spec);
    let candidates = match &args.candidates {
        None => EdgeSet::full(graph),
        Some(name) => {
            let circuit = files::open(name, Some(&graph))?;
            circuit.check_fits(&graph)?;
            if !circuit.parts()?.is_empty() {
                ctx.warn("nodes that are in the circuit in part are candidates whole");
            }
            circuit.edges
        }
    };
    let task = open_task(&args.task, &tokenizer, spec.n_ctx, id == EMBEDDED)?;
    ctx.warn_of(&task);
    let config = PruneConfig {
        gates: if args.nodes {
            Gates::Nodes
        } else {
            Gates::Edges
        },
        n: args.n as usize,
        metric: match &args.task.metric {
            Some(_) => task.metric,
            None => Metric::Kl,
        },
        reference: args.source.into(),
        steps: args.steps as usize,
        learning_rate: args.learning_rate,
        seed: task.seed,
    };
    config.check(&candidates, &task)?;
    let model = read_weights(opened, ctx)?;
    let on = Subject {
        model: &model,
        task: &task,
    };
    let watch_progress = ctx.progress();
    let watch = Watch::progress(&watch_progress);
    let mut found = prune_circuit(on, &candidates, &config, &Running::default(), &watch)?;
    found.circuit.about.command = Some(shell_quoted(&ctx.command));
    found.circuit.write(&out)?;
    for warning in found.reported.warnings() {
        ctx.warn(warning);
    }
    if !ctx.quiet {
        print(&found, &config, ctx)?;
        println!("circuit: {}", out.display());
    }
    Ok(())
}

fn print(found: &PrunedCircuit, config: &PruneConfig, ctx: &Context) -> anyhow::Result<()> {
    let mut out = io::stdout().lock();
    let of = match config.gates {
        Gates::Edges => "edges",
        Gates::Nodes => "nodes",
    };
    writeln!(out, "{}", plot::circuit(&found.circuit, None))?;
    writeln!(
        out,
        "{}",
        counts(Some(config.n), found.chosen, &found.circuit, of)
    )?;
    let said = |table: &Scores| faithfulness_said(FoundCircuit::faithfulness(table));
    let [training, reporting] = found.parts;
    writeln!(
        out,
        "faithfulness on {} that trained nothing ({training} did): {}",
        pairs(reporting),
        said(&found.reported)
    )?;
    if let Some(edges) = &found.reported_edges {
        writeln!(
            out,
            "  its edges given their clean values in the corrupted run: {}",
            said(edges)
        )?;
    }
    writeln!(out, "in {:.1} s", ctx.began.elapsed().as_secs_f64())?;
    Ok(())
}
