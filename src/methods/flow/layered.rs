//! Flow between the states that enter the layers, as rows: edges from layer to layer, edges to the logits, and numbers of each token.

use std::collections::BTreeMap;

use super::cells::{Group, group_of, groups};
use crate::error::{Error, Result};
use crate::hooks::StreamNode;
use crate::methods::sites::Extent;
use crate::scores::{Cell, ExampleScores, Measured};
use crate::spec::ModelSpec;
use crate::task::{Pair, Task};

/// More possible edges than this are gigabytes of labels.
const MOST_EDGES: usize = 1_000_000;

/// What flows on one prompt.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Layered {
    /// What comes through each position of each level, tokens first. `[levels][pos]`
    pub masses: Vec<Vec<f64>>,
    /// Row `i` of a level says to which positions of the level below what comes to `i` above is handed. `[levels - 1][pos * pos]`
    pub mixing: Vec<Vec<f64>>,
    /// What goes to the logits from each position of each level, past all others. `[levels][pos]`, or nothing.
    pub read: Vec<Vec<f64>>,
    /// What the last token itself brings there.
    pub embed: f64,
}

impl Layered {
    /// What passes from a position of a level to one of the level above.
    fn edge(&self, level: usize, from: usize, to: usize) -> f64 {
        let length = self.masses[level].len();
        self.masses[level + 1][to] * self.mixing[level][to * length + from]
    }

    /// All that is handed out, as a size.
    fn size(&self) -> f64 {
        let out = |levels: &[Vec<f64>]| levels.iter().flatten().map(|x| x.abs()).sum::<f64>();
        match self.read.is_empty() {
            true => out(&self.masses[self.masses.len() - 1..]),
            false => out(&self.read) + self.embed.abs(),
        }
    }
}

pub(super) struct LayeredCells {
    pub all: Vec<Cell>,
    extent: Extent,
    groups: BTreeMap<Group, usize>,
    n_layers: usize,
}

impl LayeredCells {
    /// Refuses prompts between whose states there are more edges than a table takes.
    pub fn check(spec: &ModelSpec, task: &Task) -> Result<()> {
        let extent = Extent::new(task, &Default::default(), &Default::default());
        let edges = |(_, length): &Group| spec.n_layers * length * length;
        let n: usize = groups(task, &extent).iter().map(edges).sum();
        if n <= MOST_EDGES {
            return Ok(());
        }
        Err(Error::invalid(format!(
            "there are {n} edges between the states of these prompts, and a table takes {MOST_EDGES}; take prompts of one template, or fewer"
        )))
    }

    /// Edges under the name of a component, edges to the logits if there are, and of each token a row of each of some components.
    pub fn new(
        n_layers: usize,
        task: &Task,
        component: &str,
        has_reads: bool,
        of_tokens: &[String],
    ) -> Self {
        let extent = Extent::new(task, &Default::default(), &Default::default());
        let mut all = Vec::new();
        let mut first = BTreeMap::new();
        for group in groups(task, &extent) {
            first.insert(group.clone(), all.len());
            let (template, length) = group;
            let node = |level: usize, pos: usize| match level == n_layers {
                true => StreamNode::post(level - 1, pos),
                false => StreamNode::pre(level, pos),
            };
            let edge = |component: &str, level: usize, from: usize, dst: String, to: usize| Cell {
                template: template.clone(),
                pos: Some(to as i32),
                key: Some(from as u32),
                src: Some(node(level, from).to_string()),
                dst: Some(dst),
                ..Cell::in_layer(component, level)
            };
            for level in 0..n_layers {
                for to in 0..length {
                    let dst = node(level + 1, to).to_string();
                    all.extend(
                        (0..length).map(|from| edge(component, level, from, dst.clone(), to)),
                    );
                }
            }
            if has_reads {
                let end = length - 1;
                let read =
                    |component, level, from| edge(component, level, from, "logits".into(), end);
                for level in 0..n_layers {
                    all.extend((0..length).map(|from| read("read", level, from)));
                }
                all.push(read("embed", 0, end));
            }
            for component in of_tokens {
                all.extend((0..length).map(|pos| Cell {
                    template: template.clone(),
                    component: component.clone(),
                    pos: Some(pos as i32),
                    ..Cell::default()
                }));
            }
        }
        LayeredCells {
            all,
            extent,
            groups: first,
            n_layers,
        }
    }

    /// Every edge and the rows of tokens, as cells and values of an example, which also keeps how much is handed out in all.
    pub fn fill(
        &self,
        example: &mut ExampleScores,
        pair: &Pair,
        flow: &Layered,
        of_tokens: &[Vec<f64>],
    ) {
        let length = pair.clean.len();
        let first = self.groups[&group_of(&self.extent, pair)];
        let mut values = Vec::new();
        // Nothing is mixed above the last level that hands down; the edges there are nobody's, and 0.
        for level in 0..self.n_layers {
            for to in 0..length {
                values.extend((0..length).map(|from| match level < flow.mixing.len() {
                    true => flow.edge(level, from, to),
                    false => 0.0,
                }));
            }
        }
        if !flow.read.is_empty() {
            values.extend(flow.read.iter().flatten());
            values.push(flow.embed);
        }
        values.extend(of_tokens.iter().flatten());
        example.cells = (first as u32..(first + values.len()) as u32).collect();
        example.values = values;
        example.facts.insert(HANDED_OUT.into(), flow.size());
    }
}

/// The fact of an example that says how much is handed out in all, as a size.
const HANDED_OUT: &str = "handed_out";

/// Drops the edges along which, in the mean over the examples with its sign, no more than a share of all that is handed out passes.
pub(super) fn drop_weak(measured: &mut Measured, threshold: f64) {
    let mut sums = vec![(0.0, 0.0); measured.cells.len()];
    for example in &measured.examples {
        let handed_out = example.facts.get(HANDED_OUT).copied().unwrap_or_default();
        for (&cell, value) in example.cells.iter().zip(&example.values) {
            let (passes, all) = &mut sums[cell as usize];
            *passes += value;
            *all += handed_out;
        }
    }
    let is_kept = |&cell: &u32| {
        let (passes, all) = sums[cell as usize];
        measured.cells[cell as usize].src.is_none() || passes.abs() > threshold * all
    };
    for example in &mut measured.examples {
        let own = example.cells.iter().copied().zip(&example.values);
        let (cells, values): (Vec<u32>, Vec<f64>) = own.filter(|(cell, _)| is_kept(cell)).unzip();
        example.cells = cells.into();
        example.values = values;
    }
    measured.drop_unmeasured();
}
