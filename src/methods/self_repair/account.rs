//! The account of one ablated part: its direct change, what every later part writes more, and the change of the whole logit,
//! all read off streams with the clean run's own reader.

use std::collections::BTreeMap;

use candle_core::{DType, Device, Tensor};

use super::config::{RepairParts, RepairTarget};
use super::effects::{Effects, Later, Measure, Removed};
use super::parts::{PromptEnd, Repair};
use crate::error::Result;
use crate::hooks::{Edit, Hook, Kind, Ln, Op, Pos, Site, Value};
use crate::methods::logits::dla::head_readers;
use crate::methods::logits::readout::{DirectTarget, Ends, every_layer, rowwise_dot};
use crate::methods::method::pairs_of;
use crate::metric::{Judgement, Metric, Target};
use crate::nn::embed::unembed;
use crate::nn::host::to_host;
use crate::nn::norm;
use crate::run::{
    BaseRun, Captured, Quiet, Readout, Sources, SweepOptions, Variant, sweep_with_capture,
};
use crate::spec::NormPlacement;
use crate::task::Pair;

/// What the parts of a clean batch contribute, and what reads them.
pub(super) struct CleanRun<'a> {
    repair: &'a Repair<'a>,
    base: BaseRun,
    pub judged: Vec<Judgement>,
    /// Of each prompt: what reads a contribution off a part of the stream.
    readers: Vec<Vec<f32>>,
    /// The same for each layer and prompt, of the heads' z: `[n_heads * d_head]`. Only where heads are told apart.
    head_readers: Vec<Vec<Vec<f32>>>,
    /// The clean final scale of each prompt.
    scales: Vec<f64>,
    /// The scale of each layer's post-norm on attention, where there is one.
    post_scales: Vec<Option<Vec<f32>>>,
    /// The final stream's read-out.
    total: Vec<f64>,
    attn: Vec<Vec<f64>>,
    mlp: Vec<Vec<f64>>,
    /// `[layer][prompt][head]`
    heads: Vec<Vec<Vec<f64>>>,
}

impl<'a> CleanRun<'a> {
    pub fn new(repair: &'a Repair<'a>, items: &[usize]) -> Result<Self> {
        let (model, spec) = (repair.on.model, repair.spec());
        let prompts = repair.prompts(items);
        let mut capture = [
            every_layer(model, Kind::AttnOut),
            every_layer(model, Kind::MlpOut),
        ]
        .concat();
        if repair.by_head() {
            capture.extend(every_layer(model, Kind::Z));
            capture.extend(every_layer(model, Kind::Scale(Ln::OnePost)));
        }
        let own = pairs_of(repair.on.task, items);
        let mut ends = Ends::keeping(model, &own, &capture)?;
        let mut pairs: Vec<Pair> = own.into_iter().cloned().collect();
        let target = match &repair.config.target {
            RepairTarget::Of(target) => target.clone(),
            RepairTarget::Top => {
                for (pair, token) in pairs.iter_mut().zip(top_tokens(&ends)?) {
                    pair.target.answers = vec![token];
                }
                DirectTarget::Centred
            }
        };
        let readout = ends.readout(&target, &pairs.iter().collect::<Vec<_>>())?;
        let reader = &readout.reader;
        let last = Hook::at(Kind::ResidPost, spec.n_layers - 1);
        let (roles, edits) = (Vec::new(), Vec::new());
        let starts = [repair.config.kind()];
        let base = BaseRun::new(model, prompts, roles, edits, Sources::default(), &starts)?;
        let targets = items
            .iter()
            .map(|&pair| repair.on.task.pairs()[pair].target.clone());
        let mut clean = CleanRun {
            repair,
            judged: base.judge(model, &targets.collect::<Vec<_>>())?,
            base,
            readers: reader.to_vec2()?,
            head_readers: Vec::new(),
            scales: ends.scale.flatten_all()?.to_dtype(DType::F64)?.to_vec1()?,
            post_scales: Vec::new(),
            total: rowwise_dot(&ends.at_end(last)?, reader)?,
            attn: Vec::new(),
            mlp: Vec::new(),
            heads: Vec::new(),
        };
        for layer in 0..spec.n_layers {
            let attn = ends.at_end(Hook::at(Kind::AttnOut, layer))?;
            clean.attn.push(rowwise_dot(&attn, reader)?);
            if repair.has_mlp() {
                let mlp = ends.at_end(Hook::at(Kind::MlpOut, layer))?;
                clean.mlp.push(rowwise_dot(&mlp, reader)?);
            }
            if repair.by_head() {
                let readers = head_readers(&mut ends, reader, layer)?; // [batch, n_heads, d_head]
                let z = ends.at_end(Hook::at(Kind::Z, layer))?;
                let shares = (z * &readers)?.to_dtype(DType::F64)?.sum(2)?; // [batch, n_heads]
                clean.heads.push(shares.to_vec2()?);
                clean.head_readers.push(readers.flatten_from(1)?.to_vec2()?);
                let post = Hook::at(Kind::Scale(Ln::OnePost), layer);
                clean.post_scales.push(match post.kind.absent(spec) {
                    Some(_) => None,
                    None => Some(to_host(&ends.at_end(post)?)?),
                });
            }
        }
        Ok(clean)
    }

    /// The values of one part's rows for each prompt, averaged over donors.
    pub fn without(
        &self,
        part: Removed,
        items: &[usize],
        ends: &BTreeMap<usize, PromptEnd>,
    ) -> Result<Vec<Vec<f64>>> {
        let (repair, spec) = (self.repair, self.repair.spec());
        let hook = Hook::at(repair.config.kind(), part.layer);
        let mut site = Site::all(hook).at_positions([Pos::FromEnd(1)]);
        if let Some(head) = part.head {
            site = site.heads([head]);
        }
        let mut variants = Vec::new();
        for (example, &pair) in items.iter().enumerate() {
            for donor in &repair.donors[pair] {
                let end = &ends[donor][part.layer];
                let value = match part.head {
                    Some(head) => end[head * spec.d_head..][..spec.d_head].to_vec(),
                    None => end.clone(),
                };
                let op = Op::Replace(Value::Vector(value));
                variants.push(Variant {
                    example,
                    edits: vec![Edit::new(site.clone(), op)],
                });
            }
        }
        let captured = self.captured(part, &variants)?;
        let later = repair.later(part);
        let mut effects = vec![Effects::default(); items.len()];
        let mut by_later = vec![vec![0.0; later.len()]; items.len()];
        for (index, variant) in variants.iter().enumerate() {
            let ablated = Ablated {
                clean: self,
                captured: &captured,
                index,
                example: variant.example,
            };
            effects[variant.example].add(&ablated.effects(part)?);
            for (sum, (_, later)) in by_later[variant.example].iter_mut().zip(&later) {
                *sum += ablated.change_of(*later)?;
            }
        }
        let rows = |(i, &pair): (usize, &usize)| {
            let n = repair.donors[pair].len();
            let mut values: Vec<f64> = Measure::ALL
                .iter()
                .map(|&measure| effects[i].mean(measure, n))
                .collect();
            values.extend(by_later[i].iter().map(|sum| sum / n as f64));
            values
        };
        Ok(items.iter().enumerate().map(rows).collect())
    }

    /// What the part and everything after it wrote in some variants.
    fn captured(&self, part: Removed, variants: &[Variant]) -> Result<Captured> {
        let (repair, spec) = (self.repair, self.repair.spec());
        let mut hooks = vec![Hook::at(Kind::ResidPost, spec.n_layers - 1)];
        for layer in part.layer..spec.n_layers {
            let mut kinds = vec![Kind::AttnOut, Kind::MlpOut];
            if repair.by_head() {
                kinds.extend([Kind::Z, Kind::Scale(Ln::OnePost)]);
            }
            kinds.retain(|kind| kind.absent(spec).is_none());
            hooks.extend(kinds.into_iter().map(|kind| Hook::at(kind, layer)));
        }
        // What is read here are streams: the sweep's own metric is the cheapest that there is.
        let unread = Target {
            answers: vec![0],
            wrong: vec![1],
            ..Target::default()
        };
        let readout = Readout {
            metric: Metric::LogitDiff,
            targets: vec![unread; self.base.prompts.len()],
            reference: None,
        };
        let options = SweepOptions {
            memory: repair.running.memory_now(),
            ..SweepOptions::default()
        };
        let (_, captured) = sweep_with_capture(
            repair.on.model,
            &self.base,
            variants,
            &Sources::default(),
            &readout,
            &hooks,
            &options,
            &Quiet,
        )?;
        Ok(captured)
    }
}

/// One variant, beside the clean run of its prompt.
struct Ablated<'a> {
    clean: &'a CleanRun<'a>,
    captured: &'a Captured,
    index: usize,
    example: usize,
}

impl Ablated<'_> {
    /// What this one variant loses without the part, and gains by others.
    fn effects(&self, part: Removed) -> Result<Effects> {
        let (clean, i) = (self.clean, self.example);
        let repair = clean.repair;
        let is_mlp = repair.config.parts == RepairParts::Mlp;
        let own = if is_mlp { &clean.mlp } else { &clean.attn };
        let direct = match part.head {
            Some(head) => clean.heads[part.layer][i][head],
            None => own[part.layer][i],
        };
        let own_kind = if is_mlp { Kind::MlpOut } else { Kind::AttnOut };
        let own_change = self.change(own_kind, part.layer, own[part.layer][i])?;
        let (mut by_attn, mut by_mlp) = (0.0, 0.0);
        for layer in part.layer..repair.spec().n_layers {
            if layer > part.layer {
                by_attn += self.change_of(Later::Attn(layer))?;
            }
            if repair.mlp_is_later(part, layer) {
                by_mlp += self.change_of(Later::Mlp(layer))?;
            }
        }
        let (total_frozen, total) = self.totals()?;
        Ok(Effects {
            total,
            total_frozen,
            direct,
            direct_ablated: direct + own_change,
            compensation_attn: by_attn,
            compensation_mlp: by_mlp,
        })
    }

    fn change_of(&self, later: Later) -> Result<f64> {
        let (clean, i) = (self.clean, self.example);
        match later {
            Later::Attn(layer) => self.change(Kind::AttnOut, layer, clean.attn[layer][i]),
            Later::Mlp(layer) => self.change(Kind::MlpOut, layer, clean.mlp[layer][i]),
            Later::Head(layer, head) => self.change_of_head(layer, head),
        }
    }

    /// The last position's row of a hook, where this variant carried it.
    fn end(&self, hook: Hook) -> Result<Option<Vec<f32>>> {
        let last = self.clean.base.length as u32 - 1;
        match self.captured.get(self.index, hook) {
            Some((positions, t)) if positions.last() == Some(&last) => {
                let row = t.narrow(0, positions.len() - 1, 1)?.contiguous()?;
                Ok(Some(to_host(&row)?))
            }
            _ => Ok(None),
        }
    }

    /// What a branch contributes more than in the clean run, at the clean scale.
    fn change(&self, kind: Kind, layer: usize, clean: f64) -> Result<f64> {
        let row = self.end(Hook::at(kind, layer))?;
        Ok(row.map_or(0.0, |row| {
            dot(&row, &self.clean.readers[self.example]) - clean
        }))
    }

    fn change_of_head(&self, layer: usize, head: usize) -> Result<f64> {
        let (clean, i) = (self.clean, self.example);
        let width = clean.repair.spec().d_head;
        let Some(z) = self.end(Hook::at(Kind::Z, layer))? else {
            return Ok(0.0);
        };
        let span = head * width..(head + 1) * width;
        let mut share = dot(&z[span.clone()], &clean.head_readers[layer][i][span]);
        if let Some(scales) = &clean.post_scales[layer]
            && let Some(scale) = self.end(Hook::at(Kind::Scale(Ln::OnePost), layer))?
        {
            share *= f64::from(scales[i]) / f64::from(scale[0]);
        }
        Ok(share - clean.heads[layer][i][head])
    }

    /// The change of the whole logit: with the clean run's final scale, and with its own.
    fn totals(&self) -> Result<(f64, f64)> {
        let (clean, i) = (self.clean, self.example);
        let spec = clean.repair.spec();
        let last = Hook::at(Kind::ResidPost, spec.n_layers - 1);
        let Some(stream) = self.end(last)? else {
            return Ok((0.0, 0.0));
        };
        let read = dot(&stream, &clean.readers[i]);
        let ratio = match spec.norm_placement {
            NormPlacement::None => 1.0,
            _ => {
                let width = stream.len();
                let stream = Tensor::from_vec(stream, (1, width), &Device::Cpu)?;
                let scale = norm::scale(&stream, spec.norm, spec.norm_eps)?;
                clean.scales[i] / f64::from(to_host(&scale)?[0])
            }
        };
        Ok((read - clean.total[i], read * ratio - clean.total[i]))
    }
}

/// The token with the highest logit of each prompt.
fn top_tokens(ends: &Ends<'_>) -> Result<Vec<u32>> {
    let normed = ends.normed.to_dtype(ends.model.dtype)?;
    let logits = unembed(&ends.model.spec, &ends.model.weights, &normed)?.to_dtype(DType::F32)?;
    Ok(logits.argmax(1)?.to_vec1()?)
}

fn dot(a: &[f32], b: &[f32]) -> f64 {
    a.iter()
        .zip(b)
        .map(|(&a, &b)| f64::from(a) * f64::from(b))
        .sum()
}
