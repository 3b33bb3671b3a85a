//! Rotary settings of `config.json`, old and new: `rope_theta` beside `rope_scaling` until transformers 4,
//! everything inside `rope_parameters` from transformers 5 on. A reader that misses the second gives wrong logits without a word.

use serde_json::{Map, Value};

use super::config::{Keys, is_empty, shown};
use crate::error::{Error, Result};
use crate::model::spec::{RopeScaling, RotaryBase};
use crate::text::shortened;

/// What most of transformers' classes assume where no base is written.
pub const DEFAULT_THETA: f64 = 10_000.0;

/// The rotary keys of a config, to be flattened into a family's own.
#[derive(Debug, Clone, Default, serde::Deserialize)]
pub struct RopeConfig {
    pub rope_theta: Option<f64>,
    pub rope_scaling: Option<Map<String, Value>>,
    pub rope_parameters: Option<Map<String, Value>>,
    pub partial_rotary_factor: Option<f64>,
    /// Trained length; Phi-3 writes it outside of the rotary object.
    pub original_max_position_embeddings: Option<f64>,
}

/// The base and scaling, and which share of each head rotates.
#[derive(Debug, Clone, PartialEq)]
pub struct RopeSettings {
    pub base: RotaryBase,
    pub partial: f64,
}

impl Default for RopeSettings {
    fn default() -> Self {
        RopeSettings {
            base: RotaryBase {
                theta: DEFAULT_THETA,
                scaling: RopeScaling::None,
            },
            partial: 1.0,
        }
    }
}

impl RopeConfig {
    /// Reads either form, for a model of `n_ctx` positions: some scalings are measured by them.
    /// # Errors
    /// [`Error::BadConfig`] for a scaling that we do not compute, a key of it that we do not know, or forms that contradict each other.
    pub fn settings(&self, keys: &mut Keys, n_ctx: usize) -> Result<RopeSettings> {
        self.settings_or(keys, n_ctx, DEFAULT_THETA, 1.0)
    }

    /// The same with the base and the share of rotating dimensions that a family's class assumes where the file says none.
    /// # Errors
    /// As [`RopeConfig::settings`].
    pub fn settings_or(
        &self,
        keys: &mut Keys,
        n_ctx: usize,
        theta_or: f64,
        partial_or: f64,
    ) -> Result<RopeSettings> {
        let original = self.original_max_position_embeddings;
        let (key, written) = match (&self.rope_parameters, &self.rope_scaling) {
            (Some(parameters), _) => ("rope_parameters", parameters.clone()),
            (None, Some(scaling)) => ("rope_scaling", scaling.clone()),
            (None, None) => ("rope_parameters", Map::new()),
        };
        let mut fields = Fields {
            key,
            written,
            n_ctx,
            original,
        };
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
                n_ctx,
                original,
            };
            if legacy.scaling()? != scaling {
                return Err(bad("rope_scaling", "contradicts `rope_parameters`".into()));
            }
        }
        fields.refuse_rest(keys, &scaling)?;
        Ok(RopeSettings {
            base: RotaryBase {
                theta: theta.unwrap_or(theta_or),
                scaling,
            },
            partial: partial.unwrap_or(partial_or),
        })
    }

    /// The settings of the layers that see everything, and of those that slide: two objects in new files; in older ones the usual
    /// keys, which mean the former. `theta_or` are the bases where none is written.
    /// # Errors
    /// As [`RopeConfig::settings`]; [`Error::RefusedConfig`] for settings beside the two objects.
    pub fn by_kind_of_layer(
        &self,
        keys: &mut Keys,
        n_ctx: usize,
        theta_or: [f64; 2],
    ) -> Result<[RopeSettings; 2]> {
        let mut nested = self.rope_parameters.clone().unwrap_or_default();
        let mut of_kind = |kind: &str| match nested.remove(kind) {
            Some(Value::Object(inner)) => Some(inner),
            _ => None,
        };
        let (global, local) = (of_kind("full_attention"), of_kind("sliding_attention"));
        for (key, value) in nested.iter().filter(|(_, value)| !value.is_null()) {
            keys.refuse(
                &format!("rope_parameters.{key}"),
                &shown(value),
                "in this family each kind of layer has rotary settings of its own, and those beside them are not read",
            )?;
        }
        let says_theta = |rope: &Option<Map<String, Value>>| {
            let rope = rope.as_ref();
            rope.is_some_and(|rope| rope.contains_key("rope_theta"))
        };
        let global = RopeConfig {
            rope_theta: self.rope_theta.filter(|_| !says_theta(&global)),
            rope_parameters: global,
            ..self.clone()
        };
        let local = RopeConfig {
            rope_parameters: local,
            ..RopeConfig::default()
        };
        Ok([
            global.settings_or(keys, n_ctx, theta_or[0], 1.0)?,
            local.settings_or(keys, n_ctx, theta_or[1], 1.0)?,
        ])
    }
}

/// The keys of one rotary object, taken out as they are understood.
struct Fields {
    key: &'static str,
    written: Map<String, Value>,
    n_ctx: usize,
    /// The trained length as the config around this object has it.
    original: Option<f64>,
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
                original_max_position: self.trained_length()?,
            }),
            Some("dynamic") => {
                let factor = self.at_least_one("factor")?;
                // transformers stretches from `max_position_embeddings`, whatever else is written.
                self.number("original_max_position_embeddings")?;
                Ok(RopeScaling::Dynamic {
                    factor,
                    original_max_position: self.n_ctx,
                })
            }
            Some("yarn") => self.yarn(),
            // `su` is what Phi-3's first files called it.
            Some("longrope" | "su") => self.longrope(),
            _ => Err(bad(
                self.key,
                format!(
                    "rope type {} is not handled; we have default, linear, llama3, dynamic, yarn, longrope",
                    shortened(&kind.to_string())
                ),
            )),
        }
    }

    fn yarn(&mut self) -> Result<RopeScaling> {
        let original_max_position = self.trained_length()?;
        let factor = match self.written.get("factor") {
            // Then the lengths say it.
            Some(Value::Null) => self.n_ctx as f64 / original_max_position as f64,
            _ => self.at_least_one("factor")?,
        };
        let (mscale, all_dim) = (self.number("mscale")?, self.number("mscale_all_dim")?);
        let implied = match (mscale, all_dim) {
            (Some(mscale), Some(all_dim)) if mscale != 0.0 && all_dim != 0.0 => {
                yarn_factor(factor, mscale) / yarn_factor(factor, all_dim)
            }
            _ => yarn_factor(factor, 1.0),
        };
        let truncate = match self.written.remove("truncate") {
            None => true,
            Some(Value::Null) => false,
            Some(Value::Bool(truncate)) => truncate,
            Some(other) => {
                let reason = format!(
                    "{} is neither true nor false",
                    shortened(&other.to_string())
                );
                return Err(bad("truncate", reason));
            }
        };
        Ok(RopeScaling::Yarn {
            factor,
            beta_fast: self.positive("beta_fast")?.unwrap_or(32.0),
            beta_slow: self.positive("beta_slow")?.unwrap_or(1.0),
            attention_factor: self.positive("attention_factor")?.unwrap_or(implied),
            truncate,
            original_max_position,
        })
    }

    fn longrope(&mut self) -> Result<RopeScaling> {
        let (short, long) = (self.factors("short_factor")?, self.factors("long_factor")?);
        let original = self.trained_length()?;
        let stretched = self.n_ctx as f64 / original as f64;
        let factor = self.positive("factor")?.unwrap_or(stretched);
        let implied = match factor <= 1.0 {
            true => 1.0,
            false => (1.0 + factor.ln() / (original as f64).ln()).sqrt(),
        };
        Ok(RopeScaling::LongRope {
            short,
            long,
            attention_factor: self.positive("attention_factor")?.unwrap_or(implied),
            original_max_position: original,
        })
    }

    /// How long the prompts of the training were, which the scalings stretch from.
    fn trained_length(&mut self) -> Result<usize> {
        let inner = self.positive("original_max_position_embeddings")?;
        let written = agreed("original_max_position_embeddings", inner, self.original)?;
        match written {
            None => Ok(self.n_ctx),
            Some(length) if length >= 2.0 && length.fract() == 0.0 => Ok(length as usize),
            Some(length) => Err(bad(
                "original_max_position_embeddings",
                format!("{length} is no length of a prompt"),
            )),
        }
    }

    /// One factor for each pair of dimensions that rotates; how many there must be is the family's to check.
    fn factors(&mut self, name: &str) -> Result<Vec<f64>> {
        let Some(Value::Array(values)) = self.written.remove(name) else {
            return Err(bad(self.key, format!("`{name}` is missing or no list")));
        };
        let positive = |value: &Value| value.as_f64().filter(|x| *x > 0.0 && x.is_finite());
        match values.iter().map(positive).collect() {
            Some(factors) => Ok(factors),
            None => Err(bad(
                name,
                "holds something else than positive numbers".into(),
            )),
        }
    }

    fn at_least_one(&mut self, name: &str) -> Result<f64> {
        match self.required(name)? {
            factor if factor >= 1.0 => Ok(factor),
            factor => Err(bad(name, format!("{factor} is less than 1"))),
        }
    }

    fn positive(&mut self, name: &str) -> Result<Option<f64>> {
        match self.number(name)? {
            Some(number) if number.is_nan() || number <= 0.0 => {
                Err(bad(name, format!("{number} is not positive")))
            }
            number => Ok(number),
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
        match self.positive(name)? {
            Some(number) => Ok(number),
            None => Err(bad(self.key, format!("`{name}` is missing"))),
        }
    }

    /// What is left says nothing, or what is so anyway, or is refused by name.
    fn refuse_rest(&self, keys: &mut Keys, scaling: &RopeScaling) -> Result<()> {
        /// What the authors' own code read, and transformers passes over with a warning.
        const IGNORED: &[&str] = &["attn_factor", "extrapolation_factor", "finetuned"];
        const WITHOUT_EFFECT: &[(&str, f64)] = &[("factor", 1.0)];
        /// Where positions are not stretched it does not matter from which length.
        const OF_SCALING: &[&str] = &[
            "max_position_embeddings",
            "original_max_position_embeddings",
        ];
        for (name, value) in &self.written {
            let is_at_one =
                |(known, number): &(&str, f64)| known == name && value.as_f64() == Some(*number);
            let is_bookkeeping = IGNORED.contains(&name.as_str())
                || WITHOUT_EFFECT.iter().any(is_at_one)
                || *scaling == RopeScaling::None && OF_SCALING.contains(&name.as_str());
            if !is_bookkeeping && !is_empty(value) {
                keys.refuse_unknown(&format!("{}.{name}", self.key), &shown(value))?;
            }
        }
        Ok(())
    }
}

/// How much YaRN sharpens attention for a stretch of `factor` (section 3.4 of the paper, times `mscale`).
fn yarn_factor(factor: f64, mscale: f64) -> f64 {
    match factor <= 1.0 {
        true => 1.0,
        false => 0.1 * mscale * factor.ln() + 1.0,
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
        let config =
            serde_json::from_str::<RopeConfig>(json).expect("the test's JSON is well formed");
        config.settings(&mut Keys::new("test", "{}", "{}", &[], &[])?, 64)
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
            r#"{"rope_scaling": {"type": "dynamic", "factor": 0.5}}"#,
            "0.5",
        );
        refused(
            r#"{"rope_parameters": {"rope_type": "proportional", "factor": 2.0}}"#,
            "proportional",
        );
        refused(
            r#"{"rope_parameters": {"rope_type": "yarn", "factor": 2.0, "gamma": 1.0}}"#,
            "gamma",
        );
        refused(
            r#"{"rope_scaling": {"type": "longrope", "long_factor": [1.0], "short_factor": ["x"]}}"#,
            "short_factor",
        );
        refused(
            r#"{"rope_parameters": {"rope_type": "default", "mscale": 0.7}}"#,
            "rope_parameters.mscale",
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

    #[test]
    fn implied_attention_factors_follow_the_papers() {
        let yarn = settings(
            r#"{"rope_scaling": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16}}"#,
        );
        let RopeScaling::Yarn {
            attention_factor,
            original_max_position,
            ..
        } = yarn.unwrap().base.scaling
        else {
            panic!("it is yarn")
        };
        assert!((attention_factor - (0.1 * 4f64.ln() + 1.0)).abs() < 1e-12);
        assert_eq!(original_max_position, 16);
        let long = settings(
            r#"{"original_max_position_embeddings": 16,
                "rope_scaling": {"type": "su", "long_factor": [2], "short_factor": [1]}}"#,
        );
        let RopeScaling::LongRope {
            attention_factor, ..
        } = long.unwrap().base.scaling
        else {
            panic!("it is longrope")
        };
        assert!((attention_factor - 1.5f64.sqrt()).abs() < 1e-12);
    }
}
