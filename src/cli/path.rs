//! `candlewick path`: what one part of the model passes to another, along chosen paths only.

use candlewick::Error;
use candlewick::hooks::{Letter, Node};
use candlewick::methods::{
    CompositionConfig, Over, Path, PathConfig, Receiver, composition_scores, patch_paths,
    path_patching,
};
use candlewick::model::{EMBEDDED, ModelSpec, load_tokenizer};
use candlewick::scores::Detail;
use candlewick::task::Task;
use clap::{Args, ValueEnum};

use super::ablate::{nodes, positions};
use super::args::{ModelArgs, OutputArgs, TaskArgs};
use super::open::{load_options, open_model, open_task};
use super::{Context, destination, show};

/// Path patching: give receivers what senders would have written in the corrupted run, and nothing else.
///
/// Without flags: what each head passes straight to the logits. `--receivers` may be inputs of heads (`a3.h0.q`), MLPs
/// (`m3`) or `logits`, or `q`, `k`, `v` for that input of every head; a row is a sender, or with `--over receivers` a receiver.
/// Heads between are frozen; MLPs between are part of the path unless `--freeze-mlps` is given.
///
/// `--path` patches whole chains such as `input:a0.h1.v:a3.h0.q:logits`, which tables print as `input->a0.h1<v>->a3.h0<q>->logits`.
/// `--composition` scores pairs of heads by their weights alone.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  candlewick path
  candlewick path --receivers a3.h0.q,a3.h1.q --freeze-mlps --n-pairs 8
  candlewick path --senders a0.h2 --receivers v --over receivers --n-pairs 8
  candlewick path --senders a0.h0,m0 --receivers a3.h1.k,logits --over both --n-pairs 8
  candlewick path --path input:a0.h2.v:a3.h1.k:logits --path input:a0.h2.v:logits
  candlewick path --composition --top 8")]
pub struct PathArgs {
    /// Who sends: nodes such as `a0.h1,m0,input`, or `heads` or `all`.
    #[arg(long, default_value = "heads", value_name = "NODES")]
    pub senders: String,
    /// Who receives.
    #[arg(long, default_value = "logits", value_name = "READERS")]
    pub receivers: String,
    /// What a row is.
    #[arg(long, default_value = "senders")]
    pub over: OverChoice,
    /// Freeze MLPs between sender and receiver too.
    #[arg(long)]
    pub freeze_mlps: bool,
    /// Where senders are patched, such as `@S2` [default: everywhere].
    #[arg(
        long,
        value_name = "POSITIONS",
        value_delimiter = ',',
        allow_hyphen_values = true
    )]
    pub at_senders: Vec<String>,
    /// Where receivers read what was recorded, such as `@END` [default: everywhere].
    #[arg(
        long,
        value_name = "POSITIONS",
        value_delimiter = ',',
        allow_hyphen_values = true
    )]
    pub at_receivers: Vec<String>,
    /// A chain to patch instead; may be given more than once.
    #[arg(long, value_name = "PATH", conflicts_with_all = ["senders", "receivers", "over", "freeze_mlps", "at_senders", "at_receivers"])]
    pub path: Vec<String>,
    /// Composition scores of the weights instead; no prompts are run.
    #[arg(long, conflicts_with_all = ["path", "senders", "receivers", "over", "freeze_mlps", "at_senders", "at_receivers", "per_example"])]
    pub composition: bool,
    #[command(flatten)]
    pub model: ModelArgs,
    #[command(flatten)]
    pub task: TaskArgs,
    #[command(flatten)]
    pub output: OutputArgs,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum OverChoice {
    /// A row for each sender, into all receivers together.
    Senders,
    /// A row for each receiver, from all senders together.
    Receivers,
    /// One row.
    Together,
    /// A row for each sender and receiver.
    Both,
}

/// What was asked for, checked.
enum Asked {
    Composition,
    Paths(Vec<Path>),
    Sweep(PathConfig),
}

pub fn run(args: PathArgs, ctx: &Context) -> anyhow::Result<()> {
    let mut options = load_options(&args.model)?;
    options.show_download_progress &= !ctx.quiet;
    // Everything that can be wrong is found before the weights are read.
    let out = destination(&args.output, "path.parquet", ctx)?;
    let (tokenizer, spec) = load_tokenizer(&args.model.model, &options)?;
    let embedded = args.model.model == EMBEDDED;
    let task = open_task(&args.task, &tokenizer, spec.n_ctx, embedded)?;
    ctx.warn_of(&task);
    let asked = asked(&args, &spec, &task)?;
    let detail = detail(&args);
    let progress = ctx.progress();
    let model = open_model(&args.model, &options, ctx)?;
    let scores = match &asked {
        Asked::Composition => {
            let config = CompositionConfig {
                seed: task.seed,
                ..CompositionConfig::default()
            };
            composition_scores(&model, &config)?
        }
        Asked::Paths(paths) => {
            let metric = task.metric;
            patch_paths(&model, &task, paths, metric, detail, &progress)?
        }
        Asked::Sweep(config) => path_patching(&model, &task, config, &progress)?,
    };
    show::finish(scores, &out, &args.output, ctx)
}

fn detail(args: &PathArgs) -> Detail {
    match args.output.per_example {
        true => Detail::PerExample,
        false => Detail::Mean,
    }
}

fn asked(args: &PathArgs, spec: &ModelSpec, task: &Task) -> anyhow::Result<Asked> {
    if args.composition {
        return Ok(Asked::Composition);
    }
    if !args.path.is_empty() {
        let paths = args.path.iter().map(|text| text.parse::<Path>());
        let paths = paths.collect::<Result<Vec<_>, Error>>()?;
        paths.iter().try_for_each(|path| path.check(spec))?;
        return Ok(Asked::Paths(paths));
    }
    let config = PathConfig {
        over: match args.over {
            OverChoice::Senders => Over::Senders,
            OverChoice::Receivers => Over::Receivers,
            OverChoice::Together => Over::Together,
            OverChoice::Both => Over::Both,
        },
        freeze_mlps: args.freeze_mlps,
        at_senders: positions(&args.at_senders)?,
        at_receivers: positions(&args.at_receivers)?,
        detail: detail(args),
        seed: task.seed,
        ..PathConfig::new(
            senders(&args.senders, spec)?,
            receivers(&args.receivers, spec)?,
            task.metric,
        )
    };
    config.check(spec, task)?;
    Ok(Asked::Sweep(config))
}

fn senders(text: &str, spec: &ModelSpec) -> anyhow::Result<Vec<Node>> {
    let heads = Node::heads(spec);
    match text {
        "heads" => Ok(heads.collect()),
        "all" => {
            let mut all: Vec<Node> = heads.chain([Node::Input]).collect();
            if spec.d_mlp > 0 {
                all.extend((0..spec.n_layers).map(Node::Mlp));
            }
            all.sort();
            Ok(all)
        }
        _ => nodes(text),
    }
}

fn receivers(text: &str, spec: &ModelSpec) -> anyhow::Result<Vec<Receiver>> {
    let of_letter = |letter: Letter| {
        spec.heads().map(move |(layer, head)| Receiver {
            node: Node::Head { layer, head },
            letter: Some(letter),
        })
    };
    let mut receivers = Vec::new();
    for part in text
        .split(',')
        .map(str::trim)
        .filter(|part| !part.is_empty())
    {
        match part {
            "q" => receivers.extend(of_letter(Letter::Q)),
            "k" => receivers.extend(of_letter(Letter::K)),
            "v" => receivers.extend(of_letter(Letter::V)),
            _ => receivers.push(part.parse()?),
        }
    }
    Ok(receivers)
}
