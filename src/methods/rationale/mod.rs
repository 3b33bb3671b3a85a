//! ReAGent, a model-agnostic rationale of the answer, and soft scores of it and of other token methods.
//!
//! Tokens of the prompt are replaced at random, again and again; those whose replacement costs the answer probability gain importance,
//! by the log odds of the loss, and all others lose as much. A run ends once the most important tokens alone, with everything else
//! replaced, leave the answer among the likeliest; importance is the mean over the runs that ended. It needs no gradient and no
//! insight, only next-token probabilities.
//!
//! Soft sufficiency and comprehensiveness judge importances of any method: each dimension of a token's embedding is kept with a chance that
//! follows the token's importance, or taken away with it, and the answer's distribution moves by a Hellinger distance; both are scaled by what is left with
//! nothing kept. A method's importances are the sizes of its shares, made to sum to 1.
//!
//! Source: Zhao and Shan 2024, "ReAGent: A Model-agnostic Feature Attribution Method for Generative Language Models"; Zhao and Aletras 2023,
//! "Incorporating Attribution Importance for Improving Faithfulness Metrics" (soft scores). Choices of ours: importances as a share of the largest
//! beside the importance itself, which keeps one token's worth of dimensions whatever its prompt; the Hellinger distance beside what the authors' code has in its place
//! (`_released`); every method beside its own importances dealt out at random (`:shuffled`); special tokens are never replaced and always kept;
//! a masked-language model sees the prompt as it is, but for the one token. Left out on purpose: explanations of texts token by token, for which each
//! prefix is a prompt of its own.

mod config;
mod masked;
mod replace;
mod search;
mod soft;

use std::collections::HashMap;

use serde_json::{Value, json};

use config::places;
pub use config::{Keep, RationaleConfig};
pub use replace::Replacer;
use replace::Replacing;
pub use search::RationaleRun;
use search::{Draws, Prompt, answered, search, search_plain};
use soft::{Importance, MEASURES, Softly, soft_scores};

use super::choice::{Heads, Layers};
use super::method::{
    Cost, Method, Needs, Preparation, Prepared, Running, Subject, Unit, pairs_of, targets_of,
    unmeasured,
};
use super::sites::Extent;
use super::tokens::{InCells, TokenConfig, batch_bytes, token_shares};
use crate::error::{Error, Result};
use crate::metric::Metric;
use crate::run::{Progress, Quiet, run_to_answers};
use crate::scores::statistics::mean;
use crate::scores::{Bars, Cell, Direction, ExampleScores, Measured, ScoresMeta, View};
use crate::spec::ModelSpec;
use crate::task::Task;

const EMBED: &str = "hook_embed";
const OWN: &str = "reagent";
/// What stands behind the name of a method whose importances are dealt out at random.
const SHUFFLED: &str = ":shuffled";
/// Facts of an example.
const NOT_NEAR: &str = "not_among_likeliest";
const NEVER_STOPPED: &str = "never_stopped";
/// Prompts of a batch are at most so many: a soft score's is widened by its logits.
const MOST_AT_ONCE: usize = 64;

impl Method for RationaleConfig {
    fn header(&self, task: &Task) -> ScoresMeta {
        let seed = self.seed(task);
        ScoresMeta::new(OWN, "importance", "share of 1", Direction::Direct, seed)
    }

    fn settings(&self) -> Value {
        json!({
            "replacer": self.replacer.settings(), "ratio": self.ratio, "keep": self.keep, "within": self.within, "runs": self.runs,
            "steps": self.steps, "against": self.against, "draws": self.draws,
        })
    }

    fn needs(&self, task: &Task) -> Needs {
        let needs: Vec<Needs> = self.others().iter().map(|one| one.needs(task)).collect();
        Needs {
            decoder: needs.iter().find_map(|one| one.decoder),
            aligned: true,
            metric: Some(Metric::LogProb),
            gradient: needs.iter().any(|one| one.gradient),
            ..Needs::default()
        }
    }

    fn check(&self, spec: &ModelSpec, task: &Task) -> Result<()> {
        self.check_numbers()?;
        for other in self.others() {
            other.check(spec, task)?;
        }
        self.check_prompts(spec, task)?;
        if let Replacing::Masked(filler) = Replacing::new(&self.replacer, task, spec)? {
            for pair in task.pairs() {
                filler.check(task, &pair.clean, pair.index)?;
            }
        }
        Ok(())
    }

    fn load(&self) -> Result<()> {
        match &self.replacer {
            Replacer::Masked(model) => model.load().map(drop),
            Replacer::Uniform | Replacer::SameClass => Ok(()),
        }
    }

    /// Importance by position, then each score with its methods.
    fn views(&self, _: &Task) -> Vec<View> {
        let bars = |(measure, heading): (&str, &str)| {
            View::Bars(Bars {
                heading: heading.into(),
                measure: measure.into(),
                item: "{component}".into(),
                ..Bars::default()
            })
        };
        let shown = [
            ("soft_ns", "soft sufficiency, more is better"),
            ("soft_nc", "soft comprehensiveness, more is better"),
            (
                "soft_ns_max",
                "the same, importances as shares of the largest: sufficiency",
            ),
            ("soft_nc_max", "comprehensiveness"),
        ];
        [View::Grids]
            .into_iter()
            .chain(shown.map(bars))
            .chain([View::Strongest])
            .collect()
    }

    fn prepare<'a>(&'a self, on: Subject<'a>, running: &'a Running) -> Preparation<'a> {
        let extent = Extent::new(on.task, &Layers::default(), &Heads::default());
        let mut cells = extent.positions(EMBED);
        let positions = cells.iter().cloned().zip(0..).collect();
        let measure = |component: &str, measure: &str| Cell {
            component: component.into(),
            measure: Some(measure.into()),
            ..Cell::default()
        };
        cells.extend(["steps", "stopped"].map(|name| measure(OWN, name)));
        let others = self.others();
        let methods = rows(&others);
        let scores = methods
            .iter()
            .flat_map(|name| MEASURES.map(|score| measure(name, score)));
        cells.extend(scores);
        Ok(Box::new(Explaining {
            on,
            config: self,
            running,
            replacing: Replacing::new(&self.replacer, on.task, &on.model.spec)?,
            others,
            extent,
            positions,
            cells,
        }))
    }
}

/// The methods that are scored: each, and the same importances at random; random ones once.
fn rows(others: &[TokenConfig]) -> Vec<String> {
    let names = others.iter().map(|other| other.method.name());
    let mut rows: Vec<String> = [OWN]
        .into_iter()
        .chain(names)
        .flat_map(|name| [name.to_string(), format!("{name}{SHUFFLED}")])
        .collect();
    // Random importances come last, and are shuffled already.
    rows.pop();
    rows
}

/// All runs of one prompt, the slow way: one prompt and one pass at a time. Nothing where the whole prompt does not have its answer among
/// the likeliest, or no run is asked for.
/// # Errors
/// Those of running.
pub fn rationale_plain(
    on: Subject<'_>,
    config: &RationaleConfig,
    item: usize,
) -> Result<Vec<RationaleRun>> {
    let Subject { model, task } = on;
    let pair = &task.pairs()[item];
    let whole = [(pair.clean.clone(), &pair.target)];
    let (whole, is_near) = answered(model, &whole, config.within, 1, &Quiet)?[0];
    if !is_near {
        return Ok(Vec::new());
    }
    let places = places(&model.spec, task, pair);
    let replacing = Replacing::new(&config.replacer, task, &model.spec)?;
    let prompt = Prompt {
        index: pair.index,
        tokens: &pair.clean,
        target: &pair.target,
        choices: replacing.choices(task, &pair.clean, &places)?,
        places,
        whole,
    };
    let run = |run| {
        let draws = Draws {
            config,
            prompt: &prompt,
            seed: config.seed(task),
            run,
        };
        search_plain(model, &draws)
    };
    (0..config.runs).map(run).collect()
}

/// A checked run in progress.
struct Explaining<'a> {
    on: Subject<'a>,
    config: &'a RationaleConfig,
    running: &'a Running,
    replacing: Replacing,
    others: Vec<TokenConfig>,
    extent: Extent,
    positions: HashMap<Cell, u32>,
    /// Positions; steps and what stopped; for each method its scores.
    cells: Vec<Cell>,
}

impl Explaining<'_> {
    fn at_once(&self, length: usize) -> usize {
        let room = self.running.memory_now() / self.bytes(length).max(1);
        room.clamp(1, MOST_AT_ONCE)
    }
}

impl Prepared for Explaining<'_> {
    fn cells(&self) -> &[Cell] {
        &self.cells
    }

    fn bytes(&self, length: usize) -> usize {
        let spec = &self.on.model.spec;
        let of = |other: &TokenConfig| batch_bytes(spec, length, other, Metric::LogProb);
        let logits = 4 * 4 * spec.d_vocab;
        logits + self.others.iter().map(of).max().unwrap_or(0)
    }

    fn cost(&self, unit: &Unit) -> Result<Cost> {
        let length = self.on.task.pairs()[unit.items[0]].clean.len();
        let others: usize = self.others.iter().map(|other| 3 + 2 * other.passes()).sum();
        let soft = soft::runs(rows(&self.others).len(), self.config.draws);
        let search = 2 * self.config.runs * self.config.steps + self.replacing.passes(length);
        let items = unit.items.len();
        Ok(Cost {
            bytes: self.bytes(length) * MOST_AT_ONCE,
            ..Cost::passes((items * (1 + others + soft + search)) as f64)
        })
    }

    fn measure(&self, unit: &Unit, progress: &dyn Progress) -> Result<Vec<ExampleScores>> {
        let Subject { model, task } = self.on;
        let pairs = pairs_of(task, &unit.items);
        let at_once = self.at_once(pairs[0].clean.len());
        let prompts: Vec<Vec<u32>> = pairs.iter().map(|pair| pair.clean.clone()).collect();
        let (logits, _) = run_to_answers(model, &prompts, &targets_of(&pairs), &[])?;
        let mut examples: Vec<ExampleScores> = Vec::new();
        // Those whose answer is among the likeliest to begin with.
        let mut explained: Vec<(usize, Prompt<'_>)> = Vec::new();
        for (i, pair) in pairs.iter().enumerate() {
            let logits = &logits[i][0];
            let mut one = unmeasured(task, unit.items[i], f64::NAN, f64::NAN);
            one.judged(pair.target.judge(logits));
            let near = Metric::TopK(self.config.within);
            if near.value(logits, &pair.target, None)? == 1.0 {
                let places = places(&model.spec, task, pair);
                let prompt = Prompt {
                    index: pair.index,
                    tokens: &pair.clean,
                    target: &pair.target,
                    choices: self.replacing.choices(task, &pair.clean, &places)?,
                    places,
                    whole: Metric::Prob.value(logits, &pair.target, None)?,
                };
                explained.push((i, prompt));
            } else {
                one.facts.insert(NOT_NEAR.into(), 1.0);
            }
            examples.push(one);
        }
        let (places, searched): (Vec<usize>, Vec<Prompt<'_>>) = explained.into_iter().unzip();
        let seed = self.config.seed(task);
        let runs = search(model, self.config, seed, &searched, at_once, progress)?;
        let mut shares = Vec::new();
        if !searched.is_empty() {
            for other in &self.others {
                shares.push(token_shares(
                    self.on,
                    &unit.items,
                    other,
                    self.running,
                    &Quiet,
                )?);
            }
        }
        let softly = Softly {
            draws: self.config.draws,
            seed,
            at_once,
        };
        let points = soft::runs(rows(&self.others).len(), softly.draws);
        for ((i, prompt), runs) in places.into_iter().zip(searched).zip(runs) {
            let one = &mut examples[i];
            let Some(importance) = stopped_mean(&runs) else {
                one.facts.insert(NEVER_STOPPED.into(), 1.0);
                continue;
            };
            let mut all = vec![importance.clone()];
            for (other, shares) in self.others.iter().zip(&shares) {
                all.push(sizes(&shares[i], &prompt.places).ok_or_else(|| {
                    Error::invalid(format!(
                        "`{}` gives pair {} a share that is no number; leave it out (`RationaleConfig::against`)",
                        other.method, prompt.index
                    ))
                })?);
            }
            let mut importances: Vec<Importance> = all
                .into_iter()
                .flat_map(|of| {
                    [false, true].map(|is_shuffled| Importance {
                        of: of.clone(),
                        is_shuffled,
                    })
                })
                .collect();
            importances.pop();
            let progress = InCells::new(progress, self.cells.len(), points);
            let logits = &logits[i][0];
            let soft = soft_scores(model, &prompt, logits, &importances, softly, &progress)?;
            let mut row: Vec<(u32, f64)> = Vec::new();
            for (&at, &value) in prompt.places.iter().zip(&importance) {
                row.push((self.position(pairs[i], at)?, value));
            }
            let first = self.positions.len() as u32;
            let stopped: Vec<&RationaleRun> = runs.iter().filter(|run| run.stopped).collect();
            let steps = stopped.iter().map(|run| run.steps as f64);
            row.push((first, mean(&steps.collect::<Vec<f64>>())));
            row.push((first + 1, stopped.len() as f64 / runs.len() as f64));
            let scores = soft.into_iter().flatten().flatten();
            row.extend((first + 2..).zip(scores));
            row.sort_by_key(|row| row.0);
            one.cells = row.iter().map(|row| row.0).collect();
            one.values = row.iter().map(|row| row.1).collect();
        }
        Ok(examples)
    }

    fn conclude(&self, measured: &mut Measured, _: &dyn Progress) -> Result<()> {
        let with = |fact: &str| {
            let has = measured
                .examples
                .iter()
                .filter(|one| one.facts.contains_key(fact));
            has.count()
        };
        let (all, not_near, never) = (measured.examples.len(), with(NOT_NEAR), with(NEVER_STOPPED));
        let RationaleConfig { within, steps, .. } = self.config;
        if not_near + never == all {
            return Err(Error::invalid(format!(
                "none of {all} prompts has a rationale: on {not_near} the answer is not among the model's likeliest {within} to begin with, and on {never} no run \
                 ended within {steps} steps; ask for a higher rank (`RationaleConfig::within`), keep more tokens (`RationaleConfig::keep`), or take a task \
                 that the model can do"
            )));
        }
        if not_near > 0 {
            measured.warnings.push(format!(
                "on {not_near} of {all} prompts the answer is not among the model's likeliest {within}, so there is nothing to explain: they are left out; \
                 ask for a higher rank (`RationaleConfig::within`)"
            ));
        }
        if never > 0 {
            measured.warnings.push(format!(
                "on {never} of {all} prompts no run ended within {steps} steps, so they have no rationale and are left out; take more steps \
                 (`RationaleConfig::steps`), or keep more tokens (`RationaleConfig::keep`)"
            ));
        }
        measured.notes.push(format!(
            "{} of {all} prompts explained: tokens replaced by `{}`, each with a chance of {}, until {} of them leave the answer among the likeliest {within}",
            all - not_near - never,
            self.config.replacer.name(),
            self.config.ratio,
            match self.config.keep {
                Keep::Tokens(n) => n.to_string(),
                Keep::Share(share) => format!("a share of {share}"),
            },
        ));
        measured.drop_unmeasured();
        Ok(())
    }
}

impl Explaining<'_> {
    fn position(&self, pair: &crate::task::Pair, at: usize) -> Result<u32> {
        let cell = Cell {
            component: EMBED.into(),
            pos: Some(at as i32),
            template: self.extent.label(pair),
            ..Cell::default()
        };
        let place = self.positions.get(&cell).copied();
        place.ok_or_else(|| Error::NothingMeasured {
            cell: cell.to_string(),
        })
    }
}

/// The mean importance of the runs that ended.
fn stopped_mean(runs: &[RationaleRun]) -> Option<Vec<f64>> {
    let stopped: Vec<&RationaleRun> = runs.iter().filter(|run| run.stopped).collect();
    let n = stopped.len() as f64;
    let places = stopped.first()?.importance.len();
    let mean = |at| stopped.iter().map(|run| run.importance[at]).sum::<f64>() / n;
    Some((0..places).map(mean).collect())
}

/// Sizes of shares at these places, made to sum to 1; alike where they are all 0.
fn sizes(shares: &[f64], places: &[usize]) -> Option<Vec<f64>> {
    let sizes: Vec<f64> = places.iter().map(|&at| shares[at].abs()).collect();
    let sum: f64 = sizes.iter().sum();
    match sum {
        _ if !sum.is_finite() => None,
        0.0 => Some(vec![1.0 / places.len() as f64; places.len()]),
        _ => Some(sizes.into_iter().map(|size| size / sum).collect()),
    }
}
