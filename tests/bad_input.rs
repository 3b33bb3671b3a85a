//! What the binary says to bad input: one line that names what is wrong and what to do, exit code 1, no panic, and nothing left
//! where results go.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

const LLAMA: &str = "tests/fixtures/llama-tiny-random";
const GPT2: &str = "tests/fixtures/gpt2-tiny-random";

/// A folder for bad input, and one for results that must stay empty.
struct Bench {
    folder: tempfile::TempDir,
}

impl Bench {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir(folder.path().join("out")).unwrap();
        Bench { folder }
    }

    fn at(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Writes a file and gives its path as text.
    fn file(&self, name: &str, bytes: impl AsRef<[u8]>) -> String {
        let path = self.at(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, bytes).unwrap();
        path.to_str().unwrap().to_string()
    }

    /// A copy of a fixture under a name, with some files replaced.
    fn model(&self, name: &str, fixture: &str, replaced: &[(&str, &[u8])]) -> String {
        let from = Path::new(env!("CARGO_MANIFEST_DIR")).join(fixture);
        for file in ["config.json", "tokenizer.json", "model.safetensors"] {
            self.file(
                &format!("{name}/{file}"),
                fs::read(from.join(file)).unwrap(),
            );
        }
        for (file, bytes) in replaced {
            self.file(&format!("{name}/{file}"), bytes);
        }
        self.at(name).to_str().unwrap().to_string()
    }

    /// Runs the binary in the results folder, offline, with an empty cache.
    fn run(&self, args: &[&str]) -> Output {
        Command::new(env!("CARGO_BIN_EXE_candlewick"))
            .args(args)
            .current_dir(self.at("out"))
            .env("HF_HUB_OFFLINE", "1")
            .env("HF_HOME", self.at("hub-home"))
            .env_remove("HF_HUB_CACHE")
            .env_remove("HUGGINGFACE_HUB_CACHE")
            .output()
            .expect("the binary was built for this test")
    }

    fn refuses(&self, args: &[&str], says: &[&str]) {
        let output = self.run(args);
        let stderr = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(1), "{args:?}: {stderr}");
        for word in says {
            assert!(
                stderr.contains(word),
                "{args:?} should say {word}: {stderr}"
            );
        }
        assert!(stderr.starts_with("error: "), "{args:?}: {stderr}");
        assert_eq!(stderr.lines().count(), 1, "{args:?}: {stderr}");
        assert!(
            !stderr.contains("panicked") && !stderr.contains("bug:"),
            "{args:?}: {stderr}"
        );
        // `tokens` tells each pair that was dropped.
        let is_told = args[0] == "tokens" && output.stdout.starts_with(b"  pair ");
        assert!(output.stdout.is_empty() || is_told, "{args:?}");
        let left: Vec<_> = fs::read_dir(self.at("out")).unwrap().collect();
        assert!(left.is_empty(), "{args:?} left {left:?}");
    }
}

fn fixture(name: &str, file: &str) -> Vec<u8> {
    fs::read(Path::new(env!("CARGO_MANIFEST_DIR")).join(name).join(file)).unwrap()
}

/// A fixture's config with one key set.
fn config(fixture_name: &str, key: &str, value: serde_json::Value) -> Vec<u8> {
    let mut config: serde_json::Value =
        serde_json::from_slice(&fixture(fixture_name, "config.json")).unwrap();
    config[key] = value;
    config.to_string().into_bytes()
}

#[test]
fn models_that_are_none() {
    let bench = Bench::new();
    let model = |id: &str, says: &[&str]| {
        for verb in ["tokens", "hooks"] {
            bench.refuses(&[verb, "--model", id], says);
        }
    };
    model("/no/such/place", &["no such file or folder", "hub id"]);
    model("nothing.gguf", &["no such file or folder", "nothing.gguf"]);
    fs::create_dir(bench.at("empty")).unwrap();
    model(bench.at("empty").to_str().unwrap(), &["config.json"]);
    let file = bench.file("weights.safetensors", "x");
    model(&file, &["is not a readable safetensors file"]);
    model(
        &bench.model(
            "mamba",
            LLAMA,
            &[("config.json", br#"{"model_type": "mamba"}"#)],
        ),
        &["`mamba` is not supported", "candlewick models"],
    );
    model(
        &bench.model("garbled", LLAMA, &[("config.json", b"{")]),
        &["config.json cannot be read"],
    );
    let unhandled = config(LLAMA, "frobnicate_attention", true.into());
    model(
        &bench.model("unhandled", LLAMA, &[("config.json", &unhandled)]),
        &[
            "`frobnicate_attention` = true is not known",
            "--accept-config-key",
        ],
    );
    let lfs = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n";
    model(
        &bench.model("lfs", LLAMA, &[("config.json", lfs)]),
        &["git-LFS pointer", "git lfs pull"],
    );
    bench.refuses(
        &["hooks", "--revision", "v1"],
        &["a revision (`v1`)", "is for hub models"],
    );
}

#[test]
fn models_that_are_not_cached() {
    let bench = Bench::new();
    for id in ["gpt2", "org/name"] {
        bench.refuses(
            &["tokens", "--model", id],
            &[
                &format!("`{id}` is not in the cache"),
                "nothing is cached",
                "offline",
            ],
        );
    }
    let snapshot = "hub-home/hub/models--other--one/snapshots/abc/config.json";
    bench.file(snapshot, fixture(LLAMA, "config.json"));
    bench.refuses(&["tokens", "--model", "org/name"], &["cached: other/one"]);
    let listed = String::from_utf8(bench.run(&["models"]).stdout).unwrap();
    assert!(listed.contains("other/one"), "{listed}");
}

#[test]
fn tokenizers_that_do_not_fit() {
    let bench = Bench::new();
    let tokens = |id: &str, says: &[&str]| bench.refuses(&["tokens", "--model", id], says);
    let small = config(LLAMA, "vocab_size", 10.into());
    tokens(
        &bench.model("large", LLAMA, &[("config.json", &small)]),
        &["the tokenizer has", "the embedding has 10 rows"],
    );
    tokens(
        &bench.model("broken", LLAMA, &[("tokenizer.json", b"{}")]),
        &["tokenizer.json is malformed"],
    );
    tokens(
        &bench.model(
            "hostile",
            LLAMA,
            &[(
                "tokenizer.json",
                br#"{"model": {"type": "Unigram", "vocab": [["a", 0.0]], "unk_id": 7}}"#,
            )],
        ),
        &["tokenizer"],
    );
    let none = bench.model("none", GPT2, &[]);
    fs::remove_file(Path::new(&none).join("tokenizer.json")).unwrap();
    tokens(&none, &["tokenizer.json", "transformers"]);
    bench.refuses(
        &["tokens", "--chat-template"],
        &["no chat template", "leave it out"],
    );
}

#[test]
fn gguf_files_that_lie() {
    let bench = Bench::new();
    // Magic, version 3, then numbers of tensors and of entries that no file could hold.
    let hostile = [b"GGUF".as_slice(), &[3, 0, 0, 0], &[0xff; 16]].concat();
    for (name, bytes) in [
        ("empty.gguf", b"".as_slice()),
        ("short.gguf", b"GGUF\x03"),
        (
            "other.gguf",
            b"not a gguf file at all, but long enough to be read as one",
        ),
        ("hostile.gguf", &hostile),
    ] {
        let path = bench.file(name, bytes);
        bench.refuses(&["tokens", "--model", &path], &[name]);
    }
    let pointer = bench.file(
        "lfs.gguf",
        "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n",
    );
    bench.refuses(&["hooks", "--model", &pointer], &["git-LFS pointer"]);
}

#[test]
fn tasks_that_do_not_work() {
    let bench = Bench::new();
    let tokens = |args: &[&str], says: &[&str]| {
        bench.refuses(&[&["tokens"], args].concat(), says);
    };
    tokens(&["--task", "nope"], &["`nope`", "embedded, ioi"]);
    tokens(&["--task", "."], &["this is a folder"]);
    tokens(&["--corruption", "nope"], &["`nope`", "s2_io, s2_random"]);
    tokens(&["--metric", "nope"], &["`nope`", "logit_diff"]);
    // Each pair that was dropped is told, and then the error.
    let output = bench.run(&["tokens", "--task", "ioi", "--limit", "1"]);
    let said = [output.stdout, output.stderr].map(|text| String::from_utf8(text).unwrap());
    assert_eq!(output.status.code(), Some(1), "{said:?}");
    assert!(said[0].starts_with("  pair 0: unknown word"), "{said:?}");
    assert!(said[1].contains("has no usable pair"), "{said:?}");
    tokens(
        &["--device", "metal"],
        &["--features metal", "--device cpu"],
    );
    let task = bench.file("typo.toml", "nmae = \"x\"\n");
    tokens(&["--task", &task], &["nmae", "circuits/README.md"]);
    tokens(
        &["--pairs", "nope.csv"],
        &["no such file", "clean, corrupted, answer"],
    );
    for (name, bytes, says) in [
        (
            "empty.csv",
            "clean,corrupted,answer,wrong\n",
            "no pairs at all",
        ),
        (
            "lengths.csv",
            "clean,corrupted,answer,wrong\nthen Mary went to,then Mary to,Mary,John\n",
            "clean has 5 tokens, corrupted has 4",
        ),
        (
            "several.csv",
            "clean,corrupted,answer,wrong\nthen Mary to,then John to,Mary John,John\n",
            "answer is not one token",
        ),
        (
            "columns.csv",
            "clean,corrupted\nx,y\n",
            "no column `answer`",
        ),
        ("pairs.txt", "x", "must end in .csv"),
        ("cut.parquet", "PAR1 and then nothing", "its end is missing"),
    ] {
        let path = bench.file(name, bytes);
        tokens(&["--pairs", &path], &[says]);
    }
    let garbage = [b"PAR1".as_slice(), &[0xff; 300], b"PAR1"].concat();
    let path = bench.file("garbage.parquet", garbage);
    tokens(&["--pairs", &path], &["damaged"]);
}

#[test]
fn weights_that_are_damaged() {
    let bench = Bench::new();
    const EMBEDDED: &str = "models/embedded";
    let weights = fixture(EMBEDDED, "model.safetensors");
    let patch = |model: &str, says: &[&str]| {
        let args = [
            "patch",
            "--task",
            "embedded",
            "--n-pairs",
            "2",
            "--model",
            model,
        ];
        bench.refuses(
            &[args.as_slice(), &["--out", "scores.parquet"]].concat(),
            says,
        );
    };
    let with_weights = |name: &str, bytes: &[u8], says: &[&str]| {
        patch(
            &bench.model(name, EMBEDDED, &[("model.safetensors", bytes)]),
            says,
        );
    };
    let mut nan = weights.clone();
    let end = nan.len();
    nan[end - 4..].copy_from_slice(&f32::NAN.to_le_bytes());
    with_weights("nan", &nan, &["holds a NaN or an infinity"]);
    with_weights("cut", &weights[..end - 100], &["model.safetensors"]);
    with_weights("empty", b"", &["model.safetensors", "empty"]);
    let hostile = [u64::MAX.to_le_bytes().as_slice(), b"{}"].concat();
    with_weights("hostile", &hostile, &["not a readable"]);
    with_weights(
        "lfs",
        b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n",
        &["git-LFS pointer"],
    );
    with_weights(
        "zip",
        b"PK\x03\x04 and a pickle",
        &["PyTorch pickle", "safe_serialization"],
    );

    let pickle = bench.model("pickle", EMBEDDED, &[("pytorch_model.bin", b"PK\x03\x04")]);
    fs::remove_file(Path::new(&pickle).join("model.safetensors")).unwrap();
    patch(&pickle, &["not a readable PyTorch file"]);

    for (name, key, value, says) in [
        (
            "more",
            "num_hidden_layers",
            5,
            "missing from the checkpoint",
        ),
        ("fewer", "num_hidden_layers", 3, "belong to no weight"),
        (
            "wider",
            "intermediate_size",
            132,
            "that the config does not ask for",
        ),
    ] {
        let config = config(EMBEDDED, key, value.into());
        patch(
            &bench.model(name, EMBEDDED, &[("config.json", &config)]),
            &[says],
        );
    }
}

#[test]
fn patches_that_cannot_be_made() {
    let bench = Bench::new();
    bench.refuses(
        &["patch", "--out", "no/such/folder/x.parquet"],
        &["no such file or folder"],
    );
    bench.refuses(
        &["patch", "--out", ".."],
        &["it is a folder", "name a file in it"],
    );
    bench.refuses(&["patch", "--metric", "nope"], &["`nope`", "logit_diff"]);
    for (flag, value, says) in [
        ("--corruption", "nope", "s2_io, s2_random"),
        ("--sites", "resid_pree", "nearest: `resid_pre`"),
        ("--sites", "hook_pos_embed", "does not exist in this model"),
        ("--layers", "9", "`layer` = 9 is out of range"),
        ("--heads", "7", "`head` = 7 is out of range"),
        ("--noise", "99", "`pos` = 99 is out of range"),
        (
            "--noise",
            "@X",
            "role `X` is not in this task; it has: END, IO",
        ),
        ("--window", "0", "a window takes 1 to 4 layers"),
    ] {
        bench.refuses(&["patch", "--n-pairs", "2", flag, value], &[says]);
    }
}

#[test]
fn ablations_and_paths_that_cannot_be_run() {
    let bench = Bench::new();
    for (args, says) in [
        ("ablate --block @END:@FOO", "role `FOO` is not in this task"),
        ("ablate --block @FOO:@END", "role `FOO` is not in this task"),
        ("ablate --block 99:0", "`pos` = 99 is out of range"),
        ("ablate --block 0:99 --whole-layers", "`pos` = 99"),
        ("ablate --at @FOO --together a0.h0", "FOO"),
        ("ablate --at 99 --together a0.h0,a0.h1", "`pos` = 99"),
        ("ablate --at @FOO --head-pairs a0.h0,a0.h1", "FOO"),
        ("ablate --at @END", "`--at` does nothing"),
        (
            "ablate --block @END:@S2 --source zero",
            "`--source` does nothing with `--block`",
        ),
        (
            "ablate --self-repair heads --sites z",
            "`--sites` does nothing with `--self-repair`",
        ),
        (
            "ablate --together a0.h0 --layers 0",
            "`--layers` does nothing with",
        ),
        ("ablate --donors 3", "`--donors` does nothing"),
        ("ablate --layers 0-9", "`layer` = 4 is out of range"),
        ("ablate --heads a0.h7", "`head` = 7 is out of range"),
        (
            "ablate --layers 0 --heads a3.h1",
            "nothing is left to measure",
        ),
        ("ablate --block @END:@S2 --heads 9", "`head` = 9"),
        ("ablate --source pair", "`denoise` or `noise`"),
        ("ablate --head-pairs a0.h0", "makes no pair"),
        ("ablate --head-pairs ,", "no head is named"),
        ("ablate --together a0.h0 --together a0.h0", "two sets"),
        (
            "ablate --self-repair attention --verify 3",
            "none to be held against",
        ),
        (
            "path --senders a1.h0 --receivers a0.h1.v",
            "`a1.h0->a0.h1<v>`",
        ),
        (
            "path --senders a0.h0,a3.h0 --receivers a1.h0.q,a2.h0.q --over both",
            "`a3.h0`",
        ),
        ("path --at-senders @FOO", "FOO"),
        ("path --at-receivers 99", "`pos` = 99"),
        ("path --path a1.h0:a0.h1.v:logits", "`a1.h0->a0.h1<v>`"),
        ("path --path input:a0.h1.v", "ends in the middle"),
        (
            "path --path input:logits --over both",
            "`--over` does nothing with `--path`",
        ),
        (
            "path --composition --n-pairs 3",
            "`--n-pairs` does nothing with `--composition`",
        ),
        ("scale --heads a0.h9", "`head` = 9"),
        ("scale --heads a0.h0 --metric kl", "`--metric` does nothing"),
    ] {
        bench.refuses(&args.split(' ').collect::<Vec<_>>(), &[says]);
    }
}

#[test]
fn estimates_that_cannot_be_made() {
    let bench = Bench::new();
    let refuses = |flags: &[&str], says: &str| {
        let command = ["attribute", "--n-pairs", "2"];
        bench.refuses(&[&command, flags].concat(), &[says]);
    };
    refuses(&["--method", "ig", "--source", "zero"], "`--baseline zero");
    refuses(
        &["--steps", "3"],
        "`--steps` does nothing with `--method atp`",
    );
    refuses(
        &["--method", "ig", "--baseline", "token:nope"],
        "`nope` is not in its vocabulary",
    );
    refuses(&["--method", "eap-ig", "--steps", "0"], "at least one step");
    refuses(&["--direction", "ablate"], "`--source zero`");
    refuses(&["--metric", "rank"], "has no gradient");
    refuses(&["--sites", "q_input"], "use an edge method");
    refuses(&["--verify", "1000"], "there are 76 cells");
    let star = ["--method", "atp-star", "--sites", "z"];
    let draws = ["--verify", "2", "--bound-draws", "3"];
    refuses(&[star, draws].concat(), "at least 8 joint patches, not 3");
    refuses(
        &["--method", "exact-edges", "--verify", "2"],
        "has none to be held against",
    );
    let edges = |edges: &'static str| ["--method", "exact-edges", "--edges", edges];
    refuses(&edges("m9->logits"), "no node `m9`");
    refuses(&edges("m1->m1"), "`m1` is computed after `m1` reads");
    refuses(&edges("m1->logits,m1->logits"), "is named twice");
    refuses(
        &["--method", "eap", "--source", "mean-all"],
        "use `--source mean`",
    );
    refuses(
        &["--method", "eap", "--by-position", "--template", "0,1"],
        "`--template 0`",
    );
    let file = |flag, path| ["--method", "eap", flag, path];
    refuses(&file("--compare", "nowhere.json"), "no such file");
    refuses(&file("--graph", "no/such/folder/x.json"), "no such file");
    refuses(&file("--graph", ".."), "it is a folder");
}

#[test]
fn circuits_that_are_none() {
    let bench = Bench::new();
    let sizes = "[model]\nn_layers = 4\nn_heads = 4\nd_model = 64\n";
    let file = |name: &str, edges: &str| bench.file(name, format!("{sizes}[edges]\n{edges}\n"));
    let eval = |file: &str, says: &[&str]| {
        bench.refuses(&["circuit", "eval", file, "--n-pairs", "2"], says);
    };
    for (edge, says) in [
        ("\"a9.h0->logits\" = 1.0", "the nearest is `a3.h0`"),
        ("\"m1->a0.h0<q>\" = true", "is computed after"),
        ("\"m1->m1\" = true", "is computed after"),
        (
            "\"a1.h0->a2.h1\" = true",
            "`a2.h1<q>`, `a2.h1<k>` or `a2.h1<v>`",
        ),
        ("\"m0->m1\" = nan", "is no finite number"),
        ("\"m0->m1\" = true\n\"m0->m1\" = true", "duplicate key"),
        ("\"\\u001b[31m\" = true", "cannot read"),
    ] {
        let path = file("bad.toml", edge);
        eval(&path, &["bad.toml", says]);
        bench.refuses(&["circuit", "show", &path], &[says]);
    }
    let other = bench.file(
        "other.toml",
        "[model]\nn_layers = 30\nn_heads = 9\nd_model = 576\n[about]\nmodel = \"smol\"\n[edges]\n\"input->logits\" = true\n",
    );
    eval(&other, &["30 layers of 9 heads", "`smol`"]);
    eval("nothing.toml", &["no such file", "candlewick circuit find"]);
    eval(&bench.file("x.txt", "x"), &["is no edge"]);
    let cut = r#"{"cfg": {"n_layers": 4, "n_heads": 4, "parallel_attn_mlp": false, "d_model": 64}, "nodes": {}"#;
    eval(
        &bench.file("cut.json", cut),
        &["is not a readable circuit JSON file", "EOF"],
    );
    let empty = bench.file("empty.json", format!("{cut}, \"edges\": {{}}}}"));
    eval(
        &empty,
        &["no edge of", "candlewick circuit find --scores FILE --n N"],
    );
    let huge = cut.replace("4", "4000") + ", \"edges\": {}}";
    eval(
        &bench.file("huge.json", huge),
        &["no model has n_layers 4000"],
    );
    let curve = file("one.toml", "\"input->logits\" = 0.5");
    bench.refuses(
        &["circuit", "eval", &curve, "--curve", "--n-pairs", "2"],
        &[
            "scores of every edge",
            "candlewick attribute --method eap-ig --graph scores.json",
        ],
    );
}

#[test]
fn circuits_that_cannot_be_found() {
    let bench = Bench::new();
    let find = |args: &[&str], says: &[&str]| {
        bench.refuses(&[&["circuit", "find"], args].concat(), says);
    };
    find(
        &["--n-pairs", "2"],
        &["there are 2 pairs", "8 or more with `--n-pairs`"],
    );
    find(&["--n", "0"], &["ask for one edge or more"]);
    find(&["--until", "1.5"], &["at most 1"]);
    find(&["--until", "nan"], &["at most 1"]);
    find(&["--method", "lrp"], &["over tokens or parts", "`eap-ig`"]);
    find(
        &["--by", "role"],
        &["does not score nodes at positions", "`--method atp`"],
    );
    find(
        &["--by", "dim", "--method", "ceap"],
        &["single dimensions", "`eap-ig`"],
    );
    find(
        &["--by", "dim", "--out", "parts.json"],
        &["no place for parts of nodes", "`.toml`"],
    );
    find(
        &["--by", "dim", "--draws", "9"],
        &["`--draws` does nothing"],
    );
    let draws = |method: &str, draws: &str, says: &str| {
        let heads = ["attribute", "--players", "heads", "--method", method];
        bench.refuses(&[&heads[..], &["--draws", draws]].concat(), &[says]);
    };
    draws("shapley", "18446744073709551615", "at most 100000 draws");
    draws("kernel-shap", "15", "takes 34 or more");
    draws("lime", "2", "takes 34 or more");
    draws("sobol", "2", "takes 16 or more");
    find(
        &["--by", "dim", "--source", "zero"],
        &["leave `--source` out"],
    );
    find(
        &["--method", "eap", "--steps", "3"],
        &["`--steps` does nothing", "integrate"],
    );
    find(
        &["--share", "0.5"],
        &["`--share` does nothing", "`--select consistent`"],
    );
    find(
        &["--select", "consistent", "--share", "2"],
        &["a share lies between 0 and 1"],
    );
    find(&["--select", "threshold"], &["`--threshold X`"]);
    find(
        &["--select", "greedy", "--threshold", "1"],
        &["nothing is left for another rule"],
    );
    find(
        &["--method", "atp", "--select", "ratio", "--n-pairs", "8"],
        &["nodes are chosen by the best scores alone"],
    );
    find(
        &["--select", "topn", "--n", "1", "--n-pairs", "8"],
        &["nothing is left", "`greedy`"],
    );
    find(&["--out", "circuit.txt"], &["end the name in `.toml`"]);
    find(&["--out", "/no/such/folder/c.toml"], &["/no/such/folder"]);
    let mine = bench.file("mine.toml", "a = 1");
    find(&["--out", &mine], &["mine.toml", "`--force`"]);
    assert_eq!(fs::read(bench.at("mine.toml")).unwrap(), b"a = 1");
    let cfg = r#""cfg": {"n_layers": 1, "n_heads": 1, "parallel_attn_mlp": false, "d_model": 8}"#;
    let scores = bench.file(
        "scores.json",
        format!("{{{cfg}, \"nodes\": {{}}, \"edges\": {{\"input->logits\": {{\"score\": NaN, \"in_graph\": false}}}}}}"),
    );
    find(&["--scores", &scores, "--n", "3"], &["no edge has a score"]);
    find(&["--scores", &scores], &["say how many edges with `--n`"]);
    find(
        &["--scores", &scores, "--n", "3", "--task", "ioi"],
        &["`--task` does nothing with `--scores`"],
    );
    find(
        &["--scores", "scores.txt", "--n", "3"],
        &["is no file of scores"],
    );
    find(
        &["--scores", &scores, "--n", "3", "--select", "consistent"],
        &["scores of each pair"],
    );
}

#[test]
fn plans_bring_the_models_of_their_values_and_name_what_lacks() {
    let bench = Bench::new();
    let plan = |method: &str| {
        bench.file(
            "plan.toml",
            format!(
                "models = [\"embedded\"]\ntasks = [\"embedded\"]\n[methods]\nheads = \"{method}\"\n"
            ),
        )
    };
    let lacking = plan("patch --sites z --source-revision r");
    bench.refuses(
        &["run", &lacking],
        &["`heads`", "--source-model", "were not provided"],
    );
    // Where there is no network, that it was looked for is all that can be seen.
    let other = plan("patch --sites z --source-model nope/none");
    let output = bench.run(&["fetch", &other]);
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(said.ends_with("error: not fetched: nope/none\n"), "{said}");
}
