//! The estimates of one batch: at a point, averaged along a line, with GradDrop, or as conductance.

use std::borrow::Cow;
use std::collections::HashMap;

use candle_core::Tensor;

use super::super::GradientPath;
use super::super::inner::{Inner, NodeProbe};
use super::super::runs::{Gradients, Runs, at_rows};
use super::config::NodeAttributionConfig;
use super::places::{Estimates, Places};
use crate::error::Result;
use crate::hooks::{Hook, Kind};
use crate::nn::host::on_host;
use crate::run::tape::Tape;
use crate::scores::Direction;

pub(super) fn estimate(
    runs: &Runs<'_>,
    places: &Places,
    config: &NodeAttributionConfig,
    hooks: &[Hook],
) -> Result<Estimates> {
    if config.conductance {
        return conductance(runs, places, config, hooks);
    }
    let base_is_clean = config.patch.direction != Direction::Denoise;
    let points = config.path.points(base_is_clean);
    let mut total = places.nothing(runs.pairs.len());
    for &(point, share) in &points {
        let tape = runs.at(point, &[])?;
        let mut probe = NodeProbe::new(runs, places, config.qk_fix);
        probe.streams = config.grad_drop.then(Vec::new);
        runs.descend(&tape, &config.rules, &mut probe)?;
        if let Some(streams) = probe.streams.take() {
            return grad_drop(runs, places, config, probe.estimates, streams);
        }
        add(&mut total, &probe.estimates, f64::from(share));
    }
    Ok(total)
}

fn add(total: &mut Estimates, more: &Estimates, factor: f64) {
    for (total, more) in total.iter_mut().zip(more) {
        for (total, more) in total.iter_mut().zip(more) {
            *total += factor * more;
        }
    }
}

/// The mean over layers of the estimate's size when that layer's writes are held fixed.
///
/// Above the layer that is stopped nothing differs from the plain pass, so pass `l` begins at layer `l`: about half a backward
/// pass each.
fn grad_drop(
    runs: &Runs<'_>,
    places: &Places,
    config: &NodeAttributionConfig,
    plain: Estimates,
    streams: Vec<(usize, Tensor)>,
) -> Result<Estimates> {
    let n_layers = runs.model.spec.n_layers;
    if n_layers == 1 {
        return Ok(plain
            .into_iter()
            .map(|of| of.into_iter().map(f64::abs).collect())
            .collect());
    }
    let mut total = places.nothing(runs.pairs.len());
    for (layer, gradient) in streams {
        let rules = config.rules.clone().stopping([layer]);
        let mut probe = NodeProbe::new(runs, places, config.qk_fix);
        for (hook, cells) in &places.of_hook {
            if hook.layer.is_some_and(|of| of > layer) {
                for (_, range) in cells {
                    for (estimates, plain) in probe.estimates.iter_mut().zip(&plain) {
                        estimates[range.clone()].copy_from_slice(&plain[range.clone()]);
                    }
                }
            }
        }
        runs.descent(&runs.base, &rules)
            .below(layer + 1, gradient, &mut probe)?;
        for (total, estimates) in total.iter_mut().zip(&probe.estimates) {
            for (total, estimate) in total.iter_mut().zip(estimates) {
                *total += estimate.abs();
            }
        }
    }
    for (hook, cells) in &places.of_hook {
        // What stands in a layer is silent when that layer is stopped; what stands between layers never is.
        let passes = if is_between_layers(hook.kind) {
            n_layers
        } else {
            n_layers - 1
        };
        for (_, range) in cells {
            for total in &mut total {
                let sizes = &mut total[range.clone()];
                sizes.iter_mut().for_each(|size| *size /= passes as f64);
            }
        }
    }
    Ok(total)
}

fn is_between_layers(kind: Kind) -> bool {
    matches!(
        kind,
        Kind::Embed | Kind::PosEmbed | Kind::ResidPre | Kind::ResidMid | Kind::ResidPost
    )
}

/// Sums gradient times step along the path from the base run to the other, by the trapezoid rule.
fn conductance(
    runs: &Runs<'_>,
    places: &Places,
    config: &NodeAttributionConfig,
    hooks: &[Hook],
) -> Result<Estimates> {
    let steps = match config.path {
        GradientPath::Inputs { steps, .. } => steps,
        GradientPath::Base | GradientPath::Ends => 1,
    };
    let mut total = places.nothing(runs.pairs.len());
    let mut before: Option<(Cow<'_, Tape>, HashMap<Hook, Tensor>)> = None;
    for step in 0..=steps {
        let point = 1.0 - step as f32 / steps as f32;
        let tape = runs.at(point, hooks)?;
        let mut gradients = Gradients::at(hooks.iter().copied());
        runs.descend(&tape, &config.rules, &mut gradients)?;
        if let Some((earlier, slopes)) = before.take() {
            for (&hook, cells) in &places.of_hook {
                let values =
                    |tape: &Tape| -> Result<Tensor> { on_host(&at_rows(tape, hook, &runs.rows)?) };
                let moved = (values(&tape)? - values(&earlier)?)?;
                let slope = ((&slopes[&hook] + &gradients.kept[&hook])? * 0.5)?;
                let inner = Inner::new(runs, hook, &moved, &slope)?;
                inner.add_to(&mut total, runs, places, cells);
            }
        }
        before = Some((tape, gradients.kept));
    }
    Ok(total)
}
