//! Logits and answers to one number per example.
//!
//! Every metric is a function of the logits at the answer position of one prompt; the value of a task is the mean over its
//! pairs, which is taken elsewhere. `kl` and `js` sum over the vocabulary (some published code takes the mean over it, which
//! makes their numbers smaller by its size).

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

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
    /// `ln sum p(answers)`; nats.
    LogProb,
    /// `sum p(answers)`; probability.
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

/// The tokens that a metric compares, for one example.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Target {
    pub answers: Vec<u32>,
    /// Empty for metrics that need none.
    pub wrong: Vec<u32>,
}

impl Target {
    /// The columns of W_U that a [`Reads::Answers`] metric needs: `answers`, then `wrong`.
    pub fn columns(&self) -> Vec<u32> {
        self.answers.iter().chain(&self.wrong).copied().collect()
    }
}

/// How a model does on one pair, whatever the metric.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Judgement {
    /// Whether the best answer's logit is above the best wrong answer's; `None` without a wrong answer.
    pub beats: Option<bool>,
    /// Whether the likeliest token of all is an answer; `None` without an answer.
    pub top1: Option<bool>,
}

impl Target {
    /// How the model does, from the logits of the whole vocabulary.
    pub fn judge(&self, logits: &[f32]) -> Judgement {
        let best = |ids: &[u32]| {
            let logits = ids.iter().filter_map(|&id| logits.get(id as usize));
            logits.copied().reduce(f32::max)
        };
        let Some(answer) = best(&self.answers) else {
            return Judgement::default();
        };
        let most = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        Judgement {
            beats: best(&self.wrong).map(|wrong| answer > wrong),
            top1: Some(answer >= most),
        }
    }
}

/// A metric of one's own, made by [`Metric::custom`].
#[derive(Clone, Copy)]
pub struct CustomMetric {
    name: &'static str,
    unit: &'static str,
    value: &'static CustomValue,
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

    /// The unit of a value, as it stands in tables and on axes.
    pub fn unit(self) -> &'static str {
        self.facts().unit
    }

    /// Whether it has a useful gradient at the logits; ranks and accuracies are flat almost everywhere.
    pub fn differentiable(self) -> bool {
        self.facts().is_smooth
    }

    /// The value for one example, computed in f64.
    /// # Shapes
    /// `logits`: one per [`Target::columns`], in that order, where the metric [`reads`](Metric::reads) answers only; else
    /// `[vocabulary]`. `reference`: `[vocabulary]`, the clean run's.
    /// # Units
    /// [`Metric::unit`].
    /// # Errors
    /// [`Error::BadMetric`] if the target has no answer, or no wrong answer where one is needed; if there is no reference where
    /// one is needed; if a length does not fit; if a logit is NaN or infinite.
    pub fn value(self, logits: &[f32], target: &Target, reference: Option<&[f32]>) -> Result<f64> {
        self.check(logits, target)?;
        let at = |ids: &[u32]| {
            ids.iter()
                .map(|&id| f64::from(logits[id as usize]))
                .collect::<Vec<f64>>()
        };
        let value = match self {
            Metric::LogitDiff | Metric::Accuracy => {
                let (answers, wrong) = logits.split_at(target.answers.len());
                let difference = mean(answers) - mean(wrong);
                if self == Metric::LogitDiff {
                    difference
                } else {
                    f64::from(u8::from(difference > 0.0))
                }
            }
            Metric::Prob => log_prob(&at(&target.answers), logits).exp(),
            Metric::LogProb => log_prob(&at(&target.answers), logits),
            Metric::ProbDiff => {
                log_prob(&at(&target.answers), logits).exp()
                    - log_prob(&at(&target.wrong), logits).exp()
            }
            Metric::Rank => rank(&at(&target.answers), logits) as f64,
            Metric::TopK(k) => f64::from(u8::from(rank(&at(&target.answers), logits) <= k)),
            Metric::Kl => kl(&self.reference(logits, reference)?, &log_softmax(logits)),
            Metric::Js => js(&self.reference(logits, reference)?, &log_softmax(logits)),
            Metric::Custom(own) => (own.value)(logits, target),
        };
        if !value.is_finite() {
            return Err(self.error(format!("gives {value}, which is no number to average")));
        }
        Ok(value)
    }

    /// The gradient of [`Metric::value`] at the logits, computed in f64.
    /// # Shapes
    /// Those of `logits`, which are as in [`Metric::value`].
    /// # Units
    /// [`Metric::unit`] per logit.
    /// # Errors
    /// Those of [`Metric::value`]; [`Error::NoGradient`] for a metric that is flat almost everywhere.
    pub fn gradient(
        self,
        logits: &[f32],
        target: &Target,
        reference: Option<&[f32]>,
    ) -> Result<Vec<f64>> {
        self.check_differentiable()?;
        self.check(logits, target)?;
        // Of the sum of the probabilities of some tokens; and that sum.
        let of_share = |ids: &[u32], p: &[f64]| {
            let share: f64 = ids.iter().map(|&id| p[id as usize]).sum();
            let mut slope: Vec<f64> = p.iter().map(|p| -p * share).collect();
            ids.iter()
                .for_each(|&id| slope[id as usize] += p[id as usize]);
            (slope, share)
        };
        let softmax = || -> Vec<f64> { log_softmax(logits).iter().map(|l| l.exp()).collect() };
        Ok(match self {
            Metric::LogitDiff => {
                let answers = target.answers.len();
                let share = |i: usize| {
                    if i < answers {
                        1.0 / answers as f64
                    } else {
                        -1.0 / target.wrong.len() as f64
                    }
                };
                (0..logits.len()).map(share).collect()
            }
            Metric::Prob => of_share(&target.answers, &softmax()).0,
            Metric::LogProb => {
                // Relative to the largest answer, so that a vanishing probability still has its slope.
                let p = softmax();
                let log_p = log_softmax(logits);
                let total = log_sum_exp(target.answers.iter().map(|&id| log_p[id as usize]));
                let mut slope: Vec<f64> = p.iter().map(|p| -p).collect();
                for &id in &target.answers {
                    slope[id as usize] += (log_p[id as usize] - total).exp();
                }
                slope
            }
            Metric::ProbDiff => {
                let p = softmax();
                let (right, wrong) = (
                    of_share(&target.answers, &p).0,
                    of_share(&target.wrong, &p).0,
                );
                right
                    .iter()
                    .zip(wrong)
                    .map(|(right, wrong)| right - wrong)
                    .collect()
            }
            Metric::Kl => {
                let reference = self.reference(logits, reference)?;
                let p = softmax();
                p.iter().zip(reference).map(|(p, r)| p - r.exp()).collect()
            }
            Metric::Js => {
                let reference = self.reference(logits, reference)?;
                let here = log_softmax(logits);
                // dJS / dp = ln(p / m) / 2, then through the softmax.
                let at_p: Vec<f64> = here
                    .iter()
                    .zip(&reference)
                    .map(|(&p, &q)| {
                        0.5 * (p - log_sum_exp([p, q].into_iter()) + std::f64::consts::LN_2)
                    })
                    .collect();
                let mean: f64 = here.iter().zip(&at_p).map(|(p, at)| p.exp() * at).sum();
                here.iter()
                    .zip(at_p)
                    .map(|(p, at)| p.exp() * (at - mean))
                    .collect()
            }
            Metric::Rank | Metric::TopK(_) | Metric::Accuracy | Metric::Custom(_) => {
                unreachable!("checked above")
            }
        })
    }

    /// # Errors
    /// [`Error::NoGradient`] for a metric that is flat almost everywhere.
    pub fn check_differentiable(self) -> Result<()> {
        if self.differentiable() {
            Ok(())
        } else {
            Err(Error::NoGradient {
                metric: self.to_string(),
                reason: "it moves in steps; use `--metric logit_diff` or `log_prob`, or patch exactly (`candlewick patch`)".into(),
            })
        }
    }

    fn check(self, logits: &[f32], target: &Target) -> Result<()> {
        if target.answers.is_empty() && !self.needs_reference() {
            return Err(
                self.error("needs an answer, and this pair has none; fill the column `answer`")
            );
        }
        if target.wrong.is_empty() && self.needs_wrong() {
            return Err(self.error(
                "compares with a wrong answer, and this pair has none; fill the column `wrong`, or use `--metric log_prob`",
            ));
        }
        let columns = target.columns();
        match self.reads() {
            Reads::Answers if logits.len() != columns.len() => {
                return Err(self.error(format!(
                    "reads {} answer logits, but was given {}",
                    columns.len(),
                    logits.len()
                )));
            }
            Reads::Vocabulary => {
                if let Some(id) = columns.iter().find(|&&id| id as usize >= logits.len()) {
                    return Err(self.error(format!(
                        "reads token {id}, but there are {} logits; is the tokenizer of this model?",
                        logits.len()
                    )));
                }
            }
            Reads::Answers => {}
        }
        self.check_finite(logits)
    }

    fn check_finite(self, logits: &[f32]) -> Result<()> {
        match logits.iter().find(|l| !l.is_finite()) {
            Some(bad) => Err(self.error(format!(
                "has no value, because a logit is {bad}; if the model is run in f16 or bf16, try `--dtype f32`"
            ))),
            None => Ok(()),
        }
    }

    fn reference(self, logits: &[f32], reference: Option<&[f32]>) -> Result<Vec<f64>> {
        let Some(reference) = reference else {
            return Err(
                self.error("compares with the logits of the clean run, which were not given")
            );
        };
        if reference.len() != logits.len() {
            return Err(self.error(format!(
                "compares {} logits with {} of the clean run; both must be the whole vocabulary",
                logits.len(),
                reference.len()
            )));
        }
        self.check_finite(reference)?;
        Ok(log_softmax(reference))
    }

    fn error(self, reason: impl Into<String>) -> Error {
        Error::BadMetric {
            metric: self.to_string(),
            reason: reason.into(),
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

fn mean(logits: &[f32]) -> f64 {
    logits.iter().map(|&l| f64::from(l)).sum::<f64>() / logits.len() as f64
}

/// `ln sum exp`, shifted by the largest term so that it neither overflows nor vanishes.
fn log_sum_exp(terms: impl Iterator<Item = f64> + Clone) -> f64 {
    let largest = terms.clone().fold(f64::NEG_INFINITY, f64::max);
    largest + terms.map(|t| (t - largest).exp()).sum::<f64>().ln()
}

/// `ln sum p(chosen)`; the chosen logits are among `logits`.
fn log_prob(chosen: &[f64], logits: &[f32]) -> f64 {
    log_sum_exp(chosen.iter().copied()) - log_sum_exp(logits.iter().map(|&l| f64::from(l)))
}

fn log_softmax(logits: &[f32]) -> Vec<f64> {
    let total = log_sum_exp(logits.iter().map(|&l| f64::from(l)));
    logits.iter().map(|&l| f64::from(l) - total).collect()
}

/// Ties do not count against the answer.
fn rank(answers: &[f64], logits: &[f32]) -> usize {
    let best = answers.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    1 + logits.iter().filter(|&&l| f64::from(l) > best).count()
}

/// `KL(p || q)` of two log distributions. Rounding can put it a hair below zero, where it cannot be.
fn kl(p: &[f64], q: &[f64]) -> f64 {
    p.iter()
        .zip(q)
        .map(|(p, q)| p.exp() * (p - q))
        .sum::<f64>()
        .max(0.0)
}

fn js(p: &[f64], q: &[f64]) -> f64 {
    let middle: Vec<f64> = p
        .iter()
        .zip(q)
        .map(|(&p, &q)| log_sum_exp([p, q].into_iter()) - std::f64::consts::LN_2)
        .collect();
    0.5 * (kl(p, &middle) + kl(q, &middle))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pair_is_judged_by_its_best_answer() {
        let target = Target {
            answers: vec![0, 2],
            wrong: vec![1],
        };
        let judged = |logits: &[f32]| {
            let judgement = target.judge(logits);
            (judgement.beats, judgement.top1)
        };
        assert_eq!(judged(&[0.0, 1.0, 3.0, 2.0]), (Some(true), Some(true)));
        assert_eq!(judged(&[0.0, 1.0, 3.0, 4.0]), (Some(true), Some(false)));
        assert_eq!(judged(&[0.0, 5.0, 3.0, 4.0]), (Some(false), Some(false)));
        assert_eq!(Target::default().judge(&[1.0]), Judgement::default());
    }

    const ALL: [Metric; 9] = Metric::ALL;

    fn target(answers: &[u32], wrong: &[u32]) -> Target {
        Target {
            answers: answers.to_vec(),
            wrong: wrong.to_vec(),
        }
    }

    /// Logits whose softmax is 1/8, 1/8, 1/4, 1/2.
    fn eighths() -> Vec<f32> {
        [1.0f32, 1.0, 2.0, 4.0]
            .iter()
            .map(|p| p.ln() + 3.0)
            .collect()
    }

    fn check(
        metric: Metric,
        logits: &[f32],
        target: &Target,
        reference: Option<&[f32]>,
        expected: f64,
    ) {
        let value = metric.value(logits, target, reference).unwrap();
        assert!(
            (value - expected).abs() < 1e-6,
            "{metric}: {value}, expected {expected}"
        );
    }

    #[test]
    fn a_name_reads_back_as_its_metric() {
        for metric in ALL {
            assert_eq!(metric.to_string().parse::<Metric>().unwrap(), metric);
        }
        for bad in ["", "top0", "top", "topx", "loss", "Logit_diff"] {
            let message = bad.parse::<Metric>().unwrap_err().to_string();
            assert!(
                message.contains("logit_diff, prob_diff") && message.contains("accuracy"),
                "{message}"
            );
        }
    }

    #[test]
    fn answer_metrics_read_answers_then_wrong() {
        let several = target(&[7, 3], &[5]);
        assert_eq!(several.columns(), [7, 3, 5]);
        check(Metric::LogitDiff, &[4.0, 2.0, 1.0], &several, None, 2.0);
        check(Metric::Accuracy, &[4.0, 2.0, 1.0], &several, None, 1.0);
        check(Metric::Accuracy, &[4.0, 2.0, 3.0], &several, None, 0.0);
    }

    #[test]
    fn probabilities_are_those_of_the_softmax() {
        let logits = eighths();
        check(Metric::Prob, &logits, &target(&[3], &[]), None, 0.5);
        check(Metric::Prob, &logits, &target(&[0, 2], &[]), None, 0.375);
        check(
            Metric::LogProb,
            &logits,
            &target(&[2], &[]),
            None,
            -2.0 * std::f64::consts::LN_2,
        );
        check(
            Metric::ProbDiff,
            &logits,
            &target(&[3], &[0, 1]),
            None,
            0.25,
        );
        check(
            Metric::LogProb,
            &[1000.0, -1000.0],
            &target(&[1], &[]),
            None,
            -2000.0,
        );
    }

    #[test]
    fn ranks_count_the_tokens_strictly_above() {
        let logits = eighths();
        check(Metric::Rank, &logits, &target(&[3], &[]), None, 1.0);
        check(Metric::Rank, &logits, &target(&[0], &[]), None, 3.0);
        check(Metric::Rank, &logits, &target(&[0, 2], &[]), None, 2.0);
        check(Metric::TopK(2), &logits, &target(&[0], &[]), None, 0.0);
        check(Metric::TopK(3), &logits, &target(&[1], &[]), None, 1.0);
    }

    #[test]
    fn divergences_are_from_the_reference_and_in_nats() {
        let nothing = target(&[], &[]);
        let even = [0.0f32, 0.0];
        let quarter = [1.0f32.ln(), 3.0f32.ln()];
        // KL(1/2, 1/2 || 1/4, 3/4) = ln 2 - ln 3 / 2; the other way round it would be 3/4 ln 3 - ln 2.
        check(
            Metric::Kl,
            &quarter,
            &nothing,
            Some(&even),
            2f64.ln() - 0.5 * 3f64.ln(),
        );
        check(Metric::Kl, &even, &nothing, Some(&even), 0.0);
        check(Metric::Js, &even, &nothing, Some(&even), 0.0);
        check(
            Metric::Js,
            &[200.0, -200.0],
            &nothing,
            Some(&[-200.0, 200.0]),
            std::f64::consts::LN_2,
        );
        let (there, back) = (
            Metric::Js.value(&even, &nothing, Some(&quarter)).unwrap(),
            Metric::Js.value(&quarter, &nothing, Some(&even)).unwrap(),
        );
        assert!((there - back).abs() < 1e-12 && there > 0.01);
    }

    #[test]
    fn what_has_no_value_is_an_error() {
        let one = target(&[0], &[1]);
        for (metric, logits, target, reference) in [
            (Metric::LogitDiff, vec![1.0f32], &one, None),
            (Metric::LogitDiff, vec![1.0], &target(&[0], &[]), None),
            (Metric::Prob, vec![1.0, 2.0], &target(&[], &[1]), None),
            (Metric::Prob, vec![1.0, 2.0], &target(&[2], &[]), None),
            (Metric::Prob, vec![1.0, f32::NAN], &one, None),
            (Metric::Rank, vec![1.0, f32::INFINITY], &one, None),
            (Metric::Kl, vec![1.0, 2.0], &one, None),
            (Metric::Kl, vec![1.0, 2.0], &one, Some(vec![1.0f32])),
            (Metric::Js, vec![1.0, 2.0], &one, Some(vec![1.0, f32::NAN])),
        ] {
            let result = metric.value(&logits, target, reference.as_deref());
            assert!(
                matches!(result, Err(Error::BadMetric { .. })),
                "{metric}: {result:?}"
            );
        }
    }

    #[test]
    fn a_metric_that_reads_answers_needs_no_vocabulary() {
        for metric in ALL {
            assert_eq!(
                metric.reads() == Reads::Answers,
                matches!(metric, Metric::LogitDiff | Metric::Accuracy)
            );
            assert!(!(metric.needs_reference() && metric.needs_wrong()));
            assert!(!metric.unit().is_empty());
        }
    }

    #[test]
    fn gradients_agree_with_central_differences() {
        let logits = [0.3f32, -1.0, 2.0, 0.7];
        let reference = [1.0f32, 0.0, 0.5, -0.5];
        let pair = target(&[3, 0], &[2]);
        for metric in [
            Metric::ProbDiff,
            Metric::LogProb,
            Metric::Prob,
            Metric::Kl,
            Metric::Js,
        ] {
            let at = |logits: &[f32]| metric.value(logits, &pair, Some(&reference)).unwrap();
            let slope = metric.gradient(&logits, &pair, Some(&reference)).unwrap();
            for (i, slope) in slope.into_iter().enumerate() {
                let moved = |by: f32| {
                    let mut logits = logits;
                    logits[i] += by;
                    (at(&logits), f64::from(logits[i]))
                };
                let (up, down) = (moved(0.01), moved(-0.01));
                let difference = (up.0 - down.0) / (up.1 - down.1);
                assert!(
                    (slope - difference).abs() < 2e-5,
                    "{metric} {i}: {slope} {difference}"
                );
            }
        }
        let several = target(&[7, 3], &[5]);
        let slope = Metric::LogitDiff
            .gradient(&[4.0, 2.0, 1.0], &several, None)
            .unwrap();
        assert_eq!(slope, [0.5, 0.5, -1.0]);
        assert!(matches!(
            Metric::Rank.gradient(&logits, &pair, None),
            Err(Error::NoGradient { .. })
        ));
    }
}
