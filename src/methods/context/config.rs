//! Which sentences of a context an answer rests on, as a value: by what, and how.

use std::collections::BTreeSet;
use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use serde::Serialize;

use crate::error::{Error, Result};
use crate::methods::choice::check_range;
use crate::model::ModelSpec;
use crate::task::QuestionSet;

/// More masks than anybody would wait for.
const MOST_DRAWS: usize = 10_000;

/// What scores a sentence.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum ContextMethod {
    /// How far all next-token distributions of the answer move without it: Jensen-Shannon divergences, summed over the answer.
    ArcJsd,
    /// How much less likely the answer is without it.
    LeaveOneOut,
    /// Its weight in a sparse linear fit of the answer's log odds to which sentences are there (the ContextCite way).
    SparseFit,
    /// How much the positions that write the answer attend to it, in the mean over layers, heads and tokens.
    Attention,
    /// The cosine between the mean states of the answer and of the sentence in one layer.
    Cosine,
    /// The highest weight of one head on it (AttnAttrib).
    AttnAttrib,
}

impl ContextMethod {
    pub const ALL: [ContextMethod; 6] = [
        ContextMethod::ArcJsd,
        ContextMethod::LeaveOneOut,
        ContextMethod::SparseFit,
        ContextMethod::Attention,
        ContextMethod::Cosine,
        ContextMethod::AttnAttrib,
    ];

    pub fn name(self) -> &'static str {
        match self {
            ContextMethod::ArcJsd => "arc-jsd",
            ContextMethod::LeaveOneOut => "leave-one-out",
            ContextMethod::SparseFit => "sparse-fit",
            ContextMethod::Attention => "attention",
            ContextMethod::Cosine => "cosine",
            ContextMethod::AttnAttrib => "attn-attrib",
        }
    }

    /// What its scores are, in the column `metric`.
    pub(super) fn measure(self, order: KlOrder) -> &'static str {
        match (self, order) {
            (ContextMethod::ArcJsd, KlOrder::Bounded) => "jsd",
            (ContextMethod::ArcJsd, KlOrder::Released) => "jsd_released",
            (ContextMethod::LeaveOneOut, _) => "log_prob_drop",
            (ContextMethod::SparseFit, _) => "log_odds_weight",
            (ContextMethod::Attention, _) => "attention",
            (ContextMethod::Cosine, _) => "cosine",
            (ContextMethod::AttnAttrib, _) => "highest_attention",
        }
    }

    pub(super) fn unit(self) -> &'static str {
        match self {
            ContextMethod::ArcJsd | ContextMethod::LeaveOneOut => "nats",
            ContextMethod::SparseFit => "log odds",
            ContextMethod::Attention | ContextMethod::AttnAttrib => "attention",
            ContextMethod::Cosine => "cosine",
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

/// How the model is led to the sentence that was found.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Steer {
    /// The sentence stands once more behind the context.
    Hint,
    /// The head of `attn-attrib` is multiplied by this at every position.
    Scale(f32),
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
    /// Masks that a sparse fit is made of; a quarter as many more are what it is tried on.
    pub draws: usize,
    /// The layer and head of `attn-attrib`. `None`: for each question the one that finds the right sentence most often on all others.
    pub head: Option<(usize, usize)>,
    /// Where states are compared [default: the middle layer].
    pub layer: Option<usize>,
    /// Also what each head's and each MLP's own output says with and without the best sentence of `arc-jsd`.
    pub lens: bool,
    /// Also answers again: with the first method's best sentence said once more (or another one), or with [`ContextConfig::head`] scaled (or
    /// another head of its layer). The answers asked about are the model's own.
    pub steer: Option<Steer>,
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
            draws: 32,
            head: None,
            layer: None,
            lens: false,
            steer: None,
            seed: None,
        }
    }

    pub(super) fn asks(&self, method: ContextMethod) -> bool {
        self.methods.contains(&method)
    }

    /// Whether a head has to be found.
    pub(super) fn searches(&self) -> bool {
        self.asks(ContextMethod::AttnAttrib) && self.head.is_none()
    }

    /// Whether the run without any change is looked into.
    pub(super) fn looks(&self) -> bool {
        let by_looking = [
            ContextMethod::Attention,
            ContextMethod::Cosine,
            ContextMethod::AttnAttrib,
        ];
        by_looking.into_iter().any(|method| self.asks(method))
    }

    /// Whether sentences are left out one by one.
    pub(super) fn leaves_out(&self) -> bool {
        self.asks(ContextMethod::ArcJsd) || self.asks(ContextMethod::LeaveOneOut)
    }

    pub(super) fn layer(&self, spec: &ModelSpec) -> usize {
        self.layer.unwrap_or(spec.n_layers / 2)
    }

    /// What cannot be run as asked; of `known` contexts a sentence is known to be the right one.
    pub(super) fn check_settings(&self, spec: &ModelSpec, known: usize) -> Result<()> {
        let once: BTreeSet<ContextMethod> = self.methods.iter().copied().collect();
        let idle = |field: &str, method: &str| {
            Err(Error::invalid(format!(
                "`{method}` is not asked for, and {field} is for nothing else; leave it out"
            )))
        };
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
            return idle("`ContextConfig::kl_order`", "arc-jsd");
        }
        if self.lens && !self.asks(ContextMethod::ArcJsd) {
            return idle("`ContextConfig::lens`", "arc-jsd");
        }
        let scales = matches!(self.steer, Some(Steer::Scale(_)));
        if self.head.is_some() && !scales && !self.asks(ContextMethod::AttnAttrib) {
            return idle("`ContextConfig::head`", "attn-attrib");
        }
        if self.layer.is_some() && !self.asks(ContextMethod::Cosine) {
            return idle("`ContextConfig::layer`", "cosine");
        }
        if self.steer.is_some() {
            let has_all = self
                .questions
                .questions
                .iter()
                .all(|one| one.answer.is_some());
            if !self.questions.own_answers || !has_all {
                return Err(Error::invalid(
                    "an answer that is steered is the model's own (`QuestionSet::own_answers`), and every question says which one is expected (`answer`)",
                ));
            }
        }
        if scales && (self.head.is_none() || spec.n_heads < 2) {
            return Err(Error::invalid(
                "a head is scaled that was named (`ContextConfig::head`), beside another one of its layer",
            ));
        }
        if let Some(Steer::Scale(factor)) = self.steer
            && !factor.is_finite()
        {
            return Err(Error::invalid("a head is scaled by a finite number"));
        }
        if self.steer == Some(Steer::Hint)
            && self.methods.first() == Some(&ContextMethod::AttnAttrib)
            && self.searches()
        {
            return Err(Error::invalid(
                "the head of `attn-attrib` is known when all questions are measured, which is too late for a hint; name it (`ContextConfig::head`), or put \
                 another method first (`ContextConfig::methods`)",
            ));
        }
        if !(4..=MOST_DRAWS).contains(&self.draws) {
            return Err(Error::invalid(format!(
                "a sparse fit is made of 4 to {MOST_DRAWS} draws, not {} (`ContextConfig::draws`)",
                self.draws
            )));
        }
        let (layer, head) = self.head.unwrap_or_default();
        let layers = [layer, self.layer(spec)];
        check_range("layer", &layers, spec.n_layers, "the model")?;
        check_range("head", &[head], spec.n_heads, "attention")?;
        if self.searches() && known < 2 {
            return Err(Error::invalid(format!(
                "`attn-attrib` finds its head on questions about other contexts, whose right sentence is known (`gold`), and there {}; name a head \
                 (`ContextConfig::head`)",
                match known {
                    0 => "are none",
                    _ => "is one alone",
                }
            )));
        }
        Ok(())
    }
}
