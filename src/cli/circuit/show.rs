//! `candlewick circuit show`: what a file of a circuit says, and the circuit as a small graph.

use std::io::{self, Write};
use std::path::PathBuf;

use candlewick::circuit::Circuit;
use candlewick::plot;
use candlewick::text::{Align, aligned};
use clap::Args;

/// Show a circuit: where it comes from, what was claimed and measured, and its nodes by layer with what each reads.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  candlewick circuit show circuit.toml --top 3")]
pub struct ShowArgs {
    /// A `circuit.toml`, or the JSON of EAP-IG or MIB.
    pub file: PathBuf,
    /// How many sources of a reader are named, the strongest first [default: 4].
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..))]
    pub top: Option<u16>,
}

pub fn run(args: &ShowArgs) -> anyhow::Result<()> {
    let circuit = Circuit::read(&args.file)?;
    let mut out = io::stdout().lock();
    let facts = plot::circuit_facts(&circuit);
    if !facts.is_empty() {
        writeln!(out, "{}", aligned(&facts, &[Align::Left]))?;
    }
    write!(
        out,
        "{}",
        plot::circuit(&circuit, args.top.map(usize::from))
    )?;
    Ok(())
}
