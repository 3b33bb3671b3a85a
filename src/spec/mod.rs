//! What a transformer is, before anything runs and wherever it came from: a [`ModelSpec`] says how it is built, [`Weights`] hold its
//! numbers in one canonical layout, and a [`Slot`] is one tensor of them, with the shape that a spec asks for.
//!
//! This is the ground: hooks, kernels and loading are written in these words, and nothing here knows of them.

mod slots;
mod transformer;
mod weights;

pub use slots::{Need, Slot};
pub use transformer::{
    Activation, Alibi, Block, Encoder, Mlp, ModelSpec, NormKind, NormPlacement, Position, QkNorm,
    RopeScaling, Rotary, RotaryBase, RotaryStyle,
};
pub use weights::{BlockWeights, EncoderWeights, MlpWeights, NormWeights, Weights};
