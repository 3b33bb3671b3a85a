//! `candlewick circuit`: which edges do the task together, how sure that is, and a picture of them.

mod acdc;
pub mod compare;
mod convert;
mod cross;
mod eval;
mod files;
mod find;
mod prune;
mod show;

use std::path::{Path, PathBuf};

use candlewick::Error;
use candlewick::circuit::{Circuit, CircuitFormat, Graph, Helps, ScoredGraph};
use candlewick::model::ModelSpec;
use candlewick::scores::Scores;
use candlewick::text::shell_quoted;
use clap::{Args, Subcommand};

use super::Context;
use super::session::{Ask, CommonArgs};

/// Find the edges that do a task together, check them on other pairs, and draw them.
///
/// A circuit is a set of edges (`a0.h1->m3`: what one component writes, as another reads it). It is faithful if the model still does
/// the task when every other edge carries what it does in the corrupted run. A circuit is a file (`.toml`, EAP-IG's and MIB's `.json`,
/// `.dot`, `.graphml`, `.csv`, `.txt`), or one that is part of this program, such as `published/ioi`.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  candlewick circuit find --n-pairs 32 --out circuit.toml
  candlewick circuit find --method exact-edges --n-pairs 8 --n 20 --out exact.json
  candlewick circuit eval circuit.toml --n-pairs 8 --out eval.parquet
  candlewick circuit show circuit.toml")]
pub struct CircuitArgs {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Find(find::FindArgs),
    Acdc(acdc::AcdcArgs),
    Prune(prune::PruneArgs),
    Eval(eval::EvalArgs),
    Show(show::ShowArgs),
    Compare(compare::CompareArgs),
    Cross(cross::CrossArgs),
    Convert(convert::ConvertArgs),
}

impl CircuitArgs {
    /// What is asked for, if it is a measurement that plans and shards can hold.
    pub fn asked(&self) -> Option<(&dyn Ask, &CommonArgs)> {
        match &self.command {
            Command::Eval(args) => Some((args, &args.common)),
            _ => None,
        }
    }
}

pub fn run(args: &CircuitArgs, ctx: &Context) -> anyhow::Result<()> {
    match &args.command {
        Command::Find(args) => find::run(args, ctx),
        Command::Acdc(args) => acdc::run(args, ctx),
        Command::Prune(args) => prune::run(args, ctx),
        Command::Eval(args) => eval::run(args, ctx),
        Command::Show(args) => show::run(args),
        Command::Compare(args) => compare::run(args),
        Command::Cross(args) => cross::run(args, ctx),
        Command::Convert(args) => convert::run(args, ctx),
    }
}

/// Scores of edges from a file, and which of them are those of edges that help: our parquet, or the JSON of EAP-IG and MIB. The
/// graph is that of a model, or of the file itself.
fn read_scores(path: &Path, graph: Option<Graph>) -> anyhow::Result<(ScoredGraph, Helps)> {
    let ending = path.extension().map(|ending| ending.to_ascii_lowercase());
    match ending.as_ref().and_then(|ending| ending.to_str()) {
        Some("json") => {
            let scored = match graph {
                Some(graph) => ScoredGraph::read(path, graph)?,
                None => ScoredGraph::read_alone(path)?,
            };
            // Other tools take the metric as a loss, which rises where an edge that helps is corrupted.
            let helps = scored.helps().unwrap_or(Helps::Positive);
            Ok((scored, helps))
        }
        Some("parquet") => {
            let scores = Scores::read_parquet(path)?;
            let about = &scores.provenance;
            let graph = match graph {
                Some(graph) => graph,
                None => {
                    let spec: ModelSpec = serde_json::from_value(about.spec.clone()).map_err(|_| {
                        Error::invalid(format!(
                            "`{}` does not say of which model it is; give the model with `--model`",
                            path.display()
                        ))
                    })?;
                    Graph::new(&spec)
                }
            };
            let scored = ScoredGraph::from_scores(&scores, graph)?;
            let helps = scored.helps().unwrap_or(Helps::Negative);
            Ok((scored, helps))
        }
        _ => Err(Error::invalid(format!(
            "`{}` is no file of scores: take a `.parquet` of candlewick, or a `.json` of EAP-IG or MIB",
            path.display()
        ))
        .into()),
    }
}

/// Where a circuit that is found goes.
#[derive(Debug, Args)]
pub struct CircuitOut {
    /// The circuit: `.toml`, or `.json` for EAP-IG and MIB [default: circuit.toml, or the first of circuit-2.toml, ... that is free].
    #[arg(long, short, value_name = "FILE")]
    pub out: Option<PathBuf>,
    /// Replace a circuit of another command, or a file that is not ours.
    #[arg(long)]
    pub force: bool,
}

impl CircuitOut {
    /// The name that was given, or the first of the default names that is free.
    fn destination(&self, ctx: &Context) -> anyhow::Result<PathBuf> {
        let (out, force) = (&self.out, self.force);
        if let Some(out) = out {
            check_out(out, force, ctx)?;
            return Ok(out.clone());
        }
        let mut taken = None;
        for number in 1..=1000 {
            let name = match number {
                1 => "circuit.toml".to_string(),
                number => format!("circuit-{number}.toml"),
            };
            let path = PathBuf::from(name);
            match check_out(&path, force, ctx) {
                Ok(()) => {
                    if taken.is_some() {
                        ctx.warn(&format!(
                            "`circuit.toml` is kept as it is; the circuit goes to `{}` (`--out` names another place)",
                            path.display()
                        ));
                    }
                    return Ok(path);
                }
                Err(error) if !path.exists() => return Err(error),
                Err(error) => {
                    taken.get_or_insert(error);
                }
            }
        }
        Err(taken.expect("the last of many names was taken"))
    }
}

/// Refuses to lose a circuit of another command, and a file that is none.
fn check_out(path: &Path, force: bool, ctx: &Context) -> anyhow::Result<()> {
    let format = CircuitFormat::of(path)?;
    candlewick::scores::check_writable(path)?;
    if force || !path.exists() {
        return Ok(());
    }
    let command = shell_quoted(&ctx.command);
    let made = match (format, Circuit::read(path)) {
        (_, Err(_)) => {
            return Err(Error::NotOurs {
                path: path.to_path_buf(),
            }
            .into());
        }
        (_, Ok(circuit)) => circuit.about.command,
    };
    if made.as_ref() == Some(&command) {
        return Ok(());
    }
    let made = made.map_or("a circuit of another command".to_string(), |made| {
        candlewick::text::shortened(&made)
    });
    Err(Error::OtherResults {
        path: path.to_path_buf(),
        made,
    }
    .into())
}

/// How many were asked for, chosen, and are left.
fn counts(requested: Option<usize>, chosen: usize, circuit: &Circuit, of: &str) -> String {
    let requested = requested.map_or("those above the threshold".to_string(), |n| {
        format!("{n} {of} requested")
    });
    format!(
        "{requested}: {chosen} edges chosen, {} left without dead ends",
        circuit.edges.len()
    )
}

/// `1 pair`, `2 pairs`.
fn pairs(n: usize) -> String {
    if n == 1 {
        "1 pair".to_string()
    } else {
        format!("{n} pairs")
    }
}

fn faithfulness_said(found: Option<(f64, Option<(f64, f64)>)>) -> String {
    match found {
        Some((value, Some((low, high)))) => format!("{value:.3} [{low:.3}, {high:.3}]"),
        Some((value, None)) => format!("{value:.3}"),
        None => "not given: the gap between clean and corrupted runs could be none".to_string(),
    }
}
