//! `candlewick path`: what one part of the model passes to another, along chosen paths only.

use candlewick::Error;
use candlewick::methods::{
    CompositionConfig, Method, NodePath, NodePathConfig, Over, PathConfig, Receivers, Senders,
    composition_scores,
};
use candlewick::model::open;
use clap::Args;

use super::ablate::positions;
use super::open::{load_options, read_weights};
use super::session::{self, Ask, Asked, COMMON, CommonArgs, Mode};
use super::{Context, destination, show};

/// Path patching: give receivers what senders would have written in the corrupted run, and nothing else.
///
/// Without flags: what each head passes straight to the logits. `--receivers` may be inputs of heads (`a3.h0.q`), MLPs
/// (`m3`) or `logits`, or `q`, `k`, `v` for that input of every head; a row is a sender, or with `--over receivers` a receiver.
/// Heads between are frozen; MLPs between are part of the path unless `--freeze-mlps` is given, with which a sender and a receiver are
/// an exact edge.
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
    pub senders: Senders,
    /// Who receives: `logits`, MLPs, inputs of heads, or `q`, `k`, `v` of every head.
    #[arg(long, default_value = "logits", value_name = "READERS")]
    pub receivers: Receivers,
    /// What a row is.
    #[arg(long, default_value = "senders")]
    pub over: Over,
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
    #[arg(long, value_name = "PATH")]
    pub path: Vec<NodePath>,
    /// Composition scores of the weights instead; no prompts are run.
    #[arg(long)]
    pub composition: bool,
    #[command(flatten)]
    pub common: CommonArgs,
}

/// Common flags that act where only weights are read.
const OF_WEIGHTS: &[&str] = &[
    "accept_config_key",
    "color",
    "csv",
    "date",
    "device",
    "dtype",
    "force",
    "json",
    "model",
    "out",
    "panel",
    "quiet",
    "revision",
    "scale",
    "seed",
    "threads",
    "top",
];

pub fn run(args: &PathArgs, ctx: &Context) -> anyhow::Result<()> {
    if args.composition {
        return composition(args, ctx);
    }
    session::run(args, &args.common, ctx)
}

impl Ask for PathArgs {
    fn default_out(&self) -> &'static str {
        "path.parquet"
    }

    fn mode(&self) -> Mode {
        if self.composition {
            let of_prompts: Vec<&str> = (COMMON.iter().copied())
                .filter(|flag| !OF_WEIGHTS.contains(flag))
                .collect();
            return Mode::new("`--composition`", &["composition"]).idle(&of_prompts);
        }
        if !self.path.is_empty() {
            return Mode::new("`--path`", &["path"]);
        }
        Mode::new(
            "senders and receivers",
            &[
                "senders",
                "receivers",
                "over",
                "freeze_mlps",
                "at_senders",
                "at_receivers",
            ],
        )
    }

    fn method(&self, _: &Asked<'_>) -> anyhow::Result<Box<dyn Method>> {
        if !self.path.is_empty() {
            return Ok(Box::new(NodePathConfig::each(self.path.clone())));
        }
        Ok(Box::new(PathConfig {
            over: self.over,
            freeze_mlps: self.freeze_mlps,
            at_senders: positions(&self.at_senders)?,
            at_receivers: positions(&self.at_receivers)?,
            ..PathConfig::new(self.senders.clone(), self.receivers.clone())
        }))
    }
}

/// Nothing is measured on prompts: there is no task, and no plan or parts of it.
fn composition(args: &PathArgs, ctx: &Context) -> anyhow::Result<()> {
    args.mode().check(&ctx.typed)?;
    if ctx.merging.is_some() {
        return Err(Error::invalid("composition scores have no shards").into());
    }
    let common = &args.common;
    let out = destination(&common.output, args.default_out(), ctx)?;
    let mut options = load_options(&common.model)?;
    options.show_download_progress &= !ctx.quiet;
    let model = read_weights(open(&common.model.model, &options)?, ctx)?;
    let config = CompositionConfig {
        seed: common.task.seed.unwrap_or_default(),
        ..CompositionConfig::default()
    };
    let scores = composition_scores(&model, &config)?;
    show::finish(scores, &out, &common.output, ctx)
}
