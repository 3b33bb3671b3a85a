//! Trains the model that is embedded in the binary, from a fixed seed, and checks that it holds a circuit.
//!
//! ```text
//! cargo run --release --example train_embedded -- models/embedded
//! ```
//!
//! writes `config.json`, `model.safetensors` and `tokenizer.json` into the folder and then measures the network; a seed may
//! follow the folder. With `--check` in front of the folder nothing is trained: the model that is there is measured again.
//! One thread is fastest for tensors this small (`CANDLE_NUM_THREADS=1 RAYON_NUM_THREADS=1`).

mod circuit;
mod corpus;
mod model;
mod words;

use std::error::Error;
use std::path::{Path, PathBuf};
use std::time::Instant;

use candle_core::{D, Device, Tensor};
use candle_nn::{AdamW, Optimizer, ParamsAdamW};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use tokenizers::Tokenizer;

use circuit::Pairs;
use corpus::{Order, Scene, Split, Story};
use model::{Llama, Sizes};
use words::Words;

const SEED: u64 = 1;
const STEPS: usize = 2400;
const WARM_UP: usize = 200;
const BATCH: usize = 32;
const LEARNING_RATE: f64 = 3e-3;
const WEIGHT_DECAY: f64 = 0.1;
/// How much a word that the story asks for weighs beside any other word.
const ANSWER_WEIGHT: f32 = 10.0;
/// How many prompts of each kind the accuracy is measured on.
const PROMPTS: usize = 2000;
const NEEDED_ACCURACY: f64 = 0.99;

fn main() -> Result<(), Box<dyn Error>> {
    let mut args: Vec<String> = std::env::args().skip(1).collect();
    let check = args.first().is_some_and(|arg| arg == "--check");
    args.drain(..check as usize);
    let seed = args.get(1).map_or(Ok(SEED), |seed| seed.parse())?;
    let folder = PathBuf::from(
        args.first()
            .ok_or("name the folder to write to, for example models/embedded")?,
    );
    let words = Words::new();
    let sizes = Sizes {
        n_layers: 4,
        n_heads: 4,
        d_model: 64,
        d_head: 16,
        d_mlp: 128,
        d_vocab: words.len(),
        n_ctx: 96,
    };
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let model = Llama::new(sizes, &mut rng)?;
    if check {
        model.load(&folder.join("model.safetensors"))?;
    } else {
        train(&model, &words, &mut rng)?;
    }
    if !check {
        write(&model, &words, &folder)?;
    }
    if !examine(&model, sizes, &words)? {
        return Err("this network is not good enough to be embedded; try another seed".into());
    }
    Ok(())
}

/// AdamW with a linear warm-up and a cosine down to zero; norm weights are not decayed.
fn train(model: &Llama, words: &Words, rng: &mut ChaCha8Rng) -> candle_core::Result<()> {
    let (matrices, norms) = model.parameters();
    let params = ParamsAdamW {
        beta2: 0.98,
        weight_decay: WEIGHT_DECAY,
        ..Default::default()
    };
    let mut optimisers = [
        AdamW::new(matrices, params.clone())?,
        AdamW::new(
            norms,
            ParamsAdamW {
                weight_decay: 0.0,
                ..params
            },
        )?,
    ];
    let started = Instant::now();
    let mut shown = 0f32;
    for step in 0..STEPS {
        let warm = (step + 1) as f64 / WARM_UP as f64;
        let done = step.saturating_sub(WARM_UP) as f64 / (STEPS - WARM_UP) as f64;
        let rate = LEARNING_RATE * warm.min(0.5 * (1.0 + (std::f64::consts::PI * done).cos()));
        let long = rng.random_bool(0.15);
        let stories: Vec<Story> = (0..BATCH).map(|_| corpus::story(rng, long)).collect();
        let loss = loss(model, words, &stories)?;
        let grads = loss.backward()?;
        for optimiser in &mut optimisers {
            optimiser.set_learning_rate(rate);
            optimiser.step(&grads)?;
        }
        shown += loss.to_scalar::<f32>()?;
        if (step + 1) % 250 == 0 {
            println!(
                "step {:>5}  loss {:.4}  {:.0} s",
                step + 1,
                shown / 250.0,
                started.elapsed().as_secs_f64()
            );
            shown = 0.0;
        }
    }
    Ok(())
}

/// Weighted cross-entropy of each next word. Shorter stories are filled up at the end, where nothing can see the filling.
fn loss(model: &Llama, words: &Words, stories: &[Story]) -> candle_core::Result<Tensor> {
    let longest = stories
        .iter()
        .map(|story| story.words.len())
        .max()
        .expect("a batch is not empty")
        - 1;
    let (mut inputs, mut targets, mut weights) = (Vec::new(), Vec::new(), Vec::new());
    for story in stories {
        let tokens = words.tokens(&story.words);
        for i in 0..longest {
            let inside = i + 1 < tokens.len();
            inputs.push(if inside { tokens[i] } else { 0 });
            targets.push(if inside { tokens[i + 1] } else { 0 });
            weights.push(match inside {
                true if story.answers.contains(&(i + 1)) => ANSWER_WEIGHT,
                true => 1.0,
                false => 0.0,
            });
        }
    }
    let rows = stories.len() * longest;
    let total: f32 = weights.iter().sum();
    let inputs = Tensor::from_vec(inputs, (stories.len(), longest), &Device::Cpu)?;
    let targets = Tensor::from_vec(targets, (rows, 1), &Device::Cpu)?;
    let weights = Tensor::from_vec(weights, rows, &Device::Cpu)?;
    let logits = model.forward(&inputs)?.reshape((rows, words.len()))?;
    let shift = logits.max_keepdim(D::Minus1)?.detach();
    let logits = logits.broadcast_sub(&shift)?;
    let log_sum = logits.exp()?.sum(D::Minus1)?.log()?; // [rows]
    let chosen = logits.gather(&targets, 1)?.squeeze(1)?; // [rows]
    ((log_sum - chosen)? * weights)?.sum_all()? / total as f64
}

/// Prints accuracy and patching results; whether they are good enough.
fn examine(model: &Llama, sizes: Sizes, words: &Words) -> candle_core::Result<bool> {
    // A seed of its own: the test prompts are the same whatever was trained.
    let mut rng = ChaCha8Rng::seed_from_u64(0);
    let mut passes = true;
    for split in [Split::Train, Split::HeldOut] {
        for order in [Order::Abba, Order::Baba] {
            let (best, above_s) = accuracy(model, words, &mut rng, split, order)?;
            println!(
                "{split:?}, {order:?}: IO is the best word in {:.2}%, above S in {:.2}%",
                100.0 * best,
                100.0 * above_s
            );
            passes &=
                split == Split::Train || (best > NEEDED_ACCURACY && above_s > NEEDED_ACCURACY);
        }
    }
    for order in [Order::Abba, Order::Baba] {
        // One shape for all pairs, so that positions align: "then A and B went to the PLACE . B gave a OBJECT to".
        let shape = |scene: Scene| Scene {
            lead: 1,
            meet: 0,
            link: 0,
            give: 0,
            ..scene
        };
        let scenes: Vec<Scene> = (0..64)
            .map(|_| shape(corpus::scene(&mut rng, Split::HeldOut, order)))
            .collect();
        let pairs = Pairs::new(&scenes, words)?;
        let effects = circuit::patch_everything(model, sizes, &pairs)?;
        println!(
            "\n{order:?}, clean values into the corrupted run (S2 -> IO), {} pairs",
            scenes.len()
        );
        println!("{}", effects.report(&pairs));
        let (heads, layers) = effects.heads_that_matter();
        println!("{heads} heads in {layers} layers have an effect beyond 0.1");
        passes &= heads >= 3 && layers >= 2;
    }
    Ok(passes)
}

/// The shares of random prompts in which the indirect object has the highest logit of all words, and a higher one than S.
fn accuracy(
    model: &Llama,
    words: &Words,
    rng: &mut ChaCha8Rng,
    split: Split,
    order: Order,
) -> candle_core::Result<(f64, f64)> {
    let (mut best, mut above_s) = (0, 0);
    for _ in 0..PROMPTS {
        let scene = corpus::scene(rng, split, order);
        let tokens = Tensor::new(words.tokens(&scene.prompt(scene.s)), &Device::Cpu)?;
        let logits = model.forward(&tokens.unsqueeze(0)?)?.squeeze(0)?; // [pos, d_vocab]
        let last = logits.get(logits.dim(0)? - 1)?.to_vec1::<f32>()?;
        let io = last[words.name(scene.io) as usize];
        best += last.iter().all(|&logit| logit <= io) as usize;
        above_s += (io > last[words.name(scene.s) as usize]) as usize;
    }
    Ok((
        best as f64 / PROMPTS as f64,
        above_s as f64 / PROMPTS as f64,
    ))
}

fn write(model: &Llama, words: &Words, folder: &Path) -> Result<(), Box<dyn Error>> {
    std::fs::create_dir_all(folder)?;
    let json = |value| serde_json::to_string_pretty(&value).map(|text| text + "\n");
    std::fs::write(
        folder.join("config.json"),
        json(model.config(words.token("<bos>")))?,
    )?;
    std::fs::write(folder.join("tokenizer.json"), json(words.tokenizer())?)?;
    model.save(&folder.join("model.safetensors"))?;
    println!("wrote {}", folder.display());
    read_back(words, folder)
}

/// The written tokenizer must give the tokens that the model was trained on, however the commas are spaced.
fn read_back(words: &Words, folder: &Path) -> Result<(), Box<dyn Error>> {
    let tokenizer =
        Tokenizer::from_file(folder.join("tokenizer.json")).map_err(|source| source.to_string())?;
    let trained = words.tokens(&["<bos>", "one", "day", ",", "Mary", "met", "John"]);
    for text in ["one day , Mary met John", "one day, Mary met John"] {
        let tokens = tokenizer
            .encode(text, true)
            .map_err(|source| source.to_string())?;
        if tokens.get_ids() != trained {
            return Err(format!(
                "the tokenizer reads `{text}` as {:?}, not {trained:?}",
                tokens.get_ids()
            )
            .into());
        }
    }
    Ok(())
}
