//! Several nodes at once, and their interaction.

use candlewick::hooks::{Node, Pos, Positions};
use candlewick::methods::{NodeSet, PatchSource};
use candlewick::metric::Metric;
use candlewick::model::load::{LoadOptions, load};
use candlewick::scores::{Detail, Scores};
use candlewick::spec::Mlp;
use candlewick::task::{Pair, Task};

use crate::models::task::{changed, task};
use crate::{ablate, column, config, measured, models, near, nodes, run_method};

#[test]
fn without_any_node_only_positions_and_biases_are_left() {
    // Every head zeroed, every MLP zeroed, the embedding zeroed: every prompt then gives the same logits.
    let task = task();
    for model in models::every_kind() {
        let spec = &model.spec;
        let mut names = vec![Node::Input];
        for layer in 0..spec.n_layers {
            names.extend((0..spec.n_heads).map(|head| Node::Head { layer, head }));
            if spec.mlp != Mlp::None {
                names.push(Node::Mlp(layer));
            }
        }
        let mut all = config("", PatchSource::Zero);
        all.sets = vec![NodeSet {
            name: "everything".into(),
            nodes: names,
        }];
        let same_target = changed(&task, |pair| {
            pair.target = task.pairs()[0].target.clone();
        });
        let values = column(&ablate(&model, &same_target, &all), "value");
        near(
            &values[1..],
            &vec![values[0]; values.len() - 1],
            &spec.family,
        );
        if model.weights.w_pos.is_none()
            && model.weights.blocks.iter().all(|block| block.b_o.is_none())
        {
            assert_eq!(values[0], 0.0, "{}: nothing at all is left", spec.family);
        }
    }
}

#[test]
fn heads_that_only_add_up_have_no_interaction() {
    // With the values of every layer but the last frozen out, heads of the last layer of a model without norms add up.
    let task = task();
    for model in models::every_kind() {
        let mut pairs = config("", PatchSource::Zero);
        let last = model.spec.n_layers - 1;
        pairs.pairs = nodes(&format!("a{last}.h0,a{last}.h1,a{last}.h2"));
        let scores = ablate(&model, &task, &pairs);
        let interactions = measured(&scores, "interaction");
        assert_eq!(interactions.len(), 3 * task.pairs().len());
        let largest = interactions.iter().fold(0f64, |most, x| most.max(x.abs()));
        match model.spec.family.as_str() {
            "attention-only" => assert!(largest < 1e-5, "{largest}"),
            _ => assert!(
                largest > 1e-6,
                "{}: norms and MLPs do not add up",
                model.spec.family
            ),
        }
    }
}

#[test]
fn a_set_of_one_is_the_node_alone_and_order_does_not_matter() {
    let task = task();
    for model in models::every_kind() {
        let mut sets = config("", PatchSource::MeanAll);
        let set = |name: &str| NodeSet {
            name: name.into(),
            nodes: nodes(name),
        };
        sets.sets = vec![set("a1.h1"), set("a0.h2,a1.h1"), set("a1.h1,a0.h2")];
        let values = column(&ablate(&model, &task, &sets), "value");
        let alone = ablate(&model, &task, &config("z", PatchSource::MeanAll));
        let alone = column(&alone, "value");
        let heads = model.spec.n_layers * model.spec.n_heads;
        for (i, values) in values.chunks_exact(3).enumerate() {
            near(
                &values[..1],
                &alone[i * heads + model.spec.n_heads + 1..][..1],
                &model.spec.family,
            );
            assert_eq!(values[1], values[2], "{}", model.spec.family);
        }
    }
}

/// What tells the rows of a table apart.
pub fn keys(scores: &Scores) -> Vec<String> {
    let height = scores.table.height();
    let texts = ["metric", "component", "role", "src", "dst", "target"];
    let numbers = ["layer", "head", "pos", "key", "neuron", "example"];
    let mut keys = vec![String::new(); height];
    for name in texts {
        // A column that applies to no row tells nothing apart.
        for (key, text) in keys.iter_mut().zip(scores.texts(name).unwrap_or_default()) {
            *key += &format!("{text:?} ");
        }
    }
    for name in numbers {
        for (key, number) in keys
            .iter_mut()
            .zip(scores.integers(name).unwrap_or_default())
        {
            *key += &format!("{number:?} ");
        }
    }
    keys
}

#[test]
fn no_two_rows_have_one_key() {
    let task = task();
    for model in models::two_kinds() {
        let mut all = config("z", PatchSource::Zero);
        all.pairs = nodes("a0.h0,a0.h2,a1.h1");
        all.sets = vec![NodeSet {
            name: "a0.h0".into(),
            nodes: nodes("a0.h0"),
        }];
        all.positions = Positions::These(vec![Pos::FromEnd(1)]);
        let scores = ablate(&model, &task, &all);
        let mut keys = keys(&scores);
        let rows = keys.len();
        keys.sort();
        keys.dedup();
        assert_eq!(keys.len(), rows, "{}", model.spec.family);
        // The head of a pair is ablated at the last position alone, the head of the sweep everywhere.
        let head = model.spec.n_layers * model.spec.n_heads;
        let rows = head + 3 + 3 + 3;
        assert_eq!(scores.table.height(), rows * task.pairs().len());
        let values = column(&scores, "score");
        assert_ne!(values[0], values[head], "{}", model.spec.family);
    }
}

#[test]
fn the_induction_model_needs_both_of_its_heads() {
    let folder = std::env::var_os("CANDLEWICK_SMALL_MODELS").map(std::path::PathBuf::from);
    let file = folder.map(|folder| folder.join("induction_2l1h/finetuned_model_0.safetensors"));
    let Some(file) = file.filter(|file| file.is_file()) else {
        println!("skipped: no induction_2l1h in $CANDLEWICK_SMALL_MODELS");
        return;
    };
    let path = file.to_str().expect("a path in UTF-8");
    let loaded = load(path, &LoadOptions::default()).expect("it loads");
    // Seven letters, no two alike, and one of them again: what follows is what followed it before.
    let pair = |index: usize| {
        let (step, start, again) = (1 + 2 * (index % 6), index % 26, index % 6);
        let mut clean: Vec<u32> = (0..7).map(|i| ((start + i * step) % 26) as u32).collect();
        let answer = clean[again + 1];
        clean.push(clean[again]);
        Pair::new(clean.clone(), clean).answer(answer)
    };
    // All there are.
    let pairs = (0..78).map(pair);
    let task = Task::new("induction", &loaded.tokenizer, Metric::TopK(1), pairs).expect("a task");
    let mut config = config("z", PatchSource::Zero);
    config.patch.metric = Some(Metric::TopK(1));
    let scores = run_method(&loaded.model, &task, &config, Detail::Mean);
    let clean = scores.provenance.mean_clean;
    let left = column(&scores, "value");
    println!(
        "right in {clean:.3} of prompts; without a0.h0 {:.3}, without a1.h0 {:.3}",
        left[0], left[1]
    );
    assert!(clean > 0.9, "{clean}");
    // A guess among the letters of the prompt would be right in one of seven.
    assert!(left.iter().all(|left| *left < 1.0 / 7.0), "{left:?}");
}
