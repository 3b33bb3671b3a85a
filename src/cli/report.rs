//! `candlewick report`: files of results as one page for a browser.

use std::fs::File;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};

use candlewick::Error;
use candlewick::circuit::Circuit;
use candlewick::plot::{NamedScores, ReportOptions, circuit_table, report_with};
use candlewick::scores::{Conditions, Scores, check_writable, side_path, write_whole};
use clap::Args;

use super::Context;

/// Every report has this near its beginning.
const OURS: &str = "<meta name=\"generator\" content=\"candlewick ";

/// Make one HTML page of files of results, which opens anywhere and asks no network for anything.
///
/// Heatmaps with a selector of pairs, bars that add up where they do, edges as a graph, the tokens of a lens, and every row in a
/// table to sort, filter and save. Several files make one page with a table of contents; a table that belongs beside another of
/// them (`NAME.measures.parquet`) is shown with it.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  candlewick report scores.parquet
  candlewick report scores.parquet --out pages.html --force
  candlewick report scores.parquet scores.parquet --shared-scale
  candlewick report scores.parquet --where 'component = resid_pre and layer > 1' --out late.html")]
pub struct ReportArgs {
    /// Files that `--out` wrote, and circuits (`.toml`, or the `.json` of EAP-IG and MIB).
    #[arg(required = true, value_name = "FILE")]
    pub files: Vec<PathBuf>,
    /// Only rows for which all of these hold, as in `candlewick show`; every file has to have such rows.
    #[arg(long = "where", value_name = "CONDITIONS")]
    pub conditions: Vec<Conditions>,
    /// One scale for the grids of all files that show the same quantity.
    #[arg(long)]
    pub shared_scale: bool,
    /// Where the page goes.
    #[arg(long, short, value_name = "FILE", default_value = "report.html")]
    pub out: PathBuf,
    /// Replaces a file that is no report.
    #[arg(long)]
    pub force: bool,
}

pub fn run(args: &ReportArgs, ctx: &Context) -> anyhow::Result<()> {
    check_page(&args.out, args.force)?;
    let read = |path: &PathBuf| {
        let scores = chosen(read(path)?, &args.conditions);
        let scores = scores.map_err(|error| match args.files.len() {
            1 => error,
            _ => Error::invalid(format!("{}: {error}", path.display())),
        })?;
        Ok((path.display().to_string(), scores))
    };
    let mut results: Vec<(String, Scores)> =
        args.files.iter().map(read).collect::<Result<_, Error>>()?;
    let beside: Vec<String> = (results.iter())
        .flat_map(|(name, scores)| {
            let kinds = scores.provenance.sides.iter();
            kinds.map(|kind| side_path(Path::new(name), kind).display().to_string())
        })
        .collect();
    results.retain(|(name, _)| !beside.contains(name));
    for (name, scores) in &results {
        for warning in scores.warnings() {
            ctx.warn(&format!("{name}: {warning}"));
        }
    }
    let named: Vec<NamedScores> = results
        .iter()
        .map(|(name, scores)| NamedScores { name, scores })
        .collect();
    let options = ReportOptions {
        shared_scale: args.shared_scale,
    };
    let page = report_with(&named, &options)?;
    write_whole(&args.out, |file| {
        file.write_all(page.as_bytes())
            .map_err(|source| Error::Write {
                path: args.out.clone(),
                source,
            })
    })?;
    println!("{}: open it in a browser", args.out.display());
    Ok(())
}

/// A file of results, or a circuit as a table of its edges.
fn read(path: &Path) -> Result<Scores, Error> {
    let ending = path.extension().and_then(|ending| ending.to_str());
    match ending {
        Some("toml" | "json") => circuit_table(&Circuit::read(path)?),
        _ => Scores::read_parquet(path),
    }
}

/// The rows that are asked for, which the page says.
fn chosen(mut scores: Scores, conditions: &[Conditions]) -> Result<Scores, Error> {
    let rows =
        |scores: &Scores| -> Result<usize, Error> { Ok(scores.with_sides()?.table.height()) };
    for conditions in conditions {
        let n_all = rows(&scores)?;
        scores = scores.matching(conditions)?;
        let note = format!(
            "only rows with `{conditions}`: {} of {n_all}",
            rows(&scores)?
        );
        scores.provenance.notes.push(note);
    }
    Ok(scores)
}

/// Checks, before anything is read, that a page may go to `path`: what is no report is replaced only by force.
fn check_page(path: &Path, force: bool) -> Result<(), Error> {
    let ending = path.extension().map(|ending| ending.to_ascii_lowercase());
    if !ending.is_some_and(|ending| ending == "html" || ending == "htm") {
        return Err(Error::invalid(format!(
            "`{}` is no name of a page; end it in `.html`",
            path.display()
        )));
    }
    check_writable(path)?;
    let mut start = String::new();
    if let Ok(file) = File::open(path) {
        // What is no text is none of ours.
        let _ = file.take(2048).read_to_string(&mut start);
    }
    let is_empty = std::fs::metadata(path).map_or(0, |about| about.len()) == 0;
    if is_empty || force || start.contains(OURS) {
        return Ok(());
    }
    Err(Error::NotOurs {
        path: path.to_path_buf(),
    })
}
