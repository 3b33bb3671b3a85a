//! `candlewick attribute`: estimates of patch effects from gradients, for nodes, edges and tokens, and how far they can be trusted.

mod choices;
mod scoring;
#[cfg(test)]
mod tests;
mod tokens;

use std::path::PathBuf;
use std::sync::OnceLock;

use candlewick::Error;
use candlewick::circuit::{Graph, ScoredGraph};
use candlewick::hooks::Edge;
use candlewick::methods::attribution::{
    EdgeAttributionConfig, EdgePath, GradientPath, NodeAttributionConfig, StepRule, parse_rules,
};
use candlewick::methods::tokens::{Baseline, OverNoise, ReferenceSet};
use candlewick::methods::{
    EdgeConfig, Method, PatchConfig, PatchSource, Reference, Removal, RemovalConfig, Summary,
    TokenScore, parse_sites,
};
use candlewick::model::ModelSpec;
use candlewick::nn::rules::Rules;
use candlewick::scores::{Direction, Scores, check_writable};
use candlewick::spec::Mlp;
use clap::Args;

pub use choices::{MethodChoice, PlayersChoice, SourceChoice};

use choices::Scored;
pub use scoring::By;
use scoring::STEPS;

use super::args::SourceModelArgs;
use super::patch::{DirectionChoice, direction_of};
use super::session::{Ask, Asked, CommonArgs, Mode};

/// Estimate from gradients what patching each node, edge or token would do, and patch some exactly to see how good the estimates are.
///
/// Nodes (`--sites`, as in `candlewick patch`): `atp`, `atp-star`, `relp`, `layer-ig`, `conductance`.
/// Edges (what one component writes, as another reads it): `eap`, `eap-ig`, `ceap`, `clean-corrupted`, `eap-ig-activations`,
/// `relp-edges`; and `exact-edges`, which patches each edge for real.
/// Tokens of the prompt: `grad-x-input`, `saliency-l1`, `saliency-l2`, `smooth-grad`, `ig`, `expected-gradients`, `gradient-shap`, `lrp`,
/// `attn-lrp`, `alti-logit`, `alti-rollout`, and as baselines `last-attention`, `attention-rollout`, `attention-x-grad`,
/// `random`. `--score` holds these methods against what is asked of them, by a role of the task that they ought to find (`--gold`), and by
/// what the model does without the tokens that they name.
/// What happens without parts of the prompt or the model (`--players`, `--removal`): `leave-one-out`, `include-one`, `occlusion`, `shapley`,
/// `kernel-shap`, `lime`, `sobol`; of up to 12 parts all coalitions are run.
///
/// Nodes and edges say what the corrupted value would do in the clean run (noise), where `candlewick patch` denoises unless
/// told otherwise. Estimates are first order and can be far off, even in sign, where attention saturates: `--verify 20` patches
/// the 20 strongest and 20 random ones exactly, and says in one line how well the estimates did.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  candlewick attribute --verify 10
  candlewick attribute --method atp-star --sites q,k,v,z --verify 10 -o star.parquet
  candlewick attribute --method relp --sites resid_pre --direction denoise -o relp.parquet
  candlewick attribute --method eap-ig --steps 5 --verify 20 --graph ig.json -o ig.parquet
  candlewick attribute --method ceap --steps 5 --verify 10 --n-pairs 4 -o ceap.parquet
  candlewick attribute --method eap --compare ig.json --n-pairs 8 -o eap.parquet
  candlewick attribute --method eap --source mean --per-example --n-pairs 4 -o mean.parquet
  candlewick attribute --method eap --source-model embedded --n-pairs 4 -o theirs.parquet
  candlewick attribute --method exact-edges --edges 'input->a0.h2<v>,m3->logits' -o e.parquet
  candlewick attribute --method attn-lrp --verify 4 -o lrp.parquet
  candlewick attribute --method ig --baseline pair --steps 20 -o tokens.parquet
  candlewick attribute --method ig --baseline mean --via pair --steps 10 --n-pairs 4 -o bent.parquet
  candlewick attribute --method gradient-shap --noise 0.02 --draws 50 --n-pairs 4 -o shap.parquet
  candlewick attribute --method grad-x-input --tunnel vargrad --n-pairs 4 -o variance.parquet
  candlewick attribute --method attention-rollout -o rollout.parquet
  candlewick attribute --score --gold IO --n-pairs 2 --steps 5 --draws 5 --top 20 -o methods.parquet
  candlewick attribute --score --method lrp --by comprehensiveness,sufficiency -o lrp-score.parquet
  candlewick attribute --method shapley --removal zero --n-pairs 2 -o shapley.parquet
  candlewick attribute --method kernel-shap --players heads --n-pairs 4 -o heads.parquet
  candlewick attribute --method sobol --players roles --removal delete -o roles.parquet
  candlewick attribute --method occlusion --window 3 --removal mean --n-pairs 4 -o windows.parquet
  candlewick attribute --method leave-one-out --removal permute --n-pairs 8 -o permuted.parquet")]
pub struct AttributeArgs {
    /// How effects are estimated [default: atp].
    #[arg(long)]
    pub method: Option<MethodChoice>,
    /// Score methods of tokens, `--method` and random shares or all of them: a row for each.
    #[arg(long)]
    pub score: bool,
    /// With `--score`: the role whose tokens a method ought to find, such as the subject that the verb agrees with.
    #[arg(long, value_name = "ROLE")]
    pub gold: Option<String>,
    /// With `--score`: only these scores, the first as `score` [default: all; those of known tokens with `--gold`].
    #[arg(long, value_name = "SCORES", value_delimiter = ',')]
    pub by: Vec<TokenScore>,
    /// Nodes: hooks, each with optional axes, as for `candlewick patch` [default: z,mlp_out; AtP*: q,k,v,z,mlp_out].
    #[arg(long, short)]
    pub sites: Option<String>,
    /// Nodes: which run is changed [default: noise, the corrupted value in the clean run, where `candlewick patch` denoises;
    /// ablate with another source]. Edges are noised or ablated.
    #[arg(long, short)]
    pub direction: Option<DirectionChoice>,
    /// Nodes and edges: what is put in place: `pair` (the pair's other run), `zero`, `mean` (over the corrupted prompts, per position within
    /// each template), of nodes also `mean-all` (over all positions), or `same` (the same prompt in the source model) [default: pair;
    /// same with `--source-model`].
    #[arg(long)]
    pub source: Option<PatchSource>,
    #[command(flatten)]
    pub values: SourceModelArgs,
    /// What paths start from: zero, mean (of all embeddings), bos, pair (the corrupted prompt), or a token of the vocabulary at every
    /// position, as in `token:<pad>`; with `expected-gradients` and `gradient-shap` also corrupted or clean, which draw among the prompts
    /// of the task [default: ig: mean; else corrupted].
    #[arg(long)]
    pub baseline: Option<ReferenceSet>,
    /// With `ig`: baselines that the path leads through before it comes to the prompt, in order; each leg has its own points.
    #[arg(long, value_name = "BASELINE")]
    pub via: Vec<Baseline>,
    /// Points of an integral [default: 5; ig: 50].
    #[arg(long, value_name = "N")]
    pub steps: Option<usize>,
    /// Where the points of an integral stand on the line from the corrupted run (0) to the clean run (1), whichever is changed; with
    /// `ig` from the baseline to the prompt [default: midpoint; ceap: trapezoid; ig: Gauss-Legendre].
    #[arg(long)]
    pub step_rule: Option<StepRule>,
    /// Draws for each prompt [default: 50; expected-gradients, gradient-shap: 200; with more than 12 parts that are removed, shapley: 100 orders and their
    /// reverses, kernel-shap: 1024 coalitions and their complements, lime: 1024, sobol: 128].
    #[arg(long, value_name = "N")]
    pub draws: Option<usize>,
    /// Gradients of tokens at noisy copies of the prompt: their mean, the mean of their squares, or their variance.
    #[arg(long)]
    pub tunnel: Option<OverNoise>,
    /// With `--tunnel`: noisy copies of each prompt [default: 20].
    #[arg(long, value_name = "N")]
    pub tunnel_draws: Option<usize>,
    /// With `smooth-grad`, `gradient-shap` or `--tunnel`: standard deviation of the noise, as a share of the span of the prompt's embeddings
    /// [default: 0.15; gradient-shap: 0.05].
    #[arg(long, value_name = "SHARE")]
    pub noise: Option<f64>,
    /// Removals: the parts that are there or not.
    #[arg(long, default_value = "tokens")]
    pub players: PlayersChoice,
    /// Removals: what becomes of a part that is not there: pair (its value in the corrupted run), zero, mean (over the corrupted prompts,
    /// per position); of tokens and roles also delete, permute (what stands there in another pair's clean prompt), or another token in their
    /// place, as in `token:<pad>`.
    #[arg(long, default_value = "pair")]
    pub removal: Removal,
    /// With `occlusion`: neighbours that are removed together [default: 3].
    #[arg(long, value_name = "N")]
    pub window: Option<usize>,
    /// With `occlusion`: parts from one window to the next [default: 1].
    #[arg(long, value_name = "N")]
    pub stride: Option<usize>,
    /// Nodes and edges: backward rules, one of gradient, relp, relp-frozen-pattern, attn-lrp, cp-lrp [default: the method's].
    #[arg(long, value_name = "NAME", value_parser = parse_rules)]
    pub rules: Option<Rules>,
    /// AtP* without the exact softmax of queries and keys.
    #[arg(long)]
    pub no_qk_fix: bool,
    /// AtP* without GradDrop, which makes scores sizes without sign.
    #[arg(long)]
    pub no_grad_drop: bool,
    /// Estimates of edges: a score for each position.
    #[arg(long)]
    pub by_position: bool,
    /// With `eap-ig-activations`: credit every edge in every run, as the reference code does.
    #[arg(long)]
    pub every_edge: bool,
    /// With `exact-edges`: only these, such as `a0.h1->a3.h0<q>,m2->logits` [default: all].
    #[arg(long, value_name = "EDGES", value_delimiter = ',')]
    pub edges: Vec<Edge>,
    /// With AtP* and `--verify`: joint patches behind the bound on what was missed, at least 8; 0 for none.
    #[arg(long, value_name = "N", default_value_t = 64)]
    pub bound_draws: usize,
    /// Edges: also write the scores as the field's JSON (EAP-IG, MIB).
    #[arg(long, value_name = "FILE")]
    pub graph: Option<PathBuf>,
    /// Edges: say how well the scores agree with those of such a file.
    #[arg(long, value_name = "FILE")]
    pub compare: Option<PathBuf>,
    #[command(flatten)]
    pub common: CommonArgs,
    /// What `--compare` names, once it is read.
    #[arg(skip)]
    theirs: OnceLock<ScoredGraph>,
}

impl Ask for AttributeArgs {
    fn default_out(&self) -> &'static str {
        "attribution.parquet"
    }

    fn mode(&self) -> Mode {
        if self.score {
            let mut acts = vec!["score", "method", "gold", "by"];
            if matches!(self.method, None | Some(MethodChoice::Ig)) {
                acts.push("steps");
            }
            let draws = [
                MethodChoice::SmoothGrad,
                MethodChoice::ExpectedGradients,
                MethodChoice::GradientShap,
            ];
            if self.method.is_none_or(|method| draws.contains(&method)) {
                acts.push("draws");
            }
            return Mode::new("`--score`", &acts);
        }
        let verifies = self.common.running.verify.is_some();
        let mut acts = vec!["method"];
        acts.extend_from_slice(match self.chosen().scored() {
            Scored::Nodes => &[
                "sites",
                "direction",
                "source",
                "source_model",
                "source_revision",
                "rules",
            ],
            Scored::Edges => &[
                "source",
                "source_model",
                "source_revision",
                "rules",
                "by_position",
                "graph",
                "compare",
            ],
            Scored::ExactEdges => &[
                "source",
                "source_model",
                "source_revision",
                "edges",
                "graph",
                "compare",
            ],
            Scored::Tokens => &[],
            Scored::Removal => &["players", "removal"],
        });
        acts.extend_from_slice(match self.chosen() {
            MethodChoice::AtpStar if verifies => &["no_qk_fix", "no_grad_drop", "bound_draws"],
            MethodChoice::AtpStar => &["no_qk_fix", "no_grad_drop"],
            MethodChoice::LayerIg | MethodChoice::EapIg | MethodChoice::Ceap => {
                &["steps", "step_rule"]
            }
            MethodChoice::EapIgActivations => &["steps", "step_rule", "every_edge"],
            MethodChoice::Conductance => &["steps"],
            MethodChoice::Ig => &["steps", "step_rule", "baseline", "via"],
            MethodChoice::SmoothGrad => &["draws", "noise"],
            MethodChoice::ExpectedGradients => &["draws", "baseline"],
            MethodChoice::GradientShap => &["draws", "noise", "baseline"],
            MethodChoice::Occlusion => &["window", "stride"],
            MethodChoice::Shapley
            | MethodChoice::KernelShap
            | MethodChoice::Lime
            | MethodChoice::Sobol => &["draws"],
            _ => &[],
        });
        let has_tunnels = self.chosen().goes_through_noise();
        if has_tunnels {
            acts.push("tunnel");
            if self.tunnel.is_some() {
                acts.extend(["tunnel_draws", "noise"]);
            }
        }
        let of_scores = "it is for the scores of methods; add `--score`";
        let mut mode = Mode::new(format!("`--method {}`", self.chosen().name()), &acts)
            .instead("gold", of_scores)
            .instead("by", of_scores);
        if has_tunnels {
            let remedy =
                "it is for a noise tunnel; add `--tunnel smoothgrad`, `smoothgrad-sq` or `vargrad`";
            mode = mode
                .instead("tunnel_draws", remedy)
                .instead("noise", remedy);
        }
        match self.chosen() {
            MethodChoice::AtpStar => mode.instead(
                "bound_draws",
                "it is for the bound that `--verify K` gives; add that, or leave it out",
            ),
            MethodChoice::Ig => mode.instead(
                "source",
                "say what the integral starts from with `--baseline zero|mean|bos|pair|token:...`",
            ),
            MethodChoice::SmoothGrad
            | MethodChoice::ExpectedGradients
            | MethodChoice::GradientShap => {
                mode.instead("steps", "say how many points are drawn with `--draws`")
            }
            MethodChoice::Conductance => mode.instead(
                "step_rule",
                "it goes by the trapezoid rule; leave it out, or take `layer-ig`",
            ),
            _ if self.chosen().scored() == Scored::Removal => mode.instead(
                "source",
                "say what becomes of a part that is not there with `--removal pair|zero|mean|delete|permute|token:...`",
            ),
            // They mix tokens and know no metric, which only what it is held against has.
            MethodChoice::AltiRollout
            | MethodChoice::LastAttention
            | MethodChoice::AttentionRollout
            | MethodChoice::Random
                if !verifies =>
            {
                mode.idle(&["metric"])
            }
            _ => mode,
        }
    }

    fn method(&self, on: &Asked<'_>) -> anyhow::Result<Box<dyn Method>> {
        if self.score {
            return Ok(Box::new(self.scores(on.spec)?));
        }
        Ok(match self.chosen().scored() {
            Scored::Nodes => Box::new(self.nodes(on)?),
            Scored::Edges => Box::new(self.edge_estimates(on)?),
            Scored::ExactEdges => Box::new(EdgeConfig {
                edges: (!self.edges.is_empty()).then(|| self.edges.clone()),
                metric: None,
                reference: self.reference()?,
                source_model: self.values.open(on.options)?,
            }),
            Scored::Tokens => Box::new(self.tokens()?),
            Scored::Removal => Box::new(self.removal()?),
        })
    }

    fn bound_draws(&self) -> usize {
        if self.chosen() == MethodChoice::AtpStar {
            self.bound_draws
        } else {
            0
        }
    }

    fn check_files(&self, spec: &ModelSpec) -> anyhow::Result<()> {
        if let Some(path) = &self.graph {
            check_writable(path)?;
            let is_graph = |path| ScoredGraph::read(path, Graph::new(spec)).is_ok();
            if path.exists() && !self.common.output.force && !is_graph(path) {
                return Err(Error::invalid(format!(
                    "`{}` is no graph of this model, and stays as it is; choose another path with `--graph`, or replace it with \
                     `--force`",
                    path.display()
                ))
                .into());
            }
        }
        if let Some(path) = &self.compare {
            let theirs = ScoredGraph::read(path, Graph::new(spec))?;
            self.theirs.get_or_init(|| theirs);
        }
        Ok(())
    }

    fn finish(&self, scores: &mut Scores, spec: &ModelSpec) -> anyhow::Result<()> {
        if self.graph.is_none() && self.compare.is_none() {
            return Ok(());
        }
        let ours = ScoredGraph::from_scores(scores, Graph::new(spec))?;
        if let (Some(path), Some(theirs)) = (&self.compare, self.theirs.get()) {
            scores.provenance.notes.push(format!(
                "compared with `{}`: {}",
                path.display(),
                ours.agreement(theirs)
            ));
        }
        if let Some(path) = &self.graph {
            ours.write(path)?;
        }
        Ok(())
    }
}

impl AttributeArgs {
    fn chosen(&self) -> MethodChoice {
        self.method.unwrap_or(MethodChoice::Atp)
    }

    fn source(&self) -> PatchSource {
        self.values.source(self.source, PatchSource::Pair)
    }

    /// What edges can be given.
    fn reference(&self) -> Result<Reference, Error> {
        match self.source() {
            PatchSource::Pair => Ok(Reference::Pair),
            PatchSource::Zero => Ok(Reference::Zero),
            PatchSource::Mean => Ok(Reference::Mean),
            PatchSource::Same => Ok(Reference::Same),
            PatchSource::MeanAll => Err(Error::invalid(
                "edges take a mean per position; use `--source mean`",
            )),
            other => Err(Error::invalid(format!(
                "`{other}` is no source for edges; they take `pair`, `zero`, `mean`, or `same` with `--source-model`"
            ))),
        }
    }

    fn nodes(&self, on: &Asked<'_>) -> anyhow::Result<NodeAttributionConfig> {
        let default = match (self.chosen(), on.spec.mlp != Mlp::None) {
            (MethodChoice::AtpStar, true) => "q,k,v,z,mlp_out",
            (MethodChoice::AtpStar, false) => "q,k,v,z",
            (_, true) => "z,mlp_out",
            (_, false) => "z",
        };
        let sites = parse_sites(self.sites.as_deref().unwrap_or(default))?;
        let source = self.source();
        let patch = PatchConfig {
            direction: direction_of(self.direction, source, Direction::Noise),
            source,
            source_model: self.values.open(on.options)?,
            ..PatchConfig::new(sites)
        };
        let steps = self.steps.unwrap_or(STEPS);
        let mut config = self.chosen().nodes(patch, steps);
        config.qk_fix &= !self.no_qk_fix;
        config.grad_drop &= !self.no_grad_drop;
        if let GradientPath::Inputs { rule, .. } = &mut config.path {
            *rule = self.step_rule.unwrap_or(*rule);
        }
        config.rules = self.rules.clone().unwrap_or(config.rules);
        Ok(config)
    }

    fn edge_estimates(&self, on: &Asked<'_>) -> anyhow::Result<EdgeAttributionConfig> {
        let steps = self.steps.unwrap_or(STEPS);
        let mut config = self.chosen().edges(steps);
        match &mut config.path {
            EdgePath::Along(GradientPath::Inputs { rule, .. })
            | EdgePath::Conductance { rule, .. } => {
                *rule = self.step_rule.unwrap_or(*rule);
            }
            EdgePath::Activations {
                rule, every_edge, ..
            } => {
                *rule = self.step_rule.unwrap_or(*rule);
                *every_edge = self.every_edge;
            }
            EdgePath::Along(GradientPath::Base | GradientPath::Ends) => {}
        }
        config.reference = self.reference()?;
        config.source_model = self.values.open(on.options)?;
        config.rules = self.rules.clone().unwrap_or(config.rules);
        config.by_position = self.by_position;
        Ok(config)
    }

    fn removal(&self) -> anyhow::Result<RemovalConfig> {
        let mut summary: Summary = self.chosen().name().parse()?;
        if let Some(draws) = self.draws {
            summary = summary.with_draws(draws)?;
        }
        if let Summary::Occlusion { window, stride } = &mut summary {
            *window = self.window.unwrap_or(*window);
            *stride = self.stride.unwrap_or(*stride);
        }
        Ok(RemovalConfig {
            players: self.players.into(),
            removal: self.removal.clone(),
            ..RemovalConfig::new(summary)
        })
    }
}
