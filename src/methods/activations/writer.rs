//! What takes activations, batch by batch, and the prompts that they are of.

use crate::error::Result;
use crate::hooks::Hook;
use crate::run::Roles;

/// A prompt whose activations are written.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Prompt {
    pub text: String,
    pub tokens: Vec<u32>,
    /// `clean` or `corrupted`, and the pair's number, of a task's prompt.
    pub run: Option<&'static str>,
    pub example: Option<usize>,
    pub roles: Roles,
}

/// Takes the activations of a batch, hook by hook.
pub(super) trait Writer {
    /// # Shapes
    /// `values` in the row order of `shape`, whose first axis is the batch.
    fn write(
        &mut self,
        at: usize,
        hook: Hook,
        batch: &[usize],
        values: &[f32],
        shape: &[usize],
    ) -> Result<()>;

    fn finish(self: Box<Self>) -> Result<()>;
}
