//! A task as text, for a person to check: the two prompts of a pair token above token, marks where they differ, roles below
//! their tokens, answers, and what was dropped.
//!
//! Prompts come from files that anyone may have written, so everything printed goes through [`printable`]: no token reaches
//! the terminal as a control sequence.

use std::fmt::Write;
use std::ops::Range;

use super::checked::Task;
use super::pair::Pair;
use crate::error::Dropped;
use crate::hooks::Roles;
use crate::metric::Target;
use crate::text::{Align, padded, printable, visible, width};

/// Columns that a row of tokens may fill before it goes on below.
const WIDTH: usize = 100;
/// How many answers of one pair are spelled out.
const ANSWERS: usize = 8;

/// The first `limit` pairs and dropped pairs of a task, and how many there are of each.
pub fn render(task: &Task, limit: usize) -> String {
    let mut out = String::new();
    let mut line = |text: String| {
        out.push_str(text.trim_end());
        out.push('\n');
    };
    line(summary(task));
    line(format!(
        "roles: {}",
        task.roles()
            .iter()
            .map(|role| printable(role))
            .collect::<Vec<_>>()
            .join(", ")
    ));
    for pair in task.pairs().iter().take(limit) {
        line(String::new());
        pair_lines(pair, task).into_iter().for_each(&mut line);
    }
    if task.pairs().len() > limit {
        line(format!(
            "\n... and {} more pairs (`--limit`)",
            task.pairs().len() - limit
        ));
    }
    if !task.dropped.is_empty() {
        line(format!("\ndropped {}:", task.dropped.len()));
        for (kind, count) in task.drop_counts() {
            line(format!("  {count:>5} x {}", printable(&kind)));
        }
        out.push_str(&render_dropped(&task.dropped, limit));
    }
    out
}

/// The first `limit` dropped pairs: why, and their two texts.
pub fn render_dropped(dropped: &[Dropped], limit: usize) -> String {
    let mut out = String::new();
    for pair in dropped.iter().take(limit) {
        let [reason, clean, corrupted] =
            [&pair.reason, &pair.clean_text, &pair.corrupted_text].map(|text| printable(text));
        let _ = writeln!(out, "  pair {}: {reason}", pair.index);
        let _ = writeln!(out, "    clean      {clean}\n    corrupted  {corrupted}");
    }
    if dropped.len() > limit {
        let more = dropped.len() - limit;
        let _ = writeln!(out, "  ... and {more} more dropped pairs (`--limit`)");
    }
    out
}

/// The same for programs: one JSON object, with the text of every token, and up to `limit` pairs and dropped pairs.
pub fn render_json(task: &Task, limit: usize) -> String {
    let pair = |pair: &Pair| {
        serde_json::json!({
            "index": pair.index,
            "template": pair.template,
            "clean": {"text": pair.clean_text, "ids": pair.clean, "tokens": task.texts(&pair.clean)},
            "corrupted": {"text": pair.corrupted_text, "ids": pair.corrupted, "tokens": task.texts(&pair.corrupted)},
            "roles": pair.roles,
            "corrupted_roles": pair.shifted_roles,
            "answers": {"ids": pair.target.answers, "tokens": task.texts(&pair.target.answers)},
            "then": {"ids": pair.target.then, "tokens": task.texts(&pair.target.then)},
            "after": pair.target.after,
            "wrong": {"ids": pair.target.wrong, "tokens": task.texts(&pair.target.wrong)},
        })
    };
    let whole = serde_json::json!({
        "task": task.name,
        "metric": task.metric,
        "corruption": task.corruption,
        "seed": task.seed,
        "bos": task.bos,
        "chat": task.chat,
        "roles": task.roles(),
        "n_asked": task.asked,
        "n_pairs": task.pairs().len(),
        "n_dropped": task.dropped.len(),
        "drop_counts": task.drop_counts().into_iter().collect::<std::collections::BTreeMap<_, _>>(),
        "pairs": task.pairs().iter().take(limit).map(pair).collect::<Vec<_>>(),
        "dropped": &task.dropped[..task.dropped.len().min(limit)],
    });
    // JSON escapes only the lower control characters; a terminal obeys the upper ones as well.
    let mut escaped = String::new();
    for c in whole.to_string().chars() {
        if c.is_control() {
            let _ = write!(escaped, "\\u{:04x}", u32::from(c));
        } else {
            escaped.push(c);
        }
    }
    escaped
}

fn summary(task: &Task) -> String {
    let lengths: Vec<usize> = task.pairs().iter().map(|pair| pair.clean.len()).collect();
    let (shortest, longest) = (
        lengths.iter().min().unwrap_or(&0),
        lengths.iter().max().unwrap_or(&0),
    );
    let pairs = match task.pairs().len() {
        1 => "1 pair".to_string(),
        several => format!("{several} pairs"),
    };
    let mut text = format!("task {}: {pairs}", printable(&task.name));
    if task.pairs().len() < task.asked {
        let _ = write!(text, " of {} asked for", task.asked);
    }
    let tokens = if shortest == longest {
        format!("{shortest} tokens")
    } else {
        format!("{shortest} to {longest} tokens")
    };
    let _ = write!(
        text,
        ", {tokens}, corruption {}, metric {}, seed {}, {}, {}",
        printable(&task.corruption),
        task.metric,
        task.seed,
        if task.bos { "BOS in front" } else { "no BOS" },
        if task.chat {
            "in the chat template"
        } else {
            "no chat template"
        },
    );
    text
}

fn pair_lines(pair: &Pair, task: &Task) -> Vec<String> {
    let mut lines = vec![format!("pair {} (template {})", pair.index, pair.template)];
    let (clean, corrupted) = (texts_of(&pair.clean, task), texts_of(&pair.corrupted, task));
    if pair.is_aligned() {
        let marks = pair.clean.iter().zip(&pair.corrupted);
        let marks = marks
            .map(|(clean, corrupted)| if clean == corrupted { "" } else { "^^^" }.to_owned())
            .collect();
        let roles = roles_below(&pair.roles, clean.len());
        let rows = [
            ("clean", clean),
            ("corrupted", corrupted),
            ("", marks),
            ("role", roles),
        ];
        lines.extend(token_lines(&rows));
    } else {
        // Nothing stands above its like, so each prompt has its own positions and roles.
        let sides = [
            ("clean", clean, &pair.roles),
            ("corrupted", corrupted, pair.corrupted_roles()),
        ];
        for (side, tokens, roles) in sides {
            let roles = roles_below(roles, tokens.len());
            lines.extend(token_lines(&[(side, tokens), ("role", roles)]));
        }
    }
    lines.push(format!("  answer     {}", whole_answer(&pair.target, task)));
    lines.push(format!(
        "  wrong      {}",
        answers(&pair.target.wrong, task)
    ));
    lines
}

fn texts_of(tokens: &[u32], task: &Task) -> Vec<String> {
    let texts = task.texts(tokens).into_iter();
    texts.map(|text| visible(&text)).collect()
}

/// The names of the roles at each position.
fn roles_below(roles: &Roles, length: usize) -> Vec<String> {
    (0..length)
        .map(|pos| {
            let here: Vec<&str> = roles
                .iter()
                .filter(|(_, at)| at.contains(&pos))
                .map(|(role, _)| role.as_str())
                .collect();
            printable(&here.join(" "))
        })
        .collect()
}

/// Rows of one cell a position under a row of the positions, in stretches that fit the width.
fn token_lines(rows: &[(&str, Vec<String>)]) -> Vec<String> {
    let length = rows.first().map_or(0, |(_, cells)| cells.len());
    let positions: Vec<String> = (0..length).map(|pos| pos.to_string()).collect();
    let rows: Vec<(&str, &[String])> = std::iter::once(("", positions.as_slice()))
        .chain(rows.iter().map(|(name, cells)| (*name, cells.as_slice())))
        .collect();
    let widths: Vec<usize> = (0..length)
        .map(|pos| {
            rows.iter()
                .map(|(_, cells)| width(&cells[pos]))
                .max()
                .unwrap_or(0)
        })
        .collect();
    let mut lines = Vec::new();
    for stretch in stretches(&widths) {
        for (name, cells) in &rows {
            let mut line = format!("  {name:<11}");
            for pos in stretch.clone() {
                line += &padded(&cells[pos], widths[pos] + 1, Align::Left);
            }
            // A row without marks says nothing.
            if line.trim() != *name {
                lines.push(line);
            }
        }
    }
    lines
}

/// The columns in stretches that fit the width, each at least one column.
fn stretches(widths: &[usize]) -> Vec<Range<usize>> {
    let mut stretches = Vec::new();
    let (mut start, mut filled) = (0, 0);
    for (at, width) in widths.iter().enumerate() {
        if filled + width + 1 > WIDTH && at > start {
            stretches.push(start..at);
            (start, filled) = (at, 0);
        }
        filled += width + 1;
    }
    stretches.push(start..widths.len());
    stretches
}

/// The answers; of one of several tokens each of them, in order.
fn whole_answer(target: &Target, task: &Task) -> String {
    if target.then.is_empty() {
        return answers(&target.answers, task);
    }
    let tokens = target.answers.iter().chain(&target.then);
    let shown: Vec<String> = tokens
        .map(|&id| format!("`{}` ({id})", visible(&task.text(id))))
        .collect();
    format!("{}, {} tokens", shown.join(" + "), shown.len())
}

fn answers(ids: &[u32], task: &Task) -> String {
    if ids.is_empty() {
        return "none".into();
    }
    let mut shown: Vec<String> = ids
        .iter()
        .take(ANSWERS)
        .map(|&id| format!("`{}` ({id})", visible(&task.text(id))))
        .collect();
    if ids.len() > ANSWERS {
        shown.push(format!("and {} more", ids.len() - ANSWERS));
    }
    shown.join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Tokenizer;
    use crate::model::tokenizer::tests::{byte_level, word_level};
    use crate::task::{ExpandOptions, from_pairs_file};

    fn task(csv: &str, tokenizer: &Tokenizer) -> Task {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("mine.csv");
        std::fs::write(&path, csv).unwrap();
        from_pairs_file(&path, tokenizer, &ExpandOptions::default()).unwrap()
    }

    #[test]
    fn differing_tokens_are_marked_and_roles_stand_below() {
        let tokenizer = word_level(["Al", "Bo", "met", "he", "it"]);
        let task = task(
            "clean,corrupted,answer,wrong\nAl met,Bo met,he,it\nAl met,Bo,he,it\n",
            &tokenizer,
        );
        let shown = render(&task, 10);
        let expected = "\
task mine: 1 pair of 2 asked for, 3 tokens, corruption given, metric logit_diff, seed 0, BOS in front, no chat template
roles: END

pair 0 (template 0)
             0   1   2
  clean      <s> Al  met
  corrupted  <s> Bo  met
                 ^^^
  role               END
  answer     `he` (5)
  wrong      `it` (6)

dropped 1:
      1 x lengths differ
  pair 1: lengths differ: clean has 3 tokens, corrupted has 2
    clean      Al met
    corrupted  Bo
";
        assert_eq!(shown, expected);
    }

    #[test]
    fn prompts_of_unequal_length_stand_apart_with_roles_of_their_own() {
        let tokenizer = word_level(["Al", "Bo", "met", "he", "it"]);
        let pair = Pair::new([0, 2, 4], [0, 4, 3, 4]).answer(5);
        let pair = pair.shifted_role("NAME", [1], [2]);
        let task = Task::new("mine", &tokenizer, crate::metric::Metric::LogProb, [pair]).unwrap();
        let shown = render(&task, 1);
        let expected = "
             0   1    2
  clean      <s> Al   met
  role           NAME END
             0   1   2    3
  corrupted  <s> met Bo   met
  role               NAME END
  answer     `he` (5)
";
        assert!(shown.contains(expected), "{shown}");
    }

    #[test]
    fn no_control_character_of_a_prompt_reaches_the_terminal() {
        let tokenizer = byte_level(None);
        let task = task(
            "clean,corrupted,answer\na\u{1b}[31mb,a\u{1b}[32mb,!\n\u{1b}]0;x,y,!\n",
            &tokenizer,
        );
        let shown = render(&task, 10);
        assert!(shown.contains("\\u{1b}"));
        assert!(
            shown.chars().all(|c| c == '\n' || !c.is_control()),
            "{shown:?}"
        );
    }

    #[test]
    fn long_prompts_wrap_and_the_limit_counts_what_is_left() {
        let tokenizer = word_level(["Al", "Bo", "met", "he", "it"]);
        let long = "met ".repeat(60);
        let csv = format!(
            "clean,corrupted,answer,wrong\nAl {long},Bo {long},he,it\nAl met,Bo met,he,it\n"
        );
        let shown = render(&task(&csv, &tokenizer), 1);
        assert!(
            shown.lines().all(|line| line.chars().count() < 130),
            "{shown}"
        );
        assert!(shown.contains("... and 1 more pairs"));
    }
}
