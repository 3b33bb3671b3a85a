//! Rotary position embeddings: full or partial, half or interleaved, with the scalings of Llama 3 and others.

use candle_core::{D, DType, Device, Tensor};
use rayon::prelude::*;

use super::frequencies::Frequencies;
use super::host::{host, is_host, simd, tensor};
use crate::error::Result;
use crate::spec::{ModelSpec, Position, Rotary, RotaryBase, RotaryStyle};

/// Cosines and sines of the positions of one run, for one base.
#[derive(Debug, Clone)]
pub struct Table {
    /// Pairs that rotate: half of the rotary dimensions.
    pairs: usize,
    style: RotaryStyle,
    /// `[positions, pairs]`
    cos: Vec<f32>,
    sin: Vec<f32>,
}

/// The tables that a model's layers use, for positions `0..length`.
#[derive(Debug, Clone, Default)]
pub struct Tables {
    of_layer: Vec<Option<usize>>,
    tables: Vec<Table>,
}

impl Tables {
    /// For runs of texts of `length` tokens.
    pub fn new(spec: &ModelSpec, length: usize) -> Self {
        Self::with_room(spec, length, length)
    }

    /// For a text of `length` tokens, by whose length some scalings turn, with room for the positions before `reach`.
    pub fn with_room(spec: &ModelSpec, length: usize, reach: usize) -> Self {
        match &spec.position {
            Position::Rotary(rotary) => Tables {
                of_layer: rotary.base_of_layer.clone(),
                tables: rotary
                    .bases
                    .iter()
                    .map(|base| Table::new(rotary, base, length, reach))
                    .collect(),
            },
            _ => Tables::default(),
        }
    }

    /// Whether texts of two lengths turn alike: they do not under dynamic scaling beyond the trained length, nor across the length at
    /// which longrope takes other factors.
    pub fn are_alike(spec: &ModelSpec, one: usize, other: usize) -> bool {
        let Position::Rotary(rotary) = &spec.position else {
            return true;
        };
        let of = |base: &RotaryBase, length: usize| Frequencies::new(rotary.dims, base, length);
        let mut bases = rotary.bases.iter();
        bases.all(|base| of(base, one) == of(base, other))
    }

    /// The table of a layer, or `None` where its positions do not rotate.
    pub fn of(&self, layer: usize) -> Option<&Table> {
        let base = self.of_layer.get(layer).copied().flatten()?;
        Some(&self.tables[base])
    }
}

impl Table {
    fn new(rotary: &Rotary, base: &RotaryBase, length: usize, reach: usize) -> Self {
        let Frequencies {
            inverse: frequencies,
            attention_factor: factor,
        } = Frequencies::new(rotary.dims, base, length);
        // Angles are formed in f32, as the reference implementations do.
        let angle = |pos: usize, frequency: f32| pos as f32 * frequency;
        let each = |f: fn(f32) -> f32| -> Vec<f32> {
            let of_position = |pos| {
                frequencies
                    .iter()
                    .map(move |&freq| f(angle(pos, freq)) * factor)
            };
            (0..reach).flat_map(of_position).collect()
        };
        Table {
            pairs: frequencies.len(),
            style: rotary.style,
            cos: each(f32::cos),
            sin: each(f32::sin),
        }
    }

    /// The two indices inside a head that pair `i` rotates.
    fn pair(&self, i: usize) -> (usize, usize) {
        match self.style {
            RotaryStyle::Half => (i, i + self.pairs),
            RotaryStyle::Interleaved => (2 * i, 2 * i + 1),
        }
    }
}

/// Rotates the first dimensions of each head by the position of its token.
/// # Shapes
/// `x [tokens, heads, d_head]`, `positions [tokens]`; gives the shape of `x`.
pub fn forward(x: &Tensor, positions: &[u32], table: &Table) -> Result<Tensor> {
    turn(x, positions, table, 1.0)
}

/// The gradient at the input of [`forward`]: a rotation the other way.
pub fn backward(dy: &Tensor, positions: &[u32], table: &Table) -> Result<Tensor> {
    turn(dy, positions, table, -1.0)
}

/// Rotates by the positions' angles times `sense`, which is 1 or -1.
fn turn(x: &Tensor, positions: &[u32], table: &Table, sense: f32) -> Result<Tensor> {
    let (_, heads, d_head) = x.dims3()?;
    if !is_host(x) {
        return composed(x, positions, table, sense);
    }
    let x = x.contiguous()?;
    let data = host(&x)?;
    let mut out = vec![0.0; data.len()];
    let width = heads * d_head;
    const ROWS: usize = 32;
    let blocks = out
        .par_chunks_mut(ROWS * width)
        .zip(data.par_chunks(ROWS * width))
        .zip(positions.par_chunks(ROWS));
    blocks.for_each(|((out, x), positions)| {
        simd(
            #[inline(always)]
            || {
                for (i, &pos) in positions.iter().enumerate() {
                    let at = pos as usize * table.pairs;
                    let (cos, sin) = (
                        &table.cos[at..at + table.pairs],
                        &table.sin[at..at + table.pairs],
                    );
                    let row = i * width..(i + 1) * width;
                    for (out, x) in out[row.clone()]
                        .chunks_exact_mut(d_head)
                        .zip(x[row].chunks_exact(d_head))
                    {
                        rotate(out, x, cos, sin, table.style, sense);
                    }
                }
            },
        )
    });
    tensor(out, x.shape())
}

#[inline(always)]
fn rotate(out: &mut [f32], x: &[f32], cos: &[f32], sin: &[f32], style: RotaryStyle, sense: f32) {
    let pairs = cos.len();
    match style {
        RotaryStyle::Half => {
            let (first, rest) = x.split_at(pairs);
            let (out_first, out_rest) = out.split_at_mut(pairs);
            for i in 0..pairs {
                let sin = sense * sin[i];
                out_first[i] = first[i] * cos[i] - rest[i] * sin;
                out_rest[i] = rest[i] * cos[i] + first[i] * sin;
            }
            out_rest[pairs..].copy_from_slice(&rest[pairs..]);
        }
        RotaryStyle::Interleaved => {
            for i in 0..pairs {
                let (a, b) = (x[2 * i], x[2 * i + 1]);
                let sin = sense * sin[i];
                out[2 * i] = a * cos[i] - b * sin;
                out[2 * i + 1] = b * cos[i] + a * sin;
            }
            out[2 * pairs..].copy_from_slice(&x[2 * pairs..]);
        }
    }
}

/// The same in tensor operations, for any device: `x cos + (x with the pairs swapped) sin`.
fn composed(x: &Tensor, positions: &[u32], table: &Table, sense: f32) -> Result<Tensor> {
    let d_head = x.dim(D::Minus1)?;
    let mut swap: Vec<u32> = (0..d_head as u32).collect();
    let (mut cos, mut sin) = (
        vec![1f32; positions.len() * d_head],
        vec![0f32; positions.len() * d_head],
    );
    for i in 0..table.pairs {
        let (a, b) = table.pair(i);
        (swap[a], swap[b]) = (b as u32, a as u32);
        for (row, &pos) in positions.iter().enumerate() {
            let (c, s) = (
                table.cos[pos as usize * table.pairs + i],
                sense * table.sin[pos as usize * table.pairs + i],
            );
            (cos[row * d_head + a], cos[row * d_head + b]) = (c, c);
            (sin[row * d_head + a], sin[row * d_head + b]) = (-s, s);
        }
    }
    let place = |data: Vec<f32>| -> Result<Tensor> {
        Ok(
            Tensor::from_vec(data, (positions.len(), 1, d_head), &Device::Cpu)?
                .to_device(x.device())?,
        )
    };
    let swapped = x
        .index_select(&Tensor::new(swap, x.device())?, D::Minus1)?
        .to_dtype(DType::F32)?;
    let wide = x.to_dtype(DType::F32)?;
    let y = (wide.broadcast_mul(&place(cos)?)? + swapped.broadcast_mul(&place(sin)?)?)?;
    Ok(y.to_dtype(x.dtype())?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spec::RopeScaling;

    fn table(dims: usize, style: RotaryStyle) -> Table {
        let base = RotaryBase {
            theta: 100.0,
            scaling: RopeScaling::None,
        };
        let rotary = Rotary {
            dims,
            style,
            base_of_layer: vec![Some(0)],
            bases: vec![base.clone()],
        };
        Table::new(&rotary, &base, 8, 8)
    }

    #[test]
    fn the_fast_form_agrees_with_tensor_operations() {
        let x = tensor(
            (0..5 * 2 * 6).map(|i| (i as f32 * 0.37).sin()).collect(),
            (5, 2, 6),
        )
        .expect("shape");
        let positions = [0, 3, 1, 7, 2];
        for (dims, style) in [
            (6, RotaryStyle::Half),
            (4, RotaryStyle::Half),
            (4, RotaryStyle::Interleaved),
        ] {
            let table = table(dims, style);
            let fast = forward(&x, &positions, &table).expect("runs");
            let slow = composed(&x, &positions, &table, 1.0).expect("runs");
            let gap = (fast - slow)
                .expect("same shape")
                .abs()
                .expect("abs")
                .max_all()
                .expect("max")
                .to_scalar::<f32>();
            assert!(gap.expect("scalar") < 1e-6);
            let back = backward(
                &forward(&x, &positions, &table).expect("runs"),
                &positions,
                &table,
            );
            let gap = (back.expect("runs") - &x)
                .expect("same shape")
                .abs()
                .expect("abs")
                .max_all()
                .expect("max")
                .to_scalar::<f32>();
            assert!(gap.expect("scalar") < 1e-6, "a rotation and back");
        }
    }

    #[test]
    fn position_zero_stays_and_the_length_is_kept() {
        let x = tensor(vec![3.0, 4.0, 0.0, 0.0], (2, 1, 2)).expect("shape");
        let y = forward(&x, &[0, 1], &table(2, RotaryStyle::Half))
            .expect("runs")
            .flatten_all()
            .expect("flat");
        let y = y.to_vec1::<f32>().expect("reads");
        assert_eq!(&y[..2], &[3.0, 4.0]);
        let turned = forward(
            &tensor(vec![3.0, 4.0], (1, 1, 2)).expect("shape"),
            &[1],
            &table(2, RotaryStyle::Half),
        );
        let turned = turned
            .expect("runs")
            .flatten_all()
            .expect("flat")
            .to_vec1::<f32>()
            .expect("reads");
        assert!((turned[0] - (3.0 * 1f32.cos() - 4.0 * 1f32.sin())).abs() < 1e-6);
        assert!((turned[0].hypot(turned[1]) - 5.0).abs() < 1e-5);
    }
}
