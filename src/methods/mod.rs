//! One method a file, each a function from (model, task, config) to [`crate::scores::Scores`].

pub mod ablation;
pub mod activation_patching;
pub mod attribution;
pub mod composition;
pub mod exact_edges;
mod gaussian;
pub mod head_stats;
pub mod logits;
pub mod path_patching;
mod record;
mod reference;
pub mod scaling;
pub mod self_repair;
mod sites;
pub mod tokens;

pub use ablation::{AblationConfig, Knockout, NodeSet, ablation};
pub use activation_patching::{PatchConfig, PatchSource, SiteSet, activation_patching};
pub use composition::{CompositionConfig, composition_scores};
pub use exact_edges::{
    EdgeConfig, EdgeMeasurements, Reference, exact_edge_effects, exact_edge_effects_plain,
    exact_edges, exact_edges_together,
};
pub use gaussian::GaussianNoise;
pub use head_stats::{HeadConfig, head_statistics};
pub use logits::{
    DirectTarget, DlaConfig, EarlyConfig, LensConfig, Part, SourceConfig, TokenLensConfig,
    direct_logit_attribution, early_decoding, logit_lens, source_classes, token_lens,
};
pub use path_patching::{
    Over, Path, PathConfig, Receiver, patch_paths, path_effects, path_patching,
};
pub use scaling::{Scaled, ScalingConfig, Share, scaling};
pub use self_repair::{RepairConfig, RepairTarget, Units, self_repair};
pub use sites::{Along, Sites, parse_sites};
pub use tokens::{TokenConfig, TokenMethod, token_attribution};
