//! `candlewick patch`: exact activation patching, from a model and a task to a picture and a parquet file.

use candlewick::methods::{
    GaussianNoise, Heads, Layers, Method, PatchConfig, PatchSource, parse_sites,
};
use candlewick::scores::Direction;
use clap::{Args, ValueEnum};

use super::args::SourceModelArgs;
use super::session::{Ask, Asked, CommonArgs, Mode};

/// Patch one run's activations into another, exactly, at every site of a sweep.
///
/// Denoising (the default) writes the clean run's value into the corrupted run: how much of the answer does this site bring
/// back? Noising writes the corrupted value into the clean run: how much of the answer does it take away? With `--source zero`,
/// `mean` or `resample` it is an ablation of the clean run.
///
/// With `--source-model` the written values are those of another model of the same shape, such as a fine-tune or another
/// checkpoint: on the same prompt, unless `--source` says otherwise.
///
/// A site is a hook (`candlewick hooks` lists them), by itself or with the axes to take it apart by:
/// `resid_pre` (layer x position), `z` (layer x head), `z:pos`, `pattern:query`, `pattern:cell`, `mlp.post` (every neuron),
/// `resid_pre:role` (roles of the task instead of positions), `attn_out:all`; `block_every` and `head_all` are bundles.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  candlewick patch
  candlewick patch --sites z,mlp_out --direction noise --n-pairs 8 --out noise.parquet
  candlewick patch --sites resid_pre:role,z:role --metric prob --per-example
  candlewick patch --sites z --source mean --out ablation.parquet
  candlewick patch --sites attn_out,mlp_out --source-model embedded --source pair --n-pairs 8
  candlewick patch --sites attn_out --noise @S2 --noise-samples 4 --n-pairs 2
  candlewick patch --sites block_every --window 2 --dry-run")]
pub struct PatchArgs {
    /// What to patch: hooks, each with optional axes, separated by commas.
    #[arg(long, short, default_value = "resid_pre,z")]
    pub sites: String,
    /// Which run is changed [default: denoise; ablate with another source].
    #[arg(long, short)]
    pub direction: Option<DirectionChoice>,
    /// Where the written values come from: `pair` (the pair's other run), or for an ablation `zero`, `mean` (over the corrupted
    /// prompts, per position within each template), `mean-role` (per role of the task), `mean-all` (over all positions),
    /// `resample` (the clean run of another pair of the same template), `scale:X` (the run's own value times X), or `same` (the same
    /// prompt in the source model) [default: pair; same with `--source-model`].
    #[arg(long)]
    pub source: Option<PatchSource>,
    #[command(flatten)]
    pub values: SourceModelArgs,
    /// Layers patched together, centred on the one reported.
    #[arg(long, default_value_t = 1)]
    pub window: usize,
    /// Only these layers, such as `0,3-5`.
    #[arg(long, value_name = "LAYERS")]
    pub layers: Option<Layers>,
    /// Only these heads, such as `0,2-3` in every layer or `a3.h1` in one.
    #[arg(long, value_name = "HEADS")]
    pub heads: Option<Heads>,
    /// Corrupt by Gaussian noise on the embeddings of these tokens (`@S2`, `3`, `-2`) instead of by the corrupted prompt.
    #[arg(
        long,
        value_name = "POSITIONS",
        value_delimiter = ',',
        allow_hyphen_values = true
    )]
    pub noise: Vec<String>,
    /// Standard deviation of that noise, in units of the embeddings' own.
    #[arg(long, default_value_t = 3.0)]
    pub noise_scale: f64,
    /// Draws of noise per prompt, whose metrics are averaged.
    #[arg(long, default_value_t = 10)]
    pub noise_samples: usize,
    #[command(flatten)]
    pub common: CommonArgs,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum DirectionChoice {
    /// Clean values into the corrupted run.
    Denoise,
    /// Corrupted values into the clean run.
    Noise,
    /// Other values into the clean run, with another `--source` than the pair.
    Ablate,
}

/// What was chosen; else `of_pairs` where the other run is put in place, and an ablation where something else is.
pub fn direction_of(
    choice: Option<DirectionChoice>,
    source: PatchSource,
    of_pairs: Direction,
) -> Direction {
    match choice {
        Some(DirectionChoice::Denoise) => Direction::Denoise,
        Some(DirectionChoice::Noise) => Direction::Noise,
        Some(DirectionChoice::Ablate) => Direction::Ablate,
        None if source == PatchSource::Pair => of_pairs,
        None => Direction::Ablate,
    }
}

impl Ask for PatchArgs {
    fn default_out(&self) -> &'static str {
        "scores.parquet"
    }

    fn mode(&self) -> Mode {
        let mut acts = vec![
            "sites",
            "direction",
            "source",
            "source_model",
            "source_revision",
            "window",
            "layers",
            "heads",
            "noise",
        ];
        if self.noise.is_empty() {
            return Mode::new("no `--noise`", &acts);
        }
        acts.extend(["noise_scale", "noise_samples"]);
        Mode::new("`--noise`", &acts)
    }

    fn method(&self, on: &Asked<'_>) -> anyhow::Result<Box<dyn Method>> {
        let source_model = self.values.open(on.options)?;
        let source = self.values.source(self.source, PatchSource::Pair);
        let noise = (!self.noise.is_empty()).then(|| GaussianNoise {
            positions: self.noise.clone(),
            scale: self.noise_scale,
            samples: self.noise_samples,
        });
        Ok(Box::new(PatchConfig {
            direction: direction_of(self.direction, source, Direction::Denoise),
            source,
            source_model,
            noise,
            window: self.window,
            layers: self.layers.clone().unwrap_or_default(),
            heads: self.heads.clone().unwrap_or_default(),
            seed: Some(on.task.seed),
            ..PatchConfig::new(parse_sites(&self.sites)?)
        }))
    }
}
