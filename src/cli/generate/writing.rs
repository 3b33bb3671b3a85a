//! Prompts continued in batches, with and without what is changed.

use std::collections::BTreeMap;

use candlewick::methods::{Continuation, Distance, Writer, continued_text};
use candlewick::model::{Model, Tokenizer};
use candlewick::run::{
    GenerateRequest, Generation, Progress, Roles, Sampling, Sources, counterfactuals, generate,
};

use super::changes::Changes;
use super::prompts::Prompt;
use super::sources::sources;

/// Prompts whose logits are kept at once, to find the noise behind their texts.
const AT_ONCE: usize = 8;

/// All that the continuations of a command share.
pub struct Writing<'a> {
    pub model: &'a Model,
    pub tokenizer: &'a Tokenizer,
    pub prompts: &'a [Prompt],
    /// Continuations that were given, of the first prompts.
    pub originals: &'a [Vec<u32>],
    pub changes: &'a Changes,
    pub mean: Sources,
    pub stop: Vec<u32>,
    pub sampling: Sampling,
    pub max_tokens: usize,
    pub seed: u64,
    /// Also without the changes.
    pub compare: bool,
    /// Of the noise of counterfactuals, where those are asked for.
    pub noise_seed: Option<u64>,
}

impl Writing<'_> {
    /// The continuations of every prompt, those of a prompt one after another.
    pub fn all(&self, progress: &dyn Progress) -> anyhow::Result<Vec<Continuation>> {
        let mut all: Vec<Vec<Continuation>> = vec![Vec::new(); self.prompts.len()];
        for batch in self.batches() {
            let written = self.batch(&batch, progress)?;
            for (place, &at) in batch.iter().enumerate() {
                let mut before: Option<&[u32]> = None;
                for (writer, generation) in &written {
                    let one = self.continuation(at, *writer, generation, place, before)?;
                    all[at].push(one);
                    before = Some(&generation.tokens[place]);
                }
            }
        }
        Ok(all.into_iter().flatten().collect())
    }

    /// Prompts that run together: of one length, and all with a partner, an original, or none.
    fn batches(&self) -> Vec<Vec<usize>> {
        let mut groups: BTreeMap<_, Vec<usize>> = BTreeMap::new();
        for (at, prompt) in self.prompts.iter().enumerate() {
            let key = (
                prompt.tokens.len(),
                prompt.unrelated,
                at < self.originals.len(),
            );
            groups.entry(key).or_default().push(at);
        }
        let at_once = match self.noise_seed {
            Some(_) => AT_ONCE,
            None => usize::MAX,
        };
        let groups = groups.into_values();
        groups
            .flat_map(|group| {
                group
                    .chunks(at_once)
                    .map(<[usize]>::to_vec)
                    .collect::<Vec<_>>()
            })
            .collect()
    }

    /// What each run writes after the prompts of a batch; with two runs, the unedited one first.
    fn batch(
        &self,
        batch: &[usize],
        progress: &dyn Progress,
    ) -> anyhow::Result<Vec<(Writer, Generation)>> {
        let prompts: Vec<&Prompt> = batch.iter().map(|&at| &self.prompts[at]).collect();
        let roles: Vec<Roles> = prompts.iter().map(|prompt| prompt.roles.clone()).collect();
        let streams: Vec<u64> = batch.iter().map(|&at| at as u64).collect();
        let tokens: Vec<Vec<u32>> = prompts.iter().map(|prompt| prompt.tokens.clone()).collect();
        let edits = &self.changes.edits(tokens[0].len(), self.max_tokens)?[..];
        let edited = GenerateRequest {
            edits,
            sources: sources(self.model, &prompts, edits, &self.mean)?,
            roles: &roles,
            max_tokens: self.max_tokens,
            sampling: self.sampling,
            stop: &self.stop,
            seed: self.seed,
            streams: &streams,
            keep_logits: false,
        };
        let write =
            |request: &GenerateRequest<'_>| generate(self.model, &tokens, request, progress);
        if let Some(seed) = self.noise_seed {
            let given = batch
                .iter()
                .filter_map(|&at| self.originals.get(at).cloned());
            let given: Vec<Vec<u32>> = given.collect();
            let both = counterfactuals(self.model, &tokens, &given, &edited, seed, progress)?;
            return Ok(vec![
                (Writer::Original, both.original),
                (Writer::Counterfactual, both.counterfactual),
            ]);
        }
        let mut written = Vec::new();
        if self.compare || edits.is_empty() {
            let plain = GenerateRequest {
                edits: &[],
                ..edited.clone()
            };
            written.push((Writer::Plain, write(&plain)?));
        }
        if !edits.is_empty() {
            written.push((Writer::Edited, write(&edited)?));
        }
        Ok(written)
    }

    fn continuation(
        &self,
        at: usize,
        writer: Writer,
        generation: &Generation,
        place: usize,
        before: Option<&[u32]>,
    ) -> candlewick::Result<Continuation> {
        let prompt = &self.prompts[at];
        let tokens = generation.tokens[place].clone();
        Ok(Continuation {
            prompt: at,
            prompt_text: prompt.text.clone(),
            unrelated: prompt.unrelated,
            writer,
            text: continued_text(self.tokenizer, &prompt.tokens, &tokens)?,
            distance: before.map(|before| Distance::between(before, &tokens)),
            log_probs: generation.log_probs[place].clone(),
            tokens,
        })
    }
}
