//! Each head changed by itself in the clean prompts of a unit, through the engine.

use crate::error::Result;
use crate::hooks::{Edit, Hook, Kind, Op, Site};
use crate::methods::columns::{Columns, judged};
use crate::methods::method::{Cost, Running, Subject, Unit, clean_prompts, pairs_of, targets_of};
use crate::metric::{Judgement, Metric};
use crate::run::{BaseRun, Progress, Readout, Sources, SweepOptions, Variant, plan, sweep};
use crate::scores::{Cell, ExampleScores};
use crate::spec::ModelSpec;
use crate::task::Task;

/// What is changed of a head, and what is read.
pub(super) struct EachHead<'a> {
    pub on: Subject<'a>,
    pub running: &'a Running,
    /// A hook with an axis of query heads.
    pub kind: Kind,
    pub metric: Metric,
}

/// What was read of the prompts of a unit.
pub(super) struct Swept {
    /// The metric of each unchanged prompt, and of its corrupted partner.
    pub clean: Vec<f64>,
    pub corrupted: Vec<f64>,
    pub judged: Vec<Judgement>,
    /// The metric with one head changed, `[prompt][head]`, heads in the order of [`ModelSpec::heads`].
    pub changed: Vec<Vec<f64>>,
}

impl EachHead<'_> {
    /// A cell for each head.
    pub fn cells(&self) -> Vec<Cell> {
        let heads = self.on.model.spec.heads();
        heads.map(|(layer, head)| of_head(layer, head)).collect()
    }

    /// The unchanged run of the prompts of some pairs.
    pub fn base(&self, items: &[usize]) -> Result<BaseRun> {
        let prompts = clean_prompts(&pairs_of(self.on.task, items));
        let none = Sources::default();
        BaseRun::new(self.on.model, prompts, vec![], vec![], none, &[self.kind])
    }

    fn variants(&self, prompts: usize, op: &Op) -> Vec<Variant> {
        let spec = &self.on.model.spec;
        let change = |example: usize, (layer, head): (usize, usize)| Variant {
            example,
            edits: vec![Edit::new(
                Site::all(Hook::at(self.kind, layer)).heads([head]),
                op.clone(),
            )],
        };
        let of_one = |example| spec.heads().map(move |head| (example, head));
        let all = (0..prompts).flat_map(of_one);
        all.map(|(example, head)| change(example, head)).collect()
    }

    /// The metric of each prompt with each head changed by `op`.
    pub fn swept(
        &self,
        base: &BaseRun,
        items: &[usize],
        sources: &Sources,
        op: &Op,
        progress: &dyn Progress,
    ) -> Result<Swept> {
        let model = self.on.model;
        let targets = targets_of(&pairs_of(self.on.task, items));
        let judged = base.judge(model, &targets)?;
        let reference = match self.metric.needs_reference() {
            true => Some(base.logits(model, &targets)?),
            false => None,
        };
        let readout = Readout {
            metric: self.metric,
            targets,
            reference,
        };
        let pairs = pairs_of(self.on.task, items).into_iter();
        let others: Vec<Vec<u32>> = pairs.map(|pair| pair.corrupted.clone()).collect();
        let other = BaseRun::new(model, others, vec![], vec![], Sources::default(), &[])?;
        let variants = self.variants(items.len(), op);
        let options = self.options();
        let values = sweep(
            model, base, &variants, sources, &readout, &options, progress,
        )?;
        let n_heads = model.spec.n_layers * model.spec.n_heads;
        Ok(Swept {
            clean: base.metric(model, &readout)?,
            corrupted: other.metric(model, &readout)?,
            judged,
            changed: values.chunks_exact(n_heads).map(<[f64]>::to_vec).collect(),
        })
    }

    fn options(&self) -> SweepOptions {
        SweepOptions {
            memory: self.running.memory_now(),
            ..SweepOptions::default()
        }
    }

    /// What the changed runs of a unit cost, beside the unchanged ones.
    pub fn cost(&self, unit: &Unit) -> Result<Cost> {
        let base = self.base(&unit.items)?;
        let targets = targets_of(&pairs_of(self.on.task, &unit.items));
        let variants = self.variants(unit.items.len(), &Op::Zero);
        let options = self.options();
        let planned = plan(self.on.model, &base, &variants, &targets, 0, &options)?;
        Ok(Cost {
            variants: planned.variants,
            without_effect: planned.without_effect,
            passes: 2.0 * unit.items.len() as f64,
            packed: planned.forwards,
            bytes: 2 * base.bytes() + planned.wave_bytes,
            ..Cost::default()
        })
    }

    /// Bytes that the unchanged run of a prompt keeps.
    pub fn bytes(&self, length: usize) -> usize {
        let spec = &self.on.model.spec;
        let widths = 2 * spec.d_model + 3 * (spec.n_heads + spec.n_kv_heads) * spec.d_head;
        // Batches may take a quarter of the memory; what runs together takes the rest.
        16 * spec.n_layers * length * widths
    }
}

impl Swept {
    /// The pairs of a unit with what was measured of each.
    pub fn examples(self, task: &Task, unit: &Unit, columns: Columns) -> Vec<ExampleScores> {
        let mut examples = columns.into_examples(task, &unit.items, &self.clean);
        for (one, corrupted) in examples.iter_mut().zip(self.corrupted) {
            one.corrupted = corrupted;
        }
        judged(examples, self.judged)
    }
}

/// A head, at what it writes.
pub(super) fn of_head(layer: usize, head: usize) -> Cell {
    Cell {
        head: Some(head as u32),
        ..Cell::in_layer(Kind::Z.name(), layer)
    }
}

/// The number of heads of a model.
pub(super) fn n_heads(spec: &ModelSpec) -> usize {
    spec.n_layers * spec.n_heads
}
