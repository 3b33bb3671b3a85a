//! The GPT-2 fixture rewritten under TransformerLens's names is the same model.

use super::*;
use crate::run::logits;

const HEADS: usize = 4;
const D_HEAD: usize = 16;

/// `[d_model, heads * d_head]` as `[head, d_model, d_head]`.
fn by_head(joined: &Tensor) -> Tensor {
    let d_model = joined.dims()[0];
    let split = joined.reshape((d_model, HEADS, D_HEAD)).unwrap();
    split.transpose(0, 1).unwrap().contiguous().unwrap()
}

/// The fixture's tensors under TransformerLens's names, in its shapes.
fn renamed() -> Tensors {
    let raw = raw(GPT2);
    let named = |name: &str| {
        let prefixed = raw.get(&format!("transformer.{name}"));
        prefixed.or(raw.get(name)).expect("in the fixture").clone()
    };
    let mut tensors = Tensors::new();
    let mut put = |name: String, tensor: Tensor| tensors.insert(name, tensor.contiguous().unwrap());
    put("embed.W_E".into(), named("wte.weight"));
    put("pos_embed.W_pos".into(), named("wpe.weight"));
    put("unembed.W_U".into(), named("wte.weight").t().unwrap());
    put("ln_final.w".into(), named("ln_f.weight"));
    put("ln_final.b".into(), named("ln_f.bias"));
    for layer in 0..3 {
        let theirs = |name: &str| named(&format!("h.{layer}.{name}"));
        let joined = theirs("attn.c_attn.weight");
        let bias = theirs("attn.c_attn.bias");
        for (part, letter) in ["Q", "K", "V"].into_iter().enumerate() {
            let weight = joined.narrow(1, part * 64, 64).unwrap();
            let bias = bias.narrow(0, part * 64, 64).unwrap();
            put(format!("blocks.{layer}.attn.W_{letter}"), by_head(&weight));
            let bias = bias.reshape((HEADS, D_HEAD)).unwrap();
            put(format!("blocks.{layer}.attn.b_{letter}"), bias);
        }
        let out = theirs("attn.c_proj.weight");
        let out = out.reshape((HEADS, D_HEAD, 64)).unwrap();
        put(format!("blocks.{layer}.attn.W_O"), out);
        for (ours, name) in [
            ("attn.b_O", "attn.c_proj.bias"),
            ("ln1.w", "ln_1.weight"),
            ("ln1.b", "ln_1.bias"),
            ("ln2.w", "ln_2.weight"),
            ("ln2.b", "ln_2.bias"),
            ("mlp.W_in", "mlp.c_fc.weight"),
            ("mlp.b_in", "mlp.c_fc.bias"),
            ("mlp.W_out", "mlp.c_proj.weight"),
            ("mlp.b_out", "mlp.c_proj.bias"),
        ] {
            put(format!("blocks.{layer}.{ours}"), theirs(name));
        }
        // Buffers that TransformerLens saves with the weights.
        let mask = Tensor::ones((8, 8), DType::F32, &Device::Cpu).unwrap();
        put(format!("blocks.{layer}.attn.mask"), mask);
        let ignored = Tensor::new(-1e5f32, &Device::Cpu).unwrap();
        put(format!("blocks.{layer}.attn.IGNORE"), ignored);
    }
    tensors
}

/// Writes a checkpoint and loads it by its file.
fn load_native(tensors: &Tensors, config: Option<&str>) -> Result<Loaded> {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("step_100.safetensors");
    candle_core::safetensors::save(tensors, &path).unwrap();
    if let Some(config) = config {
        fs::write(dir.path().join("config.json"), config).unwrap();
    }
    load(path.to_str().unwrap(), &LoadOptions::default())
}

#[test]
fn native_names_give_the_same_function() {
    let twin = load_edited(GPT2, |_| ()).unwrap().model;
    let Loaded { model, tokenizer } =
        load_native(&renamed(), Some(r#"{"act_fn": "gelu_new"}"#)).unwrap();
    assert_eq!(values(&model), values(&twin));
    let prompts = [vec![5, 7, 5, 9], vec![1, 2, 3, 4]];
    let ours = flat(&logits(&model, &prompts).unwrap());
    assert_eq!(ours, flat(&logits(&twin, &prompts).unwrap()));
    let spec = ModelSpec {
        family: twin.spec.family.clone(),
        tied: true,
        ..model.spec
    };
    assert_eq!(spec, twin.spec);
    assert_eq!(tokenizer.encode("5 7 5 9", false).unwrap().ids, prompts[0]);
}

#[test]
fn a_folded_norm_still_divides() {
    let mut tensors = renamed();
    tensors.retain(|name, _| !name.contains("ln"));
    let config = r#"{"act_fn": "gelu_new", "normalization_type": "LNPre"}"#;
    let folded = load_native(&tensors, Some(config)).unwrap().model;
    let ones = |tensor: &Tensor| tensor.ones_like().unwrap();
    let mut tensors = renamed();
    for (name, tensor) in &mut tensors {
        if name.contains("ln") {
            *tensor = match name.ends_with('b') {
                true => tensor.zeros_like().unwrap(),
                false => ones(tensor),
            };
        }
    }
    let config = r#"{"act_fn": "gelu_new", "normalization_type": "LN"}"#;
    let written_out = load_native(&tensors, Some(config)).unwrap().model;
    let prompts = [vec![5, 7, 5, 9]];
    let ours = flat(&logits(&folded, &prompts).unwrap());
    assert_eq!(ours, flat(&logits(&written_out, &prompts).unwrap()));
}

#[test]
fn what_the_tensors_do_not_show_is_asked_for() {
    let message = |config| load_native(&renamed(), config).unwrap_err().to_string();
    assert!(message(None).contains("act_fn"), "{}", message(None));
    let wrong = message(Some(r#"{"act_fn": "relu", "n_layers": 2}"#));
    assert!(
        wrong.contains("n_layers") && wrong.contains("say 3"),
        "{wrong}"
    );
    let mut tensors = renamed();
    tensors.remove("blocks.1.attn.W_O");
    let config = Some(r#"{"act_fn": "relu"}"#);
    let error = load_native(&tensors, config).unwrap_err().to_string();
    assert!(error.contains("blocks.1.attn.W_O"), "{error}");
}
