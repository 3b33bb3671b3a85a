//! `Site`: a hook, and which of its positions, heads, keys or neurons.

use std::collections::{BTreeMap, HashSet};
use std::fmt;
use std::str::FromStr;

use super::{Axes, Hook};
use crate::error::{Error, Result};
use crate::spec::ModelSpec;

/// One position of a prompt.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Pos {
    /// From the start: 0 is the first token (the BOS, where there is one).
    Index(usize),
    /// From the end: 1 is the last token. Written `-1`.
    FromEnd(usize),
    /// Every token of a role of the task. Written `@S2`.
    Role(String),
}

/// Which positions of each prompt.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub enum Positions {
    #[default]
    All,
    These(Vec<Pos>),
}

/// A hook and a part of its tensor. What is `None` is taken whole.
///
/// Written `blocks.9.attn.hook_z[pos=-1,@S2; head=6,9]`; the parts are `pos` (queries, for patterns), `head`,
/// `key` (key positions of scores and patterns) and `neuron` (indices in the last axis). Layers are checked when a site is resolved.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Site {
    pub hook: Hook,
    pub positions: Positions,
    pub heads: Option<Vec<usize>>,
    pub keys: Positions,
    pub neurons: Option<Vec<usize>>,
}

/// The token positions of each role in one prompt.
pub type Roles = BTreeMap<String, Vec<usize>>;

impl Positions {
    /// The absolute positions, ascending, in a prompt of `length` tokens.
    /// # Errors
    /// [`Error::OutOfRange`], [`Error::UnknownRole`].
    pub fn resolve(&self, length: usize, roles: &Roles) -> Result<Vec<usize>> {
        let Positions::These(list) = self else {
            return Ok((0..length).collect());
        };
        let mut positions = Vec::with_capacity(list.len());
        let out_of_range = |value: String| Error::OutOfRange {
            hook: "the prompt".into(),
            what: "pos",
            value,
            limit: format!("{length} tokens"),
        };
        for pos in list {
            match pos {
                Pos::Index(index) if *index < length => positions.push(*index),
                Pos::FromEnd(back) if (1..=length).contains(back) => positions.push(length - back),
                Pos::Role(role) => {
                    positions.extend(roles.get(role).ok_or_else(|| Error::UnknownRole {
                        role: role.clone(),
                        known: if roles.is_empty() {
                            "none".into()
                        } else {
                            roles
                                .keys()
                                .map(String::as_str)
                                .collect::<Vec<_>>()
                                .join(", ")
                        },
                    })?)
                }
                _ => return Err(out_of_range(pos.to_string())),
            }
        }
        positions.sort_unstable();
        positions.dedup();
        // A role may have been read off another prompt.
        if let Some(&last) = positions.last().filter(|&&last| last >= length) {
            return Err(out_of_range(last.to_string()));
        }
        Ok(positions)
    }
}

impl fmt::Display for Positions {
    /// `all`, or the positions as they are typed: `@S2,-1`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Positions::These(list) = self else {
            return f.write_str("all");
        };
        let names: Vec<String> = list.iter().map(Pos::to_string).collect();
        f.write_str(&names.join(","))
    }
}

impl Site {
    /// The whole tensor of a hook.
    pub fn all(hook: Hook) -> Self {
        Site {
            hook,
            positions: Positions::All,
            heads: None,
            keys: Positions::All,
            neurons: None,
        }
    }

    pub fn at_positions(mut self, positions: impl IntoIterator<Item = Pos>) -> Self {
        self.positions = Positions::These(positions.into_iter().collect());
        self
    }

    pub fn at(self, position: usize) -> Self {
        self.at_positions([Pos::Index(position)])
    }

    pub fn heads(mut self, heads: impl IntoIterator<Item = usize>) -> Self {
        self.heads = Some(heads.into_iter().collect());
        self
    }

    pub fn keys(mut self, keys: impl IntoIterator<Item = Pos>) -> Self {
        self.keys = Positions::These(keys.into_iter().collect());
        self
    }

    pub fn neurons(mut self, neurons: impl IntoIterator<Item = usize>) -> Self {
        self.neurons = Some(neurons.into_iter().collect());
        self
    }

    /// Sites of one hook that follow each other as one, which has the heads and neurons of all. They differ in nothing else.
    pub fn joined(sites: impl IntoIterator<Item = Site>) -> Vec<Site> {
        let mut joined: Vec<Site> = Vec::new();
        for site in sites {
            match joined.last_mut().filter(|last| last.hook == site.hook) {
                Some(last) => {
                    let add = |all: &mut Option<Vec<usize>>, more: Option<Vec<usize>>| {
                        if let (Some(all), Some(more)) = (all, more) {
                            all.extend(more);
                        }
                    };
                    add(&mut last.heads, site.heads);
                    add(&mut last.neurons, site.neurons);
                }
                None => joined.push(site),
            }
        }
        joined
    }

    /// Checks the parts that need no prompt.
    /// # Errors
    /// [`Error::HookAbsent`] and [`Error::OutOfRange`]; [`Error::BadEdit`] where a hook has no such axis, or an index stands twice.
    pub fn check(&self, spec: &ModelSpec) -> Result<()> {
        self.hook.check(spec)?;
        let axes = self.hook.kind.axes(spec);
        let (heads, width) = match axes {
            Axes::Heads { heads, width } => (heads, width),
            Axes::Pattern => (spec.n_heads, 0),
            Axes::Stream => (0, spec.d_model),
            Axes::Scale => (0, 1),
            Axes::Neurons => (0, spec.d_mlp),
        };
        let within =
            |what: &'static str, values: &Option<Vec<usize>>, limit: usize| -> Result<()> {
                let Some(values) = values else { return Ok(()) };
                if limit == 0 || values.is_empty() {
                    let reason = match limit {
                        0 => format!("it has no {what} axis; leave `{what}=` out"),
                        _ => format!("`{what}=` names none"),
                    };
                    return Err(Error::BadEdit {
                        edit: self.to_string(),
                        reason,
                    });
                }
                if let Some(value) = values.iter().find(|&&value| value >= limit) {
                    return Err(Error::OutOfRange {
                        hook: self.hook.to_string(),
                        what,
                        value: value.to_string(),
                        limit: format!("{limit}, 0 to {}", limit - 1),
                    });
                }
                let mut seen = HashSet::new();
                match values.iter().find(|&&value| !seen.insert(value)) {
                    Some(value) => Err(Error::BadEdit {
                        edit: self.to_string(),
                        reason: format!("`{what}=` names {value} twice"),
                    }),
                    None => Ok(()),
                }
            };
        within("head", &self.heads, heads)?;
        within("neuron", &self.neurons, width)?;
        if self.keys != Positions::All && axes != Axes::Pattern {
            let reason = "only scores and patterns have a key axis; leave `key=` out".into();
            return Err(Error::BadEdit {
                edit: self.to_string(),
                reason,
            });
        }
        Ok(())
    }
}

impl fmt::Display for Pos {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Pos::Index(index) => write!(f, "{index}"),
            Pos::FromEnd(back) => write!(f, "-{back}"),
            Pos::Role(role) => write!(f, "@{role}"),
        }
    }
}

impl FromStr for Pos {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let text = text.trim();
        let bad = || Error::Parse {
            what: "a position",
            text: text.into(),
            reason: "write `3`, `-1` or `@ROLE`".into(),
        };
        if let Some(role) = text.strip_prefix('@') {
            let legal = |c: char| c.is_alphanumeric() || "_+-".contains(c);
            return if !role.is_empty() && role.chars().all(legal) {
                Ok(Pos::Role(role.into()))
            } else {
                Err(bad())
            };
        }
        match text.strip_prefix('-') {
            Some(back) => match back.parse().map_err(|_| bad())? {
                0 => Err(bad()),
                back => Ok(Pos::FromEnd(back)),
            },
            None => Ok(Pos::Index(text.parse().map_err(|_| bad())?)),
        }
    }
}

fn list<T: fmt::Display>(values: &[T]) -> String {
    values
        .iter()
        .map(T::to_string)
        .collect::<Vec<_>>()
        .join(",")
}

impl fmt::Display for Site {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut parts = Vec::new();
        if let Positions::These(positions) = &self.positions {
            parts.push(format!("pos={}", list(positions)));
        }
        if let Some(heads) = &self.heads {
            parts.push(format!("head={}", list(heads)));
        }
        if let Positions::These(keys) = &self.keys {
            parts.push(format!("key={}", list(keys)));
        }
        if let Some(neurons) = &self.neurons {
            parts.push(format!("neuron={}", list(neurons)));
        }
        if parts.is_empty() {
            write!(f, "{}", self.hook)
        } else {
            write!(f, "{}[{}]", self.hook, parts.join("; "))
        }
    }
}

impl FromStr for Site {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let text = text.trim();
        let bad = |reason: String| Error::Parse {
            what: "a site",
            text: text.into(),
            reason,
        };
        // `pattern[5]` is a hook with a layer; `pattern5[head=1]` a site with parts.
        let (hook, parts) = match text
            .strip_suffix(']')
            .and_then(|rest| rest.rsplit_once('['))
        {
            Some((hook, parts)) if parts.contains('=') => (hook, parts),
            _ => (text, ""),
        };
        let mut site = Site::all(hook.parse()?);
        for part in parts.split(';').filter(|part| !part.trim().is_empty()) {
            let (key, values) = part
                .split_once('=')
                .ok_or_else(|| bad(format!("`{part}` is not `key=values`")))?;
            let indices = || -> Result<Vec<usize>> {
                let read = |value: &str| {
                    value
                        .trim()
                        .parse()
                        .map_err(|_| bad(format!("`{value}` is not an index")))
                };
                values.split(',').map(read).collect()
            };
            let positions = || {
                values
                    .split(',')
                    .map(str::parse)
                    .collect::<Result<Vec<Pos>>>()
            };
            match key.trim() {
                "pos" => site.positions = Positions::These(positions()?),
                "head" => site.heads = Some(indices()?),
                "key" => site.keys = Positions::These(positions()?),
                "neuron" => site.neurons = Some(indices()?),
                other => return Err(bad(format!("`{other}` is none of pos, head, key, neuron"))),
            }
        }
        Ok(site)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sites_print_and_parse_back() {
        for text in [
            "blocks.9.attn.hook_z[pos=-1,@S2; head=6,9]",
            "blocks.0.hook_resid_pre[pos=3]",
            "blocks.1.attn.hook_pattern[pos=4; head=0; key=1,2]",
            "blocks.1.mlp.hook_post[neuron=5]",
            "hook_embed",
        ] {
            assert_eq!(text.parse::<Site>().expect(text).to_string(), text);
        }
        assert_eq!(
            "z9[head=1]".parse::<Site>().expect("short").to_string(),
            "blocks.9.attn.hook_z[head=1]"
        );
        assert_eq!(
            "pattern[5]".parse::<Site>().expect("short").hook.layer,
            Some(5)
        );
        assert!("z9[head=]".parse::<Site>().is_err());
        assert!("z9[pos=@]".parse::<Site>().is_err());
    }

    #[test]
    fn positions_resolve_from_both_ends_and_by_role() {
        let roles = Roles::from([("S2".to_string(), vec![7, 8])]);
        let positions = Positions::These(vec![
            Pos::FromEnd(1),
            Pos::Role("S2".into()),
            Pos::Index(0),
            Pos::Index(7),
        ]);
        assert_eq!(
            positions.resolve(10, &roles).expect("all in range"),
            [0, 7, 8, 9]
        );
        assert!(matches!(
            positions.resolve(10, &Roles::new()),
            Err(Error::UnknownRole { .. })
        ));
        assert!(matches!(
            Positions::These(vec![Pos::Index(10)]).resolve(10, &roles),
            Err(Error::OutOfRange { .. })
        ));
        assert!(matches!(
            Positions::These(vec![Pos::FromEnd(11)]).resolve(10, &roles),
            Err(Error::OutOfRange { .. })
        ));
    }
}
