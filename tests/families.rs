//! Every family computes what Hugging Face transformers does at every hook that a fixture holds; reads old and new configs alike;
//! and agrees with candle-transformers where that has the family.

mod models;

use std::fs;
use std::path::{Path, PathBuf};

use candle_core::{DType, Device, Tensor};
use candle_nn::VarBuilder;
use candle_transformers::models::{
    bert, gemma, gemma2, gemma3, llama, mistral, olmo2, phi, phi3, qwen2, qwen3, starcoder2,
};
use candlewick::check::{IN_CANDLE_TRANSFORMERS, TOLERANCE, check, compare, worst};
use candlewick::hooks::{Edit, Hook, Kind, Op, Site};
use candlewick::metric::{Metric, Target};
use candlewick::model::Model;
use candlewick::model::families::from_config;
use candlewick::model::load::{LoadOptions, Loaded, load, load_parts};
use candlewick::run::{
    BaseRun, Logits, Quiet, Readout, Request, Sources, SweepOptions, Variant, logits, run, sweep,
    sweep_plain,
};
use serde_json::{Map, Value, json};

/// The folders of `tests/fixtures` that hold a model.
fn fixtures() -> Vec<PathBuf> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures");
    let folders = fs::read_dir(root).expect("the fixtures are there");
    let folders = folders.map(|entry| entry.expect("readable").path());
    let mut models: Vec<PathBuf> = folders
        .filter(|path| path.join("config.json").is_file())
        .collect();
    models.sort();
    models
}

fn open(path: &Path) -> Loaded {
    let path = path.to_str().expect("utf-8 path");
    load(path, &LoadOptions::default()).unwrap_or_else(|error| panic!("{path}: {error}"))
}

#[test]
fn every_fixture_agrees_with_its_reference_at_every_hook() {
    let mut failures = Vec::new();
    for path in fixtures() {
        let gaps = compare(&open(&path).model, &path.join("reference.safetensors"))
            .unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        let name = path.file_name().expect("a folder").display();
        for gap in worst(&gaps) {
            println!(
                "{name} {:12} {:.1e} at {}",
                gap.what, gap.relative, gap.place
            );
        }
        // The first in the order of the forward pass says where the mistake is.
        if let Some(gap) = gaps.iter().find(|gap| gap.relative > TOLERANCE) {
            failures.push(format!(
                "{name}: {} differs by {:.1e} at {}",
                gap.what, gap.relative, gap.place
            ));
        }
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}

#[test]
fn both_config_forms_mean_the_same_model() {
    for path in fixtures() {
        let read = |file: &str| fs::read_to_string(path.join(file));
        let Ok(old) = read("config.legacy.json") else {
            continue;
        };
        let new = read("config.json").expect("every fixture has one");
        let described = |json: &str| {
            from_config(json).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
        };
        assert_eq!(described(&new), described(&old), "{}", path.display());
    }
}

#[test]
fn every_fixture_passes_its_own_checks() {
    for path in fixtures() {
        let findings =
            check(&open(&path)).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        for finding in findings {
            assert!(finding.passed, "{}: {finding:?}", path.display());
        }
    }
}

/// The fixture and config with which a family is compared. candle-transformers reads the older configs, lets a window reach one key
/// further than transformers does, scales queries by the width of a head whatever Gemma's config says, does not scale Gemma 3's rotary
/// positions, and multiplies Phi-3's frequencies by the factors that transformers divides by: so nothing of this is in force.
fn for_candle(family: &str) -> (PathBuf, Map<String, Value>) {
    let folder = match family {
        "gemma" | "olmo2" | "starcoder2" => format!("{family}-tiny"),
        "bert" => "bert-tiny-untied".to_string(),
        "mistral" => "mistral-tiny-plain".to_string(),
        "phi" => "phi-tiny-grouped".to_string(),
        "phi3" => "phi3-tiny-long".to_string(),
        "qwen3" => "qwen3-tiny-biased".to_string(),
        _ => format!("{family}-tiny-random"),
    };
    let path = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/fixtures")
        .join(folder);
    let json = fs::read_to_string(path.join("config.legacy.json")).expect("config");
    let mut config: Map<String, Value> = serde_json::from_str(&json).expect("JSON");
    config.remove("layer_types");
    config.remove("_sliding_window_pattern");
    if family == "gemma" && config.contains_key("hidden_activation") {
        // Candle wants one of the two.
        config.remove("hidden_act");
    }
    let edits = match family {
        "gemma3" => json!({
            "sliding_window": 48, "sliding_window_pattern": 2, "rope_scaling": null, "query_pre_attn_scalar": 32
        }),
        "gemma2" => json!({"sliding_window": 48, "query_pre_attn_scalar": 24}),
        "qwen2" => json!({"use_sliding_window": false, "sliding_window": 48}),
        // candle multiplies frequencies by longrope's factors where the reference divides by them.
        "phi3" => json!({"sliding_window": null, "rope_scaling": null}),
        "mistral" | "starcoder2" => json!({"sliding_window": null}),
        "qwen3" => json!({"use_sliding_window": false, "sliding_window": 48}),
        "bert" => json!({"hidden_act": "gelu"}),
        _ => json!({}),
    };
    config.extend(edits.as_object().cloned().unwrap_or_default());
    (path, config)
}

fn read<T: serde::de::DeserializeOwned>(config: &Map<String, Value>) -> T {
    serde_json::from_value(Value::Object(config.clone())).expect("candle reads the config")
}

/// Logits at the last position by candle-transformers.
fn candle_logits(
    family: &str,
    weights: Vec<u8>,
    config: &Map<String, Value>,
    ids: &[u32],
) -> candle_core::Result<Vec<f32>> {
    let weights = VarBuilder::from_buffered_safetensors(weights, DType::F32, &Device::Cpu)?;
    let ids = Tensor::new(ids, &Device::Cpu)?.unsqueeze(0)?;
    let logits = match family {
        "llama" => {
            let config = read::<llama::LlamaConfig>(config).into_config(false);
            let mut cache = llama::Cache::new(false, DType::F32, &config, &Device::Cpu)?;
            llama::Llama::load(weights, &config)?.forward(&ids, 0, &mut cache)?
        }
        "mistral" => mistral::Model::new(&read(config), weights)?.forward(&ids, 0)?,
        "qwen2" => qwen2::ModelForCausalLM::new(&read(config), weights)?.forward(&ids, 0)?,
        "qwen3" => qwen3::ModelForCausalLM::new(&read(config), weights)?.forward(&ids, 0)?,
        "gemma" => gemma::Model::new(false, &read(config), weights)?.forward(&ids, 0)?,
        "gemma2" => gemma2::Model::new(false, &read(config), weights)?.forward(&ids, 0)?,
        "gemma3" => gemma3::Model::new(false, &read(config), weights)?.forward(&ids, 0)?,
        "phi" => phi::Model::new(&read(config), weights)?.forward(&ids)?,
        "phi3" => phi3::Model::new(&read(config), weights)?.forward(&ids, 0)?,
        "olmo2" => olmo2::Model::new(&read(config), weights)?.forward(&ids, 0)?,
        "starcoder2" => starcoder2::Model::new(&read(config), weights)?.forward(&ids, 0)?,
        "bert" => {
            let logits = bert::BertForMaskedLM::load(weights, &read(config))?;
            let logits = logits.forward(&ids, &ids.zeros_like()?, None)?;
            logits.narrow(1, logits.dim(1)? - 1, 1)?
        }
        _ => panic!("no comparison is written for `{family}`"),
    };
    logits.flatten_all()?.to_vec1()
}

#[test]
fn logits_are_those_of_candle_transformers() {
    for family in IN_CANDLE_TRANSFORMERS {
        let (path, config) = for_candle(family);
        let folder = tempfile::tempdir().expect("a folder");
        for file in ["model.safetensors", "tokenizer.json"] {
            // A fixture of few tokens has numbers for them, and no tokenizer.
            if path.join(file).is_file() {
                fs::copy(path.join(file), folder.path().join(file)).expect("copied");
            }
        }
        let json = Value::Object(config.clone()).to_string();
        fs::write(folder.path().join("config.json"), json).expect("written");
        let model = open(folder.path()).model;
        let weights = fs::read(path.join("model.safetensors")).expect("weights");
        for ids in [
            vec![5, 17, 30, 41, 2, 9, 51, 77],
            (1..40).collect::<Vec<u32>>(),
        ] {
            let theirs = candle_logits(family, weights.clone(), &config, &ids);
            let theirs = theirs.unwrap_or_else(|error| panic!("{family}: {error}"));
            let ours = logits(&model, &[ids]).expect("runs").flatten_all();
            let ours: Vec<f32> = ours.and_then(|logits| logits.to_vec1()).expect("f32");
            assert_eq!(ours.len(), theirs.len(), "{family}");
            let largest = theirs.iter().fold(0f32, |most, x| most.max(x.abs()));
            let gaps = ours
                .iter()
                .zip(&theirs)
                .map(|(a, b)| (a - b).abs() / largest);
            let gap = gaps.fold(0f32, f32::max);
            assert!(gap <= TOLERANCE, "{family}: logits differ by {gap:.1e}");
        }
    }
}

#[test]
fn the_page_of_the_docs_has_a_line_below_the_tolerance_for_every_fixture() {
    let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/families.md");
    let page = fs::read_to_string(page).expect("the page is there");
    for path in fixtures() {
        let name = path.file_name().expect("a folder").display().to_string();
        let mut lines = page
            .lines()
            .filter(|line| line.starts_with(&format!("| {name} |")));
        let (_, differences) = (lines.next(), lines.next());
        let line = differences.unwrap_or_else(|| panic!("`{name}` is not in docs/families.md"));
        let numbers = line
            .split('|')
            .filter_map(|cell| cell.trim().parse::<f32>().ok());
        let numbers: Vec<f32> = numbers.collect();
        assert!(
            numbers.len() > 5 && numbers.iter().all(|gap| *gap < TOLERANCE),
            "{line}"
        );
    }
}

/// A small trained model, if whoever runs the tests has them: `$CANDLEWICK_SMALL_MODELS` is the folder that they lie in.
fn small_model(name: &str) -> Option<PathBuf> {
    let Some(folder) = std::env::var_os("CANDLEWICK_SMALL_MODELS") else {
        println!("skipped: $CANDLEWICK_SMALL_MODELS does not say where `{name}` is");
        return None;
    };
    let path = PathBuf::from(folder).join(name);
    if !path.is_dir() {
        println!("skipped: there is no `{}`", path.display());
        return None;
    }
    Some(path)
}

/// The likeliest of all tokens at every position.
fn best(model: &Model, prompts: &[Vec<u32>]) -> Vec<Vec<u32>> {
    let request = Request {
        logits: Logits::All,
        ..Request::default()
    };
    let logits = run(model, prompts, &request)
        .expect("runs")
        .logits
        .expect("asked for");
    let best = logits.argmax(2).expect("argmax");
    best.to_vec2().expect("two axes")
}

#[test]
fn a_small_gpt2_sorts_all_that_it_was_trained_to_sort() {
    let Some(path) = small_model("gpt_nano_sort") else {
        return;
    };
    let read = |file: &str| fs::read(path.join(file)).expect("readable");
    // It came without a tokenizer.
    let tokenizer = json!({
        "version": "1.0",
        "pre_tokenizer": {"type": "WhitespaceSplit"},
        "model": {"type": "WordLevel", "vocab": {"A": 0, "B": 1, "C": 2}, "unk_token": "A"},
    });
    let config = String::from_utf8(read("config.json")).expect("UTF-8");
    let loaded = load_parts(
        "gpt_nano_sort",
        &config,
        &read("model.safetensors"),
        tokenizer.to_string().as_bytes(),
        None,
        &LoadOptions::default(),
    );
    let model = loaded.expect("it loads").model;
    // Six letters, then the sorted ones so far; each next letter is read off where it has to be written.
    let all = (0..729u32).map(|n| (0..6).map(|i| n / 3u32.pow(i) % 3).collect::<Vec<u32>>());
    let (mut prompts, mut expected) = (Vec::new(), Vec::new());
    for letters in all {
        let mut sorted = letters.clone();
        sorted.sort_unstable();
        prompts.push([&letters[..], &sorted[..5]].concat());
        expected.push(sorted);
    }
    let best = best(&model, &prompts);
    let right = best
        .iter()
        .zip(&expected)
        .filter(|(best, expected)| best[5..] == expected[..])
        .count();
    assert_eq!(right, 729);
}

#[test]
fn a_small_llama_tells_the_genders_of_names_apart() {
    let Some(path) = small_model("stories260K") else {
        return;
    };
    let loaded = open(&path);
    assert!(loaded.tokenizer.adds_bos());
    let preference = |name: &str| {
        let text = format!("One day, {name} found a big ball.");
        let ids = loaded.tokenizer.encode(&text, true).expect("encodes").ids;
        let logits: Vec<f32> = logits(&loaded.model, &[ids])
            .expect("runs")
            .flatten_all()
            .and_then(|t| t.to_vec1())
            .expect("f32");
        let id = |token: &str| loaded.tokenizer.id(token).expect("the vocabulary has it") as usize;
        logits[id("▁She")] - logits[id("▁He")]
    };
    for (her, him) in [("Lily", "Tim"), ("Mia", "Ben"), ("Sue", "Tom")] {
        assert!(preference(her) > 0.0, "{her}: {}", preference(her));
        assert!(preference(him) < 0.0, "{him}: {}", preference(him));
    }
}

#[test]
fn sweeps_of_an_encoder_agree_with_whole_passes_at_every_hook_and_position() {
    models::encoders().iter().for_each(sweeps_agree);
    let refused = "blocks.1.ln1.hook_normalized *= 0.5"
        .parse::<Edit>()
        .expect("parses");
    let refused = refused.check(&models::encoder().spec).unwrap_err();
    assert!(refused.to_string().contains("hook_resid_pre"));
    // No norm stands there.
    let refused = "blocks.0.ln1.hook_normalized *= 0.5".parse::<Edit>();
    let refused = refused
        .expect("parses")
        .check(&models::modern_encoder().spec);
    assert!(refused.unwrap_err().to_string().contains("first attention"));
}

fn sweeps_agree(model: &Model) {
    let spec = &model.spec;
    let prompts = vec![vec![3, 14, 15, 9, 26], vec![5, 8, 9, 7, 9]];
    let kinds: Vec<Kind> = Kind::ALL
        .into_iter()
        .filter(|kind| kind.absent(spec).is_none())
        .collect();
    let mut variants = Vec::new();
    for hook in Hook::all(spec) {
        for pos in 0..prompts[0].len() {
            let edit = Edit::new(Site::all(hook).at(pos), Op::Scale(0.5));
            // What the norms of its blocks make goes two ways, and is refused below.
            if edit.check(spec).is_ok() {
                variants.extend((0..2).map(|example| Variant {
                    example,
                    edits: vec![edit.clone()],
                }));
            }
        }
    }
    assert!(variants.len() > 500);
    let base =
        BaseRun::new(model, prompts, vec![], vec![], Sources::default(), &kinds).expect("runs");
    let target = Target {
        answers: vec![4],
        wrong: vec![20],
        ..Target::default()
    };
    let readout = Readout {
        metric: Metric::LogitDiff,
        targets: vec![target; 2],
        reference: None,
    };
    let none = Sources::default();
    let fast = sweep(
        model,
        &base,
        &variants,
        &none,
        &readout,
        &SweepOptions::default(),
        &Quiet,
    )
    .expect("sweeps");
    let slow = sweep_plain(model, &base, &variants, &none, &readout).expect("runs");
    let unchanged = base.metric(model, &readout).expect("metric");
    let mut moved = 0;
    for ((variant, fast), slow) in variants.iter().zip(&fast).zip(&slow) {
        assert!(
            (fast - slow).abs() < 1e-5,
            "{}: {fast} {slow}",
            variant.edits[0]
        );
        moved += usize::from((slow - unchanged[variant.example]).abs() > 1e-6);
    }
    // A change at any position reaches the answer, but for those after the last attention, which only the answer itself goes through.
    assert!(
        moved > variants.len() * 3 / 5,
        "{moved} of {}",
        variants.len()
    );
}
