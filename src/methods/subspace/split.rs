//! The subspace illusion: a direction taken apart into what the next matrix reads and what it does not.
//!
//! A direction can change the answer by a part that nothing downstream reads: moving along it wakes another part that no prompt moves by
//! itself. Taken apart by the matrix that reads the hook, `v = v_row + v_null` with `v_null W = 0`; a real feature keeps its effect under
//! `v_row` alone.
//!
//! Source: Makelov, Lange and Nanda 2023, "Is This the Subspace You Are Looking for?", arXiv 2311.17030 (sections 3, 4 and appendix on
//! rank-one edits).

use std::fmt;

use nalgebra::{DMatrix, DVector};

use super::config::{SplitBy, SubspaceConfig, SubspaceMethod};
use super::space::Subspace;
use crate::error::{Error, Result};
use crate::hooks::{Hook, Kind};
use crate::model::Model;
use crate::nn::host::to_host;
use crate::spec::{ModelSpec, NormKind};

/// Which part of a direction.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Part {
    Whole,
    Row,
    Null,
}

/// A method, and a part of what it finds: a column of the picture.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Series {
    pub method: SubspaceMethod,
    pub part: Part,
}

impl Series {
    /// What a configuration asks for, in its order.
    pub fn all(config: &SubspaceConfig) -> Vec<Series> {
        let of = |&method: &SubspaceMethod| {
            let is_split = config.split.is_some() && method.has_direction();
            let parts: &[Part] = match is_split {
                true => &[Part::Whole, Part::Row, Part::Null],
                false => &[Part::Whole],
            };
            parts.iter().map(move |&part| Series { method, part })
        };
        config.methods.iter().flat_map(of).collect()
    }
}

impl fmt::Display for Series {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.part {
            Part::Whole => write!(f, "{}", self.method),
            Part::Row => write!(f, "{}:row", self.method),
            Part::Null => write!(f, "{}:null", self.method),
        }
    }
}

impl SplitBy {
    /// Refuses what cannot be taken apart.
    /// # Errors
    /// [`Error::Invalid`]; a head that there is not.
    pub(super) fn check(&self, config: &SubspaceConfig, spec: &ModelSpec) -> Result<()> {
        let kind = config.kind;
        let is_stream = matches!(kind, Kind::ResidPre | Kind::ResidMid | Kind::ResidPost);
        let bad = |reason: String| Err(Error::invalid(reason));
        match self {
            SplitBy::Output if !matches!(kind, Kind::MlpPost | Kind::Z) => bad(format!(
                "a direction of `{}` is not taken apart by an output matrix; look at `mlp.post` or `z` (`SubspaceConfig::kind`), or name \
                 the heads that read a stream (`SplitBy::Readers`)",
                kind.short()
            )),
            SplitBy::Readers(_) if !is_stream => bad(format!(
                "heads read a stream, and `{}` is none; take `resid_pre`, `resid_mid` or `resid_post` (`SubspaceConfig::kind`)",
                kind.short()
            )),
            _ if config.dims != 1 || config.methods.contains(&SubspaceMethod::BoundlessDas) => {
                bad(
                    "one direction at a time is taken apart; leave `SubspaceConfig::dims` at 1 and `boundless-das` out"
                        .into(),
                )
            }
            SplitBy::Readers(heads) => {
                heads.check(spec)?;
                let last = (0..spec.n_layers).rfind(|&layer| config.layers.has(layer));
                let reads = |layer: usize| match kind {
                    Kind::ResidPre => layer >= last.unwrap_or(0),
                    _ => layer > last.unwrap_or(0),
                };
                let blind = heads.0.iter().find(|head| head.layer.is_none_or(|layer| !reads(layer)));
                let next = last.unwrap_or(0) + 1;
                let remedy = match next < spec.n_layers || kind == Kind::ResidPre {
                    true => format!(
                        "name heads of later layers, such as `a{}.h0`, or look at earlier ones (`SubspaceConfig::layers`)",
                        next.min(spec.n_layers.saturating_sub(1))
                    ),
                    false => "look at earlier layers (`SubspaceConfig::layers`)".into(),
                };
                match (heads.0.is_empty(), blind) {
                    (true, _) => bad("no head is named that reads the stream (`SplitBy::Readers`)".into()),
                    (_, Some(head)) => bad(format!(
                        "head {} {} does not read `{}`; {remedy}",
                        head.head,
                        head.layer.map_or("of every layer".into(), |layer| format!("of layer {layer}")),
                        Hook::at(kind, last.unwrap_or(0))
                    )),
                    _ => Ok(()),
                }
            }
            SplitBy::Output => Ok(()),
        }
    }

    /// An orthonormal basis of what the matrix reads at a hook.
    /// # Shapes
    /// `[width, rank]`
    pub(super) fn row_space(&self, model: &Model, hook: Hook) -> Result<DMatrix<f64>> {
        let matrix = match self {
            SplitBy::Output => output_matrix(model, hook)?,
            SplitBy::Readers(heads) => {
                let spec = &model.spec;
                let mut columns = Vec::new();
                for (layer, head) in spec.heads().filter(|&(layer, head)| heads.has(layer, head)) {
                    columns.extend(queries(model, layer, head)?);
                }
                DMatrix::from_columns(&columns)
            }
        };
        let qr = matrix.col_piv_qr();
        let r = qr.r();
        let first = r[(0, 0)].abs().max(f64::MIN_POSITIVE);
        let diagonal = (0..r.nrows().min(r.ncols())).map(|i| r[(i, i)].abs());
        let rank = diagonal.filter(|on| *on > 1e-7 * first).count();
        Ok(qr.q().columns(0, rank).into_owned())
    }
}

/// What a hook's values are multiplied by, `[width, d_model]`.
fn output_matrix(model: &Model, hook: Hook) -> Result<DMatrix<f64>> {
    let block = &model.weights.blocks[hook.layer.expect("of a layer")];
    let w = match (hook.kind, &block.mlp) {
        (Kind::MlpPost, Some(mlp)) => &mlp.w_out,
        _ => &block.w_o,
    };
    matrix(&to_host(w)?, w.dim(1)?)
}

fn matrix(values: &[f32], columns: usize) -> Result<DMatrix<f64>> {
    let wide = values.iter().map(|&x| f64::from(x));
    Ok(DMatrix::from_row_iterator(
        values.len() / columns,
        columns,
        wide,
    ))
}

/// The columns of a head's query matrix, each behind the weights of the norm; a LayerNorm takes the mean out before, so theirs is zero.
fn queries(model: &Model, layer: usize, head: usize) -> Result<Vec<DVector<f64>>> {
    let (block, e) = (&model.weights.blocks[layer], model.spec.d_head);
    let w = &block.w_qkv;
    let all = to_host(w)?;
    let width = w.dim(1)?;
    let gains = block
        .ln1
        .as_ref()
        .map(|norm| to_host(&norm.w))
        .transpose()?;
    let is_centred = block.ln1.is_some() && model.spec.norm == NormKind::Layer;
    let column = |j: usize| {
        let of = (0..model.spec.d_model).map(|i| {
            let gain = gains.as_ref().map_or(1.0, |gains| gains[i]);
            f64::from(all[i * width + head * e + j]) * f64::from(gain)
        });
        let mut column = DVector::from_iterator(model.spec.d_model, of);
        if is_centred {
            let mean = column.mean();
            column.add_scalar_mut(-mean);
        }
        column
    };
    Ok((0..e).map(column).collect())
}

/// A direction's part inside of a row space, or outside of it, and how long that part is.
pub(super) fn part_of(space: &Subspace, rows: &DMatrix<f64>, part: Part) -> (Subspace, f64) {
    let whole = space.directions().and_then(|mut all| all.pop());
    let Some(whole) = whole.map(DVector::from_vec) else {
        return (space.clone(), 1.0);
    };
    let row = rows * (rows.transpose() * &whole);
    let kept = match part {
        Part::Whole => whole,
        Part::Row => row,
        Part::Null => whole - row,
    };
    let length = kept.norm();
    // What rounding left is no direction.
    let found = match length > 1e-6 {
        true => Subspace::spanned(&[kept.iter().copied().collect()]),
        false => Subspace::spanned(&[]),
    };
    (found.expect("its length is not zero"), length)
}

/// The change `a b^T` of an MLP's output matrix under which neurons that were `before` write what `after` would have written:
/// `before (W_out + a b^T) = after W_out`. Of all such changes it is the smallest.
/// # Shapes
/// `before`, `after` `[d_mlp]`; gives `[d_mlp]` and `[d_model]`.
/// # Errors
/// [`Error::HookAbsent`] without an MLP; [`Error::Invalid`] for neurons that are all zero, which no change of weights moves.
/// # Source
/// Makelov et al. 2023, arXiv 2311.17030: a patch along a direction of neurons is as good as a rank-one edit.
pub fn rank_one_edit(
    model: &Model,
    layer: usize,
    before: &[f32],
    after: &[f32],
) -> Result<(Vec<f32>, Vec<f32>)> {
    let hook = Hook::at(Kind::MlpPost, layer);
    hook.check(&model.spec)?;
    let w = output_matrix(model, hook)?;
    let column =
        |values: &[f32]| DVector::from_iterator(values.len(), values.iter().map(|&x| f64::from(x)));
    let (before, after) = (column(before), column(after));
    if before.len() != w.nrows() || after.len() != w.nrows() {
        return Err(Error::invalid(format!(
            "`{hook}` has {} neurons, and {} and {} were given",
            w.nrows(),
            before.len(),
            after.len()
        )));
    }
    let square = before.norm_squared();
    if square == 0.0 {
        return Err(Error::invalid(format!(
            "all neurons of `{hook}` are zero, so no change of its output matrix moves what it writes"
        )));
    }
    let b = w.transpose() * (after - &before);
    let narrow = |values: DVector<f64>| values.iter().map(|&x| x as f32).collect();
    Ok((narrow(before / square), narrow(b)))
}
