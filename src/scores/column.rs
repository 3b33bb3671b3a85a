//! The columns of a table, once: name, meaning, and how a row fills it. A column more is a line in [`columns!`] and the arm of
//! [`Column::reads`] that the compiler then asks for; tables, files, text and `docs/tables.md` follow.

use std::borrow::Cow;
use std::fmt;

use polars::prelude::{AnyValue, DataType, Float64Chunked, Int32Chunked, NewChunkedArray};
use polars::prelude::{Column as Filled, IntoColumn, Scalar, StringChunked};

use super::cell::{Cell, ExampleScores, ScoresMeta};

macro_rules! columns {
    ($($variant:ident $name:literal $meaning:literal)*) => {
        /// A column of a table of scores. Every table has all of them, in this order, null where they do not apply.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum Column { $(#[doc = $meaning] $variant,)* }

        impl Column {
            /// All columns, in the order in which a table has them.
            pub const ALL: &'static [Column] = &[$(Column::$variant,)*];

            /// The name in tables and files.
            pub fn name(self) -> &'static str {
                match self { $(Column::$variant => $name,)* }
            }

            /// What a value says, for `docs/tables.md`.
            pub fn meaning(self) -> &'static str {
                match self { $(Column::$variant => $meaning,)* }
            }
        }
    };
}

columns! {
    Method "method" "The method, such as `activation_patching`."
    Metric "metric" "What `value` and `score` measure: a metric such as `logit_diff`, or a quantity of the method's own. One for the whole table; a file of side quantities holds several."
    Direction "direction" "`denoise` (clean values into the corrupted run), `noise` (corrupted values into the clean run), `ablate` (values removed from the clean run) or `direct` (nothing is changed: what a part adds by itself)."
    Template "template" "The template of the task that the row's pairs come from, from 0, and the length of their prompts where it has several (`1 (14 tokens)`): rows by position keep apart what does not align. Null where all pairs align."
    Component "component" "The hook without its layer, such as `hook_resid_pre` or `attn.hook_z`, or the name of a bundle or of an edge's kind."
    Layer "layer" "The layer, from 0; the middle one where several are changed together."
    Head "head" "The head, from 0; for `k` and `v` of grouped-query models a key-value head."
    Pos "pos" "The position in the prompt, from 0, or from the end where negative; of an attention pattern the query's."
    Key "key" "The key's position, where single cells of an attention pattern are rows."
    Token "token" "The text of the token at `pos`, where all pairs of the row have the same one there."
    Role "role" "The role of the task that the row is about; of a row by position the roles there, joined by commas, where all its pairs agree."
    Neuron "neuron" "The neuron of the MLP, or the latent of a sparse autoencoder, from 0."
    Src "src" "Where an edge or a path begins (`a5.h1`, `m3`, `input`); for other methods, what is read."
    Dst "dst" "Where an edge or a path ends (`a9.h6<q>`, `logits`); for other methods, what is written."
    Target "target" "What a read-out watches, where one table watches several things: `answer`, `wrong`, a token."
    Class "class" "What the part was found to be, where the method sorts parts."
    Example "example" "The pair, by its number in the task as written, in tables of a row for each pair (`--per-example`)."
    N "n" "How many pairs stand behind the row."
    Value "value" "The metric with the change; in the metric's unit, the mean over the row's pairs."
    Score "score" "The metric with the change minus the metric without; in the metric's unit, the mean over the row's pairs."
    CiLow "ci_low" "Lower end of the 95% interval of `score`, a percentile bootstrap over pairs; null for a single pair."
    CiHigh "ci_high" "Upper end of that interval."
    Normalised "normalised" "`score` as a share of the gap between the clean and the corrupted run: 0 is no effect, 1 restores (or destroys) all of it. A ratio of means over the row's pairs. Null throughout if that gap could be zero."
    NormalisedLow "normalised_low" "Lower end of the 95% interval of `normalised`: the ratio in each resample, so that the gap varies too."
    NormalisedHigh "normalised_high" "Upper end of that interval."
    Base "base" "The run that was changed or read: `clean` or `corrupted`; of circuits also what every edge is at, `zero` or `mean`."
    Contribution "contribution" "The mean over pairs of the size of `score`, which does not cancel where a part helps some pairs and hurts others; null in tables of a row for each pair."
    Exact "exact" "What exact patching of the same site gives, where `--verify` checked this row; in the unit of `score`."
    Checked "checked" "Why `--verify` checked this row: `top` (among the strongest) or `random` (drawn from the rest)."
    Model "model" "The model as it was asked for; of a hub model with its commit, after an `@`. One for the whole table, as `task` and `seed`, so that tables of several runs can be joined into one."
    Task "task" "The task."
    Seed "seed" "The seed of the run."
}

/// The types of columns: text, 32-bit integers with a sign, 64-bit floats.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ColumnType {
    Text,
    Integer,
    Float,
}

/// How a row fills a column, and with it the column's type.
enum Reads {
    Text(for<'a> fn(&Row<'a>) -> Option<Cow<'a, str>>),
    Integer(fn(&Row<'_>) -> Option<i32>),
    Float(fn(&Row<'_>) -> Option<f64>),
}

/// A row while the table is made.
#[derive(Debug)]
pub(super) struct Row<'a> {
    pub meta: &'a ScoresMeta,
    /// What the whole table is of.
    pub model: &'a str,
    pub task: &'a str,
    pub cell: &'a Cell,
    /// Its pair, where rows are not aggregated.
    pub example: Option<&'a ExampleScores>,
    /// Labels that all its pairs share, where rows are aggregated.
    pub token: Option<&'a str>,
    pub role: Option<&'a str>,
    pub numbers: Numbers,
}

/// What is measured in a row.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(super) struct Numbers {
    pub n: usize,
    pub value: f64,
    pub score: f64,
    pub interval: Option<(f64, f64)>,
    pub normalised: Option<f64>,
    pub normalised_interval: Option<(f64, f64)>,
    pub contribution: Option<f64>,
}

impl Column {
    /// The column of a name, if it is one of ours.
    pub fn from_name(name: &str) -> Option<Column> {
        Column::ALL
            .iter()
            .copied()
            .find(|column| column.name() == name)
    }

    pub fn column_type(self) -> ColumnType {
        match self.reads() {
            Reads::Text(_) => ColumnType::Text,
            Reads::Integer(_) => ColumnType::Integer,
            Reads::Float(_) => ColumnType::Float,
        }
    }

    fn reads(self) -> Reads {
        use Reads::{Float, Integer, Text};
        match self {
            Column::Method => Text(|row| Some(row.meta.method.as_str().into())),
            Column::Metric => Text(|row| Some(row.cell.metric(row.meta).into())),
            Column::Direction => Text(|row| Some(row.meta.direction.to_string().into())),
            Column::Template => Text(|row| row.cell.template.as_deref().map(Cow::from)),
            Column::Component => Text(|row| Some(row.cell.component.as_str().into())),
            Column::Layer => Integer(|row| index(row.cell.layer)),
            Column::Head => Integer(|row| index(row.cell.head)),
            Column::Pos => Integer(|row| row.cell.pos),
            Column::Key => Integer(|row| index(row.cell.key)),
            Column::Token => Text(|row| match row.example {
                Some(example) => row.cell.token_in(example).map(Cow::Borrowed),
                None => row.token.map(Cow::Borrowed),
            }),
            Column::Role => Text(|row| match (&row.cell.role, row.example) {
                (Some(role), _) => Some(role.as_str().into()),
                (None, Some(example)) => row.cell.role_in(example).map(Cow::Owned),
                (None, None) => row.role.map(Cow::Borrowed),
            }),
            Column::Neuron => Integer(|row| index(row.cell.neuron)),
            Column::Src => Text(|row| row.cell.src.as_deref().map(Cow::Borrowed)),
            Column::Dst => Text(|row| row.cell.dst.as_deref().map(Cow::Borrowed)),
            Column::Target => Text(|row| row.cell.target.as_deref().map(Cow::Borrowed)),
            Column::Class => Text(|row| row.cell.class.as_deref().map(Cow::Borrowed)),
            Column::Example => Integer(|row| i32::try_from(row.example?.example).ok()),
            Column::N => Integer(|row| i32::try_from(row.numbers.n).ok()),
            Column::Value => Float(|row| Some(row.numbers.value)),
            Column::Score => Float(|row| Some(row.numbers.score)),
            Column::CiLow => Float(|row| row.numbers.interval.map(|(low, _)| low)),
            Column::CiHigh => Float(|row| row.numbers.interval.map(|(_, high)| high)),
            Column::Normalised => Float(|row| row.numbers.normalised),
            Column::NormalisedLow => Float(|row| row.numbers.normalised_interval.map(|i| i.0)),
            Column::NormalisedHigh => Float(|row| row.numbers.normalised_interval.map(|i| i.1)),
            Column::Base => Text(|row| {
                let of_direction = row.meta.direction.base();
                Some(row.meta.base.unwrap_or(of_direction).into())
            }),
            Column::Contribution => Float(|row| row.numbers.contribution),
            // Filled in once the strongest rows are known and patched.
            Column::Exact => Float(|_| None),
            Column::Checked => Text(|_| None),
            Column::Model => Text(|row| said(row.model)),
            Column::Task => Text(|row| said(row.task)),
            Column::Seed => Integer(|row| i32::try_from(row.meta.seed).ok()),
        }
    }

    pub(super) fn dtype(self) -> DataType {
        match self.column_type() {
            ColumnType::Text => DataType::String,
            ColumnType::Integer => DataType::Int32,
            ColumnType::Float => DataType::Float64,
        }
    }

    /// Whether a table cannot be read without it; the others came later, or do not apply to every method.
    pub(super) fn is_required(self) -> bool {
        matches!(
            self,
            Column::Method
                | Column::Metric
                | Column::Direction
                | Column::Component
                | Column::Value
                | Column::Score
                | Column::Base
        )
    }

    /// The column of rows that do not have it.
    pub(super) fn empty(self, height: usize) -> Filled {
        Filled::full_null(self.name().into(), height, &self.dtype())
    }

    /// The column of some rows. What is the same in all of them is kept once.
    pub(super) fn fill<'a, R: Iterator<Item = Row<'a>>>(
        self,
        height: usize,
        rows: impl Fn() -> R,
    ) -> Filled {
        let name = || self.name().into();
        let once = |value| Filled::new_scalar(name(), Scalar::new(self.dtype(), value), height);
        match self.reads() {
            Reads::Text(read) => {
                let mut first: Option<Option<String>> = None;
                let is_constant = rows().all(|row| {
                    let text = read(&row);
                    let first = first.get_or_insert_with(|| text.as_deref().map(String::from));
                    first.as_deref() == text.as_deref()
                });
                match (is_constant, first.flatten()) {
                    (true, None) => self.empty(height),
                    (true, Some(text)) => once(AnyValue::StringOwned(text.as_str().into())),
                    (false, _) => {
                        let texts = rows().map(|row| read(&row));
                        StringChunked::from_iter_options(name(), texts).into_column()
                    }
                }
            }
            Reads::Integer(read) => {
                let mut numbers = rows().map(|row| read(&row));
                let first = numbers.next().flatten();
                match (numbers.all(|number| number == first), first) {
                    (true, None) => self.empty(height),
                    (true, Some(number)) => once(AnyValue::Int32(number)),
                    (false, _) => {
                        let numbers = rows().map(|row| read(&row));
                        Int32Chunked::from_iter_options(name(), numbers).into_column()
                    }
                }
            }
            Reads::Float(read) => {
                if rows().all(|row| read(&row).is_none()) {
                    return self.empty(height);
                }
                let numbers = rows().map(|row| read(&row));
                Float64Chunked::from_iter_options(name(), numbers).into_column()
            }
        }
    }
}

fn said(text: &str) -> Option<Cow<'_, str>> {
    (!text.is_empty()).then(|| text.into())
}

fn index(index: Option<u32>) -> Option<i32> {
    i32::try_from(index?).ok()
}

impl fmt::Display for Column {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// As `docs/tables.md` names them.
impl fmt::Display for ColumnType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            ColumnType::Text => "text",
            ColumnType::Integer => "integer",
            ColumnType::Float => "float",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_found_again_and_differ() {
        for &column in Column::ALL {
            assert_eq!(Column::from_name(column.name()), Some(column));
        }
        assert_eq!(Column::from_name("extra"), None);
    }

    #[test]
    fn the_docs_have_every_column_as_it_is() {
        let docs = include_str!("../../docs/tables.md");
        let lines = Column::ALL.iter().map(|column| {
            let (name, kind) = (column.name(), column.column_type());
            format!("| `{name}` | {kind} | {} |\n", column.meaning())
        });
        let (_, after) = docs.split_once("|---|---|---|\n| `method`").unwrap();
        let (listed, _) = after.split_once("\n\n").unwrap();
        let table = format!("| `method`{listed}\n");
        assert_eq!(table, lines.collect::<String>(), "docs/tables.md");
    }
}
