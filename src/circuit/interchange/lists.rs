//! Circuits as lists: CSV with a line for each edge (`src,dst,score`) or for each node (`node,class,positions,dims,score`), and
//! plain text with AutoCircuit's name of an edge in each line, a score after a tab.

use super::listing::{Attributes, Listing};
use super::names;
use crate::circuit::Circuit;
use crate::error::{Error, Result};
use crate::hooks::Edge;
use crate::text::clipped;

/// Every edge with its score.
/// # Errors
/// [`Error::Invalid`] for a score that is not finite.
pub(super) fn edges(circuit: &Circuit) -> Result<String> {
    let rows = Listing::of(circuit)?.edges.into_iter();
    let rows = rows.map(|(src, dst, mut attributes)| {
        let letter = attributes.remove("letter");
        let letter = letter.map_or(String::new(), |letter| format!("<{letter}>"));
        let score = attributes.remove("score").unwrap_or_default();
        vec![src, format!("{dst}{letter}"), score]
    });
    written(&["src", "dst", "score"], rows)
}

/// Every node of the circuit with what is said of it; `input` and `logits` are in every circuit and are left out.
/// # Errors
/// [`Error::Invalid`] for a score that is not finite.
pub(super) fn nodes(circuit: &Circuit) -> Result<String> {
    let rows = Listing::of(circuit)?.nodes.into_iter();
    let rows = rows.filter(|(name, _)| name != "input" && name != "logits");
    let rows = rows.map(|(name, mut attributes)| {
        let rest = ["class", "positions", "dims", "score"].map(|of| attributes.remove(of));
        let rest = rest.map(Option::unwrap_or_default);
        [vec![name], rest.to_vec()].concat()
    });
    written(&["node", "class", "positions", "dims", "score"], rows)
}

fn written(header: &[&str], rows: impl Iterator<Item = Vec<String>>) -> Result<String> {
    let failed = |error: csv::Error| Error::invalid(error.to_string());
    let mut out = csv::Writer::from_writer(Vec::new());
    out.write_record(header).map_err(failed)?;
    for row in rows {
        out.write_record(&row).map_err(failed)?;
    }
    let bytes = out.into_inner().expect("a vector takes all");
    Ok(String::from_utf8(bytes).expect("made of text"))
}

/// A list with a header, of nodes or of edges by the names of its columns.
/// # Errors
/// One line on why it is none.
pub(super) fn parse(text: &str) -> Result<Listing, String> {
    let said = |error: csv::Error| clipped(&error.to_string(), 300);
    let mut reader = csv::ReaderBuilder::new()
        .trim(csv::Trim::All)
        .from_reader(text.as_bytes());
    let header = reader.headers().map_err(said)?.clone();
    let column = |name: &str| header.iter().position(|of| of == name);
    let ends = column("src").zip(column("dst"));
    let node = column("node");
    if ends.is_none() && node.is_none() {
        return Err(
            "its first line names neither the columns `src` and `dst` of edges nor the column `node` of nodes".into(),
        );
    }
    let named: Vec<(&str, usize)> = ["letter", "score", "class", "positions", "dims"]
        .into_iter()
        .filter_map(|name| Some((name, column(name)?)))
        .collect();
    let mut listing = Listing::default();
    for record in reader.records() {
        let record = record.map_err(said)?;
        let cell = |at: usize| record.get(at).unwrap_or_default().to_string();
        let attributes: Attributes = named
            .iter()
            .map(|(name, at)| (name.to_string(), cell(*at)))
            .filter(|(_, text)| !text.is_empty())
            .collect();
        match (ends, node) {
            (Some((src, dst)), _) => listing.edges.push((cell(src), cell(dst), attributes)),
            (None, Some(node)) => listing.nodes.push((cell(node), attributes)),
            (None, None) => unreachable!("refused above"),
        }
    }
    Ok(listing)
}

/// AutoCircuit's name of each edge, a line each, and its score.
pub(super) fn named(circuit: &Circuit) -> String {
    let line = |edge: Edge| {
        let score = circuit.scores.get(&edge);
        let score = score.map_or(String::new(), |score| format!("\t{score:?}"));
        format!("{}{score}\n", names::name(&edge))
    };
    circuit.edges.edges().map(line).collect()
}

/// One edge a line; empty lines and those that begin with `#` say nothing.
/// # Errors
/// One line that names the line.
pub(super) fn parse_named(text: &str) -> Result<Listing, String> {
    let mut listing = Listing::default();
    for (i, line) in text.lines().enumerate() {
        let line = line.trim();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let (edge, score) = match line.split_once('\t') {
            Some((edge, score)) => (edge, Some(score)),
            None => (line, None),
        };
        let Some((src, dst)) = edge.split_once("->") else {
            return Err(format!(
                "line {} is no edge, such as `Resid Start->A1.4.V` or `input->a1.h4<v>`",
                i + 1
            ));
        };
        let score = score.map(|score| ("score".to_string(), score.trim().to_string()));
        let attributes: Attributes = score.into_iter().collect();
        let (src, dst) = (src.trim().to_string(), dst.trim().to_string());
        listing.edges.push((src, dst, attributes));
    }
    Ok(listing)
}
