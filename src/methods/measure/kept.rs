//! The finished parts of a piece of work, found again and kept while it runs.

use std::path::Path;
use std::time::Duration;

use super::Keeping;
use super::work::Work;
use crate::error::Result;
use crate::methods::method::Unit;
use crate::run::Progress;
use crate::scores::parts::{Fragment, PartStore, folder_of};

/// A run that is done sooner writes no parts: measuring again takes less than keeping them.
pub(super) const KEEP_AFTER: Duration = Duration::from_secs(2);

/// The finished parts of a piece of work.
pub(super) struct Parts<'w, 'a> {
    work: &'w Work<'a>,
    out: &'w Path,
    /// Opened if something is there already, or is to be kept.
    pub store: Option<PartStore>,
    /// How many fragments of this run are kept.
    kept: usize,
}

impl<'w, 'a> Parts<'w, 'a> {
    /// Finds what an earlier run kept.
    pub fn begin(
        work: &'w Work<'a>,
        keeping: &'w Keeping,
        progress: &dyn Progress,
    ) -> Result<Self> {
        let mut parts = Parts {
            work,
            out: &keeping.out,
            store: None,
            kept: 0,
        };
        if !folder_of(parts.out).exists() {
            return Ok(parts);
        }
        // What this very run keeps already (a verification follows) is no other run's.
        let own = keeping.stores.borrow().len();
        let store = parts.open()?;
        for warning in store.warnings() {
            progress.note(&format!("warning: {warning}"));
        }
        let others = store.others().saturating_sub(own);
        if store.is_empty() && others > 0 {
            progress.note(&format!(
                "beside {} are unfinished parts of other runs ({others}), with other settings; this run begins anew \
                 (`candlewick clean` lists and removes such parts)",
                keeping.out.display(),
            ));
        }
        Ok(parts)
    }

    fn open(&mut self) -> Result<&mut PartStore> {
        let store = match self.store.take() {
            Some(store) => store,
            None => PartStore::open(self.out, self.work.plan(), self.work.running.shard)?,
        };
        Ok(self.store.insert(store))
    }

    pub fn has(&self, unit: &Unit) -> bool {
        let cells = unit.cells.start as u32..unit.cells.end as u32;
        let (prepared, task) = (self.work.prepared.borrow(), self.work.on.task);
        self.store.as_ref().is_some_and(|store| {
            let mut items = unit.items.iter();
            items.all(|&item| store.has(prepared.example(task, item), &cells))
        })
    }

    pub fn read(&self) -> Result<Vec<Fragment>> {
        self.store
            .as_ref()
            .map_or(Ok(Vec::new()), PartStore::read_all)
    }

    /// Keeps those of the fragments of this run that are not kept yet: when this returns, a kill does not lose them.
    pub fn keep(&mut self, fragments: &[Fragment]) -> Result<()> {
        for fragment in &fragments[self.kept..] {
            self.open()?.write(fragment)?;
            self.kept += 1;
        }
        Ok(())
    }
}
