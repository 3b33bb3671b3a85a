//! What a notebook needs to measure: `use candlewick::prelude::*;`.

pub use crate::error::{Error, Result};
pub use crate::hooks::{Edge, Edit, Hook, Node, Positions, Site};
pub use crate::lab::Lab;
pub use crate::methods::*;
pub use crate::metric::Metric;
pub use crate::model::LoadOptions;
pub use crate::plot::notebook::Show;
#[cfg(feature = "lazy")]
pub use crate::scores::Query;
pub use crate::scores::{Detail, Direction, Scores};
pub use crate::task::{ExpandOptions, Task};
