//! How pictures look: what a user may say of any of them.

use super::page::{BOLD, EDGE, Page};
use crate::error::{Error, Result};
use crate::plot::colour::Palette;
use crate::plot::scale::ScaleOf;
use crate::text::{cut, visible, width};

pub(super) const LONGEST_TITLE: usize = 100;

/// How a picture looks, whatever it is of.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Look {
    pub palette: Palette,
    /// What stands over it [default: model, method and task].
    pub title: Option<String>,
    /// Of the whole picture, in points; as large as its labels need otherwise.
    pub width: Option<f64>,
    /// The family of its texts, which an SVG names and does not hold [default: whatever sans-serif a viewer has].
    pub font_family: Option<String>,
}

impl Look {
    pub(super) fn check(&self) -> Result<()> {
        match self.width {
            Some(width) if !(10.0..=10_000.0).contains(&width) => {
                Err(Error::invalid("a picture is 10 to 10,000 points wide"))
            }
            _ => Ok(()),
        }
    }

    /// A page with the title on it.
    pub(super) fn page(&self, title: &str) -> Page {
        let mut page = Page::of(self.palette);
        page.font_family.clone_from(&self.font_family);
        let own = self.title.as_deref().map(visible);
        let title = cut(own.as_deref().unwrap_or(title), LONGEST_TITLE);
        if !title.is_empty() {
            page.text(EDGE, 22.0, "font-weight='bold'", &title);
            page.reach(EDGE + BOLD * width(&title) as f64, 30.0);
        }
        page
    }
}

/// How to draw a file.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct SvgOptions {
    pub look: Look,
    pub scale: ScaleOf,
    /// The value of the strongest colour, or at the end of bars' axis [default: the largest], so that pictures can share a scale.
    pub reach: Option<f64>,
    /// The titles of the axes [default: what they are].
    pub x_title: Option<String>,
    pub y_title: Option<String>,
    /// Only the grids whose title begins so.
    pub panel: Option<String>,
    /// A dot in each cell whose 95% interval excludes 0.
    pub mark_significant: bool,
}
