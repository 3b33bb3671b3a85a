//! Results as one page that opens anywhere: [`report`] writes HTML with the numbers in it and the few hundred lines of script that
//! draw them, and asks no network for anything.
//!
//! Numbers and texts of a table go into the page as JSON, never as markup; the script makes text nodes of them. The page's own
//! policy allows that one script and that one style sheet, by their hashes. What a picture shows is decided here, from the same
//! grids and rows as in a terminal; the script only lays it out.
//! Left out on purpose: drawing in Rust (`crate::plot::svg` does that), and libraries of charts.

mod attention;
mod circuit;
mod figures;
mod graph;
mod rows;
mod runs;

use std::collections::{BTreeMap, BTreeSet};

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use super::curves::{self, Curve, curves};
use super::facts::facts;
use super::scale::Scale;
use super::svg::escape;
use super::views::{PageOptions, page};
use crate::error::Result;
use crate::scores::{PromptTokens, Scores};
use crate::text::{clipped, printable, shell_quoted, visible};
pub use circuit::circuit_table;
use rows::Rows;
pub use runs::runs_page;

const STYLE: &str = include_str!("page/style.css");
const SCRIPT: &str = concat!(
    "\"use strict\";\n",
    include_str!("page/dom.js"),
    include_str!("page/heatmap.js"),
    include_str!("page/bars.js"),
    include_str!("page/curve.js"),
    include_str!("page/graph.js"),
    include_str!("page/attention.js"),
    include_str!("page/table.js"),
    include_str!("page/main.js"),
);
/// Prompts that the page repeats.
const PROMPTS: usize = 50;
/// Columns of text as a terminal shows it.
const WIDTH: usize = 100;
/// Characters of a prompt in a list.
const PROMPT: usize = 200;

/// Results and what they are called on the page, such as the name of their file.
#[derive(Debug, Clone, Copy)]
pub struct NamedScores<'a> {
    pub name: &'a str,
    pub scores: &'a Scores,
}

/// One self-contained HTML page of some results, with a table of contents if there are several. Of a table of very many rows
/// the page holds the strongest, and says so.
/// # Errors
/// [`crate::Error::Polars`] if a table was given other columns.
pub fn report(results: &[NamedScores]) -> Result<String> {
    report_with(results, &ReportOptions::default())
}

/// How a page is made.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ReportOptions {
    /// Grids of one quantity end at one value in all results, the largest of all.
    pub shared_scale: bool,
}

/// [`report`], as it is asked for.
/// # Errors
/// Those of [`report`].
pub fn report_with(results: &[NamedScores], options: &ReportOptions) -> Result<String> {
    let mut sections: Vec<Value> = results
        .iter()
        .enumerate()
        .map(|(at, result)| section(at, result))
        .collect::<Result<_>>()?;
    let title = match results {
        [one] => visible(one.name),
        several => format!("{} results", several.len()),
    };
    let mut notices = notices(results);
    if options.shared_scale && share_scale(&mut sections) {
        notices.push(
            "Grids of one quantity have one scale on this page: the strongest colour is the largest value of all results.".into(),
        );
    }
    let data = json!({
        "title": title,
        "version": env!("CARGO_PKG_VERSION"),
        "notices": notices,
        "sections": sections,
    });
    let policy = policy(&hash(SCRIPT));
    Ok(format!(
        "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
         <meta http-equiv=\"Content-Security-Policy\" content=\"{policy}\">\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n\
         <meta name=\"color-scheme\" content=\"light dark\">\n\
         <meta name=\"generator\" content=\"candlewick {version}\">\n\
         <title>{title} · candlewick</title>\n<style>{STYLE}</style>\n</head>\n<body>\n\
         <noscript><p>A script in this page draws its figures. The numbers are in the element with the id <code>data</code>, as \
         JSON.</p></noscript>\n<script type=\"application/json\" id=\"data\">{data}</script>\n<script>{SCRIPT}</script>\n</body>\n</html>\n",
        version = env!("CARGO_PKG_VERSION"),
        title = escape(&title),
        data = inert_json(&data),
    ))
}

/// Gives grids of one quantity the reach of the strongest of them; whether there are such grids in several results.
fn share_scale(sections: &mut [Value]) -> bool {
    let quantity = |grid: &Value| grid["quantity"].as_str().unwrap_or_default().to_string();
    // For each quantity its largest reach, and the results that show it.
    let mut reaches: BTreeMap<String, (f64, BTreeSet<usize>)> = BTreeMap::new();
    for (at, section) in sections.iter().enumerate() {
        for grid in section["grids"].as_array().into_iter().flatten() {
            let (reach, results) = reaches.entry(quantity(grid)).or_default();
            *reach = reach.max(grid["reach"].as_f64().unwrap_or(0.0));
            results.insert(at);
        }
    }
    for section in sections {
        for grid in section["grids"].as_array_mut().into_iter().flatten() {
            grid["reach"] = json!(reaches[&quantity(grid)].0);
        }
    }
    reaches.values().any(|(_, results)| results.len() > 1)
}

impl Scores {
    /// [`report`] of this one table.
    /// # Errors
    /// Those of [`report`].
    pub fn report(&self) -> Result<String> {
        report(&[NamedScores {
            name: &self.provenance.method,
            scores: self,
        }])
    }
}

/// What a page may do: run this script, and use our style.
fn policy(script: &str) -> String {
    format!(
        "default-src 'none'; script-src {script}; style-src {}; img-src data:; base-uri 'none'; form-action 'none'",
        hash(STYLE)
    )
}

fn hash(text: &str) -> String {
    format!("'sha256-{}'", BASE64_STANDARD.encode(Sha256::digest(text)))
}

/// JSON that no HTML parser finds the end of a script in.
fn inert_json(data: &Value) -> String {
    let text = data.to_string();
    let mut safe = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '<' | '>' | '&' | '\u{2028}' | '\u{2029}' => {
                safe.push_str(&format!("\\u{:04x}", c as u32));
            }
            c => safe.push(c),
        }
    }
    safe
}

/// What a reader should know who compares results on one page.
fn notices(results: &[NamedScores]) -> Vec<String> {
    let differing = |what: &str, mut names: Vec<String>| {
        names.sort();
        names.dedup();
        (names.len() > 1).then(|| {
            format!(
                "These are results of {} {what}: {}. Scores of one are not those of another.",
                names.len(),
                names.join("; ")
            )
        })
    };
    let models = || results.iter().map(|result| &result.scores.provenance.model);
    // The file of a circuit knows no weights: that is no other model.
    let is_known = |id: &str| {
        let mut same = models().filter(|model| model.id == id);
        same.any(|model| !model.weight_hash.get().is_empty())
    };
    let names = models().filter_map(|model| {
        let hash: String = model.weight_hash.get().chars().take(12).collect();
        match hash.is_empty() {
            true if is_known(&model.id) => None,
            true => Some(visible(&model.id)),
            false => Some(visible(&format!("{} (weights {hash})", model.id))),
        }
    });
    let metrics = results
        .iter()
        .map(|result| &result.scores.provenance.metric);
    let models = differing("models", names.collect());
    let metrics = differing("metrics", metrics.map(|metric| visible(metric)).collect());
    models.into_iter().chain(metrics).collect()
}

fn section(at: usize, result: &NamedScores) -> Result<Value> {
    let scores = result.scores;
    let about = &scores.provenance;
    let whole = scores.with_sides()?;
    let rows = Rows::of(&whole);
    let (grids, left_out) = figures::grids(scores, &whole, &rows);
    let (patterns, patterns_left_out) = attention::attention(&whole);
    let mut notes = Vec::new();
    if rows.n_kept() < whole.table.height() {
        notes.push(format!(
            "Of {} rows this page holds the {} strongest; the file has all.",
            whole.table.height(),
            rows.n_kept()
        ));
    }
    if left_out > 0 {
        notes.push(format!(
            "The grids of {left_out} pairs are left out, which would make the page too large; the table has their rows."
        ));
    }
    if patterns_left_out > 0 {
        notes.push(format!(
            "{patterns_left_out} sets of attention patterns are too large to be drawn here; `--layers` and `--heads` measure fewer."
        ));
    }
    let command = match about.command.is_empty() {
        true => String::new(),
        false => shell_quoted(&about.command),
    };
    Ok(json!({
        "id": format!("r{}", at + 1),
        "name": visible(result.name),
        "method": visible(&about.method),
        "task": visible(&about.task),
        "model": visible(&about.model.id),
        "metric": visible(&about.metric),
        "unit": visible(&about.unit),
        "quantity": Scale::of_run(&[]).caption(false, about),
        "facts": facts(scores, scores.n_rows()),
        "command": command,
        "folder": visible(&about.folder),
        "notes": notes,
        "prompts": about.prompts.iter().take(PROMPTS).map(prompt).collect::<Vec<_>>(),
        "n_prompts": about.prompts.len(),
        "grids": grids,
        "curves": curves(&whole).iter().map(|curve| curve_json(curve, &rows)).collect::<Vec<_>>(),
        "attention": patterns,
        "tokens": figures::token_grids(&whole, &rows),
        "bars": figures::bars(scores, &rows),
        "graphs": graph::graphs(&whole, &rows),
        "text": page(scores, &PageOptions { list_width: Some(WIDTH), ..PageOptions::default() })?,
        "table": rows.json(&whole),
    }))
}

/// `{name, points: [share, faithfulness, low, high, place of its row]}`
fn curve_json(curve: &Curve, rows: &Rows) -> Value {
    let point = |point: &curves::Point| {
        let (low, high) = point.interval.unzip();
        let place = rows.place(point.row);
        json!([point.share, point.faithfulness, low, high, place])
    };
    let points: Vec<Value> = curve.points.iter().map(point).collect();
    json!({ "name": visible(&curve.name), "points": points })
}

fn prompt(pair: &PromptTokens) -> Value {
    let text = |text: &str| clipped(&printable(text), PROMPT);
    json!([
        pair.example,
        text(&pair.clean_text),
        text(&pair.corrupted_text)
    ])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plot::test_scores;

    #[test]
    fn no_text_of_a_table_becomes_markup() {
        let attack = "</script><img src=x onerror=alert(1)>\u{2028}";
        let scores = test_scores(&[attack, "&lt;"], 2);
        let html = report(&[NamedScores {
            name: "<b>\u{202e}.parquet",
            scores: &scores,
        }])
        .unwrap();
        assert!(!html.contains("<img") && !html.contains("<b>"), "{html}");
        assert!(!html.contains(['\u{2028}', '\u{202e}']), "{html}");
        assert_eq!(html.matches("</script>").count(), 2);
        let (_, data) = html.split_once("id=\"data\">").unwrap();
        let (data, _) = data.split_once("</script>").unwrap();
        let data: Value = serde_json::from_str(data).unwrap();
        let columns = data["sections"][0]["table"]["columns"].as_array().unwrap();
        let token = columns.iter().find(|c| c["name"] == "token").unwrap();
        assert_eq!(
            token["texts"][0], attack,
            "the data keeps the text as it is"
        );
    }

    #[test]
    fn results_of_other_models_are_said_on_the_page() {
        let (one, mut other) = (test_scores(&["a"], 2), test_scores(&["a"], 2));
        other.provenance.model.id = "another".into();
        let named = |scores| NamedScores { name: "x", scores };
        assert_eq!(notices(&[named(&one), named(&one)]), [""; 0]);
        let said = notices(&[named(&one), named(&other)]);
        assert!(
            said[0].starts_with("These are results of 2 models"),
            "{said:?}"
        );
        // A circuit's file says whose it is, and no weights.
        let mut hashed = one.clone();
        hashed.provenance.model.weight_hash = "ab".repeat(32).into();
        assert_eq!(notices(&[named(&one), named(&hashed)]), [""; 0]);
    }

    #[test]
    fn grids_of_one_quantity_share_a_scale_where_that_is_asked_for() {
        let mut sections = [("a", 1.0), ("a", 3.0), ("b", 9.0)]
            .map(|(quantity, reach)| json!({"grids": [{"quantity": quantity, "reach": reach}]}));
        assert!(share_scale(&mut sections));
        let reaches = sections.map(|section| section["grids"][0]["reach"].as_f64());
        assert_eq!(reaches, [Some(3.0), Some(3.0), Some(9.0)]);
        assert!(!share_scale(&mut [json!({"grids": []})]));
        let (one, mut other) = (test_scores(&["a"], 2), test_scores(&["a"], 4));
        other.provenance.metric = "prob".into();
        let page = |other: &Scores, shared_scale| {
            let named = [&one, other].map(|scores| NamedScores { name: "x", scores });
            report_with(&named, &ReportOptions { shared_scale }).unwrap()
        };
        let says = |page: String| page.contains("Grids of one quantity");
        assert!(!says(page(&one, false)) && says(page(&one, true)) && !says(page(&other, true)));
    }

    #[test]
    fn nothing_is_asked_of_the_network() {
        assert!(!SCRIPT.contains("</script") && !STYLE.contains("</style"));
        for word in [
            "fetch(",
            "XMLHttpRequest",
            "innerHTML",
            "eval(",
            "@import",
            "url(",
        ] {
            assert!(!SCRIPT.contains(word) && !STYLE.contains(word), "{word}");
        }
        // The name of the SVG language is the only address.
        assert_eq!(SCRIPT.matches("http").count(), 1);
    }
}
