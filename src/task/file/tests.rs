use super::*;

const SMALL: &str = r#"
    name = "small"
    about = "a"
    source = "b"
    claim = "c"
    metric = "logit_diff"
    corruption = "other"
    answer = " {X}"
    wrong = " {corrupted.X}"
    slots = { X = "letter" }
    lists.letter = ["a", "b"]
    templates = ["Say {X}:"]
    corruptions.other = { about = "d", draw = { X = "letter" } }
"#;

fn check(from: &str, to: &str, says: &str) {
    assert!(
        SMALL.contains(from),
        "the test changes `{from}`, which is not there"
    );
    let message = TaskFile::parse(&SMALL.replace(from, to), "small")
        .unwrap_err()
        .to_string();
    assert!(message.contains(says), "{message}");
    assert!(!message.contains('\n'));
}

#[test]
fn a_task_of_ones_own_need_not_cite_a_paper() {
    let text = SMALL
        .lines()
        .filter(|line| {
            !["name", "about", "source", "claim", "metric", "corruption ="]
                .iter()
                .any(|key| line.trim_start().starts_with(key))
        })
        .collect::<Vec<_>>()
        .join("\n");
    let file = TaskFile::parse(&text, "tasks/mine.toml").unwrap();
    assert_eq!(
        (file.name.as_str(), file.corruption.as_str(), file.metric),
        ("mine", "other", Metric::LogitDiff)
    );
}

#[test]
fn every_shipped_task_reads() {
    for name in shipped() {
        let file = TaskFile::open(name).unwrap();
        assert_eq!(file.name, name);
        assert!(file.source.len() > 20 && file.claim.len() > 20 && !file.text.is_empty());
    }
}

#[test]
fn what_is_wrong_with_a_file_is_said_in_one_line() {
    assert!(TaskFile::parse(SMALL, "small").is_ok());
    check("about = \"a\"", "abuot = \"a\"", "abuot");
    check(
        "metric = \"logit_diff\"",
        "metric = \"loss\"",
        "logit_diff, prob_diff",
    );
    check(
        "corruption = \"other\"",
        "corruption = \"ohter\"",
        "it has other",
    );
    check("[\"Say {X}:\"]", "[]", "lacks `templates");
    check("{ X = \"letter\" }", "{ X = \"digit\" }", "it has letter");
    let nothing = TaskFile::parse("", "mine.toml").unwrap_err().to_string();
    assert!(
        nothing.contains("`templates") && nothing.contains("a corruption"),
        "{nothing}"
    );
    check("[\"a\", \"b\"]", "[]", "at least one word");
    check(
        "[\"a\", \"b\"]",
        "{ text = [\"a\"], big = [] }",
        "has 0 entries",
    );
    check("[\"a\", \"b\"]", "{ big = [\"A\"] }", "one called `text`");
    check("name = \"small\"", "name =", "line 2");
    check(
        "answer = \" {X}\"",
        "answer = { over = \"x\" }",
        "an answer is a text",
    );
}

#[test]
fn a_name_that_is_neither_task_nor_file_lists_the_tasks() {
    let message = TaskFile::open("iio").unwrap_err().to_string();
    assert!(message.contains("ioi, greater_than"), "{message}");
}

#[test]
fn a_file_that_is_no_text_is_an_error() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("task.toml");
    std::fs::write(&path, [0xff, 0xfe, 0x00]).unwrap();
    let message = TaskFile::open(path.to_str().unwrap())
        .unwrap_err()
        .to_string();
    assert!(message.contains("not UTF-8"), "{message}");
    let message = TaskFile::open(folder.path().to_str().unwrap())
        .unwrap_err()
        .to_string();
    assert!(message.contains("folder"), "{message}");
}
