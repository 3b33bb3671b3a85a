//! Latents of dictionaries: what all of them and the error do together is what the hook does, and estimates meet exact effects.

use std::collections::BTreeSet;
use std::sync::Arc;

use candlewick::hooks::{Edit, Hook, Kind, Ln, Op, Pos, Site, Value};
use candlewick::methods::attribution::NodeAttributionConfig;
use candlewick::methods::{
    Along, DictionaryEvalConfig, LatentActivationsConfig, LatentConfig, LatentEstimate, Method,
    PatchSource, Running, Subject, Watch, measurements,
};
use candlewick::metric::Metric;
use candlewick::model::Model;
use candlewick::run::{
    GenerateRequest, Logits, Quiet, Request, generate, generate_plain, run, run_with_cache,
};
use candlewick::sae::{Activation, Normalize, Sae};
use candlewick::scores::{Direction, Measured};
use candlewick::spec::ModelSpec;
use candlewick::task::{Pair, Task};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use crate::models::every_kind;
use crate::models::task::{task, tokenizer};
use crate::{measured, near, patch};

const LATENTS: usize = 40;

/// A dictionary of random directions. Of four kinds, so that each model meets another.
fn random(spec: &ModelSpec, reads: Hook, writes: Hook, seed: u64) -> Arc<Sae> {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let mut draw = |n: usize, size: f32| -> Vec<f32> {
        (0..n)
            .map(|_| size * (2.0 * rng.random::<f32>() - 1.0))
            .collect()
    };
    let width = |hook: Hook| hook.shape(spec, 1, 1).iter().product::<usize>();
    let (d_in, d_out) = (width(reads), width(writes));
    let w_dec = draw(LATENTS * d_out, 0.5);
    let length = |row: &[f32]| row.iter().map(|x| x * x).sum::<f32>().sqrt();
    Arc::new(Sae {
        id: "random".into(),
        hash: seed.to_string(),
        model: None,
        doubts: Vec::new(),
        reads,
        writes,
        activation: match seed % 4 {
            0 => Activation::Relu,
            1 => Activation::JumpRelu {
                threshold: draw(LATENTS, 0.3).iter().map(|x| x.abs()).collect(),
            },
            2 => Activation::TopK { k: 7 },
            _ => Activation::Gated {
                gate: draw(LATENTS, 0.2),
                scale: draw(LATENTS, 0.5),
            },
        },
        normalize: match seed % 3 {
            0 => Normalize::None,
            1 => Normalize::Length,
            _ => Normalize::Standard,
        },
        centred: reads == writes,
        decoder_norms: (seed % 4 == 2).then(|| w_dec.chunks_exact(d_out).map(length).collect()),
        d_in,
        d_out,
        d_sae: LATENTS,
        w_enc: draw(d_in * LATENTS, 0.6),
        b_enc: draw(LATENTS, 0.1),
        w_dec,
        b_dec: draw(d_out, 0.2),
        w_skip: (reads != writes).then(|| draw(d_out * d_in, 0.3)),
    })
}

/// Dictionaries where a model has something to attach them to: the stream, the heads, an MLP across.
fn attached(model: &Model, seed: u64) -> Vec<Arc<Sae>> {
    let spec = &model.spec;
    let at = |kind| Hook::at(kind, 1);
    let pairs = [
        (Kind::ResidPost, Kind::ResidPost),
        (Kind::Z, Kind::Z),
        (Kind::MlpOut, Kind::MlpOut),
        (Kind::Normalized(Ln::Two), Kind::MlpOut),
    ];
    let has = |(reads, writes): &(Kind, Kind)| {
        reads.absent(spec).is_none() && writes.absent(spec).is_none()
    };
    let all = pairs.into_iter().filter(has).enumerate();
    all.map(|(i, (reads, writes))| random(spec, at(reads), at(writes), seed + i as u64))
        .collect()
}

/// The scores of each pair, summed over the cells that it has.
fn sums(measured: &Measured, direction: Direction) -> Vec<f64> {
    let of_pair = |one: &candlewick::scores::ExampleScores| {
        let base = one.base(direction);
        one.values.iter().map(|value| value - base).sum()
    };
    measured.examples.iter().map(of_pair).collect()
}

fn whole_hook(sae: &Sae, direction: Direction) -> candlewick::methods::PatchConfig {
    let mut whole = patch(&format!("{}:all", sae.writes.kind.short()), direction);
    whole.layers = "1".parse().expect("a layer");
    whole
}

/// AtP of heads has a row for each; of the stream one.
fn of_nodes(model: &Model, task: &Task, sae: &Sae, direction: Direction) -> Vec<f64> {
    let config = NodeAttributionConfig::atp(whole_hook(sae, direction));
    sums(&measured(model, task, &config), direction)
}

#[test]
fn latents_and_error_together_are_the_hook() {
    for (seed, model) in every_kind().into_iter().enumerate() {
        let task = task();
        for sae in attached(&model, seed as u64) {
            for direction in [Direction::Noise, Direction::Denoise] {
                let config = LatentConfig {
                    direction,
                    ..LatentConfig::atp(Arc::clone(&sae))
                };
                let found = sums(&measured(&model, &task, &config), direction);
                let expected = of_nodes(&model, &task, &sae, direction);
                near(
                    &found,
                    &expected,
                    1e-3,
                    &format!("{} {sae}", model.spec.family),
                );
                // Apart by position or by role, they are the same in the sum.
                for along in [Along::Pos, Along::Role] {
                    let config = LatentConfig {
                        along,
                        ..config.clone()
                    };
                    let apart = sums(&measured(&model, &task, &config), direction);
                    near(
                        &apart,
                        &found,
                        1e-3,
                        &format!("{} {sae} {along:?}", model.spec.family),
                    );
                }
            }
        }
    }
}

#[test]
fn integrated_gradients_sum_to_the_exact_effect_of_the_hook() {
    for (seed, model) in every_kind().into_iter().enumerate() {
        let task = task();
        let hook = Hook::at(Kind::ResidPost, 1);
        let sae = random(&model.spec, hook, hook, seed as u64);
        let config = LatentConfig::integrated(Arc::clone(&sae), 40);
        let found = sums(&measured(&model, &task, &config), Direction::Noise);
        let whole = measured(&model, &task, &whole_hook(&sae, Direction::Noise));
        let expected = sums(&whole, Direction::Noise);
        near(&found, &expected, 2e-2, &model.spec.family);
    }
}

/// Every cell of exact patching, as a whole run with the latent's own change added at each position.
#[test]
fn exact_effects_are_those_of_plain_runs() {
    for (seed, model) in every_kind().into_iter().enumerate().step_by(3) {
        let task = task();
        for sae in attached(&model, seed as u64) {
            for to_zero in [false, true] {
                let config = LatentConfig {
                    source: if to_zero {
                        PatchSource::Zero
                    } else {
                        PatchSource::Pair
                    },
                    direction: if to_zero {
                        Direction::Ablate
                    } else {
                        Direction::Noise
                    },
                    ..LatentConfig::exact(Arc::clone(&sae))
                };
                let found = measured(&model, &task, &config);
                for one in &found.examples {
                    let pair = &task.pairs()[one.example];
                    let values = |prompt: &Vec<u32>, hook: Hook| -> Vec<f32> {
                        let (_, cache) =
                            run_with_cache(&model, std::slice::from_ref(prompt), &[hook]).unwrap();
                        cache
                            .get(hook)
                            .unwrap()
                            .flatten_all()
                            .unwrap()
                            .to_vec1()
                            .unwrap()
                    };
                    let inputs = values(&pair.clean, sae.reads);
                    let own = sae.encode(&inputs);
                    let other = sae.encode(&values(&pair.corrupted, sae.reads));
                    let amount = |pos: usize, latent: u32| {
                        let to = if to_zero { 0.0 } else { other.get(pos, latent) };
                        (to - own.get(pos, latent)) * own.scale(pos) * sae.unit(latent as usize)
                    };
                    // What is left of the whole change; or of the hook, where latents go.
                    let error: Vec<f32> = {
                        let from = values(&pair.clean, sae.writes);
                        let mut left: Vec<f32> = match to_zero {
                            true => sae.decode(&own, &inputs),
                            false => values(&pair.corrupted, sae.writes),
                        };
                        left.iter_mut().zip(from).for_each(|(x, from)| *x -= from);
                        for (pos, row) in left.chunks_exact_mut(sae.d_out).enumerate() {
                            for latent in (0..LATENTS as u32).filter(|_| !to_zero) {
                                let by = amount(pos, latent);
                                let direction = sae.direction(latent as usize);
                                row.iter_mut()
                                    .zip(direction)
                                    .for_each(|(x, w)| *x -= by * w);
                            }
                        }
                        left
                    };
                    let last = one.cells.len() - 1;
                    let cells = one.cells.iter().zip(&one.values).enumerate();
                    for (_, (&cell, &value)) in cells.filter(|(i, _)| i % 5 == 0 || *i == last) {
                        let latent = found.cells[cell as usize].neuron;
                        let added: Vec<f32> = match latent {
                            None => error.clone(),
                            Some(latent) => (0..pair.clean.len())
                                .flat_map(|pos| {
                                    let by = amount(pos, latent);
                                    sae.direction(latent as usize).iter().map(move |w| w * by)
                                })
                                .collect(),
                        };
                        let shape = sae.writes.shape(&model.spec, 1, pair.clean.len());
                        let added = candle_core::Tensor::from_vec(
                            added,
                            &shape[1..],
                            &candle_core::Device::Cpu,
                        )
                        .unwrap();
                        let at = (0..pair.clean.len()).map(Pos::Index);
                        let site = Site::all(sae.writes).at_positions(at);
                        let request = Request {
                            edits: &[Edit::new(site, Op::Add(Value::Tensor(added)))],
                            logits: Logits::Last,
                            ..Request::default()
                        };
                        let run = run(&model, std::slice::from_ref(&pair.clean), &request).unwrap();
                        let logits: Vec<Vec<f32>> = run.logits.unwrap().to_vec2().unwrap();
                        let target = &pair.target;
                        let read: Vec<f32> = (target.answers.iter())
                            .chain(&target.wrong)
                            .map(|&token| logits[0][token as usize])
                            .collect();
                        let plain = Metric::LogitDiff.value(&read, target, None).unwrap();
                        assert!(
                            (plain - value).abs() < 2e-4 * plain.abs().max(1.0),
                            "{} {sae} {latent:?}: {plain} against {value}",
                            model.spec.family
                        );
                    }
                }
            }
        }
    }
}

#[test]
fn a_small_change_is_what_its_gradient_says() {
    let model = every_kind().swap_remove(0);
    let hook = Hook::at(Kind::ResidPost, 1);
    let mut sae = Arc::unwrap_or_clone(random(&model.spec, hook, hook, 0));
    // Latents that write little, so that what they do is linear.
    sae.w_dec.iter_mut().for_each(|w| *w *= 1e-2);
    let task = task();
    let sae = Arc::new(sae);
    let estimated = measured(&model, &task, &LatentConfig::atp(Arc::clone(&sae)));
    let exact = measured(&model, &task, &LatentConfig::exact(sae));
    assert_eq!(estimated.cells, exact.cells);
    let of_latents = |measured: &Measured| -> Vec<f64> {
        let means = measured.means(Direction::Noise, false);
        let cells = measured.cells.iter().zip(means);
        cells
            .filter(|(cell, _)| cell.neuron.is_some())
            .map(|(_, mean)| mean)
            .collect()
    };
    near(&of_latents(&estimated), &of_latents(&exact), 5e-2, "small");
}

#[test]
fn what_does_not_differ_has_effect_zero_or_no_row() {
    let model = every_kind().swap_remove(0);
    let task = task();
    let hook = Hook::at(Kind::ResidPost, 1);
    let sae = random(&model.spec, hook, hook, 2);
    let all = measured(&model, &task, &LatentConfig::atp(Arc::clone(&sae)));
    assert!(all.cells.len() <= LATENTS + 1);
    // Every pair has every row: a mean over those in which a latent moves would be too large.
    for one in &all.examples {
        assert_eq!(one.values.len(), all.cells.len());
    }
    let named = LatentConfig {
        latents: Some((0..LATENTS).collect()),
        ..LatentConfig::exact(sae)
    };
    let named = measured(&model, &task, &named);
    assert_eq!(named.cells.len(), LATENTS + 1);
    let idle = named.cells.iter().filter(|cell| !all.cells.contains(cell));
    for cell in idle {
        let at = named.cells.iter().position(|other| other == cell).unwrap();
        for one in &named.examples {
            assert_eq!(one.value(at), Some(one.clean));
        }
    }
}

/// Each latent's largest activation, how often it is on, and the context, counted by hand.
#[test]
fn activations_are_what_the_encoder_says() {
    let model = every_kind().swap_remove(0);
    let hook = Hook::at(Kind::ResidPost, 1);
    let sae = random(&model.spec, hook, hook, 2);
    let given = [vec![1, 2, 3, 4, 5, 6, 7], vec![8, 9, 10], vec![11, 12, 13]];
    let task = texts(&given);
    let config = LatentActivationsConfig::new(Arc::clone(&sae));
    let found = measured(&model, &task, &config);
    let mut of_latents = vec![(Vec::new(), 0usize); LATENTS];
    for text in &given {
        let (_, cache) = run_with_cache(&model, std::slice::from_ref(text), &[hook]).unwrap();
        let x: Vec<f32> = cache
            .get(hook)
            .unwrap()
            .flatten_all()
            .unwrap()
            .to_vec1()
            .unwrap();
        let latents = sae.encode(&x);
        for (latent, of) in of_latents.iter_mut().enumerate() {
            let values = (0..text.len()).map(|pos| latents.get(pos, latent as u32));
            let on: Vec<f32> = values.filter(|value| *value > 0.0).collect();
            of.1 += on.len();
            of.0.extend(on.into_iter().reduce(f32::max).map(f64::from));
        }
    }
    let means = found.means(Direction::Direct, false);
    let mut seen = 0;
    for (cell, mean) in found.cells.iter().zip(means) {
        let (largest, on) = &of_latents[cell.neuron.unwrap() as usize];
        let expected = match cell.measure.as_deref() {
            None => largest.iter().sum::<f64>() / largest.len() as f64,
            Some("density") => *on as f64 / 13.0,
            Some(other) => panic!("{other}"),
        };
        assert!(
            (mean - expected).abs() < 1e-5,
            "{cell}: {mean} against {expected}"
        );
        seen += 1;
    }
    let ever = of_latents.iter().filter(|of| of.1 > 0).count();
    assert_eq!(seen, 2 * ever);
    assert_eq!(found.found["contexts"].as_object().unwrap().len(), ever);
}

#[test]
fn what_cannot_be_done_is_said() {
    let model = every_kind().swap_remove(0);
    let task = task();
    let refused = |config: LatentConfig| -> String {
        let on = Subject {
            model: &model,
            task: &task,
        };
        measurements(
            on,
            &config as &dyn Method,
            &Running::default(),
            &Watch::default(),
        )
        .expect_err("refused")
        .to_string()
    };
    let hook = Hook::at(Kind::ResidPost, 1);
    let sae = random(&model.spec, hook, hook, 0);
    let base = || LatentConfig::atp(Arc::clone(&sae));
    let wide = Sae {
        d_in: 99,
        model: Some("gpt2".into()),
        ..(*sae).clone()
    };
    let text = refused(LatentConfig::atp(Arc::new(wide)));
    assert!(text.contains("width 99") && text.contains("gpt2"), "{text}");
    let text = refused(LatentConfig {
        latents: Some(vec![LATENTS]),
        ..base()
    });
    assert!(text.contains("0 to 39"), "{text}");
    let text = refused(LatentConfig {
        source: PatchSource::Zero,
        ..base()
    });
    assert!(text.contains("ablate"), "{text}");
    let text = refused(LatentConfig {
        estimate: LatentEstimate::IntegratedGradients {
            steps: 0,
            rule: Default::default(),
        },
        ..base()
    });
    assert!(text.contains("at least one step"), "{text}");
    let last = Hook::global(Kind::Normalized(Ln::Final));
    let text = refused(LatentConfig::atp(Arc::new(Sae {
        reads: last,
        writes: last,
        ..(*sae).clone()
    })));
    assert!(text.contains("exactly"), "{text}");
    let pattern = Hook::at(Kind::Pattern, 0);
    let text = refused(LatentConfig::atp(Arc::new(Sae {
        reads: pattern,
        writes: pattern,
        ..(*sae).clone()
    })));
    assert!(text.contains("positions"), "{text}");
}

/// The hook's values of a pair's clean prompt, one row a position, and the hook that is read.
fn hooks_of(model: &Model, sae: &Sae, pair: &Pair, edits: &[Edit]) -> [Vec<f32>; 2] {
    let hooks = [sae.reads, sae.writes];
    let request = Request {
        edits,
        capture: &hooks,
        logits: Logits::All,
        ..Request::default()
    };
    let cache = run(model, std::slice::from_ref(&pair.clean), &request)
        .unwrap()
        .cache;
    hooks.map(|hook| {
        let values = cache.get(hook).unwrap().flatten_all().unwrap();
        values.to_vec1().unwrap()
    })
}

#[test]
fn a_latent_that_is_steered_moves_along_its_direction_and_nothing_else_moves() {
    for (seed, model) in every_kind().into_iter().enumerate() {
        let task = task();
        let pair = &task.pairs()[0];
        for sae in attached(&model, seed as u64) {
            let [read, written] = hooks_of(&model, &sae, pair, &[]);
            let latents = sae.encode(&read);
            let latent = latents.rows.iter().flatten().next().expect("one is on").0;
            let changes = [
                ("=1.5", false),
                ("*=3", false),
                ("=zero", false),
                ("+=2", true),
            ];
            for (change, is_added) in changes {
                let edit = sae.edit(&format!("{latent}{change}"));
                if sae.is_transcoder() && !is_added {
                    let refused = edit.unwrap_err().to_string();
                    assert!(refused.contains("add to it"), "{refused}");
                    continue;
                }
                let edited = hooks_of(&model, &sae, pair, &[edit.unwrap()])[1].clone();
                let rows = written.chunks_exact(sae.d_out).enumerate();
                let expected = rows.flat_map(|(row, x)| {
                    let own = latents.get(row, latent);
                    let more = match change {
                        "=1.5" => 1.5 - own,
                        "*=3" => 2.0 * own,
                        "+=2" => 2.0,
                        _ => -own,
                    };
                    let more = more * latents.scale(row) * sae.unit(latent as usize);
                    let direction = sae.direction(latent as usize);
                    let each = x.iter().zip(direction);
                    each.map(move |(x, w)| x + more * w).collect::<Vec<_>>()
                });
                for (found, expected) in edited.iter().zip(expected) {
                    let bound = 1e-4 * expected.abs().max(1.0);
                    assert!(
                        (found - expected).abs() < bound,
                        "{} {sae} {change}: {found} for {expected}",
                        model.spec.family
                    );
                }
            }
        }
    }
}

#[test]
fn latents_are_steered_while_generating_as_in_whole_runs() {
    for (seed, model) in every_kind().into_iter().enumerate() {
        let prompts = [task().pairs()[0].clean.clone()];
        for sae in attached(&model, seed as u64) {
            let changes: &[&str] = match sae.is_transcoder() {
                true => &["3+=2"],
                false => &["3+=2", "5=1", "7*=0"],
            };
            let edits: Vec<Edit> = changes.iter().map(|text| sae.edit(text).unwrap()).collect();
            let request = GenerateRequest {
                edits: &edits,
                max_tokens: 4,
                ..GenerateRequest::default()
            };
            let kept = generate(&model, &prompts, &request, &Quiet).unwrap();
            let whole = generate_plain(&model, &prompts, &request, &Quiet).unwrap();
            assert_eq!(kept.tokens, whole.tokens, "{} {sae}", model.spec.family);
        }
    }
}

#[test]
fn a_latent_is_steered_at_some_positions_and_bad_changes_are_said() {
    let model = every_kind().swap_remove(0);
    let hook = Hook::at(Kind::ResidPost, 1);
    let sae = random(&model.spec, hook, hook, 0);
    let task = task();
    let pair = &task.pairs()[0];
    let own = hooks_of(&model, &sae, pair, &[])[1].clone();
    let edit = sae.edit(" 3[pos=-1] += 2 ").unwrap();
    assert_eq!(
        edit.to_string(),
        "blocks.1.hook_resid_post[pos=-1] = closure latent 3 of random += 2"
    );
    let edited = hooks_of(&model, &sae, pair, &[edit])[1].clone();
    let last = own.len() - sae.d_out;
    assert_eq!(own[..last], edited[..last]);
    assert_ne!(own[last..], edited[last..]);
    for (text, says) in [
        ("3", "LATENT+=VALUE"),
        ("x=4", "LATENT+=VALUE"),
        ("3=mean", "LATENT+=VALUE"),
        ("3=[1,2]", "LATENT+=VALUE"),
        ("3[neuron=1]=4", "whole positions"),
        ("3[pos=x]=4", "x"),
        ("3=inf", "finite"),
        ("40=1", "40 latents, 0 to 39"),
        ("99999999999999999999=1", "LATENT+=VALUE"),
    ] {
        let error = sae.edit(text).unwrap_err().to_string();
        assert!(error.contains(says), "{text}: {error}");
    }
}

/// A task of texts, as `--texts` makes one.
fn texts(texts: &[Vec<u32>]) -> Task {
    let pairs = texts.iter().enumerate().map(|(index, text)| Pair {
        index,
        ..Pair::new(text.clone(), text.clone())
    });
    Task::new("texts", tokenizer(), Metric::Kl, pairs.collect::<Vec<_>>()).unwrap()
}

/// Log probabilities of the next token at each position, in one whole run.
fn log_probs(model: &Model, text: &[u32], edits: &[Edit]) -> Vec<Vec<f64>> {
    let request = Request {
        edits,
        logits: Logits::All,
        ..Request::default()
    };
    let all = run(model, &[text.to_vec()], &request).unwrap();
    let rows: Vec<Vec<f32>> = all.logits.unwrap().get(0).unwrap().to_vec2().unwrap();
    let normed = |row: &Vec<f32>| {
        let sum: f64 = row.iter().map(|&x| f64::from(x).exp()).sum();
        row.iter().map(|&x| f64::from(x) - sum.ln()).collect()
    };
    rows.iter().map(normed).collect()
}

/// The loss of a text's next tokens.
fn loss(log_probs: &[Vec<f64>], text: &[u32]) -> f64 {
    let next = log_probs.iter().zip(&text[1..]);
    -next.map(|(row, &token)| row[token as usize]).sum::<f64>() / (text.len() - 1) as f64
}

#[test]
fn a_dictionary_is_as_good_as_plain_runs_say() {
    let given = [vec![1, 2, 3, 4, 5, 6, 7], vec![8, 9, 10], vec![11, 12, 13]];
    for (seed, model) in every_kind().into_iter().enumerate() {
        for sae in attached(&model, seed as u64) {
            let config = DictionaryEvalConfig::new(Arc::clone(&sae));
            let found = measured(&model, &texts(&given), &config);
            let mut ever = BTreeSet::new();
            let mut grown = [0.0; 2];
            for (text, one) in given.iter().zip(&found.examples) {
                let pair = Pair::new(text.clone(), text.clone());
                let [read, written] = hooks_of(&model, &sae, &pair, &[]);
                let latents = sae.encode(&read);
                ever.extend(latents.rows.iter().flatten().map(|latent| latent.0));
                let decoded = sae.decode(&latents, &read);
                let rows = written.chunks(sae.d_out).zip(decoded.chunks(sae.d_out));
                let cosines = rows.map(|(x, y)| {
                    let product = |a: &[f32], b: &[f32]| -> f64 {
                        a.iter().zip(b).map(|(a, b)| f64::from(a * b)).sum()
                    };
                    product(x, y) / (product(x, x) * product(y, y)).sqrt()
                });
                let cosine = cosines.sum::<f64>() / text.len() as f64;
                let l0 = latents.rows.iter().map(Vec::len).sum::<usize>();
                let shape = sae.writes.shape(&model.spec, 1, text.len());
                let decoded = candle_core::Tensor::from_vec(decoded, shape, &model.device).unwrap();
                let whole = Site::all(sae.writes);
                let replaced = Edit::new(whole.clone(), Op::Replace(Value::Tensor(decoded)));
                let own = log_probs(&model, text, &[]);
                let there = log_probs(&model, text, &[replaced]);
                let zero = log_probs(&model, text, &[Edit::new(whole, Op::Zero)]);
                let terms = own.iter().flatten().zip(there.iter().flatten());
                let kl = terms.map(|(p, q)| p.exp() * (p - q)).sum::<f64>() / text.len() as f64;
                let losses = [&own, &there, &zero].map(|of| loss(of, text));
                grown[0] += losses[1] - losses[0];
                grown[1] += losses[2] - losses[0];
                let what = format!("{} {sae}", model.spec.family);
                let sides = &one.values[2..];
                near(
                    &[one.clean, one.values[0], one.values[1]],
                    &losses,
                    1e-4,
                    &what,
                );
                near(&sides[..1], &[kl], 1e-3, &what);
                assert!(
                    (sides[1] - l0 as f64 / text.len() as f64).abs() < 1e-9,
                    "{what}"
                );
                assert!(
                    (sides[2] - cosine).abs() < 1e-4,
                    "{what}: {} {cosine}",
                    sides[2]
                );
            }
            let dead = (LATENTS - ever.len()) as f64 / LATENTS as f64;
            assert_eq!(found.found["dead"].as_f64(), Some(dead));
            let recovered = found
                .found
                .get("loss_recovered")
                .and_then(|share| share.as_f64());
            match grown[1] > 0.0 {
                true => {
                    let (found, expected) =
                        (recovered.expect("a share"), 1.0 - grown[0] / grown[1]);
                    assert!(
                        (found - expected).abs()
                            < 1e-3 * expected.abs().max(1.0) / grown[1].min(1.0)
                    );
                }
                false => assert_eq!(recovered, None),
            }
        }
    }
}

#[test]
fn a_dictionary_of_every_direction_both_ways_recovers_all_of_the_loss() {
    let given = [vec![1, 2, 3, 4, 5, 6, 7], vec![8, 9, 10], vec![11, 12, 13]];
    let mut recovered = 0;
    for model in every_kind() {
        let hook = Hook::at(Kind::ResidPost, 1);
        let d = model.spec.d_model;
        let mut sae = Sae::clone(&random(&model.spec, hook, hook, 0));
        sae.d_sae = 2 * d;
        sae.activation = Activation::Relu;
        sae.normalize = Normalize::None;
        sae.b_enc = vec![0.0; 2 * d];
        sae.b_dec = vec![0.0; d];
        sae.w_enc = vec![0.0; 2 * d * d];
        sae.w_dec = vec![0.0; 2 * d * d];
        for i in 0..d {
            for (latent, sign) in [(i, 1.0), (d + i, -1.0)] {
                sae.w_enc[i * 2 * d + latent] = sign;
                sae.w_dec[latent * d + i] = sign;
            }
        }
        let config = DictionaryEvalConfig::new(Arc::new(sae));
        let found = measured(&model, &texts(&given), &config);
        for one in &found.examples {
            let [kl, l0, cosine] = [one.values[2], one.values[3], one.values[4]];
            assert!(
                (one.values[0] - one.clean).abs() < 1e-5,
                "{}",
                one.values[0]
            );
            assert!(kl < 1e-6 && (cosine - 1.0).abs() < 1e-5, "{kl} {cosine}");
            assert_eq!(l0, d as f64);
        }
        // A random model may do no worse with zeros; then nothing is recovered, and that is said.
        let share = found.found.get("loss_recovered");
        let is_said = |note: &String| note.contains("no share of it is recovered");
        assert_eq!(share.is_none(), found.notes.iter().any(is_said));
        if let Some(share) = share.and_then(serde_json::Value::as_f64) {
            assert!((share - 1.0).abs() < 1e-3, "{share}");
            recovered += 1;
        }
    }
    assert!(recovered > 0);
}
