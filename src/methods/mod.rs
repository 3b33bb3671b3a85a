//! What is measured, and how. [`method`] says what a method is, [`measure`](mod@measure) is the one loop that runs them all;
//! then one method a file.

pub mod ablation;
pub mod activation_patching;
pub mod activations;
pub mod attention_patterns;
pub mod attribution;
mod captured;
pub(crate) mod choice;
pub mod circuits;
mod columns;
pub mod components;
pub mod composition;
pub mod context;
pub mod continuations;
mod dictionary_eval;
pub mod exact_edges;
pub mod flow;
mod gaussian;
pub mod head_scores;
pub mod head_stats;
pub mod interchange;
mod lasso;
mod latent_activations;
pub mod logits;
pub mod measure;
pub mod method;
pub mod path_patching;
pub mod pine;
pub mod rationale;
mod record;
mod reference;
pub mod removal;
pub mod scaling;
pub mod self_repair;
mod sites;
pub mod steering;
pub mod subspace;
mod taken;
pub mod tokens;
pub mod verify;

pub use ablation::{AblationConfig, Knockout, NodeSet, RankedBy, Ranking, ablation};
pub use activation_patching::{
    PatchConfig, PatchSource, SiteSet, SourceModel, activation_patching,
};
pub use activations::{ActivationsConfig, write_activations};
pub use attention_patterns::AttentionConfig;
pub use attribution::{
    EdgeAttributionConfig, EdgePath, GradientPath, LatentConfig, LatentEstimate,
    NodeAttributionConfig, StepRule, parse_rules,
};
pub use choice::{ChosenHead, Heads, Layers};
pub use circuits::{
    CircuitEval, CircuitMode, FindConfig, FindRule, FindSize, FoundCircuit, NamedCircuit,
    circuit_values_plain, find_circuit,
};
pub use components::{ComponentKind, ComponentsConfig};
pub use composition::{CompositionConfig, composition_scores};
pub use context::{ContextConfig, ContextMethod, KlOrder, Steer};
pub use continuations::{
    Continuation, Distance, Writer, Written, changes, continuations_table, continued_text,
};
pub use dictionary_eval::DictionaryEvalConfig;
pub use exact_edges::{
    EdgeConfig, Reference, exact_edge_effects_plain, exact_edges, exact_edges_together,
};
pub use flow::{AltiFlowConfig, GlobEncConfig, RouteConfig, RouteSettings};
pub use gaussian::GaussianNoise;
pub use head_scores::{
    Candidate, HeadChange, NegativeConfig, ReplaceBy, ReplacementConfig, Search, ShipsConfig,
};
pub use head_stats::HeadConfig;
pub use interchange::{InterchangeConfig, Program, ProgramFile};
pub use latent_activations::LatentActivationsConfig;
pub use logits::{
    DirectTarget, DlaConfig, EarlyConfig, LensConfig, LensPositions, Part, SourceConfig,
    TokenLensConfig, single_tokens,
};
pub use measure::{
    Keeping, Plan, Shards, Watch, check, difference, measure, measure_shard, measurements, merge,
    plan, read_shards, work_plan,
};
pub use method::{
    Cost, Exact, Method, Needs, Preparation, Prepared, Running, Subject, Unit, VerifyOptions,
};
pub use path_patching::{
    NodePath, NodePathConfig, Over, PathConfig, PathSet, Receiver, ReceiverChoice, Receivers,
    Senders, path_patching,
};
pub use pine::PineConfig;
pub use rationale::{Keep, RationaleConfig, Replacer};
pub use removal::{Players, Removal, RemovalConfig, Summary};
pub use scaling::{ModulationConfig, ScalingConfig, scaling};
pub use self_repair::{RepairConfig, RepairParts, RepairTarget, self_repair};
pub use sites::{Along, Sites, parse_sites};
pub use steering::{SteerAt, Steering, SteeringVector, drift};
pub use subspace::{SubspaceConfig, SubspaceMethod};
pub use taken::{TakenModel, TakenTable};
pub use tokens::{ScoreConfig, TokenConfig, TokenMethod, TokenScore};
pub use verify::Verification;
