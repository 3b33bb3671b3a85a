use std::collections::HashMap;
use std::path::Path;

use candle_core::{Device, Tensor};
use candlewick::Error;
use candlewick::methods::{DirectTarget, DlaConfig, Part};
use candlewick::metric::Metric;
use candlewick::model::Model;
use candlewick::model::load::{LoadOptions, load};
use candlewick::run::{Logits, Request, run};
use candlewick::scores::Scores;
use candlewick::spec::Mlp;
use candlewick::task::{Pair, Task};

use super::models::task::{changed, pairs, task, tokenizer};
use super::{
    Key, attribute, means, models, near, per_example, refusal, rows_of, sums, with_a_role_missing,
};

const PARTS: [Part; 5] = [
    Part::Component,
    Part::Head,
    Part::Neuron,
    Part::HeadSource,
    Part::HeadRole,
];

#[test]
fn contributions_sum_to_the_logits_in_every_kind_of_model() {
    for model in models::every_kind() {
        contributions_sum_to_the_logits(&model, &task());
    }
}

#[test]
fn contributions_sum_to_the_logits_at_the_mask_of_an_encoder() {
    let masked = |after: usize| changed(&task(), |pair| *pair = pair.clone().read_before(after));
    for after in [0, 4] {
        for model in models::encoders() {
            contributions_sum_to_the_logits(&model, &masked(after));
        }
    }
    for name in [
        "bert-tiny",
        "bert-tiny-untied",
        "roberta-tiny",
        "modernbert-tiny",
    ] {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR"))
            .join("tests/fixtures")
            .join(name);
        let loaded = load(folder.to_str().expect("utf-8"), &LoadOptions::default());
        contributions_sum_to_the_logits(&loaded.expect("it loads").model, &masked(2));
    }
}

/// The logits of each prompt where its answer is read.
fn rows_at_the_answer(model: &Model, task: &Task) -> Vec<Vec<f32>> {
    let prompts: Vec<Vec<u32>> = task.pairs().iter().map(|pair| pair.clean.clone()).collect();
    let request = Request {
        logits: Logits::All,
        ..Request::default()
    };
    let all = run(model, &prompts, &request).expect("runs").logits;
    let all: Vec<Vec<Vec<f32>>> = all.and_then(|t| t.to_vec3().ok()).expect("asked for");
    let pairs = all.into_iter().zip(task.pairs());
    pairs
        .map(|(rows, pair)| rows[rows.len() - 1 - pair.target.after].clone())
        .collect()
}

fn contributions_sum_to_the_logits(model: &Model, task: &Task) {
    let fixed = DirectTarget::Tokens {
        for_: vec![5, 6],
        against: vec![9],
    };
    let family = &model.spec.family;
    let mut uncapped = model.clone();
    uncapped.spec.final_softcap = None;
    let rows = rows_at_the_answer(&uncapped, task);
    let mean = |row: &[f32], ids: &[u32]| {
        let sum: f32 = ids.iter().map(|&id| row[id as usize]).sum();
        f64::from(sum) / ids.len() as f64
    };
    for target in [
        DirectTarget::Difference,
        DirectTarget::Answer,
        DirectTarget::Centred,
        fixed.clone(),
    ] {
        for by in PARTS {
            if by == Part::Neuron && model.spec.mlp == Mlp::None {
                continue;
            }
            let scores = attribute(model, task, by, target.clone());
            let total = sums(&scores, |key| Some((String::new(), None, None, key.3)));
            for (pair, row) in task.pairs().iter().zip(&rows) {
                let answers = mean(row, &pair.target.answers);
                let wanted = match &target {
                    DirectTarget::Difference => answers - mean(row, &pair.target.wrong),
                    DirectTarget::Answer => answers,
                    DirectTarget::Centred => {
                        answers - row.iter().map(|&l| f64::from(l)).sum::<f64>() / row.len() as f64
                    }
                    DirectTarget::Tokens { for_, against } => mean(row, for_) - mean(row, against),
                };
                let key = (String::new(), None, None, pair.index as i64);
                near(
                    total[&key],
                    wanted,
                    &format!("{family}, {by:?}, {target:?}"),
                );
            }
            let notes = scores.provenance.notes.join(" ");
            assert!(notes.contains("sum to its"), "{notes}");
            assert_eq!(
                notes.contains("soft-cap at 4"),
                model.spec.final_softcap.is_some(),
                "{notes}"
            );
        }
    }
}

#[test]
fn finer_parts_sum_to_coarser_ones() {
    let task = task();
    for model in models::every_kind() {
        let family = &model.spec.family;
        let of = |by| attribute(&model, &task, by, DirectTarget::Difference);
        let [component, head, source, role] = [
            Part::Component,
            Part::Head,
            Part::HeadSource,
            Part::HeadRole,
        ]
        .map(of);
        let per_head = |scores: &Scores| {
            sums(scores, |key| {
                (key.0 == "attn.hook_result").then(|| key.clone())
            })
        };
        let heads = per_head(&head);
        assert_eq!(heads.len(), 3 * model.spec.n_layers * model.spec.n_heads);
        for (name, finer) in [("source", per_head(&source)), ("role", per_head(&role))] {
            for (key, score) in &heads {
                near(finer[key], *score, &format!("{family}, {name}, {key:?}"));
            }
        }
        // Heads and b_O make attn_out, neurons and b_out make mlp_out, layer by layer.
        let by_layer = |scores: &Scores, names: &'static [&'static str]| {
            sums(scores, move |(component, layer, _, example)| {
                let is = names.contains(&component.as_str());
                is.then(|| (String::new(), *layer, None, *example))
            })
        };
        let coarse = by_layer(&component, &["hook_attn_out"]);
        for (key, score) in by_layer(&head, &["attn.hook_result", "attn.b_O"]) {
            near(score, coarse[&key], &format!("{family}, attention {key:?}"));
        }
        if model.spec.mlp != Mlp::None {
            let coarse = by_layer(&component, &["hook_mlp_out"]);
            for (key, score) in by_layer(&of(Part::Neuron), &["mlp.hook_post", "mlp.b_out"]) {
                near(score, coarse[&key], &format!("{family}, MLP {key:?}"));
            }
        }
    }
}

#[test]
fn swapping_the_answers_flips_every_sign() {
    let task = task();
    let swapped = changed(&task, |pair| {
        std::mem::swap(&mut pair.target.answers, &mut pair.target.wrong);
    });
    for model in models::two_kinds() {
        let there = attribute(&model, &task, Part::Head, DirectTarget::Difference);
        let back = attribute(&model, &swapped, Part::Head, DirectTarget::Difference);
        let (a, b) = (rows_of(&there, "logit_diff"), rows_of(&back, "logit_diff"));
        assert!(a.iter().any(|(_, score)| score.abs() > 0.01));
        for ((_, a), (_, b)) in a.iter().zip(&b) {
            near(*a, -b, "a row");
        }
        let shares: f64 = rows_of(&there, "share").iter().map(|(_, s)| s.abs()).sum();
        near(shares, 3.0, "shares of three prompts");
    }
}

#[test]
fn what_a_part_writes_is_read_over_the_whole_vocabulary() {
    let task = task();
    let vocab = models::VOCAB;
    for model in models::two_kinds().into_iter().chain(models::encoders()) {
        // Every token is listed, so the answer's entry must be its centred contribution.
        for by in [Part::Head, Part::Component, Part::Neuron] {
            if by == Part::Neuron && model.spec.mlp == Mlp::None {
                continue;
            }
            let config = DlaConfig {
                by,
                target: DirectTarget::Tokens {
                    for_: vec![8],
                    against: vec![],
                },
                writes: 2,
                tokens: vocab,
                ..DlaConfig::default()
            };
            let run = |config: &DlaConfig| means(&model, &task, config);
            let scores = run(&config);
            let written = rows_of(&scores, "written_logit");
            // Half are most promoted, half most suppressed; an odd one in the middle is in neither.
            assert_eq!(written.len(), 2 * 2 * (vocab / 2), "{}", model.spec.family);
            let (most, least) = (written[0].1, written[2 * (vocab / 2) - 1].1);
            let bounds = -least.abs().max(most.abs())..=least.abs().max(most.abs());
            assert!(written[..vocab - 1].iter().all(|(_, s)| bounds.contains(s)));
            let name = tokenizer().token(8);
            let dst = scores.texts("dst").expect("tokens are listed");
            let score = scores.floats("score").expect("scores");
            let mut centred = 0.0;
            // One example of each: the token's contribution less the mean over all others.
            for token in 0..vocab as u32 {
                let target = DirectTarget::Tokens {
                    for_: vec![8],
                    against: vec![token],
                };
                let against = run(&DlaConfig {
                    target,
                    writes: 0,
                    ..config.clone()
                });
                let key = &written[0].0;
                let of_part = rows_of(&against, "logits_of_tokens");
                let neuron = |scores: &Scores, row: usize| {
                    scores.integers("neuron").and_then(|neurons| neurons[row])
                };
                let first = (0..scores.table.height()).find(|&row| dst[row].is_some());
                let wanted = neuron(&scores, first.expect("a row"));
                let found = of_part.iter().enumerate().find(|(row, (k, _))| {
                    (&k.0, k.1, k.2) == (&key.0, key.1, key.2) && neuron(&against, *row) == wanted
                });
                centred += found.expect("the part has a row").1.1 / vocab as f64;
            }
            let own = (0..scores.table.height()).find(|&row| dst[row] == Some(&name));
            if let Some(own) = own {
                near(score[own].expect("a number"), centred, &model.spec.family);
            }
        }
    }
}

#[test]
fn direct_attribution_agrees_with_the_reference() {
    for family in ["gpt2", "llama"] {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR"))
            .join("tests/fixtures")
            .join(format!("{family}-tiny-random"));
        let loaded = load(folder.to_str().expect("utf-8"), &LoadOptions::default()).expect("loads");
        let file = folder.join("reference_patching.safetensors");
        let wanted = candle_core::safetensors::load(file, &Device::Cpu).expect("references");
        let ids = |name: &str| -> Vec<Vec<u32>> {
            let t = wanted[name].to_dtype(candle_core::DType::U32).expect("ids");
            if t.rank() == 1 {
                vec![t.to_vec1().expect("ids")]
            } else {
                t.to_vec2().expect("ids")
            }
        };
        let (clean, corrupted) = (ids("clean_ids"), ids("corrupt_ids"));
        let (answer, wrong) = (&ids("answer")[0], &ids("wrong")[0]);
        let pair = |i: usize| {
            Pair::new(clean[i].clone(), corrupted[i].clone())
                .answer(answer[i])
                .wrong(wrong[i])
        };
        let pairs = (0..clean.len()).map(pair);
        let task = Task::new("tiny", &loaded.tokenizer, Metric::LogitDiff, pairs).expect("a task");
        let scores = attribute(&loaded.model, &task, Part::Head, DirectTarget::Difference);
        let flat =
            |t: &Tensor| -> Vec<f32> { t.flatten_all().and_then(|t| t.to_vec1()).expect("values") };
        let spec = &loaded.model.spec;
        let n = clean.len();
        let check = |name: &str, of: &dyn Fn(&Key) -> Option<usize>| {
            let reference = flat(&wanted[name]);
            let mut ours = vec![0.0; reference.len()];
            for (key, score) in rows_of(&scores, "logit_diff") {
                if let Some(index) = of(&key) {
                    ours[index * n + key.3 as usize] += score;
                }
            }
            let largest = reference.iter().fold(1e-3f32, |most, x| most.max(x.abs()));
            for (i, (a, b)) in ours.iter().zip(&reference).enumerate() {
                let gap = (a - f64::from(*b)).abs();
                assert!(
                    gap < 2e-5 * f64::from(largest),
                    "{family} {name} [{i}]: {a} against {b}"
                );
            }
        };
        let layer = |key: &Key| key.1.expect("in a layer") as usize;
        check("dla/head", &|key| {
            let head = key.2? as usize;
            Some(layer(key) * spec.n_heads + head)
        });
        check("dla/mlp", &|key| {
            (key.0 == "hook_mlp_out").then(|| layer(key))
        });
        check("dla/embed", &|key| {
            matches!(key.0.as_str(), "hook_embed" | "hook_pos_embed").then_some(0)
        });
        check("dla/bias", &|key| {
            matches!(key.0.as_str(), "bias" | "attn.b_O").then_some(0)
        });
    }
}

#[test]
fn a_target_that_a_pair_lacks_is_refused_before_anything_runs() {
    let mut pairs = pairs();
    pairs[1].target.wrong.clear();
    let task = Task::new("tiny", tokenizer(), Metric::LogProb, pairs).expect("answers are enough");
    let model = &models::two_kinds()[0];
    let config = |target| DlaConfig {
        target,
        ..DlaConfig::default()
    };
    let message = refusal(model, &task, &config(DirectTarget::Difference)).to_string();
    assert!(
        message.contains("pair 1") && message.contains("centred"),
        "{message}"
    );
    means(model, &task, &config(DirectTarget::Centred));
    let beyond = DirectTarget::Tokens {
        for_: vec![models::VOCAB as u32],
        against: vec![],
    };
    let refused = refusal(model, &task, &config(beyond));
    assert!(matches!(refused, Error::OutOfRange { .. }));
}

/// Sums of the rows of each head, by what names them besides.
fn by_head(scores: &Scores) -> HashMap<Key, f64> {
    sums(scores, |key| {
        (key.0 == "attn.hook_result").then(|| key.clone())
    })
}

#[test]
fn a_prompt_without_a_role_takes_none_from_the_others_of_its_batch() {
    let task = with_a_role_missing(&task());
    let model = &models::two_kinds()[0];
    let by_role = attribute(model, &task, Part::HeadRole, DirectTarget::Difference);
    let (roles, examples) = (
        by_role.texts("role").unwrap(),
        by_role.integers("example").unwrap(),
    );
    let of_s2 = |example: i64| {
        let rows = roles.iter().zip(&examples);
        rows.filter(|&(role, of)| *role == Some("S2") && *of == Some(example))
            .count()
    };
    assert_eq!(
        [0, 1, 2].map(of_s2),
        [
            model.spec.n_layers * model.spec.n_heads,
            0,
            model.spec.n_layers * model.spec.n_heads
        ]
    );
    // What it has no role for is `other`, so that its heads are whole too.
    let heads = by_head(&attribute(
        model,
        &task,
        Part::Head,
        DirectTarget::Difference,
    ));
    for (key, score) in by_head(&by_role) {
        near(score, heads[&key], &format!("{key:?}"));
    }
}

#[test]
fn positions_of_two_templates_are_never_in_one_row() {
    let mut pairs = pairs();
    pairs[1].clean.pop();
    pairs[1].corrupted.pop();
    pairs[2].template = 1;
    for pair in &mut pairs {
        pair.roles.remove("END");
    }
    let task = models::task::task_of(pairs);
    let model = &models::two_kinds()[0];
    let scores = means(model, &task, &DlaConfig::by(Part::HeadSource));
    let templates = scores.texts("template").unwrap();
    let positions = scores.integers("pos").unwrap();
    let by_position: Vec<_> = (0..templates.len())
        .filter(|&row| positions[row].is_some())
        .collect();
    assert!(by_position.iter().all(|&row| templates[row].is_some()));
    let length = |i: usize| task.pairs()[i].clean.len();
    let all = (length(0) + length(1) + length(2)) * model.spec.n_layers * model.spec.n_heads;
    assert_eq!(by_position.len(), all);
    let heads = by_head(&attribute(
        model,
        &task,
        Part::Head,
        DirectTarget::Difference,
    ));
    for (key, score) in by_head(&per_example(model, &task, &DlaConfig::by(Part::HeadSource))) {
        near(score, heads[&key], &format!("{key:?}"));
    }
}

#[test]
fn a_head_writes_for_the_same_tokens_however_it_is_taken_apart() {
    let task = task();
    for model in models::two_kinds() {
        let written = |by: Part| {
            let config = DlaConfig {
                writes: model.spec.n_layers * model.spec.n_heads,
                tokens: 3,
                ..DlaConfig::by(by)
            };
            let scores = per_example(&model, &task, &config);
            let of_heads = rows_of(&scores, "written_logit").into_iter();
            let mut of_heads: Vec<_> = of_heads.filter(|(key, _)| key.2.is_some()).collect();
            // Parts come by strength, and what else is among the strongest differs.
            of_heads.sort_by(|(a, x), (b, y)| a.cmp(b).then(x.total_cmp(y)));
            of_heads
        };
        let heads = written(Part::Head);
        assert!(!heads.is_empty());
        for by in [Part::HeadRole, Part::HeadSource] {
            for (own, wanted) in written(by).iter().zip(&heads) {
                assert_eq!(own.0, wanted.0);
                near(own.1, wanted.1, &format!("{:?}", own.0));
            }
        }
    }
}
