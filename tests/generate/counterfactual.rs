//! Counterfactual strings come out of the noise that made their originals.

use candlewick::Result;
use candlewick::hooks::Edit;
use candlewick::model::Model;
use candlewick::run::{
    Counterfactual, GenerateRequest, Quiet, Request, Sampling, counterfactuals, logits, run,
};

use crate::models::{Pairs, VOCAB, every_kind, two_kinds};
use crate::{TOKENS, edits};

/// Draws from the whole distribution.
fn drawn(temperature: f64) -> Sampling {
    Sampling::Temperature {
        temperature,
        top_k: None,
        top_p: None,
    }
}

fn counterfactual(
    model: &Model,
    prompts: &[Vec<u32>],
    originals: &[Vec<u32>],
    edits: &[Edit],
    temperature: f64,
    noise_seed: u64,
) -> Result<Counterfactual> {
    let request = GenerateRequest {
        edits,
        max_tokens: TOKENS,
        sampling: drawn(temperature),
        stop: &[3],
        seed: 5,
        ..GenerateRequest::default()
    };
    counterfactuals(model, prompts, originals, &request, noise_seed, &Quiet)
}

#[test]
fn without_a_change_a_text_is_its_own_counterfactual() {
    let prompts = Pairs::new().corrupted;
    for model in every_kind() {
        for temperature in [0.5, 1.0, 2.0] {
            for list in [vec![], edits(&["z0 *= 1", "resid_pre1 += 0"])] {
                let both = counterfactual(&model, &prompts, &[], &list, temperature, 9);
                let both = both.expect("draws");
                assert_eq!(
                    both.original.tokens, both.counterfactual.tokens,
                    "{} at {temperature}",
                    model.spec.family
                );
                assert_eq!(both.original.log_probs, both.counterfactual.log_probs);
            }
        }
        // Texts that the model would hardly write come back too, each as long as it was.
        let given = [vec![1, 2, 4], vec![9], vec![5, 5, 5, 5, 5, 5, 5]];
        let both = counterfactual(&model, &prompts, &given, &[], 1.0, 9).expect("finds noise");
        assert_eq!(both.original.tokens, given);
        assert_eq!(both.counterfactual.tokens, given);
    }
}

#[test]
fn a_text_has_many_counterfactuals_and_its_noise_one() {
    let prompts = Pairs::new().corrupted;
    for model in two_kinds() {
        let list = edits(&["resid_post0 *= -1"]);
        let of = |seed| counterfactual(&model, &prompts, &[], &list, 1.0, seed).expect("draws");
        let (one, again, other) = (of(1), of(1), of(2));
        assert_eq!(one.original.tokens, other.original.tokens);
        assert_ne!(one.original.tokens, one.counterfactual.tokens);
        assert_eq!(one.counterfactual.tokens, again.counterfactual.tokens);
        assert_ne!(one.counterfactual.tokens, other.counterfactual.tokens);
        // The noise is that of a prompt, whatever stands beside it.
        let alone = counterfactual(&model, &prompts[..1], &[], &list, 1.0, 1).expect("draws");
        assert_eq!(alone.counterfactual.tokens[0], one.counterfactual.tokens[0]);
    }
}

#[test]
fn counterfactuals_of_drawn_texts_are_draws_of_the_edited_model() {
    /// Copies of one prompt.
    const COPIES: usize = 1200;
    let prompt = Pairs::new().corrupted[0].clone();
    let model = two_kinds().remove(0);
    let list = edits(&["resid_post1 *= 0.3"]);
    for temperature in [1.0, 0.6] {
        let request = GenerateRequest {
            edits: &list,
            max_tokens: 1,
            sampling: drawn(temperature),
            ..GenerateRequest::default()
        };
        let prompts = vec![prompt.clone(); COPIES];
        let both = counterfactuals(&model, &prompts, &[], &request, 3, &Quiet).expect("draws");
        let whole = Request {
            edits: &list,
            ..Request::default()
        };
        let edited = run(&model, std::slice::from_ref(&prompt), &whole);
        let edited = edited.expect("runs").logits;
        let plain = logits(&model, std::slice::from_ref(&prompt)).expect("runs");
        let mut shares: Vec<Vec<f64>> = Vec::new();
        let laws = [
            (&both.original, plain),
            (&both.counterfactual, edited.expect("asked for")),
        ];
        for (generation, logits) in &laws {
            let logits = &logits.to_vec2::<f32>().expect("one row")[0];
            let weights = logits.iter().map(|&x| (f64::from(x) / temperature).exp());
            let weights: Vec<f64> = weights.collect();
            let sum: f64 = weights.iter().sum();
            let mut counts = vec![0.0; weights.len()];
            for tokens in &generation.tokens {
                counts[tokens[0] as usize] += 1.0;
            }
            for (count, weight) in counts.iter().zip(&weights) {
                let share = weight / sum;
                // Four and a half standard deviations of a count.
                let noise = 4.5 * (share * (1.0 - share) / COPIES as f64).sqrt() + 1e-9;
                assert!(
                    (count / COPIES as f64 - share).abs() < noise,
                    "{count} for {share}"
                );
            }
            shares.push(weights.iter().map(|weight| weight / sum).collect());
        }
        // One noise chooses token i under p and under q with probability 1 / sum_j max(p_j / p_i, q_j / q_i).
        let of_both = |i: usize| {
            let larger = (0..VOCAB).map(|j| {
                let ratios = shares.iter().map(|share| share[j] / share[i]);
                ratios.fold(0.0, f64::max)
            });
            1.0 / larger.sum::<f64>()
        };
        let expected: f64 = (0..VOCAB).map(of_both).sum();
        let pairs = both.original.tokens.iter().zip(&both.counterfactual.tokens);
        let same = pairs.filter(|(a, b)| a == b).count() as f64 / COPIES as f64;
        let noise = 4.0 * (expected * (1.0 - expected) / COPIES as f64).sqrt();
        assert!((same - expected).abs() < noise, "{same} for {expected}");
    }
}

#[test]
fn what_has_no_noise_in_common_is_refused() {
    let prompts = Pairs::new().corrupted;
    let model = two_kinds().remove(0);
    let says = |originals: &[Vec<u32>], what: &str| {
        let error = counterfactual(&model, &prompts, originals, &[], 1.0, 1).expect_err(what);
        assert!(error.to_string().contains(what), "{error}");
    };
    says(&[vec![1]], "1 original continuations for 3 prompts");
    says(&[vec![1], vec![], vec![1]], "prompt 1 has 0 tokens");
    says(&[vec![1], vec![1], vec![1; 8]], "1 to 7 are taken");
    says(&[vec![1], vec![1], vec![999]], "token");
    for sampling in [
        Sampling::Greedy,
        Sampling::Temperature {
            temperature: 1.0,
            top_k: Some(4),
            top_p: None,
        },
    ] {
        let request = GenerateRequest {
            max_tokens: 2,
            sampling,
            ..GenerateRequest::default()
        };
        let error = counterfactuals(&model, &prompts, &[], &request, 1, &Quiet);
        let error = error
            .expect_err("it draws nothing, or cuts off")
            .to_string();
        assert!(error.contains("noise in common"), "{error}");
    }
}
