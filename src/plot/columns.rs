//! The columns of a table that drawing reads, each as long as the table; one that is not there is empty in every row.

use std::ops::Index;

use crate::scores::Scores;

/// A column. One that says the same in every row, or nothing, takes no room.
pub(super) enum Values<T> {
    Same(Option<T>),
    Each(Vec<Option<T>>),
}

impl<T: PartialEq> Values<T> {
    fn of(values: Option<Vec<Option<T>>>) -> Self {
        let mut values = values.unwrap_or_default();
        match values.split_first() {
            None => Values::Same(None),
            Some((first, rest)) if rest.iter().all(|value| value == first) => {
                Values::Same(values.swap_remove(0))
            }
            Some(_) => Values::Each(values),
        }
    }

    /// What stands in the rows; once, where it is the same in all.
    pub fn found(&self) -> impl Iterator<Item = &T> {
        let values = match self {
            Values::Same(value) => std::slice::from_ref(value),
            Values::Each(values) => values,
        };
        values.iter().flatten()
    }
}

impl<T> Index<usize> for Values<T> {
    type Output = Option<T>;

    fn index(&self, row: usize) -> &Option<T> {
        match self {
            Values::Same(value) => value,
            Values::Each(values) => &values[row],
        }
    }
}

pub(super) struct Columns<'a> {
    pub height: usize,
    pub component: Values<&'a str>,
    pub metric: Values<&'a str>,
    /// Of rows by position where several templates are measured.
    pub template: Values<i64>,
    pub layer: Values<i64>,
    pub head: Values<i64>,
    pub pos: Values<i64>,
    pub key: Values<i64>,
    pub neuron: Values<i64>,
    pub example: Values<i64>,
    pub token: Values<&'a str>,
    pub role: Values<&'a str>,
    pub src: Values<&'a str>,
    pub dst: Values<&'a str>,
    pub target: Values<&'a str>,
    pub class: Values<&'a str>,
    pub score: Values<f64>,
    pub ci_low: Values<f64>,
    pub ci_high: Values<f64>,
    pub normalised: Values<f64>,
    own_metric: &'a str,
}

impl<'a> Columns<'a> {
    pub fn of(scores: &'a Scores) -> Columns<'a> {
        let height = scores.table.height();
        let numbers = |name: &str| Values::of(scores.integers(name));
        let texts = |name: &str| Values::of(scores.texts(name));
        let floats = |name: &str| Values::of(scores.floats(name));
        Columns {
            height,
            component: texts("component"),
            metric: texts("metric"),
            template: numbers("template"),
            layer: numbers("layer"),
            head: numbers("head"),
            pos: numbers("pos"),
            key: numbers("key"),
            neuron: numbers("neuron"),
            example: numbers("example"),
            token: texts("token"),
            role: texts("role"),
            src: texts("src"),
            dst: texts("dst"),
            target: texts("target"),
            class: texts("class"),
            score: floats("score"),
            ci_low: floats("ci_low"),
            ci_high: floats("ci_high"),
            normalised: floats("normalised"),
            own_metric: &scores.provenance.metric,
        }
    }

    /// Whether a row measures what the table is about, rather than something beside it.
    pub fn is_own(&self, row: usize) -> bool {
        self.metric[row].is_none_or(|metric| metric == self.own_metric)
    }

    /// Whether the rows are means over examples.
    pub fn is_averaged(&self) -> bool {
        self.example.found().next().is_none()
    }

    /// What tells the cells of one measure apart, but for the example.
    pub fn cell(&self, row: usize) -> CellKey<'a> {
        CellKey {
            texts: [
                self.component[row],
                // A position's role is a label of it, and can differ between examples.
                self.role[row].filter(|_| self.pos[row].is_none()),
                self.src[row],
                self.dst[row],
                self.target[row],
            ],
            numbers: [
                self.template[row],
                self.layer[row],
                self.head[row],
                self.pos[row],
                self.key[row],
                self.neuron[row],
            ],
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct CellKey<'a> {
    texts: [Option<&'a str>; 5],
    numbers: [Option<i64>; 6],
}
