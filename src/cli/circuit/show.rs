//! `candlewick circuit show`: what a file of a circuit says, and the circuit as a small graph.

use std::io::{self, Write};

use candlewick::plot;
use candlewick::text::{Align, aligned};
use clap::Args;

use super::files;
use crate::cli::picture::PictureArgs;

/// Show a circuit: where it comes from, what was claimed and measured, and its nodes by layer with what each reads.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  candlewick circuit show circuit.toml --top 3
  candlewick circuit show published/ioi
  candlewick circuit show published/ioi --png ioi.png --pdf ioi.pdf --width 400 --title IOI")]
pub struct ShowArgs {
    /// The circuit: a file, or one of this program.
    #[arg(value_name = "CIRCUIT")]
    pub file: String,
    /// How many sources of a reader are named, the strongest first [default: 4].
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..))]
    pub top: Option<u16>,
    #[command(flatten)]
    pub picture: PictureArgs,
}

pub fn run(args: &ShowArgs) -> anyhow::Result<()> {
    let pictures = args.picture.check()?;
    let circuit = files::open(&args.file, None)?;
    if let Some(pictures) = pictures {
        pictures.write(&plot::circuit_svg(&circuit, &pictures.look())?)?;
    }
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
