//! A folder of circuits, one JSON file for each share of the edges: what MIB evaluates as one method's circuits.

use std::fs;
use std::path::{Path, PathBuf};

use crate::circuit::{Circuit, Rule, ScoredGraph, Selection, select};
use crate::error::{Error, Result};

/// MIB's shares of the edges.
pub const FRACTIONS: [f64; 10] = [0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0];

/// More files than this in a folder are not circuits of one method.
const MOST_FILES: usize = 1000;

/// Writes a circuit for each of MIB's shares of the edges into a folder, which is made: `0.001.json` and so on, each with every
/// score and with the strongest edges `in_graph`, dead ends dropped. Shares of less than one edge are left out. Gives the
/// circuits' sizes.
/// # Errors
/// [`Error::Invalid`] where there is something of that name, and for scores that nothing can be chosen by; [`Error::Write`].
pub fn write_folder(
    scored: &ScoredGraph,
    selection: impl Fn(Rule) -> Selection,
    folder: &Path,
) -> Result<Vec<(f64, usize)>> {
    let failed = |source| Error::Write {
        path: folder.to_path_buf(),
        source,
    };
    if folder.exists() {
        return Err(Error::invalid(format!(
            "`{}` is there already, and stays as it is; choose another name for the folder",
            folder.display()
        )));
    }
    let mut circuits = Vec::new();
    for fraction in FRACTIONS {
        let n = (fraction * scored.graph().n_edges() as f64) as usize;
        if n == 0 {
            continue;
        }
        let chosen = select(scored, &selection(Rule::TopN(n)))?.edges;
        let mut file = scored.clone();
        for edge in scored.graph().edges() {
            file.set_contains(&edge, chosen.contains(&edge)?)?;
        }
        for node in chosen.nodes() {
            file.set_contains_node(node, true)?;
        }
        circuits.push((fraction, chosen.len(), file));
    }
    fs::create_dir(folder).map_err(failed)?;
    let write = |(fraction, size, file): (f64, usize, ScoredGraph)| {
        file.write(&folder.join(format!("{fraction}.json")))?;
        Ok((fraction, size))
    };
    circuits.into_iter().map(write).collect()
}

/// The circuits of a folder: every `.json` file in it by its name without the ending, the smallest circuit first.
/// # Errors
/// [`Error::Read`]; [`Error::Invalid`] for a folder without such files; those of [`ScoredGraph::read_alone`].
pub fn read_folder(folder: &Path) -> Result<Vec<(String, Circuit)>> {
    let failed = |source| Error::Read {
        path: folder.to_path_buf(),
        source,
    };
    let mut paths: Vec<PathBuf> = Vec::new();
    for entry in fs::read_dir(folder).map_err(failed)? {
        let path = entry.map_err(failed)?.path();
        if path.extension().is_some_and(|ending| ending == "json") {
            paths.push(path);
        }
    }
    if paths.is_empty() || paths.len() > MOST_FILES {
        return Err(Error::invalid(format!(
            "`{}` has {} files `.json`; a folder of circuits has one for each share of the edges",
            folder.display(),
            paths.len()
        )));
    }
    paths.sort();
    let read = |path: PathBuf| {
        let name = path.file_stem().unwrap_or_default().to_string_lossy();
        let circuit = Circuit::from_scored(&ScoredGraph::read_alone(&path)?);
        Ok((name.into_owned(), circuit))
    };
    let mut circuits: Vec<(String, Circuit)> =
        paths.into_iter().map(read).collect::<Result<_>>()?;
    circuits.sort_by_key(|(_, circuit)| circuit.edges.len());
    Ok(circuits)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::circuit::{Graph, Pruning};

    #[test]
    fn a_folder_of_shares_is_read_back() {
        let graph = Graph {
            n_layers: 2,
            n_heads: 2,
            d_model: 8,
            has_mlp: true,
            parallel: false,
        };
        let mut scored = ScoredGraph::new(graph);
        for (i, edge) in graph.edges().enumerate() {
            scored.set_score(&edge, i as f64 / 4.0).expect("an edge");
        }
        let parent = tempfile::tempdir().expect("a folder");
        let folder = parent.path().join("shares");
        let top = |rule| Selection::of(rule).pruning(Pruning::Never);
        let written = write_folder(&scored, top, &folder).expect("writes");
        // Of 46 edges no share below 0.05 has one.
        assert_eq!(graph.n_edges(), 46);
        assert_eq!(
            written,
            [(0.05, 2), (0.1, 4), (0.2, 9), (0.5, 23), (1.0, 46)]
        );
        let read = read_folder(&folder).expect("reads");
        let names: Vec<&str> = read.iter().map(|(name, _)| name.as_str()).collect();
        assert_eq!(names, ["0.05", "0.1", "0.2", "0.5", "1"]);
        for ((_, circuit), (_, size)) in read.iter().zip(&written) {
            assert_eq!(circuit.edges.len(), *size);
        }
        let strongest = graph.edges().last().expect("an edge");
        assert!(read[0].1.edges.contains(&strongest).expect("an edge"));
        let message = write_folder(&scored, top, &folder)
            .expect_err("there")
            .to_string();
        assert!(message.contains("stays as it is"), "{message}");
        let message = read_folder(parent.path())
            .expect_err("no files")
            .to_string();
        assert!(message.contains("0 files"), "{message}");
    }
}
