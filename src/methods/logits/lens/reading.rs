//! What one stream says of the answer, from what was read of its distribution.

use crate::error::Result;
use crate::methods::logits::vocabulary::Distribution;
use crate::metric::{Metric, Reads, Target};
use crate::task::Pair;

pub(super) fn best(logits: &[f32]) -> f32 {
    logits.iter().copied().fold(f32::NEG_INFINITY, f32::max)
}

/// Whether a metric follows from what is read of every distribution anyway.
pub(super) fn is_told_by_reading(metric: Metric) -> bool {
    metric.reads() == Reads::Answers
        || matches!(
            metric,
            Metric::ProbDiff
                | Metric::LogProb
                | Metric::Prob
                | Metric::Kl
                | Metric::Rank
                | Metric::TopK(_)
        )
}

/// What one stream says.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Reading {
    pub metric: f64,
    pub logit: f64,
    pub prob: f64,
    pub rank: f64,
    pub entropy: f64,
    pub kl: f64,
}

impl Reading {
    pub fn value(&self, measure: &str) -> f64 {
        match measure {
            "logit" => self.logit,
            "prob" => self.prob,
            "rank" => self.rank,
            "top1" => f64::from(u8::from(self.rank == 1.0)),
            "entropy" => self.entropy,
            _ => self.kl,
        }
    }

    /// `slow`: the metric, where it was read off the whole distribution.
    pub fn of(read: &Distribution, pair: &Pair, metric: Metric, slow: Option<f64>) -> Result<Self> {
        let Target { answers, .. } = &pair.target;
        let (answers, wrong) = read.logits.split_at(answers.len());
        let prob = |logits: &[f32]| logits.iter().map(|&l| read.prob(l)).sum::<f64>();
        let rank = (1 + read.above) as f64;
        let value = match (metric, slow) {
            (_, Some(value)) => value,
            (Metric::Prob, _) => prob(answers),
            (Metric::LogProb, _) => {
                let largest = f64::from(best(answers));
                let shifted = |&l: &f32| (f64::from(l) - largest).exp();
                largest - read.lse + answers.iter().map(shifted).sum::<f64>().ln()
            }
            (Metric::ProbDiff, _) => prob(answers) - prob(wrong),
            (Metric::Rank, _) => rank,
            (Metric::TopK(k), _) => f64::from(u8::from(rank <= k as f64)),
            (Metric::Kl, _) => read.kl,
            (metric, _) => metric.value(&read.logits, &pair.target, None)?,
        };
        let sum: f64 = answers.iter().map(|&l| f64::from(l)).sum();
        Ok(Reading {
            metric: value,
            logit: sum / answers.len() as f64,
            prob: prob(answers),
            rank,
            entropy: read.entropy,
            kl: read.kl,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_distribution_is_read_as_by_hand() {
        // Probabilities 1/8, 1/8, 1/4, 1/2; the answer is the third, the wrong one the fourth.
        let [third, fourth] = [2.0f32, 4.0].map(|p| p.ln() - 2.0);
        let read = Distribution {
            logits: vec![third, fourth],
            lse: 8f64.ln() - 2.0,
            entropy: 1.75 * 2f64.ln(),
            kl: 0.25 * 2f64.ln(),
            above: 1,
        };
        let pair = Pair::new([0], [0]).answer(2).wrong(3);
        let near = |a: f64, b: f64| assert!((a - b).abs() < 1e-6, "{a} against {b}");
        let of = |metric| Reading::of(&read, &pair, metric, None).expect("reads");
        let reading = of(Metric::LogitDiff);
        near(reading.metric, -(2f64.ln()));
        near(reading.logit, 2f64.ln() - 2.0);
        near(reading.prob, 0.25);
        near(reading.rank, 2.0);
        let logits: Vec<f32> = [1.0f32, 1.0, 2.0, 4.0].map(|p| p.ln() - 2.0).to_vec();
        for metric in [
            Metric::Prob,
            Metric::LogProb,
            Metric::ProbDiff,
            Metric::Rank,
            Metric::TopK(1),
            Metric::TopK(2),
        ] {
            assert!(is_told_by_reading(metric));
            let wanted = metric.value(&logits, &pair.target, None).expect("a value");
            near(of(metric).metric, wanted);
        }
        assert!(!is_told_by_reading(Metric::Js));
    }
}
