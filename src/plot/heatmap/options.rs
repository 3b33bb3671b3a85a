//! How to draw for one terminal.

use crate::plot::scale::ScaleOf;

/// What the terminal can show.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Color {
    /// Numbers without colours: a pipe, or `NO_COLOR`.
    #[default]
    None,
    Ansi256,
    Truecolor,
}

/// How to draw for one terminal.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HeatmapOptions {
    pub color: Color,
    /// Columns of the terminal.
    pub width: usize,
    pub scale: ScaleOf,
    /// Only the grids whose title begins so.
    pub panel: Option<String>,
}

impl Default for HeatmapOptions {
    fn default() -> Self {
        HeatmapOptions {
            color: Color::None,
            width: 100,
            scale: ScaleOf::Run,
            panel: None,
        }
    }
}
