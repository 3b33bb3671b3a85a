//! Circuits that are part of the library: those of papers, and our own of small models.
//!
//! A file of `circuits/published/` holds what a paper claims of its circuit (`[claimed]`) and nothing that we measured; one of
//! `circuits/measured/` what we measured (`[measured]`) and no claim of others. Most of the models are too large to ship: a
//! circuit is held against the graph of its model's sizes.

use super::Circuit;
use crate::error::{Error, Result};

/// Name and text.
const SHIPPED: [(&str, &str); 7] = [
    (
        "measured/embedded",
        include_str!("../../circuits/measured/embedded.toml"),
    ),
    (
        "measured/induction_pair",
        include_str!("../../circuits/measured/induction_pair.toml"),
    ),
    (
        "measured/stories260K_pronoun",
        include_str!("../../circuits/measured/stories260K_pronoun.toml"),
    ),
    (
        "published/docstring",
        include_str!("../../circuits/published/docstring.toml"),
    ),
    (
        "published/greater_than",
        include_str!("../../circuits/published/greater_than.toml"),
    ),
    (
        "published/induction",
        include_str!("../../circuits/published/induction.toml"),
    ),
    (
        "published/ioi",
        include_str!("../../circuits/published/ioi.toml"),
    ),
];

/// The names of the circuits that are part of the library.
pub fn shipped() -> impl Iterator<Item = &'static str> {
    SHIPPED.iter().map(|(name, _)| *name)
}

/// A circuit that is part of the library, such as `published/ioi`; `None` for a name that none has.
/// # Errors
/// [`Error::Invalid`], which the files here do not meet.
pub fn by_name(name: &str) -> Result<Option<Circuit>> {
    let Some((_, text)) = SHIPPED.iter().find(|(of, _)| *of == name) else {
        return Ok(None);
    };
    let circuit = Circuit::from_toml(text);
    circuit
        .map(Some)
        .map_err(|reason| Error::invalid(format!("`{name}`: {reason}")))
}

#[cfg(test)]
mod tests {
    use super::super::classes::{Link, linked};
    use super::*;
    use crate::circuit::{EdgeSet, Pruning};
    use crate::hooks::Node;
    use crate::task::file;

    #[test]
    fn a_shipped_circuit_is_read_and_keeps_claims_and_measurements_apart() {
        for name in shipped() {
            let circuit = by_name(name).expect(name).expect("it is listed");
            let (kind, own) = name.split_once('/').expect("a folder and a name");
            assert_eq!(circuit.about.name.as_deref(), Some(own));
            assert!(
                circuit.about.model.is_some() && circuit.about.source.is_some(),
                "{name}"
            );
            match kind {
                "published" => {
                    assert!(circuit.measured.is_empty() && circuit.about.claim.is_some())
                }
                _ => assert!(circuit.claimed.is_empty() && !circuit.measured.is_empty()),
            }
            // Every node that is named has a part in it.
            let touched = circuit.edges.nodes();
            for node in circuit.nodes.keys() {
                assert!(touched.contains(node), "{name}: {node}");
            }
            // And nothing in it is a dead end.
            assert_eq!(
                circuit.edges.pruned(Pruning::Fixpoint),
                circuit.edges,
                "{name}"
            );
            // Of a paper's circuit the task is one that ships; ours have prompts of their own beside them.
            if let Some(task) = circuit.about.task.as_deref() {
                assert!(file::shipped().any(|of| of == task), "{name}: {task}");
            }
            assert!(circuit.about.task.is_some() || kind == "measured", "{name}");
        }
        assert!(by_name("published/none").expect("no file").is_none());
    }

    #[test]
    fn no_circuit_is_taken_for_a_task() {
        let tasks: Vec<&str> = file::shipped().collect();
        for name in shipped() {
            assert!(!tasks.contains(&name));
            assert!(file::TaskFile::open(name).is_err(), "{name}");
            let path = format!("circuits/{name}.toml");
            assert!(std::path::Path::new(&path).is_file(), "{path}");
            assert!(file::TaskFile::open(&path).is_err(), "{path}");
        }
    }

    #[test]
    fn the_circuit_for_indirect_objects_is_that_of_its_papers() {
        let circuit = by_name("published/ioi").expect("reads").expect("shipped");
        let heads: Vec<Node> = (circuit.edges.nodes().into_iter())
            .filter(|node| matches!(node, Node::Head { .. }))
            .collect();
        assert_eq!((heads.len(), circuit.nodes.len()), (26, 26));
        let of_class = |class: &str| {
            let notes = circuit.nodes.values();
            notes
                .filter(|note| note.class.as_deref() == Some(class))
                .count()
        };
        let classes = [
            ("name mover", 3),
            ("backup name mover", 8),
            ("negative name mover", 2),
            ("S-inhibition", 4),
            ("induction", 4),
            ("duplicate token", 3),
            ("previous token", 2),
        ];
        for (class, n) in classes {
            assert_eq!(of_class(class), n, "{class}");
        }
        // Its authors' count, without the three edges inside of each head.
        assert_eq!(circuit.edges.len(), 1041 - 3 * 26);
        let links = [
            "input -> previous token <q,k,v>",
            "input -> duplicate token <q,k,v>",
            "input -> S-inhibition <q>",
            "input -> name mover <k,v>",
            "input -> backup name mover <k,v>",
            "input -> negative name mover <k,v>",
            "previous token -> induction <k,v>",
            "induction -> S-inhibition <k,v>",
            "duplicate token -> S-inhibition <k,v>",
            "S-inhibition -> name mover <q>",
            "S-inhibition -> backup name mover <q>",
            "S-inhibition -> negative name mover <q>",
            "name mover -> logits",
            "backup name mover -> logits",
            "negative name mover -> logits",
        ];
        let links: Vec<Link> = links.iter().map(|link| link.parse().expect(link)).collect();
        let by_rule = linked(*circuit.graph(), &circuit.nodes, &links).expect("the rule");
        assert_eq!(by_rule, circuit.edges);
    }

    #[test]
    fn the_others_have_the_sizes_of_their_sources() {
        let edges = |name: &str| by_name(name).expect(name).expect(name).edges;
        // 37 of the authors' graph, of which 13 are inside of heads.
        assert_eq!(edges("published/docstring").len(), 37 - 13);
        // Of nodes alone: every edge between three heads, the input and the logits.
        let induction = edges("published/induction");
        let heads = ["a0.h0", "a1.h5", "a1.h6"].map(|node| node.parse().expect(node));
        assert_eq!(
            induction,
            EdgeSet::between(*induction.graph(), &heads).expect("heads")
        );
        assert_eq!(induction.len(), 3 + 1 + 2 * (6 + 1) + 1);
        assert_eq!(edges("published/greater_than").len(), 235);
        let pair: Vec<String> = (edges("measured/induction_pair").edges())
            .map(|edge| edge.to_string())
            .collect();
        assert_eq!(
            pair,
            ["input->a0.h0<v>", "a0.h0->a1.h0<k>", "a1.h0->logits"]
        );
    }
}
