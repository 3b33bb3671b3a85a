//! Speed and memory of the engine on SmolLM2-135M, beside candle-transformers' own llama in the same process.
//!
//! `cargo bench --bench engine [-- WORD]` runs what has `WORD` in its name. Each line has ours, theirs and the ratio: medians of
//! interleaved repetitions, least and most in brackets; in wall time, then in the CPU time of all threads. `edges`
//! and `acdc` need no SmolLM2; these and `circuits` are held against our own forward.

mod ablate;
mod attribution;
mod autograd;
mod circuits;
mod dla;
mod edges;
mod machine;
mod theirs;

use std::path::PathBuf;

use anyhow::{Context, Result};
use candlewick::hooks::{Edit, Hook, Kind, Op, Site};
use candlewick::metric::{Metric, Target};
use candlewick::model::load::{LoadOptions, load};
use candlewick::model::{Model, Tokenizer};
use candlewick::nn::linear::{Right, product};
use candlewick::run::{
    self, BaseRun, Quiet, Readout, Request, Source, Sources, SweepOptions, Variant,
};
use machine::{Time, time};
use theirs::Theirs;

// The binary's own allocator, for both sides.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Forwards of theirs beside one sweep of ours.
const FORWARDS: usize = 3;

const FILE: &str = "smollm2-135m-instruct.q4_1.gguf";

fn main() -> Result<()> {
    let wanted = std::env::args().skip(1).find(|arg| !arg.starts_with("--"));
    let wanted = |name: &str| wanted.as_deref().is_none_or(|word| name.contains(word));
    if wanted("edges") {
        edges::edges()?;
    }
    if wanted("acdc") {
        circuits::acdc_of_gpt2()?;
    }
    let Some(path) = find_model() else {
        println!("skipped: no {FILE} in $CANDLEWICK_MODELS or ~/.cache/candlewick-models");
        return Ok(());
    };
    let (loading, loaded) = time(|| -> Result<_> {
        let loaded = load(
            path.to_str().context("a path in UTF-8")?,
            &LoadOptions::default(),
        )?;
        run::logits(&loaded.model, &[vec![1, 2, 3]])?;
        Ok(loaded)
    });
    let loaded = loaded?;
    let (model, tokenizer) = (&loaded.model, &loaded.tokenizer);
    let threads = rayon::current_num_threads();
    let peak = machine::fma_peak();
    let weights = weight_bytes(model) as f64 / (1 << 20) as f64;
    println!("{threads} threads; fused multiply-adds in registers: {peak:.0} GFLOP/s");
    println!("load to first logits: {:.2} s (target 5)", loading.wall);
    println!(
        "weights {weights:.0} MiB, peak {:.0} MiB\n",
        machine::peak_memory()
    );

    if wanted("product") {
        products(peak);
    }
    if wanted("sweep") {
        sweeps(model, tokenizer, peak)?;
        let over = machine::peak_memory() - weights;
        println!("peak so far: weights + {over:.0} MiB (target 1024)\n");
    }
    if wanted("ablate") {
        ablate::ablate(model, tokenizer)?;
    }
    if wanted("forward") {
        forwards(model)?;
    }
    if wanted("attribution") {
        attribution::attribution(model, tokenizer)?;
    }
    if wanted("attribution-memory") {
        attribution::memory(&model.spec, tokenizer)?;
    }
    if wanted("dla") {
        dla::attributions(model, tokenizer)?;
    }
    if wanted("circuits") {
        circuits::evaluations(model, tokenizer)?;
    }
    Ok(())
}

fn find_model() -> Option<PathBuf> {
    let named = std::env::var_os("CANDLEWICK_MODELS").map(PathBuf::from);
    let cache =
        std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".cache/candlewick-models"));
    let mut places = named.into_iter().chain(cache).map(|dir| dir.join(FILE));
    places.find(|path| path.exists())
}

/// Bytes of all weights, the shared embedding counted once.
fn weight_bytes(model: &Model) -> usize {
    let spec = &model.spec;
    4 * (spec.n_layers * block_weights(model) + spec.d_vocab * spec.d_model)
}

/// Entries of one block's matrices: multiply-adds of one row in one layer, but for attention itself.
fn block_weights(model: &Model) -> usize {
    let spec = &model.spec;
    let qkv = (spec.n_heads + 2 * spec.n_kv_heads) * spec.d_head;
    spec.d_model * (qkv + spec.n_heads * spec.d_head + 3 * spec.d_mlp)
}

/// Ours and theirs by turns, so that both meet the same machine.
fn interleaved(
    times: usize,
    mut ours: impl FnMut() -> Result<()>,
    mut theirs: impl FnMut() -> Result<()>,
) -> Result<(Vec<Time>, Vec<Time>)> {
    let (mut a, mut b) = (Vec::new(), Vec::new());
    ours()?;
    theirs()?;
    for _ in 0..times {
        let (one, done) = time(&mut ours);
        done?;
        a.push(one);
        let (one, done) = time(&mut theirs);
        done?;
        b.push(one);
    }
    Ok((a, b))
}

/// Prints both sides in milliseconds, and their ratio: of each pair of neighbours, then the median. Returns the wall ratio.
fn compare(name: &str, ours: &[Time], theirs: &[Time], scale: f64, target: &str) -> f64 {
    let spread = |values: Vec<f64>| {
        let mut values = values;
        values.sort_by(f64::total_cmp);
        (
            values[values.len() / 2],
            values[0],
            values[values.len() - 1],
        )
    };
    let mut medians = [0.0; 2];
    for (i, (clock, of)) in [("wall", wall as fn(&Time) -> f64), ("cpu", cpu)]
        .into_iter()
        .enumerate()
    {
        let a = spread(ours.iter().map(|t| of(t) * 1e3 * scale).collect());
        let b = spread(theirs.iter().map(|t| of(t) * 1e3).collect());
        let ratios = ours.iter().zip(theirs).map(|(a, b)| of(a) * scale / of(b));
        let r = spread(ratios.collect());
        let name = if i == 0 { name } else { "" };
        println!(
            "{name:<34} {clock:>4}  ours {:9.2} ms ({:.2}..{:.2})  theirs {:8.2} ms ({:.2}..{:.2})  ratio {:.4} ({:.4}..{:.4}) = 1/{:.1} {}",
            a.0,
            a.1,
            a.2,
            b.0,
            b.1,
            b.2,
            r.0,
            r.1,
            r.2,
            1.0 / r.0,
            if i == 0 { target } else { "" }
        );
        medians[i] = r.0;
    }
    medians[0]
}

fn wall(t: &Time) -> f64 {
    t.wall
}

fn cpu(t: &Time) -> f64 {
    t.cpu
}

/// Products in the shapes of the model's blocks, weights cold as they are in a pass over all layers.
fn products(peak: f64) {
    for (inner, outer) in [(576, 960), (576, 576), (576, 3072), (1536, 576)] {
        let copies = (64 << 20) / (4 * inner * outer);
        let weights: Vec<Vec<f32>> = (0..copies)
            .map(|i| {
                (0..inner * outer)
                    .map(|j| ((i + j) % 17) as f32 * 0.1 - 0.8)
                    .collect()
            })
            .collect();
        for rows in [15, 128, 512, 1024] {
            let x = vec![0.5f32; rows * inner];
            let mut y = vec![0f32; rows * outer];
            let mut best = 0f64;
            for _ in 0..3 {
                let (took, ()) = time(|| {
                    for w in &weights {
                        product(
                            &mut y,
                            &x,
                            w.as_slice(),
                            [rows, inner, outer],
                            Right::InOut,
                            false,
                        );
                    }
                });
                best = best.max(2e-9 * (rows * inner * outer * copies) as f64 / took.wall);
            }
            println!(
                "product {rows:>4} x {inner} x {outer:<4}: {best:6.1} GFLOP/s, {:3.0}% of peak",
                100.0 * best / peak
            );
        }
    }
    println!();
}

fn forwards(model: &Model) -> Result<()> {
    let theirs = Theirs::new(model)?;
    let capture: Vec<Hook> = Hook::all(&model.spec)
        .into_iter()
        .filter(|hook| !matches!(hook.kind, Kind::AttnScores | Kind::Pattern | Kind::Result))
        .collect();
    let request = Request {
        capture: &capture,
        ..Request::default()
    };
    for (batch, length, times, target) in [
        (8, 16, 9, "(target 0.90)"),
        (1, 512, 3, "(target 1.00)"),
        (1, 15, 15, ""),
    ] {
        let prompts: Vec<Vec<u32>> = (0..batch)
            .map(|i| {
                (0..length)
                    .map(|j| (1000 + 977 * i + 131 * j) as u32 % 49_000)
                    .collect()
            })
            .collect();
        let (ours, other) = (run::logits(model, &prompts)?, theirs.forward(&prompts)?);
        let gap = (&ours - &other)?.abs()?.max_all()?.to_scalar::<f32>()?;
        let scale = other.abs()?.max_all()?.to_scalar::<f32>()?;
        println!("forward {batch} x {length}: logits reach {scale:.1} and differ by {gap:.1e}");
        let (a, b) = interleaved(
            times,
            || Ok(run::logits(model, &prompts).map(drop)?),
            || theirs.forward(&prompts).map(drop),
        )?;
        compare(&format!("forward {batch} x {length}"), &a, &b, 1.0, target);
        let (a, b) = interleaved(
            times,
            || Ok(run::run(model, &prompts, &request).map(drop)?),
            || Ok(run::logits(model, &prompts).map(drop)?),
        )?;
        compare(
            &format!("all hooks / plain {batch} x {length}"),
            &a,
            &b,
            1.0,
            "(target 1.15)",
        );
    }
    Ok(())
}

/// One pair of prompts of fifteen tokens.
struct Pair {
    name: &'static str,
    clean: Vec<u32>,
    corrupted: Vec<u32>,
    target: Target,
}

fn pairs(tokenizer: &Tokenizer) -> Result<Vec<Pair>> {
    let ids = |text: &str| -> Result<Vec<u32>> { Ok(tokenizer.encode(text, true)?.ids) };
    let answer = |text: &str| -> Result<Vec<u32>> { Ok(tokenizer.answer_ids(text)?) };
    let target = Target {
        answers: answer(" Mary")?,
        wrong: answer(" John")?,
        ..Target::default()
    };
    let first = " and John went to the shop today, so John gave milk to";
    let ioi = "When Mary and John went to the shop,";
    Ok(vec![
        Pair {
            name: "first token",
            clean: ids(&format!("Mary{first}"))?,
            corrupted: ids(&format!("Paul{first}"))?,
            target: target.clone(),
        },
        Pair {
            name: "IOI S2",
            clean: ids(&format!("{ioi} John gave milk to"))?,
            corrupted: ids(&format!("{ioi} Mary gave milk to"))?,
            target,
        },
    ])
}

fn sweeps(model: &Model, tokenizer: &Tokenizer, peak: f64) -> Result<()> {
    let theirs = Theirs::new(model)?;
    for pair in pairs(tokenizer)? {
        let length = pair.corrupted.len();
        anyhow::ensure!(
            pair.clean.len() == length,
            "the prompts of a pair are as long as each other"
        );
        let differ = pair
            .clean
            .iter()
            .zip(&pair.corrupted)
            .position(|(a, b)| a != b);
        println!(
            "pair `{}`: {length} tokens, first difference at {differ:?}",
            pair.name
        );
        for (kind, by_head, target) in [
            (Kind::ResidPre, false, "(target 1/25)"),
            (Kind::Z, true, "(target 1/12)"),
            (Kind::AttnOut, false, "(target 1/12)"),
            (Kind::MlpOut, false, "(target 1/12)"),
        ] {
            let cells = model.spec.n_layers * if by_head { model.spec.n_heads } else { length };
            let prompt = [pair.corrupted.clone()];
            let (a, b) = interleaved(
                3,
                || sweep(model, &pair, kind, by_head),
                || (0..FORWARDS).try_for_each(|_| theirs.forward(&prompt).map(drop)),
            )?;
            // Three forwards at a time, so that one is not lost in the clock's noise.
            let scale = 1.0 / cells as f64;
            let b: Vec<Time> = b
                .iter()
                .map(|t| Time {
                    wall: t.wall / FORWARDS as f64,
                    cpu: t.cpu / FORWARDS as f64,
                })
                .collect();
            compare(
                &format!("{kind:?} sweep, a cell of {cells}"),
                &a,
                &b,
                scale,
                target,
            );
        }
        let from = differ.unwrap_or(length);
        let (n_layers, suffix) = (model.spec.n_layers, length - from);
        let row_layers = n_layers * (n_layers + 1) / 2 * suffix * (suffix + 1) / 2;
        let flops = 2e-9 * (row_layers * block_weights(model)) as f64;
        println!(
            "resid_pre: {row_layers} rows x layers at most, {flops:.0} GFLOP; {:.2} s at the peak, {:.2} ms a cell\n",
            flops / peak,
            1e3 * flops / peak / (n_layers * length) as f64
        );
    }
    Ok(())
}

/// The whole job: both base runs, then every cell.
fn sweep(model: &Model, pair: &Pair, kind: Kind, by_head: bool) -> Result<()> {
    let hooks: Vec<Hook> = (0..model.spec.n_layers)
        .map(|layer| Hook::at(kind, layer))
        .collect();
    let (_, cache) = run::run_with_cache(model, std::slice::from_ref(&pair.clean), &hooks)?;
    let sources = Sources::default().with("clean", Source::run(cache)?);
    let base = BaseRun::new(
        model,
        vec![pair.corrupted.clone()],
        vec![],
        vec![],
        Sources::default(),
        &[kind],
    )?;
    let readout = Readout {
        metric: Metric::LogitDiff,
        targets: vec![pair.target.clone()],
        reference: None,
    };
    let mut variants = Vec::new();
    for &hook in &hooks {
        let places = if by_head {
            model.spec.n_heads
        } else {
            base.length
        };
        for place in 0..places {
            let site = if by_head {
                Site::all(hook).heads([place])
            } else {
                Site::all(hook).at(place)
            };
            variants.push(Variant {
                example: 0,
                edits: vec![Edit::new(site, Op::FromRun("clean".into()))],
            });
        }
    }
    let values = run::sweep(
        model,
        &base,
        &variants,
        &sources,
        &readout,
        &SweepOptions::default(),
        &Quiet,
    )?;
    std::hint::black_box(values);
    Ok(())
}
