//! The differentiable pieces of a transformer. Each has a fast form for f32 in host memory and a form in tensor operations
//! for every other device and dtype; a test holds the two together.
//!
//! Tokens of all prompts (or of all variants of a sweep) are packed into one matrix, `[tokens, d_model]`: everything but attention
//! works on tokens alone.

pub mod attention;
pub mod embed;
mod frequencies;
pub mod host;
pub mod linear;
pub mod mlp;
pub mod norm;
pub mod rope;
