//! Mean ablation of every head, beside one whole forward for each head and prompt.

use anyhow::{Context, Result};
use candlewick::methods::{AblationConfig, PatchConfig, PatchSource, Subject, ablation};
use candlewick::model::{Model, Tokenizer};
use candlewick::run;
use candlewick::task::{ExpandOptions, TaskFile, expand};

use crate::machine::time;

/// Prompts, unless `CANDLEWICK_BENCH_PROMPTS` says how many.
const PROMPTS: usize = 100;

pub fn ablate(model: &Model, tokenizer: &Tokenizer) -> Result<()> {
    let prompts = match std::env::var("CANDLEWICK_BENCH_PROMPTS") {
        Ok(text) => text.parse().context("a number of prompts")?,
        Err(_) => PROMPTS,
    };
    let options = ExpandOptions {
        n_pairs: Some(prompts),
        templates: vec![0],
        ..ExpandOptions::default()
    };
    let task = expand(&TaskFile::open("ioi")?, tokenizer, &options)?;
    let config = AblationConfig::new(PatchConfig {
        source: PatchSource::Mean,
        ..PatchConfig::sites("z")?
    });
    let one_by_one = |upto: usize| -> Result<f64> {
        let pairs = &task.pairs()[..upto.min(task.pairs().len())];
        let (took, done) = time(|| -> Result<()> {
            for pair in pairs {
                run::logits(model, std::slice::from_ref(&pair.clean))?;
            }
            Ok(())
        });
        done?;
        Ok(took.wall / pairs.len() as f64)
    };
    // Before and after, since another process may start or end in between.
    one_by_one(4)?;
    let before = one_by_one(20)?;
    let (took, done) = time(|| ablation(Subject { model, task: &task }, &config));
    done?;
    let after = one_by_one(20)?;
    let heads = model.spec.n_layers * model.spec.n_heads;
    let each = took.wall / (task.pairs().len() * heads) as f64;
    println!(
        "mean ablation of {heads} heads over {} prompts of {} tokens: {:.1} s, {:.2} ms a head and prompt; a whole forward of one \
         prompt {:.2} ms before and {:.2} ms after; 1/{:.1} of a forward (target 1/5)\n",
        task.pairs().len(),
        task.pairs()[0].clean.len(),
        took.wall,
        1e3 * each,
        1e3 * before,
        1e3 * after,
        (before + after) / 2.0 / each
    );
    Ok(())
}
