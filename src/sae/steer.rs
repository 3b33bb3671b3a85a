//! Latents set, raised or scaled while the model runs: steering and clamping.

use std::sync::Arc;

use candle_core::Tensor;

use super::Sae;
use crate::error::{Error, Result};
use crate::hooks::{Edit, Op, Positions, Site, Value};
use crate::nn::host::to_host;
use crate::text::visible;

/// What a latent's activation becomes.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Steer {
    /// So much, wherever the edit is in force: clamping, also where the latent is off.
    Set(f32),
    /// So much more, also where it is off: the latent's direction as a steering vector.
    Add(f32),
    /// So many times as much, where it is on.
    Scale(f32),
}

impl Sae {
    /// An edit that changes one latent at some positions and leaves all other latents and the error as they are: it adds
    /// `(a' - a) W_dec[latent]` where the dictionary writes. Edits of one hook are made in their order, and each
    /// reads the latents that those before it left.
    ///
    /// Source: Templeton et al. 2024, "Scaling Monosemanticity" (clamping); there the other latents stay, and so does the error.
    /// # Errors
    /// [`Error::OutOfRange`] for a latent that is not there; [`Error::Invalid`] for a number that is not finite, and for a transcoder's
    /// latent that is set or scaled: what it is, is read at another hook than is written.
    pub fn steer(self: &Arc<Self>, latent: usize, at: Positions, steer: Steer) -> Result<Edit> {
        self.check_latent(latent)?;
        let (Steer::Set(number) | Steer::Add(number) | Steer::Scale(number)) = steer;
        if !number.is_finite() {
            return Err(Error::invalid(format!(
                "latent {latent} cannot become {number}; write a finite number"
            )));
        }
        let site = Site {
            positions: at,
            ..Site::all(self.writes)
        };
        let id = visible(&self.id);
        let name = match steer {
            Steer::Set(to) => format!("latent {latent} of {id} = {to}"),
            Steer::Add(more) => format!("latent {latent} of {id} += {more}"),
            Steer::Scale(factor) => format!("latent {latent} of {id} *= {factor}"),
        };
        if self.is_transcoder() && !matches!(steer, Steer::Add(_)) {
            return Err(Error::invalid(format!(
                "`{id}` reads {} and writes {}, so an edit there does not know what latent {latent} is; add to it (`{latent}+=4`)",
                self.reads, self.writes
            )));
        }
        let sae = Arc::clone(self);
        Ok(Edit::with(site, &name, move |x| {
            let mut values = to_host(x)?;
            let more = sae.steered(latent, steer, &values);
            let direction = sae.direction(latent);
            for (row, more) in values.chunks_exact_mut(sae.d_out).zip(more) {
                (row.iter_mut().zip(direction)).for_each(|(x, w)| *x += more * w);
            }
            Ok(Tensor::from_vec(values, x.shape(), x.device())?.to_dtype(x.dtype())?)
        }))
    }

    /// How much of a latent's direction each row gets.
    /// # Shapes
    /// `x [rows, d_out]`.
    fn steered(&self, latent: usize, steer: Steer, x: &[f32]) -> Vec<f32> {
        let unit = self.unit(latent);
        let more: &dyn Fn(f32) -> f32 = match &steer {
            // What is there already plays no part, only how the row was normalised.
            Steer::Add(more) => {
                let rows = x.chunks_exact(self.d_out);
                let scale = |row: &[f32]| self.normalise_input(&mut row.to_vec()).0;
                return rows.map(|row| more * scale(row) * unit).collect();
            }
            Steer::Set(to) => &move |own| to - own,
            Steer::Scale(factor) => &move |own| (factor - 1.0) * own,
        };
        let latents = self.encode(x);
        let of_row = |row| more(latents.get(row, latent as u32)) * latents.scale(row) * unit;
        (0..latents.rows.len()).map(of_row).collect()
    }

    /// The same from text: `61=4`, `61[pos=@S2]+=2`, `61*=0`; positions are those of a site.
    /// # Errors
    /// [`Error::Parse`]; those of [`Sae::steer`].
    pub fn edit(self: &Arc<Self>, text: &str) -> Result<Edit> {
        let bad = |reason: String| Error::Parse {
            what: "a change of a latent",
            text: text.into(),
            reason,
        };
        let how = "write `LATENT=VALUE`, `LATENT+=VALUE` or `LATENT*=FACTOR`, with positions as in `61[pos=-1]=4`";
        let text = text.trim();
        let end = text.find(|c: char| !c.is_ascii_digit());
        let (latent, rest) = text.split_at(end.unwrap_or(text.len()));
        let latent = latent.parse().map_err(|_| bad(how.into()))?;
        if !rest.contains('=') {
            return Err(bad(how.into()));
        }
        // Behind the latent everything is as behind a hook.
        let edit = format!("{}{rest}", self.writes).parse::<Edit>();
        let Edit { site, op } = edit.map_err(|error| match error {
            Error::Parse { reason, .. } => bad(format!("{reason}; {how}")),
            other => other,
        })?;
        let whole = Site {
            positions: site.positions.clone(),
            ..Site::all(self.writes)
        };
        if site != whole {
            return Err(bad(format!("a latent is of whole positions; {how}")));
        }
        let steer = match op {
            Op::Replace(Value::Scalar(value)) => Steer::Set(value),
            Op::Zero => Steer::Set(0.0),
            Op::Add(Value::Scalar(value)) => Steer::Add(value),
            Op::Scale(factor) => Steer::Scale(factor),
            _ => return Err(bad(how.into())),
        };
        self.steer(latent, site.positions, steer)
    }
}
