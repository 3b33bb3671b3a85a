//! Latents set, raised or scaled while the model runs: steering and clamping.

use std::sync::Arc;

use candle_core::Tensor;

use super::Sae;
use crate::error::{Error, Result};
use crate::hooks::{Edit, Op, Positions, Site, Value};
use crate::nn::host::to_host;

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

impl Steer {
    fn of(self, value: f32) -> f32 {
        match self {
            Steer::Set(to) => to,
            Steer::Add(more) => value + more,
            Steer::Scale(factor) => value * factor,
        }
    }
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
        let name = match steer {
            Steer::Set(to) => format!("latent {latent} = {to}"),
            Steer::Add(more) => format!("latent {latent} += {more}"),
            Steer::Scale(factor) => format!("latent {latent} *= {factor}"),
        };
        let sae = Arc::clone(self);
        if self.is_transcoder() {
            let Steer::Add(more) = steer else {
                return Err(Error::invalid(format!(
                    "`{}` reads {} and writes {}, so an edit there does not know what latent {latent} is; add to it (`{latent}+=4`)",
                    crate::text::visible(&self.id),
                    self.reads,
                    self.writes
                )));
            };
            return Ok(Edit::with(site, &name, move |x| {
                sae.added(x, |_| more, latent)
            }));
        }
        Ok(Edit::with(site, &name, move |x| {
            let latents = sae.encode(&to_host(x)?);
            let more = |row: usize| {
                let own = latents.get(row, latent as u32);
                (steer.of(own) - own) * latents.scale(row)
            };
            sae.added(x, more, latent)
        }))
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

    /// `x` with so much of a latent's direction more in each row.
    /// # Shapes
    /// `x [rows, .., ..]` of `d_out` values a row.
    fn added(&self, x: &Tensor, more: impl Fn(usize) -> f32, latent: usize) -> Result<Tensor> {
        let mut values = to_host(x)?;
        for (row, values) in values.chunks_exact_mut(self.d_out).enumerate() {
            let more = more(row) * self.unit(latent);
            let direction = self.direction(latent);
            (values.iter_mut().zip(direction)).for_each(|(x, w)| *x += more * w);
        }
        Ok(Tensor::from_vec(values, x.shape(), x.device())?.to_dtype(x.dtype())?)
    }
}
