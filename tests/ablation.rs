//! Ablations and self-repair keep their identities, on models of every kind.

mod models;

use std::sync::Arc;

use candle_core::{DType, Tensor};
use candlewick::hooks::{Edit, Hook, Kind, Node, Op, Pos, Positions, Site};
use candlewick::methods::{
    AblationConfig, DirectTarget, Heads, Knockout, Method, NodeSet, PatchConfig, PatchSource,
    RepairConfig, RepairParts, RepairTarget, Running, Subject, Watch, check, measure, parse_sites,
};
use candlewick::metric::Metric;
use candlewick::model::Model;
use candlewick::model::load::{LoadOptions, load};
use candlewick::run::{
    BaseRun, Quiet, Readout, Request, Sources, SweepOptions, Variant, logits, run, sweep,
    sweep_plain, sweep_with_capture,
};
use candlewick::scores::{Detail, Scores};
use candlewick::spec::Mlp;
use candlewick::task::{Pair, Task};
use models::task::{changed, first, task};

/// f32 sums of some thirty parts of order 1, in two orders.
const TOLERANCE: f64 = 2e-4;

fn config(sites: &str, source: PatchSource) -> AblationConfig {
    let sites = match sites {
        "" => Vec::new(),
        _ => parse_sites(sites).expect("known sites"),
    };
    AblationConfig::new(PatchConfig {
        source,
        ..PatchConfig::new(sites)
    })
}

fn run_method(model: &Model, task: &Task, method: &dyn Method, detail: Detail) -> Scores {
    let running = Running {
        detail,
        ..Running::default()
    };
    let on = Subject { model, task };
    let scores = measure(on, method, &running, &Watch::default()).expect("measures");
    // Measures of one table, as its own metric and beside it.
    scores.with_sides().expect("the same columns")
}

/// A row for each pair.
fn ablate(model: &Model, task: &Task, config: &AblationConfig) -> Scores {
    run_method(model, task, config, Detail::PerExample)
}

fn column(scores: &Scores, name: &str) -> Vec<f64> {
    let values = scores.floats(name).expect("a column of numbers");
    values
        .into_iter()
        .map(|value| value.expect("no gaps"))
        .collect()
}

/// The scores of the rows of one measure.
fn measured(scores: &Scores, measure: &str) -> Vec<f64> {
    let metrics = scores.texts("metric").expect("every table has it");
    let rows = metrics.iter().zip(column(scores, "score"));
    rows.filter(|(metric, _)| **metric == Some(measure))
        .map(|(_, score)| score)
        .collect()
}

fn near(a: &[f64], b: &[f64], what: &str) {
    assert_eq!(a.len(), b.len(), "{what}");
    for (i, (a, b)) in a.iter().zip(b).enumerate() {
        assert!(
            (a - b).abs() <= TOLERANCE * b.abs().max(1.0),
            "{what}, row {i}: {a} against {b}"
        );
    }
}

fn nodes(names: &str) -> Vec<Node> {
    names
        .split(',')
        .map(|name| name.parse().expect(name))
        .collect()
}

#[test]
fn a_factor_of_one_changes_no_bit_and_a_factor_of_nothing_is_zero() {
    let task = task();
    for model in models::every_kind() {
        let family = &model.spec.family;
        let once = ablate(&model, &task, &config("z,v", PatchSource::Scale(1.0)));
        // Not even rounding: rows of a sweep are only compared with rows of the same products.
        near(
            &column(&once, "score"),
            &vec![0.0; once.table.height()],
            family,
        );
        let nothing = ablate(&model, &task, &config("z,v", PatchSource::Scale(0.0)));
        let zero = ablate(&model, &task, &config("z,v", PatchSource::Zero));
        assert_eq!(
            column(&nothing, "value"),
            column(&zero, "value"),
            "{family}"
        );
        assert!(
            column(&zero, "score")
                .iter()
                .any(|score| score.abs() > 1e-3),
            "{family}"
        );
        // In a whole run there is no excuse: multiplying by one is the identity.
        let edit: Edit = "z0 *= 1".parse().expect("an edit");
        let prompts = [task.pairs()[0].clean.clone()];
        let request = Request {
            edits: &[edit],
            ..Request::default()
        };
        let edited = run(&model, &prompts, &request)
            .expect("runs")
            .logits
            .expect("asked for");
        let plain = logits(&model, &prompts).expect("runs");
        let bits = |t: &Tensor| {
            t.flatten_all()
                .and_then(|t| t.to_vec1::<f32>())
                .expect("reads")
        };
        assert_eq!(bits(&edited), bits(&plain), "{family}");
    }
}

#[test]
fn a_mean_over_one_prompt_is_that_prompts_value() {
    let task = first(&task(), 1);
    let other = changed(&task, |pair| pair.clean = pair.corrupted.clone());
    for model in models::every_kind() {
        let family = &model.spec.family;
        for sites in ["z", "attn_out:pos"] {
            let mean = ablate(&model, &task, &config(sites, PatchSource::Mean));
            let mut pair = config(sites, PatchSource::Pair);
            pair.patch.direction = candlewick::scores::Direction::Noise;
            let noise = ablate(&model, &task, &pair);
            assert_eq!(
                column(&mean, "value"),
                column(&noise, "value"),
                "{family}, {sites}"
            );
            // The same prompt, given as a reference task of its own.
            let mut given = config(sites, PatchSource::Mean);
            given.patch.reference = Some(Arc::new(other.clone()));
            let given = ablate(&model, &task, &given);
            assert_eq!(
                column(&given, "value"),
                column(&mean, "value"),
                "{family}, {sites}"
            );
        }
    }
}

#[test]
fn a_mean_by_role_is_taken_over_the_positions_of_the_role() {
    // Where every position is a role of its own, the mean by role is the mean by position.
    let task = changed(&task(), |pair| {
        pair.roles = (0..pair.clean.len())
            .map(|pos| (format!("P{pos}"), vec![pos]))
            .collect();
    });
    for model in models::two_kinds() {
        let by_role = ablate(&model, &task, &config("z", PatchSource::MeanRole));
        let by_position = ablate(&model, &task, &config("z", PatchSource::Mean));
        near(
            &column(&by_role, "value"),
            &column(&by_position, "value"),
            &model.spec.family,
        );
        // Where there is one role for all of them, it is the mean over all positions.
        let same = changed(&task, |pair| {
            pair.roles = [("ALL".to_string(), (0..pair.clean.len()).collect())].into();
        });
        let by_role = ablate(&model, &same, &config("z", PatchSource::MeanRole));
        let of_all = ablate(&model, &same, &config("z", PatchSource::MeanAll));
        near(
            &column(&by_role, "value"),
            &column(&of_all, "value"),
            &model.spec.family,
        );
    }
}

#[test]
fn knocked_out_attention_leaves_other_queries_as_they_are() {
    let task = task();
    let prompts = [task.pairs()[0].clean.clone()];
    for model in models::every_kind() {
        let z = Hook::at(Kind::Z, 0);
        let of = |edits: &[Edit]| {
            let request = Request {
                edits,
                capture: &[z],
                ..Request::default()
            };
            let run = run(&model, &prompts, &request).expect("runs");
            let z = run
                .cache
                .get(z)
                .and_then(|z| Ok(z.to_dtype(DType::F32)?))
                .expect("captured");
            z.squeeze(0)
                .and_then(|z| z.flatten_from(1))
                .and_then(|z| z.to_vec2::<f32>())
                .expect("reads")
        };
        let scores = Site::all(Hook::at(Kind::AttnScores, 0));
        let before = of(&[]);
        let after = of(&[Edit::block(scores, [Pos::Index(6)], [Pos::Index(5)])]);
        for (pos, (before, after)) in before.iter().zip(&after).enumerate() {
            assert_eq!(before == after, pos != 6, "{} at {pos}", model.spec.family);
        }
    }
}

#[test]
fn a_knockout_through_the_sweep_is_that_of_a_whole_run() {
    let task = task();
    for model in models::every_kind() {
        let mut blocked = config("", PatchSource::Block);
        let keys = vec![Pos::Role("S1".into()), Pos::Index(7)];
        blocked.knockouts = vec![Knockout {
            queries: Positions::These(vec![Pos::FromEnd(1)]),
            keys: Positions::These(keys.clone()),
        }];
        let per_head = ablate(&model, &task, &blocked);
        let heads = model.spec.n_layers * model.spec.n_heads;
        assert_eq!(per_head.table.height(), heads * task.pairs().len());
        blocked.whole_layers = true;
        blocked.patch.window = 2;
        let windows = ablate(&model, &task, &blocked);
        assert_eq!(
            windows.table.height(),
            model.spec.n_layers * task.pairs().len()
        );
        // The window of layer 0 is layers 0 and 1.
        let edits: Vec<Edit> = (0..2.min(model.spec.n_layers))
            .map(|layer| {
                let site = Site::all(Hook::at(Kind::AttnScores, layer));
                Edit::block(site, [Pos::FromEnd(1)], keys.clone())
            })
            .collect();
        let pair = &task.pairs()[0];
        let request = Request {
            edits: &edits,
            roles: std::slice::from_ref(&pair.roles),
            ..Request::default()
        };
        let run = run(&model, std::slice::from_ref(&pair.clean), &request).expect("runs");
        let row: Vec<f32> = run
            .logits
            .and_then(|t| t.get(0).ok())
            .and_then(|t| t.to_vec1().ok())
            .expect("one row");
        let read: Vec<f32> = (pair.target.columns().iter())
            .map(|&token| row[token as usize])
            .collect();
        let plain = Metric::LogitDiff
            .value(&read, &pair.target, None)
            .expect("a value");
        near(
            &column(&windows, "value")[..1],
            &[plain],
            &model.spec.family,
        );
    }
}

#[test]
fn without_any_node_only_positions_and_biases_are_left() {
    // Every head zeroed, every MLP zeroed, the embedding zeroed: every prompt then gives the same logits.
    let task = task();
    for model in models::every_kind() {
        let spec = &model.spec;
        let mut names = vec![Node::Input];
        for layer in 0..spec.n_layers {
            names.extend((0..spec.n_heads).map(|head| Node::Head { layer, head }));
            if spec.mlp != Mlp::None {
                names.push(Node::Mlp(layer));
            }
        }
        let mut all = config("", PatchSource::Zero);
        all.sets = vec![NodeSet {
            name: "everything".into(),
            nodes: names,
        }];
        let same_target = changed(&task, |pair| {
            pair.target = task.pairs()[0].target.clone();
        });
        let values = column(&ablate(&model, &same_target, &all), "value");
        near(
            &values[1..],
            &vec![values[0]; values.len() - 1],
            &spec.family,
        );
        if model.weights.w_pos.is_none()
            && model.weights.blocks.iter().all(|block| block.b_o.is_none())
        {
            assert_eq!(values[0], 0.0, "{}: nothing at all is left", spec.family);
        }
    }
}

#[test]
fn heads_that_only_add_up_have_no_interaction() {
    // With the values of every layer but the last frozen out, heads of the last layer of a model without norms add up.
    let task = task();
    for model in models::every_kind() {
        let mut pairs = config("", PatchSource::Zero);
        let last = model.spec.n_layers - 1;
        pairs.pairs = nodes(&format!("a{last}.h0,a{last}.h1,a{last}.h2"));
        let scores = ablate(&model, &task, &pairs);
        let interactions = measured(&scores, "interaction");
        assert_eq!(interactions.len(), 3 * task.pairs().len());
        let largest = interactions.iter().fold(0f64, |most, x| most.max(x.abs()));
        match model.spec.family.as_str() {
            "attention-only" => assert!(largest < 1e-5, "{largest}"),
            _ => assert!(
                largest > 1e-6,
                "{}: norms and MLPs do not add up",
                model.spec.family
            ),
        }
    }
}

#[test]
fn a_set_of_one_is_the_node_alone_and_order_does_not_matter() {
    let task = task();
    for model in models::every_kind() {
        let mut sets = config("", PatchSource::MeanAll);
        let set = |name: &str| NodeSet {
            name: name.into(),
            nodes: nodes(name),
        };
        sets.sets = vec![set("a1.h1"), set("a0.h2,a1.h1"), set("a1.h1,a0.h2")];
        let values = column(&ablate(&model, &task, &sets), "value");
        let alone = ablate(&model, &task, &config("z", PatchSource::MeanAll));
        let alone = column(&alone, "value");
        let heads = model.spec.n_layers * model.spec.n_heads;
        for (i, values) in values.chunks_exact(3).enumerate() {
            near(
                &values[..1],
                &alone[i * heads + model.spec.n_heads + 1..][..1],
                &model.spec.family,
            );
            assert_eq!(values[1], values[2], "{}", model.spec.family);
        }
    }
}

#[test]
fn what_cannot_be_ablated_is_refused_before_anything_runs() {
    let model = models::every_kind().remove(0);
    let task = task();
    let refusal = |change: &dyn Fn(&mut AblationConfig)| {
        let mut config = config("z", PatchSource::Zero);
        change(&mut config);
        let error = check(&config, &model.spec, &task).expect_err("refused");
        error.to_string()
    };
    let says = |message: String, what: &str| assert!(message.contains(what), "{message}");
    says(
        refusal(&|config| config.pairs = nodes("a0.h0,m1")),
        "`m1` is no head",
    );
    says(
        refusal(&|config| config.pairs = nodes("a0.h0,a9.h0")),
        "a9.h0",
    );
    says(
        refusal(&|config| {
            config.sets = vec![NodeSet {
                name: "none".into(),
                nodes: Vec::new(),
            }]
        }),
        "no members",
    );
    says(
        refusal(&|config| config.patch.source = PatchSource::Block),
        "attn_scores",
    );
    says(
        refusal(&|config| config.patch.source = PatchSource::Scale(f32::NAN)),
        "finite",
    );
    says(
        refusal(&|config| {
            let other = changed(&task, |pair| pair.template = 5);
            config.patch.source = PatchSource::Mean;
            config.patch.reference = Some(Arc::new(other));
        }),
        "--source mean-role",
    );
}

/// What tells the rows of a table apart.
fn keys(scores: &Scores) -> Vec<String> {
    let height = scores.table.height();
    let texts = ["metric", "component", "role", "src", "dst", "target"];
    let numbers = ["layer", "head", "pos", "key", "neuron", "example"];
    let mut keys = vec![String::new(); height];
    for name in texts {
        // A column that applies to no row tells nothing apart.
        for (key, text) in keys.iter_mut().zip(scores.texts(name).unwrap_or_default()) {
            *key += &format!("{text:?} ");
        }
    }
    for name in numbers {
        for (key, number) in keys
            .iter_mut()
            .zip(scores.integers(name).unwrap_or_default())
        {
            *key += &format!("{number:?} ");
        }
    }
    keys
}

#[test]
fn no_two_rows_have_one_key() {
    let task = task();
    for model in models::two_kinds() {
        let mut all = config("z", PatchSource::Zero);
        all.pairs = nodes("a0.h0,a0.h2,a1.h1");
        all.sets = vec![NodeSet {
            name: "a0.h0".into(),
            nodes: nodes("a0.h0"),
        }];
        all.positions = Positions::These(vec![Pos::FromEnd(1)]);
        let scores = ablate(&model, &task, &all);
        let mut keys = keys(&scores);
        let rows = keys.len();
        keys.sort();
        keys.dedup();
        assert_eq!(keys.len(), rows, "{}", model.spec.family);
        // The head of a pair is ablated at the last position alone, the head of the sweep everywhere.
        let head = model.spec.n_layers * model.spec.n_heads;
        let rows = head + 3 + 3 + 3;
        assert_eq!(scores.table.height(), rows * task.pairs().len());
        let values = column(&scores, "score");
        assert_ne!(values[0], values[head], "{}", model.spec.family);
    }
}

#[test]
fn names_and_places_of_sets_are_checked() {
    let model = models::every_kind().remove(0);
    let task = task();
    let set = |name: &str, of: &str| NodeSet {
        name: name.into(),
        nodes: nodes(of),
    };
    let says = |change: &dyn Fn(&mut AblationConfig), what: &str| {
        let mut config = config("", PatchSource::Zero);
        change(&mut config);
        let message = check(&config, &model.spec, &task)
            .expect_err(what)
            .to_string();
        assert!(message.contains(what), "{message}");
    };
    says(
        &|config| config.sets = vec![set("x", "a0.h0"), set("x", "a0.h1")],
        "two sets are called `x`",
    );
    says(
        &|config| config.sets = vec![set("a0.h0", "a0.h1")],
        "called like a node",
    );
    says(&|config| config.pairs = nodes("a0.h0,a0.h0"), "twice");
    says(&|config| config.pairs = nodes("a0.h0"), "makes no pair");
    // Positions alone would change nothing.
    says(
        &|config| {
            config.patch.sites = parse_sites("z").expect("sites");
            config.positions = Positions::These(vec![Pos::FromEnd(1)]);
        },
        "positions are those of sets",
    );
    let knockout = || Knockout {
        queries: Positions::These(vec![Pos::FromEnd(1)]),
        keys: Positions::These(vec![Pos::Index(3)]),
    };
    says(
        &|config| {
            config.patch.source = PatchSource::Block;
            config.knockouts = vec![knockout(), knockout()];
        },
        "knocked out twice",
    );
}

#[test]
fn a_knockout_of_one_head_of_one_layer_has_that_row_alone() {
    let task = task();
    let model = models::every_kind().remove(0);
    let mut blocked = config("", PatchSource::Block);
    blocked.knockouts = vec![Knockout {
        queries: Positions::These(vec![Pos::FromEnd(1)]),
        keys: Positions::These(vec![Pos::Index(3)]),
    }];
    let all = column(&ablate(&model, &task, &blocked), "value");
    blocked.patch.heads = "a1.h2".parse::<Heads>().expect("a head");
    let one = column(&ablate(&model, &task, &blocked), "value");
    assert_eq!(one.len(), task.pairs().len());
    let heads = model.spec.n_layers * model.spec.n_heads;
    near(&one[..1], &all[model.spec.n_heads + 2..][..1], "a1.h2");
    assert_eq!(all.len(), heads * task.pairs().len());
    blocked.whole_layers = true;
    let layer = ablate(&model, &task, &blocked);
    near(
        &column(&layer, "value"),
        &one,
        "its layer has no other head",
    );
}

#[test]
fn a_mean_by_role_never_takes_another_role() {
    // The reference knows S1 only where it is S2 as well, and the task has it alone.
    let task = task();
    let model = models::every_kind().remove(0);
    let roles = |names: &[&str]| {
        let at = |name: &&str| (name.to_string(), vec![5]);
        names.iter().map(at).collect()
    };
    let alone = changed(&task, |pair| pair.roles = roles(&["S1"]));
    let both = changed(&task, |pair| pair.roles = roles(&["S1", "S2"]));
    let none = changed(&task, |pair| {
        pair.roles = [("S2".to_string(), vec![2])].into()
    });
    let mut by_role = config("z", PatchSource::MeanRole);
    for (reference, says) in [(&both, "S1"), (&none, "S1")] {
        by_role.patch.reference = Some(Arc::new(reference.clone()));
        let refused = check(&by_role, &model.spec, &alone).expect_err("refused");
        let message = refused.to_string();
        assert!(message.contains(says), "{message}");
    }
    // The other way round the first of a position's roles is there.
    let known = changed(&task, |pair| {
        pair.roles = [("S1".to_string(), vec![5]), ("S2".to_string(), vec![2])].into();
    });
    by_role.patch.reference = Some(Arc::new(known));
    check(&by_role, &model.spec, &both).expect("S1 alone stands for both");
}

#[test]
fn a_sweep_captures_what_a_whole_run_has() {
    let pairs = models::Pairs::new();
    for model in models::every_kind() {
        let family = &model.spec.family;
        let last = model.spec.n_layers - 1;
        let hooks: Vec<Hook> = [Kind::ResidPre, Kind::Z, Kind::AttnOut, Kind::ResidPost]
            .map(|kind| Hook::at(kind, last))
            .to_vec();
        let base = BaseRun::new(
            &model,
            pairs.clean.clone(),
            pairs.roles.clone(),
            Vec::new(),
            Sources::default(),
            &[Kind::Z, Kind::ResidPre],
        )
        .expect("runs");
        let variants: Vec<Variant> = ["z0[head=1] = zero", "resid_pre1[pos=3] *= 2"]
            .iter()
            .enumerate()
            .map(|(example, edit)| Variant {
                example,
                edits: vec![edit.parse().expect("an edit")],
            })
            .collect();
        let readout = Readout {
            metric: Metric::LogitDiff,
            targets: pairs.targets.clone(),
            reference: None,
        };
        let none = Sources::default();
        let options = SweepOptions::default();
        let (values, captured) = sweep_with_capture(
            &model, &base, &variants, &none, &readout, &hooks, &options, &Quiet,
        )
        .expect("sweeps");
        let again = sweep(&model, &base, &variants, &none, &readout, &options, &Quiet);
        assert_eq!(values, again.expect("sweeps"), "{family}");
        let plain = sweep_plain(&model, &base, &variants, &none, &readout).expect("runs");
        near(&values, &plain, family);
        for (index, variant) in variants.iter().enumerate() {
            let request = Request {
                edits: &variant.edits,
                capture: &hooks,
                ..Request::default()
            };
            let prompt = std::slice::from_ref(&pairs.clean[variant.example]);
            let whole = run(&model, prompt, &request).expect("runs").cache;
            for &hook in &hooks {
                let (positions, t) = captured.get(index, hook).expect("it was carried");
                let rows = Tensor::new(positions, &model.device).expect("positions");
                let wanted = whole
                    .get(hook)
                    .and_then(|t| Ok(t.squeeze(0)?.index_select(&rows, 0)?))
                    .expect("rows");
                let gap = (t - wanted)
                    .and_then(|t| t.abs()?.max_all()?.to_scalar::<f32>())
                    .expect("a number");
                assert!(gap < 1e-4, "{family}, {hook}: {gap}");
            }
        }
    }
}

fn repair(model: &Model, task: &Task, parts: RepairParts) -> Scores {
    let config = RepairConfig {
        target: RepairTarget::Of(DirectTarget::Difference),
        ..RepairConfig::of(parts)
    };
    run_method(model, task, &config, Detail::PerExample)
}

#[test]
fn with_the_scale_frozen_the_account_closes_in_every_kind_of_model() {
    let task = task();
    for model in models::every_kind() {
        let family = &model.spec.family;
        for parts in [RepairParts::Attention, RepairParts::Mlp, RepairParts::Heads] {
            if parts == RepairParts::Mlp && model.spec.mlp == Mlp::None {
                continue;
            }
            let scores = repair(&model, &task, parts);
            let of = |measure: &str| measured(&scores, measure);
            let (frozen, direct, ablated) = (
                of("total_effect_frozen"),
                of("direct_effect"),
                of("direct_effect_ablated"),
            );
            let (attn, mlp) = (of("compensation_attn"), of("compensation_mlp"));
            let sums: Vec<f64> = (0..frozen.len())
                .map(|i| ablated[i] - direct[i] + attn[i] + mlp[i])
                .collect();
            near(&frozen, &sums, &format!("{family}, {parts:?}"));
            let (free, norm) = (of("total_effect"), of("norm_term"));
            let sums: Vec<f64> = (0..frozen.len()).map(|i| frozen[i] + norm[i]).collect();
            near(&free, &sums, family);
            // Nothing comes after attention of the last layer but its MLP, and nothing at all after that MLP.
            let last = model.spec.n_layers as i64 - 1;
            let layers = scores.integers("layer").expect("every row has one");
            let metrics = scores.texts("metric").expect("every table has it");
            let score = column(&scores, "score");
            let of_last = |row: &usize| layers[*row] == Some(last);
            for row in (0..score.len()).filter(of_last) {
                let nothing_after = metrics[row] == Some("compensation_attn")
                    || (parts == RepairParts::Mlp && metrics[row] == Some("compensation_mlp"));
                assert!(!nothing_after || score[row] == 0.0, "{family}, row {row}");
            }
        }
    }
}

#[test]
fn the_free_total_effect_is_that_of_a_patched_run() {
    // With two prompts each has one donor, so the free total effect is that of one edit of a whole run.
    let task = first(&task(), 2);
    for mut model in models::every_kind() {
        model.spec.final_softcap = None;
        let scores = repair(&model, &task, RepairParts::Heads);
        let found = measured(&scores, "total_effect");
        let heads = model.spec.n_layers * model.spec.n_heads;
        let z = Hook::at(Kind::Z, 1);
        let (pair, donor) = (&task.pairs()[0], &task.pairs()[1]);
        let request = Request {
            capture: &[z],
            ..Request::default()
        };
        let cache = run(&model, std::slice::from_ref(&donor.clean), &request)
            .expect("runs")
            .cache;
        let end = cache.get(z).and_then(|z| {
            Ok(z.squeeze(0)?
                .narrow(0, models::Pairs::ANSWER, 1)?
                .narrow(1, 2, 1)?)
        });
        let value = end
            .and_then(|t| Ok(t.flatten_all()?.to_vec1::<f32>()?))
            .expect("a vector");
        let site = Site::all(z).heads([2]).at_positions([Pos::FromEnd(1)]);
        let edit = Edit::new(site, Op::Replace(candlewick::hooks::Value::Vector(value)));
        let metric = |edits: &[Edit]| {
            let request = Request {
                edits,
                ..Request::default()
            };
            let run = run(&model, std::slice::from_ref(&pair.clean), &request).expect("runs");
            let row: Vec<f32> = run
                .logits
                .and_then(|t| t.get(0).ok())
                .and_then(|t| t.to_vec1().ok())
                .expect("one row");
            let read: Vec<f32> = (pair.target.columns().iter())
                .map(|&token| row[token as usize])
                .collect();
            Metric::LogitDiff
                .value(&read, &pair.target, None)
                .expect("a value")
        };
        let wanted = metric(&[edit]) - metric(&[]);
        assert_eq!(found.len(), 2 * heads);
        near(
            &found[model.spec.n_heads + 2..][..1],
            &[wanted],
            &model.spec.family,
        );
    }
}

#[test]
fn a_donor_of_the_same_words_changes_nothing() {
    let known = task().pairs()[0].clean.clone();
    let task = changed(&task(), |pair| pair.clean = known.clone());
    for model in models::every_kind() {
        let scores = repair(&model, &task, RepairParts::Attention);
        for measure in [
            "total_effect",
            "total_effect_frozen",
            "compensation_attn",
            "compensation",
        ] {
            let found = measured(&scores, measure);
            near(&found, &vec![0.0; found.len()], &model.spec.family);
        }
    }
}

#[test]
fn the_induction_model_needs_both_of_its_heads() {
    let folder = std::env::var_os("CANDLEWICK_SMALL_MODELS").map(std::path::PathBuf::from);
    let file = folder.map(|folder| folder.join("induction_2l1h/finetuned_model_0.safetensors"));
    let Some(file) = file.filter(|file| file.is_file()) else {
        println!("skipped: no induction_2l1h in $CANDLEWICK_SMALL_MODELS");
        return;
    };
    let path = file.to_str().expect("a path in UTF-8");
    let loaded = load(path, &LoadOptions::default()).expect("it loads");
    // Seven letters, no two alike, and one of them again: what follows is what followed it before.
    let pair = |index: usize| {
        let (step, start, again) = (1 + 2 * (index % 6), index % 26, index % 6);
        let mut clean: Vec<u32> = (0..7).map(|i| ((start + i * step) % 26) as u32).collect();
        let answer = clean[again + 1];
        clean.push(clean[again]);
        Pair::new(clean.clone(), clean).answer(answer)
    };
    // All there are.
    let pairs = (0..78).map(pair);
    let task = Task::new("induction", &loaded.tokenizer, Metric::TopK(1), pairs).expect("a task");
    let mut config = config("z", PatchSource::Zero);
    config.patch.metric = Some(Metric::TopK(1));
    let scores = run_method(&loaded.model, &task, &config, Detail::Mean);
    let clean = scores.provenance.mean_clean;
    let left = column(&scores, "value");
    println!(
        "right in {clean:.3} of prompts; without a0.h0 {:.3}, without a1.h0 {:.3}",
        left[0], left[1]
    );
    assert!(clean > 0.9, "{clean}");
    // A guess among the letters of the prompt would be right in one of seven.
    assert!(left.iter().all(|left| *left < 1.0 / 7.0), "{left:?}");
}
