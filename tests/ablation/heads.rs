//! Scores of heads against whole runs with the same change made by hand, on models of every kind.

use candle_core::{DType, Tensor};
use candlewick::hooks::{Edit, Hook, Kind, Node, Op, Site, Value};
use candlewick::methods::{
    AblationConfig, ModulationConfig, PatchConfig, PatchSource, ReplaceBy, ReplacementConfig, check,
};
use candlewick::metric::Metric;
use candlewick::model::Model;
use candlewick::run::{Request, run, run_with_cache};
use candlewick::scores::{Detail, Scores};
use candlewick::spec::ModelSpec;
use candlewick::task::{Pair, Task};

use crate::models::task::{changed, first, task};
use crate::{column, measured, models, near, run_method};

/// The logits at the end of a pair's clean prompt, in one whole run with these edits.
pub fn logits(model: &Model, pair: &Pair, edits: &[Edit]) -> Vec<f32> {
    let request = Request {
        edits,
        ..Request::default()
    };
    let run = run(model, std::slice::from_ref(&pair.clean), &request).expect("runs");
    let logits = run.logits.expect("asked for");
    logits.get(0).and_then(|row| row.to_vec1()).expect("a row")
}

fn prob(row: &[f32], pair: &Pair) -> f64 {
    Metric::Prob
        .value(row, &pair.target, None)
        .expect("a value")
}

/// Each pair has the model's likeliest token for its answer, but for the first, which has another one.
fn mostly_right(model: &Model, task: &Task) -> Task {
    changed(task, |pair| {
        let row = logits(model, pair, &[]);
        let likeliest = (0..row.len()).max_by(|&a, &b| row[a].total_cmp(&row[b]));
        let likeliest = likeliest.expect("a vocabulary") as u32;
        pair.target.wrong = vec![(likeliest + 2) % models::VOCAB as u32];
        pair.target.answers = vec![match pair.index {
            0 => (likeliest + 1) % models::VOCAB as u32,
            _ => likeliest,
        }];
    })
}

/// The mean of the other heads' z at each position of a prompt, one number after the other.
fn mean_of_others(model: &Model, pair: &Pair, layer: usize, head: usize) -> Tensor {
    let hook = Hook::at(Kind::Z, layer);
    let (_, cache) =
        run_with_cache(model, std::slice::from_ref(&pair.clean), &[hook]).expect("runs");
    let z = cache
        .get(hook)
        .and_then(|z| Ok(z.get(0)?.to_dtype(DType::F32)?.to_vec3::<f32>()?));
    let mean = |heads: &Vec<Vec<f32>>| -> Vec<f32> {
        let others = || (0..heads.len()).filter(|&other| other != head);
        let at = |i: usize| {
            others()
                .map(|other| f64::from(heads[other][i]))
                .sum::<f64>()
        };
        let n = others().count() as f64;
        (0..heads[0].len()).map(|i| (at(i) / n) as f32).collect()
    };
    let rows: Vec<Vec<f32>> = z.expect("a tensor").iter().map(mean).collect();
    let device = &model.device;
    Tensor::new(rows, device)
        .and_then(|t| t.unsqueeze(1))
        .expect("a tensor")
}

#[test]
fn a_replaced_head_says_what_the_others_say_in_the_mean() {
    for model in models::every_kind() {
        let what = &model.spec.family;
        let task = mostly_right(&model, &task());
        let found = run_method(
            &model,
            &task,
            &ReplacementConfig::default(),
            Detail::PerExample,
        );
        let (mut values, mut drops, mut positive, mut negative) = (vec![], vec![], vec![], vec![]);
        for pair in task.pairs() {
            let clean = prob(&logits(&model, pair, &[]), pair);
            for (layer, head) in model.spec.heads() {
                let site = Site::all(Hook::at(Kind::Z, layer)).heads([head]);
                let others = Value::Tensor(mean_of_others(&model, pair, layer, head));
                let row = logits(&model, pair, &[Edit::new(site, Op::Replace(others))]);
                let without = prob(&row, pair);
                values.push(without - clean);
                drops.push(clean - without);
                match pair.index {
                    0 => negative.push((without - clean).max(0.0)),
                    _ => positive.push((clean - without).max(0.0)),
                }
            }
        }
        // Rows of a pair follow each other by head.
        near(&measured(&found, "prob"), &values, what);
        near(&measured(&found, "drop"), &drops, what);
        near(&measured(&found, "pos"), &positive, what);
        near(&measured(&found, "neg"), &negative, what);
        let some = |values: &[f64]| values.iter().any(|value| *value > 1e-4);
        assert!(some(&positive) && some(&negative), "{what}: {negative:?}");
    }
}

#[test]
fn zeros_are_those_of_an_ablation_and_stand_in_where_there_are_no_others() {
    let task = first(&task(), 2);
    let zero = ReplacementConfig {
        by: ReplaceBy::Zero,
        ..ReplacementConfig::default()
    };
    for model in models::two_kinds() {
        let ablation = AblationConfig::new(PatchConfig {
            source: PatchSource::Zero,
            metric: Some(Metric::Prob),
            ..PatchConfig::sites("z").expect("known")
        });
        let ablated = run_method(&model, &task, &ablation, Detail::Mean);
        let found = run_method(&model, &task, &zero, Detail::Mean);
        near(
            &measured(&found, "prob"),
            &column(&ablated, "score"),
            "zeros",
        );
    }
    let spec = ModelSpec {
        n_heads: 1,
        n_kv_heads: 1,
        ..models::every_kind()[0].spec.clone()
    };
    let alone = Model::random(spec, 9).expect("a spec that is whole");
    let [others, zeros] = [ReplacementConfig::default(), zero]
        .map(|config| run_method(&alone, &task, &config, Detail::Mean));
    assert_eq!(column(&others, "score"), column(&zeros, "score"));
    let says = |scores: &Scores| {
        let notes = &scores.provenance.notes;
        notes.iter().any(|note| note.contains("one head a layer"))
    };
    assert!(says(&others) && !says(&zeros));
}

/// Heads of the first pair, to be scaled on the others.
fn modulation(model: &Model, task: &Task) -> ModulationConfig {
    let (found, _) = scored(model, task);
    ModulationConfig::by_scores(&found, &model.spec).expect("a table of heads")
}

/// A table of the task's first pair, and its scores by head.
fn scored(model: &Model, task: &Task) -> (Scores, Vec<f64>) {
    let on = candlewick::methods::Subject {
        model,
        task: &first(task, 1),
    };
    let found = candlewick::methods::measure(
        on,
        &ReplacementConfig::default(),
        &Default::default(),
        &Default::default(),
    );
    let found = found.expect("measures");
    let scores = column(&found, "score");
    (found, scores)
}

/// The mean of a measure of one way to scale.
fn arm(scores: &Scores, name: &str, lambda: Option<&str>, measure: &str) -> f64 {
    let texts = |column: &str| scores.texts(column).expect("a column");
    let (names, lambdas, metrics) = (texts("component"), texts("src"), texts("metric"));
    let is = |row: &usize| {
        names[*row] == Some(name) && lambdas[*row] == lambda && metrics[*row] == Some(measure)
    };
    let row = (0..names.len()).find(is);
    let row = row.unwrap_or_else(|| panic!("no row {name} {lambda:?} {measure}"));
    column(scores, "score")[row]
}

#[test]
fn heads_are_scaled_by_what_the_table_says_on_prompts_that_it_has_not_seen() {
    for model in models::every_kind() {
        let what = &model.spec.family;
        let task = mostly_right(&model, &task());
        let config = ModulationConfig {
            lambdas: vec![0.0, -2.0],
            shuffles: 3,
            ..modulation(&model, &task)
        };
        let found = run_method(&model, &task, &config, Detail::Mean);
        assert_eq!(found.provenance.examples, 2, "{what}: the first was seen");
        for measure in ["top1", "wrong", "other", "prob"] {
            let as_it_is = arm(&found, "unscaled", None, measure);
            for name in ["scores", "shuffled", "shuffled in layer"] {
                let nothing = arm(&found, name, Some("0"), measure);
                // The mean of three equal numbers may round.
                assert!(
                    (nothing - as_it_is).abs() < 1e-12,
                    "{what}, {name}: {measure}"
                );
            }
        }
        let (_, scores) = scored(&model, &task);
        let scaled = model
            .spec
            .heads()
            .zip(&scores)
            .map(|((layer, head), score)| {
                // A table of removals says what is lost with its sign turned round.
                let factor = (1.0 - 2.0 * -score).clamp(0.0, 2.0);
                format!("z{layer}[head={head}] *= {factor}")
                    .parse()
                    .expect("an edit")
            });
        let edits: Vec<Edit> = scaled.collect();
        let expected: f64 = (task.pairs()[1..].iter())
            .map(|pair| prob(&logits(&model, pair, &edits), pair) / 2.0)
            .sum();
        near(
            &[arm(&found, "scores", Some("-2"), "prob")],
            &[expected],
            what,
        );
    }
}

#[test]
fn what_cannot_scale_heads_is_refused() {
    let model = models::two_kinds().remove(0);
    let task = task();
    let config = modulation(&model, &task);
    let says = |config: ModulationConfig, task: &Task, what: &str| {
        let refused = check(&config, &model.spec, task)
            .expect_err(what)
            .to_string();
        assert!(refused.contains(what), "{refused}");
    };
    says(
        config.clone(),
        &first(&task, 1),
        "measured on all 1 prompts",
    );
    let with = |lambdas: Vec<f32>| ModulationConfig {
        lambdas,
        ..config.clone()
    };
    says(with(vec![1.0, 1.0]), &task, "each once");
    says(with(vec![f32::NAN]), &task, "finite");
    says(with(vec![]), &task, "at least one lambda");
    let one = config.clone().only(&"a0.h1".parse().expect("a head"));
    assert_eq!(
        one.worth.keys().next(),
        Some(&Node::Head { layer: 0, head: 1 })
    );
    says(one, &task, "two or more");
    let encoder = check(&config, &models::encoder().spec, &task).expect_err("no next token");
    assert!(encoder.to_string().contains("no next token"), "{encoder}");
    let (mut table, _) = scored(&model, &task);
    table.provenance.prompts.clear();
    let refused = ModulationConfig::by_scores(&table, &model.spec).expect_err("no prompts");
    assert!(refused.to_string().contains("main file"), "{refused}");
}
