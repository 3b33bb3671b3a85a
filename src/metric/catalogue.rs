//! The metrics, and what is known of each besides its value.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::target::Target;
use crate::error::{Error, Result};

/// A metric on the logits at the answer position of one prompt. In files it stands under the name that it prints.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Metric {
    /// `mean(logits of answers) - mean(logits of wrong answers)`; logits.
    #[default]
    LogitDiff,
    /// `sum p(answers) - sum p(wrong)`; probability.
    ProbDiff,
    /// `ln sum p(answers)`; of an answer of several tokens the sum of their log-probabilities, each after those before it; nats.
    LogProb,
    /// `sum p(answers)`; of an answer of several tokens the product of their probabilities; probability.
    Prob,
    /// `KL(reference || here)`, summed over the vocabulary; nats. The reference is the clean run.
    Kl,
    /// Jensen-Shannon divergence to the reference; nats, 0 to ln 2.
    Js,
    /// `1 + #{v: logit v > logit of the answer}`, best answer if several.
    Rank,
    /// 1 if the rank is at most k.
    TopK(usize),
    /// 1 if the answer's logit is above the wrong answer's (means, with several).
    Accuracy,
    /// A function of one's own ([`Metric::custom`]).
    Custom(CustomMetric),
}

/// Which logits at the answer position a metric reads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reads {
    /// Only the logits of `answers` followed by `wrong`.
    Answers,
    /// The whole vocabulary.
    Vocabulary,
}

/// A metric of one's own, made by [`Metric::custom`].
#[derive(Clone, Copy)]
pub struct CustomMetric {
    name: &'static str,
    unit: &'static str,
    pub(super) value: &'static CustomValue,
}

/// From the logits of the whole vocabulary at the answer position, and the tokens that count, to a number.
type CustomValue = dyn Fn(&[f32], &Target) -> f64 + Send + Sync;

impl fmt::Debug for CustomMetric {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "CustomMetric({})", self.name)
    }
}

/// Two metrics of one name are one metric.
impl PartialEq for CustomMetric {
    fn eq(&self, other: &Self) -> bool {
        self.name == other.name
    }
}

impl Eq for CustomMetric {}

/// What is known of a metric besides its value.
struct Facts {
    name: &'static str,
    unit: &'static str,
    reads: Reads,
    needs_wrong: bool,
    needs_reference: bool,
    is_smooth: bool,
}

impl Metric {
    /// Every metric with a name, `top1` for those of the first k.
    pub const ALL: [Metric; 9] = [
        Metric::LogitDiff,
        Metric::ProbDiff,
        Metric::LogProb,
        Metric::Prob,
        Metric::Kl,
        Metric::Js,
        Metric::Rank,
        Metric::TopK(1),
        Metric::Accuracy,
    ];

    /// A metric of one's own: a name and a unit for tables, and a function of the logits of the whole vocabulary. It has no
    /// gradient, so that methods which need one refuse it. What it holds lives as long as the program.
    ///
    /// ```
    /// use candlewick::metric::{Metric, Target};
    ///
    /// let margin = Metric::custom("margin", "logits", |logits: &[f32], target: &Target| {
    ///     let best = logits.iter().copied().fold(f32::MIN, f32::max);
    ///     f64::from(logits[target.answers[0] as usize] - best)
    /// });
    /// assert_eq!(margin.to_string(), "margin");
    /// ```
    pub fn custom(
        name: &str,
        unit: &str,
        value: impl Fn(&[f32], &Target) -> f64 + Send + Sync + 'static,
    ) -> Metric {
        Metric::Custom(CustomMetric {
            name: Box::leak(name.to_string().into_boxed_str()),
            unit: Box::leak(unit.to_string().into_boxed_str()),
            value: Box::leak(Box::new(value)),
        })
    }

    /// All that is known of a metric, in one place.
    fn facts(self) -> Facts {
        let facts = |name, unit, reads| Facts {
            name,
            unit,
            reads,
            needs_wrong: false,
            needs_reference: false,
            is_smooth: true,
        };
        let compares = |facts| Facts {
            needs_wrong: true,
            ..facts
        };
        let to_clean = |facts| Facts {
            needs_reference: true,
            ..facts
        };
        let in_steps = |facts| Facts {
            is_smooth: false,
            ..facts
        };
        use Reads::{Answers, Vocabulary};
        match self {
            Metric::LogitDiff => compares(facts("logit_diff", "logits", Answers)),
            Metric::ProbDiff => compares(facts("prob_diff", "probability", Vocabulary)),
            Metric::LogProb => facts("log_prob", "nats", Vocabulary),
            Metric::Prob => facts("prob", "probability", Vocabulary),
            Metric::Kl => to_clean(facts("kl", "nats", Vocabulary)),
            Metric::Js => to_clean(facts("js", "nats", Vocabulary)),
            Metric::Rank => in_steps(facts("rank", "rank", Vocabulary)),
            Metric::TopK(_) => in_steps(facts("top", "fraction", Vocabulary)),
            Metric::Accuracy => in_steps(compares(facts("accuracy", "fraction", Answers))),
            Metric::Custom(own) => in_steps(facts(own.name, own.unit, Vocabulary)),
        }
    }

    pub fn reads(self) -> Reads {
        self.facts().reads
    }

    /// Whether it compares the answers with wrong ones, so that a pair without any has no value.
    pub fn needs_wrong(self) -> bool {
        self.facts().needs_wrong
    }

    /// Whether it compares with the logits of the clean run.
    pub fn needs_reference(self) -> bool {
        self.facts().needs_reference
    }

    /// Whether it has a value for an answer of several tokens.
    pub fn takes_several_tokens(self) -> bool {
        matches!(self, Metric::LogProb | Metric::Prob)
    }

    /// Refuses an answer of several tokens where the metric compares single ones.
    /// # Errors
    /// [`Error::BadMetric`].
    pub fn check_tokens(self, target: &Target) -> Result<()> {
        if target.then.is_empty() || self.takes_several_tokens() {
            return Ok(());
        }
        Err(Error::BadMetric {
            metric: self.to_string(),
            reason: format!(
                "compares single tokens, and an answer here has {}; `ExpandOptions::metric = log_prob` or `prob` measures all of it",
                target.n_tokens()
            ),
        })
    }

    /// The unit of a value, as it stands in tables and on axes.
    pub fn unit(self) -> &'static str {
        self.facts().unit
    }

    /// Whether it has a useful gradient at the logits; ranks and accuracies are flat almost everywhere.
    pub fn differentiable(self) -> bool {
        self.facts().is_smooth
    }

    /// Whether a better model has higher values; divergences and ranks are lower.
    pub fn is_better_higher(self) -> bool {
        !matches!(self, Metric::Kl | Metric::Js | Metric::Rank)
    }

    /// # Errors
    /// [`Error::NoGradient`] for a metric that is flat almost everywhere.
    pub fn check_differentiable(self) -> Result<()> {
        if self.differentiable() {
            Ok(())
        } else {
            Err(Error::NoGradient {
                metric: self.to_string(),
                reason: "it moves in steps; use `ExpandOptions::metric = logit_diff` or `log_prob`, or patch exactly (`candlewick patch`)".into(),
            })
        }
    }
}

impl fmt::Display for Metric {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.facts().name)?;
        match self {
            Metric::TopK(k) => write!(f, "{k}"),
            _ => Ok(()),
        }
    }
}

impl FromStr for Metric {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let named = |metric: &Metric| metric.to_string() == text;
        if let Some(metric) = Metric::ALL.into_iter().find(named) {
            return Ok(metric);
        }
        match text.strip_prefix("top").and_then(|k| k.parse().ok()) {
            Some(k) if k > 0 => Ok(Metric::TopK(k)),
            _ => {
                let names: Vec<String> = Metric::ALL.iter().map(Metric::to_string).collect();
                Err(Error::Parse {
                    what: "a metric",
                    text: text.to_owned(),
                    reason: format!("metrics are {} (and top5, ...)", names.join(", ")),
                })
            }
        }
    }
}

impl TryFrom<String> for Metric {
    type Error = Error;

    fn try_from(text: String) -> Result<Self> {
        text.parse()
    }
}

impl From<Metric> for String {
    fn from(metric: Metric) -> Self {
        metric.to_string()
    }
}
