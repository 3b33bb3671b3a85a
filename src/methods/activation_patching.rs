//! Activation patching: put one run's value at a site into another run, and see what the metric does.
//!
//! Denoising writes clean values into the corrupted run (is the site enough to restore the answer?), noising writes
//! corrupted values into the clean run (is it needed?); they are not mirror images of each other. With zeros, means or another
//! prompt's values as the source it is an ablation of the clean run. Every effect is exact: the engine recomputes everything
//! downstream of a site ([`crate::run::sweep`]).
//!
//! Sources: Vig et al. 2020; Meng et al. 2022; Zhang and Nanda 2024, "Towards best practices of activation patching".
//! Left out on purpose: path patching, which is a method of its own.

mod donors;
mod engine;
mod source_model;

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use serde_json::{Value, json};

pub(super) use engine::Patching;
pub use source_model::SourceModel;
pub(super) use source_model::{no_source_model, passes_for_values, read_weights};

use super::choice::{Heads, Layers};
use super::gaussian::GaussianNoise;
use super::measure::{Watch, measure};
use super::method::{Method, Needs, Preparation, Running, Subject};
use super::reference::ReferenceSet;
use super::sites::{Along, Extent, Sites};
use crate::error::{Error, Result};
use crate::hooks::{Kind, Site};
use crate::metric::Metric;
use crate::scores::{Cell, Direction, Scores, ScoresMeta};
use crate::spec::ModelSpec;
use crate::task::{Pair, Task};

/// What is written at a site.
#[derive(Debug, Clone, Copy, PartialEq, Default, serde::Serialize)]
pub enum PatchSource {
    /// The value in the pair's other run.
    #[default]
    Pair,
    /// The value in the run of the same prompt by another model ([`PatchConfig::source_model`]).
    Same,
    Zero,
    /// The mean over the reference prompts, per position within each template.
    Mean,
    /// The mean over the reference prompts for each role of the task; positions without a role share one mean.
    MeanRole,
    /// The mean over all positions of the reference prompts, one vector.
    MeanAll,
    /// The value in the clean run of another pair of the same template and length.
    Resample,
    /// The run's own value, times a factor.
    Scale(f32),
    /// No attention: scores at minus infinity, so that the softmax renormalises over the other keys.
    Block,
}

impl PatchSource {
    /// Whether values are means over reference prompts.
    pub fn is_mean(self) -> bool {
        matches!(
            self,
            PatchSource::Mean | PatchSource::MeanRole | PatchSource::MeanAll
        )
    }
}

impl fmt::Display for PatchSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            PatchSource::Pair => f.write_str("pair"),
            PatchSource::Same => f.write_str("same"),
            PatchSource::Zero => f.write_str("zero"),
            PatchSource::Mean => f.write_str("mean"),
            PatchSource::MeanRole => f.write_str("mean-role"),
            PatchSource::MeanAll => f.write_str("mean-all"),
            PatchSource::Resample => f.write_str("resample"),
            PatchSource::Scale(factor) => write!(f, "scale:{factor}"),
            PatchSource::Block => f.write_str("block"),
        }
    }
}

impl FromStr for PatchSource {
    type Err = Error;

    /// As it is printed.
    fn from_str(text: &str) -> Result<Self> {
        let refuse = |reason: &str| Error::Parse {
            what: "a source of values",
            text: text.into(),
            reason: reason.into(),
        };
        match text {
            "pair" => Ok(PatchSource::Pair),
            "same" => Ok(PatchSource::Same),
            "zero" => Ok(PatchSource::Zero),
            "mean" => Ok(PatchSource::Mean),
            "mean-role" => Ok(PatchSource::MeanRole),
            "mean-all" => Ok(PatchSource::MeanAll),
            "resample" => Ok(PatchSource::Resample),
            "block" => Ok(PatchSource::Block),
            _ => match text.split_once(':') {
                Some(("scale", factor)) => match factor.trim().parse::<f32>() {
                    Ok(factor) if factor.is_finite() => Ok(PatchSource::Scale(factor)),
                    _ => Err(refuse("the factor of `scale:0.5` is a finite number")),
                },
                _ if text == "scale" => Err(refuse("say by how much, such as `scale:0.5`")),
                _ => Err(refuse(
                    "it is `pair`, `same`, `zero`, `mean`, `mean-role`, `mean-all`, `resample`, `scale:X` or `block`",
                )),
            },
        }
    }
}

/// Sites that are patched together, as one row of the table.
#[derive(Debug, Clone, PartialEq)]
pub struct SiteSet {
    pub cell: Cell,
    pub sites: Vec<Site>,
}

/// What to patch, and how.
#[derive(Debug, Clone, PartialEq)]
pub struct PatchConfig {
    pub sites: Vec<Sites>,
    /// Sites patched together, besides those sweeps.
    pub sets: Vec<SiteSet>,
    /// Only these cells of the sweeps, where they are named.
    pub only: Option<Vec<Cell>>,
    /// The prompts that means are taken over: the clean ones of this task [default: the task's own corrupted prompts].
    pub reference: Option<Arc<Task>>,
    /// `Denoise` or `Noise` with [`PatchSource::Pair`], else `Ablate`.
    pub direction: Direction,
    pub source: PatchSource,
    /// The model whose runs the values are of [default: the model that is patched]. Clean and corrupted metric, and with them
    /// `normalised`, stay those of the model that is patched.
    pub source_model: Option<SourceModel>,
    /// Corrupt by noise on the clean prompt's embeddings instead of by the corrupted prompt.
    pub noise: Option<GaussianNoise>,
    /// [default: the task's]
    pub metric: Option<Metric>,
    /// Layers patched together, centred on the one reported. Never compare windowed with single-layer numbers.
    pub window: usize,
    /// Only these layers and heads, if any are named.
    pub layers: Layers,
    pub heads: Heads,
    /// Of donors and noise [default: the task's].
    pub seed: Option<u64>,
}

impl PatchConfig {
    /// Denoising of these sites; all else at its default.
    pub fn new(sites: Vec<Sites>) -> Self {
        PatchConfig {
            sites,
            sets: Vec::new(),
            only: None,
            reference: None,
            direction: Direction::Denoise,
            source: PatchSource::Pair,
            source_model: None,
            noise: None,
            metric: None,
            window: 1,
            layers: Layers::default(),
            heads: Heads::default(),
            seed: None,
        }
    }

    /// Denoising of sites as they are written: `resid_pre,z`.
    /// # Errors
    /// Those of [`parse_sites`](super::parse_sites).
    pub fn sites(text: &str) -> Result<Self> {
        Ok(PatchConfig::new(super::parse_sites(text)?))
    }

    pub(super) fn metric(&self, task: &Task) -> Metric {
        self.metric.unwrap_or(task.metric)
    }

    pub(super) fn seed(&self, task: &Task) -> u64 {
        self.seed.unwrap_or(task.seed)
    }

    fn check_direction(&self) -> Result<()> {
        let ablates = self.source != PatchSource::Pair;
        if self.source == PatchSource::Same
            && matches!(self.direction, Direction::Denoise | Direction::Noise)
        {
            return Err(Error::invalid(
                "another model's values on the same prompt are an ablation of the clean run, which has no direction: leave it out, or patch the \
                 other model's runs of the pair in (`PatchConfig::source = pair`)",
            ));
        }
        if ablates != (self.direction == Direction::Ablate) || self.direction == Direction::Direct {
            return Err(Error::invalid(
                "zero, mean, resample, a factor and blocked attention are ablations of the clean run (direction `ablate`, with a \
                 source such as `PatchConfig::source = zero`); the pair's other run is patched in by `denoise` or `noise`",
            ));
        }
        Ok(())
    }

    fn check_source_model(&self, spec: &ModelSpec, task: &Task) -> Result<()> {
        let Some(other) = &self.source_model else {
            return match self.source {
                PatchSource::Same => Err(no_source_model()),
                _ => Ok(()),
            };
        };
        let is_no_run = matches!(
            self.source,
            PatchSource::Zero | PatchSource::Scale(_) | PatchSource::Block
        );
        if is_no_run || self.noise.is_some() {
            return Err(Error::invalid(format!(
                "{} takes no values from another model; leave the source model out, or take the source `same`, `pair`, `resample` \
                 or a mean",
                match self.noise {
                    Some(_) => "Gaussian noise".to_string(),
                    None => format!("the source `{}`", self.source),
                }
            )));
        }
        other.check(spec, task)?;
        self.reference
            .as_ref()
            .map_or(Ok(()), |reference| other.check(spec, reference))
    }

    fn check_noise(&self, task: &Task) -> Result<()> {
        let Some(noise) = &self.noise else {
            return Ok(());
        };
        let ablates = self.source != PatchSource::Pair;
        if ablates || noise.samples == 0 || !noise.scale.is_finite() {
            return Err(Error::invalid(
                "Gaussian noise is a corruption for `denoise` and `noise`, with a finite scale and at least one sample",
            ));
        }
        let mut pairs = task.pairs().iter();
        pairs.try_for_each(|pair| noise.positions_in(pair).map(drop))
    }

    fn check_places(&self, spec: &ModelSpec, task: &Task) -> Result<()> {
        self.layers.check(spec)?;
        self.heads.check_layers(spec)?;
        self.sites
            .iter()
            .try_for_each(|sites| sites.check(spec, &self.heads))?;
        let has_heads = |sites: &Sites| sites.n_heads(spec) > 0;
        if !self.heads.0.is_empty() && !self.sites.is_empty() && !self.sites.iter().any(has_heads) {
            return Err(Error::invalid(format!(
                "`{}` has no heads to choose from; leave the heads out, or take a site such as `z`",
                self.sites[0]
            )));
        }
        if self.window == 0 || self.window > spec.n_layers {
            return Err(Error::invalid(format!(
                "a window takes 1 to {} layers, not {}",
                spec.n_layers, self.window
            )));
        }
        // A place that one prompt lacks is a mistake in the place: no pair is dropped without a word.
        for site in self.sets.iter().flat_map(|set| &set.sites) {
            site.check(spec)?;
            for pair in task.pairs() {
                let length = pair.clean.len();
                let placed = site.positions.resolve(length, &pair.roles);
                placed
                    .and_then(|_| site.keys.resolve(length, &pair.roles))
                    .map_err(|error| {
                        Error::invalid(format!("pair {} has no such place: {error}", pair.index))
                    })?;
            }
        }
        let of_sets = self.sets.iter().flat_map(|set| &set.sites);
        let set_kinds = of_sets.map(|site| site.hook.kind);
        let mut kinds = self.sites.iter().map(|sites| sites.kind).chain(set_kinds);
        if self.source == PatchSource::Block && kinds.any(|kind| kind != Kind::AttnScores) {
            return Err(Error::invalid(
                "attention is blocked at `attn_scores`, before the softmax, and nowhere else",
            ));
        }
        Ok(())
    }

    /// Pairs of unequal length align by role alone, where the two prompts have to align.
    fn check_lengths(&self, task: &Task) -> Result<()> {
        let Err(error) = task.check_aligned() else {
            return Ok(());
        };
        let extent = Extent::new(task, &self.layers, &self.heads);
        let by_role = |sites: &Sites| {
            let is_square = matches!(sites.kind, Kind::AttnScores | Kind::Pattern);
            sites.resolved(&extent) == Along::Role && !is_square
        };
        let is_lawful = match self.source {
            PatchSource::Pair => {
                self.noise.is_none() && self.sets.is_empty() && self.sites.iter().all(by_role)
            }
            // What is put in place is no matter of positions in the other prompt, and its run is for the metric alone.
            PatchSource::Zero
            | PatchSource::Scale(_)
            | PatchSource::MeanAll
            | PatchSource::Block => self.direction.base() == "clean" && self.source_model.is_none(),
            _ => false,
        };
        if is_lawful { Ok(()) } else { Err(error) }
    }

    /// The reference prompts have to align with the task's own where means are taken by position, and have its roles where they
    /// are taken by role.
    fn check_reference(&self, task: &Task) -> Result<()> {
        let reference = match &self.reference {
            None if self.source != PatchSource::MeanRole => return Ok(()),
            None => task,
            Some(reference) => reference,
        };
        let advice = "take means over all positions (`PatchConfig::source = mean-all`), or another reference";
        let is_like = |pair: &&Pair| {
            let same = |other: &Pair| {
                (other.template, other.clean.len()) == (pair.template, pair.clean.len())
            };
            !reference.pairs().iter().any(same)
        };
        match self.source {
            PatchSource::Mean => match task.pairs().iter().find(is_like) {
                None => Ok(()),
                Some(pair) => Err(Error::invalid(format!(
                    "pair {} is of template {} and has {} tokens, and no prompt of the reference task `{}` is like that, so \
                     positions do not align; take means by role (`PatchConfig::source = mean-role`), or {advice}",
                    pair.index,
                    pair.template,
                    pair.clean.len(),
                    reference.name
                ))),
            },
            PatchSource::MeanRole => ReferenceSet {
                task: reference,
                corrupted: self.reference.is_none(),
            }
            .check_roles(task),
            _ => Ok(()),
        }
    }
}

impl Method for PatchConfig {
    fn header(&self, task: &Task) -> ScoresMeta {
        let metric = self.metric(task);
        ScoresMeta::new(
            "activation_patching",
            metric,
            metric.unit(),
            self.direction,
            self.seed(task),
        )
    }

    fn settings(&self) -> Value {
        let mut settings = json!({
            "sites": self.sites.iter().map(Sites::to_string).collect::<Vec<_>>(),
            "sets": self.sets.iter().map(|set| set.sites.iter().map(Site::to_string).collect()).collect::<Vec<Vec<_>>>(),
            "reference": self.reference.as_ref().map(|task| (&task.name, task.token_hash())),
            "source": self.source,
            "noise": self.noise,
            "window": self.window,
            "layers": self.layers,
            "heads": self.heads,
        });
        if let Some(other) = &self.source_model {
            settings["source_model"] = other.settings();
        }
        settings
    }

    fn needs(&self, task: &Task) -> Needs {
        let by_role = self
            .sites
            .iter()
            .any(|sites| sites.along == Some(Along::Role));
        Needs {
            metric: Some(self.metric(task)),
            roles: self.source == PatchSource::MeanRole || by_role,
            whole_answers: true,
            ..Needs::default()
        }
    }

    fn check(&self, spec: &ModelSpec, task: &Task) -> Result<()> {
        if self.sites.is_empty() && self.sets.is_empty() {
            return Err(Error::invalid(
                "there is nothing to patch; name at least one site, such as `resid_pre`",
            ));
        }
        self.check_direction()?;
        self.check_source_model(spec, task)?;
        if matches!(self.source, PatchSource::Scale(factor) if !factor.is_finite()) {
            return Err(Error::invalid("the factor is not a finite number"));
        }
        self.check_places(spec, task)?;
        self.check_lengths(task)?;
        self.check_noise(task)?;
        self.check_reference(task)
    }

    fn load(&self) -> Result<()> {
        read_weights(self.source_model.as_ref())
    }

    fn prepare<'a>(&'a self, on: Subject<'a>, running: &'a Running) -> Preparation<'a> {
        Ok(Box::new(Patching::new(on, self.clone(), running)?))
    }
}

/// Patches every cell of every sweep in every pair: [`measure`] with the defaults of [`Running`].
/// # Units
/// `value` and `score`: the metric's.
/// # Errors
/// What cannot be run as asked, before anything runs.
pub fn activation_patching(on: Subject<'_>, config: &PatchConfig) -> Result<Scores> {
    measure(on, config, &Running::default(), &Watch::default())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sources_print_and_parse_back() {
        let all = [
            "pair",
            "same",
            "zero",
            "mean",
            "mean-role",
            "mean-all",
            "resample",
            "scale:0.49",
            "scale:-1",
            "block",
        ];
        for text in all {
            let source: PatchSource = text.parse().expect(text);
            assert_eq!(source.to_string(), text);
        }
        for text in ["", "scale", "scale:", "scale:nan", "corrupted"] {
            assert!(text.parse::<PatchSource>().is_err(), "{text}");
        }
    }
}
