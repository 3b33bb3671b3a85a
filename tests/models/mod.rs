//! Tiny random models of every kind that the engine knows, and prompt pairs for them.
//!
//! Sizes are odd on purpose: `d_head` is not `d_model / n_heads`, windows are shorter than the prompts, no two widths are equal.

// Each test binary compiles this module for itself and uses its own part of it.
#![allow(dead_code)]

use candle_core::{DType, Tensor};
use candlewick::hooks::{Hook, Kind};
use candlewick::metric::Target;
use candlewick::model::Model;
use candlewick::run::Roles;
use candlewick::spec::{
    Activation, Alibi, Block, BlockWeights, Encoder, EncoderWeights, Mlp, MlpWeights, ModelSpec,
    NormKind, NormPlacement, NormWeights, Position, QkNorm, RopeScaling, Rotary, RotaryBase,
    RotaryStyle, Weights,
};

pub mod made;
pub mod task;

pub const VOCAB: usize = 37;

/// A pre-norm Llama without any extra; the others say how they differ from it.
fn llama(n_layers: usize, n_heads: usize, n_kv_heads: usize, d_head: usize) -> ModelSpec {
    ModelSpec {
        family: "llama".into(),
        n_layers,
        n_heads,
        n_kv_heads,
        d_model: 22,
        d_head,
        d_mlp: 27,
        d_vocab: VOCAB,
        n_ctx: 32,
        norm: NormKind::Rms,
        norm_eps: 1e-5,
        norm_placement: NormPlacement::Pre,
        block: Block::Sequential,
        position: rotary(n_layers, d_head, RotaryStyle::Half),
        attn_scale: vec![1.0 / (d_head as f32).sqrt(); n_layers],
        attn_softcap: None,
        windows: vec![None; n_layers],
        qk_norm: QkNorm::None,
        qkv_clip: None,
        mlp: Mlp::Gated,
        activation: Activation::Silu,
        embed_norm: false,
        embed_scale: None,
        residual_multiplier: None,
        logit_scale: None,
        final_softcap: None,
        tied: false,
        encoder: None,
    }
}

/// Rotary positions of heads of 8 dimensions, stretched.
fn scaled(n_layers: usize, scaling: RopeScaling) -> Position {
    let Position::Rotary(mut rotary) = rotary(n_layers, 8, RotaryStyle::Half) else {
        unreachable!("it is rotary")
    };
    rotary.bases[0].scaling = scaling;
    Position::Rotary(rotary)
}

fn rotary(n_layers: usize, dims: usize, style: RotaryStyle) -> Position {
    let rotary = Rotary {
        style,
        ..interleaved(n_layers, dims)
    };
    Position::Rotary(rotary)
}

fn interleaved(n_layers: usize, dims: usize) -> Rotary {
    Rotary {
        dims,
        style: RotaryStyle::Interleaved,
        base_of_layer: vec![Some(0); n_layers],
        bases: vec![RotaryBase {
            theta: 1000.0,
            scaling: RopeScaling::None,
        }],
    }
}

/// LayerNorm, plain MLP: what GPT-2 and the parallel families share.
fn layer_norm(spec: ModelSpec, family: &str) -> ModelSpec {
    ModelSpec {
        family: family.into(),
        norm: NormKind::Layer,
        mlp: Mlp::Plain,
        activation: Activation::Gelu,
        ..spec
    }
}

/// A BERT: its attention sees both ways, and its norms stand on the stream. Methods that take the stream for a sum refuse it.
pub fn encoder() -> Model {
    let spec = ModelSpec {
        norm_placement: NormPlacement::Stream,
        position: Position::Learned,
        encoder: Some(Encoder {
            n_segments: Some(2),
            first_norm: true,
        }),
        ..layer_norm(llama(3, 4, 4, 6), "bert")
    };
    Model::random(spec, 77).expect("the spec is whole")
}

/// A ModernBERT: its attention sees both ways, in most layers not far, and its stream is a sum. No norm stands before the first attention.
pub fn modern_encoder() -> Model {
    let spec = ModelSpec {
        family: "modernbert".into(),
        norm: NormKind::Layer,
        activation: Activation::Gelu,
        windows: vec![None, Some(3), Some(3)],
        embed_norm: true,
        encoder: Some(Encoder {
            n_segments: None,
            first_norm: false,
        }),
        ..llama(3, 4, 4, 6)
    };
    Model::random(spec, 78).expect("the spec is whole")
}

/// An encoder of each kind.
pub fn encoders() -> [Model; 2] {
    [encoder(), modern_encoder()]
}

/// One model of every kind, under the name of a family that is like it.
pub fn every_kind() -> Vec<Model> {
    let windows = |layers: usize, width: usize| -> Vec<Option<usize>> {
        (0..layers).map(|l| (l % 2 == 0).then_some(width)).collect()
    };
    let with_biases = vec![
        ModelSpec {
            position: Position::Learned,
            tied: true,
            ..layer_norm(llama(3, 4, 4, 6), "gpt2")
        },
        ModelSpec {
            block: Block::Parallel { shared_norm: false },
            position: rotary(3, 4, RotaryStyle::Half),
            ..layer_norm(llama(3, 3, 3, 10), "neox")
        },
        ModelSpec {
            block: Block::Parallel { shared_norm: true },
            position: rotary(3, 6, RotaryStyle::Interleaved),
            activation: Activation::GeluTanh,
            ..layer_norm(llama(3, 4, 2, 8), "phi")
        },
        ModelSpec {
            position: Position::Alibi(Alibi { max_bias: 3.0 }),
            embed_norm: true,
            tied: true,
            ..layer_norm(llama(3, 6, 6, 4), "bloom")
        },
        ModelSpec {
            family: "attention-only".into(),
            norm_placement: NormPlacement::None,
            position: Position::Learned,
            mlp: Mlp::None,
            d_mlp: 0,
            ..llama(3, 3, 3, 7)
        },
        ModelSpec {
            position: Position::None,
            mlp: Mlp::None,
            d_mlp: 0,
            norm_placement: NormPlacement::Sandwich,
            ..layer_norm(llama(2, 4, 2, 5), "attention-only-normed")
        },
    ];
    let without_biases = vec![
        llama(3, 6, 2, 8),
        ModelSpec {
            family: "multi-head".into(),
            ..llama(2, 3, 3, 10)
        },
        ModelSpec {
            family: "gemma2".into(),
            norm_placement: NormPlacement::Sandwich,
            attn_scale: vec![0.3; 4],
            attn_softcap: Some(2.0),
            windows: windows(4, 4),
            activation: Activation::GeluTanh,
            embed_scale: Some(22f32.sqrt()),
            final_softcap: Some(4.0),
            tied: true,
            ..llama(4, 4, 2, 12)
        },
        ModelSpec {
            family: "olmo2".into(),
            norm_placement: NormPlacement::Post,
            qk_norm: QkNorm::FullWidth,
            ..llama(3, 4, 2, 6)
        },
        ModelSpec {
            family: "qwen3".into(),
            qk_norm: QkNorm::PerHead,
            ..llama(3, 4, 1, 8)
        },
        ModelSpec {
            family: "granite".into(),
            windows: windows(3, 3),
            activation: Activation::Relu,
            embed_scale: Some(1.7),
            residual_multiplier: Some(0.6),
            logit_scale: Some(0.7),
            ..llama(3, 4, 4, 9)
        },
        // The second layer has no positions.
        ModelSpec {
            family: "cohere2".into(),
            norm: NormKind::Layer,
            block: Block::Parallel { shared_norm: true },
            position: Position::Rotary(Rotary {
                base_of_layer: vec![Some(0), None, Some(0)],
                ..interleaved(3, 6)
            }),
            windows: windows(3, 4),
            logit_scale: Some(0.6),
            tied: true,
            ..llama(3, 4, 2, 6)
        },
        // Stretched from the first token on, and by another factor with each.
        ModelSpec {
            family: "dynamic".into(),
            position: scaled(
                2,
                RopeScaling::Dynamic {
                    factor: 3.0,
                    original_max_position: 6,
                },
            ),
            ..llama(2, 4, 2, 8)
        },
        // Generation crosses the length at which the factors change.
        ModelSpec {
            family: "longrope".into(),
            position: scaled(
                2,
                RopeScaling::LongRope {
                    short: vec![1.0, 1.2, 1.5, 2.0],
                    long: vec![1.5, 2.5, 4.0, 8.0],
                    attention_factor: 1.2,
                    original_max_position: 14,
                },
            ),
            ..llama(2, 4, 2, 8)
        },
        // A third of its queries, keys and values is cut off.
        ModelSpec {
            family: "olmo".into(),
            norm: NormKind::Layer,
            qkv_clip: Some(0.9),
            ..llama(3, 4, 2, 6)
        },
    ];
    let with_biases_too = ModelSpec {
        family: "cohere".into(),
        norm: NormKind::Layer,
        block: Block::Parallel { shared_norm: true },
        qk_norm: QkNorm::OwnLayer,
        tied: true,
        ..llama(2, 4, 2, 6)
    };
    let random = |(i, (spec, biases)): (usize, (ModelSpec, bool))| {
        let seed = 100 + i as u64;
        let model = if biases {
            Model::random(spec, seed)
        } else {
            Model::random_without_biases(spec, seed)
        };
        model.expect("a spec that the engine knows")
    };
    let with = with_biases.into_iter().map(|spec| (spec, true));
    let without = without_biases.into_iter().map(|spec| (spec, false));
    let last = [(with_biases_too, true)];
    with.chain(without)
        .chain(last)
        .enumerate()
        .map(random)
        .collect()
}

/// Two models that between them have grouped heads, windows, soft-caps, post-norms, biases and learned positions.
pub fn two_kinds() -> Vec<Model> {
    let wanted = ["gpt2", "gemma2"];
    let mut models = every_kind();
    models.retain(|model| wanted.contains(&model.spec.family.as_str()));
    models
}

/// The model with all weights in another type, which takes the forms in tensor operations instead of those on slices.
pub fn cast(model: &Model, dtype: DType) -> Model {
    let to = |t: &Tensor| t.to_dtype(dtype).expect("a cast");
    let maybe = |t: &Option<Tensor>| t.as_ref().map(to);
    let norm = |w: &Option<NormWeights>| {
        w.as_ref().map(|w| NormWeights {
            w: to(&w.w),
            b: maybe(&w.b),
        })
    };
    let block = |block: &BlockWeights| BlockWeights {
        ln1: norm(&block.ln1),
        w_qkv: to(&block.w_qkv),
        b_qkv: maybe(&block.b_qkv),
        q_norm: norm(&block.q_norm),
        k_norm: norm(&block.k_norm),
        w_o: to(&block.w_o),
        b_o: maybe(&block.b_o),
        ln1_post: norm(&block.ln1_post),
        ln2: norm(&block.ln2),
        mlp: block.mlp.as_ref().map(|mlp| MlpWeights {
            w_in: to(&mlp.w_in),
            b_in: maybe(&mlp.b_in),
            w_out: to(&mlp.w_out),
            b_out: maybe(&mlp.b_out),
        }),
        ln2_post: norm(&block.ln2_post),
    };
    let weights = Weights {
        w_e: to(&model.weights.w_e),
        ln_embed: norm(&model.weights.ln_embed),
        w_pos: maybe(&model.weights.w_pos),
        blocks: model.weights.blocks.iter().map(block).collect(),
        ln_final: norm(&model.weights.ln_final),
        w_u: to(&model.weights.w_u),
        b_u: maybe(&model.weights.b_u),
        encoder: model
            .weights
            .encoder
            .as_ref()
            .map(|encoder| EncoderWeights {
                segments: maybe(&encoder.segments),
                w_head: to(&encoder.w_head),
                b_head: maybe(&encoder.b_head),
                ln_head: norm(&Some(encoder.ln_head.clone())).expect("given"),
            }),
    };
    Model::new(model.spec.clone(), weights, model.origin.clone()).expect("the same shapes")
}

/// The model with matrices in 16 bits and everything else in f32, and the model with the same numbers all in f32.
pub fn matrices_in(model: &Model, dtype: DType) -> [Model; 2] {
    let with = |kept: DType| {
        let to = |t: &mut Tensor| {
            let rounded = t.to_dtype(dtype).expect("a cast");
            *t = rounded.to_dtype(kept).expect("a cast");
        };
        let mut weights = model.weights.clone();
        to(&mut weights.w_e);
        to(&mut weights.w_u);
        for block in &mut weights.blocks {
            to(&mut block.w_qkv);
            to(&mut block.w_o);
            if let Some(mlp) = &mut block.mlp {
                to(&mut mlp.w_in);
                to(&mut mlp.w_out);
            }
        }
        if let Some(encoder) = &mut weights.encoder {
            to(&mut encoder.w_head);
        }
        Model::new(model.spec.clone(), weights, model.origin.clone()).expect("the same shapes")
    };
    [with(dtype), with(DType::F32)]
}

/// Prompts that differ from their partners at a few positions, never before [`Pairs::FIRST`].
pub struct Pairs {
    pub clean: Vec<Vec<u32>>,
    pub corrupted: Vec<Vec<u32>>,
    pub targets: Vec<Target>,
    pub roles: Vec<Roles>,
}

impl Pairs {
    pub const LENGTH: usize = 10;
    /// The first position at which clean and corrupted differ.
    pub const FIRST: usize = 2;
    pub const ANSWER: usize = Pairs::LENGTH - 1;

    /// Three pairs.
    pub fn new() -> Self {
        let vocab = VOCAB as u32;
        let token = |prompt: u32, pos: u32| (prompt * 13 + pos * pos * 5 + pos * 3 + 1) % vocab;
        let clean: Vec<Vec<u32>> = (0..3)
            .map(|prompt| {
                (0..Pairs::LENGTH as u32)
                    .map(|pos| token(prompt, pos))
                    .collect()
            })
            .collect();
        let mut corrupted = clean.clone();
        for prompt in &mut corrupted {
            for pos in [Pairs::FIRST, 5, 6] {
                prompt[pos] = (prompt[pos] + 11) % vocab;
            }
        }
        let target = |i: u32| Target {
            answers: vec![3 + i],
            wrong: vec![20 + i, 30],
            ..Target::default()
        };
        let roles = |i: usize| {
            Roles::from([
                ("S1".to_string(), vec![Pairs::FIRST]),
                ("S2".to_string(), vec![5 + i % 2, 6 + i % 2]),
            ])
        };
        Pairs {
            clean,
            corrupted,
            targets: (0..3).map(target).collect(),
            roles: (0..3).map(roles).collect(),
        }
    }
}

/// The kinds of hook that a model has.
pub fn kinds(model: &Model) -> Vec<Kind> {
    let mut kinds: Vec<Kind> = Hook::all(&model.spec)
        .iter()
        .map(|hook| hook.kind)
        .collect();
    kinds.sort_unstable();
    kinds.dedup();
    kinds
}
