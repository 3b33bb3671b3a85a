//! How long work speaks to whoever watches it.

/// What long work tells whoever watches it, and how it is told to stop.
pub trait Progress: Sync {
    fn start(&self, _what: &str, _steps: u64) {}
    fn advance(&self, _steps: u64) {}
    fn note(&self, _message: &str) {}
    fn finish(&self) {}
    /// Polled between steps; long work then ends with [`crate::Error::Interrupted`].
    fn cancelled(&self) -> bool {
        false
    }
}

/// Nobody watches.
pub struct Quiet;

impl Progress for Quiet {}
