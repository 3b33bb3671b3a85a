//! The loop: tokens are replaced at random, and what the answer loses or keeps moves their importance.

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::config::RationaleConfig;
use super::replace::Choices;
use crate::error::Result;
use crate::methods::method::stop_if_asked;
use crate::metric::{Metric, Target};
use crate::model::Model;
use crate::run::{Progress, Quiet, run_to_answers};
use crate::scores::statistics::softmax;

/// Furthest that one step moves the chance behind an importance: log odds of its ends are infinite.
const MOST: f64 = 0.9999;

/// One prompt that is explained.
pub(super) struct Prompt<'a> {
    /// Index of the pair in the task as written.
    pub index: usize,
    pub tokens: &'a [u32],
    pub target: &'a Target,
    /// The positions whose tokens can be replaced, and what may stand there.
    pub places: Vec<usize>,
    pub choices: Vec<Choices>,
    /// The probability of the answer after the whole prompt.
    pub whole: f64,
}

/// One run of the loop.
#[derive(Debug, Clone, PartialEq)]
pub struct RationaleRun {
    /// Of each token that can be replaced; their sum is 1.
    pub importance: Vec<f64>,
    pub steps: usize,
    /// Whether it ended by itself: the rationale alone leaves the answer among the likeliest.
    pub stopped: bool,
}

/// What is drawn in a run: a function of the seed, the pair, the run and the step, so that nothing depends on what runs together.
pub(super) struct Draws<'a> {
    pub config: &'a RationaleConfig,
    pub prompt: &'a Prompt<'a>,
    pub seed: u64,
    pub run: usize,
}

impl Draws<'_> {
    fn rng(&self, draw: usize) -> ChaCha8Rng {
        let mut rng = ChaCha8Rng::seed_from_u64(self.seed);
        let run = ((self.prompt.index as u64) << 30) + ((self.run as u64) << 18);
        rng.set_stream(run + draw as u64);
        rng
    }

    /// Importances before the first step.
    pub fn start(&self) -> Vec<f64> {
        let mut rng = self.rng(0);
        self.prompt.places.iter().map(|_| rng.random()).collect()
    }

    /// A step's prompt, and which of the places are replaced in it.
    pub fn replaced(&self, step: usize) -> (Vec<bool>, Vec<u32>) {
        let mut rng = self.rng(2 * step);
        let places = self.prompt.places.iter();
        let picked: Vec<bool> = places
            .map(|_| rng.random::<f64>() < self.config.ratio)
            .collect();
        let tokens = self.filled(&picked, &mut rng);
        (picked, tokens)
    }

    /// The prompt of which only the rationale is left after a step.
    pub fn rationale(&self, step: usize, scores: &[f64]) -> Vec<u32> {
        let mut order: Vec<usize> = (0..scores.len()).collect();
        order.sort_by(|&a, &b| scores[b].total_cmp(&scores[a]));
        let mut picked = vec![true; scores.len()];
        let kept = self.config.keep.of(scores.len());
        order.iter().take(kept).for_each(|&at| picked[at] = false);
        self.filled(&picked, &mut self.rng(2 * step + 1))
    }

    fn filled(&self, picked: &[bool], rng: &mut ChaCha8Rng) -> Vec<u32> {
        let mut tokens = self.prompt.tokens.to_vec();
        let places = self.prompt.places.iter().zip(&self.prompt.choices);
        for ((&at, choices), _) in places.zip(picked).filter(|(_, picked)| **picked) {
            tokens[at] = choices.draw(rng);
        }
        tokens
    }
}

/// A run in progress.
struct Going<'a> {
    draws: Draws<'a>,
    of: usize,
    scores: Vec<f64>,
}

impl Going<'_> {
    fn learn(&mut self, picked: &[bool], lost: f64) {
        for (score, &picked) in self.scores.iter_mut().zip(picked) {
            let w = if picked { lost } else { -lost }.clamp(-MOST, MOST);
            let chance = (1.0 + w) / 2.0;
            *score += (chance / (1.0 - chance)).ln();
        }
    }

    fn done(&self, steps: usize, stopped: bool) -> RationaleRun {
        RationaleRun {
            importance: softmax(&self.scores),
            steps,
            stopped,
        }
    }
}

/// All runs of some prompts of one length, `[prompt][run]`, together: a batch has a step of each, and beside it the rationale of the step before, which a run
/// that ends by it has not needed the step for.
/// # Errors
/// Those of running; [`Error::Interrupted`](crate::Error::Interrupted).
pub(super) fn search(
    model: &Model,
    config: &RationaleConfig,
    seed: u64,
    prompts: &[Prompt<'_>],
    at_once: usize,
    progress: &dyn Progress,
) -> Result<Vec<Vec<RationaleRun>>> {
    let mut going: Vec<Going<'_>> = Vec::new();
    for (of, prompt) in prompts.iter().enumerate() {
        for run in 0..config.runs {
            let draws = Draws {
                config,
                prompt,
                seed,
                run,
            };
            let scores = draws.start();
            going.push(Going { draws, of, scores });
        }
    }
    let mut found: Vec<Vec<Option<RationaleRun>>> = vec![vec![None; config.runs]; prompts.len()];
    for step in 1..=config.steps + 1 {
        let (mut asked, mut picked) = (Vec::new(), Vec::new());
        for one in &going {
            let target = one.draws.prompt.target;
            if step > 1 {
                asked.push((one.draws.rationale(step - 1, &one.scores), target));
            }
            if step <= config.steps {
                let (which, tokens) = one.draws.replaced(step);
                picked.push(which);
                asked.push((tokens, target));
            }
        }
        if asked.is_empty() {
            break;
        }
        let mut answered = answered(model, &asked, config.within, at_once, progress)?.into_iter();
        let mut picked = picked.into_iter();
        let mut left = Vec::new();
        for mut one in going {
            let ends = step > 1 && answered.next().is_some_and(|(_, is_near)| is_near);
            let which = picked.next();
            if let Some(which) = which {
                let (p, _) = answered.next().expect("it was asked");
                if !ends {
                    one.learn(&which, one.draws.prompt.whole - p);
                    left.push(one);
                    continue;
                }
            }
            found[one.of][one.draws.run] = Some(one.done(step - 1, ends));
        }
        going = left;
    }
    let all = found
        .into_iter()
        .map(|runs| runs.into_iter().flatten().collect());
    Ok(all.collect())
}

/// The probability of the answer after each prompt, and whether it is among the likeliest `within`.
pub(super) fn answered(
    model: &Model,
    asked: &[(Vec<u32>, &Target)],
    within: usize,
    at_once: usize,
    progress: &dyn Progress,
) -> Result<Vec<(f64, bool)>> {
    let mut found = Vec::with_capacity(asked.len());
    for some in asked.chunks(at_once) {
        stop_if_asked(progress)?;
        let (prompts, targets): (Vec<Vec<u32>>, Vec<Target>) = (some.iter())
            .map(|(prompt, target)| (prompt.clone(), (*target).clone()))
            .unzip();
        let (logits, _) = run_to_answers(model, &prompts, &targets, &[])?;
        for (logits, target) in logits.iter().zip(&targets) {
            let p = Metric::Prob.value(&logits[0], target, None)?;
            let is_near = Metric::TopK(within).value(&logits[0], target, None)?;
            found.push((p, is_near == 1.0));
        }
    }
    Ok(found)
}

/// The slow twin of the search: one run of one prompt, one prompt at a time.
/// # Errors
/// Those of running.
pub(super) fn search_plain(model: &Model, draws: &Draws<'_>) -> Result<RationaleRun> {
    let Draws { config, prompt, .. } = draws;
    let ask = |tokens: Vec<u32>| -> Result<(f64, bool)> {
        let asked = [(tokens, prompt.target)];
        Ok(answered(model, &asked, config.within, 1, &Quiet)?[0])
    };
    let mut scores = draws.start();
    for steps in 1..=config.steps {
        let (picked, tokens) = draws.replaced(steps);
        let lost = prompt.whole - ask(tokens)?.0;
        for (at, score) in scores.iter_mut().enumerate() {
            let w = match picked[at] {
                true => lost.clamp(-MOST, MOST),
                false => -lost.clamp(-MOST, MOST),
            };
            // ln((1 + w) / (1 - w)), the log odds of (1 + w) / 2.
            *score += 2.0 * w.atanh();
        }
        if ask(draws.rationale(steps, &scores))?.1 {
            let importance = softmax(&scores);
            return Ok(RationaleRun {
                importance,
                steps,
                stopped: true,
            });
        }
    }
    Ok(RationaleRun {
        importance: softmax(&scores),
        steps: config.steps,
        stopped: false,
    })
}
