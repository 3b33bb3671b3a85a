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

use std::collections::{BTreeMap, BTreeSet, HashMap};

use serde_json::{Value, json};

use super::dla::sources;
use super::groups::by_group;
use super::readout::{Ends, every_layer, rowwise_dot};
use crate::error::{Error, Result};
use crate::hooks::{Hook, Kind, Ln};
use crate::methods::captured::captured_bytes;
use crate::methods::columns::{Columns, judged};
use crate::methods::method::{
    Cost, Method, Needs, Preparation, Prepared, Running, Subject, Unit, check_answers, pairs_of,
};
use crate::model::ModelSpec;
use crate::run::Progress;
use crate::scores::statistics::percentile;
use crate::scores::{Cell, Direction, ExampleScores, Lists, Measured, ScoresMeta, View};
use crate::task::{Pair, Task};

/// Which positions belong to what, and where the classes are cut.
///
/// Rows: each head by group (`role`), for the `target`s `answer`, `subject attributes` and `relation attributes` (the last two
/// where the task has such pairs), with the head's `class`; one row for all MLPs together; and for each classed head and cut-off
/// a row with metric `at_ratio`, whose score is subject and relation together.
/// # Units
/// `score`: logits, less the mean over the vocabulary.
#[derive(Debug, Clone, PartialEq)]
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
    /// Of the bootstrap [default: the task's].
    pub seed: Option<u64>,
}

impl SourceConfig {
    /// A subject, everything else as the relation, and the cut-offs 10, 3 and 30.
    pub fn new(subject: impl IntoIterator<Item = impl Into<String>>) -> Self {
        SourceConfig {
            subject: subject.into_iter().map(Into::into).collect(),
            relation: Vec::new(),
            ratios: vec![10.0, 3.0, 30.0],
            percentile: 95.0,
            seed: None,
        }
    }
}

impl Method for SourceConfig {
    fn header(&self, task: &Task) -> ScoresMeta {
        ScoresMeta::new(
            "source_classes",
            METRIC,
            "logits",
            Direction::Direct,
            self.seed.unwrap_or(task.seed),
        )
    }

    fn settings(&self) -> Value {
        json!({
            "subject": self.subject,
            "relation": self.relation,
            "ratios": self.ratios,
            "percentile": self.percentile,
        })
    }

    fn needs(&self, _: &Task) -> Needs {
        Needs {
            decoder: Some("attributions by source token"),
            ..Needs::default()
        }
    }

    fn check(&self, _: &ModelSpec, task: &Task) -> Result<()> {
        let known = task.all_roles();
        let mut named = self.subject.iter().chain(&self.relation);
        if let Some(role) = named.find(|role| !known.contains(role)) {
            return Err(Error::UnknownRole {
                role: role.clone(),
                known: known.join(", "),
            });
        }
        if self.subject.is_empty() || self.ratios.is_empty() {
            return Err(Error::invalid(
                "classes of heads need the roles of the subject (`SourceConfig::subject = ROLE`) and at least one cut-off",
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
        check_answers(task, METRIC)
    }

    fn views(&self, _: &Task) -> Vec<View> {
        let classes = Lists {
            measures: vec!["at_ratio".into()],
            title: "{target}, {class}:".into(),
            item: "{head}".into(),
            ..Lists::default()
        };
        vec![View::Grids, View::Lists(classes), View::Strongest]
    }

    fn prepare<'a>(&'a self, on: Subject<'a>, _: &'a Running) -> Preparation<'a> {
        let of = |kind| every_layer(on.model, kind);
        let scale = Kind::Scale(Ln::OnePost);
        Ok(Box::new(Classing {
            on,
            config: self,
            capture: [of(Kind::Pattern), of(Kind::V), of(Kind::MlpOut), of(scale)].concat(),
            attributes: Attributes::new(self, on.task),
            cells: cells(&on.model.spec),
        }))
    }
}

const METRIC: &str = "centred_logit";

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
        if subject + relation < 0.0 {
            SourceClass::Negative
        } else if x >= ratio * y {
            SourceClass::Subject
        } else if y >= ratio * x {
            SourceClass::Relation
        } else {
            SourceClass::Mixed
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

/// What contributions are to, in the order of the table.
const TARGETS: [&str; 3] = ["answer", "subject attributes", "relation attributes"];

/// For each target every head by group, then all MLPs together.
fn cells(spec: &ModelSpec) -> Vec<Cell> {
    let mut cells = Vec::new();
    for target in TARGETS {
        for (layer, head) in spec.heads() {
            cells.extend(GROUPS.map(|group| Cell {
                role: Some(group.into()),
                target: Some(target.into()),
                head: Some(head as u32),
                ..Cell::in_layer(Kind::Result.name(), layer)
            }));
        }
        cells.push(Cell {
            component: Kind::MlpOut.name().into(),
            target: Some(target.into()),
            ..Cell::default()
        });
    }
    cells
}

/// A checked run in progress.
struct Classing<'a> {
    on: Subject<'a>,
    config: &'a SourceConfig,
    capture: Vec<Hook>,
    attributes: Attributes,
    cells: Vec<Cell>,
}

impl Prepared for Classing<'_> {
    fn cells(&self) -> &[Cell] {
        &self.cells
    }

    fn bytes(&self, length: usize) -> usize {
        captured_bytes(&self.capture, &self.on.model.spec, length)
    }

    fn cost(&self, unit: &Unit) -> Result<Cost> {
        Ok(Cost::passes(unit.items.len() as f64))
    }

    fn measure(&self, unit: &Unit, _: &dyn Progress) -> Result<Vec<ExampleScores>> {
        let Subject { model, task } = self.on;
        let pairs = pairs_of(task, &unit.items);
        let mut ends = Ends::keeping(model, &pairs, &self.capture)?;
        let mut columns = Columns::new(pairs.len());
        let mut clean = Vec::new();
        for target in TARGETS {
            let tokens: Vec<Vec<u32>> = (pairs.iter())
                .map(|pair| self.attributes.of(target, pair))
                .collect();
            let coefficients: Vec<Vec<(u32, f32)>> = (tokens.iter().zip(&pairs))
                .map(|(tokens, pair)| {
                    // A prompt without such attributes is read for its answer, and has no such rows.
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
            if clean.is_empty() {
                clean.clone_from(&readout.total);
            }
            let mut mlps = vec![0.0; pairs.len()];
            let mut push = |values: &[f64]| {
                columns.push_some(|i| (!tokens[i].is_empty()).then_some(values[i]));
            };
            for layer in 0..model.spec.n_layers {
                for by_position in sources(&mut ends, &readout.reader, layer)? {
                    let group_at = |i: usize, pos: usize| self.group_at(pairs[i], pos);
                    for sums in by_group(&by_position, GROUPS.len(), pairs.len(), group_at) {
                        push(&sums);
                    }
                }
                let mlp_out = Hook::at(Kind::MlpOut, layer);
                if ends.cache.contains(mlp_out) {
                    let products = rowwise_dot(&ends.at_end(mlp_out)?, &readout.reader)?;
                    mlps.iter_mut().zip(products).for_each(|(sum, p)| *sum += p);
                }
            }
            push(&mlps);
        }
        let examples = columns.into_examples(task, &unit.items, &clean);
        Ok(judged(examples, ends.judge(&pairs)?))
    }

    fn conclude(&self, measured: &mut Measured, _: &dyn Progress) -> Result<()> {
        let spec = &self.on.model.spec;
        let heads: Vec<(usize, usize)> = spec.heads().collect();
        // Classes are cut on means over prompts, never on a mean of ratios.
        let means = measured.means(Direction::Direct, false);
        let of = |head: usize, group: usize| means[head * GROUPS.len() + group];
        let strengths: Vec<f64> = (0..heads.len())
            .map(|head| (of(head, SUBJECT) + of(head, RELATION)).abs())
            .collect();
        let least = percentile(&mut strengths.clone(), self.config.percentile / 100.0);
        let of_answer = &means[..heads.len() * GROUPS.len()];
        let floor = 1e-3
            * of_answer
                .iter()
                .fold(0f64, |most, mean| most.max(mean.abs()));
        let class = |head: usize, ratio: f64| {
            SourceClass::of(of(head, SUBJECT), of(head, RELATION), ratio, floor).name()
        };
        let classed: Vec<usize> = (0..heads.len())
            .filter(|&head| strengths[head] >= least)
            .collect();
        let per_target = heads.len() * GROUPS.len() + 1;
        for target in 0..TARGETS.len() {
            for &head in &classed {
                let first = target * per_target + head * GROUPS.len();
                for cell in &mut measured.cells[first..first + GROUPS.len()] {
                    cell.class = Some(class(head, self.config.ratios[0]).into());
                }
            }
        }
        let mut at_ratios = Vec::new();
        for &ratio in &self.config.ratios {
            at_ratios.extend(classed.iter().map(|&head| Cell {
                head: Some(heads[head].1 as u32),
                target: Some(format!("ratio {ratio}")),
                measure: Some("at_ratio".into()),
                class: Some(class(head, ratio).into()),
                ..Cell::in_layer(Kind::Result.name(), heads[head].0)
            }));
        }
        measured.append(at_ratios, |_, example| {
            let both = |&head: &usize| {
                let of = |group: usize| example.value(head * GROUPS.len() + group);
                Some(of(SUBJECT)? + of(RELATION)?)
            };
            let of_classed: Vec<Option<f64>> = classed.iter().map(both).collect();
            of_classed.repeat(self.config.ratios.len())
        });
        measured.drop_unmeasured();
        let pairs = self.on.task.pairs();
        if pairs.iter().any(|pair| pair.template != pairs[0].template) {
            measured.warnings.push(
                "the pairs come from several templates: if these are several relations, take one at a time (`ExpandOptions::templates = 0`), \
                 because the class of a head is that under one relation"
                    .into(),
            );
        }
        Ok(())
    }
}

impl Classing<'_> {
    fn group_at(&self, pair: &Pair, pos: usize) -> usize {
        let is_of = |roles: &[String]| {
            let of = |role: &String| pair.roles.get(role).is_some_and(|at| at.contains(&pos));
            roles.iter().any(of)
        };
        let is_relation = if self.config.relation.is_empty() {
            !(self.on.task.bos && pos == 0)
        } else {
            is_of(&self.config.relation)
        };
        if is_of(&self.config.subject) {
            SUBJECT
        } else if is_relation {
            RELATION
        } else {
            REST
        }
    }
}

/// The answers of a task, by what they are about.
struct Attributes {
    /// The roles that make up a subject.
    roles: Vec<String>,
    /// Of each subject its answers, with the template that asked for them.
    of_subject: HashMap<Vec<u32>, BTreeSet<(usize, u32)>>,
    /// Of each template its answers, with the subjects that they are answers for.
    of_template: BTreeMap<usize, BTreeMap<u32, BTreeSet<Vec<u32>>>>,
}

impl Attributes {
    fn new(config: &SourceConfig, task: &Task) -> Self {
        let mut all = Attributes {
            roles: config.subject.clone(),
            of_subject: HashMap::new(),
            of_template: BTreeMap::new(),
        };
        for pair in task.pairs() {
            let subject = all.subject(pair);
            let of_subject = all.of_subject.entry(subject.clone()).or_default();
            let of_template = all.of_template.entry(pair.template).or_default();
            for &answer in &pair.target.answers {
                of_subject.insert((pair.template, answer));
                of_template
                    .entry(answer)
                    .or_default()
                    .insert(subject.clone());
            }
        }
        all
    }

    /// The tokens that make up a pair's subject.
    fn subject(&self, pair: &Pair) -> Vec<u32> {
        let roles = self.roles.iter().filter_map(|role| pair.roles.get(role));
        roles.flatten().map(|&pos| pair.clean[pos]).collect()
    }

    /// The tokens of one target for one pair: its answers; answers of pairs with the same subject and another template (relation);
    /// answers of pairs of the same template and another subject.
    fn of(&self, target: &str, pair: &Pair) -> Vec<u32> {
        let answers = &pair.target.answers;
        let own = self.subject(pair);
        let mut tokens: Vec<u32> = match target {
            "answer" => return answers.clone(),
            "subject attributes" => (self.of_subject.get(&own).into_iter().flatten())
                .filter(|(template, _)| *template != pair.template)
                .map(|(_, token)| *token)
                .collect(),
            _ => (self.of_template.get(&pair.template).into_iter().flatten())
                .filter(|(_, subjects)| subjects.len() > 1 || !subjects.contains(&own))
                .map(|(token, _)| *token)
                .collect(),
        };
        tokens.retain(|token| !answers.contains(token));
        tokens.sort_unstable();
        tokens.dedup();
        tokens
    }
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

    #[test]
    fn attributes_are_those_of_the_subject_and_those_of_the_relation() {
        let mut all = Attributes {
            roles: vec!["S".into()],
            of_subject: HashMap::new(),
            of_template: BTreeMap::new(),
        };
        // Subjects 1 and 2 under relation 0, subject 1 under relation 1; both have answer 8 under relation 0.
        for (subject, template, answer) in [(1, 0, 7), (2, 0, 9), (1, 1, 5), (1, 0, 8), (2, 0, 8)] {
            let of_subject = all.of_subject.entry(vec![subject]).or_default();
            of_subject.insert((template, answer));
            let of_template = all.of_template.entry(template).or_default();
            of_template.entry(answer).or_default().insert(vec![subject]);
        }
        let pair = Pair::new([1, 3], [1, 3]).role("S", [0]).answer(7);
        assert_eq!(all.of("answer", &pair), [7]);
        assert_eq!(all.of("subject attributes", &pair), [5]);
        assert_eq!(all.of("relation attributes", &pair), [8, 9]);
    }
}
