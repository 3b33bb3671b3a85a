//! Where an integral over `[0, 1]` is sampled, and with which weights.

use std::fmt;
use std::str::FromStr;

use serde::Serialize;

use crate::error::{Error, Result};
use crate::methods::attribution::StepRule;

/// Where on `[0, 1]` an integral is sampled.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Quadrature {
    /// Exact for polynomials of degree up to `2 steps - 1`.
    #[default]
    GaussLegendre,
    Left,
    Right,
    Midpoint,
    /// Both ends are points: it needs two steps.
    Trapezoid,
}

pub(super) fn names<T: fmt::Display>(values: &[T]) -> String {
    let names: Vec<String> = values.iter().map(T::to_string).collect();
    names.join(", ")
}

/// More points than this are refused: f32 gradients carry no more precision long before.
const MAX_STEPS: usize = 10_000;

impl Quadrature {
    pub const ALL: [Quadrature; 5] = [
        Quadrature::GaussLegendre,
        Quadrature::Left,
        Quadrature::Right,
        Quadrature::Midpoint,
        Quadrature::Trapezoid,
    ];

    /// Points on `[0, 1]` and their weights, which sum to 1.
    /// # Errors
    /// [`Error::Invalid`] for no steps at all, or more than a computer has time for.
    pub fn points(self, steps: usize) -> Result<Vec<(f64, f64)>> {
        let least = if self == Quadrature::Trapezoid { 2 } else { 1 };
        if !(least..=MAX_STEPS).contains(&steps) {
            return Err(Error::invalid(format!(
                "the {self} rule with {steps} steps has no integral; take {least} to {MAX_STEPS}, such as 50"
            )));
        }
        let n = steps as f64;
        let even = |shift: f64| (0..steps).map(move |k| ((k as f64 + shift) / n, 1.0 / n));
        Ok(match self {
            Quadrature::GaussLegendre => gauss_legendre(steps),
            Quadrature::Left => even(0.0).collect(),
            Quadrature::Right => even(1.0).collect(),
            Quadrature::Midpoint => even(0.5).collect(),
            Quadrature::Trapezoid => {
                let width = 1.0 / (n - 1.0);
                let at_end = |k: usize| k == 0 || k == steps - 1;
                let weight = |k: usize| if at_end(k) { width / 2.0 } else { width };
                (0..steps).map(|k| (k as f64 * width, weight(k))).collect()
            }
        })
    }
}

/// Roots of the Legendre polynomial by Newton's method, mapped from `[-1, 1]` to `[0, 1]`.
fn gauss_legendre(n: usize) -> Vec<(f64, f64)> {
    let mut points = Vec::with_capacity(n);
    for k in 0..n {
        let mut x = -(std::f64::consts::PI * (k as f64 + 0.75) / (n as f64 + 0.5)).cos();
        let mut slope = 1.0;
        // Quadratic convergence from a guess that is good to a few digits.
        for _ in 0..10 {
            let (mut before, mut here) = (1.0, x);
            for degree in 2..=n {
                let j = degree as f64;
                (before, here) = (here, ((2.0 * j - 1.0) * x * here - (j - 1.0) * before) / j);
            }
            slope = n as f64 * (x * here - before) / (x * x - 1.0);
            let step = here / slope;
            x -= step;
            if step.abs() < 1e-15 {
                break;
            }
        }
        points.push((0.5 * (x + 1.0), 1.0 / ((1.0 - x * x) * slope * slope)));
    }
    points
}

impl From<StepRule> for Quadrature {
    fn from(rule: StepRule) -> Self {
        match rule {
            StepRule::Midpoint => Quadrature::Midpoint,
            StepRule::Left => Quadrature::Left,
            StepRule::Right => Quadrature::Right,
            StepRule::Trapezoid => Quadrature::Trapezoid,
        }
    }
}

impl fmt::Display for Quadrature {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Quadrature::GaussLegendre => "gauss-legendre",
            Quadrature::Left => "left",
            Quadrature::Right => "right",
            Quadrature::Midpoint => "midpoint",
            Quadrature::Trapezoid => "trapezoid",
        })
    }
}

impl FromStr for Quadrature {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let named = |rule: &Quadrature| rule.to_string() == text;
        Quadrature::ALL
            .into_iter()
            .find(named)
            .ok_or_else(|| Error::Parse {
                what: "an integration rule",
                text: text.into(),
                reason: format!("rules are {}", names(&Quadrature::ALL)),
            })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_read_back() {
        for rule in Quadrature::ALL {
            assert_eq!(rule.to_string().parse::<Quadrature>().unwrap(), rule);
        }
    }

    #[test]
    fn rules_integrate_what_they_are_exact_for() {
        let integral = |rule: Quadrature, steps: usize, power: i32| -> f64 {
            let points = rule.points(steps).unwrap();
            points.iter().map(|(x, w)| w * x.powi(power)).sum()
        };
        for rule in Quadrature::ALL {
            assert!((integral(rule, 7, 0) - 1.0).abs() < 1e-14, "{rule}");
        }
        for rule in [Quadrature::Midpoint, Quadrature::Trapezoid] {
            assert!((integral(rule, 5, 1) - 0.5).abs() < 1e-14, "{rule}");
        }
        for power in 0..10 {
            let exact = 1.0 / f64::from(power + 1);
            let five = integral(Quadrature::GaussLegendre, 5, power);
            assert!((five - exact).abs() < 1e-14, "x^{power}: {five}");
        }
        let hundred = integral(Quadrature::GaussLegendre, 100, 150);
        assert!((hundred - 1.0 / 151.0).abs() < 1e-14);
        // Half a step too low and too high.
        assert!((integral(Quadrature::Left, 4, 1) - 0.375).abs() < 1e-14);
        assert!((integral(Quadrature::Right, 4, 1) - 0.625).abs() < 1e-14);
    }

    #[test]
    fn two_gauss_points_are_the_textbook_ones() {
        let points = Quadrature::GaussLegendre.points(2).unwrap();
        let offset = 0.5 / 3f64.sqrt();
        for ((x, w), expected) in points.into_iter().zip([0.5 - offset, 0.5 + offset]) {
            assert!((x - expected).abs() < 1e-14 && (w - 0.5).abs() < 1e-14);
        }
    }

    #[test]
    fn an_integral_without_points_is_refused() {
        assert!(Quadrature::Midpoint.points(0).is_err());
        assert!(Quadrature::Trapezoid.points(1).is_err());
        assert!(Quadrature::Left.points(usize::MAX).is_err());
    }
}
