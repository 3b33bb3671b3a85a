//! What is done to heads, several at a time.

use crate::hooks::{Edit, Hook, Kind, Op, Site};
use crate::methods::method::{Running, Subject};
use crate::run::Sources;

/// A head.
pub(super) type Head = (usize, usize);

/// What is done to heads, and in what.
pub(super) struct Changing<'a> {
    pub on: Subject<'a>,
    pub running: &'a Running,
    pub kind: Kind,
    pub op: Op,
    pub sources: Sources,
    /// Of random heads.
    pub seed: u64,
}

impl Changing<'_> {
    /// The changes of some heads.
    pub fn edits(&self, heads: &[Head]) -> Vec<Edit> {
        let edit = |&(layer, head): &Head| {
            let site = Site::all(Hook::at(self.kind, layer)).heads([head]);
            Edit::new(site, self.op.clone())
        };
        heads.iter().map(edit).collect()
    }
}
