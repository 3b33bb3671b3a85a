//! Activations written to a file, so that another program can go on with them: what [`run_with_cache`](crate::run::run_with_cache)
//! would hold, batch by batch, never all of it in memory.
//!
//! As safetensors, a tensor a hook under the hook's own name, f32, with the axes of [`Hook::shape`]: prompts first. Prompts of unequal
//! length stand beside each other, shorter ones filled with zeros at the end; `lengths [prompts]` and `tokens [prompts, pos]` (-1
//! beyond the end) are tensors too. The metadata `candlewick` is a JSON object: model, weights, and for each prompt its text, run,
//! pair and roles. As parquet, a row a vector: `prompt`, `run`, `example`, `hook`, `layer`, `head`, `pos`, `token` and `values`.

mod rows;
mod tensors;
mod writer;

use std::path::Path;

use serde_json::{Value, json};

use super::captured::{captured, captured_bytes};
use crate::error::{Error, Result};
use crate::hooks::{Axes, Hook, Kind};
use crate::model::{Model, ModelSpec, Tokenizer};
use crate::nn::host::to_host;
use crate::run::{Cache, Progress, Roles};
use crate::scores::write_whole;
use crate::task::Task;
use rows::RowWriter;
use tensors::TensorWriter;
pub use writer::Prompt;
use writer::Writer;

/// Which runs of a task's pairs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[cfg_attr(feature = "cli", derive(clap::ValueEnum))]
pub enum Runs {
    #[default]
    Clean,
    Corrupted,
    /// All clean prompts, then all corrupted ones.
    Both,
}

/// The prompts of a task.
pub fn prompts_of(task: &Task, runs: Runs) -> Vec<Prompt> {
    let clean = task.pairs().iter().map(|pair| Prompt {
        text: pair.clean_text.clone(),
        tokens: pair.clean.clone(),
        run: Some("clean"),
        example: Some(pair.index),
        roles: pair.roles.clone(),
    });
    let corrupted = task.pairs().iter().map(|pair| Prompt {
        text: pair.corrupted_text.clone(),
        tokens: pair.corrupted.clone(),
        run: Some("corrupted"),
        example: Some(pair.index),
        // Where prompts differ in length the roles of the clean one are not those of the other.
        roles: if pair.is_aligned() {
            pair.roles.clone()
        } else {
            Roles::new()
        },
    });
    match runs {
        Runs::Clean => clean.collect(),
        Runs::Corrupted => corrupted.collect(),
        Runs::Both => clean.chain(corrupted).collect(),
    }
}

/// What is written, and how.
#[derive(Debug, Clone, PartialEq)]
pub struct ActivationsConfig {
    /// In the order of the file.
    pub hooks: Vec<Hook>,
    /// Only the last position of each prompt (of attention patterns, the last query).
    pub end_only: bool,
    /// Bytes that the activations of a batch may take.
    pub memory: usize,
}

/// What it will take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ActivationsPlan {
    pub prompts: usize,
    /// The longest prompt.
    pub length: usize,
    /// Bytes of all tensors, with what fills up shorter prompts.
    pub bytes: u64,
}

impl ActivationsConfig {
    /// These hooks, all positions, in a quarter of a gigabyte a batch.
    pub fn of(hooks: Vec<Hook>) -> Self {
        ActivationsConfig {
            hooks,
            end_only: false,
            memory: 256 << 20,
        }
    }

    /// Checks hooks and prompts, and says what writing them will take.
    /// # Errors
    /// [`Error::HookAbsent`], [`Error::OutOfRange`], [`Error::TooLong`]; [`Error::Invalid`] without hooks or prompts, and for a
    /// hook named twice.
    pub fn plan(&self, spec: &ModelSpec, prompts: &[Prompt]) -> Result<ActivationsPlan> {
        for (i, hook) in self.hooks.iter().enumerate() {
            hook.check(spec)?;
            if self.hooks[..i].contains(hook) {
                return Err(Error::invalid(format!("hook `{hook}` is named twice")));
            }
        }
        if self.hooks.is_empty() || prompts.is_empty() {
            return Err(Error::invalid(
                "nothing to write: name at least one hook and one prompt",
            ));
        }
        for (index, prompt) in prompts.iter().enumerate() {
            let tokens = prompt.tokens.len();
            if tokens == 0 {
                return Err(Error::invalid(format!("prompt {index} has no token")));
            }
            if tokens > spec.n_ctx {
                let limit = spec.n_ctx;
                return Err(Error::TooLong {
                    index,
                    tokens,
                    limit,
                });
            }
        }
        let length = prompts
            .iter()
            .map(|prompt| prompt.tokens.len())
            .max()
            .unwrap_or(0);
        let values = self.hooks.iter().map(|hook| {
            let shape = self.shape(*hook, spec, prompts.len(), length);
            shape.iter().map(|&n| n as u64).product::<u64>()
        });
        Ok(ActivationsPlan {
            prompts: prompts.len(),
            length,
            bytes: 4 * values.sum::<u64>(),
        })
    }

    /// The shape of a hook's tensor in the file.
    fn shape(&self, hook: Hook, spec: &ModelSpec, prompts: usize, length: usize) -> Vec<usize> {
        let mut shape = hook.shape(spec, prompts, length);
        if self.end_only {
            shape[query_axis(hook.kind, spec)] = 1;
        }
        shape
    }
}

/// The axis of positions; of patterns that of queries.
fn query_axis(kind: Kind, spec: &ModelSpec) -> usize {
    match kind.axes(spec) {
        Axes::Pattern => 2,
        _ => 1,
    }
}

/// Writes the activations of some prompts: safetensors or parquet, as the path's ending says. `command` is what the file says it was
/// made by. The file is whole or not there.
/// # Errors
/// Those of [`ActivationsConfig::plan`]; [`Error::Invalid`] for another ending; [`Error::Write`] where the disk is full;
/// [`Error::Interrupted`].
pub fn write_activations(
    model: &Model,
    tokenizer: &Tokenizer,
    prompts: &[Prompt],
    config: &ActivationsConfig,
    path: &Path,
    command: &[String],
    progress: &dyn Progress,
) -> Result<ActivationsPlan> {
    let plan = config.plan(&model.spec, prompts)?;
    let format = ActivationsFormat::of(path)?;
    let about = about(model, prompts, config, command);
    progress.start("writing activations", prompts.len() as u64);
    write_whole(path, |file| {
        let mut writer: Box<dyn Writer + '_> = match format {
            ActivationsFormat::Safetensors => {
                let tokens: Vec<&[u32]> = prompts.iter().map(|one| one.tokens.as_slice()).collect();
                let shapes = config.hooks.iter().map(|&hook| {
                    (
                        hook,
                        config.shape(hook, &model.spec, prompts.len(), plan.length),
                    )
                });
                let shapes: Vec<_> = shapes.collect();
                Box::new(TensorWriter::begin(file, path, &shapes, &tokens, &about)?)
            }
            ActivationsFormat::Parquet => {
                Box::new(RowWriter::begin(file, path, tokenizer, prompts, &about)?)
            }
        };
        for batch in batches(config, &model.spec, prompts) {
            if progress.cancelled() {
                return Err(Error::Interrupted {
                    kept: "nothing is kept: the file is written whole".into(),
                });
            }
            let tokens: Vec<Vec<u32>> = batch.iter().map(|&i| prompts[i].tokens.clone()).collect();
            let cache = captured(model, &tokens, &config.hooks, &[])?;
            for (at, &hook) in config.hooks.iter().enumerate() {
                let (values, shape) = values(&cache, hook, config, &model.spec)?;
                writer.write(at, hook, &batch, &values, &shape)?;
            }
            progress.advance(batch.len() as u64);
        }
        writer.finish()
    })?;
    progress.finish();
    Ok(plan)
}

/// How activations are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ActivationsFormat {
    Safetensors,
    Parquet,
}

impl ActivationsFormat {
    /// # Errors
    /// [`Error::Invalid`] for an ending that is neither.
    pub fn of(path: &Path) -> Result<Self> {
        match path.extension().and_then(|end| end.to_str()) {
            Some("safetensors") => Ok(ActivationsFormat::Safetensors),
            Some("parquet") => Ok(ActivationsFormat::Parquet),
            _ => Err(Error::invalid(format!(
                "`{}` does not say its format: end the name in `.safetensors` or `.parquet`",
                path.display()
            ))),
        }
    }
}

/// What a batch had at a hook, and its shape.
fn values(
    cache: &Cache,
    hook: Hook,
    config: &ActivationsConfig,
    spec: &ModelSpec,
) -> Result<(Vec<f32>, Vec<usize>)> {
    let mut t = cache.get(hook)?;
    if config.end_only {
        let axis = query_axis(hook.kind, spec);
        t = t.narrow(axis, t.dim(axis)? - 1, 1)?;
    }
    Ok((to_host(&t.contiguous()?)?.to_vec(), t.dims().to_vec()))
}

/// Prompts of one length, as many as memory has room for.
fn batches(config: &ActivationsConfig, spec: &ModelSpec, prompts: &[Prompt]) -> Vec<Vec<usize>> {
    let mut order: Vec<usize> = (0..prompts.len()).collect();
    order.sort_by_key(|&i| prompts[i].tokens.len());
    let of_length = order.chunk_by(|&a, &b| prompts[a].tokens.len() == prompts[b].tokens.len());
    let mut batches = Vec::new();
    for same in of_length {
        let bytes = captured_bytes(&config.hooks, spec, prompts[same[0]].tokens.len());
        // Twice: as the run holds it, and as it is written.
        let fit = (config.memory / (2 * bytes).max(1)).clamp(1, 64);
        batches.extend(same.chunks(fit).map(<[usize]>::to_vec));
    }
    batches
}

fn about(
    model: &Model,
    prompts: &[Prompt],
    config: &ActivationsConfig,
    command: &[String],
) -> Value {
    let prompt = |one: &Prompt| {
        json!({
            "text": one.text,
            "run": one.run,
            "example": one.example,
            "roles": one.roles,
        })
    };
    json!({
        "model": model.origin.id,
        "weights": model.origin.weight_hash,
        "version": env!("CARGO_PKG_VERSION"),
        "command": command,
        "positions": if config.end_only { "end" } else { "all" },
        "prompts": prompts.iter().map(prompt).collect::<Vec<_>>(),
    })
}

#[cfg(test)]
mod tests;
