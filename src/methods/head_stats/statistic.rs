//! What is measured of a pattern over repeated tokens, and what a head is called after it.

/// What is measured on repeated tokens, in the order of the table; the first is the table's own metric.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Statistic {
    Induction,
    PreviousToken,
    DuplicateToken,
    FirstToken,
    Itself,
    Copying,
    Entropy,
    Distance,
}

impl Statistic {
    pub const ALL: [Statistic; 8] = [
        Statistic::Induction,
        Statistic::PreviousToken,
        Statistic::DuplicateToken,
        Statistic::FirstToken,
        Statistic::Itself,
        Statistic::Copying,
        Statistic::Entropy,
        Statistic::Distance,
    ];

    /// Those that say where a head looks.
    const PLACES: [Statistic; 5] = [
        Statistic::Induction,
        Statistic::PreviousToken,
        Statistic::DuplicateToken,
        Statistic::FirstToken,
        Statistic::Itself,
    ];

    pub fn name(self) -> &'static str {
        match self {
            Statistic::Induction => "induction",
            Statistic::PreviousToken => "previous_token",
            Statistic::DuplicateToken => "duplicate_token",
            Statistic::FirstToken => "first_token",
            Statistic::Itself => "itself",
            Statistic::Copying => "copying",
            Statistic::Entropy => "entropy",
            Statistic::Distance => "distance",
        }
    }
}

/// From this much attention on, a head is called after where it looks.
pub(super) const LOOKS: f64 = 0.4;
/// From this much attention on, a role is among those that the end looks at.
pub(super) const SEES: f64 = 0.2;

/// From this copying score on (or its negative), a head is said to copy (or to suppress).
pub(super) const COPIES: f64 = 0.5;

/// What one pattern `[query][key]` over twice `block` tokens looks like, in the order of [`Statistic::ALL`].
pub(super) fn statistics(pattern: &[Vec<f32>], block: usize, copying: f64) -> [f64; 8] {
    let length = pattern.len();
    let first = length - 2 * block;
    let at = |query: usize, key: usize| f64::from(pattern[query][key]);
    let over = |queries: std::ops::Range<usize>, of: &dyn Fn(usize) -> f64| {
        let n = queries.len() as f64;
        queries.map(of).sum::<f64>() / n
    };
    let second = length - block..length;
    let later = first + 1..length;
    let row = |i: usize| (0..=i).map(move |j| (j, at(i, j)));
    let entropy = |i: usize| {
        let terms = row(i).filter(|(_, p)| *p > 0.0);
        -terms.map(|(_, p)| p * p.ln()).sum::<f64>()
    };
    [
        over(second.clone(), &|i| at(i, i + 1 - block)),
        over(later.clone(), &|i| at(i, i - 1)),
        over(second, &|i| at(i, i - block)),
        over(later.clone(), &|i| at(i, 0)),
        over(later.clone(), &|i| at(i, i)),
        copying,
        over(later.clone(), &entropy),
        over(later, &|i| row(i).map(|(j, p)| p * (i - j) as f64).sum()),
    ]
}

/// What a head looks like. `of` gives the mean of a statistic, `at_role` attention from the end to a role and copying there.
pub(super) fn class(
    roles: &[String],
    of: impl Fn(Statistic) -> f64,
    at_role: impl Fn(usize) -> [f64; 2],
) -> String {
    let most = (Statistic::PLACES.into_iter()).max_by(|&a, &b| of(a).total_cmp(&of(b)));
    let place = most.filter(|&most| of(most) >= LOOKS);
    let mut said = vec![match place {
        Some(place) => format!("{} {:.2}", place.name().replace('_', " "), of(place)),
        None => "no one place".to_string(),
    }];
    let copying = of(Statistic::Copying);
    if copying.abs() >= COPIES {
        let verb = if copying > 0.0 {
            "copies"
        } else {
            "suppresses"
        };
        said.push(format!("{verb} {copying:+.2}"));
    }
    let mut seen: Vec<(f64, String)> = Vec::new();
    for (role, name) in roles.iter().enumerate() {
        let [attention, copying] = at_role(role);
        let verb = match copying {
            c if c >= COPIES => format!(" (copies {c:+.2})"),
            c if c <= -COPIES => format!(" (suppresses {c:+.2})"),
            _ => String::new(),
        };
        if attention >= SEES {
            seen.push((attention, format!("{name} {attention:.2}{verb}")));
        }
    }
    seen.sort_by(|(a, _), (b, _)| b.total_cmp(a));
    if !seen.is_empty() {
        let seen: Vec<String> = seen.into_iter().map(|(_, said)| said).collect();
        said.push(format!("END looks at {}", seen.join(", ")));
    }
    said.join("; ")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A pattern over six positions (three tokens twice) that looks at one place a query.
    fn pattern(of: impl Fn(usize) -> usize) -> Vec<Vec<f32>> {
        let row = |query: usize| {
            (0..6)
                .map(|key| f32::from(u8::from(key == of(query))))
                .collect()
        };
        (0..6).map(row).collect()
    }

    #[test]
    fn each_way_of_looking_back_has_its_statistic() {
        let looks = |of: fn(usize) -> usize| statistics(&pattern(of), 3, 0.0);
        let induction = looks(|i| if i >= 3 { i - 2 } else { 0 });
        assert_eq!(induction[0], 1.0);
        // Position 3 came first at 0, whose successor is 1; queries 1 and 2 look at 0, at distances 1 and 2.
        assert_eq!(induction[7], (1.0 + 2.0 + 2.0 + 2.0 + 2.0) / 5.0);
        assert_eq!(looks(|i| i.saturating_sub(1))[1], 1.0);
        assert_eq!(looks(|i| if i >= 3 { i - 3 } else { i })[2], 1.0);
        assert_eq!(looks(|_| 0)[3], 1.0);
        assert_eq!(looks(|i| i)[4], 1.0);
        let even: Vec<Vec<f32>> = (0..6)
            .map(|i| {
                (0..6)
                    .map(|j| if j <= i { 1.0 / (i + 1) as f32 } else { 0.0 })
                    .collect()
            })
            .collect();
        let entropy = (2..=6).map(|n| f64::from(n).ln()).sum::<f64>() / 5.0;
        assert!((statistics(&even, 3, 0.0)[6] - entropy).abs() < 1e-6);
    }

    #[test]
    fn a_head_is_called_after_the_numbers_behind_it() {
        let roles = ["A", "B"].map(String::from);
        let of = |statistic| match statistic {
            Statistic::PreviousToken => 0.75,
            Statistic::Induction => 0.5,
            Statistic::Copying => -0.6,
            _ => 0.0,
        };
        let said = class(&roles, of, |role| [[0.25, 0.9], [0.5, 0.1]][role]);
        assert_eq!(
            said,
            "previous token 0.75; suppresses -0.60; END looks at B 0.50, A 0.25 (copies +0.90)"
        );
        assert_eq!(class(&roles, |_| 0.1, |_| [0.1, 1.0]), "no one place");
    }

    #[test]
    fn statistics_stand_in_their_order() {
        for (place, statistic) in Statistic::ALL.into_iter().enumerate() {
            assert_eq!(statistic as usize, place);
        }
    }
}
