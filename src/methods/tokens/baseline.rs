//! What paths begin at: one vector, a token, the pair's other prompt, or prompts of the task by chance.

use std::fmt;
use std::str::FromStr;

use serde::Serialize;

use super::batch::Batch;
use super::noise::noisy;
use crate::error::{Error, Result};
use crate::model::{Model, Tokenizer};
use crate::nn::embed::embed;
use crate::nn::host::to_host;
use crate::spec::ModelSpec;
use crate::task::{Pair, Task};

/// What the embeddings are taken from.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
pub enum Baseline {
    /// All zeros. Where positions are learned this is an empty prompt. Where they are not, norms make the model blind to the length of
    /// a vector on the way, everything happens within `sqrt(eps)` of zero, and no affordable number of steps resolves it.
    Zero,
    /// The mean of all rows of the embedding: our default, since paths from it stay clear of zero.
    #[default]
    Mean,
    /// The BOS token at every position.
    Bos,
    /// A token of the vocabulary, written as the vocabulary writes it, at every position (a PAD token, say).
    Token(String),
    /// The pair's other prompt.
    Pair,
}

/// What expected gradients and gradient-SHAP draw baselines from. Prompts are those of all pairs with the same template and length.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum ReferenceSet {
    #[default]
    Corrupted,
    /// The clean prompts, but never the one that is explained.
    Clean,
    /// The same baseline every time.
    One(Baseline),
}

impl fmt::Display for Baseline {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Baseline::Zero => f.write_str("zero"),
            Baseline::Mean => f.write_str("mean"),
            Baseline::Bos => f.write_str("bos"),
            Baseline::Token(token) => write!(f, "token:{token}"),
            Baseline::Pair => f.write_str("pair"),
        }
    }
}

impl FromStr for Baseline {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        match text {
            "zero" => Ok(Baseline::Zero),
            "mean" => Ok(Baseline::Mean),
            "bos" => Ok(Baseline::Bos),
            "pair" => Ok(Baseline::Pair),
            _ => match text.strip_prefix("token:").filter(|t| !t.is_empty()) {
                Some(token) => Ok(Baseline::Token(token.into())),
                None => Err(Error::Parse {
                    what: "a baseline",
                    text: text.into(),
                    reason: "baselines are zero, mean, bos, pair, or a token of the vocabulary: token:<pad>; where they are drawn, also corrupted or clean (prompts)".into(),
                }),
            },
        }
    }
}

impl fmt::Display for ReferenceSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ReferenceSet::Corrupted => f.write_str("corrupted"),
            ReferenceSet::Clean => f.write_str("clean"),
            ReferenceSet::One(baseline) => baseline.fmt(f),
        }
    }
}

impl FromStr for ReferenceSet {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        match text {
            "corrupted" => Ok(ReferenceSet::Corrupted),
            "clean" => Ok(ReferenceSet::Clean),
            _ => text.parse().map(ReferenceSet::One),
        }
    }
}

/// An end of a path, looked up when it is needed.
#[derive(Clone, Copy)]
pub(super) enum Place<'a> {
    /// One vector at every position.
    Vector(&'a [f32]),
    Prompt(&'a [u32]),
    /// The prompt that is explained.
    Input,
    /// The same with noise of this standard deviation on it.
    Noisy {
        draw: usize,
        deviation: f32,
    },
}

impl Place<'_> {
    /// `[pos, d_model]`
    pub fn embeddings(self, batch: &Batch<'_>, prompt: usize) -> Result<Vec<f32>> {
        Ok(match self {
            Place::Vector(vector) => vector.repeat(batch.length),
            Place::Prompt(tokens) => {
                to_host(&embed(&batch.model.spec, &batch.model.weights, tokens)?)?
            }
            Place::Input => batch.embedding(prompt).to_vec(),
            Place::Noisy { draw, deviation } => {
                let mut rng = batch.rng(prompt, draw);
                noisy(batch.embedding(prompt), deviation, &mut rng)
            }
        })
    }
}

/// A baseline, looked up: one vector for every position, or the pair's other prompt.
pub(super) enum Start {
    Vector(Vec<f32>),
    Pair,
}

impl Start {
    /// # Errors
    /// Those of [`baseline_token`].
    pub fn new(model: &Model, tokenizer: &Tokenizer, baseline: &Baseline) -> Result<Self> {
        let spec = &model.spec;
        if let Some(token) = baseline_token(spec, tokenizer, baseline)? {
            let embedding = to_host(&embed(spec, &model.weights, &[token])?)?;
            return Ok(Start::Vector(embedding));
        }
        if *baseline == Baseline::Pair {
            return Ok(Start::Pair);
        }
        if *baseline == Baseline::Zero {
            return Ok(Start::Vector(vec![0.0; spec.d_model]));
        }
        let every_token: Vec<u32> = (0..spec.d_vocab as u32).collect();
        let embeddings = embed(spec, &model.weights, &every_token)?; // [d_vocab, d_model]
        let mean = embeddings.to_dtype(candle_core::DType::F32)?.mean(0)?;
        Ok(Start::Vector(to_host(&mean)?.into_iter().collect()))
    }

    pub fn place<'a>(&'a self, batch: &'a Batch<'_>, prompt: usize) -> Place<'a> {
        match self {
            Start::Vector(vector) => Place::Vector(vector),
            Start::Pair => Place::Prompt(&batch.others[prompt]),
        }
    }
}

/// The token of a baseline that is one.
/// # Errors
/// [`Error::Tokenizer`] for a token that the vocabulary does not have.
pub(super) fn baseline_token(
    spec: &ModelSpec,
    tokenizer: &Tokenizer,
    baseline: &Baseline,
) -> Result<Option<u32>> {
    let refuse = |reason: String| Err(Error::Tokenizer { reason });
    match baseline {
        Baseline::Zero | Baseline::Mean | Baseline::Pair => Ok(None),
        Baseline::Bos => match tokenizer.bos() {
            Some(token) => Ok(Some(token)),
            None => refuse(
                "it has no BOS token to serve as a baseline; use `zero`, `mean` or `token:...`"
                    .into(),
            ),
        },
        Baseline::Token(text) => match tokenizer.id(text) {
            Some(token) if (token as usize) < spec.d_vocab => Ok(Some(token)),
            _ => refuse(format!(
                "`{text}` is not in its vocabulary, so it cannot be a baseline; write the token as tokenizer.json does, \
                 or use `zero`, `mean`, `bos`"
            )),
        },
    }
}

/// What a prompt may draw of a reference set; [`check_references`] has seen to it that there is something. `one` is the baseline of
/// [`ReferenceSet::One`].
pub(super) fn references<'a>(
    batch: &'a Batch<'_>,
    prompt: usize,
    set: &ReferenceSet,
    one: Option<&'a Start>,
) -> Vec<Place<'a>> {
    if let Some(start) = one {
        return vec![start.place(batch, prompt)];
    }
    let (pair, is_clean) = (batch.pairs[prompt], *set == ReferenceSet::Clean);
    let place = |other: &'a Pair| {
        Place::Prompt(if is_clean {
            &other.clean
        } else {
            &other.corrupted
        })
    };
    let others = batch.task.pairs().iter();
    others
        .filter(|other| is_alike(pair, other) && (!is_clean || other.clean != pair.clean))
        .map(place)
        .collect()
}

fn is_alike(one: &Pair, other: &Pair) -> bool {
    one.template == other.template && one.clean.len() == other.clean.len()
}

/// Whether every pair has a prompt to draw.
/// # Errors
/// [`Error::Invalid`] naming the first pair that has none.
pub(super) fn check_references(task: &Task, set: &ReferenceSet) -> Result<()> {
    if *set != ReferenceSet::Clean {
        return Ok(());
    }
    let is_alone = |pair: &&Pair| {
        let mut all = task.pairs().iter();
        !all.any(|other| is_alike(pair, other) && other.clean != pair.clean)
    };
    match task.pairs().iter().find(is_alone) {
        None => Ok(()),
        Some(pair) => Err(Error::invalid(format!(
            "baselines are drawn from other clean prompts than the one that is explained, and pair {} (template {}, {} tokens) has none beside \
             it; use more pairs (`ExpandOptions::n_pairs`), or `ReferenceSet::Corrupted`",
            pair.index,
            pair.template,
            pair.clean.len()
        ))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_read_back() {
        let token = Baseline::Token("<|endoftext|>".into());
        for baseline in [
            Baseline::Zero,
            Baseline::Mean,
            Baseline::Bos,
            Baseline::Pair,
            token,
        ] {
            assert_eq!(baseline.to_string().parse::<Baseline>().unwrap(), baseline);
            let one = ReferenceSet::One(baseline);
            assert_eq!(one.to_string().parse::<ReferenceSet>().unwrap(), one);
        }
        for set in [ReferenceSet::Corrupted, ReferenceSet::Clean] {
            assert_eq!(set.to_string().parse::<ReferenceSet>().unwrap(), set);
        }
        assert!("token:".parse::<Baseline>().is_err());
        let message = "pad".parse::<ReferenceSet>().unwrap_err().to_string();
        assert!(message.contains("corrupted or clean"), "{message}");
    }
}
