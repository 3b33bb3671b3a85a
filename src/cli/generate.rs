//! `candlewick generate`: prompts continued, with edits in force.

mod changes;
mod print;
mod prompts;
mod sources;
mod writing;

use std::path::PathBuf;
use std::time::Instant;

use candlewick::Error;
use candlewick::hooks::{Edit, Hook};
use candlewick::methods::{SteerAt, Written, continuations_table, drift};
use candlewick::model::{EMBEDDED, Tokenizer, open};
use candlewick::run::{Sampling, check_room};
use candlewick::scores::{check_out, write_out};
use candlewick::spec::ModelSpec;
use clap::{ArgGroup, Args};
use serde_json::json;

use super::Context;
use super::args::{ModelArgs, TaskArgs};
use super::open::{load_options, read_weights};
use changes::{Changes, LatentChanges, SteeringChanges, dictionary};
pub use prompts::given_prompts;
use prompts::{Prompt, continuation_of};
use writing::Writing;

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
///
/// `--steer FILE` adds a vector, times `--alpha`, at the positions of `--at`; `--drift TEXT` says how far all changes move the model on a text that
/// they are not about.
///
/// `--counterfactual` asks what a text would have been. A model that draws its tokens takes the largest of logits plus Gumbel noise; of the text
/// that is there the noise is found in hindsight, and the edited model draws by the same noise. What the edits do not touch comes
/// out as it was. Said are the tokens that differ, and how many `--unrelated` prompts go on in another way: the rate of side effects.
#[derive(Debug, Args)]
#[command(group = ArgGroup::new("changes").args(["edit", "latent", "steer"]).multiple(true))]
#[command(after_help = "Examples:
  candlewick generate
  candlewick generate --edit z1*=0 --compare --max-tokens 4
  candlewick generate --edit resid_pre0[pos=@S2]=run:corrupted --compare --max-tokens 2
  candlewick generate --latent 61=4 --latent 81*=0 --compare --max-tokens 4
  candlewick subspace --layers 2 --method mean-difference --save-direction md.safetensors
  candlewick generate --steer md.safetensors --alpha=-4 --at -1,generated --compare
  candlewick generate --temperature 1 --top-k 10 --seed 7 --json
  candlewick generate -e z3[head=1]*=0 --counterfactual --n-pairs 9 --out texts.parquet
  candlewick generate -p 'then Mary' --original ' met Olga' -e z1*=0 --counterfactual")]
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
    /// A vector to add: `FILE` or `FILE:TENSOR` (`.npy`, `.safetensors`, directions of `subspace --save-direction`), with `HOOK=` in front where
    /// the file does not say the hook; can be given again.
    #[arg(long, value_name = "[HOOK=]FILE")]
    pub steer: Vec<String>,
    /// With `--steer`: what vectors are multiplied by [default: 1].
    #[arg(
        long,
        value_name = "NUMBER",
        requires = "steer",
        allow_hyphen_values = true
    )]
    pub alpha: Option<f32>,
    /// With `--steer`: `all`, `prompt`, `generated`, `generated:0-3`, positions and roles of the prompt (`-1,@S2`) [default: all].
    #[arg(
        long,
        value_name = "WHERE",
        requires = "steer",
        allow_hyphen_values = true
    )]
    pub at: Option<SteerAt>,
    /// A text that the changes are not about: how far they move its tokens (KL, nats a token), vectors added at each; can be given again.
    #[arg(long, value_name = "TEXT", requires = "changes")]
    pub drift: Vec<String>,
    /// Also continue without the edits.
    #[arg(long, requires = "changes")]
    pub compare: bool,
    /// What drawn texts would have been under the edits: each prompt is continued without them, and then with them by the same noise
    /// [temperature: 1].
    #[arg(long, requires = "changes", conflicts_with_all = ["compare", "top_k", "top_p"])]
    pub counterfactual: bool,
    /// With `--counterfactual`: a text that continues the prompt, in place of a drawn one; once for each prompt.
    #[arg(long, value_name = "TEXT", requires = "counterfactual")]
    pub original: Vec<String>,
    /// With `--counterfactual`: a prompt that the edits should leave alone; can be given again.
    #[arg(long, value_name = "TEXT", requires = "counterfactual")]
    pub unrelated: Vec<String>,
    /// With `--counterfactual`: of the noise that is found for each text [default: that of `--seed`].
    #[arg(long, value_name = "N", requires = "counterfactual")]
    pub noise_seed: Option<u64>,
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
    /// A table of what was written: `.parquet`, or `.csv` or `.jsonl` for other programs.
    #[arg(long, short, value_name = "FILE")]
    pub out: Option<PathBuf>,
    /// Replace the results of another command, or a file that is not ours.
    #[arg(long, requires = "out")]
    pub force: bool,
    #[command(flatten)]
    pub model: ModelArgs,
    #[command(flatten)]
    pub task: TaskArgs,
}

pub fn run(args: &GenerateArgs, ctx: &Context) -> anyhow::Result<()> {
    let mut options = load_options(&args.model)?;
    options.show_download_progress &= !ctx.quiet;
    // Everything that can be wrong is found before the weights are read.
    if let Some(out) = &args.out {
        check_out(out, &ctx.command, args.force)?;
    }
    let opened = open(&args.model.model, &options)?;
    let (tokenizer, spec) = (opened.tokenizer().clone(), opened.spec().clone());
    let changes = args.changes(&spec, ctx)?;
    let is_embedded = args.model.model == EMBEDDED;
    let (task, mut prompts) = prompts::prompts(
        &args.prompt,
        &args.task,
        &tokenizer,
        spec.n_ctx,
        is_embedded,
        ctx,
    )?;
    let originals = originals(args, &prompts, &tokenizer)?;
    if !args.unrelated.is_empty() {
        let (texts, given) = (&args.unrelated, &args.task);
        let (_, unrelated) =
            prompts::prompts(texts, given, &tokenizer, spec.n_ctx, is_embedded, ctx)?;
        prompts.extend(unrelated.into_iter().map(|prompt| Prompt {
            unrelated: true,
            ..prompt
        }));
    }
    for prompt in &prompts {
        check_room(&spec, prompt.tokens.len(), args.max_tokens as usize)?;
    }
    let neutral = given_prompts(&args.drift, &args.task, &tokenizer, spec.n_ctx, ctx)?;
    for prompt in &prompts {
        changes.edits(prompt.tokens.len(), args.max_tokens as usize)?;
    }
    let progress = ctx.progress();
    let model = read_weights(opened, ctx)?;
    let began = Instant::now();
    let edits = changes.everywhere();
    let writing = Writing {
        model: &model,
        tokenizer: &tokenizer,
        prompts: &prompts,
        originals: &originals,
        changes: &changes,
        mean: sources::mean(&model, &prompts, &edits)?,
        stop: match args.ignore_eos {
            true => Vec::new(),
            false => tokenizer.ends(),
        },
        sampling: args.sampling(),
        max_tokens: args.max_tokens as usize,
        seed: args.seed(),
        compare: args.compare,
        noise_seed: args.counterfactual.then(|| args.noise_seed()),
    };
    let continuations = writing.all(&progress)?;
    let said = print::Said {
        prompts: &prompts,
        changes: &changes.labels(),
        stop: &writing.stop,
        tokenizer: &tokenizer,
        drift: match &neutral[..] {
            [] => None,
            texts => {
                let tokens: Vec<Vec<u32>> = texts.iter().map(|(_, ids)| ids.clone()).collect();
                Some((drift(&model, &tokens, &edits)?, texts.len()))
            }
        },
    };
    said.print(&continuations, args.json)?;
    let Some(out) = &args.out else {
        return Ok(());
    };
    let bos = candlewick::task::BosChoice::from(args.task.bos).resolve(&tokenizer)?;
    let mut scores = continuations_table(
        &model,
        Written {
            continuations: &continuations,
            task: &task,
            bos,
            chat: args.task.chat_template,
            seed: args.seed(),
            settings: json!({
                "edits": changes.labels(),
                "drift": said.drift.map(|(nats, _)| nats),
                "max_tokens": args.max_tokens,
                "temperature": args.drawn_at(),
                "top_k": args.top_k,
                "top_p": args.top_p,
                "noise_seed": args.counterfactual.then(|| args.noise_seed()),
                "ignore_eos": args.ignore_eos,
            }),
            took: began.elapsed(),
        },
    )?;
    let folder = std::env::current_dir().unwrap_or_default();
    scores.made_by(&ctx.command, &folder.to_string_lossy());
    write_out(&scores, out, args.force)?;
    if !args.json {
        println!("{} rows: {}", scores.table.height(), out.display());
    }
    Ok(())
}

impl GenerateArgs {
    fn seed(&self) -> u64 {
        self.task.seed.unwrap_or(0)
    }

    fn noise_seed(&self) -> u64 {
        self.noise_seed.unwrap_or(self.seed())
    }

    fn sampling(&self) -> Sampling {
        match self.drawn_at() {
            None => Sampling::Greedy,
            Some(temperature) => Sampling::Temperature {
                temperature,
                top_k: self.top_k,
                top_p: self.top_p,
            },
        }
    }

    fn changes(&self, spec: &ModelSpec, ctx: &Context) -> anyhow::Result<Changes> {
        let latents = LatentChanges {
            changes: &self.latent,
            sae: &dictionary(&self.sae, self.hook),
        };
        let steering = SteeringChanges {
            vectors: &self.steer,
            alpha: self.alpha,
            at: self.at.as_ref(),
        };
        changes::changes(&self.edit, &latents, &steering, spec, ctx)
    }

    /// The temperature that tokens are drawn at, if they are.
    fn drawn_at(&self) -> Option<f64> {
        self.temperature.or(self.counterfactual.then_some(1.0))
    }
}

/// The continuations that were given, one for each prompt, or none.
fn originals(
    args: &GenerateArgs,
    prompts: &[Prompt],
    tokenizer: &Tokenizer,
) -> anyhow::Result<Vec<Vec<u32>>> {
    if !args.original.is_empty() && args.original.len() != prompts.len() {
        return Err(Error::invalid(format!(
            "`--original` is given {} times for {} prompts; give it once for each, in their order, or leave it out to have them drawn",
            args.original.len(),
            prompts.len()
        ))
        .into());
    }
    let of_prompt = |(index, (prompt, text)): (usize, (&Prompt, &String))| {
        let tokens = continuation_of(prompt, text, &args.task, tokenizer)?;
        if tokens.len() > args.max_tokens as usize {
            return Err(Error::invalid(format!(
                "original {index} has {} tokens; allow as many with `--max-tokens {}`",
                tokens.len(),
                tokens.len()
            ))
            .into());
        }
        Ok(tokens)
    };
    let pairs = prompts.iter().zip(&args.original).enumerate();
    pairs.map(of_prompt).collect()
}
