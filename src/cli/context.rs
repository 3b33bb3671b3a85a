//! `candlewick context`: which sentences of a context an answer rests on.

use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use candlewick::Error;
use candlewick::hooks::Node;
use candlewick::methods::{ContextConfig, ContextMethod, KlOrder, Method, Steer};
use candlewick::model::{EMBEDDED, ModelSpec, Tokenizer};
use candlewick::task::questions::read_sentences;
use candlewick::task::{Question, QuestionSet, Task};
use clap::{Args, ValueEnum};

use super::open::ask;
use super::session::{Ask, Asked, CommonArgs, Mode};

/// Ask which sentences of a context an answer rests on.
///
/// One question (`--question`, `--context-file`), or a file of them (`--questions`), whose answers are given or the model's own. The prompt
/// is made anew without each sentence, through the chat template with `--chat-template`, and the same answer is forced.
///
/// `arc-jsd`: how far the distributions over the answer's tokens move without it, as Jensen-Shannon divergences (nats, summed over the
/// answer). `leave-one-out`: how much the answer's log probability falls. `sparse-fit`: its weight in a sparse linear fit of the answer's
/// log odds to random choices of sentences. `attention`: the mean weight from where the answer is written to its tokens. `cosine`: how
/// like the states of answer and sentence are. `attn-attrib`: the highest weight of one head on it. Where a file says which sentence is the right one (`gold`), each
/// method is judged by its best sentence, beside chance.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  candlewick context
  candlewick context --method all --per-example
  candlewick context --method leave-one-out,sparse-fit --draws 8 --n-pairs 1
  candlewick context --method attn-attrib --head a3.h1
  candlewick context --lens --n-pairs 2
  candlewick context --own-answers --max-answer 3 --steer hint
  candlewick context --own-answers --max-answer 3 --steer scale --head a3.h1 --factor 2
  candlewick context --kl-order released --n-pairs 2")]
pub struct ContextArgs {
    /// A file of questions (`.toml`, `.json` or `.csv` with `context`, `question`, `answer`, `gold`), or a set that ships: `embedded`, `invented`
    /// [default: `embedded`, for the embedded model].
    #[arg(long, value_name = "FILE", conflicts_with_all = ["question", "context_file"])]
    pub questions: Option<String>,
    /// One question.
    #[arg(long, value_name = "TEXT", requires = "context_file")]
    pub question: Option<String>,
    /// The text that it is about, whose sentences are told apart.
    #[arg(long, value_name = "FILE", requires = "question")]
    pub context_file: Option<PathBuf>,
    /// Each line of that text is one part, in the place of its sentences.
    #[arg(long, requires = "context_file")]
    pub lines: bool,
    /// The answer that is asked about [default: the model's own, greedily].
    #[arg(long, value_name = "TEXT", requires = "question")]
    pub answer: Option<String>,
    /// How context and question make a prompt: a text with `{context}` and `{question}` in it [default: the file's, else both with an
    /// empty line between, and outside of a chat with `Question:` and `Answer:`].
    #[arg(long, value_name = "TEXT")]
    pub layout: Option<String>,
    /// Ask about the model's own answers where others are given.
    #[arg(long)]
    pub own_answers: bool,
    /// At most so many tokens of an answer of the model's own [default: 16].
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub max_answer: Option<u32>,
    /// arc-jsd, leave-one-out, sparse-fit, attention, cosine, attn-attrib, or `all`; several with commas.
    #[arg(
        long,
        value_name = "NAME",
        value_delimiter = ',',
        default_value = "arc-jsd"
    )]
    pub method: Vec<String>,
    /// Of arc-jsd: `bounded`, the Jensen-Shannon divergence, or `released`, the other way round as in the authors' code
    /// [default: bounded].
    #[arg(long, value_name = "WHICH")]
    pub kl_order: Option<KlOrder>,
    /// Of sparse-fit: random choices of sentences to fit to [default: 32].
    #[arg(long, value_name = "N")]
    pub draws: Option<usize>,
    /// Of attn-attrib: the head, such as `a9.h6` [default: for each question the one that is right most often on the others].
    #[arg(long, value_name = "HEAD")]
    pub head: Option<Node>,
    /// Of cosine: the layer whose states are compared [default: the middle one].
    #[arg(long, value_name = "N")]
    pub layer: Option<usize>,
    /// Also whose own output says other words without arc-jsd's best sentence, head by head and MLP by MLP (three more passes).
    #[arg(long)]
    pub lens: bool,
    /// Also answer again, led to the first method's best sentence: by a `hint` (it stands once more behind the context), or by `scale` (--head
    /// times --factor); and led as much to another sentence, or by another head. Right is an answer that has the expected one in it.
    #[arg(long, value_name = "HOW", requires = "own_answers")]
    pub steer: Option<SteerChoice>,
    /// Of `--steer scale` [default: 2].
    #[arg(
        long,
        value_name = "NUMBER",
        requires = "steer",
        allow_hyphen_values = true
    )]
    pub factor: Option<f32>,
    #[command(flatten)]
    pub common: CommonArgs,
    /// What is asked, once it is read.
    #[arg(skip)]
    read: OnceLock<QuestionSet>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum SteerChoice {
    Hint,
    Scale,
}

impl ContextArgs {
    /// `all` are those that the questions allow: a head is found on questions whose right sentence is known.
    fn methods(&self, set: &QuestionSet, task: &Task) -> candlewick::Result<Vec<ContextMethod>> {
        if self.method == ["all"] {
            let has_head = self.head.is_some() || set.known_contexts(task) > 1;
            let mut all = ContextMethod::ALL.to_vec();
            all.retain(|&method| has_head || method != ContextMethod::AttnAttrib);
            return Ok(all);
        }
        self.method.iter().map(|name| name.parse()).collect()
    }

    /// What is asked. It is read once: what a pipe gives is gone then.
    fn set(&self) -> anyhow::Result<&QuestionSet> {
        if let Some(set) = self.read.get() {
            return Ok(set);
        }
        let set = self.read_set()?;
        let is_given = |one: &Question| one.answer.is_some();
        if self.max_answer.is_some() && !self.own_answers && set.questions.iter().all(is_given) {
            return Err(Error::invalid(
                "`--max-answer` is for answers of the model's own, and all of these are given; leave it out, or add `--own-answers`",
            )
            .into());
        }
        Ok(self.read.get_or_init(|| set))
    }

    fn read_set(&self) -> anyhow::Result<QuestionSet> {
        // Of a flag that stands against what another requires, clap forgets the requirement: `--questions` stands against `--question`.
        let of_one = [("--answer", self.answer.is_some()), ("--lines", self.lines)];
        if let (Some((flag, _)), true) =
            (of_one.iter().find(|it| it.1), self.context_file.is_none())
        {
            return Err(Error::invalid(format!(
                "`{flag}` is for one question (`--question TEXT --context-file FILE`); in a file of questions each has its own"
            ))
            .into());
        }
        let set = match (&self.question, &self.context_file, &self.questions) {
            (Some(question), Some(path), _) => QuestionSet::new(
                "question",
                [Question {
                    context: read_sentences(path, self.lines)?,
                    question: question.clone(),
                    answer: self.answer.clone(),
                    gold: None,
                }],
            ),
            (_, _, Some(questions)) => QuestionSet::open(questions)?,
            _ if self.common.model.model == EMBEDDED => QuestionSet::open(EMBEDDED)?,
            _ => {
                return Err(Error::invalid(
                    "there is nothing to ask the model; give a question with its text (`--question TEXT --context-file FILE`), or a file of \
                     questions (`--questions FILE`)",
                )
                .into());
            }
        };
        Ok(QuestionSet {
            layout: self.layout.clone().or(set.layout),
            own_answers: self.own_answers,
            max_answer: self.max_answer.map_or(set.max_answer, |n| n as usize),
            ..set
        })
    }
}

impl Ask for ContextArgs {
    fn default_out(&self) -> &'static str {
        "context.parquet"
    }

    fn mode(&self) -> Mode {
        Mode::new(
            "`candlewick context`",
            &[
                "questions",
                "question",
                "context_file",
                "lines",
                "answer",
                "layout",
                "max_answer",
                "method",
                "kl_order",
                "draws",
                "head",
                "layer",
                "lens",
                "own_answers",
                "steer",
                "factor",
            ],
        )
        .of_questions()
    }

    fn reads(&self) -> Vec<&Path> {
        let questions = self.questions.iter().map(Path::new);
        questions.chain(self.context_file.as_deref()).collect()
    }

    fn task(&self, tokenizer: &Tokenizer, spec: &ModelSpec) -> anyhow::Result<Option<Task>> {
        let args = &self.common.task;
        Ok(Some(ask(self.set()?, args, tokenizer, spec.n_ctx)?))
    }

    fn method(&self, on: &Asked<'_>) -> anyhow::Result<Box<dyn Method>> {
        let set = self.set()?;
        let methods = self.methods(set, on.task)?;
        let head = match self.head {
            None => None,
            Some(Node::Head { layer, head }) => Some((layer, head)),
            Some(other) => {
                return Err(Error::invalid(format!(
                    "`--head {other}` is no attention head; write one such as `a9.h6`"
                ))
                .into());
            }
        };
        if self.draws.is_some() && !methods.contains(&ContextMethod::SparseFit) {
            return Err(Error::invalid(
                "`--draws` are those of `sparse-fit`, which is not asked for; leave them out",
            )
            .into());
        }
        let steer = match (self.steer, self.factor) {
            (Some(SteerChoice::Scale), factor) => Some(Steer::Scale(factor.unwrap_or(2.0))),
            (Some(SteerChoice::Hint), None) => Some(Steer::Hint),
            (_, Some(_)) => {
                return Err(
                    Error::invalid("`--factor` is that of `--steer scale`; leave it out").into(),
                );
            }
            (None, None) => None,
        };
        let config = ContextConfig::new(set.clone(), methods);
        Ok(Box::new(ContextConfig {
            kl_order: self.kl_order.unwrap_or_default(),
            draws: self.draws.unwrap_or(config.draws),
            head,
            layer: self.layer,
            lens: self.lens,
            steer,
            seed: Some(on.task.seed),
            ..config
        }))
    }
}
