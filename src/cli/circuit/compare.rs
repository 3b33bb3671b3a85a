//! `candlewick circuit compare`: circuits against each other, and scores against circuits.

use std::io::Write;
use std::path::PathBuf;

use candlewick::Error;
use candlewick::circuit::{Circuit, Comparison, Roc};
use candlewick::scores::write_whole;
use candlewick::text::{Align, aligned, visible};
use clap::Args;

use super::files::{open_all, open_scores};

/// Say how alike circuits are, and how well scores find one.
///
/// For any two: what is in both over what is in either (iou), the share of the second that the first has (recall) and of the
/// first that is in the second (precision), by edges and by nodes (heads and MLPs). A larger circuit recalls more of anything:
/// where scores of the larger one are known, `equal` is the overlap of edges when it is cut to the size of the smaller by the
/// size of its scores. With `--scores`, the chance that an edge (a node) of each circuit scores above one that is not in it, by
/// the size of scores.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  candlewick circuit compare published/ioi published/greater_than
  candlewick circuit compare published/ioi published/greater_than --csv")]
pub struct CompareArgs {
    /// Circuits of one model: files, circuits of this program, folders with one for each share of the edges.
    #[arg(required = true, value_name = "CIRCUIT")]
    pub circuits: Vec<String>,
    /// Scores to hold against each circuit: a table of an edge method, or the field's JSON.
    #[arg(long, value_name = "FILE")]
    pub scores: Vec<PathBuf>,
    /// With `--scores`: write the whole curve, a row for each threshold.
    #[arg(long, value_name = "FILE.csv", requires = "scores")]
    pub roc: Option<PathBuf>,
    /// Rows as CSV.
    #[arg(long)]
    pub csv: bool,
}

pub fn run(args: &CompareArgs) -> anyhow::Result<()> {
    let mut circuits: Vec<(String, Circuit)> = Vec::new();
    for name in &args.circuits {
        let graph = circuits.first().map(|(_, circuit)| *circuit.graph());
        circuits.extend(open_all(name, graph.as_ref())?);
    }
    if circuits.len() < 2 && args.scores.is_empty() {
        return Err(Error::invalid(
            "there is one circuit and nothing to compare it with; name another, or scores with `--scores FILE`",
        )
        .into());
    }
    let mut out = std::io::stdout().lock();
    if circuits.len() > 1 {
        out.write_all(table(&overlaps(&circuits)?, 2, args.csv)?.as_bytes())?;
    }
    if args.scores.is_empty() {
        return Ok(());
    }
    let curves = curves(args, &circuits)?;
    if circuits.len() > 1 {
        writeln!(out)?;
    }
    out.write_all(table(&areas(&curves), 2, args.csv)?.as_bytes())?;
    if let Some(path) = &args.roc {
        let text = table(&points(&curves), 3, true)?;
        write_whole(path, |file| {
            file.write_all(text.as_bytes())
                .map_err(|source| Error::Write {
                    path: path.clone(),
                    source,
                })
        })?;
        writeln!(
            out,
            "\nevery threshold: {}",
            visible(&path.display().to_string())
        )?;
    }
    Ok(())
}

type Rows = Vec<Vec<String>>;

/// A row for any two circuits.
fn overlaps(circuits: &[(String, Circuit)]) -> anyhow::Result<Rows> {
    let header = [
        "first",
        "second",
        "edges_1",
        "edges_2",
        "both",
        "iou",
        "recall",
        "precision",
        "equal",
        "nodes_1",
        "nodes_2",
        "nodes_both",
        "nodes_iou",
        "nodes_recall",
        "nodes_precision",
    ];
    let mut rows = vec![header.map(String::from).to_vec()];
    for (i, (name, first)) in circuits.iter().enumerate() {
        for (other, second) in &circuits[i + 1..] {
            let found = Comparison::of(&first.edges, &second.edges)?;
            let equal = Comparison::at_equal_size(first, second)?;
            let mut row = vec![visible(name), visible(other)];
            for (overlap, equal) in [(found.edges, Some(equal)), (found.nodes, None)] {
                row.extend([overlap.first, overlap.second, overlap.both].map(|n| n.to_string()));
                let shares = [
                    overlap.intersection_over_union(),
                    overlap.recall(),
                    overlap.precision(),
                ];
                row.extend(shares.map(share));
                if let Some(equal) = equal {
                    let equal = equal.map(|equal| equal.edges.intersection_over_union());
                    row.push(equal.map_or("-".into(), share));
                }
            }
            rows.push(row);
        }
    }
    Ok(rows)
}

/// Scores, a circuit, and the curves of edges and of nodes.
type Curves = Vec<(String, String, [Roc; 2])>;

fn curves(args: &CompareArgs, circuits: &[(String, Circuit)]) -> anyhow::Result<Curves> {
    let mut curves = Vec::new();
    for path in &args.scores {
        let scored = open_scores(path, circuits[0].1.graph())?;
        for (name, circuit) in circuits {
            let of_both = [
                Roc::of_edges(&scored, &circuit.edges)?,
                Roc::of_nodes(&scored, &circuit.edges)?,
            ];
            let of_scores = visible(&path.display().to_string());
            curves.push((of_scores, visible(name), of_both));
        }
    }
    Ok(curves)
}

fn areas(curves: &Curves) -> Rows {
    let header = [
        "scores",
        "circuit",
        "edges",
        "edges_auroc",
        "nodes",
        "nodes_auroc",
    ];
    let mut rows = vec![header.map(String::from).to_vec()];
    for (scores, circuit, [edges, nodes]) in curves {
        let mut row = vec![scores.clone(), circuit.clone()];
        for roc in [edges, nodes] {
            let all = roc.positives + roc.negatives;
            row.extend([format!("{} of {all}", roc.positives), share(roc.area)]);
        }
        rows.push(row);
    }
    rows
}

fn points(curves: &Curves) -> Rows {
    let header = [
        "scores",
        "circuit",
        "of",
        "threshold",
        "true_positive_rate",
        "false_positive_rate",
    ];
    let mut rows = vec![header.map(String::from).to_vec()];
    for (scores, circuit, of_both) in curves {
        for (what, roc) in ["edges", "nodes"].iter().zip(of_both) {
            for point in &roc.points {
                // The last point takes what has no score too.
                let threshold = if point.threshold.is_nan() {
                    String::new()
                } else {
                    point.threshold.to_string()
                };
                rows.push(vec![
                    scores.clone(),
                    circuit.clone(),
                    what.to_string(),
                    threshold,
                    point.true_positive_rate.to_string(),
                    point.false_positive_rate.to_string(),
                ]);
            }
        }
    }
    rows
}

fn share(share: f64) -> String {
    format!("{share:.3}")
}

/// Aligned, the first columns at the left; or as CSV.
fn table(rows: &Rows, texts: usize, csv: bool) -> anyhow::Result<String> {
    if !csv {
        let align = [vec![Align::Left; texts], vec![Align::Right]].concat();
        return Ok(aligned(rows, &align));
    }
    let mut out = csv::Writer::from_writer(Vec::new());
    for row in rows {
        out.write_record(row)?;
    }
    Ok(String::from_utf8(out.into_inner()?)?)
}
