//! A circuit as a graph: layers from below to above, heads side by side with the MLP of their layer above them, an edge as wide as its
//! score is large, red above 0 and blue below.

use std::collections::BTreeMap;
use std::fmt::Write;

use super::look::Look;
use super::page::{EDGE, GLYPH, Page, hex};
use crate::circuit::Circuit;
use crate::error::Result;
use crate::hooks::{Edge, Letter, Node};
use crate::plot::colour::Palette;
use crate::plot::scale::number;
use crate::text::{visible, width};

/// Edges that are drawn, the strongest first; of more, nobody could follow one.
const MOST_EDGES: usize = 400;

const NODE: (f64, f64) = (50.0, 20.0);
const BESIDE: f64 = 80.0;
const LEVEL: f64 = 68.0;
/// Where queries, keys and values enter a head, from its middle.
const ENTRY: f64 = 15.0;
/// The column of the MLPs stands apart, so that the stream from one to the next does not cross the heads.
const APART: f64 = 34.0;
const TOP: f64 = 14.0;
/// Room for a title.
const TITLE: f64 = 26.0;
const GREY: &str = "#888888";

/// Draws a circuit as one SVG image with a tooltip a node and an edge; without a title, unless one is given.
/// # Errors
/// [`Error::Invalid`](crate::Error::Invalid) for a width that no picture has, and for a palette without signs where scores have both.
pub fn circuit_svg(circuit: &Circuit, look: &Look) -> Result<String> {
    look.check()?;
    look.palette.check(circuit.scores.values().copied())?;
    let nodes = circuit.edges.nodes();
    let mut places = places(&nodes, circuit.graph().parallel);
    if look.title.is_some() {
        places.values_mut().for_each(|place| place.1 += TITLE);
    }
    let right = places.values().map(|place| place.0).fold(0.0, f64::max) + NODE.0 / 2.0;
    let bottom = places.values().map(|place| place.1).fold(0.0, f64::max) + NODE.1;
    let mut page = look.page("");
    page.reach(right, bottom);

    let size = |edge: &Edge| circuit.scores.get(edge).map_or(0.0, |score| score.abs());
    let mut edges: Vec<Edge> = circuit.edges.edges().collect();
    edges.sort_by(|a, b| size(b).total_cmp(&size(a)));
    let n_all = edges.len();
    edges.truncate(MOST_EDGES);
    let most = edges.first().map_or(0.0, size);
    // The weakest lie below the strongest.
    for edge in edges.iter().rev() {
        let (from, to) = (places[&edge.src.to_string()], places[&edge.dst.to_string()]);
        let score = circuit.scores.get(edge).copied();
        draw_edge(&mut page, edge, score, most, from, to);
    }
    for node in &nodes {
        let (x, y) = places[&node.to_string()];
        let corner = [x - NODE.0 / 2.0, y - NODE.1 / 2.0, NODE.0, NODE.1];
        let tip = said_of(circuit, *node);
        let look = "rx='5' fill='white' stroke='#333'";
        page.rectangle(corner, look, Some(&tip));
        let middle = "text-anchor='middle' font-size='11' pointer-events='none'";
        page.text(x, y + 4.0, middle, &node.to_string());
    }
    let legend = legend(circuit, n_all, edges.len(), most, look.palette);
    for (row, line) in legend.iter().enumerate() {
        let y = bottom + 22.0 + 16.0 * row as f64;
        page.text(EDGE, y, "fill='#555'", line);
        page.reach(EDGE + GLYPH * width(line) as f64, y);
    }
    Ok(page.finish(look.width))
}

/// The middle of each node, by its name.
fn places(nodes: &[Node], parallel: bool) -> BTreeMap<String, (f64, f64)> {
    // Levels from below, of which only those that have a node take room.
    let level = |node: &Node| match *node {
        Node::Input => 0,
        Node::Head { layer, .. } => 1 + 2 * layer,
        Node::Mlp(layer) if parallel => 1 + 2 * layer,
        Node::Mlp(layer) => 2 + 2 * layer,
        Node::Logits => usize::MAX,
    };
    let mut levels: BTreeMap<usize, Vec<Node>> = BTreeMap::new();
    for node in nodes {
        levels.entry(level(node)).or_default().push(*node);
    }
    let is_head = |node: &&Node| matches!(node, Node::Head { .. });
    let heads = |nodes: &Vec<Node>| nodes.iter().filter(is_head).count();
    let widest = levels.values().map(heads).max().unwrap_or(0).max(2) as f64;
    let heads_end = EDGE + NODE.0 + (widest - 1.0) * BESIDE;
    let middle = (EDGE + heads_end) / 2.0;
    let mlps = heads_end + APART + NODE.0 / 2.0;
    let mut places = BTreeMap::new();
    for (row, nodes) in levels.values().rev().enumerate() {
        let y = TOP + NODE.1 / 2.0 + LEVEL * row as f64;
        let first = middle - (heads(nodes) as f64 - 1.0) / 2.0 * BESIDE;
        let mut n_heads = 0;
        for node in nodes {
            let x = match node {
                Node::Mlp(_) => mlps,
                Node::Head { .. } => {
                    n_heads += 1;
                    first + (n_heads - 1) as f64 * BESIDE
                }
                Node::Input | Node::Logits => middle,
            };
            places.insert(node.to_string(), (x, y));
        }
    }
    places
}

fn draw_edge(
    page: &mut Page,
    edge: &Edge,
    score: Option<f64>,
    most: f64,
    from: (f64, f64),
    to: (f64, f64),
) {
    let entry = match edge.letter {
        Some(Letter::Q) => -ENTRY,
        Some(Letter::V) => ENTRY,
        Some(Letter::K) | None => 0.0,
    };
    let start = (from.0, from.1 - NODE.1 / 2.0);
    let end = (to.0 + entry, to.1 + NODE.1 / 2.0);
    let rise = start.1 - end.1;
    // Along one column an edge bows round the nodes between its ends.
    let is_one_column = (from.0 - to.0).abs() < 1.0 && rise > LEVEL;
    let bow = if is_one_column {
        NODE.0 / 2.0 + 0.12 * rise
    } else {
        0.0
    };
    let curve = format!(
        "M{:.1} {:.1}C{:.1} {:.1} {:.1} {:.1} {:.1} {:.1}",
        start.0,
        start.1,
        start.0 + bow,
        start.1 - 0.45 * rise,
        end.0 + bow,
        end.1 + 0.45 * rise,
        end.0,
        end.1
    );
    let part = match score {
        Some(score) if most > 0.0 => score.abs() / most,
        _ => 0.3,
    };
    let colour = match score {
        Some(score) if score != 0.0 => hex(page.palette.of_sign(score)),
        _ => GREY.to_string(),
    };
    let look = format!(
        "stroke='{colour}' stroke-width='{:.2}' stroke-opacity='{:.2}'",
        0.8 + 5.2 * part,
        0.45 + 0.5 * part.sqrt()
    );
    let tip = match score {
        Some(score) => format!("{edge}: {}", number(score)),
        None => edge.to_string(),
    };
    page.curve(&curve, &look, &tip);
    page.reach(start.0.max(end.0) + bow, 0.0);
}

fn said_of(circuit: &Circuit, node: Node) -> String {
    let mut tip = node.to_string();
    if let Some(note) = circuit.nodes.get(&node) {
        if let Some(class) = &note.class {
            write!(tip, ", {}", visible(class)).expect("a String takes all");
        }
        if !note.positions.is_empty() {
            write!(tip, ", at {}", visible(&note.positions.join(", ")))
                .expect("a String takes all");
        }
    }
    tip
}

/// What the lines mean.
fn legend(
    circuit: &Circuit,
    n_all: usize,
    n_drawn: usize,
    most: f64,
    palette: Palette,
) -> Vec<String> {
    let n_nodes = circuit.edges.nodes().len();
    let mut lines = vec![match n_drawn < n_all {
        true => format!("the {n_drawn} strongest of {n_all} edges, {n_nodes} nodes"),
        false => format!("{n_all} edges, {n_nodes} nodes"),
    }];
    let of = |text: &Option<String>| text.as_deref().map_or("score".to_string(), visible);
    if most > 0.0 {
        lines.push(format!(
            "width: size of score (the widest is {} {}); {}",
            number(most),
            of(&circuit.about.metric),
            palette.signs()
        ));
    }
    lines.push("into a head: queries on the left, keys in the middle, values on the right".into());
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    fn circuit(class: &str) -> Circuit {
        let text = format!(
            "[model]\nn_layers = 2\nn_heads = 2\nd_model = 8\n[nodes.\"a1.h0\"]\nclass = \"{class}\"\npositions = [\"END\"]\n\
             [edges]\n\"input->m0\" = 0.5\n\"m0->a1.h0<q>\" = -0.25\n\"input->a1.h0<v>\" = true\n\"a1.h0->logits\" = -1.5\n\
             \"m0->logits\" = 2\n"
        );
        Circuit::from_toml(&text).expect("a circuit")
    }

    #[test]
    fn every_edge_and_node_is_drawn_and_hostile_classes_are_text() {
        let drawn = circuit_svg(&circuit("</title><script>"), &Look::default()).unwrap();
        assert_eq!(drawn.matches("<path").count(), 5);
        assert_eq!(drawn.matches("rx='5'").count(), 4);
        assert!(
            drawn.contains("<title>m0-&gt;a1.h0&lt;q&gt;: -0.250</title>"),
            "{drawn}"
        );
        assert!(
            drawn.contains("a1.h0, &lt;/title&gt;&lt;script&gt;, at END"),
            "{drawn}"
        );
        assert!(drawn.contains(">5 edges, 4 nodes<"), "{drawn}");
        let no_signs = Look {
            palette: Palette::Viridis,
            ..Look::default()
        };
        let refused = circuit_svg(&circuit("mover"), &no_signs).unwrap_err();
        assert!(refused.to_string().contains("both sides of 0"), "{refused}");
        // The one without a score is grey.
        assert_eq!(drawn.matches(GREY).count(), 1);
    }

    #[test]
    fn layers_rise_and_the_heads_of_a_layer_stand_below_its_mlp() {
        let nodes = circuit("mover").edges.nodes();
        let places = places(&nodes, false);
        let y = |node: &str| places[node].1;
        assert!(y("input") > y("m0") && y("m0") > y("a1.h0") && y("a1.h0") > y("logits"));
        let both = [Node::Head { layer: 0, head: 1 }, Node::Mlp(0)];
        let places = super::places(&both, true);
        assert_eq!(places["a0.h1"].1, places["m0"].1);
        assert!(places["a0.h1"].0 + NODE.0 < places["m0"].0);
    }
}
