//! `candlewick cache`: activations to a file.

use std::path::PathBuf;

use candlewick::Error;
use candlewick::hooks::{Hook, Kind};
use candlewick::methods::Layers;
use candlewick::methods::activations::{
    ActivationsConfig, ActivationsFormat, Prompt, Runs, prompts_of, write_activations,
};
use candlewick::model::{EMBEDDED, ModelSpec, open};
use candlewick::run::Roles;
use clap::Args;

use super::Context;
use super::args::{ModelArgs, TaskArgs, memory};
use super::destination::check_new;
use super::generate::given_prompts;
use super::models::size;
use super::open::{load_options, open_task, read_weights};

/// Write activations to a file: what `run_with_cache` would hold, for another program to go on with.
///
/// As `.safetensors` there is a tensor a hook, f32, prompts first; prompts of unequal length are filled up with zeros at the end,
/// and `lengths` and `tokens` say where each ends. As `.parquet` there is a row a vector, with prompt, position, token and head. Either
/// way a batch is written before the next one runs, so memory stays small. docs/python.md reads both.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  candlewick cache --hooks resid_post,pattern2
  candlewick cache --hooks z --layers 2-3 --runs both --end --out z.safetensors
  candlewick cache --hooks mlp_out -p 'then Mary and John' --out acts.parquet
  candlewick cache --hooks resid_pre --dry-run")]
pub struct CacheArgs {
    /// Hooks, such as `resid_post`, which is every layer, or `z3`, which is one (`candlewick hooks` lists them).
    #[arg(long, value_name = "HOOKS", value_delimiter = ',', required = true)]
    pub hooks: Vec<String>,
    /// Only these layers, of hooks named without one.
    #[arg(long, value_name = "LAYERS")]
    pub layers: Option<Layers>,
    /// Which prompts of the task's pairs.
    #[arg(
        long,
        value_name = "WHICH",
        default_value = "clean",
        conflicts_with = "prompt"
    )]
    pub runs: Runs,
    /// A text of your own in place of a task's prompts; can be given again.
    #[arg(
        long,
        short,
        value_name = "TEXT",
        conflicts_with_all = [
            "task", "pairs", "n_pairs", "corruption", "template", "metric", "seed", "unequal_lengths", "answer_space"
        ]
    )]
    pub prompt: Vec<String>,
    /// Only the last position of each prompt; of attention patterns the last query.
    #[arg(long)]
    pub end: bool,
    /// The file, `.safetensors` or `.parquet`.
    #[arg(
        long,
        short,
        value_name = "FILE",
        default_value = "activations.safetensors"
    )]
    pub out: PathBuf,
    /// Replace a file that is there.
    #[arg(long)]
    pub force: bool,
    /// Only say what would be written, and how large it is.
    #[arg(long)]
    pub dry_run: bool,
    /// What the activations of a batch may take, such as `512MB`.
    #[arg(long, value_name = "BYTES", value_parser = memory, default_value = "256MB")]
    pub memory: usize,
    #[command(flatten)]
    pub model: ModelArgs,
    #[command(flatten)]
    pub task: TaskArgs,
}

pub fn run(args: &CacheArgs, ctx: &Context) -> anyhow::Result<()> {
    ActivationsFormat::of(&args.out)?;
    let opened = open(&args.model.model, &load_options(&args.model)?)?;
    let (tokenizer, spec) = (opened.tokenizer().clone(), opened.spec().clone());
    let prompts: Vec<Prompt> = if args.prompt.is_empty() {
        let is_embedded = args.model.model == EMBEDDED;
        let task = open_task(&args.task, &tokenizer, spec.n_ctx, is_embedded)?;
        ctx.warn_of(&task);
        prompts_of(&task, args.runs)
    } else {
        let given = given_prompts(&args.prompt, &args.task, &tokenizer, spec.n_ctx, ctx)?;
        let prompt = |(text, tokens)| Prompt {
            text,
            tokens,
            roles: Roles::new(),
            ..Prompt::default()
        };
        given.into_iter().map(prompt).collect()
    };
    let config = ActivationsConfig {
        end_only: args.end,
        memory: args.memory,
        ..ActivationsConfig::of(hooks(&args.hooks, args.layers.as_ref(), &spec)?)
    };
    let plan = config.plan(&spec, &prompts)?;
    let what = format!(
        "{} hooks of {} prompts of up to {} tokens, {}",
        config.hooks.len(),
        plan.prompts,
        plan.length,
        size(plan.bytes)
    );
    if args.dry_run {
        println!("would write {what} of f32: {}", args.out.display());
        return Ok(());
    }
    check_new(&args.out, args.force)?;
    let progress = ctx.progress();
    let model = read_weights(opened, ctx)?;
    write_activations(
        &model,
        &tokenizer,
        &prompts,
        &config,
        &args.out,
        &ctx.command,
        &progress,
    )?;
    println!("{what}: {}", args.out.display());
    Ok(())
}

/// `resid_post` is a hook of every layer (of those asked for), `z3` of one.
fn hooks(names: &[String], layers: Option<&Layers>, spec: &ModelSpec) -> anyhow::Result<Vec<Hook>> {
    if let Some(layers) = layers {
        layers.check(spec)?;
    }
    let is_chosen = |layer: &usize| layers.is_none_or(|layers| layers.has(*layer));
    let chosen: Vec<usize> = (0..spec.n_layers).filter(is_chosen).collect();
    let mut hooks = Vec::new();
    let mut is_used = layers.is_none();
    for name in names {
        let name = name.trim();
        match name.parse::<Hook>() {
            Ok(hook) => hooks.push(hook),
            Err(error) => match name.parse::<Kind>() {
                Ok(kind) => {
                    is_used = true;
                    hooks.extend(chosen.iter().map(|&layer| Hook::at(kind, layer)));
                }
                Err(_) => return Err(error.into()),
            },
        }
    }
    if !is_used {
        return Err(Error::invalid(
            "`--layers` does nothing: every hook names its own layer; leave it out, or name hooks without one",
        )
        .into());
    }
    Ok(hooks)
}
