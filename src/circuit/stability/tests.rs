use super::*;
use crate::circuit::{Pruning, Rule};

fn graph() -> Graph {
    Graph::tiny(1, 1)
}

fn edge(text: &str) -> Edge {
    text.parse().expect(text)
}

/// Pairs with the scores of some edges; all others are 0.
fn pairs(names: &[&str], scores: &[&[f64]], templates: &[usize]) -> PairScores {
    let of = |scores: &&[f64]| {
        let mut matrix = vec![0.0; graph().n_src() * graph().n_dst()];
        for (name, score) in names.iter().zip(*scores) {
            let (row, column) = graph().place(&edge(name)).expect(name);
            matrix[row * graph().n_dst() + column] = *score;
        }
        matrix
    };
    let scores = scores.iter().map(of).collect();
    PairScores::new(graph(), scores, templates.to_vec()).expect("of one graph")
}

fn top(n: usize) -> Selection {
    Selection::of(Rule::TopN(n)).pruning(Pruning::Never)
}

const RESAMPLING: Resampling = Resampling {
    draws: 400,
    seed: 3,
};

#[test]
fn pairs_that_agree_give_one_circuit() {
    let scores = pairs(
        &["input->m0", "m0->logits"],
        &[&[3.0, 2.0], &[4.0, 1.0], &[3.0, 1.5]],
        &[0, 0, 1],
    );
    let found = stability(&scores, &top(2), RESAMPLING).expect("stability");
    assert_eq!((found.bootstrap, found.split_half), (1.0, 1.0));
    assert_eq!((found.with_whole, found.bootstrap_range), (1.0, (1.0, 1.0)));
    assert_eq!(found.without_template, BTreeMap::from([(0, 1.0), (1, 1.0)]));
    let every = BTreeMap::from([(edge("input->m0"), 1.0), (edge("m0->logits"), 1.0)]);
    assert_eq!(found.shares, every);
}

#[test]
fn what_is_chosen_by_a_toss_overlaps_by_a_toss() {
    // Of two pairs each has its own edge, the first a little more. A draw of pair 1 twice (a quarter) chooses the other.
    let scores = pairs(
        &["input->m0", "m0->logits"],
        &[&[1.1, 0.0], &[0.0, 1.0]],
        &[0, 1],
    );
    let found = stability(&scores, &top(1), RESAMPLING).expect("stability");
    let share = found.shares[&edge("m0->logits")];
    assert!((share - 0.25).abs() < 0.06, "{share}");
    // Two draws agree where both chose the one or both the other; the pairs of 400 draws, not of all that might be.
    let n = RESAMPLING.draws as f64;
    let (other, one) = (share * n, (1.0 - share) * n);
    let agree = (other * (other - 1.0) + one * (one - 1.0)) / (n * (n - 1.0));
    assert!((found.bootstrap - agree).abs() < 1e-12);
    assert!((found.with_whole - (1.0 - share)).abs() < 1e-12);
    assert_eq!(found.split_half, 0.0);
    assert_eq!(found.without_template, BTreeMap::from([(0, 0.0), (1, 1.0)]));
    let again = stability(&scores, &top(1), RESAMPLING).expect("stability");
    assert_eq!(again.shares, found.shares);
    let other_seed = Resampling {
        seed: 4,
        ..RESAMPLING
    };
    let other = stability(&scores, &top(1), other_seed).expect("stability");
    assert_ne!(other.shares, found.shares);
}

#[test]
fn an_edge_without_a_consistent_sign_cannot_be_chosen() {
    let scores = pairs(
        &["input->m0", "m0->logits", "input->logits"],
        &[&[5.0, 1.0, -1.0], &[-4.0, 1.0, -2.0], &[5.0, 1.5, -1.0]],
        &[0; 3],
    );
    let all = scores.means(&[0, 1, 2]);
    assert_eq!(all.iter().filter(|score| **score != 0.0).count(), 3);
    let trusted = consistent(&scores, 0.95, RESAMPLING).expect("scores");
    let place = |name: &str| {
        let (row, column) = graph().place(&edge(name)).expect(name);
        row * graph().n_dst() + column
    };
    assert!(trusted[place("input->m0")].is_nan());
    assert_eq!(trusted[place("m0->logits")], all[place("m0->logits")]);
    assert_eq!(trusted[place("input->logits")], all[place("input->logits")]);
    let found = select_from(graph(), &trusted, &top(1))
        .expect("chooses")
        .edges;
    assert_eq!(found.edges().collect::<Vec<_>>(), [edge("input->logits")]);
    // With no condition every edge that has a sign stays.
    let any = consistent(&scores, 0.0, RESAMPLING).expect("scores");
    assert_eq!(any[place("input->m0")], all[place("input->m0")]);
}

#[test]
fn what_cannot_be_drawn_from_is_refused() {
    let one = pairs(&["input->m0"], &[&[1.0]], &[0]);
    let message = stability(&one, &top(1), RESAMPLING).expect_err("one pair");
    assert!(
        message.to_string().contains("at least 2 pairs"),
        "{message}"
    );
    let two = pairs(&["input->m0"], &[&[1.0], &[2.0]], &[0, 0]);
    let few = Resampling { draws: 1, seed: 0 };
    assert!(stability(&two, &top(1), few).is_err());
    assert!(consistent(&two, 1.5, RESAMPLING).is_err());
    assert!(consistent(&two, f64::NAN, RESAMPLING).is_err());
    assert!(PairScores::new(graph(), vec![vec![0.0; 3]], vec![0]).is_err());
    assert!(PairScores::new(graph(), Vec::new(), vec![0]).is_err());
}
