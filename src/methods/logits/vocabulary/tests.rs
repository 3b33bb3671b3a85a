use super::*;
use crate::model::families::from_config;

/// The same from all logits, in f64.
fn plain(rows: &[Vec<f32>], looks: &[Look<'_>]) -> Vec<Distribution> {
    let lse = |row: &[f32]| row.iter().map(|&l| f64::from(l).exp()).sum::<f64>().ln();
    let streams = rows.len() / looks.len();
    let of = |(at, row): (usize, &Vec<f32>)| {
        let look = looks[at / streams];
        let reference = &rows[at - at % streams + streams - 1];
        let (own, other) = (lse(row), lse(reference));
        let logits: Vec<f32> = look.columns.iter().map(|&id| row[id as usize]).collect();
        let level = best(&logits[..look.watched]);
        let (mut entropy, mut kl) = (0.0, 0.0);
        for (&l, &r) in row.iter().zip(reference) {
            let (log_p, log_r) = (f64::from(l) - own, f64::from(r) - other);
            entropy -= log_p.exp() * log_p;
            kl += log_r.exp() * (log_r - log_p);
        }
        Distribution {
            lse: own,
            entropy,
            kl,
            above: row.iter().filter(|&&l| l > level).count(),
            logits,
        }
    };
    rows.iter().enumerate().map(of).collect()
}

fn best(logits: &[f32]) -> f32 {
    logits.iter().copied().fold(f32::NEG_INFINITY, f32::max)
}

#[test]
fn tiles_say_what_whole_distributions_do() {
    let config = include_str!("../../../../models/embedded/config.json");
    let mut spec = from_config(config).expect("the embedded model").spec;
    // A vocabulary that no tile divides, and all that can follow the product.
    spec.d_vocab = 2 * TILE + 37;
    spec.tied = false;
    for (scale, cap) in [(None, None), (Some(3.0), None), (None, Some(4.0))] {
        (spec.logit_scale, spec.final_softcap) = (scale, cap);
        let mut model = Model::random(spec.clone(), 5).expect("the spec is whole");
        let device = &model.device;
        model.weights.b_u = Tensor::randn(0f32, 1.0, spec.d_vocab, device).ok();
        let (places, streams) = (5, 3);
        let shape = (places * streams, spec.d_model);
        let x = Tensor::randn(0f32, 2.0, shape, device).expect("a tensor");
        let x = normed(&model, &x).expect("normed");
        let columns: Vec<[u32; 2]> = (0..places as u32).map(|i| [i * 211 + 3, 700 + i]).collect();
        let looks: Vec<Look<'_>> = (columns.iter().enumerate())
            .map(|(i, columns)| Look {
                columns,
                watched: 1 + i % 2,
                is_end: i % 2 == 1,
            })
            .collect();
        let logits = unembed(&spec, &model.weights, &x).expect("logits");
        let logits: Vec<Vec<f32>> = logits.to_vec2().expect("rows");
        let wanted = plain(&logits, &looks);
        let mut sums = Sums::default();
        let found = read(&model, &x, streams, &looks, best, Some(&mut sums)).expect("read");
        for (row, (found, wanted)) in found.iter().zip(&wanted).enumerate() {
            let near = |a: f64, b: f64| {
                assert!(
                    (a - b).abs() < 3e-6 * b.abs().max(1.0),
                    "{row}: {a} against {b}"
                );
            };
            near(found.lse, wanted.lse);
            near(found.entropy, wanted.entropy);
            near(found.kl, wanted.kl);
            assert_eq!(found.above, wanted.above, "{row}");
            if row % streams == streams - 1 {
                assert_eq!(found.kl, 0.0);
            }
        }
        for (at, sum) in sums.0.iter().enumerate() {
            let (stream, token) = (at / spec.d_vocab, at % spec.d_vocab);
            let rows = [1, 3].map(|place| place * streams + stream);
            let wanted: f64 = rows
                .map(|row| wanted[row].prob(logits[row][token]))
                .iter()
                .sum();
            assert!((sum - wanted).abs() < 1e-6, "{at}: {sum} against {wanted}");
        }
        // What other devices do.
        let work = Work {
            streams,
            looks: &looks,
            levels: found
                .iter()
                .enumerate()
                .map(|(row, one)| best(&one.logits[..looks[row / streams].watched]))
                .collect(),
            adds: true,
        };
        let (tiles, whole) = (
            tiles(&model, &x, &work).unwrap(),
            whole(&model, &x, &work).unwrap(),
        );
        for row in 0..found.len() {
            let [a, b] = [&tiles, &whole].map(|tiles| together(tiles, row));
            assert!((a.0 + a.1.ln() - b.0 - b.1.ln()).abs() < 3e-6);
        }
    }
}

#[test]
fn stretches_are_bounded_by_rows_and_by_what_is_kept() {
    let is_end = |place: usize| place % 10 == 9;
    let ends: Vec<bool> = (0..100).map(is_end).collect();
    let parts = stretches(&ends, 100, 1000);
    assert_eq!(parts[0], 0..7);
    assert_eq!(parts.iter().map(Range::len).sum::<usize>(), 100);
    // Two ends of 32 MB do not go together, whatever else does.
    let parts = stretches(&ends, 1, ENDS_BYTES / 4);
    assert_eq!(parts[..2], [0..19, 19..29]);
}
