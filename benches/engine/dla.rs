//! Direct logit attribution of every head beside the forward pass that it comes from.

use anyhow::Result;
use candlewick::methods::{DlaConfig, Part, Running, Subject, Watch, measure};
use candlewick::metric::Metric;
use candlewick::model::{Model, Tokenizer};
use candlewick::run;
use candlewick::task::{Pair, Task};

/// Repetitions, by turns.
const TIMES: usize = 15;

/// The whole method, from prompts to the table with its intervals, against the logits of the same prompts.
pub fn attributions(model: &Model, tokenizer: &Tokenizer) -> Result<()> {
    let (prompts, length) = (8, 16);
    let task = task(tokenizer, prompts, length)?;
    let clean: Vec<Vec<u32>> = task.pairs().iter().map(|pair| pair.clean.clone()).collect();
    let config = DlaConfig::by(Part::Head);
    let on = Subject { model, task: &task };
    let (ours, forward) = super::interleaved(
        TIMES,
        || {
            let scores = measure(on, &config, &Running::default(), &Watch::default())?;
            assert!(scores.table.height() > model.spec.n_layers * model.spec.n_heads);
            Ok(())
        },
        || {
            run::logits(model, &clean)?;
            Ok(())
        },
    )?;
    let name = format!("head attribution against a forward, {prompts} x {length}");
    super::compare(&name, &ours, &forward, 1.0, "1.10");
    Ok(())
}

/// Prompts of ordinary tokens; what they say does not matter to the time.
fn task(tokenizer: &Tokenizer, prompts: usize, length: usize) -> Result<Task> {
    let pair = |i: usize| {
        let token = |pos: usize| (1000 + (i * 7919 + pos * 104_729) % 40_000) as u32;
        let prompt: Vec<u32> = (0..length).map(token).collect();
        Pair::new(prompt.clone(), prompt).answer(2000).wrong(3000)
    };
    let pairs = (0..prompts).map(pair);
    Ok(Task::new("bench", tokenizer, Metric::LogitDiff, pairs)?)
}
