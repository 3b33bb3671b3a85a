//! Heads that look at the negative answer, against whole patterns and whole runs; and what no head is scored by.

use candlewick::hooks::{Edit, Hook, Kind, Node};
use candlewick::methods::{HeadChange, Method, NegativeConfig, Search, ShipsConfig, check};
use candlewick::run::run_with_cache;
use candlewick::scores::Detail;
use candlewick::spec::ModelSpec;
use candlewick::task::{Pair, Task};

use crate::heads::logits;
use crate::models::task::{changed, task};
use crate::{column, measured, models, near, run_method};

/// Pairs whose prompts name two answers: the tokens at roles `S1` (or its word) and `S2`.
fn two_answers(task: &Task) -> Task {
    let task = changed(task, |pair| {
        let first = &pair.roles["S2"][..1];
        let at = [pair.roles["S1"][0], first[0]];
        pair.roles.insert("S2".into(), first.to_vec());
        let [yes, no] = at.map(|pos| pair.clean[pos]);
        let (answer, wrong) = if pair.index % 2 == 0 {
            (yes, no)
        } else {
            (no, yes)
        };
        (pair.target.answers, pair.target.wrong) = (vec![answer], vec![wrong]);
    });
    // The same prompts once more, so that there are halves.
    let mut pairs = task.pairs().to_vec();
    for (i, pair) in task.pairs().iter().enumerate() {
        let mut more = pair.clone();
        (more.index, more.clean[0]) = (3 + i, (pair.clean[0] + 1) % models::VOCAB as u32);
        pairs.push(more);
    }
    task.with_pairs(pairs).expect("still a task")
}

#[test]
fn negative_attention_is_that_of_whole_patterns_and_turns_round_with_the_answers() {
    let task = two_answers(&task());
    let role = |name: &str| name.parse().expect("a role");
    for model in models::every_kind() {
        let what = &model.spec.family;
        let config = NegativeConfig {
            draws: 1,
            ..NegativeConfig::new(role("@S1"), role("@S2"))
        };
        let found = run_method(&model, &task, &config, Detail::PerExample);
        let mut expected = Vec::new();
        for pair in task.pairs() {
            let (yes, no) = (pair.roles["S1"][0], pair.roles["S2"][0]);
            for (layer, head) in model.spec.heads() {
                let hook = Hook::at(Kind::Pattern, layer);
                let (_, cache) = run_with_cache(&model, std::slice::from_ref(&pair.clean), &[hook])
                    .expect("runs");
                let pattern: Vec<Vec<f32>> = cache
                    .get(hook)
                    .and_then(|t| Ok(t.get(0)?.get(head)?.to_vec2()?))
                    .expect("a pattern");
                let mut sum = 0.0;
                for row in &pattern[yes.max(no) + 1..] {
                    let [yes, no] = [yes, no].map(|at| f64::from(row[at]).max(1e-9));
                    sum += (yes + no) * (no / yes).ln();
                }
                expected.push(sum);
            }
        }
        near(&measured(&found, "nas"), &expected, what);
        let turned = NegativeConfig::new(role("@S2"), role("@S1"));
        let turned = run_method(&model, &task, &turned, Detail::PerExample);
        let opposite: Vec<f64> = expected.iter().map(|score| -score).collect();
        near(&measured(&turned, "nas"), &opposite, what);
    }
}

#[test]
fn precision_and_recall_are_those_of_whole_runs_without_the_heads() {
    let task = two_answers(&task());
    for model in models::two_kinds() {
        let what = &model.spec.family;
        let config = NegativeConfig {
            highest: Some(1),
            draws: 0,
            ..NegativeConfig::new(
                "@S1".parse().expect("a role"),
                "@S2".parse().expect("a role"),
            )
        };
        let found = run_method(&model, &task, &config, Detail::Mean);
        let highest = found.provenance.config["highest"][0]
            .as_str()
            .expect("a head");
        let Ok(Node::Head { layer, head }) = highest.parse() else {
            panic!("{highest}");
        };
        let says_yes = |pair: &Pair, edits: &[Edit]| {
            let row = logits(&model, pair, edits);
            let [yes, no] =
                [&pair.roles["S1"], &pair.roles["S2"]].map(|at| row[pair.clean[at[0]] as usize]);
            yes > no
        };
        // Which three of the six were tried is not told: the counts of one such half are among those of all halves.
        let zeroed = [format!("z{layer}[head={head}] = zero")
            .parse()
            .expect("an edit")];
        for (name, edits) in [("unchanged", &[][..]), ("highest", &zeroed[..])] {
            let of = |measure: &str| {
                let names = found.texts("component").expect("a column");
                let metrics = found.texts("metric").expect("a column");
                let row = (0..names.len())
                    .find(|&row| names[row] == Some(name) && metrics[row] == Some(measure));
                row.map(|row| column(&found, "score")[row])
            };
            let mut possible = Vec::new();
            for half in 0..64u32 {
                let tried: Vec<&Pair> = (0..6)
                    .filter(|i| half & (1 << i) != 0)
                    .map(|i| &task.pairs()[i])
                    .collect();
                if tried.len() != 3 {
                    continue;
                }
                let count = |is: &dyn Fn(&Pair) -> bool| {
                    tried.iter().filter(|pair| is(pair)).count() as f64
                };
                let truth = |pair: &Pair| pair.target.answers[0] == pair.clean[pair.roles["S1"][0]];
                let hits = count(&|pair| truth(pair) && says_yes(pair, edits));
                let share = |n: f64| (n > 0.0).then(|| hits / n);
                possible.push([
                    share(count(&|pair| says_yes(pair, edits))),
                    share(count(&truth)),
                ]);
            }
            let [precision, recall, gap] = ["precision", "recall", "gap"].map(of);
            assert!(
                possible.contains(&[precision, recall]),
                "{what}, {name}: {precision:?} {recall:?}"
            );
            assert_eq!(
                gap,
                precision
                    .zip(recall)
                    .map(|(precision, recall)| precision - recall),
                "{what}, {name}"
            );
        }
    }
}

#[test]
fn what_cannot_be_scored_is_refused() {
    let model = models::two_kinds().remove(0);
    let task = task();
    let says = |config: &dyn Method, spec: &ModelSpec, what: &str| {
        let refused = check(config, spec, &task).expect_err(what).to_string();
        assert!(refused.contains(what), "{refused}");
    };
    let negative = |yes: &str, no: &str| {
        NegativeConfig::new(yes.parse().expect("a place"), no.parse().expect("a place"))
    };
    says(
        &negative("@NONE", "@S1"),
        &model.spec,
        "does not name the answer `@NONE`",
    );
    says(&negative("@S1", "@S1"), &model.spec, "one place");
    let too_many = NegativeConfig {
        highest: Some(1000),
        ..negative("@S1", "@S2")
    };
    says(&too_many, &model.spec, "1000 highest heads of");
    says(
        &negative("@S1", "@S2"),
        &models::encoder().spec,
        "negative attention",
    );
    let sahara = |search: Search| ShipsConfig {
        group: Some(search),
        ..ShipsConfig::new(HeadChange::Scaled)
    };
    says(&sahara(Search::steps(0)), &model.spec, "take from 1");
    let rank = Search {
        rank: 3,
        ..Search::steps(1)
    };
    says(&sahara(rank), &model.spec, "more prompts than that");
    let empty = Search {
        refusals: vec![" ".into()],
        ..Search::steps(1)
    };
    says(&sahara(empty), &model.spec, "in every answer");
    let decline = Search {
        decline: vec![1],
        ..Search::steps(1)
    };
    says(
        &sahara(decline),
        &models::encoder().spec,
        "declines nothing",
    );
    let factor = ShipsConfig {
        factor: f32::NAN,
        ..ShipsConfig::new(HeadChange::Scaled)
    };
    says(&factor, &model.spec, "finite");
}
