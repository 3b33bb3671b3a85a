//! Where the cells of every hook stand among all cells.

use std::collections::{BTreeMap, HashSet};
use std::ops::Range;

use crate::hooks::Hook;
use crate::methods::activation_patching::PatchConfig;
use crate::methods::sites::{Along, Extent};
use crate::scores::Cell;
use crate::spec::ModelSpec;
use crate::task::Task;

/// The cells of all sweeps, and where those of one hook stand.
pub(in crate::methods::attribution) struct Places {
    pub cells: Vec<Cell>,
    pub of_hook: BTreeMap<Hook, Vec<(Along, Range<usize>)>>,
    pub extent: Extent,
}

impl Places {
    pub fn new(spec: &ModelSpec, task: &Task, patch: &PatchConfig) -> Self {
        let extent = Extent::new(task, &patch.layers, &patch.heads);
        let only: Option<HashSet<&Cell>> = patch.only.as_ref().map(|only| only.iter().collect());
        let (mut all, mut of_hook) = (Vec::new(), BTreeMap::new());
        for sites in &patch.sites {
            let mut cells = sites.cells(spec, &extent);
            cells.retain(|cell| only.as_ref().is_none_or(|only| only.contains(cell)));
            let mut start = all.len();
            // Cells stand layer by layer.
            for run in cells.chunk_by(|a, b| a.layer == b.layer) {
                let hook = Hook {
                    layer: run[0].layer.map(|layer| layer as usize),
                    kind: sites.kind,
                };
                let ranges: &mut Vec<_> = of_hook.entry(hook).or_default();
                ranges.push((sites.resolved(&extent), start..start + run.len()));
                start += run.len();
            }
            all.extend(cells);
        }
        Places {
            cells: all,
            of_hook,
            extent,
        }
    }

    pub fn hooks(&self) -> Vec<Hook> {
        self.of_hook.keys().copied().collect()
    }

    /// An estimate of 0 for every cell of so many pairs.
    pub fn nothing(&self, pairs: usize) -> Estimates {
        vec![vec![0.0; self.cells.len()]; pairs]
    }
}

/// Estimates by pair and cell.
pub(in crate::methods::attribution) type Estimates = Vec<Vec<f64>>;
