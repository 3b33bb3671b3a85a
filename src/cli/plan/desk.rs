//! What the runs of a plan share: the model that is loaded, tokenizers, and what became of the last run.

use std::collections::HashMap;
use std::sync::Mutex;

use candlewick::methods::Plan;
use candlewick::model::{LoadOptions, Model, ModelSpec, Tokenizer, open};
use candlewick::scores::Scores;

use crate::cli::args::ModelArgs;

/// How far a command goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stage {
    /// Everything that can be wrong without weights is looked for.
    Check,
    /// What it would cost is counted.
    Cost,
    /// What the work is, is written down: all that decides a number.
    Describe,
    Measure,
}

/// Where the runs of one plan meet. A command that finds a desk in its context takes the model from it, prints nothing, and lays
/// its result down on it.
#[derive(Debug)]
pub struct Desk {
    pub stage: Stage,
    /// Nothing is downloaded.
    pub offline: bool,
    tokenizers: Mutex<HashMap<String, (Tokenizer, ModelSpec)>>,
    /// The model that was loaded last, under the flags that describe it: one at a time is held.
    model: Mutex<Option<(String, Model)>>,
    pub plan: Mutex<Option<Plan>>,
    pub work: Mutex<Option<String>>,
    pub scores: Mutex<Option<Scores>>,
}

impl Desk {
    pub fn new(stage: Stage, offline: bool) -> Desk {
        Desk {
            stage,
            offline,
            tokenizers: Mutex::default(),
            model: Mutex::default(),
            plan: Mutex::default(),
            work: Mutex::default(),
            scores: Mutex::default(),
        }
    }

    /// The same desk for another stage.
    pub fn at(self, stage: Stage) -> Desk {
        Desk { stage, ..self }
    }

    /// # Errors
    /// Those of [`open`].
    pub fn tokenizer(
        &self,
        args: &ModelArgs,
        options: &LoadOptions,
    ) -> candlewick::error::Result<(Tokenizer, ModelSpec)> {
        let key = format!("{args:?}");
        let mut known = self.tokenizers.lock().expect("no run panicked with it");
        if let Some(found) = known.get(&key) {
            return Ok(found.clone());
        }
        let opened = open(&args.model, options)?;
        let found = (opened.tokenizer().clone(), opened.spec().clone());
        known.insert(key, found.clone());
        Ok(found)
    }

    /// The model, loaded at its first run.
    /// # Errors
    /// Those of loading.
    pub fn model(
        &self,
        args: &ModelArgs,
        options: &LoadOptions,
    ) -> candlewick::error::Result<Model> {
        let key = format!("{args:?}");
        let mut held = self.model.lock().expect("no run panicked with it");
        if let Some((of, model)) = &*held
            && *of == key
        {
            return Ok(model.clone());
        }
        // Two models at once may be more than fit.
        *held = None;
        let model = open(&args.model, options)?.load()?.model;
        *held = Some((key, model.clone()));
        Ok(model)
    }
}
