//! The token methods as values: names, knobs, and how each is printed and read.

use std::fmt;
use std::str::FromStr;

use serde::Serialize;

use crate::error::{Error, Result};
use crate::methods::attribution::StepRule;

/// How a metric is shared out over the input tokens. Prints as its name, and a name reads back as the method with its knobs at
/// their defaults.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub enum TokenMethod {
    /// `x . dF/dx`; signed.
    GradientTimesInput,
    /// `|dF/dx|`, the sum of magnitudes; never negative, so it says how much a token matters and not which way.
    SaliencyL1,
    /// `|dF/dx|`, the Euclidean length.
    SaliencyL2,
    /// Gradient times input with the mean gradient of noisy copies of the embeddings.
    SmoothGrad {
        draws: usize,
        /// Standard deviation of the noise, in units of the span (largest minus smallest entry) of the prompt's embeddings.
        noise: f64,
    },
    /// The gradient averaged along the straight line from a baseline, times the way.
    IntegratedGradients {
        /// Points of the quadrature, each a forward and a backward pass.
        steps: usize,
        rule: Quadrature,
        baseline: Baseline,
    },
    /// Integrated gradients averaged over baselines from a reference set, one random point of the line for each draw.
    ExpectedGradients {
        draws: usize,
        reference: ReferenceSet,
    },
    /// Layer-wise relevance propagation as CP-LRP: pattern and gate count as constants.
    Lrp,
    AttnLrp,
    /// Direct contributions of attention to the logits, handed down to the tokens by ALTI rollout.
    AltiLogit,
    /// ALTI rollout alone: how much of each token the last position is a mixture of. Knows no metric.
    AltiRollout,
}

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

/// What the embeddings are taken from.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
pub enum Baseline {
    /// All zeros. Where positions are learned this is an empty prompt. Where they are not, norms make the model blind to the length of
    /// a vector on the way, everything happens within `sqrt(eps)` of zero, and no affordable number of steps resolves it.
    Zero,
    /// The mean of all rows of the embedding: our default, since paths from it stay clear of zero.
    #[default]
    Mean,
    /// The BOS token at every position.
    Bos,
    /// A token of the vocabulary, written as the vocabulary writes it, at every position (a PAD token, say).
    Token(String),
    /// The pair's other prompt.
    Pair,
}

/// The prompts that expected gradients draw baselines from: of all pairs with the same template and length.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum ReferenceSet {
    #[default]
    Corrupted,
    /// The clean prompts, but never the one that is explained.
    Clean,
}

impl TokenMethod {
    /// Every method, its knobs at their defaults.
    pub fn all() -> Vec<TokenMethod> {
        vec![
            TokenMethod::GradientTimesInput,
            TokenMethod::SaliencyL1,
            TokenMethod::SaliencyL2,
            TokenMethod::SmoothGrad {
                draws: 50,
                noise: 0.15,
            },
            TokenMethod::IntegratedGradients {
                steps: 50,
                rule: Quadrature::GaussLegendre,
                baseline: Baseline::Mean,
            },
            TokenMethod::ExpectedGradients {
                draws: 200,
                reference: ReferenceSet::Corrupted,
            },
            TokenMethod::Lrp,
            TokenMethod::AttnLrp,
            TokenMethod::AltiLogit,
            TokenMethod::AltiRollout,
        ]
    }

    pub fn name(&self) -> &'static str {
        match self {
            TokenMethod::GradientTimesInput => "grad-x-input",
            TokenMethod::SaliencyL1 => "saliency-l1",
            TokenMethod::SaliencyL2 => "saliency-l2",
            TokenMethod::SmoothGrad { .. } => "smooth-grad",
            TokenMethod::IntegratedGradients { .. } => "ig",
            TokenMethod::ExpectedGradients { .. } => "expected-gradients",
            TokenMethod::Lrp => "lrp",
            TokenMethod::AttnLrp => "attn-lrp",
            TokenMethod::AltiLogit => "alti-logit",
            TokenMethod::AltiRollout => "alti-rollout",
        }
    }

    /// Whether it looks at the metric's slope at the explained prompt itself, and so has nothing to say where that is zero.
    pub(super) fn at_the_prompt(&self) -> bool {
        match self {
            TokenMethod::GradientTimesInput
            | TokenMethod::SaliencyL1
            | TokenMethod::SaliencyL2
            | TokenMethod::SmoothGrad { .. }
            | TokenMethod::Lrp
            | TokenMethod::AttnLrp
            | TokenMethod::AltiLogit => true,
            TokenMethod::IntegratedGradients { .. }
            | TokenMethod::ExpectedGradients { .. }
            | TokenMethod::AltiRollout => false,
        }
    }

    /// Forward passes with a gradient for each prompt, about.
    pub(super) fn passes(&self) -> usize {
        match self {
            TokenMethod::SmoothGrad { draws, .. } => *draws,
            TokenMethod::IntegratedGradients { steps, .. } => *steps,
            TokenMethod::ExpectedGradients { draws, .. } => *draws,
            _ => 1,
        }
    }

    /// # Errors
    /// [`Error::Invalid`] for knobs with which there would be nothing to compute.
    pub fn check(&self) -> Result<()> {
        let refuse = |reason: String| Err(Error::invalid(reason));
        match self {
            TokenMethod::SmoothGrad { draws: 0, .. }
            | TokenMethod::ExpectedGradients { draws: 0, .. } => refuse(format!(
                "`{self}` with 0 draws averages over nothing; give it at least 1"
            )),
            TokenMethod::SmoothGrad { noise, .. } if !noise.is_finite() || *noise < 0.0 => {
                refuse(format!(
                    "the noise of `{self}` is {noise}; it is a share of the embeddings' span, such as 0.15"
                ))
            }
            TokenMethod::IntegratedGradients { steps, rule, .. } => rule.points(*steps).map(drop),
            _ => Ok(()),
        }
    }
}

impl fmt::Display for TokenMethod {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for TokenMethod {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let name = match text {
            "cp-lrp" => "lrp",
            "integrated-gradients" => "ig",
            other => other,
        };
        let mut all = TokenMethod::all();
        match all.iter().position(|method| method.name() == name) {
            Some(at) => Ok(all.swap_remove(at)),
            None => Err(Error::Parse {
                what: "a token method",
                text: text.into(),
                reason: format!("methods are {}", names(&all)),
            }),
        }
    }
}

fn names<T: fmt::Display>(values: &[T]) -> String {
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

impl fmt::Display for Baseline {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Baseline::Zero => f.write_str("zero"),
            Baseline::Mean => f.write_str("mean"),
            Baseline::Bos => f.write_str("bos"),
            Baseline::Token(token) => write!(f, "token:{token}"),
            Baseline::Pair => f.write_str("pair"),
        }
    }
}

impl FromStr for Baseline {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        match text {
            "zero" => Ok(Baseline::Zero),
            "mean" => Ok(Baseline::Mean),
            "bos" => Ok(Baseline::Bos),
            "pair" => Ok(Baseline::Pair),
            _ => match text.strip_prefix("token:").filter(|t| !t.is_empty()) {
                Some(token) => Ok(Baseline::Token(token.into())),
                None => Err(Error::Parse {
                    what: "a baseline",
                    text: text.into(),
                    reason: "baselines are zero, mean, bos, pair, or a token of the vocabulary: token:<pad>".into(),
                }),
            },
        }
    }
}

impl fmt::Display for ReferenceSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            ReferenceSet::Corrupted => "corrupted",
            ReferenceSet::Clean => "clean",
        })
    }
}

impl FromStr for ReferenceSet {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        match text {
            "corrupted" => Ok(ReferenceSet::Corrupted),
            "clean" => Ok(ReferenceSet::Clean),
            _ => Err(Error::Parse {
                what: "a reference set",
                text: text.into(),
                reason: "it is corrupted or clean".into(),
            }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_read_back() {
        for method in TokenMethod::all() {
            assert_eq!(method.to_string().parse::<TokenMethod>().unwrap(), method);
            assert!(method.check().is_ok());
        }
        for rule in Quadrature::ALL {
            assert_eq!(rule.to_string().parse::<Quadrature>().unwrap(), rule);
        }
        let token = Baseline::Token("<|endoftext|>".into());
        for baseline in [
            Baseline::Zero,
            Baseline::Mean,
            Baseline::Bos,
            Baseline::Pair,
            token,
        ] {
            assert_eq!(baseline.to_string().parse::<Baseline>().unwrap(), baseline);
        }
        for set in [ReferenceSet::Corrupted, ReferenceSet::Clean] {
            assert_eq!(set.to_string().parse::<ReferenceSet>().unwrap(), set);
        }
        let message = "gradcam".parse::<TokenMethod>().unwrap_err().to_string();
        assert!(message.contains("grad-x-input, saliency-l1"), "{message}");
        assert!("token:".parse::<Baseline>().is_err());
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
    fn knobs_without_anything_to_compute_are_refused() {
        assert!(Quadrature::Midpoint.points(0).is_err());
        assert!(Quadrature::Trapezoid.points(1).is_err());
        assert!(Quadrature::Left.points(usize::MAX).is_err());
        let reference = ReferenceSet::Corrupted;
        assert!(
            TokenMethod::ExpectedGradients {
                draws: 0,
                reference
            }
            .check()
            .is_err()
        );
        let noise = f64::NAN;
        assert!(TokenMethod::SmoothGrad { draws: 1, noise }.check().is_err());
    }
}
