//! What a reader is shown of a table, and in which order: data that a method puts beside its numbers, so that a file prints as
//! the run did and no printer knows any method by name.

use serde::{Deserialize, Serialize};

/// One part of what is printed of a table. A method without views gets [`View::Grids`] and [`View::Strongest`], which take what
/// they show from the columns that are filled.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum View {
    /// A grid for each component: over positions or roles, layers, heads or neurons, whichever there are.
    Grids,
    /// A line for each layer.
    Layers(Layers),
    /// Rows whose `src` and `dst` are edges, as a graph: each node with what it reads.
    Graph,
    /// Lines of items with their values.
    Lists(Lists),
    /// A bar for each row.
    Bars(Bars),
    /// The strongest rows of each component, with other measures of the same cell beside them.
    Strongest,
}

/// Several measures of each layer's stream side by side, at the last position where there are positions.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Layers {
    /// What the numbers are, in the place of where they were read.
    pub heading: Option<String>,
    pub columns: Vec<LayerColumn>,
    /// The measure whose rows list tokens (`dst`) for the layer; they follow the columns.
    pub tokens: Option<String>,
}

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct LayerColumn {
    pub title: String,
    pub measure: String,
    pub target: Option<String>,
}

impl LayerColumn {
    /// A measure under its own name.
    pub fn of(measure: &str) -> LayerColumn {
        LayerColumn {
            title: measure.into(),
            measure: measure.into(),
            target: None,
        }
    }
}

/// Rows gathered under titles, a line a title. In `title`, `below_zero` and `item`, words in braces are taken from the row:
/// `{measure}`, `{head}` (`a3.h1`, or the layer), `{src}`, `{dst}`, `{role}`, `{target}`, `{class}`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Lists {
    /// Stands above the lines.
    pub heading: Option<String>,
    /// Only rows of this component.
    pub component: Option<String>,
    /// Rows of these measures, in this order.
    pub measures: Vec<String>,
    pub title: String,
    /// The title of values below zero, which then have a line of their own, the lowest first.
    pub below_zero: Option<String>,
    pub item: String,
    /// The highest so many of each title, in falling order; else all, in the order of the table.
    pub highest: Option<usize>,
    /// Values of a smaller magnitude are left out, and with them titles that have no other.
    pub at_least: Option<f64>,
}

/// Rows of one measure, a line each with its bar, in the order of the table. Words in braces are filled in as in [`Lists`]; `{component}`
/// is one too.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Bars {
    /// Stands above the lines.
    pub heading: String,
    /// Only rows of this component.
    pub component: Option<String>,
    pub measure: String,
    /// Stands before the bar.
    pub item: String,
    /// Stands behind the number, and may be long.
    pub text: String,
}
