//! The pairs of the tiny models as a task. Its texts are never read: the embedded model's tokenizer will do.

use std::sync::LazyLock;

use candlewick::hooks::Edit;
use candlewick::metric::Metric;
use candlewick::model::load::{LoadOptions, open};
use candlewick::model::{Model, Tokenizer};
use candlewick::run::{Request, run};
use candlewick::task::{Pair, Task};

use super::Pairs;

static TOKENIZER: LazyLock<Tokenizer> = LazyLock::new(|| {
    let opened = open("embedded", &LoadOptions::default());
    let opened = opened.expect("it is part of the library");
    opened.tokenizer().clone()
});

pub fn tokenizer() -> &'static Tokenizer {
    &TOKENIZER
}

/// Three pairs of ten tokens; roles `S1` and `S2`.
pub fn pairs() -> Vec<Pair> {
    let Pairs {
        clean,
        corrupted,
        targets,
        roles,
    } = Pairs::new();
    let prompts = clean.into_iter().zip(corrupted);
    let pairs = prompts.zip(targets.into_iter().zip(roles)).enumerate();
    pairs
        .map(|(index, ((clean, corrupted), (target, roles)))| Pair {
            index,
            target,
            roles,
            ..Pair::new(clean, corrupted)
        })
        .collect()
}

pub fn task() -> Task {
    task_of(pairs())
}

/// A task of these pairs, measured by the logit difference.
pub fn task_of(pairs: Vec<Pair>) -> Task {
    Task::new("tiny", tokenizer(), Metric::LogitDiff, pairs).expect("a task of tiny pairs")
}

/// The same task with every pair changed.
pub fn changed(task: &Task, change: impl FnMut(&mut Pair)) -> Task {
    let mut pairs = task.pairs().to_vec();
    pairs.iter_mut().for_each(change);
    task.with_pairs(pairs).expect("still a task")
}

/// The first pairs of a task.
pub fn first(task: &Task, n: usize) -> Task {
    let pairs = task.pairs()[..n].to_vec();
    task.with_pairs(pairs).expect("still a task")
}

/// The logit difference of a pair's clean prompt, in one whole run with these edits.
pub fn logit_diff(model: &Model, pair: &Pair, edits: &[Edit]) -> f64 {
    let request = Request {
        edits,
        roles: std::slice::from_ref(&pair.roles),
        ..Request::default()
    };
    let run = run(model, std::slice::from_ref(&pair.clean), &request).expect("runs");
    let row: Option<Vec<f32>> = run.logits.and_then(|t| t.get(0).ok()?.to_vec1().ok());
    let row = row.expect("one row");
    let columns = pair.target.columns();
    let read: Vec<f32> = columns.iter().map(|&token| row[token as usize]).collect();
    let value = Metric::LogitDiff.value(&read, &pair.target, None);
    value.expect("a value")
}
