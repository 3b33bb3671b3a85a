//! What latents of a dictionary are about: where each is on, how strongly, and in which contexts the most.
//!
//! Prompts are the task's clean ones, or lines of text as a task ([`from_text_file`](crate::task::from_text_file)). A row is a latent: `value` is its largest activation in a prompt, in the mean over the `n`
//! prompts in which it is on at all; beside the table stands its density, the share of all positions at which it is on. The column
//! `class` holds the tokens at which it is strongest, and the provenance the contexts (MaxAct). Latents that are never on have no row.
//!
//! Sources: Bills et al. 2023 and Bricken et al. 2023 (strongest contexts and densities). Contexts are what a latent *reads*; what it
//! *does* is [`LatentConfig`](super::LatentConfig).

use std::collections::BTreeMap;
use std::sync::Arc;

use serde_json::{Value, json};

use super::captured::{captured, captured_bytes};
use super::method::{
    Cost, Method, Needs, Preparation, Prepared, Running, Subject, Unit, clean_prompts, pairs_of,
    unmeasured,
};
use crate::error::{Error, Result};
use crate::hooks::Hook;
use crate::nn::host::to_host;
use crate::run::Progress;
use crate::sae::{LATENTS, Sae};
use crate::scores::{Cell, Direction, ExampleScores, Measured, ScoresMeta};
use crate::spec::ModelSpec;
use crate::task::Task;
use crate::text::visible;

const DENSITY: &str = "density";
/// Where in its prompt a latent is strongest; dropped once the contexts are known.
const POSITION: &str = "position";
/// Contexts that are kept of a latent, and latents whose contexts are told in words.
const CONTEXTS: usize = 5;
const TOLD: usize = 5;
/// Tokens before and after the one at which a latent is on.
const BEFORE: usize = 6;
const AFTER: usize = 2;

/// Which latents are looked at, and on what.
#[derive(Debug, Clone, PartialEq)]
pub struct LatentActivationsConfig {
    pub sae: Arc<Sae>,
    /// Only these latents [default: all].
    pub latents: Option<Vec<usize>>,
}

impl LatentActivationsConfig {
    /// All latents on the task's clean prompts.
    pub fn new(sae: Arc<Sae>) -> Self {
        LatentActivationsConfig { sae, latents: None }
    }
}

impl Method for LatentActivationsConfig {
    fn header(&self, task: &Task) -> ScoresMeta {
        ScoresMeta {
            method: "latent_activations".into(),
            metric: "activation".into(),
            unit: "unit of activation".into(),
            direction: Direction::Direct,
            base: None,
            seed: task.seed,
        }
    }

    fn settings(&self) -> Value {
        json!({ "sae": self.sae.settings(), "latents": self.latents })
    }

    fn needs(&self, _: &Task) -> Needs {
        Needs {
            whole_answers: true,
            ..Needs::default()
        }
    }

    fn check(&self, spec: &ModelSpec, _: &Task) -> Result<()> {
        self.sae.check(spec)?;
        for &latent in self.latents.iter().flatten() {
            self.sae.check_latent(latent)?;
        }
        Ok(())
    }

    fn prepare<'a>(&'a self, on: Subject<'a>, _: &'a Running) -> Preparation<'a> {
        let sae = &self.sae;
        let mut latents: Vec<u32> = match &self.latents {
            None => (0..sae.d_sae as u32).collect(),
            Some(chosen) => chosen.iter().map(|&latent| latent as u32).collect(),
        };
        latents.sort_unstable();
        latents.dedup();
        let cell = |latent: u32, measure: Option<&str>| Cell {
            component: format!("{}.{LATENTS}", sae.reads.kind.name()),
            layer: sae.reads.layer.map(|layer| layer as u32),
            neuron: Some(latent),
            measure: measure.map(str::to_owned),
            ..Cell::default()
        };
        let cells = latents
            .iter()
            .flat_map(|&latent| [cell(latent, None), cell(latent, Some(POSITION))])
            .collect();
        Ok(Box::new(Looking {
            on,
            config: self,
            hooks: [sae.reads],
            latents,
            cells,
        }))
    }
}

/// A checked run in progress.
struct Looking<'a> {
    on: Subject<'a>,
    config: &'a LatentActivationsConfig,
    hooks: [Hook; 1],
    latents: Vec<u32>,
    /// Of each latent its largest activation, and where that is.
    cells: Vec<Cell>,
}

impl Prepared for Looking<'_> {
    fn cells(&self) -> &[Cell] {
        &self.cells
    }

    fn bytes(&self, length: usize) -> usize {
        let latents = 4 * length.min(128) * self.config.sae.d_sae;
        captured_bytes(&self.hooks, &self.on.model.spec, length) + latents
    }

    fn cost(&self, unit: &Unit) -> Result<Cost> {
        Ok(Cost {
            bytes: unit.items.len() * self.bytes(self.on.task.pairs()[unit.items[0]].clean.len()),
            ..Cost::passes(unit.items.len() as f64)
        })
    }

    fn measure(&self, unit: &Unit, _: &dyn Progress) -> Result<Vec<ExampleScores>> {
        let sae = &self.config.sae;
        let Subject { model, task } = self.on;
        let prompts = clean_prompts(&pairs_of(task, &unit.items));
        let cache = captured(model, &prompts, &self.hooks, &[])?;
        let latents = sae.encode(&to_host(cache.packed(sae.reads)?)?);
        let rows = latents.rows.chunks_exact(cache.length);
        let mut examples = Vec::with_capacity(prompts.len());
        for (&item, rows) in unit.items.iter().zip(rows) {
            // Of each latent that is on: the largest, where, and at how many positions.
            let mut on: BTreeMap<u32, (f32, usize, usize)> = BTreeMap::new();
            for (pos, row) in rows.iter().enumerate() {
                for &(latent, value) in row {
                    let known = on.entry(latent).or_insert((value, pos, 0));
                    if value > known.0 {
                        (known.0, known.1) = (value, pos);
                    }
                    known.2 += 1;
                }
            }
            let mut one = unmeasured(task, item, f64::NAN, f64::NAN);
            let mut cells = Vec::new();
            for (index, latent) in self.latents.iter().enumerate() {
                if let Some(&(value, pos, positions)) = on.get(latent) {
                    cells.extend([2 * index as u32, 2 * index as u32 + 1]);
                    one.values.extend([f64::from(value), pos as f64]);
                    one.facts.insert(latent.to_string(), positions as f64);
                }
            }
            one.cells = cells.into();
            examples.push(one);
        }
        Ok(examples)
    }

    fn conclude(&self, measured: &mut Measured, _: &dyn Progress) -> Result<()> {
        let pairs = self.on.task.pairs();
        let positions: usize = pairs.iter().map(|pair| pair.clean.len()).sum();
        let prompts: BTreeMap<usize, &[u32]> = (pairs.iter())
            .map(|pair| (pair.index, &pair.clean[..]))
            .collect();
        let context =
            |example: &ExampleScores, pos: usize| self.context(prompts[&example.example], pos);
        let (mut contexts, mut densities) = (BTreeMap::new(), BTreeMap::new());
        for (index, &latent) in self.latents.iter().enumerate() {
            let mut strongest: Vec<(f64, usize, usize)> = Vec::new();
            for (i, example) in measured.examples.iter().enumerate() {
                if let Some(value) = example.value(2 * index) {
                    let pos = example.value(2 * index + 1).unwrap_or_default();
                    strongest.push((value, i, pos as usize));
                    let on = example.facts.get(&latent.to_string()).copied();
                    *densities.entry(index).or_insert(0.0) += on.unwrap_or(0.0) / positions as f64;
                }
            }
            strongest.sort_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1)));
            strongest.truncate(CONTEXTS);
            let mut tokens: Vec<String> = Vec::new();
            for &(_, i, pos) in &strongest {
                let token = measured.examples[i].tokens[pos].trim().to_string();
                if !tokens.contains(&token) {
                    tokens.push(token);
                }
            }
            measured.cells[2 * index].class = (!tokens.is_empty()).then(|| tokens.join(", "));
            if !strongest.is_empty() {
                contexts.insert(index, strongest);
            }
        }
        // In words, those of the latents that are strongest in the mean.
        let means = measured.means(Direction::Direct, false);
        let mut told: Vec<usize> = contexts.keys().copied().collect();
        told.sort_by(|&a, &b| means[2 * b].total_cmp(&means[2 * a]));
        for &index in told.iter().take(TOLD) {
            let (value, i, pos) = contexts[&index][0];
            measured.notes.push(format!(
                "latent {} is on at {:.1}% of the positions, most ({value:.2}) in: {}",
                self.latents[index],
                100.0 * densities[&index],
                context(&measured.examples[i], pos)?
            ));
        }
        if contexts.is_empty() {
            return Err(Error::invalid(format!(
                "none of the {} latents is on anywhere in these {} prompts; take others, or other texts",
                self.latents.len(),
                pairs.len()
            )));
        }
        measured.notes.push(format!(
            "`{}`: {}",
            visible(&self.config.sae.id),
            self.config.sae
        ));
        measured
            .warnings
            .extend(self.config.sae.doubts.iter().cloned());
        let never = self.latents.len() - contexts.len();
        if never > 0 {
            measured.notes.push(format!(
                "{never} of {} latents are on nowhere in these prompts, and have no row",
                self.latents.len()
            ));
        }
        let mut found: BTreeMap<String, Vec<Value>> = BTreeMap::new();
        for (&index, strongest) in &contexts {
            let of_latent = found.entry(self.latents[index].to_string()).or_default();
            for &(value, i, pos) in strongest {
                let example = &measured.examples[i];
                let context = context(example, pos)?;
                of_latent.push(json!({"example": example.example, "pos": pos, "value": value, "context": context}));
            }
        }
        measured.found.insert("contexts".into(), json!(found));
        for example in &mut measured.examples {
            let own = example.cells.iter().zip(&example.values);
            let (cells, values): (Vec<u32>, Vec<f64>) =
                own.filter(|(cell, _)| **cell % 2 == 0).unzip();
            example.cells = cells.into();
            example.values = values;
            example.facts.clear();
        }
        let (cells, values): (Vec<Cell>, Vec<Option<f64>>) = (densities.into_iter())
            .map(|(index, density)| {
                let cell = Cell {
                    measure: Some(DENSITY.into()),
                    ..measured.cells[2 * index].clone()
                };
                (cell, Some(density))
            })
            .unzip();
        let first = measured.append(cells, |i, _| match i {
            0 => values.clone(),
            _ => Vec::new(),
        });
        // A share of all positions has no spread over prompts.
        for cell in first..measured.cells.len() {
            measured.intervals.insert(cell, None);
        }
        measured.drop_unmeasured();
        Ok(())
    }
}

impl Looking<'_> {
    /// The text around a token, which stands in brackets.
    fn context(&self, prompt: &[u32], pos: usize) -> Result<String> {
        let tokenizer = self.on.task.tokenizer();
        let before = tokenizer.decode(&prompt[pos.saturating_sub(BEFORE)..pos])?;
        let after = tokenizer.decode(&prompt[pos + 1..(pos + 1 + AFTER).min(prompt.len())])?;
        let own = tokenizer.token(prompt[pos]);
        Ok(crate::text::one_line(&format!(
            "{before} [{}] {after}",
            own.trim()
        )))
    }
}
