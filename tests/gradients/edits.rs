//! A gradient passes an edit as a change of the value would: what was overwritten has none, what was scaled has as much more.

use std::collections::HashMap;

use candle_core::{Device, Tensor};
use candlewick::hooks::{Edit, Hook, Kind, Op, Pos, Site, Value};
use candlewick::metric::Metric;
use candlewick::model::Model;
use candlewick::nn::rules::Rules;

use crate::case::{Case, check};
use crate::models::{Pairs, every_kind};
use crate::twin::{self, Change};

#[test]
fn gradients_pass_through_edits_as_values_do() {
    for model in every_kind() {
        let spec = &model.spec;
        let layer = spec.n_layers - 1;
        let at = |kind| Hook::at(kind, layer);
        let values: Vec<f32> = (0..spec.d_head).map(|i| (i as f32).sin()).collect();
        let mut edits = vec![
            Edit::new(Site::all(at(Kind::Z)).at(4).heads([1]), Op::Zero),
            Edit::new(Site::all(at(Kind::AttnOut)), Op::Scale(0.5)),
            Edit::new(Site::all(at(Kind::ResidPre)).at(6), Op::Scale(-1.5)),
            Edit::new(Site::all(at(Kind::K)).at(3), Op::Scale(2.0)),
            Edit::new(Site::all(at(Kind::Q)), Op::Add(Value::Scalar(0.3))),
            Edit::new(
                Site::all(at(Kind::V)).at(5),
                Op::Replace(Value::Vector(values)),
            ),
            Edit::new(Site::all(at(Kind::RotQ)).heads([0]), Op::Scale(0.2)),
            Edit::new(Site::all(at(Kind::ResidPost)), Op::Scale(1.5)),
            Edit::new(Site::all(Hook::global(Kind::Embed)).at(2), Op::Scale(3.0)),
        ];
        if Kind::MlpPost.absent(spec).is_none() {
            edits.push(Edit::new(
                Site::all(at(Kind::MlpPost)).at(9),
                Op::Scale(0.1),
            ));
            edits.push(Edit::new(Site::all(at(Kind::MlpIn)).at(7), Op::Scale(4.0)));
            edits.push(Edit::new(Site::all(at(Kind::MlpPre)).at(1), Op::Zero));
        }
        // Each alone, then all together.
        for edits in edits
            .iter()
            .map(std::slice::from_ref)
            .chain([edits.as_slice()])
        {
            let case = Case {
                edits: edits.to_vec(),
                changes: edits.iter().map(|edit| change(&model, edit)).collect(),
                ..Case::new(Metric::LogitDiff, Rules::gradient())
            };
            let names: Vec<String> = edits.iter().map(Edit::to_string).collect();
            check(&model, &case, &names.join(", "));
        }
    }
}

/// An edit of positions and heads, as a factor and a summand.
fn change(model: &Model, edit: &Edit) -> (Hook, Change) {
    let site = &edit.site;
    let shape = site.hook.shape(&model.spec, 3, Pairs::LENGTH);
    let positions = site.positions.resolve(Pairs::LENGTH, &Default::default());
    let positions = positions.expect("in range");
    let (heads, width) = match shape[..] {
        [_, _, heads, width] => (heads, width),
        [.., width] => (1, width),
        [] => unreachable!("a hook has axes"),
    };
    let taken = |row: usize, head: usize| {
        positions.contains(&(row % Pairs::LENGTH))
            && site
                .heads
                .as_ref()
                .is_none_or(|heads| heads.contains(&head))
    };
    let mut times = Vec::new();
    let mut plus = Vec::new();
    for row in 0..3 * Pairs::LENGTH {
        for head in 0..heads {
            for i in 0..width {
                let (factor, summand) = match &edit.op {
                    _ if !taken(row, head) => (1.0, 0.0),
                    Op::Zero => (0.0, 0.0),
                    Op::Scale(factor) => (f64::from(*factor), 0.0),
                    Op::Add(Value::Scalar(value)) => (1.0, f64::from(*value)),
                    Op::Replace(Value::Vector(values)) => (0.0, f64::from(values[i])),
                    other => unreachable!("{other:?} is not tried here"),
                };
                times.push(factor);
                plus.push(summand);
            }
        }
    }
    let make = |values| Tensor::from_vec(values, shape.as_slice(), &Device::Cpu).expect("a shape");
    let (times, plus) = (make(times), make(plus));
    (site.hook, Change { times, plus })
}

#[test]
fn knocked_out_attention_gets_no_gradient() {
    for model in every_kind() {
        let scores = Hook::at(Kind::AttnScores, 1);
        let keys = [2, 3];
        let site = Site::all(scores).heads([0]);
        let edit = Edit::block(site, [Pos::FromEnd(1), Pos::Index(5)], keys.map(Pos::Index));
        let length = Pairs::LENGTH;
        let heads = model.spec.n_heads;
        let mut times = vec![1.0; 3 * heads * length * length];
        let mut plus = vec![0.0; 3 * heads * length * length];
        for prompt in 0..3 {
            for (query, key) in [5, 9].into_iter().flat_map(|q| keys.map(|k| (q, k))) {
                let at = (prompt * heads * length + query) * length + key;
                (times[at], plus[at]) = (0.0, twin::MASKED);
            }
        }
        let shape = scores.shape(&model.spec, 3, length);
        let make =
            |values| Tensor::from_vec(values, shape.as_slice(), &Device::Cpu).expect("a shape");
        let change = Change {
            times: make(times),
            plus: make(plus),
        };
        let case = Case {
            edits: vec![edit],
            changes: HashMap::from([(scores, change)]),
            ..Case::new(Metric::LogitDiff, Rules::gradient())
        };
        check(&model, &case, "knocked out");
    }
}
