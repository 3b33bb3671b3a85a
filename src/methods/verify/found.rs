//! What verification found, and how it is said.

use std::fmt;

use crate::error::Result;
use crate::scores::{Cell, Column, Detail, ExampleScores, Scores, statistics};

/// One cell, estimated and measured: means over pairs.
#[derive(Debug, Clone, PartialEq)]
pub struct Checked {
    /// What was measured exactly.
    pub cell: Cell,
    /// Index among the table's cells, where the estimate is one of them (and not the sum of several).
    pub index: Option<usize>,
    /// Drawn at random rather than among the strongest.
    pub random: bool,
    pub estimate: f64,
    pub exact: f64,
}

/// What verification found.
#[derive(Debug, Clone, PartialEq)]
pub struct Verification {
    pub checked: Vec<Checked>,
    /// The exact effect of each checked cell on each example, `[checked][examples]`; NaN where an example lacks the cell.
    pub effects: Vec<Vec<f64>>,
    /// Estimates are sizes without sign, and so are the exact effects beside them.
    pub sizes: bool,
    /// No unverified node has an effect above this, if it was asked for.
    pub bound: Option<Bound>,
}

/// A statistical bound on the largest effect among nodes that were not patched one by one.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Bound {
    pub effect: f64,
    /// Chance that it is wrong.
    pub risk: f64,
    /// Joint patches that it rests on.
    pub draws: usize,
    pub nodes: usize,
}

impl Verification {
    fn pairs(&self, of: impl Fn(&Checked) -> bool) -> Vec<(f64, f64)> {
        (self.checked.iter())
            .filter(|checked| of(checked))
            .map(|checked| (checked.estimate, checked.exact))
            .collect()
    }

    /// Pearson's correlation of estimates and exact effects; `None` if one of them does not vary.
    pub fn correlation(&self, of: impl Fn(&Checked) -> bool) -> Option<f64> {
        statistics::correlation(&self.pairs(of))
    }

    /// Spearman's correlation of the ranks.
    pub fn rank_correlation(&self, of: impl Fn(&Checked) -> bool) -> Option<f64> {
        statistics::rank_correlation(&self.pairs(of))
    }

    /// Pearson's correlation without the cell of the largest exact effect, which can carry it alone.
    pub fn correlation_without_largest(&self) -> Option<f64> {
        let mut pairs = self.pairs(|_| true);
        let size = |pair: &(f64, f64)| pair.1.abs().max(pair.0.abs());
        let largest =
            (0..pairs.len()).max_by(|&a, &b| size(&pairs[a]).total_cmp(&size(&pairs[b])))?;
        pairs.remove(largest);
        (pairs.len() > 2)
            .then(|| statistics::correlation(&pairs))
            .flatten()
    }

    /// The median of `|estimate - exact| / |exact|` over the cells whose exact effect is not zero.
    pub fn median_relative_error(&self) -> Option<f64> {
        statistics::median_relative_error(&self.pairs(|_| true))
    }

    /// The share of checked cells whose estimate has the sign of the exact effect; those whose exact effect is zero do not count.
    pub fn sign_agreement(&self) -> Option<f64> {
        let told: Vec<bool> = (self.checked.iter())
            .filter(|checked| checked.exact != 0.0)
            .map(|checked| checked.estimate * checked.exact > 0.0)
            .collect();
        let right = told.iter().filter(|&&right| right).count();
        (!self.sizes && !told.is_empty()).then(|| right as f64 / told.len() as f64)
    }

    /// The largest differences, worst first.
    pub fn worst(&self, n: usize) -> Vec<&Checked> {
        let mut worst: Vec<&Checked> = self.checked.iter().collect();
        let gap = |checked: &Checked| (checked.estimate - checked.exact).abs();
        worst.sort_by(|a, b| gap(b).total_cmp(&gap(a)));
        worst.truncate(n);
        worst
    }

    /// Adds the columns `exact` and `checked` (`top` or `random`) to the table, and the line to its notes.
    /// # Errors
    /// Those of building columns.
    pub fn add_to(
        &self,
        scores: &mut Scores,
        n_cells: usize,
        examples: &[ExampleScores],
        detail: Detail,
    ) -> Result<()> {
        let mut of_cell = vec![None; n_cells];
        for (i, checked) in self.checked.iter().enumerate() {
            if let Some(cell) = checked.index {
                of_cell[cell] = Some(i);
            }
        }
        let rows = crate::scores::rows(n_cells, examples, detail);
        let exact: Vec<Option<f64>> = rows
            .iter()
            .map(|&(cell, example)| {
                let i = of_cell[cell as usize]?;
                let effect = match example {
                    Some(example) if self.sizes => self.effects[i][example].abs(),
                    Some(example) => self.effects[i][example],
                    None => self.checked[i].exact,
                };
                effect.is_finite().then_some(effect)
            })
            .collect();
        let drawn: Vec<Option<&str>> = rows
            .iter()
            .map(|&(cell, _)| {
                let checked = &self.checked[of_cell[cell as usize]?];
                Some(if checked.random { "random" } else { "top" })
            })
            .collect();
        scores.set_floats(Column::Exact, &exact)?;
        scores.set_texts(Column::Checked, &drawn)?;
        scores.provenance.notes.push(self.line());
        Ok(())
    }

    /// One line that says how far the estimates can be trusted.
    pub fn line(&self) -> String {
        let random = self.checked.iter().filter(|checked| checked.random).count();
        let number = |x: Option<f64>| x.map_or("undefined".into(), |x| format!("{x:.3}"));
        let all = self.correlation(|_| true);
        let mut line = format!(
            "verified {} top and {random} random exactly: correlation {} (top {}, random {}), rank correlation {} (top {})",
            self.checked.len() - random,
            number(all),
            number(self.correlation(|checked| !checked.random)),
            number(self.correlation(|checked| checked.random)),
            number(self.rank_correlation(|_| true)),
            number(self.rank_correlation(|checked| !checked.random)),
        );
        // One large effect can make a correlation that the others do not have.
        if let (Some(all), Some(without)) = (all, self.correlation_without_largest())
            && (all - without).abs() > 0.02
        {
            line += &format!("; without the largest effect the correlation is {without:.3}");
        }
        if let Some(error) = self.median_relative_error() {
            line += &format!("; median relative error {:.0}%", 100.0 * error);
        }
        if let Some(agreement) = self.sign_agreement() {
            line += &format!(", signs agree in {:.0}%", 100.0 * agreement);
        }
        let worst: Vec<String> = (self.worst(3).iter())
            .map(|checked| {
                let (estimate, exact) = (checked.estimate, checked.exact);
                format!("{} {estimate:.3} for {exact:.3}", checked.cell)
            })
            .collect();
        line += &format!("; worst: {}", worst.join(", "));
        if let Some(bound) = &self.bound {
            line += &format!(
                "; none of the {} nodes not patched one by one has an effect above {:.3} (risk {}, {} joint patches)",
                bound.nodes, bound.effect, bound.risk, bound.draws
            );
        }
        line
    }
}

impl fmt::Display for Bound {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:.4}", self.effect)
    }
}
