//! The gradient of a metric at the logits.

use super::catalogue::Metric;
use super::target::Target;
use super::value::{log_softmax, log_sum_exp};
use crate::error::Result;

impl Metric {
    /// The gradient of [`Metric::value_whole`] at the logits of every position that is read, computed in f64.
    /// # Shapes
    /// Those of `logits`, which are as in [`Metric::value_whole`].
    /// # Units
    /// [`Metric::unit`] per logit.
    /// # Errors
    /// Those of [`Metric::gradient`] and [`Metric::check_tokens`].
    pub fn gradient_whole(
        self,
        logits: &[&[f32]],
        target: &Target,
        reference: Option<&[f32]>,
    ) -> Result<Vec<Vec<f64>>> {
        if let [one] = logits
            && target.then.is_empty()
        {
            return Ok(vec![self.gradient(one, target, reference)?]);
        }
        self.check_differentiable()?;
        // A product of probabilities moves by itself times what its logarithm moves by.
        let factor = match self {
            Metric::Prob => self.value_whole(logits, target, None)?,
            _ => 1.0,
        };
        self.check_tokens(target)?;
        self.check_positions(logits, target)?;
        let slope = |(step, logits): (Target, &&[f32])| -> Result<Vec<f64>> {
            let slope = Metric::LogProb.gradient(logits, &step, None)?;
            Ok(slope.into_iter().map(|slope| factor * slope).collect())
        };
        target.steps().zip(logits).map(slope).collect()
    }

    /// The gradient of [`Metric::value`] at the logits, computed in f64.
    /// # Shapes
    /// Those of `logits`, which are as in [`Metric::value`].
    /// # Units
    /// [`Metric::unit`] per logit.
    /// # Errors
    /// Those of [`Metric::value`]; [`Error::NoGradient`](crate::Error::NoGradient) for a metric that is flat almost everywhere.
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
}
