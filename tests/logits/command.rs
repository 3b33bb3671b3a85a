use std::path::Path;

fn candlewick(folder: &Path, args: &[&str]) -> (bool, String, String) {
    let output = std::process::Command::new(env!("CARGO_BIN_EXE_candlewick"))
        .args(args)
        .current_dir(folder)
        .env("HF_HUB_OFFLINE", "1")
        .env("HF_HOME", folder)
        .output()
        .expect("it runs");
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).expect("utf-8");
    (
        output.status.success(),
        text(&output.stdout),
        text(&output.stderr),
    )
}

#[test]
fn a_file_prints_as_the_run_did() {
    for (args, says) in [
        (&["logits", "--n-pairs", "4"][..], "writes for"),
        (
            &["logits", "--lens", "logit", "--n-pairs", "2"],
            "likeliest",
        ),
        (
            &[
                "heads",
                "--samples",
                "2",
                "--circuit",
                "a3.h1",
                "--per-example",
            ],
            "asking, it looks for",
        ),
    ] {
        let folder = tempfile::tempdir().expect("a folder");
        let with_out = [args, &["--out", "a.parquet"]].concat();
        let (is_fine, printed, stderr) = candlewick(folder.path(), &with_out);
        assert!(
            is_fine && printed.contains(says),
            "{args:?}: {stderr}{printed}"
        );
        let (_, shown, _) = candlewick(folder.path(), &["show", "a.parquet"]);
        // What the run says of the task and, at the end, of itself stands on top of the file's.
        let (_, table) = printed
            .split_once("\n\n")
            .expect("a blank line after the start");
        let (table, _) = table
            .rsplit_once("\n\n")
            .expect("a blank line before the end");
        assert!(shown.contains(table), "{args:?}: {shown}\n--\n{table}");
    }
}

#[test]
fn what_cannot_be_read_out_is_refused_in_one_line() {
    let folder = tempfile::tempdir().expect("a folder");
    for (args, says) in [
        (
            &["logits", "--target", "no such word"][..],
            "must be one token",
        ),
        (
            &["logits", "--target", "difference", "--against", "Mary"],
            "tokens of your own",
        ),
        (
            &["logits", "--lens", "early"],
            "all other labels as wrong answers",
        ),
        (&["logits", "--by", "source-class"], "--subject"),
        (
            &["logits", "--by", "source-class", "--subject", "X"],
            "it has: ",
        ),
        (&["heads", "--circuit", "a9.h0"], "4 layers"),
        (&["heads", "--circuit", "9.0"], "a5.h1"),
        (&["heads", "--repeat-length", "1"], "--repeat-length"),
        (&["logits", "--lens", "logit", "--by", "head"], "--by"),
        (&["logits", "--lens", "logit", "--writes", "7"], "--writes"),
        (
            &["logits", "--lens", "token", "--positions", "end"],
            "--positions",
        ),
        (
            &["logits", "--lens", "knockout", "--metric", "kl"],
            "--metric",
        ),
        (&["logits", "--lens", "early", "--watch", "Mary"], "--watch"),
        (&["logits", "--by", "head", "--metric", "kl"], "--metric"),
        (
            &["logits", "--by", "head", "--relation", "S1"],
            "--relation",
        ),
        (&["logits", "--writes", "0", "--tokens", "3"], "--tokens"),
        (
            &[
                "logits",
                "--by",
                "source-class",
                "--subject",
                "S1",
                "--target",
                "answer",
            ],
            "--target",
        ),
        (&["heads", "--from", "Mary"], "--from"),
        (&["heads", "--metric", "kl"], "--metric"),
        (&["heads", "--circuit", "m1"], "`m1` is none"),
        (&["logits", "--verify", "3"], "--verify"),
    ] {
        let (is_fine, _, stderr) = candlewick(folder.path(), args);
        let errors = stderr
            .lines()
            .filter(|line| line.starts_with("error:"))
            .count();
        assert!(
            !is_fine && errors == 1 && stderr.contains(says),
            "{args:?}: {stderr}"
        );
    }
    assert!(
        std::fs::read_dir(folder.path())
            .expect("a folder")
            .next()
            .is_none()
    );
}
