//! One backward pass and what is made of it: times as multiples of a forward, and memory.

use anyhow::Result;
use candlewick::circuit::Graph;
use candlewick::hooks::{Hook, Kind};
use candlewick::methods::attribution::{EdgeAttributionConfig, NodeAttributionConfig};
use candlewick::methods::{Method, PatchConfig, Running, Subject, Watch, measurements};
use candlewick::metric::{Metric, Target};
use candlewick::model::{Model, Tokenizer};
use candlewick::run::{self, GradientRequest, gradients};
use candlewick::scores::Direction;
use candlewick::spec::ModelSpec;
use candlewick::task::{ExpandOptions, Pair, Task, TaskFile, expand};

use crate::machine::{peak_memory, time};
use crate::{autograd, compare, interleaved};

const PAIRS: usize = 8;
const REPEATS: usize = 5;

/// SmolLM2, eight pairs of about sixteen tokens.
pub fn attribution(model: &Model, tokenizer: &Tokenizer) -> Result<()> {
    let random = task(model, tokenizer, 16, PAIRS)?;
    let prompts: Vec<Vec<u32>> = random
        .pairs()
        .iter()
        .map(|pair| pair.clean.clone())
        .collect();
    let targets: Vec<Target> = random
        .pairs()
        .iter()
        .map(|pair| pair.target.clone())
        .collect();
    let readers: Vec<Hook> = (0..model.spec.n_layers)
        .flat_map(|layer| {
            [Kind::Q, Kind::K, Kind::V, Kind::MlpIn].map(|kind| Hook::at(kind, layer))
        })
        .collect();
    let forward = |prompts: &[Vec<u32>]| -> Result<()> {
        run::logits(model, prompts)?;
        Ok(())
    };
    println!(
        "attribution: ours against our own forward over the same {PAIRS} clean prompts (target: at most so many)"
    );
    let both = || -> Result<()> {
        gradients(
            model,
            &prompts,
            &GradientRequest::new(Metric::LogitDiff, &targets, &readers),
        )?;
        Ok(())
    };
    let (ours, theirs) = interleaved(REPEATS, both, || forward(&prompts))?;
    compare(
        "forward + backward, 8 x 16",
        &ours,
        &theirs,
        1.0,
        "(target 2.4)",
    );
    let before = peak_memory();
    let (ours, theirs) = interleaved(
        REPEATS,
        || autograd::gradient(model, &prompts, &targets).map(drop),
        || forward(&prompts),
    )?;
    compare(
        "candle autograd, 8 x 16",
        &ours,
        &theirs,
        1.0,
        "(for comparison)",
    );
    println!(
        "  autograd raised the peak by {:.0} MiB",
        peak_memory() - before
    );
    let gradient = autograd::gradient(model, &prompts, &targets)?
        .flatten_all()?
        .to_vec1::<f32>()?;
    let embed = [Hook::global(Kind::Embed)];
    let request = GradientRequest::new(Metric::LogitDiff, &targets, &embed);
    let own = gradients(model, &prompts, &request)?
        .cache
        .get(embed[0])?
        .flatten_all()?
        .to_vec1::<f32>()?;
    let largest = gradient.iter().fold(0f32, |max, x| max.max(x.abs()));
    let gap = gradient
        .iter()
        .zip(&own)
        .map(|(a, b)| (a - b).abs())
        .fold(0.0, f32::max);
    println!(
        "  both gradients at the embedding agree to {:.1e} of the largest",
        gap / largest
    );

    let options = ExpandOptions {
        n_pairs: Some(PAIRS),
        templates: vec![0],
        ..ExpandOptions::default()
    };
    let ioi = expand(&TaskFile::open("ioi")?, tokenizer, &options)?;
    for (name, task) in [
        ("differ from the first token", &random),
        ("IOI, S2 differs", &ioi),
    ] {
        let clean: Vec<Vec<u32>> = task.pairs().iter().map(|pair| pair.clean.clone()).collect();
        println!("pairs that {name}: {} tokens", clean[0].len());
        let line = |method: &str, target: &str, work: &dyn Fn() -> Result<()>| -> Result<()> {
            let (ours, theirs) = interleaved(REPEATS, work, || forward(&clean))?;
            compare(&format!("  {method}"), &ours, &theirs, 1.0, target);
            Ok(())
        };
        let all = |method: &dyn Method| -> Result<()> {
            let on = Subject { model, task };
            measurements(on, method, &Running::default(), &Watch::default())?;
            Ok(())
        };
        let patch = || -> Result<PatchConfig> {
            Ok(PatchConfig {
                direction: Direction::Noise,
                ..PatchConfig::sites("q,k,v,z,mlp_out")?
            })
        };
        line("EAP, every edge", "(target 5)", &|| {
            all(&EdgeAttributionConfig::eap())
        })?;
        line("EAP-IG, 5 steps", "(target 15)", &|| {
            all(&EdgeAttributionConfig::eap_ig(5))
        })?;
        line("AtP, q k v z mlp_out", "(target 3)", &|| {
            all(&NodeAttributionConfig::atp(patch()?))
        })?;
        line("AtP*, q k v z mlp_out", "(target 30)", &|| {
            all(&NodeAttributionConfig::atp_star(patch()?))
        })?;
    }
    Ok(())
}

/// A model shaped as Llama 3.2 1B: the peak beside the dense tensor of differences.
pub fn memory(small: &ModelSpec, tokenizer: &Tokenizer) -> Result<()> {
    let spec = ModelSpec {
        n_layers: 16,
        n_heads: 32,
        n_kv_heads: 8,
        d_model: 2048,
        d_head: 64,
        d_mlp: 8192,
        d_vocab: 32_000,
        attn_scale: vec![0.125; 16],
        windows: vec![None; 16],
        position: match &small.position {
            candlewick::spec::Position::Rotary(rotary) => {
                let mut rotary = rotary.clone();
                (rotary.dims, rotary.base_of_layer) = (64, vec![Some(0); 16]);
                candlewick::spec::Position::Rotary(rotary)
            }
            other => other.clone(),
        },
        ..small.clone()
    };
    let model = Model::random(spec, 1)?;
    let task = task(&model, tokenizer, 16, PAIRS)?;
    let graph = Graph::new(&model.spec);
    let dense = (PAIRS * 16 * graph.n_src() * model.spec.d_model * 4) as f64 / (1 << 20) as f64;
    let prompts: Vec<Vec<u32>> = task.pairs().iter().map(|pair| pair.clean.clone()).collect();
    run::logits(&model, &prompts)?;
    let (forward, _) = time(|| run::logits(&model, &prompts));
    let before = peak_memory();
    println!(
        "shaped as Llama 3.2 1B: {} edges; dense differences {dense:.0} MiB, a quarter {:.0} MiB",
        graph.n_edges(),
        dense / 4.0
    );
    let quarter = (dense / 8.0 * 1024.0 * 1024.0) as usize;
    for (name, memory) in [("an eighth of that", Some(quarter)), ("its default", None)] {
        let running = Running {
            memory,
            ..Running::default()
        };
        let on = Subject {
            model: &model,
            task: &task,
        };
        let eap = EdgeAttributionConfig::eap();
        let (took, measured) = time(|| measurements(on, &eap, &running, &Watch::default()));
        measured?;
        println!(
            "  EAP with {name} for memory: {:.1} forwards, peak {:.0} MiB over that of a forward",
            took.wall / forward.wall,
            peak_memory() - before
        );
    }
    Ok(())
}

/// Random prompts, the pairs of which differ everywhere.
fn task(model: &Model, tokenizer: &Tokenizer, length: usize, pairs: usize) -> Result<Task> {
    let vocab = model.spec.d_vocab as u32;
    let prompt = |seed: u32| -> Vec<u32> {
        (0..length as u32)
            .map(|pos| (seed * 7919 + pos * 977 + 13) % vocab)
            .collect()
    };
    let pair = |i: usize| {
        Pair::new(prompt(2 * i as u32 + 1), prompt(2 * i as u32 + 2))
            .answer(10 + i as u32)
            .wrong(100 + i as u32)
    };
    let pairs = (0..pairs).map(pair);
    Ok(Task::new("random", tokenizer, Metric::LogitDiff, pairs)?)
}
