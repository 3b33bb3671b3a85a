//! Soft sufficiency and comprehensiveness: how far the answer's distribution moves when each dimension of each token's embedding is left
//! in its place with a chance that follows the token's importance, or taken away with it.

use candle_core::Tensor;
use rand::seq::SliceRandom;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::search::Prompt;
use crate::error::Result;
use crate::hooks::{Edit, Hook, Kind, Op, Site, Value};
use crate::methods::method::stop_if_asked;
use crate::model::Model;
use crate::nn::embed::embed;
use crate::nn::host::{tensor, to_host};
use crate::run::{Progress, run_edited_to_answers};

/// What chance follows from an importance.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Chance {
    /// The importance itself, as in the authors' code: one token's worth of dimensions in all, whatever the method.
    AsIs,
    /// As a share of the largest one.
    OfMost,
}

/// Every score, by name: sufficiency (`ns`) and comprehensiveness (`nc`), by the importance itself or as a share of the largest, with the
/// Hellinger distance or what the authors' code has in its place.
pub(super) const MEASURES: [&str; 8] = [
    "soft_ns",
    "soft_nc",
    "soft_ns_released",
    "soft_nc_released",
    "soft_ns_max",
    "soft_nc_max",
    "soft_ns_max_released",
    "soft_nc_max_released",
];

const CHANCES: [Chance; 2] = [Chance::AsIs, Chance::OfMost];

/// Distributions that are no further apart are the same but for rounding.
const SAME: f64 = 1e-5;

/// What one method says of a prompt.
#[derive(Debug, Clone)]
pub(super) struct Importance {
    /// Of each place, from 0 to 1.
    pub of: Vec<f64>,
    /// Dealt out anew among the places in each draw.
    pub is_shuffled: bool,
}

/// How soft scores are drawn.
#[derive(Debug, Clone, Copy)]
pub(super) struct Softly {
    pub draws: usize,
    pub seed: u64,
    pub at_once: usize,
}

/// Runs behind the soft scores of one prompt.
pub(super) fn runs(methods: usize, draws: usize) -> usize {
    1 + methods * CHANCES.len() * 2 * draws
}

/// [`MEASURES`] of each importance; none where the distribution is the same without any token. `logits` are those of the whole prompt.
/// # Errors
/// Those of running; [`Error::Interrupted`](crate::Error::Interrupted).
pub(super) fn soft_scores(
    model: &Model,
    prompt: &Prompt<'_>,
    logits: &[f32],
    importances: &[Importance],
    softly: Softly,
    progress: &dyn Progress,
) -> Result<Option<Vec<[f64; 8]>>> {
    let roots = roots(logits);
    let own = to_host(&embed(&model.spec, &model.weights, prompt.tokens)?)?;
    let mut points = vec![Point {
        chances: vec![0.0; prompt.places.len()],
        draw: 0,
        is_gone: false,
    }];
    for importance in importances {
        for chance in CHANCES {
            for draw in 0..softly.draws {
                let chances = chances(importance, chance, prompt, softly.seed, draw);
                points.extend([false, true].map(|is_gone| Point {
                    chances: chances.clone(),
                    draw,
                    is_gone,
                }));
            }
        }
    }
    let mut moved: Vec<[f64; 2]> = Vec::with_capacity(points.len());
    for some in points.chunks(softly.at_once) {
        stop_if_asked(progress)?;
        let embeddings = some
            .iter()
            .flat_map(|point| point.thinned(&own, prompt, softly.seed));
        let shape = (some.len(), prompt.tokens.len(), model.spec.d_model);
        let embeddings = tensor(embeddings.collect(), shape)?;
        let found = distributions(model, prompt, embeddings)?;
        moved.extend(found.iter().map(|logits| distances(&roots, logits)));
        progress.advance(some.len() as u64);
    }
    let (nothing, moved) = moved.split_first().expect("there is a run with nothing");
    if nothing[0] < SAME {
        return Ok(None);
    }
    let of_method = |moved: &[[f64; 2]]| {
        let mut scores = [0.0; 8];
        for (chance, moved) in moved.chunks_exact(2 * softly.draws).enumerate() {
            for form in 0..2 {
                let mean = |side: usize| {
                    let all = moved.iter().skip(side).step_by(2);
                    all.map(|moved| moved[form]).sum::<f64>() / softly.draws as f64
                };
                let [ns, nc] = normalised(mean(0), mean(1), nothing[form]);
                scores[4 * chance + 2 * form] = ns;
                scores[4 * chance + 2 * form + 1] = nc;
            }
        }
        scores
    };
    let methods = moved.chunks_exact(CHANCES.len() * 2 * softly.draws);
    Ok(Some(methods.map(of_method).collect()))
}

/// Soft sufficiency and comprehensiveness, from how far the distribution moves with what is kept, without it, and with nothing:
/// `max(0, S - S0) / (1 - S0)` and `moved / (1 - S0)`, where a score `S` is 1 less how far.
fn normalised(kept: f64, gone: f64, nothing: f64) -> [f64; 2] {
    [(nothing - kept).max(0.0) / nothing, gone / nothing]
}

/// The chance of each place's dimensions in a draw.
fn chances(
    importance: &Importance,
    chance: Chance,
    prompt: &Prompt<'_>,
    seed: u64,
    draw: usize,
) -> Vec<f64> {
    let mut chances = importance.of.clone();
    if importance.is_shuffled {
        chances.shuffle(&mut rng(prompt, seed, 2 * draw + 1));
    }
    if chance == Chance::OfMost {
        let most = chances.iter().copied().fold(0.0, f64::max);
        if most > 0.0 {
            chances.iter_mut().for_each(|one| *one /= most);
        }
    }
    chances
}

fn rng(prompt: &Prompt<'_>, seed: u64, draw: usize) -> ChaCha8Rng {
    let mut rng = ChaCha8Rng::seed_from_u64(seed ^ 0x5eed_50f7);
    rng.set_stream(((prompt.index as u64) << 30) + draw as u64);
    rng
}

/// Where the distribution is looked at.
struct Point {
    chances: Vec<f64>,
    draw: usize,
    /// What the chances choose is gone, and not what is kept.
    is_gone: bool,
}

impl Point {
    /// The embeddings of which dimensions are chosen one by one, by the same numbers for every method. Special tokens stay whole.
    /// # Shapes
    /// `own [pos, d_model]`
    fn thinned(&self, own: &[f32], prompt: &Prompt<'_>, seed: u64) -> Vec<f32> {
        let mut rng = rng(prompt, seed, 2 * self.draw);
        let mut all = own.to_vec();
        let d = own.len() / prompt.tokens.len();
        for (&at, &chance) in prompt.places.iter().zip(&self.chances) {
            for x in &mut all[at * d..(at + 1) * d] {
                let is_chosen = rng.random::<f64>() < chance;
                if is_chosen == self.is_gone {
                    *x = 0.0;
                }
            }
        }
        all
    }
}

/// The logits where the answer is read, at these embeddings. `[point][d_vocab]`
fn distributions(model: &Model, prompt: &Prompt<'_>, embeddings: Tensor) -> Result<Vec<Vec<f32>>> {
    let points = embeddings.dim(0)?;
    let site = Site::all(Hook::global(Kind::Embed));
    let edit = Edit::new(site, Op::Replace(Value::Tensor(embeddings)));
    let prompts = vec![prompt.tokens.to_vec(); points];
    let targets = vec![prompt.target.clone(); points];
    let (logits, _) = run_edited_to_answers(model, &prompts, &targets, &[], &[edit])?;
    Ok(logits.into_iter().map(|mut of| of.swap_remove(0)).collect())
}

/// Square roots of the probabilities.
fn roots(logits: &[f32]) -> Vec<f64> {
    let most = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let half = logits
        .iter()
        .map(|logit| (f64::from(logit - most) / 2.0).exp());
    let half: Vec<f64> = half.collect();
    let norm = half.iter().map(|x| x * x).sum::<f64>().sqrt();
    half.into_iter().map(|x| x / norm).collect()
}

/// The Hellinger distance, and what the authors' code has in its place: the sum of squares over the root of 2.
fn distances(ours: &[f64], logits: &[f32]) -> [f64; 2] {
    let each = ours.iter().zip(roots(logits));
    let squares: f64 = each.map(|(a, b)| (a - b).powi(2)).sum();
    [(squares / 2.0).sqrt(), squares / 2f64.sqrt()]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metric::Target;
    use crate::model::Model;
    use crate::run::{Quiet, Request, run};
    use crate::spec::{Activation, Mlp, ModelSpec, NormPlacement, Position};

    fn models() -> [Model; 2] {
        let spec = ModelSpec {
            n_kv_heads: 2,
            d_model: 14,
            d_mlp: 12,
            d_vocab: 20,
            n_ctx: 16,
            norm_placement: NormPlacement::Pre,
            position: Position::Learned,
            mlp: Mlp::Gated,
            activation: Activation::Silu,
            tied: false,
            ..ModelSpec::bare(2, 4)
        };
        let other = ModelSpec {
            n_heads: 2,
            embed_scale: Some(2.5),
            norm_placement: NormPlacement::Sandwich,
            final_softcap: Some(4.0),
            ..spec.clone()
        };
        [spec, other].map(|spec| Model::random(spec, 3).expect("a whole spec"))
    }

    const TOKENS: [u32; 6] = [0, 5, 9, 3, 14, 7];

    fn prompt(target: &Target) -> Prompt<'_> {
        Prompt {
            index: 1,
            tokens: &TOKENS,
            target,
            places: (1..TOKENS.len()).collect(),
            choices: Vec::new(),
            whole: 0.5,
        }
    }

    fn logits(model: &Model, edits: &[Edit]) -> Vec<f32> {
        let request = Request {
            edits,
            ..Request::default()
        };
        let run = run(model, &[TOKENS.to_vec()], &request).expect("it runs");
        run.logits
            .expect("asked for")
            .to_vec2()
            .expect("it reads")
            .remove(0)
    }

    fn target() -> Target {
        Target {
            answers: vec![2],
            ..Target::default()
        }
    }

    fn scored(model: &Model, of: &[f64], draws: usize) -> [f64; 8] {
        let importance = Importance {
            of: of.to_vec(),
            is_shuffled: false,
        };
        let softly = Softly {
            draws,
            seed: 5,
            at_once: 3,
        };
        let target = target();
        let found = soft_scores(
            model,
            &prompt(&target),
            &logits(model, &[]),
            &[importance],
            softly,
            &Quiet,
        );
        found.expect("it runs").expect("there is something to lose")[0]
    }

    #[test]
    fn all_kept_is_sufficient_and_nothing_taken_loses_nothing() {
        for model in models() {
            // All of it, and then nothing of it, by the importance itself; as a share of the largest the same.
            let all = scored(&model, &[1.0; 5], 2);
            for (name, score) in MEASURES.iter().zip(all) {
                // Kept whole nothing moves; without all that is important nothing is left.
                assert!((score - 1.0).abs() < 1e-3, "{name}: {score}");
            }
            let none = scored(&model, &[0.0; 5], 2);
            for (name, score) in MEASURES.iter().zip(none) {
                assert!(score.abs() < 1e-3, "{name}: {score}");
            }
        }
    }

    #[test]
    fn a_score_is_that_of_whole_runs_with_thinned_embeddings() {
        let of = [0.1, 0.4, 0.05, 0.25, 0.2];
        let target = target();
        for model in models() {
            let d = model.spec.d_model;
            let full = logits(&model, &[]);
            let own = to_host(&embed(&model.spec, &model.weights, &TOKENS).unwrap()).unwrap();
            // One edit a position, and a distance that is written otherwise: 1 less the overlap.
            let hellinger = |keep: &dyn Fn(usize, f64) -> bool| {
                let mut rng = rng(&prompt(&target), 5, 0);
                let edits: Vec<Edit> = (1..TOKENS.len())
                    .map(|at| {
                        let row = own[at * d..(at + 1) * d].iter();
                        let row: Vec<f32> = row
                            .map(|&x| if keep(at - 1, rng.random()) { x } else { 0.0 })
                            .collect();
                        let site = Site::all(Hook::global(Kind::Embed)).at(at);
                        let value = Value::Tensor(tensor(row, (1, 1, d)).unwrap());
                        Edit::new(site, Op::Replace(value))
                    })
                    .collect();
                let p = |logits: &[f32]| {
                    let each: Vec<f64> = logits.iter().map(|x| f64::from(*x).exp()).collect();
                    let sum: f64 = each.iter().sum();
                    each.into_iter().map(|x| x / sum).collect::<Vec<f64>>()
                };
                let both = p(&full).into_iter().zip(p(&logits(&model, &edits)));
                let overlap: f64 = both.map(|(p, q)| (p * q).sqrt()).sum();
                (1.0 - overlap).max(0.0).sqrt()
            };
            let nothing = hellinger(&|_, _| false);
            let found = scored(&model, &of, 1);
            let near = |name: &str, a: f64, b: f64| assert!((a - b).abs() < 1e-3, "{name} {a} {b}");
            for (first, most) in [(0, 1.0), (4, 0.4)] {
                let kept = hellinger(&|at, u| u < of[at] / most);
                let gone = hellinger(&|at, u| u >= of[at] / most);
                near(
                    MEASURES[first],
                    found[first],
                    (nothing - kept).max(0.0) / nothing,
                );
                near(MEASURES[first + 1], found[first + 1], gone / nothing);
                // What the authors' code takes is the square, times the root of 2.
                let square = |x: f64| x * x;
                let released = (square(nothing) - square(kept)).max(0.0) / square(nothing);
                near(MEASURES[first + 2], found[first + 2], released);
                near(
                    MEASURES[first + 3],
                    found[first + 3],
                    square(gone / nothing),
                );
            }
        }
    }

    #[test]
    fn distances_go_from_nothing_to_their_most() {
        let same = distances(&roots(&[1.0, 2.0, 3.0]), &[0.0, 1.0, 2.0]);
        assert!(same[0] < 1e-7 && same[1] < 1e-7, "{same:?}");
        let apart = distances(&roots(&[80.0, 0.0]), &[0.0, 80.0]);
        assert!((apart[0] - 1.0).abs() < 1e-9 && (apart[1] - 2f64.sqrt()).abs() < 1e-9);
    }

    #[test]
    fn shuffled_importances_are_the_same_in_another_order() {
        let target = target();
        let importance = Importance {
            of: vec![0.1, 0.4, 0.05, 0.25, 0.2],
            is_shuffled: true,
        };
        let dealt = |draw| chances(&importance, Chance::AsIs, &prompt(&target), 5, draw);
        assert_ne!(dealt(0), dealt(1));
        let sorted = |mut of: Vec<f64>| {
            of.sort_by(f64::total_cmp);
            of
        };
        assert_eq!(sorted(dealt(0)), sorted(importance.of.clone()));
    }
}
