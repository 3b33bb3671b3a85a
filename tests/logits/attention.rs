//! Attention patterns are those of the run, and weighted ones the sizes of what each key brings.

use std::collections::HashMap;

use candlewick::Error;
use candlewick::hooks::{Hook, Kind};
use candlewick::methods::{AttentionConfig, ChosenHead, Heads};
use candlewick::run::run_with_cache;

use super::models::task::task;
use super::{models, near, per_example, refusal};

#[test]
fn patterns_are_those_of_the_run_and_weights_the_sizes_of_what_keys_bring() {
    let task = task();
    for model in models::every_kind() {
        let family = model.spec.family.clone();
        let config = AttentionConfig {
            value_weighted: true,
            ..AttentionConfig::default()
        };
        let scores = per_example(&model, &task, &config);
        let integers = |name: &str| scores.integers(name).expect("filled");
        let (layer, head) = (integers("layer"), integers("head"));
        let (pos, key) = (integers("pos"), integers("key"));
        let example = integers("example");
        let metric = scores.texts("metric").expect("filled");
        let score = scores.floats("score").expect("filled");
        let mut found: HashMap<_, f64> = HashMap::new();
        for row in 0..scores.table.height() {
            let at = |of: &[Option<i64>]| of[row].expect("filled") as usize;
            let place = [at(&example), at(&layer), at(&head), at(&pos), at(&key)];
            let is_weighted = metric[row] == Some("value_weighted");
            found.insert((is_weighted, place), score[row].expect("a number"));
        }
        let spec = &model.spec;
        for pair in task.pairs() {
            for layer in 0..spec.n_layers {
                let hooks =
                    [Kind::Pattern, Kind::V, Kind::Result].map(|kind| Hook::at(kind, layer));
                let (_, cache) = run_with_cache(&model, std::slice::from_ref(&pair.clean), &hooks)
                    .expect("runs");
                let tensor = |hook| {
                    cache
                        .get(hook)
                        .and_then(|t| Ok(t.get(0)?.to_vec3::<f32>()?))
                };
                let [pattern, v, result] = hooks.map(|hook| tensor(hook).expect("captured"));
                let w_o: Vec<Vec<f32>> =
                    model.weights.blocks[layer].w_o.to_vec2().expect("a matrix");
                let size = |vector: &[f64]| vector.iter().map(|x| x * x).sum::<f64>().sqrt();
                for head in 0..spec.n_heads {
                    let brought = |key: usize| {
                        let v = &v[key][head / spec.group()];
                        let column = |to: usize| {
                            let row = |d: usize| f64::from(w_o[head * spec.d_head + d][to]);
                            (0..spec.d_head).map(|d| f64::from(v[d]) * row(d)).sum()
                        };
                        size(&(0..spec.d_model).map(column).collect::<Vec<f64>>())
                    };
                    for (query, shares) in pattern[head].iter().enumerate() {
                        for (key, &share) in shares.iter().enumerate().take(query + 1) {
                            let place = [pair.index, layer, head, query, key];
                            let share = f64::from(share);
                            near(found[&(false, place)], share, &family);
                            near(found[&(true, place)], share * brought(key), &family);
                        }
                    }
                    // The first position sees itself alone: what it brings is the whole result of the head.
                    let whole: Vec<f64> = result[0][head].iter().map(|x| f64::from(*x)).collect();
                    let place = [pair.index, layer, head, 0, 0];
                    near(found[&(true, place)], size(&whole), &family);
                }
            }
        }
    }
}

#[test]
fn heads_that_are_not_there_are_refused() {
    let (task, model) = (task(), models::every_kind().remove(0));
    let config = |layers: Vec<usize>, heads: Vec<ChosenHead>| AttentionConfig {
        layers: candlewick::methods::Layers(layers),
        heads: Heads(heads),
        ..AttentionConfig::default()
    };
    let of = |layer, head| ChosenHead { layer, head };
    for (config, says) in [
        (config(vec![9], vec![]), "`layer` = 9"),
        (config(vec![], vec![of(None, 9)]), "`head` = 9"),
        (config(vec![], vec![of(Some(9), 0)]), "`layer` = 9"),
        (
            config(vec![1], vec![of(Some(0), 0)]),
            "leave one of them out",
        ),
    ] {
        let error = refusal(&model, &task, &config).to_string();
        assert!(error.contains(says), "{error}");
    }
    let error = refusal(&models::encoder(), &task, &AttentionConfig::default());
    assert!(
        matches!(error, Error::Invalid(_)) || error.to_string().contains("bert"),
        "{error}"
    );
}
