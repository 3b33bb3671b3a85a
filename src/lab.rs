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
use crate::hooks::{Hook, Kind};
use crate::methods::choice::check_range;
use crate::methods::{
    FindConfig, FoundCircuit, Method, Plan, Running, Subject, VerifyOptions, Watch, find_circuit,
    measure, plan,
};
use crate::model::{EMBEDDED, LoadOptions, Loaded, Model, Tokenizer, load};
use crate::plot::notebook::{CellProgress, Show, is_cell};
use crate::plot::{Label, Panel};
use crate::run::{Logits, Request, run};
use crate::scores::Scores;
use crate::task::{ExpandOptions, Task, TaskFile, expand, from_pairs_file};
use crate::text::visible;

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

    /// Runs a method. In a notebook, lines under the cell say how far a long one is.
    /// # Errors
    /// What cannot be run as asked, before anything runs.
    pub fn measure(&self, method: &dyn Method) -> Result<Scores> {
        self.measure_as(method, &self.running)
    }

    /// Runs a method, and holds the `k` strongest cells and `k` random ones against the exact effect.
    /// # Errors
    /// Those of [`Lab::measure`]; a method that has no exact twin.
    pub fn verified(&self, method: &dyn Method, k: usize) -> Result<Scores> {
        let running = Running {
            verify: Some(VerifyOptions::top(k)),
            ..self.running.clone()
        };
        self.measure_as(method, &running)
    }

    fn measure_as(&self, method: &dyn Method, running: &Running) -> Result<Scores> {
        let progress = CellProgress::default();
        measure(self.subject(), method, running, &watch(&progress))
    }

    /// Where a head looks from each position of a pair's clean prompt: a row a query, a column a key, each labelled with its token.
    /// # Units
    /// Attention weights: a row sums to 1. Keys behind the query, which it cannot see, have none.
    /// # Errors
    /// [`Error::OutOfRange`](crate::Error::OutOfRange) for a pair, a layer or a head that there is not.
    pub fn attention(&self, pair: usize, layer: usize, head: usize) -> Result<Panel> {
        let (pairs, spec) = (self.task.pairs(), &self.model.spec);
        check_range("pair", &[pair], pairs.len(), "the task")?;
        check_range("layer", &[layer], spec.n_layers, "the model")?;
        check_range("head", &[head], spec.n_heads, "attention")?;
        let prompt = &pairs[pair].clean;
        let pattern = Hook::at(Kind::Pattern, layer);
        let request = Request {
            capture: &[pattern],
            logits: Logits::None,
            ..Request::default()
        };
        let run = run(&self.model, std::slice::from_ref(prompt), &request)?;
        let weights = run.cache.get(pattern)?.get(0)?.get(head)?; // [query, key]
        let weights: Vec<Vec<f32>> = weights.to_dtype(candle_core::DType::F32)?.to_vec2()?;
        let can_see = |query: usize, key: usize| key <= query || !spec.is_causal();
        let row = |(query, row): (usize, Vec<f32>)| {
            let seen =
                |(key, weight): (usize, f32)| can_see(query, key).then_some(f64::from(weight));
            row.into_iter().enumerate().map(seen).collect()
        };
        let tokens: Vec<String> = self
            .task
            .texts(prompt)
            .iter()
            .map(|text| visible(text))
            .collect();
        let labels = |tokens: &[String]| {
            let label = |(pos, token): (usize, &String)| Label {
                name: format!("{pos} {token}"),
                ..Label::default()
            };
            tokens.iter().enumerate().map(label).collect()
        };
        Ok(Panel {
            title: format!("attention of a{layer}.h{head}"),
            axes: ("query".into(), "key".into()),
            rows: labels(&tokens),
            columns: labels(&tokens),
            values: weights.into_iter().enumerate().map(row).collect(),
            table_rows: vec![vec![None; prompt.len()]; prompt.len()],
            is_normalised: false,
        })
    }

    /// Finds a circuit by a method's scores, on three parts of the pairs.
    /// # Errors
    /// Those of [`find_circuit`].
    pub fn find_circuit(&self, method: &dyn Method, config: &FindConfig) -> Result<FoundCircuit> {
        let progress = CellProgress::default();
        let watch = watch(&progress);
        find_circuit(self.subject(), method, config, &self.running, &watch)
    }

    /// What a method would cost.
    /// # Errors
    /// Those of [`Lab::measure`].
    pub fn plan(&self, method: &dyn Method) -> Result<Plan> {
        plan(self.subject(), method, &self.running)
    }
}

/// Long work says how far it is where somebody reads it under a cell.
fn watch(progress: &CellProgress) -> Watch<'_> {
    if is_cell() {
        Watch::progress(progress)
    } else {
        Watch::default()
    }
}

/// The model, then the task.
impl Show for Lab {
    fn to_html(&self) -> String {
        self.model.to_html() + &self.task.to_html()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::methods::{EdgeAttributionConfig, FindSize};

    #[test]
    fn a_found_circuit_shows_its_graph_and_what_it_does() {
        let lab = Lab::open("embedded", "embedded").unwrap().first(8);
        let config = FindConfig {
            size: FindSize::N(30),
            draws: 2,
            ..FindConfig::default()
        };
        let found = (lab.find_circuit(&EdgeAttributionConfig::eap(), &config)).unwrap();
        let html = found.to_html();
        let n_edges = found.circuit.edges.len();
        assert_eq!(html.matches("<path").count(), n_edges);
        assert!(
            html.contains("<td>eap</td>") && html.contains("<p>2 pairs used</p>"),
            "{html}"
        );
    }

    #[test]
    fn attention_is_a_causal_grid_whose_rows_sum_to_one() {
        let lab = Lab::open("embedded", "embedded").unwrap();
        let n = lab.task.pairs()[1].clean.len();
        let panel = lab.attention(1, 3, 0).unwrap();
        assert_eq!((panel.rows.len(), panel.columns.len()), (n, n));
        assert_eq!(panel.rows[0].name, "0 <bos>");
        for (query, row) in panel.values.iter().enumerate() {
            let seen: Vec<f64> = row.iter().flatten().copied().collect();
            assert_eq!(seen.len(), query + 1);
            assert!((seen.iter().sum::<f64>() - 1.0).abs() < 1e-5, "{row:?}");
        }
        for (pair, layer, head, what) in [(99, 0, 0, "pair"), (0, 9, 0, "layer"), (0, 0, 9, "head")]
        {
            let message = lab.attention(pair, layer, head).unwrap_err().to_string();
            assert!(message.contains(&format!("`{what}`")), "{message}");
        }
        assert!(lab.to_html().contains("<td>embedded</td>"));
    }
}
