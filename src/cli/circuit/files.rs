//! Circuits and scores by the names that a command line gives.

use std::path::Path;

use candlewick::Error;
use candlewick::circuit::{Circuit, Graph, ScoredGraph, interchange, published};
use candlewick::scores::Scores;

/// A circuit by its name in this program, or from a file.
pub fn open(name: &str, like: Option<&Graph>) -> anyhow::Result<Circuit> {
    let path = Path::new(name);
    if !path.exists() {
        if let Some(circuit) = published::by_name(name)? {
            if let Some(graph) = like {
                circuit.check_fits(graph)?;
            }
            return Ok(circuit);
        }
        if path.extension().is_none() {
            let names: Vec<&str> = published::shipped().collect();
            return Err(Error::invalid(format!(
                "there is no file `{}`, and no circuit of that name in this program, which has {}",
                candlewick::text::shortened(name),
                names.join(", ")
            ))
            .into());
        }
    }
    Ok(interchange::read(path, like)?)
}

/// The circuits that a name stands for: one, or all of a folder with one for each share of the edges.
pub fn open_all(name: &str, like: Option<&Graph>) -> anyhow::Result<Vec<(String, Circuit)>> {
    let path = Path::new(name);
    if !path.is_dir() {
        return Ok(vec![(name.to_string(), open(name, like)?)]);
    }
    let circuits = interchange::read_folder(path)?.into_iter();
    let named = circuits.map(|(of, circuit)| {
        if let Some(graph) = like {
            circuit.check_fits(graph)?;
        }
        Ok((format!("{name}/{of}"), circuit))
    });
    named.collect()
}

/// Scores of a model's edges, from a table of an edge method or from EAP-IG's and MIB's JSON.
pub fn open_scores(path: &Path, graph: &Graph) -> anyhow::Result<ScoredGraph> {
    let is_table = path.extension().is_some_and(|ending| ending == "parquet");
    Ok(if is_table {
        ScoredGraph::from_scores(&Scores::read_parquet(path)?, *graph)?
    } else {
        ScoredGraph::read(path, *graph)?
    })
}
