//! Generation: one token after another, each computed from its own row and the kept keys and values of those before it, with
//! edits in force all the while.
//!
//! A step is the same walk as every run (`forward`), over one row a prompt. Keys and values are kept as the edits left them, so
//! a step needs nothing else of the past. [`generate_plain`] runs the whole sequence again for each token, with the same edits;
//! the tests hold one to the other.

mod decode;
mod in_force;
mod keys;
mod plain;
mod request;
mod sampling;
mod steps;
mod whole;

use std::ops::Range;

use super::progress::Progress;
use crate::error::Result;
use crate::model::Model;
use crate::nn::rope;
use decode::decode;
use keys::Keys;
use request::Unfinished;
use steps::{check, choose_tokens};

pub use plain::generate_plain;
pub use request::{GenerateRequest, Generation};
pub use sampling::Sampling;
pub use steps::check_room;

/// Continues each prompt, with edits in force. Which positions an edit applies to:
///
/// - An edit without positions applies to every position, those of the prompt and those of the generated tokens.
/// - An absolute position (`pos=12`) is that position, also where a generated token stands when it comes.
/// - A position from the end (`pos=-1`) and a role (`pos=@S2`) are the prompt's; they do not move while tokens are generated.
/// - A key of scores and patterns (`key=`) is counted in the same way. A row of a pattern has an entry for each token that was
///   there when the row was computed: the prompt's rows for the prompt, a generated token's for those up to itself.
/// - A closure is called once for the prompt, and then for each generated token by itself.
///
/// Rotary positions turn by the frequencies of the text so far, as they would in a run of it: under dynamic scaling beyond the trained
/// length, and where longrope takes its long factors, the text is run anew.
///
/// The last token that is generated is read by nobody, so no edit reaches its position.
/// # Shapes
/// `prompts [batch, pos]`, token ids, of one length.
/// # Errors
/// Before anything runs: bad prompts, hooks, sites and edits, an edit whose source has no value for a position that generation
/// reaches, [`Error::NoRoom`](crate::Error::NoRoom) if the model has not enough positions. Then [`Error::NotFiniteLogits`](crate::Error::NotFiniteLogits) and [`Error::Interrupted`](crate::Error::Interrupted).
pub fn generate(
    model: &Model,
    prompts: &[Vec<u32>],
    request: &GenerateRequest<'_>,
    progress: &dyn Progress,
) -> Result<Generation> {
    model.spec.check_decoder("continuations")?;
    let reach = check(model, prompts, request)?;
    let mut keys = Keys::new(&model.spec, prompts.len(), request.edits);
    let spec = &model.spec;
    let mut turned_for = prompts[0].len();
    let mut ropes = rope::Tables::with_room(spec, turned_for, reach);
    let step = |pass: Range<usize>, batch: &Unfinished<'_>| {
        if rope::Tables::are_alike(spec, turned_for, pass.end) {
            return decode(model, &ropes, &mut keys, request, pass, batch);
        }
        // The text has grown into other frequencies: what is kept was turned by the old ones.
        turned_for = pass.end;
        ropes = rope::Tables::with_room(spec, turned_for, reach);
        decode(model, &ropes, &mut keys, request, 0..pass.end, batch)
    };
    choose_tokens(model, prompts, request, progress, step)
}
