//! Generation gives what whole runs with the same edits give, on models of every kind, and edits mean there what the docs say.

#[path = "../models/mod.rs"]
mod models;

mod counterfactual;
mod pine;
mod steering;

use std::process::Command;

use candle_core::{DType, Device, Tensor};
use candlewick::hooks::{Edit, Hook, Kind, Op, Pos, Site, Value};
use candlewick::model::{EMBEDDED, LoadOptions, Model, load};
use candlewick::run::{
    GenerateRequest, Generation, Logits, MeanOf, Quiet, Request, Sampling, Source, Sources,
    generate, generate_plain, run, run_with_cache,
};
use candlewick::{Error, Result};
use models::{Pairs, cast, every_kind, two_kinds};

/// Products of other shapes add in another order, over as many layers as a sequence has tokens.
const TOLERANCE: f32 = 1e-4;

const TOKENS: usize = 7;
const LENGTH: usize = Pairs::LENGTH;

fn edits(texts: &[&str]) -> Vec<Edit> {
    let parse = |text: &&str| text.parse().expect(text);
    texts.iter().map(parse).collect()
}

/// `clean`: another run of the same prompts; `mean`: one vector for all positions.
fn sources(model: &Model) -> Sources {
    let pairs = Pairs::new();
    let (_, clean) = run_with_cache(model, &pairs.clean, &Hook::all(&model.spec)).expect("runs");
    let streams: Vec<Hook> = (Hook::all(&model.spec).into_iter())
        .filter(|hook| matches!(hook.kind, Kind::ResidPre | Kind::Z | Kind::MlpOut))
        .collect();
    let (_, some) = run_with_cache(model, &pairs.clean, &streams).expect("runs");
    let mut mean = MeanOf::new(false);
    mean.add(&some).expect("adds");
    Sources::default()
        .with("clean", Source::run(clean).expect("a source"))
        .with("mean", mean.finish(&model.spec).expect("means"))
}

/// A greedy generation from the corrupted prompts, with logits.
fn greedy(model: &Model, edits: &[Edit], sources: &Sources) -> Result<Generation> {
    let pairs = Pairs::new();
    let request = GenerateRequest {
        edits,
        sources: sources.clone(),
        roles: &pairs.roles,
        max_tokens: TOKENS,
        keep_logits: true,
        ..GenerateRequest::default()
    };
    generate(model, &pairs.corrupted, &request, &Quiet)
}

fn gap(a: &Tensor, b: &Tensor) -> f32 {
    let gap = (a - b).and_then(|d| d.abs()).and_then(|d| d.max_all());
    let gap = gap.and_then(|gap| gap.to_scalar::<f32>());
    gap.expect("two tensors of one shape")
}

/// Each list is in force at once; what a model has no hook for is left out.
fn lists_of_edits() -> Vec<Vec<Edit>> {
    let mut lists: Vec<Vec<Edit>> = [
        &[][..],
        &["z1[head=1] *= -2"],
        &["z0 = zero", "mlp_out1 *= 3"],
        &[
            "resid_pre1[pos=2,12] += 0.7",
            "resid_post0[pos=11; neuron=3] = 2",
        ],
        &["attn_out1[pos=-1] *= -3", "mlp.post0[pos=@S2] = zero"],
        &[
            "attn_scores1[key=@S1,11] = block",
            "attn_scores0[pos=13; head=0; key=-2] += 1.5",
        ],
        &[
            "pattern1[head=0,1] *= 0.5",
            "pattern0[pos=5; key=@S1] = 0.3",
        ],
        &["q_input1[head=1] *= 2", "k_input1[head=2; pos=4,12] *= -1"],
        &["v_input0 += 0.4", "k_input1[pos=-1; head=0] = zero"],
        &[
            "q1 *= 1.5",
            "rot_k0[pos=12] *= 2",
            "v1[head=0] *= -1",
            "k1[pos=@S1] = zero",
        ],
        &["embed += 0.2", "pos_embed[pos=14] = zero"],
        &[
            "ln_final.scale *= 1.3",
            "ln1.normalized1[pos=12] *= 2",
            "ln2.scale0 *= 0.8",
        ],
        &[
            "result1[head=0] *= 2",
            "mlp_in1[pos=13] = zero",
            "resid_mid0 *= 1.1",
        ],
        &["resid_post1[pos=3] += 1", "mlp.pre1 += 0.3"],
        &[
            "z1[pos=@S1,4] = run:clean",
            "resid_pre1[pos=0,1,2,3] = run:clean",
            "z0[head=0] = mean",
        ],
        &["pattern1[pos=4,-1] = run:clean"],
    ]
    .iter()
    .map(|texts| edits(texts))
    .collect();
    let site = |text: &str| text.parse::<Site>().expect(text);
    let doubled = Edit::with(site("resid_pre1"), "doubled", |t| Ok((t * 2.0)?));
    let ramp = (0..3 * 22).map(|i| (i as f32 * 0.7).sin()).collect();
    let ramp = Tensor::from_vec(ramp, (3, 22), &Device::Cpu).expect("shape");
    let at_roles = Edit::new(
        site("resid_pre1[pos=@S1,@S2]"),
        Op::Add(Value::Tensor(ramp)),
    );
    lists.push(vec![doubled, at_roles]);
    lists
}

fn of_model(model: &Model, list: Vec<Edit>) -> Vec<Edit> {
    let has = |edit: &Edit| match edit.check(&model.spec) {
        Ok(()) => true,
        Err(Error::HookAbsent { .. }) => false,
        Err(error) => panic!("{}: {error}", model.spec.family),
    };
    list.into_iter().filter(has).collect()
}

#[test]
fn a_generation_is_that_of_whole_runs_with_the_same_edits() {
    let pairs = Pairs::new();
    for model in every_kind() {
        let sources = sources(&model);
        for list in lists_of_edits() {
            let list = of_model(&model, list);
            let request = GenerateRequest {
                edits: &list,
                sources: sources.clone(),
                roles: &pairs.roles,
                max_tokens: TOKENS,
                keep_logits: true,
                ..GenerateRequest::default()
            };
            let case = || format!("{} {list:?}", model.spec.family);
            let check = |result: Result<Generation>| match result {
                Ok(generation) => generation,
                Err(error) => panic!("{}: {error}", case()),
            };
            // A whole run's pattern is wider than that of the run which its values come from.
            let from_pattern = |edit: &Edit| {
                edit.site.hook.kind == Kind::Pattern && matches!(edit.op, Op::FromRun(_))
            };
            let takes_pattern = list.iter().any(from_pattern);
            // Where rotary positions turn by the length of the text, every step is a whole run too.
            if takes_pattern && ["dynamic", "longrope"].contains(&model.spec.family.as_str()) {
                continue;
            }
            let fast = check(generate(&model, &pairs.corrupted, &request, &Quiet));
            if takes_pattern {
                continue;
            }
            let slow = check(generate_plain(&model, &pairs.corrupted, &request, &Quiet));
            assert_eq!(fast.tokens, slow.tokens, "{}", case());
            for prompt in 0..3 {
                let gap = gap(&fast.logits[prompt], &slow.logits[prompt]);
                assert!(gap < TOLERANCE, "{}: {gap}", case());
                let log_probs = fast.log_probs[prompt].iter().zip(&slow.log_probs[prompt]);
                for (fast, slow) in log_probs {
                    assert!((fast - slow).abs() < f64::from(TOLERANCE), "{}", case());
                }
            }
        }
    }
}

/// Generates with `given` in force, then runs each whole sequence once with `meant`: the logits must be the same at every step.
fn check_meaning(model: &Model, given: &[&str], meant: &[&str]) {
    let (given, meant) = (edits(given), edits(meant));
    let generation = greedy(model, &given, &Sources::default()).expect("generates");
    let unedited = greedy(model, &[], &Sources::default()).expect("generates");
    let changed = gap(&generation.logits[0], &unedited.logits[0]);
    assert!(changed > TOLERANCE, "{given:?} changes nothing: {changed}");
    for (prompt, tokens) in Pairs::new().corrupted.iter().zip(&generation.tokens) {
        let mut sequence = prompt.clone();
        sequence.extend(&tokens[..tokens.len() - 1]);
        let request = Request {
            edits: &meant,
            logits: Logits::All,
            ..Request::default()
        };
        let whole = run(model, &[sequence], &request).expect("runs");
        let whole = whole.logits.expect("asked for").get(0).expect("one prompt");
        let steps = whole.narrow(0, LENGTH - 1, TOKENS).expect("all steps");
        let i = (Pairs::new().corrupted.iter())
            .position(|p| p == prompt)
            .expect("found");
        let gap = gap(&generation.logits[i], &steps);
        assert!(gap < TOLERANCE, "{} {given:?}: {gap}", model.spec.family);
    }
}

#[test]
fn positions_of_edits_mean_what_the_docs_say() {
    for model in two_kinds() {
        // Without positions: everywhere.
        check_meaning(&model, &["z1[head=1] *= -3"], &["z1[head=1] *= -3"]);
        // Absolute positions: where they say, the prompt's and a generated token's.
        check_meaning(
            &model,
            &["mlp_out1[pos=3,12] *= -3"],
            &["mlp_out1[pos=3,12] *= -3"],
        );
        // From the end, and roles: the prompt's.
        check_meaning(&model, &["z1[pos=-1] *= -3"], &["z1[pos=9] *= -3"]);
        check_meaning(
            &model,
            &["resid_pre1[pos=@S1] *= -3"],
            &["resid_pre1[pos=2] *= -3"],
        );
        // Keys likewise, for the queries of generated tokens too.
        check_meaning(
            &model,
            &["attn_scores1[key=@S1,-1,12; head=0,1,2] = block"],
            &["attn_scores1[key=2,9,12; head=0,1,2] = block"],
        );
    }
}

#[test]
fn an_edit_that_changes_nothing_changes_no_bit() {
    for model in every_kind() {
        let plain = greedy(&model, &[], &Sources::default()).expect("generates");
        let list = edits(&[
            "z0 *= 1",
            "resid_pre1[pos=12] += 0",
            "attn_out1[pos=-1] *= 1",
        ]);
        let edited = greedy(&model, &list, &Sources::default()).expect("generates");
        assert_eq!(plain.tokens, edited.tokens);
        for (a, b) in plain.logits.iter().zip(&edited.logits) {
            assert_eq!(gap(a, b), 0.0, "{}", model.spec.family);
        }
        // A factor of nought is zero ablation.
        let nought = greedy(&model, &edits(&["z1 *= 0"]), &Sources::default()).expect("generates");
        let zero = greedy(&model, &edits(&["z1 = zero"]), &Sources::default()).expect("generates");
        assert_eq!(gap(&nought.logits[2], &zero.logits[2]), 0.0);
    }
}

#[test]
fn a_stop_token_ends_its_prompt_and_no_other() {
    for model in two_kinds() {
        let free = greedy(&model, &[], &Sources::default()).expect("generates");
        let stop = [free.tokens[0][2]];
        let request = GenerateRequest {
            max_tokens: TOKENS,
            stop: &stop,
            ..GenerateRequest::default()
        };
        let stopped = generate(&model, &Pairs::new().corrupted, &request, &Quiet).expect("runs");
        for (free, stopped) in free.tokens.iter().zip(&stopped.tokens) {
            let end = free.iter().position(|token| stop.contains(token));
            let expected = &free[..end.map_or(TOKENS, |end| end + 1)];
            assert_eq!(stopped, expected);
        }
        assert!(stopped.tokens[0].len() <= 3 && stopped.logits.is_empty());
        assert_eq!(stopped.tokens[0].len(), stopped.log_probs[0].len());
    }
}

#[test]
fn draws_are_those_of_the_seed_and_the_prompts_place() {
    let model = two_kinds().remove(0);
    let prompts = Pairs::new().corrupted;
    let drawn = |prompts: &[Vec<u32>], seed: u64| {
        let request = GenerateRequest {
            max_tokens: 12,
            sampling: Sampling::Temperature {
                temperature: 1.5,
                top_k: Some(30),
                top_p: Some(0.98),
            },
            seed,
            ..GenerateRequest::default()
        };
        generate(&model, prompts, &request, &Quiet)
            .expect("generates")
            .tokens
    };
    assert_eq!(drawn(&prompts, 1), drawn(&prompts, 1));
    assert_ne!(drawn(&prompts, 1), drawn(&prompts, 2));
    assert_eq!(drawn(&prompts, 1)[0], drawn(&prompts[..1], 1)[0]);
    let twice = vec![prompts[0].clone(), prompts[0].clone()];
    let twice = drawn(&twice, 1);
    assert_ne!(twice[0], twice[1]);
}

/// The error of a generation that must not begin.
fn refused(model: &Model, list: &[Edit]) -> Error {
    match greedy(model, list, &sources(model)) {
        Ok(_) => panic!("{list:?} generates"),
        Err(error) => error,
    }
}

#[test]
fn what_cannot_hold_for_generated_tokens_is_refused_before_it_begins() {
    let model = two_kinds().remove(0);
    for (text, what) in [
        ("resid_pre1 = run:clean", "where a token will be generated"),
        ("resid_pre1[pos=-1,12] = run:clean", "no position 12"),
        ("resid_pre1 = run:other", "no source `other`"),
        ("z0[pos=@S9] = zero", "role `S9`"),
        ("z0[pos=16] = zero", "16 positions"),
        ("attn_scores0[pos=-1; key=16] = block", "`key` = 16"),
        ("z0[pos=-11] = zero", "pos"),
        ("z9 = zero", "layer"),
        ("pattern0 = run:clean", "generated tokens are keys too"),
        (
            "pattern0[pos=11; key=1] = run:clean",
            "generated tokens are keys too",
        ),
        (
            "pattern0[key=2,12] = [0.1, 0.2]",
            "generated tokens are keys too",
        ),
        ("attn_scores0[key=0] = block", "no key"),
    ] {
        let error = refused(&model, &edits(&[text])).to_string();
        assert!(error.contains(what), "{text}: {error}");
    }
    let rows = Tensor::zeros((LENGTH, 22), DType::F32, &Device::Cpu);
    let op = Op::Replace(Value::Tensor(rows.expect("zeros")));
    let error = refused(
        &model,
        &[Edit::new("resid_pre1".parse().expect("a site"), op)],
    );
    assert!(error.to_string().contains("beyond the prompt"), "{error}");
    let prompts = Pairs::new().corrupted;
    let ask = |max_tokens: usize| {
        let request = GenerateRequest {
            max_tokens,
            ..GenerateRequest::default()
        };
        generate(&model, &prompts, &request, &Quiet)
    };
    // The last token takes no position.
    assert_eq!(ask(23).expect("fits 32 positions").tokens[0].len(), 23);
    assert!(matches!(ask(24), Err(Error::NoRoom { most: 23, .. })));
    assert!(matches!(ask(usize::MAX), Err(Error::NoRoom { .. })));
    assert!(ask(0).is_err());
}

#[test]
fn a_nan_is_an_error_that_names_where_it_was_first_seen() {
    let model = two_kinds().remove(0);
    let site = Site::all("mlp_out1".parse().expect("a hook")).at_positions([Pos::Index(12)]);
    let edit = Edit::with(site, "broken", |t| Ok((t * f64::NAN)?));
    match greedy(&model, &[edit], &Sources::default()) {
        Err(Error::NotFiniteLogits { index: 0, hook }) => {
            assert_eq!(hook, "blocks.1.hook_mlp_out");
        }
        other => panic!("{:?}", other.map(|generation| generation.tokens)),
    }
}

#[test]
fn a_generation_in_bf16_is_that_of_whole_runs_in_bf16() {
    /// Logits of about 15 in eight bits, summed in another order.
    const TOLERANCE: f32 = 0.3;
    let options = LoadOptions::default();
    let model = load(EMBEDDED, &options)
        .expect("it is part of the binary")
        .model;
    let model = cast(&model, DType::BF16);
    // "then Susan and David went to the school . David gave a ball to", and with the names exchanged.
    let prompt = vec![0, 90, 8, 111, 9, 112, 113, 97, 66, 2, 9, 127, 108, 78, 113];
    let exchange = |&token: &u32| match token {
        8 => 9,
        9 => 8,
        other => other,
    };
    let prompts = [prompt.iter().map(exchange).collect(), prompt];
    let list = edits(&["z1[pos=15; head=1] *= 2", "mlp_out2 *= 0.9"]);
    let request = GenerateRequest {
        edits: &list,
        max_tokens: 2,
        keep_logits: true,
        ..GenerateRequest::default()
    };
    let fast = generate(&model, &prompts, &request, &Quiet).expect("generates");
    let slow = generate_plain(&model, &prompts, &request, &Quiet).expect("generates");
    assert_eq!(fast.tokens, slow.tokens);
    assert_eq!(fast.tokens, [[9, 2], [8, 2]]);
    for (fast, slow) in fast.logits.iter().zip(&slow.logits) {
        assert!(gap(fast, slow) < TOLERANCE, "{}", gap(fast, slow));
    }
}

/// The binary's stdout, or its one line of complaint.
fn candlewick(args: &[&str]) -> Result<String, String> {
    let mut command = Command::new(env!("CARGO_BIN_EXE_candlewick"));
    let output = command.args(args).output().expect("it was built");
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).expect("text");
    if output.status.success() {
        Ok(text(output.stdout))
    } else {
        Err(text(output.stderr))
    }
}

#[test]
fn the_command_continues_prompts_and_says_what_cannot_be() {
    let two = ["generate", "--max-tokens", "2", "--n-pairs", "1"];
    let swapped = ["--edit", "resid_pre0[pos=@S2]=run:corrupted", "--compare"];
    let shown = candlewick(&[&two[..], &swapped].concat()).expect("generates");
    let lines: Vec<&str> = shown.lines().collect();
    assert_eq!(lines.len(), 3, "{shown}");
    // The giver is named twice and receives nothing; the corrupted prompt names the other as giver.
    let names: Vec<&str> = lines[0].split_whitespace().collect();
    assert!(
        lines[1].starts_with(&format!("  -> {} .", names[1])),
        "{shown}"
    );
    assert!(
        lines[2].starts_with(&format!("  -> {} .", names[3])),
        "{shown}"
    );
    assert!(lines[2].contains("blocks.0.hook_resid_pre[pos=@S2] = run:corrupted"));

    let drawn = ["--temperature", "1", "--seed", "3", "--json"];
    let drawn = [&two[..], &drawn].concat();
    assert_eq!(candlewick(&drawn), candlewick(&drawn));

    for (args, what) in [
        (
            &["generate", "--max-tokens", "1000"][..],
            "`--max-tokens 82`",
        ),
        (&["generate", "--edit", "z9=zero"], "`layer` = 9"),
        (
            &["generate", "--edit", "z1=run:corrupted"],
            "name positions of the prompt",
        ),
        (
            &["generate", "--prompt", "then", "--temperature", "0"],
            "above 0",
        ),
        (&["scale", "--heads", "a9.h0"], "`layer` = 9"),
    ] {
        let error = candlewick(args).expect_err("it must fail");
        assert!(
            error.contains(what) && error.lines().count() == 1,
            "{error}"
        );
    }
}
