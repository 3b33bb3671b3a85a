//! What changes where a sparse autoencoder is attached, from one run to the other: latents, and the error.

use crate::sae::{Latents, Sae};

/// The change at one position.
#[derive(Debug, Clone)]
pub(super) struct Change {
    pub pos: usize,
    /// Latents that change, ascending, and the multiple of their decoder row that is added.
    pub latents: Vec<(u32, f32)>,
    /// What is added besides. `[d_out]`
    pub error: Vec<f32>,
}

impl Change {
    /// All of it together.
    pub fn add_to(&self, sae: &Sae, sum: &mut [f32]) {
        (sum.iter_mut().zip(&self.error)).for_each(|(sum, error)| *sum += error);
        for &(latent, amount) in &self.latents {
            let direction = sae.direction(latent as usize);
            (sum.iter_mut().zip(direction)).for_each(|(sum, w)| *sum += amount * w);
        }
    }
}

/// The change of each row from its own values (the first of `inputs` and `outputs`) to the others, or to nothing; and how many latents
/// were on.
/// # Shapes
/// `positions [rows]`; `inputs [rows, d_in]`, `outputs [rows, d_out]`.
pub(super) fn changes(
    sae: &Sae,
    positions: &[usize],
    inputs: &[Vec<f32>; 2],
    outputs: &[Vec<f32>; 2],
    to_zero: bool,
) -> (Vec<Change>, Vec<usize>) {
    let own = sae.encode(&inputs[0]);
    let other = (!to_zero).then(|| sae.encode(&inputs[1]));
    let decoded = to_zero.then(|| sae.decode(&own, &inputs[0]));
    let mut all = Vec::with_capacity(positions.len());
    for (row, &pos) in positions.iter().enumerate() {
        let scale = own.scale(row);
        let unit =
            |latent: u32, difference: f32| (latent, difference * scale * sae.unit(latent as usize));
        let latents: Vec<(u32, f32)> = differences(&own, other.as_ref(), row)
            .into_iter()
            .map(|(latent, difference)| unit(latent, difference))
            .collect();
        let of_row = row * sae.d_out..(row + 1) * sae.d_out;
        let mut change = Change {
            pos,
            latents,
            error: Vec::new(),
        };
        // What is left of the whole change; without another run the error is what was not decoded, and goes.
        change.error = match &decoded {
            None => {
                let mut written = vec![0.0; sae.d_out];
                change.add_to(sae, &mut written);
                let whole = outputs[1][of_row.clone()].iter().zip(&outputs[0][of_row]);
                let each = whole.zip(&written);
                each.map(|((other, own), written)| other - own - written)
                    .collect()
            }
            Some(decoded) => {
                let each = decoded[of_row.clone()].iter().zip(&outputs[0][of_row]);
                each.map(|(decoded, own)| decoded - own).collect()
            }
        };
        all.push(change);
    }
    (all, own.rows.iter().map(Vec::len).collect())
}

/// The latents of a row that are not the same in both, and by how much.
fn differences(own: &Latents, other: Option<&Latents>, row: usize) -> Vec<(u32, f32)> {
    let none = Vec::new();
    let mut here = own.rows[row].iter().peekable();
    let mut there = other
        .map_or(&none, |other| &other.rows[row])
        .iter()
        .peekable();
    let mut all = Vec::new();
    loop {
        let (latent, difference) = match (here.peek(), there.peek()) {
            (None, None) => return all,
            (Some(&&(a, own)), Some(&&(b, other))) if a == b => {
                here.next();
                there.next();
                (a, other - own)
            }
            (Some(&&(a, own)), b) if b.is_none_or(|b| a < b.0) => {
                here.next();
                (a, -own)
            }
            (_, Some(&&(b, other))) => {
                there.next();
                (b, other)
            }
            (Some(_), None) => return all,
        };
        if difference != 0.0 {
            all.push((latent, difference));
        }
    }
}
