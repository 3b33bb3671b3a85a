//! A graph, of a circuit or of a table's edges: layers from below to above, heads side by side with the MLP of their layer above them,
//! states of the stream over their token; an edge as wide as its score is large, red above 0 and blue below.

use std::collections::BTreeMap;

use super::look::Look;
use super::page::{EDGE, PROSE, Page, hex};
use crate::circuit::Circuit;
use crate::error::Result;
use crate::plot::colour::Palette;
use crate::plot::graph::{Graph, GraphEdge, Place, of_circuit};
use crate::plot::scale::number;
use crate::text::{cut, width};

/// Edges that are drawn, the strongest first; of more, nobody could follow one.
const MOST_EDGES: usize = 400;

const NODE: (f64, f64) = (50.0, 20.0);
const BESIDE: f64 = 80.0;
const LEVEL: f64 = 68.0;
/// Characters of a column's label.
const COLUMN: usize = 11;
/// Where queries, keys and values enter a head, from its middle.
const ENTRY: f64 = 15.0;
/// The column of the MLPs stands apart, so that the stream from one to the next does not cross the heads.
const APART: f64 = 34.0;
const TOP: f64 = 14.0;
/// Room for a title.
pub(super) const TITLE: f64 = 26.0;
const GREY: &str = "#888888";

/// Draws a circuit as one SVG image with a tooltip a node and an edge; without a title, unless one is given.
/// # Errors
/// [`Error::Invalid`](crate::Error::Invalid) for a width that no picture has, and for a palette without signs where scores have both.
pub fn circuit_svg(circuit: &Circuit, look: &Look) -> Result<String> {
    look.check()?;
    let mut page = look.page("");
    let top = if look.title.is_some() { TITLE } else { 0.0 };
    draw_graph(&mut page, &of_circuit(circuit), top)?;
    Ok(page.finish(look.width))
}

/// Draws a graph from `top` downwards; gives where it ends.
/// # Errors
/// [`Error::Invalid`](crate::Error::Invalid) for a palette without signs where scores have both.
pub(super) fn draw_graph(page: &mut Page, graph: &Graph, top: f64) -> Result<f64> {
    page.palette
        .check(graph.edges.iter().filter_map(|edge| edge.score))?;
    let places = places(graph, top);
    let right = places.iter().map(|place| place.0).fold(0.0, f64::max) + NODE.0 / 2.0;
    let mut bottom = places.iter().map(|place| place.1).fold(0.0, f64::max) + NODE.1;
    page.reach(right, bottom);
    let drawn = &graph.edges[..graph.edges.len().min(MOST_EDGES)];
    let most = drawn.first().map_or(0.0, Graph::size);
    // The weakest lie below the strongest.
    for edge in drawn.iter().rev() {
        draw_edge(page, edge, most, places[edge.src], places[edge.dst]);
    }
    for (node, &(x, y)) in graph.nodes.iter().zip(&places) {
        let corner = [x - NODE.0 / 2.0, y - NODE.1 / 2.0, NODE.0, NODE.1];
        let look = "rx='5' fill='white' stroke='#333'";
        page.rectangle(corner, look, Some(&node.note));
        let middle = "text-anchor='middle' font-size='11' pointer-events='none'";
        page.text(x, y + 4.0, middle, &node.label);
    }
    if !graph.columns.is_empty() {
        for (column, label) in graph.columns.iter().enumerate() {
            let x = column_at(column as f64);
            page.text(
                x,
                bottom + 6.0,
                "text-anchor='middle' font-size='11'",
                &cut(label, COLUMN),
            );
        }
        bottom += 14.0;
    }
    let legend = legend(graph, drawn.len(), most, page.palette);
    for (row, line) in legend.iter().enumerate() {
        let y = bottom + 22.0 + 16.0 * row as f64;
        page.text(EDGE, y, "fill='#555'", line);
        page.reach(EDGE + PROSE * width(line) as f64, y);
    }
    Ok(bottom + 22.0 + 16.0 * legend.len() as f64)
}

/// The middle of a column.
fn column_at(column: f64) -> f64 {
    EDGE + NODE.0 / 2.0 + column * BESIDE
}

/// The middle of each node.
fn places(graph: &Graph, top: f64) -> Vec<(f64, f64)> {
    // Levels from below, of which only those that have a node take room.
    let mut levels: BTreeMap<usize, Vec<usize>> = BTreeMap::new();
    for (at, node) in graph.nodes.iter().enumerate() {
        levels.entry(node.level).or_default().push(at);
    }
    let is_head = |at: &&usize| matches!(graph.nodes[**at].place, Place::Column(_));
    let heads = |nodes: &Vec<usize>| nodes.iter().filter(is_head).count();
    // Where columns mean nothing, those of a level stand together in the middle.
    let has_columns = !graph.columns.is_empty();
    let widest = match has_columns {
        true => graph.columns.len(),
        false => levels.values().map(heads).max().unwrap_or(0),
    };
    let last = (widest.max(2) - 1) as f64;
    let middle = (column_at(0.0) + column_at(last)) / 2.0;
    let mlps = column_at(last) + NODE.0 / 2.0 + APART + NODE.0 / 2.0;
    let mut places = vec![(0.0, 0.0); graph.nodes.len()];
    for (row, nodes) in levels.values().rev().enumerate() {
        let y = top + TOP + NODE.1 / 2.0 + LEVEL * row as f64;
        let first = middle - (heads(nodes) as f64 - 1.0) / 2.0 * BESIDE;
        let mut n_heads = 0;
        for &node in nodes {
            let x = match graph.nodes[node].place {
                Place::Beside => mlps,
                Place::Middle => middle,
                Place::Column(column) if has_columns => column_at(column as f64),
                Place::Column(_) => {
                    n_heads += 1;
                    first + (n_heads - 1) as f64 * BESIDE
                }
            };
            places[node] = (x, y);
        }
    }
    places
}

fn draw_edge(page: &mut Page, edge: &GraphEdge, most: f64, from: (f64, f64), to: (f64, f64)) {
    let entry = match edge.via.as_str() {
        "q" => -ENTRY,
        "v" => ENTRY,
        // Beside the stream, which goes straight up.
        "mlp" => ENTRY,
        _ => 0.0,
    };
    let start = (from.0, from.1 - NODE.1 / 2.0);
    let end = (to.0 + entry, to.1 + NODE.1 / 2.0);
    let rise = start.1 - end.1;
    // Along one column an edge bows round the nodes between its ends.
    let is_one_column = (from.0 - to.0).abs() < 1.0 && rise > LEVEL;
    let bow = if is_one_column {
        NODE.0 / 2.0 + 0.12 * rise
    } else if edge.via == "mlp" {
        ENTRY
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
    let part = match edge.score {
        Some(score) if most > 0.0 => score.abs() / most,
        _ => 0.3,
    };
    let colour = match edge.score {
        Some(score) if score != 0.0 => hex(page.palette.of_sign(score)),
        _ => GREY.to_string(),
    };
    let look = format!(
        "stroke='{colour}' stroke-width='{:.2}' stroke-opacity='{:.2}'",
        0.8 + 5.2 * part,
        0.45 + 0.5 * part.sqrt()
    );
    let mut tip = match edge.score {
        Some(score) => format!("{}: {}", edge.name, number(score)),
        None => edge.name.clone(),
    };
    if !edge.detail.is_empty() {
        tip += &format!(" ({})", edge.detail);
    }
    page.curve(&curve, &look, &tip);
    page.reach(start.0.max(end.0) + bow, 0.0);
}

/// What the lines mean.
fn legend(graph: &Graph, n_drawn: usize, most: f64, palette: Palette) -> Vec<String> {
    let (n_all, n_nodes) = (graph.edges.len(), graph.nodes.len());
    let which = match (n_drawn < n_all, most > 0.0) {
        (true, true) => format!("the {n_drawn} strongest of {n_all}"),
        (true, false) => format!("{n_drawn} of {n_all}"),
        (false, _) => n_all.to_string(),
    };
    let mut lines = vec![format!("{which} edges, {n_nodes} nodes")];
    if most > 0.0 {
        lines.push(format!(
            "width: size of score (the widest is {} {}); {}",
            number(most),
            graph.unit,
            palette.signs()
        ));
    }
    lines.push(match graph.has_sides {
        true => "into a head: queries on the left, keys in the middle, values on the right".into(),
        false => "up one column: the stream in the middle, the MLP on the right; across: attention"
            .into(),
    });
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
        let graph = of_circuit(&circuit("mover"));
        let all = places(&graph, 0.0);
        let y = |name: &str| {
            let at = graph.nodes.iter().position(|node| node.name == name);
            all[at.expect(name)].1
        };
        assert!(y("input") > y("m0") && y("m0") > y("a1.h0") && y("a1.h0") > y("logits"));
        let text = "[model]\nn_layers = 1\nn_heads = 2\nd_model = 8\nparallel = true\n[edges]\n\"input->a0.h1<v>\" = 1\n\"input->m0\" = 1\n";
        let graph = of_circuit(&Circuit::from_toml(text).expect("a circuit"));
        let places = places(&graph, 0.0);
        let of = |name: &str| {
            let at = graph.nodes.iter().position(|node| node.name == name);
            places[at.expect(name)]
        };
        assert_eq!(of("a0.h1").1, of("m0").1);
        assert!(of("a0.h1").0 + NODE.0 < of("m0").0);
    }
}
