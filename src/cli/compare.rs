//! `candlewick compare`: results beside each other.

use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use candlewick::Error;
use candlewick::circuit::{Graph, ScoredGraph};
use candlewick::model::ModelSpec;
use candlewick::scores::{ComparedBy, Scores, check_out, compare, write_out};
use candlewick::text::visible;
use clap::Args;

use super::Context;
use super::args::PrintArgs;
use super::circuit;
use super::destination::check_not_read;
use super::session::{COMMON, Mode};
use super::show::print;

/// Compare results: two models, revisions, tasks or methods, joined on what was changed or read; or circuits.
///
/// The first file is compared with each other one: how many rows both have, correlation and rank correlation, how many of the
/// strongest rows are shared, and the difference of each row with its interval. Scores are compared where both measure one metric in
/// one direction, else `normalised`. Rows for each pair (`--per-example`) give paired differences, whose intervals are narrower.
/// A table of edges is also compared with scores in the field's JSON. Circuits are compared by the edges and nodes that they share, as
/// by `candlewick circuit compare`, which also says how well scores find a circuit.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  candlewick compare scores.parquet scores.parquet
  candlewick compare scores.parquet scores.parquet --by normalised --out differences.parquet
  candlewick compare published/ioi published/greater_than")]
pub struct CompareArgs {
    /// The result that the others are compared with, or a circuit.
    pub first: PathBuf,
    /// One or more others.
    #[arg(required = true)]
    pub others: Vec<PathBuf>,
    /// Which number is compared [default: score, or normalised if metrics or directions differ].
    #[arg(long, value_name = "COLUMN")]
    pub by: Option<ComparedBy>,
    /// Also write the differences, a table as any other: `value` is the other's number, `score` the difference from the first's.
    #[arg(long, short, value_name = "FILE")]
    pub out: Option<PathBuf>,
    /// Replace the results of another command, or a file that is not ours.
    #[arg(long, requires = "out")]
    pub force: bool,
    #[command(flatten)]
    pub print: PrintArgs,
}

pub fn run(args: &CompareArgs, ctx: &Context) -> anyhow::Result<()> {
    let names = || std::iter::once(&args.first).chain(&args.others);
    if !names().any(|name| has_ending(name, "parquet")) {
        return compare_circuits(args, ctx);
    }
    if let Some(circuit) = names().find(|name| has_ending(name, "toml")) {
        return Err(Error::invalid(format!(
            "`{}` is a circuit, and scores are beside it: `candlewick circuit compare CIRCUIT --scores TABLE` says how well they find it",
            circuit.display()
        ))
        .into());
    }
    let for_people = !(args.print.csv || args.print.json);
    if args.others.len() > 1 && (args.out.is_some() || !for_people) {
        return Err(Error::invalid(
            "`--out`, `--csv` and `--json` hold one comparison; compare two files at a time",
        )
        .into());
    }
    if let Some(out) = &args.out {
        check_not_read(out, names().map(PathBuf::as_path))?;
        check_out(out, &ctx.command, args.force)?;
    }
    let first = Scores::read_parquet(&args.first)?;
    let mut stdout = BufWriter::new(io::stdout().lock());
    for (i, path) in args.others.iter().enumerate() {
        if has_ending(path, "json") {
            writeln!(stdout, "{}", with_json(&first, path)?)?;
            continue;
        }
        let other = Scores::read_parquet(path)?;
        let mut found = compare(&first, &other, args.by)?;
        for warning in doubts(&first, &other) {
            ctx.warn(&format!("{}: {warning}", path.display()));
        }
        if for_people {
            let blank = if i > 0 { "\n" } else { "" };
            writeln!(
                stdout,
                "{blank}{}",
                heading(&args.first, &first, path, &other)
            )?;
            for line in found.lines() {
                writeln!(stdout, "{}", visible(&line))?;
            }
            writeln!(stdout)?;
        }
        print(&found.table, &args.print, ctx, &mut stdout)?;
        if let Some(out) = &args.out {
            let (first, other) = (args.first.display(), path.display());
            let lines = found.lines();
            let notes = &mut found.table.provenance.notes;
            notes.push(format!("`{other}` less `{first}`"));
            notes.extend(lines);
            let folder = std::env::current_dir().unwrap_or_default();
            found.table.made_by(&ctx.command, &folder.to_string_lossy());
            write_out(&found.table, out, args.force)?;
            if for_people {
                writeln!(
                    stdout,
                    "\n{} rows: {}",
                    found.table.table.height(),
                    out.display()
                )?;
            }
        }
    }
    stdout.flush().context("stdout")
}

fn has_ending(path: &Path, ending: &str) -> bool {
    path.extension()
        .is_some_and(|own| own.eq_ignore_ascii_case(ending))
}

/// No name is of a table: circuits, from files or of this program.
fn compare_circuits(args: &CompareArgs, ctx: &Context) -> anyhow::Result<()> {
    let acts = ["first", "others", "csv", "quiet", "color", "threads"];
    Mode {
        idle: COMMON.to_vec(),
        ..Mode::new("circuits", &acts)
    }
    .check(&ctx.typed)?;
    let names = std::iter::once(&args.first).chain(&args.others);
    let circuits = circuit::compare::CompareArgs {
        circuits: names
            .map(|name| name.to_string_lossy().into_owned())
            .collect(),
        scores: Vec::new(),
        roc: None,
        csv: args.print.csv,
    };
    circuit::compare::run(&circuits)
}

/// How far a table of edges agrees with the field's JSON of the same model.
fn with_json(table: &Scores, path: &Path) -> anyhow::Result<String> {
    let spec: ModelSpec = serde_json::from_value(table.provenance.spec.clone()).map_err(|_| {
        Error::invalid("the table does not say what its model is; measure it again")
    })?;
    let graph = Graph::new(&spec);
    let ours = ScoredGraph::from_scores(table, graph)?;
    let theirs = ScoredGraph::read(path, graph)?;
    Ok(format!(
        "{}: {}",
        visible(&path.display().to_string()),
        ours.agreement(&theirs)
    ))
}

/// Both files, and in what they differ.
fn heading(first_path: &Path, first: &Scores, path: &Path, other: &Scores) -> String {
    let (a, b) = (&first.provenance, &other.provenance);
    let (here, there) = (a.direction.to_string(), b.direction.to_string());
    let facts = [
        ("model", &a.model.id, &b.model.id),
        ("task", &a.task, &b.task),
        ("method", &a.method, &b.method),
        ("metric", &a.metric, &b.metric),
        ("direction", &here, &there),
    ];
    let differing: Vec<String> = (facts.iter())
        .filter(|(_, a, b)| a != b)
        .map(|(name, a, b)| format!("{name} {} and {}", visible(a), visible(b)))
        .collect();
    let what = if differing.is_empty() {
        "of one kind".to_string()
    } else {
        differing.join("; ")
    };
    format!(
        "{} against {}: {what}",
        path.display(),
        first_path.display()
    )
}

/// What should be known before the differences are believed.
fn doubts(first: &Scores, other: &Scores) -> Vec<String> {
    let (a, b) = (&first.provenance, &other.provenance);
    let has_positions = |scores: &Scores| scores.integers("pos").is_some();
    let mut doubts = Vec::new();
    if a.config.get("sae").map(|sae| sae.get("weights"))
        != b.config.get("sae").map(|sae| sae.get("weights"))
    {
        doubts.push("the two are of different dictionaries, in which a latent's number does not mean the same".into());
    }
    if a.prompts
        .iter()
        .map(|one| &one.clean)
        .ne(b.prompts.iter().map(|one| &one.clean))
    {
        doubts.push(if has_positions(first) && has_positions(other) {
            "the two are of different prompts, so that a position need not mean the same in both"
                .into()
        } else {
            "the two are of different prompts".to_string()
        });
    }
    doubts
}
