//! Which prompts give what to which: bases and sources, what the program says of each, and where the model is changed.

use std::collections::{BTreeMap, BTreeSet};

use rand::seq::SliceRandom;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::config::{Draws, InterchangeConfig, PromptOf};
use super::expression::Value;
use super::inputs::{Prompt, prompts};
use super::places::{Place, places};
use crate::error::{Error, Result};
use crate::spec::ModelSpec;
use crate::task::Task;

/// The first stream of random numbers by which controls choose other sources.
const OTHERS: u64 = 1 << 32;
/// Candidates that are looked at for each exchange that is wanted.
const CANDIDATES: usize = 30;

/// Variables that are exchanged together, and each place where they are: of each variable one.
#[derive(Debug, Clone)]
pub(super) struct Exchanged {
    pub name: String,
    pub variables: Vec<usize>,
    pub places: Vec<Vec<Place>>,
}

/// One exchange: a base, a source for each variable, and what the program says then.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Item {
    /// Which variables, by their place among [`Design::exchanged`].
    pub of: usize,
    pub base: usize,
    pub sources: Vec<usize>,
    /// The label that the program gives.
    pub outcome: usize,
    /// Whether it is another one than without the exchange.
    pub changes: bool,
    /// The sources of another exchange, by which the program says something else, for a control.
    pub others: Option<Vec<usize>>,
}

/// Everything that is known before a model runs.
pub(super) struct Design<'a> {
    pub prompts: Vec<Prompt<'a>>,
    /// What the program says of each prompt, as a label.
    pub outputs: Vec<usize>,
    /// What the program can say, and the tokens of it.
    pub labels: Vec<(String, u32)>,
    pub exchanged: Vec<Exchanged>,
    pub items: Vec<Item>,
    /// The number of the first item: those before it are the pairs of the task.
    pub first_item: usize,
    pub seed: u64,
    /// What does nothing of what was given.
    pub doubts: Vec<String>,
}

impl<'a> Design<'a> {
    /// # Errors
    /// [`Error::Invalid`] naming a variable and what it lacks; where the program says one thing of all prompts, or an exchange never
    /// changes what it says.
    pub fn new(config: &InterchangeConfig, spec: &ModelSpec, task: &'a Task) -> Result<Self> {
        config.check(spec, task)?;
        let prompts = prompts(task, &config.sides, config.inputs.as_ref())?;
        let everywhere = |name: &&String| {
            prompts
                .iter()
                .all(|prompt| prompt.inputs.contains_key(*name))
        };
        let columns = prompts[0].inputs.keys().filter(everywhere);
        config
            .program
            .check(&columns.map(String::as_str).collect())?;
        let mut runs = Vec::with_capacity(prompts.len());
        for prompt in &prompts {
            runs.push(config.program.run(&prompt.inputs, &[])?);
        }
        let program = Ran {
            config,
            prompts: &prompts,
            values: runs.iter().map(|(values, _)| values).collect(),
            outputs: runs.iter().map(|(_, output)| output.to_string()).collect(),
        };
        let exchanged = exchanged(config, spec)?;
        let mut drawn = Vec::new();
        for (of, set) in exchanged.iter().enumerate() {
            drawn.extend(program.drawn(of, set, config.seed(task))?);
        }
        let said = drawn.iter().map(|(_, outcome)| outcome);
        let said: BTreeSet<&String> = said.chain(&program.outputs).collect();
        if said.len() < 2 {
            return Err(Error::invalid(format!(
                "program `{}` says `{}` whatever is exchanged, so there is nothing to tell apart; take more pairs \
                 (`ExpandOptions::n_pairs`) or another program",
                config.program.name, program.outputs[0]
            )));
        }
        let labels = labels(task, &config.program.name, said)?;
        let label = |text: &String| {
            let found = labels.binary_search_by(|(known, _)| known.cmp(text));
            found.expect("every text has a label")
        };
        let outputs: Vec<usize> = program.outputs.iter().map(label).collect();
        let mut items: Vec<Item> = drawn
            .iter()
            .map(|(item, outcome)| Item {
                outcome: label(outcome),
                ..item.clone()
            })
            .collect();
        for (set, of) in exchanged.iter().enumerate() {
            let those: Vec<usize> = (0..items.len())
                .filter(|&at| items[at].of == set && items[at].changes)
                .collect();
            let mut rng = ChaCha8Rng::seed_from_u64(config.seed(task));
            rng.set_stream(OTHERS + set as u64);
            for &at in &those {
                let mut others: Vec<&Vec<usize>> =
                    those.iter().map(|&other| &items[other].sources).collect();
                others.shuffle(&mut rng);
                let (base, says) = (items[at].base, &labels[items[at].outcome].0);
                let mut other = None;
                for sources in others {
                    if program.outcome(base, &of.variables, sources)? != *says {
                        other = Some(sources.clone());
                        break;
                    }
                }
                items[at].others = other;
            }
        }
        Ok(Design {
            prompts,
            outputs,
            labels,
            exchanged,
            items,
            first_item: task.pairs().len(),
            seed: config.seed(task),
            doubts: config.inputs.as_ref().map_or_else(Vec::new, |table| {
                table.idle(task, config.program.reads().as_ref())
            }),
        })
    }

    /// The exchange of a number.
    pub fn item(&self, number: usize) -> &Item {
        &self.items[number - self.first_item]
    }

    /// The exchanges of some variables.
    pub fn items_of(&self, of: usize) -> impl Iterator<Item = (usize, &Item)> {
        let all = self.items.iter().enumerate();
        all.filter(move |(_, item)| item.of == of)
    }
}

/// The sets of variables: each alone, and all together where that is asked for.
fn exchanged(config: &InterchangeConfig, spec: &ModelSpec) -> Result<Vec<Exchanged>> {
    let mut all = Vec::new();
    for (at, name, alignment) in config.aligned() {
        all.push(Exchanged {
            name: name.into(),
            variables: vec![at],
            places: places(alignment, spec)
                .into_iter()
                .map(|place| vec![place])
                .collect(),
        });
    }
    if config.together {
        all.push(together(&all)?);
    }
    Ok(all)
}

/// All variables at once: those that are swept over layers together, layer by layer, the others each at its one place.
fn together(alone: &[Exchanged]) -> Result<Exchanged> {
    let mut layers: Option<BTreeSet<usize>> = None;
    for set in alone {
        let mut roles = set.places.iter().map(|place| &place[0].role);
        let first = roles.next();
        if roles.any(|role| Some(role) != first) {
            return Err(Error::invalid(format!(
                "variable `{}` is at several positions, and together with others it can be at one; name one (`Alignment::roles`)",
                set.name
            )));
        }
        if set.places.len() > 1 {
            let own: BTreeSet<usize> = set.places.iter().map(|place| place[0].layer).collect();
            layers = Some(match layers {
                None => own,
                Some(layers) => layers.intersection(&own).copied().collect(),
            });
        }
    }
    let at = |layer: Option<usize>| -> Option<Vec<Place>> {
        let place = |set: &Exchanged| match set.places.as_slice() {
            [one] => Some(one[0].clone()),
            several => {
                let mut several = several.iter();
                let found = several.find(|place| Some(place[0].layer) == layer)?;
                Some(found[0].clone())
            }
        };
        alone.iter().map(place).collect()
    };
    let places: Vec<Vec<Place>> = match layers {
        None => at(None).into_iter().collect(),
        Some(layers) => layers
            .into_iter()
            .filter_map(|layer| at(Some(layer)))
            .collect(),
    };
    if places.is_empty() {
        return Err(Error::invalid(
            "no layer has a place of every variable, so they cannot be exchanged together (`InterchangeConfig::together`)",
        ));
    }
    let all = alone.iter();
    for places in &places {
        for (i, a) in places.iter().enumerate() {
            if let Some(j) = (0..i).find(|&j| places[j].overlaps(a)) {
                return Err(Error::invalid(format!(
                    "variables `{}` and `{}` are both at `{}`, so one would replace the other; give them other places, or parts of it \
                     that have nothing in common",
                    alone[j].name,
                    alone[i].name,
                    a.name()
                )));
            }
        }
    }
    Ok(Exchanged {
        name: all
            .clone()
            .map(|set| set.name.as_str())
            .collect::<Vec<_>>()
            .join("+"),
        variables: all.flat_map(|set| set.variables.clone()).collect(),
        places,
    })
}

/// A program on all prompts.
struct Ran<'a> {
    config: &'a InterchangeConfig,
    prompts: &'a [Prompt<'a>],
    values: Vec<&'a Vec<Value>>,
    outputs: Vec<String>,
}

impl Ran<'_> {
    /// What the program says of a base when variables are set to what they are in their sources.
    fn outcome(&self, base: usize, variables: &[usize], sources: &[usize]) -> Result<String> {
        let set: Vec<(usize, &Value)> = (variables.iter().zip(sources))
            .map(|(&variable, &source)| (variable, &self.values[source][variable]))
            .collect();
        let (_, output) = self.config.program.run(&self.prompts[base].inputs, &set)?;
        Ok(output.to_string())
    }

    fn item(
        &self,
        of: usize,
        set: &Exchanged,
        base: usize,
        sources: Vec<usize>,
    ) -> Result<(Item, String)> {
        let outcome = self.outcome(base, &set.variables, &sources)?;
        let item = Item {
            of,
            base,
            sources,
            outcome: 0,
            changes: outcome != self.outputs[base],
            others: None,
        };
        Ok((item, outcome))
    }

    fn drawn(&self, of: usize, set: &Exchanged, seed: u64) -> Result<Vec<(Item, String)>> {
        match &self.config.draws {
            Draws::Balanced(n) => self.balanced(of, set, *n, seed),
            Draws::Given(all) => self.given(of, set, all),
        }
    }

    fn given(
        &self,
        of: usize,
        set: &Exchanged,
        all: &[(PromptOf, Vec<PromptOf>)],
    ) -> Result<Vec<(Item, String)>> {
        let find = |of: &PromptOf| {
            let found = self
                .prompts
                .iter()
                .position(|prompt| (prompt.at, prompt.side) == *of);
            found.ok_or_else(|| {
                Error::invalid(format!(
                    "pair {} of the task has no {:?} prompt of its own to exchange",
                    of.0, of.1
                ))
            })
        };
        let mut items = Vec::new();
        for (base, sources) in all
            .iter()
            .filter(|(_, sources)| sources.len() == set.variables.len())
        {
            let sources: Vec<usize> = sources.iter().map(find).collect::<Result<_>>()?;
            items.push(self.item(of, set, find(base)?, sources)?);
        }
        if items.is_empty() {
            return Err(Error::invalid(format!(
                "no exchange has {} sources, as many as `{}` has variables",
                set.variables.len(),
                set.name
            )));
        }
        Ok(items)
    }

    /// As many exchanges that change what the program says as others, and of each as many for one outcome as for another.
    fn balanced(
        &self,
        of: usize,
        set: &Exchanged,
        n: usize,
        seed: u64,
    ) -> Result<Vec<(Item, String)>> {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        rng.set_stream(of as u64);
        let prompts = self.prompts.len();
        if prompts < 2 {
            return Err(Error::invalid(
                "one prompt alone has no source; take more pairs (`ExpandOptions::n_pairs`)",
            ));
        }
        let mut seen = BTreeSet::new();
        let mut groups: [BTreeMap<String, Vec<Item>>; 2] = Default::default();
        for _ in 0..CANDIDATES * n {
            let base = rng.random_range(0..prompts);
            let source = |_: &usize| (base + rng.random_range(1..prompts)) % prompts;
            let sources: Vec<usize> = set.variables.iter().map(source).collect();
            if !seen.insert((base, sources.clone())) {
                continue;
            }
            let (item, outcome) = self.item(of, set, base, sources)?;
            let group = &mut groups[usize::from(item.changes)];
            group.entry(outcome).or_default().push(item);
        }
        if groups[1].is_empty() {
            return Err(Error::invalid(format!(
                "whatever prompt `{}` of program `{}` is taken from, the program says what it says without, so there is nothing to measure; \
                 take more pairs (`ExpandOptions::n_pairs`) or another variable (`InterchangeConfig::alignments`)",
                set.name, self.config.program.name
            )));
        }
        let mut there = groups
            .each_ref()
            .map(|group| group.values().map(Vec::len).sum::<usize>());
        there[0] = there[0].min(n / 2);
        let changing = there[1].min(n - there[0]);
        let wanted = [there[0], changing];
        let mut items = Vec::new();
        for (group, wanted) in groups.into_iter().zip(wanted) {
            items.extend(by_turns(group, wanted));
        }
        Ok(items)
    }
}

/// So many items, of each outcome in turn.
fn by_turns(group: BTreeMap<String, Vec<Item>>, wanted: usize) -> Vec<(Item, String)> {
    let mut rows: Vec<(String, std::vec::IntoIter<Item>)> = group
        .into_iter()
        .map(|(outcome, items)| (outcome, items.into_iter()))
        .collect();
    let mut taken = Vec::new();
    while taken.len() < wanted {
        let before = taken.len();
        for (outcome, items) in &mut rows {
            if taken.len() < wanted
                && let Some(item) = items.next()
            {
                taken.push((item, outcome.clone()));
            }
        }
        if taken.len() == before {
            break;
        }
    }
    taken
}

/// The token of each text that the program says: that of an answer of the task, or the one token that the text is.
/// # Errors
/// [`Error::Invalid`] for a text that is no single token, or shares its token with another.
fn labels(task: &Task, program: &str, texts: BTreeSet<&String>) -> Result<Vec<(String, u32)>> {
    let tokenizer = task.tokenizer();
    let mut known: BTreeMap<String, BTreeSet<u32>> = BTreeMap::new();
    for target in task.pairs().iter().map(|pair| &pair.target) {
        for &token in target.answers.iter().chain(&target.wrong) {
            let text = tokenizer.decode(&[token])?;
            known.entry(text.trim().into()).or_default().insert(token);
        }
    }
    let mut labels: Vec<(String, u32)> = Vec::new();
    for text in texts {
        let of_task = known.get(text.trim());
        let token = match of_task.map(|tokens| tokens.iter().collect::<Vec<_>>()) {
            Some(tokens) if tokens.len() == 1 => *tokens[0],
            Some(tokens) => {
                return Err(Error::invalid(format!(
                    "`{text}` is {} answers of the task, with and without a space, so it is not known which the program `{program}` means; \
                     write the answers one way",
                    tokens.len()
                )));
            }
            None => {
                let spaced = tokenizer.answer_ids(&format!(" {text}"))?;
                let bare = tokenizer.answer_ids(text)?;
                match (spaced.as_slice(), bare.as_slice()) {
                    ([one], _) | (_, [one]) if tokenizer.unknown() != Some(*one) => *one,
                    _ => {
                        return Err(Error::invalid(format!(
                            "program `{program}` says `{text}`, which is no answer of the task and no single token of this model's \
                             vocabulary; let it say answers of one token"
                        )));
                    }
                }
            }
        };
        if let Some((other, _)) = labels.iter().find(|(_, known)| *known == token) {
            return Err(Error::invalid(format!(
                "program `{program}` says `{other}` and `{text}`, which are one token of this model's vocabulary and cannot be told apart"
            )));
        }
        labels.push((text.clone(), token));
    }
    Ok(labels)
}
