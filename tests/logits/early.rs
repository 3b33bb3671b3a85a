use candlewick::Error;
use candlewick::hooks::{Hook, Kind};
use candlewick::methods::EarlyConfig;
use candlewick::run::{logits, run_with_cache};
use candlewick::task::{Pair, Task};

use super::models::task::{changed, task_of};
use super::{models, near, per_example, refusal, rows_of};

/// Prompts with three labelled demonstrations; the corrupted ones show each label's partner instead.
fn demonstrations() -> Task {
    let labels = [30, 31];
    let pair = |i: usize| {
        let class = |j: usize| (i / (1 << j)) % 2;
        let input = |class: usize, j: usize| (2 + 3 * class + j + i) as u32 % 20;
        let (mut clean, mut corrupted) = (Vec::new(), Vec::new());
        for j in 0..3 {
            for (prompt, shown) in [(&mut clean, class(j)), (&mut corrupted, 1 - class(j))] {
                prompt.extend([input(class(j), j), 25, labels[shown]]);
            }
        }
        let query = (i * 7 + 3) % 2;
        for prompt in [&mut clean, &mut corrupted] {
            prompt.extend([input(query, 5), 25]);
        }
        Pair {
            index: i,
            roles: Default::default(),
            ..Pair::new(clean, corrupted)
                .answer(labels[query])
                .wrong(labels[1 - query])
        }
    };
    task_of((0..8).map(pair).collect())
}

#[test]
fn early_decoding_ends_at_the_model_and_ablates_what_it_says() {
    let task = demonstrations();
    let model = &models::two_kinds()[0];
    let config = EarlyConfig {
        heads: 2,
        controls: 2,
        seed: None,
    };
    let scores = per_example(model, &task, &config);
    let target = scores.texts("target").expect("settings");
    let metric = scores.texts("metric").expect("metrics");
    let (layer, example) = (scores.integers("layer"), scores.integers("example"));
    let (layer, example) = (layer.expect("layers"), example.expect("examples"));
    let component = scores.texts("component").expect("components");
    let score = scores.floats("score").expect("scores");
    let last = model.spec.n_layers as i64 - 1;
    let mut seen = 0;
    for row in 0..scores.table.height() {
        let is_last = layer[row] == Some(last) && component[row] == Some("hook_resid_post");
        if metric[row] != Some("accuracy") || !is_last {
            continue;
        }
        let pair = &task.pairs()[example[row].expect("an example") as usize];
        let prompt = match target[row] {
            Some("true demonstrations") => &pair.clean,
            _ => &pair.corrupted,
        };
        let logits: Vec<f32> = logits(model, std::slice::from_ref(prompt))
            .and_then(|t| Ok(t.get(0)?.to_vec1()?))
            .expect("runs");
        let [answer, wrong] = [&pair.target.answers, &pair.target.wrong].map(|ids| ids[0] as usize);
        let right = f64::from(u8::from(logits[answer] > logits[wrong]));
        near(
            score[row].expect("a number"),
            right,
            "accuracy of the last layer",
        );
        seen += 1;
    }
    assert_eq!(seen, 2 * task.pairs().len());
    let ablated: Vec<&str> = scores
        .texts("src")
        .expect("sets")
        .into_iter()
        .flatten()
        .collect();
    assert_eq!(
        ablated.len(),
        3 * task.pairs().len(),
        "two draws and the chosen heads"
    );
    assert!(scores.provenance.notes[0].contains("critical layer"));
    // Prefix matching is attention to labels of the query's class less that to the other class.
    let pair = &task.pairs()[1];
    let hook = Hook::at(Kind::Pattern, 1);
    let (_, cache) =
        run_with_cache(model, std::slice::from_ref(&pair.clean), &[hook]).expect("runs");
    let pattern: Vec<f32> = cache
        .get(hook)
        .and_then(|t| Ok(t.get(0)?.get(2)?.get(pair.clean.len() - 1)?.to_vec1()?))
        .expect("a row");
    let sign = |pos: usize| {
        if pair.clean[pos] == pair.target.answers[0] {
            1.0
        } else {
            -1.0
        }
    };
    let wanted: f64 = [2, 5, 8]
        .iter()
        .map(|&pos| sign(pos) * f64::from(pattern[pos]))
        .sum();
    let rows = rows_of(&scores, "prefix_matching");
    let found = rows
        .iter()
        .find(|(key, _)| (key.1, key.2, key.3) == (Some(1), Some(2), 1));
    near(found.expect("a row").1, wanted, "prefix matching");
    let other = changed(&task, |pair| {
        if pair.index == 3 {
            pair.target.wrong = vec![29];
        }
    });
    let refused = refusal(model, &other, &EarlyConfig::default());
    assert!(matches!(refused, Error::BadTask { .. }));
}
