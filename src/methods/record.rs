//! What every method writes down of a measurement: model, task, prompts, settings.

use std::collections::BTreeMap;
use std::time::SystemTime;

use serde_json::json;

use crate::model::Model;
use crate::scores::{PromptTokens, Provenance};
use crate::task::{Pair, Task};

/// Seconds since 1970.
pub(super) fn now() -> u64 {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    now.map_or(0, |time| time.as_secs())
}

/// Everything but what the measurements themselves say, which [`Scores::assemble`](crate::scores::Scores::assemble) adds.
pub(super) fn provenance(
    model: &Model,
    task: &Task,
    mut settings: serde_json::Value,
    seconds: f64,
    warnings: Vec<String>,
) -> Provenance {
    let prompt = |pair: &Pair| PromptTokens {
        example: pair.index,
        template: pair.template,
        clean_text: pair.clean_text.clone(),
        corrupted_text: pair.corrupted_text.clone(),
        clean: pair.clean.clone(),
        corrupted: pair.corrupted.clone(),
        answers: pair.target.answers.clone(),
        wrong: pair.target.wrong.clone(),
        then: pair.target.then.clone(),
        after: pair.target.after,
        roles: pair.roles.clone(),
    };
    settings["corruption"] = json!(task.corruption);
    Provenance {
        created: now(),
        seconds,
        config: settings,
        model: model.origin.clone(),
        spec: serde_json::to_value(&model.spec).unwrap_or_default(),
        dtype: model.number_formats(),
        device: device_name(model),
        task: task.name.clone(),
        task_text: task.source.clone(),
        bos: task.bos,
        chat: task.chat,
        prompts: task.pairs().iter().map(prompt).collect(),
        token_texts: token_texts(task),
        dropped: task.dropped.len(),
        drops: task.drop_counts(),
        warnings,
        ..Provenance::default()
    }
}

/// The text of every token of the prompts and of their answers.
fn token_texts(task: &Task) -> BTreeMap<u32, String> {
    let text = |token| (token, task.text(token));
    task.tokens().into_iter().map(text).collect()
}

pub(super) fn device_name(model: &Model) -> String {
    match &model.device {
        candle_core::Device::Cpu => "cpu".into(),
        candle_core::Device::Cuda(_) => "cuda".into(),
        candle_core::Device::Metal(_) => "metal".into(),
    }
}
