//! How scores show themselves in a Jupyter notebook (evcxr).

use super::ranked::suggested_columns;
use super::svg::{SvgOptions, escape, svg};
use crate::scores::Scores;
use crate::text::visible;

impl Scores {
    /// Called by evcxr for a cell whose last expression is a `Scores`: the picture, then the strongest rows.
    /// The protocol is lines on stdout, so this is the one place where the library prints.
    pub fn evcxr_display(&self) {
        println!(
            "EVCXR_BEGIN_CONTENT text/html\n{}\nEVCXR_END_CONTENT",
            self.to_html()
        );
    }

    /// The picture and the strongest rows of each component, as an HTML fragment without scripts; every text is escaped.
    pub fn to_html(&self) -> String {
        let whole = self.with_sides();
        let columns = suggested_columns(self, whole.as_ref().unwrap_or(self));
        let names: String = columns
            .iter()
            .map(|column| format!("<th>{}</th>", escape(&column.title)))
            .collect();
        let n = columns.first().map_or(0, |column| column.cells.len());
        let rows: String = (0..n)
            .map(|row| {
                let cells = columns
                    .iter()
                    .map(|column| format!("<td>{}</td>", escape(&column.cells[row])));
                format!("<tr>{}</tr>", cells.collect::<String>())
            })
            .collect();
        let warnings: String = self
            .provenance
            .warnings
            .iter()
            .map(|w| format!("<p>warning: {}</p>", escape(&visible(w))))
            .collect();
        // A table without anything to draw still has its rows.
        let picture = svg(self, &SvgOptions::default()).unwrap_or_default();
        format!(
            "<div>{picture}{warnings}<p>{n} of {} rows, the strongest of each component</p>\
             <table><thead><tr>{names}</tr></thead><tbody>{rows}</tbody></table></div>",
            self.table.height()
        )
    }
}

#[cfg(test)]
mod tests {
    use crate::plot::test_scores;

    #[test]
    fn a_notebook_gets_a_picture_and_escaped_rows() {
        let html = test_scores(&["<b>", "\x1b"], 2).to_html();
        assert!(html.starts_with("<div><svg"), "{html}");
        assert!(html.contains("<td>&lt;b&gt;</td>"), "{html}");
        assert!(html.contains("<td>\\u{1b}</td>"), "{html}");
        assert!(html.contains("<p>4 of 4 rows"), "{html}");
    }
}
