//! Plans: many runs described by one file, and what runs, costs and brings them.

mod desk;
mod expand;
mod file;
mod run;

pub use desk::{Desk, Stage};
pub use expand::{Run, State, expand, first_line, not_measuring};
pub use file::PlanFile;
pub use run::{RunArgs, at_desk, impossible, is_plan, models, prove, run, said, stale};
