//! `candlewick flow`: where information flows from, and along what.

use std::path::{Path, PathBuf};

use candlewick::hooks::Pos;
use candlewick::methods::flow::Against;
use candlewick::methods::{AltiFlowConfig, GlobEncConfig, Method, RouteConfig, RouteSettings};
use clap::builder::PossibleValue;
use clap::{Args, ValueEnum};

use super::session::{Ask, Asked, CommonArgs, Mode};

/// Follow information from the answer's position down to the tokens: what each state of the stream is made of, and by which heads.
///
/// `routes`: a part of a state counts by how much nearer to zero the state is brought without it; parts whose share is above
/// `--threshold` are followed. It takes one forward pass a prompt, no gradient and no second prompt. Rows are edges between
/// states (`stream`, `attention` and its `head`s, `mlp`, `bias`), and what each head (`attn.hook_z`) and each MLP (`hook_mlp_out`)
/// brings in all. A share says what a state is made of, not what it does: `--verify` holds heads and MLPs against exact patching.
///
/// `alti` and `alti-logit` show the shares of those methods (`candlewick attribute`) on their way from state to state, and `globenc` the same
/// in an encoder, with its ladder of ablations. `candlewick show flow.parquet --svg route.svg` and `candlewick report` draw
/// the graph by layer and token.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  candlewick flow
  candlewick flow --threshold 0.1 --n-pairs 1
  candlewick flow --at @S2 --renormalise
  candlewick flow --contrast
  candlewick flow --profile --verify 8
  candlewick flow --profile --neurons 10
  candlewick flow --method alti-logit --n-pairs 4")]
pub struct FlowArgs {
    /// What is followed.
    #[arg(long, default_value = "routes")]
    pub method: Flow,
    /// Parts of a state are followed whose share is larger than this; of ALTI and GlobEnc edges have a row along which, in the mean, more
    /// than this share of all passes [default: 0.04; of ALTI and GlobEnc 0.02].
    #[arg(long, value_name = "SHARE")]
    pub threshold: Option<f64>,
    /// Scales the shares of the parts that are followed to sum to 1.
    #[arg(long)]
    pub renormalise: bool,
    /// The position to explain: an index, one from the end, or a role such as `@S2` (its last token) [default: -1; of GlobEnc the
    /// mask].
    #[arg(long, value_name = "POSITION", allow_hyphen_values = true)]
    pub at: Option<Pos>,
    /// The clean prompt's shares less those of the corrupted one.
    #[arg(long)]
    pub contrast: bool,
    /// Only what each head and each MLP brings in all: a profile over prompts of any lengths.
    #[arg(long)]
    pub profile: bool,
    /// Also the N strongest neurons (`mlp.hook_post`): what each brings in all.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub neurons: Option<u32>,
    /// Lines of text in the place of a task.
    #[arg(long, value_name = "FILE", conflicts_with_all = ["task", "pairs", "template", "corruption", "contrast", "verify"])]
    pub texts: Option<PathBuf>,
    /// What the rungs of GlobEnc's ladder are held against, token by token: `occlusion` (exact, a run a token) or `grad-x-input`.
    #[arg(long, value_name = "WHAT", value_parser = against)]
    pub against: Option<Against>,
    #[command(flatten)]
    pub common: CommonArgs,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Flow {
    /// Information flow routes.
    Routes,
    /// What a state is a mixture of, layer by layer.
    Alti,
    /// What attention brings to the answer's logits.
    AltiLogit,
    /// What a position of an encoder is a mixture of.
    Globenc,
}

fn against(text: &str) -> Result<Against, String> {
    let known = [Against::Occlusion, Against::GradXInput];
    let found = known.into_iter().find(|one| one.to_string() == text);
    found.ok_or_else(|| "it is `occlusion` or `grad-x-input`".into())
}

impl Ask for FlowArgs {
    fn default_out(&self) -> &'static str {
        "flow.parquet"
    }

    /// Shares are no matter of answers; what they are held against is.
    fn mode(&self) -> Mode {
        let value = self.method.to_possible_value();
        let name = value.as_ref().map_or("", PossibleValue::get_name);
        let name = format!("`--method {name}`");
        let (acts, asks_metric): (&[_], _) = match self.method {
            Flow::Routes => (
                &[
                    "renormalise",
                    "at",
                    "contrast",
                    "profile",
                    "neurons",
                    "texts",
                ],
                self.common.running.verify.is_some(),
            ),
            Flow::Alti => (&["at"], false),
            Flow::AltiLogit => (&[], true),
            Flow::Globenc => (&["at", "against"], self.against.is_some()),
        };
        let mode = Mode::new(name, &["method", "threshold"]).and(acts);
        if asks_metric {
            mode
        } else {
            mode.idle(&["metric"])
        }
    }

    fn texts(&self) -> Option<&Path> {
        self.texts.as_deref()
    }

    fn method(&self, on: &Asked<'_>) -> anyhow::Result<Box<dyn Method>> {
        let (seed, metric) = (Some(on.task.seed), Some(on.task.metric));
        let start = self.at.clone().unwrap_or(Pos::FromEnd(1));
        let alti = |config: AltiFlowConfig| AltiFlowConfig {
            threshold: self.threshold.unwrap_or(config.threshold),
            start: start.clone(),
            metric,
            seed,
            ..config
        };
        let routes = RouteConfig::default();
        Ok(match self.method {
            Flow::Routes => Box::new(RouteConfig {
                settings: RouteSettings {
                    threshold: self.threshold.unwrap_or(routes.settings.threshold),
                    renormalise: self.renormalise,
                    ..routes.settings
                },
                start,
                contrast: self.contrast,
                profile: self.profile,
                neurons: self.neurons.map_or(0, |n| n as usize),
                seed,
            }),
            Flow::Alti => Box::new(alti(AltiFlowConfig::alti())),
            Flow::AltiLogit => Box::new(alti(AltiFlowConfig::alti_logit())),
            Flow::Globenc => Box::new(GlobEncConfig {
                threshold: self.threshold.unwrap_or(GlobEncConfig::default().threshold),
                start: self.at.clone(),
                against: self.against,
                seed,
            }),
        })
    }
}
