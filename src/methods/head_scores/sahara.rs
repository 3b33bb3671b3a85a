//! Sahara: heads that turn the model together, found one by one, beside random ones.

use candle_core::DType;
use nalgebra::DMatrix;
use rand::SeedableRng;
use rand::seq::index::sample;
use rand_chacha::ChaCha8Rng;
use serde::Serialize;
use serde_json::json;

use super::angles::{principal_angle, singular};
use super::changing::{Changing, Head};
use super::declining::{declining, refusing};
use super::each::of_head;
use crate::error::{Error, Result};
use crate::hooks::{Hook, Kind, Ln, Node};
use crate::methods::method::{Subject, clean_prompts, pairs_of, stop_if_asked, targets_of};
use crate::metric::Metric;
use crate::run::{
    BaseRun, Logits, Progress, Quiet, Readout, Request, SweepOptions, Variant, check_room, run,
    sweep_with_capture,
};
use crate::scores::statistics::mean;
use crate::scores::{Cell, Measured};
use crate::spec::ModelSpec;
use crate::task::Task;

/// The angle of each head alone, of each group; the divergence of a group; the log probability of declining, and how often it declines.
pub(super) const ANGLE: &str = "angle";
const GROUP_ANGLE: &str = "group_angle";
const GROUP_KL: &str = "group_kl";
const DECLINE: &str = "decline_log_prob";
const REFUSES: &str = "refuses";
/// More than anybody would wait for.
const MOST: usize = 1000;

/// How a group of heads is looked for.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Search {
    /// Heads that are added.
    pub steps: usize,
    /// First left singular vectors that are compared: the sum of their principal angles.
    pub rank: usize,
    /// Random groups of as many heads, for each step.
    pub draws: usize,
    /// A text that declines, as tokens: how likely it is behind each prompt.
    pub decline: Vec<u32>,
    /// An answer refuses that has one of these in it, whatever the case: how often the model's own answers of
    /// [`Search::answer_tokens`] tokens do.
    pub refusals: Vec<String>,
    pub answer_tokens: usize,
}

impl Search {
    /// One singular vector, five random groups; nothing is asked of the answers.
    pub fn steps(steps: usize) -> Self {
        Search {
            steps,
            rank: 1,
            draws: 5,
            decline: Vec::new(),
            refusals: Vec::new(),
            answer_tokens: 12,
        }
    }

    pub(super) fn check(&self, spec: &ModelSpec, task: &Task) -> Result<()> {
        let (heads, prompts) = (spec.n_layers * spec.n_heads, task.pairs().len());
        let bad = |reason: String| Err(Error::invalid(reason));
        if !(1..=heads).contains(&self.steps) {
            return bad(format!(
                "a group of {} of {heads} heads; take from 1 (`Search::steps`)",
                self.steps
            ));
        }
        if self.rank == 0 || self.rank >= prompts || self.rank > spec.d_model {
            return bad(format!(
                "{} singular vectors of {prompts} prompts; take at least one, and more prompts than that (`Search::rank`, \
                 `ExpandOptions::n_pairs`)",
                self.rank
            ));
        }
        if self.draws > MOST {
            return bad(format!(
                "{} random groups; take at most {MOST} (`Search::draws`)",
                self.draws
            ));
        }
        if self.refusals.iter().any(|text| text.trim().is_empty()) {
            return bad("a refusal without a letter is in every answer; write what an answer that refuses has in it".into());
        }
        let more = match self.refusals.is_empty() {
            true => self.decline.len(),
            false => self.decline.len().max(self.answer_tokens),
        };
        if more > 0 {
            if !spec.is_causal() {
                return bad(format!(
                    "family `{}` predicts no next token, so it declines nothing",
                    spec.family
                ));
            }
            check_room(spec, task.longest(), more)?;
        }
        Ok(())
    }

    /// What is measured of groups, and what it is.
    pub(super) fn measures(&self) -> Vec<(&'static str, &'static str)> {
        let mut all = vec![
            (
                GROUP_ANGLE,
                "degrees by which the chosen heads turn the states, one more each step; random heads beside",
            ),
            (
                GROUP_KL,
                "how far the next token's distribution moves, in nats",
            ),
        ];
        if !self.decline.is_empty() {
            all.push((DECLINE, "the log probability of declining, in nats"));
        }
        if !self.refusals.is_empty() {
            all.push((REFUSES, "answers that refuse, of all"));
        }
        all
    }

    /// Whole passes over a prompt beside the search itself.
    pub(super) fn passes(&self) -> f64 {
        let groups = 1 + self.steps * (1 + self.draws);
        let asked =
            usize::from(!self.decline.is_empty()) + 2 * usize::from(!self.refusals.is_empty());
        (self.steps * (1 + self.draws) + self.steps + groups * asked) as f64
    }
}

/// What was seen of all prompts with some heads changed: states at their ends `[prompt, d_model]`, and divergences from the unchanged model.
struct Seen {
    states: DMatrix<f64>,
    kl: Vec<f64>,
}

/// Looks for the group, and adds its rows.
pub(super) fn search(
    on: &Changing<'_>,
    search: &Search,
    measured: &mut Measured,
    progress: &dyn Progress,
) -> Result<()> {
    let Subject { model, task } = on.on;
    let all: Vec<Head> = model.spec.heads().collect();
    let alone =
        |heads: &[Head]| -> Vec<Vec<Head>> { heads.iter().map(|&head| vec![head]).collect() };
    let unchanged = seen(on, &[], &[], progress)?.0;
    let before = singular(&unchanged, search.rank);
    let angle = |seen: &Seen| principal_angle(&before, &singular(&seen.states, search.rank));
    let mut chosen: Vec<Head> = Vec::new();
    let mut unused = all.clone();
    // Of every way to change heads: what it is called, its step, the last head, and what was seen.
    let mut groups: Vec<Group> = vec![Group {
        name: "unchanged",
        step: 0,
        heads: vec![Vec::new()],
        angles: Vec::new(),
        kl: Vec::new(),
    }];
    let mut rng = ChaCha8Rng::seed_from_u64(on.seed);
    for step in 1..=search.steps {
        stop_if_asked(progress)?;
        let (_, candidates) = seen(on, &chosen, &alone(&unused), progress)?;
        let angles: Vec<f64> = candidates.iter().map(&angle).collect();
        if step == 1 {
            let cells = all.iter().map(|&(layer, head)| Cell {
                measure: Some(ANGLE.into()),
                ..of_head(layer, head)
            });
            append_facts(measured, cells.collect(), &angles);
        }
        let best = (0..unused.len())
            .max_by(|&a, &b| angles[a].total_cmp(&angles[b]).then(b.cmp(&a)))
            .expect("fewer steps than heads");
        chosen.push(unused.remove(best));
        groups.push(Group {
            name: "chosen",
            step,
            heads: vec![chosen.clone()],
            angles: vec![angles[best]],
            kl: candidates[best].kl.clone(),
        });
        if search.draws > 0 {
            let draw = |_| {
                let drawn = sample(&mut rng, all.len(), step);
                drawn.into_iter().map(|at| all[at]).collect()
            };
            let heads: Vec<Vec<Head>> = (0..search.draws).map(draw).collect();
            let (_, random) = seen(on, &[], &heads, progress)?;
            let of_prompt =
                |i: usize| mean(&random.iter().map(|one| one.kl[i]).collect::<Vec<_>>());
            groups.push(Group {
                name: "random",
                step,
                kl: (0..task.pairs().len()).map(of_prompt).collect(),
                angles: random.iter().map(&angle).collect(),
                heads,
            });
        }
    }
    tell(on, search, &groups, measured, progress)?;
    measured
        .found
        .insert("chosen".into(), json!(names(&chosen)));
    Ok(())
}

/// Heads that were changed together, once or several times over.
struct Group {
    name: &'static str,
    step: usize,
    heads: Vec<Vec<Head>>,
    angles: Vec<f64>,
    /// By prompt, the mean over times.
    kl: Vec<f64>,
}

fn names(heads: &[Head]) -> Vec<String> {
    let node = |&(layer, head): &Head| Node::Head { layer, head }.to_string();
    heads.iter().map(node).collect()
}

/// Values that all prompts make together: each has them, and there is no interval.
fn append_facts(measured: &mut Measured, cells: Vec<Cell>, values: &[f64]) {
    let n = cells.len();
    // A score is the value less the run's own metric.
    let all = |clean: f64| values.iter().map(|value| Some(clean + value)).collect();
    let first = measured.append(cells, |_, one| all(one.clean));
    measured
        .intervals
        .extend((first..first + n).map(|cell| (cell, None)));
}

/// Adds the rows of groups.
fn tell(
    on: &Changing<'_>,
    search: &Search,
    groups: &[Group],
    measured: &mut Measured,
    progress: &dyn Progress,
) -> Result<()> {
    let task = on.on.task;
    let cell = |group: &Group, measure: &str| Cell {
        component: group.name.into(),
        src: Some(group.step.to_string()),
        dst: match (group.name, group.heads[0].last()) {
            ("chosen", Some(_)) => names(&group.heads[0]).pop(),
            _ => None,
        },
        measure: Some(measure.into()),
        ..Cell::default()
    };
    let turned: Vec<&Group> = groups.iter().filter(|group| group.step > 0).collect();
    let cells = turned
        .iter()
        .map(|group| cell(group, GROUP_ANGLE))
        .collect();
    let angles: Vec<f64> = turned.iter().map(|group| mean(&group.angles)).collect();
    append_facts(measured, cells, &angles);
    let place = |example: usize| task.pairs().iter().position(|pair| pair.index == example);
    // A score is the value less the run's own metric, so that of a measure beside it is put on top of that.
    let mut add = |measure: &str, groups: &[&Group], values: &[Vec<f64>]| {
        let cells = groups.iter().map(|group| cell(group, measure)).collect();
        measured.append(cells, |_, one| {
            let at = place(one.example);
            let of = |values: &Vec<f64>| Some(one.clean + values[at?]);
            values.iter().map(of).collect()
        });
    };
    let kl: Vec<Vec<f64>> = turned.iter().map(|group| group.kl.clone()).collect();
    add(GROUP_KL, &turned, &kl);
    let all: Vec<&Group> = groups.iter().collect();
    let over_heads = |of: &dyn Fn(&[Head]) -> Result<Vec<f64>>| -> Result<Vec<Vec<f64>>> {
        let of_group = |group: &&Group| -> Result<Vec<f64>> {
            let mut sums = vec![0.0; task.pairs().len()];
            for heads in &group.heads {
                stop_if_asked(progress)?;
                let values = of(heads)?;
                sums.iter_mut().zip(values).for_each(|(sum, of)| *sum += of);
            }
            Ok(sums
                .iter()
                .map(|sum| sum / group.heads.len() as f64)
                .collect())
        };
        all.iter().map(of_group).collect()
    };
    if !search.decline.is_empty() {
        let values = over_heads(&|heads| declining(on, &search.decline, heads))?;
        add(DECLINE, &all, &values);
    }
    if !search.refusals.is_empty() {
        let values =
            over_heads(&|heads| refusing(on, &search.refusals, search.answer_tokens, heads))?;
        add(REFUSES, &all, &values);
    }
    let last = turned.iter().rfind(|group| group.name == "chosen");
    measured.notes.push(format!(
        "chosen one after the other: {}; the angle is that of the first {} over {} prompts",
        last.map_or(String::new(), |group| names(&group.heads[0]).join(", ")),
        match search.rank {
            1 => "left singular vector".into(),
            n => format!("{n} left singular vectors (the sum of principal angles)"),
        },
        task.pairs().len(),
    ));
    if let Some(random) = turned.iter().rfind(|group| group.name == "random") {
        let ends = random
            .angles
            .iter()
            .fold((f64::INFINITY, 0.0f64), |(low, high), &of| {
                (low.min(of), high.max(of))
            });
        measured.notes.push(format!(
            "{} random groups of {} heads turn by {:.3} to {:.3} degrees",
            random.heads.len(),
            random.step,
            ends.0,
            ends.1
        ));
    }
    Ok(())
}

/// What is seen with heads changed, and with each of some groups changed beside them, through the engine.
fn seen(
    on: &Changing<'_>,
    changed: &[Head],
    groups: &[Vec<Head>],
    progress: &dyn Progress,
) -> Result<(DMatrix<f64>, Vec<Seen>)> {
    let Subject { model, task } = on.on;
    let (n, width) = (task.pairs().len(), model.spec.d_model);
    let last = [
        Hook::global(Kind::Normalized(Ln::Final)),
        Hook::at(Kind::ResidPost, model.spec.n_layers - 1),
    ];
    let hook = last
        .into_iter()
        .find(|hook| hook.absent(&model.spec).is_none());
    let hook = hook.expect("every model has a stream");
    let options = SweepOptions {
        memory: on.running.memory_now(),
        ..SweepOptions::default()
    };
    let mut unchanged = DMatrix::zeros(n, width);
    let empty = || Seen {
        states: DMatrix::zeros(n, width),
        kl: vec![0.0; n],
    };
    let mut found: Vec<Seen> = groups.iter().map(|_| empty()).collect();
    for items in task.batches(on.running.batch) {
        stop_if_asked(progress)?;
        let prompts = clean_prompts(&pairs_of(task, &items));
        let targets = targets_of(&pairs_of(task, &items));
        let plain = BaseRun::new(
            model,
            prompts.clone(),
            vec![],
            vec![],
            Default::default(),
            &[],
        )?;
        let readout = Readout {
            metric: Metric::Kl,
            reference: Some(plain.logits(model, &targets)?),
            targets,
        };
        let changes = on.edits(changed);
        let request = Request {
            edits: &changes,
            sources: on.sources.clone(),
            capture: &[hook],
            logits: Logits::None,
            ..Request::default()
        };
        let own = run(model, &prompts, &request)?.cache.get(hook)?; // [prompt, pos, d_model]
        let base = BaseRun::new(
            model,
            prompts,
            vec![],
            changes.clone(),
            on.sources.clone(),
            &[on.kind],
        )?;
        let variants: Vec<Variant> = groups
            .iter()
            .flat_map(|group| {
                let edits = on.edits(group);
                (0..items.len()).map(move |example| Variant {
                    example,
                    edits: edits.clone(),
                })
            })
            .collect();
        let (values, captured) = sweep_with_capture(
            model,
            &base,
            &variants,
            &on.sources,
            &readout,
            &[hook],
            &options,
            &Quiet,
        )?;
        for (i, &item) in items.iter().enumerate() {
            let end = readout.targets[i].positions(base.length).start;
            let own: Vec<f32> = own.get(i)?.get(end)?.to_dtype(DType::F32)?.to_vec1()?;
            set_row(&mut unchanged, item, &own);
            for (group, found) in found.iter_mut().enumerate() {
                let variant = group * items.len() + i;
                found.kl[item] = values[variant];
                let carried = captured.get(variant, hook).and_then(|(positions, t)| {
                    let at = positions.iter().position(|&pos| pos as usize == end)?;
                    Some(t.get(at))
                });
                match carried {
                    Some(row) => {
                        let row: Vec<f32> = row?.to_dtype(DType::F32)?.to_vec1()?;
                        set_row(&mut found.states, item, &row);
                    }
                    // Nothing of what changed reaches the end.
                    None => set_row(&mut found.states, item, &own),
                }
            }
        }
    }
    Ok((unchanged, found))
}

fn set_row(states: &mut DMatrix<f64>, row: usize, values: &[f32]) {
    for (at, value) in values.iter().enumerate() {
        states[(row, at)] = f64::from(*value);
    }
}
