//! The vocabulary of interventions: hooks, sites and edits, as plain values that can be printed, parsed and compared.
//!
//! A [`Hook`] names one tensor of the forward pass, with the names and axes of TransformerLens; a [`Site`] is a hook and which
//! of its positions, heads or neurons; an [`Edit`] is a site and what to do there. For circuits, a [`Node`] is a whole component
//! and an [`Edge`] leads from what one writes to what another reads.

mod edit;
mod node;
mod site;
mod stream;
#[cfg(test)]
mod tests;

use std::fmt;
use std::str::FromStr;

use crate::error::{Error, Result};
use crate::spec::{Block, Mlp, ModelSpec, NormPlacement, Position};

pub use edit::{Closure, Edit, Op, Value};
pub use node::{Edge, Letter, Node};
pub use site::{Pos, Positions, Roles, Site};
pub use stream::StreamNode;

/// Which tensor a hook names, apart from its layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Kind {
    Embed,
    PosEmbed,
    ResidPre,
    ResidMid,
    ResidPost,
    AttnOut,
    MlpOut,
    Scale(Ln),
    Normalized(Ln),
    QInput,
    KInput,
    VInput,
    MlpIn,
    Q,
    K,
    V,
    RotQ,
    RotK,
    AttnScores,
    Pattern,
    Z,
    Result,
    MlpPre,
    MlpPreLinear,
    MlpPost,
}

/// The norms of the transformer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Ln {
    /// Before attention.
    One,
    /// On the attention output, in post-norm families.
    OnePost,
    /// Before the MLP.
    Two,
    /// On the MLP output, in post-norm families.
    TwoPost,
    /// Before the unembedding.
    Final,
}

/// What the axes of a hook's tensor are, after batch and position.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Axes {
    /// `[b, p, d_model]`
    Stream,
    /// `[b, p, 1]`
    Scale,
    /// `[b, p, heads, d]`: heads and the width of each.
    Heads { heads: usize, width: usize },
    /// `[b, n_heads, p, p]`: query by key.
    Pattern,
    /// `[b, p, d_mlp]`
    Neurons,
}

/// One tensor of the forward pass: a kind, and the layer for those that every block has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Hook {
    /// `None` for `hook_embed`, `hook_pos_embed` and `ln_final.*`.
    pub layer: Option<usize>,
    pub kind: Kind,
}

impl Kind {
    pub const ALL: [Kind; 33] = {
        use Kind::*;
        [
            Embed,
            PosEmbed,
            ResidPre,
            Scale(Ln::One),
            Normalized(Ln::One),
            QInput,
            KInput,
            VInput,
            Q,
            K,
            V,
            RotQ,
            RotK,
            AttnScores,
            Pattern,
            Z,
            Result,
            Scale(Ln::OnePost),
            Normalized(Ln::OnePost),
            AttnOut,
            ResidMid,
            MlpIn,
            Scale(Ln::Two),
            Normalized(Ln::Two),
            MlpPre,
            MlpPreLinear,
            MlpPost,
            Scale(Ln::TwoPost),
            Normalized(Ln::TwoPost),
            MlpOut,
            ResidPost,
            Scale(Ln::Final),
            Normalized(Ln::Final),
        ]
    };

    /// The name inside its block (or the whole name, outside of blocks): `attn.hook_z`, `hook_resid_pre`.
    pub fn name(self) -> &'static str {
        match self {
            Kind::Embed => "hook_embed",
            Kind::PosEmbed => "hook_pos_embed",
            Kind::ResidPre => "hook_resid_pre",
            Kind::ResidMid => "hook_resid_mid",
            Kind::ResidPost => "hook_resid_post",
            Kind::AttnOut => "hook_attn_out",
            Kind::MlpOut => "hook_mlp_out",
            Kind::Scale(Ln::One) => "ln1.hook_scale",
            Kind::Scale(Ln::OnePost) => "ln1_post.hook_scale",
            Kind::Scale(Ln::Two) => "ln2.hook_scale",
            Kind::Scale(Ln::TwoPost) => "ln2_post.hook_scale",
            Kind::Scale(Ln::Final) => "ln_final.hook_scale",
            Kind::Normalized(Ln::One) => "ln1.hook_normalized",
            Kind::Normalized(Ln::OnePost) => "ln1_post.hook_normalized",
            Kind::Normalized(Ln::Two) => "ln2.hook_normalized",
            Kind::Normalized(Ln::TwoPost) => "ln2_post.hook_normalized",
            Kind::Normalized(Ln::Final) => "ln_final.hook_normalized",
            Kind::QInput => "hook_q_input",
            Kind::KInput => "hook_k_input",
            Kind::VInput => "hook_v_input",
            Kind::MlpIn => "hook_mlp_in",
            Kind::Q => "attn.hook_q",
            Kind::K => "attn.hook_k",
            Kind::V => "attn.hook_v",
            Kind::RotQ => "attn.hook_rot_q",
            Kind::RotK => "attn.hook_rot_k",
            Kind::AttnScores => "attn.hook_attn_scores",
            Kind::Pattern => "attn.hook_pattern",
            Kind::Z => "attn.hook_z",
            Kind::Result => "attn.hook_result",
            Kind::MlpPre => "mlp.hook_pre",
            Kind::MlpPreLinear => "mlp.hook_pre_linear",
            Kind::MlpPost => "mlp.hook_post",
        }
    }

    /// The accepted short form: `z`, `resid_pre`, `mlp.post`, `ln1.scale`.
    pub fn short(self) -> String {
        match self {
            Kind::MlpPre
            | Kind::MlpPreLinear
            | Kind::MlpPost
            | Kind::Scale(_)
            | Kind::Normalized(_) => self.name().replace("hook_", ""),
            _ => self
                .name()
                .rsplit("hook_")
                .next()
                .unwrap_or_default()
                .to_string(),
        }
    }

    /// Whether every block has one, rather than the model.
    pub fn per_layer(self) -> bool {
        !matches!(
            self,
            Kind::Embed | Kind::PosEmbed | Kind::Scale(Ln::Final) | Kind::Normalized(Ln::Final)
        )
    }

    pub fn axes(self, spec: &ModelSpec) -> Axes {
        let heads = |heads, width| Axes::Heads { heads, width };
        match self {
            Kind::Embed | Kind::PosEmbed | Kind::ResidPre | Kind::ResidMid | Kind::ResidPost => {
                Axes::Stream
            }
            Kind::AttnOut | Kind::MlpOut | Kind::MlpIn | Kind::Normalized(_) => Axes::Stream,
            Kind::Scale(_) => Axes::Scale,
            Kind::QInput | Kind::KInput | Kind::VInput | Kind::Result => {
                heads(spec.n_heads, spec.d_model)
            }
            Kind::Q | Kind::RotQ | Kind::Z => heads(spec.n_heads, spec.d_head),
            Kind::K | Kind::V | Kind::RotK => heads(spec.n_kv_heads, spec.d_head),
            Kind::AttnScores | Kind::Pattern => Axes::Pattern,
            Kind::MlpPre | Kind::MlpPreLinear | Kind::MlpPost => Axes::Neurons,
        }
    }

    /// Why a model has no such hook, or `None` where it has.
    pub fn absent(self, spec: &ModelSpec) -> Option<&'static str> {
        let post_norm = spec.has_post_norm();
        match self {
            Kind::PosEmbed if spec.position != Position::Learned => {
                Some("its positions are not learned vectors")
            }
            Kind::ResidMid if spec.mlp == Mlp::None => {
                Some("its blocks have no MLP, so `hook_resid_post` is the same stream")
            }
            Kind::ResidMid if spec.block != Block::Sequential => Some(
                "attention and MLP of a parallel block read the same stream, so there is nothing between them",
            ),
            Kind::MlpIn
            | Kind::MlpOut
            | Kind::MlpPre
            | Kind::MlpPost
            | Kind::Scale(Ln::Two)
            | Kind::Normalized(Ln::Two)
                if spec.mlp == Mlp::None =>
            {
                Some("its blocks have no MLP")
            }
            Kind::MlpPreLinear if spec.mlp != Mlp::Gated => {
                Some("its MLP is not gated, so it has no linear branch")
            }
            Kind::Scale(Ln::One) | Kind::Normalized(Ln::One) if !spec.has_pre_norm() => {
                Some("it has no norm before attention")
            }
            Kind::Scale(Ln::Two) | Kind::Normalized(Ln::Two) if !spec.has_pre_norm() => {
                Some("it has no norm before the MLP")
            }
            Kind::Scale(Ln::Two) | Kind::Normalized(Ln::Two)
                if spec.block == (Block::Parallel { shared_norm: true }) =>
            {
                Some("one norm, `ln1`, serves attention and MLP of its blocks")
            }
            Kind::Scale(Ln::OnePost) | Kind::Normalized(Ln::OnePost) if !post_norm => {
                Some("its branches have no norm on their output")
            }
            Kind::Scale(Ln::TwoPost) | Kind::Normalized(Ln::TwoPost)
                if !post_norm || spec.mlp == Mlp::None =>
            {
                Some("its MLPs have no norm on their output")
            }
            Kind::Scale(Ln::Final) | Kind::Normalized(Ln::Final)
                if spec.norm_placement == NormPlacement::None =>
            {
                Some("it has no norms")
            }
            _ => None,
        }
    }
}

impl Hook {
    /// The hook of this kind in block `layer`.
    pub fn at(kind: Kind, layer: usize) -> Self {
        Hook {
            layer: kind.per_layer().then_some(layer),
            kind,
        }
    }

    /// `hook_embed`, `hook_pos_embed` and the hooks of the final norm.
    pub fn global(kind: Kind) -> Self {
        Hook { layer: None, kind }
    }

    /// The tensor's shape for `batch` prompts of `pos` tokens.
    pub fn shape(&self, spec: &ModelSpec, batch: usize, pos: usize) -> Vec<usize> {
        match self.kind.axes(spec) {
            Axes::Stream => vec![batch, pos, spec.d_model],
            Axes::Scale => vec![batch, pos, 1],
            Axes::Heads { heads, width } => vec![batch, pos, heads, width],
            Axes::Pattern => vec![batch, spec.n_heads, pos, pos],
            Axes::Neurons => vec![batch, pos, spec.d_mlp],
        }
    }

    /// Numbers that it holds at one position (of a pattern: for one query and key).
    pub fn width(&self, spec: &ModelSpec) -> usize {
        self.shape(spec, 1, 1).iter().product()
    }

    /// Why a model has no such hook in this layer, or `None` where it has.
    pub fn absent(&self, spec: &ModelSpec) -> Option<&'static str> {
        let is_ln1 = matches!(self.kind, Kind::Scale(Ln::One) | Kind::Normalized(Ln::One));
        let there = self.layer.is_none_or(|layer| spec.has_ln1(layer));
        let absent = self.kind.absent(spec);
        absent.or((is_ln1 && !there).then_some("no norm stands before its first attention"))
    }

    /// # Errors
    /// [`Error::HookAbsent`] if this model has no such hook, [`Error::OutOfRange`] if it has fewer layers.
    pub fn check(&self, spec: &ModelSpec) -> Result<()> {
        if let Some(layer) = self.layer.filter(|&layer| layer >= spec.n_layers) {
            return Err(Error::OutOfRange {
                hook: "the model".into(),
                what: "layer",
                value: layer.to_string(),
                limit: format!(
                    "{} layers, 0 to {}",
                    spec.n_layers,
                    spec.n_layers.saturating_sub(1)
                ),
            });
        }
        match self.absent(spec) {
            Some(reason) => Err(Error::HookAbsent {
                hook: self.to_string(),
                reason: reason.into(),
            }),
            None => Ok(()),
        }
    }

    /// Every hook of a model, in the order of the forward pass.
    pub fn all(spec: &ModelSpec) -> Vec<Hook> {
        let present = |kind: &Kind| kind.absent(spec).is_none();
        let kinds: Vec<Kind> = Kind::ALL.into_iter().filter(present).collect();
        let (before, rest): (Vec<_>, Vec<_>) = kinds
            .into_iter()
            .partition(|k| matches!(k, Kind::Embed | Kind::PosEmbed));
        let (inside, after): (Vec<_>, Vec<_>) = rest.into_iter().partition(|k| k.per_layer());
        let blocks = (0..spec.n_layers)
            .flat_map(|layer| inside.iter().map(move |&kind| Hook::at(kind, layer)))
            .filter(|hook| hook.absent(spec).is_none());
        let outside = |kinds: Vec<Kind>| kinds.into_iter().map(Hook::global);
        outside(before)
            .chain(blocks)
            .chain(outside(after))
            .collect()
    }

    /// Reads one or more hooks separated by commas: full names, short forms, `*` or nothing for every layer.
    /// # Errors
    /// [`Error::UnknownHook`], [`Error::HookAbsent`], [`Error::OutOfRange`].
    pub fn parse_list(text: &str, spec: &ModelSpec) -> Result<Vec<Hook>> {
        let mut hooks = Vec::new();
        for part in text
            .split(',')
            .map(str::trim)
            .filter(|part| !part.is_empty())
        {
            let (kind, layer) = parse_name(part)?;
            match layer {
                NamedLayer::Given(layer) => hooks.push(Hook::at(kind, layer)),
                NamedLayer::Every if kind.per_layer() => {
                    hooks.extend((0..spec.n_layers).map(|layer| Hook::at(kind, layer)))
                }
                NamedLayer::Every => hooks.push(Hook::global(kind)),
            }
        }
        if hooks.is_empty() {
            return Err(unknown(text));
        }
        hooks.iter().try_for_each(|hook| hook.check(spec))?;
        Ok(hooks)
    }
}

impl fmt::Display for Hook {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.layer {
            Some(layer) => write!(f, "blocks.{layer}.{}", self.kind.name()),
            None => f.write_str(self.kind.name()),
        }
    }
}

impl FromStr for Kind {
    type Err = Error;

    /// Reads a hook's name without a layer: `z`, `attn.hook_z`, `hook_resid_pre`.
    fn from_str(text: &str) -> Result<Self> {
        match parse_name(text)? {
            (kind, NamedLayer::Every) => Ok(kind),
            (kind, NamedLayer::Given(_)) => Err(Error::Parse {
                what: "a kind of hook",
                text: text.into(),
                reason: format!("leave the layer out: `{}`", kind.short()),
            }),
        }
    }
}

impl FromStr for Hook {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        match parse_name(text)? {
            (kind, NamedLayer::Given(layer)) => Ok(Hook::at(kind, layer)),
            (kind, NamedLayer::Every) if !kind.per_layer() => Ok(Hook::global(kind)),
            (kind, NamedLayer::Every) => Err(Error::Parse {
                what: "one hook",
                text: text.into(),
                reason: format!("say which layer, as in `{}`", Hook::at(kind, 3)),
            }),
        }
    }
}

enum NamedLayer {
    Given(usize),
    Every,
}

/// Splits a hook's name into kind and layer. Accepts `blocks.3.attn.hook_z`, `blocks.*.attn.hook_z`, `z3`, `z.3`, `z[3]`, `z`.
fn parse_name(text: &str) -> Result<(Kind, NamedLayer)> {
    let text = text.trim();
    if let Some(rest) = text.strip_prefix("blocks.") {
        let (layer, name) = rest.split_once('.').ok_or_else(|| unknown(text))?;
        let kind = Kind::ALL
            .into_iter()
            .find(|kind| kind.per_layer() && kind.name() == name)
            .ok_or_else(|| unknown(text))?;
        return match layer {
            "*" => Ok((kind, NamedLayer::Every)),
            _ => Ok((
                kind,
                NamedLayer::Given(layer.parse().map_err(|_| unknown(text))?),
            )),
        };
    }
    let named = |name: &str| {
        Kind::ALL
            .into_iter()
            .find(|kind| kind.short() == name || kind.name() == name)
    };
    if let Some(kind) = named(text) {
        return Ok((kind, NamedLayer::Every));
    }
    let inner = text.strip_suffix(']').unwrap_or(text);
    let name = inner.trim_end_matches(|c: char| c.is_ascii_digit());
    let digits = &inner[name.len()..];
    let name = match name.strip_suffix('[') {
        Some(name) if text.ends_with(']') => name,
        _ => name.strip_suffix('.').unwrap_or(name),
    };
    match (named(name), digits.parse()) {
        (Some(kind), Ok(layer)) if kind.per_layer() => Ok((kind, NamedLayer::Given(layer))),
        _ => Err(unknown(text)),
    }
}

fn unknown(text: &str) -> Error {
    let short = text.len() <= 80;
    let bare: String = text
        .chars()
        .filter(|c| !c.is_ascii_digit() && !"[]*".contains(*c))
        .collect();
    let bare = bare
        .trim_start_matches("blocks.")
        .trim_matches('.')
        .to_string();
    let distance = |kind: &Kind| {
        let long = strsim::normalized_damerau_levenshtein(kind.name(), &bare);
        (-1e6 * long.max(strsim::normalized_damerau_levenshtein(&kind.short(), &bare))) as i64
    };
    let mut kinds = Kind::ALL.to_vec();
    if short {
        kinds.sort_by_key(distance);
    }
    let nearest = kinds
        .iter()
        .take(3)
        .map(|kind| format!("`{}`", kind.short()))
        .collect::<Vec<_>>()
        .join(", ");
    let name = if short {
        text.to_string()
    } else {
        text.chars().take(60).collect::<String>() + "..."
    };
    Error::UnknownHook { name, nearest }
}
