//! The differentiable pieces of a transformer. Each has a fast form for f32 in host memory and a form in tensor operations
//! for every other device and dtype; a test holds the two together.
//!
//! `forward` and `backward` of a piece stand side by side. A backward pass gives gradients of activations only, never of weights, by
//! the [`rules::Rules`] that it is given. Gradients are f32 in host memory whatever the model is; only products with weights run where the
//! weights lie.
//!
//! Weight matrices in host memory may be in 16 bits ([`matrix`]): products widen them as they go, and everything else is f32.
//!
//! Tokens of all prompts (or of all variants of a sweep) are packed into one matrix, `[tokens, d_model]`: everything but attention
//! works on tokens alone.

pub mod attention;
pub mod clip;
pub mod embed;
mod frequencies;
pub mod host;
pub mod inner;
pub mod linear;
mod lines;
pub mod matrix;
pub mod mlp;
pub mod norm;
pub mod product;
pub mod rope;
pub mod rules;
