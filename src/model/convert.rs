//! From checkpoint tensors to one canonical tensor: decoded, checked, transposed and joined in parallel, one slot at a time,
//! so that besides the model only one tensor is ever held twice.

use candle_core::{DType, Device, Tensor, WithDType};
use half::{bf16, f16};
use rayon::prelude::*;

use super::checkpoint::Checkpoint;
use super::layout::{Piece, Stored, Take};
use crate::error::{Error, Result};

/// Rows and columns of the tiles in which a matrix is transposed: 4 KiB each way, which the first-level cache holds.
const TILE: usize = 32;
/// Entries that one thread decodes at a time.
const CHUNK: usize = 1 << 16;

/// Fills one slot of shape `shape` from its pieces, whose names are resolved and whose stored shapes were checked. `scratch` is for
/// tensors that are stored otherwise than they lie in the slot.
/// # Errors
/// [`Error::NotFinite`] naming the tensor; [`Error::WeightType`] for integer tensors and weights too large for f16.
pub fn fill_slot(
    checkpoint: &dyn Checkpoint,
    pieces: &[(String, &Piece)],
    shape: &[usize],
    dtype: DType,
    device: &Device,
    scratch: &mut Scratch,
) -> Result<Tensor> {
    let filled = match dtype {
        DType::BF16 => filled::<bf16>(checkpoint, pieces, shape, &mut scratch.bf16)?,
        DType::F16 => filled::<f16>(checkpoint, pieces, shape, &mut scratch.f16)?,
        other => filled::<f32>(checkpoint, pieces, shape, &mut scratch.f32)?.to_dtype(other)?,
    };
    Ok(filled.to_device(device)?)
}

/// Memory that is written again for each tensor, which costs less than memory that is new.
#[derive(Default)]
pub struct Scratch {
    f32: Vec<f32>,
    bf16: Vec<bf16>,
    f16: Vec<f16>,
}

/// A number format of weights in host memory.
trait Number: WithDType + Default {
    const LARGEST: f32;

    fn of(wide: f32) -> Self;

    /// Writes numbers that `decode` writes in f32. `wide` is for them.
    fn fill(
        out: &mut [Self],
        wide: &mut Vec<f32>,
        decode: impl FnOnce(&mut [f32]) -> Result<()>,
    ) -> Result<()> {
        wide.resize(out.len(), 0.0);
        decode(wide)?;
        for (out, wide) in out.iter_mut().zip(wide) {
            *out = Self::of(*wide);
        }
        Ok(())
    }
}

impl Number for f32 {
    const LARGEST: f32 = f32::MAX;

    fn of(wide: f32) -> Self {
        wide
    }

    fn fill(
        out: &mut [Self],
        _: &mut Vec<f32>,
        decode: impl FnOnce(&mut [f32]) -> Result<()>,
    ) -> Result<()> {
        decode(out)
    }
}

impl Number for bf16 {
    const LARGEST: f32 = f32::MAX;

    fn of(wide: f32) -> Self {
        bf16::from_f32(wide)
    }
}

impl Number for f16 {
    const LARGEST: f32 = 65504.0;

    fn of(wide: f32) -> Self {
        f16::from_f32(wide)
    }
}

fn filled<N: Number>(
    checkpoint: &dyn Checkpoint,
    pieces: &[(String, &Piece)],
    shape: &[usize],
    scratch: &mut Vec<N>,
) -> Result<Tensor> {
    let (rows, columns) = match *shape {
        [rows, columns] => (rows, columns),
        _ => (1, shape.iter().product()),
    };
    let mut values = vec![N::default(); rows * columns];
    let mut column = 0;
    for (name, piece) in pieces {
        let stored_len = piece.take.stored_len(piece.out);
        let is_in_order = match piece.stored {
            Stored::AsIs | Stored::HeadRows { .. } | Stored::Nowhere => true,
            Stored::HeadColumns { .. } => rows == 1,
            Stored::OutIn => false,
        };
        if piece.stored == Stored::Nowhere {
            values.fill(N::of(piece.plus));
        } else if is_in_order && piece.take == Take::All && piece.out == columns {
            decode(checkpoint, name, columns, piece, &mut values)?;
        } else {
            scratch.resize(scratch.len().max(rows * stored_len), N::default());
            let stored = &mut scratch[..rows * stored_len];
            let inner = match piece.stored {
                Stored::OutIn => rows,
                Stored::HeadColumns { d_head } => d_head,
                Stored::AsIs | Stored::HeadRows { .. } | Stored::Nowhere => stored_len,
            };
            decode(checkpoint, name, inner, piece, stored)?;
            place(stored, piece, rows, columns, column, &mut values);
        }
        column += piece.out;
    }
    Ok(Tensor::from_vec(values, shape, &Device::Cpu)?)
}

/// Decodes a tensor whose innermost axis is `inner`, from the first row that its piece does not skip to its end, and refuses NaN and
/// infinities.
fn decode<N: Number>(
    checkpoint: &dyn Checkpoint,
    name: &str,
    inner: usize,
    piece: &Piece,
    out: &mut [N],
) -> Result<()> {
    let chunk = inner * (CHUNK / inner).max(1);
    out.par_chunks_mut(chunk)
        .enumerate()
        .try_for_each_init(Vec::new, |wide, (index, out)| {
            N::fill(out, wide, |wide| {
                checkpoint.decode(name, piece.skip * inner + index * chunk, wide)?;
                // NaN and infinities have all exponent bits set; an integer maximum vectorises where a search does not.
                let largest = wide
                    .iter()
                    .fold(0, |largest, x| largest.max(x.abs().to_bits()));
                if largest >= f32::INFINITY.to_bits() {
                    return Err(Error::NotFinite {
                        name: name.to_string(),
                    });
                }
                add(wide, piece.plus);
                match f32::from_bits(largest) + piece.plus.abs() {
                    most if most <= N::LARGEST => Ok(()),
                    most => Err(Error::WeightType {
                        name: name.to_string(),
                        found: format!("a weight of {most:e}"),
                        known: "f16 up to 65504 (use `LoadOptions::dtype = f32` or `bf16`)"
                            .to_string(),
                    }),
                }
            })
        })
}

/// Writes a decoded piece into columns `column..column + piece.out` of the slot's matrix `[rows, columns]`.
fn place<N: Number>(
    stored: &[N],
    piece: &Piece,
    rows: usize,
    columns: usize,
    column: usize,
    values: &mut [N],
) {
    let stored_out = piece.take.stored_len(piece.out);
    let row_stride = match piece.stored {
        Stored::OutIn => 1,
        Stored::HeadColumns { d_head } => d_head,
        Stored::AsIs | Stored::HeadRows { .. } | Stored::Nowhere => stored_out,
    };
    // Where each column begins in the stored tensor.
    let begins = |column: usize| match piece.stored {
        Stored::OutIn => column * rows,
        Stored::HeadColumns { d_head } => column / d_head * d_head * rows + column % d_head,
        Stored::AsIs | Stored::HeadRows { .. } | Stored::Nowhere => column,
    };
    let sources: Vec<usize> = (0..piece.out)
        .map(|column| begins(piece.take.source(column)))
        .collect();
    values
        .par_chunks_mut(TILE * columns)
        .enumerate()
        .for_each(|(tile, values)| {
            let first_row = tile * TILE;
            for (block, sources) in sources.chunks(TILE).enumerate() {
                for (row, values) in values.chunks_mut(columns).enumerate() {
                    let begin = column + block * TILE;
                    let at = (first_row + row) * row_stride;
                    for (value, source) in values[begin..].iter_mut().zip(sources) {
                        *value = stored[source + at];
                    }
                }
            }
        });
}

fn add(values: &mut [f32], plus: f32) {
    if plus != 0.0 {
        values.iter_mut().for_each(|x| *x += plus);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::safetensors::SafeTensors;

    /// A checkpoint of one f32 tensor `a`.
    fn file(shape: &str, values: &[f32]) -> Vec<u8> {
        let end = values.len() * 4;
        let header =
            format!(r#"{{"a": {{"dtype": "F32", "shape": {shape}, "data_offsets": [0, {end}]}}}}"#);
        let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
        bytes.extend(header.as_bytes());
        values.iter().for_each(|x| bytes.extend(x.to_le_bytes()));
        bytes
    }

    fn filled(pieces: &[Piece], stored: &str, values: &[f32], slot: &[usize]) -> Result<Vec<f32>> {
        let bytes = file(stored, values);
        let checkpoint = SafeTensors::from_bytes("x", &bytes)?;
        let pieces: Vec<(String, &Piece)> = pieces
            .iter()
            .map(|piece| (piece.name.to_string(), piece))
            .collect();
        let tensor = fill_slot(
            &checkpoint,
            &pieces,
            slot,
            DType::F32,
            &Device::Cpu,
            &mut Scratch::default(),
        )?;
        Ok(tensor.flatten_all()?.to_vec1()?)
    }

    #[test]
    fn a_linear_weight_is_transposed() {
        let out = filled(
            &[Piece::linear("a", 2)],
            "[2,3]",
            &[1., 2., 3., 4., 5., 6.],
            &[3, 2],
        );
        assert_eq!(out.unwrap(), [1., 4., 2., 5., 3., 6.]);
    }

    #[test]
    fn pieces_fill_columns_from_left_to_right() {
        let part = |part| {
            Piece::linear("a", 1).take(Take::WithinHeads {
                d_head: 1,
                part,
                parts: 2,
            })
        };
        let out = filled(&[part(1), part(0)], "[2,2]", &[1., 2., 3., 4.], &[2, 2]);
        assert_eq!(out.unwrap(), [3., 1., 4., 2.]);
        let ranges = [
            Piece::as_is("a", 1).take(Take::Range { start: 2, of: 3 }),
            Piece::as_is("a", 1).take(Take::Range { start: 0, of: 3 }),
        ];
        let out = filled(&ranges, "[2,3]", &[1., 2., 3., 4., 5., 6.], &[2, 2]);
        assert_eq!(out.unwrap(), [3., 1., 6., 4.]);
    }

    #[test]
    fn heads_are_joined() {
        // Two heads that each read two dimensions into two: `[head, in, d_head]`.
        let reads = Piece::stored("a", 4, Stored::HeadColumns { d_head: 2 });
        let values = [1., 2., 3., 4., 5., 6., 7., 8.];
        let out = filled(std::slice::from_ref(&reads), "[2,2,2]", &values, &[2, 4]);
        assert_eq!(out.unwrap(), [1., 2., 5., 6., 3., 4., 7., 8.]);
        assert_eq!(reads.stored_shape(&[2, 4]), [2, 2, 2]);
        let bias = filled(std::slice::from_ref(&reads), "[2,2]", &values[..4], &[4]);
        assert_eq!(bias.unwrap(), values[..4]);
        assert_eq!(reads.stored_shape(&[4]), [2, 2]);
        let writes = Piece::stored("a", 2, Stored::HeadRows { d_head: 2 });
        let out = filled(std::slice::from_ref(&writes), "[2,2,2]", &values, &[4, 2]);
        assert_eq!(out.unwrap(), values);
        assert_eq!(writes.stored_shape(&[4, 2]), [2, 2, 2]);
    }

    #[test]
    fn what_is_nowhere_is_what_is_added() {
        let ones = Piece::stored("gone", 2, Stored::Nowhere).plus(1.0);
        let out = filled(&[ones], "[1]", &[9.], &[2]);
        assert_eq!(out.unwrap(), [1., 1.]);
    }

    #[test]
    fn large_matrices_are_transposed_tile_by_tile() {
        let (rows, out) = (75, 67);
        let values: Vec<f32> = (0..rows * out).map(|i| i as f32).collect();
        let got = filled(&[Piece::linear("a", out)], "[67,75]", &values, &[rows, out]).unwrap();
        for row in 0..rows {
            for o in 0..out {
                assert_eq!(got[row * out + o], values[o * rows + row]);
            }
        }
    }

    #[test]
    fn rows_can_be_skipped() {
        let piece = Piece::as_is("a", 2).skip(1);
        let out = filled(&[piece], "[3,2]", &[1., 2., 3., 4., 5., 6.], &[2, 2]);
        assert_eq!(out.unwrap(), [3., 4., 5., 6.]);
    }

    #[test]
    fn numbers_are_added_and_damage_is_named() {
        let out = filled(&[Piece::as_is("a", 2).plus(1.0)], "[2]", &[0.5, -1.0], &[2]);
        assert_eq!(out.unwrap(), [1.5, 0.0]);
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            let error = filled(&[Piece::as_is("a", 2)], "[2]", &[bad, 1.0], &[2]).unwrap_err();
            assert!(matches!(error, Error::NotFinite { name } if name == "a"));
        }
    }
}
