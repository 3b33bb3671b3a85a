//! Embeddings that a config ties and a checkpoint does not, and other things that only the tensors say.

use rayon::prelude::*;

use crate::error::Result;
use crate::model::checkpoint::Checkpoint;
use crate::model::families::Description;
use crate::model::layout::{Piece, Slot};
use crate::model::names::{Found, Names};

/// Finds out from the tensors what the config does not say: a tied model whose unembedding was saved, and is not the embedding, is used
/// as transformers uses it, with both. In the second place, what a user should know of the checkpoint.
/// # Errors
/// Those of reading tensors.
pub(super) fn settle(
    checkpoint: &dyn Checkpoint,
    mut description: Description,
) -> Result<(Description, Vec<String>)> {
    let is_tied = description.spec.tied;
    let names = Names::new(checkpoint.tensors(), &description.layout);
    // Under its second name, where the checkpoint has that one.
    let head = description.layout.tied_head.clone().map(|head| {
        let mut second = description.layout.instead.iter();
        let second = second.find(|(first, other)| *first == head && names.get(other).is_some());
        second.map_or(head, |(_, other)| other.clone())
    });
    let tied_head = head.clone();
    let mut notes: Vec<String> = names.note.clone().into_iter().collect();
    let mut slots = description.layout.model.iter();
    let embedding = slots
        .find(|(slot, _)| *slot == Slot::Embed)
        .and_then(|(_, pieces)| Some(pieces.first()?.name.clone()));
    let (Some(embedding), Some(head), true) = (embedding, head, is_tied) else {
        return Ok((description, notes));
    };
    match (names.get(&embedding), names.get(&head)) {
        (None, Some(_)) => description.layout.instead.push((embedding, head)),
        (Some(one), Some(other)) if !are_equal(checkpoint, one, other)? => {
            notes.push(format!(
                "the config ties the unembedding to the embedding, but the checkpoint has both and they differ: `{}` is used, as \
                 transformers does",
                other.name
            ));
            let piece = Piece::as_is(&head, description.spec.d_model);
            description.layout.model.push((Slot::Unembed, vec![piece]));
            description.spec.tied = false;
        }
        _ => {}
    }
    description.layout.tied_head = tied_head;
    Ok((description, notes))
}

/// Whether two matrices have the same entries.
fn are_equal(checkpoint: &dyn Checkpoint, one: Found, other: Found) -> Result<bool> {
    /// Entries of each that are decoded at a time.
    const CHUNK: usize = 1 << 18;
    let (&[rows, columns], true) = (one.shape, one.shape == other.shape) else {
        return Ok(false);
    };
    let step = (CHUNK / columns.max(1)).max(1);
    let starts: Vec<usize> = (0..rows).step_by(step).collect();
    let is_equal = |&start: &usize| -> Result<bool> {
        let entries = step.min(rows - start) * columns;
        let (mut a, mut b) = (vec![0f32; entries], vec![0f32; entries]);
        checkpoint.decode(one.name, start * columns, &mut a)?;
        checkpoint.decode(other.name, start * columns, &mut b)?;
        Ok(a == b)
    };
    let differs = starts
        .par_iter()
        .map(is_equal)
        .find_any(|equal| !matches!(equal, Ok(true)));
    differs.unwrap_or(Ok(true))
}
