//! Whether a loaded model is the model that its files describe: against itself ([`check`]), and against activations that another
//! implementation computed from the same files ([`compare`]).
//!
//! What loading refuses (a config key that nobody understands, a tensor too many, a NaN) is not looked at again here.

mod reference;

use candle_core::{D, DType, Tensor};

use crate::error::Result;
use crate::hooks::{Edit, Hook, Kind, Op, Site};
use crate::metric::{Metric, Target};
use crate::model::{Loaded, Model, ModelSpec, Tokenizer};
use crate::nn::host::to_host;
use crate::run::{
    BaseRun, Logits, Quiet, Readout, Request, Sources, SweepOptions, Variant, logits, run, sweep,
    sweep_plain,
};

pub use reference::{Gap, compare, worst};

/// The largest relative difference to a reference in f32 that is no mistake: other kernels add in another order.
pub const TOLERANCE: f32 = 1e-4;
/// Families whose logits `tests/families.rs` also holds against candle-transformers.
pub const IN_CANDLE_TRANSFORMERS: &[&str] = &[
    "llama",
    "mistral",
    "qwen2",
    "qwen3",
    "gemma",
    "gemma2",
    "gemma3",
    "phi",
    "phi3",
    "olmo2",
    "starcoder2",
    "bert",
];
/// Tokens of the prompts that the checks run.
const LENGTH: usize = 10;

/// One thing that was looked at.
#[derive(Debug, Clone, PartialEq)]
pub struct Finding {
    /// `tokenizer`, `forward`, ...
    pub what: &'static str,
    pub passed: bool,
    /// What was seen.
    pub seen: String,
}

/// Looks at everything about a model that needs no second implementation.
/// # Errors
/// Those of running the model; what a check finds wrong is a [`Finding`] that did not pass.
pub fn check(loaded: &Loaded) -> Result<Vec<Finding>> {
    let Loaded { model, tokenizer } = loaded;
    let prompts = prompts(&model.spec);
    Ok(vec![
        tokens(tokenizer, &model.spec),
        forward(model, &prompts)?,
        causality(model, &prompts)?,
        sweeps(model, &prompts)?,
    ])
}

/// Two prompts of ids strewn over the vocabulary, different at every position.
fn prompts(spec: &ModelSpec) -> Vec<Vec<u32>> {
    let length = LENGTH.min(spec.n_ctx);
    let id = |prompt: usize, pos: usize| {
        (prompt
            .wrapping_mul(40_503)
            .wrapping_add((pos + 1).wrapping_mul(7919))
            % spec.d_vocab) as u32
    };
    (0..2)
        .map(|prompt| (0..length).map(|pos| id(prompt, pos)).collect())
        .collect()
}

fn tokens(tokenizer: &Tokenizer, spec: &ModelSpec) -> Finding {
    let (tokens, rows) = (tokenizer.max_id() as usize + 1, spec.d_vocab);
    let bos = match (tokenizer.adds_bos(), tokenizer.bos()) {
        (true, Some(bos)) => format!("puts `{}` first", tokenizer.token(bos)),
        _ => "puts nothing first".to_string(),
    };
    Finding {
        what: "tokenizer",
        passed: tokens <= rows,
        seen: format!("{tokens} tokens for {rows} rows of the embedding; {bos}"),
    }
}

/// Every hook of a forward pass, and whether looking changes anything.
fn forward(model: &Model, prompts: &[Vec<u32>]) -> Result<Finding> {
    let hooks = Hook::all(&model.spec);
    let request = Request {
        capture: &hooks,
        logits: Logits::Last,
        ..Request::default()
    };
    let watched = run(model, prompts, &request)?;
    let plain = to_host(&logits(model, prompts)?)?;
    let watched_logits = to_host(&watched.logits.expect("asked for"))?;
    let mut passed = watched_logits == plain;
    let mut seen = format!(
        "{} hooks, all finite; watching them changes no bit of the logits",
        hooks.len()
    );
    if !passed {
        seen = "watching the hooks changes the logits".to_string();
    }
    for hook in hooks {
        let may_be_infinite = hook.kind == Kind::AttnScores;
        let is_right = |x: &f32| x.is_finite() || (may_be_infinite && *x == f32::NEG_INFINITY);
        if !to_host(&watched.cache.get(hook)?)?.iter().all(is_right) {
            passed = false;
            seen = format!("`{hook}` holds a NaN or an infinity");
            break;
        }
    }
    Ok(Finding {
        what: "forward",
        passed,
        seen,
    })
}

/// No position may see a later one; in an encoder every position must.
fn causality(model: &Model, prompts: &[Vec<u32>]) -> Result<Finding> {
    let all = Request {
        logits: Logits::All,
        ..Request::default()
    };
    let mut changed = prompts[..1].to_vec();
    let last = changed[0].len() - 1;
    changed[0][last] = prompts[1][last];
    let before = |prompts: &[Vec<u32>]| -> Result<Tensor> {
        let logits = run(model, prompts, &all)?.logits.expect("asked for");
        Ok(logits.narrow(1, 0, last)?)
    };
    let gap = match last {
        0 => 0.0,
        _ => relative(&before(&changed)?, &before(&prompts[..1])?)?,
    };
    Ok(Finding {
        what: "causality",
        passed: (gap <= tolerance(model)) == model.spec.is_causal(),
        seen: format!("changing the last token moves earlier logits by {gap:.1e}"),
    })
}

/// The sweep against whole forward passes, with an edit of each kind in the first, middle and last layer.
fn sweeps(model: &Model, prompts: &[Vec<u32>]) -> Result<Finding> {
    let spec = &model.spec;
    let length = prompts[0].len();
    let mut layers = vec![0, spec.n_layers / 2, spec.n_layers - 1];
    layers.dedup();
    let kinds = [
        Kind::ResidPre,
        Kind::Z,
        Kind::Pattern,
        Kind::AttnOut,
        Kind::MlpOut,
        Kind::ResidPost,
    ];
    let kinds = kinds.into_iter().filter(|kind| kind.absent(spec).is_none());
    let kinds: Vec<Kind> = kinds.collect();
    let mut variants = Vec::new();
    for (i, &layer) in layers.iter().enumerate() {
        for &kind in &kinds {
            let site = Site::all(Hook::at(kind, layer)).at((length * (i + 1)) / 4);
            let op = match kind {
                Kind::Z => Op::Zero,
                _ => Op::Scale(0.5),
            };
            let edits = vec![Edit::new(site, op)];
            variants.extend((0..prompts.len()).map(|example| Variant {
                example,
                edits: edits.clone(),
            }));
        }
    }
    let base = BaseRun::new(
        model,
        prompts.to_vec(),
        vec![],
        vec![],
        Sources::default(),
        &kinds,
    )?;
    let ids = |offset: usize| vec![(offset % spec.d_vocab) as u32];
    let target = Target {
        answers: ids(1),
        wrong: ids(2),
        ..Target::default()
    };
    let readout = Readout {
        metric: Metric::LogitDiff,
        targets: vec![target; prompts.len()],
        reference: None,
    };
    let sources = Sources::default();
    let options = SweepOptions::default();
    let fast = sweep(
        model, &base, &variants, &sources, &readout, &options, &Quiet,
    )?;
    let slow = sweep_plain(model, &base, &variants, &sources, &readout)?;
    let scale = slow
        .iter()
        .fold(1.0f64, |most, value| most.max(value.abs()));
    let gaps = fast
        .iter()
        .zip(&slow)
        .map(|(fast, slow)| (fast - slow).abs() / scale);
    let gap = gaps.fold(0.0f64, f64::max);
    Ok(Finding {
        what: "sweep",
        passed: gap <= f64::from(tolerance(model)),
        seen: format!(
            "{} edits agree with whole forward passes to {gap:.1e}",
            variants.len()
        ),
    })
}

/// Half-precision models round at every step.
fn tolerance(model: &Model) -> f32 {
    match model.dtype {
        DType::F32 => TOLERANCE,
        _ => 5e-2,
    }
}

/// The largest difference over the largest finite value that was expected. Masked scores are minus infinity on both sides.
fn relative(ours: &Tensor, theirs: &Tensor) -> Result<f32> {
    let (ours, theirs) = (to_host(ours)?, to_host(theirs)?);
    let finite = theirs.iter().filter(|x| x.is_finite());
    let scale = finite.fold(0f32, |most, x| most.max(x.abs()));
    let gap = ours.iter().zip(&theirs).fold(0f32, |most, (a, b)| {
        let gap = if a == b { 0.0 } else { (a - b).abs() };
        // `max` forgets a NaN, which is the largest difference of all.
        if gap.is_nan() {
            f32::INFINITY
        } else {
            most.max(gap)
        }
    });
    Ok(if scale > 0.0 { gap / scale } else { gap })
}

/// The likeliest next tokens of a text, for a person to judge.
/// # Errors
/// Those of tokenising and running.
pub fn next_tokens(loaded: &Loaded, text: &str, count: usize) -> Result<Vec<(String, f32)>> {
    let Loaded { model, tokenizer } = loaded;
    let ids = tokenizer.encode(text, tokenizer.adds_bos())?.ids;
    let probabilities = candle_nn::ops::softmax(&logits(model, &[ids])?, D::Minus1)?;
    let mut ranked: Vec<(usize, f32)> = to_host(&probabilities)?.into_iter().enumerate().collect();
    ranked.sort_by(|a, b| b.1.total_cmp(&a.1));
    let ranked = ranked.into_iter().take(count);
    Ok(ranked
        .map(|(id, p)| (tokenizer.token(id as u32), p))
        .collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{EMBEDDED, LoadOptions, load};

    #[test]
    fn a_good_model_passes_and_a_damaged_one_does_not() {
        let mut loaded = load(EMBEDDED, &LoadOptions::default()).unwrap();
        let findings = check(&loaded).unwrap();
        assert!(
            findings.iter().all(|finding| finding.passed),
            "{findings:?}"
        );
        // Rows of the embedding are gone that the tokenizer has tokens for.
        loaded.model.spec.d_vocab = 5;
        assert!(!tokens(&loaded.tokenizer, &loaded.model.spec).passed);
    }

    #[test]
    fn differences_are_relative_and_a_nan_is_the_largest() {
        let of = |values: &[f32]| Tensor::new(values, &candle_core::Device::Cpu).unwrap();
        assert_eq!(relative(&of(&[1.0, 3.0]), &of(&[1.0, 4.0])).unwrap(), 0.25);
        assert_eq!(relative(&of(&[0.5]), &of(&[0.0])).unwrap(), 0.5);
        assert_eq!(
            relative(&of(&[f32::NAN, 1.0]), &of(&[1.0, 1.0])).unwrap(),
            f32::INFINITY
        );
        let masked = of(&[f32::NEG_INFINITY, 2.0]);
        assert_eq!(relative(&masked, &masked).unwrap(), 0.0);
        assert_eq!(relative(&of(&[1.0, 2.0]), &masked).unwrap(), f32::INFINITY);
    }
}
