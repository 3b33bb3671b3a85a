//! The runs of a plan as one page: a row each, with how well the model does the task, what was strongest, what it cost, and what failed.

use polars::prelude::{AnyValue, DataFrame};

use super::{STYLE, policy};
use crate::error::Result;
use crate::plot::svg::escape;
use crate::scores::{RunSummary, summary_table};
use crate::text::visible;

/// The columns of a summary that the page shows, and what they are called there.
const COLUMNS: [(&str, &str); 15] = [
    ("run_model", "model"),
    ("run_task", "task"),
    ("run_method", "method"),
    ("seed", "seed"),
    ("pairs", "pairs"),
    ("clean", "clean"),
    ("corrupted", "corrupted"),
    ("gap", "gap"),
    ("beats", "beats"),
    ("best", "strongest"),
    ("score", "score"),
    ("normalised", "normalised"),
    ("seconds", "seconds"),
    ("memory", "memory, MB"),
    ("error", "why there is no result"),
];

/// One self-contained HTML page of the runs of a plan. It has no script; all columns are in the summary itself.
/// # Errors
/// Those of polars.
pub fn runs_page(title: &str, runs: &[RunSummary]) -> Result<String> {
    let table = summary_table(runs)?;
    let shown = COLUMNS.iter().filter(|(name, _)| {
        table
            .column(name)
            .is_ok_and(|it| it.null_count() < it.len())
    });
    let shown: Vec<_> = shown.collect();
    let head: String = (shown.iter())
        .map(|(_, called)| format!("<th>{called}</th>"))
        .collect();
    let mut body = String::new();
    for row in 0..table.height() {
        body += "<tr>";
        for (name, _) in &shown {
            body += &cell(&table, name, row)?;
        }
        body += "</tr>\n";
    }
    let failed = runs.iter().filter(|run| run.error.is_some()).count();
    let said = match failed {
        0 => format!("{} runs, all with a result.", runs.len()),
        _ => format!("{} runs, {failed} of them without a result.", runs.len()),
    };
    let title = escape(&visible(title));
    Ok(format!(
        "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
         <meta http-equiv=\"Content-Security-Policy\" content=\"{policy}\">\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n\
         <meta name=\"color-scheme\" content=\"light dark\">\n\
         <meta name=\"generator\" content=\"candlewick {version}\">\n\
         <title>{title} · candlewick</title>\n<style>{STYLE}</style>\n</head>\n<body>\n<h1>{title}</h1>\n<p>{said}</p>\n\
         <div class=\"scroll\"><table>\n<thead><tr>{head}</tr></thead>\n<tbody>\n{body}</tbody>\n</table></div>\n</body>\n</html>\n",
        policy = policy("'none'"),
        version = env!("CARGO_PKG_VERSION"),
    ))
}

fn cell(table: &DataFrame, name: &str, row: usize) -> Result<String> {
    let value = table.column(name)?.get(row)?;
    let number = |number: f64| match number.abs() {
        size if size >= 1000.0 => format!("{number:.0}"),
        _ => format!("{number:.3}"),
    };
    Ok(match value {
        AnyValue::Null => "<td></td>".into(),
        AnyValue::Int64(bytes) if name == "memory" => {
            format!("<td class=\"n\">{:.0}</td>", bytes as f64 / 1e6)
        }
        AnyValue::Int64(value) => format!("<td class=\"n\">{value}</td>"),
        AnyValue::Float64(value) => format!("<td class=\"n\">{}</td>", number(value)),
        value => format!("<td>{}</td>", escape(&visible(&value.str_value()))),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_run_is_a_row_and_no_text_becomes_markup() {
        let keys = ["<b>m", "t", "\u{202e}x"].map(String::from);
        let mut failed = RunSummary::new(keys.clone(), "f".into(), "c".into());
        failed.error = Some("</td><script>alert(1)</script>".into());
        let mut done = RunSummary::new(keys, "g".into(), "c".into());
        done.memory = Some(123_400_000);
        let page = runs_page("<i>plan", &[failed, done]).unwrap();
        assert_eq!(page.matches("<tr>").count(), 3);
        assert!(page.contains("2 runs, 1 of them without a result."));
        assert!(page.contains("<td class=\"n\">123</td>"), "{page}");
        for wrong in ["<b>", "<i>", "<script", "\u{202e}"] {
            assert!(!page.contains(wrong), "{wrong}");
        }
        assert!(
            !page.contains("<th>seed</th>"),
            "a column of nothing is not shown"
        );
    }
}
