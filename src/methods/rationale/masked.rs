//! What a masked-language model expects in the place of a token: each token alone is masked, and the rest of the prompt is as it is.

use std::collections::HashMap;

use crate::error::{Error, Result};
use crate::methods::activation_patching::SourceModel;
use crate::metric::Target;
use crate::run::run_to_answers;
use crate::task::Task;
use crate::text::visible;

/// Tokens that are kept of what is expected at a place.
const LIKELIEST: usize = 256;

/// Whether the vocabulary says that a word begins with this token: a space in front, and no `##`.
pub(super) fn begins_word(text: &str) -> bool {
    text.starts_with(' ') && !text.starts_with("##")
}

/// A masked-language model, and what its tokens are here.
pub(super) struct Filler {
    model: SourceModel,
    mask: u32,
    /// Tokens of its own with the ones here that stand at the beginning of a word, and inside of one.
    begin: Vec<(u32, u32)>,
    inside: Vec<(u32, u32)>,
}

impl Filler {
    /// `by_text`: the ordinary tokens here.
    /// # Errors
    /// [`Error::Invalid`] for a model that fills no masks, or shares no token.
    pub fn new(model: SourceModel, by_text: &HashMap<String, u32>) -> Result<Self> {
        let (tokenizer, spec) = (model.tokenizer(), model.spec());
        let Some(mask) = tokenizer.mask_to_fill().filter(|_| spec.encoder.is_some()) else {
            return Err(Error::invalid(format!(
                "`{}` is no masked-language model; take a folder with a BERT (`Replacer::Masked`)",
                visible(model.id())
            )));
        };
        let (mut begin, mut inside) = (Vec::new(), Vec::new());
        let ids = 0..(spec.d_vocab as u32).min(tokenizer.max_id().saturating_add(1));
        for id in ids.filter(|&id| tokenizer.has_id(id) && !tokenizer.is_special(id)) {
            let text = tokenizer.token(id);
            let word = text.trim_start_matches("##").trim_start_matches(' ');
            let continues = text.starts_with("##");
            if !continues && let Some(&ours) = by_text.get(&format!(" {word}")) {
                begin.push((id, ours));
            }
            if let Some(&ours) = by_text.get(&text).or_else(|| by_text.get(word))
                && !begins_word(&text)
            {
                inside.push((id, ours));
            }
        }
        if begin.is_empty() && inside.is_empty() {
            return Err(Error::invalid(format!(
                "no token of `{}` is one of this model's; take another masked-language model (`Replacer::Masked`)",
                visible(model.id())
            )));
        }
        Ok(Filler {
            model,
            mask,
            begin,
            inside,
        })
    }

    /// The likeliest tokens at each of these places, with their probabilities.
    /// # Errors
    /// Those of running; [`Error::Invalid`] where none is expected.
    pub fn fill(
        &self,
        task: &Task,
        prompt: &[u32],
        places: &[usize],
    ) -> Result<Vec<(Vec<u32>, Vec<f64>)>> {
        let model = self.model.load()?;
        let of = |&at: &usize| {
            let masked = self.masked(task, prompt, at)?;
            let behind = masked.iter().rev().position(|&token| token == self.mask);
            let target = Target {
                answers: vec![self.mask],
                after: behind.ok_or_else(|| self.lost(task, prompt, at))?,
                ..Target::default()
            };
            let (logits, _) = run_to_answers(model, &[masked], &[target], &[])?;
            let logits = &logits[0][0];
            let from = match begins_word(&task.text(prompt[at])) {
                true => &self.begin,
                false => &self.inside,
            };
            let mut found: Vec<(f32, u32)> = (from.iter())
                .map(|&(theirs, ours)| (logits[theirs as usize], ours))
                .collect();
            found.sort_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1)));
            found.truncate(LIKELIEST);
            let Some(&(most, _)) = found.first() else {
                return Err(self.lost(task, prompt, at));
            };
            let weights = found.iter().map(|(logit, _)| f64::from(logit - most).exp());
            Ok((found.iter().map(|one| one.1).collect(), weights.collect()))
        };
        places.iter().map(of).collect()
    }

    /// Refuses a prompt that the model cannot read.
    pub fn check(&self, task: &Task, prompt: &[u32], index: usize) -> Result<()> {
        let tokens = self.masked(task, prompt, 0)?.len();
        let limit = self.model.spec().n_ctx;
        match tokens > limit {
            true => Err(Error::TooLong {
                index,
                tokens,
                limit,
            }),
            false => Ok(()),
        }
    }

    /// The prompt in its tokens, its own mask at a place.
    fn masked(&self, task: &Task, prompt: &[u32], at: usize) -> Result<Vec<u32>> {
        let tokenizer = self.model.tokenizer();
        let ours = task.tokenizer();
        let text = |tokens: &[u32]| {
            let ordinary = tokens
                .iter()
                .copied()
                .filter(|&token| !ours.is_special(token));
            ours.decode(&ordinary.collect::<Vec<u32>>())
        };
        let encode = |text: &str| tokenizer.encode(text, false).map(|encoded| encoded.ids);
        let framed = tokenizer.encode("", true)?.ids;
        let (front, back) = framed.split_at(1.min(framed.len()));
        // What stands behind keeps its space in front, where it is cut out of the whole.
        let (whole, until) = (text(prompt)?, text(&prompt[..=at])?);
        let behind = match whole.strip_prefix(&until) {
            Some(behind) => behind.to_string(),
            None => text(&prompt[at + 1..])?,
        };
        let (before, behind) = (encode(&text(&prompt[..at])?)?, encode(&behind)?);
        Ok([front, &before, &[self.mask], &behind, back].concat())
    }

    fn lost(&self, task: &Task, prompt: &[u32], at: usize) -> Error {
        Error::invalid(format!(
            "`{}` has no token that could stand for `{}` (position {at}) of this model; take another replacer (`RationaleConfig::replacer`)",
            visible(self.model.id()),
            visible(&task.text(prompt[at]))
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metric::Metric;
    use crate::model::{Loaded, Model, Tokenizer};
    use crate::run::{Logits, Request, run};
    use crate::spec::{Activation, Encoder, Mlp, ModelSpec, NormKind, NormPlacement, Position};
    use crate::task::Pair;

    const WORDS: [&str; 7] = ["paris", "is", "in", "france", "rome", "italy", "."];

    /// The words behind some others, which are special.
    fn tokenizer(special: &[&str]) -> Tokenizer {
        let all = special.iter().chain(&WORDS).zip(0u32..);
        let vocab: serde_json::Map<String, serde_json::Value> = (all)
            .map(|(word, id)| (word.to_string(), id.into()))
            .collect();
        let added: Vec<serde_json::Value> = (special.iter().zip(0u32..))
            .map(|(word, id)| {
                serde_json::json!({"id": id, "content": word, "single_word": false, "lstrip": false, "rstrip": false,
                    "normalized": false, "special": true})
            })
            .collect();
        let mut json = serde_json::json!({
            "version": "1.0",
            "added_tokens": added,
            "pre_tokenizer": {"type": "BertPreTokenizer"},
            "model": {"type": "WordLevel", "vocab": vocab, "unk_token": "."},
        });
        if special.len() > 1 {
            json["post_processor"] = serde_json::json!({"type": "BertProcessing", "sep": ["[SEP]", 1], "cls": ["[CLS]", 0]});
        }
        Tokenizer::from_bytes(json.to_string().as_bytes(), None).expect("a well-formed tokenizer")
    }

    fn bert() -> Model {
        let spec = ModelSpec {
            d_mlp: 12,
            d_vocab: 10,
            n_ctx: 8,
            norm: NormKind::Layer,
            norm_placement: NormPlacement::Stream,
            position: Position::Learned,
            mlp: Mlp::Plain,
            activation: Activation::Gelu,
            tied: false,
            encoder: Some(Encoder {
                n_segments: Some(2),
                first_norm: true,
            }),
            ..ModelSpec::bare(2, 2)
        };
        Model::random(spec, 4).expect("a whole spec")
    }

    #[test]
    fn what_is_expected_is_read_where_the_mask_stands() {
        let model = bert();
        let framed = [0, 3, 4, 5, 2, 9, 1];
        let request = Request {
            logits: Logits::All,
            ..Request::default()
        };
        let logits = run(&model, &[framed.to_vec()], &request)
            .expect("it runs")
            .logits;
        let logits: Vec<Vec<Vec<f32>>> = logits.expect("asked for").to_vec3().expect("it reads");
        let theirs = tokenizer(&["[CLS]", "[SEP]", "[MASK]"]);
        let ours = tokenizer(&["<s>"]);
        let prompt = [0, 1, 2, 3, 4, 7];
        let pair = Pair::new(prompt, prompt).answer(1);
        let task = Task::new("t", &ours, Metric::LogProb, [pair]).expect("a task");
        let by_text = (1..8).map(|id| (task.text(id), id)).collect();
        let loaded = Loaded {
            model,
            tokenizer: theirs,
        };
        let filler = Filler::new(loaded.into(), &by_text).expect("it fills masks");
        let found = filler.fill(&task, &prompt, &[4]).expect("it runs");
        let (tokens, weights) = &found[0];
        assert_eq!(tokens.len(), WORDS.len());
        let at_mask = &logits[0][4];
        for (&token, &weight) in tokens.iter().zip(weights) {
            // The words stand behind one special token here, behind three there.
            let [own, most] = [token, tokens[0]].map(|id| f64::from(at_mask[id as usize + 2]));
            assert!((weight - (own - most).exp()).abs() < 1e-5, "{token}");
        }
        assert!(weights.is_sorted_by(|a, b| a >= b));
        filler.check(&task, &prompt, 0).expect("it fits");
        let long = [1; 12];
        let refused = filler.check(&task, &long, 0);
        assert!(matches!(refused, Err(Error::TooLong { limit: 8, .. })));
    }
}
