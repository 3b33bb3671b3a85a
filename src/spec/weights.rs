//! The canonical layout of weights: what the kernels want, made once at load, the same for every family.
//! Matrices are `[in, out]`, row-major, for `x @ w`; what is read together is stored together.

use candle_core::Tensor;

#[derive(Debug, Clone)]
pub struct Weights {
    /// `[d_vocab, d_model]`, without `embed_scale`.
    pub w_e: Tensor,
    /// The norm on the token embedding.
    pub ln_embed: Option<NormWeights>,
    /// `[n_ctx, d_model]`, where positions are learned.
    pub w_pos: Option<Tensor>,
    pub blocks: Vec<BlockWeights>,
    pub ln_final: Option<NormWeights>,
    /// `[d_vocab, d_model]` (a row per token, unlike the other matrices: a metric gathers rows); shares storage with `w_e` when tied.
    pub w_u: Tensor,
    /// `[d_vocab]`
    pub b_u: Option<Tensor>,
    /// What only encoders have.
    pub encoder: Option<EncoderWeights>,
}

#[derive(Debug, Clone)]
pub struct EncoderWeights {
    /// `[n_segments, d_model]`, where there are segments.
    pub segments: Option<Tensor>,
    /// `[d_model, d_model]`: read by the unembedding through the activation and `ln_head`.
    pub w_head: Tensor,
    /// `[d_model]`
    pub b_head: Option<Tensor>,
    pub ln_head: NormWeights,
}

#[derive(Debug, Clone)]
pub struct NormWeights {
    /// `[d]`
    pub w: Tensor,
    /// `[d]`, LayerNorm only.
    pub b: Option<Tensor>,
}

#[derive(Debug, Clone)]
pub struct BlockWeights {
    /// Pre-attention norm (placements `Pre`, `Sandwich`, `Stream`).
    pub ln1: Option<NormWeights>,
    /// `[d_model, (n_heads + 2 n_kv_heads) d_head]`: queries, then keys, then values; heads in order inside each.
    pub w_qkv: Tensor,
    pub b_qkv: Option<Tensor>,
    /// `[d_head]`, or `[n_heads d_head]` and `[n_kv_heads d_head]` where weights differ from head to head.
    pub q_norm: Option<NormWeights>,
    pub k_norm: Option<NormWeights>,
    /// `[n_heads d_head, d_model]`
    pub w_o: Tensor,
    pub b_o: Option<Tensor>,
    /// Norm on the attention output (placements `Post`, `Sandwich`).
    pub ln1_post: Option<NormWeights>,
    /// Pre-MLP norm; absent with a shared norm.
    pub ln2: Option<NormWeights>,
    pub mlp: Option<MlpWeights>,
    /// Norm on the MLP output.
    pub ln2_post: Option<NormWeights>,
}

#[derive(Debug, Clone)]
pub struct MlpWeights {
    /// `[d_model, d_mlp]`, or gated `[d_model, 2 d_mlp]`: gate, then linear branch.
    pub w_in: Tensor,
    pub b_in: Option<Tensor>,
    /// `[d_mlp, d_model]`
    pub w_out: Tensor,
    pub b_out: Option<Tensor>,
}

impl Weights {
    /// Bytes of all weights, what is shared counted once.
    pub fn bytes(&self) -> usize {
        let norm = |norm: &Option<NormWeights>| {
            norm.iter()
                .flat_map(|n| [Some(&n.w), n.b.as_ref()])
                .flatten()
                .map(size)
                .sum::<usize>()
        };
        let some = |t: &Option<Tensor>| t.as_ref().map_or(0, size);
        let block = |b: &BlockWeights| {
            let mlp = b.mlp.as_ref().map_or(0, |m| {
                size(&m.w_in) + some(&m.b_in) + size(&m.w_out) + some(&m.b_out)
            });
            let norms = norm(&b.q_norm)
                + norm(&b.k_norm)
                + norm(&b.ln1)
                + norm(&b.ln1_post)
                + norm(&b.ln2)
                + norm(&b.ln2_post);
            size(&b.w_qkv) + some(&b.b_qkv) + size(&b.w_o) + some(&b.b_o) + norms + mlp
        };
        let unembed = if self.w_u.id() == self.w_e.id() {
            0
        } else {
            size(&self.w_u)
        };
        let encoder = self.encoder.as_ref().map_or(0, |encoder| {
            let norm = size(&encoder.ln_head.w) + some(&encoder.ln_head.b);
            some(&encoder.segments) + size(&encoder.w_head) + some(&encoder.b_head) + norm
        });
        let ends = size(&self.w_e)
            + norm(&self.ln_embed)
            + some(&self.w_pos)
            + norm(&self.ln_final)
            + unembed
            + some(&self.b_u);
        encoder + ends + self.blocks.iter().map(block).sum::<usize>()
    }
}

fn size(t: &Tensor) -> usize {
    t.elem_count() * t.dtype().size_in_bytes()
}
