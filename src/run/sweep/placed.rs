//! Where each variant joins the walk, which rows it carries, and with which others it may share a wave.

use std::ops::Range;

use super::readout::Variant;
use crate::error::{Error, Result};
use crate::hooks::{Edit, Hook, Kind, Ln, Op};
use crate::run::BaseRun;
use crate::run::forward::Stage;
use crate::spec::ModelSpec;

/// Where a variant joins the walk. The order is that of the forward pass.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum JoinPoint {
    Embed,
    Block(usize, Stage),
    Final,
}

pub(super) fn start_of(hook: Hook) -> JoinPoint {
    match (Stage::of(hook.kind), hook.layer) {
        (Some(stage), Some(layer)) => JoinPoint::Block(layer, stage),
        _ if matches!(hook.kind, Kind::Embed | Kind::PosEmbed) => JoinPoint::Embed,
        _ => JoinPoint::Final,
    }
}

/// With which others a variant may share a wave. A reader's input that is edited gives every query head of the wave a stream,
/// key and value of its own, which the hooks of `ln1`, k and v do not see.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum WaveGroup {
    /// Edits no reader's input.
    Shared,
    /// Edits readers' inputs, and nothing that this would hide from another variant.
    Split,
    Alone,
}

impl WaveGroup {
    fn of(edits: &[Edit]) -> Self {
        let any = |of: fn(Kind) -> bool| edits.iter().any(|edit| of(edit.site.hook.kind));
        let splits = any(|kind| matches!(kind, Kind::QInput | Kind::KInput | Kind::VInput));
        let hidden = any(|kind| {
            matches!(
                kind,
                Kind::Scale(Ln::One) | Kind::Normalized(Ln::One) | Kind::K | Kind::V | Kind::RotK
            )
        });
        match (splits, hidden) {
            (false, _) => WaveGroup::Shared,
            (true, false) => WaveGroup::Split,
            (true, true) => WaveGroup::Alone,
        }
    }
}

/// Whether an edit can let a query see keys that stand after it.
fn may_look_ahead(edit: &Edit) -> bool {
    match edit.site.hook.kind {
        Kind::AttnScores => edit.op != Op::Block,
        Kind::Pattern => !matches!(edit.op, Op::Zero | Op::Scale(_)),
        _ => false,
    }
}

/// A variant, placed.
#[derive(Debug, Clone)]
pub(super) struct Planned {
    pub variant: usize,
    pub example: usize,
    pub start: JoinPoint,
    pub group: WaveGroup,
    /// The positions that it carries from the start, ascending: those that its edits change.
    pub positions: Vec<u32>,
    /// For each edit, whether it would only put back what the base run has.
    pub changes_nothing: Vec<bool>,
    /// The positions where the answer is read.
    answers: Range<u32>,
    /// The positions that it carries to the end of the last layer, ascending: the answer, and what closures there want to see.
    pub ends: Vec<u32>,
    /// Whether attention of the layer where it starts carries the change to later positions.
    pub spreads: bool,
}

impl Planned {
    /// `changed`: for each edit the positions at which it changes something.
    pub fn new(
        variant: usize,
        edits: &Variant,
        changed: &[Vec<u32>],
        base: &BaseRun,
        answers: Range<usize>,
        spec: &ModelSpec,
    ) -> Result<Self> {
        let answers = answers.start as u32..answers.end as u32;
        let last_layer = spec.n_layers - 1;
        let none = crate::run::Roles::new();
        let roles = base.roles.get(edits.example).unwrap_or(&none);
        let of_edit = |edit: &Edit| -> Result<Vec<u32>> {
            let positions = edit.site.positions.resolve(base.length, roles)?;
            Ok(positions.into_iter().map(|pos| pos as u32).collect())
        };
        // What an edit would put back needs no walk to it.
        let effective = || {
            let edits = edits.edits.iter().zip(changed);
            edits
                .filter(|(_, changed)| !changed.is_empty())
                .map(|(edit, _)| edit)
        };
        let start = effective().map(|edit| start_of(edit.site.hook)).min();
        let start =
            start.ok_or_else(|| Error::invalid("a variant without edits is the base run"))?;
        let is_closure = |edit: &&Edit| matches!(edit.op, Op::Closure(_));
        let base_edits = base
            .edits
            .iter()
            .filter(|edit| start_of(edit.site.hook) >= start);
        let mut positions = Vec::new();
        positions.extend(changed.iter().flatten());
        for edit in base_edits.clone().filter(is_closure) {
            positions.extend(of_edit(edit)?);
        }
        if !spec.is_causal() || base.edits.iter().any(may_look_ahead) {
            // Then a change reaches positions that stand before it.
            positions.push(0);
        }
        let mut ends: Vec<u32> = answers.clone().collect();
        let at_the_end =
            |edit: &&Edit| start_of(edit.site.hook) >= JoinPoint::Block(last_layer, Stage::Qkv);
        for edit in edits
            .edits
            .iter()
            .chain(base_edits)
            .filter(is_closure)
            .filter(at_the_end)
        {
            ends.extend(of_edit(edit)?);
        }
        for list in [&mut positions, &mut ends] {
            list.sort_unstable();
            list.dedup();
        }
        let by_query = |kind: Kind| {
            matches!(
                kind,
                Kind::Q | Kind::RotQ | Kind::AttnScores | Kind::Pattern
            )
        };
        let spreads = effective()
            .any(|edit| start_of(edit.site.hook) == start && !by_query(edit.site.hook.kind));
        Ok(Planned {
            variant,
            example: edits.example,
            start,
            group: WaveGroup::of(&edits.edits),
            positions,
            changes_nothing: changed.iter().map(Vec::is_empty).collect(),
            answers,
            ends,
            spreads,
        })
    }

    pub fn first(&self) -> u32 {
        self.positions.first().copied().unwrap_or(u32::MAX)
    }

    /// Whether the change can reach the answer at all.
    pub fn reaches(&self, last_layer: usize) -> bool {
        let only_itself = match self.start {
            JoinPoint::Embed => false,
            JoinPoint::Final => true,
            JoinPoint::Block(layer, stage) => {
                layer == last_layer
                    && (stage > Stage::Qkv || (stage == Stage::Qkv && !self.spreads))
            }
        };
        if only_itself {
            self.positions.iter().any(|pos| self.answers.contains(pos))
        } else {
            self.first() < self.answers.end
        }
    }

    /// Rows that it joins with.
    pub fn joining_rows(&self, last_layer: usize) -> Vec<u32> {
        let at_the_end = match self.start {
            JoinPoint::Final => true,
            JoinPoint::Embed => false,
            JoinPoint::Block(layer, stage) => layer == last_layer && stage > Stage::Qkv,
        };
        if at_the_end {
            self.ends.clone()
        } else {
            self.positions.clone()
        }
    }

    /// Rows times layers that it will walk, roughly: a layer costs a row as much wherever in the layer it joins.
    pub fn cost(&self, length: usize, n_layers: usize) -> u64 {
        let layer = match self.start {
            JoinPoint::Embed => 0,
            JoinPoint::Final => return 0,
            JoinPoint::Block(layer, _) => layer,
        };
        let later = (n_layers - layer).saturating_sub(2) as u64;
        self.positions.len() as u64
            + later * (length as u64).saturating_sub(u64::from(self.first()))
            + 1
    }
}
