//! Distributed alignment search: a subspace trained so that exchanging it makes the source's answer likely.
//!
//! The loss of a pair is `-log p(source's label)` among its two labels, which is `softplus(-d)` with d the logit difference towards the
//! source. Its gradient at the hook is that of our own backward pass; from there on it is two products:
//! `h' = h_b + (D W) W^T` gives `dL/dW = D^T (g W) + g^T (D W)`, D the difference of the two activations and g the gradient at h'. Nothing
//! else is trained.
//!
//! Each batch is recorded once without an edit. A step joins its walk at the edited layer, with the rows from the edited position on:
//! nothing before can differ.
//!
//! Sources: Geiger et al. 2024, arXiv 2303.02536 (DAS); Wu et al. 2023, arXiv 2305.08809 (Boundless DAS); Arora et al. 2024,
//! arXiv 2402.12560 (the settings: Adam 5e-3, 10% warm-up, linear decay, two pairs and their swaps a step).

use candle_core::Tensor;
use nalgebra::DMatrix;
use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;

use super::config::{SubspaceMethod, Training};
use super::fit::random;
use super::places::SIDES;
use super::space::{Subspace, orthonormal};
use crate::error::Result;
use crate::hooks::{Edit, Hook, Op, Pos, Site, Value};
use crate::methods::method::stop_if_asked;
use crate::metric::{Metric, Target};
use crate::model::Model;
use crate::nn::host::{host, tensor};
use crate::nn::rules::Rules;
use crate::run::backward::{Descent, Probe};
use crate::run::gradients::{Measured, Nobody};
use crate::run::rows::Rows;
use crate::run::tape::{Tape, TapeRequest};
use crate::run::{Progress, Roles};
use crate::scores::statistics::sigmoid;

/// Rows of a step: two pairs, each both ways.
pub(super) const ROWS: usize = 4;
/// Temperatures of the mask's edge, from the first step to the last. The first is for as many dimensions as the activation is wide; of fewer
/// it is the same share, so that the edge is as soft over few as over many.
const TEMPERATURES: [f64; 2] = [50.0, 0.1];
const BOUNDARY_RATE: f64 = 1e-2;
/// The role by which an edit finds its position in each prompt.
const HERE: &str = "here";

/// One row of a batch: which training pair, and which of its runs is changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Row {
    pub pair: usize,
    pub side: usize,
}

/// Rows that run together, of one length, and their run without an edit.
pub(super) struct Batch {
    pub rows: Vec<Row>,
    pub prompts: Vec<Vec<u32>>,
    tape: Option<Tape>,
}

impl Batch {
    /// `hold`: whether the run is kept rather than made again for each step.
    pub fn new(model: &Model, rows: Vec<Row>, prompts: Vec<Vec<u32>>, hold: bool) -> Result<Self> {
        let tape = hold.then(|| Batch::record(model, &prompts)).transpose()?;
        Ok(Batch {
            rows,
            prompts,
            tape,
        })
    }

    /// Streams, keys and values of every layer.
    fn record(model: &Model, prompts: &[Vec<u32>]) -> Result<Tape> {
        let request = TapeRequest {
            memory: Some(0),
            ..TapeRequest::default()
        };
        Tape::record(model, prompts, &request)
    }
}

/// What is trained at one place.
pub(super) struct Problem<'a> {
    pub model: &'a Model,
    pub hook: Hook,
    pub layer: usize,
    pub batches: &'a [Batch],
    /// Of each training pair the activations of its two runs, and where they are.
    pub values: &'a [[Vec<f32>; 2]],
    pub positions: &'a [[usize; 2]],
    pub targets: &'a [Target],
}

/// A trained subspace, and the mean loss of a pass over all batches before and after.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Trained {
    pub space: Subspace,
    pub before: f64,
    pub after: f64,
}

/// What one batch says: the sum of its rows' losses and of their slopes.
pub(super) struct Slope {
    pub loss: f64,
    /// `[width, dims]`
    pub basis: DMatrix<f64>,
    pub mask: Vec<f64>,
}

impl Problem<'_> {
    /// The loss of a batch, and its slope.
    /// # Shapes
    /// `basis [width, dims]`, `mask [dims]`: how much of each dimension is exchanged.
    pub fn slope(&self, batch: &Batch, basis: &DMatrix<f64>, mask: &[f64]) -> Result<Slope> {
        let (width, dims) = basis.shape();
        let narrow = |row: &Row, side: usize| -> &[f32] { &self.values[row.pair][side] };
        let n = batch.rows.len();
        let differences = DMatrix::from_fn(n, width, |i, j| {
            let row = &batch.rows[i];
            let (base, source) = (narrow(row, row.side), narrow(row, 1 - row.side));
            f64::from(source[j]) - f64::from(base[j])
        });
        let along = &differences * basis; // [rows, dims]
        let mut masked = along.clone();
        for (mut column, mask) in masked.column_iter_mut().zip(mask) {
            column *= *mask;
        }
        let moved = &masked * basis.transpose(); // [rows, width]
        let mut put = Vec::with_capacity(n * width);
        for (i, row) in batch.rows.iter().enumerate() {
            let base = narrow(row, row.side).iter().enumerate();
            put.extend(base.map(|(j, &x)| (f64::from(x) + moved[(i, j)]) as f32));
        }
        let at: Vec<usize> = (batch.rows.iter())
            .map(|row| self.positions[row.pair][row.side])
            .collect();
        let (loss, g) = self.at_hook(batch, put, &at, width)?;
        let through = &g * basis; // [rows, dims]
        let mut masked_through = through.clone();
        for (mut column, mask) in masked_through.column_iter_mut().zip(mask) {
            column *= *mask;
        }
        let of_mask = |j: usize| through.column(j).dot(&along.column(j));
        Ok(Slope {
            loss,
            basis: differences.transpose() * masked_through + g.transpose() * masked,
            mask: (0..dims).map(of_mask).collect(),
        })
    }

    /// The loss with these values put at the hook, and its gradient there.
    /// # Shapes
    /// `put [rows * width]`; gives `[rows, width]`.
    fn at_hook(
        &self,
        batch: &Batch,
        put: Vec<f32>,
        at: &[usize],
        width: usize,
    ) -> Result<(f64, DMatrix<f64>)> {
        let model = self.model;
        let n = batch.rows.len();
        let mut dims = self.hook.shape(&model.spec, n, 1);
        dims[1] = 1;
        let site = Site::all(self.hook).at_positions([Pos::Role(HERE.into())]);
        let edits = [Edit::new(
            site,
            Op::Replace(Value::Tensor(tensor(put, dims)?)),
        )];
        let roles: Vec<Roles> = (at.iter())
            .map(|&at| Roles::from([(HERE.to_string(), vec![at])]))
            .collect();
        let again;
        let base = match &batch.tape {
            Some(tape) => tape,
            None => {
                again = Batch::record(model, &batch.prompts)?;
                &again
            }
        };
        let request = TapeRequest {
            edits: &edits,
            roles: &roles,
            after: Some((at, base)),
            from: self.layer,
            ..TapeRequest::default()
        };
        let tape = Tape::record(model, &batch.prompts, &request)?;
        let targets: Vec<Target> = (batch.rows.iter())
            .map(|row| self.targets[row.pair].clone())
            .collect();
        let measured = Measured::new(model, &tape, Metric::LogitDiff, &targets, None)?;
        let rules = Rules::gradient();
        let rows = tape.rows.clone();
        let start = measured.gradient(model, &rules, &rows, &mut Nobody)?;
        let descent = Descent {
            model,
            tape: &tape,
            rules: &rules,
            rows: &rows,
        };
        let mut kept = Kept {
            hook: self.hook,
            gradient: None,
        };
        descent.down_to(self.layer, start, &mut kept)?;
        let gradient = kept.gradient.expect("the layer has the hook");
        let gradient = gradient.contiguous()?;
        let gradient = host(&gradient)?;
        let (mut loss, mut of_rows) = (0.0, DMatrix::zeros(n, width));
        for (i, row) in batch.rows.iter().enumerate() {
            // Towards the source: away from the answer where the clean run is changed.
            let sign = if row.side == SIDES[0] { -1.0 } else { 1.0 };
            let towards = sign * measured.values[i];
            loss += softplus(-towards);
            let slope = -sign * sigmoid(-towards);
            let first = rows.segments[i].start * width;
            for j in 0..width {
                of_rows[(i, j)] = slope * f64::from(gradient[first + j]);
            }
        }
        Ok((loss, of_rows))
    }

    /// The mean loss of all rows.
    fn loss(&self, basis: &DMatrix<f64>, mask: &[f64]) -> Result<f64> {
        let (mut sum, mut n) = (0.0, 0);
        for batch in self.batches {
            sum += self.slope(batch, basis, mask)?.loss;
            n += batch.rows.len();
        }
        Ok(sum / n.max(1) as f64)
    }

    /// Trains from a random start.
    pub fn train(
        &self,
        method: SubspaceMethod,
        dims: usize,
        training: Training,
        mut rng: ChaCha8Rng,
        progress: &dyn Progress,
    ) -> Result<Trained> {
        let width = self.values[0][0].len();
        let is_boundless = method == SubspaceMethod::BoundlessDas;
        let dims = match is_boundless {
            true => training.most_dims.min(width),
            false => dims,
        };
        let start = random(width, dims, &mut rng)
            .directions()
            .expect("it is drawn");
        let mut basis = DMatrix::from_fn(width, dims, |i, j| start[j][i]);
        let mut boundary = 0.5;
        let mut adam = Adam::new(width * dims);
        let mut of_boundary = Adam::new(1);
        let hard = |boundary: f64| -> Vec<f64> {
            let kept = (boundary * dims as f64).round() as usize;
            (0..dims)
                .map(|j| f64::from(u8::from(!is_boundless || j < kept)))
                .collect()
        };
        let before = self.loss(&basis, &hard(boundary))?;
        let hottest = (TEMPERATURES[0] * dims as f64 / width as f64).max(TEMPERATURES[1]);
        let mut order: Vec<usize> = Vec::new();
        for step in 0..training.steps {
            stop_if_asked(progress)?;
            if order.is_empty() {
                order = (0..self.batches.len()).collect();
                order.shuffle(&mut rng);
            }
            let batch = &self.batches[order.pop().expect("it was filled")];
            let share = step as f64 / (training.steps.max(2) - 1) as f64;
            let temperature = hottest + share * (TEMPERATURES[1] - hottest);
            let mask: Vec<f64> = match is_boundless {
                false => vec![1.0; dims],
                true => (0..dims)
                    .map(|j| sigmoid((boundary * dims as f64 - j as f64 - 0.5) / temperature))
                    .collect(),
            };
            let slope = self.slope(batch, &basis, &mask)?;
            let n = batch.rows.len() as f64;
            let rate = rate(step, training.steps);
            let mut moved: Vec<f64> = basis.iter().copied().collect();
            let slopes: Vec<f64> = slope.basis.iter().map(|x| x / n).collect();
            adam.step(&mut moved, &slopes, training.rate * rate);
            basis = orthonormal(DMatrix::from_vec(width, dims, moved)).0;
            if is_boundless {
                let edge = mask.iter().zip(&slope.mask);
                let edge: f64 = edge.map(|(m, slope)| m * (1.0 - m) * slope / n).sum();
                // The share of dimensions exchanged is added to the loss.
                let slope = 1.0 + edge * dims as f64 / temperature;
                let mut at = [boundary];
                of_boundary.step(&mut at, &[slope], BOUNDARY_RATE * rate);
                boundary = at[0].clamp(0.0, 1.0);
            }
        }
        let mask = hard(boundary);
        let after = self.loss(&basis, &mask)?;
        let kept = mask.iter().filter(|&&mask| mask > 0.0).count();
        Ok(Trained {
            space: Subspace::of(basis.columns(0, kept).into_owned()),
            before,
            after,
        })
    }
}

/// `ln(1 + e^x)`.
fn softplus(x: f64) -> f64 {
    x.max(0.0) + (-x.abs()).exp().ln_1p()
}

/// The share of the highest rate at a step: up over a tenth of the steps, and down to zero over the others.
fn rate(step: usize, steps: usize) -> f64 {
    let warm = (steps as f64 / 10.0).ceil();
    let step = step as f64;
    match step < warm {
        true => (step + 1.0) / warm,
        false => (steps as f64 - step) / (steps as f64 - warm).max(1.0),
    }
}

/// Adam (Kingma and Ba 2015, arXiv 1412.6980), with its own defaults.
struct Adam {
    mean: Vec<f64>,
    square: Vec<f64>,
    steps: i32,
}

impl Adam {
    fn new(n: usize) -> Self {
        Adam {
            mean: vec![0.0; n],
            square: vec![0.0; n],
            steps: 0,
        }
    }

    fn step(&mut self, at: &mut [f64], slope: &[f64], rate: f64) {
        let [first, second] = [0.9f64, 0.999];
        self.steps += 1;
        let [mean_of, square_of] = [first, second].map(|decay| 1.0 - decay.powi(self.steps));
        for (i, slope) in slope.iter().enumerate() {
            self.mean[i] = first * self.mean[i] + (1.0 - first) * slope;
            self.square[i] = second * self.square[i] + (1.0 - second) * slope * slope;
            let size = (self.square[i] / square_of).sqrt() + 1e-8;
            at[i] -= rate * self.mean[i] / mean_of / size;
        }
    }
}

/// The gradient at one hook.
struct Kept {
    hook: Hook,
    gradient: Option<Tensor>,
}

impl Probe for Kept {
    fn wants(&self, hook: Hook) -> bool {
        hook == self.hook
    }

    fn at(&mut self, _: Hook, gradient: &Tensor, _: &Rows) -> Result<()> {
        self.gradient = Some(gradient.clone());
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_rise_and_fall() {
        let all: Vec<f64> = (0..20).map(|step| rate(step, 20)).collect();
        assert_eq!(all[..3], [0.5, 1.0, 1.0]);
        assert!((all[19] - 1.0 / 18.0).abs() < 1e-12);
        assert_eq!(rate(0, 1), 1.0);
    }

    #[test]
    fn adam_goes_down_by_its_rate() {
        let mut adam = Adam::new(2);
        let mut at = [1.0, 1.0];
        adam.step(&mut at, &[3.0, -0.5], 0.1);
        assert!(
            (at[0] - 0.9).abs() < 1e-6 && (at[1] - 1.1).abs() < 1e-6,
            "{at:?}"
        );
    }

    #[test]
    fn the_loss_is_that_of_two_labels() {
        assert!((softplus(0.0) - 2f64.ln()).abs() < 1e-12);
        assert!((softplus(-50.0) - (-50f64).exp()).abs() < 1e-30);
        assert!((softplus(800.0) - 800.0).abs() < 1e-12);
    }
}
