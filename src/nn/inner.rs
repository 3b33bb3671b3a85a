//! Inner products of long rows with each other: the edges between what is written and what is read.
//!
//! A general product packs its sides into panels first. Where few long rows meet many, that copies each number for as little as a few
//! dozen multiplications, and costs as much as these; here rows are read where they lie, and tiles of sums stay in registers.

use pulp::{Arch, Simd, WithSimd};
use rayon::prelude::*;

/// Rows of one length inside a slice.
#[derive(Debug, Clone, Copy)]
pub struct RowsOf<'a> {
    pub data: &'a [f32],
    pub start: usize,
    /// How far apart rows begin.
    pub apart: usize,
    pub count: usize,
}

impl<'a> RowsOf<'a> {
    pub fn new(data: &'a [f32], start: usize, apart: usize, count: usize) -> Self {
        RowsOf {
            data,
            start,
            apart,
            count,
        }
    }

    #[inline(always)]
    fn row(&self, i: usize, from: usize, length: usize) -> &'a [f32] {
        &self.data[self.start + i * self.apart + from..][..length]
    }
}

/// Adds `<a_i, b_j>` to `y[i, j]`, on all threads of the current rayon pool.
/// # Shapes
/// Rows of `length` numbers; `y [a.count, width]`, of which the first `b.count` columns are written.
pub fn inner_products(y: &mut [f32], width: usize, a: RowsOf<'_>, b: RowsOf<'_>, length: usize) {
    if a.count == 0 || b.count == 0 {
        return;
    }
    y[..(a.count - 1) * width + b.count]
        .par_chunks_mut(TASK * width)
        .enumerate()
        .for_each(|(task, y)| {
            let first = task * TASK;
            let a = RowsOf {
                start: a.start + first * a.apart,
                count: TASK.min(a.count - first),
                ..a
            };
            Arch::new().dispatch(Products {
                y,
                width,
                a,
                b,
                length,
            });
        });
}

/// Rows of `a` that one thread takes at a time.
const TASK: usize = 16;
/// Numbers of a row that are worked on at a time: those of a task's rows and of as many of `b` stay in the second-level cache.
const STRETCH: usize = 2048;
/// Rows on each side of a tile of sums that fits the registers.
const TILE: usize = 4;

struct Products<'a, 'y> {
    y: &'y mut [f32],
    width: usize,
    a: RowsOf<'a>,
    b: RowsOf<'a>,
    length: usize,
}

impl WithSimd for Products<'_, '_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let Products {
            y,
            width,
            a,
            b,
            length,
        } = self;
        for from in (0..length).step_by(STRETCH) {
            let n = STRETCH.min(length - from);
            for i in (0..a.count).step_by(TILE) {
                let high = TILE.min(a.count - i);
                for j in (0..b.count).step_by(TILE) {
                    let wide = TILE.min(b.count - j);
                    if high == TILE && wide == TILE {
                        let (mut of_a, mut of_b) = ([&[][..]; TILE], [&[][..]; TILE]);
                        for k in 0..TILE {
                            of_a[k] = a.row(i + k, from, n);
                            of_b[k] = b.row(j + k, from, n);
                        }
                        let sums = tile::<S, TILE, TILE>(simd, of_a, of_b);
                        for (k, sums) in sums.iter().enumerate() {
                            let y = &mut y[(i + k) * width + j..][..TILE];
                            y.iter_mut().zip(sums).for_each(|(y, sum)| *y += sum);
                        }
                        continue;
                    }
                    for i in i..i + high {
                        for j in j..j + wide {
                            let sums =
                                tile::<S, 1, 1>(simd, [a.row(i, from, n)], [b.row(j, from, n)]);
                            y[i * width + j] += sums[0][0];
                        }
                    }
                }
            }
        }
    }
}

#[inline(always)]
fn tile<S: Simd, const A: usize, const B: usize>(
    simd: S,
    a: [&[f32]; A],
    b: [&[f32]; B],
) -> [[f32; B]; A] {
    let (wide_a, rest_a): ([&[S::f32s]; A], [&[f32]; A]) = split::<S, A>(a);
    let (wide_b, rest_b): ([&[S::f32s]; B], [&[f32]; B]) = split::<S, B>(b);
    let zero = simd.splat_f32s(0.0);
    let mut sums = [[zero; B]; A];
    let n = wide_a[0].len();
    for wide in wide_a.iter().chain(&wide_b) {
        assert_eq!(wide.len(), n, "rows of one length");
    }
    for at in 0..n {
        let mut of_b = [zero; B];
        for j in 0..B {
            of_b[j] = wide_b[j][at];
        }
        for i in 0..A {
            let of_a = wide_a[i][at];
            for j in 0..B {
                sums[i][j] = simd.mul_add_e_f32s(of_a, of_b[j], sums[i][j]);
            }
        }
    }
    let mut y = [[0.0; B]; A];
    for i in 0..A {
        for j in 0..B {
            let rest = rest_a[i].iter().zip(rest_b[j]);
            y[i][j] = simd.reduce_sum_f32s(sums[i][j]);
            for (x, z) in rest {
                y[i][j] += x * z;
            }
        }
    }
    y
}

/// Whole vectors, and the numbers after them.
#[inline(always)]
fn split<S: Simd, const N: usize>(rows: [&[f32]; N]) -> ([&[S::f32s]; N], [&[f32]; N]) {
    let (mut wide, mut rest): ([&[S::f32s]; N], [&[f32]; N]) = ([&[]; N], [&[]; N]);
    for i in 0..N {
        (wide[i], rest[i]) = S::as_simd_f32s(rows[i]);
    }
    (wide, rest)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_row_meets_every_row() {
        for (n, m, length, apart) in [
            (1, 1, 1, 1),
            (5, 7, 37, 40),
            (33, 28, 4099, 4100),
            (16, 4, 64, 64),
            (3, 9, 0, 8),
        ] {
            let number = |i: usize| ((i * 7919) % 1013) as f32 / 500.0 - 1.0;
            let a: Vec<f32> = (0..n * apart + 3).map(number).collect();
            let b: Vec<f32> = (0..m * apart).map(|i| number(i + 5)).collect();
            let rows = |data, start, count| RowsOf::new(data, start, apart, count);
            let width = m + 2;
            let mut y = vec![0.5; n * width];
            inner_products(&mut y, width, rows(&a, 3, n), rows(&b, 0, m), length);
            for i in 0..n {
                for j in 0..width {
                    let (x, z) = (&a[3 + i * apart..], b.get(j * apart..));
                    let z = z.filter(|_| j < m).unwrap_or(&[]);
                    let products = x.iter().zip(z).take(length);
                    let sum: f64 = products.map(|(x, z)| f64::from(*x) * f64::from(*z)).sum();
                    let found = f64::from(y[i * width + j]) - 0.5;
                    assert!(
                        (found - sum).abs() < 1e-5 * (length as f64).max(1.0).sqrt() * 4.0,
                        "{found} {sum}"
                    );
                }
            }
        }
    }
}
