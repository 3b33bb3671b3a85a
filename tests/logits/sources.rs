use std::collections::HashMap;

use candlewick::methods::{DirectTarget, Part, SourceConfig};

use super::models::task::task;
use super::{Key, attribute, models, near, per_example, refusal, rows_of};

#[test]
fn source_classes_take_a_head_apart_whole() {
    let task = task();
    for model in models::two_kinds() {
        let config = SourceConfig {
            percentile: 50.0,
            ..SourceConfig::new(["S2"])
        };
        let scores = per_example(&model, &task, &config);
        let heads = attribute(&model, &task, Part::Head, DirectTarget::Centred);
        let target = scores.texts("target").expect("targets");
        let metric = scores.texts("metric").expect("metrics");
        let own = (0..target.len()).filter(|&row| metric[row] == Some("centred_logit"));
        let rows = rows_of(&scores, "centred_logit");
        let mut sums: HashMap<Key, f64> = HashMap::new();
        for (row, (key, score)) in own.zip(&rows) {
            if target[row] == Some("answer") && key.0 == "attn.hook_result" {
                *sums.entry(key.clone()).or_default() += score;
            }
        }
        let of_heads = rows_of(&heads, "centred_logit");
        let of_heads = of_heads
            .iter()
            .filter(|(key, _)| key.0 == "attn.hook_result");
        for (key, score) in of_heads {
            near(sums[key], *score, &format!("{key:?}"));
        }
        let classes = scores
            .texts("class")
            .expect("half of the heads are classed");
        assert!(classes.iter().flatten().count() > 0);
    }
    let unknown = SourceConfig::new(["SUBJECT"]);
    let error = refusal(&models::two_kinds()[0], &task, &unknown).to_string();
    assert!(error.contains("S1, S2"), "{error}");
}
