//! What the library advises, in the words of the command line: a field of a configuration is a flag here.

use candlewick::Error;
use candlewick::error::{self, Remedy};
use candlewick::text::visible;

/// The flag for each thing that messages of the library name, with the value that it always has where it has one.
const FLAGS: [(&str, &str); 109] = [
    ("AblationConfig::sets", "--together"),
    ("AttentionConfig::heads", "--heads"),
    ("AttentionConfig::layers", "--layers"),
    ("Circuit::in_whole_nodes", "--whole-nodes"),
    ("ComparedBy::Score", "--by score"),
    ("ComponentsConfig::fresh", "--fresh"),
    ("ComponentsConfig::kind", "--kind"),
    ("ComponentsConfig::masks", "--masks"),
    ("ContextConfig::draws", "--draws"),
    ("ContextConfig::head", "--head"),
    ("ContextConfig::kl_order", "--kl-order"),
    ("ContextConfig::layer", "--layer"),
    ("ContextConfig::lens", "--lens"),
    ("ContextConfig::methods", "--method"),
    ("DirectTarget::against", "--against"),
    ("DlaConfig::target", "--target"),
    ("EdgePath::Activations", "--method eap-ig-activations"),
    ("EdgePath::Along", "--method eap"),
    ("ExpandOptions::answer_space", "--answer-space"),
    ("ExpandOptions::bos", "--bos"),
    ("ExpandOptions::chat", "--chat-template"),
    ("ExpandOptions::metric", "--metric"),
    ("ExpandOptions::n_pairs", "--n-pairs"),
    ("ExpandOptions::seed", "--seed"),
    ("ExpandOptions::templates", "--template"),
    ("ExpandOptions::unequal", "--unequal-lengths"),
    ("FindConfig::size", "--n"),
    ("GradientPath::Base", "--method atp"),
    ("GradientPath::Inputs", "--method eap-ig"),
    ("GradientPath::steps", "--steps"),
    ("HeadConfig::repeat_length", "--repeat-length"),
    ("HeadConfig::samples", "--samples"),
    ("Alignment::roles", "--position"),
    ("InterchangeConfig::alignments", "--variable"),
    ("InterchangeConfig::draws", "--draws"),
    ("InterchangeConfig::inputs", "--inputs"),
    ("InterchangeConfig::program", "--program"),
    ("InterchangeConfig::sides", "--prompts"),
    ("InterchangeConfig::together", "--together"),
    ("LatentConfig::exact", "--method exact"),
    ("LoadOptions::device", "--device"),
    ("LoadOptions::dtype", "--dtype"),
    ("LoadOptions::revision", "--revision"),
    ("ModulationConfig::lambdas", "--lambda"),
    ("ModulationConfig::shuffles", "--shuffles"),
    ("NegativeConfig::draws", "--draws"),
    ("NegativeConfig::highest", "--highest"),
    ("PatchConfig::direction", "--direction"),
    ("PatchConfig::noise", "--noise"),
    ("PatchConfig::source", "--source"),
    ("PatchConfig::source_model", "--source-model"),
    ("PineConfig::orders", "--orders"),
    ("PruneConfig::steps", "--steps"),
    ("GenerateRequest::max_tokens", "--max-tokens"),
    ("QuestionSet::layout", "--layout"),
    ("QuestionSet::max_answer", "--max-answer"),
    ("QuestionSet::own_answers", "--own-answers"),
    ("Running::memory", "--memory"),
    ("RationaleConfig::against", "--against"),
    ("RationaleConfig::draws", "--draws"),
    ("RationaleConfig::keep", "--keep"),
    ("RationaleConfig::ratio", "--ratio"),
    ("RationaleConfig::replacer", "--replacer"),
    ("RationaleConfig::runs", "--runs"),
    ("RationaleConfig::steps", "--steps"),
    ("RationaleConfig::within", "--within"),
    ("Replacer::Masked", "--replacer-model"),
    ("RouteConfig::neurons", "--neurons"),
    ("RouteConfig::profile", "--profile"),
    ("Running::shard", "--shard"),
    ("Running::verify", "--verify"),
    ("Sae::reads", "--hook"),
    ("Sampling::temperature", "--temperature"),
    ("Search::answer_tokens", "--answer-tokens"),
    ("Search::draws", "--draws"),
    ("Search::rank", "--rank"),
    ("Search::steps", "--steps"),
    ("SourceConfig::subject", "--subject"),
    ("ReferenceSet::Corrupted", "--baseline corrupted"),
    ("RemovalConfig::players", "--players"),
    ("Steering::at", "--at"),
    ("RemovalConfig::removal", "--removal"),
    ("ScoreConfig::gold", "--gold"),
    ("ScoreConfig::methods", "--method"),
    ("ScoreConfig::scores", "--by"),
    ("SubspaceConfig::dims", "--dims"),
    ("SubspaceConfig::draws", "--draws"),
    ("SubspaceConfig::kind", "--hook"),
    ("SubspaceConfig::layers", "--layers"),
    ("SubspaceConfig::methods", "--method"),
    ("SubspaceConfig::roles", "--position"),
    ("SubspaceConfig::save", "--save-direction"),
    ("SubspaceConfig::train", "--train"),
    ("Summary::draws", "--draws"),
    ("Summary::stride", "--stride"),
    ("Summary::window", "--window"),
    ("SvgOptions::panel", "--panel"),
    ("SvgOptions::reach", "--scale-to"),
    ("SvgOptions::scale", "--scale"),
    ("TokenConfig::tunnel", "--tunnel"),
    ("SplitBy::Readers", "--readers"),
    ("Training::most_dims", "--most-dims"),
    ("Training::rate", "--rate"),
    ("Training::steps", "--steps"),
    ("Watch::keeping", "--out"),
    ("interchange::like", "--like"),
    ("task::from_pairs_file", "--pairs"),
    ("write_out::force", "--force"),
    // Flags without a value, for what is a choice of several in the library.
    ("Running::detail", "--per-example"),
];

/// A text of the library with flags for what it names.
pub fn worded(text: &str) -> String {
    error::worded(text, |remedy| {
        let Remedy::Set {
            owner,
            field,
            value,
        } = remedy
        else {
            return None;
        };
        let path = format!("{owner}::{field}");
        let (_, flag) = FLAGS.iter().find(|(known, _)| *known == path)?;
        Some(match value {
            Some(value) if path != "Running::detail" => format!("`{flag} {value}`"),
            _ => format!("`{flag}`"),
        })
    })
}

/// An error with what can be done about it.
pub fn advised(error: &Error) -> String {
    with_remedies(worded(&error.to_string()), error)
}

/// Adds what can be done about an error and its message does not name.
pub fn with_remedies(mut message: String, error: &Error) -> String {
    for remedy in error.remedies() {
        match remedy {
            Remedy::AcceptConfigKey(key) => {
                message += &format!(
                    "; if you know that it does not, `--accept-config-key {}` loads the model all the same, and results record it",
                    visible(&key)
                );
            }
            Remedy::GiveDate => message += "; `--date 2024-07-26`",
            _ => {}
        }
    }
    message
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::fs;
    use std::path::Path;

    use clap::CommandFactory;

    use super::*;

    /// The sources of the library, each with its path inside `src`.
    fn sources(folder: &Path, found: &mut Vec<(String, String)>) {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
            let name = path
                .strip_prefix(root)
                .unwrap()
                .to_string_lossy()
                .replace('\\', "/");
            if path.is_dir() && name != "cli" {
                sources(&path, found);
            } else if name.ends_with(".rs") && !name.contains("tests") && name != "main.rs" {
                found.push((name, fs::read_to_string(&path).unwrap()));
            }
        }
    }

    fn library() -> Vec<(String, String)> {
        let mut found = Vec::new();
        sources(
            &Path::new(env!("CARGO_MANIFEST_DIR")).join("src"),
            &mut found,
        );
        assert!(found.len() > 200, "{}", found.len());
        found
    }

    /// Lines of code before the first test module, less their comments.
    fn code(text: &str) -> impl Iterator<Item = &str> {
        text.lines()
            .take_while(|line| !line.starts_with("#[cfg(test)]"))
            .map(|line| {
                if line.trim_start().starts_with("//") {
                    ""
                } else {
                    line
                }
            })
    }

    #[test]
    fn no_message_of_the_library_names_a_flag() {
        // Files that are about command lines, or print for one: what a task file's comments advise, flags that decide no number, tables
        // cut for a terminal, the meaning of columns; and another program's flag.
        const ABOUT_THEM: [&str; 8] = [
            "model/families/gguf_keys.rs",
            "plot/ranked.rs",
            "plot/report/mod.rs",
            "scores/column.rs",
            "scores/output.rs",
            "task/draft.rs",
            "task/render.rs",
            "text/shell.rs",
        ];
        let mut named = Vec::new();
        for (name, text) in library() {
            let says = |line: &str| {
                line.match_indices("--").any(|(at, _)| {
                    let before = line[..at].chars().next_back();
                    let after = line[at + 2..].chars().next();
                    matches!(before, None | Some('`' | ' ' | '(' | '"'))
                        && after.is_some_and(|c| c.is_ascii_lowercase())
                })
            };
            if let Some(line) = code(&text).find(|line| says(line)) {
                named.push((name, line.trim().to_string()));
            }
        }
        named.retain(|(name, _)| !ABOUT_THEM.contains(&name.as_str()));
        assert!(named.is_empty(), "{named:#?}");
    }

    #[test]
    fn what_messages_name_is_there_and_has_a_flag_that_is_there() {
        let library = library();
        let mut flags = BTreeSet::new();
        fn collect(command: &clap::Command, flags: &mut BTreeSet<String>) {
            flags.extend(
                command
                    .get_arguments()
                    .filter_map(|arg| arg.get_long().map(str::to_string)),
            );
            command
                .get_subcommands()
                .for_each(|inner| collect(inner, flags));
        }
        collect(&super::super::Cli::command(), &mut flags);
        for (path, flag) in FLAGS {
            let name = flag.trim_start_matches("--").split(' ').next().unwrap();
            assert!(flags.contains(name), "`{path}`: no `{flag}`");
            let (owner, field) = path.split_once("::").unwrap();
            let declares = |text: &str| {
                ["struct", "enum", "fn", "mod"].iter().any(|kind| {
                    text.contains(&format!("pub {kind} {owner}"))
                        || text.contains(&format!("mod {owner};"))
                })
            };
            let is_there = library.iter().any(|(name, text)| {
                let is_module =
                    name.ends_with(&format!("{owner}.rs")) || *name == format!("{owner}/mod.rs");
                (declares(text) || is_module) && text.contains(field)
            });
            assert!(is_there, "the library has no `{path}`");
            let is_said = library
                .iter()
                .any(|(_, text)| text.contains(&format!("`{path}")));
            assert!(is_said, "no message names `{path}`");
        }
        // And nothing is named that has none.
        let printed = |name: &str| name == "error/remedy.rs";
        for (name, text) in library.iter().filter(|(name, _)| !printed(name)) {
            for line in code(text) {
                let Some(at) = line.find('`') else { continue };
                let said = worded(&line[at..]);
                let left = said.split('`').skip(1).step_by(2).find(|quoted| {
                    let path = quoted.split(" = ").next().unwrap_or_default();
                    path.split_once("::").is_some_and(|(owner, field)| {
                        [owner, field].iter().all(|name| {
                            !name.is_empty()
                                && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_')
                        })
                    })
                });
                assert_eq!(left, None, "{name}: {line}");
            }
        }
    }

    #[test]
    fn a_flag_stands_where_the_library_names_a_field() {
        assert_eq!(
            worded(
                "take more (`ExpandOptions::n_pairs`), or `PatchConfig::source = mean`; `Running::detail = PerExample`"
            ),
            "take more (`--n-pairs`), or `--source mean`; `--per-example`"
        );
    }
}
