//! One checked piece of work: its units measured one after the other, and what decides a measurement as text.

use std::cell::{OnceCell, RefCell};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use super::kept::{KEEP_AFTER, Parts};
use super::shards::difference;
use super::{Keeping, Watch, check, prepared, units_of};
use crate::error::{Error, Result};
use crate::methods::captured::captured_and_judged;
use crate::methods::method::{Method, Prepared, Running, Subject, Unit};
use crate::methods::verify;
use crate::run::Progress;
use crate::scores::ExampleScores;
use crate::scores::parts::{Fragment, hex, plan_text};
use crate::task::Pair;

/// A checked piece of work.
pub(super) struct Work<'a> {
    pub on: Subject<'a>,
    pub method: &'a dyn Method,
    pub running: &'a Running,
    pub prepared: RefCell<Box<dyn Prepared + 'a>>,
    pub metric: String,
    plan: OnceCell<Value>,
}

impl<'a> Work<'a> {
    pub fn new(on: Subject<'a>, method: &'a dyn Method, running: &'a Running) -> Result<Self> {
        check(method, &on.model.spec, on.task)?;
        let prepared = prepared(on, method, running)?;
        let header = method.header(on.task);
        if let Some(options) = running.verify {
            verify::check_method(method, &header.method, prepared.cells(), options)?;
        }
        method.load()?;
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
    pub fn plan(&self) -> &Value {
        self.plan.get_or_init(|| {
            let prepared = self.prepared.borrow();
            let mut cells = Sha256::new();
            for cell in prepared.cells() {
                cells.update(serde_json::to_string(cell).expect("a cell has only text keys"));
                cells.update("\n");
            }
            let cells = hex(&cells.finalize());
            let (model, task) = (self.on.model, self.on.task);
            let header = self.method.header(task);
            json!({
                "method": header.method,
                "build": crate::BUILD,
                "metric": header.metric,
                "direction": header.direction,
                "seed": header.seed,
                "model": model.origin.id,
                "spec": hex(&Sha256::digest(json!(model.spec).to_string())),
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
    pub fn fragments(&self, watch: &Watch<'_>, what: &str) -> Result<(Vec<Fragment>, f64)> {
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
            let mut examples = self.prepared.borrow().measure(unit, &counting)?;
            self.judge(unit, &mut examples)?;
            counting.make_up();
            finished(Fragment {
                cells: unit.cells.start as u32..unit.cells.end as u32,
                examples,
            })?;
        }
        Ok(())
    }

    /// How the model does on the clean prompts, where the method did not look itself: a run says so whatever it measures.
    /// That takes a pass over each; methods that read logits anyway judge by them.
    fn judge(&self, unit: &Unit, examples: &mut [ExampleScores]) -> Result<()> {
        let Subject { model, task } = self.on;
        let prepared = self.prepared.borrow();
        let pairs: HashMap<usize, &Pair> = (unit.items.iter())
            .filter_map(|&item| Some((prepared.example(task, item), task.pairs().get(item)?)))
            .collect();
        let mut unjudged: Vec<(&mut ExampleScores, &Pair)> = Vec::new();
        for example in examples {
            if let Some(pair) = pairs.get(&example.example)
                && example.top1.is_none()
                && !pair.target.answers.is_empty()
            {
                unjudged.push((example, *pair));
            }
        }
        unjudged.sort_by_key(|(_, pair)| pair.clean.len());
        for same in unjudged.chunk_by_mut(|(_, a), (_, b)| a.clean.len() == b.clean.len()) {
            let of: Vec<&Pair> = same.iter().map(|(_, pair)| *pair).collect();
            let (_, judgements) = captured_and_judged(model, &of, &[])?;
            for ((example, _), judged) in same.iter_mut().zip(judgements) {
                example.judged(judged);
            }
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
            self.check_complete(fragments)?;
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

    /// Shards that were cut alike hold every cell of every example.
    fn check_complete(&self, fragments: &[Fragment]) -> Result<()> {
        let mut ranges: BTreeMap<usize, Vec<Range<usize>>> = BTreeMap::new();
        for fragment in fragments {
            let cells = fragment.cells.start as usize..fragment.cells.end as usize;
            for example in &fragment.examples {
                let of = ranges.entry(example.example).or_default();
                of.push(cells.clone());
            }
        }
        ranges
            .values_mut()
            .for_each(|of| of.sort_by_key(|range| range.start));
        let task = self.on.task;
        let prepared = self.prepared.borrow();
        for unit in prepared.units(task, self.running) {
            for &item in &unit.items {
                let example = prepared.example(task, item);
                let of = ranges.get(&example).map_or(&[][..], Vec::as_slice);
                // As far as the cells are there without a gap.
                let reached = of.iter().fold(unit.cells.start, |reached, range| {
                    if range.start <= reached {
                        reached.max(range.end)
                    } else {
                        reached
                    }
                });
                if reached < unit.cells.end {
                    return Err(Error::Shards {
                        reason: format!(
                            "none of them has cell {reached} of pair {example}; were they made with different `Running::memory`, which cuts \
                             the work in other places?"
                        ),
                    });
                }
            }
        }
        Ok(())
    }

    /// Lawful but doubtful results, each with a remedy; the same for every method.
    pub fn warnings(&self, examples: &[ExampleScores]) -> Vec<String> {
        let mut warnings = Vec::new();
        let task = self.on.task;
        if task.pairs().len() < task.asked {
            let first = task.dropped.first();
            warnings.push(format!(
                "{} of {} pairs are usable{}",
                task.pairs().len(),
                task.asked,
                first.map_or(String::new(), |one| format!(
                    "; the first of the others, {}, is dropped for this: {}",
                    one.index, one.reason
                ))
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

pub(super) fn interrupted(error: Error, kept: impl Fn() -> Error) -> Error {
    match error {
        Error::Interrupted { .. } => kept(),
        other => other,
    }
}

pub(super) fn kept(keeps: bool, finished: usize, all: usize) -> String {
    if !keeps {
        "nothing was kept: parts are kept beside a result file (`Watch::keeping`)".into()
    } else if finished == 0 {
        "no part was finished yet, so nothing is kept".into()
    } else {
        format!(
            "{finished} of {all} parts are finished and kept; the same command goes on from there"
        )
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
