//! Generation: one token after another, each computed from its own row and the kept keys and values of those before it, with
//! edits in force all the while.
//!
//! A step is the same walk as every run (`forward`), over one row a prompt. Keys and values are kept as the edits left them, so
//! a step needs nothing else of the past. [`generate_plain`] runs the whole sequence again for each token, with the same edits;
//! the tests hold one to the other.

mod counterfactual;
mod decode;
mod gumbel;
mod in_force;
mod keys;
mod plain;
mod request;
mod sampling;
mod steps;
mod walk;
mod whole;

use super::progress::Progress;
use crate::error::Result;
use crate::model::Model;
use walk::walk;

pub use counterfactual::{Counterfactual, counterfactuals};
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
    let mut choosers = request.choosers(prompts.len());
    walk(model, prompts, request, &mut choosers, progress)
}
