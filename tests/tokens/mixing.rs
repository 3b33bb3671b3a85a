//! ALTI: shares of tokens through the layers.

use candlewick::hooks::{Hook, Kind, Ln};
use candlewick::methods::tokens::{TokenMethod, alti};
use candlewick::model::Model;
use candlewick::run::{Request, run};
use candlewick::spec::NormKind;

use crate::models::{Pairs, every_kind, two_kinds};
use crate::{config, flat, measure, near};

#[test]
fn alti_shares_are_causal_and_sum_to_one() {
    let pairs = Pairs::new();
    let length = Pairs::LENGTH;
    for model in every_kind() {
        for one in alti(&model, &pairs.clean).expect("runs") {
            let family = &model.spec.family;
            assert!(
                one.gap < 2e-5,
                "{family}: parts miss the output by {}",
                one.gap
            );
            assert_eq!(one.layers.len(), model.spec.n_layers);
            for matrix in one.layers.iter().chain([&one.rollout]) {
                for (i, row) in matrix.chunks_exact(length).enumerate() {
                    assert!((row.iter().sum::<f64>() - 1.0).abs() < 1e-12, "{family}");
                    assert!(row[i + 1..].iter().all(|&share| share == 0.0), "{family}");
                    assert!(row.iter().all(|&share| share >= 0.0), "{family}");
                }
            }
        }
    }
}

/// `C` of one layer and prompt, written out from captured activations.
fn plain_mixing(model: &Model, layer: usize, example: usize) -> Vec<f64> {
    let (pairs, spec) = (Pairs::new(), &model.spec);
    let mut kinds = vec![Kind::ResidPre, Kind::AttnOut, Kind::V, Kind::Pattern];
    let post = Kind::Scale(Ln::OnePost);
    if spec.has_post_norm() {
        kinds.push(post);
    }
    let hooks: Vec<Hook> = kinds.iter().map(|&kind| Hook::at(kind, layer)).collect();
    let request = Request {
        capture: &hooks,
        ..Request::default()
    };
    let cache = run(model, &pairs.clean, &request).expect("runs").cache;
    let of = |kind| {
        let t = cache.get(Hook::at(kind, layer)).expect("captured");
        flat(&t.get(example).expect("in the batch"))
    };
    let (x, out, v, pattern) = (of(kinds[0]), of(kinds[1]), of(kinds[2]), of(kinds[3]));
    let weights = &model.weights.blocks[layer];
    let w_o = flat(&weights.w_o);
    let (n, d, e) = (Pairs::LENGTH, spec.d_model, spec.d_head);
    let mut c = vec![0.0; n * n];
    for i in 0..n {
        let y: Vec<f64> = (0..d)
            .map(|at| f64::from(x[i * d + at] + out[i * d + at]))
            .collect();
        let size = |y: &[f64]| -> f64 { y.iter().map(|y| y.abs()).sum() };
        for j in 0..=i {
            let mut part = vec![0f64; d];
            for head in 0..spec.n_heads {
                let weight = f64::from(pattern[(head * n + i) * n + j]);
                let value = &v[(j * spec.n_kv_heads + head / spec.group()) * e..][..e];
                for (k, value) in value.iter().enumerate() {
                    for (at, part) in part.iter_mut().enumerate() {
                        let w = f64::from(w_o[(head * e + k) * d + at]);
                        *part += weight * f64::from(*value) * w;
                    }
                }
            }
            if let Some(norm) = &weights.ln1_post {
                let (w, scale) = (flat(&norm.w), f64::from(of(post)[i]));
                let mean = match spec.norm {
                    NormKind::Layer => part.iter().sum::<f64>() / d as f64,
                    NormKind::Rms => 0.0,
                };
                for (part, w) in part.iter_mut().zip(w) {
                    *part = (*part - mean) / scale * f64::from(w);
                }
            }
            let factor = f64::from(spec.residual_multiplier.unwrap_or(1.0));
            let rest: Vec<f64> = (0..d)
                .map(|at| {
                    let own = if i == j {
                        f64::from(x[i * d + at])
                    } else {
                        0.0
                    };
                    y[at] - factor * part[at] - own
                })
                .collect();
            c[i * n + j] = (size(&y) - size(&rest)).max(0.0);
        }
        let sum: f64 = c[i * n..(i + 1) * n].iter().sum();
        c[i * n..(i + 1) * n]
            .iter_mut()
            .for_each(|share| *share /= sum);
    }
    c
}

#[test]
fn alti_agrees_with_the_definition_written_out() {
    let pairs = Pairs::new();
    for model in every_kind() {
        let layer = model.spec.n_layers - 1;
        let all = alti(&model, &pairs.clean).expect("runs");
        let plain = plain_mixing(&model, layer, 1);
        near(&model.spec.family, &all[1].layers[layer], &plain, 1e-5);
    }
}

#[test]
fn alti_rollout_is_the_last_row_of_the_product() {
    let pairs = Pairs::new();
    for model in two_kinds() {
        let measured = measure(&model, &config(TokenMethod::AltiRollout));
        for (example, one) in alti(&model, &pairs.clean).expect("runs").iter().enumerate() {
            let n = Pairs::LENGTH;
            let mut row = vec![0.0; n];
            row[n - 1] = 1.0;
            for layer in one.layers.iter().rev() {
                row = (0..n)
                    .map(|j| (0..n).map(|i| row[i] * layer[i * n + j]).sum())
                    .collect();
            }
            near("rollout", &measured.examples[example].values, &row, 1e-12);
        }
    }
}
