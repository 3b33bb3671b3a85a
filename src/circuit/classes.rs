//! From nodes with classes to edges: the rule by which a circuit that was published as heads with parts becomes one of edges.
//!
//! A paper says which class of heads reads which, and through its queries, keys or values; it seldom lists edges, and as a rule
//! leaves MLPs alone. So an edge leads from every head of one class to those of another where a link says so, and from and to
//! every MLP: what a head writes may pass through any of them on the way. From `input` to the logits the stream itself leads.
//! Positions stay with the nodes: an edge of this graph has none.
//!
//! Source: Conmy et al. 2023, arXiv 2304.14997, in whose code the rule makes the circuit of GPT-2 small for indirect objects.

use std::collections::BTreeMap;
use std::str::FromStr;

use super::{EdgeSet, Graph, NodeNote};
use crate::error::{Error, Result};
use crate::hooks::{Edge, Letter, Node};

/// What one class of heads writes, as another reads it: `S-inhibition -> name mover <q>`, `input -> induction <k,v>`,
/// `name mover -> logits`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Link {
    /// A class, or `input`.
    pub from: String,
    /// A class, or `logits`.
    pub to: String,
    /// The inputs of the readers; none for `logits`.
    pub letters: Vec<Letter>,
}

impl FromStr for Link {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let bad = |reason: &str| Error::Parse {
            what: "a link between classes",
            text: text.into(),
            reason: reason.into(),
        };
        let Some((from, to)) = text.split_once("->") else {
            return Err(bad("write `CLASS -> CLASS <q,k,v>`"));
        };
        let (to, letters) = match to.trim().strip_suffix('>') {
            None => (to, Vec::new()),
            Some(to) => {
                let (to, letters) = to
                    .rsplit_once('<')
                    .ok_or_else(|| bad("a `<` begins its letters"))?;
                let letter = |text: &str| match text.trim() {
                    "q" => Ok(Letter::Q),
                    "k" => Ok(Letter::K),
                    "v" => Ok(Letter::V),
                    _ => Err(bad("letters are q, k and v")),
                };
                let letters: Result<_> = letters.split(',').map(letter).collect();
                (to, letters?)
            }
        };
        let (from, to) = (from.trim().to_string(), to.trim().to_string());
        if letters.is_empty() != (to == "logits") {
            return Err(bad(
                "say which of q, k and v a class reads through, and none for `logits`",
            ));
        }
        Ok(Link { from, to, letters })
    }
}

/// The edges that links between classes stand for, with every MLP of the model between them.
/// # Errors
/// [`Error::Invalid`] for a class that no node has; [`Error::UnknownNode`].
pub fn linked(graph: Graph, nodes: &BTreeMap<Node, NodeNote>, links: &[Link]) -> Result<EdgeSet> {
    let of_class = |class: &str| -> Result<Vec<Node>> {
        let of = |(node, note): (&Node, &NodeNote)| {
            (note.class.as_deref() == Some(class)).then_some(*node)
        };
        let found: Vec<Node> = nodes.iter().filter_map(of).collect();
        if found.is_empty() {
            return Err(Error::invalid(format!(
                "no node is of the class `{}`; classes are {}",
                crate::text::shortened(class),
                classes(nodes)
            )));
        }
        Ok(found)
    };
    let mut edges = EdgeSet::empty(graph);
    // Where the source is computed after its reader looks there is no edge, and the link says nothing of these two.
    let mut add = |edge: Edge| -> Result<()> {
        graph.check_node(edge.src)?;
        graph.check_node(edge.dst)?;
        if let Ok((row, column)) = graph.place(&edge) {
            edges.insert(row, column);
        }
        Ok(())
    };
    for link in links {
        let sources = match link.from.as_str() {
            "input" => vec![Node::Input],
            class => of_class(class)?,
        };
        for &src in &sources {
            if link.to == "logits" {
                add(Edge::to_logits(src))?;
                continue;
            }
            for dst in of_class(&link.to)? {
                for &letter in &link.letters {
                    let letter = matches!(dst, Node::Head { .. }).then_some(letter);
                    add(Edge { src, dst, letter })?;
                }
            }
        }
    }
    let mlps = if graph.has_mlp { graph.n_layers } else { 0 };
    let heads: Vec<Node> = nodes
        .keys()
        .copied()
        .filter(|node| matches!(node, Node::Head { .. }))
        .collect();
    for layer in 0..mlps {
        let mlp = Node::Mlp(layer);
        add(Edge::to_mlp(Node::Input, layer))?;
        add(Edge::to_logits(mlp))?;
        for later in layer + 1..mlps {
            add(Edge::to_mlp(mlp, later))?;
        }
        for &head in &heads {
            add(Edge::to_mlp(head, layer))?;
            for letter in Letter::ALL {
                add(Edge {
                    src: mlp,
                    dst: head,
                    letter: Some(letter),
                })?;
            }
        }
    }
    add(Edge::to_logits(Node::Input))?;
    Ok(edges)
}

fn classes(nodes: &BTreeMap<Node, NodeNote>) -> String {
    let classes: std::collections::BTreeSet<&str> = nodes
        .values()
        .filter_map(|note| note.class.as_deref())
        .collect();
    let named: Vec<String> = classes.into_iter().map(crate::text::shortened).collect();
    named.join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn links_lead_from_class_to_class_and_through_every_mlp() {
        let graph = Graph {
            n_layers: 2,
            n_heads: 2,
            d_model: 8,
            has_mlp: true,
            parallel: false,
        };
        let of = |class: &str| NodeNote {
            class: Some(class.into()),
            ..NodeNote::default()
        };
        let node = |text: &str| text.parse().expect(text);
        let nodes = BTreeMap::from([
            (node("a0.h1"), of("finder")),
            (node("a1.h0"), of("mover")),
            (node("a0.h0"), of("mover")),
        ]);
        let links = [
            "input->finder<v>",
            "finder -> mover <k, v>",
            "mover -> logits",
        ];
        let links: Vec<Link> = links.iter().map(|link| link.parse().expect(link)).collect();
        let found = linked(graph, &nodes, &links).expect("links");
        let names: Vec<String> = found.edges().map(|edge| edge.to_string()).collect();
        let expected = [
            "input->a0.h1<v>",
            "input->m0",
            "input->m1",
            "input->logits",
            "a0.h0->m0",
            "a0.h0->m1",
            "a0.h0->logits",
            "a0.h1->m0",
            "a0.h1->a1.h0<k>",
            "a0.h1->a1.h0<v>",
            "a0.h1->m1",
            "m0->a1.h0<q>",
            "m0->a1.h0<k>",
            "m0->a1.h0<v>",
            "m0->m1",
            "m0->logits",
            "a1.h0->m1",
            "a1.h0->logits",
            "m1->logits",
        ];
        assert_eq!(names, expected);
        let unknown: Link = "input -> rider <q>".parse().expect("a link");
        let message = linked(graph, &nodes, &[unknown])
            .expect_err("no such class")
            .to_string();
        assert!(
            message.contains("`rider`; classes are finder, mover"),
            "{message}"
        );
        for bad in [
            "a b",
            "a -> b",
            "a -> b <x>",
            "a -> logits <q>",
            "a -> b q>",
        ] {
            assert!(bad.parse::<Link>().is_err(), "{bad}");
        }
    }
}
