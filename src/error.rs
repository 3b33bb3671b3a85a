//! The one error of the library. A message says what is wrong, the values seen, and what to do; it is one line.

mod remedy;

use std::path::PathBuf;

pub use remedy::{Remedy, worded};
use serde::{Deserialize, Serialize};

pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Everything that can go wrong, so that a notebook can match on it.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    // Files and the hub.
    #[error("no such file or folder: `{}`; {hint}", path.display())]
    Missing { path: PathBuf, hint: String },
    #[error("cannot read `{}`: {source}", path.display())]
    Read {
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
    #[error("cannot write `{}`: {}", path.display(), unwritten(source))]
    Write {
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
    #[error("`{}` does not say its format: end the name in `.parquet`, `.csv` or `.jsonl`", path.display())]
    NoFormat { path: PathBuf },
    #[error("`{}` was not written by candlewick, and stays as it is; choose another name, or replace it with `write_out::force`", path.display())]
    NotOurs { path: PathBuf },
    #[error("`{}` holds other results ({made}); choose another name, or replace them with `write_out::force`", path.display())]
    OtherResults { path: PathBuf, made: String },
    #[error("`{}` is for other programs, and is not read back; make it again{made} with a name that ends in `.parquet`", path.display())]
    NotReadBack { path: PathBuf, made: String },
    #[error("`{}` is not a readable {format} file: {reason}", path.display())]
    Malformed {
        path: PathBuf,
        format: &'static str,
        reason: String,
    },
    #[error("`{}` is a git-LFS pointer, not the file itself; run `git lfs pull` in its repository, or download the model again", path.display())]
    LfsPointer { path: PathBuf },
    #[error("`{}` is a PyTorch pickle under the name of another format; rename it to `pytorch_model.bin`, or save the model as \
             safetensors (`model.save_pretrained(dir, safe_serialization=True)` in transformers)", path.display())]
    Pickle { path: PathBuf },
    #[error("`{}` holds an object of class `{class}` and not only tensors, and making it would mean running its code; \
             save the weights alone in Python (`torch.save(model.state_dict(), path)`)", path.display())]
    ObjectPickle { path: PathBuf, class: String },
    #[error("`{}` has the format of PyTorch before 1.6, which we do not read; write it again in Python \
             (`torch.save(torch.load(path, weights_only=True), path)`)", path.display())]
    OldPickle { path: PathBuf },
    #[error("`{model}` is not in the cache ({cached}) and cannot be downloaded: {reason}")]
    NotCached {
        model: String,
        cached: String,
        reason: String,
    },

    // Models.
    #[error("architecture `{name}` is not supported; supported: {supported}")]
    UnknownArchitecture { name: String, supported: String },
    #[error("architecture `{name}` is not supported: {reason}; `candlewick models` lists what is")]
    RefusedArchitecture { name: String, reason: &'static str },
    #[error(
        "config key `{key}` = {value} is not known in family `{family}`, and may change the model's function"
    )]
    UnhandledConfig {
        family: String,
        key: String,
        value: String,
    },
    #[error(
        "config key `{key}` = {value} changes the model's function, and family `{family}` is not computed that way here: {reason}"
    )]
    RefusedConfig {
        family: String,
        key: String,
        value: String,
        reason: String,
    },
    #[error("`{name}` is {what}, and no model by itself; {instead}")]
    NotAModel {
        name: String,
        what: String,
        instead: String,
    },
    #[error("config.json cannot be read: {reason}")]
    UnreadableConfig { reason: String },
    #[error("config key `{key}`: {reason}")]
    BadConfig { key: String, reason: String },
    #[error(
        "{count} tensors are missing from the checkpoint: {first}; is it a complete `{family}` checkpoint?"
    )]
    MissingTensors {
        family: String,
        count: usize,
        first: String,
    },
    #[error(
        "{count} tensors in the checkpoint belong to no weight of `{family}`: {first}; is config.json of this checkpoint?"
    )]
    ExtraTensors {
        family: String,
        count: usize,
        first: String,
    },
    #[error("tensor `{name}` has shape {found:?}, the config asks for {expected:?}")]
    TensorShape {
        name: String,
        found: Vec<usize>,
        expected: Vec<usize>,
    },
    #[error(
        "{count} tensors have shapes that the config does not ask for: {first}; is config.json of this checkpoint?"
    )]
    TensorShapes { count: usize, first: String },
    #[error("tensor `{name}` is {found}, which is not handled; weights must be {known}")]
    WeightType {
        name: String,
        found: String,
        known: String,
    },
    #[error("tensor `{name}` holds a NaN or an infinity; the checkpoint is damaged")]
    NotFinite { name: String },
    #[error(
        "the logits of prompt {index} hold a NaN or an infinity (first seen at `{hook}`); \
             if the model is run in f16 or bf16, try `LoadOptions::dtype = f32`"
    )]
    NotFiniteLogits { index: usize, hook: String },
    #[error(
        "the tokenizer has {tokenizer} tokens but the embedding has {embedding} rows; they do not belong together"
    )]
    TokenizerTooLarge { tokenizer: usize, embedding: usize },
    #[error("tokenizer: {reason}")]
    Tokenizer { reason: String },
    #[error(
        "tokenizer: its chat template prints the day, which would make results differ from day to day; say which day it is"
    )]
    NoDate,
    #[error("`{processing}` would change what this model computes: {reason}; leave it out")]
    Unprocessable {
        processing: &'static str,
        reason: String,
    },

    // Hooks and edits.
    #[error("there is no hook `{name}`; nearest: {nearest} (`candlewick hooks` lists all)")]
    UnknownHook { name: String, nearest: String },
    #[error("hook `{hook}` does not exist in this model: {reason}")]
    HookAbsent { hook: String, reason: String },
    #[error("`{what}` = {value} is out of range: {hook} has {limit}")]
    OutOfRange {
        hook: String,
        what: &'static str,
        value: String,
        limit: String,
    },
    #[error("cannot read `{text}` as {what}: {reason}")]
    Parse {
        what: &'static str,
        text: String,
        reason: String,
    },
    #[error("{reason}\n  {text}\n  {mark}")]
    Condition {
        reason: String,
        text: String,
        /// Stands below the place in `text`.
        mark: String,
    },
    #[error("edit `{edit}` cannot apply: {reason}")]
    BadEdit { edit: String, reason: String },
    #[error("`{what}` did not fire in this run: {reason}")]
    Unfired { what: String, reason: String },

    // Graphs.
    #[error("this model has no node `{node}`: {reason}")]
    UnknownNode { node: String, reason: String },
    #[error("there is no edge `{edge}` in this model: {reason}")]
    NoSuchEdge { edge: String, reason: String },

    // Tasks and metrics.
    #[error("task `{task}`: {reason}")]
    BadTask { task: String, reason: String },
    #[error("task `{task}` has no usable pair: {reason}")]
    EmptyTask {
        task: String,
        reason: String,
        /// Every pair that was dropped, and why.
        dropped: Vec<Dropped>,
    },
    #[error(
        "prompt {index}: clean has {clean} tokens, corrupted has {corrupted}; patching aligns positions, \
             so reword one side (`candlewick tokens` shows both)"
    )]
    LengthMismatch {
        index: usize,
        clean: usize,
        corrupted: usize,
    },
    #[error(
        "prompt {index}: {role} is at {clean:?} in clean and at {corrupted:?} in corrupted; patching aligns positions, \
             so reword one side (`candlewick tokens` shows both)"
    )]
    RoleMismatch {
        index: usize,
        role: String,
        clean: Vec<usize>,
        corrupted: Vec<usize>,
    },
    #[error(
        "prompt {index}: answer `{answer}` is {tokens} tokens; answers must be one token (a leading space often matters)"
    )]
    MultiTokenAnswer {
        index: usize,
        answer: String,
        tokens: usize,
    },
    #[error("prompt {index} has {tokens} tokens, the model takes at most {limit}")]
    TooLong {
        index: usize,
        tokens: usize,
        limit: usize,
    },
    #[error(
        "the prompts have {prompt} tokens and {more} more were asked for, but the model has {limit} positions; \
             generate at most {most} (`GenerateRequest::max_tokens = {most}`), or shorten the prompts"
    )]
    NoRoom {
        prompt: usize,
        more: usize,
        limit: usize,
        most: usize,
    },
    #[error("metric `{metric}` {reason}")]
    BadMetric { metric: String, reason: String },
    #[error("metric `{metric}` has no gradient here: {reason}")]
    NoGradient { metric: String, reason: String },
    #[error("role `{role}` is not in this task; it has: {known}")]
    UnknownRole { role: String, known: String },

    #[error(
        "the contributions to prompt {index} sum to {sum}, and its logit is {total}: something that writes to the stream is not counted; \
             in half precision try `LoadOptions::dtype = f32`, else please report the model"
    )]
    Incomplete { index: usize, sum: f64, total: f64 },

    // Long work.
    #[error("plan `{}`: {reason}", path.display())]
    BadPlan { path: PathBuf, reason: String },
    #[error("submission `{}`: {reason}", path.display())]
    Submission { path: PathBuf, reason: String },
    #[error("these shards make no table: {reason}")]
    Shards { reason: String },
    #[error(
        "nothing was measured of {cell}: no pair of the task has it; leave it out, or take other places"
    )]
    NothingMeasured { cell: String },
    #[error("{owner} is already at work on `{}`; wait for it, or choose another `Watch::keeping`", folder.display())]
    Busy { folder: PathBuf, owner: String },
    #[error("interrupted; {kept}")]
    Interrupted { kept: String },
    #[error("{0}")]
    Invalid(String),

    #[error(transparent)]
    Candle(#[from] candle_core::Error),
    #[error("table: {0}")]
    Polars(#[from] polars::error::PolarsError),
}

/// Why a file was not written, and what to do about it.
fn unwritten(source: &std::io::Error) -> String {
    use std::io::ErrorKind::{IsADirectory, PermissionDenied, QuotaExceeded, StorageFull};
    match source.kind() {
        StorageFull | QuotaExceeded => {
            "no room is left on that disk; make some, or choose another place".into()
        }
        PermissionDenied => "permission denied; choose another place, or change whose it is".into(),
        IsADirectory => "it is a folder; name a file in it".into(),
        _ => format!("{source}; choose another place"),
    }
}

impl Error {
    /// What can be done, as values, so that a front end can say it in its own words: those that the message does not name, then those
    /// that it names.
    pub fn remedies(&self) -> Vec<Remedy> {
        let unnamed = match self {
            Error::UnhandledConfig { key, .. } => Some(Remedy::AcceptConfigKey(key.clone())),
            Error::NoDate => Some(Remedy::GiveDate),
            _ => None,
        };
        let message = self.to_string();
        let named = remedy::named(&message).map(|(_, remedy)| remedy);
        unnamed.into_iter().chain(named).collect()
    }

    pub fn invalid(message: impl Into<String>) -> Self {
        Error::Invalid(message.into())
    }
}

/// A pair that was not usable, and why.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Dropped {
    pub index: usize,
    pub clean_text: String,
    pub corrupted_text: String,
    /// The kind of reason, a colon, and the values seen.
    pub reason: String,
}

impl Dropped {
    /// The reason without the values seen: what drops are counted by.
    pub fn kind(&self) -> &str {
        self.reason.split(':').next().unwrap_or(&self.reason)
    }
}
