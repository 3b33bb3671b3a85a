//! `candlewick ablate`: what the model loses without a part, a set of parts, or some of its attention; and what repairs it.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use candlewick::Error;
use candlewick::hooks::{Node, Pos, Positions};
use candlewick::methods::{
    AblationConfig, Heads, Knockout, Layers, Method, NodeSet, PatchConfig, PatchSource, Ranking,
    RepairConfig, RepairParts, RepairTarget, parse_sites,
};
use candlewick::model::ModelSpec;
use candlewick::scores::Scores;
use candlewick::task::Task;
use clap::Args;

use super::args::{SourceModelArgs, TaskArgs};
use super::open::open_task;
use super::session::{Ask, Asked, CommonArgs, Mode};

/// Ablate parts of the model: one at a time, in sets, in pairs; scale them, or knock attention out.
///
/// `--sites` sweeps hooks as `candlewick patch` does, and is every head unless something else is asked for. `--together` and
/// `--class` take several heads and MLPs out at once, because backup heads hide what single ones do. `--head-pairs` takes out every
/// pair of heads and shows their interaction. `--block QUERIES:KEYS` knocks attention out in each head.
///
/// `--ranked FILE` takes out together the heads and MLPs that a table of any method ranks highest (or `--lowest`), so many for each of
/// `--sizes`, and random sets of as many beside them; take other prompts than the table's (`--seed`). Of a table of removals (`ablate`, `heads
/// --score replacement`) the highest are those that do harm, and `--lowest` what is needed. With `--against FILE` they are ranked by how clearly the first table's scores are above
/// the second's (Welch's t over pairs): what one task needs and another does not.
///
/// `--self-repair` resamples the output of one attention, MLP or head at the last position, and compares its direct effect on
/// the logit with the total effect: what the layers after it make good.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  candlewick ablate
  candlewick ablate --source mean-role --sites z,mlp_out --n-pairs 8
  candlewick ablate --source scale:-1 --sites z,v --layers 1-3 --n-pairs 8
  candlewick ablate --together a3.h0,a3.h1 --class first=a0.h0,a0.h2 --source resample
  candlewick ablate --sites z,mlp_out --source-model embedded --n-pairs 8 --out same.parquet
  candlewick ablate --head-pairs a0.h0,a0.h2,a3.h0,a3.h1 --n-pairs 8 --out pairs.parquet
  candlewick ablate --ranked ablation.parquet --lowest --sizes 1,2 --random-sets 3 --seed 9
  candlewick ablate --block @END:@S2 --layers 2,3 --n-pairs 8
  candlewick ablate --self-repair heads --target difference")]
pub struct AblateArgs {
    /// What to ablate one by one: hooks with optional axes, as in `patch` [default: z, unless sets, pairs or knockouts are given].
    #[arg(long, short)]
    pub sites: Option<String>,
    /// What is put in place: `zero`, `mean` (over the reference prompts, per position within each template), `mean-role` (per role
    /// of the task), `mean-all` (over all positions), `resample` (the clean run of another pair of the same template), `scale:X`
    /// (the run's own value times X), or `same` (the same prompt in the source model) [default: mean; same with `--source-model`].
    #[arg(long, alias = "by")]
    pub source: Option<PatchSource>,
    #[command(flatten)]
    pub values: SourceModelArgs,
    /// Nodes that are ablated together, such as `a9.h6,a9.h9,m3`; may be given more than once.
    #[arg(long, value_name = "NODES")]
    pub together: Vec<String>,
    /// The same under a name: `movers=a9.h6,a9.h9`.
    #[arg(long, value_name = "NAME=NODES")]
    pub class: Vec<String>,
    /// Every pair of these heads, or of `all` heads.
    #[arg(long, value_name = "HEADS", value_delimiter = ',')]
    pub head_pairs: Vec<String>,
    /// Sets of the heads and MLPs that this table scores highest.
    #[arg(long, value_name = "FILE")]
    pub ranked: Option<PathBuf>,
    /// With `--ranked`: by how clearly their scores are above those of this table, both with `--per-example` rows.
    #[arg(long, value_name = "FILE")]
    pub against: Option<PathBuf>,
    /// With `--ranked`: those that are scored lowest.
    #[arg(long)]
    pub lowest: bool,
    /// With `--ranked`: how many nodes are taken out together, a set for each [default: 1,2,5,10].
    #[arg(long, value_name = "SIZES", value_delimiter = ',')]
    pub sizes: Vec<usize>,
    /// With `--ranked`: random sets of each size [default: 10].
    #[arg(long, value_name = "N")]
    pub random_sets: Option<usize>,
    /// Attention to knock out, queries and keys as positions: `@END:@S1,@S2`, `-1:3`; may be given more than once.
    #[arg(long, value_name = "QUERIES:KEYS", allow_hyphen_values = true)]
    pub block: Vec<String>,
    /// Knock out all heads of a layer at once.
    #[arg(long)]
    pub whole_layers: bool,
    /// Layers ablated together, centred on the one reported.
    #[arg(long, default_value_t = 1)]
    pub window: usize,
    /// Where sets and pairs are ablated, such as `@END` or `-1` [default: everywhere].
    #[arg(
        long,
        value_name = "POSITIONS",
        value_delimiter = ',',
        allow_hyphen_values = true
    )]
    pub at: Vec<String>,
    /// A task, or a file of pairs, over whose clean prompts means are taken [default: the corrupted prompts of the task itself].
    #[arg(long, value_name = "TASK")]
    pub reference: Option<String>,
    /// Only these layers, such as `0,3-5`.
    #[arg(long, value_name = "LAYERS")]
    pub layers: Option<Layers>,
    /// Only these heads, such as `0,2-3` in every layer or `a3.h1` in one.
    #[arg(long, value_name = "HEADS")]
    pub heads: Option<Heads>,
    /// Measure direct effect, total effect and repair of each of these instead.
    #[arg(long, value_name = "PARTS")]
    pub self_repair: Option<RepairParts>,
    /// Other prompts that each prompt takes values from in turn, for `--self-repair`.
    #[arg(long, value_name = "N", default_value_t = 15)]
    pub donors: usize,
    /// The logit of `--self-repair`: `top` (the model's own top token less the vocabulary's mean), `difference` (the answer less the
    /// wrong answer), `answer`, or `centred` (the answer less the vocabulary's mean).
    #[arg(long, default_value = "top")]
    pub target: RepairTarget,
    #[command(flatten)]
    pub common: CommonArgs,
}

impl Ask for AblateArgs {
    fn default_out(&self) -> &'static str {
        "ablation.parquet"
    }

    fn mode(&self) -> Mode {
        if let Some(parts) = self.self_repair {
            let mode = Mode::new(
                "`--self-repair`",
                &["self_repair", "donors", "target", "layers"],
            );
            return if parts == RepairParts::Heads {
                mode.and(&["heads"]).idle(&["metric"])
            } else {
                mode.idle(&["metric"])
            };
        }
        if !self.block.is_empty() {
            return Mode::new(
                "`--block`",
                &["block", "whole_layers", "window", "layers", "heads"],
            );
        }
        let acts = ["sites", "source", "source_model", "source_revision"];
        let mut mode = Mode::new(self.what(), &acts);
        if self.source().is_mean() {
            mode = mode.and(&["reference"]);
        }
        if self.has_sweeps() {
            mode = mode.and(&["window", "layers", "heads"]);
        }
        mode = mode.and(&["together", "class", "head_pairs", "ranked"]);
        let of_ranks = ["against", "lowest", "sizes", "random_sets"];
        if self.ranked.is_some() {
            mode = mode.and(&of_ranks);
        } else {
            for flag in of_ranks {
                mode = mode.instead(
                    flag,
                    "give the table that ranks heads and MLPs (`--ranked FILE`)",
                );
            }
        }
        if self.has_sets() {
            mode = mode.and(&["at"]);
        }
        mode
    }

    fn reads(&self) -> Vec<&Path> {
        let tables = self.ranked.iter().chain(&self.against);
        tables.map(PathBuf::as_path).collect()
    }

    fn method(&self, on: &Asked<'_>) -> anyhow::Result<Box<dyn Method>> {
        if let Some(parts) = self.self_repair {
            return Ok(Box::new(RepairConfig {
                target: self.target.clone(),
                donors: self.donors,
                layers: self.layers.clone().unwrap_or_default(),
                heads: self.heads.clone().unwrap_or_default(),
                ..RepairConfig::of(parts)
            }));
        }
        let is_knockout = !self.block.is_empty();
        let sites = match &self.sites {
            Some(text) => parse_sites(text)?,
            None if self.has_sweeps() && !is_knockout => parse_sites("z")?,
            None => Vec::new(),
        };
        let source = if is_knockout {
            PatchSource::Block
        } else {
            self.source()
        };
        let patch = PatchConfig {
            source,
            source_model: self.values.open(on.options)?,
            reference: self.reference_task(on)?,
            window: self.window,
            layers: self.layers.clone().unwrap_or_default(),
            heads: self.heads.clone().unwrap_or_default(),
            ..PatchConfig::new(sites)
        };
        let knockouts = self.block.iter().map(|text| knockout(text));
        let ranking = self.ranking(on.spec)?;
        Ok(Box::new(AblationConfig {
            sets: self.sets(on, ranking.as_ref())?,
            ranked_by: ranking.map(|ranking| ranking.by().clone()),
            pairs: heads_of_pairs(&self.head_pairs, on.spec)?,
            knockouts: knockouts.collect::<anyhow::Result<_>>()?,
            whole_layers: self.whole_layers,
            positions: positions(&self.at)?,
            ..AblationConfig::new(patch)
        }))
    }
}

impl AblateArgs {
    fn source(&self) -> PatchSource {
        self.values.source(self.source, PatchSource::Mean)
    }

    fn has_sets(&self) -> bool {
        let names_none =
            self.together.is_empty() && self.class.is_empty() && self.head_pairs.is_empty();
        self.ranked.is_some() || !names_none
    }

    /// Whether parts are ablated one by one.
    fn has_sweeps(&self) -> bool {
        self.sites.is_some() || !self.has_sets()
    }

    /// What was chosen, as it is typed.
    fn what(&self) -> String {
        let mut what = vec![format!("`--source {}`", self.source())];
        let chosen = [
            ("--together", !self.together.is_empty()),
            ("--class", !self.class.is_empty()),
            ("--head-pairs", !self.head_pairs.is_empty()),
            ("--ranked", self.ranked.is_some()),
        ];
        let chosen = chosen.iter().filter(|(_, is_chosen)| *is_chosen);
        what.extend(chosen.map(|(flag, _)| format!("`{flag}`")));
        if self.has_sweeps() {
            what.push(format!(
                "`--sites {}`",
                self.sites.as_deref().unwrap_or("z")
            ));
        }
        let last = what.pop().unwrap_or_default();
        format!("{} and {last}", what.join(", "))
    }

    /// The task whose prompts means are taken over: a file of pairs as it is, or a task with as many pairs and the same seed.
    fn reference_task(&self, on: &Asked<'_>) -> anyhow::Result<Option<Arc<Task>>> {
        let Some(name) = &self.reference else {
            return Ok(None);
        };
        let own = TaskArgs {
            task: None,
            pairs: None,
            corruption: None,
            metric: None,
            ..on.task_args.clone()
        };
        let ending = Path::new(name)
            .extension()
            .and_then(|ending| ending.to_str());
        let of_reference = match ending {
            Some("csv" | "jsonl" | "parquet") => TaskArgs {
                pairs: Some(PathBuf::from(name)),
                template: Vec::new(),
                n_pairs: None,
                ..own
            },
            _ => TaskArgs {
                task: Some(name.clone()),
                n_pairs: own.n_pairs.or(Some(on.task.pairs().len() as u32)),
                ..own
            },
        };
        let reference = open_task(&of_reference, on.tokenizer, on.spec.n_ctx, false)?;
        Ok(Some(Arc::new(reference)))
    }

    fn sets(&self, on: &Asked<'_>, ranking: Option<&Ranking>) -> anyhow::Result<Vec<NodeSet>> {
        let ranked = ranking.map(|ranking| self.ranked_sets(ranking, on.task.seed));
        let mut sets = ranked.transpose()?.unwrap_or_default();
        for text in &self.together {
            sets.push(NodeSet {
                name: text.clone(),
                nodes: nodes(text)?,
            });
        }
        for text in &self.class {
            let Some((name, members)) = text.split_once('=').filter(|(name, _)| !name.is_empty())
            else {
                return Err(Error::Parse {
                    what: "a class",
                    text: text.clone(),
                    reason: "write `NAME=a9.h6,a9.h9`".into(),
                }
                .into());
            };
            sets.push(NodeSet {
                name: name.into(),
                nodes: nodes(members)?,
            });
        }
        Ok(sets)
    }
}

impl AblateArgs {
    /// What `--ranked` and `--against` say.
    fn ranking(&self, spec: &ModelSpec) -> anyhow::Result<Option<Ranking>> {
        let Some(path) = &self.ranked else {
            return Ok(None);
        };
        let scores = Scores::read_parquet(path)?;
        Ok(Some(match &self.against {
            Some(path) => Ranking::by_t(&scores, &Scores::read_parquet(path)?, spec)?,
            None => Ranking::by_score(&scores, spec)?,
        }))
    }

    fn ranked_sets(&self, ranking: &Ranking, seed: u64) -> candlewick::Result<Vec<NodeSet>> {
        let sizes = if self.sizes.is_empty() {
            let all = ranking.nodes().count();
            [1, 2, 5, 10]
                .into_iter()
                .filter(|&size| size <= all)
                .collect()
        } else {
            self.sizes.clone()
        };
        let random = self.random_sets.unwrap_or(10);
        ranking.sets(&sizes, self.lowest, random, seed)
    }
}

/// Names of nodes, separated by commas.
fn nodes(text: &str) -> anyhow::Result<Vec<Node>> {
    let parts = text
        .split(',')
        .map(str::trim)
        .filter(|part| !part.is_empty());
    Ok(parts.map(str::parse).collect::<Result<_, Error>>()?)
}

fn heads_of_pairs(texts: &[String], spec: &ModelSpec) -> anyhow::Result<Vec<Node>> {
    if texts == ["all"] {
        return Ok(Node::heads(spec).collect());
    }
    let mut heads = nodes(&texts.join(","))?;
    if heads.is_empty() && !texts.is_empty() {
        return Err(Error::invalid("no head is named; name at least two, or `all`").into());
    }
    heads.sort();
    Ok(heads)
}

fn knockout(text: &str) -> anyhow::Result<Knockout> {
    let Some((queries, keys)) = text.split_once(':') else {
        return Err(Error::Parse {
            what: "a knockout",
            text: text.into(),
            reason: "write `QUERIES:KEYS`, such as `@END:@S1,@S2` or `-1:3`".into(),
        }
        .into());
    };
    let list = |text: &str| -> Vec<String> { text.split(',').map(String::from).collect() };
    Ok(Knockout {
        queries: match queries {
            "all" => Positions::All,
            _ => positions(&list(queries))?,
        },
        keys: positions(&list(keys))?,
    })
}

/// Positions as typed; none means all.
pub fn positions(texts: &[String]) -> anyhow::Result<Positions> {
    if texts.is_empty() {
        return Ok(Positions::All);
    }
    let list = texts.iter().map(|text| text.parse::<Pos>());
    Ok(Positions::These(list.collect::<Result<_, Error>>()?))
}
