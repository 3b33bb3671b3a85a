//! Logits and answers to one number per example.
//!
//! Every metric is a function of the logits at the answer position of one prompt (`log_prob` and `prob` also of an answer of several
//! tokens, at as many positions); the value of a task is the mean over its pairs, which is taken elsewhere. `kl` and `js` sum over the vocabulary (some published code takes the mean over it, which
//! makes their numbers smaller by its size).

mod catalogue;
mod gradient;
mod target;
#[cfg(test)]
mod tests;
mod value;

pub use catalogue::{CustomMetric, Metric, Reads};
pub use target::{Judgement, Target};
pub(crate) use value::log_softmax;
