//! The binary: parses, runs one subcommand, and turns its outcome into an exit code.

mod cli;

use std::io::{self, Write};
use std::panic::PanicHookInfo;
use std::process::ExitCode;

use candlewick::Error;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// 0 done, 1 failed, 2 wrong usage (clap's own), 130 interrupted. A reader that closes our pipe has had enough: no failure.
fn main() -> ExitCode {
    std::panic::set_hook(Box::new(report));
    let (cli, typed) = cli::parse();
    let Err(error) = cli::run(cli, typed) else {
        return ExitCode::SUCCESS;
    };
    if is_closed_pipe(&error) {
        return ExitCode::SUCCESS;
    }
    eprintln!("error: {}", with_causes(&error));
    match error.downcast_ref::<Error>() {
        Some(Error::Interrupted { .. }) => ExitCode::from(130),
        _ => ExitCode::FAILURE,
    }
}

/// What a mistake of ours says: one line, with what a report needs. A reader's panic that becomes an error says nothing here.
fn report(panic: &PanicHookInfo) {
    if candlewick::panics::is_caught() {
        return;
    }
    let payload = panic.payload();
    let what = payload
        .downcast_ref::<&str>()
        .copied()
        .or(payload.downcast_ref::<String>().map(String::as_str))
        .unwrap_or("no message");
    let place = panic
        .location()
        .map_or(String::new(), |at| format!(" at {at}"));
    let version = candlewick::BUILD;
    let place_to_report = match env!("CARGO_PKG_REPOSITORY") {
        "" => "to whoever gave you this program".to_string(),
        repository => format!("at {repository}/issues"),
    };
    let line = candlewick::text::one_line(what);
    // A broken stderr is no reason to panic again.
    let _ = writeln!(
        io::stderr(),
        "bug: {line}{place} (candlewick {version}); this is our mistake, not yours: please report this line and the command {place_to_report}"
    );
}

fn is_closed_pipe(error: &anyhow::Error) -> bool {
    let io_errors = error
        .chain()
        .filter_map(|cause| cause.downcast_ref::<io::Error>());
    io_errors
        .into_iter()
        .any(|cause| cause.kind() == io::ErrorKind::BrokenPipe)
}

/// The message and its causes, but not a cause that the message quotes already.
fn with_causes(error: &anyhow::Error) -> String {
    if let Some(error @ Error::Condition { .. }) = error.downcast_ref::<Error>() {
        // It points at a place in the line below it.
        let lines: Vec<String> = error
            .to_string()
            .lines()
            .map(candlewick::text::printable)
            .collect();
        return lines.join("\n");
    }
    let mut line = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let message = error.to_string();
        if !line.contains(&message) {
            line = format!("{line}: {message}");
        }
        cause = error.source();
    }
    line = cli::worded(&line);
    if let Some(error) = error.downcast_ref::<Error>() {
        line = cli::with_remedies(line, error);
    }
    candlewick::text::one_line(&line)
}
