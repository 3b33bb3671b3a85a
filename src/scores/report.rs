//! How well the model does the task, before anything is changed: what to know before believing a table.

use std::fmt;

use serde::{Deserialize, Deserializer, Serialize};

use super::cell::{Direction, ExampleScores, ScoresMeta};
use super::interval::Bootstrap;
use super::statistics::mean;
use crate::error::Result;

/// Fewer pairs than this give no interval that is worth believing.
const FEW: usize = 4;
/// With few pairs, a smaller gap than this (in the metric's unit) could be none.
const LEAST_GAP_OF_FEW: f64 = 0.1;
/// A smaller gap than this is rounding, whatever its interval says.
const LEAST_GAP: f64 = 1e-6;

/// How well the model does the task.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct TaskReport {
    /// Pairs that were used.
    pub used: usize,
    /// Pairs that were not, counted by the kind of reason.
    pub dropped: Vec<(String, usize)>,
    pub metric: String,
    pub unit: String,
    /// The metric of the clean runs; NaN where the method looks at no metric of theirs.
    pub clean: Estimate,
    /// The metric of the corrupted runs, where the method looks at them.
    pub corrupted: Option<Estimate>,
    /// Clean less corrupted.
    pub gap: Option<Estimate>,
    /// Clean runs that prefer the answer to the wrong answer.
    pub beats: Option<Share>,
    /// Clean runs whose likeliest token is the answer.
    pub top1: Option<Share>,
}

/// A mean over pairs, with its 95% interval where there are two or more.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct Estimate {
    #[serde(deserialize_with = "finite_or_nan")]
    pub mean: f64,
    pub interval: Option<(f64, f64)>,
}

/// So many of so many.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Share {
    pub count: usize,
    pub of: usize,
}

impl TaskReport {
    /// What the baselines of some examples say, of which so many are pairs.
    /// # Errors
    /// Those of the bootstrap.
    pub fn of(
        examples: &[ExampleScores],
        pairs: usize,
        meta: &ScoresMeta,
        dropped: Vec<(String, usize)>,
    ) -> Result<TaskReport> {
        let estimate = |value: fn(&ExampleScores) -> f64| {
            Estimate::of(&examples.iter().map(value).collect::<Vec<_>>(), meta.seed)
        };
        let contrasts = meta.direction != Direction::Direct;
        let both = |value| contrasts.then(|| estimate(value)).transpose();
        Ok(TaskReport {
            used: pairs,
            dropped,
            metric: meta.metric.clone(),
            unit: meta.unit.clone(),
            clean: estimate(|example| example.clean)?,
            corrupted: both(|example| example.corrupted)?,
            gap: both(|example| example.clean - example.corrupted)?,
            beats: Share::of(examples.iter().filter_map(|example| example.beats)),
            top1: Share::of(examples.iter().filter_map(|example| example.top1)),
        })
    }

    /// Whether the gap between clean and corrupted can be told from zero, so that effects may be given as shares of it.
    pub fn has_gap(&self) -> bool {
        self.gap.is_some_and(|gap| gap.is_not_zero(self.used))
    }

    /// What a person should read before the picture, without line ends.
    pub fn lines(&self) -> Vec<String> {
        let mut pairs = format!("{} pairs used", self.used);
        if self.used == 1 {
            pairs = "1 pair used".into();
        }
        let dropped: usize = self.dropped.iter().map(|(_, count)| count).sum();
        if dropped > 0 {
            let kinds = self.dropped.iter().map(|(kind, n)| format!("{kind}: {n}"));
            pairs += &format!(
                ", {dropped} dropped ({})",
                kinds.collect::<Vec<_>>().join(", ")
            );
        }
        let unit = if self.unit.is_empty() {
            String::new()
        } else {
            format!(" {}", self.unit)
        };
        let (name, clean) = (&self.metric, &self.clean);
        let mut lines = vec![pairs];
        match (&self.corrupted, &self.gap) {
            _ if clean.mean.is_nan() => {}
            // What is measured is an effect, which is none without a change.
            (Some(corrupted), _) if clean.mean == 0.0 && corrupted.mean == 0.0 => {}
            (Some(corrupted), Some(gap)) => lines.push(format!(
                "{name} {clean} on clean prompts, {corrupted} on corrupted ones; the difference is {gap}{unit}"
            )),
            _ => lines.push(format!("{name} {clean}{unit} on clean prompts")),
        }
        let beats = self
            .beats
            .map(|share| format!("beats the wrong one in {share} clean runs"));
        let top1 = self
            .top1
            .map(|share| format!("is the likeliest token in {share}"));
        let said: Vec<String> = beats.into_iter().chain(top1).collect();
        if !said.is_empty() {
            lines.push(format!("the answer {}", said.join(", and ")));
        }
        lines
    }

    /// Why there is no `normalised`.
    pub(super) fn no_gap_warning(&self) -> Option<String> {
        let gap = self.gap.filter(|_| !self.has_gap())?;
        let doubt = if self.used < FEW {
            format!(
                "is {gap} over {} pairs: too small to tell from none",
                self.used
            )
        } else {
            format!("is {gap}: it could be none")
        };
        Some(format!(
            "the difference of clean and corrupted {} {doubt}, so no effect is given as a share of it; \
             the corruption may not touch what the metric measures (as a control should not)",
            self.metric
        ))
    }
}

impl Estimate {
    /// # Errors
    /// Those of the bootstrap.
    pub fn of(values: &[f64], seed: u64) -> Result<Estimate> {
        let interval = Bootstrap::new(seed, values.len()).interval_of_mean(values);
        Ok(Estimate {
            mean: mean(values),
            interval: interval.filter(|(low, high)| low.is_finite() && high.is_finite()),
        })
    }

    /// Whether a mean over `n` pairs can be told from zero.
    pub(super) fn is_not_zero(&self, n: usize) -> bool {
        if n < FEW {
            return self.mean.abs() >= LEAST_GAP_OF_FEW;
        }
        let contains_zero = (self.interval).is_none_or(|(low, high)| low <= 0.0 && high >= 0.0);
        !contains_zero && self.mean.abs() >= LEAST_GAP
    }
}

impl Share {
    fn of(values: impl Iterator<Item = bool>) -> Option<Share> {
        let mut share = Share::default();
        for is_so in values {
            share.count += usize::from(is_so);
            share.of += 1;
        }
        (share.of > 0).then_some(share)
    }
}

/// `3.21 [2.81, 3.60]`, the interval a 95% one.
impl fmt::Display for Estimate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:.3}", self.mean)?;
        match self.interval {
            Some((low, high)) => write!(f, " [{low:.3}, {high:.3}]"),
            None => Ok(()),
        }
    }
}

impl fmt::Display for Share {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} of {}", self.count, self.of)
    }
}

/// JSON has no NaN and no infinity, and writes them as null.
pub(super) fn finite_or_nan<'de, D: Deserializer<'de>>(from: D) -> Result<f64, D::Error> {
    Ok(Option::<f64>::deserialize(from)?.unwrap_or(f64::NAN))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn examples(ends: &[(f64, f64)]) -> Vec<ExampleScores> {
        let one = |(clean, corrupted): &(f64, f64)| ExampleScores {
            clean: *clean,
            corrupted: *corrupted,
            beats: Some(*clean > 0.0),
            ..ExampleScores::default()
        };
        ends.iter().map(one).collect()
    }

    fn report(ends: &[(f64, f64)], direction: Direction) -> TaskReport {
        let meta = ScoresMeta {
            metric: "logit_diff".into(),
            unit: "logits".into(),
            direction,
            ..ScoresMeta::default()
        };
        let dropped = vec![("lengths differ".into(), 2)];
        TaskReport::of(&examples(ends), ends.len(), &meta, dropped).unwrap()
    }

    #[test]
    fn it_says_what_was_used_how_far_apart_the_runs_are_and_how_often_the_answer_wins() {
        let lines = report(&[(3.0, -1.0), (-1.0, -1.0)], Direction::Denoise).lines();
        assert_eq!(
            lines,
            [
                "2 pairs used, 2 dropped (lengths differ: 2)",
                "logit_diff 1.000 [-1.000, 3.000] on clean prompts, -1.000 [-1.000, -1.000] on corrupted ones; \
                 the difference is 2.000 [0.000, 4.000] logits",
                "the answer beats the wrong one in 1 of 2 clean runs",
            ]
        );
        let direct = report(&[(3.0, 3.0)], Direction::Direct);
        assert_eq!((direct.corrupted, direct.gap), (None, None));
        assert_eq!(
            direct.lines()[1],
            "logit_diff 3.000 logits on clean prompts"
        );
    }

    #[test]
    fn a_metric_without_bound_can_be_written_and_read() {
        let report = report(&[(f64::INFINITY, 1.0), (1.0, 1.0)], Direction::Noise);
        let text = serde_json::to_string(&report).unwrap();
        let back: TaskReport = serde_json::from_str(&text).unwrap();
        assert!(back.clean.mean.is_nan() && back.clean.interval.is_none());
        assert_eq!(back.corrupted, report.corrupted);
    }

    #[test]
    fn a_gap_that_could_be_none_is_no_gap() {
        let has_gap = |ends: &[(f64, f64)]| report(ends, Direction::Noise).has_gap();
        // Few pairs: a tenth of the unit decides.
        assert!(has_gap(&[(0.3, 0.1)]));
        assert!(!has_gap(&[(0.15, 0.1), (0.1, 0.1), (0.1, 0.1)]));
        // Four and more: their interval does. Gaps 1, -1, 1, -1 and 0.01 four times.
        assert!(!has_gap(&[(1.0, 0.0), (0.0, 1.0), (1.0, 0.0), (0.0, 1.0)]));
        assert!(has_gap(&[(0.01, 0.0); 4]));
        // Rounding is no gap, even if it is always the same.
        assert!(!has_gap(&[(1e-9, 0.0); 4]));
        let warning = report(&[(1.0, 1.0); 5], Direction::Noise).no_gap_warning();
        assert!(
            warning.is_some_and(|text| text.contains("0.000 [0.000, 0.000]: it could be none"))
        );
        assert_eq!(
            report(&[(1.0, 1.0); 5], Direction::Direct).no_gap_warning(),
            None
        );
    }
}
