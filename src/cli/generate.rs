//! `candlewick generate`: prompts continued, with edits in force.

use std::collections::BTreeMap;
use std::io::{self, BufWriter, Write};

use candlewick::Error;
use candlewick::hooks::{Edit, Hook, Op};
use candlewick::model::{EMBEDDED, Model, Tokenizer, open};
use candlewick::run::{
    GenerateRequest, MeanOf, Progress, Roles, Sampling, Source, Sources, check_room, generate,
    run_with_cache,
};
use candlewick::spec::ModelSpec;
use candlewick::text::printable;
use clap::{ArgGroup, Args};
use serde_json::json;

use super::Context;
use super::args::{ModelArgs, TaskArgs};
use super::feature::SaeArgs;
use super::open::{load_options, open_task, read_weights};

/// Prompts of the task that are continued if `--n-pairs` says nothing.
const PROMPTS: u32 = 4;

/// Continue prompts, greedily or by drawing, with edits in force all the while.
///
/// Without `--prompt`, the clean prompts of a task are continued (4 of them, unless `--n-pairs` says otherwise); edits can then
/// name its roles.
///
/// An edit is a site and a change: `z3[head=1]*=0`, `resid_pre2[pos=-1]+=0.5`, `mlp_out1=zero`,
/// `attn_scores2[key=@S2]=block`, `z2[pos=@END]=run:corrupted`. Without positions it applies to every position, also those of
/// generated tokens; absolute positions are as given, also for generated tokens; positions from the end and roles are the
/// prompt's. `run:clean` and `run:corrupted` are the runs of the task's pair, `freeze` writes what the unedited run of the prompt
/// has, `mean` the mean over all positions of the task's corrupted prompts (of all prompts given, with `--prompt`). `--seed` is
/// that of the drawn prompts and of the drawn tokens.
///
/// `--latent 61=4` clamps a latent of a sparse autoencoder, `61+=4` steers along it, `61*=0` takes it out; all other latents and what the
/// autoencoder does not explain stay as they are.
#[derive(Debug, Args)]
#[command(group = ArgGroup::new("changes").args(["edit", "latent"]).multiple(true))]
#[command(after_help = "Examples:
  candlewick generate
  candlewick generate --edit z1*=0 --compare --max-tokens 4
  candlewick generate --edit resid_pre0[pos=@S2]=run:corrupted --compare --max-tokens 2
  candlewick generate --latent 61=4 --latent 81*=0 --compare --max-tokens 4
  candlewick generate --temperature 1 --top-k 10 --seed 7 --json")]
pub struct GenerateArgs {
    /// A text to continue; can be given again.
    #[arg(
        long,
        short,
        value_name = "TEXT",
        conflicts_with_all = ["task", "pairs", "n_pairs", "corruption", "template", "metric", "unequal_lengths", "answer_space"]
    )]
    pub prompt: Vec<String>,
    /// A change of an activation; can be given again, and all are in force at once.
    #[arg(long, short, value_name = "EDIT")]
    pub edit: Vec<Edit>,
    /// A change of a latent, in force like an edit and made after all edits; can be given again.
    #[arg(long, value_name = "CHANGE")]
    pub latent: Vec<String>,
    /// Whose latents: a folder of SAELens, a `params.npz`, or `embedded` [default: embedded].
    #[arg(long, value_name = "PATH", requires = "latent")]
    pub sae: Option<String>,
    /// The hook where it is attached, where its files do not say so.
    #[arg(long, value_name = "HOOK", requires = "latent")]
    pub hook: Option<Hook>,
    /// Also continue without the edits.
    #[arg(long, requires = "changes")]
    pub compare: bool,
    /// At most so many tokens for each prompt.
    #[arg(long, value_name = "N", default_value_t = 16, value_parser = clap::value_parser!(u32).range(1..))]
    pub max_tokens: u32,
    /// Draw tokens at this temperature [default: always the most probable one].
    #[arg(long, value_name = "T")]
    pub temperature: Option<f64>,
    /// Draw among the K most probable tokens only.
    #[arg(long, value_name = "K", requires = "temperature")]
    pub top_k: Option<usize>,
    /// Draw among the fewest tokens that hold this share of the probability.
    #[arg(long, value_name = "P", requires = "temperature")]
    pub top_p: Option<f64>,
    /// Go on after the tokenizer's end-of-sequence token.
    #[arg(long)]
    pub ignore_eos: bool,
    /// A JSON object a line, with every token's id, text and log probability.
    #[arg(long)]
    pub json: bool,
    #[command(flatten)]
    pub model: ModelArgs,
    #[command(flatten)]
    pub task: TaskArgs,
}

/// A prompt to continue.
struct Prompt {
    text: String,
    tokens: Vec<u32>,
    roles: Roles,
    /// The other prompt of its pair.
    corrupted: Option<Vec<u32>>,
}

/// A prompt's continuation.
#[derive(Default)]
struct Continuation {
    tokens: Vec<u32>,
    log_probs: Vec<f64>,
}

pub fn run(args: &GenerateArgs, ctx: &Context) -> anyhow::Result<()> {
    let mut options = load_options(&args.model)?;
    options.show_download_progress &= !ctx.quiet;
    // Everything that can be wrong is found before the weights are read.
    let opened = open(&args.model.model, &options)?;
    let (tokenizer, spec) = (opened.tokenizer().clone(), opened.spec().clone());
    let edits = edits(args, &spec, ctx)?;
    let prompts = prompts(args, &tokenizer, spec.n_ctx, ctx)?;
    for prompt in &prompts {
        check_room(&spec, prompt.tokens.len(), args.max_tokens as usize)?;
    }
    let progress = ctx.progress();
    let model = read_weights(opened, ctx)?;
    let mean = mean(&model, &prompts, &edits)?;
    let stop = match args.ignore_eos {
        true => Vec::new(),
        false => tokenizer.ends(),
    };
    let continued =
        |edits: &[Edit]| continue_all(&model, &prompts, edits, &mean, args, &stop, &progress);
    let plain = (args.compare).then(|| continued(&[])).transpose()?;
    let edited = continued(&edits)?;
    let mut out = BufWriter::new(io::stdout().lock());
    for (i, prompt) in prompts.iter().enumerate() {
        let plain = plain.as_ref().map(|plain| (&[][..], &plain[i]));
        let runs = plain.into_iter().chain([(&edits[..], &edited[i])]);
        if args.json {
            for (edits, continuation) in runs {
                let row = as_json(&tokenizer, prompt, edits, continuation, &stop)?;
                writeln!(out, "{row}")?;
            }
        } else {
            writeln!(out, "{}", printable(&prompt.text))?;
            for (edits, continuation) in runs {
                write_continuation(&tokenizer, edits, continuation, &mut out)?;
            }
        }
    }
    Ok(out.flush()?)
}

/// Those of activations and of latents, checked.
fn edits(args: &GenerateArgs, spec: &ModelSpec, ctx: &Context) -> anyhow::Result<Vec<Edit>> {
    let mut edits = args.edit.clone();
    if !args.latent.is_empty() {
        let sae = SaeArgs {
            sae: args.sae.clone().unwrap_or_else(|| EMBEDDED.into()),
            hook: args.hook,
        };
        let sae = sae.open()?;
        sae.check(spec)?;
        sae.doubts.iter().for_each(|doubt| ctx.warn(doubt));
        let of_latents = args.latent.iter().map(|text| sae.edit(text));
        edits.extend(of_latents.collect::<candlewick::Result<Vec<_>>>()?);
    }
    edits.iter().try_for_each(|edit| edit.check(spec))?;
    Ok(edits)
}

/// The prompts given, or those of the task.
fn prompts(
    args: &GenerateArgs,
    tokenizer: &Tokenizer,
    n_ctx: usize,
    ctx: &Context,
) -> anyhow::Result<Vec<Prompt>> {
    if args.prompt.is_empty() {
        let mut task = args.task.clone();
        task.n_pairs = task.n_pairs.or(Some(PROMPTS));
        let task = open_task(&task, tokenizer, n_ctx, args.model.model == EMBEDDED)?;
        let pairs = task.into_pairs().into_iter().map(|pair| Prompt {
            corrupted: pair.is_aligned().then_some(pair.corrupted),
            text: pair.clean_text,
            tokens: pair.clean,
            roles: pair.roles,
        });
        return Ok(pairs.collect());
    }
    let given = given_prompts(&args.prompt, &args.task, tokenizer, n_ctx, ctx)?;
    let prompts = given.into_iter().map(|(text, tokens)| Prompt {
        text,
        tokens,
        roles: Roles::new(),
        corrupted: None,
    });
    Ok(prompts.collect())
}

/// Texts of the user's own, as the model reads them: each with its token ids.
pub(super) fn given_prompts(
    texts: &[String],
    task: &TaskArgs,
    tokenizer: &Tokenizer,
    n_ctx: usize,
    ctx: &Context,
) -> anyhow::Result<Vec<(String, Vec<u32>)>> {
    let bos = candlewick::task::BosChoice::from(task.bos).resolve(tokenizer)?;
    let date = task.date.as_deref().map(str::parse).transpose()?;
    let tokenizer = &tokenizer.clone().with_date(date);
    let prompts = texts.iter().enumerate().map(|(index, text)| {
        let text = if task.chat_template {
            tokenizer.chat(text)?
        } else {
            text.clone()
        };
        let encoded = tokenizer.encode(&text, bos)?;
        let (tokens, spans) = (encoded.ids, encoded.spans);
        let unknown = tokens.iter().position(|&id| Some(id) == tokenizer.unknown());
        if let Some(word) = unknown.and_then(|at| text.get(spans[at].clone())) {
            ctx.warn(&format!(
                "prompt {index}: the vocabulary cannot spell `{}`; the model reads its token for unknown words there",
                printable(word)
            ));
        }
        if tokens.is_empty() {
            return Err(Error::invalid(format!(
                "prompt {index} has no token; write something, or put BOS in front (`--bos yes`)"
            ))
            .into());
        }
        if tokens.len() > n_ctx {
            return Err(Error::TooLong {
                index,
                tokens: tokens.len(),
                limit: n_ctx,
            }
            .into());
        }
        Ok((text, tokens))
    });
    prompts.collect()
}

/// Prompts of one length at a time.
fn continue_all(
    model: &Model,
    prompts: &[Prompt],
    edits: &[Edit],
    mean: &Sources,
    args: &GenerateArgs,
    stop: &[u32],
    progress: &dyn Progress,
) -> anyhow::Result<Vec<Continuation>> {
    let mut groups: BTreeMap<usize, Vec<usize>> = BTreeMap::new();
    for (i, prompt) in prompts.iter().enumerate() {
        groups.entry(prompt.tokens.len()).or_default().push(i);
    }
    let mut all: Vec<Continuation> = prompts.iter().map(|_| Continuation::default()).collect();
    for group in groups.values() {
        let of_group: Vec<&Prompt> = group.iter().map(|&i| &prompts[i]).collect();
        let roles: Vec<Roles> = of_group.iter().map(|prompt| prompt.roles.clone()).collect();
        let request = GenerateRequest {
            edits,
            sources: sources(model, &of_group, edits, mean)?,
            roles: &roles,
            max_tokens: args.max_tokens as usize,
            sampling: match args.temperature {
                None => Sampling::Greedy,
                Some(temperature) => Sampling::Temperature {
                    temperature,
                    top_k: args.top_k,
                    top_p: args.top_p,
                },
            },
            stop,
            seed: args.task.seed.unwrap_or(0),
            keep_logits: false,
        };
        let tokens: Vec<Vec<u32>> = of_group
            .iter()
            .map(|prompt| prompt.tokens.clone())
            .collect();
        let generation = generate(model, &tokens, &request, progress)?;
        let made = generation.tokens.into_iter().zip(generation.log_probs);
        for (&i, (tokens, log_probs)) in group.iter().zip(made) {
            all[i] = Continuation { tokens, log_probs };
        }
    }
    Ok(all)
}

/// The runs that edits name: `clean`, `corrupted`, and `base` for those that freeze.
fn sources(
    model: &Model,
    prompts: &[&Prompt],
    edits: &[Edit],
    mean: &Sources,
) -> candlewick::Result<Sources> {
    let mut sources = mean.clone();
    let is_pair = prompts.iter().all(|prompt| prompt.corrupted.is_some());
    let own: Vec<Vec<u32>> = prompts.iter().map(|prompt| prompt.tokens.clone()).collect();
    let other: Vec<Vec<u32>> = (prompts.iter())
        .filter_map(|prompt| prompt.corrupted.clone())
        .collect();
    let runs = [
        ("base", &own, true),
        ("clean", &own, is_pair),
        ("corrupted", &other, is_pair),
    ];
    for (name, tokens, exists) in runs {
        let hooks = hooks_of(edits, |op| match op {
            Op::Freeze => name == "base",
            Op::FromRun(run) => run == name && name != "base",
            _ => false,
        });
        if exists && !hooks.is_empty() {
            let (_, cache) = run_with_cache(model, tokens, &hooks)?;
            sources = sources.with(name, Source::run(cache)?);
        }
    }
    Ok(sources)
}

/// The mean over all positions of the corrupted prompts, or of the prompts given, if an edit wants it.
fn mean(model: &Model, prompts: &[Prompt], edits: &[Edit]) -> candlewick::Result<Sources> {
    let hooks = hooks_of(edits, |op| matches!(op, Op::Mean));
    if hooks.is_empty() {
        return Ok(Sources::default());
    }
    let mut mean = MeanOf::new(false);
    for prompt in prompts {
        let tokens = prompt.corrupted.as_ref().unwrap_or(&prompt.tokens);
        let (_, cache) = run_with_cache(model, std::slice::from_ref(tokens), &hooks)?;
        mean.add(&cache)?;
    }
    Ok(Sources::default().with("mean", mean.finish(&model.spec)?))
}

/// The hooks of some edits, each once.
fn hooks_of(edits: &[Edit], wanted: impl Fn(&Op) -> bool) -> Vec<Hook> {
    let mut hooks: Vec<Hook> = Vec::new();
    for edit in edits.iter().filter(|edit| wanted(&edit.op)) {
        if !hooks.contains(&edit.site.hook) {
            hooks.push(edit.site.hook);
        }
    }
    hooks
}

fn write_continuation(
    tokenizer: &Tokenizer,
    edits: &[Edit],
    continuation: &Continuation,
    out: &mut impl Write,
) -> anyhow::Result<()> {
    let edits: Vec<String> = edits.iter().map(Edit::to_string).collect();
    let label = if edits.is_empty() {
        String::new()
    } else {
        format!("  [{}]", edits.join(", "))
    };
    let text = printable(&tokenizer.decode(&continuation.tokens)?);
    let log_prob: f64 = continuation.log_probs.iter().sum();
    writeln!(out, "  -> {text}{label}  ({log_prob:.2} nats)")?;
    Ok(())
}

/// What tokens add to the text of a prompt: of a text of its own some tokenizers leave out the first space.
fn continued(tokenizer: &Tokenizer, prompt: &[u32], tokens: &[u32]) -> candlewick::Result<String> {
    let before = tokenizer.decode(prompt)?;
    let all = tokenizer.decode(&[prompt, tokens].concat())?;
    match all.strip_prefix(&before) {
        Some(text) => Ok(text.into()),
        None => tokenizer.decode(tokens),
    }
}

fn as_json(
    tokenizer: &Tokenizer,
    prompt: &Prompt,
    edits: &[Edit],
    continuation: &Continuation,
    stop: &[u32],
) -> anyhow::Result<serde_json::Value> {
    let tokens = continuation.tokens.iter().zip(&continuation.log_probs);
    let tokens: Vec<_> = tokens
        .map(|(&id, log_prob)| json!({ "id": id, "text": tokenizer.token(id), "log_prob": log_prob }))
        .collect();
    let last = continuation.tokens.last();
    Ok(json!({
        "prompt": prompt.text,
        "prompt_ids": prompt.tokens,
        "edits": edits.iter().map(Edit::to_string).collect::<Vec<_>>(),
        "text": continued(tokenizer, &prompt.tokens, &continuation.tokens)?,
        "tokens": tokens,
        "stopped": last.is_some_and(|token| stop.contains(token)),
    }))
}
