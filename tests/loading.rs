//! What loading promises, through the public API: the same model whatever its files look like, and small trained models that do
//! what they were trained for.
//!
//! The trained models are looked for in the folder that `CANDLEWICK_SMALL_MODELS` names; a test that does not find its model says
//! that it skips.

use std::env;
use std::path::PathBuf;

use candle_core::Tensor;
use candlewick::hooks::{Edit, Hook, Kind, Op, Site};
use candlewick::model::{LoadOptions, Loaded, Model, load};
use candlewick::run::{Logits, Request, logits, run};

/// A small trained model, by its path in the folder of such models.
fn trained(path: &str) -> Option<Loaded> {
    let Some(folder) = env::var_os("CANDLEWICK_SMALL_MODELS") else {
        println!("skipped: CANDLEWICK_SMALL_MODELS names no folder with `{path}`");
        return None;
    };
    let path = PathBuf::from(folder).join(path);
    if !path.exists() {
        println!("skipped: there is no `{}`", path.display());
        return None;
    }
    let path = path.to_str().expect("the path is text");
    Some(load(path, &LoadOptions::default()).expect("loads"))
}

/// The most likely next token after each prompt.
fn best(model: &Model, prompts: &[Vec<u32>], edits: &[Edit]) -> Vec<u32> {
    let request = Request {
        edits,
        logits: Logits::Last,
        ..Request::default()
    };
    let logits = run(model, prompts, &request).expect("runs").logits;
    most_likely(&logits.expect("asked for"))
}

fn most_likely(logits: &Tensor) -> Vec<u32> {
    let best = logits.argmax(candle_core::D::Minus1).expect("an axis");
    best.to_vec1().expect("a vector")
}

/// The share of prompts after which the model says the right token.
fn accuracy(model: &Model, cases: &[(Vec<u32>, u32)], edits: &[Edit]) -> f64 {
    let prompts: Vec<Vec<u32>> = cases.iter().map(|(prompt, _)| prompt.clone()).collect();
    let said = best(model, &prompts, edits);
    let right = cases
        .iter()
        .zip(said)
        .filter(|((_, answer), said)| answer == said);
    right.count() as f64 / cases.len() as f64
}

/// Numbers that look random and are the same everywhere.
struct Numbers(u64);

impl Numbers {
    fn below(&mut self, n: u64) -> u64 {
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % n
    }
}

/// Eight letters, no two alike but the last, which was there before: what follows is what followed it then.
fn induction_cases(count: usize) -> Vec<(Vec<u32>, u32)> {
    let mut numbers = Numbers(7);
    let mut case = || {
        let mut letters: Vec<u32> = (0..26).collect();
        for i in 0..7 {
            let other = i + numbers.below(26 - i as u64) as usize;
            letters.swap(i, other);
        }
        letters.truncate(7);
        let first = numbers.below(6) as usize;
        letters.push(letters[first]);
        let answer = letters[first + 1];
        (letters, answer)
    };
    (0..count).map(|_| case()).collect()
}

#[test]
fn the_induction_series_loses_induction_step_by_step() {
    let cases = induction_cases(1000);
    let mut series = Vec::new();
    for step in [0, 100, 200, 300, 400] {
        let file = format!("induction_2l1h/finetuned_model_{step}.safetensors");
        let Some(Loaded { model, .. }) = trained(&file) else {
            return;
        };
        assert_eq!(model.spec.family, "transformer_lens");
        series.push(accuracy(&model, &cases, &[]));
    }
    println!("accuracy over the series: {series:?}");
    assert!(series[0] > 0.95, "{series:?}");
    assert!(series[4] < 0.08, "{series:?}");
    assert!(series.windows(2).all(|two| two[0] > two[1]), "{series:?}");
}

#[test]
fn both_heads_of_the_induction_model_are_needed() {
    let Some(Loaded { model, .. }) = trained("induction_2l1h/finetuned_model_0.safetensors") else {
        return;
    };
    let cases = induction_cases(1000);
    // What is left is a guess among the seven letters of the prompt.
    let guess = 1.0 / 7.0;
    for layer in 0..2 {
        let without = Edit::new(Site::all(Hook::at(Kind::Z, layer)), Op::Zero);
        let accuracy = accuracy(&model, &cases, &[without]);
        println!("without a{layer}.h0: {accuracy}");
        assert!(accuracy < guess, "without a{layer}.h0: {accuracy}");
    }
}

#[test]
fn modular_addition_is_always_right() {
    for file in ["l8k1hzciux", "q9rsl94xlv"] {
        let Some(Loaded { model, tokenizer }) = trained(&format!("modadd59/{file}.safetensors"))
        else {
            return;
        };
        let cases: Vec<(Vec<u32>, u32)> = (0..59 * 59)
            .map(|i| (i / 59, i % 59))
            .map(|(a, b)| (vec![a, b], (a + b) % 59))
            .collect();
        assert_eq!(accuracy(&model, &cases, &[]), 1.0, "{file}");
        // The model came without a tokenizer: its tokens are numbers.
        assert_eq!(
            tokenizer.encode("57 4", false).expect("encodes").ids,
            [57, 4]
        );
    }
}

#[test]
fn the_sorting_model_sorts_everything() {
    let Some(Loaded { model, .. }) = trained("gpt_nano_sort") else {
        return;
    };
    let words: Vec<Vec<u32>> = (0..729u32)
        .map(|n| (0..6).map(|place| n / 3u32.pow(place) % 3).collect())
        .collect();
    let mut prompts = words.clone();
    for _ in 0..6 {
        let next = best(&model, &prompts, &[]);
        for (prompt, next) in prompts.iter_mut().zip(next) {
            prompt.push(next);
        }
    }
    let sorted = words.iter().zip(&prompts).filter(|(word, said)| {
        let mut word = word.to_vec();
        word.sort_unstable();
        said[6..] == word
    });
    assert_eq!(sorted.count(), 729);
}

#[test]
fn the_story_model_tells_she_from_he_by_the_name() {
    let Some(Loaded { model, tokenizer }) = trained("stories260K") else {
        return;
    };
    assert!(tokenizer.adds_bos());
    let token = |text: &str| tokenizer.id(text).expect("in the vocabulary") as usize;
    let she_less_he = |name: &str| {
        let text = format!("Once upon a time, {name} found a big ball.");
        let prompt = tokenizer.encode(&text, true).expect("encodes").ids;
        let logits = logits(&model, &[prompt]).expect("runs");
        let logits: Vec<f32> = logits.squeeze(0).and_then(|l| l.to_vec1()).expect("a row");
        logits[token("▁She")] - logits[token("▁He")]
    };
    for name in ["Lily", "Mia", "Sue", "Anna"] {
        assert!(she_less_he(name) > 0.0, "{name}: {}", she_less_he(name));
    }
    for name in ["Tim", "Tom", "Ben", "Jack"] {
        assert!(she_less_he(name) < 0.0, "{name}: {}", she_less_he(name));
    }
}

#[test]
fn programs_compiled_by_tracr_are_refused_by_name() {
    let Some(folder) = env::var_os("CANDLEWICK_SMALL_MODELS") else {
        println!("skipped: CANDLEWICK_SMALL_MODELS names no folder with `tracr`");
        return;
    };
    let path = PathBuf::from(folder).join("tracr/hist.safetensors");
    if !path.exists() {
        println!("skipped: there is no `{}`", path.display());
        return;
    }
    let error = load(path.to_str().expect("text"), &LoadOptions::default()).unwrap_err();
    assert!(
        error.to_string().contains("`tracr` is not supported"),
        "{error}"
    );
}
