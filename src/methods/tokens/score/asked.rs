//! A method's answers on the prompts of a batch.

use rand::Rng;

use super::catalogue::TokenScore;
use super::statistic::{entropy, infidelity, length, pointing};
use crate::error::Result;
use crate::methods::tokens::baseline::Start;
use crate::methods::tokens::batch::Batch;
use crate::methods::tokens::config::TokenConfig;
use crate::methods::tokens::method::TokenMethod;
use crate::methods::tokens::noise::{noisy, span};
use crate::methods::tokens::shares::shares_of;

/// Standard deviation of the changes behind an infidelity, of each token.
const CHANGE: f64 = 0.03;
/// Of the places behind a sensitivity, in units of the embeddings' span.
const RADIUS: f64 = 0.02;
/// Draws that no method makes.
const DRAWS: usize = 1 << 19;
/// Shares of the tokens that are taken away, or left.
pub(super) const TOP: [f64; 4] = [0.05, 0.1, 0.2, 0.5];

/// A method that is ready for a subject.
pub(super) struct Scored {
    pub config: TokenConfig,
    /// Its baselines, looked up.
    pub starts: Vec<Start>,
}

/// What is asked of every method.
pub(super) struct Questions<'a> {
    pub scores: &'a [TokenScore],
    pub gold: Option<&'a str>,
    pub changes: usize,
    pub places: usize,
    /// What stands where a token is taken away, and where it is there to no degree.
    pub fill: Start,
    pub nothing: Start,
}

/// The shares of the tokens of each prompt.
pub(super) fn tokens(batch: &Batch<'_>, method: &Scored) -> Result<Vec<Vec<f64>>> {
    let (shares, _) = shares_of(batch, &method.starts)?;
    Ok(shares.into_iter().map(|one| one.tokens).collect())
}

impl Questions<'_> {
    fn asks(&self, score: TokenScore) -> bool {
        self.scores.contains(&score)
    }

    /// The scores of a method on each prompt, in the order of the config; none where a prompt lacks the role.
    pub(super) fn scores(
        &self,
        batch: &Batch<'_>,
        method: &Scored,
        shares: &[Vec<f64>],
    ) -> Result<Vec<Vec<Option<f64>>>> {
        let asks = |score| self.asks(score);
        let curve = |score, alone| match asks(score) {
            true => self.removed(batch, shares, alone),
            false => Ok(vec![0.0; batch.len()]),
        };
        let without = curve(TokenScore::Comprehensiveness, false)?;
        let alone = curve(TokenScore::Sufficiency, true)?;
        let infidelity = if asks(TokenScore::Infidelity) || asks(TokenScore::InfidelityScaled) {
            self.infidelity(batch, shares)?
        } else {
            vec![[None; 2]; batch.len()]
        };
        // Random shares are about no prompt, so they do not move with it.
        let is_about_it = method.config.method != TokenMethod::Random;
        let sensitivity = if asks(TokenScore::MaxSensitivity) && is_about_it {
            self.sensitivity(batch, method, shares)?
        } else {
            vec![None; batch.len()]
        };
        let of_prompt = |prompt: usize| {
            let known = self.known(batch, prompt, &shares[prompt]);
            let score = |score: &TokenScore| match score {
                TokenScore::Mrr => known.map(|known| known[0]),
                TokenScore::Rma => known.map(|known| known[1]),
                TokenScore::Pta => known.map(|known| known[2]),
                TokenScore::PgAt3 => known.map(|known| known[3]),
                TokenScore::Comprehensiveness => Some(without[prompt]),
                TokenScore::Sufficiency => Some(alone[prompt]),
                TokenScore::Infidelity => infidelity[prompt][0],
                TokenScore::InfidelityScaled => infidelity[prompt][1],
                TokenScore::MaxSensitivity => sensitivity[prompt],
                TokenScore::Complexity => entropy(&shares[prompt]),
            };
            self.scores.iter().map(score).collect()
        };
        Ok((0..batch.len()).map(of_prompt).collect())
    }

    /// The positions of a prompt that are ranked.
    fn ranked(&self, batch: &Batch<'_>, prompt: usize) -> Vec<usize> {
        let tokens = batch.prompts[prompt].iter().enumerate();
        let tokenizer = batch.task.tokenizer();
        let ordinary = tokens.filter(|(_, token)| !tokenizer.is_special(**token));
        ordinary.map(|(at, _)| at).collect()
    }

    /// How well the shares point at the role's tokens.
    fn known(&self, batch: &Batch<'_>, prompt: usize, shares: &[f64]) -> Option<[f64; 4]> {
        let gold = batch.pairs[prompt].roles.get(self.gold?)?;
        let ranked = self.ranked(batch, prompt);
        let shares: Vec<f64> = ranked.iter().map(|&at| shares[at]).collect();
        let gold: Vec<bool> = ranked.iter().map(|at| gold.contains(at)).collect();
        pointing(&shares, &gold).filter(|_| gold.contains(&true))
    }

    /// What the metric loses without the top tokens, or with them alone, the mean over how many.
    fn removed(&self, batch: &Batch<'_>, shares: &[Vec<f64>], alone: bool) -> Result<Vec<f64>> {
        let mut points = Vec::new();
        for (prompt, shares) in shares.iter().enumerate() {
            let mut order = self.ranked(batch, prompt);
            order.sort_by(|&a, &b| shares[b].total_cmp(&shares[a]));
            for top in TOP {
                let n = (top * order.len() as f64).ceil() as usize;
                let gone = if alone { &order[n..] } else { &order[..n] };
                let mut there = vec![1.0; shares.len()];
                gone.iter().for_each(|&at| there[at] = 0.0);
                points.push((prompt, there));
            }
        }
        let values = present(batch, &self.fill, &points)?;
        let each = values.chunks_exact(TOP.len()).zip(&batch.values);
        let lost = |(values, whole): (&[f64], &f64)| {
            values.iter().map(|value| whole - value).sum::<f64>() / TOP.len() as f64
        };
        Ok(each.map(lost).collect())
    }

    /// Infidelity, and that of the shares as they fit best.
    fn infidelity(&self, batch: &Batch<'_>, shares: &[Vec<f64>]) -> Result<Vec<[Option<f64>; 2]>> {
        let mut points = Vec::new();
        for prompt in 0..batch.len() {
            for draw in 0..self.changes {
                let mut rng = batch.rng(prompt, DRAWS + draw);
                let there = noisy(&vec![1.0; batch.length], CHANGE as f32, &mut rng);
                points.push((prompt, there.into_iter().map(f64::from).collect()));
            }
        }
        let values = present(batch, &self.nothing, &points)?;
        let each = points
            .chunks_exact(self.changes)
            .zip(values.chunks_exact(self.changes));
        let of_prompt = |(points, values): (&[(usize, Vec<f64>)], &[f64])| {
            let prompt = points[0].0;
            let said = points.iter().map(|(_, there)| {
                let each = there.iter().zip(&shares[prompt]);
                each.map(|(there, share)| (1.0 - there) * share)
                    .sum::<f64>()
            });
            let found = values.iter().map(|value| batch.values[prompt] - value);
            infidelity(&said.collect::<Vec<f64>>(), &found.collect::<Vec<f64>>())
        };
        Ok(each.map(of_prompt).collect())
    }

    /// The largest of the relative changes of the shares at places nearby; nothing where there are no shares to change.
    fn sensitivity(
        &self,
        batch: &Batch<'_>,
        method: &Scored,
        shares: &[Vec<f64>],
    ) -> Result<Vec<Option<f64>>> {
        let mut largest = vec![0.0f64; batch.len()];
        for round in 1..=self.places {
            let nearby = batch.moved(round as u64, |x, rng| {
                let radius = (RADIUS * span(x)) as f32;
                let step = |x: &f32| x + radius * (2.0 * rng.random::<f32>() - 1.0);
                x.iter().map(step).collect()
            })?;
            for ((largest, there), here) in
                largest.iter_mut().zip(tokens(&nearby, method)?).zip(shares)
            {
                let change = length(there.iter().zip(here).map(|(a, b)| a - b));
                let size = length(here.iter().copied());
                // What is no number stays so.
                let relative = change / size;
                if relative.is_nan() || relative > *largest {
                    *largest = relative;
                }
            }
        }
        let number = |size: f64| Some(size).filter(|size| size.is_finite());
        Ok(largest.into_iter().map(number).collect())
    }
}

/// The metric of prompts in which each token is there to a degree: 1 as it is, 0 as what is away.
fn present(batch: &Batch<'_>, away: &Start, points: &[(usize, Vec<f64>)]) -> Result<Vec<f64>> {
    let d = batch.model.spec.d_model;
    batch.values_at(points, |(prompt, there)| {
        let mut embeddings = away.place(batch, *prompt).embeddings(batch, *prompt)?;
        let rows = embeddings
            .chunks_exact_mut(d)
            .zip(batch.embedding(*prompt).chunks_exact(d));
        for ((away, own), &there) in rows.zip(there) {
            for (away, &own) in away.iter_mut().zip(own) {
                *away = (f64::from(*away) + there * (f64::from(own) - f64::from(*away))) as f32;
            }
        }
        Ok((*prompt, embeddings))
    })
}
