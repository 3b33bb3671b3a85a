//! One method a file, each a function from (model, task, config) to [`crate::scores::Scores`].

pub mod activation_patching;
mod gaussian;
pub mod head_stats;
pub mod logits;
mod sites;

pub use activation_patching::{PatchConfig, PatchSource, activation_patching};
pub use gaussian::GaussianNoise;
pub use head_stats::{HeadConfig, head_statistics};
pub use logits::{
    DirectTarget, DlaConfig, EarlyConfig, LensConfig, Part, SourceConfig, TokenLensConfig,
    direct_logit_attribution, early_decoding, logit_lens, source_classes, token_lens,
};
pub use sites::{Along, Sites, parse_sites};
