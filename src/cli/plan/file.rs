//! A plan as it is written: which models, tasks, methods and seeds are combined. Everything that is wrong with it is said at once,
//! with its line.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use candlewick::Error;
use candlewick::text::visible;
use toml::Spanned;
use toml::de::{DeTable, DeValue};

/// Longer plans are no plans.
const LIMIT: u64 = 1 << 20;
/// A range of revisions gives at most so many.
const MOST_REVISIONS: usize = 10_000;

/// A plan: every model at every revision, with every task, method and seed.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct PlanFile {
    /// The folder of the results; by default the file's name without `.toml`.
    pub out: PathBuf,
    pub models: Vec<PlanModel>,
    pub tasks: Vec<PlanTask>,
    pub methods: Vec<PlanMethod>,
    /// Empty: the seeds of the tasks.
    pub seeds: Vec<u64>,
    pub n_pairs: Option<u32>,
}

/// A model, and which revisions of it.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct PlanModel {
    pub id: String,
    /// Empty: the default one.
    pub revisions: Vec<String>,
    /// Flags of every run on it, such as `--dtype bf16`.
    pub flags: Vec<String>,
}

/// A task, under the name that results stand under.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct PlanTask {
    pub name: String,
    /// `--task NAME` or `--pairs FILE`, and more.
    pub flags: Vec<String>,
}

/// A measuring command, under the name that results stand under.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct PlanMethod {
    pub name: String,
    /// `patch`, `--sites`, `z`.
    pub command: Vec<String>,
    pub line: usize,
}

impl PlanFile {
    /// # Errors
    /// [`Error::BadPlan`] with everything that is wrong; [`Error::Read`].
    pub fn read(path: &Path) -> Result<PlanFile, Error> {
        let unread = |source| Error::Read {
            path: path.to_path_buf(),
            source,
        };
        let mut text = String::new();
        let file = File::open(path).map_err(unread)?;
        file.take(LIMIT + 1)
            .read_to_string(&mut text)
            .map_err(unread)?;
        if text.len() as u64 > LIMIT {
            return Err(bad(path, &[(0, "it is longer than 1 MB".into())]));
        }
        PlanFile::parse(&text, path)
    }

    fn parse(text: &str, path: &Path) -> Result<PlanFile, Error> {
        let mut reader = Reader {
            text,
            problems: Vec::new(),
        };
        let plan = match DeTable::parse(text) {
            Ok(table) => reader.plan(table.get_ref()),
            Err(error) => {
                let line = error.span().map_or(0, |span| reader.line(span.start));
                reader.problems.push((line, error.message().to_string()));
                PlanFile::default()
            }
        };
        if !reader.problems.is_empty() {
            reader.problems.sort();
            return Err(bad(path, &reader.problems));
        }
        let out = if plan.out.as_os_str().is_empty() {
            path.with_extension("")
        } else {
            plan.out.clone()
        };
        Ok(PlanFile { out, ..plan })
    }
}

pub fn bad(path: &Path, problems: &[(usize, String)]) -> Error {
    let said = problems.iter().map(|(line, problem)| match line {
        0 => problem.clone(),
        line => format!("line {line}: {problem}"),
    });
    Error::BadPlan {
        path: path.to_path_buf(),
        reason: visible(&said.collect::<Vec<_>>().join("; ")),
    }
}

struct Reader<'a> {
    text: &'a str,
    problems: Vec<(usize, String)>,
}

type Entry<'a, 'i> = (
    &'a Spanned<std::borrow::Cow<'i, str>>,
    &'a Spanned<DeValue<'i>>,
);

impl Reader<'_> {
    fn line(&self, at: usize) -> usize {
        let before = &self.text.as_bytes()[..at.min(self.text.len())];
        1 + before.iter().filter(|&&byte| byte == b'\n').count()
    }

    fn wrong(&mut self, at: usize, problem: impl Into<String>) {
        let line = self.line(at);
        self.problems.push((line, problem.into()));
    }

    /// The entries of a table whose keys are known; others are problems, with the nearest known one.
    fn entries<'a, 'i>(
        &mut self,
        table: &'a DeTable<'i>,
        known: &[&str],
        of: &str,
    ) -> Vec<Entry<'a, 'i>> {
        let mut entries = Vec::new();
        for (key, value) in table {
            let name: &str = key.get_ref();
            if known.contains(&name) {
                entries.push((key, value));
            } else {
                let problem = format!(
                    "{of} has no key `{name}`; {}",
                    nearest(name, known.iter().copied())
                );
                self.wrong(key.span().start, problem);
            }
        }
        entries
    }

    fn plan(&mut self, table: &DeTable<'_>) -> PlanFile {
        let mut plan = PlanFile::default();
        let known = ["out", "models", "tasks", "methods", "seeds", "n_pairs"];
        for (key, value) in self.entries(table, &known, "a plan") {
            let name: &str = key.get_ref();
            match name {
                "out" => plan.out = self.text_of(value, name).unwrap_or_default().into(),
                "n_pairs" => plan.n_pairs = self.number(value, name).map(|n| n as u32),
                "seeds" => {
                    let seeds = self.list(value, name);
                    plan.seeds = (seeds.into_iter())
                        .filter_map(|seed| self.number(seed, "a seed"))
                        .collect();
                }
                "models" => {
                    for value in self.list(value, name) {
                        plan.models.extend(self.model(value));
                    }
                }
                "tasks" => {
                    for value in self.list(value, name) {
                        plan.tasks.extend(self.task(value));
                    }
                }
                _ => plan.methods = self.methods(value),
            }
        }
        for (is_empty, what) in [
            (plan.models.is_empty(), "`models = [\"embedded\"]`"),
            (plan.tasks.is_empty(), "`tasks = [\"ioi\"]`"),
            (
                plan.methods.is_empty(),
                "`[methods]` with `heads = \"patch --sites z\"`",
            ),
        ] {
            if is_empty && self.problems.is_empty() {
                self.problems.push((0, format!("it lacks {what}")));
            }
        }
        self.distinct(plan.tasks.iter().map(|task| &task.name), "tasks");
        let mut seen = BTreeSet::new();
        if let Some(twice) = plan.seeds.iter().find(|seed| !seen.insert(**seed)) {
            let problem = format!(
                "seed {twice} is named twice, and its runs would be the same; name it once"
            );
            self.problems.push((0, problem));
        }
        plan
    }

    fn distinct<'a>(&mut self, names: impl Iterator<Item = &'a String>, what: &str) {
        let mut seen = BTreeSet::new();
        for name in names {
            if !seen.insert(name) {
                let problem =
                    format!("two {what} are called `{name}`; give one a `name` of its own");
                self.problems.push((0, problem));
            }
        }
    }

    fn model(&mut self, value: &Spanned<DeValue<'_>>) -> Option<PlanModel> {
        if let Some(id) = value.get_ref().as_str() {
            return Some(PlanModel {
                id: id.to_string(),
                ..PlanModel::default()
            });
        }
        let table = self.table(
            value,
            "a model is a text, or a table of `id`, `revisions` and `flags`",
        )?;
        let mut model = PlanModel::default();
        for (key, value) in self.entries(table, &["id", "revisions", "flags"], "a model") {
            let name: &str = key.get_ref();
            match name {
                "id" => model.id = self.text_of(value, name)?,
                "flags" => model.flags = self.words(value, name)?,
                _ => {
                    for revision in self.list(value, name) {
                        let text = self.text_of(revision, "a revision")?;
                        match revisions(&text) {
                            Ok(several) => model.revisions.extend(several),
                            Err(problem) => self.wrong(revision.span().start, problem),
                        }
                    }
                }
            }
        }
        if model.id.is_empty() {
            self.wrong(value.span().start, "a model needs an `id`");
            return None;
        }
        Some(model)
    }

    fn task(&mut self, value: &Spanned<DeValue<'_>>) -> Option<PlanTask> {
        if let Some(name) = value.get_ref().as_str() {
            return Some(PlanTask {
                name: stem(name),
                flags: vec!["--task".into(), name.to_string()],
            });
        }
        let known = ["task", "pairs", "name", "flags"];
        let table = self.table(
            value,
            "a task is a text, or a table of `task` or `pairs`, and `name` and `flags`",
        )?;
        let mut task = PlanTask::default();
        let mut named = None;
        let mut flags = Vec::new();
        for (key, value) in self.entries(table, &known, "a task") {
            let name: &str = key.get_ref();
            match name {
                "name" => named = self.text_of(value, name),
                "flags" => flags = self.words(value, name)?,
                _ => {
                    let what = self.text_of(value, name)?;
                    task.name = stem(&what);
                    task.flags.extend([format!("--{name}"), what]);
                }
            }
        }
        if task.flags.len() != 2 {
            self.wrong(
                value.span().start,
                "a task needs `task` or `pairs`, one of them",
            );
            return None;
        }
        task.name = named.unwrap_or(task.name);
        task.flags.extend(flags);
        Some(task)
    }

    fn methods(&mut self, value: &Spanned<DeValue<'_>>) -> Vec<PlanMethod> {
        let what =
            "`methods` is a table of names and commands, such as `heads = \"patch --sites z\"`";
        let Some(table) = self.table(value, what) else {
            return Vec::new();
        };
        let mut methods = Vec::new();
        for (key, value) in table {
            let name = key.get_ref().to_string();
            if let Some(command) = self.words(value, &name) {
                let line = self.line(key.span().start);
                methods.push(PlanMethod {
                    name,
                    command,
                    line,
                });
            }
        }
        methods
    }

    fn table<'a, 'i>(
        &mut self,
        value: &'a Spanned<DeValue<'i>>,
        or: &str,
    ) -> Option<&'a DeTable<'i>> {
        let table = value.get_ref().as_table();
        if table.is_none() {
            self.wrong(value.span().start, or);
        }
        table
    }

    fn list<'a, 'i>(
        &mut self,
        value: &'a Spanned<DeValue<'i>>,
        name: &str,
    ) -> Vec<&'a Spanned<DeValue<'i>>> {
        match value.get_ref().as_array() {
            Some(array) => array.iter().collect(),
            None => {
                self.wrong(
                    value.span().start,
                    format!("`{name}` is a list, in brackets"),
                );
                Vec::new()
            }
        }
    }

    fn text_of(&mut self, value: &Spanned<DeValue<'_>>, name: &str) -> Option<String> {
        let text = value.get_ref().as_str().filter(|text| !text.is_empty());
        if text.is_none() {
            self.wrong(value.span().start, format!("`{name}` is a text, in quotes"));
        }
        text.map(String::from)
    }

    fn number(&mut self, value: &Spanned<DeValue<'_>>, name: &str) -> Option<u64> {
        let number = (value.get_ref().as_integer())
            .and_then(|number| u32::from_str_radix(number.as_str(), number.radix()).ok());
        if number.is_none() {
            self.wrong(
                value.span().start,
                format!("{name} is a whole number from 0 to {}", u32::MAX),
            );
        }
        number.map(u64::from)
    }

    /// The words of a command, as a shell would read them; nothing is expanded.
    fn words(&mut self, value: &Spanned<DeValue<'_>>, name: &str) -> Option<Vec<String>> {
        let text = self.text_of(value, name)?;
        let words = shlex::split(&text).filter(|words| !words.is_empty());
        if words.is_none() {
            self.wrong(
                value.span().start,
                format!("`{name}` is no command: a quote is not closed"),
            );
        }
        words
    }
}

/// `did you mean ..`, or all there are.
pub fn nearest<'a>(name: &str, known: impl Iterator<Item = &'a str> + Clone) -> String {
    let like = |other: &str| candlewick::text::likeness(name, other);
    match known.clone().max_by_key(|other| like(other)) {
        Some(best) if like(best) > 500_000 => format!("did you mean `{best}`?"),
        _ => format!("it may have {}", known.collect::<Vec<_>>().join(", ")),
    }
}

/// The name of a file without folder and ending; of a shipped task its name.
fn stem(name: &str) -> String {
    Path::new(name)
        .file_stem()
        .map_or(name.to_string(), |stem| stem.to_string_lossy().into_owned())
}

/// `main`, or `step1000..step143000 every 10000`: what stands before the numbers is the same, and the last is among them if the step
/// meets it.
fn revisions(text: &str) -> Result<Vec<String>, String> {
    let Some((from, rest)) = text.split_once("..") else {
        return Ok(vec![text.to_string()]);
    };
    let (to, step) = match rest.split_once(" every ") {
        Some((to, step)) => (to, step.trim()),
        None => (rest, "1"),
    };
    let wrong =
        || format!("`{text}` is no range of revisions; write `step1000..step143000 every 10000`");
    let split = |text: &str| {
        let text = text.trim();
        let digits = text.len() - text.chars().rev().take_while(char::is_ascii_digit).count();
        let number = text[digits..].parse::<u64>().ok()?;
        Some((text[..digits].to_string(), number))
    };
    let (prefix, first) = split(from).ok_or_else(wrong)?;
    let (other, last) = split(to).ok_or_else(wrong)?;
    let step: u64 = step
        .parse()
        .ok()
        .filter(|&step| step > 0)
        .ok_or_else(wrong)?;
    if prefix != other || last < first {
        return Err(wrong());
    }
    if (last - first) / step >= MOST_REVISIONS as u64 {
        return Err(format!("`{text}` are more than {MOST_REVISIONS} revisions"));
    }
    let numbers = (first..=last).step_by(step as usize);
    Ok(numbers.map(|number| format!("{prefix}{number}")).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<PlanFile, String> {
        PlanFile::parse(text, Path::new("folder/plan.toml")).map_err(|error| error.to_string())
    }

    #[test]
    fn a_plan_reads() {
        let plan = parse(
            r#"
            seeds = [0, 7]
            n_pairs = 12
            models = ["embedded", { id = "org/model", revisions = ["step1..step9 every 4", "main"], flags = "--dtype bf16" }]
            tasks = ["ioi", { pairs = "my/pairs.csv", name = "mine", flags = "--metric 'prob'" }]
            [methods]
            heads = "patch --sites z"
            "#,
        )
        .unwrap();
        assert_eq!(plan.out, Path::new("folder/plan"));
        assert_eq!((plan.seeds, plan.n_pairs), (vec![0, 7], Some(12)));
        assert_eq!(
            plan.models[1].revisions,
            ["step1", "step5", "step9", "main"]
        );
        assert_eq!(plan.models[1].flags, ["--dtype", "bf16"]);
        assert_eq!(
            plan.tasks[1].flags,
            ["--pairs", "my/pairs.csv", "--metric", "prob"]
        );
        assert_eq!(
            (plan.tasks[0].name.as_str(), plan.tasks[1].name.as_str()),
            ("ioi", "mine")
        );
        assert_eq!(plan.methods[0].command, ["patch", "--sites", "z"]);
    }

    #[test]
    fn all_problems_are_said_at_once_with_their_lines() {
        let message = parse(
            "model = [\"embedded\"]\ntasks = \"ioi\"\nseeds = [-1]\nmodels = [{ id = \"a\", revisions = [\"x..y\"] }]\n[methods]\na = \"patch 'x\"\nb = 3\n",
        )
        .unwrap_err();
        for part in [
            "line 1: a plan has no key `model`; did you mean `models`?",
            "line 2: `tasks` is a list",
            "line 3: a seed is a whole number",
            "line 4: `x..y` is no range of revisions",
            "line 6: `a` is no command",
            "line 7: `b` is a text",
        ] {
            assert!(message.contains(part), "{part}: {message}");
        }
        assert!(!message.contains('\n'));
        assert!(parse("").unwrap_err().contains("`models"));
        assert!(parse("a = [").unwrap_err().contains("line 1"));
        assert!(
            revisions("step1..step900000")
                .unwrap_err()
                .contains("more than")
        );
        let twice = parse("models = [\"a\"]\ntasks = [\"x\", \"y/x.toml\"]\n[methods]\na = \"b\"");
        assert!(twice.unwrap_err().contains("two tasks are called `x`"));
    }
}
