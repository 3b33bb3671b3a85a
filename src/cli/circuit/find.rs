//! `candlewick circuit find`: from scores to a circuit that was checked on pairs that chose neither its edges nor its size.

use std::io::{self, Write};
use std::path::{Path, PathBuf};

use candlewick::Error;
use candlewick::circuit::{
    About, Circuit, CircuitFormat, Graph, Pruning, Ranking, Rule, Selection, select,
};
use candlewick::methods::circuits::{
    FindConfig, FindRule, FindSize, FoundCircuit, Level, find_circuit,
};
use candlewick::methods::{Keeping, Method, Running, Subject, Watch, check, plan};
use candlewick::model::{EMBEDDED, open};
use candlewick::plot;
use candlewick::scores::Scores;
use candlewick::spec::Mlp;
use candlewick::text::shell_quoted;
use clap::{Args, ValueEnum};

use super::{CircuitOut, counts, faithfulness_said, pairs, read_scores};
use crate::cli::Context;
use crate::cli::args::{ModelArgs, TaskArgs, memory};
use crate::cli::attribute::{By, MethodChoice, SourceChoice};
use crate::cli::open::{load_options, open_task, read_weights};
use crate::cli::session::{Mode, print_plan};

/// Find a circuit: score every edge (or head and MLP) on half of the pairs, take the smallest set whose faithfulness on a quarter of
/// them reaches `--until`, and report it on the last quarter, which chose nothing.
///
/// With `--scores` edges are chosen from a file instead, of which no model need be at hand; evaluate them with `candlewick circuit
/// eval`.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  candlewick circuit find
  candlewick circuit find --until 0.7 --n-pairs 32 --out small.toml
  candlewick circuit find --method eap --select topn --n 30 --n-pairs 16 --out thirty.json
  candlewick circuit find --method atp --until 0.9 --n-pairs 16 --out nodes.toml
  candlewick circuit find --method atp --by role --n 30 --n-pairs 16 --out roles.toml
  candlewick circuit find --by dim --n 400 --n-pairs 16 --out dims.toml")]
pub struct FindArgs {
    /// How edges or nodes are scored: any edge or node method of `candlewick attribute`.
    #[arg(long, default_value = "eap-ig", conflicts_with = "scores")]
    pub method: MethodChoice,
    /// Choose pieces of nodes, each by a score of its own, in place of edges or whole nodes; all edges between them are in.
    #[arg(long, value_name = "PIECES", conflicts_with = "scores")]
    pub by: Option<By>,
    /// Points of an integral [default: 5].
    #[arg(long, value_name = "N", conflicts_with = "scores")]
    pub steps: Option<usize>,
    /// What is put in place where edges are scored, and what edges outside of the circuit carry.
    #[arg(long, default_value = "pair", conflicts_with = "scores")]
    pub source: SourceChoice,
    /// Choose by these scores: a `.parquet` of `candlewick attribute`, or a `.json` of EAP-IG or MIB.
    #[arg(long, value_name = "FILE")]
    pub scores: Option<PathBuf>,
    /// Which edges a size stands for [default: greedy; with `--threshold`: threshold].
    #[arg(long, value_name = "RULE")]
    pub select: Option<SelectChoice>,
    /// The faithfulness to reach [default: 0.85, where no size is given].
    #[arg(long, value_name = "F", conflicts_with_all = ["n", "threshold", "scores"])]
    pub until: Option<f64>,
    /// So many edges (of a node method: nodes), before dead ends are dropped.
    #[arg(long, value_name = "N", conflicts_with = "threshold")]
    pub n: Option<usize>,
    /// Every edge that ranks at this value or above.
    #[arg(long, value_name = "X")]
    pub threshold: Option<f64>,
    /// With `consistent`: the share of draws in which an edge's sign must agree [default: 0.9]. With `ratio`: the share of edges
    /// taken by how much they help [default: 0.5].
    #[arg(long, value_name = "SHARE")]
    pub share: Option<f64>,
    /// Rank by how much an edge helps, not by the size of its score.
    #[arg(long)]
    pub signed: bool,
    /// Draws of the pairs behind the stability.
    #[arg(long, value_name = "N", default_value = "200", value_parser = clap::value_parser!(u32).range(2..=100_000))]
    pub draws: u32,
    #[command(flatten)]
    pub model: ModelArgs,
    #[command(flatten)]
    pub task: TaskArgs,
    /// Memory for activations, such as `512MB` or `4GB` [default: a quarter of what is free].
    #[arg(long, value_name = "SIZE", value_parser = memory)]
    pub memory: Option<usize>,
    /// Print what scoring would cost, and run nothing.
    #[arg(long)]
    pub dry_run: bool,
    #[command(flatten)]
    pub out: CircuitOut,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum SelectChoice {
    /// Best first from the logits.
    Greedy,
    /// The best edges.
    Topn,
    /// Every edge at a threshold or above.
    Threshold,
    /// The best of those whose sign agrees in most draws of the pairs.
    Consistent,
    /// Some by how much they help, the rest by size of score.
    Ratio,
}

pub fn run(args: &FindArgs, ctx: &Context) -> anyhow::Result<()> {
    args.mode().check(&ctx.typed)?;
    let out = match args.dry_run {
        true => PathBuf::new(),
        false => args.out.destination(ctx)?,
    };
    match &args.scores {
        Some(path) => choose(args, path, &out, ctx),
        None => find(args, &out, ctx),
    }
}

impl FindArgs {
    /// Which flags act.
    fn mode(&self) -> Mode {
        let mut acts = vec![
            "select",
            "n",
            "threshold",
            "signed",
            "out",
            "force",
            "dry_run",
        ];
        let name = if self.scores.is_some() {
            acts.extend(["scores", "model"]);
            if self.select == Some(SelectChoice::Ratio) {
                acts.push("share");
            }
            "`--scores`".to_string()
        } else {
            acts.extend(["method", "by", "source", "until"]);
            if self.by.is_none() && !self.method.scores_nodes() {
                acts.push("draws");
            }
            if self.method.has_steps() {
                acts.push("steps");
            }
            if matches!(
                self.select,
                Some(SelectChoice::Ratio | SelectChoice::Consistent)
            ) {
                acts.push("share");
            }
            format!("`--method {}`", self.method.name())
        };
        let all_of_session = [
            "revision",
            "accept_config_key",
            "device",
            "dtype",
            "task",
            "pairs",
            "n_pairs",
            "corruption",
            "template",
            "unequal_lengths",
            "chat_template",
            "date",
            "answer_space",
            "bos",
            "metric",
            "seed",
            "memory",
        ];
        let mode = Mode::new(name, &acts)
            .instead(
                "share",
                "it is for `--select consistent` and `--select ratio`",
            )
            .instead(
                "draws",
                "only of edges is it asked how stable their choice is",
            )
            .instead(
                "steps",
                "it is for methods that integrate, such as `eap-ig`",
            );
        match self.scores.is_some() {
            true => mode.idle(&all_of_session),
            false => mode,
        }
    }

    fn rule(&self) -> anyhow::Result<FindRule> {
        Ok(match (self.select, self.threshold) {
            (None, Some(_)) | (Some(SelectChoice::Topn | SelectChoice::Threshold), _) => {
                FindRule::TopN
            }
            (None, None) | (Some(SelectChoice::Greedy), _) => FindRule::Greedy,
            (Some(SelectChoice::Consistent), _) => FindRule::Consistent(self.share.unwrap_or(0.9)),
            (Some(SelectChoice::Ratio), _) => FindRule::Ratio(self.share.unwrap_or(0.5)),
        })
    }

    fn size(&self) -> anyhow::Result<FindSize> {
        if self.select == Some(SelectChoice::Threshold) && self.threshold.is_none() {
            return Err(Error::invalid("`--select threshold` takes the edges at a value or above; say which with `--threshold X`").into());
        }
        Ok(match (self.n, self.threshold) {
            (Some(n), _) => FindSize::N(n),
            (_, Some(threshold)) => FindSize::Threshold(threshold),
            _ => FindSize::Until(self.until.unwrap_or(0.85)),
        })
    }
}

/// Chooses from a file of scores; nothing is run.
fn choose(args: &FindArgs, path: &Path, to: &Path, ctx: &Context) -> anyhow::Result<()> {
    let refused = |reason: &str| Err(Error::invalid(reason.to_string()).into());
    let graph = match ctx.typed.iter().any(|flag| flag == "model") {
        true => {
            let opened = open(&args.model.model, &load_options(&args.model)?)?;
            Some(Graph::new(opened.spec()))
        }
        false => None,
    };
    let (scored, helps) = read_scores(path, graph)?;
    let share = args.share.unwrap_or(0.5);
    let rule = match (args.rule()?, args.size()?) {
        (_, FindSize::Until(_)) => {
            return refused(
                "a file of scores runs no model, so no faithfulness can be reached; say how many edges with `--n`, or `--threshold`",
            );
        }
        (FindRule::Consistent(_), _) => {
            return refused(
                "whether signs agree is asked of scores of each pair; take `--method`, which scores them, in place of `--scores`",
            );
        }
        (FindRule::TopN, FindSize::Threshold(threshold)) => Rule::Threshold(threshold),
        (_, FindSize::Threshold(_)) => {
            return refused(
                "a threshold takes every edge that reaches it; leave `--select` out, or say how many edges with `--n`",
            );
        }
        (FindRule::TopN, FindSize::N(n)) => Rule::TopN(n),
        (FindRule::Greedy, FindSize::N(n)) => Rule::Greedy(n),
        (FindRule::Ratio(_), FindSize::N(n)) => Rule::Ratio { n, helpful: share },
    };
    let has_edges = scored.matrix().iter().any(|score| !score.is_nan());
    let mut nodes = (0..scored.graph().n_src()).filter_map(|row| scored.graph().source(row));
    let has_nodes = nodes.any(|node| matches!(scored.node_score(node), Ok(Some(_))));
    let rule = match (rule, has_nodes && !has_edges) {
        (Rule::TopN(n) | Rule::Greedy(n), true) => Rule::TopNodes(n),
        (rule, _) => rule,
    };
    let selection = Selection {
        rule,
        ranking: if args.signed {
            Ranking::Signed(helps)
        } else {
            Ranking::Absolute
        },
        helps,
        pruning: Pruning::Fixpoint,
    };
    let selected = select(&scored, &selection)?;
    if selected.edges.is_empty() {
        return refused(
            "nothing is left of the edges that were chosen once dead ends are dropped; ask for more, or take `--select greedy`",
        );
    }
    let mut circuit = Circuit::new(selected.edges).scored_by(&scored)?;
    circuit.about = About {
        selection: Some(
            format!(
                "{:?}",
                args.select.unwrap_or(match args.threshold {
                    Some(_) => SelectChoice::Threshold,
                    None => SelectChoice::Greedy,
                })
            )
            .to_lowercase(),
        ),
        requested: selected.requested,
        source: Some(path.display().to_string()),
        command: Some(shell_quoted(&ctx.command)),
        ..About::default()
    };
    let mut out = io::stdout().lock();
    if !ctx.quiet {
        write!(out, "{}", plot::circuit(&circuit, None))?;
        writeln!(out)?;
    }
    writeln!(
        out,
        "{}",
        counts(selected.requested, selected.chosen, &circuit, "edges")
    )?;
    if args.dry_run {
        return Ok(());
    }
    circuit.write(to)?;
    writeln!(out, "circuit: {}", to.display())?;
    Ok(())
}

fn find(args: &FindArgs, out: &Path, ctx: &Context) -> anyhow::Result<()> {
    let mut options = load_options(&args.model)?;
    options.show_download_progress &= !ctx.quiet;
    let id = &args.model.model;
    let opened = open(id, &options)?;
    let (tokenizer, spec) = (opened.tokenizer().clone(), opened.spec().clone());
    let task = open_task(&args.task, &tokenizer, spec.n_ctx, id == EMBEDDED)?;
    ctx.warn_of(&task);
    let method = args
        .method
        .scoring(args.steps, args.source, spec.mlp != Mlp::None, args.by)?;
    let method: &dyn Method = &*method;
    check(method, &spec, &task)?;
    let rule = args.rule()?;
    if args.by == Some(By::Pos) && task.batches(usize::MAX).len() > 1 {
        return Err(Error::invalid(
            "positions of several templates or lengths do not align; take `--by role`, or one template (`--template 0`)",
        )
        .into());
    }
    if args.by == Some(By::Role) && task.roles().is_empty() {
        return Err(Error::invalid(format!(
            "task `{}` has no roles; take `--by pos`, or name slots in its file",
            task.name
        ))
        .into());
    }
    if (args.method.scores_nodes() || args.by.is_some())
        && (args.select == Some(SelectChoice::Greedy)
            || matches!(rule, FindRule::Consistent(_) | FindRule::Ratio(_)))
    {
        return Err(Error::invalid(
            "nodes are chosen by the best scores alone; leave `--select` out, or take an edge method",
        )
        .into());
    }
    let config = FindConfig {
        rule,
        size: args.size()?,
        signed: args.signed,
        reference: args.source.into(),
        draws: args.draws as usize,
    };
    config.check(&task)?;
    if args.by.is_some() && CircuitFormat::of(out).is_ok_and(|format| format == CircuitFormat::Json)
    {
        return Err(Error::invalid(
            "a JSON file has no place for parts of nodes; end the name in `.toml`",
        )
        .into());
    }
    let running = Running {
        memory: args.memory,
        ..Running::default()
    };
    let progress = ctx.progress();
    let model = read_weights(opened, ctx)?;
    let on = Subject {
        model: &model,
        task: &task,
    };
    if args.dry_run {
        let half = task.first(task.pairs().len() / 2);
        let on = Subject { task: &half, ..on };
        print_plan(&plan(on, method, &running)?, &model, false)?;
        println!("and then evaluations of circuits, a forward pass or two each");
        return Ok(());
    }
    let keeping = Keeping::beside(out);
    let watch = Watch {
        progress: &progress,
        keeping: Some(&keeping),
    };
    let found = find_circuit(on, method, &config, &running, &watch);
    if let Err(error) = &found
        && !matches!(error, Error::Interrupted { .. })
    {
        // Nothing would go on from what was measured.
        keeping.remove()?;
        return Err(found.expect_err("it was looked at").into());
    }
    let mut found = found?;
    found.circuit.about.command = Some(shell_quoted(&ctx.command));
    found.circuit.write(out)?;
    keeping.remove()?;
    for warning in &found.warnings {
        ctx.warn(warning);
    }
    if !ctx.quiet {
        print(&found, ctx)?;
        println!("circuit: {}", out.display());
    }
    Ok(())
}

/// The circuit as a graph, and what is known of it.
fn print(found: &FoundCircuit, ctx: &Context) -> anyhow::Result<()> {
    let mut out = io::stdout().lock();
    writeln!(out, "{}", plot::circuit(&found.circuit, None))?;
    let of = match found.level {
        Level::Edges => "edges",
        Level::Nodes => "nodes",
        Level::Positions => "nodes at positions",
        Level::Dims => "dimensions of nodes",
    };
    writeln!(
        out,
        "{}",
        counts(found.requested, found.chosen, &found.circuit, of)
    )?;
    let said = |table: &Scores| faithfulness_said(FoundCircuit::faithfulness(table));
    let [scoring, sizing, reporting] = found.parts;
    writeln!(
        out,
        "faithfulness on {} that chose nothing: {}",
        pairs(reporting),
        said(&found.reported)
    )?;
    if let Some(edges) = &found.reported_edges {
        writeln!(
            out,
            "  its edges given their clean values in the corrupted run: {}",
            said(edges)
        )?;
    }
    writeln!(
        out,
        "faithfulness on {} that chose its size: {}",
        pairs(sizing),
        said(&found.sized)
    )?;
    if let Some(stability) = &found.stability {
        let always = stability.shares.iter().filter(|(edge, share)| {
            **share >= 0.9 && found.circuit.edges.contains(edge).unwrap_or(false)
        });
        writeln!(
            out,
            "stability: circuits of two draws of the {} that scored share {:.2} of their edges, of two halves {:.2}; {} of {} edges are chosen in 9 of 10 draws",
            pairs(scoring),
            stability.bootstrap,
            stability.split_half,
            always.count(),
            found.circuit.edges.len()
        )?;
    }
    let templates = found.stability.iter();
    let templates = templates.flat_map(|stability| &stability.without_template);
    if let Some((template, least)) = templates.min_by(|a, b| a.1.total_cmp(b.1)) {
        writeln!(
            out,
            "  without the pairs of one template they share {least:.2} of the edges or more, least without template {template}"
        )?;
    }
    writeln!(out, "in {:.1} s", ctx.began.elapsed().as_secs_f64())?;
    Ok(())
}
