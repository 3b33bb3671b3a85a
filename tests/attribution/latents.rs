//! Latents of dictionaries: what all of them and the error do together is what the hook does, and estimates meet exact effects.

use std::sync::Arc;

use candlewick::hooks::{Edit, Hook, Kind, Ln, Op, Pos, Site, Value};
use candlewick::methods::attribution::NodeAttributionConfig;
use candlewick::methods::{
    Along, LatentActivationsConfig, LatentConfig, LatentEstimate, Method, PatchSource, Running,
    Subject, Watch, measurements,
};
use candlewick::metric::Metric;
use candlewick::model::Model;
use candlewick::run::{Logits, Request, run, run_with_cache};
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
    let texts = vec![vec![1, 2, 3, 4, 5, 6, 7], vec![8, 9, 10], vec![11, 12, 13]];
    let pairs = texts.iter().enumerate().map(|(index, text)| Pair {
        index,
        ..Pair::new(text.clone(), text.clone())
    });
    let task = Task::new("texts", tokenizer(), Metric::Kl, pairs.collect::<Vec<_>>()).unwrap();
    let config = LatentActivationsConfig::new(Arc::clone(&sae));
    let found = measured(&model, &task, &config);
    let mut of_latents = vec![(Vec::new(), 0usize); LATENTS];
    for text in &texts {
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
