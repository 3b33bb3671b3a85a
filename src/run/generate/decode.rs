//! One pass of a generation: the walk over the new positions, with the edits that are in force there.

use std::collections::{HashMap, HashSet};
use std::ops::Range;

use candle_core::Tensor;

use super::super::apply::{Resolved, resolve};
use super::super::rows::Rows;
use super::super::{Cache, EditTap, Logits, Roles, after_last_attention, forward, normed_rows};
use super::in_force::in_force;
use super::keys::{DecodeTap, Keys};
use super::request::{GenerateRequest, Unfinished};
use crate::error::{Error, Result};
use crate::hooks::Hook;
use crate::model::Model;
use crate::nn::embed::unembed;
use crate::nn::rope;

/// One pass of the model over the new positions of the active prompts, or over all of them, whose logits come from the last of them.
/// # Shapes
/// Gives f32, `[active prompts, d_vocab]`.
pub(super) fn decode(
    model: &Model,
    ropes: &rope::Tables,
    keys: &mut Keys,
    request: &GenerateRequest<'_>,
    pass: Range<usize>,
    batch: &Unfinished<'_>,
) -> Result<Tensor> {
    let spec = &model.spec;
    let mut rows = Rows::new(pass.end);
    let mut tokens = Vec::with_capacity(batch.active.len() * pass.len());
    for &prompt in batch.active {
        rows.push(
            prompt,
            prompt,
            (pass.start as u32..pass.end as u32).collect(),
        );
        tokens.extend_from_slice(&batch.sequences[prompt][pass.clone()]);
    }
    keys.begin(&pass)?;
    let mut tap = DecodeTap {
        edits: edits_of_pass(model, request, &pass, batch)?,
        keys,
    };
    let x = forward::embed(model, &tokens, &rows, &mut tap)?;
    let mut stream = forward::Stream { rows, x: Some(x) };
    for layer in 0..spec.n_layers {
        stream = forward::block(model, layer, ropes, stream, &mut tap)?;
    }
    let normed = normed_rows(
        model,
        stream,
        Logits::Last,
        batch.active.len(),
        &mut tap.edits,
    )?;
    if let Some(index) = tap.edits.fired.iter().position(|fired| !fired) {
        return Err(Error::Unfired {
            what: request.edits[index].to_string(),
            reason: format!("no tensor was named by it at positions {pass:?}"),
        });
    }
    forward::as_logits(unembed(
        &model.spec,
        &model.weights,
        &normed.expect("asked for"),
    )?)
}

/// The tap of a plain run, with what is in force of each edit in this pass.
fn edits_of_pass(
    model: &Model,
    request: &GenerateRequest<'_>,
    pass: &Range<usize>,
    batch: &Unfinished<'_>,
) -> Result<EditTap> {
    let spec = &model.spec;
    let none = Roles::new();
    let prompts = batch.sequences.len();
    let mut edits: HashMap<Hook, Vec<Vec<Resolved>>> = HashMap::new();
    let mut fired = vec![true; request.edits.len()];
    for &prompt in batch.active {
        let roles = request.roles_of(prompt);
        for part in parts(pass, batch.prompt_length) {
            for (index, edit) in request.edits.iter().enumerate() {
                let Some(edit) = in_force(edit, &part, batch.prompt_length, roles)? else {
                    continue;
                };
                fired[index] = false;
                let sources = &request.sources;
                let edit = resolve(&edit, index, spec, pass.end, &none, sources, prompt)?;
                edits
                    .entry(edit.hook)
                    .or_insert_with(|| vec![Vec::new(); prompts])[prompt]
                    .push(edit);
            }
        }
    }
    let last_layer = spec.n_layers.saturating_sub(1);
    let needs_every_row = (edits.keys()).any(|&hook| after_last_attention(hook, last_layer));
    Ok(EditTap {
        edits,
        fired,
        wanted: HashSet::new(),
        cache: Cache::new(spec, prompts, pass.end),
        last_layer,
        last_only: !needs_every_row,
    })
}

/// The passes that a pass stands for: one over all positions is the prompt's and then each generated token's.
fn parts(pass: &Range<usize>, prompt_length: usize) -> Vec<Range<usize>> {
    if pass.start > 0 || pass.end <= prompt_length {
        return vec![pass.clone()];
    }
    let generated = (prompt_length..pass.end).map(|pos| pos..pos + 1);
    std::iter::once(0..prompt_length).chain(generated).collect()
}
