//! `candlewick attribute`: estimates of patch effects from gradients, for nodes, edges and tokens, and how far they can be trusted.

use std::path::PathBuf;

use candlewick::Error;
use candlewick::circuit::{Graph, ScoredGraph};
use candlewick::hooks::Edge;
use candlewick::methods::attribution::{
    EdgeAttributionConfig, EdgePath, NodeAttributionConfig, Path, StepRule, parse_rules, verify,
};
use candlewick::methods::tokens::{Baseline, TokenConfig, TokenMethod};
use candlewick::methods::{
    EdgeConfig, PatchConfig, PatchSource, Reference, attribution, exact_edges, parse_sites, tokens,
};
use candlewick::model::{EMBEDDED, Model, ModelSpec, load_tokenizer};
use candlewick::nn::rules::Rules;
use candlewick::run::{Progress, SweepOptions};
use candlewick::scores::{Detail, Direction, Scores, check_writable};
use candlewick::task::Task;
use clap::{Args, ValueEnum};

use super::args::{ModelArgs, OutputArgs, TaskArgs, memory};
use super::open::{load_options, open_task};
use super::patch::DirectionChoice;
use super::{Context, destination, open_model, show};

/// Estimate from gradients what patching each node, edge or token would do, and patch some exactly to see how good the estimates are.
///
/// Nodes (`--sites`, as in `candlewick patch`): `atp`, `atp-star`, `relp`, `layer-ig`, `conductance`.
/// Edges (what one component writes, as another reads it): `eap`, `eap-ig`, `clean-corrupted`, `eap-ig-activations`,
/// `relp-edges`; and `exact-edges`, which patches each edge for real.
/// Tokens of the prompt: `grad-x-input`, `saliency-l1`, `saliency-l2`, `smooth-grad`, `ig`, `expected-gradients`, `lrp`, `attn-lrp`,
/// `alti-logit`, `alti-rollout`.
///
/// Estimates are first order and can be far off, even in sign, where attention saturates: `--verify 20` patches the 20 strongest
/// and 20 random ones exactly, and says in one line how well the estimates did.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  candlewick attribute --verify 10
  candlewick attribute --method atp-star --sites q,k,v,z --verify 10 --out star.parquet
  candlewick attribute --method relp --sites resid_pre,mlp_out --direction denoise
  candlewick attribute --method eap-ig --steps 5 --verify 20 --graph circuit.json
  candlewick attribute --method eap --source mean --per-example --n-pairs 4
  candlewick attribute --method exact-edges --edges 'a0.h2->a3.h0<q>,input->a0.h2<v>'
  candlewick attribute --method attn-lrp --verify 4")]
pub struct AttributeArgs {
    /// How effects are estimated.
    #[arg(long, default_value = "atp")]
    pub method: MethodChoice,
    /// Nodes: hooks, each with optional axes, as for `candlewick patch` [default: z,mlp_out; AtP*: q,k,v,z,mlp_out].
    #[arg(long, short)]
    pub sites: Option<String>,
    /// Which run is changed [default: noise, the corrupted value in the clean run; ablate with another source].
    #[arg(long, short)]
    pub direction: Option<DirectionChoice>,
    /// What is put in place.
    #[arg(long, default_value = "pair")]
    pub source: SourceChoice,
    /// Points of an integral [default: 5; token methods: 50].
    #[arg(long, value_name = "N")]
    pub steps: Option<usize>,
    /// Where on the line from the corrupted run (0) to the clean run (1) the points of an integral stand.
    #[arg(long, default_value = "midpoint")]
    pub step_rule: StepRuleChoice,
    /// Backward rules: gradient, relp, relp-frozen-pattern, attn-lrp, cp-lrp [default: the method's].
    #[arg(long, value_name = "NAME")]
    pub rules: Option<String>,
    /// AtP* without the exact softmax of queries and keys.
    #[arg(long)]
    pub no_qk_fix: bool,
    /// AtP* without GradDrop, which makes scores sizes without sign.
    #[arg(long)]
    pub no_grad_drop: bool,
    /// Edges: a score for each position.
    #[arg(long)]
    pub by_position: bool,
    /// With `eap-ig-activations`: credit every edge in every run, as the reference code does.
    #[arg(long)]
    pub every_edge: bool,
    /// With `exact-edges`: only these, such as `a0.h1->a3.h0<q>,m2->logits` [default: all].
    #[arg(long, value_name = "EDGES", value_delimiter = ',')]
    pub edges: Vec<String>,
    /// Patch the K strongest and K random ones exactly, and compare.
    #[arg(long, value_name = "K")]
    pub verify: Option<usize>,
    /// With AtP* and `--verify`: joint patches behind the bound on what was missed; 0 for none.
    #[arg(long, value_name = "N", default_value_t = 64)]
    pub bound_draws: usize,
    /// Edges: also write the scores as the field's JSON (EAP-IG, MIB).
    #[arg(long, value_name = "FILE")]
    pub graph: Option<PathBuf>,
    /// Edges: say how well the scores agree with those of such a file.
    #[arg(long, value_name = "FILE")]
    pub compare: Option<PathBuf>,
    /// Memory for activations, such as `512MB` or `4GB` [default: a quarter of what is free; edges: less].
    #[arg(long, value_name = "SIZE", value_parser = memory)]
    pub memory: Option<usize>,
    #[command(flatten)]
    pub model: ModelArgs,
    #[command(flatten)]
    pub task: TaskArgs,
    #[command(flatten)]
    pub output: OutputArgs,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum MethodChoice {
    /// Attribution patching: the gradient at the changed run.
    Atp,
    /// With the exact softmax of queries and keys, and GradDrop.
    AtpStar,
    /// Relevance patching: norm, identity and half rule.
    Relp,
    /// Integrated gradients over the embeddings, at each node.
    LayerIg,
    /// The integral of the gradient along the node's own change.
    Conductance,
    /// Edge attribution patching.
    Eap,
    /// Its integral over the embeddings.
    EapIg,
    /// Its mean at both ends.
    CleanCorrupted,
    /// Its integral over what each component writes.
    EapIgActivations,
    /// Edges by the rules of RelP.
    RelpEdges,
    /// Every edge patched for real.
    ExactEdges,
    GradXInput,
    SaliencyL1,
    SaliencyL2,
    SmoothGrad,
    /// Integrated gradients of the tokens.
    Ig,
    ExpectedGradients,
    /// Layer-wise relevance propagation, conservative (CP-LRP).
    Lrp,
    AttnLrp,
    AltiLogit,
    AltiRollout,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum SourceChoice {
    /// The pair's other run.
    Pair,
    Zero,
    /// The mean over the corrupted prompts, per position within each template.
    Mean,
    /// The mean over all positions of the corrupted prompts (nodes only).
    MeanAll,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum StepRuleChoice {
    Midpoint,
    Left,
    Right,
}

/// What a method scores.
enum Kind {
    Nodes,
    Edges,
    ExactEdges,
    Tokens(TokenMethod),
}

impl MethodChoice {
    fn name(self) -> String {
        let value = self.to_possible_value().expect("no method is hidden");
        value.get_name().to_string()
    }

    fn kind(self) -> anyhow::Result<Kind> {
        Ok(match self {
            MethodChoice::Atp
            | MethodChoice::AtpStar
            | MethodChoice::Relp
            | MethodChoice::LayerIg
            | MethodChoice::Conductance => Kind::Nodes,
            MethodChoice::Eap
            | MethodChoice::EapIg
            | MethodChoice::CleanCorrupted
            | MethodChoice::EapIgActivations
            | MethodChoice::RelpEdges => Kind::Edges,
            MethodChoice::ExactEdges => Kind::ExactEdges,
            _ => Kind::Tokens(self.name().parse()?),
        })
    }
}

pub fn run(args: AttributeArgs, ctx: &Context) -> anyhow::Result<()> {
    let mut options = load_options(&args.model)?;
    options.show_download_progress &= !ctx.quiet;
    // Everything that can be wrong is found before the weights are read.
    let out = destination(&args.output, "attribution.parquet", ctx)?;
    let kind = args.method.kind()?;
    check_flags(&args, &kind)?;
    if let Some(path) = &args.graph {
        check_writable(path)?;
    }
    let (tokenizer, spec) = load_tokenizer(&args.model.model, &options)?;
    let embedded = args.model.model == EMBEDDED;
    let task = open_task(&args.task, &tokenizer, spec.n_ctx, embedded)?;
    ctx.warn_of(&task);
    let work = Work::new(&args, kind, &spec, &task)?;
    let theirs = match &args.compare {
        Some(path) => Some(ScoredGraph::read(path, Graph::new(&spec))?),
        None => None,
    };
    let progress = ctx.progress();
    let model = open_model(&args.model, &options, ctx)?;
    let found = work.run(&args, &model, &task, &progress)?;

    let mut scores = found.scores;
    if let Some(theirs) = &theirs {
        let ours = found.graph.as_ref().expect("checked to be edges");
        scores.provenance.notes.push(agreement(ours, theirs));
    }
    if let (Some(path), Some(graph)) = (&args.graph, &found.graph) {
        graph.write(path)?;
    }
    show::finish(scores, &out, &args.output, ctx)
}

/// Flags that mean nothing for a method are mistakes, not decoration.
fn check_flags(args: &AttributeArgs, kind: &Kind) -> anyhow::Result<()> {
    let is_edges = matches!(kind, Kind::Edges | Kind::ExactEdges);
    let is_star = args.method == MethodChoice::AtpStar;
    let is_tokens = matches!(kind, Kind::Tokens(_));
    let wrong = [
        (
            args.sites.is_some() && !matches!(kind, Kind::Nodes),
            "--sites",
            "node methods",
        ),
        (args.graph.is_some() && !is_edges, "--graph", "edge methods"),
        (
            args.compare.is_some() && !is_edges,
            "--compare",
            "edge methods",
        ),
        (
            args.by_position && !matches!(kind, Kind::Edges),
            "--by-position",
            "estimates of edges",
        ),
        (
            !args.edges.is_empty() && !matches!(kind, Kind::ExactEdges),
            "--edges",
            "exact-edges",
        ),
        (args.no_qk_fix && !is_star, "--no-qk-fix", "atp-star"),
        (args.no_grad_drop && !is_star, "--no-grad-drop", "atp-star"),
        (
            args.every_edge && args.method != MethodChoice::EapIgActivations,
            "--every-edge",
            "eap-ig-activations",
        ),
        (
            args.direction.is_some() && (is_edges || is_tokens),
            "--direction",
            "node methods",
        ),
        (
            args.rules.is_some() && (is_tokens || matches!(kind, Kind::ExactEdges)),
            "--rules",
            "node and edge estimates",
        ),
        (
            args.verify.is_some() && matches!(kind, Kind::ExactEdges),
            "--verify",
            "estimates; `exact-edges` is what it would verify with",
        ),
    ];
    match wrong.into_iter().find(|(wrong, _, _)| *wrong) {
        Some((_, flag, of)) => anyhow::bail!(
            "`{flag}` is for {of}, and the method is `{}`; leave it out or choose another `--method`",
            args.method.name()
        ),
        None => Ok(()),
    }
}

/// What is to be done, checked as far as it can be without weights.
enum Work {
    Nodes(NodeAttributionConfig),
    Edges(EdgeAttributionConfig),
    ExactEdges(EdgeConfig, Vec<Edge>),
    /// The method, and what takes a token away for verification.
    Tokens(TokenConfig, PatchConfig),
}

/// What was found.
struct Found {
    scores: Scores,
    /// Scores of edges, for interchange.
    graph: Option<ScoredGraph>,
}

impl Work {
    fn new(
        args: &AttributeArgs,
        kind: Kind,
        spec: &ModelSpec,
        task: &Task,
    ) -> anyhow::Result<Self> {
        let rules = args.rules.as_deref().map(parse_rules).transpose()?;
        let defaults = SweepOptions::default();
        let sweep = SweepOptions {
            memory: args.memory.unwrap_or(defaults.memory),
            ..defaults
        };
        let detail = match args.output.per_example {
            true => Detail::PerExample,
            false => Detail::Mean,
        };
        let rule = match args.step_rule {
            StepRuleChoice::Midpoint => StepRule::Midpoint,
            StepRuleChoice::Left => StepRule::Left,
            StepRuleChoice::Right => StepRule::Right,
        };
        let steps = args.steps.unwrap_or(5);
        let inputs = Path::Inputs { steps, rule };
        let reference = || match args.source {
            SourceChoice::Pair => Ok(Reference::Pair),
            SourceChoice::Zero => Ok(Reference::Zero),
            SourceChoice::Mean => Ok(Reference::Mean),
            SourceChoice::MeanAll => Err(Error::invalid(
                "edges take a mean per position; use `--source mean`",
            )),
        };
        let work = match kind {
            Kind::Nodes => {
                let patch = patch_config(args, spec, task, detail, sweep)?;
                let base = NodeAttributionConfig {
                    method: args.method.name(),
                    ..NodeAttributionConfig::atp(patch)
                };
                let config = match args.method {
                    MethodChoice::AtpStar => NodeAttributionConfig {
                        qk_fix: !args.no_qk_fix,
                        grad_drop: !args.no_grad_drop,
                        ..base
                    },
                    MethodChoice::Relp => NodeAttributionConfig {
                        rules: Rules::relp(),
                        ..base
                    },
                    MethodChoice::LayerIg => NodeAttributionConfig {
                        path: inputs,
                        ..base
                    },
                    MethodChoice::Conductance => NodeAttributionConfig {
                        path: inputs,
                        conductance: true,
                        ..base
                    },
                    _ => base,
                };
                let config = NodeAttributionConfig {
                    rules: rules.unwrap_or(config.rules.clone()),
                    ..config
                };
                config.check(spec, task)?;
                Work::Nodes(config)
            }
            Kind::Edges => {
                let path = match args.method {
                    MethodChoice::EapIg => EdgePath::Along(inputs),
                    MethodChoice::CleanCorrupted => EdgePath::Along(Path::Ends),
                    MethodChoice::EapIgActivations => EdgePath::Activations {
                        steps,
                        rule,
                        every_edge: args.every_edge,
                    },
                    _ => EdgePath::Along(Path::Base),
                };
                let own = match args.method {
                    MethodChoice::RelpEdges => Rules::relp(),
                    _ => Rules::gradient(),
                };
                let config = EdgeAttributionConfig {
                    method: args.method.name(),
                    reference: reference()?,
                    path,
                    rules: rules.unwrap_or(own),
                    by_position: args.by_position,
                    detail,
                    seed: task.seed,
                    memory: args.memory,
                    ..EdgeAttributionConfig::eap(task.metric)
                };
                config.check(task)?;
                Work::Edges(config)
            }
            Kind::ExactEdges => {
                let graph = Graph::new(spec);
                let edges = match args.edges.is_empty() {
                    true => graph.edges().collect(),
                    false => args
                        .edges
                        .iter()
                        .map(|edge| edge.parse())
                        .collect::<Result<Vec<Edge>, _>>()?,
                };
                for edge in &edges {
                    graph.place(edge)?;
                }
                let config = EdgeConfig {
                    reference: reference()?,
                    sweep,
                    ..EdgeConfig::new(task.metric)
                };
                Work::ExactEdges(config, edges)
            }
            Kind::Tokens(mut method) => {
                let mut source = PatchSource::Zero;
                if let TokenMethod::IntegratedGradients {
                    steps, baseline, ..
                } = &mut method
                {
                    *steps = args.steps.unwrap_or(*steps);
                    if args.source == SourceChoice::Pair {
                        *baseline = Baseline::Pair;
                        source = PatchSource::Pair;
                    }
                }
                let config = TokenConfig {
                    detail,
                    seed: task.seed,
                    memory: sweep.memory,
                    ..TokenConfig::new(method, task.metric)
                };
                config.check(task)?;
                let removal = PatchConfig {
                    direction: match source {
                        PatchSource::Pair => Direction::Noise,
                        _ => Direction::Ablate,
                    },
                    source,
                    sweep,
                    seed: task.seed,
                    ..PatchConfig::new(parse_sites("embed:pos", spec)?, task.metric)
                };
                Work::Tokens(config, removal)
            }
        };
        Ok(work)
    }

    fn run(
        &self,
        args: &AttributeArgs,
        model: &Model,
        task: &Task,
        progress: &dyn Progress,
    ) -> anyhow::Result<Found> {
        let scores = match self {
            Work::Nodes(config) => {
                let verify = args.verify.map(|k| attribution::VerifyOptions {
                    k,
                    bound_draws: match args.method {
                        MethodChoice::AtpStar => args.bound_draws,
                        _ => 0,
                    },
                });
                attribution::attribute_nodes(model, task, config, verify, progress)?
            }
            Work::Edges(config) => {
                let (scores, estimates) =
                    attribution::attribute_edges(model, task, config, args.verify, progress)?;
                let graph = Some(estimates.scored_graph()?);
                return Ok(Found { scores, graph });
            }
            Work::ExactEdges(config, edges) => {
                let detail = match args.output.per_example {
                    true => Detail::PerExample,
                    false => Detail::Mean,
                };
                let (scores, measured) =
                    exact_edges::exact_edge_scores(model, task, edges, config, detail, progress)?;
                let mut graph = ScoredGraph::new(Graph::new(&model.spec));
                for (edge, score) in edges.iter().zip(measured.mean()) {
                    graph.set_score(edge, score)?;
                }
                let graph = Some(graph);
                return Ok(Found { scores, graph });
            }
            Work::Tokens(config, removal) => match args.verify {
                None => tokens::token_attribution(model, task, config, progress)?,
                Some(k) => verify::verified_tokens(model, task, config, removal, k, progress)?,
            },
        };
        Ok(Found {
            scores,
            graph: None,
        })
    }
}

fn patch_config(
    args: &AttributeArgs,
    spec: &ModelSpec,
    task: &Task,
    detail: Detail,
    sweep: SweepOptions,
) -> anyhow::Result<PatchConfig> {
    let has_mlp = spec.mlp != candlewick::spec::Mlp::None;
    let default = match (args.method, has_mlp) {
        (MethodChoice::AtpStar, true) => "q,k,v,z,mlp_out",
        (MethodChoice::AtpStar, false) => "q,k,v,z",
        (_, true) => "z,mlp_out",
        (_, false) => "z",
    };
    let sites = parse_sites(args.sites.as_deref().unwrap_or(default), spec)?;
    let source = match args.source {
        SourceChoice::Pair => PatchSource::Pair,
        SourceChoice::Zero => PatchSource::Zero,
        SourceChoice::Mean => PatchSource::Mean,
        SourceChoice::MeanAll => PatchSource::MeanAll,
    };
    let direction = match args.direction {
        Some(DirectionChoice::Denoise) => Direction::Denoise,
        Some(DirectionChoice::Noise) => Direction::Noise,
        Some(DirectionChoice::Ablate) => Direction::Ablate,
        None if source == PatchSource::Pair => Direction::Noise,
        None => Direction::Ablate,
    };
    Ok(PatchConfig {
        direction,
        source,
        detail,
        seed: task.seed,
        sweep,
        ..PatchConfig::new(sites, task.metric)
    })
}

/// How well two sets of edge scores agree.
fn agreement(ours: &ScoredGraph, theirs: &ScoredGraph) -> String {
    let pairs: Vec<(f64, f64)> = ours
        .edges()
        .zip(theirs.edges())
        .filter_map(|((_, a, _), (_, b, _))| Some((a?, b?)))
        .collect();
    let correlation = verify::correlation(&pairs).map_or("undefined".into(), |r| format!("{r:.4}"));
    let gap = pairs.iter().map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
    format!(
        "compared with {} scored edges of the file: correlation {correlation}, largest difference {gap:.3e}",
        pairs.len()
    )
}
