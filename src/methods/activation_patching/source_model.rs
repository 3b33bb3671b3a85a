//! Another model whose runs give the values that are written: what would this model do with that one's activations?
//!
//! Source: Prakash et al. 2024, "Fine-Tuning Enhances Existing Mechanisms: A Case Study on Entity Tracking" (arXiv 2402.14811),
//! where it is cross-model activation patching, of a base model and its fine-tunes.

use std::fmt;
use std::sync::{Arc, Mutex, OnceLock};

use serde_json::{Value, json};

use super::PatchSource;
use crate::error::{Error, Result};
use crate::hooks::Hook;
use crate::methods::method::{Subject, clean_prompts, pairs_of, stop_if_asked, targets_of};
use crate::metric::Metric;
use crate::model::{LoadOptions, Loaded, Model, ModelSpec, Opened, Tokenizer, open};
use crate::run::{BaseRun, Progress, Readout, Sources, run_to_answers};
use crate::scores::Measured;
use crate::task::Task;
use crate::text::visible;

/// A model of the same shape and with the same tokens. What it is is known at once; its weights are read by [`SourceModel::load`].
/// Copies share them, and are equal.
#[derive(Clone)]
pub struct SourceModel(Arc<Shared>);

struct Shared {
    id: String,
    spec: ModelSpec,
    tokenizer: Tokenizer,
    unread: Mutex<Option<Opened>>,
    model: OnceLock<Model>,
}

impl SourceModel {
    /// Finds a model, and reads no weights yet.
    /// # Errors
    /// Those of [`open`].
    pub fn open(id: &str, options: &LoadOptions) -> Result<Self> {
        let opened = open(id, options)?;
        Ok(SourceModel(Arc::new(Shared {
            id: id.into(),
            spec: opened.spec().clone(),
            tokenizer: opened.tokenizer().clone(),
            unread: Mutex::new(Some(opened)),
            model: OnceLock::new(),
        })))
    }

    /// The weights, read at the first call.
    /// # Errors
    /// Those of [`Opened::load`].
    pub fn load(&self) -> Result<&Model> {
        let mut unread = self.0.unread.lock().expect("nobody panicked with it");
        if let Some(opened) = unread.take() {
            let loaded = opened.load()?;
            return Ok(self.0.model.get_or_init(|| loaded.model));
        }
        self.0.model.get().ok_or_else(|| {
            Error::invalid(format!(
                "the weights of `{}` could not be read",
                visible(&self.0.id)
            ))
        })
    }

    /// What it is called.
    pub fn id(&self) -> &str {
        &self.0.id
    }

    /// Its tokenizer.
    pub(in crate::methods) fn tokenizer(&self) -> &Tokenizer {
        &self.0.tokenizer
    }

    /// What it is.
    pub(in crate::methods) fn spec(&self) -> &ModelSpec {
        &self.0.spec
    }

    /// Refuses a model whose values do not fit, or to which the task's tokens are others.
    pub(in crate::methods) fn check(&self, spec: &ModelSpec, task: &Task) -> Result<()> {
        let own = &self.0.spec;
        let refuse = |what: String| {
            Error::invalid(format!(
                "values of `{}` cannot be written into this model: {what}; take a model of the same shape, such as its base or a fine-tune",
                visible(&self.0.id)
            ))
        };
        let sizes = |spec: &ModelSpec| {
            [
                ("n_layers", spec.n_layers),
                ("n_heads", spec.n_heads),
                ("n_kv_heads", spec.n_kv_heads),
                ("d_model", spec.d_model),
                ("d_head", spec.d_head),
                ("d_mlp", spec.d_mlp),
            ]
        };
        for ((name, its), (_, ours)) in sizes(own).into_iter().zip(sizes(spec)) {
            if its != ours {
                return Err(refuse(format!("its {name} is {its}, here it is {ours}")));
            }
        }
        let (its, ours) = (Hook::all(own), Hook::all(spec));
        if let Some(hook) = ours.iter().find(|hook| !its.contains(hook)) {
            return Err(refuse(format!("it has no `{hook}`")));
        }
        if let Some(hook) = its.iter().find(|hook| !ours.contains(hook)) {
            return Err(refuse(format!("it has `{hook}`, which this one has not")));
        }
        let differs = |&token: &u32| self.0.tokenizer.token(token) != task.text(token);
        match task.tokens().into_iter().find(differs) {
            None => task.check_fits(own),
            Some(token) => Err(refuse(format!(
                "token {token} of the prompts is `{}` here and `{}` there, so its tokenizer is another",
                visible(&task.text(token)),
                visible(&self.0.tokenizer.token(token))
            ))),
        }
    }

    /// Says how the model itself does, in a note and in what was found.
    /// # Errors
    /// Those of running; [`Error::Interrupted`].
    pub(in crate::methods) fn tell(
        &self,
        on: Subject<'_>,
        metric: Metric,
        batch: usize,
        measured: &mut Measured,
        progress: &dyn Progress,
    ) -> Result<()> {
        let [clean, corrupted] = self.metric(on.model, on.task, metric, batch, progress)?;
        measured.notes.push(format!(
            "the values are those of `{}`, whose own {metric} is {clean:.3} on the clean prompts and {corrupted:.3} on the corrupted \
             ones; what the table says of clean and corrupted runs is of the model that is patched",
            visible(self.id())
        ));
        let found = json!({"clean": clean, "corrupted": corrupted});
        measured.found.insert("source_model_metric".into(), found);
        Ok(())
    }

    /// Its own metric, in the mean over clean and over corrupted prompts; what is measured against the clean run (`kl`) is measured
    /// against that of the patched model.
    fn metric(
        &self,
        patched: &Model,
        task: &Task,
        metric: Metric,
        batch: usize,
        progress: &dyn Progress,
    ) -> Result<[f64; 2]> {
        let own = self.load()?;
        let mut sums = [0.0; 2];
        for batch in task.batches(batch) {
            stop_if_asked(progress)?;
            let pairs = pairs_of(task, &batch);
            let clean = clean_prompts(&pairs);
            let corrupted = pairs.iter().map(|pair| pair.corrupted.clone()).collect();
            let targets = targets_of(&pairs);
            let readout = Readout {
                metric,
                reference: match metric.needs_reference() {
                    // Such a metric has answers of one token.
                    true => Some(run_to_answers(patched, &clean, &targets, &[])?.0.concat()),
                    false => None,
                },
                targets,
            };
            for (sum, prompts) in sums.iter_mut().zip([clean, corrupted]) {
                let none = Sources::default();
                let run = BaseRun::new(own, prompts, Vec::new(), Vec::new(), none, &[])?;
                *sum += run.metric(own, &readout)?.iter().sum::<f64>();
            }
        }
        Ok(sums.map(|sum| sum / task.pairs().len() as f64))
    }

    /// What decides its values, for plans and provenance. Its weights have been read by then.
    pub(in crate::methods) fn settings(&self) -> Value {
        match self.0.model.get() {
            None => json!({ "id": self.0.id }),
            Some(model) => json!({
                "id": model.origin.id,
                "revision": model.origin.revision,
                "weights": model.origin.weight_hash,
                "tokenizer": model.origin.tokenizer_hash,
                "processing": model.origin.processing,
                "dtype": model.number_formats(),
            }),
        }
    }
}

/// Passes over whole prompts that a pair takes besides its own two runs: those for the values that are put in place. Means take
/// `reference` passes for each pair; they, and how the other model does, are found once, which `is_first` asks for.
pub(in crate::methods) fn passes_for_values(
    source: PatchSource,
    other: Option<&SourceModel>,
    metric: Metric,
    reference: f64,
    is_first: bool,
) -> f64 {
    let each = match source {
        PatchSource::Same | PatchSource::Resample => 1.0,
        PatchSource::Pair if other.is_some() => 1.0,
        _ => 0.0,
    };
    if !is_first {
        return each;
    }
    let of_means = if source.is_mean() { reference } else { 0.0 };
    let to_tell = match other {
        Some(_) => 2.0 + f64::from(u8::from(metric.needs_reference())),
        None => 0.0,
    };
    each + of_means + to_tell
}

/// Reads the weights of another model, where there is one.
pub(in crate::methods) fn read_weights(other: Option<&SourceModel>) -> Result<()> {
    other.map_or(Ok(()), |other| other.load().map(drop))
}

pub(in crate::methods) fn no_source_model() -> Error {
    Error::invalid(
        "with the source `same` the values are those of another model on the same prompt; name it (`PatchConfig::source_model`)",
    )
}

impl From<Loaded> for SourceModel {
    fn from(Loaded { model, tokenizer }: Loaded) -> Self {
        SourceModel(Arc::new(Shared {
            id: model.origin.id.clone(),
            spec: model.spec.clone(),
            tokenizer,
            unread: Mutex::new(None),
            model: OnceLock::from(model),
        }))
    }
}

impl PartialEq for SourceModel {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

impl fmt::Debug for SourceModel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SourceModel({})", self.0.id)
    }
}
