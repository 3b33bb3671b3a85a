//! How good a ranking is that should have one sentence first.

/// The sentence with the highest score, of equals the first.
pub(super) fn best(scores: &[f64]) -> usize {
    let most = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    scores.iter().position(|&score| score == most).unwrap_or(0)
}

/// Whether the right sentence has the highest score; where several have it, its share of them.
pub(super) fn top1(scores: &[f64], gold: usize) -> f64 {
    let most = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let best = scores.iter().filter(|&&score| score == most).count();
    if scores[gold] == most {
        1.0 / best as f64
    } else {
        0.0
    }
}

/// One over the rank of the right sentence; those of its own score stand before it half of the time.
pub(super) fn reciprocal_rank(scores: &[f64], gold: usize) -> f64 {
    let own = scores[gold];
    let above = scores.iter().filter(|&&score| score > own).count();
    let beside = scores.iter().filter(|&&score| score == own).count() - 1;
    1.0 / (1.0 + above as f64 + beside as f64 / 2.0)
}

/// The mean of one over the rank, where each rank is as likely.
pub(super) fn reciprocal_rank_by_chance(scores: &[f64], _: usize) -> f64 {
    let n = scores.len();
    (1..=n).map(|rank| 1.0 / rank as f64).sum::<f64>() / n as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_best_is_counted_and_ties_are_shared() {
        let scores = [0.5, 2.0, 2.0, -1.0];
        assert_eq!(
            [0, 1, 2, 3].map(|gold| top1(&scores, gold)),
            [0.0, 0.5, 0.5, 0.0]
        );
        assert_eq!(reciprocal_rank(&scores, 0), 1.0 / 3.0);
        assert_eq!(reciprocal_rank(&scores, 1), 1.0 / 1.5);
        assert_eq!(reciprocal_rank(&scores, 3), 0.25);
        assert_eq!((best(&scores), best(&[f64::NAN, 1.0])), (1, 1));
        assert_eq!(top1(&[0.0; 4], 2), 0.25);
        assert_eq!(reciprocal_rank_by_chance(&[0.0; 2], 0), 0.75);
    }
}
