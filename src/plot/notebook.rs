//! How scores show themselves in a Jupyter notebook (evcxr).

use polars::prelude::AnyValue;

use super::svg::{SvgOptions, escape, svg};
use crate::scores::Scores;
use crate::text::visible;

/// Rows of the table below the picture.
const ROWS: usize = 20;

impl Scores {
    /// Called by evcxr for a cell whose last expression is a `Scores`: the picture, then the strongest rows.
    /// The protocol is lines on stdout, so this is the one place where the library prints.
    pub fn evcxr_display(&self) {
        println!(
            "EVCXR_BEGIN_CONTENT text/html\n{}\nEVCXR_END_CONTENT",
            self.to_html()
        );
    }

    /// The picture and the strongest rows, as an HTML fragment without scripts; every text is escaped.
    pub fn to_html(&self) -> String {
        let top = self.top(ROWS);
        let names: String = top
            .table
            .get_column_names()
            .iter()
            .map(|name| format!("<th>{}</th>", escape(name)))
            .collect();
        let rows: String = (0..top.table.height())
            .map(|row| {
                let cells = top
                    .table
                    .columns()
                    .iter()
                    .map(|column| match column.get(row) {
                        Ok(AnyValue::Float64(number)) => format!("<td>{number:.4}</td>"),
                        Ok(AnyValue::Null) | Err(_) => "<td></td>".to_string(),
                        Ok(value) => format!("<td>{}</td>", escape(&visible(&value.str_value()))),
                    });
                format!("<tr>{}</tr>", cells.collect::<String>())
            })
            .collect();
        let about = &self.provenance;
        let warnings: String = about
            .warnings
            .iter()
            .map(|w| format!("<p>warning: {}</p>", escape(&visible(w))))
            .collect();
        format!(
            "<div>{}{warnings}<p>{} of {} rows, the strongest first</p>\
             <table><thead><tr>{names}</tr></thead><tbody>{rows}</tbody></table></div>",
            svg(self, &SvgOptions::default()).unwrap_or_default(),
            top.table.height(),
            self.table.height()
        )
    }
}
