//! Fixtures rewritten as GGUF, as llama.cpp's converter does it, are the same models; quantised, they are that to within rounding.

use candle_core::quantized::{GgmlDType, QTensor};

use super::*;
use crate::model::gguf::tests::Writer;
use crate::model::layout::Take;

fn open(writer: &Writer) -> Result<Loaded> {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("tiny.gguf");
    fs::write(&path, writer.bytes()).unwrap();
    load(path.to_str().unwrap(), &LoadOptions::default())
}

/// A byte-level tokenizer of as many tokens as a model has.
fn put_tokenizer(writer: &mut Writer, tokens: usize) {
    let words: Vec<String> = (0..tokens).map(|i| format!("w{i}")).collect();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    writer
        .text("tokenizer.ggml.model", "gpt2")
        .text("tokenizer.ggml.pre", "gpt-2");
    writer
        .texts("tokenizer.ggml.tokens", &words)
        .texts("tokenizer.ggml.merges", &[]);
    writer.integers("tokenizer.ggml.token_type", &vec![1; tokens]);
}

/// The GPT-2 fixture: llama.cpp turns its Conv1D weights into `[out, in]`.
fn gpt2(put: &dyn Fn(&mut Writer, &str, &Tensor)) -> Writer {
    let mut writer = Writer::default();
    writer.text("general.architecture", "gpt2");
    for (key, n) in [
        ("block_count", 3),
        ("embedding_length", 64),
        ("feed_forward_length", 256),
        ("context_length", 128),
        ("attention.head_count", 4),
    ] {
        writer.size(&format!("gpt2.{key}"), n);
    }
    writer.float("gpt2.attention.layer_norm_epsilon", 1e-5);
    let raw = raw(GPT2);
    let named = |name: &str| {
        let prefixed = raw.get(&format!("transformer.{name}"));
        prefixed.or(raw.get(name)).expect("in the fixture").clone()
    };
    let tokens = named("wte.weight").dims()[0];
    put(&mut writer, "token_embd.weight", &named("wte.weight"));
    put(&mut writer, "position_embd.weight", &named("wpe.weight"));
    for part in ["weight", "bias"] {
        put(
            &mut writer,
            &format!("output_norm.{part}"),
            &named(&format!("ln_f.{part}")),
        );
        for layer in 0..3 {
            for (ours, theirs) in [
                ("attn_norm", "ln_1"),
                ("attn_qkv", "attn.c_attn"),
                ("attn_output", "attn.c_proj"),
                ("ffn_norm", "ln_2"),
                ("ffn_up", "mlp.c_fc"),
                ("ffn_down", "mlp.c_proj"),
            ] {
                let tensor = named(&format!("h.{layer}.{theirs}.{part}"));
                let tensor = match tensor.rank() {
                    2 => tensor.t().unwrap().contiguous().unwrap(),
                    _ => tensor,
                };
                put(&mut writer, &format!("blk.{layer}.{ours}.{part}"), &tensor);
            }
        }
    }
    put_tokenizer(&mut writer, tokens);
    writer
}

/// The Llama fixture, without its rope scaling: llama.cpp interleaves the rows of q and k.
fn llama() -> Writer {
    let raw = raw(LLAMA);
    let mut writer = Writer::default();
    writer
        .text("general.architecture", "llama")
        .size("llama.block_count", 3);
    writer
        .size("llama.embedding_length", 64)
        .size("llama.feed_forward_length", 96);
    writer
        .size("llama.attention.head_count", 4)
        .size("llama.attention.head_count_kv", 2);
    writer
        .size("llama.context_length", 256)
        .float("llama.rope.freq_base", 500_000.0);
    writer.float("llama.attention.layer_norm_rms_epsilon", 1e-5);
    // The rows of q and k as llama.cpp interleaves them: the inverse of what the loader does.
    let interleaved = |values: Vec<f32>| {
        let take = Take::UninterleaveHalves { d_head: 16 };
        let mut out = vec![0.0; values.len()];
        for (i, row) in values.chunks(64).enumerate() {
            out[take.source(i) * 64..][..64].copy_from_slice(row);
        }
        out
    };
    let mut put = |ours: String, theirs: String| {
        let tensor = &raw[&theirs];
        let values = flat(tensor);
        let is_rotary = theirs.contains("q_proj") || theirs.contains("k_proj");
        let values = if is_rotary {
            interleaved(values)
        } else {
            values
        };
        writer.tensor(&ours, tensor.dims(), &values);
    };
    put(
        "token_embd.weight".into(),
        "model.embed_tokens.weight".into(),
    );
    put("output.weight".into(), "lm_head.weight".into());
    put("output_norm.weight".into(), "model.norm.weight".into());
    for layer in 0..3 {
        for (ours, theirs) in [
            ("attn_norm", "input_layernorm"),
            ("attn_q", "self_attn.q_proj"),
            ("attn_k", "self_attn.k_proj"),
            ("attn_v", "self_attn.v_proj"),
            ("attn_output", "self_attn.o_proj"),
            ("ffn_norm", "post_attention_layernorm"),
            ("ffn_gate", "mlp.gate_proj"),
            ("ffn_up", "mlp.up_proj"),
            ("ffn_down", "mlp.down_proj"),
        ] {
            put(
                format!("blk.{layer}.{ours}.weight"),
                format!("model.layers.{layer}.{theirs}.weight"),
            );
        }
    }
    put_tokenizer(&mut writer, 512);
    writer
}

#[test]
fn llama_in_a_gguf_is_the_same_model() {
    let twin = load_edited(LLAMA, |_| ()).unwrap().model;
    let mut writer = llama();
    let factors = [1.0, 1.0, 2.0, 3.0, 4.0, 6.0, 8.0, 8.0];
    writer.tensor("rope_freqs.weight", &[8], &factors);
    let model = open(&writer).unwrap().model;
    assert_eq!(values(&model), values(&twin));
    assert_eq!(model.spec.norm_eps, 1e-5);
    let described = serde_json::to_string(&model.spec.position).unwrap();
    assert!(
        described.contains("Factors") && described.contains("500000"),
        "{described}"
    );

    writer.size("llama.expert_count", 8);
    let error = open(&writer).unwrap_err();
    assert!(error.to_string().contains("llama.expert_count"), "{error}");
}

#[test]
fn gpt2_in_a_gguf_is_the_same_model() {
    let writer = gpt2(&|writer, name, tensor| {
        writer.tensor(name, tensor.dims(), &flat(tensor));
    });
    let model = open(&writer).unwrap().model;
    let twin = load_edited(GPT2, |_| ()).unwrap().model;
    assert_eq!(values(&model), values(&twin));
    assert_eq!(model.spec, twin.spec);
}

#[test]
fn every_quantisation_is_within_its_rounding() {
    let twin = load_edited(GPT2, |_| ()).unwrap().model;
    // The largest relative error of a matrix, by its norm; llama.cpp's own quantiser does no better on noise.
    for (dtype, number, bound) in [
        (GgmlDType::F16, 1, 0.001),
        (GgmlDType::BF16, 30, 0.005),
        (GgmlDType::Q8_0, 8, 0.01),
        (GgmlDType::Q5_0, 6, 0.06),
        (GgmlDType::Q5_1, 7, 0.06),
        (GgmlDType::Q4_0, 2, 0.12),
        (GgmlDType::Q4_1, 3, 0.12),
        (GgmlDType::Q6K, 14, 0.03),
        (GgmlDType::Q5K, 13, 0.06),
        (GgmlDType::Q4K, 12, 0.12),
        (GgmlDType::Q3K, 11, 0.25),
        (GgmlDType::Q2K, 10, 0.45),
    ] {
        let writer = gpt2(&|writer, name, tensor| {
            // Blocks run along the rows; vectors and what has too short rows stay f32.
            let fits = tensor.rank() == 2 && tensor.dims()[1].is_multiple_of(dtype.block_size());
            match fits {
                false => writer.tensor(name, tensor.dims(), &flat(tensor)),
                true => {
                    let quantised = QTensor::quantize(tensor, dtype).unwrap();
                    writer.stored(name, tensor.dims(), number, &quantised.data().unwrap())
                }
            };
        });
        let model = open(&writer).unwrap().model;
        // Rows of 256, which every format takes; stored in the other order.
        let found = model.weights.blocks[1].mlp.as_ref().unwrap().w_out.clone();
        let exact = &twin.weights.blocks[1].mlp.as_ref().unwrap().w_out;
        let (found, exact) = (flat(&found), flat(exact));
        let norm =
            |values: &mut dyn Iterator<Item = f32>| values.map(|x| x * x).sum::<f32>().sqrt();
        let error = norm(&mut found.iter().zip(&exact).map(|(a, b)| a - b));
        let relative = error / norm(&mut exact.iter().copied());
        assert!(relative < bound, "{dtype:?}: {relative}");
        assert!(
            relative > bound / 100.0,
            "{dtype:?}: {relative} is too good to be quantised"
        );
        assert!(
            model.origin.storage.contains(&format!("{dtype:?}")),
            "{}",
            model.origin.storage
        );
    }
}

#[test]
fn linear_rope_scaling_is_the_same_in_both_files() {
    let mut config: serde_json::Value = serde_json::from_str(&text(LLAMA, "config.json")).unwrap();
    let theta = 500_000.0;
    config["rope_parameters"] = serde_json::json!({
        "rope_type": "linear", "factor": 4.0, "rope_theta": theta,
    });
    let bytes = fs::read(fixture(LLAMA).join("model.safetensors")).unwrap();
    let options = LoadOptions::default();
    let tokenizer = text(LLAMA, "tokenizer.json");
    let twin = load_parts(
        "twin",
        &config.to_string(),
        &bytes,
        tokenizer.as_bytes(),
        None,
        &options,
    );
    let twin = twin.unwrap().model;

    let mut writer = llama();
    writer
        .text("llama.rope.scaling.type", "linear")
        .float("llama.rope.scaling.factor", 4.0);
    let model = open(&writer).unwrap().model;
    assert_eq!(model.spec, twin.spec);
    let prompts = [vec![5, 7, 5, 9, 11, 200, 300]];
    let ours = flat(&crate::run::logits(&model, &prompts).unwrap());
    assert_eq!(ours, flat(&crate::run::logits(&twin, &prompts).unwrap()));
    let plain = open(&llama()).unwrap().model;
    assert_ne!(ours, flat(&crate::run::logits(&plain, &prompts).unwrap()));
}
