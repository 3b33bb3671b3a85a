//! Rotary settings of `config.json`, old and new: `rope_theta` beside `rope_scaling` until transformers 4,
//! everything inside `rope_parameters` from transformers 5 on. A reader that misses the second gives wrong logits without a word.

use serde_json::{Map, Value};

use super::config::shortened;
use crate::error::{Error, Result};
use crate::model::spec::{RopeScaling, RotaryBase};

/// What Hugging Face assumes where no base is written.
const DEFAULT_THETA: f64 = 10_000.0;

/// The rotary keys of a config, to be flattened into a family's own.
#[derive(Debug, Default, serde::Deserialize)]
pub struct RopeConfig {
    pub rope_theta: Option<f64>,
    pub rope_scaling: Option<Map<String, Value>>,
    pub rope_parameters: Option<Map<String, Value>>,
    pub partial_rotary_factor: Option<f64>,
}

/// The base and scaling, and which share of each head rotates.
#[derive(Debug, Clone, PartialEq)]
pub struct RopeSettings {
    pub base: RotaryBase,
    pub partial: f64,
}

impl RopeConfig {
    /// Reads either form.
    /// # Errors
    /// [`Error::BadConfig`] for a scaling that we do not compute, a key of it that we do not know, or forms that contradict each other.
    pub fn settings(&self) -> Result<RopeSettings> {
        let (key, written) = match (&self.rope_parameters, &self.rope_scaling) {
            (Some(parameters), _) => ("rope_parameters", parameters.clone()),
            (None, Some(scaling)) => ("rope_scaling", scaling.clone()),
            (None, None) => ("rope_parameters", Map::new()),
        };
        let mut fields = Fields { key, written };
        let theta = agreed("rope_theta", fields.number("rope_theta")?, self.rope_theta)?;
        let partial = agreed(
            "partial_rotary_factor",
            fields.number("partial_rotary_factor")?,
            self.partial_rotary_factor,
        )?;
        let scaling = fields.scaling()?;
        if let (Some(_), Some(legacy)) = (&self.rope_parameters, &self.rope_scaling) {
            let mut legacy = Fields {
                key: "rope_scaling",
                written: legacy.clone(),
            };
            if legacy.scaling()? != scaling {
                return Err(bad(
                    "rope_scaling",
                    "contradicts `rope_parameters`; remove one".into(),
                ));
            }
        }
        fields.refuse_rest()?;
        Ok(RopeSettings {
            base: RotaryBase {
                theta: theta.unwrap_or(DEFAULT_THETA),
                scaling,
            },
            partial: partial.unwrap_or(1.0),
        })
    }
}

/// The keys of one rotary object, taken out as they are understood.
struct Fields {
    key: &'static str,
    written: Map<String, Value>,
}

impl Fields {
    fn scaling(&mut self) -> Result<RopeScaling> {
        let kind = self.written.remove("rope_type");
        // Older files say `type`; some say both.
        let old_kind = self.written.remove("type");
        let kind = kind.or(old_kind).unwrap_or_else(|| "default".into());
        match kind.as_str() {
            Some("default") => Ok(RopeScaling::None),
            Some("linear") => Ok(RopeScaling::Linear {
                factor: self.required("factor")?,
            }),
            Some("llama3") => Ok(RopeScaling::Llama3 {
                factor: self.required("factor")?,
                low_freq_factor: self.required("low_freq_factor")?,
                high_freq_factor: self.required("high_freq_factor")?,
                original_max_position: self.required("original_max_position_embeddings")? as usize,
            }),
            _ => Err(bad(
                self.key,
                format!(
                    "rope type {} is not handled; we have default, linear, llama3",
                    shortened(&kind.to_string())
                ),
            )),
        }
    }

    fn number(&mut self, name: &str) -> Result<Option<f64>> {
        match self.written.remove(name) {
            None | Some(Value::Null) => Ok(None),
            Some(value) => match value.as_f64() {
                Some(number) => Ok(Some(number)),
                None => Err(bad(
                    name,
                    format!("{} is not a number", shortened(&value.to_string())),
                )),
            },
        }
    }

    fn required(&mut self, name: &str) -> Result<f64> {
        match self.number(name)? {
            Some(number) if number > 0.0 => Ok(number),
            Some(number) => Err(bad(name, format!("{number} is not positive"))),
            None => Err(bad(self.key, format!("`{name}` is missing"))),
        }
    }

    fn refuse_rest(&self) -> Result<()> {
        match self.written.iter().find(|(_, value)| !value.is_null()) {
            None => Ok(()),
            Some((name, value)) => Err(bad(
                self.key,
                format!(
                    "`{}` = {} is not handled, and it may change the model's function",
                    shortened(name),
                    shortened(&value.to_string())
                ),
            )),
        }
    }
}

fn agreed(key: &str, inner: Option<f64>, outer: Option<f64>) -> Result<Option<f64>> {
    match (inner, outer) {
        (Some(inner), Some(outer)) if inner != outer => Err(bad(
            key,
            format!("is {inner} inside the rope settings and {outer} outside"),
        )),
        _ => Ok(inner.or(outer)),
    }
}

fn bad(key: &str, reason: String) -> Error {
    Error::BadConfig {
        key: key.to_string(),
        reason,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(json: &str) -> Result<RopeSettings> {
        serde_json::from_str::<RopeConfig>(json)
            .expect("the test's JSON is well formed")
            .settings()
    }

    #[test]
    fn both_forms_mean_the_same() {
        let new = settings(
            r#"{"rope_parameters": {"rope_theta": 5e5, "rope_type": "linear", "factor": 4.0}}"#,
        )
        .unwrap();
        let old =
            settings(r#"{"rope_theta": 500000, "rope_scaling": {"type": "linear", "factor": 4}}"#)
                .unwrap();
        assert_eq!(new, old);
        assert_eq!(new.base.theta, 5e5);
        assert_eq!(new.base.scaling, RopeScaling::Linear { factor: 4.0 });
    }

    #[test]
    fn nothing_written_is_the_default() {
        let plain = settings("{}").unwrap();
        assert_eq!(
            plain.base,
            RotaryBase {
                theta: 10_000.0,
                scaling: RopeScaling::None
            }
        );
        assert_eq!(plain.partial, 1.0);
    }

    #[test]
    fn what_is_not_understood_is_refused_by_name() {
        let refused = |json: &str, word: &str| {
            let message = settings(json).unwrap_err().to_string();
            assert!(message.contains(word), "{message}");
        };
        refused(
            r#"{"rope_scaling": {"type": "dynamic", "factor": 2.0}}"#,
            "dynamic",
        );
        refused(
            r#"{"rope_parameters": {"rope_type": "yarn", "factor": 2.0}}"#,
            "yarn",
        );
        refused(
            r#"{"rope_parameters": {"rope_type": "default", "mscale": 0.7}}"#,
            "mscale",
        );
        refused(
            r#"{"rope_theta": 1e4, "rope_parameters": {"rope_theta": 1e5}}"#,
            "rope_theta",
        );
        refused(
            r#"{"rope_scaling": {"rope_type": "llama3", "factor": 8.0}}"#,
            "low_freq_factor",
        );
        refused(r#"{"rope_scaling": {"rope_type": 7}}"#, "7");
    }
}
