//! `candlewick circuit acdc`: edges taken out one after another, and put back where that is felt.

use std::io::{self, Write};

use candlewick::Error;
use candlewick::circuit::{About, Circuit, Pruning};
use candlewick::methods::circuits::{AcdcConfig, acdc};
use candlewick::methods::{Running, Subject};
use candlewick::metric::Metric;
use candlewick::model::{EMBEDDED, open};
use candlewick::plot;
use candlewick::text::shell_quoted;
use clap::Args;

use super::CircuitOut;
use crate::cli::Context;
use crate::cli::args::{ModelArgs, TaskArgs, memory};
use crate::cli::attribute::SourceChoice;
use crate::cli::open::{load_options, open_task, read_weights};

/// Find a circuit by ACDC: from the logits back, take each edge out, and leave it out if the output moves by less than a threshold.
///
/// The output is held against that of the clean run (`kl`), or the metric of `--metric` is kept high. With several thresholds the
/// search is made for each; the circuit is that of the smallest, and an edge's score the largest threshold that it survives. The runs
/// of all pairs are held in memory at once, and as much of what was tried as `--memory` has room for.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  candlewick circuit acdc --n-pairs 8 --threshold 0.1 --out acdc.toml
  candlewick circuit acdc --n-pairs 4 --threshold 0.03,0.3 --metric logit_diff --out acdc-task.toml")]
pub struct AcdcArgs {
    /// How much more the output may move, in the unit of the metric: one threshold or several.
    #[arg(long, value_name = "X", value_delimiter = ',', required = true)]
    pub threshold: Vec<f64>,
    /// What an edge that is taken out carries.
    #[arg(long, default_value = "pair")]
    pub source: SourceChoice,
    /// Memory for the runs of all pairs and what was tried (`512MB`, `2GiB`) [default: a quarter of what is free].
    #[arg(long, value_name = "SIZE", value_parser = memory)]
    pub memory: Option<usize>,
    #[command(flatten)]
    pub model: ModelArgs,
    #[command(flatten)]
    pub task: TaskArgs,
    #[command(flatten)]
    pub out: CircuitOut,
}

pub fn run(args: &AcdcArgs, ctx: &Context) -> anyhow::Result<()> {
    if args.threshold.iter().any(|threshold| threshold.is_nan()) {
        return Err(Error::invalid("a threshold must be a number").into());
    }
    let out = args.out.destination(ctx)?;
    let mut options = load_options(&args.model)?;
    options.show_download_progress &= !ctx.quiet;
    let id = &args.model.model;
    let opened = open(id, &options)?;
    let (tokenizer, spec) = (opened.tokenizer().clone(), opened.spec().clone());
    let task = open_task(&args.task, &tokenizer, spec.n_ctx, id == EMBEDDED)?;
    ctx.warn_of(&task);
    let metric = match &args.task.metric {
        Some(_) => task.metric,
        None => Metric::Kl,
    };
    let reference = args.source.into();
    let running = Running {
        memory: args.memory,
        ..Running::default()
    };
    let model = read_weights(opened, ctx)?;
    let on = Subject {
        model: &model,
        task: &task,
    };
    let mut thresholds = args.threshold.clone();
    thresholds.sort_by(f64::total_cmp);
    let mut circuit: Option<Circuit> = None;
    let mut stdout = io::stdout().lock();
    for &threshold in &thresholds {
        let config = AcdcConfig {
            threshold,
            metric,
            reference,
        };
        let found = acdc(on, &config, &running, &ctx.progress())?;
        if !ctx.quiet {
            writeln!(
                stdout,
                "threshold {threshold}: {} edges left, {metric} {:.4} on {} pairs; {} edges tried in {} runs",
                found.edges.len(),
                if metric.is_better_higher() {
                    -found.distance
                } else {
                    found.distance
                },
                task.pairs().len(),
                found.tried,
                found.evaluated
            )?;
            if found.ties > 0 {
                writeln!(
                    stdout,
                    "  {} of them rose by the threshold to within rounding, and were decided by runs of their own",
                    found.ties
                )?;
            }
        }
        let circuit =
            circuit.get_or_insert_with(|| Circuit::new(found.edges.pruned(Pruning::Fixpoint)));
        for edge in found.edges.edges() {
            if circuit.edges.contains(&edge)? && threshold.is_finite() {
                circuit.scores.insert(edge, threshold);
            }
        }
    }
    let mut circuit = circuit.expect("one threshold or more");
    if circuit.edges.is_empty() {
        return Err(Error::invalid(
            "no path from `input` to `logits` is left; take a smaller `--threshold`",
        )
        .into());
    }
    circuit.about = About {
        model: Some(model.origin.id.clone()),
        task: Some(task.name.clone()),
        metric: Some(metric.to_string()),
        method: Some("acdc".into()),
        seed: Some(task.seed),
        command: Some(shell_quoted(&ctx.command)),
        ..About::default()
    };
    circuit.write(&out)?;
    if !ctx.quiet {
        writeln!(stdout, "\n{}", plot::circuit(&circuit, None))?;
        writeln!(stdout, "{} edges without dead ends", circuit.edges.len())?;
        writeln!(
            stdout,
            "circuit: {} (in {:.1} s)",
            out.display(),
            ctx.began.elapsed().as_secs_f64()
        )?;
    }
    Ok(())
}
