//! Components judged where many are missing, against each ablated alone; and sets of what a table ranks highest.

use candlewick::hooks::Node;
use candlewick::methods::{
    ComponentKind, ComponentsConfig, Heads, Layers, NodeSet, PatchSource, Ranking, Removal,
    ScalingConfig, TakenModel, check,
};
use candlewick::metric::Metric;
use candlewick::scores::{Detail, Scores, statistics::correlation};
use candlewick::spec::{Mlp, ModelSpec};

use crate::models::task::task;
use crate::{ablate, column, config, models, near, run_method};

/// Masks that seldom remove two components together.
fn seldom_two(kind: ComponentKind) -> ComponentsConfig {
    ComponentsConfig {
        keep: 0.98,
        masks: Some(800),
        // One component of those that a tiny model has.
        rates: vec![0.001],
        fresh: 40,
        ..ComponentsConfig::new(kind)
    }
}

/// Scores of one kind of row, by pair and component in the order of both tables.
fn of(scores: &Scores, predictor: &str, measure: &str) -> Vec<f64> {
    let metrics = scores.texts("metric").unwrap();
    let names = scores.texts("component").unwrap();
    let values = scores.floats("score").unwrap();
    (metrics.iter().zip(names).zip(values))
        .filter(|((metric, name), _)| **metric == Some(measure) && *name == Some(predictor))
        .map(|(_, value)| value.unwrap())
        .collect()
}

#[test]
fn where_components_go_one_at_a_time_weights_are_their_ablations_and_leaving_one_out_predicts_all()
{
    let task = task();
    for model in models::every_kind() {
        let what = &model.spec.family;
        for (kind, sites, removal, source) in [
            (
                ComponentKind::Heads,
                "z:all",
                Removal::Zero,
                PatchSource::Zero,
            ),
            (
                ComponentKind::Both,
                "z:all,mlp_out:all",
                Removal::Mean,
                PatchSource::Mean,
            ),
        ] {
            if kind == ComponentKind::Both && model.spec.mlp == Mlp::None {
                continue;
            }
            let coar = ComponentsConfig {
                removal,
                ..seldom_two(kind)
            };
            let found = run_method(&model, &task, &coar, Detail::PerExample);
            let alone = ablate(&model, &task, &config(sites, source));
            let n = alone.table.height() / task.pairs().len();
            // Rows are of one pair after the other; heads and MLPs stand in another order, so they are matched by what they are.
            let keys = |scores: &Scores| -> Vec<String> {
                let text = |column: &str| -> Vec<String> {
                    let layers = scores.integers(column).unwrap_or_default();
                    layers.into_iter().map(|it| format!("{it:?}")).collect()
                };
                let components = scores.texts("component").unwrap();
                let (layers, heads, pairs) = (text("layer"), text("head"), text("example"));
                let heads = if heads.is_empty() {
                    vec![String::new(); layers.len()]
                } else {
                    heads
                };
                (0..layers.len())
                    .map(|i| {
                        format!(
                            "{:?} {} {} {}",
                            components[i], layers[i], heads[i], pairs[i]
                        )
                    })
                    .collect()
            };
            let (mine, theirs) = (keys(&found), keys(&alone));
            let weights = found.floats("score").unwrap();
            let effects = alone.floats("score").unwrap();
            let mut pairs = Vec::new();
            for (key, weight) in mine.iter().zip(weights) {
                if let Some(at) = theirs.iter().position(|their| their == key) {
                    pairs.push((weight.unwrap(), -effects[at].unwrap()));
                }
            }
            assert_eq!(pairs.len(), n * task.pairs().len(), "{what}");
            let r = correlation(&pairs).unwrap_or(1.0);
            assert!(r > 0.9, "{what}, {kind:?}: {r}");
            let exact = of(&found, "leave-one-out", "pearson_0.001");
            assert_eq!(exact.len(), task.pairs().len());
            assert!(
                exact.iter().all(|r| *r > 1.0 - 1e-5),
                "{what}, {kind:?}: {exact:?}"
            );
            let fitted = of(&found, "coar", "pearson_0.001");
            let mean = fitted.iter().sum::<f64>() / fitted.len() as f64;
            assert!(mean > 0.8, "{what}, {kind:?}: {fitted:?}");
            let by_chance = of(&found, "shuffled", "pearson_0.001");
            let mean = by_chance.iter().map(|r| r.abs()).sum::<f64>() / by_chance.len() as f64;
            assert!(mean < 0.8, "{what}, {kind:?}: {by_chance:?}");
        }
    }
}

#[test]
fn neurons_of_one_layer_are_components_too() {
    let task = task();
    let model = models::every_kind().remove(0);
    let coar = ComponentsConfig {
        layers: Layers(vec![1]),
        ..seldom_two(ComponentKind::Neurons)
    };
    let found = run_method(&model, &task, &coar, Detail::PerExample);
    let neurons = found.integers("neuron").unwrap();
    let own = neurons.iter().flatten().count();
    assert_eq!(own, model.spec.d_mlp * task.pairs().len());
    let exact = of(&found, "leave-one-out", "pearson_0.001");
    assert!(exact.iter().all(|r| *r > 1.0 - 1e-5), "{exact:?}");
    assert!(
        found
            .provenance
            .notes
            .iter()
            .any(|note| note.contains("no attribution patching"))
    );
}

#[test]
fn what_makes_no_masks_is_refused() {
    let model = models::every_kind().remove(0);
    let task = task();
    let refusal = |change: &dyn Fn(&mut ComponentsConfig)| {
        let mut config = ComponentsConfig::new(ComponentKind::Heads);
        change(&mut config);
        check(&config, &model.spec, &task)
            .expect_err("refused")
            .to_string()
    };
    let says = |message: String, what: &str| assert!(message.contains(what), "{message}");
    says(refusal(&|config| config.keep = 1.0), "between 0 and 1");
    says(refusal(&|config| config.keep = f64::NAN), "between 0 and 1");
    says(refusal(&|config| config.rates = vec![0.1, 0.0]), "not 0");
    says(refusal(&|config| config.masks = Some(3)), "take from 20");
    says(refusal(&|config| config.fresh = 1), "3 fresh masks");
    says(
        refusal(&|config| config.removal = Removal::Delete),
        "`delete` is for pieces of the prompt",
    );
    says(refusal(&|config| config.layers = Layers(vec![9])), "9");
    says(
        refusal(&|config| {
            config.kind = ComponentKind::Mlps;
            config.layers = Layers(vec![0]);
        }),
        "two or more",
    );
}

fn first(spec: &ModelSpec, ranking: &Ranking, k: usize) -> Vec<Node> {
    assert!(ranking.nodes().count() >= spec.n_heads);
    ranking.nodes().take(k).collect()
}

#[test]
fn ranked_sets_are_the_strongest_together_and_random_ones_of_their_size() {
    let task = task();
    let model = models::every_kind().remove(0);
    let alone = ablate(
        &model,
        &task,
        &config("z:all,mlp_out:all", PatchSource::Zero),
    );
    let means = run_method(
        &model,
        &task,
        &config("z:all,mlp_out:all", PatchSource::Zero),
        Detail::Mean,
    );
    let ranking = Ranking::by_score(&alone, &model.spec).unwrap();
    assert_eq!(ranking, Ranking::by_score(&means, &model.spec).unwrap());
    let scores = column(&means, "score");
    let largest = scores.iter().copied().fold(f64::MIN, f64::max);
    let at = scores.iter().position(|score| *score == largest).unwrap();
    let (layer, head) = (
        means.integers("layer").unwrap()[at],
        means.integers("head").unwrap()[at],
    );
    let layer = layer.unwrap() as usize;
    let named = head.map_or(Node::Mlp(layer), |head| Node::Head {
        layer,
        head: head as usize,
    });
    assert_eq!(first(&model.spec, &ranking, 1), [named]);

    let sets = ranking.sets(&[3, 1, 3], false, 2, 7).unwrap();
    let names: Vec<&str> = sets.iter().map(|set| set.name.as_str()).collect();
    assert_eq!(
        names,
        [
            "highest 1",
            "random 1 (1)",
            "random 1 (2)",
            "highest 3",
            "random 3 (1)",
            "random 3 (2)"
        ]
    );
    for set in &sets {
        let mut nodes = set.nodes.clone();
        nodes.sort();
        nodes.dedup();
        assert_eq!(nodes.len(), set.nodes.len());
        assert!(set.name.contains(&nodes.len().to_string()), "{}", set.name);
    }
    let lowest = ranking.sets(&[2], true, 0, 7).unwrap();
    let last: Vec<Node> = ranking.nodes().rev().take(2).collect();
    assert_eq!(lowest[0].nodes, last);
    // And they are ablated as sets that were named are, with what ranked them and that it saw these prompts.
    let mut ranked = config("", PatchSource::Mean);
    ranked.sets = vec![sets[3].clone()];
    let mut by = ranking.by().clone();
    by.table.model = TakenModel {
        id: "elsewhere".into(),
        weight_hash: String::new(),
    };
    ranked.ranked_by = Some(by);
    let mut written = config("", PatchSource::Mean);
    written.sets = vec![NodeSet {
        name: "by hand".into(),
        nodes: first(&model.spec, &ranking, 3),
    }];
    let (ranked, written) = (
        ablate(&model, &task, &ranked),
        ablate(&model, &task, &written),
    );
    near(
        &column(&ranked, "value"),
        &column(&written, "value"),
        "a set",
    );
    let about = &ranked.provenance;
    assert_eq!(about.config["ranked_by"]["table"]["method"], "ablation");
    for (said, what) in [
        (&about.warnings, "another model, `elsewhere`"),
        (&about.warnings, "measured on 3 of these 3 prompts too"),
        (&about.notes, "without the highest `logit_diff` rises most"),
    ] {
        assert!(
            said.iter().any(|line| line.contains(what)),
            "{what}: {said:?}"
        );
    }
    assert!(written.provenance.config.get("ranked_by").is_none());

    for sizes in [&[0][..], &[1000]] {
        let error = ranking.sets(sizes, false, 1, 7).expect_err("refused");
        assert!(error.to_string().contains("take from 1 to"), "{error}");
    }
}

#[test]
fn two_tables_rank_by_how_clearly_one_is_above_the_other() {
    let task = task();
    let model = models::every_kind().remove(0);
    let table = |source| ablate(&model, &task, &config("z:all", source));
    let (zero, mean) = (table(PatchSource::Zero), table(PatchSource::Mean));
    let ranking = Ranking::by_t(&zero, &mean, &model.spec).unwrap();
    // By hand, for every head.
    let of = |scores: &Scores, node: Node| -> Vec<f64> {
        let (layers, heads) = (
            scores.integers("layer").unwrap(),
            scores.integers("head").unwrap(),
        );
        let values = column(scores, "score");
        let Node::Head { layer, head } = node else {
            panic!("{node} is no head")
        };
        (0..values.len())
            .filter(|&i| layers[i] == Some(layer as i64) && heads[i] == Some(head as i64))
            .map(|i| values[i])
            .collect()
    };
    let t = |node: Node| {
        let moments = |values: &[f64]| {
            let n = values.len() as f64;
            let mean = values.iter().sum::<f64>() / n;
            let squares: f64 = values.iter().map(|v| (v - mean) * (v - mean)).sum();
            (mean, squares / (n - 1.0) / n)
        };
        let (a, b) = (moments(&of(&zero, node)), moments(&of(&mean, node)));
        (a.0 - b.0) / (a.1 + b.1).sqrt()
    };
    let values: Vec<f64> = ranking.nodes().map(t).collect();
    assert_eq!(values.len(), model.spec.n_layers * model.spec.n_heads);
    assert!(values.is_sorted_by(|a, b| a >= b), "{values:?}");

    let refused = |scores: &Scores, against: &Scores, what: &str| {
        let error = Ranking::by_t(scores, against, &model.spec).expect_err("refused");
        assert!(error.to_string().contains(what), "{error}");
    };
    let means = run_method(
        &model,
        &task,
        &config("z:all", PatchSource::Zero),
        Detail::Mean,
    );
    refused(&means, &mean, "Running::detail");
    refused(&zero, &zero, "the same scores");
    let by_prob = ablate(&model, &task, &{
        let mut other = config("z:all", PatchSource::Zero);
        other.patch.metric = Some(Metric::Prob);
        other
    });
    refused(
        &zero,
        &by_prob,
        "do not measure one thing, but `logit_diff`",
    );
    let few = ablate(&model, &task, &{
        let mut few = config("z:all", PatchSource::Zero);
        few.patch.layers = Layers(vec![0]);
        few
    });
    refused(&zero, &few, "measure the same nodes in both");
    let by_position = ablate(&model, &task, &config("z:pos", PatchSource::Zero));
    let error = Ranking::by_score(&by_position, &model.spec).expect_err("refused");
    assert!(error.to_string().contains("by position"), "{error}");
    let queries = ablate(&model, &task, &config("q:all", PatchSource::Zero));
    let error = Ranking::by_score(&queries, &model.spec).expect_err("refused");
    assert!(error.to_string().contains("no scores of heads"), "{error}");

    // Two things said of one head are no rank.
    let mut factors = ScalingConfig::new(Heads::default());
    factors.factors = vec![0.0, 2.0];
    let scaled = run_method(&model, &task, &factors, Detail::Mean);
    let error = Ranking::by_score(&scaled, &model.spec).expect_err("refused");
    assert!(
        error.to_string().contains("more than one thing of `a0.h0`"),
        "{error}"
    );
}
