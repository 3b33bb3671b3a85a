//! `candlewick logits`: what parts of a model write to the logits, and what its layers would say.

use candlewick::methods::{
    DirectTarget, DlaConfig, EarlyConfig, LensConfig, LensPositions, Method, Part, SourceConfig,
    TokenLensConfig, single_tokens,
};
use clap::builder::PossibleValue;
use clap::{Args, ValueEnum};

use super::session::{Ask, Asked, CommonArgs, Mode};

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
    #[arg(long, default_value = "head")]
    pub by: By,
    /// What to look through instead.
    #[arg(long, value_name = "LENS")]
    pub lens: Option<Lens>,
    /// `difference` (answer less wrong answer), `answer`, `centred` (answer less the vocabulary's mean), or tokens of your own.
    #[arg(long, value_name = "TARGET", default_value = "difference")]
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
    pub positions: Option<LensPositions>,
    /// Tokens that the Token Lens watches beside the answers.
    #[arg(long, value_name = "TOKEN")]
    pub watch: Vec<String>,
    #[command(flatten)]
    pub common: CommonArgs,
}

/// Parts of the model, or its heads classed by what they read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum By {
    Part(Part),
    SourceClass,
}

impl ValueEnum for By {
    fn value_variants<'a>() -> &'a [Self] {
        &[
            By::Part(Part::Component),
            By::Part(Part::Head),
            By::Part(Part::Neuron),
            By::Part(Part::HeadSource),
            By::Part(Part::HeadRole),
            By::SourceClass,
        ]
    }

    fn to_possible_value(&self) -> Option<PossibleValue> {
        match self {
            By::Part(part) => part.to_possible_value(),
            By::SourceClass => Some(
                PossibleValue::new("source-class")
                    .help("Heads classed by whether they read the subject or the relation"),
            ),
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Lens {
    /// Every layer's stream, as if the model ended there.
    Logit,
    /// What attention brings from each role.
    Token,
    /// What the MLPs write less without attention to each role.
    Knockout,
    /// Labels after true and false demonstrations.
    Early,
}

impl Ask for LogitsArgs {
    fn default_out(&self) -> &'static str {
        "logits.parquet"
    }

    /// Only the logit lens measures `--metric`; the others say themselves what they read.
    fn mode(&self) -> Mode {
        let named = |value: Option<PossibleValue>, flag: &str| {
            let value = value.map_or(String::new(), |value| value.get_name().to_string());
            format!("`--{flag} {value}`")
        };
        let by = named(self.by.to_possible_value(), "by");
        let lens = |lens: Lens| named(lens.to_possible_value(), "lens");
        match (self.lens, self.by) {
            (None, By::SourceClass) => {
                Mode::new(by, &["by", "subject", "relation"]).idle(&["metric"])
            }
            (None, By::Part(_)) if self.writes == 0 => {
                let name = format!("{by} and `--writes 0`");
                Mode::new(name, &["by", "target", "against", "writes"]).idle(&["metric"])
            }
            (None, By::Part(_)) => {
                let acts = ["by", "target", "against", "writes", "tokens"];
                Mode::new(by, &acts).idle(&["metric"])
            }
            (Some(Lens::Logit), _) => {
                Mode::new(lens(Lens::Logit), &["lens", "positions", "tokens"])
            }
            (Some(of @ (Lens::Token | Lens::Knockout)), _) => {
                Mode::new(lens(of), &["lens", "watch"]).idle(&["metric"])
            }
            (Some(Lens::Early), _) => Mode::new(lens(Lens::Early), &["lens"]).idle(&["metric"]),
        }
    }

    fn method(&self, on: &Asked<'_>) -> anyhow::Result<Box<dyn Method>> {
        let seed = Some(on.task.seed);
        Ok(match (self.lens, self.by) {
            (None, By::SourceClass) => Box::new(SourceConfig {
                relation: self.relation.clone(),
                seed,
                ..SourceConfig::new(&self.subject)
            }),
            (None, By::Part(by)) => Box::new(DlaConfig {
                by,
                target: DirectTarget::of_words(&self.target, &self.against, on.tokenizer)?,
                writes: self.writes,
                tokens: self.tokens,
                seed,
            }),
            (Some(Lens::Logit), _) => Box::new(LensConfig {
                metric: Some(on.task.metric),
                positions: self.positions,
                tokens: self.tokens,
                seed,
            }),
            (Some(lens @ (Lens::Token | Lens::Knockout)), _) => Box::new(TokenLensConfig {
                knockout: lens == Lens::Knockout,
                watch: single_tokens(&self.watch, on.tokenizer)?,
                seed,
            }),
            (Some(Lens::Early), _) => Box::new(EarlyConfig {
                seed,
                ..EarlyConfig::default()
            }),
        })
    }
}
