//! run
pub mod progress;
