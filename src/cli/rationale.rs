//! `candlewick rationale`: the few tokens that an answer can do with, and how well importances of tokens say what it rests on.

use candlewick::Error;
use candlewick::methods::tokens::TokenMethod;
use candlewick::methods::{Keep, Method, RationaleConfig, Replacer, SourceModel};
use candlewick::model::LoadOptions;
use clap::{Args, ValueEnum};

use super::session::{Ask, Asked, CommonArgs, Mode};

/// Which tokens an answer rests on by replacing tokens at random (ReAGent), and soft scores of it and of other token methods.
///
/// Tokens of the prompt are replaced again and again; those whose replacement costs the answer probability gain importance. A run ends once
/// the most important ones alone (`--keep`), all else replaced, leave the answer among the likeliest (`--within`); `score` is the mean
/// importance of the runs that ended, over tokens a share of 1. It sees next-token probabilities alone.
///
/// The table beside it has soft sufficiency and comprehensiveness of it and of other methods of `candlewick attribute`: each dimension of a
/// token's embedding is kept with a chance that follows the token's importance (`soft_ns`), or taken away with it (`soft_nc`), and the answer's
/// distribution moves; more is better. Beside each method stand its own importances dealt out at random (`:shuffled`).
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  candlewick rationale --n-pairs 4
  candlewick rationale --replacer same-class --keep 4 --against lrp --n-pairs 2
  candlewick rationale --against none --runs 10 --n-pairs 4 --per-example")]
pub struct RationaleArgs {
    /// What stands in the place of a replaced token.
    #[arg(long, default_value = "uniform", conflicts_with = "replacer_model")]
    pub replacer: ReplacerChoice,
    /// What a masked-language model expects there: a folder with a BERT.
    #[arg(long, value_name = "MODEL")]
    pub replacer_model: Option<String>,
    /// The chance of each token to be replaced in a step [default: 0.3].
    #[arg(long, value_name = "CHANCE")]
    pub ratio: Option<f64>,
    /// The rationale: so many of the most important tokens, or a share of all that can be replaced [default: 0.5].
    #[arg(long, value_name = "N|SHARE")]
    pub keep: Option<Keep>,
    /// A run ends once the rationale leaves the answer among the likeliest N [default: 3].
    #[arg(long, value_name = "N")]
    pub within: Option<usize>,
    /// Runs of each prompt [default: 5].
    #[arg(long, value_name = "N")]
    pub runs: Option<usize>,
    /// Steps after which a run is given up [default: 200].
    #[arg(long, value_name = "N")]
    pub steps: Option<usize>,
    /// Methods of tokens that are scored beside it, as `candlewick attribute --method` names them; `all`, or `none`. Random ones always are
    /// [default: grad-x-input,saliency-l2,ig,attn-lrp,last-attention,attention-rollout, and of decoders alti-logit].
    #[arg(long, value_name = "METHODS", value_delimiter = ',')]
    pub against: Vec<String>,
    /// Random choices of dimensions behind each soft score [default: 4].
    #[arg(long, value_name = "N")]
    pub draws: Option<usize>,
    #[command(flatten)]
    pub common: CommonArgs,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum ReplacerChoice {
    /// Any ordinary token of the vocabulary.
    Uniform,
    /// One of the same class: where words begin, and what it is made of (letters with a capital or without, digits, punctuation).
    SameClass,
}

impl Ask for RationaleArgs {
    fn default_out(&self) -> &'static str {
        "rationale.parquet"
    }

    fn mode(&self) -> Mode {
        let acts = [
            "replacer",
            "replacer_model",
            "ratio",
            "keep",
            "within",
            "runs",
            "steps",
            "against",
            "draws",
        ];
        let remedy = "the log probability of the answer is explained";
        Mode::new("`rationale`", &acts)
            .idle(&["verify", "metric"])
            .instead("metric", remedy)
    }

    fn method(&self, on: &Asked<'_>) -> anyhow::Result<Box<dyn Method>> {
        let replacer = match (&self.replacer_model, self.replacer) {
            (Some(id), _) => {
                let options = LoadOptions {
                    revision: None,
                    ..on.options.clone()
                };
                Replacer::Masked(SourceModel::open(id, &options)?)
            }
            (None, ReplacerChoice::Uniform) => Replacer::Uniform,
            (None, ReplacerChoice::SameClass) => Replacer::SameClass,
        };
        let config = RationaleConfig::new(replacer);
        let fits = |method: &TokenMethod| on.spec.encoder.is_none() || !method.needs_decoder();
        let mut against = match &self.against[..] {
            [] => config.against,
            [one] if one == "none" => Vec::new(),
            [one] if one == "all" => TokenMethod::all(),
            named => {
                let named = named.iter().map(|name| name.parse());
                named.collect::<Result<Vec<TokenMethod>, Error>>()?
            }
        };
        if self.against.is_empty() || self.against == ["all"] {
            against.retain(|method| *method != TokenMethod::Random && fits(method));
        }
        Ok(Box::new(RationaleConfig {
            ratio: self.ratio.unwrap_or(config.ratio),
            keep: self.keep.unwrap_or(config.keep),
            within: self.within.unwrap_or(config.within),
            runs: self.runs.unwrap_or(config.runs),
            steps: self.steps.unwrap_or(config.steps),
            draws: self.draws.unwrap_or(config.draws),
            against,
            replacer: config.replacer,
            seed: None,
        }))
    }
}
