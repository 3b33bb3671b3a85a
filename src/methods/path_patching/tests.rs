use super::*;
use crate::model::families::from_config;

fn spec() -> ModelSpec {
    let config = include_str!("../../../models/embedded/config.json");
    from_config(config).expect("the embedded model").spec
}

fn rows(senders: &str, receivers: &str, over: Over) -> Result<Vec<String>> {
    let config = PathConfig {
        over,
        ..PathConfig::between(senders, receivers)?
    };
    let rows = config.rows(&spec())?.into_iter();
    Ok(rows.map(|row| row.cell.to_string()).collect())
}

#[test]
fn a_path_that_cannot_be_has_no_row() {
    let found = rows("a0.h0,a1.h0", "a1.h1.q,a2.h0.v", Over::Both).expect("rows");
    assert_eq!(
        found,
        ["a0.h0->a1.h1<q>", "a0.h0->a2.h0<v>", "a1.h0->a2.h0<v>"]
    );
    // Of all heads, those of layers 0 to 2 send to a head of layer 3.
    let of_all = rows("heads", "a3.h0.q", Over::Senders).expect("rows");
    assert_eq!(of_all.len(), 12);
    // Nothing writes before layer 0 but the input, so its queries are no receivers.
    let of_queries = rows("heads", "q", Over::Receivers).expect("rows");
    assert_eq!(of_queries.len(), 12);
}

#[test]
fn what_is_named_and_has_no_path_is_refused_by_name() {
    let says = |senders: &str, receivers: &str, over: Over, what: &str| {
        let message = rows(senders, receivers, over).expect_err(what).to_string();
        assert!(message.contains(what), "{message}");
    };
    says("a1.h0", "a0.h1.v", Over::Both, "`a1.h0->a0.h1<v>`");
    says("a1.h0", "a1.h1.q", Over::Senders, "heads of one layer");
    says("a0.h0,a3.h0", "a1.h1.q,a2.h1.k", Over::Both, "`a3.h0`");
    says(
        "a1.h0",
        "a0.h0.q,logits",
        Over::Together,
        "before `a0.h0<q>` reads",
    );
    says("heads", "a0.h0.q", Over::Senders, "before `a0.h0<q>` reads");
    says("a0.h0,a0.h0", "logits", Over::Senders, "named twice");
    says("a0.h9", "logits", Over::Senders, "a0.h9");
    says("a0.h0", "a9.h0.q", Over::Senders, "a9.h0");
}
