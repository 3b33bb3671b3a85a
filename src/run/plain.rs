//! The plain twin of the sweep: one whole forward pass, with edits, for each variant.

use super::sweep::{check_variants, read};
use super::{BaseRun, Logits, Readout, Request, Sources, Variant, walk};
use crate::error::Result;
use crate::model::Model;

/// The metric of every variant, in their order, each from a whole forward pass. Slow, and what [`super::sweep`] must agree with.
/// `sources` hold what the variants' edits name, beside those of the base run; a name that both have means the same in both.
/// # Errors
/// Those of [`super::run`].
pub fn sweep_plain(
    model: &Model,
    base: &BaseRun,
    variants: &[Variant],
    sources: &Sources,
    readout: &Readout,
) -> Result<Vec<f64>> {
    check_variants(model, base, variants, readout)?;
    let sources = base.sources.clone().and(sources);
    let mut values = Vec::with_capacity(variants.len());
    for variant in variants {
        let example = variant.example;
        let edits: Vec<_> = base.edits.iter().chain(&variant.edits).cloned().collect();
        let roles: Vec<_> = base.roles.get(example).cloned().into_iter().collect();
        let request = Request {
            edits: &edits,
            sources: sources.clone(),
            capture: &[],
            logits: Logits::All,
            roles: &roles,
        };
        let prompt = &base.prompts[example..=example];
        let (normed, _) = walk(model, prompt, &[example], &request)?;
        let read_at = readout.targets[example].positions(base.length);
        let answer = normed
            .expect("asked for")
            .narrow(0, read_at.start, read_at.len())?;
        values.push(read(model, &answer, &[example], readout)?[0]);
    }
    Ok(values)
}
