//! `candlewick circuit cross`: how much of every task every circuit does.

use std::io::Write;

use candlewick::Error;
use candlewick::circuit::{Graph, Pruning};
use candlewick::methods::measure::{Watch, measure};
use candlewick::methods::{CircuitEval, Method, NamedCircuit, Running, Subject};
use candlewick::model::open;
use candlewick::task::{ExpandOptions, Task, TaskFile, expand};
use candlewick::text::{Align, aligned, visible};
use clap::Args;

use super::files;
use crate::cli::Context;
use crate::cli::args::ModelArgs;
use crate::cli::attribute::SourceChoice;
use crate::cli::open::{load_options, read_weights};

/// Evaluate every circuit on every task: does the circuit of one task do another, and less of it than that task's own?
///
/// A row is a circuit, a column a task, a cell the faithfulness: 0 for no edge, 1 for the whole model. `-` stands where the gap between
/// clean and corrupted runs could be none, so that there is nothing to be faithful to. Pairs are drawn anew (`--seed`), so a circuit may
/// be found with one seed and held against its own task with another.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  candlewick circuit cross circuit.toml measured/embedded --tasks embedded --n-pairs 8
  candlewick circuit cross circuit.toml measured/embedded --tasks embedded --n-pairs 4 --csv")]
pub struct CrossArgs {
    /// Circuits of the model: files, or circuits of this program.
    #[arg(required = true, value_name = "CIRCUIT")]
    pub circuits: Vec<String>,
    /// Names of tasks that ship with candlewick, or task files; all templates of each, as `circuit eval --task NAME` takes them.
    #[arg(long, required = true, value_name = "TASK", value_delimiter = ',')]
    pub tasks: Vec<String>,
    /// How many pairs of each task [default: the task's].
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub n_pairs: Option<u32>,
    /// Of the drawn prompts [default: the task's].
    #[arg(long, value_name = "N")]
    pub seed: Option<u64>,
    /// What edges outside of a circuit carry.
    #[arg(long, default_value = "pair")]
    pub source: SourceChoice,
    #[command(flatten)]
    pub model: ModelArgs,
    /// Take nodes whole, where a file says at which positions or in which dimensions they act.
    #[arg(long)]
    pub whole_nodes: bool,
    /// A row for each circuit and task as CSV, with intervals and the number of pairs.
    #[arg(long)]
    pub csv: bool,
}

/// A circuit on a task: the number of pairs, faithfulness, and its interval.
type Cell = (i64, Option<[Option<f64>; 3]>);

pub fn run(args: &CrossArgs, ctx: &Context) -> anyhow::Result<()> {
    let mut options = load_options(&args.model)?;
    options.show_download_progress &= !ctx.quiet;
    let opened = open(&args.model.model, &options)?;
    let (tokenizer, spec) = (opened.tokenizer().clone(), opened.spec().clone());
    let graph = Graph::new(&spec);
    let mut config = CircuitEval {
        reference: args.source.into(),
        ..CircuitEval::of([])
    };
    for name in &args.circuits {
        let mut circuit = files::open(name, Some(&graph))?;
        circuit.check_fits(&graph)?;
        circuit.edges = circuit.edges.pruned(Pruning::Fixpoint);
        if args.whole_nodes {
            circuit.in_whole_nodes();
        }
        let parts = circuit.parts()?;
        let named = NamedCircuit::new(name, circuit.edges);
        config.circuits.push(named.in_parts(&parts));
    }
    let expanded = ExpandOptions {
        n_pairs: args.n_pairs.map(|n| n as usize),
        seed: args.seed,
        max_tokens: Some(spec.n_ctx),
        ..ExpandOptions::default()
    };
    let mut tasks: Vec<Task> = Vec::new();
    for name in &args.tasks {
        if args.tasks.iter().filter(|other| *other == name).count() > 1 {
            return Err(Error::invalid(format!("`--tasks` names `{name}` twice")).into());
        }
        let task = expand(&TaskFile::open(name)?, &tokenizer, &expanded)?;
        ctx.warn_of(&task);
        config.check(&spec, &task)?;
        tasks.push(task);
    }
    let model = read_weights(opened, ctx)?;
    let progress = ctx.progress();
    let mut columns: Vec<Vec<Cell>> = Vec::new();
    for task in &tasks {
        let on = Subject {
            model: &model,
            task,
        };
        let table = measure(
            on,
            &config,
            &Running::default(),
            &Watch::progress(&progress),
        )?;
        let names = table.texts("src").unwrap_or_default();
        let of = ["normalised", "normalised_low", "normalised_high"].map(|name| table.floats(name));
        let n = table.integers("n").unwrap_or_default();
        let cell = |circuit: &NamedCircuit| -> Cell {
            let Some(row) = names
                .iter()
                .position(|name| *name == Some(circuit.name.as_str()))
            else {
                return (0, None);
            };
            let pairs = n.get(row).copied().flatten().unwrap_or_default();
            let found = of[0].is_some();
            (
                pairs,
                found.then(|| of.each_ref().map(|of| of.as_ref().and_then(|of| of[row]))),
            )
        };
        columns.push(config.circuits.iter().map(cell).collect());
    }
    let mut out = std::io::stdout().lock();
    out.write_all(written(args, &columns)?.as_bytes())?;
    Ok(())
}

fn written(args: &CrossArgs, columns: &[Vec<Cell>]) -> anyhow::Result<String> {
    if args.csv {
        let mut out = csv::Writer::from_writer(Vec::new());
        out.write_record(["circuit", "task", "n", "faithfulness", "low", "high"])?;
        for (row, circuit) in args.circuits.iter().enumerate() {
            for (task, column) in args.tasks.iter().zip(columns) {
                let (n, found) = column[row];
                let numbers = found.unwrap_or_default();
                let [value, low, high] =
                    numbers.map(|x| x.map_or(String::new(), |x| x.to_string()));
                out.write_record([circuit, task, &n.to_string(), &value, &low, &high])?;
            }
        }
        return Ok(String::from_utf8(out.into_inner()?)?);
    }
    let mut rows = vec![vec!["circuit".to_string()]];
    let n = |column: &Vec<Cell>| column.iter().map(|(n, _)| *n).max().unwrap_or(0);
    let tasks = args.tasks.iter().zip(columns);
    rows[0].extend(tasks.map(|(task, column)| format!("{} ({} pairs)", visible(task), n(column))));
    for (row, circuit) in args.circuits.iter().enumerate() {
        let cells = columns.iter().map(|column| match column[row].1 {
            Some([Some(value), Some(low), Some(high)]) => {
                format!("{value:.3} [{low:.3}, {high:.3}]")
            }
            Some([Some(value), ..]) => format!("{value:.3}"),
            _ => "-".to_string(),
        });
        rows.push(std::iter::once(visible(circuit)).chain(cells).collect());
    }
    Ok(aligned(&rows, &[Align::Left, Align::Right]))
}
