use super::*;

fn game(n: usize) -> Game {
    Game {
        n,
        seed: 3,
        stream: 1,
    }
}

fn shares(summary: Summary, game: Game, v: impl Fn(&[bool]) -> f64) -> Vec<Share> {
    let coalitions = summary.coalitions(game);
    let values: Values = (coalitions.into_iter())
        .map(|coalition| {
            let value = v(&coalition);
            (coalition, value)
        })
        .collect();
    summary.shares(game, &values).expect("it can be fitted")
}

/// Player 0 does nothing, 1 and 2 are alike and work only together, 3 hurts, the others add their number; all of it bent.
fn bent(coalition: &[bool]) -> f64 {
    let is = |i: usize| f64::from(u8::from(coalition[i]));
    let sum: f64 = (4..coalition.len()).map(|i| 0.1 * i as f64 * is(i)).sum();
    (2.0 * is(1) * is(2) - is(3) + sum).tanh() + 0.3 * sum * is(3)
}

/// Coefficients 0, 1, 2, ...
fn linear(coalition: &[bool]) -> f64 {
    let terms = coalition.iter().enumerate();
    5.0 + terms
        .map(|(i, &it)| i as f64 * f64::from(u8::from(it)))
        .sum::<f64>()
}

#[test]
fn occlusion_is_the_mean_over_the_windows_that_a_player_is_in() {
    let of = |window, stride, n, v: fn(&[bool]) -> f64| -> Vec<f64> {
        let shares = shares(Summary::Occlusion { window, stride }, game(n), v);
        shares.into_iter().map(|share| share.value).collect()
    };
    // Of coefficients 0, 1, 2, 3, 4: windows of three lose 3, 6 and 9.
    assert_eq!(of(3, 1, 5, linear), [3.0, 4.5, 6.0, 7.5, 9.0]);
    // The last window is what is left.
    assert_eq!(of(3, 3, 5, linear), [3.0, 3.0, 3.0, 7.0, 7.0]);
    assert_eq!(of(2, 1, 1, linear), [0.0]);
    assert_eq!(of(9, 4, 3, linear), [3.0; 3]);
    let alone = shares(Summary::LeaveOneOut, game(7), bent);
    let alone: Vec<f64> = alone.into_iter().map(|share| share.value).collect();
    assert_eq!(of(1, 1, 7, bent), alone);
    assert!(
        Summary::Occlusion {
            window: 2,
            stride: 3
        }
        .check()
        .is_err()
    );
    assert!(
        Summary::Occlusion {
            window: 0,
            stride: 0
        }
        .check()
        .is_err()
    );
}

fn near(one: f64, other: f64, tolerance: f64, what: &str) {
    assert!(
        (one - other).abs() <= tolerance,
        "{what}: {one} against {other}"
    );
}

#[test]
fn shapley_of_two_players_by_hand() {
    // v: none 1, {0} 3, {1} 2, both 8. 0 adds 2 first and 6 last.
    let v = |it: &[bool]| [1.0, 3.0, 2.0, 8.0][usize::from(it[0]) + 2 * usize::from(it[1])];
    let of = shares(Summary::ALL[2], game(2), v);
    assert_eq!((of[0].value, of[1].value), (4.0, 3.0));
    assert_eq!(of[0].error, None);
}

#[test]
fn efficiency_dummies_and_symmetry_hold_exactly_and_sampled() {
    for n in [6, 12, 15] {
        for summary in [Summary::ALL[2], Summary::ALL[3]] {
            let of = shares(summary, game(n), bent);
            let sum: f64 = of.iter().map(|share| share.value).sum();
            let whole = bent(&vec![true; n]) - bent(&vec![false; n]);
            near(sum, whole, 1e-9, summary.name());
            assert_eq!(of[0].error.is_some(), n > EXACT);
            if n <= EXACT || summary == Summary::ALL[2] {
                near(of[0].value, 0.0, 1e-9, "a dummy");
            }
            let slack = 1e-9 + 5.0 * of[1].error.unwrap_or(0.0);
            near(of[1].value, of[2].value, slack, "players that are alike");
        }
    }
}

#[test]
fn kernel_shap_over_all_coalitions_is_shapley() {
    for n in 1..=9 {
        let v = |it: &[bool]| bent(&[it, &[false; 4][..4 - n.min(4)]].concat());
        let exact = shares(Summary::ALL[2], game(n), v);
        let fitted = shares(Summary::ALL[3], game(n), v);
        for (one, other) in exact.iter().zip(&fitted) {
            near(one.value, other.value, 1e-9, "kernel");
        }
    }
}

#[test]
fn samples_agree_with_all_coalitions_within_their_errors() {
    // Fifteen players, three of which do nothing: what the first twelve do is known exactly.
    let v = |it: &[bool]| bent(&it[..12]);
    for summary in Summary::ALL {
        let exact = shares(summary, game(12), v);
        let sampled = shares(summary, game(15), |it| bent(&it[..12]));
        // LIME's kernel knows how many players there are, and ridge pulls.
        // A window at the end has other neighbours.
        if matches!(summary, Summary::Lime { .. } | Summary::Occlusion { .. }) {
            continue;
        }
        for (i, (one, other)) in exact.iter().zip(&sampled).enumerate() {
            let error = other.error.unwrap_or(0.0);
            let what = format!("{} {i}", summary.name());
            // The error of a Sobol index leaves out that of the variance.
            let slack = if matches!(summary, Summary::Sobol { .. }) {
                0.2 * one.value
            } else {
                0.0
            };
            near(one.value, other.value, 1e-9 + 4.0 * error + slack, &what);
            assert_eq!(other.error.is_some(), summary.samples(15), "{what}");
        }
    }
}

#[test]
fn a_linear_game_gives_its_coefficients() {
    for n in [2, 5, 14] {
        for summary in Summary::ALL {
            let summary = match summary {
                // Of draws the ridge takes a little; where all coalitions count it plays no part.
                Summary::Lime { draws, width, .. } if n > EXACT => Summary::Lime {
                    draws,
                    width,
                    ridge: 0.0,
                },
                Summary::Occlusion { .. } => Summary::Occlusion {
                    window: 1,
                    stride: 1,
                },
                other => other,
            };
            let of = shares(summary, game(n), linear);
            let squares: f64 = (0..n).map(|i| (i * i) as f64).sum();
            for (i, share) in of.iter().enumerate() {
                let (wanted, slack) = match summary {
                    Summary::Sobol { .. } if n > EXACT => ((i * i) as f64 / squares, 0.2),
                    Summary::Sobol { .. } => ((i * i) as f64 / squares, 1e-9),
                    _ => (i as f64, 1e-8),
                };
                near(
                    share.value,
                    wanted,
                    slack,
                    &format!("{} {i} of {n}", summary.name()),
                );
            }
        }
    }
}

#[test]
fn sobol_indices_count_what_players_do_together() {
    // v = x y of two coins: Var v = 3/16; of each alone is left E[y^2] / 4 = 1/8.
    let v = |it: &[bool]| f64::from(u8::from(it[0] && it[1]));
    for share in shares(Summary::ALL[5], game(2), v) {
        near(share.value, 2.0 / 3.0, 1e-12, "sobol");
    }
    for share in shares(Summary::ALL[5], game(3), |_| 7.0) {
        assert_eq!(share.value, 0.0, "nothing varies");
    }
}

#[test]
fn a_coalition_is_asked_for_once() {
    for (summary, n, count) in [
        (Summary::ALL[0], 20, 21),
        (Summary::ALL[1], 20, 21),
        (Summary::ALL[2], 12, 4096),
        (Summary::ALL[4], 3, 8),
    ] {
        assert_eq!(summary.coalitions(game(n)).len(), count);
    }
    let all = Summary::ALL[2].coalitions(game(13));
    let distinct: HashSet<&Coalition> = all.iter().collect();
    assert!(all.len() == distinct.len() && all.len() <= 2 * 100 * 12 + 2);
    // The same seed draws the same, another stream something else.
    assert_eq!(all, Summary::ALL[2].coalitions(game(13)));
    let other = Game {
        stream: 2,
        ..game(13)
    };
    assert_ne!(all, Summary::ALL[2].coalitions(other));
}

#[test]
fn too_few_draws_for_a_fit_are_refused() {
    let summary = Summary::KernelShap { draws: 3 };
    let coalitions = summary.coalitions(game(20));
    let values = coalitions.into_iter().map(|it| (it, 1.0)).collect();
    let error = summary.shares(game(20), &values).unwrap_err().to_string();
    assert!(error.contains("more draws"), "{error}");
}
