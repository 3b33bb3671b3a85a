//! How values show themselves at the end of a notebook's cell (evcxr), as HTML without scripts in which every text is escaped.

mod frame;
mod progress;

pub use progress::{CellProgress, is_cell};

use super::circuit::circuit_facts;
use super::panel::Panel;
use super::ranked::suggested_columns;
use super::svg::{Distributions, Look, SvgOptions, circuit_svg, escape, panel_svg, svg};
use super::views::listed;
use crate::circuit::Circuit;
use crate::methods::FoundCircuit;
use crate::model::Model;
use crate::scores::Scores;
use crate::task::{Task, render};
use crate::text::{one_line, visible};

/// Pairs of a task that are shown.
const PAIRS: usize = 3;

/// What a notebook shows of a value that a cell ends with.
pub trait Show {
    /// A fragment without scripts; every text in it is escaped.
    fn to_html(&self) -> String;

    /// Called by evcxr. The protocol is lines on stdout, so this is the one place where the library prints.
    fn evcxr_display(&self) {
        println!(
            "EVCXR_BEGIN_CONTENT text/html\n{}\nEVCXR_END_CONTENT",
            self.to_html()
        );
    }
}

/// How well the model does the task, the picture or the lists of the method, warnings, and the strongest rows of each component.
impl Show for Scores {
    fn to_html(&self) -> String {
        let about = &self.provenance;
        let report = about.report.iter().flat_map(|report| report.lines());
        let lines = report
            .chain(about.notes.iter().map(|note| one_line(note)))
            .chain(warnings(about.warnings.iter()))
            .map(|line| format!("<p>{}</p>", escape(&line)));
        // A table without anything to draw still has its rows.
        let picture = svg(self, &SvgOptions::default()).unwrap_or_default();
        let lists = match listed(self) {
            Ok(text) if !text.is_empty() => preformatted(&text),
            _ => String::new(),
        };
        let whole = self.with_sides();
        let columns = suggested_columns(self, whole.as_ref().unwrap_or(self));
        let n = columns.first().map_or(0, |column| column.cells.len());
        let rows = (0..n).map(|row| columns.iter().map(move |column| column.cells[row].clone()));
        format!(
            "<div>{}{picture}{lists}<p>{n} of {} rows, the strongest of each component</p>{}</div>",
            lines.collect::<String>(),
            self.table.height(),
            table(columns.iter().map(|column| column.title.clone()), rows)
        )
    }
}

impl Show for Panel {
    fn to_html(&self) -> String {
        panel_svg(self)
    }
}

/// What is said of it, and the graph.
impl Show for Circuit {
    fn to_html(&self) -> String {
        let facts = circuit_facts(self).into_iter().map(IntoIterator::into_iter);
        table(std::iter::empty(), facts) + &circuit_svg(self, &Look::default()).unwrap_or_default()
    }
}

/// The circuit, and what it does on the pairs that chose nothing.
impl Show for FoundCircuit {
    fn to_html(&self) -> String {
        let warnings =
            warnings(self.warnings.iter()).map(|line| format!("<p>{}</p>", escape(&line)));
        warnings.collect::<String>() + &self.circuit.to_html() + &self.reported.to_html()
    }
}

impl Show for Distributions {
    fn to_html(&self) -> String {
        self.svg()
    }
}

impl Show for Task {
    fn to_html(&self) -> String {
        let notes = warnings(self.notes.iter()).map(|line| format!("<p>{}</p>", escape(&line)));
        notes.collect::<String>() + &preformatted(&render(self, PAIRS))
    }
}

impl Show for Model {
    fn to_html(&self) -> String {
        let (spec, origin) = (&self.spec, &self.origin);
        let mib = self.weights.bytes() as f64 / f64::from(1 << 20);
        let rows = [
            ("model", visible(&origin.id)),
            ("family", visible(&spec.family)),
            ("layers", spec.n_layers.to_string()),
            (
                "heads",
                format!("{} ({} of keys and values)", spec.n_heads, spec.n_kv_heads),
            ),
            (
                "d_model, d_head, d_mlp",
                format!("{}, {}, {}", spec.d_model, spec.d_head, spec.d_mlp),
            ),
            ("vocabulary", spec.d_vocab.to_string()),
            ("longest prompt", format!("{} tokens", spec.n_ctx)),
            (
                "weights",
                format!(
                    "{mib:.1} MiB in {:?}, stored as {}",
                    self.dtype,
                    visible(&origin.storage)
                ),
            ),
        ];
        let notes = warnings(origin.notes.iter()).map(|line| format!("<p>{}</p>", escape(&line)));
        let rows = rows.map(|(name, value)| [name.to_string(), value].into_iter());
        notes.collect::<String>() + &table(std::iter::empty(), rows.into_iter())
    }
}

fn warnings<'a>(texts: impl Iterator<Item = &'a String>) -> impl Iterator<Item = String> {
    texts.map(|text| format!("warning: {}", one_line(text)))
}

fn preformatted(text: &str) -> String {
    format!("<pre>{}</pre>", escape(text))
}

/// A table of texts, which are escaped here.
fn table<Row: Iterator<Item = String>>(
    titles: impl Iterator<Item = String>,
    rows: impl Iterator<Item = Row>,
) -> String {
    let titles: String = titles
        .map(|title| format!("<th>{}</th>", escape(&title)))
        .collect();
    let row = |row: Row| {
        let cells: String = row
            .map(|cell| format!("<td>{}</td>", escape(&cell)))
            .collect();
        format!("<tr>{cells}</tr>")
    };
    let body: String = rows.map(row).collect();
    let head = if titles.is_empty() {
        String::new()
    } else {
        format!("<thead><tr>{titles}</tr></thead>")
    };
    format!("<table>{head}<tbody>{body}</tbody></table>")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{LoadOptions, load};
    use crate::plot::{Label, test_scores};
    use crate::task::{ExpandOptions, TaskFile, expand};

    const ATTACK: &str = "</pre><script>alert(1)</script><b a='\"";

    /// No mark-up but our own.
    fn check_inert(html: &str) {
        let small = html.to_lowercase();
        for mark in ["<script", "<b ", "onerror", "\u{1b}"] {
            assert!(!small.contains(mark), "{mark}: {html}");
        }
    }

    #[test]
    fn scores_are_a_picture_and_escaped_rows() {
        let mut scores = test_scores(&["<b>", "\x1b"], 2);
        scores.provenance.warnings = vec![ATTACK.into()];
        let html = scores.to_html();
        assert!(html.contains("<svg"), "{html}");
        assert!(html.contains("<td>&lt;b&gt;</td>"), "{html}");
        assert!(html.contains("<td>\\u{1b}</td>"), "{html}");
        assert!(html.contains("<p>4 of 4 rows"), "{html}");
        assert!(html.contains("<p>warning: &lt;/pre&gt;"), "{html}");
        check_inert(&html);
    }

    #[test]
    fn models_and_tasks_say_what_they_are() {
        let mut loaded = load("embedded", &LoadOptions::default()).unwrap();
        let file = TaskFile::open("embedded").unwrap();
        let options = ExpandOptions {
            templates: vec![0],
            ..ExpandOptions::default()
        };
        let mut task = expand(&file, &loaded.tokenizer, &options).unwrap();
        let html = task.to_html();
        assert!(html.starts_with("<pre>task embedded: 32 pairs"), "{html}");
        task.name = ATTACK.into();
        task.notes = vec![ATTACK.into()];
        check_inert(&task.to_html());
        let html = loaded.model.to_html();
        for part in [
            "<td>embedded</td>",
            "<td>4 (4 of keys and values)</td>",
            "<td>64, 16, 128</td>",
        ] {
            assert!(html.contains(part), "{part}: {html}");
        }
        loaded.model.origin.id = ATTACK.into();
        loaded.model.origin.notes = vec![ATTACK.into()];
        check_inert(&loaded.model.to_html());
    }

    #[test]
    fn a_circuit_says_where_it_comes_from_and_is_a_graph() {
        let text = "[model]\nn_layers = 1\nn_heads = 1\nd_model = 8\n[edges]\n\"input->m0\" = 0.5\n\"m0->logits\" = 2\n";
        let mut circuit = Circuit::from_toml(text).unwrap();
        circuit.about.claim = Some(ATTACK.into());
        circuit.measured.insert("faithfulness".into(), 0.75);
        let html = circuit.to_html();
        assert!(html.contains("<td>faithfulness 0.750</td>"), "{html}");
        assert_eq!(html.matches("<path").count(), 2);
        check_inert(&html);
    }

    #[test]
    fn a_panel_is_a_picture_of_its_own() {
        let label = |name: &str| Label {
            name: name.into(),
            ..Label::default()
        };
        let panel = Panel {
            title: "a0.h1".into(),
            axes: ("query".into(), "key".into()),
            rows: vec![label("0"), label(ATTACK)],
            columns: vec![label("0"), label("1")],
            values: vec![vec![Some(1.0), None], vec![Some(0.25), Some(0.75)]],
            table_rows: vec![vec![None; 2]; 2],
            is_normalised: false,
        };
        let html = panel.to_html();
        // Three cells, the outline, the background and the colour bar.
        assert_eq!(html.matches("<rect").count(), 3 + 1 + 1 + 41);
        assert!(html.contains(">a0.h1<"), "{html}");
        check_inert(&html);
    }
}
