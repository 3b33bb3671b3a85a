//! `candlewick pine`: questions whose documents stand in every order, with attention that does not know it and without.

use std::path::Path;
use std::sync::OnceLock;

use candlewick::Error;
use candlewick::methods::{Method, PineConfig};
use candlewick::model::{EMBEDDED, ModelSpec, Tokenizer};
use candlewick::task::{QuestionSet, Task};
use clap::Args;

use super::open::ask;
use super::session::{Ask, Asked, CommonArgs, Mode};

/// Answer questions whichever order their documents stand in, by attention that does not know the order (PINE).
///
/// Every token of a document sees the other documents too, and each head puts them where it wants them: nearest the one that it looks at
/// most by queries and keys without positions. What comes out is the same for every order. Beside it the model as it is. Said are the share of
/// orders in which the answer is the likeliest, by the place of the document that holds it too, and how far log probabilities and logits
/// move with the order. Positions must be rotary, slopes (ALiBi) or none.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  candlewick pine
  candlewick pine --orders 2 --n-pairs 2 --per-example --out two.parquet
  candlewick pine --orders 3 --n-pairs 2 --csv --out three.parquet")]
pub struct PineArgs {
    /// A file of questions (`.toml`, `.json` or `.csv` with `context`, `question`, `answer`, `gold`; each part of a context is a document), or a set that
    /// ships: `embedded`, `invented` [default: `embedded`, for the embedded model].
    #[arg(long, value_name = "FILE")]
    pub questions: Option<String>,
    /// How context and question make a prompt: a text with `{context}` and `{question}` in it [default: the file's, else both with an
    /// empty line between, and outside of a chat with `Question:` and `Answer:`].
    #[arg(long, value_name = "TEXT")]
    pub layout: Option<String>,
    /// Orders of each prompt, the written one and drawn ones [default: all of up to four documents, of more 5].
    #[arg(long, value_name = "N")]
    pub orders: Option<usize>,
    #[command(flatten)]
    pub common: CommonArgs,
    /// What is asked, once it is read.
    #[arg(skip)]
    read: OnceLock<QuestionSet>,
}

impl PineArgs {
    fn set(&self) -> anyhow::Result<&QuestionSet> {
        if let Some(set) = self.read.get() {
            return Ok(set);
        }
        let set = match &self.questions {
            Some(questions) => QuestionSet::open(questions)?,
            None if self.common.model.model == EMBEDDED => QuestionSet::open(EMBEDDED)?,
            None => {
                return Err(Error::invalid(
                    "there is nothing to ask the model; give a file of questions (`--questions FILE`), or `--questions invented`",
                )
                .into());
            }
        };
        let layout = self.layout.clone().or(set.layout.clone());
        Ok(self.read.get_or_init(|| QuestionSet { layout, ..set }))
    }
}

impl Ask for PineArgs {
    fn default_out(&self) -> &'static str {
        "pine.parquet"
    }

    fn mode(&self) -> Mode {
        Mode::new("`candlewick pine`", &["questions", "layout", "orders"]).of_questions()
    }

    fn reads(&self) -> Vec<&Path> {
        self.questions.iter().map(Path::new).collect()
    }

    fn task(&self, tokenizer: &Tokenizer, spec: &ModelSpec) -> anyhow::Result<Option<Task>> {
        let args = &self.common.task;
        Ok(Some(ask(self.set()?, args, tokenizer, spec.n_ctx)?))
    }

    fn method(&self, on: &Asked<'_>) -> anyhow::Result<Box<dyn Method>> {
        Ok(Box::new(PineConfig {
            orders: self.orders,
            seed: Some(on.task.seed),
            ..PineConfig::of(self.set()?)
        }))
    }
}
