use super::*;
use crate::error::Error;

#[test]
fn a_pair_is_judged_by_its_best_answer() {
    let target = Target {
        answers: vec![0, 2],
        wrong: vec![1],
        ..Target::default()
    };
    let judged = |logits: &[f32]| {
        let judgement = target.judge(logits);
        (judgement.beats, judgement.top1)
    };
    assert_eq!(judged(&[0.0, 1.0, 3.0, 2.0]), (Some(true), Some(true)));
    assert_eq!(judged(&[0.0, 1.0, 3.0, 4.0]), (Some(true), Some(false)));
    assert_eq!(judged(&[0.0, 5.0, 3.0, 4.0]), (Some(false), Some(false)));
    assert_eq!(Target::default().judge(&[1.0]), Judgement::default());
}

const ALL: [Metric; 9] = Metric::ALL;

fn target(answers: &[u32], wrong: &[u32]) -> Target {
    Target {
        answers: answers.to_vec(),
        wrong: wrong.to_vec(),
        ..Target::default()
    }
}

/// Logits whose softmax is 1/8, 1/8, 1/4, 1/2.
fn eighths() -> Vec<f32> {
    [1.0f32, 1.0, 2.0, 4.0]
        .iter()
        .map(|p| p.ln() + 3.0)
        .collect()
}

fn check(
    metric: Metric,
    logits: &[f32],
    target: &Target,
    reference: Option<&[f32]>,
    expected: f64,
) {
    let value = metric.value(logits, target, reference).unwrap();
    assert!(
        (value - expected).abs() < 1e-6,
        "{metric}: {value}, expected {expected}"
    );
}

#[test]
fn a_name_reads_back_as_its_metric() {
    for metric in ALL {
        assert_eq!(metric.to_string().parse::<Metric>().unwrap(), metric);
    }
    for bad in ["", "top0", "top", "topx", "loss", "Logit_diff"] {
        let message = bad.parse::<Metric>().unwrap_err().to_string();
        assert!(
            message.contains("logit_diff, prob_diff") && message.contains("accuracy"),
            "{message}"
        );
    }
}

#[test]
fn answer_metrics_read_answers_then_wrong() {
    let several = target(&[7, 3], &[5]);
    assert_eq!(several.columns(), [7, 3, 5]);
    check(Metric::LogitDiff, &[4.0, 2.0, 1.0], &several, None, 2.0);
    check(Metric::Accuracy, &[4.0, 2.0, 1.0], &several, None, 1.0);
    check(Metric::Accuracy, &[4.0, 2.0, 3.0], &several, None, 0.0);
}

#[test]
fn probabilities_are_those_of_the_softmax() {
    let logits = eighths();
    check(Metric::Prob, &logits, &target(&[3], &[]), None, 0.5);
    check(Metric::Prob, &logits, &target(&[0, 2], &[]), None, 0.375);
    check(
        Metric::LogProb,
        &logits,
        &target(&[2], &[]),
        None,
        -2.0 * std::f64::consts::LN_2,
    );
    check(
        Metric::ProbDiff,
        &logits,
        &target(&[3], &[0, 1]),
        None,
        0.25,
    );
    check(
        Metric::LogProb,
        &[1000.0, -1000.0],
        &target(&[1], &[]),
        None,
        -2000.0,
    );
}

#[test]
fn ranks_count_the_tokens_strictly_above() {
    let logits = eighths();
    check(Metric::Rank, &logits, &target(&[3], &[]), None, 1.0);
    check(Metric::Rank, &logits, &target(&[0], &[]), None, 3.0);
    check(Metric::Rank, &logits, &target(&[0, 2], &[]), None, 2.0);
    check(Metric::TopK(2), &logits, &target(&[0], &[]), None, 0.0);
    check(Metric::TopK(3), &logits, &target(&[1], &[]), None, 1.0);
}

#[test]
fn divergences_are_from_the_reference_and_in_nats() {
    let nothing = target(&[], &[]);
    let even = [0.0f32, 0.0];
    let quarter = [1.0f32.ln(), 3.0f32.ln()];
    // KL(1/2, 1/2 || 1/4, 3/4) = ln 2 - ln 3 / 2; the other way round it would be 3/4 ln 3 - ln 2.
    check(
        Metric::Kl,
        &quarter,
        &nothing,
        Some(&even),
        2f64.ln() - 0.5 * 3f64.ln(),
    );
    check(Metric::Kl, &even, &nothing, Some(&even), 0.0);
    check(Metric::Js, &even, &nothing, Some(&even), 0.0);
    check(
        Metric::Js,
        &[200.0, -200.0],
        &nothing,
        Some(&[-200.0, 200.0]),
        std::f64::consts::LN_2,
    );
    let (there, back) = (
        Metric::Js.value(&even, &nothing, Some(&quarter)).unwrap(),
        Metric::Js.value(&quarter, &nothing, Some(&even)).unwrap(),
    );
    assert!((there - back).abs() < 1e-12 && there > 0.01);
}

#[test]
fn what_has_no_value_is_an_error() {
    let one = target(&[0], &[1]);
    for (metric, logits, target, reference) in [
        (Metric::LogitDiff, vec![1.0f32], &one, None),
        (Metric::LogitDiff, vec![1.0], &target(&[0], &[]), None),
        (Metric::Prob, vec![1.0, 2.0], &target(&[], &[1]), None),
        (Metric::Prob, vec![1.0, 2.0], &target(&[2], &[]), None),
        (Metric::Prob, vec![1.0, f32::NAN], &one, None),
        (Metric::Rank, vec![1.0, f32::INFINITY], &one, None),
        (Metric::Kl, vec![1.0, 2.0], &one, None),
        (Metric::Kl, vec![1.0, 2.0], &one, Some(vec![1.0f32])),
        (Metric::Js, vec![1.0, 2.0], &one, Some(vec![1.0, f32::NAN])),
    ] {
        let result = metric.value(&logits, target, reference.as_deref());
        assert!(
            matches!(result, Err(Error::BadMetric { .. })),
            "{metric}: {result:?}"
        );
    }
}

#[test]
fn a_metric_that_reads_answers_needs_no_vocabulary() {
    for metric in ALL {
        assert_eq!(
            metric.reads() == Reads::Answers,
            matches!(metric, Metric::LogitDiff | Metric::Accuracy)
        );
        assert!(!(metric.needs_reference() && metric.needs_wrong()));
        assert!(!metric.unit().is_empty());
    }
}

#[test]
fn gradients_agree_with_central_differences() {
    let logits = [0.3f32, -1.0, 2.0, 0.7];
    let reference = [1.0f32, 0.0, 0.5, -0.5];
    let pair = target(&[3, 0], &[2]);
    for metric in [
        Metric::ProbDiff,
        Metric::LogProb,
        Metric::Prob,
        Metric::Kl,
        Metric::Js,
    ] {
        let at = |logits: &[f32]| metric.value(logits, &pair, Some(&reference)).unwrap();
        let slope = metric.gradient(&logits, &pair, Some(&reference)).unwrap();
        for (i, slope) in slope.into_iter().enumerate() {
            let moved = |by: f32| {
                let mut logits = logits;
                logits[i] += by;
                (at(&logits), f64::from(logits[i]))
            };
            let (up, down) = (moved(0.01), moved(-0.01));
            let difference = (up.0 - down.0) / (up.1 - down.1);
            assert!(
                (slope - difference).abs() < 2e-5,
                "{metric} {i}: {slope} {difference}"
            );
        }
    }
    let several = target(&[7, 3], &[5]);
    let slope = Metric::LogitDiff
        .gradient(&[4.0, 2.0, 1.0], &several, None)
        .unwrap();
    assert_eq!(slope, [0.5, 0.5, -1.0]);
    assert!(matches!(
        Metric::Rank.gradient(&logits, &pair, None),
        Err(Error::NoGradient { .. })
    ));
}

#[test]
fn a_whole_answer_has_the_sum_of_its_log_probabilities() {
    let whole = Target {
        then: vec![0, 2],
        ..target(&[3], &[])
    };
    let (first, second) = (eighths(), [1.0f32.ln(), 0.0, 3.0f32.ln(), 3.0f32.ln()]);
    let rows: [&[f32]; 3] = [&first, &second, &first];
    // 1/2, then 1/8, then 1/4.
    let value = |metric: Metric| metric.value_whole(&rows, &whole, None).unwrap();
    assert!((value(Metric::LogProb) + 6.0 * std::f64::consts::LN_2).abs() < 1e-6);
    assert!((value(Metric::Prob) - 1.0 / 64.0).abs() < 1e-7);
    assert_eq!(whole.positions(10), 7..10);
    let earlier = Target {
        after: 2,
        ..whole.clone()
    };
    assert_eq!(earlier.positions(10), 5..8);
    assert!(earlier.check_length(5).is_ok() && earlier.check_length(4).is_err());
    // The likeliest token is an answer at the first position alone.
    assert_eq!(whole.judge_whole(&rows).top1, Some(false));
    assert_eq!(target(&[3], &[]).judge_whole(&rows[..1]).top1, Some(true));
}

#[test]
fn an_answer_of_one_token_is_measured_as_ever() {
    let logits = eighths();
    let reference = [1.0f32, 0.0, 0.5, -0.5];
    let one = target(&[3], &[1]);
    for metric in ALL {
        let read: &[f32] = match metric.reads() {
            Reads::Answers => &logits[..2],
            Reads::Vocabulary => &logits,
        };
        let value = metric.value(read, &one, Some(&reference)).unwrap();
        let whole = metric.value_whole(&[read], &one, Some(&reference));
        assert_eq!(whole.unwrap(), value, "{metric}");
        if metric.differentiable() {
            let slope = metric.gradient(read, &one, Some(&reference)).unwrap();
            let whole = metric.gradient_whole(&[read], &one, Some(&reference));
            assert_eq!(whole.unwrap(), [slope], "{metric}");
        }
    }
}

#[test]
fn gradients_of_whole_answers_agree_with_central_differences() {
    let rows = [[0.3f32, -1.0, 2.0, 0.7], [1.2, 0.1, -0.4, 0.9]];
    let whole = Target {
        then: vec![1],
        ..target(&[2], &[])
    };
    for metric in [Metric::LogProb, Metric::Prob] {
        let at = |rows: &[[f32; 4]; 2]| {
            let rows: [&[f32]; 2] = [&rows[0], &rows[1]];
            metric.value_whole(&rows, &whole, None).unwrap()
        };
        let read: [&[f32]; 2] = [&rows[0], &rows[1]];
        let slopes = metric.gradient_whole(&read, &whole, None).unwrap();
        for (row, slopes) in slopes.iter().enumerate() {
            for (i, slope) in slopes.iter().enumerate() {
                let moved = |by: f32| {
                    let mut rows = rows;
                    rows[row][i] += by;
                    (at(&rows), f64::from(rows[row][i]))
                };
                let (up, down) = (moved(0.01), moved(-0.01));
                let difference = (up.0 - down.0) / (up.1 - down.1);
                assert!((slope - difference).abs() < 2e-5, "{metric} {row} {i}");
            }
        }
    }
}

#[test]
fn single_token_metrics_refuse_whole_answers() {
    let whole = Target {
        then: vec![1],
        ..target(&[2], &[0])
    };
    let rows: [&[f32]; 2] = [&[0.0; 4], &[0.0; 4]];
    for metric in ALL {
        let found = metric.value_whole(&rows, &whole, Some(&[0.0; 4]));
        assert_eq!(found.is_ok(), metric.takes_several_tokens(), "{metric}");
        if let Err(error) = found {
            assert!(error.to_string().contains("log_prob"), "{error}");
        }
        // One position is not enough for an answer of two tokens.
        assert!(
            metric
                .value_whole(&rows[..1], &whole, Some(&[0.0; 4]))
                .is_err()
        );
        assert!(metric.value(rows[0], &whole, Some(&[0.0; 4])).is_err());
    }
}
