//! The columns of a table that drawing reads, each as long as the table; one that is not there is empty in every row.

use crate::scores::Scores;

pub(super) struct Columns<'a> {
    pub height: usize,
    pub component: Vec<Option<&'a str>>,
    pub metric: Vec<Option<&'a str>>,
    /// Of rows by position where several templates are measured.
    pub template: Vec<Option<i64>>,
    pub layer: Vec<Option<i64>>,
    pub head: Vec<Option<i64>>,
    pub pos: Vec<Option<i64>>,
    pub key: Vec<Option<i64>>,
    pub neuron: Vec<Option<i64>>,
    pub example: Vec<Option<i64>>,
    pub token: Vec<Option<&'a str>>,
    pub role: Vec<Option<&'a str>>,
    pub src: Vec<Option<&'a str>>,
    pub dst: Vec<Option<&'a str>>,
    pub target: Vec<Option<&'a str>>,
    pub class: Vec<Option<&'a str>>,
    pub score: Vec<Option<f64>>,
    pub normalised: Vec<Option<f64>>,
    own_metric: &'a str,
}

impl<'a> Columns<'a> {
    pub fn of(scores: &'a Scores) -> Columns<'a> {
        let height = scores.table.height();
        let numbers = |name: &str| scores.integers(name).unwrap_or_else(|| vec![None; height]);
        let texts = |name: &str| scores.texts(name).unwrap_or_else(|| vec![None; height]);
        let floats = |name: &str| scores.floats(name).unwrap_or_else(|| vec![None; height]);
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
        self.example.iter().all(Option::is_none)
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
