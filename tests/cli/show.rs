//! `show`, `tokens`, `hooks`: what is there, in words.

use std::fs;

use crate::{candlewick, check_failure, scores, text};

#[test]
fn means_are_taken_over_a_file_of_pairs_too() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name).to_str().unwrap().to_string();
    let prompt =
        |name: &str| format!("then Mary and John went to the store . {name} gave a drink to");
    let (one, other) = (prompt("John"), prompt("Mary"));
    let pairs = |clean: &str, corrupted: &str, answer: &str, wrong: &str| {
        format!("clean,corrupted,answer,wrong\n{clean},{corrupted},{answer},{wrong}\n")
    };
    let (own, file) = (at("own.csv"), at("reference.csv"));
    fs::write(&own, pairs(&one, &other, "Mary", "John")).unwrap();
    // What is clean there is corrupted here: its mean is that of the task's own corrupted prompts.
    fs::write(&file, pairs(&other, &one, "John", "Mary")).unwrap();
    let out = at("ablation.parquet");
    let ablate = |more: &[&str]| {
        let mut args = vec!["ablate", "--pairs", &own, "--csv", "--force", "--out", &out];
        args.extend(more);
        let output = candlewick(&args);
        assert!(output.status.success(), "{}", text(&output.stderr));
        text(&output.stdout)
    };
    let given = ablate(&["--reference", &file]);
    assert_eq!(given, ablate(&[]));
    // The prompt's own mean changes nothing; another's does.
    assert_ne!(given, ablate(&["--reference", &own]));
    // Where means do nothing, a reference does nothing.
    check_failure(
        &["ablate", "--source", "zero", "--reference", &file],
        1,
        "`--reference` does nothing",
    );
}

#[test]
fn tokens_shows_pairs_side_by_side() {
    let output = candlewick(&["tokens", "--limit", "1", "--seed", "3"]);
    let shown = text(&output.stdout);
    assert!(output.status.success(), "{}", text(&output.stderr));
    for says in [
        "task embedded: 32 pairs",
        "seed 3",
        "clean",
        "corrupted",
        "S1+1",
        "<bos>",
    ] {
        assert!(shown.contains(says), "{says}: {shown}");
    }
    // Without a seed the file's own holds.
    assert!(text(&candlewick(&["tokens"]).stdout).contains("seed 0"));
    let json = text(&candlewick(&["tokens", "--json"]).stdout);
    assert!(
        serde_json::from_str::<serde_json::Value>(&json).is_ok(),
        "{json}"
    );
}

#[test]
fn hooks_lists_what_is_there_and_what_is_not() {
    let shown = text(&candlewick(&["hooks", "--layer", "1", "--batch", "2", "--pos", "9"]).stdout);
    let row = |name: &str| {
        let found = shown.lines().find(|line| line.starts_with(name));
        found.unwrap_or_else(|| panic!("no {name}: {shown}"))
    };
    assert!(
        row("blocks.1.attn.hook_z ").contains("[2, 9, 4, 16]"),
        "{shown}"
    );
    assert!(
        row("blocks.1.attn.hook_pattern ").contains("[2, 4, 9, 9]"),
        "{shown}"
    );
    assert!(row("hook_pos_embed ").contains("not learned"), "{shown}");
    let json = text(&candlewick(&["hooks", "--json"]).stdout);
    let rows: Vec<serde_json::Value> = json
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    assert!(
        rows.iter()
            .any(|row| row["short"] == "z" && row["axes"][2] == "4")
    );
}

#[test]
fn show_refuses_what_is_not_a_table_of_scores() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name).to_str().unwrap().to_string();
    check_failure(&["show", &at("absent.parquet")], 1, "no such file");
    check_failure(&["show", &at("")], 1, "cannot read");
    fs::write(at("empty"), "").unwrap();
    check_failure(&["show", &at("empty")], 1, "not a readable scores file");
    fs::write(
        at("garbage"),
        [b"PAR1".as_slice(), &[0xff; 300], b"PAR1"].concat(),
    )
    .unwrap();
    check_failure(&["show", &at("garbage")], 1, "damaged");
    scores().write_parquet(at("whole").as_ref()).unwrap();
    let whole = fs::read(at("whole")).unwrap();
    fs::write(at("cut"), &whole[..whole.len() - 100]).unwrap();
    check_failure(&["show", &at("cut")], 1, "its end is missing");
}

#[test]
fn show_says_what_a_file_is_and_how_to_make_it_again() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder
        .path()
        .join("scores.parquet")
        .to_str()
        .unwrap()
        .to_string();
    let picture = folder.path().join("scores.svg");
    scores().write_parquet(file.as_ref()).unwrap();
    let output = candlewick(&[
        "show",
        &file,
        "--top",
        "3",
        "--svg",
        picture.to_str().unwrap(),
    ]);
    let shown = text(&output.stdout);
    assert!(output.status.success(), "{}", text(&output.stderr));
    assert!(
        shown.contains("hook_resid_pre") && shown.contains("position"),
        "{shown}"
    );
    assert!(
        shown.contains(r"made by: candlewick patch --task 'it'\''s.toml'"),
        "{shown}"
    );
    assert!(
        !shown.contains('\x1b'),
        "a pipe gets no escape sequences, not even from a token: {shown}"
    );
    assert!(fs::read_to_string(picture).unwrap().starts_with("<svg"));
    let csv = text(&candlewick(&["show", &file, "--csv"]).stdout);
    assert_eq!(csv.lines().count(), 13, "{csv}");
    let some = ["show", &file, "--csv", "--where", "layer=2-3,pos=0"];
    let csv = text(&candlewick(&some).stdout);
    assert_eq!(csv.lines().count(), 3, "{csv}");
    check_failure(
        &["show", &file, "--where", "layer=9"],
        1,
        "runs from 0 to 3",
    );
    check_failure(&["show", &file, "--panel", "z"], 1, "hook_resid_pre");
    let json = text(&candlewick(&["show", &file, "--json", "--top", "2"]).stdout);
    let rows: Vec<serde_json::Value> = json
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    assert_eq!(rows.len(), 2);
    assert_eq!(rows[0]["layer"], 3);
}

#[test]
fn a_report_of_chosen_rows_says_so() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("scores.parquet");
    scores().write_parquet(&file).unwrap();
    let (file, page) = (file.to_str().unwrap(), folder.path().join("page.html"));
    let report = ["report", file, "--out", page.to_str().unwrap(), "--where"];
    let output = candlewick(&[&report[..], &["layer > 1"]].concat());
    assert!(output.status.success(), "{}", text(&output.stderr));
    let written = fs::read_to_string(&page).unwrap();
    // As JSON that no parser of markup finds an end in.
    let said = "only rows with `layer \\u003e 1`: 6 of 12";
    assert!(written.contains(said), "the page says which rows it has");
    let several = ["report", file, file, "--out", page.to_str().unwrap()];
    check_failure(
        &[&several[..], &["--where", "layer = 9"]].concat(),
        1,
        "scores.parquet: no row of 12 matches",
    );
}

#[test]
fn pictures_share_a_scale_with_another_file_and_replace_nothing_unasked() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name).to_str().unwrap().to_string();
    let half = |mut scores: candlewick::scores::Scores| {
        let halves: Vec<Option<f64>> = scores.floats("normalised").unwrap();
        let halves: Vec<Option<f64>> = halves.iter().map(|x| x.map(|x| x / 2.0)).collect();
        scores
            .table
            .with_column(polars::prelude::Column::new("normalised".into(), halves))
            .unwrap();
        scores
    };
    scores().write_parquet(at("a.parquet").as_ref()).unwrap();
    half(scores())
        .write_parquet(at("b.parquet").as_ref())
        .unwrap();
    let mut other = scores();
    other.provenance.metric = "prob".into();
    other.write_parquet(at("c.parquet").as_ref()).unwrap();
    let fill = |file: &str, picture: &str, more: &[&str]| -> Vec<String> {
        let (file, picture) = (at(file), at(picture));
        let show = ["show", &file, "--svg", &picture];
        let output = candlewick(&[&show[..], more].concat());
        assert!(output.status.success(), "{}", text(&output.stderr));
        let drawn = fs::read_to_string(picture).unwrap();
        let bar = drawn.rsplit("<rect").next().unwrap();
        bar.split('>')
            .filter_map(|part| part.strip_suffix("</text").map(String::from))
            .collect()
    };
    let (a, b) = (at("a.parquet"), at("b.parquet"));
    let own = fill("b.parquet", "b.svg", &[]);
    let whole = fill("a.parquet", "a.svg", &[]);
    assert_ne!(own, whole, "the ends of the two scales");
    let shared = ["--scale-to", &a, "--scale-to", &b];
    assert_eq!(fill("b.parquet", "shared.svg", &shared), whole);
    let value = ["--scale-to", &b, "--scale-to", "1e3", "--force"];
    assert!(fill("b.parquet", "shared.svg", &value).contains(&"1000".to_string()));

    let again = at("b.svg");
    check_failure(&["show", &b, "--svg", &again], 1, "is there already");
    check_failure(&["show", &b, "--force"], 2, "required");
    let fresh = at("d.png");
    let scale = |to: &str, reason: &str| {
        check_failure(&["show", &b, "--png", &fresh, "--scale-to", to], 1, reason);
        assert!(!folder.path().join("d.png").exists());
    };
    scale(&at("c.parquet"), "pictures of one quantity share a scale");
    scale(&at("nowhere"), "no such file");
    for end in ["0", "nan", "-1"] {
        let end = format!("--scale-to={end}");
        check_failure(&["show", &b, "--png", &fresh, &end], 2, "above 0");
    }
    fs::write(at("no.ttf"), "no font").unwrap();
    for (font, reason) in [("no.ttf", "is no font"), ("none.ttf", "cannot read")] {
        let font = at(font);
        check_failure(&["show", &b, "--png", &fresh, "--font", &font], 1, reason);
    }
    let shipped = concat!(env!("CARGO_MANIFEST_DIR"), "/src/plot/font/DejaVuSans.ttf");
    let named = ["--font", shipped];
    fill("b.parquet", "named.svg", &named);
    let drawn = fs::read_to_string(at("named.svg")).unwrap();
    assert!(drawn.contains("DejaVu Sans"), "the picture names its font");
}
