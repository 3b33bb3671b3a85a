//! What a table is, in a few named facts: for `candlewick show`, and at the head of a report.

use serde_json::Value;

use crate::scores::{Direction, Provenance, Scores};
use crate::text::visible;

/// The facts of a table, each with its name, safe to show. `of` is how many rows there were before some were left out, with those of tables
/// beside it.
pub fn facts(scores: &Scores, of: usize) -> Vec<(&'static str, String)> {
    let p = &scores.provenance;
    let base = p.direction.base();
    let is_direct = p.direction == Direction::Direct;
    let changed = if is_direct {
        "each value is itself, no run is subtracted".to_string()
    } else {
        format!("the {base} run is changed")
    };
    // Some methods look at no metric of a run, and what they measure is nothing in both.
    let has_none = p.mean_clean.is_nan() || p.mean_clean == 0.0 && p.mean_corrupted == 0.0;
    let runs = match (has_none, is_direct) {
        (true, _) => String::new(),
        (false, true) => format!(": clean {:.4}", p.mean_clean),
        (false, false) => format!(
            ": clean {:.4}, corrupted {:.4}",
            p.mean_clean, p.mean_corrupted
        ),
    };
    let own = scores.table.height();
    let beside = scores.n_rows() - own;
    let mut rows = match own + beside {
        shown if shown == of => own.to_string(),
        shown => format!("{shown} of {of}"),
    };
    if beside > 0 {
        rows += &match own + beside == of {
            true => format!(", and {beside} of other measures"),
            false => format!(", {beside} of them of other measures"),
        };
    }
    let unit = match p.unit.as_str() {
        "" => String::new(),
        unit => format!(" ({unit})"),
    };
    // A circuit's file was measured by nobody here, and the weights alone have no task.
    let is_measured = p.created > 0;
    let method = match is_measured {
        true => format!("{} ({}, {changed})", p.method, p.direction),
        false => p.method.clone(),
    };
    let made = format!(
        "{} in {:.1} s by candlewick {}",
        utc(p.created),
        p.seconds,
        p.version
    );
    let mut facts = vec![("method", method)];
    facts.extend(put_in_place(p).map(|source| ("source", source)));
    facts.push(("model", model(p)));
    facts.extend((!p.task.is_empty()).then(|| ("task", task(p))));
    facts.push(("metric", format!("{}{runs}{unit}", p.metric)));
    facts.push(("rows", rows));
    facts.extend(is_measured.then_some(("made", made)));
    facts.extend(p.notes.iter().map(|note| ("note", note.clone())));
    facts.extend(
        p.warnings
            .iter()
            .map(|warning| ("warning", warning.clone())),
    );
    for (_, fact) in &mut facts {
        *fact = visible(fact);
    }
    facts
}

fn model(p: &Provenance) -> String {
    let revision = p
        .model
        .revision
        .as_deref()
        .map_or(String::new(), |revision| format!(" at {revision}"));
    let hash: String = p.model.weight_hash.get().chars().take(12).collect();
    if hash.is_empty() {
        return format!("{}{revision}", p.model.id);
    }
    format!(
        "{}{revision} ({}, {} on {}, weights {hash})",
        p.model.id, p.model.storage, p.dtype, p.device
    )
}

/// What an ablation puts in place, which is not its default everywhere, and of which other model.
fn put_in_place(p: &Provenance) -> Option<String> {
    let source = match p
        .config
        .get("source")
        .or_else(|| p.config.get("reference"))?
    {
        Value::String(name) if name == "Pair" => "pair".to_string(),
        Value::String(name) => {
            let letter = |c: char| match c.is_uppercase() {
                true => format!("-{}", c.to_lowercase()),
                false => c.to_string(),
            };
            let name: String = name.chars().map(letter).collect();
            name.trim_start_matches('-').to_string()
        }
        other => format!("scale:{}", other.get("Scale")?.as_f64()?),
    };
    let other = p.config.pointer("/source_model/id").and_then(Value::as_str);
    match other {
        Some(other) => Some(format!("{source}, of `{other}`")),
        None if source == "pair" => None,
        None => Some(source),
    }
}

fn task(p: &Provenance) -> String {
    if p.prompts.is_empty() {
        return p.task.clone();
    }
    let bos = if p.bos { "with BOS" } else { "without BOS" };
    let chat = if p.chat { ", chat template" } else { "" };
    // A method may measure what it makes of the pairs, as sequences or exchanges, which are no pairs.
    let used = p.report.as_ref().map_or(p.examples, |report| report.used);
    format!(
        "{}: {used} pairs, {} dropped, {bos}{chat}, seed {}",
        p.task, p.dropped, p.seed
    )
}

/// Seconds since 1970 as `2026-11-22 21:52 UTC`.
fn utc(seconds: u64) -> String {
    let (mut days, rest) = (seconds / 86_400, seconds % 86_400);
    let leap = |year: u64| {
        year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400))
    };
    // 400 years have 146,097 days: a hostile number costs no more steps than an honest one.
    let mut year = 1970 + 400 * (days / 146_097);
    days %= 146_097;
    while days >= 365 + u64::from(leap(year)) {
        days -= 365 + u64::from(leap(year));
        year += 1;
    }
    let lengths = [
        31,
        28 + u64::from(leap(year)),
        31,
        30,
        31,
        30,
        31,
        31,
        30,
        31,
        30,
        31,
    ];
    let mut month = 0;
    while days >= lengths[month] {
        days -= lengths[month];
        month += 1;
    }
    format!(
        "{year}-{:02}-{:02} {:02}:{:02} UTC",
        month + 1,
        days + 1,
        rest / 3600,
        rest / 60 % 60
    )
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::{facts, put_in_place, utc};
    use crate::scores::Provenance;

    #[test]
    fn what_is_put_in_place_is_said_as_it_is_typed() {
        let said = |config| {
            put_in_place(&Provenance {
                config,
                ..Provenance::default()
            })
        };
        for (source, expected) in [
            (json!("Pair"), None),
            (json!("MeanRole"), Some("mean-role")),
            (json!("Zero"), Some("zero")),
            (json!({"Scale": -0.5}), Some("scale:-0.5")),
        ] {
            assert_eq!(said(json!({ "source": source })).as_deref(), expected);
        }
        let other = json!({"source": "Same", "source_model": {"id": "org/base"}});
        assert_eq!(said(other).as_deref(), Some("same, of `org/base`"));
        assert_eq!(said(json!({})), None);
    }

    #[test]
    fn what_nobody_knows_is_not_said() {
        let mut scores = crate::plot::test_scores(&["a"], 2);
        scores.provenance.unit.clear();
        let names: Vec<&str> = facts(&scores, 2)
            .into_iter()
            .map(|(name, _)| name)
            .collect();
        assert_eq!(names, ["method", "model", "metric", "rows"]);
        let said: Vec<String> = facts(&scores, 2)
            .into_iter()
            .map(|(_, fact)| fact)
            .collect();
        assert!(said.iter().all(|fact| !fact.contains("()")), "{said:?}");
    }

    #[test]
    fn seconds_become_a_date() {
        assert_eq!(utc(0), "1970-01-01 00:00 UTC");
        assert_eq!(utc(951_782_400), "2000-02-29 00:00 UTC");
        assert_eq!(utc(1_795_384_321), "2026-11-22 21:52 UTC");
        assert!(utc(u64::MAX).ends_with("UTC"));
    }
}
