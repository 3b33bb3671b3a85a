//! What the hooks promise: their shapes, that looking changes nothing, that an edit changes what it says and nothing before it,
//! and that what cannot be done is an error that says why.

mod models;

use candle_core::{DType, Device, Tensor};
use candlewick::hooks::{Edit, Hook, Kind, Op, Pos, Roles, Site, Value};
use candlewick::model::Model;
use candlewick::run::{Logits, Request, Run, Source, Sources, logits, run, run_with_cache};
use candlewick::{Error, Result};
use models::{Pairs, cast, every_kind, matrices_in, two_kinds};

/// Edits that put a value back may round once more than the pass without them.
const ROUNDING: f32 = 2e-6;

fn flat(t: &Tensor) -> Vec<f32> {
    let t = t.to_dtype(DType::F32).expect("f32");
    t.flatten_all().expect("flat").to_vec1().expect("values")
}

fn bits(t: &Tensor) -> Vec<u32> {
    flat(t).into_iter().map(f32::to_bits).collect()
}

/// The largest difference, relative to the largest value.
fn gap(a: &Tensor, b: &Tensor) -> f32 {
    let (a, b) = (flat(a), flat(b));
    assert_eq!(a.len(), b.len());
    let scale = b.iter().fold(1e-6f32, |max, x| max.max(x.abs()));
    a.iter()
        .zip(&b)
        .fold(0f32, |max, (a, b)| max.max((a - b).abs()))
        / scale
}

fn edited(model: &Model, edits: &[Edit], capture: &[Hook], sources: Sources) -> Result<Run> {
    let pairs = Pairs::new();
    let request = Request {
        edits,
        sources,
        capture,
        logits: Logits::All,
        roles: &pairs.roles,
    };
    run(model, &pairs.corrupted, &request)
}

fn with_edits(model: &Model, edits: &[Edit], capture: &[Hook]) -> Run {
    edited(model, edits, capture, Sources::default()).expect("runs")
}

#[test]
fn every_hook_is_captured_in_its_shape() {
    for model in every_kind() {
        let hooks = Hook::all(&model.spec);
        let prompts = Pairs::new().clean;
        let (_, cache) = run_with_cache(&model, &prompts, &hooks).expect("runs");
        assert_eq!(cache.hooks(), hooks);
        for hook in hooks {
            let t = cache.get(hook).expect("captured");
            let shape = hook.shape(&model.spec, prompts.len(), Pairs::LENGTH);
            assert_eq!(t.dims(), shape, "{} {hook}", model.spec.family);
        }
    }
}

#[test]
fn hooks_are_related_as_their_meanings_are() {
    for model in every_kind() {
        let spec = &model.spec;
        let (_, cache) =
            run_with_cache(&model, &Pairs::new().clean, &Hook::all(spec)).expect("runs");
        let get = |kind, layer| cache.get(Hook::at(kind, layer)).expect("captured");
        for layer in 0..spec.n_layers {
            let (pre, post) = (get(Kind::ResidPre, layer), get(Kind::ResidPost, layer));
            let mut sum = (&pre + get(Kind::AttnOut, layer)).expect("sum");
            if Kind::MlpOut.absent(spec).is_none() {
                sum = (sum + get(Kind::MlpOut, layer)).expect("sum");
            }
            assert!(gap(&sum, &post) < ROUNDING);
            // The stream that a reader sees, once for each query head, by its own name.
            for kind in [Kind::QInput, Kind::KInput, Kind::VInput] {
                let each = get(kind, layer);
                let last = each.narrow(2, spec.n_heads - 1, 1).expect("the last head");
                assert_eq!(bits(&last), bits(&pre), "{kind:?}");
            }
            let rows = get(Kind::Pattern, layer).sum(3).expect("sum over keys");
            assert!(flat(&rows).iter().all(|sum| (sum - 1.0).abs() < 1e-5));
            // What stands after a query is masked, and so is what its window leaves out.
            let scores = get(Kind::AttnScores, layer).get(0).expect("prompt");
            let scores = scores
                .get(0)
                .expect("head")
                .to_vec2::<f32>()
                .expect("values");
            let window = spec.windows[layer].unwrap_or(Pairs::LENGTH);
            for (q, row) in scores.iter().enumerate() {
                for (k, &score) in row.iter().enumerate() {
                    assert_eq!(score.is_finite(), k <= q && q - k < window, "{q} {k}");
                }
            }
        }
        // `hook_result` and b_O make up attn_out, where nothing stands between.
        if !spec.has_post_norm() && spec.residual_multiplier.is_none() {
            let mut sum = get(Kind::Result, 0).sum(2).expect("sum over heads");
            if let Some(b) = &model.weights.blocks[0].b_o {
                sum = sum.broadcast_add(b).expect("bias");
            }
            assert!(gap(&sum, &get(Kind::AttnOut, 0)) < ROUNDING);
        }
    }
}

#[test]
fn looking_changes_no_bit() {
    for model in every_kind() {
        // More tokens than a register has lanes.
        let long: Vec<u32> = (0..29)
            .map(|i| (i * 7 + 3) % models::VOCAB as u32)
            .collect();
        for prompts in [Pairs::new().clean, vec![long]] {
            let plain = logits(&model, &prompts).expect("runs");
            let again = logits(&model, &prompts).expect("runs");
            assert_eq!(bits(&plain), bits(&again));
            for hook in Hook::all(&model.spec) {
                let (looked, _) = run_with_cache(&model, &prompts, &[hook]).expect("runs");
                let gap = gap(&looked, &plain);
                // A pass that nobody watches takes only the last row through the end, in a product of another shape.
                assert!(gap < ROUNDING, "{} {hook}: {gap}", model.spec.family);
            }
            let all = |capture: &[Hook]| {
                let request = Request {
                    capture,
                    logits: Logits::All,
                    ..Request::default()
                };
                run(&model, &prompts, &request)
                    .expect("runs")
                    .logits
                    .expect("asked for")
            };
            assert_eq!(
                bits(&all(&[])),
                bits(&all(&Hook::all(&model.spec))),
                "{}",
                model.spec.family
            );
        }
    }
}

#[test]
fn a_hook_patched_with_its_own_value_changes_nothing() {
    for model in every_kind() {
        let hooks = Hook::all(&model.spec);
        let plain = with_edits(&model, &[], &hooks);
        let own =
            Sources::default().with("own", Source::run(plain.cache.clone()).expect("a source"));
        let plain = plain.logits.expect("asked for");
        for hook in hooks {
            let edit = Edit::new(Site::all(hook), Op::FromRun("own".into()));
            let same = edited(&model, &[edit], &[], own.clone()).expect("runs");
            let gap = gap(&same.logits.expect("asked for"), &plain);
            assert!(gap < ROUNDING, "{} {hook}: {gap}", model.spec.family);
        }
    }
}

#[test]
fn every_hook_matters() {
    // An edit that were dropped in silence would pass every test above.
    for model in every_kind() {
        let plain = with_edits(&model, &[], &[]).logits.expect("asked for");
        for hook in Hook::all(&model.spec) {
            let edit = Edit::with(Site::all(hook), "shuffled", |x| {
                let ramp = Tensor::arange(1f32, 1.0 + x.elem_count() as f32, x.device())?;
                Ok((x + (ramp.reshape(x.shape())? * 0.37)?.sin()?)?.maximum(0.1)?)
            });
            let changed = with_edits(&model, &[edit], &[]).logits.expect("asked for");
            let gap = gap(&changed, &plain);
            assert!(gap > 1e-4, "{} {hook}: {gap}", model.spec.family);
        }
    }
}

#[test]
fn captures_see_edits_in_the_order_given() {
    for model in two_kinds() {
        let hook = Hook::at(Kind::Z, 1);
        let before = with_edits(&model, &[], &[hook])
            .cache
            .get(hook)
            .expect("captured");
        let site = || Site::all(hook).at(4).heads([1]);
        let add = || Edit::new(site(), Op::Add(Value::Scalar(1.0)));
        let double = || Edit::new(site(), Op::Scale(2.0));
        let value = |edits: &[Edit]| {
            let after = with_edits(&model, edits, &[hook])
                .cache
                .get(hook)
                .expect("captured");
            let at = |t: &Tensor| {
                flat(
                    &t.narrow(1, 4, 1)
                        .expect("pos")
                        .narrow(2, 1, 1)
                        .expect("head"),
                )
            };
            (at(&before), at(&after))
        };
        let (before_at, after) = value(&[add(), double()]);
        for (x, y) in before_at.iter().zip(after) {
            assert_eq!((x + 1.0) * 2.0, y);
        }
        let (before_at, after) = value(&[double(), add()]);
        for (x, y) in before_at.iter().zip(after) {
            assert_eq!(x * 2.0 + 1.0, y);
        }
        // And only there.
        let after = with_edits(&model, &[add()], &[hook])
            .cache
            .get(hook)
            .expect("captured");
        let changed = flat(&before)
            .iter()
            .zip(flat(&after))
            .filter(|(a, b)| **a != *b)
            .count();
        assert_eq!(changed, 3 * model.spec.d_head);
    }
}

#[test]
fn an_edit_changes_nothing_before_it_and_no_earlier_position() {
    for model in two_kinds() {
        let hooks = Hook::all(&model.spec);
        let plain = with_edits(&model, &[], &hooks).cache;
        let hook = Hook::at(Kind::AttnOut, 1);
        let edit = Edit::new(Site::all(hook).at(5), Op::Zero);
        let after = with_edits(&model, &[edit], &hooks).cache;
        let at = hooks
            .iter()
            .position(|other| *other == hook)
            .expect("there");
        for (i, &other) in hooks.iter().enumerate() {
            let (a, b) = (
                plain.get(other).expect("captured"),
                after.get(other).expect("captured"),
            );
            if i < at {
                assert_eq!(bits(&a), bits(&b), "{other}");
            }
            let query_axis = if matches!(other.kind, Kind::Pattern | Kind::AttnScores) {
                2
            } else {
                1
            };
            let early = |t: &Tensor| bits(&t.narrow(query_axis, 0, 5).expect("early positions"));
            assert_eq!(early(&a), early(&b), "{other}");
        }
    }
}

#[test]
fn blocked_attention_renormalises_and_leaves_other_rows_alone() {
    for model in two_kinds() {
        let (scores, pattern) = (Hook::at(Kind::AttnScores, 1), Hook::at(Kind::Pattern, 1));
        let z = Hook::at(Kind::Z, 1);
        let plain = with_edits(&model, &[], &[pattern, z]).cache;
        let block = |keys: Vec<Pos>| {
            let site = Site::all(scores).heads([0]);
            Edit::block(site, [Pos::FromEnd(1)], keys)
        };
        let after = with_edits(
            &model,
            &[block(vec![Pos::Role("S2".into())])],
            &[pattern, z],
        )
        .cache;
        let (a, b) = (
            plain.get(pattern).expect("captured"),
            after.get(pattern).expect("captured"),
        );
        let others = |t: &Tensor| bits(&t.narrow(2, 0, Pairs::ANSWER).expect("other rows"));
        assert_eq!(others(&a), others(&b));
        let others =
            |t: &Tensor| bits(&t.narrow(1, 1, model.spec.n_heads - 1).expect("other heads"));
        assert_eq!(others(&a), others(&b));
        let other_rows = |t: &Tensor| bits(&t.narrow(1, 0, Pairs::ANSWER).expect("other rows"));
        assert_eq!(
            other_rows(&plain.get(z).expect("captured")),
            other_rows(&after.get(z).expect("captured"))
        );
        // The role stands at 5 and 6 in the first prompt, at 6 and 7 in the second.
        for (prompt, keys) in [(0, [5, 6]), (1, [6, 7])] {
            let row = |t: &Tensor| {
                let row = t.get(prompt).expect("prompt").get(0).expect("head");
                row.get(Pairs::ANSWER)
                    .expect("query")
                    .to_vec1::<f32>()
                    .expect("values")
            };
            let (a, b) = (row(&a), row(&b));
            let left: f32 = (0..=Pairs::ANSWER)
                .filter(|k| !keys.contains(k))
                .map(|k| a[k])
                .sum();
            for k in 0..=Pairs::ANSWER {
                let wanted = if keys.contains(&k) { 0.0 } else { a[k] / left };
                assert!((b[k] - wanted).abs() < 1e-6, "{k}: {} {wanted}", b[k]);
            }
        }
        let every = block((0..=Pairs::ANSWER).map(Pos::Index).collect());
        check_error(
            edited(&model, &[every], &[], Sources::default()),
            "no key to attend to",
        );
    }
}

fn check_error<T>(result: Result<T>, says: &str) {
    let message = match result {
        Ok(_) => panic!("expected an error that says `{says}`"),
        Err(error) => error.to_string(),
    };
    assert!(
        message.contains(says) && !message.contains('\n'),
        "{message}"
    );
}

#[test]
fn what_an_edit_cannot_do_is_an_error_that_says_why() {
    let model = two_kinds().remove(0); // GPT-2: 3 layers, 4 heads of 6
    let z = || Site::all(Hook::at(Kind::Z, 1));
    let zero = |site: Site| Edit::new(site, Op::Zero);
    let mlp_in = || Site::all(Hook::at(Kind::MlpIn, 0));
    let tensor = |shape: &[usize]| {
        let t = Tensor::zeros(shape, DType::F32, &Device::Cpu).expect("zeros");
        Op::Replace(Value::Tensor(t))
    };
    let cases = [
        (zero(Site::all(Hook::at(Kind::Z, 3))), "3 layers, 0 to 2"),
        (
            zero(Site::all(Hook::at(Kind::MlpPreLinear, 0))),
            "not gated",
        ),
        (zero(z().at(10)), "10 tokens"),
        (zero(z().at_positions([Pos::FromEnd(11)])), "10 tokens"),
        (
            zero(z().at_positions([Pos::Role("IO".into())])),
            "it has: S1, S2",
        ),
        (zero(z().at_positions([])), "no position"),
        (zero(z().heads([1, 4])), "0 to 3"),
        (zero(z().heads([1, 1])), "twice"),
        (zero(z().heads([])), "names none"),
        (zero(z().neurons([6])), "0 to 5"),
        (zero(mlp_in().heads([0])), "no head axis"),
        (zero(mlp_in().keys([Pos::Index(0)])), "key axis"),
        (Edit::new(z(), Op::Block), "hook_attn_scores"),
        (
            Edit::new(Site::all(Hook::at(Kind::AttnScores, 0)), Op::Block),
            "`key=`",
        ),
        (
            Edit::new(z(), Op::FromRun("clean".into())),
            "given no sources",
        ),
        (Edit::new(z(), Op::Mean), "`mean`"),
        (Edit::new(z(), Op::Freeze), "`base`"),
        (Edit::new(z(), Op::Scale(f32::NAN)), "not a finite number"),
        (
            Edit::new(z(), Op::Add(Value::Vector(vec![1.0; 7]))),
            "7 values where the site takes 6",
        ),
        // The axes of a pattern, say, in another order: as many values, in the wrong places.
        (Edit::new(z(), tensor(&[4, 10, 6])), "[4, 10, 6]"),
        (
            Edit::new(z(), tensor(&[2, 10, 4, 6])),
            "or that for each prompt",
        ),
        (
            Edit::with(z(), "half", |x| Ok(x.narrow(2, 0, 3)?)),
            "closure made [10, 4, 3] of [10, 4, 6]",
        ),
    ];
    for (edit, says) in cases {
        check_error(edited(&model, &[edit], &[], Sources::default()), says);
    }
    let fits = [tensor(&[10, 4, 6]), tensor(&[3, 10, 4, 6])];
    for op in fits {
        with_edits(&model, &[Edit::new(z(), op)], &[]);
    }
    let together = [
        zero(Site::all(Hook::at(Kind::QInput, 1)).heads([0])),
        Edit::new(
            Site::all("ln1.normalized1".parse().expect("a hook")),
            Op::Scale(2.0),
        ),
    ];
    check_error(
        edited(&model, &together, &[], Sources::default()),
        "separate runs",
    );
}

#[test]
fn values_come_from_a_run_that_has_them() {
    let model = two_kinds().remove(0);
    let pairs = Pairs::new();
    let site = || Site::all(Hook::at(Kind::Pattern, 1));
    let edit = || Edit::new(site(), Op::FromRun("other".into()));
    let try_with = |prompts: &[Vec<u32>], hook: Hook| {
        let (_, cache) = run_with_cache(&model, prompts, &[hook]).expect("runs");
        let sources = Sources::default().with("other", Source::run(cache).expect("a source"));
        edited(&model, &[edit()], &[], sources)
    };
    try_with(&pairs.clean, site().hook).expect("runs");
    check_error(try_with(&pairs.clean[..2], site().hook), "prompt 2");
    check_error(
        try_with(&pairs.clean, Hook::at(Kind::Pattern, 0)),
        "not captured",
    );
    let longer: Vec<Vec<u32>> = pairs
        .clean
        .iter()
        .map(|p| [p.as_slice(), &[1, 2]].concat())
        .collect();
    check_error(try_with(&longer, site().hook), "same length");
    let out_of_place = Roles::from([("S1".to_string(), vec![12])]);
    let roles = vec![out_of_place; 3];
    let edits = [Edit::new(
        site().at_positions([Pos::Role("S1".into())]),
        Op::Scale(0.5),
    )];
    let request = Request {
        edits: &edits,
        roles: &roles,
        ..Request::default()
    };
    check_error(run(&model, &pairs.clean, &request), "10 tokens");
}

#[test]
fn what_a_model_lacks_cannot_be_captured() {
    for model in every_kind() {
        let prompts = Pairs::new().clean;
        for kind in Kind::ALL {
            let hook = if kind.per_layer() {
                Hook::at(kind, 0)
            } else {
                Hook::global(kind)
            };
            let result = run_with_cache(&model, &prompts, &[hook]);
            assert_eq!(result.is_ok(), kind.absent(&model.spec).is_none(), "{hook}");
            if let Err(error) = result {
                assert!(matches!(error, Error::HookAbsent { .. }), "{error}");
            }
        }
        let beyond = Hook::at(Kind::Z, model.spec.n_layers);
        check_error(run_with_cache(&model, &prompts, &[beyond]), "layers");
    }
}

#[test]
fn prompts_that_cannot_run_are_errors() {
    let model = two_kinds().remove(0);
    check_error(logits(&model, &[]), "at least one prompt");
    check_error(logits(&model, &[vec![]]), "at least one token");
    check_error(logits(&model, &[vec![1, 2], vec![1]]), "2 tokens");
    check_error(logits(&model, &[vec![1; 33]]), "at most 32");
    check_error(
        logits(&model, &[vec![1, models::VOCAB as u32]]),
        "37 tokens",
    );
}

#[test]
fn a_nan_is_traced_to_where_it_first_shows() {
    for model in two_kinds() {
        let nan = |x: &Tensor| Ok((x * f64::NAN)?);
        let hook = Hook::at(Kind::MlpOut, 1);
        let edit = Edit::with(Site::all(hook).at(3), "not a number", nan);
        check_error(
            edited(&model, &[edit], &[], Sources::default()),
            "blocks.1.hook_mlp_out",
        );
        let mut broken = model.clone();
        let b = Tensor::new(&[f32::NAN], &Device::Cpu).expect("a number");
        let w = &broken.weights.blocks[1].w_o;
        broken.weights.blocks[1].w_o = w.broadcast_mul(&b).expect("a product");
        let result = logits(&broken, &Pairs::new().clean);
        assert!(matches!(
            &result,
            Err(Error::NotFiniteLogits { index: 0, .. })
        ));
        check_error(result, "blocks.1.hook_attn_out");
    }
}

#[test]
fn slices_and_tensor_operations_agree() {
    for model in every_kind() {
        let hooks = Hook::all(&model.spec);
        let ours = with_edits(&model, &[], &hooks);
        // Norms and softmax are in f32 whatever the type, so f64 is not closer than f32 is.
        for (dtype, tolerance) in [(DType::F64, 1e-5), (DType::BF16, 0.15)] {
            let theirs = with_edits(&cast(&model, dtype), &[], &hooks);
            let logits = theirs.logits.expect("asked for");
            assert_eq!(logits.dtype(), DType::F32);
            let far = gap(&logits, ours.logits.as_ref().expect("asked for"));
            assert!(far < tolerance, "{} {dtype:?}: {far}", model.spec.family);
            for &hook in hooks.iter().filter(|hook| hook.kind != Kind::AttnScores) {
                let (a, b) = (theirs.cache.get(hook), ours.cache.get(hook));
                let far = gap(&a.expect("captured"), &b.expect("captured"));
                assert!(
                    far < tolerance,
                    "{} {dtype:?} {hook}: {far}",
                    model.spec.family
                );
            }
        }
    }
}

#[test]
fn matrices_in_16_bits_give_the_numbers_of_the_same_matrices_in_f32() {
    for model in every_kind() {
        let family = model.spec.family.clone();
        for dtype in [DType::BF16, DType::F16] {
            let [narrow, wide] = matrices_in(&model, dtype);
            assert_eq!(
                (narrow.dtype, narrow.weights.w_u.dtype()),
                (DType::F32, dtype)
            );
            assert!(narrow.weights.bytes() < wide.weights.bytes());
            for hook in std::iter::once(None).chain(Hook::all(&model.spec).into_iter().map(Some)) {
                let edit = hook.map(|hook| Edit::new(Site::all(hook).at(4), Op::Scale(0.5)));
                let edits: Vec<Edit> = edit.into_iter().collect();
                // Once every hook is looked at, then each is edited.
                let watched = if hook.is_none() {
                    Hook::all(&model.spec)
                } else {
                    Vec::new()
                };
                let [a, b] = [&narrow, &wide].map(|model| with_edits(model, &edits, &watched));
                let far = gap(&a.logits.expect("asked for"), &b.logits.expect("asked for"));
                assert!(far < 2e-6, "{family} {dtype:?} {hook:?}: {far}");
                let seen = watched.iter().filter(|hook| hook.kind != Kind::AttnScores);
                for &hook in seen {
                    let [a, b] =
                        [&a.cache, &b.cache].map(|cache| cache.get(hook).expect("captured"));
                    let far = gap(&a, &b);
                    assert!(far < 2e-6, "{family} {dtype:?} {hook}: {far}");
                }
            }
        }
    }
}

#[test]
fn edits_work_in_every_dtype() {
    for model in every_kind() {
        let wide = cast(&model, DType::F64);
        for hook in Hook::all(&model.spec) {
            let edit = Edit::new(Site::all(hook).at(4), Op::Scale(0.5));
            let ours = with_edits(&model, std::slice::from_ref(&edit), &[]);
            let theirs = with_edits(&wide, &[edit], &[]);
            let far = gap(
                &theirs.logits.expect("asked for"),
                &ours.logits.expect("asked for"),
            );
            assert!(far < 2e-5, "{} {hook}: {far}", model.spec.family);
        }
    }
}
