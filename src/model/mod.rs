//! A model: its [`ModelSpec`], its [`Weights`] in canonical layout, and where they came from.

mod bytes;
pub mod checkpoint;
mod convert;
mod embedded;
pub mod families;
pub mod gguf;
pub mod gguf_tokenizer;
pub mod hub;
pub mod layout;
pub mod load;
mod names;
mod numbers;
mod options;
mod page;
pub mod pickle;
pub mod processing;
mod random;
pub mod safetensors;
mod stand_in;
pub mod tokenizer;
pub mod weight_files;
mod weight_hash;

use candle_core::{DType, Device, Tensor};

use crate::error::{Error, Result};
pub use crate::spec;
pub use crate::spec::{ModelSpec, Need, Slot, Weights};
pub use embedded::EMBEDDED;
pub use load::{Loaded, Opened, load, load_parts, open, read_spec};
pub use options::LoadOptions;
pub use tokenizer::Tokenizer;
pub use weight_hash::WeightHash;

/// A transformer that can be run with hooks and edits (`crate::run`).
#[derive(Debug, Clone)]
pub struct Model {
    pub spec: ModelSpec,
    pub weights: Weights,
    pub device: Device,
    /// Of activations, norms and biases; softmax and logits are computed in f32. On the CPU matrices may be in 16 bits beside f32, which
    /// gives the numbers of the same matrices in f32.
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
    pub weight_hash: WeightHash,
    pub tokenizer_hash: String,
    /// How the weights were stored, e.g. `safetensors bf16`, `gguf Q4_1, Q8_0, F32 (dequantised)`.
    pub storage: String,
    /// Weight processing applied after loading, in order (`fold_ln`, ...).
    pub processing: Vec<String>,
    /// Keys of the config that are not understood and that the user has taken on, as `key = value`.
    #[serde(default)]
    pub accepted_config_keys: Vec<String>,
    /// What was found while loading and differs from what the files lead one to expect, in sentences.
    #[serde(default)]
    pub notes: Vec<String>,
}

impl Origin {
    /// What was asked for; of a hub model with the commit, `org/name@commit`.
    pub fn full_id(&self) -> String {
        match &self.revision {
            Some(commit) => format!("{}@{commit}", self.id),
            None => self.id.clone(),
        }
    }
}

impl Model {
    /// Puts weights under a spec that they were made for.
    /// # Errors
    /// [`Error::TensorShape`] if a weight's shape is not what the spec says (an empty shape: it is absent),
    /// [`Error::WeightType`] if the weights differ in dtype, but for matrices in 16 bits beside f32 on the CPU.
    pub fn new(spec: ModelSpec, weights: Weights, origin: Origin) -> Result<Self> {
        let device = weights.w_e.device().clone();
        let dtype = weights.dtype();
        let narrow = [DType::BF16, DType::F16]
            .map(|narrow| (dtype == DType::F32 && device.is_cpu()).then_some(narrow));
        let once = Slot::MODEL.map(|slot| (slot, None));
        let per_block = (0..spec.n_layers.max(weights.blocks.len()))
            .flat_map(|layer| Slot::BLOCK.map(|slot| (slot, Some(layer))));
        for (slot, layer) in once.into_iter().chain(per_block) {
            let name = || match layer {
                Some(layer) => format!("blocks.{layer}.{slot:?}"),
                None => format!("{slot:?}"),
            };
            let tensor = slot.get(&weights, layer.unwrap_or(0));
            let is_placed = layer.is_none_or(|layer| layer < spec.n_layers);
            let expected = match slot.need(&spec, layer.unwrap_or(0)) {
                Need::Absent => Vec::new(),
                Need::Optional if tensor.is_none() => Vec::new(),
                Need::Optional | Need::Required if is_placed => slot.shape(&spec),
                Need::Optional | Need::Required => Vec::new(),
            };
            let found = tensor.map_or(Vec::new(), |tensor| tensor.dims().to_vec());
            if found != expected {
                return Err(Error::TensorShape {
                    name: name(),
                    found,
                    expected,
                });
            }
            let is_fitting = |tensor: &Tensor| {
                let own = tensor.dtype();
                own == dtype || slot.is_matrix() && narrow.contains(&Some(own))
            };
            if let Some(other) = tensor.filter(|tensor| !is_fitting(tensor)) {
                return Err(Error::WeightType {
                    name: name(),
                    found: format!("{:?}", other.dtype()),
                    known: format!("{dtype:?} like the others"),
                });
            }
        }
        Ok(Model {
            spec,
            weights,
            device,
            dtype,
            origin,
        })
    }

    /// The number formats in words: `f32`, or `f32, matrices bf16`.
    pub fn number_formats(&self) -> String {
        let own = format!("{:?}", self.dtype).to_lowercase();
        match self.weights.matrix_dtype() {
            Some(matrices) => format!("{own}, matrices {}", format!("{matrices:?}").to_lowercase()),
            None => own,
        }
    }
}
