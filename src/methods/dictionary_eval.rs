//! How good a dictionary is: what the model loses if the hook carries the reconstruction alone, and how many latents that takes.
//!
//! The loss is the cross-entropy of each next token of a prompt, in the mean over its positions. Two rows hold it with the reconstruction
//! in place of the hook (`hook_sae_recons`), and with zeros in its place; the clean loss is that of the model itself. The share of what
//! zeros cost that the reconstruction spares is the *loss recovered*, of the means over all prompts. Beside the table stand the divergence
//! from the model's own distributions (`kl`), latents that are on at a position (`l0`), the cosine of hook and reconstruction, and the
//! share of latents that are on nowhere in these prompts (`dead`).
//!
//! Every position counts, the first too. The length of the error, or the variance explained, is left out on purpose: where the first
//! position of a model is a hundred times as long as all others, they are about that position alone.
//!
//! Sources: Bricken et al. 2023; Gao et al. 2024, arXiv 2406.04093 (section 4.1); Karvonen et al. 2025, arXiv 2503.09532 (core evaluation).

use std::collections::BTreeSet;
use std::sync::Arc;

use candle_core::Tensor;
use serde_json::{Value, json};

use super::method::{
    Cost, Method, Needs, Preparation, Prepared, Running, Subject, Unit, clean_prompts, pairs_of,
    unmeasured,
};
use crate::error::{Error, Result};
use crate::hooks::{Edit, Hook, Op, Site};
use crate::metric::{Metric, Target};
use crate::nn::host::to_host;
use crate::run::{Logits, Progress, Request, Run, run};
use crate::sae::{ERROR, RECONSTRUCTION, Sae};
use crate::scores::interval::{Bootstrap, RESAMPLES, interval};
use crate::scores::{Cell, Direction, ExampleScores, Measured, ScoresMeta};
use crate::spec::ModelSpec;
use crate::task::Task;
use crate::text::visible;

/// Which dictionary.
#[derive(Debug, Clone, PartialEq)]
pub struct DictionaryEvalConfig {
    pub sae: Arc<Sae>,
}

impl DictionaryEvalConfig {
    pub fn new(sae: Arc<Sae>) -> Self {
        DictionaryEvalConfig { sae }
    }
}

/// The rows in their order, and what is said beside them.
const RECONSTRUCTED: usize = 0;
const ZEROED: usize = 1;
const ZERO: &str = "zero";
const SIDES: [&str; 3] = ["kl", "l0", "cosine"];

impl Method for DictionaryEvalConfig {
    fn header(&self, task: &Task) -> ScoresMeta {
        ScoresMeta {
            method: "dictionary_eval".into(),
            metric: "loss".into(),
            unit: "nats a token".into(),
            direction: Direction::Direct,
            base: None,
            seed: task.seed,
        }
    }

    fn settings(&self) -> Value {
        json!({ "sae": self.sae.settings() })
    }

    fn needs(&self, _: &Task) -> Needs {
        Needs {
            decoder: Some("loss of the next token"),
            whole_answers: true,
            ..Needs::default()
        }
    }

    fn check(&self, spec: &ModelSpec, task: &Task) -> Result<()> {
        self.sae.check(spec)?;
        match task.pairs().iter().find(|pair| pair.clean.len() < 2) {
            Some(pair) => Err(Error::invalid(format!(
                "prompt {} has one token, and the loss is that of the next one; leave it out",
                pair.index
            ))),
            None => Ok(()),
        }
    }

    fn prepare<'a>(&'a self, on: Subject<'a>, _: &'a Running) -> Preparation<'a> {
        let hook = self.sae.writes;
        let cell = |suffix: &str, measure: Option<&str>| Cell {
            component: format!("{}.{suffix}", hook.kind.name()),
            layer: hook.layer.map(|layer| layer as u32),
            measure: measure.map(str::to_owned),
            ..Cell::default()
        };
        let [kl, l0, cosine] = SIDES.map(Some);
        let cells = vec![
            cell(RECONSTRUCTION, None),
            cell(ZERO, None),
            cell(RECONSTRUCTION, kl),
            cell(RECONSTRUCTION, l0),
            cell(RECONSTRUCTION, cosine),
        ];
        Ok(Box::new(Evaluating {
            on,
            sae: &self.sae,
            hooks: [self.sae.reads, self.sae.writes],
            cells,
        }))
    }
}

/// A checked run in progress.
struct Evaluating<'a> {
    on: Subject<'a>,
    sae: &'a Sae,
    hooks: [Hook; 2],
    cells: Vec<Cell>,
}

impl Prepared for Evaluating<'_> {
    fn cells(&self) -> &[Cell] {
        &self.cells
    }

    fn bytes(&self, length: usize) -> usize {
        let sae = self.sae;
        // Logits of two runs at every position and of a third as it comes, the hook thrice, and inputs of latents.
        let logits = 3 * length * self.on.model.spec.d_vocab;
        4 * (logits + length * (sae.d_in + 2 * sae.d_out) + length.min(128) * sae.d_sae)
    }

    fn cost(&self, unit: &Unit) -> Result<Cost> {
        let length = self.on.task.pairs()[unit.items[0]].clean.len();
        Ok(Cost {
            bytes: unit.items.len() * self.bytes(length),
            ..Cost::passes(3.0 * unit.items.len() as f64)
        })
    }

    fn measure(&self, unit: &Unit, _: &dyn Progress) -> Result<Vec<ExampleScores>> {
        let (sae, Subject { model, task }) = (self.sae, self.on);
        let prompts = clean_prompts(&pairs_of(task, &unit.items));
        let (length, vocabulary) = (prompts[0].len(), model.spec.d_vocab);
        let edited = |edits: &[Edit], capture: &[Hook]| -> Result<Run> {
            let request = Request {
                edits,
                capture,
                logits: Logits::All,
                ..Request::default()
            };
            run(model, &prompts, &request)
        };
        let logits =
            |run: &Run| -> Result<Vec<f32>> { to_host(run.logits.as_ref().expect("asked for")) };
        let mut plain = edited(&[], &self.hooks)?;
        let read = to_host(plain.cache.packed(sae.reads)?)?;
        let packed = plain.cache.packed(sae.writes)?;
        let written = to_host(packed)?;
        let latents = sae.encode(&read);
        let decoded = sae.decode(&latents, &read);
        let own = logits(&plain)?;
        plain.logits = None;
        let of_prompt = |logits: &[f32], i: usize| -> Result<f64> {
            let next = |pos: usize| {
                let row = &logits[(i * length + pos) * vocabulary..][..vocabulary];
                let target = Target {
                    answers: vec![prompts[i][pos + 1]],
                    ..Target::default()
                };
                Metric::LogProb.value(row, &target, None)
            };
            let all: f64 = (0..length - 1).map(next).sum::<Result<f64>>()?;
            Ok(-all / (length - 1) as f64)
        };
        let site = Site::all(sae.writes);
        let shape = sae.writes.shape(&model.spec, prompts.len(), length);
        let value = Tensor::from_slice(&decoded, shape, packed.device())?;
        let replaced = Edit::new(
            site.clone(),
            Op::Replace(crate::hooks::Value::Tensor(value)),
        );
        let reconstructed = logits(&edited(&[replaced], &[])?)?;
        let divergence = |i: usize| -> Result<f64> {
            let of = |pos: usize| {
                let row = (i * length + pos) * vocabulary..(i * length + pos + 1) * vocabulary;
                let reference = Some(&own[row.clone()]);
                Metric::Kl.value(&reconstructed[row], &Target::default(), reference)
            };
            let all: f64 = (0..length).map(of).sum::<Result<f64>>()?;
            Ok(all / length as f64)
        };
        let mut examples: Vec<ExampleScores> = Vec::with_capacity(prompts.len());
        for (i, &item) in unit.items.iter().enumerate() {
            let rows = i * length..(i + 1) * length;
            let mut one = unmeasured(task, item, of_prompt(&own, i)?, f64::NAN);
            let on = latents.rows[rows.clone()]
                .iter()
                .map(Vec::len)
                .sum::<usize>();
            let cosines = rows.clone().map(|row| {
                let of_row = row * sae.d_out..(row + 1) * sae.d_out;
                cosine(&written[of_row.clone()], &decoded[of_row])
            });
            one.cells = (0..self.cells.len() as u32).collect();
            one.values = vec![
                of_prompt(&reconstructed, i)?,
                f64::NAN,
                divergence(i)?,
                on as f64 / length as f64,
                cosines.sum::<f64>() / length as f64,
            ];
            let ever: BTreeSet<u32> = (latents.rows[rows].iter().flatten())
                .map(|&(latent, _)| latent)
                .collect();
            let facts = ever.into_iter().map(|latent| (latent.to_string(), 1.0));
            one.facts.extend(facts);
            examples.push(one);
        }
        drop((own, reconstructed));
        let zeroed = logits(&edited(&[Edit::new(site, Op::Zero)], &[])?)?;
        for (i, one) in examples.iter_mut().enumerate() {
            one.values[ZEROED] = of_prompt(&zeroed, i)?;
        }
        Ok(examples)
    }

    fn conclude(&self, measured: &mut Measured, _: &dyn Progress) -> Result<()> {
        let sae = self.sae;
        let grows = |cell: usize| -> Vec<f64> {
            let of = |one: &ExampleScores| one.value(cell).unwrap_or(f64::NAN) - one.clean;
            measured.examples.iter().map(of).collect()
        };
        let rows = [grows(RECONSTRUCTED), grows(ZEROED)];
        let n = measured.examples.len();
        let [with, without] = [0, 1].map(|of: usize| rows[of].iter().sum::<f64>() / n as f64);
        let recovered = 1.0 - with / without;
        let bounds = (n > 1).then(|| {
            let mut means = vec![0.0; 2 * RESAMPLES];
            Bootstrap::new(self.on.task.seed, n).resampled_means(&rows.concat(), &mut means);
            let (with, without) = means.split_at(RESAMPLES);
            // Where zeros do harm in some resamples alone, a share of it has no bounds.
            let harms = without.iter().all(|without| *without > 0.0);
            let shares = with.iter().zip(without);
            let mut shares: Vec<f64> = shares.map(|(with, all)| 1.0 - with / all).collect();
            harms.then(|| interval(&mut shares))
        });
        let bounds = bounds.flatten();
        let ever: BTreeSet<&String> = (measured.examples.iter())
            .flat_map(|one| one.facts.keys().filter(|key| key.parse::<u32>().is_ok()))
            .collect();
        let never = sae.d_sae - ever.len();
        measured.notes.push(format!(
            "`{}`: {sae}; {never} of {} are on nowhere in these prompts",
            visible(&sae.id),
            sae.d_sae
        ));
        let of_all = [
            ("loss_recovered", recovered, bounds),
            ("dead", never as f64 / sae.d_sae as f64, None),
        ];
        // Where zeros do no harm there is nothing to recover.
        let harmless = without <= 0.0;
        match harmless {
            true => measured.notes.push(format!(
                "with zeros at {} the loss is no larger ({without:+.3}), so no share of it is recovered",
                sae.writes
            )),
            false => {
                let interval = bounds.map_or(String::new(), |(low, high)| {
                    format!(" [{low:.3}, {high:.3}]")
                });
                measured.notes.push(format!(
                    "the reconstruction alone recovers {recovered:.3}{interval} of the loss that zeros cost; what is missing is in \
                     the error (`{ERROR}`)"
                ));
            }
        }
        let of_all = &of_all[usize::from(harmless)..];
        let cells = of_all.iter().map(|(measure, ..)| Cell {
            measure: Some((*measure).into()),
            ..measured.cells[RECONSTRUCTED].clone()
        });
        // Of all prompts together, and said with each.
        let first = measured.append(cells.collect(), |_, _| {
            of_all.iter().map(|of| Some(of.1)).collect()
        });
        for (at, of) in of_all.iter().enumerate() {
            measured.intervals.insert(first + at, of.2);
            measured.found.insert(of.0.into(), json!(of.1));
        }
        for one in &mut measured.examples {
            one.facts.retain(|key, _| key.parse::<u32>().is_err());
        }
        measured.warnings.extend(sae.doubts.iter().cloned());
        Ok(())
    }
}

/// Of two vectors; 0 where one is nothing.
fn cosine(a: &[f32], b: &[f32]) -> f64 {
    let product = |a: &[f32], b: &[f32]| -> f64 {
        let each = a.iter().zip(b);
        each.map(|(a, b)| f64::from(*a) * f64::from(*b)).sum()
    };
    let lengths = (product(a, a) * product(b, b)).sqrt();
    if lengths == 0.0 {
        0.0
    } else {
        product(a, b) / lengths
    }
}
