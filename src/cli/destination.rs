//! Where a command's results go.

use std::path::{Path, PathBuf};

use candlewick::Error;
use candlewick::scores::{check_out, check_writable};

use super::Context;
use super::args::OutputArgs;

/// More results of one default name than this are more than anybody can tell apart.
const MOST: usize = 1000;

/// The file that `--out` names, checked before the long part of the work; else the default name, or, where that holds the results
/// of another command, the first of `NAME-2`, `NAME-3`, ... that does not.
/// # Errors
/// Those of [`check_out`].
pub fn destination(output: &OutputArgs, default: &str, ctx: &Context) -> anyhow::Result<PathBuf> {
    if let Some(out) = &output.out {
        check_out(out, &ctx.command, output.force)?;
        return Ok(out.clone());
    }
    let first = PathBuf::from(default);
    let numbered = (2..=MOST).map(|number| with_number(&first, number));
    let mut taken = None;
    for path in std::iter::once(first.clone()).chain(numbered) {
        match check_out(&path, &ctx.command, output.force) {
            Err(error @ (Error::OtherResults { .. } | Error::NotOurs { .. })) => {
                taken.get_or_insert(error);
            }
            other => {
                other?;
                if taken.is_some() {
                    ctx.warn(&format!(
                        "`{default}` is kept as it is; results go to `{}` (`--out` names another place)",
                        path.display()
                    ));
                }
                return Ok(path);
            }
        }
    }
    let error = taken.expect("the last of many names was taken");
    Err(error.into())
}

/// Refuses a result in the place of a file that the command reads, which is lost then, whatever `--force` says.
/// # Errors
/// [`Error::Invalid`] naming the file.
pub fn check_not_read<'a>(
    out: &Path,
    read: impl IntoIterator<Item = &'a Path>,
) -> Result<(), Error> {
    let real = |path: &Path| std::fs::canonicalize(path).ok();
    let Some(place) = real(out) else {
        return Ok(());
    };
    let is_same = |path: &&Path| real(path).as_ref() == Some(&place);
    match read.into_iter().find(is_same) {
        None => Ok(()),
        Some(path) => Err(Error::invalid(format!(
            "`{}` is what this command reads; write its result to another place",
            path.display()
        ))),
    }
}

/// Refuses to lose a file that does not say which command made it: a picture, activations, a task of one's own.
/// # Errors
/// [`Error::Invalid`] where there is one; those of [`check_writable`].
pub fn check_new(path: &Path, force: bool) -> Result<(), Error> {
    let holds_something = std::fs::metadata(path).is_ok_and(|about| about.len() > 0);
    if holds_something && !force {
        return Err(Error::invalid(format!(
            "`{}` is there already; choose another name, or replace it with `--force`",
            path.display()
        )));
    }
    check_writable(path)
}

/// `scores-2.parquet` for `scores.parquet`.
fn with_number(path: &Path, number: usize) -> PathBuf {
    let text =
        |part: Option<&std::ffi::OsStr>| part.unwrap_or_default().to_string_lossy().into_owned();
    let (stem, ending) = (text(path.file_stem()), text(path.extension()));
    path.with_file_name(format!("{stem}-{number}.{ending}"))
}
