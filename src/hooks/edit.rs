//! `Edit`: a site and what to do there.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use candle_core::Tensor;

use super::{Pos, Positions, Site};
use crate::error::{Error, Result};
use crate::hooks::{Kind, Ln};

/// A change of a tensor that the forward pass then goes on with. Edits at one hook apply in the order given, before it is captured.
///
/// Written `SITE = 0`, `SITE = [0.5, 1]`, `SITE = run:corrupted`, `SITE = zero`, `SITE = mean`, `SITE = freeze`,
/// `SITE += [1, 2]`, `SITE *= 0.5`, and `blocks.3.attn.hook_attn_scores[pos=-1; key=@S1] = block`.
/// Whole tensors and closures print as a description that cannot be read back.
#[derive(Debug, Clone, PartialEq)]
pub struct Edit {
    pub site: Site,
    pub op: Op,
}

/// What happens at a site.
#[derive(Debug, Clone, PartialEq)]
pub enum Op {
    Replace(Value),
    /// Replace by the value at the same site in another run, by name (`clean`, `corrupted`, ...).
    FromRun(String),
    Add(Value),
    Scale(f32),
    Zero,
    /// Replace by the mean over a reference set, which the run is given under the name `mean`.
    Mean,
    /// Replace by the value of the unedited run of the same prompts, which the run is given under the name `base`.
    Freeze,
    /// Attention knockout: set the chosen scores to minus infinity, so that the softmax renormalises over the rest.
    /// Only at `hook_attn_scores`; a query left without any key is an error.
    Block,
    Closure(Closure),
}

/// A given value at a site.
#[derive(Debug, Clone)]
pub enum Value {
    Scalar(f32),
    /// One value for each index of the last axis that the site takes; the same for every position and head.
    Vector(Vec<f32>),
    /// `[positions, heads, last axis]` as the site takes them, or that with a leading batch axis; an axis of one may be left out.
    Tensor(Tensor),
}

type EditFn = dyn Fn(&Tensor) -> Result<Tensor> + Send + Sync;

/// A Rust function from the tensor at the site (`[positions, heads taken, width taken]` for one prompt) to one of the same shape.
#[derive(Clone)]
pub struct Closure {
    pub name: String,
    pub apply: Arc<EditFn>,
}

impl Edit {
    pub fn new(site: Site, op: Op) -> Self {
        Edit { site, op }
    }

    /// An edit by a Rust function; `name` is what results print for it.
    pub fn with(
        site: Site,
        name: &str,
        apply: impl Fn(&Tensor) -> Result<Tensor> + Send + Sync + 'static,
    ) -> Self {
        Edit {
            site,
            op: Op::Closure(Closure {
                name: name.into(),
                apply: Arc::new(apply),
            }),
        }
    }

    /// Blocks attention from `queries` to `keys` in the heads of `site`.
    pub fn block(
        site: Site,
        queries: impl IntoIterator<Item = Pos>,
        keys: impl IntoIterator<Item = Pos>,
    ) -> Self {
        Edit {
            site: site.at_positions(queries).keys(keys),
            op: Op::Block,
        }
    }

    /// Checks what can be checked before a run.
    /// # Errors
    /// Those of [`Site::check`], and [`Error::BadEdit`] where the operation does not fit the hook.
    pub fn check(&self, spec: &crate::spec::ModelSpec) -> Result<()> {
        self.site.check(spec)?;
        let bad = |reason: &str| {
            Err(Error::BadEdit {
                edit: self.to_string(),
                reason: reason.into(),
            })
        };
        let is_of_stream = matches!(
            self.site.hook.kind,
            Kind::Scale(Ln::One | Ln::Two) | Kind::Normalized(Ln::One | Ln::Two)
        );
        if spec.norms_stream() && is_of_stream {
            return bad(
                "in this family the norm makes what the branch is added to, not only what it reads; edit `hook_resid_pre` or \
                 `hook_resid_mid`",
            );
        }
        match &self.op {
            Op::Block if self.site.hook.kind != Kind::AttnScores => {
                bad("attention is blocked at `hook_attn_scores`, before the softmax")
            }
            Op::Block if self.site.keys == Positions::All => bad(
                "blocking every key leaves the query nothing to attend to; say which with `key=`",
            ),
            Op::Scale(factor) if !factor.is_finite() => bad("the factor is not a finite number"),
            Op::Replace(Value::Scalar(value)) | Op::Add(Value::Scalar(value))
                if !value.is_finite() =>
            {
                bad("the value is not a finite number")
            }
            Op::Replace(Value::Vector(values)) | Op::Add(Value::Vector(values))
                if values.iter().any(|v| !v.is_finite()) =>
            {
                bad("one of the values is not a finite number")
            }
            _ => Ok(()),
        }
    }
}

impl PartialEq for Value {
    /// Tensors are equal if they are the same tensor; comparing their contents would cost a run.
    fn eq(&self, other: &Self) -> bool {
        match (self, other) {
            (Value::Scalar(a), Value::Scalar(b)) => a == b,
            (Value::Vector(a), Value::Vector(b)) => a == b,
            (Value::Tensor(a), Value::Tensor(b)) => a.id() == b.id(),
            _ => false,
        }
    }
}

impl PartialEq for Closure {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.apply, &other.apply)
    }
}

impl fmt::Debug for Closure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Closure({})", self.name)
    }
}

impl fmt::Display for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Value::Scalar(value) => write!(f, "{value}"),
            Value::Vector(values) => write!(f, "{values:?}"),
            Value::Tensor(tensor) => write!(f, "tensor{:?}", tensor.dims()),
        }
    }
}

impl fmt::Display for Edit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let site = &self.site;
        match &self.op {
            Op::Replace(value) => write!(f, "{site} = {value}"),
            Op::FromRun(run) => write!(f, "{site} = run:{run}"),
            Op::Add(value) => write!(f, "{site} += {value}"),
            Op::Scale(factor) => write!(f, "{site} *= {factor}"),
            Op::Zero => write!(f, "{site} = zero"),
            Op::Mean => write!(f, "{site} = mean"),
            Op::Freeze => write!(f, "{site} = freeze"),
            Op::Block => write!(f, "{site} = block"),
            Op::Closure(closure) => write!(f, "{site} = closure {}", closure.name),
        }
    }
}

impl FromStr for Edit {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let bad = |reason: &str| Error::Parse {
            what: "an edit",
            text: text.into(),
            reason: reason.into(),
        };
        // The `=` of the operation is the one after the site's brackets.
        let start = text
            .find(']')
            .filter(|_| {
                text.find('[')
                    .is_some_and(|open| text[open..].contains('='))
            })
            .unwrap_or(0);
        let start = if text[..start].contains('[') {
            start
        } else {
            0
        };
        let equals = start
            + text[start..]
                .find('=')
                .ok_or_else(|| bad("write `SITE = VALUE`, `SITE += VALUE` or `SITE *= FACTOR`"))?;
        let (left, right) = (text[..equals].trim_end(), text[equals + 1..].trim());
        let (site, operator) = match left.strip_suffix(['+', '*']) {
            Some(site) => (site, left.as_bytes()[left.len() - 1]),
            None => (left, b'='),
        };
        let site: Site = site.parse()?;
        let value = || -> Result<Value> {
            let number = |text: &str| {
                text.trim()
                    .parse::<f32>()
                    .map_err(|_| bad("expected a number or a list of numbers"))
            };
            match right
                .strip_prefix('[')
                .and_then(|rest| rest.strip_suffix(']'))
            {
                Some(list) => Ok(Value::Vector(
                    list.split(',').map(number).collect::<Result<_>>()?,
                )),
                None => Ok(Value::Scalar(number(right)?)),
            }
        };
        let op = match (operator, right) {
            (b'+', _) => Op::Add(value()?),
            (b'*', _) => match value()? {
                Value::Scalar(factor) => Op::Scale(factor),
                _ => return Err(bad("a factor is one number")),
            },
            (_, "zero") => Op::Zero,
            (_, "mean") => Op::Mean,
            (_, "freeze") => Op::Freeze,
            (_, "block") => Op::Block,
            (_, run) if run.starts_with("run:") => Op::FromRun(run["run:".len()..].to_string()),
            _ => Op::Replace(value()?),
        };
        Ok(Edit { site, op })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn edits_print_and_parse_back() {
        for text in [
            "blocks.9.attn.hook_z[pos=-1; head=6] = zero",
            "blocks.0.hook_resid_pre[pos=3] = run:corrupted",
            "blocks.0.hook_resid_pre += [1.0, -2.5]",
            "blocks.2.hook_mlp_out *= 0.5",
            "hook_embed = 0",
            "blocks.3.attn.hook_attn_scores[pos=-1; head=1; key=@S1,2] = block",
            "blocks.3.hook_attn_out = mean",
            "blocks.3.hook_attn_out = freeze",
        ] {
            assert_eq!(text.parse::<Edit>().expect(text).to_string(), text);
        }
        assert_eq!(
            "pattern[5] = zero"
                .parse::<Edit>()
                .expect("short")
                .site
                .hook
                .layer,
            Some(5)
        );
        for text in ["z3", "z3 = ", "z3 *= [1,2]", "z3 += x", "= zero"] {
            assert!(text.parse::<Edit>().is_err(), "{text}");
        }
    }
}
