//! The two runs of some pairs: the one that is changed, recorded for backward passes, and what is put in its place.

use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap, HashSet};

use candle_core::Tensor;

use super::setting::Setting;
use crate::error::{Error, Result};
use crate::hooks::{Edit, Hook, Kind, Ln, Op, Site, Value};
use crate::methods::PatchSource;
use crate::methods::captured::judged;
use crate::methods::method::{pairs_of, targets_of};
use crate::metric::{Judgement, Metric, Target};
use crate::model::{Model, ModelSpec};
use crate::nn::embed::unembed;
use crate::nn::host::{host, on_host, tensor, to_host};
use crate::nn::rules::Rules;
use crate::run::Source;
use crate::run::backward::{Descent, Probe};
use crate::run::forward::{as_logits, final_norm};
use crate::run::gradients::{Measured, Nobody};
use crate::run::rows::{Rows, regather};
use crate::run::tape::{Tape, TapeRequest};
use crate::scores::Direction;
use crate::task::Pair;

/// The runs of one batch of pairs.
pub(super) struct Runs<'a> {
    pub model: &'a Model,
    pub metric: Metric,
    pub pairs: Vec<&'a Pair>,
    pub targets: Vec<Target>,
    /// The clean run's logits, for metrics that compare with them.
    reference: Option<Vec<Vec<f32>>>,
    /// The run that is changed, every position of it.
    pub base: Tape,
    /// The pair's other run, from each pair's first different token on.
    pub other: Tape,
    source: PatchSource,
    /// What is put in place, where it is not the other run.
    put: Option<Source>,
    /// First position of each pair where something can differ.
    pub starts: Vec<usize>,
    /// The rows of `base` where something can differ.
    pub rows: Rows,
    memory: usize,
    /// The metric of each pair's two runs.
    pub clean: Vec<f64>,
    pub corrupted: Vec<f64>,
    /// How the model does on each clean prompt.
    pub judged: Vec<Judgement>,
}

impl<'a> Runs<'a> {
    pub fn record(
        setting: &Setting<'a>,
        batch: &[usize],
        means: &BTreeMap<(usize, usize), Source>,
        keep: &[Hook],
    ) -> Result<Self> {
        let model = setting.model;
        let pairs = pairs_of(setting.task, batch);
        let clean_is_base = setting.direction != Direction::Denoise;
        let prompts = |clean: bool| -> Vec<Vec<u32>> {
            let of = |pair: &&Pair| {
                if clean {
                    pair.clean.clone()
                } else {
                    pair.corrupted.clone()
                }
            };
            pairs.iter().map(of).collect()
        };
        let mut keep: Vec<Hook> = setting.hooks.iter().chain(keep).copied().collect();
        keep.push(Hook::global(Kind::Embed));
        let base = Tape::record(
            model,
            &prompts(clean_is_base),
            &TapeRequest {
                keep: &keep,
                memory: Some(setting.memory),
                ..TapeRequest::default()
            },
        )?;
        let differ: Vec<usize> = (pairs.iter())
            .map(|pair| first_row(pair, &model.spec))
            .collect();
        let other = Tape::record(
            model,
            &prompts(!clean_is_base),
            &TapeRequest {
                keep: &keep,
                // No backward pass starts from it.
                memory: Some(0),
                after: Some((&differ, &base)),
                ..TapeRequest::default()
            },
        )?;
        let starts = match (setting.source, setting.source_model) {
            (PatchSource::Pair, None) => differ,
            _ => vec![0; pairs.len()],
        };
        let put_in_place = [Kind::Embed, Kind::RotQ, Kind::RotK];
        let values = keep
            .iter()
            .copied()
            .filter(|hook| setting.hooks.contains(hook) || put_in_place.contains(&hook.kind));
        let of_other_model = setting.of_other_model(values, prompts)?;
        let mut rows = Rows::new(base.rows.length);
        for (i, &start) in starts.iter().enumerate() {
            rows.push(i, i, (start as u32..base.rows.length as u32).collect());
        }
        let targets = targets_of(&pairs);
        let clean_tape = if clean_is_base { &base } else { &other };
        let logits = all_logits(model, clean_tape, &targets)?;
        let judged = judged(&targets, &logits);
        // Metrics that compare with a reference have answers of one token.
        let reference = (setting.metric.needs_reference()).then(|| logits.concat());
        let measure = |tape: &Tape| -> Result<Vec<f64>> {
            let of = Measured::new(model, tape, setting.metric, &targets, reference.as_deref());
            Ok(of?.values)
        };
        let (of_base, of_other) = (measure(&base)?, measure(&other)?);
        let (clean, corrupted) = if clean_is_base {
            (of_base, of_other)
        } else {
            (of_other, of_base)
        };
        let key = (pairs[0].template, base.rows.length);
        Ok(Runs {
            model,
            metric: setting.metric,
            pairs,
            targets,
            reference,
            base,
            other,
            source: setting.source,
            put: of_other_model.or_else(|| means.get(&key).cloned()),
            starts,
            rows,
            memory: setting.memory,
            clean,
            corrupted,
            judged,
        })
    }

    /// Lets go of values whose differences have been taken: some hooks of the base run, and all of the other but its embeddings.
    pub fn forget(&mut self, of_base: impl Fn(Hook) -> bool) {
        self.base.forget(of_base);
        self.other.forget(|hook| hook.kind != Kind::Embed);
    }

    /// The values of a hook in the base run.
    /// # Shapes
    /// f32 on the host, `[rows, ..]`.
    pub fn base_values(&self, hook: Hook) -> Result<Tensor> {
        on_host(&at_rows(&self.base, hook, &self.rows)?)
    }

    /// What is put in place of a hook's values.
    /// # Shapes
    /// f32 on the host, `[rows, ..]`.
    pub fn other_values(&self, hook: Hook) -> Result<Tensor> {
        match (self.source, &self.put) {
            (PatchSource::Pair, None) => on_host(&at_rows(&self.other, hook, &self.rows)?),
            (_, Some(put)) => {
                let (there, row_of) = put.lookup(hook)?;
                let dims = there.dims()[1..].to_vec();
                let width: usize = dims.iter().product();
                let there = host(there)?;
                let mut values = Vec::with_capacity(self.rows.total * width);
                for segment in &self.rows.segments {
                    for &pos in &segment.positions {
                        let row = row_of(segment.example, pos as usize)
                            .expect("it has every position of the prompts");
                        values.extend_from_slice(&there[row * width..(row + 1) * width]);
                    }
                }
                let dims = [vec![self.rows.total], dims].concat();
                tensor(values, dims)
            }
            (PatchSource::Zero, None) => Ok(self.base_values(hook)?.zeros_like()?),
            (source, None) => Err(Error::invalid(format!(
                "attribution does not take {source:?} as what is put in place"
            ))),
        }
    }

    /// Whether what is put in place is zero everywhere.
    pub fn puts_zeros(&self) -> bool {
        self.source == PatchSource::Zero
    }

    /// What is put in place minus what was there.
    /// # Shapes
    /// f32 on the host, `[rows, ..]`; zero where both are minus infinity.
    pub fn delta(&self, hook: Hook) -> Result<Tensor> {
        let delta = (self.other_values(hook)? - self.base_values(hook)?)?;
        if hook.kind != Kind::AttnScores {
            return Ok(delta);
        }
        let finite = to_host(&delta)?
            .into_iter()
            .map(|x| if x.is_finite() { x } else { 0.0 });
        tensor(finite.collect(), delta.shape())
    }

    /// [`Runs::delta`] of what the heads of a layer write, as z over the scale of the norm on what attention writes, where there is
    /// one: each run's over its own.
    /// # Shapes
    /// f32 on the host, `[rows, n_heads, d_head]`.
    pub fn delta_of_heads(&self, layer: usize) -> Result<Tensor> {
        let z = Hook::at(Kind::Z, layer);
        let Some(scale) = post_scale(&self.model.spec, layer) else {
            return self.delta(z);
        };
        let base = over(self.base_values(z)?, self.base_values(scale)?)?;
        // Zeros stay zeros, whatever their scale.
        let other = match self.puts_zeros() {
            true => self.other_values(z)?,
            false => over(self.other_values(z)?, self.other_values(scale)?)?,
        };
        Ok((other - base)?)
    }

    /// The run whose embeddings stand at `point` on the line from the other run (0) to the base run (1).
    pub fn at(&self, point: f32, keep: &[Hook]) -> Result<Cow<'_, Tape>> {
        if point == 1.0 {
            return Ok(Cow::Borrowed(&self.base));
        }
        let embed = Hook::global(Kind::Embed);
        let tape = self.with_hook_at(embed, point, 0, keep)?;
        Ok(Cow::Owned(tape))
    }

    /// The run in which a hook of the stream's width stands at `point` between the other run's values (0) and the base run's (1), and
    /// everything above runs freely. It is recorded from layer `from` on.
    pub fn with_hook_at(&self, hook: Hook, point: f32, from: usize, keep: &[Hook]) -> Result<Tape> {
        let mut values = to_host(self.base.get(hook)?)?;
        let d = self.model.spec.d_model;
        let delta = to_host(&self.delta(hook)?)?;
        for (delta, row) in delta.chunks_exact(d).zip(self.rows.in_whole()) {
            let row = row as usize * d;
            for (value, delta) in values[row..row + d].iter_mut().zip(delta) {
                *value += (1.0 - point) * delta;
            }
        }
        self.with_values(hook, values, from, keep)
    }

    /// The run in which a hook has these values, of every position, and everything above runs freely; recorded from layer `from` on.
    /// # Shapes
    /// `values [batch, pos, ..]`, as the hook has them.
    pub fn with_values(
        &self,
        hook: Hook,
        values: Vec<f32>,
        from: usize,
        keep: &[Hook],
    ) -> Result<Tape> {
        let dims = hook.shape(&self.model.spec, self.pairs.len(), self.rows.length);
        let values = Value::Tensor(tensor(values, dims)?);
        let edits = [Edit::new(Site::all(hook), Op::Replace(values))];
        let request = TapeRequest {
            edits: &edits,
            keep,
            after: Some((&self.starts, &self.base)),
            from,
            memory: Some(self.memory),
            ..TapeRequest::default()
        };
        Tape::record(self.model, &self.base.prompts, &request)
    }

    /// One backward pass from a recorded run.
    pub fn descend(&self, tape: &Tape, rules: &Rules, probe: &mut dyn Probe) -> Result<()> {
        let start = self.start(tape, rules)?;
        self.descent(tape, rules).run(start, probe)
    }

    /// The gradient at the final stream.
    pub fn start(&self, tape: &Tape, rules: &Rules) -> Result<Tensor> {
        let measured = Measured::new(
            self.model,
            tape,
            self.metric,
            &self.targets,
            self.reference.as_deref(),
        )?;
        measured.gradient(self.model, rules, &self.rows, &mut Nobody)
    }

    pub fn descent<'b>(&'b self, tape: &'b Tape, rules: &'b Rules) -> Descent<'b> {
        Descent {
            model: self.model,
            tape,
            rules,
            rows: &self.rows,
        }
    }

    /// The rows of one pair, as a range.
    pub fn rows_of(&self, pair: usize) -> std::ops::Range<usize> {
        let segment = &self.rows.segments[pair];
        segment.start..segment.start + segment.positions.len()
    }
}

/// The scale of the norm on what attention writes, where there is one.
pub(super) fn post_scale(spec: &ModelSpec, layer: usize) -> Option<Hook> {
    let kind = Kind::Scale(Ln::OnePost);
    kind.absent(spec).is_none().then(|| Hook::at(kind, layer))
}

/// z over the scale of each row.
pub(super) fn over(z: Tensor, scale: Tensor) -> Result<Tensor> {
    Ok(z.broadcast_div(&scale.unsqueeze(1)?)?)
}

/// Keeps the gradients of some hooks.
pub(super) struct Gradients {
    wanted: HashSet<Hook>,
    pub kept: HashMap<Hook, Tensor>,
}

impl Gradients {
    pub fn at(hooks: impl IntoIterator<Item = Hook>) -> Self {
        Gradients {
            wanted: hooks.into_iter().collect(),
            kept: HashMap::new(),
        }
    }
}

impl Probe for Gradients {
    fn wants(&self, hook: Hook) -> bool {
        self.wanted.contains(&hook)
    }

    fn at(&mut self, hook: Hook, gradient: &Tensor, _: &Rows) -> Result<()> {
        self.kept.insert(hook, gradient.clone());
        Ok(())
    }
}

/// The values of a hook for some of a tape's rows.
pub(super) fn at_rows(tape: &Tape, hook: Hook, rows: &Rows) -> Result<Tensor> {
    let all = tape.get(hook)?;
    if rows.total == tape.rows.total {
        Ok(all.clone())
    } else {
        regather(all, &tape.rows, rows, None)
    }
}

/// The first position of a pair where the runs can differ: in an encoder a token changes what stands before it. Where an answer is
/// read there are rows in any case.
fn first_row(pair: &Pair, spec: &ModelSpec) -> usize {
    match spec.is_causal() {
        true => (pair.first_difference()).min(pair.target.positions(pair.clean.len()).start),
        false => 0,
    }
}

/// The logits of every token at each position of each prompt's answer.
fn all_logits(model: &Model, tape: &Tape, targets: &[Target]) -> Result<Vec<Vec<Vec<f32>>>> {
    let answers = tape.rows.answers(targets);
    let ends = tape.ends(model, &answers)?;
    let normed = final_norm(model, &ends, &answers, &mut Nobody)?;
    let logits = to_host(&as_logits(unembed(&model.spec, &model.weights, &normed)?)?)?;
    let mut rows = logits.chunks_exact(model.spec.d_vocab);
    let of = |target: &Target| -> Vec<Vec<f32>> {
        let own = rows.by_ref().take(target.n_tokens());
        own.map(<[f32]>::to_vec).collect()
    };
    Ok(targets.iter().map(of).collect())
}
