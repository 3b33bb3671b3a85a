//! Estimates of what another model's values would do.

use candlewick::methods::attribution::{EdgeAttributionConfig, NodeAttributionConfig};
use candlewick::methods::{
    EdgeConfig, Method, PatchConfig, PatchSource, Reference, Running, SourceModel, Subject, check,
    plan,
};
use candlewick::model::{Loaded, Model};
use candlewick::scores::Direction;

use crate::models::every_kind;
use crate::models::task::{task, tokenizer};
use crate::{ALGEBRA, edges, measured, near, nodes, patch, scores};

/// A fine-tune this small moves effects by so much of the largest beyond first order; f32 leaves about as much noise in them.
const SECOND_ORDER: f64 = 0.02;

fn loaded(model: &Model) -> Option<SourceModel> {
    Some(SourceModel::from(Loaded {
        model: model.clone(),
        tokenizer: tokenizer().clone(),
    }))
}

/// The model with a thousandth of another random one's matrices in each layer.
fn tuned(model: &Model) -> Model {
    let mut tuned = model.clone();
    let random = Model::random(model.spec.clone(), 77).expect("the spec is whole");
    for (block, other) in tuned.weights.blocks.iter_mut().zip(&random.weights.blocks) {
        for (own, other) in [
            (&mut block.w_qkv, &other.w_qkv),
            (&mut block.w_o, &other.w_o),
        ] {
            *own = (&*own + (other * 1e-3).expect("scales")).expect("one shape");
        }
    }
    tuned
}

fn decoders() -> impl Iterator<Item = Model> {
    every_kind()
        .into_iter()
        .filter(|model| model.spec.encoder.is_none())
}

#[test]
fn a_model_as_its_own_source_is_estimated_as_without() {
    let task = task();
    for model in decoders() {
        let family = &model.spec.family;
        for direction in [Direction::Noise, Direction::Denoise] {
            let plain = patch("resid_pre,z:pos,q,k,pattern", direction);
            let own = PatchConfig {
                source_model: loaded(&model),
                ..plain.clone()
            };
            for make in [NodeAttributionConfig::atp, NodeAttributionConfig::atp_star] {
                let (_, expected) = nodes(&model, &task, &make(plain.clone()));
                let (_, found) = nodes(&model, &task, &make(own.clone()));
                near(&found.concat(), &expected.concat(), ALGEBRA, family);
            }
        }
        for reference in [Reference::Pair, Reference::Mean] {
            for plain in [
                EdgeAttributionConfig::eap(),
                EdgeAttributionConfig::eap_ig_activations(1),
            ] {
                let plain = EdgeAttributionConfig { reference, ..plain };
                let own = EdgeAttributionConfig {
                    source_model: loaded(&model),
                    ..plain.clone()
                };
                let expected = edges(&model, &task, &plain).concat();
                near(
                    &edges(&model, &task, &own).concat(),
                    &expected,
                    ALGEBRA,
                    family,
                );
            }
        }
    }
}

#[test]
fn the_same_prompt_in_the_same_model_carries_nothing() {
    let task = task();
    for model in decoders() {
        let same = PatchConfig {
            source: PatchSource::Same,
            source_model: loaded(&model),
            ..patch("resid_pre,z", Direction::Ablate)
        };
        let (_, of_nodes) = nodes(&model, &task, &NodeAttributionConfig::atp(same));
        let of_edges = EdgeAttributionConfig {
            reference: Reference::Same,
            source_model: loaded(&model),
            ..EdgeAttributionConfig::eap()
        };
        let of_edges = edges(&model, &task, &of_edges);
        for estimate in of_nodes.iter().chain(&of_edges).flatten() {
            assert!(estimate.abs() < 1e-5, "{}: {estimate}", model.spec.family);
        }
    }
}

#[test]
fn estimates_of_a_tiny_fine_tune_are_what_patching_it_in_does() {
    let task = task();
    for model in decoders() {
        let family = &model.spec.family;
        let tuned = loaded(&tuned(&model));
        let config = PatchConfig {
            source: PatchSource::Same,
            source_model: tuned.clone(),
            ..patch("z,attn_out", Direction::Ablate)
        };
        let (_, found) = nodes(&model, &task, &NodeAttributionConfig::atp(config.clone()));
        let exact = scores(&measured(&model, &task, &config), Direction::Ablate);
        near(&found.concat(), &exact.concat(), SECOND_ORDER, family);
        let of_edges = EdgeAttributionConfig {
            reference: Reference::Same,
            source_model: tuned.clone(),
            ..EdgeAttributionConfig::eap()
        };
        let found = scores(&measured(&model, &task, &of_edges), Direction::Ablate);
        let exact = EdgeConfig {
            reference: Reference::Same,
            source_model: tuned,
            ..EdgeConfig::all()
        };
        let exact = scores(&measured(&model, &task, &exact), Direction::Ablate);
        near(&found.concat(), &exact.concat(), SECOND_ORDER, family);
    }
}

#[test]
fn edges_take_another_models_values_as_nodes_do() {
    // The last MLP is read by the logits alone.
    let task = task();
    let model = decoders()
        .find(|model| model.spec.n_layers > 1)
        .expect("one");
    let other = Model::random(model.spec.clone(), 77).expect("the spec is whole");
    let other = loaded(&other);
    let last = model.spec.n_layers - 1;
    let of_node = PatchConfig {
        source: PatchSource::Same,
        source_model: other.clone(),
        layers: [last].into(),
        ..patch("mlp_out:all", Direction::Ablate)
    };
    let of_edge = EdgeConfig {
        reference: Reference::Same,
        source_model: other,
        ..EdgeConfig::of([format!("m{last}->logits").as_str()]).expect("an edge")
    };
    let exact = scores(&measured(&model, &task, &of_node), Direction::Ablate);
    let found = scores(&measured(&model, &task, &of_edge), Direction::Ablate);
    near(&found.concat(), &exact.concat(), ALGEBRA, "the last MLP");
}

#[test]
fn what_has_no_meaning_with_another_model_is_refused_and_its_passes_are_planned() {
    let (task, model) = (task(), decoders().next().expect("one"));
    let on = Subject {
        model: &model,
        task: &task,
    };
    let same = PatchConfig {
        source: PatchSource::Same,
        source_model: loaded(&model),
        ..patch("z", Direction::Ablate)
    };
    let of_edges = |config: EdgeAttributionConfig| EdgeAttributionConfig {
        reference: Reference::Same,
        source_model: loaded(&model),
        ..config
    };
    let refusal = |method: &dyn Method| {
        let refused = check(method, &model.spec, &task).expect_err("it has no meaning");
        refused.to_string()
    };
    let of_line = "an integral over the embeddings";
    let message = refusal(&NodeAttributionConfig::layer_ig(same.clone(), 2));
    assert!(message.contains(of_line), "{message}");
    for config in [
        EdgeAttributionConfig::eap_ig(2),
        EdgeAttributionConfig::ceap(2),
        EdgeAttributionConfig::clean_corrupted(),
    ] {
        let message = refusal(&of_edges(config));
        assert!(message.contains(of_line), "{message}");
    }
    let zeros = EdgeConfig {
        reference: Reference::Zero,
        source_model: loaded(&model),
        ..EdgeConfig::all()
    };
    assert!(refusal(&zeros).contains("no model's values"));
    let nobody = EdgeConfig {
        reference: Reference::Same,
        ..EdgeConfig::all()
    };
    assert!(refusal(&nobody).contains("PatchConfig::source_model"));

    // One pass for the values of a pair, and two for how the other model does on its prompts.
    let passes = |method: &dyn Method| {
        let planned = plan(on, method, &Running::default()).expect("it can be planned");
        planned.cost.passes / planned.pairs as f64
    };
    let pair = patch("z", Direction::Noise);
    let more = [
        passes(&same) - passes(&pair),
        passes(&NodeAttributionConfig::atp(same.clone()))
            - passes(&NodeAttributionConfig::atp(pair.clone())),
        passes(&of_edges(EdgeAttributionConfig::eap())) - passes(&EdgeAttributionConfig::eap()),
        passes(&EdgeConfig {
            reference: Reference::Same,
            source_model: loaded(&model),
            ..EdgeConfig::all()
        }) - passes(&EdgeConfig::all()),
    ];
    for more in more {
        assert!((more - 3.0).abs() < 1e-9, "{more}");
    }
}
