use super::*;
use crate::spec::Alibi;

fn noise(shape: (usize, usize, usize), seed: f32) -> Tensor {
    let n = shape.0 * shape.1 * shape.2;
    tensor(
        (0..n)
            .map(|i| (i as f32 * 12.9898 + seed).sin() * 1.5)
            .collect(),
        shape,
    )
    .expect("shape")
}

fn gap(a: &Tensor, b: &Tensor) -> f32 {
    let gap = (a - b)
        .expect("same shape")
        .abs()
        .expect("abs")
        .max_all()
        .expect("max");
    gap.to_scalar::<f32>().expect("scalar")
}

#[test]
fn the_fast_form_agrees_with_tensor_operations() {
    let length = 70;
    let everywhere: Vec<u32> = (0..length as u32).collect();
    let (some, tail) = (vec![3u32, 9, 40, 68], vec![9u32, 69]);
    let slopes = Slopes {
        alibi: Alibi { max_bias: 5.0 },
        n_heads: 9,
        first: 2,
    };
    for (window, softcap, key_heads, causal, alibi) in [
        (None, None, 2, true, None),
        (Some(5), Some(4.0), 2, true, None),
        (None, None, 6, true, Some(slopes)),
        (None, None, 2, false, None),
        (Some(5), None, 2, false, None),
    ] {
        let shape = Shape {
            n_heads: 6,
            key_heads,
            value_heads: 2,
            n_kv_heads: 2,
            d_head: 20,
            scale: 0.3,
            softcap,
            window,
            alibi,
            causal,
            length,
        };
        // One whole prompt; one variant with its own keys at four places and queries at two.
        let segments = [
            SegmentPlace {
                query_start: 0,
                query_positions: &everywhere,
                key_start: 0,
                key_positions: &everywhere,
                example: 0,
            },
            SegmentPlace {
                query_start: length,
                query_positions: &tail,
                key_start: length,
                key_positions: &some,
                example: 1,
            },
        ];
        let q = noise((length + 2, 6, 20), 0.1);
        let (k, v) = (
            noise((length + 4, key_heads, 20), 0.2),
            noise((length + 4, 2, 20), 0.3),
        );
        let (base_k, base_v) = (
            noise((2 * length, 2, 20), 0.4),
            noise((2 * length, 2, 20), 0.5),
        );
        let sources = KeysValues {
            k: &k,
            v: &v,
            base: Some((&base_k, &base_v)),
        };
        let fast = forward(&q, sources, &segments, &shape).expect("runs");
        let raw = composed_scores(&q, sources, &segments, &shape).expect("runs");
        let pattern = candle_nn::ops::softmax(&raw, D::Minus1).expect("runs");
        let slow = composed_mix(&pattern, sources, &segments, &shape).expect("runs");
        assert!(gap(&fast, &slow) < 1e-5, "{}", gap(&fast, &slow));
        let steps = softmax(&scores(&q, sources, &segments, &shape).expect("runs")).expect("runs");
        assert!(gap(&steps, &pattern) < 1e-6);
        let steps = mix(&steps, sources, &segments, &shape).expect("runs");
        assert!(gap(&steps, &slow) < 1e-5);
    }
}
