//! The command line: one file per subcommand, each using only the public library.
//!
//! A subcommand is `XArgs` (clap) and `run(args, ctx)`. Results go to stdout, progress and warnings to stderr.
mod ablate;
mod args;
mod attribute;
mod check;
mod clean;
mod destination;
mod fetch;
mod generate;
mod heads;
mod hooks;
mod logits;
mod models;
mod open;
mod patch;
mod path;
mod progress;
mod scale;
mod show;
mod tokens;

use std::io::IsTerminal;

use candlewick::Error;
use candlewick::error::Remedy;
use candlewick::plot::Color;
use clap::{Parser, Subcommand};

use args::ColorChoice;
pub use destination::destination;
pub use open::{load_options, open_model, open_task};
use progress::Bar;

/// Exact, fast and loud mechanistic interpretability of transformers.
#[derive(Debug, Parser)]
#[command(version, propagate_version = true, arg_required_else_help = true)]
pub struct Cli {
    #[command(subcommand)]
    command: Command,

    /// No progress and no warnings on stderr.
    #[arg(long, short, global = true)]
    quiet: bool,

    /// When to use colours; `auto` means on a terminal, unless NO_COLOR is set.
    #[arg(long, value_name = "WHEN", default_value = "auto", global = true)]
    color: ColorChoice,

    /// Threads to compute with [default: one a core].
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..), global = true)]
    threads: Option<u16>,
}

/// What can be done about an error, in the words of the command line.
pub fn worded(remedy: &Remedy) -> String {
    match remedy {
        Remedy::AcceptConfigKey(key) => format!(
            "if you know that it does not, `--accept-config-key {}` loads the model all the same, and results record it",
            candlewick::text::visible(key)
        ),
        Remedy::GiveDate => "`--date 2024-07-26`".to_string(),
        _ => String::new(),
    }
}

/// An error with what can be done about it.
pub fn advised(error: &Error) -> String {
    match error.remedy() {
        Some(remedy) => format!("{error}; {}", worded(&remedy)),
        None => error.to_string(),
    }
}

#[derive(Debug, Subcommand)]
enum Command {
    Patch(patch::PatchArgs),
    Ablate(ablate::AblateArgs),
    Path(path::PathArgs),
    Attribute(attribute::AttributeArgs),
    Logits(logits::LogitsArgs),
    Heads(heads::HeadsArgs),
    Generate(generate::GenerateArgs),
    Scale(scale::ScaleArgs),
    Tokens(tokens::TokensArgs),
    Hooks(hooks::HooksArgs),
    Models(models::ModelsArgs),
    Check(check::CheckArgs),
    Fetch(fetch::FetchArgs),
    Show(show::ShowArgs),
    Clean(clean::CleanArgs),
}

/// What every subcommand gets besides its arguments.
#[derive(Debug)]
pub struct Context {
    pub quiet: bool,
    /// The arguments of this process, program first: what a result says it was made by.
    pub command: Vec<String>,
    /// What stdout can show.
    pub color: Color,
    /// Whether stdout is a terminal.
    pub is_terminal: bool,
    /// Columns of the terminal, or a width that suits a file.
    pub width: usize,
}

impl Context {
    /// The bar that watches long work, and the Ctrl-C handler that stops it.
    pub fn progress(&self) -> Bar {
        Bar::new(self.quiet)
    }

    /// Says what is lawful but doubtful about a task.
    pub fn warn_of(&self, task: &candlewick::task::Task) {
        for note in &task.notes {
            self.warn(note);
        }
    }

    /// Says something doubtful on stderr.
    pub fn warn(&self, message: &str) {
        if !self.quiet {
            eprintln!("warning: {message}");
        }
    }
}

/// Runs the subcommand.
pub fn run(cli: Cli) -> anyhow::Result<()> {
    if let Some(threads) = cli.threads {
        set_threads(threads);
    }
    let width = terminal_size::terminal_size().map_or(100, |(width, _)| usize::from(width.0));
    let ctx = Context {
        quiet: cli.quiet,
        command: command(),
        color: color(cli.color),
        is_terminal: std::io::stdout().is_terminal(),
        width,
    };
    match cli.command {
        Command::Patch(args) => patch::run(args, &ctx),
        Command::Ablate(args) => ablate::run(args, &ctx),
        Command::Path(args) => path::run(args, &ctx),
        Command::Attribute(args) => attribute::run(args, &ctx),
        Command::Logits(args) => logits::run(args, &ctx),
        Command::Heads(args) => heads::run(args, &ctx),
        Command::Generate(args) => generate::run(args, &ctx),
        Command::Scale(args) => scale::run(args, &ctx),
        Command::Tokens(args) => tokens::run(args, &ctx),
        Command::Hooks(args) => hooks::run(args),
        Command::Models(args) => models::run(args),
        Command::Check(args) => check::run(args),
        Command::Fetch(args) => fetch::run(args, &ctx),
        Command::Show(args) => show::run(args, &ctx),
        Command::Clean(args) => clean::run(args),
    }
}

/// The command line, however the program was found.
fn command() -> Vec<String> {
    let arguments = std::env::args_os().skip(1);
    let arguments = arguments.map(|argument| argument.to_string_lossy().into_owned());
    std::iter::once("candlewick".to_string())
        .chain(arguments)
        .collect()
}

/// candle's kernels, rayon and polars each read the number of threads from the environment when they first need it.
fn set_threads(threads: u16) {
    for name in ["RAYON_NUM_THREADS", "POLARS_MAX_THREADS"] {
        // SAFETY: this is called before any other thread exists.
        unsafe { std::env::set_var(name, threads.to_string()) };
    }
}

fn color(choice: ColorChoice) -> Color {
    let set = |name: &str| std::env::var_os(name).is_some_and(|value| !value.is_empty());
    let is = |name: &str, values: &[&str]| {
        std::env::var(name).is_ok_and(|value| values.contains(&value.as_str()))
    };
    let wanted = match choice {
        ColorChoice::Always => true,
        ColorChoice::Never => false,
        ColorChoice::Auto => {
            std::io::stdout().is_terminal() && !set("NO_COLOR") && !is("TERM", &["dumb"])
        }
    };
    match wanted {
        false => Color::None,
        true if is("COLORTERM", &["truecolor", "24bit"]) => Color::Truecolor,
        true => Color::Ansi256,
    }
}

/// A command line that a shell reads back as these arguments.
pub fn shell_quoted(argv: &[String]) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./:=,@%+".contains(c);
    let quoted = argv.iter().map(|argument| match argument {
        text if !text.is_empty() && text.chars().all(plain) => text.clone(),
        // A control character would reach the terminal: `$'...'` writes it as an escape.
        text if text.chars().any(char::is_control) => format!("$'{}'", text.escape_default()),
        text => format!("'{}'", text.replace('\'', r"'\''")),
    });
    quoted.collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_arguments_are_consistent() {
        use clap::CommandFactory;
        Cli::command().debug_assert();
    }

    #[test]
    fn a_shell_reads_back_what_was_quoted() {
        let quoted = |text: &str| shell_quoted(&[text.to_string()]);
        assert_eq!(quoted("--out=a.parquet"), "--out=a.parquet");
        assert_eq!(quoted(""), "''");
        assert_eq!(quoted("it's $HOME"), r"'it'\''s $HOME'");
        assert_eq!(quoted("a\x1b"), r"$'a\u{1b}'");
    }
}
