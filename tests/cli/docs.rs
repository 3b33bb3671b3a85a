//! The pages of `docs/` show what the binary prints: every block of a terminal session is run, in a folder of the page's own.
//!
//! In a block marked `console run` a line `$ candlewick ..` is a command and the lines below it are its output, standard error after
//! standard output. A line `...` stands for lines that are left out. Times are not compared. With `CANDLEWICK_UPDATE_DOCS=1` outputs
//! are written anew (of a block without `...`), to be read before they are committed.

use std::fs;
use std::path::Path;
use std::process::Command;

struct Session {
    /// Bytes of the page that are the block's inside.
    at: std::ops::Range<usize>,
    /// Commands with their outputs.
    steps: Vec<(String, Vec<String>)>,
}

fn sessions(page: &str) -> Vec<Session> {
    const OPEN: &str = "```console run\n";
    let mut found = Vec::new();
    let mut from = 0;
    while let Some(open) = page[from..].find(OPEN) {
        let start = from + open + OPEN.len();
        let end = start + page[start..].find("```").expect("a block ends");
        let mut steps: Vec<(String, Vec<String>)> = Vec::new();
        for line in page[start..end].lines() {
            match (line.strip_prefix("$ "), steps.last_mut()) {
                (Some(command), _) => steps.push((command.into(), Vec::new())),
                (None, Some((_, output))) => output.push(line.into()),
                (None, None) => panic!("a block begins with a command: {line}"),
            }
        }
        found.push(Session {
            at: start..end,
            steps,
        });
        from = end;
    }
    found
}

fn run(command: &str, folder: &Path) -> Vec<String> {
    let words = shlex::split(command).expect("quotes are closed");
    assert_eq!(words[0], "candlewick", "{command}");
    let output = Command::new(env!("CARGO_BIN_EXE_candlewick"))
        .args(&words[1..])
        .current_dir(folder)
        .env("NO_COLOR", "1")
        .output()
        .expect("it runs");
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).expect("text");
    let lines = text(&output.stdout) + &text(&output.stderr);
    lines
        .lines()
        .map(|line| line.trim_end().to_string())
        .collect()
}

/// A line without the times in it.
fn timeless(line: &str) -> String {
    for varies in ["estimated time", "made "] {
        if line.starts_with(varies) {
            return varies.into();
        }
    }
    match (line.find(" in "), line.find("(loading")) {
        (Some(from), Some(loading)) if from < loading => {
            let to = line[loading..]
                .find(')')
                .map_or(line.len(), |end| loading + end + 1);
            format!("{}{}", &line[..from], &line[to..])
        }
        _ => line.trim_end().to_string(),
    }
}

fn matches(expected: &[String], found: &[String]) -> bool {
    match expected.split_first() {
        None => found.is_empty(),
        Some((first, rest)) if first == "..." => {
            (0..=found.len()).any(|skipped| matches(rest, &found[skipped..]))
        }
        Some((first, rest)) => {
            found
                .first()
                .is_some_and(|line| timeless(line) == timeless(first))
                && matches(rest, &found[1..])
        }
    }
}

#[test]
fn the_docs_show_what_is_printed() {
    let docs = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs");
    let updates = std::env::var_os("CANDLEWICK_UPDATE_DOCS").is_some();
    let mut commands = 0;
    for entry in fs::read_dir(&docs).expect("docs") {
        let path = entry.expect("an entry").path();
        if path.extension().is_none_or(|end| end != "md") {
            continue;
        }
        let mut page = fs::read_to_string(&path).expect("it reads");
        let folder = tempfile::tempdir().expect("a folder");
        let mut anew = Vec::new();
        for session in sessions(&page) {
            let mut block = String::new();
            for (command, expected) in session.steps {
                commands += 1;
                let found = run(&command, folder.path());
                let shown = if updates && !expected.iter().any(|line| line == "...") {
                    &found
                } else {
                    assert!(
                        matches(&expected, &found),
                        "{}: `{command}` prints\n{}",
                        path.display(),
                        found.join("\n")
                    );
                    &expected
                };
                block += &format!("$ {command}\n");
                shown.iter().for_each(|line| block += &format!("{line}\n"));
            }
            anew.push((session.at, block));
        }
        if updates {
            for (at, block) in anew.into_iter().rev() {
                page.replace_range(at, &block);
            }
            fs::write(&path, page).expect("it writes");
        }
    }
    assert!(commands > 10, "{commands} commands were found");
}
