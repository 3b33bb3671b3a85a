//! `candlewick generate`: prompts continued, with edits in force.

mod print;
mod prompts;
mod sources;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Instant;

use candlewick::Error;
use candlewick::hooks::{Edit, Hook};
use candlewick::methods::{
    Continuation, Distance, Writer, Written, continuations_table, continued_text,
};
use candlewick::model::{EMBEDDED, Model, Tokenizer, open};
use candlewick::run::{
    GenerateRequest, Generation, Progress, Roles, Sampling, Sources, check_room, counterfactuals,
    generate,
};
use candlewick::scores::{check_out, write_out};
use candlewick::spec::ModelSpec;
use clap::{ArgGroup, Args};
use serde_json::json;

use super::Context;
use super::args::{ModelArgs, TaskArgs};
use super::feature::SaeArgs;
use super::open::{load_options, read_weights};
pub use prompts::given_prompts;
use prompts::{Prompt, continuation_of};

/// Prompts whose logits are kept at once, to find the noise behind their texts.
const AT_ONCE: usize = 8;

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
/// `--counterfactual` asks what a text would have been. A model that draws its tokens takes the largest of logits plus Gumbel noise; of the text
/// that is there the noise is found in hindsight, and the edited model draws by the same noise. What the edits do not touch comes
/// out as it was. Said are the tokens that differ, and how many `--unrelated` prompts go on in another way: the rate of side effects.
#[derive(Debug, Args)]
#[command(group = ArgGroup::new("changes").args(["edit", "latent"]).multiple(true))]
#[command(after_help = "Examples:
  candlewick generate
  candlewick generate --edit z1*=0 --compare --max-tokens 4
  candlewick generate --edit resid_pre0[pos=@S2]=run:corrupted --compare --max-tokens 2
  candlewick generate --latent 61=4 --latent 81*=0 --compare --max-tokens 4
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
    let edits = edits(args, &spec, ctx)?;
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
    let progress = ctx.progress();
    let model = read_weights(opened, ctx)?;
    let began = Instant::now();
    let writing = Writing {
        args,
        model: &model,
        prompts: &prompts,
        originals: &originals,
        mean: sources::mean(&model, &prompts, &edits)?,
        stop: match args.ignore_eos {
            true => Vec::new(),
            false => tokenizer.ends(),
        },
        tokenizer: &tokenizer,
    };
    let continuations = writing.all(&edits, &progress)?;
    print::print(
        &continuations,
        &prompts,
        &edits,
        &writing.stop,
        &tokenizer,
        args.json,
    )?;
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
                "edits": edits.iter().map(Edit::to_string).collect::<Vec<_>>(),
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

    /// The temperature that tokens are drawn at, if they are.
    fn drawn_at(&self) -> Option<f64> {
        self.temperature.or(self.counterfactual.then_some(1.0))
    }
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

/// All that the continuations of a command share.
struct Writing<'a> {
    args: &'a GenerateArgs,
    model: &'a Model,
    tokenizer: &'a Tokenizer,
    prompts: &'a [Prompt],
    /// Continuations that were given, of the first prompts.
    originals: &'a [Vec<u32>],
    mean: Sources,
    stop: Vec<u32>,
}

impl Writing<'_> {
    /// The continuations of every prompt, those of a prompt one after another.
    fn all(&self, edits: &[Edit], progress: &dyn Progress) -> anyhow::Result<Vec<Continuation>> {
        let mut all: Vec<Vec<Continuation>> = vec![Vec::new(); self.prompts.len()];
        for batch in self.batches() {
            let written = self.batch(&batch, edits, progress)?;
            for (place, &at) in batch.iter().enumerate() {
                let mut before: Option<&[u32]> = None;
                for (writer, generation) in &written {
                    let one = self.continuation(at, *writer, generation, place, before)?;
                    all[at].push(one);
                    before = Some(&generation.tokens[place]);
                }
            }
        }
        Ok(all.into_iter().flatten().collect())
    }

    /// Prompts that run together: of one length, and all with a partner, an original, or none.
    fn batches(&self) -> Vec<Vec<usize>> {
        let mut groups: BTreeMap<_, Vec<usize>> = BTreeMap::new();
        for (at, prompt) in self.prompts.iter().enumerate() {
            let key = (
                prompt.tokens.len(),
                prompt.unrelated,
                at < self.originals.len(),
            );
            groups.entry(key).or_default().push(at);
        }
        let at_once = match self.args.counterfactual {
            true => AT_ONCE,
            false => usize::MAX,
        };
        let groups = groups.into_values();
        groups
            .flat_map(|group| {
                group
                    .chunks(at_once)
                    .map(<[usize]>::to_vec)
                    .collect::<Vec<_>>()
            })
            .collect()
    }

    /// What each run writes after the prompts of a batch; with two runs, the unedited one first.
    fn batch(
        &self,
        batch: &[usize],
        edits: &[Edit],
        progress: &dyn Progress,
    ) -> anyhow::Result<Vec<(Writer, Generation)>> {
        let args = self.args;
        let prompts: Vec<&Prompt> = batch.iter().map(|&at| &self.prompts[at]).collect();
        let roles: Vec<Roles> = prompts.iter().map(|prompt| prompt.roles.clone()).collect();
        let streams: Vec<u64> = batch.iter().map(|&at| at as u64).collect();
        let tokens: Vec<Vec<u32>> = prompts.iter().map(|prompt| prompt.tokens.clone()).collect();
        let edited = GenerateRequest {
            edits,
            sources: sources::sources(self.model, &prompts, edits, &self.mean)?,
            roles: &roles,
            max_tokens: args.max_tokens as usize,
            sampling: match args.drawn_at() {
                None => Sampling::Greedy,
                Some(temperature) => Sampling::Temperature {
                    temperature,
                    top_k: args.top_k,
                    top_p: args.top_p,
                },
            },
            stop: &self.stop,
            seed: args.seed(),
            streams: &streams,
            keep_logits: false,
        };
        let write =
            |request: &GenerateRequest<'_>| generate(self.model, &tokens, request, progress);
        if args.counterfactual {
            let given = batch
                .iter()
                .filter_map(|&at| self.originals.get(at).cloned());
            let given: Vec<Vec<u32>> = given.collect();
            let seed = args.noise_seed();
            let both = counterfactuals(self.model, &tokens, &given, &edited, seed, progress)?;
            return Ok(vec![
                (Writer::Original, both.original),
                (Writer::Counterfactual, both.counterfactual),
            ]);
        }
        let mut written = Vec::new();
        if args.compare || edits.is_empty() {
            let plain = GenerateRequest {
                edits: &[],
                ..edited.clone()
            };
            written.push((Writer::Plain, write(&plain)?));
        }
        if !edits.is_empty() {
            written.push((Writer::Edited, write(&edited)?));
        }
        Ok(written)
    }

    fn continuation(
        &self,
        at: usize,
        writer: Writer,
        generation: &Generation,
        place: usize,
        before: Option<&[u32]>,
    ) -> candlewick::Result<Continuation> {
        let prompt = &self.prompts[at];
        let tokens = generation.tokens[place].clone();
        Ok(Continuation {
            prompt: at,
            prompt_text: prompt.text.clone(),
            unrelated: prompt.unrelated,
            writer,
            text: continued_text(self.tokenizer, &prompt.tokens, &tokens)?,
            distance: before.map(|before| Distance::between(before, &tokens)),
            log_probs: generation.log_probs[place].clone(),
            tokens,
        })
    }
}
