//! The value of a metric for one example, and what has none.

use super::catalogue::{Metric, Reads};
use super::target::Target;
use crate::error::{Error, Result};

impl Metric {
    /// The value for one example whose answer may have several tokens, computed in f64: [`Metric::value`] where it has one.
    /// # Shapes
    /// `logits`: those of each of [`Target::positions`], as [`Metric::value`] takes them.
    /// # Units
    /// [`Metric::unit`].
    /// # Errors
    /// Those of [`Metric::value`] and [`Metric::check_tokens`].
    pub fn value_whole(
        self,
        logits: &[&[f32]],
        target: &Target,
        reference: Option<&[f32]>,
    ) -> Result<f64> {
        if let [one] = logits
            && target.then.is_empty()
        {
            return self.value(one, target, reference);
        }
        self.check_tokens(target)?;
        self.check_positions(logits, target)?;
        let mut sum = 0.0;
        for (step, logits) in target.steps().zip(logits) {
            sum += Metric::LogProb.value(logits, &step, None)?;
        }
        Ok(match self {
            Metric::Prob => sum.exp(),
            _ => sum,
        })
    }

    pub(super) fn check_positions(self, logits: &[&[f32]], target: &Target) -> Result<()> {
        if logits.len() == target.n_tokens() {
            return Ok(());
        }
        Err(self.error(format!(
            "reads {} positions, but was given {}",
            target.n_tokens(),
            logits.len()
        )))
    }

    /// The value for one example with an answer of one token, computed in f64.
    /// # Shapes
    /// `logits`: one per [`Target::columns`], in that order, where the metric [`reads`](Metric::reads) answers only; else
    /// `[vocabulary]`. `reference`: `[vocabulary]`, the clean run's.
    /// # Units
    /// [`Metric::unit`].
    /// # Errors
    /// [`Error::BadMetric`] if the target has no answer, or no wrong answer where one is needed, or an answer of several tokens; if
    /// there is no reference where one is needed; if a length does not fit; if a logit is NaN or infinite.
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

    pub(super) fn check(self, logits: &[f32], target: &Target) -> Result<()> {
        if !target.then.is_empty() {
            return Err(
                self.error("has the logits of one position, and the answer has several tokens")
            );
        }
        if target.answers.is_empty() && !self.needs_reference() {
            return Err(
                self.error("needs an answer, and this pair has none; fill the column `answer`")
            );
        }
        if target.wrong.is_empty() && self.needs_wrong() {
            return Err(self.error(
                "compares with a wrong answer, and this pair has none; fill the column `wrong`, or use `ExpandOptions::metric = log_prob`",
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
                "has no value, because a logit is {bad}; if the model is run in f16 or bf16, try `LoadOptions::dtype = f32`"
            ))),
            None => Ok(()),
        }
    }

    pub(super) fn reference(self, logits: &[f32], reference: Option<&[f32]>) -> Result<Vec<f64>> {
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

fn mean(logits: &[f32]) -> f64 {
    logits.iter().map(|&l| f64::from(l)).sum::<f64>() / logits.len() as f64
}

/// `ln sum exp`, shifted by the largest term so that it neither overflows nor vanishes.
pub(super) fn log_sum_exp(terms: impl Iterator<Item = f64> + Clone) -> f64 {
    let largest = terms.clone().fold(f64::NEG_INFINITY, f64::max);
    largest + terms.map(|t| (t - largest).exp()).sum::<f64>().ln()
}

/// `ln sum p(chosen)`; the chosen logits are among `logits`.
fn log_prob(chosen: &[f64], logits: &[f32]) -> f64 {
    log_sum_exp(chosen.iter().copied()) - log_sum_exp(logits.iter().map(|&l| f64::from(l)))
}

/// Log probabilities.
pub(crate) fn log_softmax(logits: &[f32]) -> Vec<f64> {
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
