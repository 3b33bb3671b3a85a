//! From flags to what the library takes. Nothing here reads weights, so that whatever is wrong with a task is said before the
//! long part begins.

use std::io::IsTerminal;
use std::path::Path;

use candle_core::{DType, Device};
use candlewick::Error;
use candlewick::model::{EMBEDDED, LoadOptions, Model, ModelSpec, Opened, Tokenizer, open};
use candlewick::task::{
    ExpandOptions, QuestionSet, Task, TaskFile, expand, from_pairs_file, from_text_file,
};

use super::Context;
use super::args::{DTypeChoice, DeviceChoice, ModelArgs, TaskArgs};
use super::plan::Desk;

/// The task of a model that has none of its own.
const DEFAULT_TASK: &str = "ioi";

/// How to load the model that the flags describe.
/// # Errors
/// A device that this build or this machine does not have.
pub fn load_options(args: &ModelArgs) -> anyhow::Result<LoadOptions> {
    Ok(LoadOptions {
        revision: args.revision.clone(),
        device: device(args.device)?,
        dtype: args.dtype.map(|choice| match choice {
            DTypeChoice::F32 => DType::F32,
            DTypeChoice::Bf16 => DType::BF16,
            DTypeChoice::F16 => DType::F16,
        }),
        offline: false,
        accept_config_keys: args.accept_config_key.clone(),
        show_download_progress: std::io::stderr().is_terminal(),
    })
}

/// Reads the weights of a model, with a warning for whatever its files do not lead one to expect.
/// # Errors
/// As [`Opened::load`].
pub fn read_weights(opened: Opened, ctx: &Context) -> anyhow::Result<Model> {
    let model = opened.load()?.model;
    for note in &model.origin.notes {
        ctx.warn(note);
    }
    Ok(model)
}

/// A model whose weights are not read yet: one of this command alone, or one that the runs of a plan share.
pub enum Unread<'a> {
    Own(Box<Opened>),
    Shared(&'a Desk, &'a ModelArgs, &'a LoadOptions),
}

impl Unread<'_> {
    /// # Errors
    /// As [`open`].
    pub fn parts(&self) -> anyhow::Result<(Tokenizer, ModelSpec)> {
        Ok(match self {
            Unread::Own(opened) => (opened.tokenizer().clone(), opened.spec().clone()),
            Unread::Shared(desk, args, options) => desk.tokenizer(args, options)?,
        })
    }

    /// Reads the weights, or takes those that an earlier run has read.
    /// # Errors
    /// As [`Opened::load`].
    pub fn load(self, ctx: &Context) -> anyhow::Result<Model> {
        match self {
            Unread::Own(opened) => read_weights(*opened, ctx),
            Unread::Shared(desk, args, options) => Ok(desk.model(args, options)?),
        }
    }
}

/// Opens the model that the flags describe; its weights are read by [`Unread::load`].
/// # Errors
/// As [`open`].
pub fn open_model<'a>(
    args: &'a ModelArgs,
    options: &'a LoadOptions,
    ctx: &'a Context,
) -> anyhow::Result<Unread<'a>> {
    Ok(match &ctx.desk {
        Some(desk) => Unread::Shared(desk, args, options),
        None => Unread::Own(Box::new(open(&args.model, options)?)),
    })
}

/// The task that the flags describe, under a model's tokenizer; prompts longer than `n_ctx` are dropped.
/// # Errors
/// As [`expand`] and [`from_pairs_file`]; an unknown metric.
pub fn open_task(
    args: &TaskArgs,
    tokenizer: &Tokenizer,
    n_ctx: usize,
    model_is_embedded: bool,
) -> anyhow::Result<Task> {
    check_answer_space(args)?;
    let tokenizer = &dated(args, tokenizer)?;
    // The embedded model's own task, unless something else is said: one template, so that its picture has a word a column.
    let is_own = model_is_embedded && args.task.is_none() && args.pairs.is_none();
    let templates = if is_own && args.template.is_empty() {
        vec![0]
    } else {
        args.template.clone()
    };
    let options = ExpandOptions {
        corruption: args.corruption.clone(),
        templates,
        unequal: args.unequal_lengths,
        answer_space: args.answer_space,
        metric: args.metric.as_deref().map(str::parse).transpose()?,
        ..text_options(args, n_ctx)
    };
    if let Some(path) = &args.pairs {
        return Ok(from_pairs_file(path, tokenizer, &options)?);
    }
    let name = match &args.task {
        Some(name) => name,
        None if model_is_embedded => EMBEDDED,
        None => DEFAULT_TASK,
    };
    Ok(expand(&TaskFile::open(name)?, tokenizer, &options)?)
}

/// Lines of text in the place of a task; what is longer than `n_ctx` is cut.
/// # Errors
/// As [`from_text_file`].
pub fn open_texts(
    path: &Path,
    args: &TaskArgs,
    tokenizer: &Tokenizer,
    n_ctx: usize,
) -> anyhow::Result<Task> {
    check_answer_space(args)?;
    let tokenizer = &dated(args, tokenizer)?;
    Ok(from_text_file(path, tokenizer, &text_options(args, n_ctx))?)
}

/// Questions in the place of a task.
/// # Errors
/// As [`QuestionSet::task`].
pub fn ask(
    set: &QuestionSet,
    args: &TaskArgs,
    tokenizer: &Tokenizer,
    n_ctx: usize,
) -> anyhow::Result<Task> {
    Ok(set.task(&dated(args, tokenizer)?, &text_options(args, n_ctx))?)
}

/// Of a flag that stands against what another requires, clap forgets the requirement: `--task` and `--texts` stand against `--pairs`.
fn check_answer_space(args: &TaskArgs) -> Result<(), Error> {
    match args.answer_space && args.pairs.is_none() {
        true => Err(Error::invalid(
            "`--answer-space` is for the answers of `--pairs FILE`, and there is none; leave it out",
        )),
        false => Ok(()),
    }
}

/// What lines of text are asked for, as far as pairs are too.
fn text_options(args: &TaskArgs, n_ctx: usize) -> ExpandOptions {
    ExpandOptions {
        n_pairs: args.n_pairs.map(|n| n as usize),
        seed: args.seed,
        bos: args.bos.into(),
        chat: args.chat_template,
        max_tokens: Some(n_ctx),
        ..ExpandOptions::default()
    }
}

/// The tokenizer with the day that its chat template prints.
fn dated(args: &TaskArgs, tokenizer: &Tokenizer) -> anyhow::Result<Tokenizer> {
    let date = args.date.as_deref().map(str::parse).transpose()?;
    Ok(tokenizer.clone().with_date(date))
}

fn device(choice: DeviceChoice) -> anyhow::Result<Device> {
    let missing = |name: &str| {
        Error::invalid(format!(
            "this build cannot compute on `{name}`; build it with `cargo build --release --features {name}`, or use `--device cpu`"
        ))
    };
    let absent = |name: &str, source: candle_core::Error| {
        let reason = source.to_string();
        let first = reason.lines().next().unwrap_or_default();
        Error::invalid(format!(
            "there is no {name} device to compute on ({first}); use `--device cpu`"
        ))
    };
    let device = match choice {
        DeviceChoice::Cpu => Ok(Device::Cpu),
        DeviceChoice::Cuda if !cfg!(feature = "cuda") => Err(missing("cuda")),
        DeviceChoice::Cuda => Device::new_cuda(0).map_err(|source| absent("cuda", source)),
        DeviceChoice::Metal if !cfg!(feature = "metal") => Err(missing("metal")),
        DeviceChoice::Metal => Device::new_metal(0).map_err(|source| absent("metal", source)),
    };
    Ok(device?)
}
