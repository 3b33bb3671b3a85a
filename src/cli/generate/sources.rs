//! The values of other runs that edits name.

use candlewick::hooks::{Edit, Hook, Op};
use candlewick::model::Model;
use candlewick::run::{MeanOf, Source, Sources, run_with_cache};

use super::prompts::Prompt;

/// The runs that edits name: `clean`, `corrupted`, and `base` for those that freeze.
pub fn sources(
    model: &Model,
    prompts: &[&Prompt],
    edits: &[Edit],
    mean: &Sources,
) -> candlewick::Result<Sources> {
    let mut sources = mean.clone();
    let is_pair = prompts.iter().all(|prompt| prompt.corrupted.is_some());
    let own: Vec<Vec<u32>> = prompts.iter().map(|prompt| prompt.tokens.clone()).collect();
    let other: Vec<Vec<u32>> = (prompts.iter())
        .filter_map(|prompt| prompt.corrupted.clone())
        .collect();
    let runs = [
        ("base", &own, true),
        ("clean", &own, is_pair),
        ("corrupted", &other, is_pair),
    ];
    for (name, tokens, exists) in runs {
        let hooks = hooks_of(edits, |op| match op {
            Op::Freeze => name == "base",
            Op::FromRun(run) => run == name && name != "base",
            _ => false,
        });
        if exists && !hooks.is_empty() {
            let (_, cache) = run_with_cache(model, tokens, &hooks)?;
            sources = sources.with(name, Source::run(cache)?);
        }
    }
    Ok(sources)
}

/// The mean over all positions of the corrupted prompts, or of the prompts given, if an edit wants it.
pub fn mean(model: &Model, prompts: &[Prompt], edits: &[Edit]) -> candlewick::Result<Sources> {
    let hooks = hooks_of(edits, |op| matches!(op, Op::Mean));
    if hooks.is_empty() {
        return Ok(Sources::default());
    }
    let mut mean = MeanOf::new(false);
    for prompt in prompts {
        let tokens = prompt.corrupted.as_ref().unwrap_or(&prompt.tokens);
        let (_, cache) = run_with_cache(model, std::slice::from_ref(tokens), &hooks)?;
        mean.add(&cache)?;
    }
    Ok(Sources::default().with("mean", mean.finish(&model.spec)?))
}

/// The hooks of some edits, each once.
fn hooks_of(edits: &[Edit], wanted: impl Fn(&Op) -> bool) -> Vec<Hook> {
    let mut hooks: Vec<Hook> = Vec::new();
    for edit in edits.iter().filter(|edit| wanted(&edit.op)) {
        if !hooks.contains(&edit.site.hook) {
            hooks.push(edit.site.hook);
        }
    }
    hooks
}
