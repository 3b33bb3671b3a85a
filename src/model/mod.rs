//! A model: its [`ModelSpec`], its [`Weights`] in canonical layout, and where they came from.

pub mod families;
pub mod spec;
pub mod tokenizer;
pub mod weights;

use candle_core::{DType, Device};

use crate::error::Result;
pub use spec::ModelSpec;
pub use tokenizer::Tokenizer;
pub use weights::Weights;

/// A transformer that can be run with hooks and edits (`crate::run`).
#[derive(Debug, Clone)]
pub struct Model {
    pub spec: ModelSpec,
    pub weights: Weights,
    pub device: Device,
    /// Of the weights and the stream; norms, softmax and logits are computed in f32.
    pub dtype: DType,
    pub origin: Origin,
}

/// Where a model came from, for the provenance of results.
#[derive(Debug, Clone, Default, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct Origin {
    /// What the user typed: hub id, path, or `embedded`.
    pub id: String,
    /// Commit of a hub snapshot.
    pub revision: Option<String>,
    /// SHA-256 of the weight files, in name order.
    pub weight_hash: String,
    pub tokenizer_hash: String,
    /// How the weights were stored, e.g. `safetensors bf16`, `gguf Q4_1, Q8_0, F32 (dequantised)`.
    pub storage: String,
    /// Weight processing applied after loading, in order (`fold_ln`, ...).
    pub processing: Vec<String>,
}

impl Model {
    /// Puts checked weights under a spec.
    /// # Errors
    /// [`crate::Error::TensorShape`] if a weight's shape is not what the spec says.
    pub fn new(spec: ModelSpec, weights: Weights, origin: Origin) -> Result<Self> {
        let device = weights.w_e.device().clone();
        let dtype = weights.w_e.dtype();
        Ok(Model {
            spec,
            weights,
            device,
            dtype,
            origin,
        })
    }
}
