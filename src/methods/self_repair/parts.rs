//! A checked run: its parts, their cells, and what prompts wrote there.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};

use rand::SeedableRng;
use rand::seq::index::sample;
use rand_chacha::ChaCha8Rng;

use super::config::{RepairConfig, RepairParts};
use super::effects::{Later, Measure, Removed};
use crate::error::Result;
use crate::hooks::Node;
use crate::methods::captured::captured;
use crate::methods::logits::readout::every_layer;
use crate::methods::method::{Running, Subject, clean_prompts, pairs_of};
use crate::nn::host::to_host;
use crate::scores::Cell;
use crate::spec::{Mlp, ModelSpec};

/// The measure of the rows from a part to each later one.
const COMPENSATION: &str = "compensation";

/// A checked run in progress.
pub(super) struct Repair<'a> {
    pub on: Subject<'a>,
    pub config: &'a RepairConfig,
    pub running: &'a Running,
    pub removed: Vec<Removed>,
    /// Of each removed part its cells: a row for each measure, then one for each later part.
    pub rows: Vec<Range<usize>>,
    pub cells: Vec<Cell>,
    /// For each pair, the pairs that it takes values from.
    pub donors: Vec<Vec<usize>>,
    /// What prompts wrote, as far as memory allows: each prompt is a donor of many.
    known: Mutex<BTreeMap<usize, PromptEnd>>,
}

/// Of each layer, what the parts of a prompt wrote at its last position.
pub(super) type PromptEnd = Arc<Vec<Vec<f32>>>;

impl<'a> Repair<'a> {
    pub fn new(on: Subject<'a>, config: &'a RepairConfig, running: &'a Running) -> Self {
        let mut rng = ChaCha8Rng::seed_from_u64(config.seed(on.task));
        let n = on.task.pairs().len();
        let donors = (0..n).map(|pair| {
            let others = sample(&mut rng, n - 1, config.donors.min(n - 1));
            let others = others
                .iter()
                .map(|other| other + usize::from(other >= pair));
            others.collect()
        });
        let mut repair = Repair {
            on,
            config,
            running,
            removed: config.removed(&on.model.spec),
            rows: Vec::new(),
            cells: Vec::new(),
            donors: donors.collect(),
            known: Mutex::default(),
        };
        for part in repair.removed.clone() {
            let first = repair.cells.len();
            let cells = repair.cells_of(part);
            repair.cells.extend(cells);
            repair.rows.push(first..repair.cells.len());
        }
        repair
    }

    pub fn spec(&self) -> &'a ModelSpec {
        &self.on.model.spec
    }

    pub fn by_head(&self) -> bool {
        self.config.parts == RepairParts::Heads
    }

    pub fn has_mlp(&self) -> bool {
        self.spec().mlp != Mlp::None
    }

    pub fn prompts(&self, items: &[usize]) -> Vec<Vec<u32>> {
        clean_prompts(&pairs_of(self.on.task, items))
    }

    /// A part's measures, then a row for each later part.
    fn cells_of(&self, part: Removed) -> Vec<Cell> {
        let cell = Cell {
            component: self.config.kind().name().into(),
            layer: Some(part.layer as u32),
            head: part.head.map(|head| head as u32),
            ..Cell::default()
        };
        let measured = |measure: &Measure| Cell {
            measure: (*measure != Measure::Total).then(|| measure.name().to_string()),
            ..cell.clone()
        };
        let mut cells: Vec<Cell> = Measure::ALL.iter().map(measured).collect();
        cells.extend(self.later(part).into_iter().map(|(dst, _)| Cell {
            measure: Some(COMPENSATION.into()),
            src: Some(self.name(part)),
            dst: Some(dst),
            ..cell.clone()
        }));
        cells
    }

    /// The later parts that have rows of their own: each head where parts are heads, else each attention and MLP.
    pub fn later(&self, part: Removed) -> Vec<(String, Later)> {
        let spec = self.spec();
        let mut later = Vec::new();
        for layer in part.layer..spec.n_layers {
            if layer > part.layer {
                if self.by_head() {
                    later.extend((0..spec.n_heads).map(|head| {
                        let name = Node::Head { layer, head }.to_string();
                        (name, Later::Head(layer, head))
                    }));
                } else {
                    later.push((format!("attn_out{layer}"), Later::Attn(layer)));
                }
            }
            if self.mlp_is_later(part, layer) {
                let name = if self.by_head() {
                    Node::Mlp(layer).to_string()
                } else {
                    format!("mlp_out{layer}")
                };
                later.push((name, Later::Mlp(layer)));
            }
        }
        later
    }

    /// Whether the MLP of a layer comes after a part: in the part's own layer, too, unless it is that MLP.
    pub fn mlp_is_later(&self, part: Removed, layer: usize) -> bool {
        let is_after = layer > part.layer || self.config.parts != RepairParts::Mlp;
        self.has_mlp() && is_after
    }

    pub fn name(&self, part: Removed) -> String {
        match (self.config.parts, part.head) {
            (_, Some(head)) => Node::Head {
                layer: part.layer,
                head,
            }
            .to_string(),
            (RepairParts::Mlp, _) => format!("mlp_out{}", part.layer),
            _ => format!("attn_out{}", part.layer),
        }
    }

    /// What the parts of some prompts wrote at the last position. What is known already is not run again.
    pub fn ends(&self, wanted: &[usize]) -> Result<BTreeMap<usize, PromptEnd>> {
        // A panic elsewhere leaves whole entries, or none.
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let of_known = |known: &BTreeMap<usize, PromptEnd>| -> BTreeMap<usize, PromptEnd> {
            let found = wanted
                .iter()
                .filter_map(|pair| Some((*pair, Arc::clone(known.get(pair)?))));
            found.collect()
        };
        let mut ends = of_known(&known);
        let missing: Vec<usize> = (wanted.iter().copied())
            .filter(|pair| !ends.contains_key(pair))
            .collect();
        let width = match self.config.parts {
            RepairParts::Heads => self.spec().n_heads * self.spec().d_head,
            RepairParts::Attention | RepairParts::Mlp => self.spec().d_model,
        };
        let each = 4 * self.spec().n_layers * width;
        if (known.len() + missing.len()) * each > self.running.memory_now() / 4 {
            known.clear();
        }
        let hooks = every_layer(self.on.model, self.config.kind());
        for batch in self.batches(&missing) {
            let cache = captured(self.on.model, &self.prompts(&batch), &hooks, &[])?;
            let mut of_batch = vec![Vec::with_capacity(hooks.len()); batch.len()];
            for &hook in &hooks {
                let last = cache.get(hook)?.narrow(1, cache.length - 1, 1)?;
                for (i, of_prompt) in of_batch.iter_mut().enumerate() {
                    of_prompt.push(to_host(&last.get(i)?.contiguous()?)?);
                }
            }
            for (&pair, end) in batch.iter().zip(of_batch) {
                let end = Arc::new(end);
                known.insert(pair, Arc::clone(&end));
                ends.insert(pair, end);
            }
        }
        Ok(ends)
    }

    /// Some pairs, in batches of prompts of one length.
    fn batches(&self, items: &[usize]) -> Vec<Vec<usize>> {
        let mut by_length: BTreeMap<usize, Vec<usize>> = BTreeMap::new();
        for &item in items {
            let length = self.on.task.pairs()[item].clean.len();
            by_length.entry(length).or_default().push(item);
        }
        let of_length = |items: Vec<usize>| -> Vec<Vec<usize>> {
            let at_once = self.running.batch.max(1);
            items.chunks(at_once).map(<[usize]>::to_vec).collect()
        };
        by_length.into_values().flat_map(of_length).collect()
    }

    /// The removed parts that have one of these cells.
    pub fn parts_in(&self, cells: &Range<usize>) -> impl Iterator<Item = usize> + use<'_> {
        let (first, last) = (cells.start, cells.end);
        let overlaps = move |rows: &Range<usize>| rows.start < last && first < rows.end;
        (self.rows.iter().enumerate())
            .filter(move |(_, rows)| overlaps(rows))
            .map(|(at, _)| at)
    }
}
