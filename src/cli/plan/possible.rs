//! Whether the runs of a plan can be done: everything that is known before the first weight is read.

use std::collections::{BTreeMap, HashMap, hash_map};
use std::io::{self, Write};
use std::path::Path;
use std::sync::Arc;

use candlewick::Error;
use candlewick::model::hub::{self, Wanted};
use candlewick::model::{EMBEDDED, LoadOptions, open};
use candlewick::text::visible;

use super::run::{at_desk, said};
use super::{Desk, PlanFile, Run, Stage, expand};
use crate::cli::open::load_options;
use crate::cli::{Command, Context, asked, dispatch};

/// Looks for everything that can be wrong without weights, and gives the runs that cannot be done, with the reason.
pub fn check(
    runs: &[Run],
    which: &[usize],
    desk: Desk,
    ctx: &Context,
) -> anyhow::Result<(Desk, BTreeMap<usize, String>)> {
    let mut failed = BTreeMap::new();
    let desk = Arc::new(desk);
    for &i in which {
        if let Err(error) = dispatch(&runs[i].parsed, &at_desk(&runs[i], &desk, ctx)) {
            failed.insert(i, said(&error));
        }
    }
    Ok((
        Arc::into_inner(desk).expect("no run keeps the desk"),
        failed,
    ))
}

/// Adds the runs whose model has not all its weights, or others, of what is on this machine.
pub fn check_weights(
    runs: &[Run],
    which: &[usize],
    failed: &mut BTreeMap<usize, String>,
) -> anyhow::Result<()> {
    let mut known: HashMap<String, Option<String>> = HashMap::new();
    for &i in which {
        let Some((_, common)) = asked(&runs[i].parsed).filter(|_| !failed.contains_key(&i)) else {
            continue;
        };
        let reason = match known.entry(format!("{:?}", common.model)) {
            hash_map::Entry::Occupied(known) => known.into_mut(),
            hash_map::Entry::Vacant(place) => {
                let options = load_options(&common.model)?;
                let opened = open(&common.model.model, &options);
                let checked = opened.and_then(|opened| opened.check_weights());
                place.insert(checked.err().map(|error| said(&error.into())))
            }
        };
        failed.extend(reason.clone().map(|reason| (i, reason)));
    }
    Ok(())
}

/// Whether the weights of a run's model lie on this machine.
pub fn is_here(run: &Run) -> bool {
    let options = LoadOptions {
        revision: run.revision.clone(),
        offline: true,
        ..LoadOptions::default()
    };
    hub::locate(&run.model, &options, Wanted::Weights).is_ok()
}

/// The runs that cannot be done on this machine without a network, with the reason.
/// # Errors
/// Those of looking.
pub fn impossible(
    runs: &[Run],
    which: &[usize],
    ctx: &Context,
) -> anyhow::Result<BTreeMap<usize, String>> {
    let (_, mut failed) = check(runs, which, Desk::new(Stage::Check, true), ctx)?;
    for &i in which {
        if !failed.contains_key(&i) && runs[i].model != EMBEDDED && !is_here(&runs[i]) {
            let reason = "the weights of its model are not here; `candlewick fetch` brings them";
            failed.insert(i, reason.into());
        }
    }
    check_weights(runs, which, &mut failed)?;
    Ok(failed)
}

/// `candlewick check PLAN.toml`: whether all runs can be done on this machine without a network.
/// # Errors
/// [`Error::BadPlan`] if one cannot.
pub fn prove(path: &Path, ctx: &Context) -> anyhow::Result<()> {
    let plan = PlanFile::read(path)?;
    let runs = expand(&plan, path)?;
    let all: Vec<usize> = (0..runs.len()).collect();
    let failed = impossible(&runs, &all, ctx)?;
    let mut out = io::stdout().lock();
    for (i, run) in runs.iter().enumerate() {
        let verdict = failed.get(&i).map_or("can be done", |error| error);
        writeln!(
            out,
            "{:>4}  {}  {}",
            i + 1,
            visible(&run.name()),
            visible(verdict)
        )?;
    }
    if failed.is_empty() {
        writeln!(
            out,
            "\nall {} runs can be done without a network",
            runs.len()
        )?;
        return Ok(());
    }
    Err(Error::BadPlan {
        path: path.to_path_buf(),
        reason: format!(
            "{} of {} runs cannot be done here",
            failed.len(),
            runs.len()
        ),
    }
    .into())
}

/// The models of a plan, those that values are taken from among them, each revision once.
/// # Errors
/// Those of reading it.
pub fn models(path: &Path) -> Result<Vec<(String, Option<String>)>, Error> {
    let plan = PlanFile::read(path)?;
    let mut models = Vec::new();
    for run in expand(&plan, path)? {
        let of_values = match run.parsed {
            Command::Patch(args) => args.values.named(),
            Command::Ablate(args) => args.values.named(),
            Command::Attribute(args) => args.values.named(),
            Command::Rationale(args) => args.replacer_model.clone().map(|model| (model, None)),
            _ => None,
        };
        for model in std::iter::once((run.model, run.revision)).chain(of_values) {
            if !models.contains(&model) {
                models.push(model);
            }
        }
    }
    Ok(models)
}
