//! What a method is: a plain value that says what it measures, checks itself, and knows how to measure one unit of work.
//! Everything around that, batches, parts, shards, verification, provenance, is [`super::measure`](mod@super::measure).
//!
//! To add one, write a file with a config that implements [`Method`] and a state that implements [`Prepared`]. It then has dry
//! runs, resume, shards, verification against another method, per-example rows and tables. `methods/attention_patterns.rs` is
//! the smallest that reads activations (hooks of `captured`, `Columns` filled cell by cell);
//! `tests/shape/toy_method.rs` stands outside of the library. A line in `tests/shape/every_method.rs`, which a test asks for,
//! proves dry run, resume and shards of it; its own test is about its numbers.

use std::fmt;
use std::ops::Range;
use std::sync::Arc;

use serde_json::Value;

use super::verify::{Bound, Verification};
use crate::error::{Error, Result};
use crate::metric::{Judgement, Metric, Target};
use crate::model::{Model, ModelSpec};
use crate::run::{Progress, available_memory};
use crate::scores::{Cell, Detail, ExampleScores, Measured, ScoresMeta, Shard, View};
use crate::task::{Pair, Task};

/// What every measurement is about.
#[derive(Clone, Copy)]
pub struct Subject<'a> {
    pub model: &'a Model,
    pub task: &'a Task,
}

/// How a method is run. No number depends on it by more than rounding (1e-5), so it is no part of what a result is.
#[derive(Debug, Clone, PartialEq)]
pub struct Running {
    /// Bytes for activations. `None`: batches are made for [`Running::PLANNED_MEMORY`], and what is computed at once inside a
    /// batch takes up to a quarter of what is free.
    pub memory: Option<usize>,
    /// Pairs that run together, at most; memory may allow fewer.
    pub batch: usize,
    pub detail: Detail,
    /// Only this slice of the work; the result is a file for [`super::merge`].
    pub shard: Option<Shard>,
    /// Hold the strongest cells and random ones against the exact effect.
    pub verify: Option<VerifyOptions>,
}

impl Default for Running {
    fn default() -> Self {
        Running {
            memory: None,
            batch: 8,
            detail: Detail::Mean,
            shard: None,
            verify: None,
        }
    }
}

impl Running {
    /// What batches are made for where nobody says how much memory there is: a constant, so that a plan is the same everywhere.
    pub const PLANNED_MEMORY: usize = 2 << 30;

    /// Bytes that decide which pairs run together.
    pub fn planned_memory(&self) -> usize {
        self.memory.unwrap_or(Running::PLANNED_MEMORY)
    }

    /// Bytes for what is computed at once.
    pub fn memory_now(&self) -> usize {
        self.memory.unwrap_or_else(|| available_memory() / 4)
    }
}

/// How estimates are held against exact effects.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct VerifyOptions {
    /// The strongest so many cells, and as many random ones, are measured exactly.
    pub k: usize,
    /// Joint patches behind a bound on what was missed (AtP* alone has one); 0 for none.
    pub bound_draws: usize,
}

impl VerifyOptions {
    /// The `k` strongest and `k` random ones; no bound.
    pub fn top(k: usize) -> Self {
        VerifyOptions { k, bound_draws: 0 }
    }
}

/// What a method asks of a model and a task. [`super::measure::check`] refuses what does not have it, by name.
#[derive(Debug, Clone, Copy, Default)]
pub struct Needs {
    /// Attention that looks back alone; the words name what needs it (`edges`).
    pub decoder: Option<&'static str>,
    /// Clean and corrupted prompts of equal length, position by position.
    pub aligned: bool,
    /// The answers that this metric compares.
    pub metric: Option<Metric>,
    /// A metric with a gradient.
    pub gradient: bool,
    /// Whether answers of several tokens are measured whole. Where they are not, a task that has one is refused.
    pub whole_answers: bool,
    /// Roles of the task.
    pub roles: bool,
}

/// A unit of work: some examples, and some of the cells. It is measured as one and kept as one part.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unit {
    /// Indices into the pairs of the task; or into what a method has in their place ([`Prepared::example`]).
    pub items: Vec<usize>,
    pub cells: Range<usize>,
}

impl Unit {
    /// The examples of items that have all its cells, from the values of each item; `unchanged` gives what the model does on
    /// it otherwise.
    pub fn examples(
        &self,
        task: &Task,
        values: Vec<Vec<f64>>,
        unchanged: impl Fn(usize) -> Unchanged,
    ) -> Vec<ExampleScores> {
        let cells: Arc<[u32]> = (self.cells.start as u32..self.cells.end as u32).collect();
        let example = |(i, values): (usize, Vec<f64>)| {
            let Unchanged {
                clean,
                corrupted,
                judged,
            } = unchanged(i);
            let mut one = unmeasured(task, self.items[i], clean, corrupted);
            one.judged(judged);
            one.cells = Arc::clone(&cells);
            one.values = values;
            one
        };
        values.into_iter().enumerate().map(example).collect()
    }
}

/// What the model does on a pair when nothing is changed: the metric of its two runs, and how the clean one is judged.
#[derive(Debug, Clone, Copy, Default)]
pub struct Unchanged {
    pub clean: f64,
    pub corrupted: f64,
    pub judged: Judgement,
}

/// What a unit will cost.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Cost {
    /// Changed runs, and how many of them cannot reach the answer.
    pub variants: usize,
    pub without_effect: usize,
    /// Passes over a whole prompt, forward or backward, in forward passes.
    pub passes: f64,
    /// Rows of packed variants, in forward passes; a third as dear each.
    pub packed: f64,
    /// Bytes of activations.
    pub bytes: usize,
    /// Bytes that are held beside them, however many examples run at once.
    pub held: usize,
    /// Seconds of arithmetic beside the runs, such as fits take.
    pub seconds: f64,
}

impl Cost {
    /// So many forward passes.
    pub fn passes(passes: f64) -> Self {
        Cost {
            passes,
            ..Cost::default()
        }
    }
}

/// The method whose effects are exact where another one's are estimates.
pub struct Exact {
    /// It measures the cells that it was asked for and no others.
    pub method: Box<dyn Method>,
    /// What an exact score is multiplied by to be compared: -1 where a share of a token is held against its removal.
    pub sign: f64,
    /// Estimates are sizes without sign, and exact effects are taken as sizes too.
    pub sizes: bool,
}

/// A method that is ready for a subject, or why it cannot be.
pub type Preparation<'a> = Result<Box<dyn Prepared + 'a>>;

/// A method and all its settings.
pub trait Method: fmt::Debug + Send + Sync {
    /// Name, metric, unit, direction and seed of the table.
    fn header(&self, task: &Task) -> ScoresMeta;

    /// All that decides a number, besides model, prompts and the header: the plan of parts and shards, and `config` in the
    /// provenance. An object; `{}` where there is nothing to set.
    fn settings(&self) -> Value;

    fn needs(&self, task: &Task) -> Needs;

    /// Refuses what cannot be run as asked, before weights are read.
    /// # Errors
    /// What cannot be run.
    fn check(&self, spec: &ModelSpec, task: &Task) -> Result<()>;

    /// Reads what the method needs besides model and task, such as another model's weights; once all is checked, and before
    /// [`Method::settings`] are written down.
    /// # Errors
    /// Those of reading.
    fn load(&self) -> Result<()> {
        Ok(())
    }

    /// What measuring needs besides the units. Cheap: passes over prompts belong into [`Prepared::begin`].
    /// # Errors
    /// What could not be told without weights.
    fn prepare<'a>(&'a self, on: Subject<'a>, running: &'a Running) -> Preparation<'a>;

    /// What a reader is shown of the table, and in which order; by default what the filled columns suggest.
    fn views(&self, _task: &Task) -> Vec<View> {
        Vec::new()
    }

    /// The exact twin of an estimate, for some of its cells; `None` where the method is exact itself or has no twin. Also asked
    /// with no cell at all, to learn whether there is one.
    fn exact(&self, _cells: &[Cell]) -> Option<Exact> {
        None
    }

    /// The cell of the exact twin that a cell is an estimate of, or a part of. `None` where there is none.
    fn exact_cell(&self, cell: &Cell) -> Option<Cell> {
        Some(cell.clone())
    }

    /// A bound on the effects that verification did not look at.
    /// # Errors
    /// Those of measuring.
    fn bound(
        &self,
        _on: Subject<'_>,
        _running: &Running,
        _found: &Verification,
        _draws: usize,
        _progress: &dyn Progress,
    ) -> Result<Option<Bound>> {
        Ok(None)
    }
}

/// A checked run: its cells, and how a unit of them is measured.
pub trait Prepared: Sync {
    fn cells(&self) -> &[Cell];

    /// Bytes that a pair of this length needs of the planned memory at its peak; the loop makes batches of it. Where the two runs of
    /// a pair follow each other, the larger one.
    fn bytes(&self, length: usize) -> usize;

    /// Whether the cells of a pair can be measured in several units, which long pairs then are.
    fn splits(&self) -> bool {
        false
    }

    /// What is measured and kept together. A function of the plan, so that every machine makes the same units.
    fn units(&self, task: &Task, running: &Running) -> Vec<Unit> {
        units(
            task,
            running,
            |length| self.bytes(length),
            self.cells().len(),
            self.splits(),
        )
    }

    /// The number of an item's example in the table.
    fn example(&self, task: &Task, item: usize) -> usize {
        task.pairs()[item].index
    }

    /// What a unit costs, all its items together; for dry runs.
    /// # Errors
    /// Those of looking.
    fn cost(&self, unit: &Unit) -> Result<Cost>;

    /// What all units share and takes passes over prompts: means, a noise's scale. Called before the first unit that is not
    /// finished already.
    /// # Errors
    /// Those of running; [`Error::Interrupted`].
    fn begin(&mut self, _progress: &dyn Progress) -> Result<()> {
        Ok(())
    }

    /// Measures a unit: for each of its items the cells of the unit that it has. The pairs of a unit are of one template, and
    /// their prompts of one length, clean and corrupted ones each (unless [`Prepared::units`] says otherwise). The progress advances by items times cells,
    /// by whoever runs them; what is left is made up by the loop.
    /// # Errors
    /// Those of running; [`Error::Interrupted`].
    fn measure(&self, unit: &Unit, progress: &dyn Progress) -> Result<Vec<ExampleScores>>;

    /// What follows from all examples, wherever they were measured: interactions, classes, notes, and what is chosen by looking
    /// at all of them (heads to ablate together, tokens to list). Runs once, where the table is made.
    /// # Errors
    /// Those of running; [`Error::Interrupted`].
    fn conclude(&self, _measured: &mut Measured, _progress: &dyn Progress) -> Result<()> {
        Ok(())
    }
}

/// Variants that a unit holds at most, where cells can be split: a few seconds of work for a small model, minutes for a large
/// one, and a hundred times what starting the unit costs.
const UNIT_VARIANTS: usize = 1 << 14;

/// Batches of pairs that align position by position, as many at once as planned memory allows; and of their cells, where a unit
/// would be long, ranges of about equal size.
pub fn units(
    task: &Task,
    running: &Running,
    bytes: impl Fn(usize) -> usize,
    n_cells: usize,
    splits: bool,
) -> Vec<Unit> {
    let longest = task.longest();
    let room = running.planned_memory() / bytes(longest).max(1);
    let mut units = Vec::new();
    for items in task.batches(room.clamp(1, running.batch.max(1))) {
        let pieces = if splits {
            (n_cells * items.len())
                .div_ceil(UNIT_VARIANTS)
                .clamp(1, n_cells.max(1))
        } else {
            1
        };
        for piece in 0..pieces {
            units.push(Unit {
                items: items.clone(),
                cells: piece * n_cells / pieces..(piece + 1) * n_cells / pieces,
            });
        }
    }
    units
}

/// The pairs of some items.
pub fn pairs_of<'a>(task: &'a Task, items: &[usize]) -> Vec<&'a Pair> {
    items.iter().map(|&item| &task.pairs()[item]).collect()
}

/// The tokens of their clean prompts.
pub fn clean_prompts(pairs: &[&Pair]) -> Vec<Vec<u32>> {
    pairs.iter().map(|pair| pair.clean.clone()).collect()
}

/// What is read of their answers.
pub fn targets_of(pairs: &[&Pair]) -> Vec<Target> {
    pairs.iter().map(|pair| pair.target.clone()).collect()
}

/// An example that nothing was measured on yet: its labels, and the metric of its two runs.
pub fn unmeasured(task: &Task, item: usize, clean: f64, corrupted: f64) -> ExampleScores {
    let pair = &task.pairs()[item];
    ExampleScores {
        example: pair.index,
        clean,
        corrupted,
        tokens: task.texts(&pair.clean),
        roles: pair.roles.clone(),
        ..ExampleScores::default()
    }
}

/// # Errors
/// [`Error::Interrupted`] where the user asked to stop; what is kept by then is said by the loop.
pub fn stop_if_asked(progress: &dyn Progress) -> Result<()> {
    if progress.cancelled() {
        return Err(Error::Interrupted {
            kept: String::new(),
        });
    }
    Ok(())
}

/// # Errors
/// [`Error::BadMetric`] naming the first pair without an answer, which `what` is about.
pub fn check_answers(task: &Task, what: &str) -> Result<()> {
    match task
        .pairs()
        .iter()
        .find(|pair| pair.target.answers.is_empty())
    {
        None => Ok(()),
        Some(pair) => Err(Error::BadMetric {
            metric: what.into(),
            reason: format!(
                "needs an answer, and pair {} of task `{}` has none; fill the column `answer`",
                pair.index, task.name
            ),
        }),
    }
}
