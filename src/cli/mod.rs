//! The command line: one file per subcommand, each using only the public library.
//!
//! A subcommand is `XArgs` (clap) and `run(args, ctx)`. Results go to stdout, progress and warnings to stderr.
mod ablate;
mod args;
mod attention;
mod attribute;
mod cache;
mod check;
mod circuit;
mod clean;
mod compare;
mod components;
mod context;
mod destination;
mod feature;
mod fetch;
mod flow;
mod generate;
mod heads;
mod hooks;
mod interchange;
mod logits;
mod merge;
mod models;
mod new;
mod open;
mod patch;
mod path;
mod picture;
mod pine;
mod plan;
mod progress;
mod rationale;
mod report;
mod scale;
mod session;
mod shell;
mod show;
mod submit;
mod subspace;
mod tokens;
mod worded;

use std::io::IsTerminal;
use std::sync::LazyLock;

use candlewick::plot::Color;
use clap::parser::ValueSource;
use clap::{ArgMatches, CommandFactory, FromArgMatches, Parser, Subcommand};

use args::ColorChoice;
pub use destination::destination;
pub use open::{load_options, open_task};
use progress::Bar;
pub use worded::{advised, with_remedies, worded};

/// Exact, fast and loud mechanistic interpretability of transformers.
#[derive(Debug, Parser)]
#[command(version = candlewick::BUILD, long_version = build(), propagate_version = true, arg_required_else_help = true)]
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

/// This build, the features that it has, and the kernels that it runs with here.
fn build() -> &'static str {
    static TEXT: LazyLock<String> = LazyLock::new(|| {
        let features = [
            ("hub", cfg!(feature = "hub")),
            ("lazy", cfg!(feature = "lazy")),
            ("cuda", cfg!(feature = "cuda")),
            ("metal", cfg!(feature = "metal")),
            ("mkl", cfg!(feature = "mkl")),
            ("accelerate", cfg!(feature = "accelerate")),
        ];
        let features = features.iter().filter(|(_, has)| *has);
        let features: Vec<&str> = features.map(|(name, _)| *name).collect();
        format!(
            "{}\nfeatures: {}\nkernels: {}",
            candlewick::BUILD,
            if features.is_empty() {
                "none".into()
            } else {
                features.join(", ")
            },
            candlewick::nn::host::instructions()
        )
    });
    &TEXT
}

#[derive(Debug, Subcommand)]
enum Command {
    Patch(patch::PatchArgs),
    Attribute(Box<attribute::AttributeArgs>),
    Logits(logits::LogitsArgs),
    Heads(heads::HeadsArgs),
    Attention(attention::AttentionArgs),
    Flow(flow::FlowArgs),
    Context(Box<context::ContextArgs>),
    Rationale(Box<rationale::RationaleArgs>),
    Cache(cache::CacheArgs),
    Ablate(Box<ablate::AblateArgs>),
    Components(components::ComponentsArgs),
    Interchange(Box<interchange::InterchangeArgs>),
    Path(path::PathArgs),
    Pine(Box<pine::PineArgs>),
    Circuit(circuit::CircuitArgs),
    Feature(feature::FeatureArgs),
    Subspace(subspace::SubspaceArgs),
    Generate(Box<generate::GenerateArgs>),
    Scale(scale::ScaleArgs),
    Tokens(tokens::TokensArgs),
    Hooks(hooks::HooksArgs),
    Models(models::ModelsArgs),
    Check(check::CheckArgs),
    Fetch(fetch::FetchArgs),
    Merge(merge::MergeArgs),
    Run(plan::RunArgs),
    Submit(submit::SubmitArgs),
    Show(show::ShowArgs),
    Compare(compare::CompareArgs),
    Report(report::ReportArgs),
    Clean(clean::CleanArgs),
    New(new::NewArgs),
    Completions(shell::CompletionsArgs),
    Man(shell::ManArgs),
}

/// What every subcommand gets besides its arguments.
#[derive(Debug, Clone)]
pub struct Context {
    pub quiet: bool,
    /// When the program began.
    pub began: std::time::Instant,
    /// The flags that were typed, as clap names them.
    pub typed: Vec<String>,
    /// Shards are merged instead of measuring.
    pub merging: Option<merge::Merging>,
    /// Where the runs of a plan meet.
    pub desk: Option<std::sync::Arc<plan::Desk>>,
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
            eprintln!("warning: {}", worded(message));
        }
    }
}

/// Parses the command line; wrong usage ends the process. Gives the flags that were typed too.
pub fn parse() -> (Cli, Vec<String>) {
    let command = Cli::command();
    let matches = command.clone().get_matches();
    let cli = Cli::from_arg_matches(&matches).unwrap_or_else(|error| error.exit());
    (cli, typed(&command, &matches))
}

/// A command line of another source than this process, and the flags that are typed in it.
/// # Errors
/// What clap says of one that is none of this version.
fn parse_again(command_line: &[String]) -> Result<(Cli, Vec<String>), clap::Error> {
    let command = Cli::command();
    let matches = command.clone().try_get_matches_from(command_line)?;
    let cli = Cli::from_arg_matches(&matches)?;
    Ok((cli, typed(&command, &matches)))
}

/// The flags that were typed, of a command and of its subcommand, by the names of their fields. (Groups of flags, which also
/// have names, are no flags.)
fn typed(command: &clap::Command, matches: &ArgMatches) -> Vec<String> {
    let is_typed = |flag: &&str| {
        matches.try_contains_id(flag).is_ok()
            && matches.value_source(flag) == Some(ValueSource::CommandLine)
    };
    let flags = command
        .get_arguments()
        .map(|flag| flag.get_id().as_str())
        .filter(is_typed);
    let mut all: Vec<String> = flags.map(String::from).collect();
    if let Some((name, matches)) = matches.subcommand()
        && let Some(command) = command.find_subcommand(name)
    {
        all.extend(typed(command, matches));
    }
    all
}

/// Runs the subcommand.
pub fn run(cli: Cli, typed: Vec<String>) -> anyhow::Result<()> {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let threads = cli.threads.map(usize::from);
    if let Some(threads) = threads {
        // More threads than cores wait for each other: a tenth of a second becomes minutes.
        set_threads(threads.min(cores));
    }
    let width = terminal_size::terminal_size().map_or(100, |(width, _)| usize::from(width.0));
    let ctx = Context {
        quiet: cli.quiet,
        began: std::time::Instant::now(),
        typed,
        merging: None,
        desk: None,
        command: command(),
        color: color(cli.color),
        is_terminal: std::io::stdout().is_terminal(),
        width,
    };
    if let Some(threads) = threads.filter(|&threads| threads > cores) {
        ctx.warn(&format!(
            "this machine has {cores} cores, so {cores} threads are used and not {threads}"
        ));
    }
    dispatch(&cli.command, &ctx)
}

fn dispatch(command: &Command, ctx: &Context) -> anyhow::Result<()> {
    match command {
        Command::Patch(args) => session::run(args, &args.common, ctx),
        Command::Cache(args) => cache::run(args, ctx),
        Command::Ablate(args) => session::run(args.as_ref(), &args.common, ctx),
        Command::Merge(args) => merge::run(args, ctx),
        Command::Run(args) => plan::run(args, ctx),
        Command::Submit(args) => submit::run(args, ctx),
        Command::Attribute(args) => session::run(args.as_ref(), &args.common, ctx),
        Command::Logits(args) => session::run(args, &args.common, ctx),
        Command::Heads(args) => session::run(args, &args.common, ctx),
        Command::Attention(args) => attention::run(args, ctx),
        Command::Flow(args) => session::run(args, &args.common, ctx),
        Command::Context(args) => session::run(args.as_ref(), &args.common, ctx),
        Command::Rationale(args) => session::run(args.as_ref(), &args.common, ctx),
        Command::Components(args) => session::run(args, &args.common, ctx),
        Command::Interchange(args) => session::run(args.as_ref(), &args.common, ctx),
        Command::Path(args) => path::run(args, ctx),
        Command::Pine(args) => session::run(args.as_ref(), &args.common, ctx),
        Command::Circuit(args) => circuit::run(args, ctx),
        Command::Feature(args) => {
            let (ask, common) = args.asked();
            session::run(ask, common, ctx)
        }
        Command::Subspace(args) => session::run(args, &args.common, ctx),
        Command::Generate(args) => generate::run(args, ctx),
        Command::Scale(args) => session::run(args, &args.common, ctx),
        Command::Tokens(args) => tokens::run(args, ctx),
        Command::Hooks(args) => hooks::run(args),
        Command::Models(args) => models::run(args),
        Command::Check(args) => check::run(args, ctx),
        Command::Fetch(args) => fetch::run(args, ctx),
        Command::Show(args) => show::run(args, ctx),
        Command::Compare(args) => compare::run(args, ctx),
        Command::Report(args) => report::run(args, ctx),
        Command::Clean(args) => clean::run(args),
        Command::New(args) => new::run(args),
        Command::Completions(args) => shell::completions(args),
        Command::Man(args) => shell::man(args),
    }
}

/// What a command asks for, if it measures.
fn asked(command: &Command) -> Option<(&dyn session::Ask, &session::CommonArgs)> {
    Some(match command {
        Command::Patch(args) => (args, &args.common),
        Command::Ablate(args) => (args.as_ref(), &args.common),
        Command::Attribute(args) => (args.as_ref(), &args.common),
        Command::Logits(args) => (args, &args.common),
        Command::Heads(args) => (args, &args.common),
        Command::Components(args) => (args, &args.common),
        Command::Interchange(args) => (args.as_ref(), &args.common),
        Command::Path(args) => (args, &args.common),
        Command::Pine(args) => (args.as_ref(), &args.common),
        Command::Scale(args) => (args, &args.common),
        Command::Attention(args) => (args, &args.common),
        Command::Flow(args) => (args, &args.common),
        Command::Context(args) => (args.as_ref(), &args.common),
        Command::Rationale(args) => (args.as_ref(), &args.common),
        Command::Feature(args) => args.asked(),
        Command::Subspace(args) => (args, &args.common),
        Command::Circuit(args) => return args.asked(),
        _ => return None,
    })
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
fn set_threads(threads: usize) {
    for name in ["RAYON_NUM_THREADS", "POLARS_MAX_THREADS"] {
        // SAFETY: this is called before any other thread exists.
        #[allow(unsafe_code)]
        unsafe {
            std::env::set_var(name, threads.to_string());
        }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_arguments_are_consistent() {
        use clap::CommandFactory;
        Cli::command().debug_assert();
    }

    #[test]
    fn every_flag_of_a_command_acts_in_a_mode_or_is_refused() {
        // The arguments that choose a mode, and the command's own flags that act in it.
        let swept = "sites source source_model source_revision reference window layers heads together class head_pairs ranked";
        let modes = [
            (
                "patch",
                "sites direction source source_model source_revision window layers heads noise",
            ),
            (
                "patch --noise @S2",
                "sites direction source source_model source_revision window layers heads noise noise_scale noise_samples",
            ),
            ("ablate", swept),
            (
                "ablate --source zero",
                "sites source source_model source_revision window layers heads together class head_pairs ranked",
            ),
            (
                "ablate --sites z --together a0.h0,a0.h1",
                &format!("{swept} at"),
            ),
            (
                "ablate --class x=a0.h0,a0.h1 --by mean-all",
                "sites source source_model source_revision reference together class head_pairs ranked at",
            ),
            (
                "ablate --head-pairs all --source resample",
                "sites source source_model source_revision together class head_pairs ranked at",
            ),
            (
                "ablate --block @END:@S2",
                "block whole_layers window layers heads",
            ),
            (
                "ablate --self-repair heads",
                "self_repair donors target layers heads",
            ),
            (
                "ablate --self-repair mlp",
                "self_repair donors target layers",
            ),
            (
                "ablate --ranked scores.parquet",
                "sites source source_model source_revision reference together class head_pairs ranked against lowest sizes random_sets at",
            ),
            (
                "path",
                "senders receivers over freeze_mlps at_senders at_receivers",
            ),
            ("path --path input:logits", "path"),
            ("path --composition", "composition"),
            ("scale --heads a0.h0", "heads factors by"),
            ("scale --by t.parquet", "heads by lambda shuffles"),
            ("heads", "score repeat_length samples circuit"),
            (
                "heads --circuit a0.h0",
                "score repeat_length samples circuit from tokens",
            ),
            ("heads --score replacement", "score replace_by"),
            ("heads --score ships", "score change texts"),
            (
                "heads --score sahara",
                "score change texts steps rank draws decline refusal",
            ),
            (
                "heads --score sahara --refusal sorry",
                "score change texts steps rank draws decline refusal answer_tokens",
            ),
            (
                "heads --score negative-attention",
                "score positive negative highest draws",
            ),
            (
                "flow --profile",
                "method threshold renormalise at contrast profile neurons texts",
            ),
            ("flow --method alti", "method threshold at"),
            (
                "subspace",
                "hook layers position method train control split readers save_direction dims steps rate draws",
            ),
            (
                "subspace --method boundless-das",
                "hook layers position method train control split readers save_direction most_dims steps rate",
            ),
            (
                "subspace --method full",
                "hook layers position method train control",
            ),
            (
                "interchange",
                "program variable hook layers position units subspace together inputs prompts draws decode",
            ),
            ("pine", "questions layout orders"),
            ("flow --method alti-logit", "method threshold"),
            ("flow --method globenc", "method threshold at against"),
            (
                "rationale",
                "replacer replacer_model ratio keep within runs steps against draws",
            ),
            (
                "context",
                "questions question context_file lines answer layout max_answer method kl_order draws head layer lens own_answers steer factor",
            ),
        ];
        for (arguments, acts) in modes {
            let words = std::iter::once("candlewick").chain(arguments.split(' '));
            let matches = Cli::command().try_get_matches_from(words).expect(arguments);
            let cli = Cli::from_arg_matches(&matches).expect(arguments);
            let mode = asked(&cli.command).expect("it measures").0.mode();
            let command = Cli::command();
            mode.check(&typed(&Cli::command(), &matches))
                .expect(arguments);
            let (name, _) = matches.subcommand().expect("a command");
            let command = command.find_subcommand(name).expect("it was parsed");
            let ids: Vec<&str> = (command.get_arguments())
                .map(|flag| flag.get_id().as_str())
                .collect();
            for id in ids.iter().filter(|id| !session::COMMON.contains(id)) {
                let is_said = acts.split(' ').any(|flag| flag == *id);
                let refused = mode.check(&[id.to_string()]).is_err();
                assert_eq!(refused, !is_said, "{arguments}: --{id}");
            }
            for flag in mode.acts.iter().chain(&mode.idle) {
                assert!(
                    ids.contains(flag) || session::COMMON.contains(flag),
                    "{arguments}: there is no --{flag}"
                );
            }
            for flag in &mode.idle {
                assert!(
                    mode.check(&[flag.to_string()]).is_err(),
                    "{arguments}: {flag}"
                );
            }
        }
    }
}
