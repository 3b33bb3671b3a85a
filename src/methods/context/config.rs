//! Which sentences of a context an answer rests on, as a value: by what, and how.

use std::collections::BTreeSet;
use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use serde::Serialize;

use crate::error::{Error, Result};
use crate::task::QuestionSet;

/// What scores a sentence.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum ContextMethod {
    /// How far all next-token distributions of the answer move without it: Jensen-Shannon divergences, summed over the answer.
    ArcJsd,
    /// How much less likely the answer is without it.
    LeaveOneOut,
}

impl ContextMethod {
    pub const ALL: [ContextMethod; 2] = [ContextMethod::ArcJsd, ContextMethod::LeaveOneOut];

    pub fn name(self) -> &'static str {
        match self {
            ContextMethod::ArcJsd => "arc-jsd",
            ContextMethod::LeaveOneOut => "leave-one-out",
        }
    }

    /// What its scores are, in the column `metric`.
    pub(super) fn measure(self, order: KlOrder) -> &'static str {
        match (self, order) {
            (ContextMethod::ArcJsd, KlOrder::Bounded) => "jsd",
            (ContextMethod::ArcJsd, KlOrder::Released) => "jsd_released",
            (ContextMethod::LeaveOneOut, _) => "log_prob_drop",
        }
    }

    pub(super) fn unit(self) -> &'static str {
        match self {
            ContextMethod::ArcJsd | ContextMethod::LeaveOneOut => "nats",
        }
    }
}

impl fmt::Display for ContextMethod {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for ContextMethod {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let mut all = ContextMethod::ALL.into_iter();
        all.find(|method| method.name() == text)
            .ok_or_else(|| Error::Parse {
                what: "a way to score sentences",
                text: text.into(),
                reason: format!(
                    "it is one of {}",
                    ContextMethod::ALL.map(ContextMethod::name).join(", ")
                ),
            })
    }
}

/// Which way round the two divergences of ARC-JSD stand, with `M` the mean of the distributions `P` and `Q`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum KlOrder {
    /// `KL(P||M) / 2 + KL(Q||M) / 2`, the Jensen-Shannon divergence: at most ln 2.
    #[default]
    Bounded,
    /// `KL(M||P) / 2 + KL(M||Q) / 2`, as the released code has it: without a bound.
    Released,
}

impl FromStr for KlOrder {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        match text {
            "bounded" => Ok(KlOrder::Bounded),
            "released" => Ok(KlOrder::Released),
            _ => Err(Error::Parse {
                what: "an order of divergences",
                text: text.into(),
                reason: "it is `bounded` or `released`".into(),
            }),
        }
    }
}

/// Which sentences of the contexts of questions an answer rests on.
///
/// The task is [`QuestionSet::task`] of the same questions. Rows: each method (`component`) and sentence (`role`), over the questions that
/// have it; beside the first method's own scores stand those of the others, and of questions whose sentence is known how often the
/// method's best is that one (`top1`, ties shared) and the reciprocal of its rank, with what chance alone gives (`random`).
#[derive(Debug, Clone, PartialEq)]
pub struct ContextConfig {
    pub questions: Arc<QuestionSet>,
    /// Each once; the first is the table's own.
    pub methods: Vec<ContextMethod>,
    pub kl_order: KlOrder,
    /// Of the bootstrap and of draws [default: the task's].
    pub seed: Option<u64>,
}

impl ContextConfig {
    pub fn new(
        questions: impl Into<Arc<QuestionSet>>,
        methods: impl Into<Vec<ContextMethod>>,
    ) -> Self {
        ContextConfig {
            questions: questions.into(),
            methods: methods.into(),
            kl_order: KlOrder::default(),
            seed: None,
        }
    }

    pub(super) fn asks(&self, method: ContextMethod) -> bool {
        self.methods.contains(&method)
    }

    pub(super) fn check_methods(&self) -> Result<()> {
        let once: BTreeSet<ContextMethod> = self.methods.iter().copied().collect();
        if once.is_empty() {
            return Err(Error::invalid(
                "there is nothing to score sentences by (`ContextConfig::methods`)",
            ));
        }
        if once.len() < self.methods.len() {
            return Err(Error::invalid(
                "a method stands twice in the list, and its rows could not be told apart (`ContextConfig::methods`)",
            ));
        }
        if self.kl_order == KlOrder::Released && !self.asks(ContextMethod::ArcJsd) {
            return Err(Error::invalid(
                "the order of divergences is that of `arc-jsd`, which is not asked for; leave `ContextConfig::kl_order` out",
            ));
        }
        Ok(())
    }
}
