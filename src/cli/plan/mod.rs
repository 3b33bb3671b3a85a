//! Plans: many runs described by one file, and what runs, costs and brings them.

mod desk;
mod expand;
mod file;
mod possible;
mod run;

pub use desk::{Desk, Stage};
pub use expand::{Run, State, expand, first_line, not_measuring};
pub use file::PlanFile;
pub use possible::{impossible, models, prove};
pub use run::{RunArgs, at_desk, is_plan, run, said, stale, summarise};
