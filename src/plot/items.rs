//! The rows of a table as views take them: examples averaged, and every text safe to show.

use super::columns::{Columns, Values};
use crate::text::visible;

/// A row of a view, examples averaged. All text in it is safe to show.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Item {
    pub component: String,
    pub measure: String,
    pub layer: Option<i64>,
    pub head: Option<i64>,
    pub pos: Option<i64>,
    pub role: String,
    pub src: Option<String>,
    pub dst: Option<String>,
    pub target: Option<String>,
    pub class: String,
    pub score: f64,
    /// Of a row that stands for itself.
    pub interval: Option<(f64, f64)>,
}

impl Item {
    /// `a3.h1`, or the layer.
    fn head(&self) -> String {
        let layer = self.layer.unwrap_or(0);
        match self.head {
            Some(head) => format!("a{layer}.h{head}"),
            None => layer.to_string(),
        }
    }

    /// A text with the words in braces filled in.
    pub fn fill(&self, text: &str) -> String {
        let or_nothing = |text: &Option<String>| text.clone().unwrap_or_default();
        let mut filled = String::new();
        let mut rest = text;
        while let Some((before, after)) = rest.split_once('{') {
            filled.push_str(before);
            let (word, after) = after.split_once('}').unwrap_or((after, ""));
            filled.push_str(&match word {
                "component" => self.component.clone(),
                "measure" => self.measure.clone(),
                "head" => self.head(),
                "src" => or_nothing(&self.src),
                "dst" => or_nothing(&self.dst),
                "role" => self.role.clone(),
                "target" => or_nothing(&self.target),
                "class" => self.class.clone(),
                _ => String::new(),
            });
            rest = after;
        }
        (filled + rest).trim().to_string()
    }
}

/// The rows that are wanted, examples averaged, in the order of the table.
pub(super) fn items(columns: &Columns, is_wanted: impl Fn(usize) -> bool) -> Vec<Item> {
    let mut items: Vec<(Item, f64)> = Vec::new();
    let mut known = std::collections::HashMap::new();
    for row in (0..columns.height).filter(|&row| is_wanted(row)) {
        let safe = |texts: &Values<&str>| texts[row].map(visible);
        let next = items.len();
        let key = (columns.metric[row], columns.cell(row));
        let at = *known.entry(key).or_insert(next);
        if at == next {
            let item = Item {
                component: safe(&columns.component).unwrap_or_default(),
                measure: safe(&columns.metric).unwrap_or_default(),
                layer: columns.layer[row],
                head: columns.head[row],
                pos: columns.pos[row],
                role: safe(&columns.role).unwrap_or_default(),
                src: safe(&columns.src),
                dst: safe(&columns.dst),
                target: safe(&columns.target),
                class: safe(&columns.class).unwrap_or_default(),
                score: 0.0,
                interval: columns.ci_low[row].zip(columns.ci_high[row]),
            };
            items.push((item, 0.0));
        }
        items[at].0.score += columns.score[row].unwrap_or(f64::NAN);
        items[at].1 += 1.0;
    }
    let mean = |(item, n): (Item, f64)| Item {
        score: item.score / n,
        interval: item.interval.filter(|_| n == 1.0),
        ..item
    };
    items.into_iter().map(mean).collect()
}
