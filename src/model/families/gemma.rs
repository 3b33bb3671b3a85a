//! Gemma 1, 2 and 3 (text): embeddings times `sqrt(d_model)`, norm weights stored less 1, tied unembedding.
//! Gemma 2 adds a norm on each branch's output, windows in every other layer and soft-caps; Gemma 3 drops the caps, norms each
//! query and key, and gives its sliding layers a rotary base of their own.

use serde::Deserialize;
use serde_json::{Map, Value};

use super::config::{Keys, activation};
use super::decoder::{self, Biases, Sizes};
use super::limits::MOST_LAYERS;
use super::llama_cpp::{self, Heads, Metadata};
use super::rope::{RopeConfig, RopeSettings};
use super::{Description, Family, all_rotates};
use crate::error::Result;
use crate::model::gguf::Gguf;
use crate::model::spec::{Activation, ModelSpec, NormPlacement, QkNorm, RopeScaling, RotaryBase};
use crate::text::shortened;

pub const GEMMA: Family = Family {
    name: "gemma",
    model_types: &["gemma"],
    defaults: GEMMA_DEFAULTS,
    synonyms: &[],
    from_config: describe_gemma,
    gguf: Some(("gemma", describe_gemma_gguf)),
    examples: &["google/gemma-2b"],
};

pub const GEMMA2: Family = Family {
    name: "gemma2",
    model_types: &["gemma2"],
    defaults: GEMMA2_DEFAULTS,
    synonyms: &[],
    from_config: describe_gemma2,
    gguf: Some(("gemma2", describe_gemma2_gguf)),
    examples: &["google/gemma-2-2b"],
};

/// `gemma3` as a `model_type` is the model that also reads images, and is refused.
pub const GEMMA3: Family = Family {
    name: "gemma3",
    model_types: &["gemma3_text"],
    defaults: GEMMA3_DEFAULTS,
    synonyms: &[],
    from_config: describe_gemma3,
    gguf: Some(("gemma3", describe_gemma3_gguf)),
    examples: &["google/gemma-3-270m", "google/gemma-3-4b-pt"],
};

const GEMMA_DEFAULTS: &str = r#"{
    "vocab_size": 256000, "hidden_size": 3072, "intermediate_size": 24576, "num_hidden_layers": 28, "num_attention_heads": 16,
    "num_key_value_heads": 16, "head_dim": 256, "max_position_embeddings": 8192, "rms_norm_eps": 1e-6,
    "hidden_act": "gelu_pytorch_tanh", "attention_bias": false, "tie_word_embeddings": true
}"#;
const GEMMA2_DEFAULTS: &str = r#"{
    "vocab_size": 256000, "hidden_size": 2304, "intermediate_size": 9216, "num_hidden_layers": 26, "num_attention_heads": 8,
    "num_key_value_heads": 4, "head_dim": 256, "max_position_embeddings": 8192, "rms_norm_eps": 1e-6,
    "hidden_activation": "gelu_pytorch_tanh", "attention_bias": false, "tie_word_embeddings": true,
    "query_pre_attn_scalar": 256, "sliding_window": 4096, "attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0
}"#;
const GEMMA3_DEFAULTS: &str = r#"{
    "vocab_size": 262208, "hidden_size": 2304, "intermediate_size": 9216, "num_hidden_layers": 26, "num_attention_heads": 8,
    "num_key_value_heads": 4, "head_dim": 256, "max_position_embeddings": 131072, "rms_norm_eps": 1e-6,
    "hidden_activation": "gelu_pytorch_tanh", "attention_bias": false, "tie_word_embeddings": true,
    "query_pre_attn_scalar": 256, "sliding_window": 4096, "final_logit_softcapping": null
}"#;

/// Norms are stored less 1.
const FIRST: &str = "
    ln_final  norm plus=1
    each      layers.{l}.
    ln1       input_layernorm plus=1
    ln2       post_attention_layernorm plus=1
";
const LATER: &str = "
    ln_final  norm plus=1
    each      layers.{l}.
    ln1       input_layernorm plus=1
    ln1_post  post_attention_layernorm plus=1
    ln2       pre_feedforward_layernorm plus=1
    ln2_post  post_feedforward_layernorm plus=1
    q_norm    self_attn.q_norm plus=1
    k_norm    self_attn.k_norm plus=1
";

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
    /// What Gemma 1 reads.
    hidden_act: Option<String>,
    /// What the later ones read.
    hidden_activation: Option<String>,
    attention_bias: bool,
    query_pre_attn_scalar: Option<f64>,
    attn_logit_softcapping: Option<f32>,
    final_logit_softcapping: Option<f32>,
    sliding_window: Option<usize>,
    sliding_window_pattern: Option<usize>,
    layer_types: Option<Vec<String>>,
    rope_local_base_freq: Option<f64>,
    tie_word_embeddings: bool,
    #[serde(flatten)]
    rest: Map<String, Value>,
}

fn describe_gemma(keys: &mut Keys) -> Result<Description> {
    let config: Config = keys.read()?;
    config.refuse_later_keys(keys)?;
    let rope = config
        .rope
        .settings(keys, config.sizes.max_position_embeddings)?;
    all_rotates(keys, &rope)?;
    let mut spec = config.spec("gemma", keys, rope)?;
    spec.activation = match config.hidden_act.as_deref() {
        // The first files say `gelu` and mean the tanh form: their authors' code has no other.
        None | Some("gelu") => Activation::GeluTanh,
        Some(name) => activation("hidden_act", name)?,
    };
    // Read by transformers 4 and not by 5, which matters only where the two disagree.
    if let Some(other) = &config.hidden_activation
        && activation("hidden_activation", other)? != spec.activation
    {
        keys.refuse("hidden_activation", other, "it contradicts `hidden_act`")?;
    }
    Ok(config.describe(spec))
}

fn describe_gemma2(keys: &mut Keys) -> Result<Description> {
    let config: Config = keys.read()?;
    let rope = config
        .rope
        .settings(keys, config.sizes.max_position_embeddings)?;
    all_rotates(keys, &rope)?;
    let mut spec = config.later_spec("gemma2", keys, rope)?;
    spec.attn_softcap = config.attn_logit_softcapping;
    let kinds = config.kinds(GEMMA2_PATTERN);
    spec.windows = decoder::windows_of(&kinds, spec.n_layers, config.sliding_window)?;
    Ok(config.describe(spec))
}

fn describe_gemma3(keys: &mut Keys) -> Result<Description> {
    let config: Config = keys.read()?;
    let thetas = [
        GLOBAL_THETA,
        config.rope_local_base_freq.unwrap_or(LOCAL_THETA),
    ];
    let n_ctx = config.sizes.max_position_embeddings;
    let [global, local] = config.rope.by_kind_of_layer(keys, n_ctx, thetas)?;
    all_rotates(keys, &global)?;
    all_rotates(keys, &local)?;
    // `attn_logit_softcapping` is in the files and in transformers' class, and no line of its code reads it.
    let mut spec = ModelSpec {
        qk_norm: QkNorm::PerHead,
        ..config.later_spec("gemma3", keys, global)?
    };
    let kinds = config.kinds(config.sliding_window_pattern.unwrap_or(GEMMA3_PATTERN));
    spec.windows = decoder::windows_of(&kinds, spec.n_layers, config.sliding_window)?;
    Ok(config.describe(decoder::with_local_base(spec, local.base)))
}

impl Config {
    /// What the three have in common.
    fn spec(&self, family: &str, keys: &mut Keys, rope: RopeSettings) -> Result<ModelSpec> {
        keys.refuse_unhandled(&self.rest, &[], &[])?;
        let mut spec = of_gemma(self.sizes.spec(family, self.rms_norm_eps, rope)?);
        spec.tied = self.tie_word_embeddings;
        Ok(spec)
    }

    /// What 2 and 3 have in common.
    fn later_spec(&self, family: &str, keys: &mut Keys, rope: RopeSettings) -> Result<ModelSpec> {
        let mut spec = ModelSpec {
            norm_placement: NormPlacement::Sandwich,
            ..self.spec(family, keys, rope)?
        };
        if let Some(name) = &self.hidden_activation {
            spec.activation = activation("hidden_activation", name)?;
        }
        // Of these only `hidden_activation` is read; published files have both, and the same in them.
        if let Some(other) = &self.hidden_act
            && other != "gelu"
            && activation("hidden_act", other)? != spec.activation
        {
            keys.refuse("hidden_act", other, "it contradicts `hidden_activation`")?;
        }
        spec.final_softcap = self.final_logit_softcapping;
        if let Some(scalar) = self.query_pre_attn_scalar {
            spec.attn_scale = vec![scalar.powf(-0.5) as f32; spec.n_layers];
        }
        Ok(spec)
    }

    /// Gemma 1 has neither windows nor caps.
    fn refuse_later_keys(&self, keys: &mut Keys) -> Result<()> {
        let as_text = |number: f64| Value::from(number).to_string();
        let later = [
            (
                "query_pre_attn_scalar",
                self.query_pre_attn_scalar.map(as_text),
            ),
            (
                "attn_logit_softcapping",
                self.attn_logit_softcapping.map(|cap| as_text(cap.into())),
            ),
            (
                "final_logit_softcapping",
                self.final_logit_softcapping.map(|cap| as_text(cap.into())),
            ),
            ("sliding_window", self.sliding_window.map(|x| x.to_string())),
            (
                "layer_types",
                self.layer_types
                    .as_ref()
                    .filter(|kinds| kinds.iter().any(|kind| kind != "full_attention"))
                    .map(|kinds| shortened(&kinds.join(","))),
            ),
        ];
        for (key, value) in later {
            if let Some(value) = value {
                keys.refuse(key, &value, "Gemma 1 has neither windows nor soft-caps")?;
            }
        }
        Ok(())
    }

    /// The kind of each layer: as written, or every `pattern`-th sees everything.
    fn kinds(&self, pattern: usize) -> Vec<String> {
        let kind = |layer: usize| {
            let sees_everything = (layer + 1).is_multiple_of(pattern.max(1));
            let kind = if sees_everything {
                "full_attention"
            } else {
                "sliding_attention"
            };
            kind.to_string()
        };
        match &self.layer_types {
            Some(kinds) => kinds.clone(),
            None => (0..self.sizes.num_hidden_layers.min(MOST_LAYERS))
                .map(kind)
                .collect(),
        }
    }

    fn describe(&self, spec: ModelSpec) -> Description {
        let biases = Biases {
            qkv: self.attention_bias,
            o: self.attention_bias,
            mlp: false,
        };
        let layout = decoder::layout(
            &spec,
            if spec.has_post_norm() { LATER } else { FIRST },
            biases,
        );
        Description::new(spec, layout)
    }
}

fn of_gemma(spec: ModelSpec) -> ModelSpec {
    ModelSpec {
        activation: Activation::GeluTanh,
        embed_scale: Some((spec.d_model as f32).sqrt()),
        ..spec
    }
}

/// In a GGUF the norms have their 1 already.
fn describe_gemma_gguf(gguf: &Gguf, keys: &mut Keys) -> Result<Description> {
    let spec = of_gemma(Metadata::new(gguf, keys, "gemma", &[])?.spec("gemma")?);
    Ok(llama_cpp::describe(spec, gguf, Heads::AsTrained))
}

fn describe_gemma2_gguf(gguf: &Gguf, keys: &mut Keys) -> Result<Description> {
    let own_keys = [
        "attention.sliding_window",
        "attn_logit_softcapping",
        "final_logit_softcapping",
    ];
    let metadata = Metadata::new(gguf, keys, "gemma2", &own_keys)?;
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

fn describe_gemma3_gguf(gguf: &Gguf, keys: &mut Keys) -> Result<Description> {
    let own_keys = ["attention.sliding_window", "rope.freq_base_swa"];
    let metadata = Metadata::new(gguf, keys, "gemma3", &own_keys)?;
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
    let spec = decoder::with_local_base(spec, local);
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
    use crate::model::spec::Position;

    const GEMMA3_CONFIG: &str =
        include_str!("../../../tests/fixtures/gemma3-tiny-random/config.json");

    fn edited(json: &str, edit: impl Fn(&mut Map<String, Value>)) -> Result<Description> {
        let mut config: Map<String, Value> = serde_json::from_str(json).unwrap();
        edit(&mut config);
        from_config(&Value::Object(config).to_string())
    }

    fn rotary(description: &Description) -> (Vec<Option<usize>>, Vec<f64>) {
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
        assert_eq!(
            rotary(&described),
            ([1, 0, 1, 0].map(Some).to_vec(), vec![1e6, 1e4])
        );
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
        assert_eq!(rotary(&described), (vec![Some(1); 4], vec![1e6, 1e4]));
        // transformers writes the second of these names, and reads only the first.
        for (name, windows) in [
            ("sliding_window_pattern", [Some(5), None, Some(5), None]),
            ("_sliding_window_pattern", [Some(5); 4]),
        ] {
            let pattern = edited(GEMMA3_CONFIG, |config| {
                config.remove("layer_types");
                config.insert(name.into(), 2.into());
            });
            assert_eq!(pattern.unwrap().spec.windows, windows);
        }
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
        let json = include_str!("../../../tests/fixtures/gemma-tiny/config.json");
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
