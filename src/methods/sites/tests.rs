use super::extent::Group;
use super::*;
use crate::methods::choice::Layers;
use crate::model::families::from_config;

fn spec() -> ModelSpec {
    let config = include_str!("../../../models/embedded/config.json");
    from_config(config).expect("the embedded model").spec
}

fn extent(groups: &[(usize, usize)], roles: &[&str]) -> Extent {
    let named = |&(template, length): &(usize, usize)| {
        let name = (groups.len() > 1).then(|| template.to_string());
        (Group { template, length }, name)
    };
    Extent {
        groups: groups.iter().map(named).collect(),
        roles: roles.iter().map(|role| role.to_string()).collect(),
        has_other: !roles.is_empty(),
        layers: Layers::default(),
        heads: Heads::default(),
    }
}

#[test]
fn sweeps_have_the_axes_that_people_expect() {
    let spec = spec();
    let extent = extent(&[(0, 5)], &["S2", "END"]);
    let count = |text: &str| -> Vec<usize> {
        let sites = parse_sites(text).expect(text);
        sites
            .iter()
            .map(|sites| sites.cells(&spec, &extent).len())
            .collect()
    };
    let (layers, heads, neurons) = (spec.n_layers, spec.n_heads, spec.d_mlp);
    assert_eq!(count("block_every"), [layers * 5; 3]);
    assert_eq!(count("head_all"), [layers * heads; 5]);
    assert_eq!(count("z:pos"), [layers * 5 * heads]);
    assert_eq!(count("pattern:query"), [layers * 5 * heads]);
    assert_eq!(
        count("pattern:cell"),
        [layers * heads * (1 + 2 + 3 + 4 + 5)]
    );
    assert_eq!(
        count("mlp.post,resid_pre:role"),
        [layers * neurons, layers * 3]
    );
    assert_eq!(count("embed, embed"), [5]);
}

#[test]
fn positions_of_several_templates_are_rows_of_their_own() {
    let spec = spec();
    let several = extent(&[(0, 5), (1, 7)], &["END"]);
    let cells =
        |text: &str, extent: &Extent| parse_sites(text).expect(text)[0].cells(&spec, extent);
    let by_default = cells("resid_pre", &several);
    assert!(
        by_default
            .iter()
            .all(|cell| cell.role.is_some() && cell.pos.is_none())
    );
    let by_position = cells("resid_pre:pos", &several);
    assert_eq!(by_position.len(), spec.n_layers * (5 + 7));
    assert!(by_position.iter().all(|cell| cell.template.is_some()));
    // Without roles there is nothing else to go by.
    let without = cells("resid_pre", &extent(&[(0, 5), (1, 7)], &[]));
    assert_eq!(without, by_position);
}

#[test]
fn a_window_is_centred_and_clipped() {
    let spec = ModelSpec {
        n_layers: 10,
        ..spec()
    };
    let sites = parse_sites("attn_out:all").expect("a hook")[0];
    let layers = |centre: u32, window: usize| -> Vec<usize> {
        let cell = Cell {
            layer: Some(centre),
            ..Cell::default()
        };
        let edits = sites.edits(&cell, &Op::Zero, window, &spec);
        edits
            .iter()
            .map(|edit| edit.site.hook.layer.expect("a layer"))
            .collect()
    };
    assert_eq!(layers(4, 1), [4]);
    assert_eq!(layers(4, 3), [3, 4, 5]);
    assert_eq!(layers(4, 4), [3, 4, 5, 6]);
    assert_eq!(layers(0, 5), [0, 1, 2]);
    assert_eq!(layers(9, 5), [7, 8, 9]);
}

#[test]
fn what_is_no_sweep_is_said() {
    for text in ["", "zz", "z:cell", "resid_pre:foo"] {
        assert!(parse_sites(text).is_err(), "{text}");
    }
    // That a model has no such hook is known with the model.
    let absent: Sites = "pos_embed".parse().expect("a hook");
    assert!(absent.check(&spec(), &Heads::default()).is_err());
    assert!("head_all".parse::<Sites>().is_err());
}
