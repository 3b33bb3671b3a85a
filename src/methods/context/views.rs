//! What is printed of a table of sentences: bars for each method, what finds the right sentence, heads.

use super::config::{ContextConfig, ContextMethod};
use super::rows::{ANSWER_RIGHT, HEAD_TOP1, LENS, LENS_CONTROL, TOP1};
use crate::scores::{Bars, Lists, View};
use crate::task::Task;

/// How many heads and MLPs are listed.
const LISTED: usize = 8;

pub(super) fn views(config: &ContextConfig, task: &Task) -> Vec<View> {
    let mut views = Vec::new();
    for method in &config.methods {
        let measure = method.measure(config.kl_order);
        views.push(View::Bars(Bars {
            heading: heading(method.name(), measure, method.unit(), task.pairs().len()),
            component: Some(method.name().into()),
            measure: measure.into(),
            item: "{role}".into(),
            text: "{src}".into(),
        }));
    }
    if config.questions.known_contexts(task) > 0 {
        views.push(View::Bars(Bars {
            heading: "top-1: how often the best sentence is the right one".into(),
            measure: TOP1.into(),
            item: "{component}".into(),
            ..Bars::default()
        }));
        if config.asks(ContextMethod::AttnAttrib) {
            views.push(View::Lists(Lists {
                heading: Some(
                    "heads whose highest weight is on the right sentence most often, on these same questions (attn-attrib is chosen on others)".into(),
                ),
                measures: vec![HEAD_TOP1.into()],
                title: "top-1".into(),
                item: "{head}".into(),
                highest: Some(LISTED),
                ..Lists::default()
            }));
        }
    }
    if config.steer.is_some() {
        views.push(View::Bars(Bars {
            heading: "share of answers that are right: unsteered, steered by what was found, and by something else (control)".into(),
            measure: ANSWER_RIGHT.into(),
            item: "{component}".into(),
            ..Bars::default()
        }));
    }
    if config.lens {
        let listed = |component: &str, heading: Option<String>| {
            View::Lists(Lists {
                heading,
                component: Some(component.into()),
                measures: vec![LENS.into(), LENS_CONTROL.into()],
                title: "{measure}".into(),
                item: "{head}".into(),
                highest: Some(LISTED),
                ..Lists::default()
            })
        };
        let heading = "whose own output says other words without the best sentence, in nats, and without another one: heads, then MLPs";
        views.push(listed("attn.hook_z", Some(heading.into())));
        views.push(listed("hook_mlp_out", None));
    }
    views
}

/// What is drawn, each word once.
fn heading(method: &str, measure: &str, unit: &str, questions: usize) -> String {
    let mut parts = vec![measure, unit];
    parts.dedup();
    parts.retain(|part| *part != method);
    if questions > 1 {
        parts.push("the mean by the sentence's place");
    }
    match parts.is_empty() {
        true => method.into(),
        false => format!("{method}: {}", parts.join(", ")),
    }
}
