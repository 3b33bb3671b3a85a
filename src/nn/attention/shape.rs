//! What attention needs to know: the shape of one layer, where the rows of each segment lie, and which keys a query sees.

use candle_core::Tensor;

use crate::spec::{Alibi, ModelSpec, Position};

/// What attention needs to know of the model at one layer.
#[derive(Debug, Clone, Copy)]
pub struct Shape {
    pub n_heads: usize,
    /// Heads of the segments' own keys: the model's key/value heads, or one for each query head after an edit of `hook_k_input`.
    pub key_heads: usize,
    pub value_heads: usize,
    /// Heads of the base run's keys and values.
    pub n_kv_heads: usize,
    pub d_head: usize,
    pub scale: f32,
    pub softcap: Option<f32>,
    pub window: Option<usize>,
    pub alibi: Option<Slopes>,
    /// Whether a query sees no later key.
    pub causal: bool,
    /// Tokens in each prompt.
    pub length: usize,
}

impl Shape {
    /// All heads of a layer, with the model's own keys and values.
    pub fn of(spec: &ModelSpec, layer: usize, length: usize) -> Self {
        Shape {
            n_heads: spec.n_heads,
            key_heads: spec.n_kv_heads,
            value_heads: spec.n_kv_heads,
            n_kv_heads: spec.n_kv_heads,
            d_head: spec.d_head,
            scale: spec.attn_scale[layer],
            softcap: spec.attn_softcap,
            window: spec.windows[layer],
            alibi: Slopes::new(spec, 0),
            causal: spec.is_causal(),
            length,
        }
    }
}

/// The slopes of ALiBi for the heads of a [`Shape`], which may be some of the model's only.
#[derive(Debug, Clone, Copy)]
pub struct Slopes {
    pub(super) alibi: Alibi,
    pub(super) n_heads: usize,
    pub(super) first: usize,
}

impl Slopes {
    /// For heads from `first` on.
    pub fn new(spec: &ModelSpec, first: usize) -> Option<Self> {
        match spec.position {
            Position::Alibi(alibi) => Some(Slopes {
                alibi,
                n_heads: spec.n_heads,
                first,
            }),
            Position::None | Position::Learned | Position::Rotary(_) => None,
        }
    }

    /// What a score of `head` loses for each position between key and query.
    pub(super) fn of(self, head: usize) -> f32 {
        self.alibi.slope(self.first + head, self.n_heads)
    }

    /// Takes it off one query's scores, those of keys `0..`.
    #[inline(always)]
    pub(super) fn take_off(self, scores: &mut [f32], head: usize, pos: usize) {
        let slope = self.of(head);
        for (key, score) in scores.iter_mut().enumerate() {
            *score += slope * (key as f32 - pos as f32);
        }
    }
}

/// One segment's place in the packed rows.
#[derive(Debug, Clone)]
pub struct SegmentPlace<'a> {
    /// First query row, and the position of each query row.
    pub query_start: usize,
    pub query_positions: &'a [u32],
    /// First row of its own keys and values, and the position of each.
    pub key_start: usize,
    pub key_positions: &'a [u32],
    /// Which prompt of the base run the other positions come from.
    pub example: usize,
}

/// Keys and values: the segments' own, and those of the base run.
#[derive(Debug, Clone, Copy)]
pub struct KeysValues<'a> {
    /// `[key rows, key_heads, d_head]`, rotated.
    pub k: &'a Tensor,
    /// `[key rows, value_heads, d_head]`
    pub v: &'a Tensor,
    /// `[examples * length, n_kv_heads, d_head]`, rotated keys and values; `None` if every segment has all its positions.
    pub base: Option<(&'a Tensor, &'a Tensor)>,
}

/// The key positions that a query at `pos` sees, from the first to the one before which they end.
#[inline(always)]
pub fn visible(shape: &Shape, pos: usize) -> (usize, usize) {
    let low = shape
        .window
        .map_or(0, |window| (pos + 1).saturating_sub(window));
    let high = match (shape.causal, shape.window) {
        (true, _) => pos + 1,
        (false, Some(window)) => (pos + window).min(shape.length),
        (false, None) => shape.length,
    };
    (low, high)
}
