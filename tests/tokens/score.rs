//! Scores of token methods: what is lost without their top tokens, run whole; what they should be told apart by; refusals.

use candlewick::Error;
use candlewick::hooks::{Edit, Hook, Kind, Op, Pos, Site, Value};
use candlewick::methods::tokens::TokenMethod;
use candlewick::methods::{Running, ScoreConfig, Subject, TokenScore, Watch, check, measurements};
use candlewick::model::Model;
use candlewick::scores::Measured;
use candlewick::task::Pair;

use crate::models::task::{logit_diff, task, tokenizer};
use crate::models::{Pairs, encoder, every_kind, two_kinds};
use crate::{SUMS, config, measure, near, shares};

fn scored(model: &Model, config: &ScoreConfig) -> Measured {
    let on = Subject {
        model,
        task: &task(),
    };
    measurements(on, config, &Running::default(), &Watch::default())
        .unwrap_or_else(|error| panic!("{}: {error}", model.spec.family))
}

/// The score of a method on each prompt.
fn of(
    measured: &Measured,
    config: &ScoreConfig,
    method: &TokenMethod,
    score: TokenScore,
) -> Vec<f64> {
    let is_own = config.scores[0] == score;
    let cell = measured.cells.iter().position(|cell| {
        let is_score = match &cell.measure {
            None => is_own,
            Some(name) => name == score.name(),
        };
        cell.component == method.name() && is_score
    });
    let cell = cell.expect("it was asked for");
    let values = measured
        .examples
        .iter()
        .map(|one| one.value(cell).expect("measured"));
    values.collect()
}

/// The metric of a pair whose tokens at these places have the mean embedding.
fn without(model: &Model, pair: &Pair, places: &[usize]) -> f64 {
    let mean = model.weights.w_e.mean(0).expect("a mean");
    let mean = (mean * f64::from(model.spec.embed_scale.unwrap_or(1.0))).expect("scaled");
    let edits: Vec<Edit> = (places.iter())
        .map(|&at| {
            let site = Site::all(Hook::global(Kind::Embed)).at_positions([Pos::Index(at)]);
            let value = mean.reshape((1, 1, model.spec.d_model)).expect("a row");
            Edit::new(site, Op::Replace(Value::Tensor(value)))
        })
        .collect();
    logit_diff(model, pair, &edits)
}

#[test]
fn what_is_lost_is_that_of_whole_runs_without_the_top_tokens() {
    let method = TokenMethod::GradientTimesInput;
    let config_of = ScoreConfig::new(vec![method.clone()]);
    for model in two_kinds() {
        let measured = scored(&model, &config_of);
        let plain = measure(&model, &config(method.clone()));
        let (mut lost, mut kept) = (Vec::new(), Vec::new());
        for (example, pair) in task().pairs().iter().enumerate() {
            let share = shares(&plain, example, "hook_embed");
            let mut order: Vec<usize> = (0..Pairs::LENGTH)
                .filter(|&at| !tokenizer().is_special(pair.clean[at]))
                .collect();
            order.sort_by(|&a, &b| share[b].total_cmp(&share[a]));
            let whole = without(&model, pair, &[]);
            let (mut without_top, mut alone) = (0.0, 0.0);
            for top in [0.05, 0.1, 0.2, 0.5] {
                let n = (top * order.len() as f64).ceil() as usize;
                without_top += (whole - without(&model, pair, &order[..n])) / 4.0;
                alone += (whole - without(&model, pair, &order[n..])) / 4.0;
            }
            lost.push(without_top);
            kept.push(alone);
        }
        let found = |score| of(&measured, &config_of, &method, score);
        near(
            "without",
            &found(TokenScore::Comprehensiveness),
            &lost,
            5.0 * SUMS,
        );
        near("alone", &found(TokenScore::Sufficiency), &kept, 5.0 * SUMS);
    }
}

#[test]
fn slopes_say_what_small_changes_do_and_random_shares_do_not() {
    let gradient = TokenMethod::GradientTimesInput;
    let config = ScoreConfig {
        changes: 30,
        places: 2,
        ..ScoreConfig::new(vec![gradient.clone(), TokenMethod::Random])
    };
    let mut models = every_kind();
    models.push(encoder());
    for model in models {
        let family = &model.spec.family;
        let measured = scored(&model, &config);
        let mean = |method: &TokenMethod, score| {
            let of = of(&measured, &config, method, score);
            of.iter().sum::<f64>() / of.len() as f64
        };
        let exact = mean(&gradient, TokenScore::InfidelityScaled);
        let random = mean(&TokenMethod::Random, TokenScore::InfidelityScaled);
        assert!(exact < 0.1 && random > 0.5, "{family}: {exact}, {random}");
        let raw = mean(&gradient, TokenScore::Infidelity);
        assert!(
            raw < mean(&TokenMethod::Random, TokenScore::Infidelity),
            "{family}: {raw}"
        );
        let moves = mean(&gradient, TokenScore::MaxSensitivity);
        assert!(moves > 0.0 && moves.is_finite(), "{family}: {moves}");
    }
}

/// Every method moves with the embeddings that it is given: at the prompt's own place its shares are its own.
#[test]
fn every_method_is_scored_near_the_prompt() {
    let mut methods = TokenMethod::all();
    for method in &mut methods {
        match method {
            TokenMethod::SmoothGrad { draws, .. }
            | TokenMethod::ExpectedGradients { draws, .. }
            | TokenMethod::GradientShap { draws, .. } => *draws = 3,
            TokenMethod::IntegratedGradients { steps, .. } => *steps = 3,
            _ => {}
        }
    }
    let still = [
        TokenMethod::LastAttention,
        TokenMethod::AttentionRollout,
        TokenMethod::AltiRollout,
        TokenMethod::AltiLogit,
        TokenMethod::Lrp,
    ];
    let config = ScoreConfig {
        changes: 2,
        places: 2,
        ..ScoreConfig::new(methods.clone()).with_gold("S1")
    };
    for model in two_kinds() {
        let measured = scored(&model, &config);
        for method in &methods {
            let is_random = *method == TokenMethod::Random;
            for &score in &config.scores {
                if is_random && score == TokenScore::MaxSensitivity {
                    continue;
                }
                let values = of(&measured, &config, method, score);
                assert!(
                    values.iter().all(|value| value.is_finite()),
                    "{method} {score:?}"
                );
                if score.needs_gold() {
                    assert!(values.iter().all(|value| (0.0..=1.0).contains(value)));
                }
            }
            if is_random {
                continue;
            }
            let moves = of(&measured, &config, method, TokenScore::MaxSensitivity);
            assert!(
                moves.iter().all(|&moves| moves > 0.0),
                "{method}: {moves:?}"
            );
            if still.contains(method) {
                assert!(
                    moves.iter().all(|&moves| moves < 1.0),
                    "{method}: {moves:?}"
                );
            }
        }
    }
}

#[test]
fn scores_that_nothing_can_be_said_of_are_refused() {
    let model = two_kinds().remove(0);
    let ig = || TokenMethod::GradientTimesInput;
    let refused = |config: &ScoreConfig| -> Error {
        check(config, &model.spec, &task()).expect_err("refused")
    };
    let plain = ScoreConfig::new(vec![ig()]);
    let unknown = plain.clone().with_gold("SUBJECT");
    assert!(matches!(refused(&unknown), Error::UnknownRole { .. }));
    let blind = ScoreConfig {
        scores: vec![TokenScore::Complexity, TokenScore::Pta],
        ..plain.clone()
    };
    let message = refused(&blind).to_string();
    assert!(
        message.contains("`pta`") && message.contains("S1"),
        "{message}"
    );
    let twice = ScoreConfig::new(vec![ig(), ig()]);
    assert!(refused(&twice).to_string().contains("twice"));
    assert!(
        refused(&ScoreConfig::new(vec![]))
            .to_string()
            .contains("nothing")
    );
    let none = ScoreConfig {
        changes: 0,
        ..plain
    };
    assert!(refused(&none).to_string().contains("at least one"));
    let alti = ScoreConfig::new(TokenMethod::all());
    assert!(check(&alti, &encoder().spec, &task()).is_err());
}
