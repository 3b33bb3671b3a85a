//! The two runs of a batch of pairs, and where the values come from that are written into one of them.

use candle_core::Tensor;

use super::{Contrast, Patching};
use crate::error::{Error, Result};
use crate::hooks::{Edit, Hook, Kind, Op};
use crate::methods::activation_patching::PatchSource;
use crate::methods::method::targets_of;
use crate::methods::sites::roles_with_other;
use crate::metric::Target;
use crate::model::Model;
use crate::run::{BaseRun, Cache, Logits, Readout, Request, Roles, Source, Sources, run};
use crate::scores::Direction;
use crate::task::Pair;

impl Patching<'_> {
    pub(super) fn hooks(&self) -> Vec<Hook> {
        let layers = |&kind: &Kind| -> Vec<Hook> {
            if kind.per_layer() {
                let layers = 0..self.model.spec.n_layers;
                layers.map(|layer| Hook::at(kind, layer)).collect()
            } else {
                vec![Hook::global(kind)]
            }
        };
        self.kinds.iter().flat_map(layers).collect()
    }

    /// How many copies of each prompt a run holds: one for each draw of noise.
    pub(super) fn copies(&self) -> usize {
        self.config.noise.as_ref().map_or(1, |noise| noise.samples)
    }

    /// The run that is changed is the clean one.
    pub(super) fn base_is_clean(&self) -> bool {
        self.config.direction != Direction::Denoise
    }

    /// Roles of a pair in one of its prompts.
    fn roles(pair: &Pair, clean: bool) -> Roles {
        if clean {
            roles_with_other(&pair.roles, pair.clean.len())
        } else {
            roles_with_other(pair.corrupted_roles(), pair.corrupted.len())
        }
    }

    /// The model whose runs give the values that are written.
    pub(super) fn source_model(&self) -> Result<&Model> {
        match &self.config.source_model {
            Some(other) => other.load(),
            None => Ok(self.model),
        }
    }

    /// One of a batch's two runs: its prompts, roles, and the noise where it is this run that noise corrupts.
    pub(super) fn one_run(&self, batch: &[usize], clean: bool) -> Result<BaseRun> {
        let (mut prompts, mut roles, mut edits) = (Vec::new(), Vec::new(), Vec::new());
        for pair in self.pairs(batch) {
            let as_clean = clean || self.config.noise.is_some();
            let prompt = if as_clean {
                &pair.clean
            } else {
                &pair.corrupted
            };
            prompts.extend(std::iter::repeat_n(prompt.clone(), self.copies()));
            roles.extend(std::iter::repeat_n(
                Self::roles(pair, as_clean),
                self.copies(),
            ));
            if let Some(noise) = self.config.noise.as_ref().filter(|_| !clean) {
                let seed = self.config.seed(self.task);
                edits.push(noise.edit(self.model, pair, self.sigma, seed)?);
            }
        }
        let sources = Sources::default();
        BaseRun::new(self.model, prompts, roles, edits, sources, &self.kinds)
    }

    /// What is read in each prompt of a batch's runs.
    pub(super) fn targets(&self, batch: &[usize]) -> Vec<Target> {
        let targets = targets_of(&self.pairs(batch)).into_iter();
        targets
            .flat_map(|target| std::iter::repeat_n(target, self.copies()))
            .collect()
    }

    /// Both runs of a batch, and what is written into one of them.
    pub(in crate::methods) fn contrast(&self, batch: &[usize]) -> Result<Contrast> {
        let base = self.one_run(batch, self.base_is_clean())?;
        let other = self.one_run(batch, !self.base_is_clean())?;
        let targets = self.targets(batch);
        let clean_run = if self.base_is_clean() { &base } else { &other };
        let reference = if self.metric.needs_reference() {
            Some(clean_run.logits(self.model, &targets)?)
        } else {
            None
        };
        let readout = Readout {
            metric: self.metric,
            targets,
            reference,
        };
        let judged = clean_run.judge(self.model, &readout.targets)?;
        let base_metric = base.metric(self.model, &readout)?;
        let other_metric = other.metric(self.model, &readout)?;
        let (sources, op) = self.sources(batch, &base, &other)?;
        Ok(Contrast {
            base,
            readout,
            base_metric,
            other_metric,
            judged,
            sources,
            op,
        })
    }

    /// Where the written values come from, and the edit that writes them.
    fn sources(&self, batch: &[usize], base: &BaseRun, other: &BaseRun) -> Result<(Sources, Op)> {
        let source = match self.config.source {
            PatchSource::Zero => return Ok((Sources::default(), Op::Zero)),
            PatchSource::Scale(factor) => return Ok((Sources::default(), Op::Scale(factor))),
            PatchSource::Block => return Ok((Sources::default(), Op::Block)),
            PatchSource::MeanRole => {
                let means = self.by_role.as_ref().expect("taken when the run began");
                let source = means.source(&self.model.spec, &self.pairs(batch))?;
                return Ok((Sources::default().with("mean", source), Op::Mean));
            }
            PatchSource::Mean | PatchSource::MeanAll => {
                let pair = &self.task.pairs()[batch[0]];
                let mean = self.means.of(pair).cloned().ok_or_else(|| {
                    Error::invalid("no reference prompt has this template and length")
                })?;
                return Ok((Sources::default().with("mean", mean), Op::Mean));
            }
            PatchSource::Pair if other.length != base.length => {
                Source::run(self.aligned_by_role(base, other)?)?
            }
            PatchSource::Pair
                if self.config.source_model.is_none()
                    && self.hooks().iter().all(|&hook| other.keeps(hook)) =>
            {
                other.source()?
            }
            PatchSource::Same => Source::run(self.captured(&base.prompts, &[], &[])?)?,
            PatchSource::Pair => {
                Source::run(self.captured(&other.prompts, &other.roles, &other.edits)?)?
            }
            PatchSource::Resample => {
                let prompts: Vec<_> = (batch.iter())
                    .map(|&pair| self.task.pairs()[self.donors[pair]].clean.clone())
                    .collect();
                Source::run(self.captured(&prompts, &[], &[])?)?
            }
        };
        let name = match (self.config.source, self.config.direction) {
            (PatchSource::Resample, _) => "resample",
            (PatchSource::Same, _) => "same",
            (_, Direction::Denoise) => "clean",
            _ => "corrupted",
        };
        let sources = Sources::default().with(name, source);
        Ok((sources, Op::FromRun(name.into())))
    }

    fn captured(&self, prompts: &[Vec<u32>], roles: &[Roles], edits: &[Edit]) -> Result<Cache> {
        let hooks = self.hooks();
        let request = Request {
            edits,
            capture: &hooks,
            logits: Logits::None,
            roles,
            ..Request::default()
        };
        Ok(run(self.source_model()?, prompts, &request)?.cache)
    }

    /// The other run's values where the base run has the same roles: the n-th token of a role takes that of the same role.
    /// Positions without a counterpart are of no cell's.
    fn aligned_by_role(&self, base: &BaseRun, other: &BaseRun) -> Result<Cache> {
        let whole = self.captured(&other.prompts, &other.roles, &other.edits)?;
        let mut rows = vec![0u32; base.prompts.len() * base.length];
        for (i, (here, there)) in base.roles.iter().zip(&other.roles).enumerate() {
            for (role, at) in here {
                let from = there.get(role).map(Vec::as_slice).unwrap_or_default();
                for (to, from) in at.iter().zip(from) {
                    rows[i * base.length + to] = (i * other.length + from) as u32;
                }
            }
        }
        let mut cache = Cache::new(&self.model.spec, base.prompts.len(), base.length);
        for hook in self.hooks() {
            let packed = whole.packed(hook)?;
            let index = Tensor::new(rows.as_slice(), packed.device())?;
            cache.insert(hook, packed.index_select(&index, 0)?);
        }
        Ok(cache)
    }
}
