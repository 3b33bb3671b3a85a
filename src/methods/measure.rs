//! The one loop that runs every method: checks, batches under the memory that was planned, parts that survive a kill, shards,
//! cancellation, progress, verification, provenance and the table.

mod kept;
mod shards;
mod work;

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Instant;

pub use shards::{Shards, difference, measure_shard, merge, read_shards, work_plan};
use work::{Work, interrupted, kept};

use super::method::{Cost, Method, Prepared, Running, Subject, Unit};
use super::record::provenance;
use super::verify;
use crate::error::{Error, Result};
use crate::model::ModelSpec;
use crate::run::{Logits, Progress, Quiet, Request, run};
use crate::scores::parts::{Fragment, PartStore, joined};
use crate::scores::{Measured, Scores, Shard};
use crate::task::Task;

/// Who watches, and where finished parts are kept.
#[derive(Clone, Copy)]
pub struct Watch<'a> {
    pub progress: &'a dyn Progress,
    pub keeping: Option<&'a Keeping>,
}

impl Default for Watch<'_> {
    fn default() -> Self {
        Watch {
            progress: &Quiet,
            keeping: None,
        }
    }
}

impl<'a> Watch<'a> {
    /// Reports to `progress`; keeps nothing.
    pub fn progress(progress: &'a dyn Progress) -> Self {
        Watch {
            progress,
            keeping: None,
        }
    }
}

/// Finished parts of the work for one result file. They stay, held by this process, until [`Keeping::remove`] says that the
/// result is written; what finished nothing leaves nothing.
#[derive(Debug)]
pub struct Keeping {
    out: PathBuf,
    stores: RefCell<Vec<PartStore>>,
    /// Measured elsewhere: fragments by the text of their plan.
    shards: BTreeMap<String, Vec<Fragment>>,
}

impl Keeping {
    /// Keeps parts beside the file that the result will be.
    pub fn beside(out: &Path) -> Self {
        Keeping {
            out: out.to_path_buf(),
            stores: RefCell::default(),
            shards: BTreeMap::new(),
        }
    }

    /// Removes the parts: the result is written.
    /// # Errors
    /// Those of removing files.
    pub fn remove(self) -> Result<()> {
        self.stores
            .into_inner()
            .into_iter()
            .try_for_each(PartStore::remove)
    }
}

/// Refuses what cannot be measured as asked, before weights are read.
/// # Errors
/// An empty task, a metric, roles or a model that the method does not go with; those of [`Method::check`].
pub fn check(method: &dyn Method, spec: &ModelSpec, task: &Task) -> Result<()> {
    task.check_fits(spec)?;
    let needs = method.needs(task);
    if let Some(what) = needs.decoder {
        spec.check_decoder(what)?;
    }
    if !needs.whole_answers {
        task.check_single_tokens(&method.header(task).method)?;
    }
    if let Some(metric) = needs.metric {
        task.check_metric(metric)?;
        if needs.gradient {
            metric.check_differentiable()?;
        }
    }
    if needs.aligned {
        task.check_aligned()?;
    }
    if needs.roles && task.all_roles().is_empty() {
        return Err(Error::UnknownRole {
            role: "any".into(),
            known: "none; take positions instead".into(),
        });
    }
    method.check(spec, task)
}

/// What measuring will cost.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Plan {
    pub pairs: usize,
    pub cells: usize,
    /// Units that are measured and kept one by one; of these a shard has a slice.
    pub units: usize,
    pub cost: Cost,
    /// From timing one forward pass on this machine.
    pub seconds: f64,
    /// Cells that are measured exactly at the end, for `--verify`.
    pub verified: usize,
}

/// Plans without measuring: one forward pass tells the speed of this machine.
/// # Errors
/// Those of [`check`].
pub fn plan(on: Subject<'_>, method: &dyn Method, running: &Running) -> Result<Plan> {
    check(method, &on.model.spec, on.task)?;
    let prepared = prepared(on, method, running)?;
    let units = prepared.units(on.task, running);
    let mine = units_of(&units, running.shard);
    let mut plan = Plan {
        pairs: on.task.pairs().len(),
        cells: prepared.cells().len(),
        units: mine.len(),
        ..Plan::default()
    };
    let mut known: BTreeMap<(usize, usize, usize, usize), Cost> = BTreeMap::new();
    for unit in &mine {
        let n = unit.items.len();
        let pair = on.task.pairs().get(unit.items[0]);
        let group = pair.map_or((0, 0), |pair| (pair.template, pair.clean.len()));
        let key = (group.0, group.1, unit.cells.start, unit.cells.end);
        let one = match known.get(&key) {
            Some(cost) => *cost,
            None => {
                let first = Unit {
                    items: unit.items[..1].to_vec(),
                    cells: unit.cells.clone(),
                };
                let cost = prepared.cost(&first)?;
                known.insert(key, cost);
                cost
            }
        };
        plan.cost.variants += n * one.variants;
        plan.cost.without_effect += n * one.without_effect;
        plan.cost.passes += n as f64 * one.passes;
        plan.cost.packed += n as f64 * one.packed;
        plan.cost.bytes = plan
            .cost
            .bytes
            .max(n * one.bytes.max(prepared.bytes(group.1)));
        plan.cost.held = plan.cost.held.max(one.held);
        plan.cost.seconds += n as f64 * one.seconds;
    }
    plan.seconds = seconds_of_a_pass(on)? * (plan.cost.passes + plan.cost.packed / 3.0);
    plan.seconds += plan.cost.seconds;
    if let Some(options) = running.verify {
        let header = method.header(on.task);
        verify::check_method(method, &header.method, prepared.cells(), options)?;
        plan.verified = 2 * options.k;
    }
    Ok(plan)
}

/// A run that has something to measure.
fn prepared<'a>(
    on: Subject<'a>,
    method: &'a dyn Method,
    running: &'a Running,
) -> Result<Box<dyn Prepared + 'a>> {
    let prepared = method.prepare(on, running)?;
    if prepared.cells().is_empty() {
        return Err(Error::invalid(
            "nothing is left to measure: what was chosen (sites, layers, heads, positions) excludes each other; choose less narrowly",
        ));
    }
    Ok(prepared)
}

/// The time of one forward pass over the first prompt, warm.
fn seconds_of_a_pass(on: Subject<'_>) -> Result<f64> {
    let prompts = [on.task.pairs()[0].clean.clone()];
    let request = Request {
        logits: Logits::Last,
        ..Request::default()
    };
    let mut least = f64::INFINITY;
    for _ in 0..3 {
        let began = Instant::now();
        run(on.model, &prompts, &request)?;
        least = least.min(began.elapsed().as_secs_f64());
    }
    Ok(least)
}

fn units_of(units: &[Unit], shard: Option<Shard>) -> Vec<&Unit> {
    let is_mine = |at: usize| shard.is_none_or(|shard| shard.has(at));
    (units.iter().enumerate())
        .filter(|(at, unit)| is_mine(*at) && !unit.items.is_empty())
        .map(|(_, unit)| unit)
        .collect()
}

/// Runs a method, and verifies it if [`Running::verify`] says so.
/// # Units
/// `value` and `score`: those of [`Method::header`].
/// # Errors
/// Those of [`check`], before anything runs; [`Error::Interrupted`]; [`Error::NothingMeasured`] for a cell that no example has.
/// A shard has no table: see [`measure_shard`].
pub fn measure(
    on: Subject<'_>,
    method: &dyn Method,
    running: &Running,
    watch: &Watch<'_>,
) -> Result<Scores> {
    if let Some(shard) = running.shard {
        return Err(Error::invalid(format!(
            "shard {shard} is no table yet; write it with `measure_shard`, and merge all of them"
        )));
    }
    let header = method.header(on.task);
    let Collected {
        measured, seconds, ..
    } = collect(on, method, running, watch, &header.method)?;
    let mut settings = method.settings();
    for (name, value) in &measured.found {
        settings[name] = value.clone();
    }
    let mut about = provenance(
        on.model,
        on.task,
        settings,
        seconds,
        measured.warnings.clone(),
    );
    about.notes.clone_from(&measured.notes);
    about.views = method.views(on.task);
    let mut scores = measured.table(&header, running.detail, about)?;
    if let Some(options) = running.verify {
        let began = Instant::now();
        let found = verify::verify(on, method, &measured, options, running, watch)?;
        let (n, examples) = (measured.cells.len(), &measured.examples);
        found.add_to(&mut scores, n, examples, running.detail)?;
        scores.provenance.seconds += began.elapsed().as_secs_f64();
    }
    Ok(scores)
}

/// What a method measured, with what it concluded from all of it.
/// # Errors
/// Those of [`measure`].
pub fn measurements(
    on: Subject<'_>,
    method: &dyn Method,
    running: &Running,
    watch: &Watch<'_>,
) -> Result<Measured> {
    let name = method.header(on.task).method;
    Ok(collect(on, method, running, watch, &name)?.measured)
}

/// What was collected, from all units.
pub(super) struct Collected {
    pub measured: Measured,
    pub seconds: f64,
}

/// Measures all units and concludes.
pub(super) fn collect(
    on: Subject<'_>,
    method: &dyn Method,
    running: &Running,
    watch: &Watch<'_>,
    what: &str,
) -> Result<Collected> {
    let began = Instant::now();
    let work = Work::new(on, method, running)?;
    let cells = work.prepared.borrow().cells().to_vec();
    let (fragments, _) = work.fragments(watch, what)?;
    let mut measured = Measured {
        cells,
        examples: joined(fragments),
        ..Measured::default()
    };
    let prepared = work.prepared.borrow();
    measured.warnings = work.warnings(&measured.examples);
    let concluded = prepared.conclude(&mut measured, watch.progress);
    concluded.map_err(|error| {
        interrupted(error, || Error::Interrupted {
            kept: match watch.keeping {
                Some(keeping) if !keeping.stores.borrow().is_empty() => {
                    "everything is measured and kept; the same command goes on from there".into()
                }
                Some(_) => kept(true, 0, 0),
                None => kept(false, 0, 0),
            },
        })
    })?;
    Ok(Collected {
        measured,
        seconds: began.elapsed().as_secs_f64(),
    })
}
