//! The rows of a table of sentences: blocks of cells, and the values of one question in the same order.

use super::config::{ContextConfig, ContextMethod};
use super::head::OnOne;
use super::judged::{reciprocal_rank, reciprocal_rank_by_chance, top1};
use super::lens::Lens;
use super::looks::Looks;
use super::steer::{Outcome, Steered};
use crate::methods::ablation::{cell_of, heads_and_mlps};
use crate::scores::Cell;
use crate::spec::ModelSpec;
use crate::task::{Pair, QuestionSet, Task};

/// How often the best sentence is the right one.
pub(super) const TOP1: &str = "top1";
pub(super) const RECIPROCAL_RANK: &str = "reciprocal_rank";
pub(super) const ANSWER_LOG_PROB: &str = "answer_log_prob";
/// Whether the expected answer is in what the model says.
pub(super) const ANSWER_RIGHT: &str = "answer_right";
const ANSWER_CHANGED: &str = "answer_changed";
pub(super) const HELD_OUT: &str = "held_out_correlation";
pub(super) const HEAD_TOP1: &str = "head_top1";
const HEAD_ENTROPY: &str = "head_entropy";
pub(super) const LENS: &str = "lens_jsd";
pub(super) const LENS_CONTROL: &str = "lens_jsd_control";
const HEAD_LOOKS: &str = "head_highest_attention";
const JSD_PER_TOKEN: &str = "jsd_per_token";
const PATTERN: &str = "attn.hook_pattern";

/// What was found of one question.
pub(super) struct Found {
    /// By every method but one whose head is found later.
    pub scores: Vec<(ContextMethod, Vec<f64>)>,
    pub log_prob: f64,
    pub tokens: usize,
    pub held_out: Option<f64>,
    pub looks: Option<Looks>,
    pub lens: Option<Lens>,
    pub steered: Option<Steered>,
    pub gold: Option<usize>,
    pub sentences: usize,
}

/// Cells that belong together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Block {
    Scores(ContextMethod),
    PerToken,
    Answer,
    HeldOut,
    /// How well a method finds the right sentence.
    Judged(ContextMethod),
    Chance,
    /// What attention finds without a head being chosen: by the mean of all, and by one that is drawn.
    AllHeads,
    AnyHead,
    Heads,
    Lens,
    Steered,
}

/// The blocks of a table.
pub(super) struct Rows {
    blocks: Vec<Block>,
    pub cells: Vec<Cell>,
    /// Sentences of the longest context.
    most: usize,
    /// Where each head's cells begin.
    heads: Option<usize>,
}

impl Rows {
    pub fn new(config: &ContextConfig, spec: &ModelSpec, task: &Task) -> Self {
        let questions = &config.questions.questions;
        let pairs = task.pairs();
        let has_gold = config.questions.known_contexts(task) > 0;
        let searches = config.searches();
        let measured = |method: &ContextMethod| !(searches && *method == ContextMethod::AttnAttrib);
        let methods: Vec<ContextMethod> = config.methods.iter().copied().filter(measured).collect();
        let mut blocks: Vec<Block> = methods
            .iter()
            .map(|&method| Block::Scores(method))
            .collect();
        if config.asks(ContextMethod::ArcJsd) {
            blocks.push(Block::PerToken);
        }
        blocks.push(Block::Answer);
        if config.asks(ContextMethod::SparseFit) {
            blocks.push(Block::HeldOut);
        }
        if has_gold {
            blocks.extend(methods.iter().map(|&method| Block::Judged(method)));
            blocks.push(Block::Chance);
        }
        if config.asks(ContextMethod::AttnAttrib) {
            if has_gold {
                blocks.extend([Block::AllHeads, Block::AnyHead]);
            }
            blocks.push(Block::Heads);
        }
        if config.lens {
            blocks.push(Block::Lens);
        }
        if config.steer.is_some() {
            blocks.push(Block::Steered);
        }
        let of = |pair: &Pair| questions[pair.index].context.len();
        let mut rows = Rows {
            blocks: Vec::new(),
            cells: Vec::new(),
            most: pairs.iter().map(of).max().unwrap_or(0),
            heads: None,
        };
        for &block in &blocks {
            if block == Block::Heads {
                rows.heads = Some(rows.cells.len());
            }
            let cells = rows.cells_of(block, config, spec, task);
            rows.cells.extend(cells);
        }
        rows.blocks = blocks;
        rows
    }

    /// The cells of a method whose head is known when all questions are measured.
    pub fn found_later(&self, config: &ContextConfig, spec: &ModelSpec, task: &Task) -> Vec<Cell> {
        let method = ContextMethod::AttnAttrib;
        let blocks = [Block::Scores(method), Block::Judged(method)];
        blocks
            .into_iter()
            .flat_map(|block| self.cells_of(block, config, spec, task))
            .collect()
    }

    /// Where the cells of a head begin: the highest look at each sentence, whether the highest of all is at the right one, the entropy.
    pub fn of_head(&self, head: usize) -> Option<usize> {
        Some(self.heads? + head * (self.most + 2))
    }

    pub fn most(&self) -> usize {
        self.most
    }

    fn cells_of(
        &self,
        block: Block,
        config: &ContextConfig,
        spec: &ModelSpec,
        task: &Task,
    ) -> Vec<Cell> {
        let questions = &config.questions.questions;
        let own = config
            .methods
            .first()
            .map(|first| first.measure(config.kl_order));
        let sentence = |component: &str, measure: &str, at: usize| Cell {
            component: component.into(),
            role: Some(QuestionSet::role(at)),
            // One question's sentences are known by their text.
            src: match task.pairs() {
                [one] => Some(questions[one.index].context[at].trim().to_string()),
                _ => None,
            },
            measure: (own != Some(measure)).then(|| measure.to_string()),
            ..Cell::default()
        };
        let sentences = |component: &str, measure: &str| -> Vec<Cell> {
            (0..self.most)
                .map(|at| sentence(component, measure, at))
                .collect()
        };
        let whole = |component: &str, measure: &str| Cell {
            component: component.into(),
            measure: Some(measure.into()),
            ..Cell::default()
        };
        let judged = |component: &str| {
            [TOP1, RECIPROCAL_RANK]
                .map(|it| whole(component, it))
                .to_vec()
        };
        match block {
            Block::Scores(method) => sentences(method.name(), method.measure(config.kl_order)),
            Block::PerToken => sentences(ContextMethod::ArcJsd.name(), JSD_PER_TOKEN),
            Block::Answer => vec![whole("answer", ANSWER_LOG_PROB)],
            Block::HeldOut => vec![whole(ContextMethod::SparseFit.name(), HELD_OUT)],
            Block::Judged(method) => judged(method.name()),
            Block::Chance => judged("random"),
            Block::AllHeads => judged("all heads"),
            Block::AnyHead => judged("random head"),
            Block::Heads => {
                let of_head = |(layer, head): (usize, usize)| {
                    let place = move |cell: Cell| Cell {
                        layer: Some(layer as u32),
                        head: Some(head as u32),
                        ..cell
                    };
                    let looks = sentences(PATTERN, HEAD_LOOKS).into_iter();
                    let others = [HEAD_TOP1, HEAD_ENTROPY].map(|it| whole(PATTERN, it));
                    looks.chain(others).map(place)
                };
                spec.heads().flat_map(of_head).collect()
            }
            Block::Steered => {
                let mut cells = vec![whole("unsteered", ANSWER_RIGHT)];
                for led in ["steered", "control"] {
                    cells.extend([ANSWER_RIGHT, ANSWER_CHANGED].map(|it| whole(led, it)));
                }
                cells
            }
            Block::Lens => {
                let parts = heads_and_mlps(spec).map(cell_of);
                let both = |part: Cell| {
                    [LENS, LENS_CONTROL].map(|measure| Cell {
                        measure: Some(measure.into()),
                        ..part.clone()
                    })
                };
                parts.flat_map(both).collect()
            }
        }
    }

    /// The values of one question, in the order of the cells.
    pub fn values(&self, found: &Found, on_one: Option<&OnOne>) -> Vec<Option<f64>> {
        let padded = |scores: &[f64]| -> Vec<Option<f64>> {
            let scores = scores.iter().copied().map(Some);
            scores
                .chain(std::iter::repeat(None))
                .take(self.most)
                .collect()
        };
        let of = |method| {
            let scores = found.scores.iter().find(|(of, _)| *of == method);
            scores.map_or(&[][..], |(_, scores)| scores.as_slice())
        };
        let judged = |scores: &[f64]| {
            let by = |judge: fn(&[f64], usize) -> f64| found.gold.map(|gold| judge(scores, gold));
            vec![by(top1), by(reciprocal_rank)]
        };
        let values = |block: &Block| match *block {
            Block::Scores(method) => padded(of(method)),
            Block::PerToken => {
                let jsd = of(ContextMethod::ArcJsd).iter();
                padded(&jsd.map(|j| j / found.tokens as f64).collect::<Vec<f64>>())
            }
            Block::Answer => vec![Some(found.log_prob)],
            Block::HeldOut => vec![found.held_out],
            Block::Judged(method) => judged(of(method)),
            Block::Chance => {
                let none = vec![0.0; found.sentences];
                let by =
                    |judge: fn(&[f64], usize) -> f64| found.gold.map(|gold| judge(&none, gold));
                vec![by(top1), by(reciprocal_rank_by_chance)]
            }
            Block::AllHeads => judged(found.looks.as_ref().map_or(&[], |it| &it.highest_of_mean)),
            Block::AnyHead => {
                let heads = found.looks.as_ref().map_or(&[][..], |looks| &looks.heads);
                let mean = |judge: fn(&[f64], usize) -> f64| {
                    let gold = found.gold?;
                    let each = heads.iter().map(|head| judge(&head.highest, gold));
                    Some(each.sum::<f64>() / heads.len() as f64)
                };
                vec![mean(top1), mean(reciprocal_rank)]
            }
            Block::Heads => {
                let heads = found.looks.as_ref().map_or(&[][..], |looks| &looks.heads);
                let of_head = |(at, head): (usize, &super::looks::HeadLooks)| {
                    let hit = on_one.and_then(|one| Some(one.hits.as_ref()?[at]));
                    let mut values = padded(&head.highest);
                    values.extend([hit, Some(head.entropy)]);
                    values
                };
                heads.iter().enumerate().flat_map(of_head).collect()
            }
            Block::Steered => {
                let share = |it: bool| Some(f64::from(u8::from(it)));
                let steered = found.steered.iter();
                let of = |it: Outcome| [share(it.is_right), share(it.is_new)];
                let of = |it: &Steered| {
                    [
                        vec![share(it.before)],
                        of(it.led).to_vec(),
                        of(it.control).to_vec(),
                    ]
                    .concat()
                };
                steered.flat_map(of).collect()
            }
            Block::Lens => {
                let lens = found.lens.as_ref();
                let pairs = lens
                    .into_iter()
                    .flat_map(|lens| lens.top.iter().zip(&lens.control));
                pairs
                    .flat_map(|(&top, &control)| [Some(top), Some(control)])
                    .collect()
            }
        };
        self.blocks.iter().flat_map(values).collect()
    }
}
