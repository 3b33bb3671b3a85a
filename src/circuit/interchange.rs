//! Circuits in the formats of other tools.
//!
//! | ending | holds | read | written |
//! |---|---|---|---|
//! | `.toml` | all of a circuit | yes | yes |
//! | `.json` (EAP-IG, MIB) | edges and scores | yes | yes |
//! | `.dot`, `.gv` (Graphviz) | all of a circuit | yes | yes |
//! | `.graphml` | all of a circuit | yes | yes |
//! | `.nodes.csv` | nodes with their notes | yes | yes |
//! | `.csv` | edges and scores | yes | yes |
//! | `.txt` | edges by AutoCircuit's names, and scores | yes | yes |
//!
//! A format that cannot hold notes of nodes (class, positions, dimensions) refuses a circuit that has them. Lists (`.csv`, `.txt`) do not
//! say of which model they are: reading one takes the graph from elsewhere. Names of edges are ours or AutoCircuit's
//! everywhere. A folder of JSON files, one for each share of edges, is what MIB takes as one method's circuits
//! ([`read_folder`]).

mod dot;
mod folder;
mod graphml;
mod listing;
mod lists;
mod names;

use std::io::Write;
use std::path::Path;

pub use folder::{FRACTIONS, read_folder, write_folder};

use super::bounded::read_text;
use super::{Circuit, Graph};
use crate::error::{Error, Result};
use crate::scores::write_whole;
use listing::Listing;

/// Two million edges in the wordiest of the formats.
const FILE_LIMIT: u64 = 512 << 20;

/// A format of circuits, which the ending of a file's name says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    Toml,
    Json,
    Dot,
    GraphMl,
    NodeList,
    EdgeList,
    AutoCircuit,
}

impl Format {
    /// # Errors
    /// [`Error::Invalid`] for an ending that none of them has.
    pub fn of(path: &Path) -> Result<Self> {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let name = name.to_ascii_lowercase();
        let endings = [
            (".toml", Format::Toml),
            (".json", Format::Json),
            (".dot", Format::Dot),
            (".gv", Format::Dot),
            (".graphml", Format::GraphMl),
            (".nodes.csv", Format::NodeList),
            (".csv", Format::EdgeList),
            (".txt", Format::AutoCircuit),
        ];
        let mut endings = endings.into_iter();
        match endings.find(|(ending, _)| name.ends_with(ending)) {
            Some((_, format)) => Ok(format),
            None => Err(Error::invalid(format!(
                "`{}` does not say the format of a circuit: end the name in `.toml`, `.json` (EAP-IG, MIB), `.dot`, `.graphml`, \
                 `.csv`, `.nodes.csv` or `.txt` (AutoCircuit's names)",
                path.display()
            ))),
        }
    }

    fn name(self) -> &'static str {
        match self {
            Format::Toml => "circuit TOML",
            Format::Json => "circuit JSON",
            Format::Dot => "Graphviz DOT",
            Format::GraphMl => "GraphML",
            Format::NodeList => "CSV of nodes",
            Format::EdgeList => "CSV of edges",
            Format::AutoCircuit => "list of edges",
        }
    }

    /// Whether classes, positions and dimensions of nodes have a place in it.
    fn holds_notes(self) -> bool {
        match self {
            Format::Toml | Format::Dot | Format::GraphMl | Format::NodeList => true,
            Format::Json | Format::EdgeList | Format::AutoCircuit => false,
        }
    }
}

/// Reads a circuit in the format that the ending of the name says. `like` is the graph of its model: a file that says itself of
/// which model it is must agree, and a list needs it.
/// # Errors
/// Those of [`Format::of`]; [`Error::Missing`], [`Error::Read`]; [`Error::Malformed`] for what is not of the format, for nodes and
/// edges that the model does not have, and for a list without `like`; [`Error::Invalid`] for a circuit of another model.
pub fn read(path: &Path, like: Option<&Graph>) -> Result<Circuit> {
    let format = Format::of(path)?;
    let circuit = match format {
        Format::Toml | Format::Json => Circuit::read(path)?,
        _ => {
            let hint =
                "a circuit is a file that `candlewick circuit` writes, or one of another tool";
            let text = read_text(path, FILE_LIMIT, format.name(), hint)?;
            parse(&text, format, like).map_err(|reason| Error::Malformed {
                path: path.to_path_buf(),
                format: format.name(),
                reason,
            })?
        }
    };
    if let Some(graph) = like {
        circuit.check_fits(graph)?;
    }
    Ok(circuit)
}

/// The circuit that a text is, or one line on why it is none. (`.toml` and `.json` have readers of their own.)
pub fn parse(text: &str, format: Format, like: Option<&Graph>) -> Result<Circuit, String> {
    let listing = match format {
        Format::Dot => dot::parse(text)?,
        Format::GraphMl => graphml::parse(text)?,
        Format::NodeList | Format::EdgeList => lists::parse(text)?,
        Format::AutoCircuit => lists::parse_named(text)?,
        Format::Toml => return Circuit::from_toml(text),
        Format::Json => return Err("JSON is read from a file".into()),
    };
    listing.into_circuit(like)
}

/// Writes a circuit in the format that the ending of the name says, whole or not at all.
/// # Errors
/// Those of [`Format::of`]; [`Error::Invalid`] for notes of nodes where the format has no place for them, and for
/// characters that it cannot hold; [`Error::Write`].
pub fn write(circuit: &Circuit, path: &Path) -> Result<()> {
    let format = Format::of(path)?;
    if !format.holds_notes()
        && let Some((node, _)) = circuit.nodes.iter().find(|(_, note)| note.says_more())
    {
        return Err(Error::invalid(format!(
            "`{node}` has a class, positions or dimensions, which a {} cannot hold; end the name in `.toml`, `.dot`, `.graphml` or `.nodes.csv`",
            format.name()
        )));
    }
    let text = match format {
        Format::Toml | Format::Json => return circuit.write(path),
        Format::Dot => dot::text(&Listing::of(circuit)?),
        Format::GraphMl => graphml::text(&Listing::of(circuit)?)?,
        Format::NodeList => lists::nodes(circuit)?,
        Format::EdgeList => lists::edges(circuit)?,
        Format::AutoCircuit => lists::named(circuit),
    };
    write_whole(path, |file| {
        file.write_all(text.as_bytes())
            .map_err(|source| Error::Write {
                path: path.to_path_buf(),
                source,
            })
    })
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::circuit::{About, EdgeSet, NodeNote};
    use crate::hooks::{Edge, Node};

    fn graph() -> Graph {
        Graph::tiny(2, 2)
    }

    fn edge(text: &str) -> Edge {
        text.parse().expect(text)
    }

    /// A circuit with everything that a file can hold, and with text that formats have to escape.
    fn whole() -> Circuit {
        let edges = [
            "input->a1.h0<v>",
            "input->m1",
            "a1.h0->m1",
            "a1.h0->logits",
            "m1->logits",
        ];
        let edges: Vec<Edge> = edges.into_iter().map(edge).collect();
        let mut circuit = Circuit::new(EdgeSet::of(graph(), &edges).expect("its edges"));
        circuit.scores = BTreeMap::from([
            (edges[0], -0.123_456_789_012_345_6),
            (edges[1], 0.25),
            (edges[3], 2.0),
        ]);
        circuit.nodes = BTreeMap::from([
            (
                Node::Head { layer: 1, head: 0 },
                NodeNote {
                    class: Some("a \"mover\" <of> names & \\ more\\".into()),
                    positions: vec!["END".into(), "-2".into()],
                    dims: vec![0, 3],
                    score: Some(0.5),
                },
            ),
            (
                Node::Mlp(1),
                NodeNote {
                    score: Some(-1.0),
                    ..NodeNote::default()
                },
            ),
        ]);
        circuit.about = About {
            name: Some("tiny".into()),
            task: Some("ioi".into()),
            requested: Some(7),
            seed: Some(3),
            claim: Some("moves ]]> names;\n{it} [is] said -> so".into()),
            ..About::default()
        };
        circuit.claimed = BTreeMap::from([("faithfulness".into(), 0.87)]);
        circuit.measured = BTreeMap::from([("edges in all".into(), 43.0)]);
        circuit
    }

    #[test]
    fn what_a_format_holds_is_read_back_as_it_was_written() {
        let folder = tempfile::tempdir().expect("a folder");
        let at = |name: &str| folder.path().join(name);
        for name in ["c.toml", "c.dot", "c.gv", "c.graphml", "C.GraphML"] {
            write(&whole(), &at(name)).expect(name);
            let found = read(&at(name), None).expect(name);
            assert_eq!(found, whole(), "{name}");
            assert_eq!(read(&at(name), Some(&graph())).expect(name), whole());
            let other = Graph {
                n_heads: 3,
                ..graph()
            };
            assert!(read(&at(name), Some(&other)).is_err(), "{name}");
        }
        let plain = Circuit {
            nodes: BTreeMap::new(),
            about: About::default(),
            claimed: BTreeMap::new(),
            measured: BTreeMap::new(),
            ..whole()
        };
        for name in ["c.json", "c.csv", "c.txt"] {
            let message = write(&whole(), &at(name)).expect_err(name).to_string();
            assert!(
                message.contains("`a1.h0` has a class, positions or dimensions"),
                "{message}"
            );
            assert!(!at(name).exists());
            write(&plain, &at(name)).expect(name);
            assert_eq!(
                read(&at(name), Some(&graph())).expect(name),
                plain,
                "{name}"
            );
        }
        for name in ["c.csv", "c.txt"] {
            let message = read(&at(name), None).expect_err(name).to_string();
            assert!(message.contains("of which model"), "{message}");
        }
        write(&whole(), &at("c.nodes.csv")).expect("nodes");
        let nodes = read(&at("c.nodes.csv"), Some(&graph())).expect("nodes");
        assert_eq!(nodes.nodes, whole().nodes);
        let between = EdgeSet::between(graph(), &whole().edges.nodes()).expect("its nodes");
        assert_eq!(nodes.edges, between);
        let message = write(&whole(), &at("c.png"))
            .expect_err("no format")
            .to_string();
        assert!(message.contains("end the name in"), "{message}");
    }

    #[test]
    fn what_other_tools_write_is_read() {
        let dot = "/* drawn */ strict digraph G {\n// by hand\nnode [shape=box]; rankdir=BT\n# a line\n\
                   graph [n_layers=2, n_heads=2 d_model=8; mlp=true parallel=false]\n\
                   subgraph cluster_1 { a1.h0 [label=\"the \\\"mover\\\"\"]; { rank=same m1 } }\n\
                   input -> \"a1.h0<v>\" -> logits [color=red];\n\"Resid Start\" -> \"MLP 1\" [score=-.5]\n}";
        // A chain would leave the head from one of its inputs, which is no node.
        let message = parse(dot, Format::Dot, None).expect_err("a chain");
        assert!(message.contains("a1.h0<v>"), "{message}");
        let dot = dot.replace(
            "\"a1.h0<v>\" -> logits",
            "a1.h0 [letter=v]; a1.h0 -> logits",
        );
        let circuit = parse(&dot, Format::Dot, None).expect("a circuit");
        let edges: Vec<String> = circuit.edges.edges().map(|edge| edge.to_string()).collect();
        assert_eq!(edges, ["input->a1.h0<v>", "input->m1", "a1.h0->logits"]);
        assert_eq!(circuit.scores[&edge("input->m1")], -0.5);

        let graphml = "<?xml version='1.0' encoding='utf-8'?>\n<graphml xmlns=\"http://graphml.graphdrawing.org/xmlns\">\n\
             <!-- networkx -->\n<key id=\"d1\" for=\"edge\" attr.name=\"score\" attr.type=\"double\"><default>7</default></key>\
             <key id=\"d0\" for=\"edge\" attr.name=\"letter\" attr.type=\"string\"/>\
             <graph edgedefault=\"directed\"><node id=\"input\"/><node id='a1.h0'><data key=\"d9\">x</data></node>\
             <edge source=\"input\" target=\"a1.h0\" id=\"0\"><data key=\"d0\">&#107;</data><data key=\"d1\">1e-3</data></edge>\
             <edge source=\"a1.h0\" target=\"logits\" /></graph></graphml>";
        let circuit = parse(graphml, Format::GraphMl, Some(&graph())).expect("a circuit");
        let scores = [
            (edge("input->a1.h0<k>"), 0.001),
            (edge("a1.h0->logits"), 7.0),
        ];
        assert_eq!(circuit.scores, BTreeMap::from(scores));
        assert_eq!(circuit.edges.len(), 2);

        let list = "# of a run\nResid Start->A1.0.V\t0.25\n\nA1.0->MLP 1\nMLP 1->Resid End\n";
        let circuit = parse(list, Format::AutoCircuit, Some(&graph())).expect("a circuit");
        let edges: Vec<String> = circuit.edges.edges().map(|edge| edge.to_string()).collect();
        assert_eq!(edges, ["input->a1.h0<v>", "a1.h0->m1", "m1->logits"]);
        let csv = "score,dst,src\n0.25,a1.h0<v>,input\n,Resid End,A1.0\n";
        let circuit = parse(csv, Format::EdgeList, Some(&graph())).expect("a circuit");
        assert_eq!(circuit.edges.len(), 2);
    }

    #[test]
    fn a_bad_file_is_refused_in_one_line_that_says_why() {
        let like = Some(graph());
        let sizes = "graph [n_layers=2 n_heads=2 d_model=8 mlp=true parallel=false]";
        let dot = |inside: &str| format!("digraph {{ {sizes}; {inside} }}");
        let xml = |inside: &str| {
            format!("<graphml><graph edgedefault=\"directed\">{inside}</graph></graphml>")
        };
        let cases = [
            (Format::Dot, dot("input -- m1"), "directed"),
            (Format::Dot, "graph { }".into(), "directed"),
            (Format::Dot, dot("input -> a9.h0 [letter=q]"), "2 layers"),
            (Format::Dot, dot("input -> a1.h0"), "`a1.h0<q>`"),
            (Format::Dot, dot("m1 -> m0"), "computed after"),
            (
                Format::Dot,
                dot("input -> m1; input -> m1"),
                "edge `input->m1` twice",
            ),
            (
                Format::Dot,
                dot("input -> m1 [score=x]"),
                "no finite number",
            ),
            (
                Format::Dot,
                dot("input -> m1 [score=nan]"),
                "no finite number",
            ),
            (Format::Dot, dot("input -> m1 [label=<b>]"), "HTML"),
            (Format::Dot, dot("input:n -> m1"), "port"),
            (Format::Dot, dot("input -> m1 \"open"), "quote"),
            (
                Format::Dot,
                format!("digraph {{ {sizes}; input -> m1"),
                "end",
            ),
            (Format::Dot, "{".repeat(100_000), "digraph"),
            (Format::Dot, dot(&"{".repeat(100_000)), "end"),
            (Format::Dot, dot(""), "no edge and no node"),
            (
                Format::Dot,
                "digraph { n_layers=99999 n_heads=2 d_model=8; a -> b }".into(),
                "no model has",
            ),
            (
                Format::Dot,
                "digraph { n_layers=2 n_heads=x d_model=8; a -> b }".into(),
                "`n_heads`",
            ),
            (
                Format::Dot,
                "digraph { n_layers=2; input -> m1 }".into(),
                "`n_heads`",
            ),
            (
                Format::GraphMl,
                "<!DOCTYPE x [<!ENTITY a \"b\">]><graphml/>".into(),
                "DOCTYPE",
            ),
            (Format::GraphMl, xml("<edge source=\"input\"/>"), "target"),
            (
                Format::GraphMl,
                xml("<edge source=\"input\" target=\"m1\">"),
                "closes",
            ),
            (
                Format::GraphMl,
                xml("<edge source=\"&foo;\" target=\"m1\"/>"),
                "&foo;",
            ),
            (
                Format::GraphMl,
                xml("<edge source=\"&#xD800;\" target=\"m1\"/>"),
                "character",
            ),
            (Format::GraphMl, "<a>".repeat(100_000), "deep"),
            (
                Format::GraphMl,
                "<graphml><graph edgedefault=\"undirected\"/></graphml>".into(),
                "directed",
            ),
            (Format::GraphMl, "nothing".into(), "GraphML"),
            (Format::GraphMl, "<graphml".into(), "end"),
            (Format::EdgeList, "a,b\n1,2\n".into(), "`src` and `dst`"),
            (Format::EdgeList, "src,dst\ninput\n".into(), "record"),
            (
                Format::EdgeList,
                "src,dst\ninput,\u{1b}[31m\n".into(),
                "cannot read",
            ),
            (
                Format::EdgeList,
                "src,dst,score\ninput,m1,1e999\n".into(),
                "no finite number",
            ),
            (Format::NodeList, "node\nm7\n".into(), "2 layers"),
            (Format::NodeList, "node\nm1\nm1\n".into(), "node `m1` twice"),
            (
                Format::AutoCircuit,
                "A1.0->A0.0.Q\n".into(),
                "computed after",
            ),
            (Format::AutoCircuit, "A1.0.Z->MLP 1\n".into(), "cannot read"),
            (Format::AutoCircuit, String::new(), "no edge and no node"),
        ];
        for (format, text, says) in cases {
            let message = parse(&text, format, like.as_ref()).expect_err(says);
            assert!(message.contains(says), "{says}: {message}");
            assert!(
                message.len() < 500 && !message.contains(char::is_control),
                "{message}"
            );
        }
    }

    #[test]
    fn damage_anywhere_is_no_panic() {
        let folder = tempfile::tempdir().expect("a folder");
        for (name, format) in [("c.dot", Format::Dot), ("c.graphml", Format::GraphMl)] {
            let path = folder.path().join(name);
            write(&whole(), &path).expect("writes");
            let text = std::fs::read_to_string(&path).expect("text");
            for at in (0..text.len()).filter(|&at| text.is_char_boundary(at)) {
                let _ = parse(&text[..at], format, None);
                for other in ["\"", "<", "&", "}", "[", "->", ""] {
                    let _ = parse(
                        &format!("{}{other}{}", &text[..at], &text[at + 1..]),
                        format,
                        None,
                    );
                }
            }
        }
    }
}
