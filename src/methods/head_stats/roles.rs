//! The places of a task's prompts that something can be copied from.

use candle_core::Tensor;

use super::copying::{Sources, copying};
use crate::error::Result;
use crate::methods::method::Subject;
use crate::task::{Pair, Task};

/// Where the roles of a prompt stand that something can be copied from.
pub(super) struct Places {
    /// Role and position: the last token of each role, but for the one where the answer is read, which looks at the others.
    pub of_role: Vec<(usize, usize)>,
    /// The different tokens there.
    tokens: Vec<u32>,
    /// Which of them stands at each of the positions.
    own: Vec<usize>,
}

impl Places {
    pub fn of(pair: &Pair, roles: &[String]) -> Self {
        let last = |role: &String| pair.roles.get(role)?.last().copied();
        let mut of_role: Vec<(usize, usize)> = (roles.iter().enumerate())
            .filter_map(|(r, role)| Some((r, last(role)?)))
            .collect();
        let end = pair.target.positions(pair.clean.len()).start;
        of_role.retain(|&(_, pos)| pos != end);
        let mut tokens: Vec<u32> = of_role.iter().map(|&(_, pos)| pair.clean[pos]).collect();
        tokens.sort_unstable();
        tokens.dedup();
        let own = |&(_, pos): &(usize, usize)| tokens.binary_search(&pair.clean[pos]).ok();
        Places {
            own: of_role.iter().filter_map(own).collect(),
            of_role,
            tokens,
        }
    }

    /// The copying scores of each head at these places; none where there is only one token, which nothing is above or below.
    /// # Shapes
    /// `v [pos, n_kv_heads, d_head]`; gives `[head][place]`.
    pub fn copying(&self, on: Subject<'_>, layer: usize, v: &Tensor) -> Result<Vec<Vec<f64>>> {
        if self.tokens.len() < 2 {
            return Ok(Vec::new());
        }
        let sources = Sources {
            positions: self.of_role.iter().map(|&(_, pos)| pos as u32).collect(),
            tokens: &self.tokens,
            own: self.own.clone(),
        };
        copying(on.model, layer, v, &sources)
    }
}

/// The tokens at the roles of the first pair, each once.
pub(super) fn tokens_of_roles(task: &Task) -> Vec<u32> {
    let Some(pair) = task.pairs().first() else {
        return Vec::new();
    };
    let mut positions: Vec<usize> = pair.roles.values().flatten().copied().collect();
    positions.sort_unstable();
    let mut tokens = Vec::new();
    for pos in positions {
        if !tokens.contains(&pair.clean[pos]) {
            tokens.push(pair.clean[pos]);
        }
    }
    tokens
}
