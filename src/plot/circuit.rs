//! A circuit as a small graph on a terminal: the nodes by layer, from the logits down, each with what it reads.

use super::graph::of_circuit;
use crate::circuit::Circuit;
use crate::text::visible;

/// What is said of a circuit besides its edges: names and texts, in rows.
pub fn circuit_facts(circuit: &Circuit) -> Vec<[String; 2]> {
    let about = &circuit.about;
    let requested = about.requested.map(|n| n.to_string());
    let texts = [
        ("name", &about.name),
        ("model", &about.model),
        ("task", &about.task),
        ("metric", &about.metric),
        ("method", &about.method),
        ("selection", &about.selection),
        ("source", &about.source),
        ("claim", &about.claim),
        ("requested", &requested),
    ];
    let said = texts
        .into_iter()
        .filter_map(|(name, text)| Some([name.to_string(), visible(text.as_ref()?)]));
    let numbers = [
        ("claimed", &circuit.claimed),
        ("measured", &circuit.measured),
    ];
    let numbers = numbers.into_iter().filter(|(_, of)| !of.is_empty());
    let listed = numbers.map(|(name, of)| {
        let each = of
            .iter()
            .map(|(name, value)| format!("{} {}", visible(name), short(*value)));
        [name.to_string(), each.collect::<Vec<_>>().join(", ")]
    });
    said.chain(listed).collect()
}

fn short(value: f64) -> String {
    if value == value.trunc() && value.abs() < 1e9 {
        format!("{value}")
    } else {
        format!("{value:.3}")
    }
}

/// The drawing. Each node stands with the sources that it reads, the strongest first, and their scores; of a head for its queries,
/// keys and values. At most `most` sources of a reader are named.
pub fn circuit(circuit: &Circuit, most: Option<usize>) -> String {
    let graph = circuit.graph();
    let counts = format!(
        "{} of {} edges, {} of {} nodes\n",
        circuit.edges.len(),
        graph.n_edges(),
        circuit.edges.nodes().len(),
        graph.n_src() + 1
    );
    counts + &of_circuit(circuit).listed(most)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nodes_stand_by_layer_with_what_they_read() {
        let text = "[model]\nn_layers = 2\nn_heads = 2\nd_model = 8\n[nodes.\"a1.h0\"]\nclass = \"mover\\u001b\"\npositions = [\"END\"]\n\
                    [edges]\n\"input->m0\" = 0.5\n\"m0->a1.h0<q>\" = -0.25\n\"input->a1.h0<v>\" = true\n\"a1.h0->logits\" = -1.5\n\
                    \"m0->logits\" = 2\n";
        let circuit = Circuit::from_toml(text).expect("a circuit");
        let drawn = super::circuit(&circuit, None);
        assert_eq!(
            drawn,
            "5 of 46 edges, 4 of 8 nodes\n\
             logits                             m0 +2.000, a1.h0 -1.500\n\
             layer 1  a1.h0 (mover\\u{1b}) @END  q: m0 -0.250 | v: input\n\
             layer 0  m0                        input +0.500\n\
             input\n"
        );
        assert!(super::circuit(&circuit, Some(1)).contains("m0 +2.000, 1 more"));
    }
}
