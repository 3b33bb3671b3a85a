//! One row for each of many runs: how well the model does the task, what was strongest, what it cost.

use std::collections::HashMap;
use std::path::Path;

use polars::prelude::{Column, DataFrame, NamedFrom, Series};

use super::Scores;
use super::file::write_whole;
use super::parquet::{Packing, read_table, write_table};
use crate::error::Result;

/// Key of the note in the footer of a summary.
const SUMMARY_KEY: &str = "candlewick_summary";

/// One run, for the table of all.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct RunSummary {
    /// The names of its folders: model, task, method.
    pub keys: [String; 3],
    /// Its file, from the folder of all runs.
    pub file: String,
    /// The command that makes it again.
    pub command: String,
    /// Why there is no result.
    pub error: Option<String>,
    /// Peak of resident memory while it ran, in bytes, where the system says it.
    pub memory: Option<u64>,
    found: Option<Found>,
}

/// What its result says.
#[derive(Debug, Clone, Default, PartialEq)]
struct Found {
    texts: [String; 6],
    seed: u64,
    pairs: usize,
    dropped: usize,
    rows: usize,
    numbers: [Option<f64>; 7],
    beats: Option<f64>,
    top1: Option<f64>,
    seconds: f64,
}

impl RunSummary {
    /// A run that nothing is known of yet.
    pub fn new(keys: [String; 3], file: String, command: String) -> Self {
        RunSummary {
            keys,
            file,
            command,
            ..RunSummary::default()
        }
    }

    /// With what its table says.
    pub fn with(mut self, scores: &Scores) -> Self {
        let about = &scores.provenance;
        let report = about.report.clone().unwrap_or_default();
        let (best, score, normalised) = strongest(scores);
        let share = |share: super::Share| share.count as f64 / share.of.max(1) as f64;
        let interval = report.gap.and_then(|gap| gap.interval);
        self.found = Some(Found {
            texts: [
                about.model.full_id(),
                about.task.clone(),
                about.method.clone(),
                about.metric.clone(),
                about.unit.clone(),
                best,
            ],
            seed: about.seed,
            pairs: report.used,
            dropped: about.dropped,
            rows: scores.table.height(),
            numbers: [
                Some(report.clean.mean).filter(|mean| !mean.is_nan()),
                report.corrupted.map(|it| it.mean),
                report.gap.map(|it| it.mean),
                interval.map(|(low, _)| low),
                interval.map(|(_, high)| high),
                score,
                normalised,
            ],
            beats: report.beats.map(share),
            top1: report.top1.map(share),
            seconds: about.seconds,
        });
        self
    }
}

/// The site of the row whose score is largest in size, its score, and its share of the gap.
fn strongest(scores: &Scores) -> (String, Option<f64>, Option<f64>) {
    let all = scores.floats("score").unwrap_or_default();
    let sizes = (all.iter().enumerate()).filter_map(|(row, score)| Some((row, score.as_ref()?)));
    let Some((row, &score)) = sizes.max_by(|one, other| one.1.abs().total_cmp(&other.1.abs()))
    else {
        return (String::new(), None, None);
    };
    let text = |column: &str| {
        scores
            .texts(column)
            .and_then(|all| all[row].map(String::from))
    };
    let number = |column: &str| scores.integers(column).and_then(|all| all[row]);
    let mut site = vec![text("component").unwrap_or_default()];
    for column in ["layer", "head", "pos", "neuron"] {
        site.extend(number(column).map(|number| format!("{column} {number}")));
    }
    for column in ["role", "src", "dst", "target"] {
        site.extend(text(column).map(|text| format!("{column} {text}")));
    }
    let normalised = scores.floats("normalised").and_then(|all| all[row]);
    (site.join(", "), Some(score), normalised)
}

/// The table of all runs, one row each.
/// # Units
/// `seconds`; `memory` in bytes; `clean` to `score` in `unit`; `normalised`, `beats` and `top1` are shares.
/// # Errors
/// Those of polars.
pub fn summary_table(runs: &[RunSummary]) -> Result<DataFrame> {
    let texts = |name: &str, of: &dyn Fn(&RunSummary) -> Option<String>| {
        let values: Vec<Option<String>> = runs.iter().map(of).collect();
        Column::from(Series::new(name.into(), values))
    };
    let floats = |name: &str, of: &dyn Fn(&RunSummary) -> Option<f64>| {
        let values: Vec<Option<f64>> = runs.iter().map(of).collect();
        Column::from(Series::new(name.into(), values))
    };
    let integers = |name: &str, of: &dyn Fn(&RunSummary) -> Option<u64>| {
        let values = runs
            .iter()
            .map(|run| of(run).and_then(|value| i64::try_from(value).ok()));
        Column::from(Series::new(
            name.into(),
            values.collect::<Vec<Option<i64>>>(),
        ))
    };
    let mut columns = Vec::new();
    for (i, name) in ["run_model", "run_task", "run_method"]
        .into_iter()
        .enumerate()
    {
        columns.push(texts(name, &|run| Some(run.keys[i].clone())));
    }
    for (i, name) in ["model", "task", "method", "metric", "unit"]
        .into_iter()
        .enumerate()
    {
        columns.push(texts(name, &|run| {
            Some(run.found.as_ref()?.texts[i].clone())
        }));
    }
    columns.push(integers("seed", &|run| Some(run.found.as_ref()?.seed)));
    columns.push(integers("pairs", &|run| {
        Some(run.found.as_ref()?.pairs as u64)
    }));
    columns.push(integers("dropped", &|run| {
        Some(run.found.as_ref()?.dropped as u64)
    }));
    for (i, name) in ["clean", "corrupted", "gap", "gap_low", "gap_high"]
        .into_iter()
        .enumerate()
    {
        columns.push(floats(name, &|run| run.found.as_ref()?.numbers[i]));
    }
    columns.push(floats("beats", &|run| run.found.as_ref()?.beats));
    columns.push(floats("top1", &|run| run.found.as_ref()?.top1));
    columns.push(texts("best", &|run| {
        Some(run.found.as_ref()?.texts[5].clone())
    }));
    columns.push(floats("score", &|run| run.found.as_ref()?.numbers[5]));
    columns.push(floats("normalised", &|run| run.found.as_ref()?.numbers[6]));
    columns.push(integers("rows", &|run| {
        Some(run.found.as_ref()?.rows as u64)
    }));
    columns.push(floats("seconds", &|run| Some(run.found.as_ref()?.seconds)));
    columns.push(integers("memory", &|run| run.memory));
    columns.push(texts("file", &|run| Some(run.file.clone())));
    columns.push(texts("command", &|run| Some(run.command.clone())));
    columns.push(texts("error", &|run| run.error.clone()));
    Ok(DataFrame::new(runs.len(), columns)?)
}

/// The memory that an earlier summary says of the runs of each file; nothing where there is none.
pub fn memory_of_runs(path: &Path) -> HashMap<String, u64> {
    let Ok((table, _)) = read_table(path, SUMMARY_KEY, "summary") else {
        return HashMap::new();
    };
    let (Ok(files), Ok(memory)) = (table.column("file"), table.column("memory")) else {
        return HashMap::new();
    };
    let (Ok(files), Ok(memory)) = (files.str(), memory.i64()) else {
        return HashMap::new();
    };
    let known = files.iter().zip(memory.iter());
    let known =
        known.filter_map(|(file, bytes)| Some((file?.to_string(), u64::try_from(bytes?).ok()?)));
    known.collect()
}

/// Writes the table of all runs, whole or not at all.
/// # Errors
/// Those of writing.
pub fn write_summary(path: &Path, runs: &[RunSummary]) -> Result<()> {
    let table = summary_table(runs)?;
    write_whole(path, |file| {
        write_table(&table, SUMMARY_KEY, "1".into(), path, file, Packing::Small)
    })
}
