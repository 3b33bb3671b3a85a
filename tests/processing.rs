//! Weight processing leaves logit differences where they were, on a model of every kind.

mod models;

use candlewick::Error;
use candlewick::model::processing::{center_unembed, center_writing, fold_ln, fold_value_biases};
use candlewick::model::{Model, ModelSpec};
use candlewick::run::logits;
use candlewick::spec::{NormKind, NormPlacement};

/// Folding reorders f32 sums of some twenty terms; logits are of order 3.
const TOLERANCE: f32 = 3e-5;

/// Logits less their mean: what differences, probabilities and ranks see.
fn centred_logits(model: &Model) -> Vec<Vec<f32>> {
    let prompts = models::Pairs::new().clean;
    let rows: Vec<Vec<f32>> = logits(model, &prompts)
        .and_then(|t| Ok(t.to_vec2()?))
        .expect("runs");
    let centred = |row: Vec<f32>| {
        let mean = row.iter().sum::<f32>() / row.len() as f32;
        row.into_iter().map(|logit| logit - mean).collect()
    };
    rows.into_iter().map(centred).collect()
}

fn check(before: &Model, after: &Model) {
    let name = after.origin.processing.join(", ");
    let family = &before.spec.family;
    for (a, b) in centred_logits(before).iter().zip(centred_logits(after)) {
        for (a, b) in a.iter().zip(b) {
            assert!(
                (a - b).abs() < TOLERANCE,
                "{family}, {name}: {a} against {b}"
            );
        }
    }
}

#[test]
fn every_processing_leaves_logit_differences_where_they_were() {
    for model in models::every_kind() {
        let folded = fold_ln(&model).expect("folds");
        check(&model, &folded);
        check(&model, &fold_value_biases(&model).expect("folds"));
        let spec = &model.spec;
        // A norm on the embeddings writes to the stream itself.
        let layer_norm = spec.norm == NormKind::Layer
            && spec.norm_placement == NormPlacement::Pre
            && !spec.embed_norm;
        let mut all = folded;
        match center_writing(&model) {
            Ok(centred) if layer_norm => {
                check(&model, &centred);
                all = center_writing(&all).expect("as before folding");
            }
            Err(Error::Unprocessable { .. }) if !layer_norm => {}
            other => panic!("{}: {other:?}", spec.family),
        }
        match center_unembed(&model) {
            Ok(centred) if spec.final_softcap.is_none() => {
                check(&model, &centred);
                all = center_unembed(&all).expect("as before folding");
            }
            Err(Error::Unprocessable { reason, .. }) if spec.final_softcap.is_some() => {
                assert!(reason.contains("soft-capped at 4"), "{reason}");
            }
            other => panic!("{}: {other:?}", spec.family),
        }
        check(&model, &fold_value_biases(&all).expect("folds"));
    }
}

#[test]
fn folded_norms_are_plain_and_their_readers_are_centred() {
    let is_gpt2 = |model: &Model| model.spec.family == "gpt2";
    let model = models::every_kind()
        .into_iter()
        .find(is_gpt2)
        .expect("one of them");
    let folded = fold_ln(&model).expect("folds");
    assert_eq!(folded.origin.processing, ["fold_ln"]);
    assert!(
        model.spec.tied && !folded.spec.tied,
        "the unembedding became a matrix of its own"
    );
    let values = |t: &candle_core::Tensor| -> Vec<f32> {
        t.flatten_all().and_then(|t| t.to_vec1()).expect("values")
    };
    for block in &folded.weights.blocks {
        let norm = block.ln1.as_ref().expect("a norm");
        assert!(norm.b.is_none() && values(&norm.w).iter().all(|&w| w == 1.0));
        let sums = values(&block.w_qkv.sum(0).expect("sums"));
        assert!(sums.iter().all(|sum| sum.abs() < 1e-5));
    }
    // Folding again finds nothing to fold.
    let again = fold_ln(&folded).expect("folds");
    let gap = (&again.weights.w_u - &folded.weights.w_u).expect("same shape");
    assert!(values(&gap).iter().all(|x| x.abs() < 1e-6));
}

#[test]
fn a_model_without_norms_is_refused_by_name() {
    let without = |spec: &ModelSpec| spec.norm_placement == NormPlacement::None;
    let model = models::every_kind()
        .into_iter()
        .find(|m| without(&m.spec))
        .expect("one of them");
    let message = center_writing(&model)
        .expect_err("nothing hides the mean")
        .to_string();
    assert!(
        message.contains("`center_writing`") && message.contains("without any norm"),
        "{message}"
    );
}
