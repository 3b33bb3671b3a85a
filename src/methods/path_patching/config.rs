//! What to patch, and how senders and receivers make up rows.

use super::choice::{Receivers, Senders};
use crate::error::Result;
use crate::hooks::Positions;
use crate::metric::Metric;
use crate::task::Task;

/// How senders and receivers make up rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Serialize)]
#[cfg_attr(feature = "cli", derive(clap::ValueEnum))]
#[serde(rename_all = "kebab-case")]
pub enum Over {
    /// A row for each sender, into all receivers together.
    #[default]
    Senders,
    /// A row for each receiver, from all senders together.
    Receivers,
    /// One row.
    Together,
    /// A row for each sender and receiver, where the sender is computed before the receiver reads.
    Both,
}

/// What to patch, and how.
#[derive(Debug, Clone, PartialEq)]
pub struct PathConfig {
    pub senders: Senders,
    pub receivers: Receivers,
    pub over: Over,
    /// Freeze the MLPs between senders and receivers as well as the heads.
    pub freeze_mlps: bool,
    /// Where the senders are patched, and where the receivers read what was recorded.
    pub at_senders: Positions,
    pub at_receivers: Positions,
    /// [default: the task's]
    pub metric: Option<Metric>,
}

impl PathConfig {
    /// A row for each sender, everywhere, with MLPs as part of the paths.
    pub fn new(senders: Senders, receivers: Receivers) -> Self {
        PathConfig {
            senders,
            receivers,
            over: Over::Senders,
            freeze_mlps: false,
            at_senders: Positions::All,
            at_receivers: Positions::All,
            metric: None,
        }
    }

    /// The same, from senders and receivers as they are written: `heads` or `a0.h1,m0`, and `q` or `a3.h0.q,logits`.
    /// # Errors
    /// [`Error::Parse`](crate::Error::Parse).
    pub fn between(senders: &str, receivers: &str) -> Result<Self> {
        Ok(PathConfig::new(senders.parse()?, receivers.parse()?))
    }

    pub(super) fn metric(&self, task: &Task) -> Metric {
        self.metric.unwrap_or(task.metric)
    }
}
