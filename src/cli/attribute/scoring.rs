//! A method by its name alone, with its own settings: what circuits are chosen by.

use candlewick::Error;
use candlewick::hooks::Kind;
use candlewick::methods::attribution::{
    DimAttributionConfig, EdgeAttributionConfig, GradientPath, NodeAttributionConfig,
};
use candlewick::methods::{Along, EdgeConfig, Method, PatchConfig, Reference, Sites};
use clap::ValueEnum;

use super::choices::{MethodChoice, Scored, SourceChoice};

/// Points of an integral over the inputs or over what components write, where nobody says.
pub const STEPS: usize = 5;

impl From<SourceChoice> for Reference {
    fn from(choice: SourceChoice) -> Self {
        match choice {
            SourceChoice::Pair => Reference::Pair,
            SourceChoice::Zero => Reference::Zero,
            SourceChoice::Mean => Reference::Mean,
        }
    }
}

/// How nodes are taken apart before a circuit is chosen of their pieces.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum By {
    /// A node at each position; prompts of one template and length.
    Pos,
    /// A node at each role of the task, and at all other positions.
    Role,
    /// Each dimension of what a node writes to the stream (MIB's neurons).
    Dim,
}

impl MethodChoice {
    /// The method with its own settings, for scores of every edge, or of every head and MLP, that circuits are chosen by.
    /// # Errors
    /// A method of tokens.
    pub fn scoring(
        self,
        steps: Option<usize>,
        source: SourceChoice,
        has_mlp: bool,
        by: Option<By>,
    ) -> anyhow::Result<Box<dyn Method>> {
        let reference = Reference::from(source);
        let steps = steps.unwrap_or(STEPS);
        match (by, self) {
            (Some(By::Dim), _) => {
                return Ok(Box::new(DimAttributionConfig::along(
                    self.path_of_dims(reference, steps)?,
                )));
            }
            (Some(By::Pos | By::Role), _) if !self.scores_nodes() => {
                return Err(Error::invalid(format!(
                    "`{}` does not score nodes at positions; take a node method with it, such as `--method atp`",
                    self.name()
                ))
                .into());
            }
            _ => {}
        }
        Ok(match self.scored() {
            Scored::Edges => Box::new(EdgeAttributionConfig {
                reference,
                ..self.edges(steps)
            }),
            Scored::ExactEdges => Box::new(EdgeConfig {
                reference,
                ..EdgeConfig::all()
            }),
            Scored::Nodes => {
                let kinds = [Some(Kind::Z), has_mlp.then_some(Kind::MlpOut)];
                let whole = |kind| Sites {
                    kind,
                    along: Some(match by {
                        Some(By::Pos) => Along::Pos,
                        Some(By::Role) => Along::Role,
                        Some(By::Dim) | None => Along::All,
                    }),
                };
                let sites: Vec<Sites> = kinds.into_iter().flatten().map(whole).collect();
                let patch = PatchConfig {
                    direction: reference.direction(),
                    source: reference.source(),
                    ..PatchConfig::new(sites)
                };
                Box::new(self.nodes(patch, steps))
            }
            Scored::Tokens | Scored::Removal => {
                return Err(Error::invalid(format!(
                    "`{}` shares a metric out over tokens or parts, and a circuit is made of edges or nodes; take an edge method such as `eap-ig`, or a node method \
                     such as `atp`",
                    self.name()
                ))
                .into());
            }
        })
    }

    /// Whether it scores heads and MLPs, and no edges.
    pub fn scores_nodes(self) -> bool {
        self.scored() == Scored::Nodes
    }

    /// Where the gradients of single dimensions are taken.
    fn path_of_dims(self, reference: Reference, steps: usize) -> anyhow::Result<GradientPath> {
        if reference != Reference::Pair {
            return Err(Error::invalid(
                "dimensions are scored from one run of the pair to the other; leave `--source` out with `--by dim`",
            )
            .into());
        }
        Ok(match self {
            MethodChoice::Eap | MethodChoice::Atp => GradientPath::Base,
            MethodChoice::EapIg | MethodChoice::LayerIg => GradientPath::inputs(steps),
            MethodChoice::CleanCorrupted => GradientPath::Ends,
            _ => {
                return Err(Error::invalid(format!(
                    "`{}` does not score single dimensions; `--by dim` goes with `eap` (or `atp`, the same here), `eap-ig` (or `layer-ig`) and `clean-corrupted`",
                    self.name()
                ))
                .into());
            }
        })
    }

    /// Whether it goes by points of an integral.
    pub fn has_steps(self) -> bool {
        matches!(
            self,
            MethodChoice::LayerIg
                | MethodChoice::Conductance
                | MethodChoice::EapIg
                | MethodChoice::Ceap
                | MethodChoice::EapIgActivations
        )
    }

    pub fn edges(self, steps: usize) -> EdgeAttributionConfig {
        match self {
            MethodChoice::EapIg => EdgeAttributionConfig::eap_ig(steps),
            MethodChoice::Ceap => EdgeAttributionConfig::ceap(steps),
            MethodChoice::CleanCorrupted => EdgeAttributionConfig::clean_corrupted(),
            MethodChoice::EapIgActivations => EdgeAttributionConfig::eap_ig_activations(steps),
            MethodChoice::RelpEdges => EdgeAttributionConfig::relp(),
            _ => EdgeAttributionConfig::eap(),
        }
    }

    pub fn nodes(self, patch: PatchConfig, steps: usize) -> NodeAttributionConfig {
        match self {
            MethodChoice::AtpStar => NodeAttributionConfig::atp_star(patch),
            MethodChoice::Relp => NodeAttributionConfig::relp(patch),
            MethodChoice::LayerIg => NodeAttributionConfig::layer_ig(patch, steps),
            MethodChoice::Conductance => NodeAttributionConfig::conductance(patch, steps),
            _ => NodeAttributionConfig::atp(patch),
        }
    }
}
