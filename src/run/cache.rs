//! Captured activations, and the named sources that edits take values from.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use candle_core::Tensor;

use crate::error::{Error, Result};
use crate::hooks::{Axes, Hook};
use crate::model::ModelSpec;
use crate::nn::host::{on_host, tensor, to_host};

/// The activations of one run over prompts of equal length.
#[derive(Debug, Clone)]
pub struct Cache {
    spec: ModelSpec,
    pub batch: usize,
    pub length: usize,
    /// Every position of every prompt in rows: `[batch * length, ..]`; patterns `[batch * length, n_heads, length]`.
    packed: HashMap<Hook, Tensor>,
}

impl Cache {
    pub(crate) fn new(spec: &ModelSpec, batch: usize, length: usize) -> Self {
        Cache {
            spec: spec.clone(),
            batch,
            length,
            packed: HashMap::new(),
        }
    }

    pub(crate) fn insert(&mut self, hook: Hook, packed: Tensor) {
        self.packed.insert(hook, packed);
    }

    pub(crate) fn packed(&self, hook: Hook) -> Result<&Tensor> {
        self.packed.get(&hook).ok_or_else(|| Error::Unfired {
            what: hook.to_string(),
            reason: "it was not captured; name it among the hooks to capture".into(),
        })
    }

    /// Whether a hook was captured.
    pub fn contains(&self, hook: Hook) -> bool {
        self.packed.contains_key(&hook)
    }

    /// The hooks that were captured, in the order of the forward pass.
    pub fn hooks(&self) -> Vec<Hook> {
        Hook::all(&self.spec)
            .into_iter()
            .filter(|hook| self.contains(*hook))
            .collect()
    }

    /// The tensor of a hook.
    /// # Shapes
    /// As [`Hook::shape`] says; in the model's dtype, but scales, scores and patterns in f32.
    /// # Errors
    /// [`Error::Unfired`] if it was not captured.
    pub fn get(&self, hook: Hook) -> Result<Tensor> {
        let packed = self.packed(hook)?;
        let mut dims = vec![self.batch, self.length];
        dims.extend_from_slice(&packed.dims()[1..]);
        let t = packed.reshape(dims)?;
        Ok(match hook.kind.axes(&self.spec) {
            Axes::Pattern => t.transpose(1, 2)?, // [batch, n_heads, query, key]
            _ => t,
        })
    }

    /// Bytes held.
    pub fn bytes(&self) -> usize {
        self.packed
            .values()
            .map(|t| t.elem_count() * t.dtype().size_in_bytes())
            .sum()
    }

    /// The same values as f32 in host memory, where edits are applied.
    fn on_host(mut self) -> Result<Self> {
        for t in self.packed.values_mut() {
            *t = on_host(t)?;
        }
        Ok(self)
    }
}

/// A mean over the prompts of a reference set, taken batch by batch: per position, or over all positions at once.
#[derive(Debug, Clone)]
pub struct MeanOf {
    by_position: bool,
    sums: HashMap<Hook, Sums>,
}

#[derive(Debug, Clone)]
struct Sums {
    /// The axes after position.
    dims: Vec<usize>,
    sums: Vec<f64>,
    count: usize,
}

impl MeanOf {
    /// A mean of nothing yet: one for each position if `by_position`, else one for all.
    pub fn new(by_position: bool) -> Self {
        MeanOf {
            by_position,
            sums: HashMap::new(),
        }
    }

    /// Adds the prompts of a run. With `by_position` all runs have prompts of one length.
    /// # Errors
    /// [`Error::BadEdit`] for what has no common mean.
    pub fn add(&mut self, cache: &Cache) -> Result<()> {
        for (&hook, t) in &cache.packed {
            if !self.by_position && hook.kind.axes(&cache.spec) == Axes::Pattern {
                return Err(Error::BadEdit {
                    edit: format!("{hook} = mean"),
                    reason: "rows of a pattern have no common mean over positions; use a mean per position".into(),
                });
            }
            let width: usize = t.dims()[1..].iter().product();
            let stretch = if self.by_position {
                cache.length * width
            } else {
                width
            };
            let entry = self.sums.entry(hook);
            let of_hook = entry.or_insert_with(|| Sums {
                dims: t.dims()[1..].to_vec(),
                sums: vec![0.0; stretch],
                count: 0,
            });
            if of_hook.sums.len() != stretch {
                return Err(Error::BadEdit {
                    edit: format!("{hook} = mean"),
                    reason: "a mean per position needs prompts of one length".into(),
                });
            }
            for values in to_host(t)?.chunks_exact(stretch) {
                let sums = of_hook.sums.iter_mut().zip(values);
                sums.for_each(|(sum, &value)| *sum += f64::from(value));
                of_hook.count += 1;
            }
        }
        Ok(())
    }

    /// The means, as a source of edits. Sums were taken in f64 and are divided here, once.
    /// # Errors
    /// Those of making tensors.
    pub fn finish(self, spec: &ModelSpec) -> Result<Source> {
        let of = if self.by_position {
            Of::SamePosition
        } else {
            Of::Everywhere
        };
        let cache = self.finish_cache(spec)?;
        Ok(Source { cache, of })
    }

    /// The means as the activations of one prompt: of as many positions, or of one.
    pub(crate) fn finish_cache(self, spec: &ModelSpec) -> Result<Cache> {
        let mut cache = Cache::new(spec, 1, 1);
        for (hook, of_hook) in self.sums {
            let Sums {
                mut dims,
                sums,
                count,
            } = of_hook;
            let width: usize = dims.iter().product();
            cache.length = sums.len() / width.max(1);
            dims.insert(0, cache.length);
            let mean = |sum: &f64| (sum / count as f64) as f32;
            cache.insert(hook, tensor(sums.iter().map(mean).collect(), dims)?);
        }
        Ok(cache)
    }
}

/// Values that edits can take: another run, or means.
#[derive(Debug, Clone)]
pub struct Source {
    cache: Cache,
    of: Of,
}

#[derive(Debug, Clone)]
enum Of {
    /// Prompt `i` takes the values of prompt `of[i]` at the same position.
    Prompts(Vec<usize>),
    /// One prompt for all.
    SamePosition,
    /// One vector for every prompt and position.
    Everywhere,
}

impl Source {
    /// Each prompt takes its own values in another run.
    /// # Errors
    /// Those of copying from the device.
    pub fn run(cache: Cache) -> Result<Self> {
        let of = (0..cache.batch).collect();
        Source::run_of(cache, of)
    }

    /// Prompt `i` takes the values of prompt `of[i]` in another run (resampling).
    /// # Errors
    /// [`Error::Invalid`] if the other run has no such prompt.
    pub fn run_of(cache: Cache, of: Vec<usize>) -> Result<Self> {
        if of.iter().any(|&i| i >= cache.batch) {
            return Err(Error::invalid(
                "a resampling source names a prompt that its run does not have",
            ));
        }
        Ok(Source {
            cache: cache.on_host()?,
            of: Of::Prompts(of),
        })
    }

    /// The tensor of a hook, f32 on the host, and the row in it for a prompt's position.
    pub(crate) fn lookup(
        &self,
        hook: Hook,
    ) -> Result<(&Tensor, impl Fn(usize, usize) -> Option<usize> + '_)> {
        let row = move |example: usize, pos: usize| match &self.of {
            Of::Everywhere => Some(0),
            Of::SamePosition => Some(pos).filter(|_| pos < self.cache.length),
            Of::Prompts(of) => of
                .get(example)
                .filter(|_| pos < self.cache.length)
                .map(|of| of * self.cache.length + pos),
        };
        Ok((self.cache.packed(hook)?, row))
    }
}

/// The sources that a run's edits may name: `clean`, `corrupted`, `mean`, `base`, ...
#[derive(Debug, Clone, Default)]
pub struct Sources {
    named: BTreeMap<String, Arc<Source>>,
}

impl Sources {
    /// These and one more; a name that is there already now means the new one.
    pub fn with(mut self, name: &str, source: Source) -> Self {
        self.named.insert(name.into(), Arc::new(source));
        self
    }

    /// These and others; a name that both have means the other's.
    pub(crate) fn and(mut self, others: &Sources) -> Self {
        let others = others.named.iter();
        self.named
            .extend(others.map(|(name, source)| (name.clone(), Arc::clone(source))));
        self
    }

    /// # Errors
    /// [`Error::BadEdit`] naming the sources that are there.
    pub fn get(&self, name: &str, edit: &crate::hooks::Edit) -> Result<&Arc<Source>> {
        self.named.get(name).ok_or_else(|| Error::BadEdit {
            edit: edit.to_string(),
            reason: if self.named.is_empty() {
                format!("it takes its values from `{name}`, and this run was given no sources")
            } else {
                format!(
                    "there is no source `{name}`; this run was given {}",
                    self.names()
                )
            },
        })
    }

    fn names(&self) -> String {
        self.named
            .keys()
            .map(|name| format!("`{name}`"))
            .collect::<Vec<_>>()
            .join(", ")
    }
}
