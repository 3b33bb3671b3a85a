//! The keys and values of all tokens so far, and the tap that keeps and offers them.

use std::ops::Range;

use candle_core::Tensor;

use super::super::EditTap;
use super::super::forward::Tap;
use super::super::rows::Rows;
use crate::error::Result;
use crate::hooks::{Edit, Hook, Kind};
use crate::nn::attention::repeat;
use crate::spec::ModelSpec;

/// Positions that there is room for beyond the first pass; the room doubles when it is used up.
const ROOM: usize = 64;

/// Rotated keys, and values, of every layer, as the edits left them.
pub(super) struct Keys {
    prompts: usize,
    /// Key heads of the model.
    heads: usize,
    layers: Vec<KeptLayer>,
    /// Positions that there is room for.
    capacity: usize,
    /// Positions that are there by the end of this pass.
    length: usize,
    /// Whether this pass has rows for the last of them only.
    follows: bool,
    /// Those of the layer that is being walked, `[prompts * length, heads, d_head]`: keys, values.
    here: [Option<Tensor>; 2],
}

struct KeptLayer {
    /// How often a key head is repeated. An edit of `hook_k_input` or `hook_v_input` gives each query head keys and values of
    /// its own; then all tokens of the layer have them, edited or not.
    times: usize,
    /// `[prompts * capacity, heads, d_head]`: keys, values.
    kept: [Option<Tensor>; 2],
}

impl Keys {
    pub fn new(spec: &ModelSpec, prompts: usize, edits: &[Edit]) -> Self {
        let splits_groups = |layer: usize| {
            let inputs = [Kind::KInput, Kind::VInput].map(|kind| Hook::at(kind, layer));
            edits.iter().any(|edit| inputs.contains(&edit.site.hook))
        };
        let layer = |layer: usize| KeptLayer {
            times: if splits_groups(layer) {
                spec.n_heads / spec.n_kv_heads
            } else {
                1
            },
            kept: [None, None],
        };
        Keys {
            prompts,
            heads: spec.n_kv_heads,
            layers: (0..spec.n_layers).map(layer).collect(),
            capacity: 0,
            length: 0,
            follows: false,
            here: [None, None],
        }
    }

    /// Makes ready for a pass.
    pub fn begin(&mut self, pass: &Range<usize>) -> Result<()> {
        self.length = pass.end;
        self.follows = pass.start > 0;
        if pass.end <= self.capacity {
            return Ok(());
        }
        let capacity = (pass.end + ROOM).max(2 * self.capacity);
        for kept in self.layers.iter_mut().flat_map(|layer| &mut layer.kept) {
            if let Some(all) = kept.take() {
                let (_, heads, d) = all.dims3()?;
                let all = all.reshape((self.prompts, self.capacity, heads, d))?;
                let all = all.pad_with_zeros(1, 0, capacity - self.capacity)?;
                *kept = Some(all.flatten(0, 1)?.contiguous()?);
            }
        }
        self.capacity = capacity;
        Ok(())
    }

    /// Keeps the keys (`letter` 0) or values (1) of this pass's rows; gives them back with as many heads as the layer keeps.
    fn keep(&mut self, layer: usize, letter: usize, t: Tensor, rows: &Rows) -> Result<Tensor> {
        let of_layer = &mut self.layers[layer];
        let heads = self.heads * of_layer.times;
        let t = if t.dim(1)? == heads {
            t.contiguous()?
        } else {
            repeat(&t, of_layer.times)?
        };
        let (_, heads, d) = t.dims3()?;
        let all = match &mut of_layer.kept[letter] {
            Some(all) => all,
            none => none.insert(Tensor::zeros(
                (self.prompts * self.capacity, heads, d),
                t.dtype(),
                t.device(),
            )?),
        };
        for segment in &rows.segments {
            let first = segment.positions[0] as usize;
            let own = t.narrow(0, segment.start, segment.positions.len())?;
            all.slice_set(&own, 0, segment.example * self.capacity + first)?;
        }
        if self.follows {
            let there = all.reshape((self.prompts, self.capacity, heads, d))?;
            let there = there.narrow(1, 0, self.length)?;
            // A view for a single prompt, a copy for several.
            self.here[letter] = Some(there.flatten(0, 1)?.contiguous()?);
        }
        Ok(t)
    }
}

/// The tap of one pass: edits, then keeping.
pub(super) struct DecodeTap<'a> {
    pub edits: EditTap,
    pub keys: &'a mut Keys,
}

impl Tap for DecodeTap<'_> {
    fn wants(&self, hook: Hook) -> bool {
        self.edits.wants(hook)
    }

    fn edits(&self, hook: Hook) -> bool {
        self.edits.edits(hook)
    }

    fn at(&mut self, hook: Hook, t: Tensor, rows: &Rows) -> Result<Tensor> {
        let t = self.edits.at(hook, t, rows)?;
        match (hook.kind, hook.layer) {
            (Kind::RotK, Some(layer)) => self.keys.keep(layer, 0, t, rows),
            (Kind::V, Some(layer)) => self.keys.keep(layer, 1, t, rows),
            _ => Ok(t),
        }
    }

    fn attended(&mut self, layer: usize, rows: &Rows) -> Option<Rows> {
        self.edits.attended(layer, rows)
    }

    fn base_keys(&self, _layer: usize) -> Result<Option<(&Tensor, &Tensor)>> {
        Ok(match &self.keys.here {
            [Some(keys), Some(values)] if self.keys.follows => Some((keys, values)),
            _ => None,
        })
    }
}
