//! Does the trained network hold a circuit worth looking at? Exact patching in its plainest form: one whole forward for
//! each place, the clean run's value put into the corrupted run.
//!
//! The corrupted prompt names the indirect object as the giver, so its answer is the other name; the metric is
//! `logit(IO) - logit(S)`, and an effect of 1 means that the patch restores the clean metric in full.

use std::collections::HashMap;

use candle_core::{Device, Result, Tensor};

use crate::corpus::Scene;
use crate::model::{Llama, Place, Sizes};
use crate::words::Words;

/// Pairs of one shape: their positions mean the same in all of them.
pub struct Pairs {
    /// `[batch, pos]`
    pub clean: Tensor,
    pub corrupted: Tensor,
    io: Vec<u32>,
    s: Vec<u32>,
    /// The words of the first clean prompt.
    pub labels: Vec<&'static str>,
    /// Where the second mention of the subject stands.
    pub s2: usize,
}

/// Normalised effects of the patches, averaged over the pairs before they are divided.
pub struct Effects {
    pub clean: f32,
    pub corrupted: f32,
    /// `[layer][pos]`
    pub resid_pre: Vec<Vec<f32>>,
    /// `[layer][head]`, every position at once.
    pub heads: Vec<Vec<f32>>,
    /// `[layer]`, every position at once.
    pub mlps: Vec<f32>,
    /// Clean pattern of each head from the last position, `[layer][head][key]`, mean over pairs.
    pub from_end: Vec<Vec<Vec<f32>>>,
    /// The same from the second mention of the subject.
    pub from_s2: Vec<Vec<Vec<f32>>>,
}

impl Pairs {
    /// # Errors
    /// If the scenes differ in length: they must share their clauses.
    pub fn new(scenes: &[Scene], words: &Words) -> Result<Self> {
        let clean: Vec<_> = scenes.iter().map(|scene| scene.prompt(scene.s)).collect();
        let corrupted: Vec<_> = scenes.iter().map(|scene| scene.prompt(scene.io)).collect();
        let s2 = (0..clean[0].len())
            .find(|&i| clean[0][i] != corrupted[0][i])
            .expect("the giver differs");
        Ok(Self {
            clean: batch(&clean, words)?,
            corrupted: batch(&corrupted, words)?,
            io: scenes.iter().map(|scene| words.name(scene.io)).collect(),
            s: scenes.iter().map(|scene| words.name(scene.s)).collect(),
            labels: clean
                .into_iter()
                .next()
                .expect("there is at least one scene"),
            s2,
        })
    }

    /// Mean of `logit(IO) - logit(S)` at the last position.
    fn metric(&self, logits: &Tensor) -> Result<f32> {
        let last = logits
            .narrow(1, logits.dim(1)? - 1, 1)?
            .squeeze(1)?
            .contiguous()?; // [batch, vocab]
        let of = |tokens: &[u32]| last.gather(&Tensor::new(tokens, &Device::Cpu)?.unsqueeze(1)?, 1);
        (of(&self.io)? - of(&self.s)?)?.mean_all()?.to_scalar()
    }
}

fn batch(prompts: &[Vec<&'static str>], words: &Words) -> Result<Tensor> {
    let tokens: Vec<Vec<u32>> = prompts.iter().map(|prompt| words.tokens(prompt)).collect();
    Tensor::new(tokens, &Device::Cpu)
}

/// Patches every place of the network, one at a time.
pub fn patch_everything(model: &Llama, sizes: Sizes, pairs: &Pairs) -> Result<Effects> {
    let mut cache = HashMap::new();
    let clean_logits = model.forward_with(&pairs.clean, &mut |place, value| {
        cache.insert(place, value.clone());
        Ok(value)
    })?;
    let clean = pairs.metric(&clean_logits)?;
    let corrupted = pairs.metric(&model.forward(&pairs.corrupted)?)?;
    let normalised =
        |logits: Tensor| Ok((pairs.metric(&logits)? - corrupted) / (clean - corrupted));
    // One whole forward on the corrupted prompts, with `slice` of `axis` at `target` taken from the clean run.
    let patched = |target: Place, axis: usize, start: usize, len: usize| -> Result<f32> {
        let logits = model.forward_with(&pairs.corrupted, &mut |place, value| {
            if place != target {
                return Ok(value);
            }
            splice(&value, &cache[&place], axis, start, len)
        })?;
        normalised(logits)
    };

    let n_pos = pairs.clean.dim(1)?;
    let mut effects = Effects {
        clean,
        corrupted,
        resid_pre: vec![],
        heads: vec![],
        mlps: vec![],
        from_end: vec![],
        from_s2: vec![],
    };
    for layer in 0..sizes.n_layers {
        let by_pos = (0..n_pos).map(|pos| patched(Place::ResidPre(layer), 1, pos, 1));
        effects.resid_pre.push(by_pos.collect::<Result<_>>()?);
        let by_head = (0..sizes.n_heads).map(|head| patched(Place::Z(layer), 2, head, 1));
        effects.heads.push(by_head.collect::<Result<_>>()?);
        effects
            .mlps
            .push(patched(Place::MlpOut(layer), 1, 0, n_pos)?);
        let pattern = cache[&Place::Pattern(layer)].mean(0)?; // [head, query, key]
        let row = |query: usize| pattern.narrow(1, query, 1)?.squeeze(1)?.to_vec2::<f32>();
        effects.from_end.push(row(n_pos - 1)?);
        effects.from_s2.push(row(pairs.s2)?);
    }
    Ok(effects)
}

/// `base` with `start..start + len` of `axis` taken from `source`.
fn splice(base: &Tensor, source: &Tensor, axis: usize, start: usize, len: usize) -> Result<Tensor> {
    let end = start + len;
    let mut parts = vec![source.narrow(axis, start, len)?];
    if start > 0 {
        parts.insert(0, base.narrow(axis, 0, start)?);
    }
    if end < base.dim(axis)? {
        parts.push(base.narrow(axis, end, base.dim(axis)? - end)?);
    }
    Tensor::cat(&parts, axis)
}

impl Effects {
    /// The tables as text.
    pub fn report(&self, pairs: &Pairs) -> String {
        let mut text = format!(
            "logit(IO) - logit(S): clean {:+.2}, corrupted {:+.2}\n\nresid_pre\n",
            self.clean, self.corrupted
        );
        for (pos, label) in pairs.labels.iter().enumerate() {
            let row = self
                .resid_pre
                .iter()
                .map(|layer| format!("{:+7.2}", layer[pos]))
                .collect::<String>();
            text += &format!("{pos:>3} {label:<10}{row}\n");
        }
        text +=
            "\nhead        effect  where its attention goes, from the last position | from S2\n";
        for (layer, heads) in self.heads.iter().enumerate() {
            for (head, effect) in heads.iter().enumerate() {
                let end = looks_at(&self.from_end[layer][head], &pairs.labels);
                let s2 = looks_at(&self.from_s2[layer][head], &pairs.labels);
                text += &format!("a{layer}.h{head}      {effect:+7.2}  {end} | {s2}\n");
            }
            text += &format!("m{layer}         {:+7.2}\n", self.mlps[layer]);
        }
        text
    }

    /// How many heads have an effect above 0.1 either way, and in how many layers they stand.
    pub fn heads_that_matter(&self) -> (usize, usize) {
        let strong = |layer: &Vec<f32>| layer.iter().filter(|effect| effect.abs() > 0.1).count();
        let counts: Vec<usize> = self.heads.iter().map(strong).collect();
        (
            counts.iter().sum(),
            counts.iter().filter(|&&count| count > 0).count(),
        )
    }
}

/// The two keys that get most of a row of attention.
fn looks_at(row: &[f32], labels: &[&str]) -> String {
    let mut keys: Vec<usize> = (0..row.len()).collect();
    keys.sort_by(|&a, &b| row[b].total_cmp(&row[a]));
    let show = |&key: &usize| format!("{}@{key} {:.2}", labels[key], row[key]);
    keys.iter().take(2).map(show).collect::<Vec<_>>().join(", ")
}
