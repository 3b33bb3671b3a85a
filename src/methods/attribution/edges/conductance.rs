//! CEAP: an edge's share of the change along the way from one run to the other.
//!
//! Between two points of the line what `u` writes moves by a step, and the gradient at the stream that `v` reads says what the step
//! does: `sum_k <z_u(k-1) - z_u(k), g_v>`, from the corrupted run (0) to the clean one (`steps`). EAP-IG averages the gradient and
//! multiplies by the whole difference; here a gradient counts only with what moves where it is taken, so a source whose value
//! returns to where it was is not credited with gradients met on the way. All edges that cross one layer's border sum to the whole
//! change of the metric, up to the error of the quadrature.
//!
//! By the trapezoid rule a step takes the mean of the gradients at its ends. Summed by gradient rather than by step, an inner
//! point counts with half of what moves over the two steps that it lies between, so each gradient is spread and multiplied once.
//!
//! Source: Wu, Tonin and Cevher 2026, arXiv 2606.16920. The full text was not at hand: the form is the conductance of nodes
//! (Dhamdhere et al. 2018) with the gradient of the reader in place of the node's own.

use std::rc::Rc;

use super::contract::{Edges, Written};
use super::read;
use super::readers::Sums;
use crate::error::Result;
use crate::hooks::Hook;
use crate::methods::attribution::StepRule;
use crate::run::tape::Tape;

impl<'a> Edges<'a> {
    pub fn conductance(&self, steps: usize, rule: StepRule, scores: &mut [Vec<f32>]) -> Result<()> {
        let runs = self.runs;
        let read = read(&runs.model.spec);
        let keep: Vec<Hook> = [&read, self.hooks].concat();
        // What was written at the point before, and a gradient that waits for what is written at the next point, with what it is
        // to be the difference from.
        let mut before: Option<Rc<Written>> = None;
        let mut waiting: Option<(Sums<'a>, Rc<Written>)> = None;
        for k in 0..=steps {
            let tape = runs.at(k as f32 / steps as f32, &keep)?;
            let here = Rc::new(Written::on(&tape, runs)?);
            if let Some((gradient, from)) = waiting.take() {
                self.step(&gradient, &from, &here, scores)?;
            }
            let is_last = k == steps;
            match rule {
                StepRule::Trapezoid => {
                    let gradient = self.gradient(&tape, 0.5)?;
                    let from = before.as_ref().unwrap_or(&here);
                    if is_last {
                        self.step(&gradient, from, &here, scores)?;
                    } else {
                        waiting = Some((gradient, Rc::clone(from)));
                    }
                }
                StepRule::Left if !is_last => {
                    waiting = Some((self.gradient(&tape, 1.0)?, Rc::clone(&here)));
                }
                StepRule::Midpoint if !is_last => {
                    drop(tape);
                    let between = runs.at((k as f32 + 0.5) / steps as f32, &read)?;
                    waiting = Some((self.gradient(&between, 1.0)?, Rc::clone(&here)));
                }
                StepRule::Left | StepRule::Midpoint => {}
                StepRule::Right => {
                    if let Some(from) = &before {
                        self.step(&self.gradient(&tape, 1.0)?, from, &here, scores)?;
                    }
                }
            }
            before = Some(here);
        }
        Ok(())
    }

    fn gradient(&self, tape: &Tape, share: f32) -> Result<Sums<'a>> {
        let mut sums = Sums::new(self.runs, self.config)?;
        sums.add(tape, 0, share)?;
        Ok(sums)
    }

    /// Adds what moving from one point's values to another's does by one gradient. The corrupted run is where the line begins, and
    /// scores are what going there would do.
    fn step(
        &self,
        gradient: &Sums<'_>,
        from: &Written,
        to: &Written,
        scores: &mut [Vec<f32>],
    ) -> Result<()> {
        self.contract(gradient, &from.beyond(to), 0..self.graph.n_src(), scores)
    }
}
