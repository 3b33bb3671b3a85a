//! What is continued.

use candlewick::Error;
use candlewick::model::Tokenizer;
use candlewick::run::Roles;
use candlewick::text::printable;

use crate::cli::Context;
use crate::cli::args::TaskArgs;
use crate::cli::open::open_task;

/// Prompts of the task that are continued if `--n-pairs` says nothing.
const PROMPTS: u32 = 4;

/// A prompt to continue.
#[derive(Debug, Clone, Default)]
pub struct Prompt {
    pub text: String,
    pub tokens: Vec<u32>,
    pub roles: Roles,
    /// The other prompt of its pair.
    pub corrupted: Option<Vec<u32>>,
    /// Nothing should change on it.
    pub unrelated: bool,
}

/// The prompts given, or those of the task.
/// # Errors
/// Those of reading and tokenising them.
pub fn prompts(
    texts: &[String],
    task: &TaskArgs,
    tokenizer: &Tokenizer,
    n_ctx: usize,
    is_embedded: bool,
    ctx: &Context,
) -> anyhow::Result<(String, Vec<Prompt>)> {
    if texts.is_empty() {
        let mut task = task.clone();
        task.n_pairs = task.n_pairs.or(Some(PROMPTS));
        let task = open_task(&task, tokenizer, n_ctx, is_embedded)?;
        let name = task.name.clone();
        let pairs = task.into_pairs().into_iter().map(|pair| Prompt {
            corrupted: pair.is_aligned().then_some(pair.corrupted),
            text: pair.clean_text,
            tokens: pair.clean,
            roles: pair.roles,
            unrelated: false,
        });
        return Ok((name, pairs.collect()));
    }
    let given = given_prompts(texts, task, tokenizer, n_ctx, ctx)?;
    let prompts = given.into_iter().map(|(text, tokens)| Prompt {
        text,
        tokens,
        ..Prompt::default()
    });
    Ok(("prompts".into(), prompts.collect()))
}

/// The tokens that a text adds to a prompt.
/// # Errors
/// [`Error::Invalid`] where there is none, or where the two are not the prompt's tokens and then others.
pub fn continuation_of(
    prompt: &Prompt,
    text: &str,
    task: &TaskArgs,
    tokenizer: &Tokenizer,
) -> anyhow::Result<Vec<u32>> {
    let bos = candlewick::task::BosChoice::from(task.bos).resolve(tokenizer)?;
    let whole = tokenizer
        .encode(&format!("{}{text}", prompt.text), bos)?
        .ids;
    match whole.strip_prefix(&prompt.tokens[..]) {
        Some([]) | None => Err(Error::invalid(format!(
            "`{}` adds no tokens of its own to the prompt `{}`; begin it where a token begins, mostly with a space",
            printable(&candlewick::text::clipped(text, 60)),
            printable(&candlewick::text::clipped(&prompt.text, 60))
        ))
        .into()),
        Some(tokens) => Ok(tokens.to_vec()),
    }
}

/// Texts of the user's own, as the model reads them: each with its token ids.
pub fn given_prompts(
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
