//! What SAELens' `cfg.json` says, of versions 5 and 6.

use serde_json::Value;

use super::Normalize;
use crate::hooks::Hook;
use crate::text::shortened;

/// The architecture, as far as it is known before the weights.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Relu,
    JumpRelu,
    TopK(usize),
    /// A threshold, once it is trained.
    BatchTopK,
    Gated,
}

#[derive(Debug, PartialEq)]
pub struct Config {
    pub kind: Kind,
    pub is_transcoder: bool,
    pub has_skip: bool,
    pub d_in: usize,
    pub d_out: usize,
    pub d_sae: usize,
    pub reads: Option<String>,
    pub writes: Option<String>,
    pub model: Option<String>,
    pub centred: bool,
    pub by_decoder_norm: bool,
    pub normalize: Normalize,
    pub doubts: Vec<String>,
}

/// Sizes above this are no sparse autoencoder's.
const MOST: u64 = 1 << 26;

impl Config {
    /// # Errors
    /// What is missing or not known, by its key.
    pub fn read(json: &Value) -> Result<Self, String> {
        let keys = Keys(json);
        let architecture = keys.text("architecture")?.unwrap_or("standard");
        let (base, is_transcoder, has_skip) = match architecture {
            "transcoder" => ("standard", true, false),
            "skip_transcoder" => ("standard", true, true),
            "jumprelu_transcoder" => ("jumprelu", true, false),
            "jumprelu_skip_transcoder" => ("jumprelu", true, true),
            other => (other, keys.text("hook_name_out")?.is_some(), false),
        };
        let activation = match keys.text("activation_fn_str")? {
            Some(name) => name,
            None => keys.text("activation_fn")?.unwrap_or("relu"),
        };
        let k = || -> Result<usize, String> {
            let nested = keys.get("activation_fn_kwargs").and_then(|of| of.get("k"));
            match keys.get("k").or(nested).and_then(Value::as_u64) {
                Some(k) if (1..MOST).contains(&k) => Ok(k as usize),
                _ => Err("it is top-k, and `k` is no count of latents".into()),
            }
        };
        let kind = match (base, activation) {
            ("standard", "relu") => Kind::Relu,
            ("topk", "relu" | "topk") | ("standard", "topk") => Kind::TopK(k()?),
            ("batchtopk" | "matryoshka_batchtopk", _) => Kind::BatchTopK,
            ("jumprelu", "relu" | "jumprelu") => Kind::JumpRelu,
            ("gated", "relu") => Kind::Gated,
            ("standard" | "topk" | "jumprelu" | "gated", other) => {
                return Err(format!(
                    "the activation `{}` is not known (relu, topk)",
                    shortened(other)
                ));
            }
            (other, _) => {
                return Err(format!(
                    "the architecture `{}` is not known (standard, topk, batchtopk, matryoshka_batchtopk, gated, jumprelu, transcoder, \
                     skip_transcoder, jumprelu_transcoder, jumprelu_skip_transcoder)",
                    shortened(other)
                ));
            }
        };
        if keys.get("hook_head_index").is_some() {
            return Err("it is of a single head (`hook_head_index`), which is not read".into());
        }
        if keys.flag("finetuning_scaling_factor")? == Some(true) {
            return Err(
                "it scales its latents (`finetuning_scaling_factor`), which is not read".into(),
            );
        }
        let normalize = match keys.text("normalize_activations")?.unwrap_or("none") {
            "none" => Normalize::None,
            "constant_norm_rescale" => Normalize::Length,
            "layer_norm" => Normalize::Standard,
            "expected_average_only_in" => {
                return Err(
                    "it was trained on activations times a constant (`normalize_activations`) that is not in the file; in SAELens, \
                     `fold_activation_norm_scaling_factor` and save it again"
                        .into(),
                );
            }
            other => {
                return Err(format!(
                    "`normalize_activations` is `{}`, which is not known",
                    shortened(other)
                ));
            }
        };
        let d_in = keys.size("d_in")?;
        Ok(Config {
            kind,
            is_transcoder,
            has_skip,
            d_in,
            d_out: match keys.get("d_out") {
                Some(_) if is_transcoder => keys.size("d_out")?,
                _ => d_in,
            },
            d_sae: keys.size("d_sae")?,
            reads: keys.text("hook_name")?.map(str::to_owned),
            writes: keys.text("hook_name_out")?.map(str::to_owned),
            model: keys.text("model_name")?.map(str::to_owned),
            centred: keys.flag("apply_b_dec_to_input")?.unwrap_or(true),
            by_decoder_norm: keys.flag("rescale_acts_by_decoder_norm")?.unwrap_or(false),
            normalize,
            doubts: keys.doubts(),
        })
    }
}

/// Keys at the top, as version 5 has them, or under `metadata`, where version 6 keeps the hook and the model.
struct Keys<'a>(&'a Value);

impl<'a> Keys<'a> {
    /// `None` where it is null, too.
    fn get(&self, key: &str) -> Option<&'a Value> {
        let top = self.0.get(key).filter(|value| !value.is_null());
        top.or_else(|| self.0.get("metadata")?.get(key))
            .filter(|value| !value.is_null())
    }

    fn text(&self, key: &str) -> Result<Option<&'a str>, String> {
        self.get(key)
            .map(|value| value.as_str().ok_or_else(|| format!("`{key}` is no text")))
            .transpose()
    }

    fn flag(&self, key: &str) -> Result<Option<bool>, String> {
        self.get(key)
            .map(|value| {
                value
                    .as_bool()
                    .ok_or_else(|| format!("`{key}` is neither true nor false"))
            })
            .transpose()
    }

    /// Latents of a model whose weights were processed are others than those of the model as it is.
    fn doubts(&self) -> Vec<String> {
        let processed = self.get("model_from_pretrained_kwargs");
        let is_set =
            |(_, value): &(&String, &Value)| !matches!(value, Value::Bool(false) | Value::Null);
        let named: Vec<String> = (processed.and_then(Value::as_object).into_iter().flatten())
            .filter(is_set)
            .map(|(key, _)| shortened(key))
            .collect();
        if named.is_empty() {
            return Vec::new();
        }
        vec![format!(
            "the dictionary was trained on a model that was loaded with {}, and the activations here are those of the model as it is loaded; \
             where that moves the hook (`center_writing_weights` does), load it the same way",
            named.join(", ")
        )]
    }

    fn size(&self, key: &str) -> Result<usize, String> {
        match self.get(key).and_then(Value::as_u64) {
            Some(size) if (1..MOST).contains(&size) => Ok(size as usize),
            Some(size) => Err(format!("`{key}` is {size}, which is no width")),
            None => Err(format!("`{key}` is missing or no number")),
        }
    }
}

/// A hook's name in SAELens, which are those of TransformerLens.
/// # Errors
/// A name that is none.
pub fn hook(name: &str) -> Result<Hook, String> {
    name.parse()
        .map_err(|error: crate::error::Error| error.to_string())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn both_versions_are_read() {
        let five = json!({
            "architecture": "standard", "activation_fn_str": "topk", "activation_fn_kwargs": {"k": 32}, "d_in": 8, "d_sae": 64,
            "hook_name": "blocks.2.hook_resid_post", "hook_layer": 2, "hook_head_index": null, "model_name": "gpt2-small",
            "apply_b_dec_to_input": false, "normalize_activations": "none", "dtype": "float32", "finetuning_scaling_factor": false,
        });
        let six = json!({
            "architecture": "topk", "k": 32, "d_in": 8, "d_sae": 64, "apply_b_dec_to_input": false, "normalize_activations": "none",
            "metadata": {"hook_name": "blocks.2.hook_resid_post", "model_name": "gpt2-small", "hook_head_index": null},
        });
        let read = Config::read(&five).unwrap();
        assert_eq!(read, Config::read(&six).unwrap());
        assert_eq!(
            (read.kind, read.d_out, read.centred),
            (Kind::TopK(32), 8, false)
        );
    }

    #[test]
    fn what_is_not_known_is_named() {
        let base = json!({"d_in": 8, "d_sae": 64});
        let with = |key: &str, value: Value| {
            let mut json = base.clone();
            json[key] = value;
            Config::read(&json).unwrap_err()
        };
        for (key, value) in [
            ("architecture", json!("temporal")),
            ("activation_fn_str", json!("tanh-relu")),
            ("normalize_activations", json!("expected_average_only_in")),
            ("normalize_activations", json!("other")),
            ("hook_head_index", json!(3)),
            ("finetuning_scaling_factor", json!(true)),
            ("d_sae", json!(-3)),
            ("d_in", json!(1u64 << 40)),
        ] {
            let error = with(key, value);
            let subject = match key {
                "architecture" => "temporal",
                "activation_fn_str" => "tanh-relu",
                _ => key,
            };
            assert!(error.contains(subject), "{key}: {error}");
        }
        assert!(Config::read(&json!({"architecture": "topk", "d_in": 8, "d_sae": 64})).is_err());
        assert!(Config::read(&json!([])).is_err());
        assert_eq!(Config::read(&base).unwrap().kind, Kind::Relu);
    }
}
