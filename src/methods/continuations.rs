//! What was generated as a table, and how far one continuation is from another.

use std::collections::HashMap;
use std::time::Duration;

use serde_json::{Value, json};

use super::record::{device_name, now};
use crate::error::Result;
use crate::model::{Model, Tokenizer};
use crate::scores::statistics::wilson;
use crate::scores::{
    Bars, Cell, Detail, Direction, ExampleScores, Measured, Provenance, Scores, ScoresMeta, View,
};

const DISTANCE: &str = "edit_distance";
const SHARED: &str = "shared_prefix";

/// Which run wrote a continuation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Writer {
    /// The model as it is.
    Plain,
    /// The model with edits in force.
    Edited,
    /// The model as it is, or somebody else; what noise is found out of.
    Original,
    /// The edited model, with the noise of the original.
    Counterfactual,
}

impl Writer {
    pub fn name(self) -> &'static str {
        match self {
            Writer::Plain => "plain",
            Writer::Edited => "edited",
            Writer::Original => "original",
            Writer::Counterfactual => "counterfactual",
        }
    }
}

/// How far two token strings are from each other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Distance {
    /// Tokens inserted, left out or exchanged, at the least (Levenshtein).
    pub edits: usize,
    /// Tokens before the first difference.
    pub shared_prefix: usize,
    /// Tokens of the longer one.
    pub longer: usize,
}

impl Distance {
    pub fn between(one: &[u32], other: &[u32]) -> Self {
        let pairs = one.iter().zip(other);
        Distance {
            edits: strsim::generic_levenshtein(&one.to_vec(), &other.to_vec()),
            shared_prefix: pairs.take_while(|(a, b)| a == b).count(),
            longer: one.len().max(other.len()),
        }
    }
}

/// A continuation of a prompt.
#[derive(Debug, Clone, PartialEq)]
pub struct Continuation {
    /// The number of the prompt, from 0.
    pub prompt: usize,
    pub prompt_text: String,
    /// Whether the prompt is one on which nothing should change.
    pub unrelated: bool,
    pub writer: Writer,
    /// What the tokens add to the text of the prompt.
    pub text: String,
    pub tokens: Vec<u32>,
    /// Of each token, in nats, under the model that wrote it, before temperature and cut-offs.
    pub log_probs: Vec<f64>,
    /// From what the model writes without edits, where that was asked for.
    pub distance: Option<Distance>,
}

impl Continuation {
    pub fn log_prob(&self) -> f64 {
        self.log_probs.iter().sum()
    }
}

/// What tokens add to the text of a prompt: of a text of its own some tokenizers leave out the first space.
/// # Errors
/// Those of decoding.
pub fn continued_text(tokenizer: &Tokenizer, prompt: &[u32], tokens: &[u32]) -> Result<String> {
    let before = tokenizer.decode(prompt)?;
    let all = tokenizer.decode(&[prompt, tokens].concat())?;
    match all.strip_prefix(&before) {
        Some(text) => Ok(text.into()),
        None => tokenizer.decode(tokens),
    }
}

/// How many of the prompts were continued in another way, and how far the continuations are from each other: a line for the prompts,
/// and one for the unrelated ones, whose share is the rate of side effects.
pub fn changes(continuations: &[Continuation]) -> Vec<String> {
    let of_group = |unrelated: bool, name: &str| {
        let group = continuations
            .iter()
            .filter(|one| one.unrelated == unrelated);
        let distances: Vec<Distance> = group.filter_map(|one| one.distance).collect();
        let n = distances.len();
        if n == 0 {
            return None;
        }
        let changed = distances.iter().filter(|one| one.edits > 0).count();
        let mean = |of: fn(&Distance) -> usize| {
            distances.iter().map(|one| of(one) as f64).sum::<f64>() / n as f64
        };
        let share = |one: &Distance| one.edits as f64 / one.longer.max(1) as f64;
        let (low, high) = wilson(changed, n);
        Some(format!(
            "{changed} of {n} {name} go on in another way ({:.0}%, 95% interval {:.0} to {:.0}%); in the mean {:.1} of {:.1} tokens are edits \
             ({:.2} of a text), and {:.1} tokens stand before the first difference",
            100.0 * changed as f64 / n as f64,
            100.0 * low,
            100.0 * high,
            mean(|one| one.edits),
            mean(|one| one.longer),
            distances.iter().map(share).sum::<f64>() / n as f64,
            mean(|one| one.shared_prefix),
        ))
    };
    let of_groups = [
        of_group(false, "prompts"),
        of_group(true, "unrelated prompts"),
    ];
    of_groups.into_iter().flatten().collect()
}

/// What was generated, and how, for a table.
#[derive(Debug, Clone, Default)]
pub struct Written<'a> {
    pub continuations: &'a [Continuation],
    /// The name of the task, or of what was there in its place.
    pub task: &'a str,
    pub bos: bool,
    pub chat: bool,
    pub seed: u64,
    /// Edits, sampling, lengths: all that decided the texts.
    pub settings: Value,
    pub took: Duration,
}

/// The table: a row for each continuation, with the prompt (`src`), the text (`dst`), which run wrote it (`component`), whether it is what the
/// model writes without edits (`class`), and whether the prompt is an unrelated one (`role`). Beside it `edit_distance` and
/// `shared_prefix`, in tokens. Token ids and their log probabilities are in the provenance.
/// # Units
/// `value`, `score`: the log probability of the text, in nats.
/// # Errors
/// Those of [`Measured::table`]: there must be a continuation.
pub fn continuations_table(model: &Model, written: Written<'_>) -> Result<Scores> {
    let mut measured = Measured {
        notes: changes(written.continuations),
        ..Measured::default()
    };
    // Prompts that are the same and go on in the same way share their cells.
    let mut cells: HashMap<Cell, u32> = HashMap::new();
    for one in written.continuations {
        let cell = Cell {
            component: one.writer.name().into(),
            src: Some(one.prompt_text.clone()),
            dst: Some(one.text.clone()),
            role: one.unrelated.then(|| "unrelated".into()),
            class: one.distance.map(|distance| match distance.edits {
                0 => "same".into(),
                _ => "changed".into(),
            }),
            ..Cell::default()
        };
        let mut values = vec![(cell.clone(), one.log_prob())];
        if let Some(distance) = one.distance {
            for (measure, value) in [(DISTANCE, distance.edits), (SHARED, distance.shared_prefix)] {
                let measure = Some(measure.into());
                values.push((
                    Cell {
                        measure,
                        ..cell.clone()
                    },
                    value as f64,
                ));
            }
        }
        if measured.examples.last().map(|last| last.example) != Some(one.prompt) {
            measured.examples.push(ExampleScores {
                example: one.prompt,
                clean: f64::NAN,
                corrupted: f64::NAN,
                ..ExampleScores::default()
            });
        }
        let example = measured.examples.last_mut().expect("it was pushed");
        let mut own: Vec<(u32, f64)> = (example.cells.iter().copied())
            .zip(example.values.drain(..))
            .collect();
        for (cell, value) in values {
            let next = measured.cells.len() as u32;
            let at = *cells.entry(cell.clone()).or_insert(next);
            if at == next {
                measured.cells.push(cell);
            }
            own.push((at, value));
        }
        own.sort_by_key(|(at, _)| *at);
        example.cells = own.iter().map(|(at, _)| *at).collect();
        example.values = own.into_iter().map(|(_, value)| value).collect();
    }
    let tokens = written.continuations.iter().map(|one| {
        json!({
            "prompt": one.prompt,
            "writer": one.writer.name(),
            "tokens": one.tokens,
            "log_probs": one.log_probs,
        })
    });
    let mut config = written.settings;
    config["continuations"] = tokens.collect();
    let about = Provenance {
        created: now(),
        seconds: written.took.as_secs_f64(),
        config,
        model: model.origin.clone(),
        spec: serde_json::to_value(&model.spec).unwrap_or_default(),
        dtype: model.number_formats(),
        device: device_name(model),
        task: written.task.into(),
        bos: written.bos,
        chat: written.chat,
        notes: measured.notes.clone(),
        views: vec![View::Bars(Bars {
            heading: "continuations, with their log probabilities in nats".into(),
            component: None,
            measure: "log_prob".into(),
            item: "{component}".into(),
            text: "{src} ->{dst}".into(),
        })],
        ..Provenance::default()
    };
    let meta = ScoresMeta::new(
        "generate",
        "log_prob",
        "nats",
        Direction::Direct,
        written.seed,
    );
    measured.table(&meta, Detail::PerExample, about)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lab::Lab;

    #[test]
    fn a_distance_is_counted_by_hand() {
        let distance = Distance::between(&[1, 2, 3, 4], &[1, 2, 4, 5, 6]);
        // 3 is left out; 5 and 6 come after.
        assert_eq!((distance.edits, distance.shared_prefix), (3, 2));
        assert_eq!(distance.longer, 5);
        assert_eq!(Distance::between(&[7, 8], &[7, 8]).edits, 0);
    }

    fn continuation(prompt: usize, writer: Writer, tokens: &[u32], from: &[u32]) -> Continuation {
        Continuation {
            prompt,
            prompt_text: "then".into(),
            unrelated: prompt == 2,
            writer,
            text: format!("{tokens:?}"),
            tokens: tokens.to_vec(),
            log_probs: vec![-0.5; tokens.len()],
            distance: (writer == Writer::Counterfactual).then(|| Distance::between(tokens, from)),
        }
    }

    #[test]
    fn a_table_has_a_row_for_each_continuation_and_its_distance_beside() {
        let lab = Lab::open("embedded", "embedded").expect("it is in the binary");
        let of = |prompt, original: &[u32], other: &[u32]| {
            [
                continuation(prompt, Writer::Original, original, &[]),
                continuation(prompt, Writer::Counterfactual, other, original),
            ]
        };
        // Two prompts that are the same, and an unrelated one.
        let all = [
            of(0, &[1, 2], &[1, 3]),
            of(1, &[1, 2], &[1, 2]),
            of(2, &[4], &[4]),
        ]
        .concat();
        let written = Written {
            continuations: &all,
            task: "mine",
            settings: json!({}),
            ..Written::default()
        };
        let scores = continuations_table(&lab.model, written).expect("a table");
        let texts = scores.texts("component").expect("filled");
        assert_eq!(texts.len(), 6);
        let values = scores.floats("score").expect("filled");
        assert_eq!(values[1], Some(-1.0));
        assert_eq!(values[5], Some(-0.5));
        let beside = scores.side(crate::scores::MEASURES).expect("distances");
        assert_eq!(beside.table.height(), 6);
        let notes = &scores.provenance.notes;
        assert!(notes[0].starts_with("1 of 2 prompts"), "{notes:?}");
        assert!(notes[1].starts_with("0 of 1 unrelated"), "{notes:?}");
        assert_eq!(scores.provenance.warnings, Vec::<String>::new());
    }
}
