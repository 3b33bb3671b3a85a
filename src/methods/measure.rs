//! The one loop that runs every method: checks, batches under the memory that was planned, parts that survive a kill, shards,
//! cancellation, progress, verification, provenance and the table.

use std::cell::{OnceCell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use super::method::{Cost, Method, Prepared, Running, Subject, Unit};
use super::record::provenance;
use super::verify;
use crate::error::{Error, Result};
use crate::model::ModelSpec;
use crate::run::{Logits, Progress, Quiet, Request, run};
use crate::scores::parts::{
    Fragment, PartStore, ShardNote, folder_of, joined, plan_text, read_shard, write_shard,
};
use crate::scores::{ExampleScores, Measured, Scores, Shard};
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
    }
    plan.seconds = seconds_of_a_pass(on)? * (plan.cost.passes + plan.cost.packed / 3.0);
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

/// Measures one shard and writes it, for [`merge`].
/// # Errors
/// Those of [`measure`] and of writing.
pub fn measure_shard(
    on: Subject<'_>,
    method: &dyn Method,
    running: &Running,
    watch: &Watch<'_>,
    path: &Path,
    command: &[String],
) -> Result<ShardNote> {
    let shard = running
        .shard
        .ok_or_else(|| Error::invalid("this is no shard; say which of how many, such as `1/4`"))?;
    let name = method.header(on.task).method;
    let work = Work::new(on, method, running)?;
    let (fragments, seconds) = work.fragments(watch, &name)?;
    let folder = std::env::current_dir().unwrap_or_default();
    let note = ShardNote {
        shard,
        plan: plan_text(work.plan()),
        command: command.to_vec(),
        folder: folder.display().to_string(),
        seconds,
    };
    write_shard(path, &fragments, &note)?;
    Ok(note)
}

/// The table of all shards of one piece of work: what [`measure`] would have given. What is chosen after measuring (verification,
/// conclusions) is done here.
/// # Errors
/// [`Error::Shards`] that names a missing, doubled or foreign shard; those of [`measure`].
pub fn merge(
    on: Subject<'_>,
    method: &dyn Method,
    running: &Running,
    shards: &[PathBuf],
    watch: &Watch<'_>,
) -> Result<Scores> {
    let read = read_shards(shards)?;
    let out = watch
        .keeping
        .map_or(PathBuf::from("merged.parquet"), |keeping| {
            keeping.out.clone()
        });
    let keeping = Keeping {
        out,
        stores: RefCell::default(),
        shards: BTreeMap::from([(read.plan, read.fragments)]),
    };
    let watch = Watch {
        progress: watch.progress,
        keeping: Some(&keeping),
    };
    let scores = measure(on, method, running, &watch)?;
    keeping.remove()?;
    Ok(scores)
}

/// The shards of one piece of work, none missing and none twice.
#[derive(Debug)]
pub struct Shards {
    pub plan: String,
    pub fragments: Vec<Fragment>,
    /// What the first shard says of itself.
    pub note: ShardNote,
}

/// Reads shards that belong together.
/// # Errors
/// [`Error::Shards`] that names a missing, doubled or foreign one.
pub fn read_shards(paths: &[PathBuf]) -> Result<Shards> {
    let refuse = |reason: String| Err(Error::Shards { reason });
    let mut found: BTreeMap<usize, &PathBuf> = BTreeMap::new();
    let mut all: Option<Shards> = None;
    for path in paths {
        let (note, fragments) = read_shard(path)?;
        let all = all.get_or_insert_with(|| Shards {
            plan: note.plan.clone(),
            fragments: Vec::new(),
            note: note.clone(),
        });
        let (shard, first) = (note.shard, all.note.shard);
        if note.plan != all.plan || shard.count != first.count {
            return refuse(format!(
                "`{}` is shard {shard} of other work than `{}`: {}",
                path.display(),
                paths[0].display(),
                difference(&all.plan, &note.plan)
            ));
        }
        if let Some(other) = found.insert(shard.index, path) {
            return refuse(format!(
                "`{}` and `{}` are both shard {shard}; give each shard once",
                other.display(),
                path.display()
            ));
        }
        all.fragments.extend(fragments);
    }
    let Some(all) = all else {
        return refuse("there is none; name the files that `--shard` wrote".into());
    };
    let count = all.note.shard.count;
    let missing: Vec<String> = (1..=count)
        .filter(|index| !found.contains_key(index))
        .map(|index| format!("{index}/{count}"))
        .collect();
    if !missing.is_empty() {
        return refuse(format!(
            "shards {} are missing; run the same command with `--shard {}`",
            missing.join(", "),
            missing[0]
        ));
    }
    Ok(all)
}

/// In what two plans differ, with short values: `there, here`.
fn difference(there: &str, here: &str) -> String {
    let parse = |text: &str| serde_json::from_str::<Value>(text).unwrap_or_default();
    let (Value::Object(there), Value::Object(here)) = (parse(there), parse(here)) else {
        return "another plan".into();
    };
    let brief = |value: Option<&Value>| {
        let text = value.map_or("absent".to_string(), Value::to_string);
        if text.chars().count() > 40 {
            text.chars().take(39).chain(['…']).collect()
        } else {
            text
        }
    };
    let keys: BTreeSet<&String> = there.keys().chain(here.keys()).collect();
    let differing: Vec<String> = keys
        .into_iter()
        .filter(|key| there.get(*key) != here.get(*key))
        .map(|key| {
            format!(
                "`{key}` is {} and {}",
                brief(there.get(key)),
                brief(here.get(key))
            )
        })
        .collect();
    if differing.is_empty() {
        return "they were cut into other numbers of shards".into();
    }
    differing.join("; ")
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

/// A checked piece of work.
struct Work<'a> {
    on: Subject<'a>,
    method: &'a dyn Method,
    running: &'a Running,
    prepared: RefCell<Box<dyn Prepared + 'a>>,
    metric: String,
    plan: OnceCell<Value>,
}

impl<'a> Work<'a> {
    fn new(on: Subject<'a>, method: &'a dyn Method, running: &'a Running) -> Result<Self> {
        check(method, &on.model.spec, on.task)?;
        let prepared = prepared(on, method, running)?;
        let header = method.header(on.task);
        if let Some(options) = running.verify {
            verify::check_method(method, &header.method, prepared.cells(), options)?;
        }
        Ok(Work {
            on,
            method,
            running,
            metric: header.metric,
            prepared: RefCell::new(prepared),
            plan: OnceCell::new(),
        })
    }

    /// All that decides a measurement. Made when it is needed: it waits for the hash of the weights.
    fn plan(&self) -> &Value {
        self.plan.get_or_init(|| {
            let prepared = self.prepared.borrow();
            let mut cells = Sha256::new();
            for cell in prepared.cells() {
                cells.update(serde_json::to_string(cell).expect("a cell has only text keys"));
                cells.update("\n");
            }
            let cells: String = cells
                .finalize()
                .iter()
                .map(|b| format!("{b:02x}"))
                .collect();
            let (model, task) = (self.on.model, self.on.task);
            let header = self.method.header(task);
            json!({
                "method": header.method,
                "version": env!("CARGO_PKG_VERSION"),
                "metric": header.metric,
                "direction": header.direction,
                "seed": header.seed,
                "model": model.origin.id,
                "weights": model.origin.weight_hash,
                "processing": model.origin.processing,
                "dtype": model.number_formats(),
                "task": task.name,
                "prompts": task.token_hash(),
                "cells": [prepared.cells().len(), cells],
                "settings": self.method.settings(),
            })
        })
    }

    /// Measures every unit of this shard that is not finished already.
    fn fragments(&self, watch: &Watch<'_>, what: &str) -> Result<(Vec<Fragment>, f64)> {
        let began = Instant::now();
        if let Some(keeping) = watch.keeping
            && let Some(fragments) = self.of_shards(keeping)?
        {
            return Ok((fragments, began.elapsed().as_secs_f64()));
        }
        let task = self.on.task;
        let units = self.prepared.borrow().units(task, self.running);
        let mine = units_of(&units, self.running.shard);
        let mut parts = match watch.keeping {
            Some(keeping) => Some(Parts::begin(self, keeping, watch.progress)?),
            None => None,
        };
        let waiting: Vec<&Unit> = match &parts {
            Some(parts) => (mine.iter().copied())
                .filter(|unit| !parts.has(unit))
                .collect(),
            None => mine.clone(),
        };
        let finished = mine.len() - waiting.len();
        if let Some(store) = parts.as_ref().and_then(|parts| parts.store.as_ref())
            && !store.is_empty()
        {
            watch.progress.note(&format!(
                "going on from {finished} of {} parts that are finished ({})",
                mine.len(),
                store.folder().display()
            ));
        }
        // What was finished before; what is measured now joins it.
        let mut fragments = match &parts {
            Some(parts) => parts.read()?,
            None => Vec::new(),
        };
        let before = fragments.len();
        let measured = self.measure_units(&waiting, watch, what, |fragment| {
            fragments.push(fragment);
            match &mut parts {
                Some(parts) if began.elapsed() >= KEEP_AFTER => parts.keep(&fragments[before..]),
                _ => Ok(()),
            }
        });
        if let Err(error) = measured {
            // Whatever ended the work, what is finished of it is not lost.
            if let Some(parts) = &mut parts {
                parts.keep(&fragments[before..])?;
            }
            let finished = finished + fragments.len() - before;
            return Err(interrupted(error, || Error::Interrupted {
                kept: kept(parts.is_some(), finished, mine.len()),
            }));
        }
        watch.progress.finish();
        if let (Some(parts), Some(keeping)) = (parts, watch.keeping) {
            let wanted: BTreeSet<usize> = (mine.iter())
                .flat_map(|unit| unit.items.iter())
                .map(|&item| self.prepared.borrow().example(task, item))
                .collect();
            for fragment in &mut fragments {
                fragment
                    .examples
                    .retain(|one| wanted.contains(&one.example));
            }
            keeping.stores.borrow_mut().extend(parts.store);
        }
        Ok((fragments, began.elapsed().as_secs_f64()))
    }

    /// Measures units one after the other, and hands on what was measured of each.
    fn measure_units(
        &self,
        units: &[&Unit],
        watch: &Watch<'_>,
        what: &str,
        mut finished: impl FnMut(Fragment) -> Result<()>,
    ) -> Result<()> {
        let steps = |unit: &Unit| (unit.items.len() * unit.cells.len()) as u64;
        let all = units.iter().map(|unit| steps(unit)).sum();
        watch.progress.start(what, all);
        if !units.is_empty() {
            self.prepared.borrow_mut().begin(watch.progress)?;
        }
        for unit in units {
            if watch.progress.cancelled() {
                let kept = String::new();
                return Err(Error::Interrupted { kept });
            }
            let counting = Counting {
                inner: watch.progress,
                left: AtomicU64::new(steps(unit)),
            };
            let examples = self.prepared.borrow().measure(unit, &counting)?;
            counting.make_up();
            finished(Fragment {
                cells: unit.cells.start as u32..unit.cells.end as u32,
                examples,
            })?;
        }
        Ok(())
    }

    /// What shards measured of this very work, if this is what is merged.
    fn of_shards(&self, keeping: &Keeping) -> Result<Option<Vec<Fragment>>> {
        if keeping.shards.is_empty() {
            return Ok(None);
        }
        let here = plan_text(self.plan());
        if let Some(fragments) = keeping.shards.get(&here) {
            return Ok(Some(fragments.clone()));
        }
        // A verification at the end of a merge is no work of the shards; anything else is a mistake.
        let of_this_method = |plan: &&String| {
            let plan: Value = serde_json::from_str(plan).unwrap_or_default();
            plan["method"] == self.plan()["method"]
        };
        match keeping.shards.keys().find(of_this_method) {
            None => Ok(None),
            Some(other) => Err(Error::Shards {
                reason: format!(
                    "they are of other work than this command measures now: {}; has the model or the task changed since?",
                    difference(other, &here)
                ),
            }),
        }
    }

    /// Lawful but doubtful results, each with a remedy; the same for every method.
    fn warnings(&self, examples: &[ExampleScores]) -> Vec<String> {
        let mut warnings = Vec::new();
        let task = self.on.task;
        if task.pairs().len() < task.asked {
            warnings.push(format!(
                "{} of {} pairs are usable; `candlewick tokens` shows why the others were dropped",
                task.pairs().len(),
                task.asked
            ));
        }
        let wrong = examples.iter().filter(|one| one.clean <= 0.0).count();
        if self.metric == "logit_diff" && 2 * wrong > examples.len() {
            warnings.push(format!(
                "the model prefers the wrong answer on {wrong} of {} clean prompts: it does not do this task, so effects mean little",
                examples.len()
            ));
        }
        warnings
    }
}

fn interrupted(error: Error, kept: impl Fn() -> Error) -> Error {
    match error {
        Error::Interrupted { .. } => kept(),
        other => other,
    }
}

fn kept(keeps: bool, finished: usize, all: usize) -> String {
    if !keeps {
        "nothing was kept: parts are kept beside a result file (`--out`)".into()
    } else if finished == 0 {
        "no part was finished yet, so nothing is kept".into()
    } else {
        format!(
            "{finished} of {all} parts are finished and kept; the same command goes on from there"
        )
    }
}

/// A run that is done sooner writes no parts: measuring again takes less than keeping them.
const KEEP_AFTER: Duration = Duration::from_secs(2);

/// The finished parts of a piece of work.
struct Parts<'w, 'a> {
    work: &'w Work<'a>,
    out: &'w Path,
    /// Opened if something is there already, or is to be kept.
    store: Option<PartStore>,
    /// How many fragments of this run are kept.
    kept: usize,
}

impl<'w, 'a> Parts<'w, 'a> {
    /// Finds what an earlier run kept.
    fn begin(work: &'w Work<'a>, keeping: &'w Keeping, progress: &dyn Progress) -> Result<Self> {
        let mut parts = Parts {
            work,
            out: &keeping.out,
            store: None,
            kept: 0,
        };
        if !folder_of(parts.out).exists() {
            return Ok(parts);
        }
        // What this very run keeps already (a verification follows) is no other run's.
        let own = keeping.stores.borrow().len();
        let store = parts.open()?;
        for warning in store.warnings() {
            progress.note(&format!("warning: {warning}"));
        }
        let others = store.others().saturating_sub(own);
        if store.is_empty() && others > 0 {
            progress.note(&format!(
                "beside {} are unfinished parts of other runs ({others}), with other settings; this run begins anew \
                 (`candlewick clean` lists and removes such parts)",
                keeping.out.display(),
            ));
        }
        Ok(parts)
    }

    fn open(&mut self) -> Result<&mut PartStore> {
        let store = match self.store.take() {
            Some(store) => store,
            None => PartStore::open(self.out, self.work.plan(), self.work.running.shard)?,
        };
        Ok(self.store.insert(store))
    }

    fn has(&self, unit: &Unit) -> bool {
        let cells = unit.cells.start as u32..unit.cells.end as u32;
        let (prepared, task) = (self.work.prepared.borrow(), self.work.on.task);
        self.store.as_ref().is_some_and(|store| {
            let mut items = unit.items.iter();
            items.all(|&item| store.has(prepared.example(task, item), &cells))
        })
    }

    fn read(&self) -> Result<Vec<Fragment>> {
        self.store
            .as_ref()
            .map_or(Ok(Vec::new()), PartStore::read_all)
    }

    /// Keeps those of the fragments of this run that are not kept yet: when this returns, a kill does not lose them.
    fn keep(&mut self, fragments: &[Fragment]) -> Result<()> {
        for fragment in &fragments[self.kept..] {
            self.open()?.write(fragment)?;
            self.kept += 1;
        }
        Ok(())
    }
}

/// Counts what a unit reports, so that a bar neither overshoots nor stays behind.
struct Counting<'a> {
    inner: &'a dyn Progress,
    left: AtomicU64,
}

impl Counting<'_> {
    fn make_up(&self) {
        self.inner.advance(self.left.swap(0, Ordering::Relaxed));
    }
}

impl Progress for Counting<'_> {
    fn advance(&self, steps: u64) {
        let taken = self
            .left
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| {
                Some(left.saturating_sub(steps))
            });
        let left = taken.unwrap_or(0);
        self.inner.advance(steps.min(left));
    }

    fn note(&self, message: &str) {
        self.inner.note(message);
    }

    fn cancelled(&self) -> bool {
        self.inner.cancelled()
    }
}
