//! Heads classed by where they read the answer from: from the subject of a fact, from its relation, or from both.
//!
//! What a head adds to the answer's logit is taken apart by the positions that it reads (direct logit attribution by source)
//! and summed over SUBJECT, RELATION and the rest. A subject head owes at least `ratio` times as much to the subject as to the
//! relation, a relation head the other way round; the others are mixed. With them goes what each adds to the other
//! attributes of the subject (answers of pairs with the same subject and another relation), and to the attributes of
//! other subjects under the same relation.
//!
//! Source: Chughtai, Cooney and Nanda 2024, "Summing up the facts", arXiv 2402.07321. The cut-off is arbitrary, so classes are
//! given for several; the choice of heads, above a percentile of the sum, is ours.

use std::sync::Arc;
use std::time::Instant;

use serde_json::json;

use super::dla::{by_group, sources};
use super::readout::{Ends, every_layer, rowwise_dot};
use super::{BATCH, in_layer, provenance, roles_of, unmeasured};
use crate::error::{Error, Result};
use crate::hooks::{Hook, Kind, Ln};
use crate::model::Model;
use crate::run::{Progress, Request};
use crate::scores::{Cell, Detail, Direction, ExampleScores, Lists, Scores, ScoresMeta, View};
use crate::task::{Pair, Task};

/// Which positions belong to what, and where the classes are cut.
#[derive(Debug, Clone)]
pub struct SourceConfig {
    /// Roles of the task that make up the subject.
    pub subject: Vec<String>,
    /// Roles that make up the relation; if none is named, every position that is not of the subject, but the first where
    /// that is a BOS.
    pub relation: Vec<String>,
    /// Cut-offs; the `class` of the main rows is that of the first.
    pub ratios: Vec<f64>,
    /// Heads below this percentile of the magnitude of subject and relation together stay unclassed.
    pub percentile: f64,
    pub detail: Detail,
    pub seed: u64,
}

impl SourceConfig {
    /// A subject, everything else as the relation, and the cut-offs 10, 3 and 30.
    pub fn new(subject: Vec<String>) -> Self {
        SourceConfig {
            subject,
            relation: Vec::new(),
            ratios: vec![10.0, 3.0, 30.0],
            percentile: 95.0,
            detail: Detail::Mean,
            seed: 0,
        }
    }

    /// # Errors
    /// What cannot be run as asked, before anything is.
    pub fn check(&self, task: &Task) -> Result<()> {
        let known = roles_of(task);
        if let Some(role) = (self.subject.iter().chain(&self.relation)).find(|r| !known.contains(r))
        {
            return Err(Error::UnknownRole {
                role: role.clone(),
                known: known.join(", "),
            });
        }
        if self.subject.is_empty() || self.ratios.is_empty() {
            return Err(Error::invalid(
                "classes of heads need the roles of the subject (`--subject ROLE`) and at least one cut-off",
            ));
        }
        if self.ratios.iter().any(|r| !r.is_finite() || *r <= 1.0)
            || !(0.0..=100.0).contains(&self.percentile)
        {
            return Err(Error::invalid(format!(
                "cut-offs must be above 1 and the percentile from 0 to 100, not {:?} and {}",
                self.ratios, self.percentile
            )));
        }
        match task
            .pairs()
            .iter()
            .find(|pair| pair.target.answers.is_empty())
        {
            None => Ok(()),
            Some(pair) => Err(Error::BadMetric {
                metric: "centred_logit".into(),
                reason: format!("needs an answer, and pair {} has none", pair.index),
            }),
        }
    }
}

/// The groups of positions, in the order of the table.
const GROUPS: [&str; 3] = ["subject", "relation", "rest"];
const SUBJECT: usize = 0;
const RELATION: usize = 1;
const REST: usize = 2;

/// What a head is, at one cut-off.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SourceClass {
    Subject,
    Relation,
    Mixed,
    /// Subject and relation together speak against the answer.
    Negative,
}

impl SourceClass {
    /// The class of a head that owes `subject` and `relation` to the two; the smaller counts as at least `floor`.
    pub fn of(subject: f64, relation: f64, ratio: f64, floor: f64) -> Self {
        let (x, y) = (subject.max(floor), relation.max(floor));
        match () {
            _ if subject + relation < 0.0 => SourceClass::Negative,
            _ if x >= ratio * y => SourceClass::Subject,
            _ if y >= ratio * x => SourceClass::Relation,
            _ => SourceClass::Mixed,
        }
    }

    fn name(self) -> &'static str {
        match self {
            SourceClass::Subject => "subject",
            SourceClass::Relation => "relation",
            SourceClass::Mixed => "mixed",
            SourceClass::Negative => "negative",
        }
    }
}

/// What each head adds to the answer from the subject, from the relation and from the rest, with its class.
///
/// Rows: each head by group (`role`), for the `target`s `answer`, `subject attributes` and `relation attributes` (the last two
/// where the task has such pairs); one row for all MLPs together; and for each classed head and cut-off a row with metric
/// `at_ratio`, whose score is subject and relation together.
/// # Units
/// `score`: logits, less the mean over the vocabulary.
/// # Errors
/// Those of [`SourceConfig::check`].
pub fn source_classes(
    model: &Model,
    task: &Task,
    config: &SourceConfig,
    progress: &dyn Progress,
) -> Result<Scores> {
    model
        .spec
        .check_decoder("direct logit attribution and lenses")?;
    config.check(task)?;
    let began = Instant::now();
    let spec = &model.spec;
    let n_heads = spec.n_layers * spec.n_heads;
    let mut all: Vec<ExampleScores> = Vec::new();
    progress.start("attributing", task.pairs().len() as u64);
    for batch in task.batches(BATCH) {
        if progress.cancelled() {
            return Err(Error::Interrupted {
                kept: "nothing was asked to be kept".into(),
            });
        }
        let pairs: Vec<&Pair> = batch.iter().map(|&pair| &task.pairs()[pair]).collect();
        all.extend(measure(model, task, config, &pairs)?);
        progress.advance(pairs.len() as u64);
    }
    progress.finish();
    all.sort_by_key(|example| example.example);

    // Classes are cut on means over prompts, never on a mean of ratios.
    let means = means(&all, n_heads * GROUPS.len());
    let of = |head: usize, group: usize| means[head * GROUPS.len() + group];
    let strengths: Vec<f64> = (0..n_heads)
        .map(|head| (of(head, SUBJECT) + of(head, RELATION)).abs())
        .collect();
    let least = percentile(&strengths, config.percentile / 100.0);
    let floor = 1e-3 * means.iter().fold(0f64, |most, mean| most.max(mean.abs()));
    let classed: Vec<usize> = (0..n_heads)
        .filter(|&head| strengths[head] >= least)
        .collect();
    let class = |head: usize, ratio: f64| {
        SourceClass::of(of(head, SUBJECT), of(head, RELATION), ratio, floor).name()
    };
    let mut cells = Vec::new();
    for target in TARGETS {
        for head in 0..n_heads {
            let is_classed = classed.contains(&head);
            cells.extend(GROUPS.iter().map(|group| Cell {
                role: Some(group.to_string()),
                target: Some(target.into()),
                class: is_classed.then(|| class(head, config.ratios[0]).to_string()),
                ..cell_of(model, head)
            }));
        }
        cells.push(Cell {
            component: Kind::MlpOut.name().into(),
            target: Some(target.into()),
            ..Cell::default()
        });
    }
    for &ratio in &config.ratios {
        for &head in &classed {
            let index = cells.len() as u32;
            cells.push(Cell {
                target: Some(format!("ratio {ratio}")),
                measure: Some("at_ratio".into()),
                class: Some(class(head, ratio).into()),
                ..cell_of(model, head)
            });
            for example in &mut all {
                let first = head * GROUPS.len();
                example.cells = example.cells.iter().copied().chain([index]).collect();
                let both = example.values[first + SUBJECT] + example.values[first + RELATION];
                example.values.push(both);
            }
        }
    }
    let settings = json!({
        "subject": config.subject,
        "relation": config.relation,
        "ratios": config.ratios,
        "percentile": config.percentile,
    });
    let mut provenance = provenance(model, task, settings, began.elapsed().as_secs_f64());
    let classes = Lists {
        measures: vec!["at_ratio".into()],
        title: "{target}, {class}:".into(),
        item: "{head}".into(),
        ..Lists::default()
    };
    provenance.views = vec![View::Grids, View::Lists(classes), View::Strongest];
    if task
        .pairs()
        .iter()
        .any(|pair| pair.template != task.pairs()[0].template)
    {
        provenance.warnings.push(
            "the pairs come from several templates: if these are several relations, take one at a time (`--template 0`), \
             because the class of a head is that under one relation"
                .into(),
        );
    }
    let meta = ScoresMeta {
        method: "source_classes".into(),
        metric: "centred_logit".into(),
        unit: "logits".into(),
        direction: Direction::Direct,
        seed: config.seed,
    };
    Scores::assemble(&cells, &all, &meta, config.detail, provenance)
}

/// What contributions are to, in the order of the table.
const TARGETS: [&str; 3] = ["answer", "subject attributes", "relation attributes"];

fn cell_of(model: &Model, head: usize) -> Cell {
    Cell {
        head: Some((head % model.spec.n_heads) as u32),
        ..in_layer(Kind::Result.name(), head / model.spec.n_heads)
    }
}

/// The rows of one batch: for each target every head by group, then all MLPs together.
fn measure(
    model: &Model,
    task: &Task,
    config: &SourceConfig,
    pairs: &[&Pair],
) -> Result<Vec<ExampleScores>> {
    let of = |kind| every_layer(model, kind);
    let scale = Kind::Scale(Ln::OnePost);
    let capture = [of(Kind::Pattern), of(Kind::V), of(Kind::MlpOut), of(scale)].concat();
    let prompts: Vec<Vec<u32>> = pairs.iter().map(|pair| pair.clean.clone()).collect();
    let request = Request {
        capture: &capture,
        ..Request::default()
    };
    let mut ends = Ends::run(model, &prompts, &request)?;
    let at = |roles: &[String], pair: &Pair, pos: usize| {
        roles
            .iter()
            .any(|role| pair.roles.get(role).is_some_and(|at| at.contains(&pos)))
    };
    let group_at = |i: usize, pos: usize| {
        let is_relation = match config.relation.is_empty() {
            true => !(task.bos && pos == 0),
            false => at(&config.relation, pairs[i], pos),
        };
        match at(&config.subject, pairs[i], pos) {
            true => SUBJECT,
            false if is_relation => RELATION,
            false => REST,
        }
    };
    let mut examples: Vec<(ExampleScores, Vec<u32>)> = Vec::new();
    let per_target = model.spec.n_layers * model.spec.n_heads * GROUPS.len() + 1;
    for (index, target) in TARGETS.into_iter().enumerate() {
        let tokens: Vec<Vec<u32>> = (pairs.iter())
            .map(|pair| watched(target, pair, task, config))
            .collect();
        let coefficients: Vec<Vec<(u32, f32)>> = (tokens.iter().zip(pairs))
            .map(|(tokens, pair)| {
                // A prompt without such attributes is read for its answer, and its rows are left out below.
                let tokens = if tokens.is_empty() {
                    &pair.target.answers
                } else {
                    tokens
                };
                let part = 1.0 / tokens.len() as f32;
                tokens.iter().map(|&token| (token, part)).collect()
            })
            .collect();
        let readout = ends.readout_of(&coefficients, true)?;
        if index == 0 {
            let clean = pairs.iter().zip(&readout.total);
            let new = |(pair, &total): (&&Pair, &f64)| (unmeasured(task, pair, total), vec![]);
            examples = clean.map(new).collect();
        }
        let mut columns = Vec::with_capacity(per_target);
        let mut mlps = vec![0.0; pairs.len()];
        for layer in 0..model.spec.n_layers {
            for by_position in sources(&mut ends, &readout.reader, layer)? {
                columns.extend(by_group(&by_position, GROUPS.len(), pairs.len(), group_at));
            }
            let mlp_out = Hook::at(Kind::MlpOut, layer);
            if ends.cache.contains(mlp_out) {
                let products = rowwise_dot(&ends.at_end(mlp_out)?, &readout.reader)?;
                mlps.iter_mut().zip(products).for_each(|(sum, p)| *sum += p);
            }
        }
        columns.push(mlps);
        for (i, (example, indices)) in examples.iter_mut().enumerate() {
            if !tokens[i].is_empty() {
                let first = index * per_target;
                indices.extend((first..first + per_target).map(|cell| cell as u32));
                example
                    .values
                    .extend(columns.iter().map(|column| column[i]));
            }
        }
    }
    let finish = |(mut example, indices): (ExampleScores, Vec<u32>)| {
        example.cells = Arc::from(indices);
        example
    };
    Ok(examples.into_iter().map(finish).collect())
}

/// The tokens of one target for one pair: its answers; answers of pairs with the same subject and another template (relation);
/// answers of pairs of the same template and another subject.
fn watched(target: &str, pair: &Pair, task: &Task, config: &SourceConfig) -> Vec<u32> {
    let subject = |pair: &Pair| -> Vec<u32> {
        let roles = config
            .subject
            .iter()
            .filter_map(|role| pair.roles.get(role));
        roles.flatten().map(|&pos| pair.clean[pos]).collect()
    };
    let own = subject(pair);
    let wanted = |other: &&Pair| match target {
        "subject attributes" => subject(other) == own && other.template != pair.template,
        _ => subject(other) != own && other.template == pair.template,
    };
    if target == "answer" {
        return pair.target.answers.clone();
    }
    let mut tokens: Vec<u32> = (task.pairs().iter().filter(wanted))
        .flat_map(|other| other.target.answers.iter().copied())
        .filter(|token| !pair.target.answers.contains(token))
        .collect();
    tokens.sort_unstable();
    tokens.dedup();
    tokens
}

/// Means over examples of the first `n` cells, which every example has.
fn means(all: &[ExampleScores], n: usize) -> Vec<f64> {
    let mut sums = vec![0.0; n];
    for example in all {
        sums.iter_mut()
            .zip(&example.values)
            .for_each(|(sum, value)| *sum += value);
    }
    sums.iter().map(|sum| sum / all.len() as f64).collect()
}

fn percentile(values: &[f64], q: f64) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let rank = q * (sorted.len() - 1) as f64;
    let (below, above) = (sorted[rank.floor() as usize], sorted[rank.ceil() as usize]);
    below + (rank - rank.floor()) * (above - below)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn classes_are_cut_at_the_ratio() {
        let class = |x, y| SourceClass::of(x, y, 10.0, 0.001);
        assert_eq!(class(1.0, 0.1), SourceClass::Subject);
        assert_eq!(class(1.0, 0.11), SourceClass::Mixed);
        assert_eq!(class(0.05, 0.5), SourceClass::Relation);
        // The floor keeps a negative or vanishing side from deciding everything.
        assert_eq!(class(0.009, -0.001), SourceClass::Mixed);
        assert_eq!(class(-0.3, 0.1), SourceClass::Negative);
    }
}
