//! What cannot be ablated is refused by name.

use std::sync::Arc;

use candlewick::hooks::{Pos, Positions};
use candlewick::methods::{AblationConfig, Knockout, NodeSet, PatchSource, check, parse_sites};

use crate::models::task::{changed, task};
use crate::{config, models, nodes};

#[test]
fn what_cannot_be_ablated_is_refused_before_anything_runs() {
    let model = models::every_kind().remove(0);
    let task = task();
    let refusal = |change: &dyn Fn(&mut AblationConfig)| {
        let mut config = config("z", PatchSource::Zero);
        change(&mut config);
        let error = check(&config, &model.spec, &task).expect_err("refused");
        error.to_string()
    };
    let says = |message: String, what: &str| assert!(message.contains(what), "{message}");
    says(
        refusal(&|config| config.pairs = nodes("a0.h0,m1")),
        "`m1` is no head",
    );
    says(
        refusal(&|config| config.pairs = nodes("a0.h0,a9.h0")),
        "a9.h0",
    );
    says(
        refusal(&|config| {
            config.sets = vec![NodeSet {
                name: "none".into(),
                nodes: Vec::new(),
            }]
        }),
        "no members",
    );
    says(
        refusal(&|config| config.patch.source = PatchSource::Block),
        "attn_scores",
    );
    says(
        refusal(&|config| config.patch.source = PatchSource::Scale(f32::NAN)),
        "finite",
    );
    says(
        refusal(&|config| {
            let other = changed(&task, |pair| pair.template = 5);
            config.patch.source = PatchSource::Mean;
            config.patch.reference = Some(Arc::new(other));
        }),
        "`PatchConfig::source = mean-role`",
    );
}

#[test]
fn names_and_places_of_sets_are_checked() {
    let model = models::every_kind().remove(0);
    let task = task();
    let set = |name: &str, of: &str| NodeSet {
        name: name.into(),
        nodes: nodes(of),
    };
    let says = |change: &dyn Fn(&mut AblationConfig), what: &str| {
        let mut config = config("", PatchSource::Zero);
        change(&mut config);
        let message = check(&config, &model.spec, &task)
            .expect_err(what)
            .to_string();
        assert!(message.contains(what), "{message}");
    };
    says(
        &|config| config.sets = vec![set("x", "a0.h0"), set("x", "a0.h1")],
        "two sets are called `x`",
    );
    says(
        &|config| config.sets = vec![set("a0.h0", "a0.h1")],
        "called like a node",
    );
    says(&|config| config.pairs = nodes("a0.h0,a0.h0"), "twice");
    says(&|config| config.pairs = nodes("a0.h0"), "makes no pair");
    // Positions alone would change nothing.
    says(
        &|config| {
            config.patch.sites = parse_sites("z").expect("sites");
            config.positions = Positions::These(vec![Pos::FromEnd(1)]);
        },
        "positions are those of sets",
    );
    let knockout = || Knockout {
        queries: Positions::These(vec![Pos::FromEnd(1)]),
        keys: Positions::These(vec![Pos::Index(3)]),
    };
    says(
        &|config| {
            config.patch.source = PatchSource::Block;
            config.knockouts = vec![knockout(), knockout()];
        },
        "knocked out twice",
    );
    says(
        &|config| {
            config.patch.source = PatchSource::Block;
            config.knockouts = vec![Knockout {
                queries: Positions::These(vec![Pos::Index(3)]),
                keys: Positions::These(vec![Pos::FromEnd(1)]),
            }];
        },
        "stand behind the queries",
    );
}

#[test]
fn where_clean_prompts_alone_are_changed_the_others_may_be_of_any_length() {
    let task = task();
    let shorter = changed(&task, |pair| {
        pair.corrupted.truncate(pair.clean.len() - 1);
        let last = pair.corrupted.len() - 1;
        *pair = pair.clone().shifted_role("END", [last + 1], [last]);
        for (role, clean) in pair.roles.clone() {
            let corrupted: Vec<usize> = clean.iter().map(|&at| at.min(last)).collect();
            *pair = pair.clone().shifted_role(role, clean, corrupted);
        }
    });
    for model in models::two_kinds() {
        for source in [
            PatchSource::Zero,
            PatchSource::MeanAll,
            PatchSource::Scale(0.5),
        ] {
            let config = config("z", source);
            let [of, other] = [&task, &shorter].map(|task| {
                check(&config, &model.spec, task).expect("nothing has to align");
                crate::column(&crate::ablate(&model, task, &config), "value")
            });
            // The mean over all positions is over other prompts.
            if source != PatchSource::MeanAll {
                crate::near(&of, &other, "the clean runs");
            }
        }
        let error = check(&config("z", PatchSource::Mean), &model.spec, &shorter);
        assert!(error.is_err(), "means by position align");
    }
}
