//! Models that combine what [`crate::models`] has one at a time: a backward pass that is right for each may be wrong for two.

use candlewick::model::Model;
use candlewick::spec::{
    Activation, Mlp, ModelSpec, NormKind, NormPlacement, Position, QkNorm, RopeScaling, Rotary,
    RotaryBase, RotaryStyle,
};

use crate::models::every_kind;

/// Every kind, and their combinations.
pub fn all() -> Vec<Model> {
    let mut models = every_kind();
    models.extend(combinations());
    models
}

fn combinations() -> Vec<Model> {
    let kinds = every_kind();
    let like = |family: &str, name: &str| -> ModelSpec {
        let found = kinds.iter().find(|model| model.spec.family == family);
        let mut spec = found.expect("a kind of this name").spec.clone();
        spec.family = name.into();
        spec
    };
    let mut specs = vec![
        // Two rotary bases by layer, one slowed, and a layer without positions, with norms on queries and keys inside sandwich norms.
        ModelSpec {
            qk_norm: QkNorm::PerHead,
            attn_softcap: None,
            final_softcap: None,
            position: Position::Rotary(Rotary {
                dims: 12,
                style: RotaryStyle::Half,
                base_of_layer: vec![Some(0), None, Some(1), Some(0)],
                bases: vec![
                    base(100.0, RopeScaling::None),
                    base(5000.0, RopeScaling::Linear { factor: 4.0 }),
                ],
            }),
            ..like("gemma2", "gemma3")
        },
        // Keys normed across heads, in a model whose query heads share keys and whose scores are ten times their cap.
        ModelSpec {
            qk_norm: QkNorm::FullWidth,
            attn_softcap: Some(0.1),
            ..like("gemma2", "capped and normed")
        },
        ModelSpec {
            position: Position::Rotary(Rotary {
                dims: 6,
                style: RotaryStyle::Interleaved,
                base_of_layer: vec![Some(0); 3],
                bases: vec![base(
                    50.0,
                    RopeScaling::Llama3 {
                        factor: 8.0,
                        low_freq_factor: 1.0,
                        high_freq_factor: 4.0,
                        original_max_position: 64,
                    },
                )],
            }),
            ..like("llama", "slow and interleaved")
        },
        ModelSpec {
            position: Position::Rotary(Rotary {
                dims: 6,
                style: RotaryStyle::Half,
                base_of_layer: vec![Some(0); 3],
                bases: vec![base(
                    20.0,
                    RopeScaling::Factors {
                        factors: vec![1.0, 1.5, 4.0],
                    },
                )],
            }),
            windows: vec![Some(1), Some(2), Some(40)],
            ..like("granite", "narrow")
        },
        ModelSpec {
            norm_placement: NormPlacement::Sandwich,
            residual_multiplier: Some(0.4),
            final_softcap: Some(3.0),
            ..like("phi", "parallel in a sandwich")
        },
        ModelSpec {
            norm: NormKind::Rms,
            mlp: Mlp::Gated,
            windows: vec![Some(3); 3],
            ..like("neox", "parallel and gated")
        },
        ModelSpec {
            norm: NormKind::Layer,
            mlp: Mlp::Plain,
            activation: Activation::Silu,
            ..like("olmo2", "centred after its branches")
        },
        ModelSpec {
            norm_placement: NormPlacement::None,
            position: Position::None,
            logit_scale: Some(1.3),
            attn_softcap: Some(1.5),
            ..like("llama", "without norms")
        },
        // Queries and keys are cut off and then centred, under biases and shared keys.
        ModelSpec {
            qkv_clip: Some(0.8),
            qk_norm: QkNorm::PerHeadLayer,
            ..like("phi", "cut off and centred")
        },
        ModelSpec {
            qk_norm: QkNorm::OwnLayer,
            attn_softcap: Some(0.7),
            ..like("gemma2", "centred head by head")
        },
        ModelSpec {
            n_layers: 1,
            n_heads: 1,
            n_kv_heads: 1,
            attn_scale: vec![0.4],
            windows: vec![None],
            ..like("gpt2", "one head")
        },
    ];
    // Prompts of these tests are longer than these models were trained for.
    let stretched = [
        RopeScaling::Dynamic {
            factor: 3.0,
            original_max_position: 6,
        },
        RopeScaling::Yarn {
            factor: 4.0,
            beta_fast: 2.0,
            beta_slow: 0.5,
            attention_factor: 1.3,
            truncate: false,
            original_max_position: 7,
        },
        RopeScaling::LongRope {
            short: vec![1.0; 4],
            long: vec![1.0, 1.2, 2.0, 3.0],
            attention_factor: 1.2,
            original_max_position: 8,
        },
    ];
    for scaling in stretched {
        specs.push(ModelSpec {
            position: Position::Rotary(Rotary {
                dims: 8,
                style: RotaryStyle::Half,
                base_of_layer: vec![Some(0); 3],
                bases: vec![base(60.0, scaling)],
            }),
            ..like("qwen3", "stretched")
        });
    }
    for mlp in [Mlp::Plain, Mlp::Gated] {
        for activation in [
            Activation::Gelu,
            Activation::GeluTanh,
            Activation::Silu,
            Activation::Relu,
        ] {
            specs.push(ModelSpec {
                mlp,
                activation,
                ..like("multi-head", &format!("{mlp:?} {activation:?}"))
            });
        }
    }
    let random = |(i, spec)| Model::random(spec, 300 + i as u64).expect("a spec of the engine");
    specs.into_iter().enumerate().map(random).collect()
}

fn base(theta: f64, scaling: RopeScaling) -> RotaryBase {
    RotaryBase { theta, scaling }
}
