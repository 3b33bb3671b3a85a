//! Exact patching of every edge, beside as many whole forward passes of our own.

use anyhow::Result;
use candlewick::circuit::Graph;
use candlewick::hooks::Edge;
use candlewick::methods::{
    EdgeConfig, Running, Subject, Watch, exact_edge_effects_plain, measurements,
};
use candlewick::metric::Metric;
use candlewick::model::Model;
use candlewick::prelude::Lab;
use candlewick::run;
use candlewick::spec::{
    Activation, Block, Mlp, ModelSpec, NormKind, NormPlacement, Position, QkNorm,
};
use candlewick::task::{Pair, Task};

use crate::machine::{Time, time};
use crate::{cpu, wall};

/// Forwards that are timed before and after the edges, so that both meet the same machine.
const FORWARDS: usize = 15;
/// Edges that are held against a whole forward pass each.
const CHECKED: usize = 24;

pub fn edges() -> Result<()> {
    let lab = Lab::open("embedded", "embedded")?.first(1);
    every_edge("embedded", &lab.model, &lab.task)?;
    let gpt2 = Model::random(gpt2_small(), 1)?;
    // Its texts are never read, so that any tokenizer will do.
    let pair = Task::new("random", &lab.tokenizer, Metric::LogitDiff, [pair()])?;
    every_edge("random, shaped as GPT-2 small", &gpt2, &pair)
}

fn every_edge(name: &str, model: &Model, task: &Task) -> Result<()> {
    let on = Subject { model, task };
    let edges: Vec<Edge> = Graph::new(&model.spec).edges().collect();
    let (n, clean) = (edges.len(), &task.pairs()[0].clean);
    let differ = (clean.iter().zip(&task.pairs()[0].corrupted)).position(|(a, b)| a != b);
    println!(
        "{name}: {n} edges, one pair of {} tokens, first difference at {differ:?}",
        clean.len()
    );
    let before = forwards(model, clean)?;
    let (all, running) = (EdgeConfig::all(), Running::default());
    let (took, measured) = time(|| measurements(on, &all, &running, &Watch::default()));
    let measured = measured?.examples.remove(0);
    let effects: Vec<f64> = (measured.values.iter())
        .map(|value| value - measured.clean)
        .collect();
    let after = forwards(model, clean)?;
    for (clock, of) in [("wall", wall as fn(&Time) -> f64), ("cpu", cpu)] {
        let mut forwards: Vec<f64> = before.iter().chain(&after).map(of).collect();
        forwards.sort_by(f64::total_cmp);
        let forward = forwards[forwards.len() / 2];
        let (every, all) = (of(&took), forward * n as f64);
        println!(
            "  {clock:>4}: every edge {every:.1} s, {:.2} ms each; {n} forwards of {:.2} ms are {all:.0} s, {:.1} times as long",
            1e3 * every / n as f64,
            1e3 * forward,
            all / every
        );
    }
    let some: Vec<usize> = (0..CHECKED)
        .map(|i| (i * n / CHECKED + 7 * i) % n)
        .collect();
    let chosen: Vec<Edge> = some.iter().map(|&i| edges[i]).collect();
    let plain = exact_edge_effects_plain(on, &EdgeConfig::these(chosen))?.remove(0);
    let gaps = some
        .iter()
        .zip(&plain)
        .map(|(&i, plain)| (effects[i] - plain).abs());
    let largest = effects
        .iter()
        .fold(0f64, |most, effect| most.max(effect.abs()));
    println!(
        "  {CHECKED} edges by a whole forward each differ by at most {:.1e}; the largest effect is {largest:.3}\n",
        gaps.fold(0f64, f64::max)
    );
    Ok(())
}

/// Whole forward passes over one prompt, with the logits at its last position.
fn forwards(model: &Model, prompt: &[u32]) -> Result<Vec<Time>> {
    let one = || -> Result<Time> {
        let (took, logits) = time(|| run::logits(model, &[prompt.to_vec()]));
        logits?;
        Ok(took)
    };
    one()?;
    (0..FORWARDS).map(|_| one()).collect()
}

/// Fifteen tokens, of which the third and the eleventh differ.
fn pair() -> Pair {
    let clean: Vec<u32> = (0..15).map(|i| 1000 + 977 * i).collect();
    let mut corrupted = clean.clone();
    for pos in [2, 10] {
        corrupted[pos] += 131;
    }
    Pair::new(clean, corrupted).answer(10).wrong(20)
}

pub fn gpt2_small() -> ModelSpec {
    ModelSpec {
        family: "gpt2".into(),
        n_layers: 12,
        n_heads: 12,
        n_kv_heads: 12,
        d_model: 768,
        d_head: 64,
        d_mlp: 3072,
        d_vocab: 50_257,
        n_ctx: 1024,
        norm: NormKind::Layer,
        norm_eps: 1e-5,
        norm_placement: NormPlacement::Pre,
        block: Block::Sequential,
        position: Position::Learned,
        attn_scale: vec![0.125; 12],
        attn_softcap: None,
        windows: vec![None; 12],
        qk_norm: QkNorm::None,
        qkv_clip: None,
        mlp: Mlp::Plain,
        activation: Activation::GeluTanh,
        embed_norm: false,
        embed_scale: None,
        residual_multiplier: None,
        logit_scale: None,
        final_softcap: None,
        tied: true,
        encoder: None,
    }
}
