//! What flows are asked for, and whether a model and a prompt have it.

use crate::error::{Error, Result};
use crate::hooks::{Pos, Positions, Roles};
use crate::spec::ModelSpec;

/// A position of a prompt; of a role of several tokens the last.
/// # Errors
/// [`Error::OutOfRange`], [`Error::UnknownRole`].
pub(super) fn position(pos: &Pos, length: usize, roles: &Roles) -> Result<usize> {
    let at = Positions::These(vec![pos.clone()]).resolve(length, roles)?;
    Ok(*at.last().expect("a role has tokens"))
}

/// # Errors
/// [`Error::Invalid`] for what is no share.
pub(super) fn check_threshold(threshold: f64) -> Result<()> {
    if (0.0..=1.0).contains(&threshold) {
        return Ok(());
    }
    Err(Error::invalid(format!(
        "a threshold of {threshold} is no share; take one from 0 to 1"
    )))
}

/// # Errors
/// [`Error::Invalid`] for a model whose blocks do not norm the stream.
pub(super) fn check_encoder(spec: &ModelSpec) -> Result<()> {
    if spec.norms_stream() && spec.mlp != crate::spec::Mlp::None {
        return Ok(());
    }
    Err(Error::invalid(format!(
        "GlobEnc is for encoders, whose blocks norm the stream behind attention and MLP; in family `{}` they do not \
         (the methods `routes` and `alti` follow its stream)",
        spec.family
    )))
}
