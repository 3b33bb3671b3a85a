use std::path::Path;

use candle_core::{Device, Tensor};
use candlewick::hooks::{Hook, Kind, Node};
use candlewick::methods::HeadConfig;
use candlewick::metric::Metric;
use candlewick::model::{Model, ModelSpec, Origin, Tokenizer};
use candlewick::run::run_with_cache;
use candlewick::spec::{BlockWeights, Mlp, NormPlacement, Position, Weights};
use candlewick::task::{Pair, Task};

use super::models::task::{task, tokenizer};
use super::{means, models, near, refusal, rows_of};

fn head(layer: usize, head: usize) -> Node {
    Node::Head { layer, head }
}

#[test]
fn every_kind_of_model_has_its_heads_labelled() {
    let task = task();
    for model in models::every_kind() {
        let config = HeadConfig {
            repeat_length: Some(8),
            samples: 2,
            circuits: vec![head(1, 2)],
            from: vec![4, 6],
            tokens: 3,
            ..HeadConfig::default()
        };
        let scores = means(&model, &task, &config);
        let heads = model.spec.n_layers * model.spec.n_heads;
        let rows = rows_of(&scores, "induction");
        assert_eq!(rows.len(), heads, "{}", model.spec.family);
        for measure in [
            "induction",
            "previous_token",
            "first_token",
            "itself",
            "duplicate_token",
        ] {
            assert!(
                rows_of(&scores, measure)
                    .iter()
                    .all(|(_, s)| (0.0..=1.0).contains(s))
            );
        }
        assert!(
            rows_of(&scores, "copying")
                .iter()
                .all(|(_, s)| (-1.0..=1.0).contains(s))
        );
        for measure in ["ov_logit", "qk_score"] {
            assert_eq!(rows_of(&scores, measure).len(), 2 * 3, "{measure}");
        }
    }
}

/// The query-key circuit without positions is what the first layer computes at equal positions.
#[test]
fn the_circuits_of_the_first_layer_are_what_it_computes() {
    let task = task();
    let model = models::every_kind()
        .into_iter()
        .find(|m| m.spec.family == "llama");
    let model = model.expect("one of them");
    let config = HeadConfig {
        repeat_length: Some(8),
        samples: 1,
        circuits: vec![head(0, 3)],
        from: vec![7],
        tokens: models::VOCAB,
        ..HeadConfig::default()
    };
    let scores = means(&model, &task, &config);
    // One token attends to itself at distance zero, with nothing else to see.
    let hooks = [Kind::AttnScores, Kind::Result].map(|kind| Hook::at(kind, 0));
    let (_, cache) = run_with_cache(&model, &[vec![7]], &hooks).expect("runs");
    let own = cache
        .get(hooks[0])
        .and_then(|t| Ok(t.flatten_all()?.to_vec1::<f32>()?))
        .expect("scores");
    let dst = scores.texts("dst").expect("circuits");
    let metric = scores.texts("metric").expect("metrics");
    let score = scores.floats("score").expect("scores");
    let name = tokenizer().token(7);
    let find = |wanted: &str| {
        let is = |row: &usize| metric[*row] == Some(wanted) && dst[*row] == Some(&name);
        score[(0..dst.len()).find(is).expect("a row")].expect("a number")
    };
    near(find("qk_score"), f64::from(own[3]), "the token for itself");
    let result: Vec<f32> = cache
        .get(hooks[1])
        .and_then(|t| Ok(t.get(0)?.get(0)?.get(3)?.to_vec1()?))
        .expect("a result");
    let w: Vec<f32> = model
        .weights
        .ln_final
        .as_ref()
        .expect("a norm")
        .w
        .to_vec1()
        .expect("w");
    let u: Vec<Vec<f32>> = model.weights.w_u.to_vec2().expect("w");
    let logit = |row: &Vec<f32>| -> f32 {
        result
            .iter()
            .zip(&w)
            .zip(row)
            .map(|((r, w), u)| r * w * u)
            .sum()
    };
    let mean = u.iter().map(logit).sum::<f32>() / u.len() as f32;
    near(
        find("ov_logit"),
        f64::from(logit(&u[7]) - mean),
        "what it writes for itself",
    );
}

/// The trained induction model, if it is at hand.
fn induction_model() -> Option<(Model, Tokenizer)> {
    let folder = std::env::var_os("CANDLEWICK_SMALL_MODELS")?;
    let file = Path::new(&folder).join("induction_2l1h/finetuned_model_0.safetensors");
    let t = candle_core::safetensors::load(file, &Device::Cpu).ok()?;
    let get = |name: &str| t[name].clone();
    let spec = ModelSpec {
        family: "attention-only".into(),
        n_layers: 2,
        n_heads: 1,
        n_kv_heads: 1,
        d_model: 64,
        d_head: 64,
        d_vocab: 26,
        n_ctx: 8,
        d_mlp: 0,
        norm_placement: NormPlacement::None,
        position: Position::Learned,
        attn_scale: vec![0.125; 2],
        windows: vec![None; 2],
        mlp: Mlp::None,
        ..models::two_kinds()[0].spec.clone()
    };
    let block = |layer: usize| {
        let of = |name: &str| get(&format!("blocks.{layer}.attn.{name}"));
        let one = |name: &str| of(name).squeeze(0).expect("one head");
        let [q, k, v] = ["W_Q", "W_K", "W_V"].map(one);
        let [b_q, b_k, b_v] = ["b_Q", "b_K", "b_V"].map(one);
        BlockWeights {
            ln1: None,
            w_qkv: Tensor::cat(&[q, k, v], 1).expect("columns"),
            b_qkv: Some(Tensor::cat(&[b_q, b_k, b_v], 0).expect("columns")),
            q_norm: None,
            k_norm: None,
            w_o: one("W_O"),
            b_o: Some(of("b_O")),
            ln1_post: None,
            ln2: None,
            mlp: None,
            ln2_post: None,
        }
    };
    let weights = Weights {
        w_e: get("embed.W_E"),
        ln_embed: None,
        w_pos: Some(get("pos_embed.W_pos")),
        blocks: vec![block(0), block(1)],
        ln_final: None,
        w_u: get("unembed.W_U")
            .t()
            .and_then(|t| t.contiguous())
            .expect("rows"),
        b_u: Some(get("unembed.b_U")),
        encoder: None,
    };
    let spec = ModelSpec {
        tied: false,
        ..spec
    };
    let letters: serde_json::Map<String, serde_json::Value> = ('a'..='z')
        .enumerate()
        .map(|(id, letter)| (letter.to_string(), id.into()))
        .collect();
    let json = serde_json::json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": [], "normalizer": null,
        "pre_tokenizer": { "type": "WhitespaceSplit" }, "post_processor": null, "decoder": null,
        "model": { "type": "WordLevel", "vocab": letters, "unk_token": "z" },
    });
    let tokenizer = Tokenizer::from_bytes(json.to_string().as_bytes(), None).expect("a tokenizer");
    let model = Model::new(spec, weights, Origin::default()).expect("it fits");
    Some((model, tokenizer))
}

#[test]
fn the_induction_model_shows_its_two_heads() {
    let Some((model, tokenizer)) = induction_model() else {
        println!("skipped: no induction_2l1h in $CANDLEWICK_SMALL_MODELS");
        return;
    };
    let config = HeadConfig {
        repeat_length: Some(4),
        samples: 64,
        ..HeadConfig::default()
    };
    let pair = Pair::new([0, 1], [0, 2]).answer(1).wrong(2);
    let letters = Task::new("letters", &tokenizer, Metric::LogitDiff, [pair]).expect("a task");
    let scores = means(&model, &letters, &config);
    let of = |measure: &str, layer: i64| {
        let rows = rows_of(&scores, measure);
        rows.iter()
            .find(|(key, _)| key.1 == Some(layer))
            .expect("a row")
            .1
    };
    println!(
        "previous token {:.2} {:.2}, induction {:.2} {:.2}, copying {:.2} {:.2}",
        of("previous_token", 0),
        of("previous_token", 1),
        of("induction", 0),
        of("induction", 1),
        of("copying", 0),
        of("copying", 1),
    );
    assert!(of("previous_token", 0) > 0.4 && of("induction", 1) > 0.4);
    assert!(of("copying", 1) > 0.8, "the induction head copies");
    let classes = scores.texts("class").expect("classes");
    assert!(
        classes
            .iter()
            .flatten()
            .any(|class| class.starts_with("previous token"))
    );
    assert!(
        classes
            .iter()
            .flatten()
            .any(|class| class.starts_with("induction") && class.contains("copies"))
    );
}

#[test]
fn what_is_no_head_has_no_circuits() {
    let model = &models::two_kinds()[0];
    for (node, says) in [
        (Node::Mlp(1), "`m1` is none"),
        (head(0, 40), "4, 0 to 3"),
        (head(9, 0), "3 layers"),
    ] {
        let config = HeadConfig {
            circuits: vec![node],
            ..HeadConfig::default()
        };
        let message = refusal(model, &task(), &config).to_string();
        assert!(message.contains(says), "{message}");
    }
}
