//! Bounds of what a config may say: sizes decide allocations before any weight is seen.

use crate::error::{Error, Result};
use crate::model::spec::{ModelSpec, Position, RopeScaling};

/// Beyond these a config is damaged or hostile: sizes decide allocations before any weight is seen.
pub(super) const MOST_LAYERS: usize = 4096;
const MOST_WIDTH: usize = 1 << 20;
const MOST_VOCAB: usize = 1 << 26;
const MOST_POSITIONS: usize = 1 << 28;

/// Refuses a layer count that no model has, before anything is allocated by it.
/// # Errors
/// [`Error::BadConfig`].
pub fn check_layers(key: &str, n_layers: usize) -> Result<()> {
    in_range(key, n_layers, MOST_LAYERS)
}

/// `d_head` where the config leaves it out: `width / heads`, which must come out even.
/// # Errors
/// [`Error::BadConfig`].
pub fn head_width(key: &str, width: usize, heads: usize) -> Result<usize> {
    if heads == 0 || !width.is_multiple_of(heads) {
        return Err(Error::BadConfig {
            key: key.to_string(),
            reason: format!("{heads} heads do not divide a width of {width}"),
        });
    }
    Ok(width / heads)
}

/// Refuses sizes that are absurd, before anything is laid out by them.
/// # Errors
/// [`Error::BadConfig`].
pub fn check_sizes(spec: &ModelSpec) -> Result<()> {
    in_range("number of layers", spec.n_layers, MOST_LAYERS)?;
    in_range("number of heads", spec.n_heads, MOST_WIDTH)?;
    in_range("number of key/value heads", spec.n_kv_heads, spec.n_heads)?;
    in_range("d_model", spec.d_model, MOST_WIDTH)?;
    in_range("d_head", spec.d_head, MOST_WIDTH)?;
    in_range("d_mlp", spec.d_mlp.max(1), MOST_WIDTH)?;
    in_range("vocab_size", spec.d_vocab, MOST_VOCAB)?;
    in_range("number of positions", spec.n_ctx, MOST_POSITIONS)?;
    in_range("heads x d_head", spec.n_heads * spec.d_head, MOST_WIDTH)?;
    if let Some(n_segments) = spec.encoder.and_then(|encoder| encoder.n_segments) {
        in_range("type_vocab_size", n_segments, MOST_WIDTH)?;
    }
    if !spec.n_heads.is_multiple_of(spec.n_kv_heads) {
        return Err(Error::BadConfig {
            key: "number of key/value heads".to_string(),
            reason: format!("{} do not divide {} heads", spec.n_kv_heads, spec.n_heads),
        });
    }
    Ok(())
}

/// Checks what every family's spec must satisfy before a weight is read.
/// # Errors
/// [`Error::BadConfig`] naming the size.
pub fn check_spec(spec: &ModelSpec) -> Result<()> {
    check_sizes(spec)?;
    let bad = |key: &str, reason: String| {
        Err(Error::BadConfig {
            key: key.to_string(),
            reason,
        })
    };
    if !(spec.norm_eps.is_finite() && spec.norm_eps >= 0.0) {
        return bad(
            "norm epsilon",
            format!("{} is not a number to add to a variance", spec.norm_eps),
        );
    }
    if spec.windows.contains(&Some(0)) {
        return bad(
            "sliding_window",
            "0 would leave a query no key to attend to".into(),
        );
    }
    if !spec.attn_scale.iter().all(|scale| scale.is_finite()) {
        return bad("attention scale", "is not a finite number".into());
    }
    for (key, factor) in [
        ("embedding multiplier", spec.embed_scale),
        ("residual multiplier", spec.residual_multiplier),
        ("logit scale", spec.logit_scale),
    ] {
        if let Some(factor) = factor.filter(|factor| !factor.is_finite() || *factor == 0.0) {
            return bad(
                key,
                format!("{factor} leaves nothing of what it multiplies"),
            );
        }
    }
    for (key, cap) in [
        ("attention soft-cap", spec.attn_softcap),
        ("final soft-cap", spec.final_softcap),
        ("clip_qkv", spec.qkv_clip),
    ] {
        if let Some(cap) = cap.filter(|cap| !(cap.is_finite() && *cap > 0.0)) {
            return bad(key, format!("{cap} is not a positive number"));
        }
    }
    if let Position::Rotary(rotary) = &spec.position {
        if rotary.dims == 0 || !rotary.dims.is_multiple_of(2) || rotary.dims > spec.d_head {
            return bad(
                "rotary dimensions",
                format!(
                    "{} of a head of {}; an even number is needed",
                    rotary.dims, spec.d_head
                ),
            );
        }
        if let Some(base) = rotary
            .bases
            .iter()
            .find(|b| !(b.theta.is_finite() && b.theta > 0.0))
        {
            return bad(
                "rope_theta",
                format!("{} is not a positive number", base.theta),
            );
        }
        for base in &rotary.bases {
            let lists: &[&Vec<f64>] = match &base.scaling {
                RopeScaling::Factors { factors } => &[factors],
                RopeScaling::LongRope { short, long, .. } => &[short, long],
                _ => &[],
            };
            if let Some(list) = lists.iter().find(|list| list.len() != rotary.dims / 2) {
                let (found, wanted) = (list.len(), rotary.dims / 2);
                return bad(
                    "rope factors",
                    format!("{found} of them for {wanted} pairs"),
                );
            }
        }
    }
    Ok(())
}

fn in_range(key: &str, value: usize, most: usize) -> Result<()> {
    if (1..=most).contains(&value) {
        return Ok(());
    }
    Err(Error::BadConfig {
        key: key.to_string(),
        reason: format!("{value} is not between 1 and {most}"),
    })
}
