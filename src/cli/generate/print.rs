//! What was written, on stdout.

use std::io::{self, BufWriter, Write};

use candlewick::methods::{Continuation, Writer, changes};
use candlewick::model::Tokenizer;
use candlewick::text::printable;
use serde_json::{Value, json};

use super::prompts::Prompt;

/// What continuations are said with.
pub struct Said<'a> {
    pub prompts: &'a [Prompt],
    /// What was changed.
    pub changes: &'a [String],
    pub stop: &'a [u32],
    pub tokenizer: &'a Tokenizer,
    /// How far the changes move the next token, in nats, on so many neutral texts.
    pub drift: Option<(f64, usize)>,
}

impl Said<'_> {
    /// Each prompt with its continuations; as JSON, an object a line.
    pub fn print(&self, continuations: &[Continuation], as_json: bool) -> anyhow::Result<()> {
        let Said {
            prompts,
            changes: edits,
            stop,
            tokenizer,
            drift,
        } = *self;
        let mut out = BufWriter::new(io::stdout().lock());
        let mut last = None;
        for one in continuations {
            let edits = match one.writer {
                Writer::Plain | Writer::Original => &[][..],
                Writer::Edited | Writer::Counterfactual => edits,
            };
            if as_json {
                let row = json_of(one, &prompts[one.prompt], edits, stop, tokenizer);
                writeln!(out, "{row}")?;
                continue;
            }
            if last.replace(one.prompt) != Some(one.prompt) {
                let unrelated = if one.unrelated { "  (unrelated)" } else { "" };
                writeln!(out, "{}{unrelated}", printable(&one.prompt_text))?;
            }
            write_continuation(one, edits, tokenizer, &mut out)?;
        }
        if !as_json
            && continuations
                .iter()
                .any(|one| one.writer == Writer::Counterfactual)
        {
            writeln!(out)?;
            for line in changes(continuations) {
                writeln!(out, "{line}")?;
            }
        }
        match drift {
            Some((nats, texts)) if as_json => {
                writeln!(out, "{}", json!({ "drift": nats, "texts": texts }))?
            }
            Some((nats, texts)) => writeln!(
                out,
                "\nchanged tokens of {texts} neutral texts drift by {nats:.4} nats a token"
            )?,
            None => {}
        }
        Ok(out.flush()?)
    }
}

fn write_continuation(
    one: &Continuation,
    edits: &[String],
    tokenizer: &Tokenizer,
    out: &mut impl Write,
) -> anyhow::Result<()> {
    let text = printable(&tokenizer.decode(&one.tokens)?);
    let log_prob = one.log_prob();
    if one.writer == Writer::Counterfactual {
        let differs = match one.distance.map_or(0, |distance| distance.edits) {
            0 => "the same".into(),
            1 => "1 edit".into(),
            n => format!("{n} edits"),
        };
        writeln!(out, "  => {text}  ({log_prob:.2} nats, {differs})")?;
        return Ok(());
    }
    let label = match edits.is_empty() {
        true => String::new(),
        false => format!("  [{}]", edits.join(", ")),
    };
    writeln!(out, "  -> {text}{label}  ({log_prob:.2} nats)")?;
    Ok(())
}

fn json_of(
    one: &Continuation,
    prompt: &Prompt,
    edits: &[String],
    stop: &[u32],
    tokenizer: &Tokenizer,
) -> Value {
    let tokens = one.tokens.iter().zip(&one.log_probs);
    let tokens: Vec<_> = tokens
        .map(|(&id, log_prob)| json!({ "id": id, "text": tokenizer.token(id), "log_prob": log_prob }))
        .collect();
    let last = one.tokens.last();
    let mut row = json!({
        "prompt": one.prompt_text,
        "prompt_ids": prompt.tokens,
        "edits": edits,
        "text": one.text,
        "tokens": tokens,
        "stopped": last.is_some_and(|token| stop.contains(token)),
    });
    if matches!(one.writer, Writer::Original | Writer::Counterfactual) {
        row["writer"] = json!(one.writer.name());
        row["unrelated"] = json!(one.unrelated);
    }
    if let Some(distance) = one.distance {
        row["edit_distance"] = json!(distance.edits);
    }
    row
}
