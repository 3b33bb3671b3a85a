//! A task as text, for a person to check: the two prompts of a pair token above token, marks where they differ, roles below
//! their tokens, answers, and what was dropped.
//!
//! Prompts come from files that anyone may have written, so everything printed goes through [`printable`]: no token reaches
//! the terminal as a control sequence.

use std::fmt::Write;

use crate::model::Tokenizer;
use crate::model::tokenizer::printable;
use crate::task::{Pair, Task};

/// Columns that a row of tokens may fill before it goes on below.
const WIDTH: usize = 100;
/// How many answers of one pair are spelled out.
const ANSWERS: usize = 8;

/// The first `limit` pairs and dropped pairs of a task, and how many there are of each.
pub fn render(task: &Task, tokenizer: &Tokenizer, limit: usize) -> String {
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
    for pair in task.pairs.iter().take(limit) {
        line(String::new());
        pair_lines(pair, tokenizer).into_iter().for_each(&mut line);
    }
    if task.pairs.len() > limit {
        line(format!(
            "\n... and {} more pairs (`--limit`)",
            task.pairs.len() - limit
        ));
    }
    if !task.dropped.is_empty() {
        line(format!("\ndropped {}:", task.dropped.len()));
        for (kind, count) in task.drop_counts() {
            line(format!("  {count:>5} x {}", printable(&kind)));
        }
        for dropped in task.dropped.iter().take(limit) {
            line(format!(
                "  pair {}: {}",
                dropped.index,
                printable(&dropped.reason)
            ));
            line(format!("    clean      {}", printable(&dropped.clean_text)));
            line(format!(
                "    corrupted  {}",
                printable(&dropped.corrupted_text)
            ));
        }
    }
    out
}

/// The same for programs: one JSON object, with the text of every token, and up to `limit` pairs and dropped pairs.
pub fn render_json(task: &Task, tokenizer: &Tokenizer, limit: usize) -> String {
    let texts = |ids: &[u32]| {
        ids.iter()
            .map(|&id| tokenizer.token(id))
            .collect::<Vec<_>>()
    };
    let pair = |pair: &Pair| {
        serde_json::json!({
            "index": pair.index,
            "template": pair.template,
            "clean": {"text": pair.clean_text, "ids": pair.clean, "tokens": texts(&pair.clean)},
            "corrupted": {"text": pair.corrupted_text, "ids": pair.corrupted, "tokens": texts(&pair.corrupted)},
            "roles": pair.roles,
            "answers": {"ids": pair.target.answers, "tokens": texts(&pair.target.answers)},
            "wrong": {"ids": pair.target.wrong, "tokens": texts(&pair.target.wrong)},
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
        "n_pairs": task.pairs.len(),
        "n_dropped": task.dropped.len(),
        "drop_counts": task.drop_counts().into_iter().collect::<std::collections::BTreeMap<_, _>>(),
        "pairs": task.pairs.iter().take(limit).map(pair).collect::<Vec<_>>(),
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
    let lengths: Vec<usize> = task.pairs.iter().map(|pair| pair.clean.len()).collect();
    let (shortest, longest) = (
        lengths.iter().min().unwrap_or(&0),
        lengths.iter().max().unwrap_or(&0),
    );
    let pairs = match task.pairs.len() {
        1 => "1 pair".to_string(),
        several => format!("{several} pairs"),
    };
    let mut text = format!("task {}: {pairs}", printable(&task.name));
    if task.pairs.len() < task.asked {
        let _ = write!(text, " of {} asked for", task.asked);
    }
    let tokens = match shortest == longest {
        true => format!("{shortest} tokens"),
        false => format!("{shortest} to {longest} tokens"),
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

fn pair_lines(pair: &Pair, tokenizer: &Tokenizer) -> Vec<String> {
    let mut lines = vec![format!("pair {} (template {})", pair.index, pair.template)];
    let columns: Vec<Vec<String>> = (0..pair.clean.len())
        .map(|pos| {
            let roles: Vec<&str> = pair
                .roles
                .iter()
                .filter(|(_, at)| at.contains(&pos))
                .map(|(role, _)| role.as_str())
                .collect();
            let (clean, corrupted) = (pair.clean[pos], pair.corrupted[pos]);
            vec![
                pos.to_string(),
                visible(&tokenizer.token(clean)),
                visible(&tokenizer.token(corrupted)),
                if clean == corrupted {
                    String::new()
                } else {
                    "^".repeat(3)
                },
                printable(&roles.join(" ")),
            ]
        })
        .collect();
    for wrapped in wrap(&columns) {
        for (row, name) in ["", "clean", "corrupted", "", "role"]
            .into_iter()
            .enumerate()
        {
            let mut text = format!("  {name:<11}");
            for column in wrapped {
                let _ = write!(
                    text,
                    "{}{} ",
                    column[row],
                    " ".repeat(width(column) - columns_of(&column[row]))
                );
            }
            // A row without marks says nothing.
            if text.trim() != name {
                lines.push(text);
            }
        }
    }
    lines.push(format!(
        "  answer     {}",
        answers(&pair.target.answers, tokenizer)
    ));
    lines.push(format!(
        "  wrong      {}",
        answers(&pair.target.wrong, tokenizer)
    ));
    lines
}

/// The columns in rows that fit the width.
fn wrap(columns: &[Vec<String>]) -> Vec<&[Vec<String>]> {
    let mut rows = Vec::new();
    let (mut start, mut filled) = (0, 0);
    for (at, column) in columns.iter().enumerate() {
        let wide = width(column) + 1;
        if filled + wide > WIDTH && at > start {
            rows.push(&columns[start..at]);
            (start, filled) = (at, 0);
        }
        filled += wide;
    }
    rows.push(&columns[start..]);
    rows
}

fn width(column: &[String]) -> usize {
    column
        .iter()
        .map(|cell| columns_of(cell))
        .max()
        .unwrap_or(0)
}

/// Characters stand for columns; wide scripts come out a little crooked, which does no harm.
fn columns_of(text: &str) -> usize {
    text.chars().count()
}

/// A token with its spaces shown, since a space in front makes it another token.
fn visible(token: &str) -> String {
    token.replace(' ', "·")
}

fn answers(ids: &[u32], tokenizer: &Tokenizer) -> String {
    if ids.is_empty() {
        return "none".into();
    }
    let mut shown: Vec<String> = ids
        .iter()
        .take(ANSWERS)
        .map(|&id| format!("`{}` ({id})", visible(&tokenizer.token(id))))
        .collect();
    if ids.len() > ANSWERS {
        shown.push(format!("and {} more", ids.len() - ANSWERS));
    }
    shown.join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;
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
        let shown = render(&task, &tokenizer, 10);
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
    fn no_control_character_of_a_prompt_reaches_the_terminal() {
        let tokenizer = byte_level(None);
        let task = task(
            "clean,corrupted,answer\na\u{1b}[31mb,a\u{1b}[32mb,!\n\u{1b}]0;x,y,!\n",
            &tokenizer,
        );
        let shown = render(&task, &tokenizer, 10);
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
        let shown = render(&task(&csv, &tokenizer), &tokenizer, 1);
        assert!(
            shown.lines().all(|line| line.chars().count() < 130),
            "{shown}"
        );
        assert!(shown.contains("... and 1 more pairs"));
    }
}
