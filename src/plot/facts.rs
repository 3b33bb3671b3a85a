//! What a table is, in a few named facts: for `candlewick show`, and at the head of a report.

use crate::scores::{Direction, Provenance, Scores};
use crate::text::visible;

/// The facts of a table, each with its name, safe to show. `of` is how many rows there were before some were left out.
pub fn facts(scores: &Scores, of: usize) -> Vec<(&'static str, String)> {
    let p = &scores.provenance;
    let base = p.direction.base();
    let is_direct = p.direction == Direction::Direct;
    let changed = if is_direct {
        format!("the {base} run is read, nothing is changed")
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
    let rows = match scores.table.height() {
        shown if shown == of => of.to_string(),
        shown => format!("{shown} of {of}"),
    };
    let mut facts = vec![
        (
            "method",
            format!("{} ({}, {changed})", p.method, p.direction),
        ),
        ("model", model(p)),
        ("task", task(p)),
        ("metric", format!("{}{runs} ({})", p.metric, p.unit)),
        ("rows", rows),
        (
            "made",
            format!(
                "{} in {:.1} s by candlewick {}",
                utc(p.created),
                p.seconds,
                p.version
            ),
        ),
    ];
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
    format!(
        "{}{revision} ({}, {} on {}, weights {hash})",
        p.model.id, p.model.storage, p.dtype, p.device
    )
}

fn task(p: &Provenance) -> String {
    let bos = if p.bos { "with BOS" } else { "without BOS" };
    let chat = if p.chat { ", chat template" } else { "" };
    format!(
        "{}: {} pairs, {} dropped, {bos}{chat}, seed {}",
        p.task, p.examples, p.dropped, p.seed
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
    use super::utc;

    #[test]
    fn seconds_become_a_date() {
        assert_eq!(utc(0), "1970-01-01 00:00 UTC");
        assert_eq!(utc(951_782_400), "2000-02-29 00:00 UTC");
        assert_eq!(utc(1_795_384_321), "2026-11-22 21:52 UTC");
        assert!(utc(u64::MAX).ends_with("UTC"));
    }
}
