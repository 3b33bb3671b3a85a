//! Early decoding under true and false demonstrations, and the false induction heads behind the difference.
//!
//! A prompt shows demonstrations with labels and asks for the label of one more input. With false labels the model follows
//! them only in its later layers: decoded early it still gives the true answer. The clean prompt of a pair has the true
//! labels, the corrupted one the false ones; the answer is the true label of the query, the wrong answers are all others.
//!
//! After each layer the last position is decoded with the lens, and the labels' probabilities are renormalised among
//! themselves. Calibrated accuracy compares the true label with its own quantile over all inputs (`(K-1)/K` for K labels), so
//! that a label which is likely everywhere does not count as right everywhere. The heads that attend from the last position
//! to earlier labels of the query's class are found by prefix matching and ablated; random heads of the same layers are the
//! control.
//!
//! Source: Halawi, Denain and Steinhardt 2023, "Overthinking the truth", arXiv 2307.09476. A gap of at most 0.02 has no
//! critical layer, which is our choice.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Instant;

use candle_core::Tensor;
use rand::SeedableRng;
use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;
use serde_json::json;

use super::lens::{decode, streams};
use super::readout::every_layer;
use super::{BATCH, in_layer, provenance, unmeasured};
use crate::error::{Error, Result};
use crate::hooks::{Edit, Hook, Kind, Op, Pos, Site};
use crate::model::Model;
use crate::run::{Logits, Progress, Request, run};
use crate::scores::{
    Cell, Detail, Direction, ExampleScores, LayerColumn, Layers, Lists, Scores, ScoresMeta, View,
};
use crate::task::{Pair, Task};

/// What to decode and to ablate.
#[derive(Debug, Clone)]
pub struct EarlyConfig {
    /// Heads ablated together: those with the highest prefix-matching scores.
    pub heads: usize,
    /// Random sets of as many heads of the same layers, each ablated as a control.
    pub controls: usize,
    pub detail: Detail,
    pub seed: u64,
}

impl Default for EarlyConfig {
    fn default() -> Self {
        EarlyConfig {
            heads: 5,
            controls: 10,
            detail: Detail::Mean,
            seed: 0,
        }
    }
}

impl EarlyConfig {
    /// # Errors
    /// [`Error::BadTask`] if the pairs do not share one set of labels, or a prompt shows none of them.
    pub fn check(&self, task: &Task) -> Result<()> {
        shown_labels(task, &labels(task)?).map(drop)
    }
}

/// A gap of at most this has no critical layer.
const LEAST_GAP: f64 = 0.02;

/// Early decoding of every layer and the effect of the heads with the highest prefix matching.
///
/// Rows: for each stream `gap`, calibrated accuracy after true less after false demonstrations; and for each setting
/// (`target`) `accuracy_calibrated`, `accuracy` (the true label is the likeliest label), `labels_on_top` (the likeliest tokens
/// are the labels) and `label_mass`; after false ones `follows_demonstrations`. For each head `prefix_matching`. For each ablated
/// set `gap_ablated`, the gap of the last layer without it.
/// # Units
/// `score`: fractions of inputs; `prefix_matching`: attention.
/// # Errors
/// [`Error::BadTask`] if the pairs do not share one set of labels, or a prompt shows none of them.
pub fn early_decoding(
    model: &Model,
    task: &Task,
    config: &EarlyConfig,
    progress: &dyn Progress,
) -> Result<Scores> {
    model
        .spec
        .check_decoder("direct logit attribution and lenses")?;
    let labels = labels(task)?;
    let shown = shown_labels(task, &labels)?;
    let began = Instant::now();
    let hooks = streams(model);
    let n = task.pairs().len();
    let passes = 2 * (2 + config.controls) as u64;
    progress.start("decoding", passes * n as u64);
    let decoded =
        SETTINGS.map(|setting| decode_all(model, task, setting, &labels, &hooks, &[], progress));
    let [truth, false_] = decoded;
    let (truth, false_) = (truth?, false_?);

    let mut table = Table::new(n);
    let last = hooks.len() - 1;
    let mut gaps = Vec::new();
    for (layer, hook) in hooks.iter().enumerate() {
        let cell = |measure: Option<&str>, target: Option<&str>| Cell {
            measure: measure.map(String::from),
            target: target.map(String::from),
            ..in_layer(hook.kind.name(), hook.layer.unwrap_or(0))
        };
        let right = [&truth, &false_].map(|run| calibrated(&run[layer], &labels, task));
        let gap = differences(&right[0], &right[1]);
        gaps.push(mean(&gap));
        table.add(cell(None, None), gap);
        for ((setting, run), right) in SETTINGS.iter().zip([&truth, &false_]).zip(right) {
            let add = |measure: &str, values: Vec<f64>, table: &mut Table| {
                table.add(cell(Some(measure), Some(setting.name())), values)
            };
            add("accuracy_calibrated", right, &mut table);
            let of = |read: &dyn Fn(usize, &Decoded) -> f64| {
                let inputs = run[layer].iter().enumerate();
                inputs.map(|(i, one)| read(i, one)).collect::<Vec<f64>>()
            };
            let truth_of = |i: usize| index_of(&labels, task.pairs()[i].target.answers[0]);
            let is = |yes: bool| f64::from(u8::from(yes));
            add(
                "accuracy",
                of(&|i, one| is(one.best() == truth_of(i))),
                &mut table,
            );
            add("labels_on_top", of(&|_, one| is(one.on_top)), &mut table);
            add("label_mass", of(&|_, one| one.mass), &mut table);
            if *setting == Setting::False {
                let followed = of(&|i, one| is(Some(one.best()) == shown[i].false_label));
                add("follows_demonstrations", followed, &mut table);
            }
        }
    }
    let matching = prefix_matching(model, task, &shown, &labels)?;
    let mut heads: Vec<(f64, usize)> = Vec::new();
    for (head, values) in matching.into_iter().enumerate() {
        heads.push((mean(&values), head));
        let cell = Cell {
            head: Some((head % model.spec.n_heads) as u32),
            measure: Some("prefix_matching".into()),
            ..in_layer(Kind::Pattern.name(), head / model.spec.n_heads)
        };
        table.add(cell, values);
    }
    heads.sort_by(|(a, _), (b, _)| b.total_cmp(a));
    let chosen: Vec<usize> = heads
        .iter()
        .take(config.heads)
        .map(|(_, head)| *head)
        .collect();
    let mut sets = vec![("false induction heads".to_string(), chosen.clone())];
    sets.extend(random_sets(model, &chosen, config));
    let mut notes = vec![critical_layer(&hooks, &gaps)];
    let mut reductions = Vec::new();
    for (name, set) in sets {
        let edits = zeroed(model, &set);
        let last_hook = &hooks[last..];
        let [with_truth, with_false] = SETTINGS
            .map(|setting| decode_all(model, task, setting, &labels, last_hook, &edits, progress));
        let (with_truth, with_false) = (with_truth?, with_false?);
        let right = [&with_truth, &with_false].map(|run| calibrated(&run[0], &labels, task));
        let gap = differences(&right[0], &right[1]);
        reductions.push(1.0 - mean(&gap) / gaps[last]);
        let cell = Cell {
            component: "ablated heads".into(),
            src: Some(name),
            dst: Some(names(model, &set)),
            measure: Some("gap_ablated".into()),
            ..Cell::default()
        };
        table.add(cell, gap);
    }
    progress.finish();
    if gaps[last].abs() > LEAST_GAP && reductions.len() > 1 {
        let controls = &reductions[1..];
        notes.push(format!(
            "ablating {} takes {:.2} of the gap away; random heads of the same layers {:.2} (mean of {} draws); \
             the heads were chosen on these prompts, so measure on others before believing it",
            names(model, &chosen),
            reductions[0],
            mean(controls),
            controls.len()
        ));
    }
    let settings = json!({ "heads": config.heads, "controls": config.controls });
    let mut provenance = provenance(model, task, settings, began.elapsed().as_secs_f64());
    provenance.notes = notes;
    provenance.views = views();
    let meta = ScoresMeta {
        method: "early_decoding".into(),
        metric: "gap".into(),
        unit: "fraction".into(),
        direction: Direction::Direct,
        seed: config.seed,
    };
    let (cells, examples) = table.finish(task, &truth[last], &labels);
    Scores::assemble(&cells, &examples, &meta, config.detail, provenance)
}

/// Each layer's gap and what it is made of, the heads that were found, and the gap without them.
fn views() -> Vec<View> {
    let column = |title: &str, measure: &str, setting: Setting| LayerColumn {
        title: title.into(),
        measure: measure.into(),
        target: Some(setting.name().into()),
    };
    let layers = Layers {
        columns: vec![
            LayerColumn::of("gap"),
            column("right after true", "accuracy_calibrated", Setting::True),
            column("right after false", "accuracy_calibrated", Setting::False),
            column("follows false", "follows_demonstrations", Setting::False),
        ],
        tokens: None,
    };
    let heads = Lists {
        measures: vec!["prefix_matching".into()],
        title: "attend to what followed the query's class".into(),
        item: "{head}".into(),
        highest: Some(5),
        ..Lists::default()
    };
    let ablated = Lists {
        measures: vec!["gap_ablated".into()],
        title: "gap without {src} ({dst})".into(),
        ..Lists::default()
    };
    vec![
        View::Layers(layers),
        View::Lists(heads),
        View::Lists(ablated),
    ]
}

/// Which prompts of the pairs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Setting {
    True,
    False,
}

const SETTINGS: [Setting; 2] = [Setting::True, Setting::False];

impl Setting {
    fn name(self) -> &'static str {
        match self {
            Setting::True => "true demonstrations",
            Setting::False => "false demonstrations",
        }
    }

    fn prompt(self, pair: &Pair) -> &[u32] {
        match self {
            Setting::True => &pair.clean,
            Setting::False => &pair.corrupted,
        }
    }
}

/// One input after one layer.
#[derive(Debug, Clone)]
struct Decoded {
    /// Probabilities of the labels among themselves.
    of_labels: Vec<f64>,
    /// Probability of all labels together.
    mass: f64,
    /// Whether the likeliest tokens are the labels.
    on_top: bool,
}

impl Decoded {
    fn best(&self) -> usize {
        let labels = (0..self.of_labels.len()).rev();
        let by = |a: &usize, b: &usize| self.of_labels[*a].total_cmp(&self.of_labels[*b]);
        labels.max_by(by).expect("there are at least two labels")
    }

    /// From the logits of the whole vocabulary.
    fn read(logits: &[f32], labels: &[u32]) -> Self {
        let of = |&id: &u32| f64::from(logits[id as usize]);
        let largest = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let shifted = |logit: f64| (logit - f64::from(largest)).exp();
        let all: f64 = logits.iter().map(|&l| shifted(f64::from(l))).sum();
        let least = labels.iter().map(of).fold(f64::INFINITY, f64::min);
        let above = logits.iter().filter(|&&l| f64::from(l) >= least).count();
        let highest = labels.iter().map(of).fold(f64::NEG_INFINITY, f64::max);
        let among: Vec<f64> = labels.iter().map(|id| (of(id) - highest).exp()).collect();
        let sum: f64 = among.iter().sum();
        Decoded {
            of_labels: among.iter().map(|p| p / sum).collect(),
            mass: labels.iter().map(|id| shifted(of(id))).sum::<f64>() / all,
            on_top: above == labels.len(),
        }
    }
}

/// The labels, ascending by id.
fn labels(task: &Task) -> Result<Vec<u32>> {
    let of = |pair: &Pair| {
        let mut labels = pair.target.columns();
        labels.sort_unstable();
        labels.dedup();
        labels
    };
    let first = of(&task.pairs()[0]);
    for pair in task.pairs() {
        if pair.target.answers.len() != 1 || of(pair) != first || first.len() < 2 {
            return Err(Error::BadTask {
                task: task.name.clone(),
                reason: format!(
                    "early decoding needs one true label and all other labels as wrong answers in every pair; pair {} has {} and {}",
                    pair.index,
                    pair.target.answers.len(),
                    pair.target.wrong.len()
                ),
            });
        }
    }
    Ok(first)
}

/// What a pair's demonstrations show.
struct Shown {
    /// Positions of labels before the last token, with the index of the true label there.
    positions: Vec<(usize, usize)>,
    /// What false demonstrations call the query's class most often.
    false_label: Option<usize>,
}

fn shown_labels(task: &Task, labels: &[u32]) -> Result<Vec<Shown>> {
    let one = |pair: &Pair| {
        let before = &pair.clean[..pair.clean.len() - 1];
        let positions: Vec<(usize, usize)> = (before.iter().enumerate())
            .filter_map(|(pos, id)| Some((pos, labels.binary_search(id).ok()?)))
            .collect();
        let truth = index_of(labels, pair.target.answers[0]);
        let mut counts: BTreeMap<usize, usize> = BTreeMap::new();
        for (pos, _) in positions.iter().filter(|(_, label)| *label == truth) {
            if let Ok(label) = labels.binary_search(&pair.corrupted[*pos]) {
                *counts.entry(label).or_default() += 1;
            }
        }
        let most = counts
            .into_iter()
            .max_by_key(|(label, n)| (*n, usize::MAX - label));
        match positions.is_empty() {
            false => Ok(Shown {
                positions,
                false_label: most.map(|(label, _)| label),
            }),
            true => Err(Error::BadTask {
                task: task.name.clone(),
                reason: format!("the clean prompt of pair {} shows no label", pair.index),
            }),
        }
    };
    task.pairs().iter().map(one).collect()
}

fn index_of(labels: &[u32], id: u32) -> usize {
    labels
        .binary_search(&id)
        .expect("every answer is one of the labels")
}

/// Every input in one setting, after each of some streams: `[stream][pair]`.
fn decode_all(
    model: &Model,
    task: &Task,
    setting: Setting,
    labels: &[u32],
    hooks: &[Hook],
    edits: &[Edit],
    progress: &dyn Progress,
) -> Result<Vec<Vec<Decoded>>> {
    let mut decoded: Vec<Vec<Option<Decoded>>> = vec![vec![None; task.pairs().len()]; hooks.len()];
    for batch in task.batches(BATCH) {
        if progress.cancelled() {
            return Err(Error::Interrupted {
                kept: "nothing was asked to be kept".into(),
            });
        }
        let prompts = batch
            .iter()
            .map(|&pair| setting.prompt(&task.pairs()[pair]).to_vec());
        let prompts: Vec<Vec<u32>> = prompts.collect();
        let request = Request {
            edits,
            capture: hooks,
            logits: Logits::None,
            ..Request::default()
        };
        let length = prompts[0].len();
        let cache = run(model, &prompts, &request)?.cache;
        let ends: Vec<u32> = (1..=batch.len()).map(|i| (i * length - 1) as u32).collect();
        let ends = Tensor::new(ends, &model.device)?;
        for (decoded, hook) in decoded.iter_mut().zip(hooks) {
            let (logits, _) = decode(model, &cache.packed(*hook)?.index_select(&ends, 0)?)?;
            for (logits, &pair) in logits.to_vec2::<f32>()?.iter().zip(&batch) {
                decoded[pair] = Some(Decoded::read(logits, labels));
            }
        }
        progress.advance(batch.len() as u64);
    }
    let whole = |of_stream: Vec<Option<Decoded>>| {
        let inputs = of_stream.into_iter();
        inputs
            .map(|one| one.expect("every pair is in a batch"))
            .collect()
    };
    Ok(decoded.into_iter().map(whole).collect())
}

/// 1 for each input whose true label is above that label's quantile over all inputs, `1/K` at it, else 0.
fn calibrated(inputs: &[Decoded], labels: &[u32], task: &Task) -> Vec<f64> {
    let k = labels.len();
    let threshold = |label: usize| {
        let mut all: Vec<f64> = inputs.iter().map(|input| input.of_labels[label]).collect();
        all.sort_by(f64::total_cmp);
        let rank = (k - 1) as f64 / k as f64 * (all.len() - 1) as f64;
        let (below, above) = (all[rank.floor() as usize], all[rank.ceil() as usize]);
        below + (rank - rank.floor()) * (above - below)
    };
    let thresholds: Vec<f64> = (0..k).map(threshold).collect();
    let right = |(input, pair): (&Decoded, &Pair)| {
        let truth = index_of(labels, pair.target.answers[0]);
        match input.of_labels[truth].total_cmp(&thresholds[truth]) {
            std::cmp::Ordering::Greater => 1.0,
            std::cmp::Ordering::Equal => 1.0 / k as f64,
            std::cmp::Ordering::Less => 0.0,
        }
    };
    inputs.iter().zip(task.pairs()).map(right).collect()
}

/// For each head and pair: attention from the last position to labels of the query's class, less that to the others (over K-1).
/// # Shapes
/// Gives `[layer * n_heads + head][pair]`.
fn prefix_matching(
    model: &Model,
    task: &Task,
    shown: &[Shown],
    labels: &[u32],
) -> Result<Vec<Vec<f64>>> {
    let spec = &model.spec;
    let capture = every_layer(model, Kind::Pattern);
    let mut scores = vec![vec![0.0; task.pairs().len()]; spec.n_layers * spec.n_heads];
    for batch in task.batches(BATCH) {
        let prompts: Vec<Vec<u32>> = batch
            .iter()
            .map(|&i| task.pairs()[i].clean.clone())
            .collect();
        let length = prompts[0].len();
        let request = Request {
            capture: &capture,
            logits: Logits::None,
            ..Request::default()
        };
        let cache = run(model, &prompts, &request)?.cache;
        for (layer, &hook) in capture.iter().enumerate() {
            let pattern = cache.get(hook)?.narrow(2, length - 1, 1)?.squeeze(2)?;
            let pattern: Vec<Vec<Vec<f32>>> = pattern.to_vec3()?; // [batch, n_heads, key]
            for (&pair, heads) in batch.iter().zip(pattern) {
                let truth = index_of(labels, task.pairs()[pair].target.answers[0]);
                for (head, row) in heads.iter().enumerate() {
                    let at = |pos: usize, label: usize| match label == truth {
                        true => f64::from(row[pos]),
                        false => -f64::from(row[pos]) / (labels.len() - 1) as f64,
                    };
                    let positions = shown[pair].positions.iter();
                    scores[layer * spec.n_heads + head][pair] =
                        positions.map(|&(pos, label)| at(pos, label)).sum();
                }
            }
        }
    }
    Ok(scores)
}

/// Sets of as many heads, drawn from the layers of `chosen`.
fn random_sets(model: &Model, chosen: &[usize], config: &EarlyConfig) -> Vec<(String, Vec<usize>)> {
    let n_heads = model.spec.n_heads;
    let mut rng = ChaCha8Rng::seed_from_u64(config.seed);
    let mut draw = |_| {
        let mut set = Vec::new();
        let mut layers: Vec<usize> = chosen.iter().map(|head| head / n_heads).collect();
        layers.sort_unstable();
        for layers in layers.chunk_by(|a, b| a == b) {
            let mut heads: Vec<usize> = (0..n_heads).map(|h| layers[0] * n_heads + h).collect();
            // The chosen ones come last: they are taken only where a layer has no others left.
            heads.shuffle(&mut rng);
            heads.sort_by_key(|head| chosen.contains(head));
            set.extend(&heads[..layers.len()]);
        }
        set
    };
    (0..config.controls)
        .map(|i| (format!("random heads {i}"), draw(i)))
        .collect()
}

/// Heads silenced at the last position.
fn zeroed(model: &Model, heads: &[usize]) -> Vec<Edit> {
    let n_heads = model.spec.n_heads;
    let one = |&head: &usize| {
        let site = Site::all(Hook::at(Kind::Z, head / n_heads)).heads([head % n_heads]);
        Edit::new(site.at_positions([Pos::FromEnd(1)]), Op::Zero)
    };
    heads.iter().map(one).collect()
}

fn names(model: &Model, heads: &[usize]) -> String {
    let n_heads = model.spec.n_heads;
    let name = |head: &usize| format!("a{}.h{}", head / n_heads, head % n_heads);
    heads.iter().map(name).collect::<Vec<_>>().join(" ")
}

/// The first layer with half of the last one's gap.
fn critical_layer(hooks: &[Hook], gaps: &[f64]) -> String {
    let last = gaps[gaps.len() - 1];
    if last <= LEAST_GAP {
        return format!("no critical layer: the gap at the last layer is {last:.3}");
    }
    let first = gaps.iter().position(|&gap| gap >= last / 2.0);
    let layer = first.expect("the last layer has the whole gap");
    format!(
        "critical layer: {}, where the gap is {:.3} of {last:.3} at the last",
        hooks[layer], gaps[layer]
    )
}

fn differences(a: &[f64], b: &[f64]) -> Vec<f64> {
    a.iter().zip(b).map(|(a, b)| a - b).collect()
}

fn mean(values: &[f64]) -> f64 {
    values.iter().sum::<f64>() / values.len() as f64
}

/// Rows that every pair has a value for.
struct Table {
    cells: Vec<Cell>,
    /// `[pair][cell]`
    values: Vec<Vec<f64>>,
}

impl Table {
    fn new(pairs: usize) -> Self {
        Table {
            cells: Vec::new(),
            values: vec![Vec::new(); pairs],
        }
    }

    fn add(&mut self, cell: Cell, values: Vec<f64>) {
        self.cells.push(cell);
        for (of_pair, value) in self.values.iter_mut().zip(values) {
            of_pair.push(value);
        }
    }

    /// The cells and examples; the example's metric is whether the model is right after true demonstrations.
    fn finish(
        self,
        task: &Task,
        truth: &[Decoded],
        labels: &[u32],
    ) -> (Vec<Cell>, Vec<ExampleScores>) {
        let cells: Arc<[u32]> = (0..self.cells.len() as u32).collect();
        let right = calibrated(truth, labels, task);
        let one = |((pair, values), right): ((&Pair, Vec<f64>), f64)| ExampleScores {
            cells: Arc::clone(&cells),
            values,
            ..unmeasured(task, pair, right)
        };
        let pairs = task.pairs().iter().zip(self.values).zip(right);
        (self.cells, pairs.map(one).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_are_renormalised_among_themselves() {
        // Probabilities 1/8, 1/8, 1/4, 1/2; the labels are 1 and 3.
        let logits: Vec<f32> = [1.0f32, 1.0, 2.0, 4.0].iter().map(|p| p.ln()).collect();
        let read = Decoded::read(&logits, &[1, 3]);
        let near = |a: f64, b: f64| assert!((a - b).abs() < 1e-6, "{a} against {b}");
        near(read.of_labels[0], 0.2);
        near(read.mass, 0.625);
        assert_eq!((read.best(), read.on_top), (1, false));
        assert!(Decoded::read(&logits, &[2, 3]).on_top);
    }
}
