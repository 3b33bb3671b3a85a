//! Models whose circuits are known.

use candle_core::{Device, Tensor};
use candlewick::model::Model;
use candlewick::spec::{
    Activation, Block, Mlp, ModelSpec, NormKind, NormPlacement, Position, QkNorm,
};

/// A model in which everything is linear along the way: no norms, attention that does not look, a straight MLP.
pub fn affine(n_layers: usize) -> Model {
    let spec = ModelSpec {
        family: "affine".into(),
        n_layers,
        n_heads: 2,
        n_kv_heads: 2,
        d_model: 12,
        d_head: 5,
        d_mlp: 0,
        d_vocab: super::VOCAB,
        n_ctx: 16,
        norm: NormKind::Rms,
        norm_eps: 1e-5,
        norm_placement: NormPlacement::None,
        block: Block::Sequential,
        position: Position::None,
        attn_scale: vec![0.0; n_layers],
        attn_softcap: None,
        windows: vec![None; n_layers],
        qk_norm: QkNorm::None,
        qkv_clip: None,
        mlp: Mlp::None,
        activation: Activation::Relu,
        embed_norm: false,
        embed_scale: None,
        residual_multiplier: None,
        logit_scale: None,
        final_softcap: None,
        tied: false,
        encoder: None,
    };
    Model::random(spec, 5).expect("a model")
}

/// Two heads carry everything: `a0.h0` reads the embedding's part of the stream and writes a second part, `a1.h1` reads that and
/// writes a third, which alone the unembedding reads. The other heads are noise.
pub fn planted() -> Model {
    let mut model = affine(4);
    let spec = ModelSpec {
        attn_scale: vec![0.3; 4],
        ..model.spec.clone()
    };
    let (d, heads, d_head) = (spec.d_model, spec.n_heads, spec.d_head);
    model.spec = spec;
    let third = d / 3;
    let keep = |t: &Tensor, of: &dyn Fn(usize, usize) -> f32| -> Tensor {
        let (rows, columns) = t.dims2().unwrap();
        let values = t.to_vec2::<f32>().unwrap();
        let mut kept = Vec::with_capacity(rows * columns);
        for (i, row) in values.iter().enumerate() {
            kept.extend(row.iter().enumerate().map(|(j, x)| x * of(i, j)));
        }
        Tensor::from_vec(kept, (rows, columns), &Device::Cpu).unwrap()
    };
    model.weights.w_e = keep(&model.weights.w_e, &|_, j| {
        if j < third { 1.0 } else { 0.0 }
    });
    model.weights.w_u = keep(&model.weights.w_u, &|_, j| {
        if j >= 2 * third { 1.0 } else { 0.0 }
    });
    for (layer, block) in model.weights.blocks.iter_mut().enumerate() {
        let reads = layer * third..(layer + 1) * third;
        let writes = (layer + 1) * third..(layer + 2) * third;
        let chosen = |head: usize| layer < 2 && head == layer;
        block.b_qkv = None;
        block.b_o = None;
        block.w_qkv = keep(&block.w_qkv, &|i, j| {
            let (letter, head) = (j / (heads * d_head), j % (heads * d_head) / d_head);
            match (letter, chosen(head)) {
                (2, true) if reads.contains(&i) => 1.0,
                (2, true) => 0.0,
                (2, false) => 0.05,
                _ => 0.3,
            }
        });
        block.w_o = keep(&block.w_o, &|i, j| match chosen(i / d_head) {
            true if writes.contains(&j) => 3.0,
            true => 0.0,
            false => 0.05,
        });
    }
    model
}

/// The edges of the circuit in [`planted`].
pub const PLANTED: [&str; 3] = ["a0.h0->a1.h1<v>", "a1.h1->logits", "input->a0.h0<v>"];

/// Two layers of one head, one dimension wide, whose heads write the mean of what they saw so far, the first once and the second
/// three times. Token `t` is embedded as `embedded[t]`; the logit of token 3 is the stream, and all others are 0.
pub fn by_hand(embedded: [f32; 3]) -> Model {
    let mut model = affine(2);
    model.spec = ModelSpec {
        n_heads: 1,
        n_kv_heads: 1,
        d_model: 1,
        d_head: 1,
        ..model.spec.clone()
    };
    let matrix = |rows: usize, columns: usize, at: &[(usize, f32)]| {
        let mut values = vec![0.0; rows * columns];
        at.iter().for_each(|&(place, x)| values[place] = x);
        Tensor::from_vec(values, (rows, columns), &Device::Cpu).unwrap()
    };
    let tokens: Vec<(usize, f32)> = embedded.into_iter().enumerate().collect();
    let weights = &mut model.weights;
    weights.w_e = matrix(super::VOCAB, 1, &tokens);
    weights.w_u = matrix(super::VOCAB, 1, &[(3, 1.0)]);
    weights.b_u = None;
    for (block, (value, out)) in weights.blocks.iter_mut().zip([(0.5, 2.0), (3.0, 1.0)]) {
        block.w_qkv = matrix(1, 3, &[(2, value)]);
        block.w_o = matrix(1, 1, &[(0, out)]);
        block.b_qkv = None;
        block.b_o = None;
    }
    Model::new(model.spec, model.weights, model.origin).expect("the shapes of the spec")
}
