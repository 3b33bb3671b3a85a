//! Interchange interventions: each is the edit that it says, and the program that is compared is the one that was written.

use std::collections::BTreeMap;

use candle_core::Tensor;
use candlewick::hooks::{Edit, Hook, Kind, Pos, Site};
use candlewick::methods::interchange::{
    AlignedPart, Alignment, Decode, Draws, Function, InputTable, Program, ProgramFile, PromptOf,
    Side, Value,
};
use candlewick::methods::subspace::Subspace;
use candlewick::methods::{
    InterchangeConfig, Subject, SubspaceConfig, TakenModel, Watch, check, measure,
};
use candlewick::model::Model;
use candlewick::prelude::{ExpandOptions, Lab, LoadOptions};
use candlewick::run::{Request, run, run_with_cache};
use candlewick::scores::{Cell, ExampleScores, Measured};
use candlewick::task::{Pair, Task};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde_json::Value as Json;

use crate::measured;
use crate::models::task::{task_of, tokenizer};
use crate::models::{encoder, every_kind, two_kinds};

/// Names of the vocabulary: tokens 6 to 8, in alphabetical order.
const NAMES: [u32; 3] = [6, 7, 8];

/// Prompts with a name at `S` and one at `T`, of two lengths, whose roles stand elsewhere in the two prompts of the longer ones.
fn names(n: usize) -> Task {
    let mut rng = ChaCha8Rng::seed_from_u64(5);
    let pair = |i: usize| {
        let length = 7 + i % 2;
        let mut prompt = |shift: usize| {
            let mut tokens: Vec<u32> = (0..length).map(|_| rng.random_range(9..36)).collect();
            for at in [1, 3 + shift] {
                tokens[at] = NAMES[rng.random_range(0..3)];
            }
            tokens
        };
        let (clean, corrupted) = (prompt(0), prompt(i % 2));
        let pair = Pair::new(clean, corrupted).template(i % 2).role("S", [1]);
        let pair = match i % 2 {
            0 => pair.role("T", [3]),
            _ => pair.shifted_role("T", [3], [4]),
        };
        pair.answer(NAMES[0]).wrong(NAMES[1])
    };
    task_of((0..n).map(pair).collect())
}

/// The first of the two names in the alphabet.
fn program() -> Program {
    let closure = |role: &'static str| Function::closure(role, move |known| known.get(role));
    Program::new(
        "first",
        Function::expression("if s < t then s else t").expect("an expression"),
    )
    .variable("s", closure("S"))
    .variable("t", Function::expression("T").expect("an expression"))
}

fn at(kind: Kind, role: &str, layer: usize, part: AlignedPart) -> Option<Alignment> {
    Some(Alignment {
        kind,
        layers: [layer].into(),
        part,
        ..Alignment::at([role])
    })
}

fn config(alignments: Vec<Option<Alignment>>) -> InterchangeConfig {
    InterchangeConfig {
        alignments,
        draws: Draws::Balanced(6),
        ..InterchangeConfig::new(program(), Alignment::default())
    }
}

fn prompt<'a>(task: &'a Task, of: &Json) -> (&'a Pair, Side) {
    let index = of[0].as_u64().expect("a pair") as usize;
    let pair = task
        .pairs()
        .iter()
        .find(|pair| pair.index == index)
        .expect("it is there");
    let side = match of[1].as_str() {
        Some("clean") => Side::Clean,
        _ => Side::Corrupted,
    };
    (pair, side)
}

fn tokens_and_place((pair, side): (&Pair, Side), role: &str) -> (Vec<u32>, usize) {
    let (tokens, roles) = match side {
        Side::Clean => (&pair.clean, &pair.roles),
        Side::Corrupted => (&pair.corrupted, pair.corrupted_roles()),
    };
    (tokens.clone(), *roles[role].last().expect("a place"))
}

/// What a whole run says with an edit written by hand at each place: which of the three names, and by how much.
fn said(model: &Model, base: &[u32], edits: &[Edit]) -> (u32, f32) {
    let request = Request {
        edits,
        ..Request::default()
    };
    let run = run(model, &[base.to_vec()], &request).expect("it runs");
    let row: Vec<f32> = run
        .logits
        .expect("asked for")
        .get(0)
        .unwrap()
        .to_vec1()
        .unwrap();
    let mut all = NAMES.map(|token| (row[token as usize], token));
    all.sort_by(|a, b| b.0.total_cmp(&a.0));
    (all[0].1, all[0].0 - all[1].0)
}

/// Puts the part of a source's activation into the base's, in a closure of its own.
fn by_hand(
    model: &Model,
    hook: Hook,
    base: usize,
    source: (&[u32], usize),
    part: &AlignedPart,
) -> Edit {
    let width = hook.width(&model.spec);
    let (_, cache) = run_with_cache(model, &[source.0.to_vec()], &[hook]).expect("it runs");
    let all: Vec<f32> = cache
        .get(hook)
        .unwrap()
        .flatten_all()
        .unwrap()
        .to_vec1()
        .unwrap();
    let theirs = all[source.1 * width..][..width].to_vec();
    let units = hook.shape(&model.spec, 1, 1)[2];
    let part = part.clone();
    Edit::with(
        Site::all(hook).at_positions([Pos::Index(base)]),
        "by hand",
        move |x| {
            let own: Vec<f32> = x.flatten_all()?.to_vec1()?;
            let mut moved = own.clone();
            match &part {
                AlignedPart::Whole => moved = theirs.clone(),
                AlignedPart::Units(chosen) => {
                    for (at, x) in moved.iter_mut().enumerate() {
                        if chosen.contains(&(at / (width / units))) {
                            *x = theirs[at];
                        }
                    }
                }
                AlignedPart::Subspaces(all) => {
                    let space = all.values().next().expect("one place");
                    for v in space.directions().expect("directions") {
                        let along: f64 = (0..width)
                            .map(|j| f64::from(theirs[j] - own[j]) * v[j])
                            .sum();
                        (0..width).for_each(|j| moved[j] += (along * v[j]) as f32);
                    }
                }
            }
            Ok(Tensor::from_vec(moved, x.shape(), x.device())?)
        },
    )
}

fn cell(found: &Measured, target: &str, measure: Option<&str>, component: &str) -> usize {
    let is_it = |cell: &Cell| {
        cell.target.as_deref() == Some(target)
            && cell.measure.as_deref() == measure
            && (component.is_empty() && cell.layer.is_some() || cell.component == component)
    };
    let found = found.cells.iter().position(is_it);
    found.unwrap_or_else(|| panic!("no cell {target} {measure:?} {component}"))
}

fn named<'a>(found: &'a Measured, exchange: &Json) -> &'a ExampleScores {
    let number = exchange["example"].as_u64().expect("a number") as usize;
    let mut all = found.examples.iter();
    all.find(|one| one.example == number)
        .expect("it was measured")
}

fn exchanges(found: &Measured) -> &Vec<Json> {
    found.found["exchanges"].as_array().expect("a list")
}

#[test]
fn exchanges_are_those_of_whole_runs_with_edits_by_hand_and_of_the_program() {
    let task = names(6);
    let mut seen = [0usize; 2];
    for (number, model) in every_kind().into_iter().enumerate() {
        let there = |kind: &&Kind| kind.absent(&model.spec).is_none();
        let kinds: Vec<Kind> = SubspaceConfig::KINDS
            .iter()
            .filter(there)
            .copied()
            .collect();
        let (one, other) = (
            kinds[number % kinds.len()],
            kinds[(number + 3) % kinds.len()],
        );
        let width = Hook::at(other, 1).width(&model.spec);
        let direction = |k: usize| {
            (0..width)
                .map(|j| ((j * (k + 3)) % 7) as f64 - 3.0)
                .collect()
        };
        let space = Subspace::spanned(&[direction(0), direction(1)]).expect("independent");
        let place = format!("{}@T", Hook::at(other, 1));
        let parts = [
            if number % 2 == 0 {
                AlignedPart::Whole
            } else {
                AlignedPart::Units(vec![1, 2])
            },
            if number % 3 == 0 {
                AlignedPart::Whole
            } else {
                AlignedPart::Subspaces(BTreeMap::from([(place, space)]))
            },
        ];
        let config = InterchangeConfig {
            together: true,
            ..config(vec![
                at(one, "S", 0, parts[0].clone()),
                at(other, "T", 1, parts[1].clone()),
            ])
        };
        let found = measured(&model, &task, &config);
        for exchange in exchanges(&found) {
            let target = exchange["variable"].as_str().expect("a name");
            let base = prompt(&task, &exchange["base"]);
            let name = |prompt, role: &str| {
                let (tokens, at) = tokens_and_place(prompt, role);
                tokens[at]
            };
            let mut values = [name(base, "S"), name(base, "T")];
            let plain = values[0].min(values[1]);
            let mut edits = Vec::new();
            let places = [("s", "S", Hook::at(one, 0)), ("t", "T", Hook::at(other, 1))];
            let mut sources = exchange["sources"].as_array().expect("sources").iter();
            for (at, (variable, role, hook)) in places.into_iter().enumerate() {
                if target != variable && target != "s+t" {
                    continue;
                }
                let source = prompt(&task, sources.next().expect("a source"));
                values[at] = name(source, role);
                let (tokens, pos) = tokens_and_place(source, role);
                let (_, own) = tokens_and_place(base, role);
                edits.push(by_hand(&model, hook, own, (&tokens, pos), &parts[at]));
            }
            let outcome = values[0].min(values[1]);
            let what = format!("{} {target} {exchange}", model.spec.family);
            assert_eq!(exchange["output"], task.text(outcome).trim(), "{what}");
            assert_eq!(exchange["changes"], outcome != plain, "{what}");
            let example = named(&found, exchange);
            let tokens = tokens_and_place(base, "S").0;
            let place = if target == "s+t" { "s+t" } else { target };
            for (edits, cell, right) in [
                (
                    &edits[..],
                    cell(&found, place, Some("iia_all"), ""),
                    outcome,
                ),
                (&[], cell(&found, place, Some("accuracy"), "model"), plain),
            ] {
                let (says, gap) = said(&model, &tokens, edits);
                // Two names that are as likely as each other are told apart by rounding.
                if gap > 1e-4 {
                    let expected = f64::from(u8::from(says == right));
                    assert_eq!(example.value(cell), Some(expected), "{what}");
                    seen[usize::from(says == right)] += 1;
                }
            }
            let own = example.value(cell(&found, place, None, ""));
            let all = example.value(cell(&found, place, Some("iia_all"), ""));
            assert_eq!(own, all.filter(|_| outcome != plain), "{what}");
        }
    }
    assert!(seen[0] > 100 && seen[1] > 100, "{seen:?}");
}

#[test]
fn the_base_as_its_own_source_and_no_units_change_nothing_and_the_last_stream_gives_the_source() {
    let task = names(4);
    let all: Vec<PromptOf> = (0..4)
        .flat_map(|at| [(at, Side::Clean), (at, Side::Corrupted)])
        .collect();
    let answer = || {
        let output = Function::expression("answer").expect("an expression");
        let first = Function::expression("if S < T then S else T").expect("an expression");
        Program::new("answer", output).variable("answer", first)
    };
    for model in every_kind() {
        let last = model.spec.n_layers - 1;
        let run = |alignment: Alignment, draws| {
            let config = InterchangeConfig {
                draws,
                ..InterchangeConfig::new(answer(), alignment)
            };
            measured(&model, &task, &config)
        };
        let values = |found: &Measured, measure: Option<&str>, component: &str| -> Vec<f64> {
            let cell = cell(found, "answer", measure, component);
            found
                .examples
                .iter()
                .filter_map(|one| one.value(cell))
                .collect()
        };
        // Source and base are one: what is measured is how well the model does.
        let of_itself = |&prompt: &PromptOf| (prompt, vec![prompt]);
        let own = Draws::Given(all.iter().map(of_itself).collect());
        let at_end = Alignment::at(["END"]);
        let found = run(at_end.clone(), own.clone());
        let accuracy = values(&found, Some("accuracy"), "model");
        let last_rows = |found: &Measured| -> Vec<f64> {
            let is_last = |cell: &Cell| {
                cell.layer == Some(last as u32) && cell.measure.as_deref() == Some("iia_all")
            };
            let cell = found.cells.iter().position(is_last).expect("a cell");
            found
                .examples
                .iter()
                .filter_map(|one| one.value(cell))
                .collect()
        };
        assert_eq!(accuracy.len(), all.len());
        for (at, cell) in found.cells.iter().enumerate() {
            if cell.measure.as_deref() == Some("iia_all") {
                let values: Vec<f64> = found
                    .examples
                    .iter()
                    .filter_map(|one| one.value(at))
                    .collect();
                assert_eq!(values, accuracy, "{} {cell}", model.spec.family);
            }
        }
        // Nothing changes what the program says, so there is nothing that `iia` counts.
        assert!(found.cells.iter().all(|cell| cell.measure.is_some()));
        // The whole stream after the last layer is the source's answer.
        let pairs: Vec<(usize, usize)> = (0..8)
            .flat_map(|i| [(i, (i + 1) % 8), (i, (i + 3) % 8)])
            .collect();
        let given = pairs
            .iter()
            .map(|&(base, source)| (all[base], vec![all[source]]));
        let given = Draws::Given(given.collect());
        let found = run(at_end, given.clone());
        let expected: Vec<f64> = pairs.iter().map(|&(_, source)| accuracy[source]).collect();
        assert_eq!(last_rows(&found), expected, "{}", model.spec.family);
        // Of no unit nothing is exchanged: the base's answer stands.
        let none = Alignment {
            part: AlignedPart::Units(Vec::new()),
            ..Alignment::at(["S", "END"])
        };
        let found = run(none, given);
        let unchanged = values(&found, None, "unchanged");
        let counted = values(&found, None, "");
        assert!(!unchanged.is_empty());
        assert_eq!(counted, unchanged, "{}", model.spec.family);
    }
}

#[test]
fn the_embedded_model_holds_the_answer_at_the_end_and_controls_do_not() {
    let options = ExpandOptions {
        n_pairs: Some(24),
        templates: vec![0, 1],
        ..ExpandOptions::default()
    };
    let lab =
        Lab::open_with("embedded", &LoadOptions::default(), "embedded", options).expect("it ships");
    let ProgramFile { program, places } = ProgramFile::open("ioi").expect("it ships");
    let config = InterchangeConfig {
        alignments: places
            .iter()
            .map(|place| place.as_ref().map(|_| Alignment::default()))
            .collect(),
        ..InterchangeConfig::new(program, Alignment::default())
    };
    let found = measured(&lab.model, &lab.task, &config);
    let share = |measure: Option<&str>, is: &dyn Fn(&Cell) -> bool| {
        let at = (found.cells.iter())
            .position(|cell| cell.measure.as_deref() == measure && is(cell))
            .expect("a cell");
        let values: Vec<f64> = found
            .examples
            .iter()
            .filter_map(|one| one.value(at))
            .collect();
        (
            values.iter().sum::<f64>() / values.len() as f64,
            values.len(),
        )
    };
    let last = |cell: &Cell| cell.layer == Some(3) && cell.target.as_deref() == Some("answer");
    let (iia, n) = share(None, &last);
    let (accuracy, all) = share(Some("accuracy"), &|cell| {
        cell.target.as_deref() == Some("answer")
    });
    assert_eq!((n, all), (50, 100));
    assert!(accuracy > 0.9 && iia > 0.9, "{accuracy} {iia}");
    for measure in ["iia_random", "iia_shuffled"] {
        let (control, _) = share(Some(measure), &last);
        assert!(control < 0.3, "{measure} {control}");
    }
    // Exchanges of what changes the answer are spread over answers: none is right often.
    let (constant, _) = share(None, &|cell| {
        cell.component == "constant" && cell.target.as_deref() == Some("answer")
    });
    let outcomes: Vec<&str> = (exchanges(&found).iter())
        .filter(|one| one["variable"] == "answer" && one["changes"] == true)
        .filter_map(|one| one["output"].as_str())
        .collect();
    let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
    outcomes
        .iter()
        .for_each(|outcome| *counts.entry(outcome).or_default() += 1);
    let most = *counts.values().max().expect("some");
    assert_eq!(constant, most as f64 / 50.0);
    assert!(most <= 2 + 50 / counts.len(), "{counts:?}");
    assert!(
        found
            .intervals
            .values()
            .flatten()
            .all(|(low, high)| low < high)
    );
}

#[test]
fn inputs_beside_the_prompts_are_columns_of_a_program() {
    let task = names(4);
    let model = two_kinds().remove(0);
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("inputs.csv");
    let rows = (0..4).map(|at| format!("{at},clean,{}\n{at},corrupted,true\n", at % 2 == 0));
    std::fs::write(
        &path,
        format!("example,side,early\n{}", rows.collect::<String>()),
    )
    .expect("it is written");
    let output =
        Function::expression("if early then \"Alice\" else \"Peter\"").expect("an expression");
    let program = Program::new("p", output)
        .variable("v", Function::expression("early").expect("an expression"));
    // A variable that nothing follows from changes nothing, which is said.
    let config = InterchangeConfig {
        inputs: Some(InputTable::read(&path).expect("it reads")),
        ..InterchangeConfig::new(program.clone(), Alignment::default())
    };
    let refused = check(&config, &model.spec, &task).expect_err("nothing follows from it");
    assert!(
        refused
            .to_string()
            .contains("the program says what it says without"),
        "{refused}"
    );
    let program = Program {
        output: Function::expression("if v then \"Alice\" else \"Peter\"").expect("an expression"),
        ..program
    };
    let config = InterchangeConfig {
        program: program.into(),
        decode: Decode::Vocabulary,
        ..config
    };
    let found = measured(&model, &task, &config);
    for exchange in exchanges(&found) {
        let (pair, side) = prompt(&task, &exchange["sources"][0]);
        let early = side == Side::Corrupted || pair.index % 2 == 0;
        assert_eq!(exchange["output"], if early { "Alice" } else { "Peter" });
    }
}

#[test]
fn what_cannot_be_exchanged_is_said_by_name() {
    let (task, model) = (names(4), two_kinds().remove(0));
    let of = |text: &str| Function::expression(text).expect("an expression");
    let refused = |config: InterchangeConfig, says: &str| {
        let error = check(&config, &model.spec, &task)
            .expect_err(says)
            .to_string();
        assert!(error.contains(says) && !error.contains('\n'), "{error}");
    };
    let usual = || config(vec![Some(Alignment::default()), None]);
    let simple = |output: &str| {
        InterchangeConfig::new(
            Program::new("p", of(output)).variable("v", of("S")),
            Alignment::default(),
        )
    };
    refused(
        simple("if X == S then S else T"),
        "the output of program `p`: there is no column `X`",
    );
    refused(simple("S == 1"), "the output of program `p`: a text");
    refused(simple("v + v"), "no single token");
    refused(simple("\"Alice\""), "nothing to measure");
    refused(
        InterchangeConfig {
            alignments: vec![None, None],
            ..usual()
        },
        "no variable of program `first` is exchanged",
    );
    refused(
        InterchangeConfig {
            together: true,
            ..usual()
        },
        "two or more",
    );
    refused(
        InterchangeConfig {
            draws: Draws::Balanced(1),
            ..usual()
        },
        "1 exchanges of each",
    );
    refused(
        InterchangeConfig {
            sides: vec![],
            ..usual()
        },
        "no prompts",
    );
    refused(
        InterchangeConfig {
            alignments: vec![],
            ..usual()
        },
        "there are 0 alignments",
    );
    let placed = |alignment: Alignment| config(vec![Some(alignment), None]);
    refused(placed(Alignment::at(["Q"])), "`Q`");
    refused(
        placed(Alignment::at(Vec::<String>::new())),
        "variable `s` is at no position",
    );
    refused(
        placed(Alignment {
            kind: Kind::Pattern,
            ..Alignment::default()
        }),
        "activations can be exchanged at",
    );
    refused(
        placed(Alignment {
            layers: [9].into(),
            ..Alignment::default()
        }),
        "9",
    );
    refused(
        placed(Alignment {
            part: AlignedPart::Units(vec![999]),
            ..Alignment::default()
        }),
        "999",
    );
    // All units of an activation are the whole of it, and the control moves to another place as that of the whole does.
    let all = |part: AlignedPart| {
        let mut config = placed(Alignment {
            part,
            layers: [1].into(),
            ..Alignment::default()
        });
        config.directions_of = vec![TakenModel {
            id: "elsewhere".into(),
            weight_hash: String::new(),
        }];
        let found = measured(&model, &task, &config);
        let warns = |of: &String| of.contains("another model, `elsewhere`");
        assert!(found.warnings.iter().any(warns), "{:?}", found.warnings);
        // What was not measured is NaN, which equals nothing.
        let values = found
            .examples
            .into_iter()
            .map(|one| (one.example, one.cells, one.values));
        (values.collect::<Vec<_>>(), found.notes)
    };
    let (whole, _) = all(AlignedPart::Whole);
    assert_eq!(all(AlignedPart::Units((0..22).collect())).0, whole);
    let (_, notes) = all(AlignedPart::Units((0..20).collect()));
    let crowded =
        "20 of 22 are exchanged, so that a random part of as many has at least 18 of them too";
    assert!(notes.iter().any(|note| note.contains(crowded)), "{notes:?}");
    let narrow = Subspace::spanned(&[vec![1.0, 0.0]]).expect("a direction");
    let place = format!("{}@END", Hook::at(Kind::ResidPost, 0));
    let spaces = |place: &str, space: &Subspace| Alignment {
        part: AlignedPart::Subspaces(BTreeMap::from([(place.to_string(), space.clone())])),
        ..Alignment::default()
    };
    refused(
        placed(spaces(&place, &narrow)),
        "2 dimensions and the hook has 22",
    );
    let wide =
        Subspace::spanned(&[(0..22).map(|j| f64::from(j) + 1.0).collect()]).expect("a direction");
    refused(
        placed(spaces("elsewhere@END", &wide)),
        "none of its places has a subspace",
    );
    let both = |a, b| InterchangeConfig {
        together: true,
        ..config(vec![a, b])
    };
    let stream = |role, layer| at(Kind::ResidPost, role, layer, AlignedPart::Whole);
    refused(
        both(stream("S", 0), stream("S", 0)),
        "variables `s` and `t` are both at",
    );
    refused(
        both(Some(Alignment::at(["S", "T"])), stream("S", 0)),
        "at several positions",
    );
    let encoder = encoder();
    let error = check(&usual(), &encoder.spec, &task).expect_err("it looks ahead");
    assert!(
        error.to_string().contains("interchange interventions"),
        "{error}"
    );
    // Its text is the expression, its value a name.
    assert_eq!(
        tokenizer().decode(&[NAMES[0]]).expect("a word").trim(),
        "Alice"
    );
    assert_eq!(Value::from("Alice").to_string(), "Alice");
    let on = Subject {
        model: &model,
        task: &task,
    };
    let scores =
        measure(on, &usual(), &Default::default(), &Watch::default()).expect("it measures");
    assert_eq!(scores.provenance.metric, "iia");
}
