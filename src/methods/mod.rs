//! One method a file, each a function from (model, task, config) to [`crate::scores::Scores`].

pub mod activation_patching;
mod gaussian;
pub mod logits;
mod sites;

pub use activation_patching::{PatchConfig, PatchSource, activation_patching};
pub use gaussian::GaussianNoise;
pub use sites::{Along, Sites, parse_sites};
