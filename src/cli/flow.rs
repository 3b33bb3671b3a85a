//! `candlewick flow`: where information flows from, and along what.

use std::path::{Path, PathBuf};

use candlewick::hooks::Pos;
use candlewick::methods::{Method, RouteConfig, RouteSettings};
use clap::Args;

use super::session::{Ask, Asked, CommonArgs, Mode};

/// Follow information from the answer's position down to the tokens: what each state of the stream is made of, and by which heads.
///
/// A part of a state counts by how much nearer to zero the state is brought without it; parts whose share is above `--threshold` are
/// followed. It takes one forward pass a prompt, no gradient and no second prompt. Rows are edges between states
/// (`stream`, `attention` and its `head`s, `mlp`, `bias`), and what each head (`attn.hook_z`) and each MLP (`hook_mlp_out`) brings in
/// all. A share says what a state is made of, not what it does: `--verify` holds heads and MLPs against exact patching.
///
/// `candlewick show flow.parquet --svg route.svg` and `candlewick report` draw the graph by layer and token.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  candlewick flow
  candlewick flow --threshold 0.1 --n-pairs 1
  candlewick flow --at @S2 --renormalise
  candlewick flow --contrast
  candlewick flow --profile --verify 8")]
pub struct FlowArgs {
    /// Parts are followed whose share of a state is larger than this.
    #[arg(long, value_name = "SHARE", default_value_t = RouteSettings::default().threshold)]
    pub threshold: f64,
    /// Scales the shares of the parts that are followed to sum to 1.
    #[arg(long)]
    pub renormalise: bool,
    /// The position to explain: an index, one from the end, or a role such as `@S2` (its last token).
    #[arg(long, value_name = "POSITION", default_value = "-1", allow_hyphen_values = true)]
    pub at: Pos,
    /// The clean prompt's shares less those of the corrupted one.
    #[arg(long)]
    pub contrast: bool,
    /// Only what each head and each MLP brings in all: a profile over prompts of any lengths.
    #[arg(long)]
    pub profile: bool,
    /// Lines of text in the place of a task.
    #[arg(long, value_name = "FILE", conflicts_with_all = ["task", "pairs", "template", "corruption", "contrast", "verify"])]
    pub texts: Option<PathBuf>,
    #[command(flatten)]
    pub common: CommonArgs,
}

impl Ask for FlowArgs {
    fn default_out(&self) -> &'static str {
        "flow.parquet"
    }

    /// Shares are no matter of answers; what they are held against is.
    fn mode(&self) -> Mode {
        let acts = ["threshold", "renormalise", "at", "contrast", "profile", "texts"];
        let name = match (self.contrast, &self.texts) {
            (true, _) => "`--contrast`",
            (false, Some(_)) => "`--texts`",
            (false, None) => "flow without `--verify`",
        };
        let mode = Mode::new(name, &acts);
        match self.common.running.verify {
            Some(_) => mode,
            None => mode.idle(&["metric"]),
        }
    }

    fn texts(&self) -> Option<&Path> {
        self.texts.as_deref()
    }

    fn method(&self, on: &Asked<'_>) -> anyhow::Result<Box<dyn Method>> {
        Ok(Box::new(RouteConfig {
            settings: RouteSettings {
                threshold: self.threshold,
                renormalise: self.renormalise,
            },
            start: self.at.clone(),
            contrast: self.contrast,
            profile: self.profile,
            seed: Some(on.task.seed),
        }))
    }
}
