//! `candlewick logits`: what parts of a model write to the logits, and what its layers would say.

use candlewick::Error;
use candlewick::methods::{
    DirectTarget, DlaConfig, EarlyConfig, LensConfig, Part, SourceConfig, TokenLensConfig,
    direct_logit_attribution, early_decoding, logit_lens, source_classes, token_lens,
};
use candlewick::model::{EMBEDDED, Model, ModelSpec, Tokenizer, load_tokenizer};
use candlewick::run::Progress;
use candlewick::scores::{Detail, Scores};
use candlewick::task::Task;
use clap::{Args, ValueEnum};

use super::args::{ModelArgs, OutputArgs, TaskArgs};
use super::open::{load_options, open_model, open_task};
use super::{Context, destination, show};

/// Take the answer's logit apart, or read every layer through the lens. Nothing in the model is changed.
///
/// `--by` gives direct logit attribution: what each part adds to the target through the final norm and the unembedding.
/// The rows of a prompt sum to its logit exactly. `--lens logit` decodes the stream after each layer; `--lens token` what attention brings
/// from each role's tokens, and `--lens knockout` what the MLPs write less without that attention; `--lens early` decodes
/// after true and false demonstrations.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  candlewick logits
  candlewick logits --by component --target centred --per-example
  candlewick logits --by head-role --n-pairs 8 --out direct.parquet
  candlewick logits --by neuron --writes 4
  candlewick logits --by head --target Mary --against John
  candlewick logits --by source-class --subject S1,S2
  candlewick logits --lens logit
  candlewick logits --lens knockout --n-pairs 8")]
pub struct LogitsArgs {
    /// How far the logit is taken apart.
    #[arg(long, default_value = "head", conflicts_with = "lens")]
    pub by: ByChoice,
    /// What to look through instead.
    #[arg(long, value_name = "LENS")]
    pub lens: Option<LensChoice>,
    /// `difference` (answer less wrong answer), `answer`, `centred` (answer less the vocabulary's mean), or tokens of your own.
    #[arg(
        long,
        value_name = "TARGET",
        default_value = "difference",
        conflicts_with = "lens"
    )]
    pub target: Vec<String>,
    /// Tokens that the target's are compared with.
    #[arg(long, value_name = "TOKEN", requires = "target")]
    pub against: Vec<String>,
    /// For so many of the strongest parts, the tokens that they write for.
    #[arg(long, value_name = "N", default_value_t = 3)]
    pub writes: usize,
    /// Tokens in each list.
    #[arg(long, value_name = "N", default_value_t = 5)]
    pub tokens: usize,
    /// Roles that make up the subject, for `--by source-class`.
    #[arg(long, value_name = "ROLES", value_delimiter = ',')]
    pub subject: Vec<String>,
    /// Roles that make up the relation [default: every other position].
    #[arg(long, value_name = "ROLES", value_delimiter = ',')]
    pub relation: Vec<String>,
    /// Where the logit lens looks [default: all positions, if the prompts align; else the end].
    #[arg(long)]
    pub positions: Option<PositionsChoice>,
    /// Tokens that the Token Lens watches beside the answers.
    #[arg(long, value_name = "TOKEN")]
    pub watch: Vec<String>,
    #[command(flatten)]
    pub model: ModelArgs,
    #[command(flatten)]
    pub task: TaskArgs,
    #[command(flatten)]
    pub output: OutputArgs,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum ByChoice {
    Component,
    Head,
    Neuron,
    /// Head and source position.
    HeadSource,
    /// Head and role of the source.
    HeadRole,
    /// Heads classed by whether they read the subject or the relation.
    SourceClass,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum LensChoice {
    Logit,
    Token,
    Knockout,
    Early,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum PositionsChoice {
    All,
    End,
}

/// What was asked for, checked.
enum Asked {
    Direct(DlaConfig),
    Classes(SourceConfig),
    Lens(LensConfig),
    Token(TokenLensConfig),
    Early(EarlyConfig),
}

pub fn run(args: LogitsArgs, ctx: &Context) -> anyhow::Result<()> {
    let mut options = load_options(&args.model)?;
    options.show_download_progress &= !ctx.quiet;
    // Everything that can be wrong is found before the weights are read.
    let out = destination(&args.output, "logits.parquet", ctx)?;
    let (tokenizer, spec) = load_tokenizer(&args.model.model, &options)?;
    let embedded = args.model.model == EMBEDDED;
    let task = open_task(&args.task, &tokenizer, spec.n_ctx, embedded)?;
    ctx.warn_of(&task);
    let asked = asked(&args, &tokenizer, &spec, &task)?;
    let progress = ctx.progress();
    let model = open_model(&args.model, &options, ctx)?;
    let scores = measure(&asked, &model, &task, &progress)?;
    show::finish(scores, &out, &args.output, ctx)
}

fn asked(
    args: &LogitsArgs,
    tokenizer: &Tokenizer,
    spec: &ModelSpec,
    task: &Task,
) -> anyhow::Result<Asked> {
    let detail = match args.output.per_example {
        true => Detail::PerExample,
        false => Detail::Mean,
    };
    let seed = task.seed;
    let asked = match args.lens {
        None if args.by == ByChoice::SourceClass => Asked::Classes(SourceConfig {
            relation: args.relation.clone(),
            detail,
            seed,
            ..SourceConfig::new(args.subject.clone())
        }),
        None => Asked::Direct(DlaConfig {
            by: part(args.by),
            target: target(&args.target, &args.against, tokenizer)?,
            writes: args.writes,
            tokens: args.tokens,
            detail,
            seed,
        }),
        Some(LensChoice::Logit) => Asked::Lens(LensConfig {
            end_only: match args.positions {
                Some(positions) => positions == PositionsChoice::End,
                None => task.batches(usize::MAX).len() > 1,
            },
            tokens: args.tokens,
            detail,
            seed,
            ..LensConfig::new(task.metric)
        }),
        Some(lens @ (LensChoice::Token | LensChoice::Knockout)) => Asked::Token(TokenLensConfig {
            knockout: lens == LensChoice::Knockout,
            watch: tokens(&args.watch, tokenizer)?,
            detail,
            seed,
        }),
        Some(LensChoice::Early) => Asked::Early(EarlyConfig {
            detail,
            seed,
            ..EarlyConfig::default()
        }),
    };
    match &asked {
        Asked::Direct(config) => config.check(spec, task)?,
        Asked::Classes(config) => config.check(task)?,
        Asked::Lens(config) => config.check(task)?,
        Asked::Token(config) => config.check(spec.d_vocab, task)?,
        Asked::Early(config) => config.check(task)?,
    }
    Ok(asked)
}

fn part(by: ByChoice) -> Part {
    match by {
        ByChoice::Component => Part::Component,
        ByChoice::Head => Part::Head,
        ByChoice::Neuron => Part::Neuron,
        ByChoice::HeadSource => Part::HeadSource,
        ByChoice::HeadRole | ByChoice::SourceClass => Part::HeadRole,
    }
}

/// A word for one of the targets that every pair has, or tokens.
fn target(
    words: &[String],
    against: &[String],
    tokenizer: &Tokenizer,
) -> anyhow::Result<DirectTarget> {
    let of_pairs = match words {
        [word] => match word.as_str() {
            "difference" => Some(DirectTarget::Difference),
            "answer" => Some(DirectTarget::Answer),
            "centred" => Some(DirectTarget::Centred),
            _ => None,
        },
        _ => None,
    };
    match of_pairs {
        Some(target) if against.is_empty() => Ok(target),
        Some(_) => Err(Error::invalid(
            "`--against` goes with tokens of your own in `--target`; a pair's own answers are compared with its wrong ones",
        )
        .into()),
        None => Ok(DirectTarget::Tokens {
            for_: tokens(words, tokenizer)?,
            against: tokens(against, tokenizer)?,
        }),
    }
}

/// Each text as the one token that it is.
pub fn tokens(texts: &[String], tokenizer: &Tokenizer) -> anyhow::Result<Vec<u32>> {
    let one = |text: &String| match tokenizer.answer_ids(text)?[..] {
        [id] if tokenizer.unknown() != Some(id) => Ok(id),
        ref ids => Err(Error::invalid(format!(
            "`{text}` must be one token, and is {} to this tokenizer (a leading space often matters)",
            if ids.len() == 1 {
                "unknown".to_string()
            } else {
                format!("{} tokens", ids.len())
            }
        ))),
    };
    Ok(texts.iter().map(one).collect::<Result<_, Error>>()?)
}

fn measure(
    asked: &Asked,
    model: &Model,
    task: &Task,
    progress: &dyn Progress,
) -> candlewick::Result<Scores> {
    match asked {
        Asked::Direct(config) => direct_logit_attribution(model, task, config, progress),
        Asked::Classes(config) => source_classes(model, task, config, progress),
        Asked::Lens(config) => logit_lens(model, task, config, progress),
        Asked::Token(config) => token_lens(model, task, config, progress),
        Asked::Early(config) => early_decoding(model, task, config, progress),
    }
}
