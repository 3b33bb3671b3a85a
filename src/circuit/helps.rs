//! Which sign of a score is that of a part that helps: a matter of the metric, and of what was changed.

use crate::metric::Metric;
use crate::scores::Direction;

/// Which scores are those of edges that help.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Helps {
    /// Positive ones: of a loss, or as EAP-IG writes files.
    Positive,
    /// Negative ones: of a metric that the edge's absence lowers.
    Negative,
}

impl Helps {
    /// A metric falls where what helps is taken away, and rises where it is put back; a divergence the other way round.
    pub fn of(metric: Metric, direction: Direction) -> Self {
        let falls = direction != Direction::Denoise;
        if falls == metric.is_better_higher() {
            Helps::Negative
        } else {
            Helps::Positive
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_helps_lowers_a_metric_by_its_absence_and_raises_a_divergence() {
        use Direction::{Ablate, Denoise, Noise};
        for (metric, direction, expected) in [
            (Metric::LogitDiff, Noise, Helps::Negative),
            (Metric::LogitDiff, Ablate, Helps::Negative),
            (Metric::LogitDiff, Denoise, Helps::Positive),
            (Metric::Kl, Noise, Helps::Positive),
            (Metric::Rank, Denoise, Helps::Negative),
        ] {
            assert_eq!(
                Helps::of(metric, direction),
                expected,
                "{metric} {direction}"
            );
        }
    }
}
