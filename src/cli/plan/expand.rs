//! From a plan to its runs: each is a command line of its own, and a file that nobody else writes.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use candlewick::Error;
use candlewick::scores::check_out;
use candlewick::text::visible;
use clap::CommandFactory;

use super::file::{PlanFile, bad, nearest};
use crate::cli::{Cli, Command, parse_again};

/// Commands that a plan can hold: those that can be sharded, `feature attribute` among them.
fn measuring() -> Vec<String> {
    fn collect(command: &clap::Command, name: &str, found: &mut Vec<String>) {
        for command in command.get_subcommands() {
            let name = format!("{name} {}", command.get_name());
            match command.get_arguments().any(|flag| flag.get_id() == "shard") {
                true => found.push(name.trim_start().to_string()),
                false => collect(command, &name, found),
            }
        }
    }
    let mut found = Vec::new();
    collect(&Cli::command(), "", &mut found);
    found
}

/// Flags that the plan gives itself, and where.
const GIVEN: [(&str, &str); 10] = [
    ("model", "`models`"),
    ("revision", "`revisions` of a model"),
    ("task", "`tasks`"),
    ("pairs", "`tasks`"),
    ("seed", "`seeds`"),
    ("out", "`out`"),
    ("shard", "`candlewick submit`"),
    ("dry_run", "`candlewick run --dry-run`"),
    (
        "save_direction",
        "a run of its own (`candlewick subspace`), since all runs of a plan would write the one file",
    ),
    (
        "composition",
        "`candlewick path --composition`, which measures no prompts",
    ),
];

/// One run of a plan.
#[derive(Debug)]
pub struct Run {
    /// Its folders: model, task, method.
    pub keys: [String; 3],
    pub model: String,
    pub revision: Option<String>,
    pub seed: Option<u64>,
    /// Program first.
    pub command: Vec<String>,
    pub out: PathBuf,
    pub parsed: Command,
    pub typed: Vec<String>,
}

/// What is there of a run.
#[derive(Debug, Clone, PartialEq)]
pub enum State {
    /// Nothing, or parts.
    Open,
    /// Its result.
    Finished,
    /// Results of other settings.
    Stale(String),
}

impl Run {
    /// # Errors
    /// A place that cannot be written, or that holds a file that is not ours.
    pub fn state(&self) -> Result<State, Error> {
        if !self.out.exists() {
            return Ok(State::Open);
        }
        match check_out(&self.out, &self.command, false) {
            Ok(()) => Ok(match self.changed_since() {
                Some(file) => State::Stale(format!(
                    "the same command before `{}` changed",
                    file.display()
                )),
                None => State::Finished,
            }),
            Err(Error::OtherResults { made, .. }) => Ok(State::Stale(made)),
            Err(error) => Err(error),
        }
    }

    /// A file that the command names, or one of a folder that it names, which is newer than its result.
    fn changed_since(&self) -> Option<PathBuf> {
        let changed = |path: &Path| path.metadata().and_then(|about| about.modified()).ok();
        let made = changed(&self.out)?;
        let words = self.command.windows(2).filter(|words| {
            words[0].starts_with('-') || words[1].contains(['.', std::path::MAIN_SEPARATOR])
        });
        let named = words.map(|words| PathBuf::from(&words[1]));
        let named = named.filter(|path| *path != self.out && path.exists());
        let files = named.flat_map(|path| match path.read_dir() {
            Ok(entries) => entries.flatten().map(|entry| entry.path()).collect(),
            Err(_) => vec![path],
        });
        let mut files = files.filter(|path| path.is_file());
        files.find(|path| changed(path).is_some_and(|time| time > made))
    }

    /// In few words, for a line of progress.
    pub fn name(&self) -> String {
        let seed = self.seed.map(|seed| format!(" seed {seed}"));
        self.keys.join(" ") + &seed.unwrap_or_default()
    }
}

/// The runs of a plan, those of one model together.
/// # Errors
/// [`Error::BadPlan`] with every command that is none.
pub fn expand(plan: &PlanFile, path: &Path) -> Result<Vec<Run>, Error> {
    let mut problems = Vec::new();
    for method in &plan.methods {
        if let Some(problem) = problem(&method.command) {
            problems.push((method.line, format!("`{}`: {problem}", method.name)));
        }
    }
    if !problems.is_empty() {
        return Err(bad(path, &problems));
    }
    let mut runs = Vec::new();
    let mut models = Keys::default();
    let (mut tasks, mut methods) = (Keys::default(), Keys::default());
    for model in &plan.models {
        let revisions: Vec<Option<&String>> = if model.revisions.is_empty() {
            vec![None]
        } else {
            model.revisions.iter().map(Some).collect()
        };
        for revision in revisions {
            let id = match revision {
                Some(revision) => format!("{}@{revision}", model.id),
                None => model.id.clone(),
            };
            for task in &plan.tasks {
                for method in &plan.methods {
                    let keys = [
                        models.of(&id),
                        tasks.of(&task.name),
                        methods.of(&method.name),
                    ];
                    let folder = (["run_model", "run_task", "run_method"].iter().zip(&keys))
                        .fold(plan.out.clone(), |folder, (name, key)| {
                            folder.join(format!("{name}={key}"))
                        });
                    let seeds: Vec<Option<&u64>> = if plan.seeds.is_empty() {
                        vec![None]
                    } else {
                        plan.seeds.iter().map(Some).collect()
                    };
                    for (part, seed) in seeds.into_iter().enumerate() {
                        let mut command = vec!["candlewick".to_string()];
                        command.extend(method.command.iter().cloned());
                        command.extend(["--model".into(), model.id.clone()]);
                        if let Some(revision) = revision {
                            command.extend(["--revision".into(), revision.clone()]);
                        }
                        command.extend(model.flags.iter().chain(&task.flags).cloned());
                        if let Some(n_pairs) = plan.n_pairs {
                            command.extend(["--n-pairs".into(), n_pairs.to_string()]);
                        }
                        if let Some(seed) = seed {
                            command.extend(["--seed".into(), seed.to_string()]);
                        }
                        let out = folder.join(format!("part-{part:05}.parquet"));
                        command.extend(["--out".into(), out.display().to_string()]);
                        let (cli, typed) = parse_again(&command).map_err(|error| {
                            let words = [&model.flags[..], &task.flags[..]].concat().join(" ");
                            let problem =
                                format!("`{}` with `{words}`: {}", method.name, first_line(&error));
                            bad(path, &[(method.line, problem)])
                        })?;
                        runs.push(Run {
                            keys: keys.clone(),
                            model: model.id.clone(),
                            revision: revision.cloned(),
                            seed: seed.copied(),
                            command,
                            out,
                            parsed: cli.command,
                            typed,
                        });
                    }
                }
            }
        }
    }
    Ok(runs)
}

/// Why a command does not measure by its name.
pub fn not_measuring(command: &[String]) -> Option<String> {
    let measuring = measuring();
    let line = command.join(" ") + " ";
    let begins = |known: &String, with: &str| format!("{known} ").starts_with(with);
    if measuring
        .iter()
        .any(|known| line.starts_with(&format!("{known} ")))
    {
        return None;
    }
    let first = command.first().map_or("", String::as_str);
    let is_of_more = measuring
        .iter()
        .any(|known| begins(known, &format!("{first} ")));
    let name = command[..command.len().min(1 + usize::from(is_of_more))].join(" ");
    Some(format!(
        "`{}` is no command that measures; {}",
        visible(&name),
        nearest(&name, measuring.iter().map(String::as_str))
    ))
}

/// Why a method's command is none.
fn problem(command: &[String]) -> Option<String> {
    if let Some(problem) = not_measuring(command) {
        return Some(problem);
    }
    let words = std::iter::once("candlewick".to_string()).chain(command.iter().cloned());
    let typed = match parse_again(&words.collect::<Vec<_>>()) {
        Ok((_, typed)) => typed,
        Err(error) => return Some(first_line(&error)),
    };
    let given = GIVEN
        .iter()
        .find(|(flag, _)| typed.iter().any(|typed| typed == flag))?;
    let flag = given.0.replace('_', "-");
    Some(format!(
        "`--{flag}` has its own place in a plan: {}",
        given.1
    ))
}

/// What clap says, without its advice.
pub fn first_line(error: &clap::Error) -> String {
    let text = error.to_string();
    let mut lines = text.lines();
    let mut line = lines.next().unwrap_or_default().to_string();
    if line.ends_with(':') {
        // What it is about stands below, a line each.
        let named = lines.take_while(|line| line.starts_with("  "));
        line += &named
            .map(|line| format!(" {}", line.trim()))
            .collect::<String>();
    }
    visible(line.trim_start_matches("error: "))
}

/// Names of folders: no `/`, nothing that a file system or a reader of hive layouts takes for its own, and no two the same.
#[derive(Default)]
struct Keys(HashMap<String, String>);

impl Keys {
    fn of(&mut self, name: &str) -> String {
        if let Some(key) = self.0.get(name) {
            return key.clone();
        }
        let path = Path::new(name);
        let short = if path.is_absolute() || name.starts_with('.') {
            path.file_name()
                .map(|name| name.to_string_lossy().into_owned())
        } else {
            None
        };
        let plain: String = (short.as_deref().unwrap_or(name).replace('/', "--").chars())
            .map(|c| {
                if c.is_ascii_alphanumeric() || "._-@".contains(c) {
                    c
                } else {
                    '_'
                }
            })
            .take(120)
            .collect();
        let plain = plain.trim_start_matches('.').to_string();
        let is_taken = |key: &String| self.0.values().any(|other| other == key);
        let numbered = (2..).map(|number| format!("{plain}-{number}"));
        let mut candidates = std::iter::once(plain.clone())
            .filter(|key| !key.is_empty())
            .chain(numbered);
        let key = candidates
            .find(|key| !is_taken(key))
            .expect("numbers do not end");
        self.0.insert(name.to_string(), key.clone());
        key
    }
}

#[cfg(test)]
mod tests {
    use super::super::file::{PlanMethod, PlanModel, PlanTask};
    use super::*;

    fn words(text: &str) -> Vec<String> {
        text.split(' ').map(String::from).collect()
    }

    fn plan(method: &str) -> PlanFile {
        PlanFile {
            out: "out".into(),
            models: vec![PlanModel {
                id: "org/model".into(),
                revisions: words("step1 step2"),
                ..PlanModel::default()
            }],
            tasks: vec![PlanTask {
                name: "ioi".into(),
                flags: words("--task ioi"),
            }],
            methods: vec![PlanMethod {
                name: "heads".into(),
                command: words(method),
                line: 3,
            }],
            seeds: vec![4, 5],
            n_pairs: Some(2),
        }
    }

    #[test]
    fn every_combination_is_a_command_and_a_file() {
        let runs = expand(&plan("patch --sites z"), Path::new("p.toml")).unwrap();
        assert_eq!(runs.len(), 4);
        assert_eq!(
            runs[3].command.join(" "),
            "candlewick patch --sites z --model org/model --revision step2 --task ioi --n-pairs 2 --seed 5 \
             --out out/run_model=org--model@step2/run_task=ioi/run_method=heads/part-00001.parquet"
        );
    }

    #[test]
    fn a_result_is_of_its_inputs_as_they_were() {
        let folder = tempfile::tempdir().unwrap();
        let mut plan = plan("patch --sites z");
        plan.out = folder.path().join("out");
        let pairs = folder.path().join("pairs.csv");
        plan.tasks[0].flags = vec!["--pairs".into(), pairs.display().to_string()];
        let run = expand(&plan, Path::new("p.toml")).unwrap().remove(0);
        std::fs::create_dir_all(run.out.parent().unwrap()).unwrap();
        let written = |path: &Path, seconds: u64| {
            let file = std::fs::File::create(path).unwrap();
            let time = std::time::UNIX_EPOCH + std::time::Duration::from_secs(seconds);
            file.set_modified(time).unwrap();
        };
        written(&pairs, 10);
        assert_eq!(run.changed_since(), None, "nothing is made yet");
        written(&run.out, 20);
        assert_eq!(run.changed_since(), None);
        written(&pairs, 30);
        assert_eq!(run.changed_since(), Some(pairs));
    }

    #[test]
    fn commands_of_commands_are_run_too() {
        let runs = expand(
            &plan("feature activations --latents 1"),
            Path::new("p.toml"),
        )
        .unwrap();
        let begins = "candlewick feature activations --latents 1 --model org/model";
        assert!(runs[0].command.join(" ").starts_with(begins));
        for command in measuring() {
            let run = match command.as_str() {
                "circuit eval" => "circuit eval circuit.toml".into(),
                "scale" => "scale --heads a0.h0".into(),
                _ => command,
            };
            let runs = expand(&plan(&run), Path::new("p.toml")).expect(&run);
            assert!(crate::cli::asked(&runs[0].parsed).is_some(), "{run}");
        }
    }

    #[test]
    fn commands_that_are_none_are_refused_with_their_lines() {
        for (method, says) in [
            ("pach --sites z", "did you mean `patch`?"),
            ("tokens", "no command that measures"),
            (
                "feature",
                "`feature` is no command that measures; did you mean",
            ),
            ("feature show", "`feature show` is no command that measures"),
            ("feature atribute", "did you mean `feature attribute`?"),
            ("patch --sitez z", "--sitez"),
            ("patch --model x", "`--model` has its own place"),
            ("path --composition", "measures no prompts"),
        ] {
            let error = expand(&plan(method), Path::new("p.toml")).unwrap_err();
            let message = error.to_string();
            assert!(
                message.contains("line 3") && message.contains(says),
                "{message}"
            );
        }
    }

    #[test]
    fn folders_have_names_of_their_own() {
        let mut keys = Keys::default();
        assert_eq!(keys.of("a/b"), "a--b");
        assert_eq!(keys.of("a--b"), "a--b-2");
        assert_eq!(keys.of("a/b"), "a--b");
        assert_eq!(keys.of("../../x"), "x");
        assert_eq!(keys.of("/home/me/m.gguf"), "m.gguf");
        assert_eq!(keys.of("a=b c"), "a_b_c");
    }
}
