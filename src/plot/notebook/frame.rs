//! A polars frame as a table.

use polars::prelude::{AnyValue, Column, DataFrame};

use super::{Show, escape, table};
use crate::plot::scale::number;
use crate::text::visible;

/// Rows and columns that are shown; of longer frames the first and the last rows.
const ROWS: usize = 24;
const COLUMNS: usize = 24;
/// Characters of a cell.
const LONGEST: usize = 60;

impl Show for DataFrame {
    fn to_html(&self) -> String {
        let (height, width) = self.shape();
        let columns = &self.columns()[..width.min(COLUMNS)];
        let rows: Vec<Option<usize>> = if height <= ROWS {
            (0..height).map(Some).collect()
        } else {
            let first = (0..ROWS / 2).map(Some);
            let last = (height - ROWS / 2..height).map(Some);
            first.chain([None]).chain(last).collect()
        };
        let titles = columns.iter().map(|column| visible(column.name().as_str()));
        let cells = rows.into_iter().map(|row| {
            columns.iter().map(move |column| match row {
                Some(row) => cell(column, row),
                None => "...".to_string(),
            })
        });
        let shown = table(titles, cells);
        let left_out = if width > COLUMNS {
            format!(", of which the first {COLUMNS} are shown")
        } else {
            String::new()
        };
        let rows = counted(height, "row");
        let columns = counted(width, "column");
        format!(
            "<div>{shown}<p>{}</p></div>",
            escape(&format!("{rows}, {columns}{left_out}"))
        )
    }
}

fn counted(n: usize, what: &str) -> String {
    format!("{n} {what}{}", if n == 1 { "" } else { "s" })
}

/// What stands in a cell; nothing where nothing does.
fn cell(column: &Column, row: usize) -> String {
    match column.get(row) {
        Ok(AnyValue::Null) | Err(_) => String::new(),
        Ok(AnyValue::Float64(value)) => number(value),
        Ok(AnyValue::Float32(value)) => number(f64::from(value)),
        Ok(value) => {
            let text = visible(&value.str_value());
            match text.char_indices().nth(LONGEST) {
                Some((end, _)) => format!("{}...", &text[..end]),
                None => text,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use polars::prelude::NamedFrom;
    use polars::prelude::Series;

    fn frame(height: usize) -> DataFrame {
        let texts: Vec<String> = (0..height).map(|row| format!("<b>{row}")).collect();
        let floats: Vec<Option<f64>> = (0..height).map(|row| (row > 0).then_some(0.5)).collect();
        let columns = vec![
            Series::new("<i>".into(), texts).into(),
            Series::new("score".into(), floats).into(),
        ];
        DataFrame::new(height, columns).unwrap()
    }

    #[test]
    fn a_frame_is_a_table_with_escaped_texts_and_empty_cells_for_nulls() {
        let html = frame(2).to_html();
        assert!(html.contains("<th>&lt;i&gt;</th><th>score</th>"), "{html}");
        assert!(
            html.contains("<tr><td>&lt;b&gt;0</td><td></td></tr>"),
            "{html}"
        );
        assert!(html.contains("<td>0.500</td>"), "{html}");
        assert!(html.contains("<p>2 rows, 2 columns</p>"), "{html}");
    }

    #[test]
    fn of_a_long_frame_the_ends_are_shown() {
        let html = frame(1000).to_html();
        assert_eq!(html.matches("<tr>").count(), 1 + ROWS + 1);
        assert!(
            html.contains("<td>...</td>") && html.contains("&lt;b&gt;999<"),
            "{html}"
        );
    }
}
