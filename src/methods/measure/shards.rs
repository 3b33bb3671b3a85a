//! Work that is split between processes: one shard measured and written, and all of them merged.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use serde_json::Value;

use super::work::Work;
use super::{Keeping, Watch, measure};
use crate::error::{Error, Result};
use crate::methods::method::{Method, Running, Subject};
use crate::scores::Scores;
use crate::scores::parts::{Fragment, ShardNote, plan_text, read_shard, write_shard};

/// What a piece of work is, as text: all that decides a number. Shards of one table have it in common.
/// # Errors
/// Those of [`check`](super::check).
pub fn work_plan(on: Subject<'_>, method: &dyn Method, running: &Running) -> Result<String> {
    Ok(plan_text(Work::new(on, method, running)?.plan()))
}

/// Measures one shard and writes it, for [`merge`]. One that is there already, of this very work, is not measured again.
/// # Errors
/// Those of [`measure`] and of writing.
pub fn measure_shard(
    on: Subject<'_>,
    method: &dyn Method,
    running: &Running,
    watch: &Watch<'_>,
    path: &Path,
    command: &[String],
) -> Result<ShardNote> {
    let shard = running
        .shard
        .ok_or_else(|| Error::invalid("this is no shard; say which of how many, such as `1/4`"))?;
    let name = method.header(on.task).method;
    let work = Work::new(on, method, running)?;
    if path.exists()
        && let Ok((note, _)) = read_shard(path)
        && note.shard == shard
        && note.plan == plan_text(work.plan())
    {
        return Ok(note);
    }
    let (fragments, seconds) = work.fragments(watch, &name)?;
    let folder = std::env::current_dir().unwrap_or_default();
    let note = ShardNote {
        shard,
        plan: plan_text(work.plan()),
        command: command.to_vec(),
        folder: folder.display().to_string(),
        seconds,
    };
    write_shard(path, &fragments, &note)?;
    Ok(note)
}

/// The table of all shards of one piece of work: what [`measure`] would have given. What is chosen after measuring (verification,
/// conclusions) is done here.
/// # Errors
/// [`Error::Shards`] that names a missing, doubled or foreign shard; those of [`measure`].
pub fn merge(
    on: Subject<'_>,
    method: &dyn Method,
    running: &Running,
    shards: &[PathBuf],
    watch: &Watch<'_>,
) -> Result<Scores> {
    let read = read_shards(shards)?;
    let out = watch
        .keeping
        .map_or(PathBuf::from("merged.parquet"), |keeping| {
            keeping.out.clone()
        });
    let keeping = Keeping {
        out,
        stores: RefCell::default(),
        shards: BTreeMap::from([(read.plan, read.fragments)]),
    };
    let watch = Watch {
        progress: watch.progress,
        keeping: Some(&keeping),
    };
    let scores = measure(on, method, running, &watch)?;
    keeping.remove()?;
    Ok(scores)
}

/// The shards of one piece of work, none missing and none twice.
#[derive(Debug)]
pub struct Shards {
    pub plan: String,
    pub fragments: Vec<Fragment>,
    /// What the first shard says of itself.
    pub note: ShardNote,
}

/// Reads shards that belong together.
/// # Errors
/// [`Error::Shards`] that names a missing, doubled or foreign one.
pub fn read_shards(paths: &[PathBuf]) -> Result<Shards> {
    let refuse = |reason: String| Err(Error::Shards { reason });
    let mut found: BTreeMap<usize, &PathBuf> = BTreeMap::new();
    let mut all: Option<Shards> = None;
    for path in paths {
        let (note, fragments) = read_shard(path)?;
        let all = all.get_or_insert_with(|| Shards {
            plan: note.plan.clone(),
            fragments: Vec::new(),
            note: note.clone(),
        });
        let (shard, first) = (note.shard, all.note.shard);
        if note.plan != all.plan || shard.count != first.count {
            return refuse(format!(
                "`{}` is shard {shard} of other work than `{}`: {}",
                path.display(),
                paths[0].display(),
                difference(&all.plan, &note.plan)
            ));
        }
        if let Some(other) = found.insert(shard.index, path) {
            return refuse(format!(
                "`{}` and `{}` are both shard {shard}; give each shard once",
                other.display(),
                path.display()
            ));
        }
        all.fragments.extend(fragments);
    }
    let Some(all) = all else {
        return refuse("there is none; name the files that `Running::shard` wrote".into());
    };
    let count = all.note.shard.count;
    let missing: Vec<String> = (1..=count)
        .filter(|index| !found.contains_key(index))
        .map(|index| format!("{index}/{count}"))
        .collect();
    if !missing.is_empty() {
        return refuse(format!(
            "shards {} are missing; run the same command with `Running::shard = {}`",
            missing.join(", "),
            missing[0]
        ));
    }
    Ok(all)
}

/// In what two plans ([`work_plan`]) differ, with short values: `there, here`.
pub fn difference(there: &str, here: &str) -> String {
    let parse = |text: &str| serde_json::from_str::<Value>(text).unwrap_or_default();
    let (Value::Object(there), Value::Object(here)) = (parse(there), parse(here)) else {
        return "another plan".into();
    };
    let brief = |value: Option<&Value>| {
        let text = value.map_or("absent".to_string(), Value::to_string);
        if text.chars().count() > 40 {
            text.chars().take(39).chain(['…']).collect()
        } else {
            text
        }
    };
    let keys: BTreeSet<&String> = there.keys().chain(here.keys()).collect();
    let differing: Vec<String> = keys
        .into_iter()
        .filter(|key| there.get(*key) != here.get(*key))
        .map(|key| {
            format!(
                "`{key}` is {} and {}",
                brief(there.get(key)),
                brief(here.get(key))
            )
        })
        .collect();
    if differing.is_empty() {
        return "they were cut into other numbers of shards".into();
    }
    differing.join("; ")
}
