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

mod heads;
mod labels;
mod settings;

use candle_core::Tensor;
use serde_json::{Value, json};

use heads::{names, random_sets, zeroed};
use labels::{Decoded, Shown, among, calibrated, index_of, labels, least};
use settings::{MATCHING, SETTINGS, Setting, cells};

use super::NEEDS_DECODER;
use super::lens::{normed_at, streams};
use super::readout::every_layer;
use super::vocabulary::{Look, read};
use crate::error::{Error, Result};
use crate::hooks::{Edit, Hook, Kind, Node};
use crate::methods::captured::{captured, captured_bytes};
use crate::methods::columns::Columns;
use crate::methods::method::{
    Cost, Method, Needs, Preparation, Prepared, Running, Subject, Unit, clean_prompts, pairs_of,
    stop_if_asked,
};
use crate::model::ModelSpec;
use crate::nn::embed::unembed_columns;
use crate::run::{Cache, Progress};
use crate::scores::statistics::mean;
use crate::scores::{
    Cell, Direction, ExampleScores, LayerColumn, Layers, Lists, Measured, ScoresMeta, View,
};
use crate::task::{Pair, Task};

/// What to decode and to ablate.
///
/// Rows: for each stream `gap`, calibrated accuracy after true less after false demonstrations; and for each setting
/// (`target`) `accuracy_calibrated`, `accuracy` (the true label is the likeliest label), `labels_on_top` (the likeliest tokens
/// are the labels) and `label_mass`; after false ones `follows_demonstrations`. For each head `prefix_matching`. For each ablated
/// set `gap_ablated`, the gap of the last layer without it.
/// # Units
/// `score`: fractions of inputs; `prefix_matching`: attention.
#[derive(Debug, Clone, PartialEq)]
pub struct EarlyConfig {
    /// Heads ablated together: those with the highest prefix-matching scores.
    pub heads: usize,
    /// Random sets of as many heads of the same layers, each ablated as a control.
    pub controls: usize,
    /// Of the controls and the bootstrap [default: the task's].
    pub seed: Option<u64>,
}

impl Default for EarlyConfig {
    fn default() -> Self {
        EarlyConfig {
            heads: 5,
            controls: 10,
            seed: None,
        }
    }
}

impl EarlyConfig {
    fn seed(&self, task: &Task) -> u64 {
        self.seed.unwrap_or(task.seed)
    }
}

impl Method for EarlyConfig {
    fn header(&self, task: &Task) -> ScoresMeta {
        ScoresMeta::new(
            "early_decoding",
            "gap",
            "fraction",
            Direction::Direct,
            self.seed(task),
        )
    }

    fn settings(&self) -> Value {
        json!({ "heads": self.heads, "controls": self.controls })
    }

    fn needs(&self, _: &Task) -> Needs {
        Needs {
            decoder: Some(NEEDS_DECODER),
            // False labels stand where the true ones do.
            aligned: true,
            ..Needs::default()
        }
    }

    fn check(&self, _: &ModelSpec, task: &Task) -> Result<()> {
        let labels = labels(task)?;
        let shows = |pair: &Pair| Shown::of(pair, &labels, task).map(drop);
        task.pairs().iter().try_for_each(shows)
    }

    /// Each layer's gap and what it is made of, the heads that were found, and the gap without them.
    fn views(&self, _: &Task) -> Vec<View> {
        let column = |title: &str, measure: &str, setting: Setting| LayerColumn {
            title: title.into(),
            measure: measure.into(),
            target: Some(setting.name().into()),
        };
        let layers = Layers {
            heading: None,
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

    fn prepare<'a>(&'a self, on: Subject<'a>, running: &'a Running) -> Preparation<'a> {
        let hooks = streams(on.model);
        let labels = labels(on.task)?;
        Ok(Box::new(Decoding {
            on,
            config: self,
            running,
            cells: cells(&hooks, &on.model.spec, labels.len()),
            hooks,
            labels,
        }))
    }
}

/// A gap of at most this has no critical layer.
const LEAST_GAP: f64 = 0.02;

/// A checked run in progress.
struct Decoding<'a> {
    on: Subject<'a>,
    config: &'a EarlyConfig,
    running: &'a Running,
    hooks: Vec<Hook>,
    /// Ascending by id.
    labels: Vec<u32>,
    cells: Vec<Cell>,
}

impl Prepared for Decoding<'_> {
    fn cells(&self) -> &[Cell] {
        &self.cells
    }

    fn bytes(&self, length: usize) -> usize {
        let model = self.on.model;
        let patterns = captured_bytes(&every_layer(model, Kind::Pattern), &model.spec, length);
        patterns + captured_bytes(&self.hooks, &model.spec, length)
    }

    /// Both prompts, and both again for each set of heads.
    fn cost(&self, unit: &Unit) -> Result<Cost> {
        // The last one says how the model does.
        let passes = 2 * (2 + self.config.controls) + 1;
        Ok(Cost::passes((unit.items.len() * passes) as f64))
    }

    fn measure(&self, unit: &Unit, _: &dyn Progress) -> Result<Vec<ExampleScores>> {
        let task = self.on.task;
        let pairs = pairs_of(task, &unit.items);
        let shown: Vec<Shown> = (pairs.iter())
            .map(|pair| Shown::of(pair, &self.labels, task))
            .collect::<Result<_>>()?;
        let patterns = every_layer(self.on.model, Kind::Pattern);
        let capture = [&self.hooks[..], &patterns].concat();
        let cache = self.run(Setting::True, &pairs, &capture, &[])?;
        let truth = self.decode(&cache, pairs.len())?;
        let of_false = self.run(Setting::False, &pairs, &self.hooks, &[])?;
        let false_ = self.decode(&of_false, pairs.len())?;
        let streams = self.hooks.len();
        let of = |setting: Setting, i: usize, stream: usize| match setting {
            Setting::True => &truth[i * streams + stream],
            Setting::False => &false_[i * streams + stream],
        };
        let mut columns = Columns::new(pairs.len());
        let mut push = |value: &dyn Fn(usize) -> f64| columns.push_some(|i| Some(value(i)));
        let is = |yes: bool| f64::from(u8::from(yes));
        for stream in 0..streams {
            for setting in SETTINGS {
                let one = |i: usize| of(setting, i, stream);
                push(&|i| is(one(i).best() == shown[i].truth));
                push(&|i| is(one(i).on_top));
                push(&|i| one(i).mass);
            }
            let follows =
                |i: usize| Some(of(Setting::False, i, stream).best()) == shown[i].false_label;
            push(&|i| is(follows(i)));
        }
        for hook in patterns {
            let last = cache.length - 1;
            let pattern = cache.get(hook)?.narrow(2, last, 1)?.squeeze(2)?;
            let pattern: Vec<Vec<Vec<f32>>> = pattern.to_vec3()?; // [pair, head, key]
            #[expect(clippy::needless_range_loop, reason = "heads are the inner axis")]
            for head in 0..self.on.model.spec.n_heads {
                push(&|i| shown[i].matching(&pattern[i][head], self.labels.len()));
            }
        }
        for stream in 0..streams {
            for setting in SETTINGS {
                for label in 0..self.labels.len() {
                    push(&|i| of(setting, i, stream).of_labels[label]);
                }
            }
        }
        // Whether the model is right is told by all inputs together.
        Ok(columns.into_examples_without_metric(task, &unit.items))
    }

    fn conclude(&self, measured: &mut Measured, progress: &dyn Progress) -> Result<()> {
        let truths: Vec<usize> = (self.on.task.pairs().iter())
            .map(|pair| index_of(&self.labels, pair.target.answers[0]))
            .collect();
        let of_labels = self.take_label_probabilities(measured);
        let (streams, k) = (self.hooks.len(), self.labels.len());
        // Of each stream and setting whether each input is right.
        let right = |stream: usize, setting: usize| {
            let first = (stream * SETTINGS.len() + setting) * k;
            let inputs = of_labels.iter().map(|all| &all[first..first + k]);
            calibrated(&inputs.collect::<Vec<_>>(), &truths)
        };
        let right: Vec<[Vec<f64>; 2]> = (0..streams)
            .map(|stream| [right(stream, 0), right(stream, 1)])
            .collect();
        let mut cells = Vec::new();
        for hook in &self.hooks {
            cells.push(Cell::in_layer(hook.kind.name(), hook.layer.unwrap_or(0)));
            cells.extend(SETTINGS.map(|setting| setting.cell(*hook, "accuracy_calibrated")));
        }
        measured.append(cells, |i, _| {
            let of = |[truth, false_]: &[Vec<f64>; 2]| [truth[i] - false_[i], truth[i], false_[i]];
            right.iter().flat_map(of).map(Some).collect()
        });
        let last = &right[streams - 1][0];
        for (example, &right) in measured.examples.iter_mut().zip(last) {
            (example.clean, example.corrupted) = (right, right);
        }
        let gaps: Vec<f64> = (right.iter())
            .map(|[truth, false_]| mean(truth) - mean(false_))
            .collect();
        measured.notes.push(critical_layer(&self.hooks, &gaps));
        self.ablate(measured, &truths, gaps[streams - 1], progress)
    }
}

impl Decoding<'_> {
    /// Takes out of each example the probabilities of the labels, which stand last.
    fn take_label_probabilities(&self, measured: &mut Measured) -> Vec<Vec<f64>> {
        let count = self.hooks.len() * SETTINGS.len() * self.labels.len();
        measured.cells.truncate(self.cells.len() - count);
        let take = |one: &mut ExampleScores| {
            let rest = one.values.len() - count;
            one.cells = one.cells[..rest].into();
            one.values.split_off(rest)
        };
        measured.examples.iter_mut().map(take).collect()
    }

    /// The heads with the highest prefix matching and random ones, ablated.
    fn ablate(
        &self,
        measured: &mut Measured,
        truths: &[usize],
        gap: f64,
        progress: &dyn Progress,
    ) -> Result<()> {
        let Subject { model, task } = self.on;
        let means = measured.means(Direction::Direct, false);
        let is_matching = |cell: &Cell| cell.measure.as_deref() == Some(MATCHING);
        let mut heads: Vec<(f64, Node)> = (measured.cells.iter().zip(means))
            .filter(|(cell, _)| is_matching(cell))
            .zip(Node::heads(&model.spec))
            .map(|((_, mean), head)| (mean, head))
            .collect();
        heads.sort_by(|(a, _), (b, _)| b.total_cmp(a));
        heads.truncate(self.config.heads);
        let chosen: Vec<Node> = heads.into_iter().map(|(_, head)| head).collect();
        if chosen.is_empty() {
            return Ok(());
        }
        let mut sets = vec![("false induction heads".to_string(), chosen.clone())];
        let seed = self.config.seed(task);
        sets.extend(random_sets(
            &chosen,
            model.spec.n_heads,
            seed,
            self.config.controls,
        ));
        let steps = sets.len() * SETTINGS.len() * task.pairs().len();
        progress.start("ablating heads", steps as u64);
        let (mut cells, mut gaps) = (Vec::new(), Vec::new());
        for (name, set) in sets {
            let edits = zeroed(&set);
            let right = SETTINGS.map(|setting| {
                let of_labels = self.labels_of_all(setting, &edits, progress)?;
                let inputs: Vec<&[f64]> = of_labels.iter().map(Vec::as_slice).collect();
                Ok::<_, Error>(calibrated(&inputs, truths))
            });
            let [truth, false_] = right;
            let (truth, false_) = (truth?, false_?);
            gaps.push(differences(&truth, &false_));
            cells.push(Cell {
                component: "ablated heads".into(),
                src: Some(name),
                dst: Some(names(&set)),
                measure: Some("gap_ablated".into()),
                ..Cell::default()
            });
        }
        progress.finish();
        measured.append(cells, |i, _| gaps.iter().map(|gap| Some(gap[i])).collect());
        let reductions: Vec<f64> = gaps.iter().map(|left| 1.0 - mean(left) / gap).collect();
        if gap.abs() > LEAST_GAP && reductions.len() > 1 {
            let controls = &reductions[1..];
            measured.notes.push(format!(
                "ablating {} takes {:.2} of the gap away; random heads of the same layers {:.2} (mean of {} draws); \
                 the heads were chosen on these prompts, so measure on others before believing it",
                names(&chosen),
                reductions[0],
                mean(controls),
                controls.len()
            ));
        }
        Ok(())
    }

    fn run(
        &self,
        setting: Setting,
        pairs: &[&Pair],
        capture: &[Hook],
        edits: &[Edit],
    ) -> Result<Cache> {
        let prompts = match setting {
            Setting::True => clean_prompts(pairs),
            Setting::False => pairs.iter().map(|pair| pair.corrupted.clone()).collect(),
        };
        captured(self.on.model, &prompts, capture, edits)
    }

    /// The streams at the end of each prompt as the unembedding reads them: `[prompt * stream, d_model]`.
    fn ends(&self, cache: &Cache, prompts: usize, hooks: &[Hook]) -> Result<Tensor> {
        let end = |i: usize| ((i + 1) * cache.length - 1) as u32;
        let rows: Vec<u32> = (0..prompts).map(end).collect();
        normed_at(self.on.model, cache, hooks, &rows)
    }

    /// Each input of a batch after each stream: `[prompt * stream]`.
    fn decode(&self, cache: &Cache, prompts: usize) -> Result<Vec<Decoded>> {
        let normed = self.ends(cache, prompts, &self.hooks)?;
        let look = Look {
            columns: &self.labels,
            watched: self.labels.len(),
            is_end: false,
        };
        let looks = vec![look; prompts];
        let read = read(
            self.on.model,
            &normed,
            self.hooks.len(),
            &looks,
            least,
            None,
        )?;
        Ok(read.iter().map(Decoded::of).collect())
    }

    /// The labels' probabilities among themselves in the last stream, for each pair of the task.
    fn labels_of_all(
        &self,
        setting: Setting,
        edits: &[Edit],
        progress: &dyn Progress,
    ) -> Result<Vec<Vec<f64>>> {
        let Subject { model, task } = self.on;
        let last = &self.hooks[self.hooks.len() - 1..];
        let mut all = vec![Vec::new(); task.pairs().len()];
        for unit in self.units(task, self.running) {
            stop_if_asked(progress)?;
            let pairs = pairs_of(task, &unit.items);
            let cache = self.run(setting, &pairs, last, edits)?;
            let normed = self.ends(&cache, pairs.len(), last)?;
            let columns = vec![&self.labels[..]; pairs.len()];
            let logits = unembed_columns(&model.spec, &model.weights, &normed, &columns)?;
            for (&item, logits) in unit.items.iter().zip(&logits) {
                all[item] = among(logits);
            }
            progress.advance(pairs.len() as u64);
        }
        Ok(all)
    }
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
