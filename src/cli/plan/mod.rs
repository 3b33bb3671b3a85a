//! Plans: many runs described by one file, and what runs, costs and brings them.

mod desk;
mod expand;
mod file;
mod run;

pub use desk::{Desk, Stage};
pub use expand::{Run, State, expand};
pub use file::PlanFile;
pub use run::{RunArgs, is_plan, models, prove, run};
