//! One method a file, each a function from (model, task, config) to [`crate::scores::Scores`].

pub mod activation_patching;
pub mod attribution;
pub mod exact_edges;
mod gaussian;
mod record;
mod reference;
pub mod scaling;
mod sites;

pub use activation_patching::{PatchConfig, PatchSource, activation_patching};
pub use exact_edges::{
    EdgeConfig, EdgeMeasurements, Reference, exact_edge_effects, exact_edge_effects_plain,
    exact_edges, exact_edges_together,
};
pub use gaussian::GaussianNoise;
pub use scaling::{Scaled, ScalingConfig, Share, scaling};
pub use sites::{Along, Sites, parse_sites};
