//! `candlewick subspace`: which directions of an activation carry the answer.

use std::path::PathBuf;

use candlewick::hooks::Kind;
use candlewick::methods::subspace::{SplitBy, Training};
use candlewick::methods::{Heads, Layers, Method, SubspaceConfig, SubspaceMethod};
use candlewick::model::ModelSpec;
use clap::Args;

use super::destination::check_new;
use super::session::{Ask, Asked, CommonArgs, Mode};

/// Find a direction of an activation that carries the answer, on half of the pairs, and judge it on the others.
///
/// Between the two runs of a held-out pair the part of the activation along the direction is exchanged, both ways round, at one position.
/// `score` is the log odds ratio: how far the changed run moves from its own answer towards the other run's; `iia` the share of
/// runs that now prefer that one. `full` exchanges the whole activation, as `patch` does, and `random` says what any
/// direction does (the mean of ten). `das` is trained by gradients, which pass through the model to the direction; the others read
/// it off the activations. That a direction changes the answer does not say that the model uses it.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  candlewick subspace
  candlewick subspace --layers 1-2 --position S2,END --method all --steps 40
  candlewick subspace --hook mlp_out --dims 2 --method full,pca,random --control
  candlewick subspace --split --layers 0-1 --method full,das
  candlewick subspace --layers 2 --method das --save-direction das.safetensors")]
pub struct SubspaceArgs {
    /// The activation: `resid_post`, `resid_pre`, `resid_mid`, `attn_out`, `mlp_out`, `z` (all heads) or `mlp.post` [default: resid_post].
    #[arg(long)]
    pub hook: Option<Kind>,
    /// Only these layers, such as `0,3-5`.
    #[arg(long, value_name = "LAYERS")]
    pub layers: Option<Layers>,
    /// Roles of the task, each by itself, at its last token: `END`, `S2,END`, or `roles` for all
    /// from the first token on that differs.
    #[arg(
        long,
        value_name = "ROLES",
        value_delimiter = ',',
        default_value = "END"
    )]
    pub position: Vec<String>,
    /// How it is found: `das`, `boundless-das`, `mean-difference`, `pca`, `lda`, `kmeans`, `logistic`, `random`, `full`, or `all`.
    #[arg(
        long,
        value_name = "METHODS",
        value_delimiter = ',',
        default_value = "full,das,mean-difference,random"
    )]
    pub method: Vec<String>,
    /// Dimensions that `das`, `pca` and `random` exchange together.
    #[arg(long, value_name = "K", default_value_t = 1)]
    pub dims: usize,
    /// The most dimensions that `boundless-das` may choose.
    #[arg(long, value_name = "K", default_value_t = Training::default().most_dims)]
    pub most_dims: usize,
    /// Pairs that directions are found on; the others judge them [default: half].
    #[arg(long, value_name = "N")]
    pub train: Option<usize>,
    /// Steps of training, each of two pairs both ways round; at most 100000.
    #[arg(long, value_name = "N", default_value_t = Training::default().steps)]
    pub steps: usize,
    /// The highest rate of training.
    #[arg(long, value_name = "RATE", default_value_t = Training::default().rate)]
    pub rate: f64,
    /// Directions that `random` draws, at most 1000.
    #[arg(long, value_name = "N", default_value_t = 10)]
    pub draws: usize,
    /// The same for two arbitrary words as labels, and the odds less those (`selectivity`).
    #[arg(long)]
    pub control: bool,
    /// Take each direction apart by the output matrix behind the hook: what it reads (`:row`) and what it does not (`:null`), each judged by
    /// itself. Of `mlp.post` (the hook then, if none is named) and `z`; of a stream by `--readers`. `full` and `random` have no direction.
    #[arg(long)]
    pub split: bool,
    /// The heads by whose query matrices directions of a stream are taken apart, such as `a9.h6,a9.h9`.
    #[arg(long, value_name = "HEADS")]
    pub readers: Option<Heads>,
    /// Write the directions as safetensors, `[dims, width]` each, named `blocks.2.hook_resid_post@END.das`;
    /// `full` and `random` have none.
    #[arg(long, value_name = "FILE")]
    pub save_direction: Option<PathBuf>,
    #[command(flatten)]
    pub common: CommonArgs,
}

impl SubspaceArgs {
    fn methods(&self) -> Result<Vec<SubspaceMethod>, candlewick::Error> {
        match self.method.as_slice() {
            [all] if all == "all" => Ok(SubspaceMethod::ALL.to_vec()),
            named if named.iter().any(|name| name.trim() == "all") => {
                Err(candlewick::Error::invalid(
                    "`all` has every way to find a subspace; give `--method all` alone",
                ))
            }
            named => named.iter().map(|name| name.trim().parse()).collect(),
        }
    }
}

impl Ask for SubspaceArgs {
    fn default_out(&self) -> &'static str {
        "subspace.parquet"
    }

    fn mode(&self) -> Mode {
        // A name that is none is said where methods are asked for.
        let methods = self
            .methods()
            .unwrap_or_else(|_| SubspaceMethod::ALL.to_vec());
        let any = |is: fn(SubspaceMethod) -> bool| methods.iter().any(|&method| is(method));
        let mut acts = vec!["hook", "layers", "position", "method", "train", "control"];
        let has_direction = any(SubspaceMethod::has_direction);
        for (flag, acts_now) in [
            ("split", has_direction),
            ("readers", has_direction),
            ("save_direction", has_direction),
            ("dims", any(SubspaceMethod::takes_dims)),
            ("most_dims", methods.contains(&SubspaceMethod::BoundlessDas)),
            ("steps", any(SubspaceMethod::is_trained)),
            ("rate", any(SubspaceMethod::is_trained)),
            ("draws", methods.contains(&SubspaceMethod::Random)),
        ] {
            if acts_now {
                acts.push(flag);
            }
        }
        Mode::new(format!("`--method {}`", self.method.join(",")), &acts)
            .idle(&["metric", "verify"])
    }

    fn method(&self, on: &Asked<'_>) -> anyhow::Result<Box<dyn Method>> {
        let roles = match self.position.as_slice() {
            [all] if all == "roles" => {
                let pairs = on.task.pairs();
                // Before the first token that differs nothing does.
                let differs = |role: &String| {
                    pairs.iter().all(|pair| pair.roles.contains_key(role))
                        && pairs.iter().any(|pair| {
                            let last = pair.roles[role].last();
                            last.is_some_and(|&last| last >= pair.first_difference())
                        })
                };
                let all = on.task.all_roles();
                all.into_iter().filter(differs).collect()
            }
            named => named
                .iter()
                .map(|role| role.trim().trim_start_matches('@').to_string())
                .collect(),
        };
        Ok(Box::new(SubspaceConfig {
            kind: self
                .hook
                .unwrap_or(match self.split && self.readers.is_none() {
                    true => Kind::MlpPost,
                    false => Kind::ResidPost,
                }),
            layers: self.layers.clone().unwrap_or_default(),
            roles,
            dims: self.dims,
            train: self.train,
            training: Training {
                steps: self.steps,
                rate: self.rate,
                most_dims: self.most_dims,
            },
            draws: self.draws,
            control: self.control,
            split: match &self.readers {
                Some(heads) => Some(SplitBy::Readers(heads.clone())),
                None => self.split.then_some(SplitBy::Output),
            },
            save: self.save_direction.clone(),
            ..SubspaceConfig::new(self.methods()?)
        }))
    }

    fn check_files(&self, _: &ModelSpec) -> anyhow::Result<()> {
        if let Some(path) = &self.save_direction {
            if path
                .extension()
                .is_none_or(|ending| ending != "safetensors")
            {
                return Err(candlewick::Error::invalid(format!(
                    "`{}` is written as safetensors; give it that ending",
                    path.display()
                ))
                .into());
            }
            check_new(path, self.common.output.force)?;
        }
        Ok(())
    }
}
