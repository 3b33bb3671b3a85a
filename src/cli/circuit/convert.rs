//! `candlewick circuit convert`: a circuit in another format.

use std::io::Write;
use std::path::{Path, PathBuf};

use candlewick::Error;
use candlewick::circuit::{ScoredGraph, Selection, interchange};
use clap::Args;

use super::files::open;
use crate::cli::Context;

/// Write a circuit in another format, which the ending of the name says.
///
/// `.toml` holds all of it; `.json` is EAP-IG's and MIB's; `.dot` is Graphviz's, and `dot -Tsvg` draws it; `.graphml` is read
/// by networkx, Gephi and yEd; `.csv` lists edges, `.nodes.csv` nodes, `.txt` edges by AutoCircuit's names. A format that has
/// no place for the classes, positions and dimensions of nodes refuses a circuit that has them, unless `--without-notes` leaves them out. A
/// list does not say of which model it is: `--like` does. From scores (`.json`) into a name without an ending, a folder is made
/// of circuits of 0.1% to 100% of the edges, as MIB takes them.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  candlewick circuit convert published/ioi ioi.dot
  candlewick circuit convert published/docstring docstring.graphml
  candlewick circuit convert published/ioi ioi.json --without-notes
  candlewick circuit convert published/ioi ioi.nodes.csv
  candlewick circuit convert ioi.nodes.csv heads.toml --like published/ioi")]
pub struct ConvertArgs {
    /// The circuit: a file, or one of this program.
    pub from: String,
    /// The file to write.
    pub to: PathBuf,
    /// A circuit of the same model, for lists, which do not say of which model they are.
    #[arg(long, value_name = "CIRCUIT")]
    pub like: Option<String>,
    /// Leave out the classes, positions and dimensions of nodes, for formats that have no place for them.
    #[arg(long)]
    pub without_notes: bool,
    /// Replace a file that is there.
    #[arg(long)]
    pub force: bool,
}

pub fn run(args: &ConvertArgs, _: &Context) -> anyhow::Result<()> {
    if args.to.exists() && !args.force {
        return Err(Error::invalid(format!(
            "`{}` is there already, and stays as it is; choose another name, or replace it with `--force`",
            args.to.display()
        ))
        .into());
    }
    let like = args
        .like
        .as_deref()
        .map(|name| open(name, None))
        .transpose()?;
    let like = like.as_ref().map(|circuit| circuit.graph());
    let mut out = std::io::stdout().lock();
    if args.to.extension().is_none() {
        let scored = ScoredGraph::read_alone(Path::new(&args.from))?;
        let sizes = interchange::write_folder(&scored, Selection::of, &args.to)?;
        for (fraction, size) in sizes {
            writeln!(out, "{}/{fraction}.json: {size} edges", args.to.display())?;
        }
        return Ok(());
    }
    let mut circuit = open(&args.from, like)?;
    if args.without_notes {
        circuit.nodes.clear();
    }
    interchange::write(&circuit, &args.to)?;
    writeln!(
        out,
        "{}: {} edges between {} nodes",
        candlewick::text::visible(&args.to.display().to_string()),
        circuit.edges.len(),
        circuit.edges.nodes().len()
    )?;
    Ok(())
}
