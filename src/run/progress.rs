//! How long work speaks to whoever watches it: the library draws no bar and prints nothing, it reports steps to a [`Progress`].

/// What long work tells whoever watches it, and how it is told to stop.
pub trait Progress: Sync {
    /// A stage of `steps` steps begins.
    fn start(&self, _what: &str, _steps: u64) {}
    /// That many steps more are done.
    fn advance(&self, _steps: u64) {}
    /// Something worth saying once, such as a warning.
    fn note(&self, _message: &str) {}
    /// The stage is over.
    fn finish(&self) {}
    /// Polled between waves: whether to stop now, keeping what is finished.
    fn cancelled(&self) -> bool {
        false
    }
}

/// Nobody watches.
#[derive(Debug, Clone, Copy, Default)]
pub struct Quiet;

impl Progress for Quiet {}
