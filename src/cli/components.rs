//! `candlewick components`: what heads, MLPs or neurons are worth where many others are missing.

use candlewick::methods::{ComponentKind, ComponentsConfig, Layers, Method, Removal};
use clap::{Args, ValueEnum};

use super::session::{Ask, Asked, CommonArgs, Mode};

/// Component attribution by regression (COAR): what each head, MLP or neuron is worth to the metric where many others are missing.
///
/// Components are removed at random, many at a time, and a sparse linear function is fitted to the metric of each prompt; `score` is a
/// component's weight: what the metric gains by its presence. Fresh masks then remove other shares of the components (`--rates`), and the
/// function's predictions are correlated with what happens, beside those of leaving one out at a time, of attribution patching, and of a fit
/// to shuffled outcomes (`shuffled`, which ought to be near 0). The correlations of each prompt are in the table beside it.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  candlewick components --n-pairs 4
  candlewick components --kind both --removal mean --n-pairs 4 -o means.parquet
  candlewick components --kind neurons --layers 1 --masks 400 --n-pairs 1")]
pub struct ComponentsArgs {
    /// The components.
    #[arg(long, default_value = "heads")]
    pub kind: KindChoice,
    /// Only those of these layers, such as `0,3-5`.
    #[arg(long)]
    pub layers: Option<Layers>,
    /// What a component is that is not there: zero, mean (over the corrupted prompts, per position), or pair (its value in the corrupted
    /// run).
    #[arg(long, default_value = "zero")]
    pub removal: Removal,
    /// The share of the components that a mask keeps, in the mean [default: 0.9].
    #[arg(long, value_name = "SHARE")]
    pub keep: Option<f64>,
    /// Masks that weights are fitted to [default: 8 a component].
    #[arg(long, value_name = "N")]
    pub masks: Option<usize>,
    /// Shares of the components that fresh masks remove [default: 0.01,0.025,0.05,0.1].
    #[arg(long, value_name = "SHARES", value_delimiter = ',')]
    pub rates: Vec<f64>,
    /// Fresh masks at each of these shares [default: 50].
    #[arg(long, value_name = "N")]
    pub fresh: Option<usize>,
    #[command(flatten)]
    pub common: CommonArgs,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum KindChoice {
    Heads,
    Mlps,
    /// Heads and MLPs.
    Both,
    /// Neurons of MLPs.
    Neurons,
}

impl Ask for ComponentsArgs {
    fn default_out(&self) -> &'static str {
        "components.parquet"
    }

    fn mode(&self) -> Mode {
        let acts = [
            "kind", "layers", "removal", "keep", "masks", "rates", "fresh",
        ];
        Mode::new("`components`", &acts).idle(&["verify"])
    }

    fn method(&self, _: &Asked<'_>) -> anyhow::Result<Box<dyn Method>> {
        let config = ComponentsConfig::new(match self.kind {
            KindChoice::Heads => ComponentKind::Heads,
            KindChoice::Mlps => ComponentKind::Mlps,
            KindChoice::Both => ComponentKind::Both,
            KindChoice::Neurons => ComponentKind::Neurons,
        });
        Ok(Box::new(ComponentsConfig {
            layers: self.layers.clone().unwrap_or_default(),
            removal: self.removal.clone(),
            keep: self.keep.unwrap_or(config.keep),
            masks: self.masks,
            rates: if self.rates.is_empty() {
                config.rates
            } else {
                self.rates.clone()
            },
            fresh: self.fresh.unwrap_or(config.fresh),
            ..config
        }))
    }
}
