//! Both fixtures loaded and compared with their tensors as they lie in the file, and every way in which a checkpoint can be wrong.

use std::collections::{BTreeMap, HashMap};
use std::env;
use std::fs;
use std::path::PathBuf;

use candle_core::{DType, Device, Tensor};

use super::*;
use crate::model::layout::Slot;

const LLAMA: &str = "tests/fixtures/llama-tiny-random";
const GPT2: &str = "tests/fixtures/gpt2-tiny-random";

mod gguf;
mod pickles;
mod published;
mod transformer_lens;

type Tensors = HashMap<String, Tensor>;

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(name)
}

fn raw(name: &str) -> Tensors {
    let path = fixture(name).join("model.safetensors");
    candle_core::safetensors::load(path, &Device::Cpu).unwrap()
}

fn text(name: &str, file: &str) -> String {
    fs::read_to_string(fixture(name).join(file)).unwrap()
}

/// Loads tensors under a fixture's config and tokenizer.
fn load_tensors(name: &str, tensors: &Tensors, options: &LoadOptions) -> Result<Loaded> {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("model.safetensors");
    candle_core::safetensors::save(tensors, &path).unwrap();
    let bytes = fs::read(path).unwrap();
    let tokenizer = text(name, "tokenizer.json");
    load_parts(
        "test",
        &text(name, "config.json"),
        &bytes,
        tokenizer.as_bytes(),
        None,
        options,
    )
}

fn load_edited(name: &str, edit: impl Fn(&mut Tensors)) -> Result<Loaded> {
    let mut tensors = raw(name);
    edit(&mut tensors);
    load_tensors(name, &tensors, &LoadOptions::default())
}

/// Every slot of a model, for comparison.
fn values(model: &Model) -> BTreeMap<String, Vec<f32>> {
    let once = Slot::MODEL.map(|slot| (slot, 0));
    let layers = 0..model.spec.n_layers;
    let per_block = layers.flat_map(|layer| Slot::BLOCK.map(|slot| (slot, layer)));
    let found = once
        .into_iter()
        .chain(per_block)
        .filter_map(|(slot, layer)| {
            let tensor = slot.get(&model.weights, layer)?;
            Some((format!("{layer}.{slot:?}"), flat(tensor)))
        });
    found.collect()
}

fn flat(tensor: &Tensor) -> Vec<f32> {
    tensor
        .to_dtype(DType::F32)
        .unwrap()
        .flatten_all()
        .unwrap()
        .to_vec1()
        .unwrap()
}

fn same(ours: &Tensor, theirs: &Tensor) {
    assert_eq!(ours.dims(), theirs.dims());
    assert_eq!(flat(ours), flat(theirs));
}

#[test]
fn llama_weights_lie_in_the_canonical_layout() {
    let path = fixture(LLAMA);
    let Loaded { model, tokenizer } =
        load(path.to_str().unwrap(), &LoadOptions::default()).unwrap();
    let raw = raw(LLAMA);
    let transposed = |names: [&str; 3], layer: usize| {
        let parts: Vec<Tensor> = names
            .iter()
            .filter(|name| !name.is_empty())
            .map(|name| {
                raw[&format!("model.layers.{layer}.{name}.weight")]
                    .t()
                    .unwrap()
            })
            .collect();
        Tensor::cat(&parts, 1).unwrap()
    };
    for (layer, block) in model.weights.blocks.iter().enumerate() {
        let attn = ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"];
        same(&block.w_qkv, &transposed(attn, layer));
        same(&block.w_o, &transposed(["self_attn.o_proj", "", ""], layer));
        let mlp = block.mlp.as_ref().unwrap();
        same(
            &mlp.w_in,
            &transposed(["mlp.gate_proj", "mlp.up_proj", ""], layer),
        );
        same(&mlp.w_out, &transposed(["mlp.down_proj", "", ""], layer));
        let norm = |name: &str| &raw[&format!("model.layers.{layer}.{name}.weight")];
        same(&block.ln1.as_ref().unwrap().w, norm("input_layernorm"));
        same(
            &block.ln2.as_ref().unwrap().w,
            norm("post_attention_layernorm"),
        );
        assert!(block.b_qkv.is_none() && mlp.b_in.is_none());
    }
    same(&model.weights.w_e, &raw["model.embed_tokens.weight"]);
    same(&model.weights.w_u, &raw["lm_head.weight"]);
    same(
        &model.weights.ln_final.as_ref().unwrap().w,
        &raw["model.norm.weight"],
    );
    assert_eq!(model.weights.w_e.dims(), [512, 64]);
    assert_eq!(model.weights.blocks[0].w_qkv.dims(), [64, 128]);
    assert_eq!(tokenizer.vocab_size(), 397);
    assert_eq!(model.origin.storage, "safetensors F32");
    assert_eq!(
        (
            model.origin.weight_hash.get().len(),
            model.origin.tokenizer_hash.len()
        ),
        (64, 64)
    );
    assert_eq!(
        read_spec(path.to_str().unwrap(), &LoadOptions::default()).unwrap(),
        model.spec
    );
}

#[test]
fn gpt2_weights_are_canonical_as_they_lie() {
    let model = load(fixture(GPT2).to_str().unwrap(), &LoadOptions::default())
        .unwrap()
        .model;
    let raw = raw(GPT2);
    let prefix = if raw.contains_key("transformer.wte.weight") {
        "transformer."
    } else {
        ""
    };
    let named = |name: &str| &raw[&format!("{prefix}{name}")];
    let weights = &model.weights;
    let block = &weights.blocks[2];
    let mlp = block.mlp.as_ref().unwrap();
    same(&block.w_qkv, named("h.2.attn.c_attn.weight"));
    same(block.b_qkv.as_ref().unwrap(), named("h.2.attn.c_attn.bias"));
    same(&block.w_o, named("h.2.attn.c_proj.weight"));
    same(&mlp.w_in, named("h.2.mlp.c_fc.weight"));
    same(mlp.b_out.as_ref().unwrap(), named("h.2.mlp.c_proj.bias"));
    let ln2 = block.ln2.as_ref().unwrap();
    same(ln2.b.as_ref().unwrap(), named("h.2.ln_2.bias"));
    same(weights.w_pos.as_ref().unwrap(), named("wpe.weight"));
    same(&weights.w_u, &weights.w_e);
    assert_eq!(block.w_qkv.dims(), [64, 192]);
}

#[test]
fn gpt2_loads_with_and_without_prefix_and_with_its_old_buffers() {
    let reference = values(&load_edited(GPT2, |_| ()).unwrap().model);
    let other_prefix = load_edited(GPT2, |tensors| {
        *tensors = tensors
            .drain()
            .map(|(name, tensor)| match name.strip_prefix("transformer.") {
                Some(bare) => (bare.to_string(), tensor),
                None => (format!("transformer.{name}"), tensor),
            })
            .collect();
        let mask = Tensor::ones((1, 1, 4, 4), DType::U8, &Device::Cpu).unwrap();
        tensors.insert("h.0.attn.bias".to_string(), mask);
    });
    assert_eq!(values(&other_prefix.unwrap().model), reference);
}

#[test]
fn half_precision_on_disk_is_within_rounding() {
    let reference = values(&load_edited(LLAMA, |_| ()).unwrap().model);
    // Eight bits of precision leave a relative error of 2^-8, eleven 2^-11; that of the smallest f16 is absolute.
    for (dtype, relative) in [(DType::BF16, 2f32.powi(-8)), (DType::F16, 2f32.powi(-11))] {
        let loaded = load_edited(LLAMA, |tensors| {
            tensors
                .values_mut()
                .for_each(|tensor| *tensor = tensor.to_dtype(dtype).unwrap());
        });
        let model = loaded.unwrap().model;
        assert_eq!(model.dtype, DType::F32);
        for (name, found) in values(&model) {
            for (found, expected) in found.iter().zip(&reference[&name]) {
                let bound = expected.abs() * relative * 1.001 + 6e-8;
                assert!(
                    (found - expected).abs() <= bound,
                    "{name}: {found} for {expected}"
                );
            }
        }
    }
}

#[test]
fn matrices_stay_in_the_16_bits_that_they_are_stored_in() {
    for dtype in [DType::BF16, DType::F16] {
        let mut tensors = raw(LLAMA);
        for tensor in tensors.values_mut() {
            *tensor = tensor.to_dtype(dtype).unwrap();
        }
        let load = |asked: Option<DType>| {
            let options = LoadOptions {
                dtype: asked,
                ..LoadOptions::default()
            };
            load_tensors(LLAMA, &tensors, &options).unwrap().model
        };
        let (kept, wide) = (load(None), load(Some(DType::F32)));
        assert_eq!((kept.dtype, kept.weights.w_e.dtype()), (DType::F32, dtype));
        assert_eq!(kept.weights.blocks[0].w_qkv.dtype(), dtype);
        assert_eq!(wide.weights.w_e.dtype(), DType::F32);
        assert!(kept.weights.bytes() * 100 < wide.weights.bytes() * 55);
        assert_eq!(values(&kept), values(&wide));
        // A matrix of one format among others of another is itself.
        let q = "model.layers.0.self_attn.q_proj.weight";
        tensors.insert(q.to_string(), raw(LLAMA)[q].clone());
        let mixed = load_tensors(LLAMA, &tensors, &LoadOptions::default())
            .unwrap()
            .model;
        assert_eq!(mixed.weights.blocks[0].w_qkv.dtype(), DType::F32);
        assert_eq!(mixed.weights.blocks[1].w_qkv.dtype(), dtype);
    }
}

#[test]
fn matrices_can_be_held_in_half_precision() {
    let options = LoadOptions {
        dtype: Some(DType::BF16),
        ..LoadOptions::default()
    };
    let model = load_tensors(LLAMA, &raw(LLAMA), &options).unwrap().model;
    let norm = model.weights.ln_final.as_ref().unwrap();
    assert_eq!((model.dtype, norm.w.dtype()), (DType::F32, DType::F32));
    assert_eq!(model.weights.w_u.dtype(), DType::BF16);
    assert_eq!(model.number_formats(), "f32, matrices bf16");
    let mut tensors = raw(LLAMA);
    let large = Tensor::full(1e5f32, (512, 64), &Device::Cpu).unwrap();
    tensors.insert("model.embed_tokens.weight".to_string(), large);
    let options = LoadOptions {
        dtype: Some(DType::F16),
        ..LoadOptions::default()
    };
    let error = load_tensors(LLAMA, &tensors, &options).unwrap_err();
    assert!(
        error.to_string().contains("model.embed_tokens.weight"),
        "{error}"
    );
}

#[test]
fn shards_load_as_one_file_does() {
    let dir = tempfile::tempdir().unwrap();
    for file in ["config.json", "tokenizer.json"] {
        fs::copy(fixture(LLAMA).join(file), dir.path().join(file)).unwrap();
    }
    let mut shards = [Tensors::new(), Tensors::new()];
    let mut weight_map = serde_json::Map::new();
    for (i, (name, tensor)) in raw(LLAMA).into_iter().enumerate() {
        let shard = i % 2;
        weight_map.insert(name.clone(), format!("model-{shard}.safetensors").into());
        shards[shard].insert(name, tensor);
    }
    for (shard, tensors) in shards.iter().enumerate() {
        let path = dir.path().join(format!("model-{shard}.safetensors"));
        candle_core::safetensors::save(tensors, path).unwrap();
    }
    let index = serde_json::json!({ "weight_map": weight_map }).to_string();
    fs::write(dir.path().join("model.safetensors.index.json"), index).unwrap();
    let sharded = load(dir.path().to_str().unwrap(), &LoadOptions::default()).unwrap();
    let whole = load_edited(LLAMA, |_| ()).unwrap();
    assert_eq!(values(&sharded.model), values(&whole.model));
}

#[test]
fn wrong_tensors_are_named_and_counted() {
    let error = load_edited(LLAMA, |tensors| {
        for layer in 0..3 {
            tensors.remove(&format!("model.layers.{layer}.mlp.up_proj.weight"));
        }
        tensors.remove("lm_head.weight");
    });
    match error.unwrap_err() {
        Error::MissingTensors {
            count: 4, first, ..
        } => assert!(first.contains("lm_head.weight")),
        other => panic!("{other}"),
    }
    let vector = || Tensor::zeros(3, DType::F32, &Device::Cpu).unwrap();
    let error = load_edited(LLAMA, |tensors| {
        tensors.insert("model.layers.0.self_attn.q_proj.bias".to_string(), vector());
        tensors.insert(
            "model.layers.0.self_attn.rotary_emb.inv_freq".to_string(),
            vector(),
        );
    });
    match error.unwrap_err() {
        Error::ExtraTensors {
            count: 1, first, ..
        } => assert!(first.contains("q_proj.bias")),
        other => panic!("{other}"),
    }
    let misshape = |names: &'static [&'static str]| {
        load_edited(LLAMA, |tensors| {
            for name in names {
                tensors.insert(name.to_string(), vector());
            }
        })
    };
    let one = misshape(&["model.norm.weight"]).unwrap_err();
    assert!(
        matches!(&one, Error::TensorShape { found, .. } if *found == [3]),
        "{one}"
    );
    let two = misshape(&["model.norm.weight", "lm_head.weight"]).unwrap_err();
    assert!(matches!(two, Error::TensorShapes { count: 2, .. }), "{two}");
}

#[test]
fn damaged_weights_are_named() {
    for (dtype, bad) in [
        (DType::F32, f32::NAN),
        (DType::BF16, f32::INFINITY),
        (DType::F16, f32::NAN),
    ] {
        let name = "model.layers.1.mlp.down_proj.weight";
        let error = load_edited(LLAMA, |tensors| {
            let mut values = flat(&tensors[name]);
            *values.last_mut().unwrap() = bad;
            let tensor = Tensor::from_vec(values, tensors[name].dims(), &Device::Cpu).unwrap();
            tensors.insert(name.to_string(), tensor.to_dtype(dtype).unwrap());
        });
        let error = error.unwrap_err();
        assert!(
            matches!(&error, Error::NotFinite { name: named } if named == name),
            "{error}"
        );
    }
}

#[test]
fn a_tokenizer_larger_than_the_embedding_is_refused() {
    let config = text(LLAMA, "config.json").replace("\"vocab_size\": 512", "\"vocab_size\": 396");
    let bytes = fs::read(fixture(LLAMA).join("model.safetensors")).unwrap();
    let tokenizer = text(LLAMA, "tokenizer.json");
    let options = LoadOptions::default();
    let error = load_parts(
        "test",
        &config,
        &bytes,
        tokenizer.as_bytes(),
        None,
        &options,
    );
    let error = error.unwrap_err();
    assert!(
        matches!(
            error,
            Error::TokenizerTooLarge {
                tokenizer: 397,
                embedding: 396
            }
        ),
        "{error}"
    );
}

#[test]
fn folders_that_are_no_model_are_refused_with_a_remedy() {
    let options = LoadOptions::default();
    let try_load = |dir: &Path| load(dir.to_str().unwrap(), &options).unwrap_err();
    let dir = tempfile::tempdir().unwrap();
    assert!(matches!(
        try_load(&dir.path().join("gone")),
        Error::Missing { .. }
    ));
    let error = try_load(dir.path());
    assert!(matches!(error, Error::Missing { .. }) && error.to_string().contains("config.json"));

    let write = |file: &str, text: &str| fs::write(dir.path().join(file), text).unwrap();
    write("config.json", r#"{"model_type": "xlnet"}"#);
    let error = try_load(dir.path());
    assert!(error.to_string().contains("xlnet") && error.to_string().contains("llama, mistral"));
    write("config.json", "{");
    assert!(matches!(
        try_load(dir.path()),
        Error::UnreadableConfig { .. }
    ));
    write(
        "config.json",
        "version https://git-lfs.github.com/spec/v1\noid sha256:0\n",
    );
    assert!(matches!(try_load(dir.path()), Error::LfsPointer { .. }));

    write("config.json", &text(LLAMA, "config.json"));
    assert!(matches!(try_load(dir.path()), Error::Missing { .. }));
    write("tokenizer.json", &text(LLAMA, "tokenizer.json"));
    let error = try_load(dir.path());
    assert!(error.to_string().contains("model.safetensors"), "{error}");
    write("pytorch_model.bin", "PK\x03\x04");
    assert!(matches!(try_load(dir.path()), Error::Malformed { .. }));
    write(
        "model.safetensors",
        "version https://git-lfs.github.com/spec/v1\noid sha256:0\n",
    );
    assert!(matches!(try_load(dir.path()), Error::LfsPointer { .. }));
    write("model.safetensors", "PK\x03\x04");
    assert!(matches!(try_load(dir.path()), Error::Pickle { .. }));
    write("model.safetensors", "");
    assert!(matches!(try_load(dir.path()), Error::Malformed { .. }));
    let whole = fs::read(fixture(LLAMA).join("model.safetensors")).unwrap();
    fs::write(
        dir.path().join("model.safetensors"),
        &whole[..whole.len() - 4],
    )
    .unwrap();
    assert!(matches!(try_load(dir.path()), Error::Malformed { .. }));
    fs::write(dir.path().join("model.safetensors"), whole).unwrap();
    fs::remove_file(dir.path().join("tokenizer.json")).unwrap();
    let error = try_load(dir.path());
    assert!(error.to_string().contains("tokenizer.json"), "{error}");
}

/// Where real models may lie: `$CANDLEWICK_MODELS` or `~/.cache/candlewick-models`.
pub(crate) fn real_model(file: &str) -> Option<PathBuf> {
    let dir = match env::var_os("CANDLEWICK_MODELS") {
        Some(dir) => PathBuf::from(dir),
        None => PathBuf::from(env::var_os("HOME")?).join(".cache/candlewick-models"),
    };
    let path = dir.join(file);
    if !path.is_file() {
        println!("skipped: there is no `{}`", path.display());
        return None;
    }
    Some(path)
}

#[test]
fn smollm2_loads_from_its_gguf() {
    let Some(path) = real_model("smollm2-135m-instruct.q4_1.gguf") else {
        return;
    };
    let Loaded { model, tokenizer } =
        load(path.to_str().unwrap(), &LoadOptions::default()).unwrap();
    assert_eq!(
        (
            model.spec.n_layers,
            model.spec.n_heads,
            model.spec.n_kv_heads
        ),
        (30, 9, 3)
    );
    assert!(model.spec.tied);
    assert_eq!(
        model.origin.storage,
        "gguf Q4_1, F32, Q8_0 (dequantised to f32)"
    );
    let encode = |text: &str| tokenizer.encode(text, false).unwrap().ids;
    assert_eq!(encode(" Mary").len(), 1);
    assert_eq!(encode("2024").len(), 4, "digits stand alone");
    assert_eq!(encode("<|im_start|>"), [1]);
    let line = "When Mary and John went to the store, John gave a drink to\nnaïve 日本 42!";
    assert_eq!(tokenizer.decode(&encode(line)).unwrap(), line);
    assert!(!tokenizer.adds_bos() && tokenizer.has_chat_template());
}

#[test]
fn gemma3_knows_the_capital_of_france() {
    let Some(path) = real_model("gemma-3-270m.q4_k_m.gguf") else {
        return;
    };
    let gguf = Gguf::open(&path).unwrap();
    let description = families::from_gguf(&gguf).unwrap();
    let spec = description.spec.clone();
    assert_eq!((spec.n_layers, spec.n_heads, spec.n_kv_heads), (18, 4, 1));
    let full: Vec<usize> = (0..18)
        .filter(|&layer| spec.windows[layer].is_none())
        .collect();
    assert_eq!(full, [5, 11, 17]);
    let weights = read_weights(&gguf, &description, Some(DType::F32), &Device::Cpu).unwrap();
    let model = Model::new(spec, weights, Origin::default()).unwrap();
    let tokens = gguf.texts("tokenizer.ggml.tokens").unwrap();
    let id = |text: &str| tokens.iter().position(|token| token == text).unwrap() as u32;
    let prompt = ["<bos>", "The", "▁capital", "▁of", "▁France", "▁is"]
        .map(id)
        .to_vec();
    let logits: Vec<f32> = crate::run::logits(&model, &[prompt])
        .unwrap()
        .get(0)
        .unwrap()
        .to_vec1()
        .unwrap();
    let best = (0..logits.len())
        .max_by(|&a, &b| logits[a].total_cmp(&logits[b]))
        .unwrap();
    println!("likeliest: {}", tokens[best]);
    let rank = |text: &str| {
        let own = logits[id(text) as usize];
        logits.iter().filter(|&&other| other > own).count()
    };
    assert!(
        rank("▁Paris") < 5 && rank("▁Paris") < rank("▁London"),
        "{} {}",
        rank("▁Paris"),
        rank("▁London")
    );
}

#[test]
fn the_embedded_model_does_its_task_on_fresh_prompts() {
    use crate::model::EMBEDDED;
    use crate::task::{ExpandOptions, TaskFile, expand};

    let Loaded { model, tokenizer } = load(EMBEDDED, &LoadOptions::default()).unwrap();
    let options = ExpandOptions {
        n_pairs: Some(200),
        seed: Some(20_261_122),
        ..ExpandOptions::default()
    };
    let task = expand(&TaskFile::open(EMBEDDED).unwrap(), &tokenizer, &options).unwrap();
    assert_eq!(task.pairs().len(), 200);
    let mut right = 0;
    for batch in task.batches(64) {
        let prompts: Vec<Vec<u32>> = batch
            .iter()
            .map(|&i| task.pairs()[i].clean.clone())
            .collect();
        let logits = crate::run::logits(&model, &prompts).unwrap();
        let logits: Vec<Vec<f32>> = logits.to_vec2().unwrap();
        for (row, &i) in logits.iter().zip(&batch) {
            let best = (0..row.len()).max_by(|&a, &b| row[a].total_cmp(&row[b]));
            right += usize::from(best == Some(task.pairs()[i].target.answers[0] as usize));
        }
    }
    // models/embedded/README.md measured 99.1% and more of 2,000.
    assert!(right > 198, "{right} of 200");

    let opened = open(EMBEDDED, &LoadOptions::default()).unwrap();
    assert_eq!(*opened.spec(), model.spec);
    assert_eq!(opened.tokenizer().max_id(), tokenizer.max_id());
    let spec = read_spec(EMBEDDED, &LoadOptions::default()).unwrap();
    assert_eq!(spec, model.spec);
    assert_eq!(opened.load().unwrap().model.origin, model.origin);
}

#[test]
fn every_shipped_task_has_pairs_under_the_tokenizer_of_a_real_gguf() {
    use crate::task::{ExpandOptions, TaskFile, expand, shipped};

    let Some(path) = real_model("smollm2-135m-instruct.q4_1.gguf") else {
        return;
    };
    let opened = open(path.to_str().unwrap(), &LoadOptions::default()).unwrap();
    let (tokenizer, spec) = (opened.tokenizer(), opened.spec());
    for name in shipped() {
        let options = ExpandOptions {
            n_pairs: Some(100),
            max_tokens: Some(spec.n_ctx),
            ..ExpandOptions::default()
        };
        let task = expand(&TaskFile::open(name).unwrap(), tokenizer, &options)
            .unwrap_or_else(|error| panic!("{name}: {error}"));
        assert!(task.pairs().len() >= 50, "{name}: {:?}", task.drop_counts());
    }
    let chat = ExpandOptions {
        n_pairs: Some(10),
        chat: true,
        ..ExpandOptions::default()
    };
    let task = expand(&TaskFile::open("ioi").unwrap(), tokenizer, &chat).unwrap();
    assert!(task.pairs()[0].clean_text.contains("<|im_start|>user"));
    assert!(task.roles().contains(&"S2".to_string()));
}

#[test]
fn a_config_without_end_is_not_read() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("config.json"), vec![b' '; (4 << 20) + 1]).unwrap();
    let id = dir.path().to_str().unwrap();
    let error = read_spec(id, &LoadOptions::default()).unwrap_err();
    assert!(
        error.to_string().contains("more than 4194304 bytes"),
        "{error}"
    );
}
