//! Read-outs keep their promises: contributions sum to the logit in every kind of model, the lens ends at the model, and
//! references computed elsewhere agree.

mod models;

use std::collections::HashMap;
use std::path::Path;

use candle_core::{Device, Tensor};
use candlewick::Error;
use candlewick::hooks::{Edit, Hook, Kind};
use candlewick::methods::{
    DirectTarget, DlaConfig, EarlyConfig, HeadConfig, LensConfig, Part, SourceConfig,
    TokenLensConfig, direct_logit_attribution, early_decoding, head_statistics, logit_lens,
    source_classes, token_lens,
};
use candlewick::metric::Metric;
use candlewick::model::load::{LoadOptions, load};
use candlewick::model::{Model, ModelSpec, Origin, Tokenizer};
use candlewick::run::{Quiet, Request, logits, run, run_with_cache};
use candlewick::scores::{Detail, Scores};
use candlewick::spec::{BlockWeights, Mlp, NormPlacement, Position, Weights};
use candlewick::task::{Pair, Task};
use models::task::{changed, pairs, task, task_of, tokenizer};

/// f32 sums of some thirty parts of order 1.
const TOLERANCE: f64 = 1e-4;

fn near(a: f64, b: f64, what: &str) {
    assert!(
        (a - b).abs() <= TOLERANCE * b.abs().max(1.0),
        "{what}: {a} against {b}"
    );
}

fn attribute(model: &Model, task: &Task, by: Part, target: DirectTarget) -> Scores {
    let config = DlaConfig {
        by,
        target,
        detail: Detail::PerExample,
        ..DlaConfig::default()
    };
    whole(direct_logit_attribution(model, task, &config, &Quiet))
}

/// A table with what was measured beside its own metric.
fn whole(scores: candlewick::Result<Scores>) -> Scores {
    scores
        .and_then(|scores| scores.with_sides())
        .expect("measures")
}

/// The rows of a table with the table's own metric, as (component, layer, head, example) and score.
type Key = (String, Option<i64>, Option<i64>, i64);

fn rows_of(scores: &Scores, metric: &str) -> Vec<(Key, f64)> {
    let height = scores.table.height();
    let numbers = |name: &str| scores.integers(name).unwrap_or_else(|| vec![None; height]);
    let (layer, head, example) = (numbers("layer"), numbers("head"), numbers("example"));
    let component = scores.texts("component").expect("every table has it");
    let metrics = scores.texts("metric").expect("every table has it");
    let score = scores.floats("score").expect("every table has it");
    (0..height)
        .filter(|&row| metrics[row] == Some(metric))
        .map(|row| {
            let component = component[row].expect("named").to_string();
            let key = (component, layer[row], head[row], example[row].unwrap_or(0));
            (key, score[row].expect("a number"))
        })
        .collect()
}

/// Sums over everything that shares a key.
fn sums(scores: &Scores, of: impl Fn(&Key) -> Option<Key>) -> HashMap<Key, f64> {
    let mut sums = HashMap::new();
    for (key, score) in rows_of(scores, &scores.provenance.metric) {
        if let Some(key) = of(&key) {
            *sums.entry(key).or_insert(0.0) += score;
        }
    }
    sums
}

const PARTS: [Part; 5] = [
    Part::Component,
    Part::Head,
    Part::Neuron,
    Part::HeadSource,
    Part::HeadRole,
];

#[test]
fn contributions_sum_to_the_logits_in_every_kind_of_model() {
    let task = task();
    let prompts: Vec<Vec<u32>> = task.pairs().iter().map(|pair| pair.clean.clone()).collect();
    let fixed = DirectTarget::Tokens {
        for_: vec![5, 6],
        against: vec![9],
    };
    for model in models::every_kind() {
        let family = &model.spec.family;
        let mut uncapped = model.clone();
        uncapped.spec.final_softcap = None;
        let rows: Vec<Vec<f32>> = logits(&uncapped, &prompts)
            .and_then(|t| Ok(t.to_vec2()?))
            .expect("runs");
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
                let scores = attribute(&model, &task, by, target.clone());
                let total = sums(&scores, |key| Some((String::new(), None, None, key.3)));
                for (pair, row) in task.pairs().iter().zip(&rows) {
                    let answers = mean(row, &pair.target.answers);
                    let wanted = match &target {
                        DirectTarget::Difference => answers - mean(row, &pair.target.wrong),
                        DirectTarget::Answer => answers,
                        DirectTarget::Centred => {
                            answers
                                - row.iter().map(|&l| f64::from(l)).sum::<f64>() / row.len() as f64
                        }
                        DirectTarget::Tokens { for_, against } => {
                            mean(row, for_) - mean(row, against)
                        }
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
    for model in models::two_kinds() {
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
            let run =
                |config: &DlaConfig| whole(direct_logit_attribution(&model, &task, config, &Quiet));
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
    let of = |target| {
        let config = DlaConfig {
            target,
            ..DlaConfig::default()
        };
        direct_logit_attribution(model, &task, &config, &Quiet)
    };
    let message = of(DirectTarget::Difference)
        .expect_err("no wrong answer")
        .to_string();
    assert!(
        message.contains("pair 1") && message.contains("centred"),
        "{message}"
    );
    assert!(of(DirectTarget::Centred).is_ok());
    let beyond = DirectTarget::Tokens {
        for_: vec![models::VOCAB as u32],
        against: vec![],
    };
    assert!(matches!(of(beyond), Err(Error::OutOfRange { .. })));
}

#[test]
fn the_lens_at_the_last_layer_is_the_model() {
    let task = task();
    let prompts: Vec<Vec<u32>> = task.pairs().iter().map(|pair| pair.clean.clone()).collect();
    for model in models::every_kind() {
        let config = LensConfig {
            detail: Detail::PerExample,
            ..LensConfig::new(Metric::LogitDiff)
        };
        let lens = |config: &LensConfig| whole(logit_lens(&model, &task, config, &Quiet));
        let scores = lens(&config);
        let all: Vec<Vec<f32>> = logits(&model, &prompts)
            .and_then(|t| Ok(t.to_vec2()?))
            .expect("runs");
        let last = model.spec.n_layers as i64 - 1;
        let positions = scores.integers("pos").expect("by position");
        let metrics = scores.texts("metric").expect("metrics");
        let (layers, examples) = (scores.integers("layer"), scores.integers("example"));
        let (layers, examples) = (layers.expect("layers"), examples.expect("examples"));
        let component = scores.texts("component").expect("components");
        let score = scores.floats("score").expect("scores");
        let mut seen = 0;
        for row in 0..scores.table.height() {
            let is_end = positions[row] == Some(models::Pairs::ANSWER as i64);
            if !is_end || layers[row] != Some(last) || component[row] != Some("hook_resid_post") {
                continue;
            }
            let i = examples[row].expect("an example") as usize;
            let target = &task.pairs()[i].target;
            let value = |metric: Metric| {
                metric
                    .value(&all[i], target, Some(&all[i]))
                    .expect("a value")
            };
            let wanted = match metrics[row].expect("a metric") {
                "logit_diff" => {
                    let columns: Vec<f32> = target
                        .columns()
                        .iter()
                        .map(|&id| all[i][id as usize])
                        .collect();
                    Metric::LogitDiff
                        .value(&columns, target, None)
                        .expect("a value")
                }
                "prob" => value(Metric::Prob),
                "rank" => value(Metric::Rank),
                "top1" => value(Metric::TopK(1)),
                "kl" => 0.0,
                _ => continue,
            };
            near(
                score[row].expect("a number"),
                wanted,
                metrics[row].expect("a metric"),
            );
            seen += 1;
        }
        assert_eq!(seen, 5 * 3, "{}", model.spec.family);
        // The end alone gives the same rows, counted from the end.
        let end = lens(&LensConfig {
            end_only: true,
            ..config
        });
        let of_end = rows_of(&end, "entropy");
        assert_eq!(of_end.len(), 3 * (model.spec.n_layers + 1));
        for (key, value) in of_end {
            let same = rows_of(&scores, "entropy");
            assert!(
                same.iter()
                    .any(|(k, v)| *k == key && (v - value).abs() < 1e-5)
            );
        }
    }
}

#[test]
fn the_lens_uses_each_stream_s_own_scale() {
    // By hand: the first layer's stream, normalised by itself, through the unembedding.
    let task = task();
    let model = models::every_kind()
        .into_iter()
        .find(|m| m.spec.family == "llama");
    let model = model.expect("one of them");
    let hook = Hook::at(Kind::ResidPost, 0);
    let prompt = vec![task.pairs()[0].clean.clone()];
    let (_, cache) = run_with_cache(&model, &prompt, &[hook]).expect("runs");
    let stream: Vec<f32> = cache
        .get(hook)
        .and_then(|t| Ok(t.get(0)?.get(models::Pairs::ANSWER)?.to_vec1()?))
        .expect("a stream");
    let scale = (stream.iter().map(|x| x * x).sum::<f32>() / stream.len() as f32 + 1e-5).sqrt();
    let norm = model.weights.ln_final.as_ref().expect("a norm");
    let w: Vec<f32> = norm.w.to_vec1().expect("weights");
    let u: Vec<Vec<f32>> = model.weights.w_u.to_vec2().expect("weights");
    let b: Vec<f32> = match &model.weights.b_u {
        Some(b) => b.to_vec1().expect("weights"),
        None => vec![0.0; models::VOCAB],
    };
    let logit = |id: u32| {
        let row = &u[id as usize];
        let products = stream
            .iter()
            .zip(&w)
            .zip(row)
            .map(|((x, w), u)| x / scale * w * u);
        f64::from(products.sum::<f32>() + b[id as usize])
    };
    let config = LensConfig {
        detail: Detail::PerExample,
        ..LensConfig::new(Metric::LogitDiff)
    };
    let config = LensConfig {
        end_only: true,
        ..config
    };
    let scores = whole(logit_lens(&model, &task, &config, &Quiet));
    let rows = rows_of(&scores, "logit");
    let found = rows
        .iter()
        .find(|(key, _)| key.0 == "hook_resid_post" && key.1 == Some(0) && key.3 == 0);
    near(
        found.expect("a row").1,
        logit(task.pairs()[0].target.answers[0]),
        "layer 0",
    );
}

#[test]
fn the_token_lens_sums_to_attention_s_output() {
    let task = task();
    for model in models::every_kind() {
        let config = TokenLensConfig {
            knockout: false,
            watch: vec![11],
            detail: Detail::PerExample,
            seed: 0,
        };
        let scores = whole(token_lens(&model, &task, &config, &Quiet));
        let target = scores.texts("target").expect("watched");
        let metric = scores.texts("metric").expect("metrics");
        let component = scores.texts("component").expect("components");
        let (layer, example) = (scores.integers("layer"), scores.integers("example"));
        let (layer, example) = (layer.expect("layers"), example.expect("examples"));
        let score = scores.floats("score").expect("scores");
        let mut parts: HashMap<_, f64> = HashMap::new();
        let mut whole = HashMap::new();
        for row in 0..scores.table.height() {
            let key = (target[row], layer[row], example[row]);
            let value = score[row].expect("a number");
            match (component[row], metric[row]) {
                (Some("hook_attn_out"), Some("whole")) => drop(whole.insert(key, value)),
                (Some("hook_attn_out" | "attn.b_O"), _) => *parts.entry(key).or_default() += value,
                _ => {}
            }
        }
        assert_eq!(whole.len(), 3 * 3 * model.spec.n_layers);
        for (key, value) in whole {
            near(
                parts[&key],
                value,
                &format!("{}, {key:?}", model.spec.family),
            );
        }
    }
}

#[test]
fn knockout_is_a_scaling_of_the_pattern_to_zero() {
    let task = task();
    for model in models::two_kinds() {
        let mut uncapped = model.clone();
        uncapped.spec.final_softcap = None;
        let config = TokenLensConfig {
            knockout: true,
            watch: vec![],
            detail: Detail::PerExample,
            seed: 0,
        };
        let scores = whole(token_lens(&model, &task, &config, &Quiet));
        let edits: Vec<Edit> = (0..model.spec.n_layers)
            .map(|layer| {
                format!("pattern{layer}[pos=-1; key=@S2] *= 0")
                    .parse()
                    .expect("an edit")
            })
            .collect();
        let pair = &task.pairs()[0];
        let roles = [pair.roles.clone()];
        let centred = |edits: &[Edit]| {
            let request = Request {
                edits,
                roles: &roles,
                ..Request::default()
            };
            let run = run(&uncapped, std::slice::from_ref(&pair.clean), &request).expect("runs");
            let logits: Vec<f32> = run
                .logits
                .expect("asked for")
                .get(0)
                .and_then(|t| t.to_vec1())
                .expect("logits");
            let mean = logits.iter().sum::<f32>() / logits.len() as f32;
            f64::from(logits[pair.target.answers[0] as usize] - mean)
        };
        let component = scores.texts("component").expect("components");
        let (role, target) = (scores.texts("role").expect("roles"), scores.texts("target"));
        let (target, example) = (target.expect("watched"), scores.integers("example"));
        let example = example.expect("examples");
        let row = (0..scores.table.height()).find(|&row| {
            component[row] == Some("logits")
                && role[row] == Some("S2")
                && target[row] == Some("answer")
                && example[row] == Some(0)
        });
        let found = scores.floats("score").expect("scores")[row.expect("a row")];
        let wanted = centred(&[]) - centred(&edits);
        assert!(wanted.abs() > 1e-3, "the test should see something");
        near(found.expect("a number"), wanted, "the answer");
    }
}

#[test]
fn source_classes_take_a_head_apart_whole() {
    let task = task();
    for model in models::two_kinds() {
        let config = SourceConfig {
            detail: Detail::PerExample,
            percentile: 50.0,
            ..SourceConfig::new(vec!["S2".into()])
        };
        let scores = whole(source_classes(&model, &task, &config, &Quiet));
        let heads = attribute(&model, &task, Part::Head, DirectTarget::Centred);
        let target = scores.texts("target").expect("targets");
        let metric = scores.texts("metric").expect("metrics");
        let own = (0..target.len()).filter(|&row| metric[row] == Some("centred_logit"));
        let rows = rows_of(&scores, "centred_logit");
        let mut sums: HashMap<Key, f64> = HashMap::new();
        for (row, (key, score)) in own.zip(&rows) {
            if target[row] == Some("answer") && key.0 == "attn.hook_result" {
                *sums.entry(key.clone()).or_default() += score;
            }
        }
        let of_heads = rows_of(&heads, "centred_logit");
        let of_heads = of_heads
            .iter()
            .filter(|(key, _)| key.0 == "attn.hook_result");
        for (key, score) in of_heads {
            near(sums[key], *score, &format!("{key:?}"));
        }
        let classes = scores
            .texts("class")
            .expect("half of the heads are classed");
        assert!(classes.iter().flatten().count() > 0);
    }
    let unknown = SourceConfig::new(vec!["SUBJECT".into()]);
    let error = unknown
        .check(&task)
        .expect_err("there is no such role")
        .to_string();
    assert!(error.contains("S1, S2"), "{error}");
}

/// Prompts with three labelled demonstrations; the corrupted ones show each label's partner instead.
fn demonstrations() -> Task {
    let labels = [30, 31];
    let pair = |i: usize| {
        let class = |j: usize| (i / (1 << j)) % 2;
        let input = |class: usize, j: usize| (2 + 3 * class + j + i) as u32 % 20;
        let (mut clean, mut corrupted) = (Vec::new(), Vec::new());
        for j in 0..3 {
            for (prompt, shown) in [(&mut clean, class(j)), (&mut corrupted, 1 - class(j))] {
                prompt.extend([input(class(j), j), 25, labels[shown]]);
            }
        }
        let query = (i * 7 + 3) % 2;
        for prompt in [&mut clean, &mut corrupted] {
            prompt.extend([input(query, 5), 25]);
        }
        Pair {
            index: i,
            roles: Default::default(),
            ..Pair::new(clean, corrupted)
                .answer(labels[query])
                .wrong(labels[1 - query])
        }
    };
    task_of((0..8).map(pair).collect())
}

#[test]
fn early_decoding_ends_at_the_model_and_ablates_what_it_says() {
    let task = demonstrations();
    let model = &models::two_kinds()[0];
    let config = EarlyConfig {
        heads: 2,
        controls: 2,
        detail: Detail::PerExample,
        seed: 0,
    };
    let scores = whole(early_decoding(model, &task, &config, &Quiet));
    let target = scores.texts("target").expect("settings");
    let metric = scores.texts("metric").expect("metrics");
    let (layer, example) = (scores.integers("layer"), scores.integers("example"));
    let (layer, example) = (layer.expect("layers"), example.expect("examples"));
    let component = scores.texts("component").expect("components");
    let score = scores.floats("score").expect("scores");
    let last = model.spec.n_layers as i64 - 1;
    let mut seen = 0;
    for row in 0..scores.table.height() {
        let is_last = layer[row] == Some(last) && component[row] == Some("hook_resid_post");
        if metric[row] != Some("accuracy") || !is_last {
            continue;
        }
        let pair = &task.pairs()[example[row].expect("an example") as usize];
        let prompt = match target[row] {
            Some("true demonstrations") => &pair.clean,
            _ => &pair.corrupted,
        };
        let logits: Vec<f32> = logits(model, std::slice::from_ref(prompt))
            .and_then(|t| Ok(t.get(0)?.to_vec1()?))
            .expect("runs");
        let [answer, wrong] = [&pair.target.answers, &pair.target.wrong].map(|ids| ids[0] as usize);
        let right = f64::from(u8::from(logits[answer] > logits[wrong]));
        near(
            score[row].expect("a number"),
            right,
            "accuracy of the last layer",
        );
        seen += 1;
    }
    assert_eq!(seen, 2 * task.pairs().len());
    let ablated: Vec<&str> = scores
        .texts("src")
        .expect("sets")
        .into_iter()
        .flatten()
        .collect();
    assert_eq!(
        ablated.len(),
        3 * task.pairs().len(),
        "two draws and the chosen heads"
    );
    assert!(scores.provenance.notes[0].contains("critical layer"));
    // Prefix matching is attention to labels of the query's class less that to the other class.
    let pair = &task.pairs()[1];
    let hook = Hook::at(Kind::Pattern, 1);
    let (_, cache) =
        run_with_cache(model, std::slice::from_ref(&pair.clean), &[hook]).expect("runs");
    let pattern: Vec<f32> = cache
        .get(hook)
        .and_then(|t| Ok(t.get(0)?.get(2)?.get(pair.clean.len() - 1)?.to_vec1()?))
        .expect("a row");
    let sign = |pos: usize| {
        if pair.clean[pos] == pair.target.answers[0] {
            1.0
        } else {
            -1.0
        }
    };
    let wanted: f64 = [2, 5, 8]
        .iter()
        .map(|&pos| sign(pos) * f64::from(pattern[pos]))
        .sum();
    let rows = rows_of(&scores, "prefix_matching");
    let found = rows
        .iter()
        .find(|(key, _)| (key.1, key.2, key.3) == (Some(1), Some(2), 1));
    near(found.expect("a row").1, wanted, "prefix matching");
    let other = changed(&task, |pair| {
        if pair.index == 3 {
            pair.target.wrong = vec![29];
        }
    });
    assert!(matches!(
        EarlyConfig::default().check(&other),
        Err(Error::BadTask { .. })
    ));
}

#[test]
fn every_kind_of_model_has_its_heads_labelled() {
    let task = task();
    for model in models::every_kind() {
        let config = HeadConfig {
            block: 8,
            samples: 2,
            circuits: vec![(1, 2)],
            from: vec![4, 6],
            tokens: 3,
            ..HeadConfig::new(&model.spec)
        };
        let scores = whole(head_statistics(&model, &task, &config, &Quiet));
        let heads = model.spec.n_layers * model.spec.n_heads;
        let rows = rows_of(&scores, "induction");
        assert_eq!(rows.len(), heads, "{}", model.spec.family);
        for measure in [
            "induction",
            "previous_token",
            "first_token",
            "itself",
            "duplicate_token",
        ] {
            assert!(
                rows_of(&scores, measure)
                    .iter()
                    .all(|(_, s)| (0.0..=1.0).contains(s))
            );
        }
        assert!(
            rows_of(&scores, "copying")
                .iter()
                .all(|(_, s)| (-1.0..=1.0).contains(s))
        );
        for measure in ["ov_logit", "qk_score"] {
            assert_eq!(rows_of(&scores, measure).len(), 2 * 3, "{measure}");
        }
    }
}

/// The query-key circuit without positions is what the first layer computes at equal positions.
#[test]
fn the_circuits_of_the_first_layer_are_what_it_computes() {
    let task = task();
    let model = models::every_kind()
        .into_iter()
        .find(|m| m.spec.family == "llama");
    let model = model.expect("one of them");
    let config = HeadConfig {
        block: 8,
        samples: 1,
        circuits: vec![(0, 3)],
        from: vec![7],
        tokens: models::VOCAB,
        ..HeadConfig::new(&model.spec)
    };
    let scores = whole(head_statistics(&model, &task, &config, &Quiet));
    // One token attends to itself at distance zero, with nothing else to see.
    let hooks = [Kind::AttnScores, Kind::Result].map(|kind| Hook::at(kind, 0));
    let (_, cache) = run_with_cache(&model, &[vec![7]], &hooks).expect("runs");
    let own = cache
        .get(hooks[0])
        .and_then(|t| Ok(t.flatten_all()?.to_vec1::<f32>()?))
        .expect("scores");
    let dst = scores.texts("dst").expect("circuits");
    let metric = scores.texts("metric").expect("metrics");
    let score = scores.floats("score").expect("scores");
    let name = tokenizer().token(7);
    let find = |wanted: &str| {
        let is = |row: &usize| metric[*row] == Some(wanted) && dst[*row] == Some(&name);
        score[(0..dst.len()).find(is).expect("a row")].expect("a number")
    };
    near(find("qk_score"), f64::from(own[3]), "the token for itself");
    let result: Vec<f32> = cache
        .get(hooks[1])
        .and_then(|t| Ok(t.get(0)?.get(0)?.get(3)?.to_vec1()?))
        .expect("a result");
    let w: Vec<f32> = model
        .weights
        .ln_final
        .as_ref()
        .expect("a norm")
        .w
        .to_vec1()
        .expect("w");
    let u: Vec<Vec<f32>> = model.weights.w_u.to_vec2().expect("w");
    let logit = |row: &Vec<f32>| -> f32 {
        result
            .iter()
            .zip(&w)
            .zip(row)
            .map(|((r, w), u)| r * w * u)
            .sum()
    };
    let mean = u.iter().map(logit).sum::<f32>() / u.len() as f32;
    near(
        find("ov_logit"),
        f64::from(logit(&u[7]) - mean),
        "what it writes for itself",
    );
}

/// The trained induction model, if it is at hand.
fn induction_model() -> Option<(Model, Tokenizer)> {
    let folder = std::env::var_os("CANDLEWICK_SMALL_MODELS")?;
    let file = Path::new(&folder).join("induction_2l1h/finetuned_model_0.safetensors");
    let t = candle_core::safetensors::load(file, &Device::Cpu).ok()?;
    let get = |name: &str| t[name].clone();
    let spec = ModelSpec {
        family: "attention-only".into(),
        n_layers: 2,
        n_heads: 1,
        n_kv_heads: 1,
        d_model: 64,
        d_head: 64,
        d_vocab: 26,
        n_ctx: 8,
        d_mlp: 0,
        norm_placement: NormPlacement::None,
        position: Position::Learned,
        attn_scale: vec![0.125; 2],
        windows: vec![None; 2],
        mlp: Mlp::None,
        ..models::two_kinds()[0].spec.clone()
    };
    let block = |layer: usize| {
        let of = |name: &str| get(&format!("blocks.{layer}.attn.{name}"));
        let one = |name: &str| of(name).squeeze(0).expect("one head");
        let [q, k, v] = ["W_Q", "W_K", "W_V"].map(one);
        let [b_q, b_k, b_v] = ["b_Q", "b_K", "b_V"].map(one);
        BlockWeights {
            ln1: None,
            w_qkv: Tensor::cat(&[q, k, v], 1).expect("columns"),
            b_qkv: Some(Tensor::cat(&[b_q, b_k, b_v], 0).expect("columns")),
            q_norm: None,
            k_norm: None,
            w_o: one("W_O"),
            b_o: Some(of("b_O")),
            ln1_post: None,
            ln2: None,
            mlp: None,
            ln2_post: None,
        }
    };
    let weights = Weights {
        w_e: get("embed.W_E"),
        w_pos: Some(get("pos_embed.W_pos")),
        blocks: vec![block(0), block(1)],
        ln_final: None,
        w_u: get("unembed.W_U")
            .t()
            .and_then(|t| t.contiguous())
            .expect("rows"),
        b_u: Some(get("unembed.b_U")),
        encoder: None,
    };
    let spec = ModelSpec {
        tied: false,
        ..spec
    };
    let letters: serde_json::Map<String, serde_json::Value> = ('a'..='z')
        .enumerate()
        .map(|(id, letter)| (letter.to_string(), id.into()))
        .collect();
    let json = serde_json::json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": [], "normalizer": null,
        "pre_tokenizer": { "type": "WhitespaceSplit" }, "post_processor": null, "decoder": null,
        "model": { "type": "WordLevel", "vocab": letters, "unk_token": "z" },
    });
    let tokenizer = Tokenizer::from_bytes(json.to_string().as_bytes(), None).expect("a tokenizer");
    let model = Model::new(spec, weights, Origin::default()).expect("it fits");
    Some((model, tokenizer))
}

#[test]
fn the_induction_model_shows_its_two_heads() {
    let Some((model, tokenizer)) = induction_model() else {
        println!("skipped: no induction_2l1h in $CANDLEWICK_SMALL_MODELS");
        return;
    };
    let config = HeadConfig {
        block: 4,
        samples: 64,
        ..HeadConfig::new(&model.spec)
    };
    let pair = Pair::new([0, 1], [0, 2]).answer(1).wrong(2);
    let letters = Task::new("letters", &tokenizer, Metric::LogitDiff, [pair]).expect("a task");
    let scores = whole(head_statistics(&model, &letters, &config, &Quiet));
    let of = |measure: &str, layer: i64| {
        let rows = rows_of(&scores, measure);
        rows.iter()
            .find(|(key, _)| key.1 == Some(layer))
            .expect("a row")
            .1
    };
    println!(
        "previous token {:.2} {:.2}, induction {:.2} {:.2}, copying {:.2} {:.2}",
        of("previous_token", 0),
        of("previous_token", 1),
        of("induction", 0),
        of("induction", 1),
        of("copying", 0),
        of("copying", 1),
    );
    assert!(of("previous_token", 0) > 0.4 && of("induction", 1) > 0.4);
    assert!(of("copying", 1) > 0.8, "the induction head copies");
    let classes = scores.texts("class").expect("classes");
    assert!(
        classes
            .iter()
            .flatten()
            .any(|class| class.starts_with("previous token"))
    );
    assert!(
        classes
            .iter()
            .flatten()
            .any(|class| class.starts_with("induction") && class.contains("copies"))
    );
}

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
    let folder = tempfile::tempdir().expect("a folder");
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
        let with_out = [args, &["--out", "a.parquet", "--force"]].concat();
        let (is_fine, printed, stderr) = candlewick(folder.path(), &with_out);
        assert!(
            is_fine && printed.contains(says),
            "{args:?}: {stderr}{printed}"
        );
        let (_, shown, _) = candlewick(folder.path(), &["show", "a.parquet"]);
        // What the run says of itself at the end stands on top of the file's.
        let table = printed
            .rsplit_once("\n\n")
            .expect("a blank line before the end")
            .0;
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
        (&["heads", "--circuit", "9.0"], "a3.h1"),
        (&["heads", "--block", "1"], "--block"),
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
