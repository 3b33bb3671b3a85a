//! Statistics of attention heads: where each looks, whether it copies what it looks at, and what it therefore looks like.
//!
//! Most are measured on random tokens that are repeated once (`r0 ... r(n-1) r0 ... r(n-1)`), where every way of looking back
//! goes to another place: to the token before (previous token), to the same token's first time (duplicate token), or to what
//! came after that (induction, also called prefix matching). A task adds where the heads look from its last position, by role.
//!
//! The copying score asks whether the head's output at a source raises that source's own token: among the tokens of the
//! sequence, for what share of the others is the logit lower, each token's logit less its mean over sources, from -1 (it
//! always lowers it most) over 0 (chance) to 1. The eigenvalue score of Elhage et al. answers the same question about weights
//! alone; this one needs no embedding to stand for what the head really reads.
//!
//! Sources: Elhage et al. 2021, "A mathematical framework for transformer circuits"; Olsson et al. 2022, "In-context learning
//! and induction heads". Left out on purpose: composition scores, which are about pairs of heads.

mod circuits;
mod config;
mod copying;
mod roles;
mod statistic;

use serde_json::{Value, json};

pub use config::HeadConfig;
use config::ordinary;
use copying::{Sources, copying};
use roles::{Places, tokens_of_roles};
use statistic::{COPIES, LOOKS, SEES, Statistic, class, statistics};

use super::captured::{captured, captured_and_judged, captured_bytes};
use super::choice::check_range;
use super::columns::{Columns, judged};
use super::logits::check_tokens;
use super::method::{
    Cost, Method, Needs, Preparation, Prepared, Running, Subject, Unit, pairs_of, units,
};
use crate::error::{Error, Result};
use crate::hooks::{Hook, Kind, Node};
use crate::model::ModelSpec;
use crate::run::Progress;
use crate::scores::{Cell, Direction, ExampleScores, Lists, Measured, ScoresMeta, View};
use crate::task::Task;

impl Method for HeadConfig {
    fn header(&self, task: &Task) -> ScoresMeta {
        ScoresMeta::new(
            "head_statistics",
            Statistic::Induction.name(),
            "attention",
            Direction::Direct,
            self.seed(task),
        )
    }

    fn settings(&self) -> Value {
        let circuits: Vec<String> = self.circuits.iter().map(Node::to_string).collect();
        json!({
            "repeat_length": self.repeat_length,
            "samples": self.samples,
            "circuits": circuits,
            "from": self.from,
            "tokens": self.tokens,
        })
    }

    fn needs(&self, _: &Task) -> Needs {
        Needs {
            whole_answers: true,
            ..Needs::default()
        }
    }

    fn check(&self, spec: &ModelSpec, task: &Task) -> Result<()> {
        let tokenizer = task.tokenizer();
        let repeated = self.repeat_length(spec);
        let length = repeated
            .saturating_mul(2)
            .saturating_add(usize::from(tokenizer.adds_bos()));
        if repeated < 2 || length > spec.n_ctx || self.samples == 0 {
            return Err(Error::invalid(format!(
                "{} sequences of {repeated} tokens twice; take one sequence at least and two tokens at least, which must fit the context of {} (`HeadConfig::repeat_length`, `HeadConfig::samples`)",
                self.samples, spec.n_ctx
            )));
        }
        if self.samples > MOST_SAMPLES {
            return Err(Error::invalid(format!(
                "{} sequences; take at most {MOST_SAMPLES} (`HeadConfig::samples`)",
                self.samples
            )));
        }
        let ordinary = ordinary(tokenizer, spec).len();
        if ordinary < repeated {
            return Err(Error::invalid(format!(
                "the vocabulary has {ordinary} ordinary tokens, and a sequence needs {repeated} different ones (`HeadConfig::repeat_length`)"
            )));
        }
        for [layer, head] in self.heads()? {
            Hook::at(Kind::Z, layer).check(spec)?;
            check_range("head", &[head], spec.n_heads, "the model")?;
        }
        check_tokens(&self.from, spec)
    }

    /// Induction by layer and head, then the strongest heads of each kind, and the circuits that were asked for.
    fn views(&self, _: &Task) -> Vec<View> {
        let of_kind = Lists {
            heading: Some(format!(
                "the strongest heads of each kind, on repeated random tokens (a head is called after a kind from {LOOKS} on)"
            )),
            component: Some(Kind::Pattern.name().into()),
            measures: Statistic::ALL[..6]
                .iter()
                .map(|statistic| statistic.name().to_string())
                .collect(),
            title: "{measure}".into(),
            item: "{head}".into(),
            highest: Some(STRONGEST),
            ..Lists::default()
        };
        let at_roles = |measure: &str, least: f64| Lists {
            heading: Some(format!("on the task's prompts, from {least} on")),
            measures: vec![measure.into()],
            title: "{measure} {role}".into(),
            at_least: Some(least),
            ..of_kind.clone()
        };
        let looks = at_roles(ATTENTION_FROM_END, SEES);
        let copies = at_roles(COPYING_AT_ROLE, COPIES);
        let circuit = |component: &str, says: &str| Lists {
            component: Some(component.into()),
            measures: vec!["ov_logit".into(), "qk_score".into()],
            title: format!("{{head}} with {{src}} {says}"),
            item: "{dst}".into(),
            ..Lists::default()
        };
        vec![
            View::Grids,
            View::Lists(of_kind),
            View::Lists(looks),
            View::Lists(copies),
            View::Lists(circuit("attn.ov", "seen, it writes for")),
            View::Lists(circuit("attn.qk", "asking, it looks for")),
        ]
    }

    fn prepare<'a>(&'a self, on: Subject<'a>, _: &'a Running) -> Preparation<'a> {
        let (spec, roles) = (&on.model.spec, on.task.all_roles());
        let kinds = [Kind::Pattern, Kind::V];
        let hooks = |layer| kinds.map(|kind| Hook::at(kind, layer));
        Ok(Box::new(Looking {
            on,
            config: self,
            sequences: self.sequences(spec, on.task),
            repeat_length: self.repeat_length(spec),
            capture: (0..spec.n_layers).flat_map(hooks).collect(),
            cells: cells(spec, &roles),
            roles,
        }))
    }
}

/// What is measured at each role of the task: attention from the last position, and the copying score there, among the
/// tokens at all roles of the prompt.
const ATTENTION_FROM_END: &str = "attention_from_end";
const COPYING_AT_ROLE: &str = "copying_at_role";

/// More sequences than a mean needs.
const MOST_SAMPLES: usize = 100_000;
/// Heads that are shown of each kind.
const STRONGEST: usize = 6;

/// The statistics of each head; then layer by layer attention to each role by head, and copying there by head.
fn cells(spec: &ModelSpec, roles: &[String]) -> Vec<Cell> {
    let of_head = |layer: usize, head: usize| Cell {
        head: Some(head as u32),
        ..Cell::in_layer(Kind::Pattern.name(), layer)
    };
    let mut cells: Vec<Cell> = Vec::new();
    for (layer, head) in spec.heads() {
        cells.extend(
            Statistic::ALL
                .iter()
                .enumerate()
                .map(|(i, statistic)| Cell {
                    measure: (i > 0).then(|| statistic.name().to_string()),
                    ..of_head(layer, head)
                }),
        );
    }
    for layer in 0..spec.n_layers {
        for measure in [ATTENTION_FROM_END, COPYING_AT_ROLE] {
            for head in 0..spec.n_heads {
                cells.extend(roles.iter().map(|role| Cell {
                    role: Some(role.clone()),
                    measure: Some(measure.into()),
                    ..of_head(layer, head)
                }));
            }
        }
    }
    cells
}

/// A checked run in progress.
struct Looking<'a> {
    on: Subject<'a>,
    config: &'a HeadConfig,
    sequences: Vec<Vec<u32>>,
    repeat_length: usize,
    capture: Vec<Hook>,
    roles: Vec<String>,
    cells: Vec<Cell>,
}

/// Items are the task's pairs, then the sequences.
impl Prepared for Looking<'_> {
    fn cells(&self) -> &[Cell] {
        &self.cells
    }

    fn bytes(&self, length: usize) -> usize {
        captured_bytes(&self.capture, &self.on.model.spec, length)
    }

    fn units(&self, task: &Task, running: &Running) -> Vec<Unit> {
        let n_cells = self.cells.len();
        let mut all = units(task, running, |length| self.bytes(length), n_cells, false);
        let room = running.planned_memory() / self.bytes(self.sequences[0].len()).max(1);
        let pairs = task.pairs().len();
        let items: Vec<usize> = (pairs..pairs + self.sequences.len()).collect();
        let together = room.clamp(1, running.batch.max(1));
        all.extend(items.chunks(together).map(|items| Unit {
            items: items.to_vec(),
            cells: 0..n_cells,
        }));
        all
    }

    fn example(&self, task: &Task, item: usize) -> usize {
        let pairs = task.pairs();
        match pairs.get(item) {
            Some(pair) => pair.index,
            None => first_sequence(task) + item - pairs.len(),
        }
    }

    fn cost(&self, unit: &Unit) -> Result<Cost> {
        let first = unit.items[0];
        let of_pair = self.on.task.pairs().get(first).map(|pair| pair.clean.len());
        let length = of_pair.unwrap_or(self.sequences[0].len());
        Ok(Cost {
            bytes: self.bytes(length),
            ..Cost::passes(unit.items.len() as f64)
        })
    }

    fn measure(&self, unit: &Unit, _: &dyn Progress) -> Result<Vec<ExampleScores>> {
        if unit.items[0] < self.on.task.pairs().len() {
            self.on_task(unit)
        } else {
            self.on_repeated(unit)
        }
    }

    fn conclude(&self, measured: &mut Measured, _: &dyn Progress) -> Result<()> {
        let Subject { model, task } = self.on;
        let classes = self.classes(&measured.means(Direction::Direct, false));
        let n_heads = model.spec.n_heads;
        for cell in &mut measured.cells {
            if let (Some(layer), Some(head)) = (cell.layer, cell.head) {
                cell.class = Some(classes[layer as usize * n_heads + head as usize].clone());
            }
        }
        measured.drop_unmeasured();
        let from = if self.config.from.is_empty() {
            tokens_of_roles(task)
        } else {
            self.config.from.clone()
        };
        let mut entries = Vec::new();
        for head in self.config.heads()? {
            entries.extend(circuits::circuits(
                self.on,
                head,
                &from,
                self.config.tokens,
            )?);
        }
        let (cells, values): (Vec<Cell>, Vec<Option<f64>>) = entries
            .into_iter()
            .map(|(cell, value)| (cell, Some(value)))
            .unzip();
        // A fact about weights has one value, whatever the prompts.
        measured.append(
            cells,
            |i, _| if i == 0 { values.clone() } else { Vec::new() },
        );
        let first = first_sequence(task);
        measured.found.insert("from".into(), json!(from));
        measured
            .found
            .insert("sequences".into(), json!(self.sequences));
        measured.notes.push(format!(
            "examples {first} to {} are the sequences of repeated random tokens, the others the task's pairs",
            first + self.sequences.len() - 1
        ));
        Ok(())
    }
}

/// The example that the first sequence is: the one after all pairs.
fn first_sequence(task: &Task) -> usize {
    let last = task.pairs().iter().map(|pair| pair.index).max();
    last.map_or(0, |last| last + 1)
}

impl Looking<'_> {
    /// The statistics of every head on some sequences.
    fn on_repeated(&self, unit: &Unit) -> Result<Vec<ExampleScores>> {
        let Subject { model, task } = self.on;
        let pairs = task.pairs().len();
        let items = unit.items.iter();
        let sequences: Vec<Vec<u32>> = items.map(|i| self.sequences[i - pairs].clone()).collect();
        let cache = captured(model, &sequences, &self.capture, &[])?;
        let length = self.repeat_length;
        let first = sequences[0].len() - 2 * length;
        let mut columns = Columns::new(sequences.len());
        for layer in 0..model.spec.n_layers {
            let v = cache.get(Hook::at(Kind::V, layer))?;
            let pattern = cache.get(Hook::at(Kind::Pattern, layer))?;
            // Of each sequence the statistics of each head.
            let mut of_sequences: Vec<Vec<[f64; 8]>> = Vec::with_capacity(sequences.len());
            for (i, sequence) in sequences.iter().enumerate() {
                let sources = Sources {
                    positions: (first as u32..sequence.len() as u32).collect(),
                    tokens: &sequence[first..first + length],
                    own: (0..2 * length).map(|i| i % length).collect(),
                };
                let copying = copying(model, layer, &v.get(i)?, &sources)?;
                let pattern: Vec<Vec<Vec<f32>>> = pattern.get(i)?.to_vec3()?; // [head, query, key]
                let of_head = |(pattern, copying): (&Vec<Vec<f32>>, &Vec<f64>)| {
                    let copying = copying.iter().sum::<f64>() / copying.len() as f64;
                    statistics(pattern, length, copying)
                };
                of_sequences.push(pattern.iter().zip(&copying).map(of_head).collect());
            }
            #[expect(clippy::needless_range_loop, reason = "heads are the inner axis")]
            for head in 0..model.spec.n_heads {
                for statistic in Statistic::ALL {
                    columns.push_some(|i| Some(of_sequences[i][head][statistic as usize]));
                }
            }
        }
        let measured = unit.items.iter().zip(&sequences).zip(columns.into_cells());
        let example =
            |((&item, sequence), (cells, values)): ((&usize, &Vec<u32>), _)| ExampleScores {
                example: self.example(task, item),
                tokens: task.texts(sequence),
                cells,
                values,
                ..ExampleScores::default()
            };
        Ok(measured.map(example).collect())
    }

    /// Attention from where the answer is read to each role, and copying there.
    fn on_task(&self, unit: &Unit) -> Result<Vec<ExampleScores>> {
        let Subject { model, task } = self.on;
        let pairs = pairs_of(task, &unit.items);
        let (cache, judgements) = captured_and_judged(model, &pairs, &self.capture)?;
        let (roles, n_heads) = (&self.roles, model.spec.n_heads);
        let mut columns = Columns::new(pairs.len());
        columns.skip(Statistic::ALL.len() * model.spec.n_layers * n_heads);
        let places: Vec<Places> = pairs.iter().map(|pair| Places::of(pair, roles)).collect();
        for layer in 0..model.spec.n_layers {
            let pattern = cache.get(Hook::at(Kind::Pattern, layer))?;
            let mut rows: Vec<Vec<Vec<f32>>> = Vec::with_capacity(pairs.len()); // [pair, head, key]
            for (i, pair) in pairs.iter().enumerate() {
                let end = pair.target.positions(cache.length).start;
                rows.push(pattern.get(i)?.narrow(1, end, 1)?.squeeze(1)?.to_vec2()?);
            }
            #[expect(clippy::needless_range_loop, reason = "heads are the inner axis")]
            for head in 0..n_heads {
                for role in roles {
                    columns.push_some(|i| {
                        let positions = pairs[i].roles.get(role)?.iter();
                        Some(positions.map(|&pos| f64::from(rows[i][head][pos])).sum())
                    });
                }
            }
            let v = cache.get(Hook::at(Kind::V, layer))?;
            // Of each pair and head a score for each role that it has.
            let mut copied: Vec<Vec<Vec<f64>>> = Vec::with_capacity(pairs.len());
            for (i, places) in places.iter().enumerate() {
                copied.push(places.copying(self.on, layer, &v.get(i)?)?);
            }
            for head in 0..n_heads {
                for role in 0..roles.len() {
                    columns.push_some(|i| {
                        let at = places[i].of_role.iter().position(|&(r, _)| r == role)?;
                        copied[i].get(head)?.get(at).copied()
                    });
                }
            }
        }
        let examples = columns.into_examples_without_metric(task, &unit.items);
        Ok(judged(examples, judgements))
    }

    /// What each head looks like, and by which numbers.
    fn classes(&self, means: &[f64]) -> Vec<String> {
        let (roles, n_heads) = (&self.roles, self.on.model.spec.n_heads);
        let heads = self.on.model.spec.heads().enumerate();
        let first_role = Statistic::ALL.len() * self.on.model.spec.n_layers * n_heads;
        let class = |(index, (layer, head)): (usize, (usize, usize))| {
            let of =
                |statistic: Statistic| means[index * Statistic::ALL.len() + statistic as usize];
            let at_role = |is_copying: usize, role: usize| {
                let of_layer = first_role + 2 * layer * n_heads * roles.len();
                means[of_layer + (is_copying * n_heads + head) * roles.len() + role]
            };
            class(roles, of, |role| [at_role(0, role), at_role(1, role)])
        };
        heads.map(class).collect()
    }
}
