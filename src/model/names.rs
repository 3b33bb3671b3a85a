//! The tensors of a checkpoint under the names that layouts know.
//!
//! What wraps a model while it is trained puts its own name before every tensor's (`module.`, `_orig_mod.`, `base_model.model.`), or
//! into it (`layers.0._fsdp_wrapped_module.mlp`); and a family's own prefix (`model.`, `transformer.`) is there or not. The embedding,
//! which every checkpoint has, shows what is in front.

use std::collections::HashMap;

use super::layout::{Layout, Slot};
use crate::text::shortened;

/// What trainers put into the middle of names.
const WRAPPERS: [&str; 4] = [
    "_orig_mod",
    "_fsdp_wrapped_module",
    "_checkpoint_wrapped_module",
    "_forward_module",
];

/// A checkpoint's tensors by the names of a layout.
pub struct Names<'a> {
    layout: &'a Layout,
    tensors: HashMap<String, Found<'a>>,
    /// What was left out of the names, if anything was, as a sentence.
    pub note: Option<String>,
}

/// A tensor as the checkpoint has it.
#[derive(Debug, Clone, Copy)]
pub struct Found<'a> {
    pub name: &'a str,
    pub shape: &'a [usize],
}

impl<'a> Names<'a> {
    pub fn new(tensors: Vec<(&'a str, &'a [usize])>, layout: &'a Layout) -> Self {
        let plain = Names {
            layout,
            tensors: tensors
                .iter()
                .map(|&(name, shape)| (name.to_string(), Found { name, shape }))
                .collect(),
            note: None,
        };
        if plain.knows_the_model() {
            return plain;
        }
        plain.unwrapped(&tensors).unwrap_or(plain)
    }

    /// The tensor that a layout calls so.
    pub fn get(&self, name: &str) -> Option<Found<'a>> {
        self.forms(name)
            .iter()
            .find_map(|form| self.tensors.get(form).copied())
    }

    /// The names that a tensor of a layout may have.
    fn forms(&self, name: &str) -> [String; 3] {
        [
            format!("{}{name}", self.layout.optional_prefix),
            name.to_string(),
            older_name(name),
        ]
    }

    /// The embedding's names, and those of the unembedding that may stand for it.
    fn landmarks(&self) -> Vec<String> {
        let embedding = self
            .layout
            .model
            .iter()
            .find(|(slot, _)| *slot == Slot::Embed);
        let embedding = embedding.and_then(|(_, pieces)| pieces.first());
        let names = embedding.map(|piece| piece.name.as_str()).into_iter();
        names
            .chain(self.layout.tied_head.as_deref())
            .flat_map(|name| self.forms(name))
            .collect()
    }

    fn knows_the_model(&self) -> bool {
        self.landmarks()
            .iter()
            .any(|name| self.tensors.contains_key(name))
    }

    /// The same tensors without what stands before the embedding's name, and without the trainers' words inside.
    fn unwrapped(&self, tensors: &[(&'a str, &'a [usize])]) -> Option<Self> {
        let inner: Vec<(String, Found<'a>)> = tensors
            .iter()
            .map(|&(name, shape)| (without_wrappers(name), Found { name, shape }))
            .collect();
        let landmarks = self.landmarks();
        let wrapper = landmarks.iter().find_map(|landmark| {
            inner.iter().find_map(|(name, _)| {
                let prefix = name.strip_suffix(landmark.as_str())?;
                (prefix.is_empty() || prefix.ends_with('.')).then(|| prefix.to_string())
            })
        })?;
        let mut known = HashMap::new();
        for (name, found) in inner {
            let name = name
                .strip_prefix(&wrapper)
                .map(str::to_string)
                .unwrap_or(name);
            // Two names that fall together stay apart, and the second is said to be left over.
            if known.contains_key(&name) {
                known.insert(found.name.to_string(), found);
            } else {
                known.insert(name, found);
            }
        }
        let example = tensors.first().map_or("", |(name, _)| name);
        let what = if wrapper.is_empty() {
            format!("words of a trainer (as in `{}`)", shortened(example))
        } else {
            format!("`{}` in front of them", shortened(&wrapper))
        };
        Some(Names {
            layout: self.layout,
            tensors: known,
            note: Some(format!(
                "the names of the tensors have {what}, which was left out"
            )),
        })
    }
}

/// What BERT's first checkpoints call the weight and bias of a LayerNorm.
fn older_name(name: &str) -> String {
    name.replace("LayerNorm.weight", "LayerNorm.gamma")
        .replace("LayerNorm.bias", "LayerNorm.beta")
}

fn without_wrappers(name: &str) -> String {
    let kept = name.split('.').filter(|part| !WRAPPERS.contains(part));
    kept.collect::<Vec<_>>().join(".")
}

#[cfg(test)]
mod tests {
    use super::super::layout::Piece;
    use super::*;

    fn layout() -> Layout {
        Layout {
            model: vec![(Slot::Embed, vec![Piece::as_is("embed_tokens.weight", 2)])],
            optional_prefix: "model.".to_string(),
            tied_head: Some("lm_head.weight".to_string()),
            ..Layout::default()
        }
    }

    #[test]
    fn what_stands_in_front_is_seen_at_the_embedding() {
        let layout = layout();
        for (embedding, other, note) in [
            ("model.embed_tokens.weight", "model.norm.weight", None),
            ("embed_tokens.weight", "norm.weight", None),
            (
                "module.model.embed_tokens.weight",
                "module.model.norm.weight",
                Some("`module.`"),
            ),
            (
                "module.embed_tokens.weight",
                "module.norm.weight",
                Some("`module.`"),
            ),
            (
                "base_model.model.model.embed_tokens.weight",
                "base_model.model.model.norm.weight",
                Some("`base_model.model.`"),
            ),
            (
                "module._orig_mod.model.embed_tokens.weight",
                "module._orig_mod.model.norm.weight",
                Some("`module.`"),
            ),
            (
                "model.embed_tokens._fsdp_wrapped_module.weight",
                "model._fsdp_wrapped_module.norm.weight",
                Some("trainer"),
            ),
            (
                "_orig_mod.model.embed_tokens.weight",
                "_orig_mod.model.norm.weight",
                Some("trainer"),
            ),
            (
                "module.lm_head.weight",
                "module.model.norm.weight",
                Some("`module.`"),
            ),
        ] {
            let tensors: Vec<(&str, &[usize])> = vec![(embedding, &[3, 2]), (other, &[2])];
            let names = Names::new(tensors, &layout);
            assert_eq!(
                names.get("norm.weight").map(|found| found.name),
                Some(other)
            );
            match note {
                None => assert_eq!(names.note, None),
                Some(word) => assert!(names.note.as_ref().unwrap().contains(word), "{embedding}"),
            }
        }
    }
}
