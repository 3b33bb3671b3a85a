//! Gemma 1, 2 and 3 (text): embeddings times `sqrt(d_model)`, norm weights stored less 1, tied unembedding.
//! Gemma 2 adds a norm on each branch's output, windows in every other layer and soft-caps; Gemma 3 drops the caps, norms each
//! query and key, and gives its sliding layers a rotary base of their own.

use serde::Deserialize;
use serde_json::{Map, Value};

use super::config::{activation, parse, refuse_unhandled};
use super::decoder::{self, Biases, Sizes};
use super::llama_cpp::{self, Heads, Metadata};
use super::rope::{RopeConfig, RopeSettings};
use super::{Description, Family, all_rotates};
use crate::error::{Error, Result};
use crate::model::gguf::Gguf;
use crate::model::layout::{Layout, Slot};
use crate::model::spec::{
    Activation, ModelSpec, NormPlacement, Position, QkNorm, RopeScaling, RotaryBase,
};

pub const GEMMA: Family = Family {
    name: "gemma",
    model_types: &["gemma"],
    from_config: describe_gemma,
    gguf: Some(("gemma", describe_gemma_gguf)),
};

pub const GEMMA2: Family = Family {
    name: "gemma2",
    model_types: &["gemma2"],
    from_config: describe_gemma2,
    gguf: Some(("gemma2", describe_gemma2_gguf)),
};

/// `gemma3` as a `model_type` is the model that also reads images, and is refused.
pub const GEMMA3: Family = Family {
    name: "gemma3",
    model_types: &["gemma3_text"],
    from_config: describe_gemma3,
    gguf: Some(("gemma3", describe_gemma3_gguf)),
};

/// Attention in both directions (EmbeddingGemma) would be another function.
const AT_DEFAULT: &[(&str, &str)] = &[("use_bidirectional_attention", "false")];

/// Rotary bases that Gemma 3's files may leave out.
const GLOBAL_THETA: f64 = 1_000_000.0;
const LOCAL_THETA: f64 = 10_000.0;
/// In Gemma 3 every sixth layer sees everything, in Gemma 2 every second one, unless `layer_types` says otherwise.
const GEMMA3_PATTERN: usize = 6;
const GEMMA2_PATTERN: usize = 2;

#[derive(Deserialize)]
struct Config {
    #[serde(flatten)]
    sizes: Sizes,
    #[serde(flatten)]
    rope: RopeConfig,
    rms_norm_eps: f64,
    /// Gemma 1 has both; this one is not read where the other is there.
    hidden_act: Option<String>,
    hidden_activation: Option<String>,
    #[serde(default)]
    attention_bias: bool,
    query_pre_attn_scalar: Option<f64>,
    attn_logit_softcapping: Option<f32>,
    final_logit_softcapping: Option<f32>,
    sliding_window: Option<usize>,
    #[serde(alias = "_sliding_window_pattern")]
    sliding_window_pattern: Option<usize>,
    layer_types: Option<Vec<String>>,
    rope_local_base_freq: Option<f64>,
    #[serde(default = "yes")]
    tie_word_embeddings: bool,
    #[serde(flatten)]
    rest: Map<String, Value>,
}

fn yes() -> bool {
    true
}

fn describe_gemma(config: &str) -> Result<Description> {
    let config: Config = parse(config)?;
    config.refuse_later_keys("gemma")?;
    let rope = config.rope.settings(config.sizes.max_position_embeddings)?;
    let spec = config.spec("gemma", rope)?;
    Ok(config.describe(spec))
}

fn describe_gemma2(config: &str) -> Result<Description> {
    let config: Config = parse(config)?;
    let rope = config.rope.settings(config.sizes.max_position_embeddings)?;
    let spec = config.spec("gemma2", rope)?;
    let spec = config.alternating(
        ModelSpec {
            norm_placement: NormPlacement::Sandwich,
            ..spec
        },
        GEMMA2_PATTERN,
    )?;
    Ok(config.describe(spec))
}

fn describe_gemma3(config: &str) -> Result<Description> {
    let config: Config = parse(config)?;
    let [global, local] = config.two_bases()?;
    let spec = ModelSpec {
        norm_placement: NormPlacement::Sandwich,
        qk_norm: QkNorm::PerHead,
        ..config.spec("gemma3", global)?
    };
    let spec = config.alternating(spec, GEMMA3_PATTERN)?;
    let spec = with_local_base(spec, local.base);
    Ok(config.describe(spec))
}

impl Config {
    /// What the three have in common.
    fn spec(&self, family: &str, rope: RopeSettings) -> Result<ModelSpec> {
        refuse_unhandled(family, &self.rest, AT_DEFAULT)?;
        all_rotates(family, &rope)?;
        let mut spec = of_gemma(self.sizes.spec(family, self.rms_norm_eps, rope)?);
        spec.activation = self.activation()?;
        spec.tied = self.tie_word_embeddings;
        spec.attn_softcap = self.attn_logit_softcapping;
        spec.final_softcap = self.final_logit_softcapping;
        if let Some(scalar) = self.query_pre_attn_scalar {
            spec.attn_scale = vec![scalar.powf(-0.5) as f32; spec.n_layers];
        }
        Ok(spec)
    }

    /// Gemma 1's first files say `gelu` and mean the tanh form: their authors' code has no other.
    fn activation(&self) -> Result<Activation> {
        let key = if self.hidden_activation.is_some() {
            "hidden_activation"
        } else {
            "hidden_act"
        };
        match self
            .hidden_activation
            .as_deref()
            .or(self.hidden_act.as_deref())
        {
            None | Some("gelu") => Ok(Activation::GeluTanh),
            Some(name) => activation(key, name),
        }
    }

    /// Gemma 1 has neither windows nor caps.
    fn refuse_later_keys(&self, family: &str) -> Result<()> {
        let keys = [
            (
                "query_pre_attn_scalar",
                self.query_pre_attn_scalar.map(|x| x.to_string()),
            ),
            (
                "attn_logit_softcapping",
                self.attn_logit_softcapping.map(|x| x.to_string()),
            ),
            (
                "final_logit_softcapping",
                self.final_logit_softcapping.map(|x| x.to_string()),
            ),
            ("sliding_window", self.sliding_window.map(|x| x.to_string())),
            (
                "layer_types",
                self.layer_types.as_ref().map(|kinds| kinds.join(",")),
            ),
        ];
        match keys
            .into_iter()
            .find_map(|(key, value)| Some((key, value?)))
        {
            None => Ok(()),
            Some((key, value)) => Err(Error::UnhandledConfig {
                family: family.to_string(),
                key: key.to_string(),
                value: crate::text::shortened(&value),
            }),
        }
    }

    fn alternating(&self, spec: ModelSpec, pattern: usize) -> Result<ModelSpec> {
        let pattern = self.sliding_window_pattern.unwrap_or(pattern).max(1);
        let windows = decoder::windows(
            self.layer_types.as_deref(),
            spec.n_layers,
            self.sliding_window,
            |layer| !(layer + 1).is_multiple_of(pattern),
        )?;
        Ok(ModelSpec { windows, ..spec })
    }

    /// The rotary settings of the layers that see everything, and of those that slide: two objects in new files; in older ones
    /// the usual keys, which mean the former, and `rope_local_base_freq`.
    fn two_bases(&self) -> Result<[RopeSettings; 2]> {
        let n_ctx = self.sizes.max_position_embeddings;
        let nested = self.rope.rope_parameters.as_ref();
        let of_kind = |kind: &str| -> Option<RopeConfig> {
            let inner = nested?.get(kind)?;
            Some(RopeConfig {
                rope_parameters: Some(inner.as_object()?.clone()),
                ..RopeConfig::default()
            })
        };
        let (global, local) = match (of_kind("full_attention"), of_kind("sliding_attention")) {
            (None, None) => (self.rope.clone(), RopeConfig::default()),
            (global, local) => (global.unwrap_or_default(), local.unwrap_or_default()),
        };
        let or = |theta: Option<f64>, mut rope: RopeConfig| {
            rope.rope_theta = match rope.rope_parameters.as_ref() {
                Some(inner) if inner.contains_key("rope_theta") => None,
                _ => rope.rope_theta.or(theta),
            };
            rope.settings(n_ctx)
        };
        Ok([
            or(Some(GLOBAL_THETA), global)?,
            or(
                Some(self.rope_local_base_freq.unwrap_or(LOCAL_THETA)),
                local,
            )?,
        ])
    }

    fn describe(&self, spec: ModelSpec) -> Description {
        let biases = Biases {
            qkv: self.attention_bias,
            o: self.attention_bias,
            mlp: false,
        };
        let layout = plus_one(decoder::layout(&spec, biases));
        Description { spec, layout }
    }
}

fn of_gemma(spec: ModelSpec) -> ModelSpec {
    ModelSpec {
        activation: Activation::GeluTanh,
        embed_scale: Some((spec.d_model as f32).sqrt()),
        ..spec
    }
}

/// Gives the layers that slide a base of their own.
fn with_local_base(mut spec: ModelSpec, local: RotaryBase) -> ModelSpec {
    if let Position::Rotary(rotary) = &mut spec.position {
        rotary.bases.push(local);
        let slides = spec.windows.iter().map(Option::is_some);
        rotary.base_of_layer = slides.map(usize::from).collect();
    }
    spec
}

/// transformers stores each norm's weight less 1.
fn plus_one(mut layout: Layout) -> Layout {
    let is_norm = |slot: &Slot| {
        matches!(
            slot,
            Slot::Ln1
                | Slot::Ln1Post
                | Slot::Ln2
                | Slot::Ln2Post
                | Slot::LnFinal
                | Slot::QNorm
                | Slot::KNorm
        )
    };
    for (slot, pieces) in layout.model.iter_mut().chain(&mut layout.blocks) {
        if is_norm(slot) {
            pieces.iter_mut().for_each(|piece| piece.plus = 1.0);
        }
    }
    layout
}

/// In a GGUF the norms have their 1 already.
fn describe_gemma_gguf(gguf: &Gguf) -> Result<Description> {
    let spec = of_gemma(Metadata::new(gguf, "gemma", &[])?.spec("gemma")?);
    Ok(llama_cpp::describe(spec, gguf, Heads::AsTrained))
}

fn describe_gemma2_gguf(gguf: &Gguf) -> Result<Description> {
    let own_keys = [
        "attention.sliding_window",
        "attn_logit_softcapping",
        "final_logit_softcapping",
    ];
    let metadata = Metadata::new(gguf, "gemma2", &own_keys)?;
    let mut spec = ModelSpec {
        norm_placement: NormPlacement::Sandwich,
        ..of_gemma(metadata.spec("gemma2")?)
    };
    let cap = |name: &str| gguf.number(&metadata.key(name));
    spec.attn_softcap = Some(cap("attn_logit_softcapping")? as f32);
    spec.final_softcap = Some(cap("final_logit_softcapping")? as f32);
    let window = gguf.size(&metadata.key("attention.sliding_window"))?;
    spec.windows = every_but(GEMMA2_PATTERN, window, spec.n_layers);
    // The query scale has no key; of the released sizes only 27B, of 46 layers, departs from the head's width.
    if spec.n_layers == 46 {
        spec.attn_scale = scale_by_width(&spec);
    }
    Ok(llama_cpp::describe(spec, gguf, Heads::AsTrained))
}

fn describe_gemma3_gguf(gguf: &Gguf) -> Result<Description> {
    let own_keys = ["attention.sliding_window", "rope.freq_base_swa"];
    let metadata = Metadata::new(gguf, "gemma3", &own_keys)?;
    let mut spec = ModelSpec {
        norm_placement: NormPlacement::Sandwich,
        qk_norm: QkNorm::PerHead,
        ..of_gemma(metadata.spec("gemma3")?)
    };
    let window = gguf.size(&metadata.key("attention.sliding_window"))?;
    spec.windows = every_but(GEMMA3_PATTERN, window, spec.n_layers);
    // As in Gemma 2, for the 27B of 62 layers.
    if spec.n_layers == 62 {
        spec.attn_scale = scale_by_width(&spec);
    }
    let theta = gguf.maybe_number(&metadata.key("rope.freq_base_swa"))?;
    let local = RotaryBase {
        theta: theta.unwrap_or(LOCAL_THETA),
        scaling: RopeScaling::None,
    };
    let spec = with_local_base(spec, local);
    Ok(llama_cpp::describe(spec, gguf, Heads::AsTrained))
}

/// Every `pattern`-th layer sees everything, the others a window.
fn every_but(pattern: usize, window: usize, n_layers: usize) -> Vec<Option<usize>> {
    let slides = |layer: usize| !(layer + 1).is_multiple_of(pattern);
    (0..n_layers)
        .map(|layer| Some(window).filter(|_| slides(layer)))
        .collect()
}

fn scale_by_width(spec: &ModelSpec) -> Vec<f32> {
    vec![(spec.d_model as f32 / spec.n_heads as f32).powf(-0.5); spec.n_layers]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::families::from_config;

    const GEMMA3_CONFIG: &str =
        include_str!("../../../tests/fixtures/gemma3-tiny-random/config.json");

    fn edited(json: &str, edit: impl Fn(&mut Map<String, Value>)) -> Result<Description> {
        let mut config: Map<String, Value> = serde_json::from_str(json).unwrap();
        edit(&mut config);
        from_config(&Value::Object(config).to_string())
    }

    fn rotary(description: &Description) -> (Vec<usize>, Vec<f64>) {
        match &description.spec.position {
            Position::Rotary(rotary) => (
                rotary.base_of_layer.clone(),
                rotary.bases.iter().map(|base| base.theta).collect(),
            ),
            _ => panic!("gemma is rotary"),
        }
    }

    #[test]
    fn sliding_layers_have_a_base_of_their_own() {
        let described = from_config(GEMMA3_CONFIG).unwrap();
        assert_eq!(rotary(&described), (vec![1, 0, 1, 0], vec![1e6, 1e4]));
        assert_eq!(described.spec.windows, [Some(5), None, Some(5), None]);
        assert_eq!(described.spec.attn_scale[0], 48f32.powf(-0.5));
    }

    #[test]
    fn bases_that_are_not_written_are_the_published_ones() {
        let described = edited(GEMMA3_CONFIG, |config| {
            config.remove("rope_parameters");
            config.remove("layer_types");
        });
        let described = described.unwrap();
        assert_eq!(rotary(&described), (vec![1, 1, 1, 1], vec![1e6, 1e4]));
        let pattern = edited(GEMMA3_CONFIG, |config| {
            config.remove("layer_types");
            config.insert("_sliding_window_pattern".into(), 2.into());
        });
        assert_eq!(
            pattern.unwrap().spec.windows,
            [Some(5), None, Some(5), None]
        );
    }

    #[test]
    fn attention_in_both_directions_is_refused() {
        let refused = edited(GEMMA3_CONFIG, |config| {
            config.insert("use_bidirectional_attention".into(), true.into());
        });
        let message = refused.unwrap_err().to_string();
        assert!(message.contains("use_bidirectional_attention"), "{message}");
    }

    #[test]
    fn the_first_files_mean_the_tanh_form() {
        let json = include_str!("../../../tests/fixtures/gemma-tiny-random/config.json");
        let described = edited(json, |config| {
            config.remove("hidden_activation");
            config.insert("hidden_act".into(), "gelu".into());
        });
        assert_eq!(described.unwrap().spec.activation, Activation::GeluTanh);
        let refused = edited(json, |config| {
            config.insert("sliding_window".into(), 7.into());
        });
        assert!(refused.unwrap_err().to_string().contains("sliding_window"));
    }
}
