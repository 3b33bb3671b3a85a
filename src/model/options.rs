//! How to load a model.

use candle_core::{DType, Device};

/// Larger config files are refused; real ones have a few thousand bytes.
pub(super) const CONFIG_LIMIT: u64 = 4 << 20;

/// How to load.
#[derive(Debug, Clone)]
pub struct LoadOptions {
    /// Branch, tag or commit of a hub model; `main` if none.
    pub revision: Option<String>,
    pub device: Device,
    /// The number format of weights and activations; on the CPU, where activations are always f32, of matrices. If none: f32, but
    /// matrices that are stored in 16 bits stay so on the CPU, which gives the same numbers at half the memory. What is quantised is
    /// not rounded to 16 bits unless they are asked for.
    pub dtype: Option<DType>,
    /// Never ask the network, whatever `HF_HUB_OFFLINE` says.
    pub offline: bool,
    /// Keys of `config.json` that would be refused and that the caller takes on, knowing that they do not change the function; one
    /// inside the rotary settings as `rope_scaling.name`. The model's `Origin` records those that were in force.
    pub accept_config_keys: Vec<String>,
    /// Let the downloader draw its own bars on stderr.
    pub show_download_progress: bool,
}

impl Default for LoadOptions {
    fn default() -> Self {
        LoadOptions {
            revision: None,
            device: Device::Cpu,
            dtype: None,
            offline: false,
            accept_config_keys: Vec::new(),
            show_download_progress: false,
        }
    }
}
