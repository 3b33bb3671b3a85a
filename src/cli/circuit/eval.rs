//! `candlewick circuit eval`: how much of a task a circuit does, alone, along a curve of sizes, and against its controls.

use std::path::PathBuf;
use std::sync::OnceLock;

use candlewick::Error;
use candlewick::circuit::{Circuit, Graph, Part, Parts, Pruning, Rule, ScoredGraph, Selection};
use candlewick::hooks::Positions;
use candlewick::methods::circuits::{
    FRACTIONS, QualityConfig, cmd, cpr, curve, quality_circuits, quality_lines,
};
use candlewick::methods::{CircuitEval, CircuitMode, Method, NamedCircuit};
use candlewick::model::ModelSpec;
use candlewick::scores::Scores;
use clap::{Args, ValueEnum};

use super::{files, read_scores};
use crate::cli::Context;
use crate::cli::attribute::SourceChoice;
use crate::cli::session::{self, Ask, Asked, CommonArgs, Mode};

/// Evaluate a circuit: the metric when every edge outside of it carries what it does in the corrupted run, and how much of the
/// task that is (`normalised` is the faithfulness: 0 for no edge, 1 for all of them).
///
/// Dead ends, nodes that read or are read by nothing in the circuit, are dropped first; both counts are said. `--curve` takes scores
/// of every edge in place of one circuit, and evaluates the best edges at the ten sizes of the MIB benchmark, by help (for CPR) and by
/// size of score (for CMD). `--full` holds the circuit against random ones, against itself without single edges, and against the
/// model where both lose the same nodes.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  candlewick circuit eval circuit.toml --n-pairs 8 -o eval.parquet
  candlewick circuit eval circuit.toml --n-pairs 4 --mode edge -o edge.parquet
  candlewick circuit eval circuit.toml --n-pairs 4 --full -o full.parquet")]
pub struct EvalArgs {
    /// The circuit: a file, or one of this program (`measured/embedded`); with `--curve` scores of every edge (`.json`, `.parquet`).
    pub file: PathBuf,
    /// Faithfulness by size, with CPR and CMD; the file has a score for every edge.
    #[arg(long, conflicts_with_all = ["full", "scores"])]
    pub curve: bool,
    /// Also completeness, minimality, random controls, and the edges on either side of its border.
    #[arg(long)]
    pub full: bool,
    /// With `--full`: take out every edge of the circuit, not 200 at most.
    #[arg(long)]
    pub all: bool,
    /// With `--full`: scores of every edge, which say what was left out.
    #[arg(long, value_name = "FILE")]
    pub scores: Option<PathBuf>,
    /// What is changed.
    #[arg(long, default_value = "complement")]
    pub mode: ModeChoice,
    /// What edges outside of the circuit carry.
    #[arg(long, default_value = "pair")]
    pub source: SourceChoice,
    /// Take nodes whole, where the file says at which positions or in which dimensions they act.
    #[arg(long, conflicts_with = "curve")]
    pub whole_nodes: bool,
    #[command(flatten)]
    pub common: CommonArgs,
    /// What is said of the circuit before its metric.
    #[arg(skip)]
    pub notes: OnceLock<Vec<String>>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum ModeChoice {
    /// The clean run, with every edge outside of the circuit at the reference.
    Complement,
    /// The corrupted run, with every edge of the circuit at its clean value.
    Edge,
}

pub fn run(args: &EvalArgs, ctx: &Context) -> anyhow::Result<()> {
    session::run(args, &args.common, ctx)
}

impl Ask for EvalArgs {
    fn default_out(&self) -> &'static str {
        "circuit.parquet"
    }

    fn mode(&self) -> Mode {
        let mut acts = vec!["file", "curve", "full", "mode", "source", "whole_nodes"];
        if self.full {
            acts.extend(["all", "scores"]);
        }
        let name = match (self.curve, self.full) {
            (true, _) => "`--curve`",
            (_, true) => "`--full`",
            _ => "one circuit",
        };
        Mode::new(name, &acts)
            .idle(&["verify"])
            .instead("all", "add `--full`")
            .instead(
                "scores",
                "add `--full`, or give the scores in place of the circuit with `--curve`",
            )
            .instead("verify", "evaluation is exact already; leave it out")
    }

    fn method(&self, on: &Asked<'_>) -> anyhow::Result<Box<dyn Method>> {
        if self.full && matches!(self.mode, ModeChoice::Edge) {
            return Err(Error::invalid(
                "`--full` asks what a circuit does by itself, which is `--mode complement`; leave `--mode edge` out",
            )
            .into());
        }
        let graph = Graph::new(on.spec);
        let mut notes = Vec::new();
        let circuits = if self.curve {
            self.points(graph)?
        } else {
            self.circuits(graph, on.task.seed, &mut notes)?
        };
        let _ = self.notes.set(notes);
        Ok(Box::new(CircuitEval {
            circuits,
            mode: match self.mode {
                ModeChoice::Complement => CircuitMode::Complement,
                ModeChoice::Edge => CircuitMode::Edge,
            },
            reference: self.source.into(),
            metric: None,
        }))
    }

    fn finish(&self, scores: &mut Scores, _: &ModelSpec) -> anyhow::Result<()> {
        let mut notes = self.notes.get().cloned().unwrap_or_default();
        if self.curve {
            notes.extend(areas(scores));
        }
        if self.full {
            notes.extend(quality_lines(scores));
        }
        scores.provenance.notes.extend(notes);
        Ok(())
    }
}

impl EvalArgs {
    fn points(&self, graph: Graph) -> anyhow::Result<Vec<NamedCircuit>> {
        let is_toml = self.file.extension().is_some_and(|ending| ending == "toml");
        if is_toml {
            return Err(Error::invalid(
                "a curve takes scores of every edge, and a `circuit.toml` has those of its own edges alone; give the scores that it was \
                 chosen by (`candlewick attribute --method eap-ig --graph scores.json`)",
            )
            .into());
        }
        let (scored, helps) = read_scores(&self.file, Some(graph))?;
        let selection = Selection {
            helps,
            ..Selection::of(Rule::TopN(1))
        };
        let points = curve(&scored, &selection)?.into_iter();
        Ok(points
            .map(|point| NamedCircuit::new(point.name, point.selected.edges))
            .collect())
    }

    fn circuits(
        &self,
        graph: Graph,
        seed: u64,
        notes: &mut Vec<String>,
    ) -> anyhow::Result<Vec<NamedCircuit>> {
        let mut circuit = files::open(&self.file.to_string_lossy(), Some(&graph))?;
        circuit.check_fits(&graph)?;
        let before = circuit.edges.len();
        if before == 0 {
            return Err(Error::invalid(format!(
                "no edge of `{}` is in a circuit; choose some with `candlewick circuit find --scores FILE --n N`, or give it with `--curve`",
                self.file.display()
            ))
            .into());
        }
        circuit.edges = circuit.edges.pruned(Pruning::Fixpoint);
        if self.whole_nodes {
            circuit.in_whole_nodes();
        }
        let parts = circuit.parts()?;
        let dropped = before - circuit.edges.len();
        notes.push(match dropped {
            0 => format!("{before} of {} edges", graph.n_edges()),
            _ => format!(
                "{} of {} edges: {dropped} of the file's {before} were dead ends",
                circuit.edges.len(),
                graph.n_edges()
            ),
        });
        if !parts.is_empty() {
            notes.push(in_parts(&circuit, &parts)?);
        }
        if !self.full {
            return Ok(vec![
                NamedCircuit::new("circuit", circuit.edges).in_parts(&parts),
            ]);
        }
        let scored: Option<ScoredGraph> = match &self.scores {
            Some(path) => Some(read_scores(path, Some(graph))?.0),
            None => None,
        };
        let config = QualityConfig {
            every_edge: self.all,
            seed,
        };
        Ok(quality_circuits(&circuit, scored.as_ref(), &config)?)
    }
}

/// Which of its nodes act in part.
fn in_parts(circuit: &Circuit, parts: &Parts) -> anyhow::Result<String> {
    let count = |is: &dyn Fn(&Part) -> bool| parts.values().filter(|part| is(part)).count();
    let at_positions = count(&|part| part.positions != Positions::All);
    let in_dims = count(&|part| part.dims.is_some());
    let mut said = Vec::new();
    if at_positions > 0 {
        said.push(format!("{at_positions} at their positions alone"));
    }
    if in_dims > 0 {
        said.push(format!(
            "{in_dims} in some dimensions alone (by share of dimensions it has {:.1} edges)",
            circuit.weighted_edges()?
        ));
    }
    Ok(format!(
        "of its {} nodes {} act in part: {} (`--whole-nodes` takes them whole)",
        circuit.edges.nodes().len(),
        parts.len(),
        said.join(", ")
    ))
}

/// The two areas of a curve's table.
fn areas(scores: &Scores) -> Vec<String> {
    let (Some(names), Some(found)) = (scores.texts("src"), scores.floats("normalised")) else {
        return vec!["no faithfulness can be given, so the curve has no areas".to_string()];
    };
    let points = |kind: &str| -> Vec<(f64, f64)> {
        let at = |fraction: &f64| {
            let name = format!("{kind} {fraction}");
            let row = names
                .iter()
                .position(|found| *found == Some(name.as_str()))?;
            Some((*fraction, found[row]?))
        };
        FRACTIONS.iter().filter_map(at).collect()
    };
    let (signed, absolute) = (points("signed"), points("absolute"));
    vec![format!(
        "CPR {:.3} (area under faithfulness by signed score, higher is better), CMD {:.3} (area between 1 and faithfulness by size of score, 0 is best)",
        cpr(&signed),
        cmd(&absolute)
    )]
}
