//! Every method measures an answer of several tokens whole, and an encoder at its mask, or refuses it by name.

use candlewick::metric::Target;
use candlewick::model::Model;
use candlewick::prelude::*;
use candlewick::run::{BaseRun, Readout, Sources};
use candlewick::spec::ModelSpec;
use candlewick::task::Pair;

use crate::every_method::every_run;
use crate::models::encoder;
use crate::models::task::pairs;

/// The mean over the pairs of the metric of their clean prompts, from whole passes.
fn mean_clean(lab: &Lab) -> f64 {
    let of = |pair: &Pair| {
        let run = BaseRun::new(
            &lab.model,
            vec![pair.clean.clone()],
            vec![],
            vec![],
            Sources::default(),
            &[],
        );
        let readout = Readout {
            metric: lab.task.metric,
            targets: vec![pair.target.clone()],
            reference: None,
        };
        run.and_then(|run| run.metric(&lab.model, &readout))
            .expect("a metric")[0]
    };
    let pairs = lab.task.pairs();
    pairs.iter().map(of).sum::<f64>() / pairs.len() as f64
}

/// Whether it was measured; what was refused must say one of these.
fn measured_or(lab: &Lab, name: &str, method: &dyn Method, refusals: &[&str]) -> bool {
    match lab.measure(method) {
        Ok(scores) => {
            let about = &scores.provenance;
            if about.metric == lab.task.metric.to_string() {
                let gap = (about.mean_clean - mean_clean(lab)).abs();
                assert!(gap < 1e-4, "{name}: {gap}");
            }
            true
        }
        Err(error) => {
            let message = error.to_string();
            assert!(
                refusals.iter().any(|says| message.contains(says)) && !message.contains('\n'),
                "{name}: {message}"
            );
            false
        }
    }
}

#[test]
fn every_method_measures_whole_answers_or_refuses_them_by_name() {
    let mut measured = 0;
    for (name, lab, method) in every_run(3) {
        // Scores by position take prompts of one length.
        let by_position = name == "eap by position";
        let whole = |pair: &Pair| {
            let tokens = [vec![pair.clean[1], pair.clean[3]], vec![7, 9, 11]]
                [usize::from(!by_position && pair.index % 2 == 1)]
            .clone();
            Pair {
                target: Target::default(),
                ..pair.clone()
            }
            .whole_answer(tokens)
        };
        let mut task = lab.task.clone();
        task.metric = Metric::LogProb;
        let pairs: Vec<Pair> = lab.task.pairs().iter().map(whole).collect();
        let task = task.with_pairs(pairs).expect("a task");
        let lab = Lab { task, ..lab };
        let refusals = [format!(
            "`{}` reads one token",
            method.header(&lab.task).method
        )];
        let refusals: Vec<&str> = refusals.iter().map(String::as_str).collect();
        measured += usize::from(measured_or(&lab, name, &*method, &refusals));
    }
    assert!(measured > 25, "{measured}");
}

#[test]
fn every_method_measures_an_encoder_at_its_mask_or_refuses_it_by_name() {
    let spec = encoder().spec;
    let model = Model::random(
        ModelSpec {
            n_layers: 4,
            attn_scale: vec![0.4; 4],
            windows: vec![None; 4],
            ..spec
        },
        7,
    )
    .expect("a model");
    let mut measured = 0;
    for (name, lab, method) in every_run(3) {
        let masked = |pair: Pair| pair.role("IO", [1]).read_before(3);
        let task = lab
            .task
            .with_pairs(pairs().into_iter().map(masked))
            .expect("a task");
        let lab = Lab {
            model: model.clone(),
            task,
            ..lab
        };
        let refusals = [
            "encoders such as `bert`",
            "in family `bert`",
            "family `bert` predicts",
            "cannot be written into this model",
            "has activations of width",
        ];
        measured += usize::from(measured_or(&lab, name, &*method, &refusals));
    }
    assert!(measured > 20, "{measured}");
}
