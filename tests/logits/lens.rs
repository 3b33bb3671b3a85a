use candlewick::hooks::{Hook, Kind};
use candlewick::methods::{LensConfig, LensPositions};
use candlewick::metric::Metric;
use candlewick::run::{logits, run_with_cache};

use super::models::task::{pairs, task, task_of};
use super::{means, models, near, per_example, rows_of};

#[test]
fn the_lens_at_the_last_layer_is_the_model() {
    let task = task();
    let prompts: Vec<Vec<u32>> = task.pairs().iter().map(|pair| pair.clean.clone()).collect();
    for model in models::every_kind() {
        let scores = per_example(&model, &task, &LensConfig::default());
        let all: Vec<Vec<f32>> = logits(&model, &prompts)
            .and_then(|t| Ok(t.to_vec2()?))
            .expect("runs");
        let last = model.spec.n_layers as i64 - 1;
        let positions = scores.integers("pos").expect("by position");
        let metrics = scores.texts("metric").expect("metrics");
        let (layers, examples) = (scores.integers("layer"), scores.integers("example"));
        let (layers, examples) = (layers.expect("layers"), examples.expect("examples"));
        let component = scores.texts("component").expect("components");
        let score = scores.floats("score").expect("scores");
        let mut seen = 0;
        for row in 0..scores.table.height() {
            let is_end = positions[row] == Some(models::Pairs::ANSWER as i64);
            if !is_end || layers[row] != Some(last) || component[row] != Some("hook_resid_post") {
                continue;
            }
            let i = examples[row].expect("an example") as usize;
            let target = &task.pairs()[i].target;
            let value = |metric: Metric| {
                metric
                    .value(&all[i], target, Some(&all[i]))
                    .expect("a value")
            };
            let wanted = match metrics[row].expect("a metric") {
                "logit_diff" => {
                    let columns: Vec<f32> = target
                        .columns()
                        .iter()
                        .map(|&id| all[i][id as usize])
                        .collect();
                    Metric::LogitDiff
                        .value(&columns, target, None)
                        .expect("a value")
                }
                "prob" => value(Metric::Prob),
                "rank" => value(Metric::Rank),
                "top1" => value(Metric::TopK(1)),
                "kl" => 0.0,
                _ => continue,
            };
            near(
                score[row].expect("a number"),
                wanted,
                metrics[row].expect("a metric"),
            );
            seen += 1;
        }
        assert_eq!(seen, 5 * 3, "{}", model.spec.family);
        // The end alone gives the same rows, counted from the end.
        let end = per_example(&model, &task, &LensConfig::at_end());
        let of_end = rows_of(&end, "entropy");
        assert_eq!(of_end.len(), 3 * (model.spec.n_layers + 1));
        for (key, value) in of_end {
            let same = rows_of(&scores, "entropy");
            assert!(
                same.iter()
                    .any(|(k, v)| *k == key && (v - value).abs() < 1e-5)
            );
        }
    }
}

#[test]
fn the_lens_uses_each_stream_s_own_scale() {
    // By hand: the first layer's stream, normalised by itself, through the unembedding.
    let task = task();
    let model = models::every_kind()
        .into_iter()
        .find(|m| m.spec.family == "llama");
    let model = model.expect("one of them");
    let hook = Hook::at(Kind::ResidPost, 0);
    let prompt = vec![task.pairs()[0].clean.clone()];
    let (_, cache) = run_with_cache(&model, &prompt, &[hook]).expect("runs");
    let stream: Vec<f32> = cache
        .get(hook)
        .and_then(|t| Ok(t.get(0)?.get(models::Pairs::ANSWER)?.to_vec1()?))
        .expect("a stream");
    let scale = (stream.iter().map(|x| x * x).sum::<f32>() / stream.len() as f32 + 1e-5).sqrt();
    let norm = model.weights.ln_final.as_ref().expect("a norm");
    let w: Vec<f32> = norm.w.to_vec1().expect("weights");
    let u: Vec<Vec<f32>> = model.weights.w_u.to_vec2().expect("weights");
    let b: Vec<f32> = match &model.weights.b_u {
        Some(b) => b.to_vec1().expect("weights"),
        None => vec![0.0; models::VOCAB],
    };
    let logit = |id: u32| {
        let row = &u[id as usize];
        let products = stream
            .iter()
            .zip(&w)
            .zip(row)
            .map(|((x, w), u)| x / scale * w * u);
        f64::from(products.sum::<f32>() + b[id as usize])
    };
    let scores = per_example(&model, &task, &LensConfig::at_end());
    let rows = rows_of(&scores, "logit");
    let found = rows
        .iter()
        .find(|(key, _)| key.0 == "hook_resid_post" && key.1 == Some(0) && key.3 == 0);
    near(
        found.expect("a row").1,
        logit(task.pairs()[0].target.answers[0]),
        "layer 0",
    );
}

#[test]
fn every_metric_is_the_models_at_the_last_layer() {
    let task = task();
    let prompts: Vec<Vec<u32>> = task.pairs().iter().map(|pair| pair.clean.clone()).collect();
    for model in models::two_kinds() {
        let all: Vec<Vec<f32>> = logits(&model, &prompts)
            .and_then(|t| Ok(t.to_vec2()?))
            .expect("runs");
        let last = model.spec.n_layers as i64 - 1;
        for metric in [
            Metric::ProbDiff,
            Metric::LogProb,
            Metric::Prob,
            Metric::Kl,
            Metric::Js,
            Metric::Rank,
            Metric::TopK(3),
        ] {
            let config = LensConfig {
                metric: Some(metric),
                ..LensConfig::at_end()
            };
            let scores = per_example(&model, &task, &config);
            let rows = rows_of(&scores, &metric.to_string());
            // What is the metric has no second row beside it.
            assert_eq!(rows.len(), 3 * (model.spec.n_layers + 1), "{metric}");
            for (pair, logits) in task.pairs().iter().zip(&all) {
                let value = metric
                    .value(logits, &pair.target, Some(logits))
                    .expect("a value");
                let key = (
                    "hook_resid_post".to_string(),
                    Some(last),
                    None,
                    pair.index as i64,
                );
                let found = rows.iter().find(|(k, _)| *k == key).expect("a row");
                near(found.1, value, &metric.to_string());
            }
        }
    }
}

#[test]
fn the_likeliest_tokens_have_the_probabilities_of_the_model() {
    let task = task();
    let prompts: Vec<Vec<u32>> = task.pairs().iter().map(|pair| pair.clean.clone()).collect();
    for model in models::two_kinds() {
        let config = LensConfig {
            tokens: 4,
            ..LensConfig::default()
        };
        let scores = means(&model, &task, &config);
        let all: Vec<Vec<f32>> = logits(&model, &prompts)
            .and_then(|t| Ok(t.to_vec2()?))
            .expect("runs");
        let prob = |row: &Vec<f32>, id: usize| {
            let all: f64 = row.iter().map(|&l| f64::from(l).exp()).sum();
            f64::from(row[id]).exp() / all
        };
        let mean = |id: usize| all.iter().map(|row| prob(row, id)).sum::<f64>() / 3.0;
        let mut wanted: Vec<f64> = (0..models::VOCAB).map(mean).collect();
        wanted.sort_by(|a, b| b.total_cmp(a));
        let rows = rows_of(&scores, "top_prob");
        assert_eq!(rows.len(), 4 * (model.spec.n_layers + 1));
        for ((_, found), wanted) in rows[rows.len() - 4..].iter().zip(wanted) {
            near(*found, wanted, "a likely token");
        }
    }
}

#[test]
fn prompts_that_do_not_align_are_looked_at_by_template() {
    let mut pairs = pairs();
    pairs[2].template = 1;
    let task = task_of(pairs);
    let model = &models::two_kinds()[0];
    // Nothing said: only the end, which all prompts have.
    let end = means(model, &task, &LensConfig::default());
    let positions = end.integers("pos").unwrap();
    assert!(positions.iter().flatten().all(|&pos| pos == -1));
    let everywhere = LensConfig {
        positions: Some(LensPositions::All),
        ..LensConfig::default()
    };
    let all = means(model, &task, &everywhere);
    let (templates, positions) = (all.texts("template").unwrap(), all.integers("pos").unwrap());
    let by_position = templates
        .iter()
        .zip(&positions)
        .filter(|(_, pos)| pos.is_some());
    let mut seen = 0;
    for (template, _) in by_position {
        assert!(template.is_some());
        seen += 1;
    }
    assert_eq!(
        seen,
        7 * 2 * task.pairs()[0].clean.len() * (model.spec.n_layers + 1)
    );
}
