//! What happens to the rows of one wave at each hook.

use std::collections::HashMap;

use candle_core::Tensor;

use super::placed::{JoinPoint, Planned, start_of};
use super::readout::Variant;
use crate::error::{Error, Result};
use crate::hooks::{Edit, Hook, Kind};
use crate::model::Model;
use crate::run::apply::{self, Resolved};
use crate::run::forward::{Stage, Tap};
use crate::run::rows::Rows;
use crate::run::{BaseRun, Sources};
use crate::spec::Block;

/// The edits of one prompt, numbered in their order.
pub(super) fn resolve(
    model: &Model,
    base: &BaseRun,
    example: usize,
    edits: &[Edit],
    sources: &Sources,
) -> Result<Vec<Resolved>> {
    let none = crate::run::Roles::new();
    let roles = base.roles.get(example).unwrap_or(&none);
    let resolve_edit = |(index, edit)| {
        apply::resolve(
            edit,
            index,
            &model.spec,
            base.length,
            roles,
            sources,
            example,
        )
    };
    edits.iter().enumerate().map(resolve_edit).collect()
}

/// Whether a variant makes an edit of the base run again: one that the values that it starts from do not have in them yet.
fn is_made_again(hook: Hook, start: JoinPoint, block: Block) -> bool {
    match start {
        JoinPoint::Block(layer, stage) if hook.layer == Some(layer) => {
            start_of(hook) >= start && !stage.takes(block).contains(&hook.kind)
        }
        _ => start_of(hook) >= start,
    }
}

/// The tap of one wave.
pub(super) struct SweepTap<'a> {
    base: &'a BaseRun,
    n_layers: usize,
    planned: HashMap<usize, &'a Planned>,
    joins: HashMap<(usize, Stage), Rows>,
    pub starts_at_embedding: Option<Rows>,
    pub starts_at_end: Option<Rows>,
    edits: HashMap<Hook, HashMap<usize, Vec<Resolved>>>,
    /// Edits of each variant that have not met a row yet.
    waiting: HashMap<usize, Vec<bool>>,
    pub capturing: &'a [Hook],
    pub captured: HashMap<(usize, Hook), (Vec<u32>, Tensor)>,
}

impl<'a> SweepTap<'a> {
    pub fn new(
        model: &Model,
        base: &'a BaseRun,
        variants: &[Variant],
        wave: &'a [Planned],
        sources: &Sources,
    ) -> Result<Self> {
        let n_layers = model.spec.n_layers;
        let mut tap = SweepTap {
            base,
            n_layers,
            planned: wave.iter().map(|one| (one.variant, one)).collect(),
            joins: HashMap::new(),
            starts_at_embedding: None,
            starts_at_end: None,
            edits: HashMap::new(),
            waiting: HashMap::new(),
            capturing: &[],
            captured: HashMap::new(),
        };
        for one in wave {
            let rows = match one.start {
                JoinPoint::Embed => tap
                    .starts_at_embedding
                    .get_or_insert_with(|| Rows::new(base.length)),
                JoinPoint::Final => tap
                    .starts_at_end
                    .get_or_insert_with(|| Rows::new(base.length)),
                JoinPoint::Block(layer, stage) => tap
                    .joins
                    .entry((layer, stage))
                    .or_insert_with(|| Rows::new(base.length)),
            };
            rows.push(one.variant, one.example, one.joining_rows(n_layers - 1));
            let own = resolve(model, base, one.example, &base.edits, &base.sources)?;
            let base_edits = own
                .into_iter()
                .filter(|edit| is_made_again(edit.hook, one.start, model.spec.block));
            let edits = &variants[one.variant].edits;
            let new = resolve(model, base, one.example, edits, sources)?;
            for edit in base_edits.map(Resolved::uncounted).chain(new) {
                let of_variant = tap.edits.entry(edit.hook).or_default();
                of_variant.entry(one.variant).or_default().push(edit);
            }
            let waiting = one.changes_nothing.iter().map(|nothing| !nothing).collect();
            tap.waiting.insert(one.variant, waiting);
        }
        Ok(tap)
    }

    fn capture(&mut self, hook: Hook, t: &Tensor, rows: &Rows) -> Result<()> {
        if !self.capturing.contains(&hook) {
            return Ok(());
        }
        for segment in rows.segments.iter() {
            let (start, len) = (segment.start, segment.positions.len());
            if len > 0 {
                // A copy: a view would keep the rows of the whole wave.
                let own = t.narrow(0, start, len)?.force_contiguous()?;
                let key = (segment.variant, hook);
                self.captured.insert(key, (segment.positions.clone(), own));
            }
        }
        Ok(())
    }

    /// Every edit must have met a row, but for those of the last layer that stand beside the answer and so cannot matter.
    pub fn check_fired(&self, variants: &[Variant]) -> Result<()> {
        for (&variant, waiting) in &self.waiting {
            for (edit, _) in variants[variant]
                .edits
                .iter()
                .zip(waiting)
                .filter(|(_, waiting)| **waiting)
            {
                let at_the_end = match start_of(edit.site.hook) {
                    JoinPoint::Block(layer, stage) => {
                        layer + 1 == self.n_layers && stage >= Stage::Qkv
                    }
                    JoinPoint::Final => true,
                    JoinPoint::Embed => false,
                };
                if !at_the_end {
                    let reason = "no row of the sweep passed it".into();
                    return Err(Error::Unfired {
                        what: edit.to_string(),
                        reason,
                    });
                }
            }
        }
        Ok(())
    }
}

impl Tap for SweepTap<'_> {
    fn wants(&self, hook: Hook) -> bool {
        self.edits(hook) || self.capturing.contains(&hook)
    }

    fn edits(&self, hook: Hook) -> bool {
        self.edits.contains_key(&hook)
    }

    fn at(&mut self, hook: Hook, t: Tensor, rows: &Rows) -> Result<Tensor> {
        let Some(edits) = self.edits.get(&hook) else {
            self.capture(hook, &t, rows)?;
            return Ok(t);
        };
        let waiting = &mut self.waiting;
        let fired = |variant: usize, index: usize| {
            if let Some(waiting) = waiting
                .get_mut(&variant)
                .and_then(|waiting| waiting.get_mut(index))
            {
                *waiting = false;
            }
        };
        let t = apply::apply(
            t,
            rows,
            |variant| edits.get(&variant).map_or(&[], Vec::as_slice),
            fired,
        )?;
        if hook.kind == Kind::AttnScores {
            apply::check_scores(&t, rows, hook)?;
        }
        self.capture(hook, &t, rows)?;
        Ok(t)
    }

    fn joining(&mut self, stage: Stage, layer: usize) -> Option<Rows> {
        self.joins.remove(&(layer, stage))
    }

    fn base(&self, hook: Hook) -> Result<&Tensor> {
        self.base.cache.packed(hook)
    }

    fn attended(&mut self, layer: usize, rows: &Rows) -> Option<Rows> {
        let length = rows.length as u32;
        let is_last = layer + 1 == self.n_layers;
        let mut out = Rows::new(rows.length);
        for segment in &rows.segments {
            let planned = self.planned[&segment.variant];
            let stays = planned.start == JoinPoint::Block(layer, Stage::Qkv) && !planned.spreads;
            let positions = if is_last {
                planned.ends.clone()
            } else if stays {
                segment.positions.clone()
            } else {
                (planned.first()..length).collect()
            };
            out.push(segment.variant, segment.example, positions);
        }
        (out != *rows).then_some(out)
    }

    fn base_keys(&self, layer: usize) -> Result<Option<(&Tensor, &Tensor)>> {
        let k = self.base.cache.packed(Hook::at(Kind::RotK, layer))?;
        let v = self.base.cache.packed(Hook::at(Kind::V, layer))?;
        Ok(Some((k, v)))
    }
}
