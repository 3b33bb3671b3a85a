//! `candlewick circuit show`: what a file of a circuit says, and the circuit as a small graph.

use std::collections::BTreeMap;
use std::io::{self, Write};
use std::path::PathBuf;

use candlewick::circuit::Circuit;
use candlewick::plot;
use candlewick::text::{Align, aligned, visible};
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
    write!(out, "{}", about(&circuit))?;
    write!(
        out,
        "{}",
        plot::circuit(&circuit, args.top.map(usize::from))
    )?;
    Ok(())
}

/// What is said of a circuit besides its edges.
fn about(circuit: &Circuit) -> String {
    let about = &circuit.about;
    let texts = [
        ("name", &about.name),
        ("model", &about.model),
        ("task", &about.task),
        ("metric", &about.metric),
        ("method", &about.method),
        ("selection", &about.selection),
        ("source", &about.source),
        ("claim", &about.claim),
    ];
    let said = texts
        .into_iter()
        .filter_map(|(name, text)| Some((name, text.as_ref()?)));
    let mut rows: Vec<[String; 2]> = said
        .map(|(name, text)| [name.to_string(), visible(text)])
        .collect();
    if let Some(requested) = about.requested {
        rows.push(["requested".to_string(), requested.to_string()]);
    }
    let numbers = |of: &BTreeMap<String, f64>| {
        let each = of
            .iter()
            .map(|(name, value)| format!("{} {}", visible(name), short(*value)));
        each.collect::<Vec<_>>().join(", ")
    };
    for (name, of) in [
        ("claimed", &circuit.claimed),
        ("measured", &circuit.measured),
    ] {
        if !of.is_empty() {
            rows.push([name.to_string(), numbers(of)]);
        }
    }
    match rows.is_empty() {
        true => String::new(),
        false => aligned(&rows, &[Align::Left]) + "\n",
    }
}

fn short(value: f64) -> String {
    if value == value.trunc() && value.abs() < 1e9 {
        format!("{value}")
    } else {
        format!("{value:.3}")
    }
}
