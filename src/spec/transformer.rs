//! `ModelSpec`: everything that distinguishes one supported transformer from another, as a plain value.

use std::ops::RangeInclusive;

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};

/// The description of one decoder-only transformer. A family (`families/`) makes it from `config.json` or GGUF metadata;
/// the forward pass, the sweep and the backward pass read nothing else.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ModelSpec {
    /// Family name, as in `families/`: `llama`, `gpt2`, ...
    pub family: String,
    pub n_layers: usize,
    pub n_heads: usize,
    /// Key/value heads; divides `n_heads`.
    pub n_kv_heads: usize,
    pub d_model: usize,
    pub d_head: usize,
    /// Width of the MLP; 0 in attention-only models.
    pub d_mlp: usize,
    pub d_vocab: usize,
    /// Longest prompt that the positions allow.
    pub n_ctx: usize,

    pub norm: NormKind,
    pub norm_eps: f64,
    pub norm_placement: NormPlacement,
    pub block: Block,
    pub position: Position,

    /// Factor on query-key products, usually `1/sqrt(d_head)`. One entry per layer.
    pub attn_scale: Vec<f32>,
    /// `cap * tanh(scores / cap)` before the mask.
    pub attn_softcap: Option<f32>,
    /// Sliding window per layer: a query at `i` sees keys `j` with `i - j < window`, in an encoder those with `|i - j| < window`. `None`:
    /// all that it may see.
    pub windows: Vec<Option<usize>>,
    pub qk_norm: QkNorm,
    /// Queries, keys and values are cut off at this size, either way, as soon as they are read (OLMo 1, MPT).
    #[serde(default)]
    pub qkv_clip: Option<f32>,

    pub mlp: Mlp,
    pub activation: Activation,

    /// A norm stands on the token embedding, before any multiplier (BLOOM).
    #[serde(default)]
    pub embed_norm: bool,
    /// Multiplier on the token embedding (Gemma: `sqrt(d_model)`).
    pub embed_scale: Option<f32>,
    /// Multiplier on what each branch adds to the stream.
    pub residual_multiplier: Option<f32>,
    /// Multiplier on the logits, before the soft-cap.
    pub logit_scale: Option<f32>,
    /// `cap * tanh(logits / cap)`.
    pub final_softcap: Option<f32>,
    /// The unembedding is the token embedding.
    pub tied: bool,
    /// What makes it an encoder; `None`: a decoder, whose queries see no later key.
    pub encoder: Option<Encoder>,
}

/// BERT: attention in both directions, and a dense layer, the activation and a norm between the last block and the unembedding.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Encoder {
    /// Rows of the table of segments, where there is one; every token is taken to be of the first.
    pub n_segments: Option<usize>,
    /// Whether a norm stands before the first attention. In ModernBERT none does: the embeddings have just been normed.
    pub first_norm: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum NormKind {
    /// `(x - mean) / sqrt(var + eps) * w + b`
    Layer,
    /// `x / sqrt(mean(x^2) + eps) * w`; Gemma's `1 + w` is folded into `w` at load.
    Rms,
}

/// Where norms stand around the two branches of a block. The final norm is there unless `None`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum NormPlacement {
    /// Before each branch (GPT-2, Llama).
    Pre,
    /// Before each branch and on its output (Gemma 2 and 3).
    Sandwich,
    /// Only on each branch's output, before it is added (OLMo 2).
    Post,
    /// Before each branch, and the branch is added to what the norm made of the stream (BERT, whose own words for it are a norm
    /// after each sum): `ln1` of a block is the norm that its predecessor's code calls the last.
    Stream,
    /// No norms at all, not even the final one (toy models).
    None,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Block {
    /// The MLP reads the stream after attention was added.
    Sequential,
    /// Attention and MLP read the same stream. With `shared_norm` (GPT-J, Phi-2) `ln1` serves both and there is no `ln2`.
    Parallel { shared_norm: bool },
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum Position {
    None,
    /// A learned vector per position; `offset` rows are skipped (OPT: 2; they are cut off at load).
    Learned,
    Rotary(Rotary),
    /// No vectors: each key's score is less by its distance times a slope of the head (Press et al. 2022, arXiv 2108.12409).
    Alibi(Alibi),
}

/// How steeply scores fall with distance.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Alibi {
    /// The slope of the last head is `2^-max_bias`, where the number of heads is a power of two.
    pub max_bias: f32,
}

impl Alibi {
    /// The slope of one of `n_heads` heads. Of a number that is no power of two, the heads beyond the next lower one have every other
    /// slope of twice as many.
    pub fn slope(self, head: usize, n_heads: usize) -> f32 {
        let whole = 1usize << n_heads.max(1).ilog2();
        let share = if head < whole {
            (head + 1) as f32 / whole as f32
        } else {
            (2 * (head - whole) + 1) as f32 / (2 * whole) as f32
        };
        (-self.max_bias * share).exp2()
    }
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Rotary {
    /// How many of the `d_head` dimensions rotate, from the first on.
    pub dims: usize,
    pub style: RotaryStyle,
    /// Which entry of `bases` each layer uses; `None`: this layer has no positions (SmolLM3).
    pub base_of_layer: Vec<Option<usize>>,
    pub bases: Vec<RotaryBase>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum RotaryStyle {
    /// Dimension `i` pairs with `i + dims/2` (Llama, NeoX).
    Half,
    /// Dimension `2i` pairs with `2i + 1` (GPT-J).
    Interleaved,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RotaryBase {
    pub theta: f64,
    pub scaling: RopeScaling,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum RopeScaling {
    None,
    Linear {
        factor: f64,
    },
    Llama3 {
        factor: f64,
        low_freq_factor: f64,
        high_freq_factor: f64,
        original_max_position: usize,
    },
    /// A factor per frequency, as a GGUF stores them (`rope_freqs`): each inverse frequency is divided by its factor.
    Factors {
        factors: Vec<f64>,
    },
    /// The base grows with the prompt once the prompt is longer than the model was trained for (NTK-aware).
    Dynamic {
        factor: f64,
        original_max_position: usize,
    },
    /// High frequencies stay, low ones are divided by `factor`, with a ramp between (Peng et al. 2023, arXiv 2309.00071).
    Yarn {
        factor: f64,
        /// Turns over the trained length above which a frequency stays, and below which it is divided.
        beta_fast: f64,
        beta_slow: f64,
        /// Multiplies cosines and sines, and so the scores by its square.
        attention_factor: f64,
        /// Whether the ramp begins and ends at whole dimensions.
        truncate: bool,
        original_max_position: usize,
    },
    /// A factor per frequency, one set for prompts up to the trained length and one for longer ones (Phi-3).
    LongRope {
        short: Vec<f64>,
        long: Vec<f64>,
        attention_factor: f64,
        original_max_position: usize,
    },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum QkNorm {
    None,
    /// RMS norm over each head's `d_head` (Qwen 3, Gemma 3).
    PerHead,
    /// RMS norm over all heads at once (OLMo 2).
    FullWidth,
    /// LayerNorm over each head's `d_head`, with the same weights for all (Phi).
    PerHeadLayer,
    /// LayerNorm over each head's `d_head`, with weights of its own for each (Command-R+, StableLM 2 12B).
    OwnLayer,
}

impl QkNorm {
    /// Its kind; that of a model without one does not matter.
    pub fn kind(self) -> NormKind {
        match self {
            QkNorm::None | QkNorm::PerHead | QkNorm::FullWidth => NormKind::Rms,
            QkNorm::PerHeadLayer | QkNorm::OwnLayer => NormKind::Layer,
        }
    }

    /// Whether weights differ from head to head.
    pub fn has_weights_by_head(self) -> bool {
        matches!(self, QkNorm::FullWidth | QkNorm::OwnLayer)
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Mlp {
    /// Attention-only.
    None,
    /// `act(x W_in + b_in) W_out + b_out`
    Plain,
    /// `(act(x W_gate) * (x W_up)) W_out`
    Gated,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Activation {
    /// `x * Phi(x)` with erf.
    Gelu,
    /// The tanh form (`gelu_new`, `gelu_pytorch_tanh`).
    GeluTanh,
    Silu,
    Relu,
}

impl Rotary {
    fn described(&self, d_head: usize) -> String {
        let mut words = "rotary".to_string();
        if self.dims != d_head {
            words += &format!(" {} of {d_head}", self.dims);
        }
        if self.style == RotaryStyle::Interleaved {
            words += " interleaved";
        }
        if self.bases.len() > 1 {
            words += &format!(", {} bases", self.bases.len());
        }
        let without = self.base_of_layer.iter().filter(|base| base.is_none());
        match without.count() {
            0 => {}
            n => words += &format!(", none in {n} of {} layers", self.base_of_layer.len()),
        }
        for base in &self.bases {
            let scaling = match base.scaling {
                RopeScaling::None => continue,
                RopeScaling::Linear { .. } => "linear",
                RopeScaling::Llama3 { .. } => "llama3",
                RopeScaling::Factors { .. } => "factors",
                RopeScaling::Dynamic { .. } => "dynamic",
                RopeScaling::Yarn { .. } => "yarn",
                RopeScaling::LongRope { .. } => "longrope",
            };
            words += &format!(", {scaling} scaling");
        }
        words
    }
}

impl ModelSpec {
    /// Query heads that share one key/value head.
    pub fn group(&self) -> usize {
        self.n_heads / self.n_kv_heads
    }

    /// Every head of the model as `(layer, head)`, in the order of the forward pass.
    pub fn heads(&self) -> impl Iterator<Item = (usize, usize)> + use<> {
        let n_heads = self.n_heads;
        (0..self.n_layers).flat_map(move |layer| (0..n_heads).map(move |head| (layer, head)))
    }

    /// The `width` layers around one, cut off at the first and the last layer. A window of even width has one more layer above
    /// than below; of width 1 (or 0) it is the layer itself.
    pub fn window(&self, layer: usize, width: usize) -> RangeInclusive<usize> {
        let first = layer.saturating_sub(width.saturating_sub(1) / 2);
        let last = (layer + width / 2).min(self.n_layers.saturating_sub(1));
        first..=last
    }

    pub fn has_pre_norm(&self) -> bool {
        matches!(
            self.norm_placement,
            NormPlacement::Pre | NormPlacement::Sandwich | NormPlacement::Stream
        )
    }

    /// Whether a norm stands before the attention of a layer.
    pub fn has_ln1(&self, layer: usize) -> bool {
        let first_norm = self.encoder.is_none_or(|encoder| encoder.first_norm);
        self.has_pre_norm() && (layer > 0 || first_norm)
    }

    pub fn has_post_norm(&self) -> bool {
        matches!(
            self.norm_placement,
            NormPlacement::Post | NormPlacement::Sandwich
        )
    }

    /// What is in force in this model, in a few words each, in the order of the forward pass.
    pub fn features(&self) -> Vec<String> {
        let mut said = Vec::new();
        let mut say = |words: String| said.push(words);
        if self.embed_norm {
            say("normed embeddings".into());
        }
        if let Some(scale) = self.embed_scale {
            say(format!("embeddings x {scale:.2}"));
        }
        match &self.position {
            Position::None => say("no positions".into()),
            Position::Learned => say("learned positions".into()),
            Position::Rotary(rotary) => say(rotary.described(self.d_head)),
            Position::Alibi(_) => say("ALiBi".into()),
        }
        let norm = match self.norm {
            NormKind::Layer => "LayerNorm",
            NormKind::Rms => "RMSNorm",
        };
        match self.norm_placement {
            NormPlacement::Pre if !self.has_ln1(0) => {
                say(format!("{norm} before, not before the first attention"));
            }
            NormPlacement::Pre => say(format!("{norm} before")),
            NormPlacement::Post => say(format!("{norm} after")),
            NormPlacement::Sandwich => say(format!("{norm} before and after")),
            NormPlacement::Stream => say(format!("{norm} on the stream")),
            NormPlacement::None => say("no norms".into()),
        }
        match self.block {
            Block::Sequential => (),
            Block::Parallel { shared_norm: true } => say("parallel, one norm".into()),
            Block::Parallel { shared_norm: false } => say("parallel".into()),
        }
        let heads = format!("{} heads of {}", self.n_heads, self.d_head);
        say(if self.n_heads == self.n_kv_heads {
            heads
        } else {
            format!("{heads}, {} for keys", self.n_kv_heads)
        });
        match self.qk_norm {
            QkNorm::None => (),
            QkNorm::PerHead => say("q/k-norm".into()),
            QkNorm::FullWidth => say("q/k-norm over all heads".into()),
            QkNorm::PerHeadLayer => say("q/k-LayerNorm".into()),
            QkNorm::OwnLayer => say("q/k-LayerNorm, other weights in each head".into()),
        }
        if let Some(most) = self.qkv_clip {
            say(format!("q, k and v cut off at {most}"));
        }
        let usual = 1.0 / (self.d_head as f32).sqrt();
        if self
            .attn_scale
            .iter()
            .any(|scale| (scale - usual).abs() > 1e-6)
        {
            say("own attention scale".into());
        }
        let windows: Vec<usize> = self.windows.iter().flatten().copied().collect();
        if let Some(window) = windows.iter().min() {
            let seen = match self.is_causal() {
                true => format!("window {window}"),
                false => format!("{} tokens to each side", window - 1),
            };
            say(format!(
                "{seen} in {} of {} layers",
                windows.len(),
                self.n_layers
            ));
        }
        if let Some(cap) = self.attn_softcap {
            say(format!("scores capped at {cap}"));
        }
        let activation = match self.activation {
            Activation::Gelu => "GELU",
            Activation::GeluTanh => "tanh-GELU",
            Activation::Silu => "SiLU",
            Activation::Relu => "ReLU",
        };
        match self.mlp {
            Mlp::None => say("no MLP".into()),
            Mlp::Plain => say(activation.into()),
            Mlp::Gated => say(format!("gated {activation}")),
        }
        if let Some(cap) = self.final_softcap {
            say(format!("logits capped at {cap}"));
        }
        say(if self.tied { "tied" } else { "untied" }.into());
        if self.encoder.is_some() {
            say("sees both ways".into());
        }
        said
    }

    /// Whether a query sees no later key.
    pub fn is_causal(&self) -> bool {
        self.encoder.is_none()
    }

    /// Whether a branch is added to the normed stream.
    pub fn norms_stream(&self) -> bool {
        self.norm_placement == NormPlacement::Stream
    }

    /// Refuses encoders, for methods that take the residual stream to be a sum of what was written to it.
    /// # Errors
    /// [`Error::Invalid`].
    pub fn check_decoder(&self, what: &str) -> Result<()> {
        match self.encoder {
            None => Ok(()),
            Some(_) => Err(Error::invalid(format!(
                "encoders such as `{}` have no {what} here: attention looks both ways{} (`candlewick patch` runs on them)",
                self.family,
                if self.norms_stream() {
                    ", and each block norms the stream"
                } else {
                    ""
                }
            ))),
        }
    }

    /// What a head's score loses for each position between key and query, where positions are ALiBi.
    pub fn alibi_slope(&self, head: usize) -> Option<f32> {
        match &self.position {
            Position::Alibi(alibi) => Some(alibi.slope(head, self.n_heads)),
            Position::None | Position::Learned | Position::Rotary(_) => None,
        }
    }

    /// How many dimensions of each head rotate.
    pub fn rotary_dims(&self) -> usize {
        match &self.position {
            Position::Rotary(rotary) => rotary.dims,
            Position::None | Position::Learned | Position::Alibi(_) => 0,
        }
    }

    /// Whether there is a stream between attention and MLP that `hook_resid_mid` could name.
    pub fn has_resid_mid(&self) -> bool {
        self.block == Block::Sequential && self.mlp != Mlp::None
    }
}

#[cfg(test)]
impl ModelSpec {
    /// A model with heads and nothing else, which a test adds to.
    pub(crate) fn bare(n_layers: usize, n_heads: usize) -> ModelSpec {
        ModelSpec {
            family: "test".into(),
            n_layers,
            n_heads,
            n_kv_heads: n_heads,
            d_model: 8,
            d_head: 4,
            d_mlp: 0,
            d_vocab: 5,
            n_ctx: 6,
            norm: NormKind::Rms,
            norm_eps: 1e-5,
            norm_placement: NormPlacement::None,
            block: Block::Sequential,
            position: Position::None,
            attn_scale: vec![0.5; n_layers],
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
            tied: true,
            encoder: None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn heads_come_in_the_order_of_the_forward_pass() {
        let heads: Vec<_> = ModelSpec::bare(2, 3).heads().collect();
        assert_eq!(heads, [(0, 0), (0, 1), (0, 2), (1, 0), (1, 1), (1, 2)]);
        assert_eq!(ModelSpec::bare(0, 3).heads().count(), 0);
    }

    #[test]
    fn slopes_of_alibi_are_powers_of_two() {
        let alibi = Alibi { max_bias: 8.0 };
        let slopes = |n| {
            (0..n)
                .map(|head| alibi.slope(head, n).log2())
                .collect::<Vec<_>>()
        };
        assert_eq!(slopes(4), [-2.0, -4.0, -6.0, -8.0]);
        assert_eq!(slopes(6), [-2.0, -4.0, -6.0, -8.0, -1.0, -3.0]);
        assert_eq!(slopes(1), [-8.0]);
    }

    #[test]
    fn a_window_of_layers_is_cut_off_at_both_ends() {
        let spec = ModelSpec::bare(10, 1);
        for (layer, width, window) in [
            (5, 0, 5..=5),
            (5, 1, 5..=5),
            (5, 2, 5..=6),
            (5, 3, 4..=6),
            (5, 4, 4..=7),
            (0, 5, 0..=2),
            (9, 5, 7..=9),
            (3, 100, 0..=9),
        ] {
            assert_eq!(spec.window(layer, width), window, "{width} around {layer}");
        }
    }
}
