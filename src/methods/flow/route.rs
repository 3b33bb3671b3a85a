//! The route of information to one state: from it downwards, along the parts that matter.

use std::collections::BTreeMap;

use super::neurons::Neurons;
use super::parts::{Attention, Importance, Sum};
use crate::error::Result;
use crate::hooks::{Hook, Kind, Ln, StreamNode};
use crate::methods::captured::captured;
use crate::model::Model;
use crate::nn::host::to_host;
use crate::run::Cache;
use crate::spec::{Block, Mlp, ModelSpec};

/// What is followed.
#[derive(Debug, Clone, Copy, PartialEq, serde::Serialize)]
pub struct RouteSettings {
    /// A part is followed if its share is larger.
    pub threshold: f64,
    /// Shares of the parts that are followed are scaled to sum to 1.
    pub renormalise: bool,
    /// MLPs that are followed are taken apart by neuron.
    pub neurons: bool,
}

impl Default for RouteSettings {
    fn default() -> Self {
        RouteSettings {
            threshold: 0.04,
            renormalise: false,
            neurons: false,
        }
    }
}

/// By what a part of a state came there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Via {
    Attention,
    Stream,
    Mlp,
    /// The biases of attention, which come from nowhere.
    Bias,
}

/// A part of a state that is followed.
#[derive(Debug, Clone, PartialEq)]
pub struct RouteEdge {
    /// Which step of the walk wrote it; see [`Step`].
    pub(super) step: usize,
    pub via: Via,
    /// `None` for what comes from nowhere.
    pub src: Option<StreamNode>,
    pub dst: StreamNode,
    pub importance: f64,
    /// The share of each head of an edge of attention.
    pub heads: Vec<f64>,
}

/// Everything that is followed from one state, what was written first standing first.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Route {
    pub edges: Vec<RouteEdge>,
    /// What each neuron brings in all, by layer: its share of what the MLP writes, times the share of that in the state. Only of
    /// layers whose MLP is followed, if neurons are asked for; what the MLP's bias brings is no neuron's.
    pub neurons: BTreeMap<usize, Vec<f64>>,
    /// States that were reached, the first one among them.
    pub nodes: Vec<StreamNode>,
    /// States that no part brought nearer to zero.
    pub unmixed: usize,
    /// Largest [`Importance::gap`] of a state that was reached.
    pub gap: f64,
}

/// How the stream goes from one state to the next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Step {
    pub layer: usize,
    pub attention: bool,
    pub mlp: bool,
}

impl Step {
    /// The steps of a model from below. A block whose attention and MLP read one stream is one step.
    pub fn all(spec: &ModelSpec) -> Vec<Step> {
        let step = |layer, attention, mlp| Step {
            layer,
            attention,
            mlp,
        };
        let of_layer = |layer: usize| match (spec.mlp, spec.block) {
            (Mlp::None, _) => vec![step(layer, true, false)],
            (_, Block::Sequential) => vec![step(layer, true, false), step(layer, false, true)],
            (_, Block::Parallel { .. }) => vec![step(layer, true, true)],
        };
        (0..spec.n_layers).flat_map(of_layer).collect()
    }

    /// The state that it starts from.
    pub fn src(&self, pos: usize) -> StreamNode {
        match self.attention {
            true => StreamNode::pre(self.layer, pos),
            false => StreamNode::mid(self.layer, pos),
        }
    }

    /// The state that it makes. What leaves a layer is called what enters the next one.
    pub fn dst(&self, spec: &ModelSpec, pos: usize) -> StreamNode {
        let is_whole = spec.mlp == Mlp::None || self.mlp;
        match (is_whole, self.layer + 1 == spec.n_layers) {
            (false, _) => StreamNode::mid(self.layer, pos),
            (true, true) => StreamNode::post(self.layer, pos),
            (true, false) => StreamNode::pre(self.layer + 1, pos),
        }
    }
}

/// The routes to the last state of some prompts at one position each.
/// # Shapes
/// `prompts [batch, pos]`, of one length; a start for each.
/// # Errors
/// [`Error::Invalid`](crate::Error::Invalid) for an encoder; those of a run.
/// # Source
/// Ferrando and Voita 2024, "Information Flow Routes", arXiv 2403.00824.
pub fn routes(
    model: &Model,
    prompts: &[Vec<u32>],
    starts: &[usize],
    settings: RouteSettings,
) -> Result<Vec<Route>> {
    model.spec.check_decoder("information flow")?;
    let cache = captured(model, prompts, &hooks(&model.spec, settings), &[])?;
    routes_of(model, &cache, starts, settings)
}

/// What routes are read from.
pub(super) fn hooks(spec: &ModelSpec, settings: RouteSettings) -> Vec<Hook> {
    let mut kinds = vec![
        Kind::ResidPre,
        Kind::ResidMid,
        Kind::V,
        Kind::Pattern,
        Kind::Scale(Ln::OnePost),
        Kind::MlpOut,
    ];
    if settings.neurons {
        kinds.extend([Kind::MlpPost, Kind::Scale(Ln::TwoPost)]);
    }
    let there = kinds.into_iter().filter(|kind| kind.absent(spec).is_none());
    let all = there.flat_map(|kind| (0..spec.n_layers).map(move |layer| Hook::at(kind, layer)));
    all.chain([Hook::at(Kind::ResidPost, spec.n_layers - 1)])
        .collect()
}

/// The same of what a run kept.
pub(super) fn routes_of(
    model: &Model,
    cache: &Cache,
    starts: &[usize],
    settings: RouteSettings,
) -> Result<Vec<Route>> {
    let spec = &model.spec;
    let steps = Step::all(spec);
    let mut routes = vec![Route::default(); starts.len()];
    let mut reached: Vec<Vec<usize>> = starts.iter().map(|&start| vec![start]).collect();
    for (n, step) in steps.iter().enumerate().rev() {
        let kept = Kept::of(cache, step)?;
        let neurons = match settings.neurons && step.mlp {
            true => Some(Neurons::of(model, cache, step.layer)?),
            false => None,
        };
        for (prompt, (route, reached)) in routes.iter_mut().zip(&mut reached).enumerate() {
            let found = kept.importances(model, step, prompt, reached)?;
            let mut below = Vec::new();
            for (&pos, shares) in reached.iter().zip(found) {
                route.nodes.push(step.dst(spec, pos));
                route.unmixed += usize::from(shares.unmixed);
                route.gap = route.gap.max(shares.gap);
                let followed = followed(step, n, spec, pos, &shares, settings);
                let through_mlp = followed.iter().find(|edge| edge.via == Via::Mlp);
                if let (Some(edge), Some(neurons)) = (through_mlp, &neurons) {
                    let shares = neurons.shares(prompt * cache.length + pos);
                    let all = route.neurons.entry(step.layer);
                    let all = all.or_insert_with(|| vec![0.0; shares.len()]);
                    for (sum, share) in all.iter_mut().zip(shares) {
                        *sum += edge.importance * share;
                    }
                }
                below.extend(followed.iter().filter_map(|edge| Some(edge.src?.pos())));
                route.edges.extend(followed);
            }
            below.sort_unstable();
            below.dedup();
            *reached = below;
        }
    }
    for (route, reached) in routes.iter_mut().zip(&reached) {
        let bottom = reached.iter().map(|&pos| steps[0].src(pos));
        route.nodes.extend(bottom);
        route.nodes.sort_unstable();
        route.edges.sort_by_key(|edge| (edge.dst, edge.src));
    }
    Ok(routes)
}

/// The parts of a state that are followed.
fn followed(
    step: &Step,
    n: usize,
    spec: &ModelSpec,
    pos: usize,
    shares: &Importance,
    settings: RouteSettings,
) -> Vec<RouteEdge> {
    let before = Some(step.src(pos));
    let dst = step.dst(spec, pos);
    let edge = |via, src, importance, heads: &[f64]| RouteEdge {
        step: n,
        via,
        src,
        dst,
        importance,
        heads: heads.to_vec(),
    };
    let by_source = shares.heads.chunks_exact(spec.n_heads).enumerate();
    let mut edges: Vec<RouteEdge> = by_source
        .map(|(source, heads)| {
            let sum = heads.iter().sum();
            edge(Via::Attention, Some(step.src(source)), sum, heads)
        })
        .collect();
    edges.push(edge(Via::Stream, before, shares.stream, &[]));
    edges.push(edge(Via::Mlp, before, shares.mlp, &[]));
    edges.push(edge(Via::Bias, None, shares.bias, &[]));
    edges.retain(|edge| edge.importance > settings.threshold);
    if settings.renormalise {
        let sum: f64 = edges.iter().map(|edge| edge.importance).sum();
        for edge in &mut edges {
            edge.importance /= sum;
            edge.heads.iter_mut().for_each(|share| *share /= sum);
        }
    }
    edges
}

/// What one step wrote and read, of all prompts.
struct Kept {
    length: usize,
    /// `[batch, pos, d_model]`
    dst: Vec<f32>,
    src: Vec<f32>,
    mlp_out: Vec<f32>,
    /// `[batch, n_heads, query, key]`
    pattern: Vec<f32>,
    /// `[batch, pos, n_kv_heads, d_head]`
    v: Vec<f32>,
    /// `[batch, pos]`, where a norm stands on attention's output.
    scale: Option<Vec<f32>>,
}

impl Kept {
    fn of(cache: &Cache, step: &Step) -> Result<Self> {
        let read = |hook: Hook| match cache.contains(hook) {
            true => to_host(&cache.get(hook)?),
            false => Ok(Vec::new()),
        };
        let at = |kind| read(Hook::at(kind, step.layer));
        // The state that a step makes is the one that the next step starts from.
        let next = Hook::at(Kind::ResidPre, step.layer + 1);
        let whole = || match cache.contains(next) {
            true => read(next),
            false => at(Kind::ResidPost),
        };
        let mid = Hook::at(Kind::ResidMid, step.layer);
        let has_mid = cache.contains(mid);
        let of_attention = |kind| {
            if step.attention {
                at(kind)
            } else {
                Ok(Vec::new())
            }
        };
        let scale = of_attention(Kind::Scale(Ln::OnePost))?;
        Ok(Kept {
            length: cache.length,
            dst: if has_mid && step.attention {
                read(mid)?
            } else {
                whole()?
            },
            src: if step.attention {
                at(Kind::ResidPre)?
            } else {
                read(mid)?
            },
            mlp_out: if step.mlp {
                at(Kind::MlpOut)?
            } else {
                Vec::new()
            },
            pattern: of_attention(Kind::Pattern)?,
            v: of_attention(Kind::V)?,
            scale: (!scale.is_empty()).then_some(scale),
        })
    }

    /// The shares of the parts of the states that a step made at some positions of a prompt.
    fn importances(
        &self,
        model: &Model,
        step: &Step,
        prompt: usize,
        positions: &[usize],
    ) -> Result<Vec<Importance>> {
        let (spec, length) = (&model.spec, self.length);
        let row = |pos: usize| prompt * length + pos;
        let d = spec.d_model;
        let mut sums: Vec<Sum> = positions
            .iter()
            .map(|&pos| {
                let mut sum = Sum::new(&self.dst[row(pos) * d..][..d]);
                sum.importance.stream = sum.take(&self.src[row(pos) * d..][..d], 1.0);
                if step.mlp {
                    sum.importance.mlp = sum.take(&self.mlp_out[row(pos) * d..][..d], 1.0);
                }
                sum
            })
            .collect();
        if step.attention {
            let of_prompt = |size: usize| prompt * size..(prompt + 1) * size;
            let attention = Attention {
                model,
                layer: step.layer,
                length,
                pattern: &self.pattern[of_prompt(spec.n_heads * length * length)],
                v: &self.v[of_prompt(length * spec.n_kv_heads * spec.d_head)],
                scale: self.scale.as_ref().map(|scale| &scale[of_prompt(length)]),
            };
            let mut states: Vec<(usize, &mut Sum)> =
                positions.iter().copied().zip(&mut sums).collect();
            attention.take_from(&mut states)?;
        }
        Ok(sums.into_iter().map(Sum::finish).collect())
    }
}
