//! Sparse autoencoders as they lie on disk.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use candle_core::{DType, Device, Tensor};
use sha2::{Digest, Sha256};

use super::config::{Config, Kind, hook};
use super::{Activation, Normalize, Sae, length, npz};
use crate::error::{Error, Result};
use crate::hooks::Hook;
use crate::model::EMBEDDED;
use crate::model::checkpoint::{hex, map, read_at_most};

/// How a hook is named where the files do not.
const NAME_IT: &str = "name it (`Sae::reads`), such as `blocks.20.hook_resid_post`";
/// A larger `cfg.json` is none.
const MOST_CONFIG: u64 = 1 << 20;
const WHAT: &str = "a sparse autoencoder is a folder of SAELens, with `cfg.json` and `sae_weights.safetensors`, or Gemma Scope's `params.npz`";
const WEIGHTS: &str = "sae_weights.safetensors";
const ARRAYS: [&str; 5] = ["W_enc", "W_dec", "b_enc", "b_dec", "threshold"];

impl Sae {
    /// A folder of SAELens, or Gemma Scope's `params.npz` (or its folder), whose hook has to be given.
    /// # Errors
    /// [`Error::Missing`]; [`Error::Malformed`] for what is not known, does not fit or is not finite.
    pub fn open(path: &Path, at: Option<Hook>) -> Result<Self> {
        let is_npz = path.extension().is_some_and(|end| end == "npz");
        let params = path.join("params.npz");
        let lens = path.join("cfg.json");
        let (sae, weights) = if is_npz && path.is_file() {
            (gemma_scope(path, at)?, path.to_path_buf())
        } else if lens.is_file() {
            lens_folder(path, at)?
        } else if params.is_file() {
            (gemma_scope(&params, at)?, params)
        } else if path.exists() {
            return Err(malformed(
                path,
                format!("{WHAT}; name the folder, or the `.npz`"),
            ));
        } else {
            return Err(Error::Missing {
                path: path.to_path_buf(),
                hint: WHAT.into(),
            });
        };
        sae.check_numbers(&weights)?;
        Ok(Sae {
            id: path.display().to_string(),
            hash: hex(&Sha256::digest(&*map(&weights)?)),
            ..sae
        })
    }

    /// The one of the embedded model, which `examples/train_sae` trained.
    /// # Errors
    /// None; it is read as any other.
    pub fn embedded() -> Result<Self> {
        const CONFIG: &str = include_str!("../../models/embedded/sae/cfg.json");
        const TENSORS: &[u8] = include_bytes!("../../models/embedded/sae/sae_weights.safetensors");
        let path = Path::new(EMBEDDED);
        let tensors = candle_core::safetensors::load_buffer(TENSORS, &Device::Cpu)?;
        let of = Arrays { path, tensors };
        Ok(Sae {
            id: EMBEDDED.into(),
            hash: hex(&Sha256::digest(TENSORS)),
            ..lens(path, CONFIG, None, || Ok(of))?
        })
    }

    fn check_numbers(&self, weights: &Path) -> Result<()> {
        let mut all: Vec<(&str, &[f32])> = vec![
            ("W_enc", &self.w_enc),
            ("b_enc", &self.b_enc),
            ("W_dec", &self.w_dec),
            ("b_dec", &self.b_dec),
        ];
        all.extend(self.w_skip.as_deref().map(|skip| ("W_skip", skip)));
        match &self.activation {
            Activation::JumpRelu { threshold } => all.push(("threshold", threshold)),
            Activation::Gated { gate, scale } => {
                all.extend([("b_gate", &gate[..]), ("r_mag", scale)]);
            }
            Activation::Relu | Activation::TopK { .. } => {}
        }
        match all
            .iter()
            .find(|(_, values)| values.iter().any(|x| !x.is_finite()))
        {
            None => Ok(()),
            Some((name, _)) => Err(malformed(
                weights,
                format!("`{name}` has values that are not finite"),
            )),
        }
    }
}

fn malformed(path: &Path, reason: String) -> Error {
    Error::Malformed {
        path: path.to_path_buf(),
        format: "sparse autoencoder's",
        reason,
    }
}

fn lens_folder(folder: &Path, at: Option<Hook>) -> Result<(Sae, PathBuf)> {
    let path = folder.join("cfg.json");
    let bytes = read_at_most(&path, MOST_CONFIG)?;
    let text = String::from_utf8(bytes).map_err(|error| malformed(&path, error.to_string()))?;
    let weights = folder.join(WEIGHTS);
    let sae = lens(&path, &text, at, || {
        if !weights.is_file() {
            return Err(Error::Missing {
                path: weights.clone(),
                hint: "SAELens keeps the weights beside `cfg.json` under this name".into(),
            });
        }
        let tensors = candle_core::safetensors::load_buffer(&map(&weights)?, &Device::Cpu)
            .map_err(|error| malformed(&weights, crate::text::one_line(&error.to_string())))?;
        Ok(Arrays {
            path: &weights,
            tensors,
        })
    })?;
    Ok((sae, weights))
}

/// From the text of a `cfg.json`, and the weights once that is understood.
fn lens<'a>(
    path: &Path,
    text: &str,
    at: Option<Hook>,
    weights: impl FnOnce() -> Result<Arrays<'a>>,
) -> Result<Sae> {
    let json = serde_json::from_str(text).map_err(|error| malformed(path, error.to_string()))?;
    let config = Config::read(&json).map_err(|reason| malformed(path, reason))?;
    let named = |name: &Option<String>| -> Result<Option<Hook>> {
        let hook = name.as_deref().map(hook).transpose();
        hook.map_err(|reason| malformed(path, format!("{reason}; {NAME_IT}")))
    };
    let reads = match at {
        Some(at) => Some(at),
        None => named(&config.reads)?,
    };
    let Some(reads) = reads else {
        return Err(malformed(
            path,
            format!("it does not say which hook it reads (`hook_name`); {NAME_IT}"),
        ));
    };
    let writes = match config.is_transcoder {
        false => reads,
        true => named(&config.writes)?.ok_or_else(|| {
            malformed(
                path,
                "it is a transcoder and does not say which hook it writes; add `hook_name_out` to it".into(),
            )
        })?,
    };
    if reads.layer > writes.layer {
        return Err(malformed(
            path,
            format!("it reads `{reads}`, which comes after `{writes}` that it writes"),
        ));
    }
    let mut of = weights()?;
    let (d_in, d_out, d_sae) = (config.d_in, config.d_out, config.d_sae);
    let activation = match config.kind {
        Kind::Relu => Activation::Relu,
        Kind::TopK(k) if k <= d_sae => Activation::TopK { k },
        Kind::TopK(k) => {
            return Err(malformed(path, format!("`k` is {k} of {d_sae} latents")));
        }
        Kind::JumpRelu => Activation::JumpRelu {
            threshold: of.take("threshold", &[d_sae])?,
        },
        Kind::BatchTopK => match of.maybe("threshold", &[d_sae])? {
            Some(threshold) => Activation::JumpRelu { threshold },
            None => match of.maybe("topk_threshold", &[])? {
                Some(one) => Activation::JumpRelu {
                    threshold: vec![one[0]; d_sae],
                },
                None => {
                    return Err(malformed(
                        of.path,
                        "it is batch-top-k without a threshold, whose latents depend on the batch; in SAELens, save it for inference \
                         (`save_inference_model`)"
                            .into(),
                    ));
                }
            },
        },
        Kind::Gated => Activation::Gated {
            gate: of.take("b_gate", &[d_sae])?,
            scale: of.take("r_mag", &[d_sae])?,
        },
    };
    // Of gated ones, the bias of what is not gated.
    let b_enc = match config.kind {
        Kind::Gated => of.take("b_mag", &[d_sae])?,
        _ => of.take("b_enc", &[d_sae])?,
    };
    let w_dec = of.take("W_dec", &[d_sae, d_out])?;
    let norms = || w_dec.chunks_exact(d_out).map(length).collect();
    let sae = Sae {
        id: String::new(),
        hash: String::new(),
        model: config.model,
        doubts: config.doubts,
        reads,
        writes,
        activation,
        normalize: config.normalize,
        centred: config.centred && !config.is_transcoder,
        decoder_norms: config.by_decoder_norm.then(norms),
        d_in,
        d_out,
        d_sae,
        w_enc: of.take("W_enc", &[d_in, d_sae])?,
        b_enc,
        w_dec,
        b_dec: of.take("b_dec", &[d_out])?,
        w_skip: match config.has_skip {
            true => Some(of.take("W_skip", &[d_out, d_in])?),
            false => None,
        },
    };
    Ok(sae)
}

fn gemma_scope(path: &Path, at: Option<Hook>) -> Result<Sae> {
    let Some(hook) = at else {
        return Err(malformed(
            path,
            format!("an `.npz` does not say which hook it reads; {NAME_IT}"),
        ));
    };
    // Refuses what is often found in the place of large files.
    map(path)?;
    let tensors = npz::read(path, &ARRAYS).map_err(|reason| malformed(path, reason))?;
    let mut of = Arrays { path, tensors };
    let shape = of.get("W_enc")?.dims().to_vec();
    let [d_in, d_sae] = shape[..] else {
        return Err(malformed(path, format!("`W_enc` has the shape {shape:?}")));
    };
    if d_in == 0 || d_sae == 0 {
        return Err(malformed(path, format!("`W_enc` has the shape {shape:?}")));
    }
    Ok(Sae {
        id: String::new(),
        hash: String::new(),
        model: None,
        doubts: Vec::new(),
        reads: hook,
        writes: hook,
        activation: Activation::JumpRelu {
            threshold: of.take("threshold", &[d_sae])?,
        },
        normalize: Normalize::None,
        centred: false,
        decoder_norms: None,
        d_in,
        d_out: d_in,
        d_sae,
        w_enc: of.take("W_enc", &[d_in, d_sae])?,
        b_enc: of.take("b_enc", &[d_sae])?,
        w_dec: of.take("W_dec", &[d_sae, d_in])?,
        b_dec: of.take("b_dec", &[d_in])?,
        w_skip: None,
    })
}

/// Named arrays of one file.
struct Arrays<'a> {
    path: &'a Path,
    tensors: HashMap<String, Tensor>,
}

impl Arrays<'_> {
    fn get(&self, name: &str) -> Result<&Tensor> {
        (self.tensors.get(name)).ok_or_else(|| malformed(self.path, format!("it has no `{name}`")))
    }

    /// An array as f32, and lets go of it.
    fn take(&mut self, name: &str, shape: &[usize]) -> Result<Vec<f32>> {
        let tensor = self.get(name)?;
        if tensor.dims() != shape {
            return Err(malformed(
                self.path,
                format!("`{name}` has the shape {:?}, not {shape:?}", tensor.dims()),
            ));
        }
        let values = tensor.to_dtype(DType::F32)?.flatten_all()?.to_vec1()?;
        self.tensors.remove(name);
        Ok(values)
    }

    fn maybe(&mut self, name: &str, shape: &[usize]) -> Result<Option<Vec<f32>>> {
        match self.tensors.contains_key(name) {
            true => self.take(name, shape).map(Some),
            false => Ok(None),
        }
    }
}
