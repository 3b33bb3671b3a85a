//! Removal-based attribution: which parts are credited with the metric, judged by what it is without them.
//!
//! Every such method is a choice of three: what *removes* a part ([`Removal`]), which *behaviour* is looked at (the metric
//! at the end of the clean prompt), and how the outcomes are *summed up* ([`Summary`]): leave-one-out (Captum's feature ablation; with
//! [`Removal::Permute`] its feature permutation), include-one, occlusion by windows, Shapley values, LIME, total Sobol indices. The parts are the players of a game ([`Players`]): tokens, spans that are roles of the task, heads,
//! MLPs. `v(S)` is the metric where only the players of `S` are there. A game of at most [`EXACT`] players has every coalition
//! measured; larger ones are sampled, with a standard error for each share in the side table. A coalition is measured once for each
//! prompt, through the sweep engine, or for [`Removal::Delete`] and [`Removal::Token`] as a prompt of its own.
//!
//! Shares stand in the table with direction `direct`, where `score` and `value` are both the share. Shapley values and KernelSHAP
//! add up to `v(all) - v(none)`.
//!
//! Sources: Covert, Lundberg and Lee 2021, "Explaining by removing"; Shapley 1953; Lundberg and Lee 2017 (KernelSHAP); Mitchell
//! et al. 2022 (antithetic orders); Zeiler and Fergus 2014 (occlusion); Breiman 2001 (permutation); Ribeiro et al. 2016 (LIME; its kernel over the share that is removed); Sobol 2001 and Jansen 1999 (total
//! indices). Left out on purpose: text masks by super-pixels or sentences, which the roles of a task can say.

mod coalitions;
mod config;
mod fit;
mod prompts;

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use serde_json::{Value, json};

pub use coalitions::{Game, Values};
pub use config::{EXACT, Players, Removal, RemovalConfig, Summary};
pub use fit::{Coalition, Share};
use prompts::{Filler, changed, metrics, permuted};

use super::ablation::{cell_of, heads_and_mlps, site_of};
use super::activation_patching::{PatchConfig, Patching, SiteSet};
use super::method::{
    Cost, Method, Needs, Preparation, Prepared, Running, Subject, Unit, unmeasured,
};
use super::sites::Extent;
use super::tokens::{Completeness, InCells};
use crate::error::{Error, Result};
use crate::hooks::{Edit, Hook, Kind, Node, Pos, Site};
use crate::run::{Progress, Variant};
use crate::scores::{Cell, Direction, ExampleScores, Measured, ScoresMeta};
use crate::spec::{Mlp, ModelSpec};
use crate::task::{END, Pair, Task};

/// The measure of an estimate's error, in the side table.
const STANDARD_ERROR: &str = "standard_error";
const EMBED: &str = "hook_embed";
/// Coalitions that are handed to the engine together.
const AT_ONCE: usize = 256;

impl RemovalConfig {
    /// The patching whose runs and values the coalitions are made of.
    fn patching(&self, spec: &ModelSpec) -> PatchConfig {
        let node = |node: Node| SiteSet {
            cell: Cell::default(),
            sites: vec![site_of(node)],
        };
        let sets = match self.players {
            Players::Tokens | Players::Roles => vec![node(Node::Input)],
            _ => self.nodes(spec).into_iter().map(node).collect(),
        };
        self.removal.patching(sets, self.metric, self.seed)
    }

    /// The heads and MLPs that play, by layer.
    fn nodes(&self, spec: &ModelSpec) -> Vec<Node> {
        let heads = matches!(self.players, Players::Heads | Players::Components);
        let mlps = matches!(self.players, Players::Mlps | Players::Components);
        let plays = |node: &Node| match node {
            Node::Head { .. } => heads,
            _ => mlps,
        };
        heads_and_mlps(spec).filter(plays).collect()
    }
}

impl Method for RemovalConfig {
    fn header(&self, task: &Task) -> ScoresMeta {
        let metric = self.metric(task);
        ScoresMeta {
            method: self.summary.name().into(),
            metric: metric.to_string(),
            unit: match self.summary {
                Summary::Sobol { .. } => "share of the variance".into(),
                _ => metric.unit().into(),
            },
            direction: Direction::Direct,
            base: None,
            seed: self.seed(task),
        }
    }

    fn settings(&self) -> Value {
        json!({ "summary": self.summary, "players": self.players, "removal": self.removal })
    }

    fn needs(&self, task: &Task) -> Needs {
        Needs {
            decoder: (self.removal.edits_the_prompt())
                .then_some("prompts with tokens taken out or replaced"),
            aligned: self.removal == Removal::Pair,
            metric: Some(self.metric(task)),
            roles: self.players == Players::Roles,
            whole_answers: true,
            ..Needs::default()
        }
    }

    fn check(&self, spec: &ModelSpec, task: &Task) -> Result<()> {
        self.summary.check()?;
        if self.removal.edits_the_prompt() && !self.players.are_in_the_prompt() {
            return Err(Error::invalid(format!(
                "`{}` is for pieces of the prompt, and {} are none; remove them by `pair`, `zero` or `mean`",
                self.removal,
                self.players.name()
            )));
        }
        // Every task has the role at which the answer is read, and alone that is no game.
        if self.players == Players::Roles && task.all_roles().iter().all(|role| role == END) {
            return Err(Error::invalid(format!(
                "the pairs have no roles but `{END}`, so there is nothing to share out; give the pairs roles, or let `tokens` play \
                 (`RemovalConfig::players`)"
            )));
        }
        if self.players == Players::Mlps && spec.mlp == Mlp::None {
            return Err(Error::invalid("this model has no MLPs; take `heads`"));
        }
        if let Removal::Token(text) = &self.removal {
            filler(text, spec, task)?;
        }
        if self.removal == Removal::Permute {
            permuted(task, self.seed(task))?;
        }
        self.patching(spec).check(spec, task)
    }

    fn prepare<'a>(&'a self, on: Subject<'a>, running: &'a Running) -> Preparation<'a> {
        Ok(Box::new(Removing::new(on, self, running)?))
    }
}

/// The token that stands in the place of those that are not there.
fn filler(text: &str, spec: &ModelSpec, task: &Task) -> Result<u32> {
    let token = task.tokenizer().id(text);
    token
        .filter(|&token| (token as usize) < spec.d_vocab)
        .ok_or_else(|| Error::Tokenizer {
            reason: format!(
                "`{text}` is not in its vocabulary, so it cannot stand for what is removed; write the token as tokenizer.json does"
            ),
        })
}

/// A player of one pair's game: the row of its share, and what it is.
struct Player {
    cell: usize,
    part: Piece,
}

enum Piece {
    Positions(Vec<usize>),
    Node(Node),
}

/// A checked run in progress.
struct Removing<'a> {
    on: Subject<'a>,
    config: &'a RemovalConfig,
    running: &'a Running,
    patching: Patching<'a>,
    extent: Extent,
    nodes: Vec<Node>,
    /// Shares, and after them the standard errors of the same.
    cells: Vec<Cell>,
    n_shares: usize,
    filler: Option<u32>,
    /// What stands in the place of the tokens of each pair, by its index, where prompts are permuted.
    others: HashMap<usize, Vec<u32>>,
}

impl<'a> Removing<'a> {
    fn new(on: Subject<'a>, config: &'a RemovalConfig, running: &'a Running) -> Result<Self> {
        let Subject { model, task } = on;
        let extent = Extent::new(task, &Default::default(), &Default::default());
        let nodes = config.nodes(&model.spec);
        let mut cells = match config.players {
            Players::Tokens => extent.positions(EMBED),
            Players::Roles => (extent.roles.iter())
                .map(|role| Cell {
                    component: EMBED.into(),
                    role: Some(role.clone()),
                    ..Cell::default()
                })
                .collect(),
            _ => nodes.iter().map(|&node| cell_of(node)).collect(),
        };
        let n_shares = cells.len();
        let filler = match &config.removal {
            Removal::Token(text) => Some(filler(text, &model.spec, task)?),
            _ => None,
        };
        let mut removing = Removing {
            on,
            config,
            running,
            patching: Patching::new(on, config.patching(&model.spec), running)?,
            extent,
            nodes,
            cells: cells.clone(),
            n_shares,
            filler,
            others: match config.removal {
                Removal::Permute => permuted(task, config.seed(task))?,
                _ => HashMap::new(),
            },
        };
        for pair in task.pairs() {
            config
                .summary
                .check_players(removing.players(pair).0.len())?;
        }
        let samples = |pair| config.summary.samples(removing.players(pair).0.len());
        if task.pairs().iter().any(samples) {
            cells.extend(removing.cells.iter().map(|cell| Cell {
                measure: Some(STANDARD_ERROR.into()),
                ..cell.clone()
            }));
            removing.cells = cells;
        }
        Ok(removing)
    }

    /// The players of a pair's game; and the rows of those that are known to do nothing, because nothing is changed without them.
    fn players(&self, pair: &Pair) -> (Vec<Player>, Vec<usize>) {
        let (mut players, mut idle) = (Vec::new(), Vec::new());
        let bos = self.on.task.tokenizer().bos();
        for (cell, of) in self.cells[..self.n_shares].iter().enumerate() {
            if !self.config.players.are_in_the_prompt() {
                let part = Piece::Node(self.nodes[cell]);
                players.push(Player { cell, part });
                continue;
            }
            if !self.extent.has(of, pair) {
                continue;
            }
            let positions: Vec<usize> = match (&of.role, of.pos) {
                (Some(role), _) => pair.roles.get(role).cloned().unwrap_or_default(),
                // A BOS is a part of no prompt.
                (_, Some(0)) if bos == Some(pair.clean[0]) => continue,
                (_, Some(pos)) => vec![pos as usize],
                _ => continue,
            };
            let removed = changed(pair, &positions, self.filler(pair));
            let is_idle = match self.config.removal {
                Removal::Pair => (positions.iter()).all(|&at| pair.clean[at] == pair.corrupted[at]),
                Removal::Delete | Removal::Token(_) | Removal::Permute => removed == pair.clean,
                Removal::Zero | Removal::Mean => false,
            };
            if is_idle {
                idle.push(cell);
            } else {
                let part = Piece::Positions(positions);
                players.push(Player { cell, part });
            }
        }
        (players, idle)
    }

    fn filler(&self, pair: &Pair) -> Filler<'_> {
        match (self.others.get(&pair.index), self.filler) {
            (Some(other), _) => Filler::Prompt(other),
            (None, Some(token)) => Filler::Token(token),
            (None, None) => Filler::Nothing,
        }
    }

    fn game(&self, pair: &Pair, players: &[Player]) -> Game {
        Game {
            n: players.len(),
            seed: self.config.seed(self.on.task),
            stream: pair.index as u64 + 1,
        }
    }

    /// The positions that players have, but nobody of a coalition: spans may overlap.
    fn absent_positions(players: &[Player], coalition: &[bool]) -> Vec<usize> {
        let of = |there: bool| -> BTreeSet<usize> {
            let players = players.iter().zip(coalition);
            let positions = players.filter(|(_, is_there)| **is_there == there);
            positions
                .flat_map(|(player, _)| match &player.part {
                    Piece::Positions(positions) => positions.as_slice(),
                    Piece::Node(_) => &[],
                })
                .copied()
                .collect()
        };
        of(false).difference(&of(true)).copied().collect()
    }

    /// The sites where a coalition is changed.
    fn sites(players: &[Player], coalition: &[bool]) -> Vec<Site> {
        let positions = Self::absent_positions(players, coalition);
        if !positions.is_empty() {
            let at = positions.into_iter().map(Pos::Index);
            return vec![Site::all(Hook::global(Kind::Embed)).at_positions(at)];
        }
        let site = |(player, is_there): (&Player, &bool)| match (&player.part, is_there) {
            (Piece::Node(node), false) => Some(site_of(*node)),
            _ => None,
        };
        // Heads of one layer are one site.
        Site::joined(players.iter().zip(coalition).filter_map(site))
    }
}

impl Prepared for Removing<'_> {
    fn cells(&self) -> &[Cell] {
        &self.cells
    }

    fn bytes(&self, length: usize) -> usize {
        self.patching.bytes(length)
    }

    fn cost(&self, unit: &Unit) -> Result<Cost> {
        let length = self.on.task.pairs()[unit.items[0]].clean.len();
        let mut cost = Cost {
            bytes: unit.items.len() * self.bytes(length),
            ..Cost::passes(2.0 * unit.items.len() as f64)
        };
        for &item in &unit.items {
            let pair = &self.on.task.pairs()[item];
            let (players, _) = self.players(pair);
            let coalitions = self.config.summary.coalitions(self.game(pair, &players));
            cost.variants += coalitions.len();
            if self.config.removal.edits_the_prompt() {
                cost.passes += coalitions.len() as f64;
            } else {
                cost.packed += coalitions.len() as f64;
            }
        }
        Ok(cost)
    }

    fn begin(&mut self, progress: &dyn Progress) -> Result<()> {
        self.patching.begin(progress)
    }

    fn measure(&self, unit: &Unit, progress: &dyn Progress) -> Result<Vec<ExampleScores>> {
        let Subject { model, task } = self.on;
        let contrast = self.patching.contrast(&unit.items)?;
        let mut examples = Vec::with_capacity(unit.items.len());
        for (i, &item) in unit.items.iter().enumerate() {
            let pair = &task.pairs()[item];
            let (players, idle) = self.players(pair);
            let game = self.game(pair, &players);
            let coalitions = self.config.summary.coalitions(game);
            let progress = InCells::new(progress, self.cells.len(), coalitions.len());
            // With all players there nothing is changed.
            let mut values = Values::from([(vec![true; game.n], contrast.base_metric[i])]);
            let coalitions: Vec<Coalition> = (coalitions.into_iter())
                .filter(|coalition| !values.contains_key(coalition))
                .collect();
            for some in coalitions.chunks(AT_ONCE) {
                super::method::stop_if_asked(&progress)?;
                let measured = if self.config.removal.edits_the_prompt() {
                    let prompts = (some.iter())
                        .map(|it| {
                            let absent = Self::absent_positions(&players, it);
                            changed(pair, &absent, self.filler(pair))
                        })
                        .collect();
                    let at_once = self.running.memory_now() / self.bytes(pair.clean.len()).max(1);
                    metrics(model, prompts, &contrast.readout, i, at_once)?
                } else {
                    let variant = |coalition: &Coalition| Variant {
                        example: i,
                        edits: (Self::sites(&players, coalition).into_iter())
                            .map(|site| Edit::new(site, contrast.op.clone()))
                            .collect(),
                    };
                    let variants: Vec<Variant> = some.iter().map(variant).collect();
                    self.patching.changed(&contrast, &variants)?
                };
                progress.advance(some.len() as u64);
                values.extend(some.iter().cloned().zip(measured));
            }
            let shares = self.config.summary.shares(game, &values)?;
            let (clean, corrupted) = (contrast.base_metric[i], contrast.other_metric[i]);
            let mut one = unmeasured(task, item, clean, corrupted);
            one.judged(contrast.judged(i));
            let mut rows: Vec<(usize, f64)> = idle.into_iter().map(|cell| (cell, 0.0)).collect();
            for (player, share) in players.iter().zip(&shares) {
                rows.push((player.cell, share.value));
                rows.extend(
                    share
                        .error
                        .map(|error| (self.n_shares + player.cell, error)),
                );
            }
            rows.sort_by_key(|row| row.0);
            one.cells = rows.iter().map(|row| row.0 as u32).collect::<Arc<[u32]>>();
            one.values = rows.into_iter().map(|row| row.1).collect();
            if self.config.summary.is_efficient() {
                let whole = values[&vec![true; game.n]] - values[&vec![false; game.n]];
                one.facts.insert("total".into(), whole);
            }
            one.facts.insert("coalitions".into(), values.len() as f64);
            one.facts.insert("players".into(), game.n as f64);
            examples.push(one);
        }
        Ok(examples)
    }

    fn conclude(&self, measured: &mut Measured, _: &dyn Progress) -> Result<()> {
        measured.drop_unmeasured();
        let of = |fact: &str| {
            let facts = measured.examples.iter();
            let facts = facts.filter_map(|one| one.facts.get(fact).copied());
            facts.collect::<Vec<f64>>()
        };
        let most = |values: Vec<f64>| values.into_iter().fold(0.0, f64::max) as usize;
        let (players, coalitions) = (of("players"), of("coalitions"));
        if players.contains(&0.0) {
            measured.warnings.push(
                "some prompts have no player whose removal changes anything, and so shares of 0 alone; remove by `zero`, `mean` or `delete`".into(),
            );
        }
        let (players, coalitions) = (most(players), most(coalitions));
        let errors = match self.config.summary.samples(players) {
            true => "; the side table has the standard error of each share",
            false if self.config.summary.samples(EXACT + 1) => {
                "; these are all that there are, and nothing was drawn (`Summary::draws` is for games of more players)"
            }
            false => "",
        };
        measured.notes.push(format!(
            "the players are {}, at most {players} in a prompt, removed by `{}`; at most {coalitions} coalitions were measured of a prompt{errors}",
            self.config.players.name(),
            self.config.removal
        ));
        let sums = measured.examples.iter().filter_map(|one| {
            let total = *one.facts.get("total")?;
            let shares = one.cells.iter().zip(&one.values);
            let own = |cell: u32| measured.cells[cell as usize].measure.is_none();
            let sum: f64 = shares.filter(|(cell, _)| own(**cell)).map(|it| it.1).sum();
            Some(Completeness {
                example: one.example,
                sum,
                total,
                delta: sum - total,
            })
        });
        let sums: Vec<Completeness> = sums.collect();
        if !sums.is_empty() {
            measured.found.insert("completeness".into(), json!(sums));
        }
        Ok(())
    }
}
