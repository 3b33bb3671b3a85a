//! The attribution head: of all heads the one that looks at the right sentence most often, found on other questions than the one that it is
//! then asked about.

use std::collections::BTreeMap;

use super::looks::HeadLooks;

/// What is known of every head on one question, by its place among all heads.
pub(super) struct OnOne {
    /// Whether its highest look is at the right sentence; `None` of a question whose sentence is not known.
    pub hits: Option<Vec<f64>>,
    pub entropies: Vec<f64>,
}

/// For each question the head that does best on those of another `group` whose sentence is known: the highest share of hits, and of
/// heads that share it the one with the lowest mean entropy over the context. `None` where there are no others.
pub(super) fn chosen<G: Ord>(all: &[OnOne], groups: &[G]) -> Vec<Option<usize>> {
    let mut best: BTreeMap<&G, Option<usize>> = BTreeMap::new();
    for group in groups {
        best.entry(group).or_insert_with(|| {
            let others = all.iter().zip(groups).filter(|(_, of)| *of != group);
            let known: Vec<(&Vec<f64>, &Vec<f64>)> = others
                .filter_map(|(one, _)| Some((one.hits.as_ref()?, &one.entropies)))
                .collect();
            let n_heads = known.first()?.1.len();
            let rank = |head: usize| {
                let hits: f64 = known.iter().map(|(hits, _)| hits[head]).sum();
                let entropy: f64 = known.iter().map(|(_, entropies)| entropies[head]).sum();
                (hits, -entropy)
            };
            let ranks: Vec<(f64, f64)> = (0..n_heads).map(rank).collect();
            (0..n_heads).max_by(|&a, &b| {
                let ((a, low_a), (b, low_b)) = (ranks[a], ranks[b]);
                // Sums of halves and thirds of hits are the same only to rounding.
                if (a - b).abs() < 1e-9 {
                    low_a.total_cmp(&low_b)
                } else {
                    a.total_cmp(&b)
                }
            })
        });
    }
    groups.iter().map(|group| best[group]).collect()
}

/// Its hits and entropies on one question.
pub(super) fn on_one(
    heads: &[HeadLooks],
    gold: Option<usize>,
    top1: impl Fn(&[f64], usize) -> f64,
) -> OnOne {
    OnOne {
        hits: gold.map(|gold| heads.iter().map(|head| top1(&head.highest, gold)).collect()),
        entropies: heads.iter().map(|head| head.entropy).collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_head_is_chosen_by_the_other_questions() {
        let one = |hits: [f64; 3], entropies: [f64; 3]| OnOne {
            hits: Some(hits.to_vec()),
            entropies: entropies.to_vec(),
        };
        // Head 2 is right on the first question alone, which has no say in its own choice.
        let all = [
            one([0.0, 0.0, 1.0], [3.0, 2.0, 5.0]),
            one([1.0, 1.0, 0.0], [1.0, 0.5, 1.0]),
            one([1.0, 1.0, 0.0], [3.0, 0.5, 1.0]),
            OnOne {
                hits: None,
                entropies: vec![0.0; 3],
            },
        ];
        let apart = [0, 1, 2, 3];
        assert_eq!(chosen(&all, &apart), [Some(1), Some(1), Some(1), Some(1)]);
        assert_eq!(chosen(&all[..2], &apart[..2]), [Some(1), Some(2)]);
        assert_eq!(chosen(&all[..1], &apart[..1]), [None]);
        // The first two share a context.
        assert_eq!(chosen(&all[..3], &[0, 0, 1]), [Some(1), Some(1), Some(1)]);
        assert_eq!(chosen(&all[2..], &[0, 1]), [None, Some(1)]);
    }
}
