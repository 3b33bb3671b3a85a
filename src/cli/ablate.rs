//! `candlewick ablate`: what the model loses without a part, a set of parts, or some of its attention; and what repairs it.

use std::sync::Arc;

use candlewick::Error;
use candlewick::hooks::{Node, Pos, Positions};
use candlewick::methods::ablation::fingerprint;
use candlewick::methods::{
    AblationConfig, DirectTarget, Knockout, NodeSet, PatchConfig, PatchSource, RepairConfig,
    RepairTarget, Units, ablation, parse_sites, self_repair,
};
use candlewick::model::{EMBEDDED, ModelSpec, Tokenizer, load_tokenizer};
use candlewick::scores::{Detail, PartStore};
use candlewick::task::Task;
use clap::{Args, ValueEnum};

use super::args::{ModelArgs, OutputArgs, TaskArgs};
use super::open::{load_options, open_task};
use super::{Context, destination, open_model, show};

/// Ablate parts of the model: one at a time, in sets, in pairs; scale them, or knock attention out.
///
/// `--sites` sweeps hooks as `candlewick patch` does, and is every head unless something else is asked for. `--together` and
/// `--class` take several heads and MLPs out at once, because backup heads hide what single ones do. `--head-pairs` takes out every
/// pair of heads and shows their interaction. `--block QUERIES:KEYS` knocks attention out in each head.
///
/// `--self-repair` resamples the output of one attention, MLP or head at the last position, and compares its direct effect on
/// the logit with the total effect: what the layers after it make good.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  candlewick ablate
  candlewick ablate --by mean-role --sites z,mlp_out --n-pairs 8
  candlewick ablate --by scale --factor -1 --sites z,v --n-pairs 8
  candlewick ablate --together a3.h0,a3.h1 --class first=a0.h0,a0.h2 --by resample
  candlewick ablate --head-pairs a0.h0,a0.h2,a3.h0,a3.h1 --n-pairs 8 --out pairs.parquet
  candlewick ablate --block @END:@S2 --layers 2,3 --n-pairs 8
  candlewick ablate --self-repair heads --target difference")]
pub struct AblateArgs {
    /// What to ablate one by one: hooks with optional axes, as in `patch` [default: z, unless sets, pairs or knockouts are given].
    #[arg(long, short)]
    pub sites: Option<String>,
    /// What is put in place.
    #[arg(long, default_value = "mean")]
    pub by: ByChoice,
    /// The factor of `--by scale`.
    #[arg(long, allow_hyphen_values = true, value_name = "X")]
    pub factor: Option<f32>,
    /// Nodes that are ablated together, such as `a9.h6,a9.h9,m3`; may be given more than once.
    #[arg(long, value_name = "NODES")]
    pub together: Vec<String>,
    /// The same under a name: `movers=a9.h6,a9.h9`.
    #[arg(long, value_name = "NAME=NODES")]
    pub class: Vec<String>,
    /// Every pair of these heads, or of `all` heads.
    #[arg(long, value_name = "HEADS", value_delimiter = ',')]
    pub head_pairs: Vec<String>,
    /// Attention to knock out, queries and keys as positions: `@END:@S1,@S2`, `-1:3`; may be given more than once.
    #[arg(long, value_name = "QUERIES:KEYS", allow_hyphen_values = true)]
    pub block: Vec<String>,
    /// Knock out all heads of a layer at once.
    #[arg(long, requires = "block")]
    pub whole_layers: bool,
    /// Layers ablated together, centred on the one reported.
    #[arg(long, default_value_t = 1)]
    pub window: usize,
    /// Where sets and pairs are ablated, such as `@END` or `-1` [default: everywhere].
    #[arg(
        long,
        value_name = "POSITIONS",
        value_delimiter = ',',
        allow_hyphen_values = true
    )]
    pub at: Vec<String>,
    /// A task over whose clean prompts means are taken [default: the corrupted prompts of the task itself].
    #[arg(long, value_name = "TASK")]
    pub reference: Option<String>,
    /// Only these layers, such as `0,3,4`.
    #[arg(long, value_name = "LAYERS", value_delimiter = ',')]
    pub layers: Vec<usize>,
    /// Only these heads.
    #[arg(long, value_name = "HEADS", value_delimiter = ',')]
    pub heads: Vec<usize>,
    /// Measure direct effect, total effect and repair of each of these instead.
    #[arg(long, value_name = "UNITS", conflicts_with_all = ["sites", "together", "class", "head_pairs", "block", "by", "reference", "window", "at", "heads"])]
    pub self_repair: Option<UnitsChoice>,
    /// Other prompts that each prompt takes values from in turn, for `--self-repair`.
    #[arg(long, default_value_t = 15)]
    pub donors: usize,
    /// The logit of `--self-repair`: that of the model's own top token less the vocabulary's mean, or the answer's.
    #[arg(long, default_value = "top", requires = "self_repair")]
    pub target: TargetChoice,
    #[command(flatten)]
    pub model: ModelArgs,
    #[command(flatten)]
    pub task: TaskArgs,
    #[command(flatten)]
    pub output: OutputArgs,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum ByChoice {
    Zero,
    /// The mean over the reference prompts, per position within each template.
    Mean,
    /// The mean over the reference prompts, per role of the task.
    MeanRole,
    /// The mean over all positions of the reference prompts.
    MeanAll,
    /// The clean run of another pair of the same template.
    Resample,
    /// The run's own value times `--factor`.
    Scale,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum UnitsChoice {
    Attention,
    Mlp,
    Heads,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum TargetChoice {
    /// The model's own top token, less the mean over the vocabulary.
    Top,
    /// The answer less the wrong answer.
    Difference,
    /// The answer less the mean over the vocabulary.
    Centred,
}

/// What was asked for, checked.
enum Asked {
    Ablation(Box<AblationConfig>),
    Repair(RepairConfig),
}

pub fn run(args: AblateArgs, ctx: &Context) -> anyhow::Result<()> {
    let mut options = load_options(&args.model)?;
    options.show_download_progress &= !ctx.quiet;
    // Everything that can be wrong is found before the weights are read.
    let out = destination(&args.output, "ablation.parquet", ctx)?;
    let (tokenizer, spec) = load_tokenizer(&args.model.model, &options)?;
    let embedded = args.model.model == EMBEDDED;
    let task = open_task(&args.task, &tokenizer, spec.n_ctx, embedded)?;
    ctx.warn_of(&task);
    let asked = asked(&args, &tokenizer, &spec, &task)?;
    let progress = ctx.progress();
    let model = open_model(&args.model, &options, ctx)?;
    let config = match &asked {
        Asked::Ablation(config) => config,
        Asked::Repair(config) => {
            let scores = self_repair(&model, &task, config, &progress)?;
            return show::finish(scores, &out, &args.output, ctx);
        }
    };
    let mut parts = PartStore::open_or_create(&out, &fingerprint(&model, &task, config)?)?;
    for warning in parts.warnings() {
        ctx.warn(warning);
    }
    let ablated = ablation(&model, &task, config, Some(&mut parts), &progress);
    let mut scores = match ablated {
        Ok(scores) => scores,
        Err(error) => {
            if parts.finished().is_empty() {
                parts.remove()?;
            }
            return Err(error.into());
        }
    };
    show::write(&mut scores, &out, &args.output, ctx)?;
    parts.remove()?;
    show::tell(&scores, &out, &args.output, ctx)
}

fn asked(
    args: &AblateArgs,
    tokenizer: &Tokenizer,
    spec: &ModelSpec,
    task: &Task,
) -> anyhow::Result<Asked> {
    let detail = match args.output.per_example {
        true => Detail::PerExample,
        false => Detail::Mean,
    };
    if let Some(units) = args.self_repair {
        let config = RepairConfig {
            units: match units {
                UnitsChoice::Attention => Units::Attention,
                UnitsChoice::Mlp => Units::Mlp,
                UnitsChoice::Heads => Units::Heads,
            },
            target: match args.target {
                TargetChoice::Top => RepairTarget::Top,
                TargetChoice::Difference => RepairTarget::Of(DirectTarget::Difference),
                TargetChoice::Centred => RepairTarget::Of(DirectTarget::Centred),
            },
            donors: args.donors,
            layers: args.layers.clone(),
            detail,
            seed: task.seed,
            ..RepairConfig::default()
        };
        config.check(spec, task)?;
        return Ok(Asked::Repair(config));
    }
    let is_knockout = !args.block.is_empty();
    let sets = sets(args)?;
    let pairs = heads_of_pairs(&args.head_pairs, spec)?;
    let others = is_knockout || !sets.is_empty() || !pairs.is_empty();
    let sites = match &args.sites {
        Some(text) => parse_sites(text, spec)?,
        None if others => Vec::new(),
        None => parse_sites("z", spec)?,
    };
    if is_knockout && (!sets.is_empty() || !pairs.is_empty() || !sites.is_empty()) {
        return Err(Error::invalid(
            "attention is knocked out by itself: leave `--sites`, `--together`, `--class` and `--head-pairs` to another run",
        )
        .into());
    }
    let patch = PatchConfig {
        source: source(args, is_knockout)?,
        reference: reference(args, tokenizer, spec, task)?,
        window: args.window,
        layers: args.layers.clone(),
        heads: args.heads.clone(),
        detail,
        seed: task.seed,
        ..PatchConfig::new(sites, task.metric)
    };
    let knockouts = args.block.iter().map(|text| knockout(text));
    let config = AblationConfig {
        sets,
        pairs,
        knockouts: knockouts.collect::<anyhow::Result<_>>()?,
        whole_layers: args.whole_layers,
        positions: positions(&args.at)?,
        ..AblationConfig::new(patch)
    };
    config.check(spec, task)?;
    Ok(Asked::Ablation(Box::new(config)))
}

fn source(args: &AblateArgs, is_knockout: bool) -> anyhow::Result<PatchSource> {
    if is_knockout {
        return Ok(PatchSource::Block);
    }
    let source = match (args.by, args.factor) {
        (ByChoice::Scale, Some(factor)) => PatchSource::Scale(factor),
        (ByChoice::Scale, None) => {
            return Err(
                Error::invalid("`--by scale` needs a factor, such as `--factor 0.5`").into(),
            );
        }
        (_, Some(_)) => {
            return Err(Error::invalid("`--factor` goes with `--by scale`").into());
        }
        (ByChoice::Zero, _) => PatchSource::Zero,
        (ByChoice::Mean, _) => PatchSource::Mean,
        (ByChoice::MeanRole, _) => PatchSource::MeanRole,
        (ByChoice::MeanAll, _) => PatchSource::MeanAll,
        (ByChoice::Resample, _) => PatchSource::Resample,
    };
    Ok(source)
}

/// The task whose prompts means are taken over, with as many pairs and the same seed.
fn reference(
    args: &AblateArgs,
    tokenizer: &Tokenizer,
    spec: &ModelSpec,
    task: &Task,
) -> anyhow::Result<Option<Arc<Task>>> {
    let Some(name) = &args.reference else {
        return Ok(None);
    };
    let of_reference = TaskArgs {
        task: Some(name.clone()),
        pairs: None,
        corruption: None,
        metric: None,
        n_pairs: args.task.n_pairs.or(Some(task.pairs().len() as u32)),
        ..args.task.clone()
    };
    let reference = open_task(&of_reference, tokenizer, spec.n_ctx, false)?;
    Ok(Some(Arc::new(reference)))
}

fn sets(args: &AblateArgs) -> anyhow::Result<Vec<NodeSet>> {
    let mut sets = Vec::new();
    for text in &args.together {
        sets.push(NodeSet {
            name: text.clone(),
            nodes: nodes(text)?,
        });
    }
    for text in &args.class {
        let Some((name, members)) = text.split_once('=').filter(|(name, _)| !name.is_empty())
        else {
            return Err(Error::Parse {
                what: "a class",
                text: text.clone(),
                reason: "write `NAME=a9.h6,a9.h9`".into(),
            }
            .into());
        };
        sets.push(NodeSet {
            name: name.into(),
            nodes: nodes(members)?,
        });
    }
    Ok(sets)
}

/// Names of nodes, separated by commas.
pub fn nodes(text: &str) -> anyhow::Result<Vec<Node>> {
    let parts = text
        .split(',')
        .map(str::trim)
        .filter(|part| !part.is_empty());
    Ok(parts.map(str::parse).collect::<Result<_, Error>>()?)
}

fn heads_of_pairs(texts: &[String], spec: &ModelSpec) -> anyhow::Result<Vec<Node>> {
    if texts == ["all"] {
        return Ok(Node::heads(spec).collect());
    }
    if texts.len() == 1 {
        return Err(Error::invalid("one head makes no pair; name at least two, or `all`").into());
    }
    let mut heads = nodes(&texts.join(","))?;
    heads.sort();
    heads.dedup();
    Ok(heads)
}

fn knockout(text: &str) -> anyhow::Result<Knockout> {
    let Some((queries, keys)) = text.split_once(':') else {
        return Err(Error::Parse {
            what: "a knockout",
            text: text.into(),
            reason: "write `QUERIES:KEYS`, such as `@END:@S1,@S2` or `-1:3`".into(),
        }
        .into());
    };
    let list = |text: &str| -> Vec<String> { text.split(',').map(String::from).collect() };
    Ok(Knockout {
        queries: match queries {
            "all" => Positions::All,
            _ => positions(&list(queries))?,
        },
        keys: positions(&list(keys))?,
    })
}

/// Positions as typed; none means all.
pub fn positions(texts: &[String]) -> anyhow::Result<Positions> {
    if texts.is_empty() {
        return Ok(Positions::All);
    }
    let list = texts.iter().map(|text| text.parse::<Pos>());
    Ok(Positions::These(list.collect::<Result<_, Error>>()?))
}
