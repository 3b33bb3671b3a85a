use super::*;

fn graph() -> Graph {
    Graph::tiny(2, 2)
}

fn edge(text: &str) -> Edge {
    text.parse().expect(text)
}

fn file(cfg: &str, nodes: &str, edges: &str) -> String {
    format!("{{\"cfg\": {cfg}, \"nodes\": {{{nodes}}}, \"edges\": {{{edges}}}}}")
}

const CFG: &str = r#"{"n_layers": 2, "n_heads": 2, "parallel_attn_mlp": false, "d_model": 8}"#;

#[test]
fn a_graph_is_read_back_as_it_was_written() {
    let mut scored = ScoredGraph::new(graph());
    let edges: Vec<Edge> = scored.graph().edges().collect();
    for (i, edge) in edges.iter().enumerate().filter(|(i, _)| i % 3 != 0) {
        // Values that are short as decimals: long ones come back to within one unit in the last place.
        scored
            .set_score(edge, (i as f64 - 20.0) / 8.0)
            .expect("an edge");
        scored.set_contains(edge, i % 2 == 0).expect("an edge");
    }
    scored.set_contains(&edges[0], true).expect("an edge");
    scored.set_node_score(Node::Mlp(1), -0.125).expect("a node");
    scored
        .set_contains_node(Node::Logits, true)
        .expect("a node");
    let scored = scored.with_helps(Helps::Negative);
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("circuit.json");
    scored.write(&path).expect("writes");
    let read = ScoredGraph::read(&path, graph()).expect("reads");
    assert_eq!(read, scored);
    assert_eq!(read.score(&edges[0]).expect("an edge"), None);
    let other = Graph {
        parallel: true,
        ..graph()
    };
    let message = ScoredGraph::read(&path, other)
        .expect_err("another")
        .to_string();
    assert!(
        message.contains("parallel_attn_mlp false, this one has true"),
        "{message}"
    );
}

#[test]
fn what_other_tools_write_is_read() {
    let text = file(
        r#"{"n_layers": 2, "n_heads": 2, "parallel_attn_mlp": false}"#,
        r#""input": {"in_graph": true}, "a1.h0": {"in_graph": true, "score": NaN}, "logits": {"in_graph": true}"#,
        r#""input->a1.h0<q>": {"score": -0.25, "in_graph": true}, "a1.h0->logits": {"score": NaN, "in_graph": false}"#,
    );
    let scored = ScoredGraph::parse(&text, Some(graph())).expect("it is such a file");
    assert_eq!(
        scored.score(&edge("input->a1.h0<q>")).expect("an edge"),
        Some(-0.25)
    );
    assert_eq!(scored.score(&edge("a1.h0->logits")).expect("an edge"), None);
    assert_eq!(scored.score(&edge("m0->logits")).expect("an edge"), None);
    assert!(scored.contains(&edge("input->a1.h0<q>")).expect("an edge"));
    assert!(scored.contains_node(Node::Input).expect("a node"));
    assert!(!scored.contains_node(Node::Mlp(0)).expect("a node"));
}

#[test]
fn a_file_says_itself_of_which_graph_it_is() {
    let heads = r#""input": {"in_graph": true}, "a1.h0": {"in_graph": true}"#;
    let edge = r#""input->a1.h0<q>": {"score": 1, "in_graph": true}"#;
    let without_mlp = Graph {
        has_mlp: false,
        ..graph()
    };
    let alone = |text: &str| ScoredGraph::parse(text, None);
    let found = alone(&file(CFG, heads, edge)).expect("a file");
    assert_eq!(*found.graph(), without_mlp);
    for nodes in ["", r#""m0": {"in_graph": true}"#] {
        assert_eq!(
            *alone(&file(CFG, nodes, edge)).expect("a file").graph(),
            graph()
        );
    }
    let huge = CFG.replace("2", "4000");
    for (cfg, says) in [
        (huge.as_str(), "no model has"),
        (&CFG.replace("2", "100"), "10101 nodes, and it lists 2"),
    ] {
        let message = alone(&file(
            cfg,
            r#""input": {"in_graph": true}, "m0": {"in_graph": true}"#,
            "",
        ));
        let message = message.expect_err(says);
        assert!(message.contains(says), "{message}");
    }
}

#[test]
fn a_bad_file_is_refused_in_one_line_that_says_why() {
    let in_graph = r#"{"score": 1.0, "in_graph": true}"#;
    let nodes = r#""input": {"in_graph": true}"#;
    let with_edge = |name: &str| {
        let name = serde_json::Value::from(name);
        file(CFG, nodes, &format!("{name}: {in_graph}"))
    };
    let cases = [
        (
            with_edge("a9.h0->logits"),
            "no node `a9.h0`: it has 2 layers",
        ),
        (with_edge("m1->a0.h0<q>"), "no edge `m1->a0.h0<q>`"),
        (with_edge("foo->bar"), "cannot read `foo->bar` as an edge"),
        (with_edge("a\u{1b}[31m->\u{1b}"), "cannot read"),
        (
            file(CFG, r#""x7": {"in_graph": true}"#, ""),
            "cannot read `x7` as a node",
        ),
        (file(CFG, r#""m5": {"in_graph": true}"#, ""), "no node `m5`"),
        (
            file(
                CFG,
                r#""m0": {"in_graph": true, "neurons": [true, false]}"#,
                "",
            ),
            "single neurons",
        ),
        (
            file(
                CFG,
                "",
                &format!("\"m0->m1\": {in_graph}, \"m0->m1\": {in_graph}"),
            ),
            "edge `m0->m1` twice",
        ),
        (
            file(&CFG.replace("8", "9"), "", ""),
            "d_model 9, this one has 8",
        ),
        (
            file(&CFG.replace("\"n_heads\": 2", "\"n_heads\": 4"), "", ""),
            "n_heads 4, this one has 2",
        ),
        (
            file(&CFG.replace("\"n_layers\": 2", "\"n_layers\": 1e9"), "", ""),
            "invalid type",
        ),
        (
            file(CFG, "", r#""m0->m1": {"score": "x", "in_graph": true}"#),
            "invalid type",
        ),
        (
            file(CFG, "", r#""m0->m1": {"score": 1e999, "in_graph": true}"#),
            "out of range",
        ),
        (
            file(CFG, "", r#""m0->m1": {"score": 1}"#),
            "missing field `in_graph`",
        ),
        (format!("{{\"cfg\": {CFG}}}"), "missing field `nodes`"),
        ("[]".to_string(), "invalid"),
        (String::new(), "EOF"),
        ("{".repeat(100_000), "at line 1"),
        ("\"NaN".to_string(), "EOF"),
    ];
    for (text, says) in cases {
        let message = ScoredGraph::parse(&text, Some(graph())).expect_err(says);
        assert!(message.contains(says), "{says}: {message}");
        assert!(
            message.len() < 500 && !message.contains(char::is_control),
            "{message}"
        );
    }
    let folder = tempfile::tempdir().expect("a folder");
    let missing = ScoredGraph::read(&folder.path().join("none.json"), graph());
    assert!(matches!(missing, Err(Error::Missing { .. })));
    let is_folder = ScoredGraph::read(folder.path(), graph()).expect_err("a folder");
    assert!(is_folder.to_string().contains("not a regular file"));
}

#[test]
fn damage_anywhere_is_an_error_and_never_a_panic() {
    let mut scored = ScoredGraph::new(graph());
    scored.set_score(&edge("m0->m1"), 0.5).expect("an edge");
    let text = serde_json::to_string(&scored).expect("serialises");
    for at in 0..text.len() {
        assert!(ScoredGraph::parse(&text[..at], Some(graph())).is_err());
        for other in ['"', 'N', '\\', '9'] {
            let damaged = format!("{}{other}{}", &text[..at], &text[at + 1..]);
            let _ = ScoredGraph::parse(&damaged, Some(graph()));
        }
    }
}

#[test]
fn only_numbers_are_taken_for_nan() {
    let text = r#"{"NaN \" NaN": NaN, "a": [NaN, "\\"], "b": NaN}"#;
    let expected = r#"{"NaN \" NaN": null, "a": [null, "\\"], "b": null}"#;
    assert_eq!(without_nan(text), expected);
}

#[test]
fn an_infinite_score_is_not_written() {
    let mut scored = ScoredGraph::new(graph());
    scored
        .set_score(&edge("m0->m1"), f64::INFINITY)
        .expect("an edge");
    let folder = tempfile::tempdir().expect("a folder");
    let message = scored
        .write(&folder.path().join("x.json"))
        .expect_err("infinite")
        .to_string();
    assert!(message.contains("`m0->m1` is infinite"), "{message}");
}
