//! `candlewick heads`: what each attention head looks like, and what it is to the model's answers.

use std::path::{Path, PathBuf};

use candlewick::Error;
use candlewick::hooks::Node;
use candlewick::methods::{
    Candidate, HeadChange, HeadConfig, Method, NegativeConfig, ReplaceBy, ReplacementConfig,
    Search, ShipsConfig, single_tokens,
};
use clap::{Args, ValueEnum};

use super::session::{Ask, Asked, CommonArgs, Mode};

/// Label every attention head with what it looks like: previous-token, duplicate-token, induction, copying.
///
/// Measured on random tokens that come twice, and on the task's prompts (where the last position looks). `--circuit` reads
/// what a head writes for (OV) and what it looks for (QK), token by token, from its weights.
///
/// With `--score` heads are scored by what they are to the answers; `candlewick scale --by` scales heads by such a table on other prompts, and
/// `candlewick ablate --ranked` takes out its highest, or its `--lowest`.
///
/// `replacement`: the probability of the answer where a head says what the other heads of its layer say in the mean; `pos` is what right answers
/// lose by it, `neg` what wrong ones gain, each 0 on prompts that go the other way, so that neither is ever below 0. Its `score` is what the
/// probability becomes less what it was, so that the heads that it ranks highest do harm (`ablate --ranked FILE --lowest` takes out what is needed).
///
/// `ships`: how far the next token's distribution moves without a head's attention, on a task's prompts or on lines of text (`--texts`).
/// `sahara`: also the heads that together turn the states of all prompts most, found one by one, beside random ones.
///
/// `negative-attention`: how much a head prefers the negative one of two answers that the prompt names (`--positive`, `--negative`), and what
/// precision and recall of the positive answer are without the highest heads, on prompts that they were not chosen on.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  candlewick heads
  candlewick heads --repeat-length 12 --samples 4 --csv
  candlewick heads --circuit a3.h1 --from Mary --from store
  candlewick heads --score replacement --n-pairs 8 --out replacement.parquet
  candlewick scale --by replacement.parquet --seed 8 --n-pairs 8 --out modulated.parquet
  candlewick heads --score ships --change mean --n-pairs 4
  candlewick heads --score sahara --steps 2 --draws 3 --n-pairs 6
  candlewick heads --score negative-attention --positive @IO --negative @S2 --n-pairs 8")]
pub struct HeadsArgs {
    /// Score heads by what they are to the answers.
    #[arg(long, value_name = "HOW")]
    pub score: Option<ScoreChoice>,
    /// With `--score replacement`: what stands in the place of a head's output [default: others].
    #[arg(long, value_name = "WHAT")]
    pub replace_by: Option<ReplaceChoice>,
    /// With `--score ships` or `sahara`: what is done to a head [default: undifferentiated].
    #[arg(long, value_name = "WHAT")]
    pub change: Option<ChangeChoice>,
    /// With `--score ships` or `sahara`: lines of text in the place of a task, a prompt each.
    #[arg(long, value_name = "FILE", conflicts_with_all = ["task", "pairs", "template", "corruption"])]
    pub texts: Option<PathBuf>,
    /// With `--score sahara`: heads that are added [default: 3].
    #[arg(long, value_name = "N")]
    pub steps: Option<usize>,
    /// With `--score sahara`: first singular vectors that are compared [default: 1].
    #[arg(long, value_name = "N")]
    pub rank: Option<usize>,
    /// With `--score sahara`: random groups of as many heads [default: 5]; with `negative-attention` random sets [default: 10].
    #[arg(long, value_name = "N")]
    pub draws: Option<usize>,
    /// With `--score sahara`: a text that declines, whose log probability behind each prompt is told.
    #[arg(long, value_name = "TEXT")]
    pub decline: Option<String>,
    /// With `--score sahara`: an answer that has this in it refuses, and how many do is told; may be given more than once.
    #[arg(long, value_name = "TEXT")]
    pub refusal: Vec<String>,
    /// With `--refusal`: tokens of an answer [default: 12].
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub answer_tokens: Option<u32>,
    /// With `--score negative-attention`: where the prompt names the positive answer, a role (`@YES`) or a word (`yes`).
    #[arg(long, value_name = "PLACE")]
    pub positive: Option<Candidate>,
    /// With `--score negative-attention`: where it names the negative one.
    #[arg(long, value_name = "PLACE")]
    pub negative: Option<Candidate>,
    /// With `--score negative-attention`: heads that count as highest [default: 20, or a quarter of all].
    #[arg(long, value_name = "N")]
    pub highest: Option<usize>,
    /// Different random tokens in a sequence, each of which comes twice [default: 24, or what the context takes].
    #[arg(long, value_name = "N")]
    pub repeat_length: Option<usize>,
    /// How many sequences.
    #[arg(long, value_name = "N", default_value_t = 8)]
    pub samples: usize,
    /// Heads whose OV and QK circuits are read out, such as `a3.h1`.
    #[arg(long, value_name = "HEAD", value_delimiter = ',')]
    pub circuit: Vec<Node>,
    /// Tokens that the circuits start from [default: those at the roles of the first prompt].
    #[arg(long, value_name = "TOKEN")]
    pub from: Vec<String>,
    /// Tokens in each list.
    #[arg(long, value_name = "N", default_value_t = 5)]
    pub tokens: usize,
    #[command(flatten)]
    pub common: CommonArgs,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum ScoreChoice {
    /// Positive and negative heads, by what stands in their place.
    Replacement,
    /// How far the next token's distribution moves.
    Ships,
    /// That, and the group of heads that turns the model most.
    Sahara,
    /// How much heads prefer the negative answer that a prompt names.
    NegativeAttention,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum ReplaceChoice {
    /// The mean of the layer's other heads.
    Others,
    Zero,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum ChangeChoice {
    /// Queries times 1e-5: every key that is seen weighs the same.
    Undifferentiated,
    /// `z` times 1e-5.
    Scaled,
    /// `z` is its mean over all positions of all prompts.
    Mean,
}

impl Ask for HeadsArgs {
    fn default_out(&self) -> &'static str {
        match self.score {
            None => "heads.parquet",
            Some(ScoreChoice::Replacement) => "replacement.parquet",
            Some(ScoreChoice::Ships) => "ships.parquet",
            Some(ScoreChoice::Sahara) => "sahara.parquet",
            Some(ScoreChoice::NegativeAttention) => "negative.parquet",
        }
    }

    /// What heads look like is no matter of answers, so `--metric` does nothing; and each score has a metric of its own.
    fn mode(&self) -> Mode {
        let looks = ["repeat_length", "samples", "circuit"];
        let mode = match self.score {
            Some(ScoreChoice::Replacement) => Mode::new("`--score replacement`", &["replace_by"]),
            Some(ScoreChoice::Ships) => Mode::new("`--score ships`", &["change", "texts"]),
            Some(ScoreChoice::Sahara) => {
                let acts = [
                    "change", "texts", "steps", "rank", "draws", "decline", "refusal",
                ];
                let mode = Mode::new("`--score sahara`", &acts);
                match self.refusal.is_empty() {
                    true => mode.instead("answer_tokens", "say what refuses (`--refusal TEXT`)"),
                    false => mode.and(&["answer_tokens"]),
                }
            }
            Some(ScoreChoice::NegativeAttention) => Mode::new(
                "`--score negative-attention`",
                &["positive", "negative", "highest", "draws"],
            ),
            None if self.circuit.is_empty() => {
                Mode::new("neither `--score` nor `--circuit`", &looks)
            }
            None => Mode::new("`--circuit`", &looks).and(&["from", "tokens"]),
        };
        // A flag of another score says which.
        let mode = [
            ("replace_by", "it is for `--score replacement`"),
            ("change", "it is for `--score ships` or `sahara`"),
            ("texts", "it is for `--score ships` or `sahara`"),
            ("steps", "it is for `--score sahara`"),
            ("rank", "it is for `--score sahara`"),
            (
                "draws",
                "it is for `--score sahara` or `negative-attention`",
            ),
            ("decline", "it is for `--score sahara`"),
            ("refusal", "it is for `--score sahara`"),
            (
                "answer_tokens",
                "it is for `--score sahara` with `--refusal TEXT`",
            ),
            ("positive", "it is for `--score negative-attention`"),
            ("negative", "it is for `--score negative-attention`"),
            ("highest", "it is for `--score negative-attention`"),
            ("from", "name heads to read out (`--circuit a3.h1`)"),
            ("tokens", "name heads to read out (`--circuit a3.h1`)"),
        ]
        .into_iter()
        .fold(mode, |mode, (flag, remedy)| mode.instead(flag, remedy));
        let mode = mode.and(&["score"]).idle(&["metric"]);
        match self.score {
            Some(_) => mode.idle(&["verify"]),
            None => mode,
        }
    }

    fn texts(&self) -> Option<&Path> {
        self.texts.as_deref()
    }

    fn method(&self, on: &Asked<'_>) -> anyhow::Result<Box<dyn Method>> {
        let seed = Some(on.task.seed);
        Ok(match self.score {
            Some(ScoreChoice::Replacement) => Box::new(ReplacementConfig {
                by: match self.replace_by {
                    Some(ReplaceChoice::Zero) => ReplaceBy::Zero,
                    Some(ReplaceChoice::Others) | None => ReplaceBy::Others,
                },
                seed,
            }),
            Some(ScoreChoice::Ships) => Box::new(self.ships(seed)),
            Some(ScoreChoice::Sahara) => Box::new(ShipsConfig {
                group: Some(self.search(on)?),
                ..self.ships(seed)
            }),
            Some(ScoreChoice::NegativeAttention) => Box::new(self.negative(seed)?),
            None => Box::new(HeadConfig {
                repeat_length: self.repeat_length,
                samples: self.samples,
                circuits: self.circuit.clone(),
                from: single_tokens(&self.from, on.tokenizer)?,
                tokens: self.tokens,
                seed,
            }),
        })
    }
}

impl HeadsArgs {
    fn ships(&self, seed: Option<u64>) -> ShipsConfig {
        let change = match self.change {
            Some(ChangeChoice::Undifferentiated) | None => HeadChange::Undifferentiated,
            Some(ChangeChoice::Scaled) => HeadChange::Scaled,
            Some(ChangeChoice::Mean) => HeadChange::Mean,
        };
        ShipsConfig {
            seed,
            ..ShipsConfig::new(change)
        }
    }

    fn search(&self, on: &Asked<'_>) -> anyhow::Result<Search> {
        let search = Search::steps(self.steps.unwrap_or(3));
        let decline = match &self.decline {
            Some(text) => on.tokenizer.encode(text, false)?.ids,
            None => Vec::new(),
        };
        if self.decline.is_some() && decline.is_empty() {
            return Err(Error::invalid(
                "`--decline` is empty; write what a declining answer begins with",
            )
            .into());
        }
        Ok(Search {
            rank: self.rank.unwrap_or(search.rank),
            draws: self.draws.unwrap_or(search.draws),
            decline,
            refusals: self.refusal.clone(),
            answer_tokens: self
                .answer_tokens
                .map_or(search.answer_tokens, |n| n as usize),
            ..search
        })
    }

    fn negative(&self, seed: Option<u64>) -> anyhow::Result<NegativeConfig> {
        let (Some(positive), Some(negative)) = (&self.positive, &self.negative) else {
            return Err(Error::invalid(
                "say where the prompts name the two answers, as roles or words: `--positive @YES --negative @NO`",
            )
            .into());
        };
        let config = NegativeConfig::new(positive.clone(), negative.clone());
        Ok(NegativeConfig {
            highest: self.highest,
            draws: self.draws.unwrap_or(config.draws),
            seed,
            ..config
        })
    }
}
