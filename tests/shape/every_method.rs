//! Every method, at settings under which it is quick.

use std::path::Path;
use std::sync::Arc;

use candlewick::circuit::{EdgeSet, Graph};
use candlewick::hooks::{Kind, Positions};
use candlewick::methods::attribution::{DimAttributionConfig, GradientPath};
use candlewick::methods::flow::Against;
use candlewick::methods::interchange::{AlignedPart, Alignment, Draws};
use candlewick::methods::subspace::{SplitBy, Training};
use candlewick::methods::tokens::{Baseline, NoiseTunnel, OverNoise, Quadrature, ReferenceSet};
use candlewick::methods::{
    Along, ComponentKind, ComponentsConfig, DictionaryEvalConfig, Keep, LatentActivationsConfig,
    LatentConfig, Plan, RationaleConfig, Replacer,
};
use candlewick::model::Model;
use candlewick::prelude::*;
use candlewick::sae::Sae;
use candlewick::spec::{Encoder, Mlp, ModelSpec, NormKind, NormPlacement, Position};
use candlewick::task::{Pair, QuestionSet, Task};

use crate::toy_method::StreamLength;
use crate::{lab, mixed};

/// The dictionary of the embedded model.
fn sae() -> Arc<Sae> {
    Arc::new(Sae::embedded().expect("it is in the library"))
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
    let graph = Graph::new(&lab(1).model.spec);
    vec![
        ("toy", Box::new(StreamLength)),
        ("patch", Box::new(sites("resid_pre,z"))),
        ("patch:pos", Box::new(sites("resid_pre:pos"))),
        (
            "patch from another model",
            Box::new(PatchConfig {
                source: PatchSource::Same,
                direction: Direction::Ablate,
                source_model: Some(
                    SourceModel::open("embedded", &LoadOptions::default())
                        .expect("it is in the library"),
                ),
                ..sites("resid_pre,z")
            }),
        ),
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
        ("latent-atp", Box::new(LatentConfig::atp(sae()))),
        (
            "latent-ig by role",
            Box::new(LatentConfig {
                along: Along::Role,
                ..LatentConfig::integrated(sae(), 2)
            }),
        ),
        (
            "latent_patching",
            Box::new(LatentConfig {
                latents: Some((0..20).collect()),
                ..LatentConfig::exact(sae())
            }),
        ),
        (
            "latent_activations",
            Box::new(LatentActivationsConfig::new(sae())),
        ),
        (
            "dictionary_eval",
            Box::new(DictionaryEvalConfig::new(sae())),
        ),
        (
            "subspaces",
            Box::new(SubspaceConfig {
                layers: "1,3".parse().expect("layers"),
                roles: vec!["S2".into(), "END".into()],
                training: Training {
                    steps: 5,
                    most_dims: 4,
                    ..Training::default()
                },
                draws: 2,
                control: true,
                ..SubspaceConfig::new(SubspaceMethod::ALL)
            }),
        ),
        (
            "subspaces taken apart",
            Box::new(SubspaceConfig {
                kind: Kind::MlpPost,
                layers: [2].into(),
                split: Some(SplitBy::Output),
                ..SubspaceConfig::new([SubspaceMethod::Full, SubspaceMethod::Lda])
            }),
        ),
        ("interchange", Box::new(interchange())),
        ("rationale", Box::new(rationale())),
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
            "nap-ig-dims",
            Box::new(DimAttributionConfig::along(GradientPath::inputs(2))),
        ),
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
        (
            "gradient-shap",
            tokens(TokenMethod::GradientShap {
                draws: 3,
                noise: 0.05,
                reference: ReferenceSet::One(Baseline::Mean),
            }),
        ),
        (
            "lrp:vargrad",
            Box::new(TokenConfig {
                tunnel: Some(NoiseTunnel {
                    draws: 2,
                    ..NoiseTunnel::new(OverNoise::Vargrad)
                }),
                ..TokenConfig::new(TokenMethod::Lrp)
            }),
        ),
        (
            "token scores",
            Box::new(ScoreConfig {
                changes: 3,
                places: 2,
                ..ScoreConfig::new(vec![TokenMethod::Lrp, TokenMethod::Random])
            }),
        ),
        ("attention-rollout", tokens(TokenMethod::AttentionRollout)),
        (
            "attention-x-grad",
            tokens(TokenMethod::AttentionTimesGradient),
        ),
        ("lrp", tokens(TokenMethod::Lrp)),
        ("attn-lrp", tokens(TokenMethod::AttnLrp)),
        ("alti-logit", tokens(TokenMethod::AltiLogit)),
        ("alti-rollout", tokens(TokenMethod::AltiRollout)),
        (
            "shapley",
            removal(Summary::Shapley { draws: 2 }, Players::Tokens),
        ),
        (
            "occlusion",
            removal(
                Summary::Occlusion {
                    window: 2,
                    stride: 1,
                },
                Players::Tokens,
            ),
        ),
        (
            "kernel-shap",
            removal(Summary::KernelShap { draws: 40 }, Players::Heads),
        ),
        (
            "coar",
            Box::new(ComponentsConfig {
                masks: Some(40),
                fresh: 5,
                ..ComponentsConfig::new(ComponentKind::Both)
            }),
        ),
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
            "modulation",
            Box::new(ModulationConfig {
                worth: [("a0.h0", 0.5), ("a0.h3", -0.25), ("a3.h1", 0.1)]
                    .map(|(head, worth)| (head.parse().expect("a node"), worth))
                    .into(),
                lambdas: vec![0.5, 1.0],
                shuffles: 2,
                table: None,
                seed: None,
            }),
        ),
        ("head replacement", Box::new(ReplacementConfig::default())),
        (
            "ships",
            Box::new(ShipsConfig::new(HeadChange::Undifferentiated)),
        ),
        (
            "sahara",
            Box::new(ShipsConfig {
                group: Some(Search {
                    draws: 2,
                    decline: vec![5, 6],
                    refusals: vec!["a".into()],
                    answer_tokens: 2,
                    ..Search::steps(1)
                }),
                ..ShipsConfig::new(HeadChange::Mean)
            }),
        ),
        (
            "negative attention",
            Box::new(NegativeConfig {
                draws: 2,
                ..NegativeConfig::new(
                    "@IO".parse().expect("a role"),
                    "@S2".parse().expect("a role"),
                )
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
            "attention",
            Box::new(AttentionConfig {
                value_weighted: true,
                ..AttentionConfig::default()
            }),
        ),
        ("flow", Box::new(RouteConfig::default())),
        (
            "flow contrast",
            Box::new(RouteConfig {
                contrast: true,
                ..RouteConfig::default()
            }),
        ),
        ("flow of alti", Box::new(AltiFlowConfig::alti())),
        ("flow of alti-logit", Box::new(AltiFlowConfig::alti_logit())),
        (
            "flow profile",
            Box::new(RouteConfig {
                profile: true,
                neurons: 5,
                ..RouteConfig::default()
            }),
        ),
        (
            "circuits",
            Box::new(CircuitEval::of([("all", EdgeSet::full(graph))])),
        ),
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

/// The name that is the answer and the order that it follows from, each at the end and both at once.
fn interchange() -> InterchangeConfig {
    let ProgramFile { program, places } = ProgramFile::open("ioi").expect("it ships");
    let whole = Alignment {
        layers: "0,2".parse().expect("layers"),
        ..Alignment::at(["S2"])
    };
    let heads = Alignment {
        kind: Kind::Z,
        part: AlignedPart::Units(vec![0, 3]),
        layers: "1,2".parse().expect("layers"),
        ..Alignment::default()
    };
    let mut aligned = [whole, heads].into_iter();
    let alignments = places
        .iter()
        .map(|place| place.as_ref().and_then(|_| aligned.next()));
    InterchangeConfig {
        alignments: alignments.collect(),
        together: true,
        draws: Draws::Balanced(6),
        ..InterchangeConfig::new(program, Alignment::default())
    }
}

/// Few runs, two methods beside them.
fn rationale() -> RationaleConfig {
    let config = RationaleConfig::new(Replacer::SameClass);
    RationaleConfig {
        keep: Keep::Share(0.7),
        within: 10,
        runs: 2,
        steps: 20,
        against: vec![TokenMethod::GradientTimesInput],
        draws: 1,
        ..config
    }
}

fn removal(summary: Summary, players: Players) -> Box<dyn Method> {
    Box::new(RemovalConfig {
        players,
        removal: Removal::Zero,
        ..RemovalConfig::new(summary)
    })
}

fn tokens(method: TokenMethod) -> Box<dyn Method> {
    Box::new(TokenConfig::new(method))
}

pub fn ig(steps: usize, baseline: Baseline) -> TokenMethod {
    TokenMethod::IntegratedGradients {
        steps,
        rule: Quadrature::Midpoint,
        baseline,
        via: Vec::new(),
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

/// The pairs of the embedded model's task on an encoder of random weights.
fn encoder(n_pairs: usize) -> Lab {
    let Lab {
        model,
        tokenizer,
        task,
        ..
    } = mixed(n_pairs);
    let spec = ModelSpec {
        family: "bert".into(),
        norm: NormKind::Layer,
        norm_placement: NormPlacement::Stream,
        position: Position::Learned,
        mlp: Mlp::Plain,
        encoder: Some(Encoder {
            n_segments: Some(2),
            first_norm: true,
        }),
        ..model.spec
    };
    Lab::new(
        Model::random(spec, 3).expect("a spec that is whole"),
        tokenizer,
        task,
    )
}

/// Questions of the embedded model's own set.
fn questions(n_pairs: usize) -> Lab {
    let mut lab = lab(1);
    let set = QuestionSet::open("embedded").expect("it ships");
    let task = set.task(&lab.tokenizer, &ExpandOptions::default());
    lab.task = task.expect("its words are known").first(n_pairs);
    lab
}

/// Every method on pairs of two templates and two lengths; on pairs of one what asks for one.
pub fn every_run(n_pairs: usize) -> Vec<(&'static str, Lab, Box<dyn Method>)> {
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
        "context",
        questions(n_pairs).running(running.clone()),
        Box::new(ContextConfig {
            lens: true,
            ..ContextConfig::new(
                QuestionSet::open("embedded").expect("it ships"),
                ContextMethod::ALL,
            )
        }),
    ));
    let mut pine = PineConfig::of(&QuestionSet::open("embedded").expect("it ships"));
    pine.orders = Some(3);
    all.push((
        "pine",
        questions(n_pairs).running(running.clone()),
        Box::new(pine),
    ));
    all.push((
        "globenc",
        encoder(n_pairs).running(running.clone()),
        Box::new(GlobEncConfig {
            against: Some(Against::Occlusion),
            ..GlobEncConfig::default()
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

/// What implements the trait in the library is measured here: a method that is not in the lists above has no test of its shape.
#[test]
fn every_method_of_the_library_is_among_them() {
    fn look(folder: &Path, found: &mut Vec<String>) {
        for entry in std::fs::read_dir(folder).expect("a folder of the source") {
            let path = entry.expect("an entry").path();
            if path.is_dir() {
                look(&path, found);
                continue;
            }
            let source = std::fs::read_to_string(&path).expect("it reads");
            let names = source.lines().filter_map(|line| {
                let (_, rest) = line.strip_prefix("impl")?.split_once(" Method for ")?;
                Some(rest.trim_end_matches([' ', '{']).to_string())
            });
            found.extend(names);
        }
    }
    let mut found = Vec::new();
    look(
        Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/src/methods")),
        &mut found,
    );
    assert!(found.len() >= 18, "{found:?}");
    let here = include_str!("every_method.rs");
    let missing: Vec<&String> = found
        .iter()
        .filter(|name| !here.contains(name.as_str()))
        .collect();
    assert!(missing.is_empty(), "add to `every_method`: {missing:?}");
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
        // The same is done on a model that stands in for it.
        let tokens = lab.task.tokens();
        let model = &Model::stand_in(&lab.model.spec, &lab.model.device, &tokens)
            .unwrap_or_else(|error| panic!("{name}: {error}"));
        let on = Subject {
            model,
            task: &lab.task,
        };
        let unread = candlewick::methods::plan(on, &*method, &lab.running)
            .unwrap_or_else(|error| panic!("{name}: {error}"));
        assert!(unread.seconds > 0.0, "{name}");
        let counted = Plan {
            seconds: plan.seconds,
            ..unread
        };
        assert_eq!(counted, plan, "{name}");
    }
}
