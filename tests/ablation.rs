//! Ablations and self-repair keep their identities, on models of every kind.

mod models;

use std::sync::Arc;

use candle_core::{DType, Tensor};
use candlewick::hooks::{Edit, Hook, Kind, Node, Op, Pos, Positions, Site};
use candlewick::methods::{
    AblationConfig, DirectTarget, Knockout, NodeSet, PatchConfig, PatchSource, RepairConfig,
    RepairTarget, Units, ablation, parse_sites, self_repair,
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

fn config(model: &Model, sites: &str, source: PatchSource) -> AblationConfig {
    let sites = match sites {
        "" => Vec::new(),
        _ => parse_sites(sites, &model.spec).expect("known sites"),
    };
    AblationConfig::new(PatchConfig {
        source,
        detail: Detail::PerExample,
        ..PatchConfig::new(sites, Metric::LogitDiff)
    })
}

fn ablate(model: &Model, task: &Task, config: &AblationConfig) -> Scores {
    let ablated = ablation(model, task, config, None, &Quiet).expect("ablates");
    ablated.with_sides().expect("tables of one shape")
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
        let once = ablate(
            &model,
            &task,
            &config(&model, "z,v", PatchSource::Scale(1.0)),
        );
        // Not even rounding: rows of a sweep are only compared with rows of the same products.
        near(
            &column(&once, "score"),
            &vec![0.0; once.table.height()],
            family,
        );
        let nothing = ablate(
            &model,
            &task,
            &config(&model, "z,v", PatchSource::Scale(0.0)),
        );
        let zero = ablate(&model, &task, &config(&model, "z,v", PatchSource::Zero));
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
            let mean = ablate(&model, &task, &config(&model, sites, PatchSource::Mean));
            let mut pair = config(&model, sites, PatchSource::Pair);
            pair.patch.direction = candlewick::scores::Direction::Noise;
            let noise = ablate(&model, &task, &pair);
            assert_eq!(
                column(&mean, "value"),
                column(&noise, "value"),
                "{family}, {sites}"
            );
            // The same prompt, given as a reference task of its own.
            let mut given = config(&model, sites, PatchSource::Mean);
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
        let by_role = ablate(&model, &task, &config(&model, "z", PatchSource::MeanRole));
        let by_position = ablate(&model, &task, &config(&model, "z", PatchSource::Mean));
        near(
            &column(&by_role, "value"),
            &column(&by_position, "value"),
            &model.spec.family,
        );
        // Where there is one role for all of them, it is the mean over all positions.
        let same = changed(&task, |pair| {
            pair.roles = [("ALL".to_string(), (0..pair.clean.len()).collect())].into();
        });
        let by_role = ablate(&model, &same, &config(&model, "z", PatchSource::MeanRole));
        let of_all = ablate(&model, &same, &config(&model, "z", PatchSource::MeanAll));
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
        let mut blocked = config(&model, "", PatchSource::Block);
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
        let mut all = config(&model, "", PatchSource::Zero);
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
        let mut pairs = config(&model, "", PatchSource::Zero);
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
        let mut sets = config(&model, "", PatchSource::MeanAll);
        let set = |name: &str| NodeSet {
            name: name.into(),
            nodes: nodes(name),
        };
        sets.sets = vec![set("a1.h1"), set("a0.h2,a1.h1"), set("a1.h1,a0.h2")];
        let values = column(&ablate(&model, &task, &sets), "value");
        let alone = ablate(&model, &task, &config(&model, "z", PatchSource::MeanAll));
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
        let mut config = config(&model, "z", PatchSource::Zero);
        change(&mut config);
        let error = config.check(&model.spec, &task).expect_err("refused");
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
        "--by mean-role",
    );
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

fn repair(model: &Model, task: &Task, units: Units) -> Scores {
    let config = RepairConfig {
        units,
        target: RepairTarget::Of(DirectTarget::Difference),
        detail: Detail::PerExample,
        ..RepairConfig::default()
    };
    let repair = self_repair(model, task, &config, &Quiet).expect("measures");
    repair.with_sides().expect("tables of one shape")
}

#[test]
fn with_the_scale_frozen_the_account_closes_in_every_kind_of_model() {
    let task = task();
    for model in models::every_kind() {
        let family = &model.spec.family;
        for units in [Units::Attention, Units::Mlp, Units::Heads] {
            if units == Units::Mlp && model.spec.mlp == Mlp::None {
                continue;
            }
            let scores = repair(&model, &task, units);
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
            near(&frozen, &sums, &format!("{family}, {units:?}"));
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
                    || (units == Units::Mlp && metrics[row] == Some("compensation_mlp"));
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
        let scores = repair(&model, &task, Units::Heads);
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
        let scores = repair(&model, &task, Units::Attention);
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
    let mut config = config(&loaded.model, "z", PatchSource::Zero);
    config.patch.metric = Metric::TopK(1);
    config.patch.detail = Detail::Mean;
    let scores = ablation(&loaded.model, &task, &config, None, &Quiet).expect("ablates");
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
