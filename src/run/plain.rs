//! The plain twin of the sweep: one whole forward pass, with edits, for each variant.

use super::forward::final_norm;
use super::rows::Rows;
use super::sweep::read;
use super::{BaseRun, Logits, Readout, Request, Sources, Variant, run_examples};
use crate::error::Result;
use crate::hooks::{Hook, Kind};
use crate::model::Model;

/// The metric of every variant, in their order, each from a whole forward pass. Slow, and what [`super::sweep`] must agree with.
/// # Errors
/// Those of [`super::run`].
pub fn sweep_plain(
    model: &Model,
    base: &BaseRun,
    variants: &[Variant],
    sources: &Sources,
    readout: &Readout,
) -> Result<Vec<f64>> {
    let end = Hook::at(Kind::ResidPost, model.spec.n_layers - 1);
    let mut values = Vec::with_capacity(variants.len());
    for variant in variants {
        let example = variant.example;
        let edits: Vec<_> = base.edits.iter().chain(&variant.edits).cloned().collect();
        let roles: Vec<_> = base.roles.get(example).cloned().into_iter().collect();
        let touches_end = variant
            .edits
            .iter()
            .any(|edit| edit.site.hook.layer.is_none());
        let request = Request {
            edits: &edits,
            sources: sources.clone(),
            capture: &[end],
            logits: Logits::Last,
            roles: &roles,
        };
        let run = run_examples(
            model,
            &base.prompts[example..=example],
            &[example],
            &request,
        )?;
        if touches_end {
            // The final norm is edited, so the logits must be read from the run itself.
            let logits = run.logits.expect("asked for").to_vec2::<f32>()?;
            let target = &readout.targets[example];
            let row: Vec<f32> = match readout.metric.reads() {
                crate::metric::Reads::Answers => target
                    .columns()
                    .iter()
                    .map(|&token| logits[0][token as usize])
                    .collect(),
                crate::metric::Reads::Vocabulary => logits[0].clone(),
            };
            let reference = readout
                .reference
                .as_ref()
                .map(|reference| reference[example].as_slice());
            values.push(readout.metric.value(&row, target, reference)?);
            continue;
        }
        let mut rows = Rows::new(base.length);
        rows.push(0, 0, vec![base.length as u32 - 1]);
        let x = run.cache.packed(end)?.narrow(0, base.length - 1, 1)?;
        let x = final_norm(model, &x, &rows, &mut super::base::Nobody)?;
        values.push(read(model, &x, &[example], readout)?[0]);
    }
    Ok(values)
}
