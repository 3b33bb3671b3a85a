//! What is changed while the model writes: activations, latents, and vectors that are added.

use candlewick::Error;
use candlewick::hooks::Edit;
use candlewick::methods::Steering;
use candlewick::model::EMBEDDED;
use candlewick::spec::ModelSpec;

use crate::cli::Context;
use crate::cli::feature::SaeArgs;

use candlewick::methods::SteerAt;

/// Changes, all of them checked.
#[derive(Debug, Clone, Default)]
pub struct Changes {
    /// The same for every prompt.
    pub plain: Vec<Edit>,
    /// In force at positions that the length of a prompt decides.
    pub steering: Vec<Steering>,
}

impl Changes {
    /// Those in force after a prompt of so many tokens that is continued by `max_tokens`.
    /// # Errors
    /// Those of [`Steering::edit`].
    pub fn edits(&self, length: usize, max_tokens: usize) -> candlewick::Result<Vec<Edit>> {
        let mut edits = self.plain.clone();
        for steering in &self.steering {
            edits.push(steering.edit(length, max_tokens)?);
        }
        Ok(edits)
    }

    /// Those in force on a text that nothing is generated after: vectors are added at each of its tokens.
    pub fn everywhere(&self) -> Vec<Edit> {
        let steering = self.steering.iter().map(Steering::everywhere);
        self.plain.iter().cloned().chain(steering).collect()
    }

    pub fn labels(&self) -> Vec<String> {
        let plain = self.plain.iter().map(Edit::to_string);
        plain
            .chain(self.steering.iter().map(Steering::to_string))
            .collect()
    }
}

/// What the flags say of latents.
pub struct LatentChanges<'a> {
    pub changes: &'a [String],
    pub sae: &'a SaeArgs,
}

/// What the flags say of vectors.
pub struct SteeringChanges<'a> {
    pub vectors: &'a [String],
    pub alpha: Option<f32>,
    pub at: Option<&'a SteerAt>,
}

/// # Errors
/// Changes that the model does not have, vectors of another width.
pub fn changes(
    edits: &[Edit],
    latents: &LatentChanges<'_>,
    steering: &SteeringChanges<'_>,
    spec: &ModelSpec,
    ctx: &Context,
) -> anyhow::Result<Changes> {
    let mut plain = edits.to_vec();
    if !latents.changes.is_empty() {
        let sae = latents.sae.open()?;
        sae.check(spec)?;
        sae.doubts.iter().for_each(|doubt| ctx.warn(doubt));
        let of_latents = latents.changes.iter().map(|text| sae.edit(text));
        plain.extend(of_latents.collect::<candlewick::Result<Vec<_>>>()?);
    }
    plain.iter().try_for_each(|edit| edit.check(spec))?;
    if steering.vectors.is_empty() && (steering.alpha.is_some() || steering.at.is_some()) {
        return Err(Error::invalid(
            "`--alpha` and `--at` are of vectors that are added, and there is none; give `--steer FILE`",
        )
        .into());
    }
    let at = steering.at.cloned().unwrap_or_else(SteerAt::all);
    let alpha = steering.alpha.unwrap_or(1.0);
    let vectors = steering.vectors.iter();
    let steering: Vec<Steering> = vectors
        .map(|text| Steering::parse(text, alpha, at.clone()))
        .collect::<candlewick::Result<_>>()?;
    steering.iter().try_for_each(|one| one.check(spec))?;
    Ok(Changes { plain, steering })
}

/// The dictionary that the flags name.
pub fn dictionary(sae: &Option<String>, hook: Option<candlewick::hooks::Hook>) -> SaeArgs {
    SaeArgs {
        sae: sae.clone().unwrap_or_else(|| EMBEDDED.into()),
        hook,
    }
}
