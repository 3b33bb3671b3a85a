//! What is measured of an ablated part.

/// What is measured of each part, in the order of its rows; the first is the table's own metric.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Measure {
    Total,
    TotalFrozen,
    NormTerm,
    Direct,
    DirectAblated,
    CompensationAttn,
    CompensationMlp,
    DirectAboveTotal,
}

impl Measure {
    pub const ALL: [Measure; 8] = [
        Measure::Total,
        Measure::TotalFrozen,
        Measure::NormTerm,
        Measure::Direct,
        Measure::DirectAblated,
        Measure::CompensationAttn,
        Measure::CompensationMlp,
        Measure::DirectAboveTotal,
    ];

    pub fn name(self) -> &'static str {
        match self {
            Measure::Total => "total_effect",
            Measure::TotalFrozen => "total_effect_frozen",
            Measure::NormTerm => "norm_term",
            Measure::Direct => "direct_effect",
            Measure::DirectAblated => "direct_effect_ablated",
            Measure::CompensationAttn => "compensation_attn",
            Measure::CompensationMlp => "compensation_mlp",
            Measure::DirectAboveTotal => "direct_above_total",
        }
    }
}

/// Sums over donors of what one prompt loses without a part, and gains by others.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(super) struct Effects {
    /// The change of the logit: with everything recomputed, and with the clean run's final scale.
    pub total: f64,
    pub total_frozen: f64,
    /// What the part contributes in the clean run, and with the donor's value.
    pub direct: f64,
    pub direct_ablated: f64,
    /// What later attention and later MLPs contribute more.
    pub compensation_attn: f64,
    pub compensation_mlp: f64,
}

impl Effects {
    pub fn add(&mut self, other: &Effects) {
        self.total += other.total;
        self.total_frozen += other.total_frozen;
        self.direct += other.direct;
        self.direct_ablated += other.direct_ablated;
        self.compensation_attn += other.compensation_attn;
        self.compensation_mlp += other.compensation_mlp;
    }

    /// A measure of the mean over so many donors.
    pub fn mean(&self, measure: Measure, donors: usize) -> f64 {
        let sum = match measure {
            Measure::Total => self.total,
            Measure::TotalFrozen => self.total_frozen,
            Measure::NormTerm => self.total - self.total_frozen,
            Measure::Direct => self.direct,
            Measure::DirectAblated => self.direct_ablated,
            Measure::CompensationAttn => self.compensation_attn,
            Measure::CompensationMlp => self.compensation_mlp,
            // Asked of the mean over donors.
            Measure::DirectAboveTotal => return f64::from(u8::from(self.direct > -self.total)),
        };
        sum / donors as f64
    }
}

/// One part that is ablated.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Removed {
    pub layer: usize,
    /// `None` for a whole branch.
    pub head: Option<usize>,
}

/// A part after the one that is ablated.
#[derive(Debug, Clone, Copy)]
pub(super) enum Later {
    Attn(usize),
    Mlp(usize),
    Head(usize, usize),
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn measures_stand_in_the_order_of_their_numbers() {
        for (at, measure) in Measure::ALL.into_iter().enumerate() {
            assert_eq!(measure as usize, at, "{}", measure.name());
        }
        // Two donors: 6 lost in all, 5 of it with the scale frozen.
        let effects = Effects {
            total: -6.0,
            total_frozen: -5.0,
            direct: 8.0,
            ..Effects::default()
        };
        assert_eq!(effects.mean(Measure::Total, 2), -3.0);
        assert_eq!(effects.mean(Measure::NormTerm, 2), -0.5);
        assert_eq!(effects.mean(Measure::DirectAboveTotal, 2), 1.0);
    }
}
