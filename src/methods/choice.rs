//! Layers and heads as people choose them: `0,3-5`, `a3.h1`.

use std::fmt;
use std::str::FromStr;

use serde::Serialize;

use crate::error::{Error, Result};
use crate::hooks::Node;
use crate::spec::ModelSpec;

/// Some layers; none named means all.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Layers(pub Vec<usize>);

/// Some heads; none named means all.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Heads(pub Vec<ChosenHead>);

/// A head of every layer, or of one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub struct ChosenHead {
    pub layer: Option<usize>,
    pub head: usize,
}

impl Layers {
    /// # Errors
    /// [`Error::OutOfRange`] for a layer that the model does not have.
    pub fn check(&self, spec: &ModelSpec) -> Result<()> {
        check_range("layer", &self.0, spec.n_layers, "the model")
    }

    pub fn has(&self, layer: usize) -> bool {
        self.0.is_empty() || self.0.contains(&layer)
    }
}

impl Heads {
    /// # Errors
    /// [`Error::OutOfRange`] for a layer or a head that the model does not have.
    pub fn check(&self, spec: &ModelSpec) -> Result<()> {
        self.check_layers(spec)?;
        let heads: Vec<usize> = self.0.iter().map(|chosen| chosen.head).collect();
        check_range("head", &heads, spec.n_heads, "attention")
    }

    /// The same of their layers alone; how many heads there are, a hook says.
    /// # Errors
    /// [`Error::OutOfRange`].
    pub fn check_layers(&self, spec: &ModelSpec) -> Result<()> {
        let layers: Vec<usize> = self.0.iter().filter_map(|chosen| chosen.layer).collect();
        check_range("layer", &layers, spec.n_layers, "the model")
    }

    /// Whether a head of a layer is among them.
    pub fn has(&self, layer: usize, head: usize) -> bool {
        let is =
            |chosen: &ChosenHead| chosen.head == head && chosen.layer.is_none_or(|of| of == layer);
        self.0.is_empty() || self.0.iter().any(is)
    }
}

impl<const N: usize> From<[usize; N]> for Layers {
    fn from(layers: [usize; N]) -> Self {
        Layers(layers.to_vec())
    }
}

impl<const N: usize> From<[usize; N]> for Heads {
    fn from(heads: [usize; N]) -> Self {
        let of_every_layer = |head| ChosenHead { layer: None, head };
        Heads(heads.map(of_every_layer).to_vec())
    }
}

impl FromStr for Layers {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let refuse = |part: &str| Error::Parse {
            what: "layers",
            text: part.into(),
            reason: "write indices and ranges, such as `0,3-5`".into(),
        };
        let mut layers = Vec::new();
        for part in parts(text) {
            layers.extend(range(part).ok_or_else(|| refuse(part))?);
        }
        once(&mut layers);
        if layers.is_empty() {
            return Err(refuse(text));
        }
        Ok(Layers(layers))
    }
}

impl FromStr for Heads {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let refuse = |part: &str| Error::Parse {
            what: "heads",
            text: part.into(),
            reason:
                "write indices and ranges, such as `0,3-5`, or a head of one layer, such as `a3.h1`"
                    .into(),
        };
        let mut heads = Vec::new();
        for part in parts(text) {
            match part.parse::<Node>() {
                Ok(Node::Head { layer, head }) => heads.push(ChosenHead {
                    layer: Some(layer),
                    head,
                }),
                _ => {
                    let all = range(part).ok_or_else(|| refuse(part))?;
                    heads.extend(all.map(|head| ChosenHead { layer: None, head }));
                }
            }
        }
        once(&mut heads);
        if heads.is_empty() {
            return Err(refuse(text));
        }
        Ok(Heads(heads))
    }
}

/// # Errors
/// [`Error::OutOfRange`] for a layer or head that the model does not have.
pub(crate) fn check_range(
    what: &'static str,
    values: &[usize],
    limit: usize,
    of: &str,
) -> Result<()> {
    match values.iter().find(|&&value| value >= limit) {
        None => Ok(()),
        Some(value) => Err(Error::OutOfRange {
            hook: of.into(),
            what,
            value: value.to_string(),
            limit: format!("{limit}, 0 to {}", limit.saturating_sub(1)),
        }),
    }
}

fn parts(text: &str) -> impl Iterator<Item = &str> {
    text.split(',')
        .map(str::trim)
        .filter(|part| !part.is_empty())
}

/// `3` or `3-5`; far more than any model has is no range.
fn range(part: &str) -> Option<std::ops::RangeInclusive<usize>> {
    let number = |digits: &str| digits.trim().parse::<usize>().ok();
    let (first, last) = match part.split_once('-') {
        Some((first, last)) => (number(first)?, number(last)?),
        None => (number(part)?, number(part)?),
    };
    (first <= last && last < 100_000).then_some(first..=last)
}

/// Without what stood before.
fn once<T: PartialEq + Copy>(all: &mut Vec<T>) {
    let mut kept: Vec<T> = Vec::with_capacity(all.len());
    for one in all.drain(..) {
        if !kept.contains(&one) {
            kept.push(one);
        }
    }
    *all = kept;
}

impl fmt::Display for ChosenHead {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.layer {
            Some(layer) => write!(f, "a{layer}.h{}", self.head),
            None => write!(f, "{}", self.head),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn indices_are_read_with_ranges() {
        let layers = |text: &str| text.parse::<Layers>();
        assert_eq!(layers("0,3-5, 4").unwrap(), [0, 3, 4, 5].into());
        for text in ["", "5-3", "a3.h1", "x", "1-", "0-999999999"] {
            assert!(layers(text).is_err(), "{text}");
        }
    }

    #[test]
    fn a_head_may_be_of_one_layer() {
        let heads: Heads = "1-2,a3.h0".parse().unwrap();
        assert!(heads.has(7, 1) && heads.has(3, 0) && !heads.has(2, 0) && !heads.has(3, 3));
        assert!(Heads::default().has(9, 9));
        for text in ["m3", "a3", "a3.h1<q>", ""] {
            assert!(text.parse::<Heads>().is_err(), "{text}");
        }
    }
}
