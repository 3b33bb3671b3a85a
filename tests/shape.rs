//! What every method gets from its shape: dry runs, resume after a stop at any moment, shards that merge to the same table,
//! verification, and no option that is dropped without a word. A toy method has all of it.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use candlewick::Error;
use candlewick::hooks::{Hook, Kind, Positions};
use candlewick::methods::tokens::{Baseline, Quadrature, ReferenceSet};
use candlewick::prelude::*;
use candlewick::run::{Logits, Progress, Request, run};
use candlewick::scores::{Cell, ExampleScores, ScoresMeta, Shard};
use candlewick::spec::ModelSpec;
use candlewick::task::{Pair, Task};

fn lab(n_pairs: usize) -> Lab {
    Lab::open("embedded", "embedded")
        .expect("it is part of the binary")
        .first(n_pairs)
}

/// Two templates and two lengths.
fn mixed(n_pairs: usize) -> Lab {
    let options = ExpandOptions {
        n_pairs: Some(n_pairs),
        ..ExpandOptions::default()
    };
    Lab::open_with("embedded", &LoadOptions::default(), "embedded", options).expect("it ships")
}

/// The toy: how long the residual stream of the clean run is at each layer's end, at the last token.
#[derive(Debug)]
struct StreamLength;

struct Lengths<'a> {
    on: Subject<'a>,
    cells: Vec<Cell>,
}

impl Method for StreamLength {
    fn header(&self, task: &Task) -> ScoresMeta {
        ScoresMeta {
            method: "stream_length".into(),
            metric: "length".into(),
            unit: "none".into(),
            direction: Direction::Direct,
            base: None,
            seed: task.seed,
        }
    }

    fn settings(&self) -> serde_json::Value {
        serde_json::json!({})
    }

    fn needs(&self, _: &Task) -> Needs {
        Needs::default()
    }

    fn check(&self, _: &ModelSpec, _: &Task) -> Result<()> {
        Ok(())
    }

    fn prepare<'a>(&'a self, on: Subject<'a>, _: &'a Running) -> Result<Box<dyn Prepared + 'a>> {
        let cell = |layer: usize| Cell {
            component: Kind::ResidPost.name().into(),
            layer: Some(layer as u32),
            ..Cell::default()
        };
        Ok(Box::new(Lengths {
            on,
            cells: (0..on.model.spec.n_layers).map(cell).collect(),
        }))
    }
}

impl Prepared for Lengths<'_> {
    fn cells(&self) -> &[Cell] {
        &self.cells
    }

    fn bytes(&self, length: usize) -> usize {
        4 * length * self.on.model.spec.n_layers * self.on.model.spec.d_model
    }

    fn cost(&self, unit: &Unit) -> Result<Cost> {
        Ok(Cost::passes(unit.items.len() as f64))
    }

    fn measure(&self, unit: &Unit, _: &dyn Progress) -> Result<Vec<ExampleScores>> {
        let Subject { model, task } = self.on;
        let hooks: Vec<Hook> = (0..model.spec.n_layers)
            .map(|layer| Hook::at(Kind::ResidPost, layer))
            .collect();
        let prompts: Vec<_> = unit
            .items
            .iter()
            .map(|&i| task.pairs()[i].clean.clone())
            .collect();
        let request = Request {
            capture: &hooks,
            logits: Logits::None,
            ..Request::default()
        };
        let cache = run(model, &prompts, &request)?.cache;
        let mut examples = Vec::new();
        for (i, &item) in unit.items.iter().enumerate() {
            let mut one = candlewick::methods::method::unmeasured(task, item, 0.0, 0.0);
            for &hook in &hooks {
                let stream = cache.get(hook)?.get(i)?; // [pos, d_model]
                let last: Vec<f32> = stream.get(prompts[i].len() - 1)?.to_vec1()?;
                one.values.push(
                    last.iter()
                        .map(|&x| f64::from(x) * f64::from(x))
                        .sum::<f64>()
                        .sqrt(),
                );
            }
            one.cells = (0..hooks.len() as u32).collect();
            examples.push(one);
        }
        Ok(examples)
    }
}

/// Stops when it was asked so often whether to stop.
struct StopAfter(AtomicU64);

impl Progress for StopAfter {
    fn cancelled(&self) -> bool {
        let left = self
            .0
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| {
                Some(left.saturating_sub(1))
            });
        left == Ok(0)
    }
}

/// A method of every kind, named.
fn every_method() -> Vec<(&'static str, Box<dyn Method>)> {
    let sites = |text: &str| PatchConfig::sites(text).expect("known sites");
    let noise = |text: &str| PatchConfig {
        direction: Direction::Noise,
        ..sites(text)
    };
    let ablate = |source| {
        AblationConfig::new(PatchConfig {
            source,
            ..sites("z,mlp_out")
        })
    };
    let nodes = |names: &[&str]| {
        names
            .iter()
            .map(|name| name.parse().expect("a node"))
            .collect()
    };
    vec![
        ("toy", Box::new(StreamLength)),
        ("patch", Box::new(sites("resid_pre,z"))),
        ("patch:pos", Box::new(sites("resid_pre:pos"))),
        ("ablate zero", Box::new(ablate(PatchSource::Zero))),
        ("ablate mean-role", Box::new(ablate(PatchSource::MeanRole))),
        (
            "head pairs",
            Box::new(AblationConfig {
                pairs: nodes(&["a0.h0", "a2.h1", "a3.h3"]),
                ..ablate(PatchSource::Mean)
            }),
        ),
        (
            "atp",
            Box::new(NodeAttributionConfig::atp(noise("z,mlp_out"))),
        ),
        (
            "atp of means",
            Box::new(NodeAttributionConfig::atp(PatchConfig {
                source: PatchSource::Mean,
                direction: Direction::Ablate,
                ..sites("z:pos")
            })),
        ),
        (
            "atp-star",
            Box::new(NodeAttributionConfig::atp_star(noise("q,k,z"))),
        ),
        (
            "relp",
            Box::new(NodeAttributionConfig::relp(sites("resid_pre:role"))),
        ),
        (
            "layer-ig",
            Box::new(NodeAttributionConfig::layer_ig(noise("resid_pre"), 2)),
        ),
        (
            "conductance",
            Box::new(NodeAttributionConfig::conductance(noise("mlp_out"), 2)),
        ),
        ("eap", Box::new(EdgeAttributionConfig::eap())),
        (
            "eap of means",
            Box::new(EdgeAttributionConfig {
                reference: Reference::Mean,
                ..EdgeAttributionConfig::eap()
            }),
        ),
        ("eap-ig", Box::new(EdgeAttributionConfig::eap_ig(2))),
        ("ceap", Box::new(EdgeAttributionConfig::ceap(2))),
        (
            "clean-corrupted",
            Box::new(EdgeAttributionConfig::clean_corrupted()),
        ),
        (
            "eap-ig-activations",
            Box::new(EdgeAttributionConfig::eap_ig_activations(1)),
        ),
        ("relp-edges", Box::new(EdgeAttributionConfig::relp())),
        (
            "exact-edges",
            Box::new(
                EdgeConfig::of(["input->a0.h1<v>", "m0->logits", "a0.h0->a2.h1<q>"])
                    .expect("edges"),
            ),
        ),
        ("grad-x-input", tokens(TokenMethod::GradientTimesInput)),
        ("saliency-l2", tokens(TokenMethod::SaliencyL2)),
        (
            "smooth-grad",
            tokens(TokenMethod::SmoothGrad {
                draws: 3,
                noise: 0.15,
            }),
        ),
        ("ig", tokens(ig(3, Baseline::Mean))),
        ("ig of pairs", tokens(ig(3, Baseline::Pair))),
        (
            "expected-gradients",
            tokens(TokenMethod::ExpectedGradients {
                draws: 3,
                reference: ReferenceSet::Corrupted,
            }),
        ),
        ("lrp", tokens(TokenMethod::Lrp)),
        ("attn-lrp", tokens(TokenMethod::AttnLrp)),
        ("alti-logit", tokens(TokenMethod::AltiLogit)),
        ("alti-rollout", tokens(TokenMethod::AltiRollout)),
        (
            "ablate scale:0.49",
            Box::new(ablate(PatchSource::Scale(0.49))),
        ),
        (
            "knockout",
            Box::new(AblationConfig {
                knockouts: vec![Knockout {
                    queries: Positions::These(vec!["@END".parse().expect("a role")]),
                    keys: Positions::These(vec!["@IO".parse().expect("a role")]),
                }],
                ..AblationConfig::new(PatchConfig {
                    source: PatchSource::Block,
                    ..PatchConfig::new(Vec::new())
                })
            }),
        ),
        (
            "path",
            Box::new(PathConfig::between("heads", "logits").expect("names")),
        ),
        (
            "path over both",
            Box::new(PathConfig {
                over: Over::Both,
                freeze_mlps: true,
                ..PathConfig::between("input,a0.h1,m0", "a3.h0.q,a1.h1.v,logits").expect("names")
            }),
        ),
        (
            "node paths",
            Box::new(
                NodePathConfig::of(["input->a0.h2<v>->a3.h1<k>->logits", "m0->a3.h1<k>->logits"])
                    .expect("paths"),
            ),
        ),
        (
            "self-repair",
            Box::new(RepairConfig::of(RepairParts::Attention)),
        ),
        (
            "self-repair of heads",
            Box::new(RepairConfig {
                donors: 2,
                heads: "a0.h0,a3.h1".parse().expect("heads"),
                ..RepairConfig::of(RepairParts::Heads)
            }),
        ),
        (
            "scaling",
            Box::new(ScalingConfig {
                factors: vec![0.0, -2.5],
                ..ScalingConfig::new("a0.h0,a3.h1".parse().expect("heads"))
            }),
        ),
        (
            "dla",
            Box::new(DlaConfig {
                writes: 3,
                ..DlaConfig::by(Part::Head)
            }),
        ),
        ("dla by position", Box::new(DlaConfig::by(Part::HeadSource))),
        (
            "dla by role",
            Box::new(DlaConfig {
                writes: 2,
                target: DirectTarget::Centred,
                ..DlaConfig::by(Part::HeadRole)
            }),
        ),
        ("source classes", Box::new(SourceConfig::new(["S1", "S2"]))),
        ("lens at the end", Box::new(LensConfig::at_end())),
        (
            "lens",
            Box::new(LensConfig {
                positions: Some(LensPositions::All),
                ..LensConfig::default()
            }),
        ),
        ("token lens", Box::new(TokenLensConfig::lens())),
        ("attention knockout", Box::new(TokenLensConfig::knockout())),
        (
            "heads",
            Box::new(HeadConfig {
                repeat_length: Some(6),
                samples: 3,
                circuits: nodes(&["a3.h1"]),
                ..HeadConfig::default()
            }),
        ),
    ]
}

fn tokens(method: TokenMethod) -> Box<dyn Method> {
    Box::new(TokenConfig::new(method))
}

fn ig(steps: usize, baseline: Baseline) -> TokenMethod {
    TokenMethod::IntegratedGradients {
        steps,
        rule: Quadrature::Midpoint,
        baseline,
    }
}

/// Prompts with labelled demonstrations; the corrupted ones show each label's partner instead.
fn demonstrations(n_pairs: usize) -> Lab {
    let labels = [30, 31];
    let pair = |i: usize| {
        let class = |j: usize| (i / (1 << j)) % 2;
        let (mut clean, mut corrupted) = (Vec::new(), Vec::new());
        for j in 0..3 {
            for (prompt, shown) in [(&mut clean, class(j)), (&mut corrupted, 1 - class(j))] {
                prompt.extend([(2 + 3 * class(j) + j + i) as u32 % 20, 25, labels[shown]]);
            }
        }
        let query = (i * 7 + 3) % 2;
        for prompt in [&mut clean, &mut corrupted] {
            prompt.extend([(7 + 3 * query + i) as u32 % 20, 25]);
        }
        let pair = Pair::new(clean, corrupted);
        pair.answer(labels[query]).wrong(labels[1 - query])
    };
    let Lab {
        model, tokenizer, ..
    } = lab(1);
    let pairs = (0..n_pairs).map(pair);
    let task = Task::new("labels", &tokenizer, Metric::LogitDiff, pairs).expect("a task");
    Lab::new(model, tokenizer, task)
}

/// Every method on pairs of two templates and two lengths; on pairs of one what asks for one.
fn every_run(n_pairs: usize) -> Vec<(&'static str, Lab, Box<dyn Method>)> {
    let running = Running {
        batch: 2,
        ..Running::default()
    };
    let mixed = mixed(n_pairs).running(running.clone());
    let mut all: Vec<(&'static str, Lab, Box<dyn Method>)> = (every_method().into_iter())
        .map(|(name, method)| (name, mixed.clone(), method))
        .collect();
    all.push((
        "early decoding",
        demonstrations(n_pairs).running(running.clone()),
        Box::new(EarlyConfig {
            heads: 2,
            controls: 2,
            seed: None,
        }),
    ));
    all.push((
        "eap by position",
        lab(n_pairs).running(running),
        Box::new(EdgeAttributionConfig {
            by_position: true,
            ..EdgeAttributionConfig::eap()
        }),
    ));
    all
}

fn rows(scores: &Scores) -> String {
    let mut text = Vec::new();
    scores
        .with_sides()
        .expect("tables of one shape")
        .to_csv(&mut text)
        .expect("text");
    String::from_utf8(text).expect("text")
}

fn measured(lab: &Lab, method: &dyn Method) -> Scores {
    lab.measure(method)
        .unwrap_or_else(|error| panic!("{method:?}: {error}"))
}

/// Where finished parts of a file are kept.
fn part_files(out: &Path) -> usize {
    let folder = PathBuf::from(format!("{}.parts", out.display()));
    let entries = |path: &Path| std::fs::read_dir(path).into_iter().flatten().flatten();
    entries(&folder)
        .flat_map(|work| entries(&work.path()).collect::<Vec<_>>())
        .filter(|entry| entry.file_name().to_string_lossy().starts_with("part-"))
        .count()
}

#[test]
fn stopped_twice_at_any_moment_and_gone_on_with_every_method_gives_the_same_table() {
    for (name, lab, method) in every_run(6) {
        let whole = measured(&lab, &*method);
        let folder = tempfile::tempdir().expect("a folder");
        let out = folder.path().join("scores.parquet");
        let mut kept = 0;
        for stop in [1, 3] {
            let keeping = Keeping::beside(&out);
            let progress = StopAfter(AtomicU64::new(stop));
            let watch = Watch {
                progress: &progress,
                keeping: Some(&keeping),
            };
            let stopped = measure(lab.subject(), &*method, &lab.running, &watch);
            if let Err(error) = stopped {
                assert!(
                    matches!(error, Error::Interrupted { .. }),
                    "{name}: {error}"
                );
            }
            assert!(part_files(&out) >= kept, "{name}: a finished part is gone");
            kept = part_files(&out);
        }
        let keeping = Keeping::beside(&out);
        let watch = Watch {
            keeping: Some(&keeping),
            ..Watch::default()
        };
        let again = measure(lab.subject(), &*method, &lab.running, &watch).expect("goes on");
        assert_eq!(rows(&again), rows(&whole), "{name}");
        keeping.remove().expect("removes");
        assert_eq!(part_files(&out), 0, "{name}");
        assert_eq!(
            std::fs::read_dir(folder.path()).expect("a folder").count(),
            0,
            "{name}"
        );
    }
}

/// Remembers what it was told.
#[derive(Default)]
struct Notes(std::sync::Mutex<Vec<String>>);

impl Progress for Notes {
    fn note(&self, message: &str) {
        self.0.lock().expect("one thread").push(message.into());
    }
}

#[test]
fn a_factor_that_is_no_binary_fraction_goes_on_from_its_own_parts() {
    let lab = mixed(6).running(Running {
        batch: 2,
        ..Running::default()
    });
    let by = |factor| {
        AblationConfig::new(PatchConfig {
            source: PatchSource::Scale(factor),
            ..PatchConfig::sites("z").expect("sites")
        })
    };
    let folder = tempfile::tempdir().expect("a folder");
    let out = folder.path().join("scores.parquet");
    let run = |factor: f32, progress: &dyn Progress| {
        let keeping = Keeping::beside(&out);
        let watch = Watch {
            progress,
            keeping: Some(&keeping),
        };
        measure(lab.subject(), &by(factor), &lab.running, &watch)
    };
    run(0.49, &StopAfter(AtomicU64::new(12))).expect_err("stopped");
    let finished = part_files(&out);
    assert!(finished > 0);
    let notes = Notes::default();
    let scores = run(0.49, &notes).expect("goes on");
    assert_eq!(rows(&scores), rows(&measured(&lab, &by(0.49))));
    let notes = notes.0.into_inner().expect("one thread");
    let said = format!("going on from {finished} of");
    assert!(notes.iter().any(|note| note.contains(&said)), "{notes:?}");
    // Another factor is other work, and neither takes these parts nor is blocked by them.
    let other = Notes::default();
    run(0.48, &other).expect("begins");
    let other = other.0.into_inner().expect("one thread");
    assert!(
        other.iter().all(|note| !note.contains("going on")),
        "{other:?}"
    );
}

fn shards(lab: &Lab, method: &dyn Method, count: usize, folder: &Path) -> Vec<PathBuf> {
    (1..=count)
        .map(|index| {
            let path = folder.join(format!("{index}.parquet"));
            let running = Running {
                shard: Some(Shard { index, count }),
                ..lab.running.clone()
            };
            let command = ["candlewick".to_string()];
            let watch = Watch::default();
            measure_shard(lab.subject(), method, &running, &watch, &path, &command)
                .expect("measures");
            path
        })
        .collect()
}

#[test]
fn shards_merge_to_the_table_of_the_whole_with_every_method() {
    for (name, lab, method) in every_run(6) {
        let folder = tempfile::tempdir().expect("a folder");
        let paths = shards(&lab, &*method, 3, folder.path());
        let watch = Watch::default();
        let merged = merge(lab.subject(), &*method, &lab.running, &paths, &watch).expect("merges");
        assert_eq!(rows(&merged), rows(&measured(&lab, &*method)), "{name}");
    }
}

#[test]
fn a_missing_doubled_or_foreign_shard_is_named() {
    let lab = mixed(6).running(Running {
        batch: 2,
        ..Running::default()
    });
    let (method, other) = (
        PatchConfig::sites("z").unwrap(),
        PatchConfig::sites("q").unwrap(),
    );
    let folder = tempfile::tempdir().expect("a folder");
    let paths = shards(&lab, &method, 3, folder.path());
    let elsewhere = tempfile::tempdir().expect("a folder");
    let foreign = shards(&lab, &other, 3, elsewhere.path());
    let refused = |paths: &[PathBuf]| {
        let merged = merge(
            lab.subject(),
            &method,
            &lab.running,
            paths,
            &Watch::default(),
        );
        merged.expect_err("refused").to_string()
    };
    let missing = refused(&[paths[0].clone(), paths[2].clone()]);
    assert!(
        missing.contains("2/3") && missing.contains("missing"),
        "{missing}"
    );
    let doubled = refused(&[paths[0].clone(), paths[0].clone(), paths[1].clone()]);
    assert!(doubled.contains("both shard 1/3"), "{doubled}");
    let mixed_up = refused(&[paths[0].clone(), foreign[1].clone(), paths[2].clone()]);
    assert!(
        mixed_up.contains("other work") && mixed_up.contains("settings"),
        "{mixed_up}"
    );
    let all_foreign = refused(&foreign);
    assert!(all_foreign.contains("other work"), "{all_foreign}");
    assert!(refused(&[]).contains("there is none"));
}

#[test]
fn every_method_says_what_it_would_cost() {
    for (name, lab, method) in every_run(3) {
        let plan = lab
            .plan(&*method)
            .unwrap_or_else(|error| panic!("{name}: {error}"));
        assert_eq!(plan.pairs, 3, "{name}");
        assert!(
            plan.units > 0 && plan.seconds > 0.0 && plan.cost.passes >= 1.0,
            "{name}: {plan:?}"
        );
    }
}

#[test]
fn what_is_measured_does_not_depend_on_how_it_is_run() {
    for (name, whole, method) in every_run(5) {
        let whole = whole.running(Running::default());
        let small = whole.clone().running(Running {
            batch: 1,
            memory: Some(1_000_000),
            ..Running::default()
        });
        let (a, b) = (measured(&whole, &*method), measured(&small, &*method));
        let (a, b) = (a.floats("score").unwrap(), b.floats("score").unwrap());
        assert_eq!(a.len(), b.len(), "{name}");
        for (a, b) in a.iter().zip(&b) {
            let (a, b) = (a.unwrap(), b.unwrap());
            assert!((a - b).abs() < 2e-4, "{name}: {a} against {b}");
        }
    }
}

#[test]
fn verification_holds_estimates_against_what_patching_measures() {
    let lab = mixed(5).running(Running {
        batch: 2,
        ..Running::default()
    });
    let patch = PatchConfig {
        direction: Direction::Noise,
        ..PatchConfig::sites("mlp_out,z:pos").unwrap()
    };
    let estimates = lab
        .verified(&NodeAttributionConfig::atp(patch.clone()), 7)
        .expect("verifies");
    let exact = measured(&lab, &patch);
    let key = |scores: &Scores, row: usize| {
        let whole = |name: &str| scores.integers(name).and_then(|column| column[row]);
        let text = |name: &str| scores.texts(name).and_then(|c| c[row].map(String::from));
        (
            text("component"),
            whole("layer"),
            whole("head"),
            whole("pos"),
            text("template"),
        )
    };
    let scores = exact.floats("score").unwrap();
    let place = |wanted: &_| (0..exact.table.height()).find(|&row| key(&exact, row) == *wanted);
    let mut checked = 0;
    for (row, value) in estimates.floats("exact").unwrap().into_iter().enumerate() {
        let Some(value) = value else { continue };
        let there = place(&key(&estimates, row)).expect("the same cells");
        let measured = scores[there].unwrap();
        assert!(
            (value - measured).abs() < 2e-4,
            "{value} against {measured}"
        );
        checked += 1;
    }
    assert_eq!(checked, 14);
    let note = &estimates.provenance.notes[0];
    assert!(
        note.contains("rank correlation") && note.contains("median relative error"),
        "{note}"
    );
}

#[test]
fn edges_and_tokens_are_verified_too() {
    let lab = lab(3);
    let edges = lab
        .verified(&EdgeAttributionConfig::eap(), 5)
        .expect("verifies");
    let exact = measured(&lab, &EdgeConfig::all());
    let of = |scores: &Scores, row: usize| {
        let text = |name: &str| scores.texts(name).unwrap()[row].unwrap().to_string();
        (text("src"), text("dst"))
    };
    let all = exact.floats("score").unwrap();
    let mut checked = 0;
    for (row, value) in edges.floats("exact").unwrap().into_iter().enumerate() {
        if let Some(value) = value {
            assert_eq!(of(&edges, row), of(&exact, row));
            assert!((value - all[row].unwrap()).abs() < 2e-4);
            checked += 1;
        }
    }
    assert_eq!(checked, 10);
    // Taking a token away changes the metric by minus its share: by zeros, or by the other prompt where the integral starts there.
    let lab = mixed(5);
    for (method, source) in [
        (TokenMethod::Lrp, PatchSource::Zero),
        (ig(4, Baseline::Mean), PatchSource::Zero),
        (ig(4, Baseline::Pair), PatchSource::Pair),
    ] {
        let shares = lab
            .verified(&TokenConfig::new(method.clone()), 6)
            .expect("verifies");
        let removal = PatchConfig {
            source,
            direction: if source == PatchSource::Pair {
                Direction::Noise
            } else {
                Direction::Ablate
            },
            ..PatchConfig::sites("embed:pos").unwrap()
        };
        let removed = measured(&lab, &removal);
        let key = |scores: &Scores, row: usize| {
            (
                scores.texts("component").unwrap()[row].map(String::from),
                scores.integers("pos").unwrap()[row],
                scores.texts("template").unwrap()[row].map(String::from),
            )
        };
        let effects = removed.floats("score").unwrap();
        let mut checked = 0;
        for (row, value) in shares.floats("exact").unwrap().into_iter().enumerate() {
            let Some(value) = value else { continue };
            let wanted = key(&shares, row);
            let mut rows = 0..removed.table.height();
            let there = rows.find(|&there| key(&removed, there) == wanted);
            let effect = effects[there.expect("a token")].unwrap();
            assert!(
                (value + effect).abs() < 2e-4,
                "{method}: {value} for {effect}"
            );
            checked += 1;
        }
        assert_eq!(checked, 12, "{method}");
    }
    // What is exact itself has nothing to be held against.
    let refused = lab
        .verified(&EdgeConfig::all(), 3)
        .expect_err("refused")
        .to_string();
    assert!(refused.contains("--verify"), "{refused}");
}

#[test]
fn places_that_a_pair_lacks_are_refused_by_name() {
    let lab = lab(2);
    let knockout = |queries: Positions, keys: Positions| AblationConfig {
        knockouts: vec![Knockout { queries, keys }],
        ..AblationConfig::new(PatchConfig {
            source: PatchSource::Block,
            ..PatchConfig::new(Vec::new())
        })
    };
    let at = |text: &str| Positions::These(vec![text.parse().expect("a position")]);
    let set = |at: Positions| AblationConfig {
        sets: vec![NodeSet {
            name: "one".into(),
            nodes: vec!["a0.h0".parse().expect("a head")],
        }],
        positions: at,
        ..AblationConfig::new(PatchConfig {
            source: PatchSource::Zero,
            ..PatchConfig::new(Vec::new())
        })
    };
    let cases = [
        (knockout(at("@END"), at("@FOO")), "FOO"),
        (knockout(at("@FOO"), at("@END")), "FOO"),
        (knockout(at("99"), at("0")), "99"),
        (set(at("@NOPE")), "NOPE"),
        (set(at("99")), "99"),
    ];
    for (config, named) in cases {
        let refused = lab.measure(&config).expect_err("refused").to_string();
        assert!(refused.contains(named), "{refused}");
    }
    let heads = PatchConfig {
        heads: [5].into(),
        ..PatchConfig::sites("z").unwrap()
    };
    assert!(lab.measure(&heads).is_err());
    let no_heads = PatchConfig {
        heads: [1].into(),
        ..PatchConfig::sites("mlp_out").unwrap()
    };
    let refused = lab.measure(&no_heads).expect_err("refused").to_string();
    assert!(refused.contains("no heads"), "{refused}");
}

#[test]
fn positions_that_do_not_align_are_never_in_one_row() {
    let lab = mixed(12);
    let by_role = measured(&lab, &PatchConfig::sites("resid_pre").unwrap());
    let roles = by_role.texts("role").unwrap();
    assert!(roles.iter().all(Option::is_some));
    assert!(roles.contains(&Some("other")));
    let by_position = measured(&lab, &PatchConfig::sites("resid_pre:pos").unwrap());
    let templates = by_position.texts("template").unwrap();
    assert!(templates.iter().all(Option::is_some));
    // All positions together are all roles and the rest together.
    let all = measured(&lab, &PatchConfig::sites("resid_pre:all").unwrap());
    let gap = all.provenance.mean_clean - all.provenance.mean_corrupted;
    let whole = all.floats("score").unwrap()[0].unwrap();
    assert!((whole - gap).abs() < 2e-4, "{whole} against {gap}");
}
