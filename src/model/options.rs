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
    pub dtype: DType,
    /// Never ask the network, whatever `HF_HUB_OFFLINE` says.
    pub offline: bool,
    /// Let the downloader draw its own bars on stderr.
    pub show_download_progress: bool,
}

impl Default for LoadOptions {
    fn default() -> Self {
        LoadOptions {
            revision: None,
            device: Device::Cpu,
            dtype: DType::F32,
            offline: false,
            show_download_progress: false,
        }
    }
}
