//! A model and a task, open together: the one door through which a notebook and the command line measure.
//!
//! ```
//! use candlewick::prelude::*;
//!
//! let lab = Lab::open("embedded", "embedded")?.first(4);
//! let scores = lab.measure(&PatchConfig::sites("z")?)?;
//! println!("{scores}");
//! # Ok::<(), candlewick::Error>(())
//! ```

use std::path::Path;

use crate::error::Result;
use crate::methods::{
    FindConfig, FoundCircuit, Method, Plan, Running, Subject, VerifyOptions, Watch, find_circuit,
    measure, plan,
};
use crate::model::{EMBEDDED, LoadOptions, Loaded, Model, Tokenizer, load};
use crate::scores::Scores;
use crate::task::{ExpandOptions, Task, TaskFile, expand, from_pairs_file};

/// A model, its tokenizer and a task under it, and how methods are run.
#[derive(Debug, Clone)]
pub struct Lab {
    pub model: Model,
    pub tokenizer: Tokenizer,
    pub task: Task,
    pub running: Running,
}

impl Lab {
    /// Opens a model (hub id, folder, `.gguf` file or `embedded`) and a task: the name of one that ships, a task file
    /// (`.toml`), or the user's own pairs (`.csv`, `.jsonl`, `.parquet`).
    /// # Errors
    /// Those of loading, and of expanding the task.
    pub fn open(model: &str, task: &str) -> Result<Lab> {
        let mut options = ExpandOptions::default();
        if task == EMBEDDED {
            // Its own task has two templates, whose positions do not align.
            options.templates = vec![0];
        }
        Lab::open_with(model, &LoadOptions::default(), task, options)
    }

    /// [`Lab::open`] with options. Prompts longer than the model takes are dropped.
    /// # Errors
    /// Those of [`Lab::open`].
    pub fn open_with(
        model: &str,
        loading: &LoadOptions,
        task: &str,
        mut options: ExpandOptions,
    ) -> Result<Lab> {
        let Loaded { model, tokenizer } = load(model, loading)?;
        options.max_tokens = options.max_tokens.or(Some(model.spec.n_ctx));
        let ending = Path::new(task)
            .extension()
            .and_then(|ending| ending.to_str());
        let task = match ending {
            Some("csv" | "jsonl" | "parquet") => {
                from_pairs_file(Path::new(task), &tokenizer, &options)?
            }
            _ => expand(&TaskFile::open(task)?, &tokenizer, &options)?,
        };
        Ok(Lab::new(model, tokenizer, task))
    }

    /// What is open already.
    pub fn new(model: Model, tokenizer: Tokenizer, task: Task) -> Lab {
        Lab {
            model,
            tokenizer,
            task,
            running: Running::default(),
        }
    }

    /// Only the first so many pairs of the task.
    pub fn first(mut self, n_pairs: usize) -> Lab {
        self.task = self.task.first(n_pairs);
        self
    }

    /// Runs methods so.
    pub fn running(mut self, running: Running) -> Lab {
        self.running = running;
        self
    }

    pub fn subject(&self) -> Subject<'_> {
        Subject {
            model: &self.model,
            task: &self.task,
        }
    }

    /// Runs a method.
    /// # Errors
    /// What cannot be run as asked, before anything runs.
    pub fn measure(&self, method: &dyn Method) -> Result<Scores> {
        measure(self.subject(), method, &self.running, &Watch::default())
    }

    /// Runs a method, and holds the `k` strongest cells and `k` random ones against the exact effect.
    /// # Errors
    /// Those of [`Lab::measure`]; a method that has no exact twin.
    pub fn verified(&self, method: &dyn Method, k: usize) -> Result<Scores> {
        let running = Running {
            verify: Some(VerifyOptions::top(k)),
            ..self.running.clone()
        };
        measure(self.subject(), method, &running, &Watch::default())
    }

    /// Finds a circuit by a method's scores, on three parts of the pairs.
    /// # Errors
    /// Those of [`find_circuit`].
    pub fn find_circuit(&self, method: &dyn Method, config: &FindConfig) -> Result<FoundCircuit> {
        let watch = Watch::default();
        find_circuit(self.subject(), method, config, &self.running, &watch)
    }

    /// What a method would cost.
    /// # Errors
    /// Those of [`Lab::measure`].
    pub fn plan(&self, method: &dyn Method) -> Result<Plan> {
        plan(self.subject(), method, &self.running)
    }
}
