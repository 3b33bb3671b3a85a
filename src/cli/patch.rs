//! `candlewick patch`: exact activation patching, from a model and a task to a picture and a parquet file.

use std::io::{self, Write};
use std::path::PathBuf;

use candlewick::methods::activation_patching::plan_patching;
use candlewick::methods::{
    GaussianNoise, PatchConfig, PatchSource, activation_patching, parse_sites,
};
use candlewick::model::{EMBEDDED, load_tokenizer};
use candlewick::run::SweepOptions;
use candlewick::scores::{Detail, Direction, PartStore};
use clap::{Args, ValueEnum};

use super::args::{ModelArgs, OutputArgs, TaskArgs, memory};
use super::open::{load_options, open_model, open_task};
use super::{Context, destination, show};

/// Patch one run's activations into another, exactly, at every site of a sweep.
///
/// Denoising (the default) writes the clean run's value into the corrupted run: how much of the answer does this site bring
/// back? Noising writes the corrupted value into the clean run: how much of the answer does it take away? With `--source zero`,
/// `mean` or `resample` it is an ablation of the clean run.
///
/// A site is a hook (`candlewick hooks` lists them), by itself or with the axes to take it apart by:
/// `resid_pre` (layer x position), `z` (layer x head), `z:pos`, `pattern:query`, `pattern:cell`, `mlp.post` (every neuron),
/// `resid_pre:role` (roles of the task instead of positions), `attn_out:all`; `block_every` and `head_all` are bundles.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  candlewick patch
  candlewick patch --sites z,mlp_out --direction noise --n-pairs 8 --out noise.parquet
  candlewick patch --sites resid_pre:role,z:role --metric prob --per-example
  candlewick patch --sites z --source mean --out ablation.parquet
  candlewick patch --sites attn_out --noise @S2 --noise-samples 4 --n-pairs 2
  candlewick patch --sites block_every --window 2 --dry-run")]
pub struct PatchArgs {
    /// What to patch: hooks, each with optional axes, separated by commas.
    #[arg(long, short, default_value = "resid_pre,z")]
    pub sites: String,
    /// Which run is changed [default: denoise; ablate with another source].
    #[arg(long, short)]
    pub direction: Option<DirectionChoice>,
    /// Where the written values come from.
    #[arg(long, default_value = "pair")]
    pub source: SourceChoice,
    /// Layers patched together, centred on the one reported.
    #[arg(long, default_value_t = 1)]
    pub window: usize,
    /// Only these layers, such as `0,3,4`.
    #[arg(long, value_name = "LAYERS", value_delimiter = ',')]
    pub layers: Vec<usize>,
    /// Only these heads.
    #[arg(long, value_name = "HEADS", value_delimiter = ',')]
    pub heads: Vec<usize>,
    /// Corrupt by Gaussian noise on the embeddings of these tokens (`@S2`, `3`, `-2`) instead of by the corrupted prompt.
    #[arg(
        long,
        value_name = "POSITIONS",
        value_delimiter = ',',
        allow_hyphen_values = true
    )]
    pub noise: Vec<String>,
    /// Standard deviation of that noise, in units of the embeddings' own.
    #[arg(long, default_value_t = 3.0)]
    pub noise_scale: f64,
    /// Draws of noise per prompt, whose metrics are averaged.
    #[arg(long, default_value_t = 10)]
    pub noise_samples: usize,
    /// Memory for activations, such as `512MB` or `4GB` [default: a quarter of what is free].
    #[arg(long, value_name = "SIZE", value_parser = memory)]
    pub memory: Option<usize>,
    /// Print what would be run, and what it would cost.
    #[arg(long)]
    pub dry_run: bool,
    #[command(flatten)]
    pub model: ModelArgs,
    #[command(flatten)]
    pub task: TaskArgs,
    #[command(flatten)]
    pub output: OutputArgs,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum DirectionChoice {
    /// Clean values into the corrupted run.
    Denoise,
    /// Corrupted values into the clean run.
    Noise,
    /// Other values into the clean run, with `--source zero|mean|mean-all|resample`.
    Ablate,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum SourceChoice {
    /// The pair's other run.
    Pair,
    Zero,
    /// The mean over the corrupted prompts, per position within each template.
    Mean,
    /// The mean over all positions of the corrupted prompts.
    MeanAll,
    /// The clean run of another pair of the same template.
    Resample,
}

pub fn run(args: PatchArgs, ctx: &Context) -> anyhow::Result<()> {
    let mut options = load_options(&args.model)?;
    options.show_download_progress &= !ctx.quiet;
    // Everything that can be wrong is found before the weights are read.
    let out = if args.dry_run {
        PathBuf::new()
    } else {
        destination(&args.output, "scores.parquet", ctx)?
    };
    let (tokenizer, spec) = load_tokenizer(&args.model.model, &options)?;
    let sites = parse_sites(&args.sites, &spec)?;
    let embedded = args.model.model == EMBEDDED;
    let task = open_task(&args.task, &tokenizer, spec.n_ctx, embedded)?;
    ctx.warn_of(&task);
    let config = config(&args, sites, &task);
    config.check(&spec, &task)?;
    let progress = ctx.progress();
    let model = open_model(&args.model, &options, ctx)?;
    if args.dry_run {
        return print_plan(&plan_patching(&model, &task, &config)?, &model);
    }

    let mut parts = PartStore::open_or_create(&out, &config.fingerprint(&model, &task))?;
    for warning in parts.warnings() {
        ctx.warn(warning);
    }
    let patched = activation_patching(&model, &task, &config, Some(&mut parts), &progress);
    let mut scores = match patched {
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

fn config(
    args: &PatchArgs,
    sites: Vec<candlewick::methods::Sites>,
    task: &candlewick::task::Task,
) -> PatchConfig {
    let source = match args.source {
        SourceChoice::Pair => PatchSource::Pair,
        SourceChoice::Zero => PatchSource::Zero,
        SourceChoice::Mean => PatchSource::Mean,
        SourceChoice::MeanAll => PatchSource::MeanAll,
        SourceChoice::Resample => PatchSource::Resample,
    };
    let direction = match args.direction {
        Some(DirectionChoice::Denoise) => Direction::Denoise,
        Some(DirectionChoice::Noise) => Direction::Noise,
        Some(DirectionChoice::Ablate) => Direction::Ablate,
        None if source == PatchSource::Pair => Direction::Denoise,
        None => Direction::Ablate,
    };
    let noise = (!args.noise.is_empty()).then(|| GaussianNoise {
        positions: args.noise.clone(),
        scale: args.noise_scale,
        samples: args.noise_samples,
    });
    let detail = match args.output.per_example {
        true => Detail::PerExample,
        false => Detail::Mean,
    };
    let defaults = SweepOptions::default();
    PatchConfig {
        direction,
        source,
        noise,
        window: args.window,
        layers: args.layers.clone(),
        heads: args.heads.clone(),
        detail,
        seed: task.seed,
        sweep: SweepOptions {
            memory: args.memory.unwrap_or(defaults.memory),
            ..defaults
        },
        ..PatchConfig::new(sites, task.metric)
    }
}

fn print_plan(
    plan: &candlewick::methods::activation_patching::PatchPlan,
    model: &candlewick::model::Model,
) -> anyhow::Result<()> {
    let weights = model.weights.bytes();
    let megabytes = |bytes: usize| bytes as f64 / 1e6;
    let mut out = io::stdout().lock();
    writeln!(out, "pairs                {}", plan.pairs)?;
    writeln!(
        out,
        "variants             {} ({} cannot reach the answer)",
        plan.sweep.variants, plan.sweep.without_effect
    )?;
    writeln!(out, "forward-equivalents  {:.1}", plan.sweep.forwards)?;
    writeln!(
        out,
        "memory               {:.0} MB weights, {:.0} MB activations",
        megabytes(weights),
        megabytes(plan.bytes)
    )?;
    writeln!(out, "estimated time       about {:.1} s", plan.seconds)?;
    Ok(())
}
