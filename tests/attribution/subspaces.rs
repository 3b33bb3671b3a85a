//! Subspaces: the exchange is the edit that it says, found on training pairs alone; slopes are those of the loss.

use candle_core::Tensor;
use candlewick::Error;
use candlewick::hooks::{Edit, Hook, Kind, Op, Pos, Site, Value};
use candlewick::methods::subspace::{SplitBy, Subspace, Training, das_loss, rank_one_edit};
use candlewick::methods::{
    Running, Subject, SubspaceConfig, SubspaceMethod, Watch, measure, measurements,
};
use candlewick::model::Model;
use candlewick::model::load::{LoadOptions, open};
use candlewick::run::run_with_cache;
use candlewick::scores::Measured;
use candlewick::task::{ExpandOptions, Pair, Task, TaskFile, causal_gym, expand};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use safetensors::SafeTensors;

use crate::measured;
use crate::models::task::{logit_diff, task, task_of};
use crate::models::{VOCAB, encoder, every_kind, two_kinds};

/// Pairs of two lengths, whose roles stand elsewhere in the two prompts of the longer ones.
fn many(n: usize) -> Task {
    let mut rng = ChaCha8Rng::seed_from_u64(11);
    let pair = |i: usize| {
        let length = 8 + i % 2;
        let clean: Vec<u32> = (0..length)
            .map(|_| rng.random_range(0..VOCAB as u32))
            .collect();
        let mut corrupted = clean.clone();
        // One within every window of the last token.
        for at in [3, length - 2] {
            corrupted[at] = (corrupted[at] + 5) % VOCAB as u32;
        }
        let pair = Pair::new(clean, corrupted).template(i % 2);
        let pair = match i % 2 {
            0 => pair.role("S", [2, 3]),
            _ => pair.shifted_role("S", [3], [4]),
        };
        pair.answer(7).wrong(19)
    };
    task_of((0..n).map(pair).collect())
}

fn config(methods: &[SubspaceMethod]) -> SubspaceConfig {
    SubspaceConfig {
        roles: vec!["S".into(), "END".into()],
        training: Training {
            steps: 4,
            most_dims: 3,
            ..Training::default()
        },
        draws: 1,
        ..SubspaceConfig::new(methods)
    }
}

/// What was measured, and the directions by their names in the file.
fn saved(
    model: &Model,
    task: &Task,
    config: &SubspaceConfig,
) -> (Measured, Vec<(String, Subspace)>) {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("d.safetensors");
    let config = SubspaceConfig {
        save: Some(path.clone()),
        ..config.clone()
    };
    let found = measured(model, task, &config);
    let bytes = std::fs::read(&path).expect("it is written");
    let file = SafeTensors::deserialize(&bytes).expect("it reads");
    let spaces = file.iter().map(|(name, view)| {
        let width = view.shape()[1];
        let values: Vec<f64> = (view.data().chunks_exact(4))
            .map(|bytes| f64::from(f32::from_le_bytes(bytes.try_into().unwrap())))
            .collect();
        let directions: Vec<Vec<f64>> = values.chunks_exact(width).map(<[f64]>::to_vec).collect();
        (
            name.to_string(),
            Subspace::spanned(&directions).expect("independent"),
        )
    });
    let mut spaces: Vec<(String, Subspace)> = spaces.collect();
    spaces.sort_by(|a, b| a.0.cmp(&b.0));
    (found, spaces)
}

/// The odds of an exchange and the share of the two ways round that succeed, each from whole runs with an edit written by hand.
fn by_hand(model: &Model, pair: &Pair, hook: Hook, role: &str, space: &Subspace) -> [f64; 2] {
    let swapped = Pair {
        clean: pair.corrupted.clone(),
        corrupted: pair.clean.clone(),
        ..pair.clone()
    };
    let width: usize = hook.shape(&model.spec, 1, 1).iter().product();
    let of = |prompt: &[u32], at: usize| -> Vec<f32> {
        let (_, cache) = run_with_cache(model, &[prompt.to_vec()], &[hook]).expect("it runs");
        let all = cache.get(hook).expect("asked for").flatten_all().unwrap();
        all.to_vec1::<f32>().unwrap()[at * width..][..width].to_vec()
    };
    let at = [&pair.roles, pair.corrupted_roles()].map(|roles| *roles[role].last().unwrap());
    let values = [of(&pair.clean, at[0]), of(&pair.corrupted, at[1])];
    let directions = space.directions();
    let mut sums = [0.0; 2];
    for (side, pair) in [pair, &swapped].into_iter().enumerate() {
        let (base, source) = (values[side].clone(), values[1 - side].clone());
        let directions = directions.clone();
        let edit = Edit::with(
            Site::all(hook).at_positions([Pos::Index(at[side])]),
            "exchange",
            move |x| {
                let own: Vec<f32> = x.flatten_all()?.to_vec1()?;
                assert_eq!(own, base, "nothing before the hook is changed");
                let mut moved: Vec<f64> = own.iter().map(|&x| f64::from(x)).collect();
                match &directions {
                    None => moved = source.iter().map(|&x| f64::from(x)).collect(),
                    Some(all) => {
                        for v in all {
                            let along: f64 = (0..v.len())
                                .map(|j| f64::from(source[j] - base[j]) * v[j])
                                .sum();
                            (0..v.len()).for_each(|j| moved[j] += along * v[j]);
                        }
                    }
                }
                let moved: Vec<f32> = moved.into_iter().map(|x| x as f32).collect();
                Ok(Tensor::from_vec(moved, x.shape(), x.device())?)
            },
        );
        let sign = if side == 0 { -1.0 } else { 1.0 };
        let (before, after) = (
            logit_diff(model, pair, &[]),
            logit_diff(model, pair, &[edit]),
        );
        sums[0] += 0.5 * sign * (after - before);
        sums[1] += 0.5 * f64::from(u8::from(sign * after > 0.0));
    }
    sums
}

#[test]
fn exchanges_are_those_of_whole_runs_with_an_edit_by_hand() {
    let task = many(7);
    let methods = [
        SubspaceMethod::Full,
        SubspaceMethod::MeanDifference,
        SubspaceMethod::Das,
        SubspaceMethod::BoundlessDas,
        SubspaceMethod::Lda,
    ];
    for (number, model) in every_kind().into_iter().enumerate() {
        let kinds = SubspaceConfig::KINDS
            .iter()
            .filter(|kind| kind.absent(&model.spec).is_none());
        let kinds: Vec<Kind> = kinds.copied().collect();
        // Each model meets two kinds of hook; all meet all.
        for kind in [
            kinds[number % kinds.len()],
            kinds[(number + 3) % kinds.len()],
        ] {
            let layer = 1;
            let config = SubspaceConfig {
                kind,
                layers: [layer].into(),
                ..config(&methods)
            };
            let (found, spaces) = saved(&model, &task, &config);
            let hook = Hook::at(kind, layer);
            let what = format!("{} {hook}", model.spec.family);
            for example in &found.examples {
                let pair = task
                    .pairs()
                    .iter()
                    .find(|pair| pair.index == example.example)
                    .unwrap();
                for role in ["S", "END"] {
                    for method in methods {
                        let name = format!("{hook}@{role}.{method}");
                        let space = match method {
                            SubspaceMethod::Full => Subspace::full(),
                            _ => match spaces.iter().find(|(known, _)| *known == name) {
                                Some((_, space)) => space.clone(),
                                // No dimension was worth it.
                                None => Subspace::spanned(&[]).unwrap(),
                            },
                        };
                        let expected = by_hand(&model, pair, hook, role, &space);
                        for (measure, expected) in [None, Some("iia")].iter().zip(expected) {
                            let cell = found.cells.iter().position(|cell| {
                                cell.role.as_deref() == Some(role)
                                    && cell.target.as_deref() == Some(method.name())
                                    && cell.measure.as_deref() == *measure
                            });
                            let value = example.value(cell.expect("a cell")).expect("measured");
                            let near = (value - expected).abs() < 2e-4 * expected.abs().max(1.0);
                            assert!(
                                near,
                                "{what} {name} {measure:?}: {value} against {expected}"
                            );
                        }
                    }
                }
            }
        }
    }
}

#[test]
fn every_dimension_is_the_whole_activation_and_no_dimension_changes_nothing() {
    let task = many(6);
    for model in two_kinds() {
        let config = SubspaceConfig {
            dims: model.spec.d_model,
            layers: [1].into(),
            ..config(&[SubspaceMethod::Full, SubspaceMethod::Random])
        };
        let found = measured(&model, &task, &config);
        let per_place = found.cells.len() / 2;
        for example in &found.examples {
            for place in 0..2 {
                let [full, random] =
                    [0, 2].map(|at| example.value(place * per_place + at).unwrap());
                assert!(
                    (full - random).abs() < 1e-4 * full.abs().max(1.0),
                    "{full} {random}"
                );
            }
        }
    }
    let none = Subspace::spanned(&[]).unwrap();
    assert_eq!(none.exchanged(&[1.5, -2.0], &[3.0, 4.0]), [1.5, -2.0]);
}

#[test]
fn held_out_pairs_find_nothing() {
    let task = many(8);
    let model = &two_kinds()[0];
    let config = SubspaceConfig {
        dims: 2,
        ..config(&[
            SubspaceMethod::Das,
            SubspaceMethod::Pca,
            SubspaceMethod::Logistic,
            SubspaceMethod::KMeans,
        ])
    };
    let (found, spaces) = saved(model, &task, &config);
    let judges: Vec<usize> = found.examples.iter().map(|one| one.example).collect();
    assert_eq!(judges.len(), 4);
    let others = crate::models::task::changed(&task, |pair| {
        if judges.contains(&pair.index) {
            pair.clean[0] = (pair.clean[0] + 9) % VOCAB as u32;
            pair.corrupted[0] = pair.clean[0];
        }
    });
    let (other, same) = saved(model, &others, &config);
    assert_eq!(spaces, same);
    assert_ne!(found.examples, other.examples);
}

#[test]
fn a_pair_and_the_same_turned_round_judge_once() {
    let mut pairs = many(8).pairs().to_vec();
    let turned: Vec<Pair> = (pairs.iter())
        .map(|pair| Pair {
            clean: pair.corrupted.clone(),
            corrupted: pair.clean.clone(),
            clean_text: pair.corrupted_text.clone(),
            corrupted_text: pair.clean_text.clone(),
            ..pair.clone()
        })
        .collect();
    pairs.extend(turned);
    let task = task_of(pairs);
    let config = SubspaceConfig {
        train: Some(4),
        ..config(&[SubspaceMethod::Full])
    };
    let found = measured(&two_kinds()[0], &task, &config);
    let judged = found.examples.iter().map(|one| {
        let mut pairs = task.pairs().iter();
        let pair = pairs.find(|pair| pair.index == one.example).unwrap();
        let (a, b) = (pair.clean.clone(), pair.corrupted.clone());
        if a < b { (a, b) } else { (b, a) }
    });
    let distinct: std::collections::BTreeSet<_> = judged.collect();
    assert_eq!(distinct.len(), found.examples.len());
    // Four pairs teach, which are at least two that are not the same.
    assert!((4..=6).contains(&distinct.len()), "{}", distinct.len());
}

#[test]
fn slopes_of_a_direction_are_those_of_its_loss() {
    let task = many(4);
    let mut rng = ChaCha8Rng::seed_from_u64(2);
    for (number, model) in every_kind().into_iter().enumerate() {
        let kinds = SubspaceConfig::KINDS
            .iter()
            .filter(|kind| kind.absent(&model.spec).is_none());
        let kinds: Vec<Kind> = kinds.copied().collect();
        let hook = Hook::at(kinds[number % kinds.len()], 1);
        let width: usize = hook.shape(&model.spec, 1, 1).iter().product();
        let on = Subject {
            model: &model,
            task: &task,
        };
        for role in ["S", "END"] {
            let directions: Vec<Vec<f64>> = (0..2)
                .map(|_| {
                    (0..width)
                        .map(|_| (rng.random::<f64>() - 0.5) / (width as f64).sqrt())
                        .collect()
                })
                .collect();
            let (_, slope) = das_loss(on, hook, role, &directions).expect("it runs");
            let largest = slope.iter().flatten().fold(0f64, |max, x| max.max(x.abs()));
            for (of, at) in [(0, 0), (0, width - 1), (1, width / 2)] {
                let step = 0.02;
                let shifted = |by: f64| {
                    let mut directions = directions.clone();
                    directions[of][at] += by;
                    das_loss(on, hook, role, &directions).expect("it runs").0
                };
                let difference = (shifted(step) - shifted(-step)) / (2.0 * step);
                let gap = (difference - slope[of][at]).abs();
                assert!(
                    gap < 0.02 * largest.max(1e-3),
                    "{} {hook} {role}: {difference} against {} of {largest}",
                    model.spec.family,
                    slope[of][at]
                );
            }
        }
    }
}

#[test]
fn training_finds_what_chance_does_not() {
    let task = many(9);
    for model in two_kinds() {
        let mut config = config(&[SubspaceMethod::Das, SubspaceMethod::Random]);
        config.layers = [1].into();
        config.roles = vec!["END".into()];
        config.train = Some(8);
        config.training.steps = 80;
        config.training.rate = 0.05;
        let (found, spaces) = saved(&model, &task, &config);
        let trained = task
            .pairs()
            .iter()
            .filter(|pair| pair.index != found.examples[0].example);
        let trained = task.with_pairs(trained.cloned()).expect("a task");
        let on = Subject {
            model: &model,
            task: &trained,
        };
        let hook = Hook::at(Kind::ResidPost, 1);
        let das = spaces[0].1.directions().unwrap();
        let (loss, _) = das_loss(on, hook, "END", &das).expect("it runs");
        let mut rng = ChaCha8Rng::seed_from_u64(5);
        for _ in 0..5 {
            let drawn: Vec<f64> = (0..model.spec.d_model)
                .map(|_| rng.random::<f64>() - 0.5)
                .collect();
            let drawn = Subspace::spanned(&[drawn]).unwrap().directions().unwrap();
            let (random, _) = das_loss(on, hook, "END", &drawn).expect("it runs");
            assert!(
                loss < random,
                "{}: {loss} against {random}",
                model.spec.family
            );
        }
        // What the table says is what the loss is.
        let after = found
            .cells
            .iter()
            .position(|cell| cell.measure.as_deref() == Some("loss_after"));
        let said = found.examples[0].value(after.unwrap()).unwrap();
        assert!((said - loss).abs() < 1e-4, "{said} {loss}");
        let says = |found: &Measured| {
            found
                .warnings
                .iter()
                .any(|warning| warning.contains("did not train"))
        };
        assert!(!says(&found), "{:?}", found.warnings);
        config.training = Training {
            steps: 1,
            rate: 1e-9,
            ..config.training
        };
        assert!(says(&measured(&model, &task, &config)));
    }
}

#[test]
fn what_cannot_be_exchanged_is_refused() {
    let model = &two_kinds()[1];
    let says = |model: &Model, task: &Task, config: &SubspaceConfig, what: &str| {
        let found = measurements(
            Subject { model, task },
            config,
            &Running::default(),
            &Watch::default(),
        );
        let message = found.expect_err(what).to_string();
        assert!(message.contains(what), "{message}");
    };
    let usual = config(&[SubspaceMethod::Full, SubspaceMethod::Pca]);
    let six = many(6);
    let with = |change: &dyn Fn(&mut SubspaceConfig)| {
        let mut config = usual.clone();
        change(&mut config);
        config
    };
    says(
        model,
        &six,
        &with(&|of| of.kind = Kind::Pattern),
        "can be exchanged at `resid_pre`",
    );
    says(
        model,
        &six,
        &with(&|of| of.layers = [9].into()),
        "`layer` = 9",
    );
    says(model, &six, &with(&|of| of.roles = vec!["IO".into()]), "IO");
    says(
        model,
        &six,
        &with(&|of| of.dims = 23),
        "the width of `resid_post`",
    );
    says(
        model,
        &six,
        &with(&|of| {
            of.methods = vec![SubspaceMethod::BoundlessDas];
            of.training.most_dims = 23;
        }),
        "the width of `resid_post`",
    );
    says(model, &six, &with(&|of| of.dims = 6), "vary along");
    says(
        model,
        &six,
        &with(&|of| of.train = Some(6)),
        "take from 2 to 5 for training",
    );
    says(
        model,
        &many(2),
        &usual,
        "take at least 3 (`ExpandOptions::n_pairs`)",
    );
    says(
        model,
        &six,
        &with(&|of| of.methods.clear()),
        "need a way to be found",
    );
    says(
        model,
        &six,
        &with(&|of| of.methods.push(SubspaceMethod::Full)),
        "named twice",
    );
    says(
        model,
        &six,
        &with(&|of| of.training.rate = f64::NAN),
        "is no step",
    );
    says(model, &six, &with(&|of| of.draws = 1001), "1 to 1000");
    says(
        model,
        &six,
        &with(&|of| of.training.steps = 100_001),
        "1 to 100000",
    );
    // Before the tokens that differ, nothing does.
    let early = with(&|of| {
        of.kind = Kind::ResidPre;
        of.layers = [0].into();
        of.roles = vec!["END".into()];
    });
    says(model, &six, &early, "there is nothing to exchange");
    says(&encoder(), &task(), &usual, "bert");
    let attention_only = every_kind()
        .into_iter()
        .find(|model| model.spec.family == "attention-only");
    says(
        &attention_only.unwrap(),
        &six,
        &with(&|of| of.kind = Kind::MlpPost),
        "no MLP",
    );
}

#[test]
fn a_corruption_that_keeps_the_answer_is_said() {
    let model = &two_kinds()[0];
    let task = many(6);
    let found = measured(model, &task, &config(&[SubspaceMethod::Full]));
    // The tiny model does not know the task: whichever way it leans on corrupted prompts, turning labels round turns the warning on or off.
    let turned = crate::models::task::changed(&task, |pair| {
        std::mem::swap(&mut pair.target.answers, &mut pair.target.wrong);
    });
    let turned = measured(model, &turned, &config(&[SubspaceMethod::Full]));
    let says = |found: &Measured| {
        found
            .warnings
            .iter()
            .filter(|of| of.contains("ask for the answer still"))
            .count()
    };
    assert_eq!(says(&found) + says(&turned), 1);
    let odds =
        |found: &Measured| -> f64 { found.examples.iter().flat_map(|one| one.value(0)).sum() };
    assert!((odds(&found) + odds(&turned)).abs() < 1e-4);
}

#[test]
fn a_table_has_odds_and_beside_them_what_else_was_measured() {
    let model = &two_kinds()[0];
    let task = many(6);
    let config = SubspaceConfig {
        control: true,
        ..config(&[SubspaceMethod::Full, SubspaceMethod::Das])
    };
    let on = Subject { model, task: &task };
    let scores = measure(on, &config, &Running::default(), &Watch::default()).expect("a table");
    let beside = scores.side("measures").expect("side quantities");
    let text = beside.to_string();
    for measure in ["iia", "control", "selectivity", "loss_before", "loss_after"] {
        assert!(text.contains(measure), "{measure}: {text}");
    }
    let [odds, control, selectivity] =
        [&scores, beside, beside].map(|table| table.floats("score").unwrap());
    assert_eq!(odds.len(), 2 * 2 * model.spec.n_layers);
    assert!(control.len() > odds.len() && selectivity.iter().all(Option::is_some));
    // Example by example selectivity is what its name says.
    let found = measured(model, &task, &config);
    let mut seen = 0;
    for (at, cell) in found.cells.iter().enumerate() {
        if cell.measure.as_deref() != Some("selectivity") {
            continue;
        }
        let of = |measure: Option<&str>| {
            let same = found.cells.iter().position(|other| {
                other.measure.as_deref() == measure
                    && other.layer == cell.layer
                    && other.role == cell.role
                    && other.target == cell.target
            });
            same.expect("a cell")
        };
        let [odds, control] = [of(None), of(Some("control"))];
        for example in &found.examples {
            let value = |at: usize| example.value(at).expect("measured");
            let gap = (value(at) - (value(odds) - value(control))).abs();
            assert!(gap < 1e-5 * value(odds).abs().max(1.0), "{cell:?}: {gap}");
            seen += 1;
        }
    }
    assert_eq!(seen, found.examples.len() * 2 * 2 * model.spec.n_layers);
    assert!(matches!(
        "nothing".parse::<SubspaceMethod>(),
        Err(Error::Parse { .. })
    ));
}

#[test]
fn the_contrasts_of_causalgym_are_read_and_ask_for_two_answers() {
    let names: Vec<&str> = causal_gym().collect();
    assert_eq!(names.len(), 29);
    let path = std::env::var_os("HOME").map(|home| {
        std::path::Path::new(&home).join(".cache/candlewick-models/smollm2-135m-instruct.q4_1.gguf")
    });
    let real = path.filter(|path| path.exists());
    if real.is_none() {
        println!("no real tokenizer here: the sentences are read, and not made tokens of");
    }
    let real = real.map(|path| {
        let opened = open(&path.to_string_lossy(), &LoadOptions::default()).expect("it opens");
        opened.tokenizer().clone()
    });
    for name in names {
        let file = TaskFile::open(name).expect(name);
        assert_eq!(file.name, name);
        let Some(tokenizer) = &real else { continue };
        let options = ExpandOptions {
            n_pairs: Some(40),
            ..ExpandOptions::default()
        };
        let task = expand(&file, tokenizer, &options).expect(name);
        assert_eq!(task.pairs().len(), 40, "{name}");
        for pair in task.pairs() {
            // What differs stands before the answer, and turns it round.
            assert!(
                pair.is_aligned() && pair.first_difference() < pair.clean.len(),
                "{name}"
            );
            let [answer, wrong] = [&pair.target.answers, &pair.target.wrong];
            assert!(
                answer.len() == 1 && wrong.len() == 1 && answer != wrong,
                "{name}"
            );
        }
    }
}

/// The value of one cell for each example.
fn values(found: &Measured, target: &str, measure: Option<&str>) -> Vec<f64> {
    let cell = found.cells.iter().position(|cell| {
        cell.target.as_deref() == Some(target) && cell.measure.as_deref() == measure
    });
    let cell = cell.unwrap_or_else(|| panic!("{target} {measure:?}"));
    found
        .examples
        .iter()
        .map(|one| one.value(cell).expect("measured"))
        .collect()
}

#[test]
fn what_no_matrix_reads_changes_nothing_and_the_parts_make_the_whole() {
    let task = many(6);
    for model in every_kind() {
        let spec = &model.spec;
        let mut splits = vec![(Kind::Z, SplitBy::Output)];
        if Kind::MlpPost.absent(spec).is_none() {
            splits.push((Kind::MlpPost, SplitBy::Output));
        }
        let last = spec.n_layers - 1;
        let readers = format!("a{last}.h0").parse().expect("a head");
        splits.push((Kind::ResidPre, SplitBy::Readers(readers)));
        for (kind, by) in splits {
            let config = SubspaceConfig {
                kind,
                layers: [last].into(),
                roles: vec!["END".into()],
                split: Some(by.clone()),
                ..config(&[SubspaceMethod::Full, SubspaceMethod::MeanDifference])
            };
            let (found, spaces) = saved(&model, &task, &config);
            let what = format!("{} {}", spec.family, kind.short());
            let [row, null] = ["row", "null"].map(|part| format!("mean-difference:{part}"));
            let lengths = [&row, &null].map(|part| values(&found, part, Some("norm"))[0]);
            let sum = lengths[0].powi(2) + lengths[1].powi(2);
            assert!((sum - 1.0).abs() < 1e-6, "{what}: {lengths:?}");
            // Whatever stands behind the matrix, nothing of the null part comes out of it.
            if by == SplitBy::Output {
                let odds = values(&found, &null, None);
                assert!(
                    odds.iter().all(|odds| odds.abs() < 1e-4),
                    "{what}: {odds:?}"
                );
                let dims = lengths[1] > 1e-6;
                let has = spaces.iter().any(|(name, _)| name.ends_with(":null"));
                assert_eq!(dims, has, "{what}");
            }
            // FLDD is a ratio of means.
            let clean: f64 = found
                .examples
                .iter()
                .map(|one| {
                    let pair = task
                        .pairs()
                        .iter()
                        .find(|pair| pair.index == one.example)
                        .unwrap();
                    logit_diff(&model, pair, &[])
                })
                .sum();
            let patched: f64 = values(&found, "full", Some("patched")).iter().sum();
            let fldd = values(&found, "full", Some("fldd"))[0];
            let expected = 100.0 * (1.0 - patched / clean);
            assert!(
                (fldd - expected).abs() < 1e-2 * expected.abs().max(1.0),
                "{what}: {fldd} {expected}"
            );
        }
    }
}

#[test]
fn a_rank_one_edit_does_what_a_patch_of_the_last_neurons_does() {
    let task = many(4);
    for model in every_kind()
        .into_iter()
        .filter(|model| Kind::MlpPost.absent(&model.spec).is_none())
    {
        let last = model.spec.n_layers - 1;
        let hook = Hook::at(Kind::MlpPost, last);
        let pair = &task.pairs()[0];
        let neurons = |prompt: &[u32]| -> Vec<f32> {
            let (_, cache) = run_with_cache(&model, &[prompt.to_vec()], &[hook]).expect("it runs");
            let all = cache
                .get(hook)
                .unwrap()
                .flatten_all()
                .unwrap()
                .to_vec1::<f32>()
                .unwrap();
            all[all.len() - model.spec.d_mlp..].to_vec()
        };
        let before = neurons(&pair.clean);
        let along =
            Subspace::spanned(&[(0..model.spec.d_mlp).map(|i| 1.0 + i as f64).collect()]).unwrap();
        let after = along.exchanged(&before, &neurons(&pair.corrupted));
        let patch = Edit::new(
            Site::all(hook).at(pair.clean.len() - 1),
            Op::Replace(Value::Vector(after.clone())),
        );
        let patched = logit_diff(&model, pair, &[patch]);
        let (a, b) = rank_one_edit(&model, last, &before, &after).expect("neurons");
        let mut weights = model.weights.clone();
        let w_out = &mut weights.blocks[last].mlp.as_mut().unwrap().w_out;
        let outer: Vec<f32> = a
            .iter()
            .flat_map(|a| b.iter().map(move |b| a * b))
            .collect();
        let outer = Tensor::from_vec(outer, w_out.shape(), w_out.device()).unwrap();
        *w_out = (&*w_out + outer).unwrap();
        let edited =
            Model::new(model.spec.clone(), weights, model.origin.clone()).expect("a model");
        let found = logit_diff(&edited, pair, &[]);
        let gap = (found - patched).abs();
        assert!(
            gap < 2e-4 * patched.abs().max(1.0),
            "{}: {found} {patched}",
            model.spec.family
        );
        let moved = (logit_diff(&model, pair, &[]) - patched).abs();
        assert!(
            moved > 1e-3,
            "{}: the patch does something",
            model.spec.family
        );
    }
}

#[test]
fn directions_that_cannot_be_taken_apart_are_refused() {
    let model = &two_kinds()[0];
    let task = many(6);
    let usual = SubspaceConfig {
        layers: [1].into(),
        split: Some(SplitBy::Output),
        ..config(&[SubspaceMethod::Das])
    };
    let says = |config: SubspaceConfig, what: &str| {
        let on = Subject { model, task: &task };
        let found = measurements(on, &config, &Running::default(), &Watch::default());
        let message = found.expect_err(what).to_string();
        assert!(message.contains(what), "{message}");
    };
    says(usual.clone(), "not taken apart by an output matrix");
    let neurons = SubspaceConfig {
        kind: Kind::MlpPost,
        ..usual.clone()
    };
    says(
        SubspaceConfig {
            dims: 2,
            ..neurons.clone()
        },
        "one direction at a time",
    );
    let readers = |heads: &str| Some(SplitBy::Readers(heads.parse().expect("heads")));
    says(
        SubspaceConfig {
            split: readers("a2.h0"),
            ..neurons
        },
        "heads read a stream",
    );
    says(
        SubspaceConfig {
            split: readers("a1.h0"),
            ..usual.clone()
        },
        "head 0 of layer 1 does not read",
    );
    says(
        SubspaceConfig {
            split: readers("0"),
            ..usual.clone()
        },
        "head 0 of every layer does not read",
    );
    let last = model.spec.n_layers - 1;
    says(
        SubspaceConfig {
            layers: [last].into(),
            split: readers(&format!("a{last}.h0")),
            ..usual.clone()
        },
        "; look at earlier layers",
    );
    says(
        SubspaceConfig {
            split: readers("a9.h0"),
            ..usual
        },
        "`layer` = 9",
    );
}

#[test]
fn probes_are_tested_and_places_have_their_isotropy() {
    let model = &two_kinds()[0];
    let task = many(20);
    let mut config = config(&[SubspaceMethod::Logistic]);
    config.roles = vec!["S".into()];
    config.layers = [0].into();
    config.train = Some(16);
    let found = measured(model, &task, &config);
    let [own, shuffled] =
        ["probe", "probe_shuffled"].map(|measure| values(&found, "logistic", Some(measure))[0]);
    // Each is the share of the two runs of sixteen training pairs.
    for share in [own, shuffled] {
        let told = share * 32.0;
        assert!(
            (0.0..=32.0).contains(&told) && told.fract() == 0.0,
            "{told}"
        );
    }
    let place = found
        .cells
        .iter()
        .position(|cell| cell.measure.as_deref() == Some("isoscore"));
    let isotropy = found.examples[0]
        .value(place.expect("of the place"))
        .unwrap();
    assert!((0.0..1.0).contains(&isotropy), "{isotropy}");
}
