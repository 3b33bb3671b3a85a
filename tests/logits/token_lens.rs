use std::collections::HashMap;

use candlewick::hooks::Edit;
use candlewick::methods::TokenLensConfig;
use candlewick::run::{Request, run};

use super::models::task::task;
use super::{models, near, per_example, with_a_role_missing};

#[test]
fn the_token_lens_sums_to_attention_s_output() {
    let task = task();
    for model in models::every_kind() {
        let config = TokenLensConfig {
            watch: vec![11],
            ..TokenLensConfig::lens()
        };
        let scores = per_example(&model, &task, &config);
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
        let scores = per_example(&model, &task, &TokenLensConfig::knockout());
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
fn a_prompt_without_a_role_leaves_the_rows_of_the_others_as_they_are() {
    let (whole, without) = (task(), with_a_role_missing(&task()));
    let model = &models::two_kinds()[0];
    for config in [TokenLensConfig::lens(), TokenLensConfig::knockout()] {
        let rows = |task| {
            let scores = per_example(model, task, &config);
            let [role, target, component] = ["role", "target", "component"].map(|name| {
                let texts = scores.texts(name).expect("a column").into_iter();
                texts.map(|text| text.map(String::from)).collect::<Vec<_>>()
            });
            let (layer, example) = (
                scores.integers("layer").unwrap(),
                scores.integers("example").unwrap(),
            );
            let score = scores.floats("score").unwrap();
            let is_of_s2 = |&row: &usize| role[row].as_deref() == Some("S2");
            let rows: HashMap<_, f64> = (0..score.len())
                .filter(is_of_s2)
                .map(|row| {
                    let key = (
                        target[row].clone(),
                        component[row].clone(),
                        layer[row],
                        example[row],
                    );
                    (key, score[row].unwrap())
                })
                .collect();
            rows
        };
        let (whole, without) = (rows(&whole), rows(&without));
        assert!(without.keys().all(|key| key.3 != Some(1)));
        assert_eq!(without.len() * 3, whole.len() * 2);
        for (key, score) in without {
            near(score, whole[&key], &format!("{key:?}"));
        }
    }
}
