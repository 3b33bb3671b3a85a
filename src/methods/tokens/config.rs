//! What is shared out, by which method.

use super::baseline::Baseline;
use super::method::TokenMethod;
use super::noise::NoiseTunnel;
use crate::methods::activation_patching::PatchSource;
use crate::metric::Metric;
use crate::task::Task;

/// Which prompts of the pairs are explained.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Prompts {
    #[default]
    Clean,
    Corrupted,
}

/// What to explain, and how.
#[derive(Debug, Clone, PartialEq)]
pub struct TokenConfig {
    pub method: TokenMethod,
    /// [default: the task's]
    pub metric: Option<Metric>,
    pub prompts: Prompts,
    /// Through noisy copies of the prompts.
    pub tunnel: Option<NoiseTunnel>,
    /// Of noise, draws and bootstrap [default: the task's].
    pub seed: Option<u64>,
}

impl TokenConfig {
    /// The clean prompts by one method; all else at its default.
    pub fn new(method: TokenMethod) -> Self {
        TokenConfig {
            method,
            metric: None,
            prompts: Prompts::Clean,
            tunnel: None,
            seed: None,
        }
    }

    pub(super) fn metric(&self, task: &Task) -> Metric {
        self.metric.unwrap_or(task.metric)
    }

    pub(super) fn seed(&self, task: &Task) -> u64 {
        self.seed.unwrap_or(task.seed)
    }

    /// What takes a token away, and what is put in its place: what a share of it is held against.
    pub(super) fn removal(&self) -> PatchSource {
        match self.method.baselines().first() {
            Some(Baseline::Pair) => PatchSource::Pair,
            _ => PatchSource::Zero,
        }
    }

    /// The method's name, and that of the noise tunnel around it: `ig:vargrad`.
    pub(super) fn name(&self) -> String {
        match self.tunnel {
            None => self.method.name().into(),
            Some(tunnel) => format!("{}:{}", self.method, tunnel.over.name()),
        }
    }

    /// Forward passes with a gradient for each prompt, about.
    pub(in crate::methods) fn passes(&self) -> usize {
        self.method.passes() * self.tunnel.map_or(1, |tunnel| tunnel.draws)
    }
}
