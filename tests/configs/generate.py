#!/usr/bin/env python3
"""The keys of published `config.json` files, and the logits of a model of each by Hugging Face transformers.

    python generate.py    # writes published.jsonl beside this file

Needs torch and transformers (5.24 made what is committed). What is recorded of a file are its keys and values; sizes are shrunk, so
that a model takes a millisecond. Weights are a function of the tensor's name and the entry's index (`values`), which the test that
reads the file computes again: so no weights are stored.

A line: `name` (the repository, or what was done with it), `config`, and `logits` at the last prompt position (position 7 of an
encoder), or `refused`, a part of the message that the file must be refused with. `extra` and `without` are tensors that the
checkpoint has, or lacks, against the one that transformers would save.
"""

import copy
import json
import math
import pathlib
import tempfile

import numpy
import torch
from safetensors.torch import save_file
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForMaskedLM

VOCAB, LAYERS, CONTEXT, TRAINED, WINDOW = 32, 3, 64, 16, 5
PROMPT = [(7 * i + 3) % VOCAB for i in range(24)]
MASKED = 7


def values(name, shape):
    """Uniform numbers from splitmix64, seeded with the FNV-1a hash of the name; vectors named `weight` lie around 1."""
    seed = 0xCBF29CE484222325
    for byte in name.encode():
        seed = (seed ^ byte) * 0x100000001B3 % 2**64
    n = math.prod(shape)
    with numpy.errstate(over="ignore"):
        z = numpy.uint64(seed) + (numpy.arange(n, dtype=numpy.uint64) + numpy.uint64(1)) * numpy.uint64(0x9E3779B97F4A7C15)
        z = (z ^ (z >> numpy.uint64(30))) * numpy.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> numpy.uint64(27))) * numpy.uint64(0x94D049BB133111EB)
        z = z ^ (z >> numpy.uint64(31))
    u = (z >> numpy.uint64(40)).astype(numpy.float64) / 2.0**23 - 1.0
    if len(shape) > 1:
        x = u * math.sqrt(3.0 / shape[-1])
    elif name.endswith("weight"):
        x = 1.0 + 0.3 * u
    else:
        x = 0.2 * u
    return torch.from_numpy(x.astype(numpy.float32).reshape(shape))


# What the sizes of a file become, whatever they were. Heads are of 6 or 8 dimensions.
SMALL = dict(
    vocab_size=VOCAB, hidden_size=24, n_embd=24, word_embed_proj_dim=24, intermediate_size=20, ffn_dim=20, n_inner=20,
    num_hidden_layers=LAYERS, n_layer=LAYERS, num_layers=LAYERS, max_window_layers=1, num_attention_heads=4, n_head=4, num_heads=4,
    max_position_embeddings=CONTEXT, n_positions=CONTEXT, n_ctx=CONTEXT, max_sequence_length=CONTEXT, sliding_window=WINDOW,
    sliding_window_size=WINDOW, window_size=WINDOW, rotary_dim=4, original_max_position_embeddings=TRAINED, query_pre_attn_scalar=9,
    n_embed=24, d_model=24, n_heads=4, n_layers=LAYERS, max_seq_len=CONTEXT, seq_length=CONTEXT, ffn_hidden_size=44,
    type_vocab_size=2, local_attention=6, sliding_window_pattern=2, _sliding_window_pattern=2,
)


# The shares of a head that rotate must come out even: 2 of 8, 4 or 6 of 12.
ENCODERS = ("bert", "roberta", "xlm-roberta", "modernbert")
# The text model inside one that reads images as well.
TEXT_OF = dict(gemma3="gemma3_text", mistral3="mistral")


FEWER_HEADS = dict(
    stablelm=dict(num_attention_heads=3, num_key_value_heads=3), cohere2=dict(head_dim=6), gpt_neox=dict(num_attention_heads=3), phi=dict(num_attention_heads=2, num_key_value_heads=2))


def shrunk(config):
    small = copy.deepcopy(config)
    heads = config.get("num_attention_heads")
    for key, value in config.items():
        if value is None:
            continue
        if key in SMALL:
            small[key] = SMALL[key]
        elif key in ("num_key_value_heads", "num_kv_heads"):
            small[key] = 4 if value == heads else 1 if value == 1 else 2
        elif key == "head_dim":
            small[key] = 8
        elif key.endswith("_token_id"):
            small[key] = 0 if not isinstance(value, list) else [0, 1]
        elif key == "attention_types":
            small[key] = [[["global", "local", "global"], 1]]
        elif key == "attention_layers":
            small[key] = ["global", "local", "global"]
        elif key == "no_rope_layers":
            small[key] = value[-LAYERS:]
        elif key == "text_config":
            small[key] = shrunk(value)
        elif key == "layer_types":
            small[key] = (value * LAYERS)[:LAYERS] if value[0] == value[-1] else ["sliding_attention", "full_attention", "sliding_attention"]
    partial = config.get("partial_rotary_factor", 1.0)
    for key in ("rope_scaling", "rope_parameters"):
        for rope in [small.get(key) or {}] + [v for v in (small.get(key) or {}).values() if isinstance(v, dict)]:
            if "original_max_position_embeddings" in rope:
                rope["original_max_position_embeddings"] = TRAINED
            pairs = int((small.get("head_dim") or 6) * rope.get("partial_rotary_factor", partial)) // 2
            for name, step in (("short_factor", 0.05), ("long_factor", 0.5)):
                if name in rope:
                    rope[name] = [1.0 + step * i for i in range(pairs)]
    return small


def logits(config, extra=(), without=()):
    """From a checkpoint on disk, as transformers itself loads it."""
    if config["model_type"] in TEXT_OF:
        config = dict(dict(model_type=TEXT_OF[config["model_type"]]), **config["text_config"], tie_word_embeddings=config.get("tie_word_embeddings", True))
    kind = AutoModelForMaskedLM if config["model_type"] in ENCODERS else AutoModelForCausalLM
    keys = dict(config)
    model = kind.from_config(AutoConfig.for_model(keys.pop("model_type"), **keys))
    heads = {"lm_head.weight", "embed_out.weight", "cls.predictions.decoder.weight", "cls.predictions.decoder.bias",
             "lm_head.decoder.weight", "lm_head.decoder.bias", "decoder.weight"}
    if not model.config.tie_word_embeddings:
        heads = set()
    # GPT-NeoX's unembedding has this name in most files, and another one in memory.
    saved = dict(model.state_dict())
    if config["model_type"] == "gpt_neox" and "lm_head.weight" not in extra:
        saved["embed_out.weight"] = saved.pop("lm_head.weight")
    tensors = {
        name: values(name, tuple(tensor.shape)) for name, tensor in saved.items()
        if tensor.is_floating_point() and (name not in heads or name in extra) and name not in without
    }
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder)
        (path / "config.json").write_text(json.dumps(config))
        save_file(tensors, str(path / "model.safetensors"), metadata={"format": "pt"})
        model = kind.from_pretrained(path, dtype=torch.float32, attn_implementation="eager").eval()
    with torch.no_grad():
        out = model(torch.tensor([PROMPT])).logits[0, MASKED if config["model_type"] in ENCODERS else -1]
    return [float(f"{x:.7g}") for x in out.tolist()]


SAVED4 = dict(torch_dtype="bfloat16", transformers_version="4.45.0", use_cache=True)
SAVED5 = dict(dtype="bfloat16", transformers_version="5.17.0", use_cache=True)
IDS = dict(bos_token_id=1, eos_token_id=2)
PUBLISHED = []


def add(name, *parts, drop=(), refused=None, **keys):
    config = {}
    for part in parts:
        config.update(part)
    config.update(keys)
    for key in drop:
        config.pop(key)
    PUBLISHED.append((name, config, refused))
    return config


# --- Llama
LLAMA = dict(
    architectures=["LlamaForCausalLM"], **IDS, hidden_act="silu", hidden_size=4096, initializer_range=0.02, intermediate_size=11008,
    max_position_embeddings=4096, model_type="llama", num_attention_heads=32, num_hidden_layers=32, rms_norm_eps=1e-5,
    tie_word_embeddings=False, vocab_size=32000, **SAVED4,
)
LLAMA2 = dict(LLAMA, num_key_value_heads=32, pretraining_tp=1, rope_scaling=None)
LLAMA3 = dict(
    LLAMA, attention_bias=False, attention_dropout=0.0, num_key_value_heads=8, pretraining_tp=1, rope_theta=500000.0, rope_scaling=None)
STRETCHED = dict(factor=8.0, high_freq_factor=4.0, low_freq_factor=1.0, original_max_position_embeddings=8192, rope_type="llama3")
LLAMA31 = dict(LLAMA3, mlp_bias=False, rope_scaling=STRETCHED, eos_token_id=[128001, 128008, 128009])
LLAMA32 = dict(LLAMA31, head_dim=64, tie_word_embeddings=True, rope_scaling=dict(STRETCHED, factor=32.0))
add("huggyllama/llama-7b", LLAMA, max_sequence_length=2048, pad_token_id=0, rms_norm_eps=1e-6)
add("openlm-research/open_llama_3b", LLAMA, pad_token_id=0, rms_norm_eps=1e-6)
add("meta-llama/Llama-2-7b-hf", LLAMA2, _name_or_path="meta-llama/Llama-2-7b-hf")
add("meta-llama/Llama-2-13b-hf", LLAMA2, _name_or_path="meta-llama/Llama-2-13b-hf", pretraining_tp=2, pad_token_id=0)
add("meta-llama/Llama-2-70b-hf", LLAMA2, num_key_value_heads=8, pad_token_id=0)
add("lmsys/vicuna-7b-v1.5", LLAMA2, pad_token_id=0, max_length=4096, temperature=0.9, top_p=0.6)
add("lmsys/vicuna-7b-v1.5-16k", LLAMA2, max_sequence_length=16384, rope_scaling=dict(factor=4.0, type="linear"))
add("codellama/CodeLlama-7b-hf", LLAMA2, rope_theta=1000000)
add("TinyLlama/TinyLlama-1.1B-Chat-v1.0", LLAMA3, rope_theta=10000.0, num_key_value_heads=4)
add("deepseek-ai/deepseek-coder-1.3b-base", LLAMA2, rope_scaling=dict(factor=4.0, type="linear"), rope_theta=100000)
add("01-ai/Yi-6B", LLAMA2, num_key_value_heads=4, pad_token_id=0, rope_theta=5000000.0)
add("NousResearch/Yarn-Llama-2-7b-64k", LLAMA2, auto_map=dict(AutoConfig="configuration_llama.LlamaConfig"),
    rope_scaling=dict(factor=16.0, finetuned=True, original_max_position_embeddings=4096, type="yarn"))
add("togethercomputer/LLaMA-2-7B-32K", LLAMA2, rope_scaling=dict(factor=8.0, type="linear"), auto_map=dict(AutoModelForCausalLM="x.Y"))
add("meta-llama/Meta-Llama-3-8B", LLAMA3)
add("meta-llama/Llama-3.1-8B", LLAMA31)
add("meta-llama/Llama-3.2-1B", LLAMA32)
add("unsloth/Llama-3.2-1B", LLAMA32, pad_token_id=128004, unsloth_fixed=True)
add("unsloth/Meta-Llama-3.1-8B-Instruct", LLAMA31, pad_token_id=128004, unsloth_version="2024.9")
add("deepseek-ai/DeepSeek-R1-Distill-Llama-8B", LLAMA31, eos_token_id=128001)
add("tiiuae/Falcon3-1B-Base", LLAMA3, head_dim=256, rope_theta=1000042, mlp_bias=False)
add("HuggingFaceTB/SmolLM-135M", LLAMA3, rope_theta=10000.0, tie_word_embeddings=True, num_key_value_heads=3)
add("HuggingFaceTB/SmolLM2-135M-Instruct", LLAMA3, {
    "is_llama_config": True, "mlp_bias": False, "rope_interleaved": False, "tie_word_embeddings": True, "num_key_value_heads": 3,
    "transformers.js_config": {"kv_cache_dtype": {"q4f16": "float16"}}, "rope_theta": 100000, "pad_token_id": 2})
add("Llama 3.2 1B as transformers 5 saves it", {k: v for k, v in LLAMA32.items() if k not in SAVED4}, SAVED5, drop=["rope_scaling", "rope_theta"],
    rope_parameters=dict(STRETCHED, factor=32.0, rope_theta=500000.0), pad_token_id=None)
add("Llama 3.2 1B as to_dict() of transformers 4.45 has it", LLAMA32, {
    "_name_or_path": "x", "_commit_hash": "0" * 40, "_attn_implementation_autoset": True, "return_dict": True, "output_hidden_states": False,
    "output_attentions": False, "torchscript": False, "use_bfloat16": False, "tf_legacy_loss": False, "pruned_heads": {},
    "chunk_size_feed_forward": 0, "is_encoder_decoder": False, "is_decoder": False, "cross_attention_hidden_size": None,
    "add_cross_attention": False, "tie_encoder_decoder": False, "max_length": 20, "min_length": 0, "do_sample": False,
    "early_stopping": False, "num_beams": 1, "num_beam_groups": 1, "diversity_penalty": 0.0, "temperature": 1.0, "top_k": 50,
    "top_p": 1.0, "typical_p": 1.0, "repetition_penalty": 1.0, "length_penalty": 1.0, "no_repeat_ngram_size": 0,
    "encoder_no_repeat_ngram_size": 0, "bad_words_ids": None, "num_return_sequences": 1, "output_scores": False,
    "return_dict_in_generate": False, "forced_bos_token_id": None, "forced_eos_token_id": None, "remove_invalid_values": False,
    "exponential_decay_length_penalty": None, "suppress_tokens": None, "begin_suppress_tokens": None, "finetuning_task": None,
    "id2label": {"0": "LABEL_0", "1": "LABEL_1"}, "label2id": {"LABEL_0": 0, "LABEL_1": 1}, "tokenizer_class": None, "prefix": None,
    "sep_token_id": None, "decoder_start_token_id": None, "task_specific_params": None, "problem_type": None})
add("a Llama that says nothing but its sizes", dict(
    model_type="llama", hidden_size=4096, intermediate_size=11008, num_hidden_layers=32, num_attention_heads=32, vocab_size=32000))
add("TheBloke/Llama-2-7B-GPTQ", LLAMA2, refused="quantised", quantization_config=dict(bits=4, group_size=128, quant_method="gptq"))
add("unsloth/llama-3-8b-bnb-4bit", LLAMA3, refused="quantised", quantization_config=dict(load_in_4bit=True, quant_method="bitsandbytes"))
add("mlx-community/Llama-3.2-1B-Instruct-4bit", LLAMA32, refused="quantised", quantization=dict(group_size=64, bits=4))
add("a Llama whose queries rotate in adjacent pairs", LLAMA3, refused="rope_interleaved", rope_interleaved=True)
add("a Llama with positions that nobody knows", LLAMA3, refused="ntk", rope_scaling=dict(type="ntk", factor=2.0))

# --- Mistral
MISTRAL = dict(
    architectures=["MistralForCausalLM"], **IDS, hidden_act="silu", hidden_size=4096, initializer_range=0.02, intermediate_size=14336,
    max_position_embeddings=32768, model_type="mistral", num_attention_heads=32, num_hidden_layers=32, num_key_value_heads=8,
    rms_norm_eps=1e-5, rope_theta=10000.0, sliding_window=4096, tie_word_embeddings=False, vocab_size=32000, **SAVED4,
)
add("mistralai/Mistral-7B-v0.1", MISTRAL)
add("mistralai/Mistral-7B-Instruct-v0.2", MISTRAL, rope_theta=1000000.0, sliding_window=None, attention_dropout=0.0)
add("mistralai/Mistral-7B-v0.3", MISTRAL, rope_theta=1000000.0, sliding_window=None, attention_dropout=0.0)
add("mistralai/Mistral-Nemo-Base-2407", MISTRAL, head_dim=128, rope_theta=1000000.0, sliding_window=None)
add("HuggingFaceH4/zephyr-7b-beta", MISTRAL, _name_or_path="x", pad_token_id=2)
add("unsloth/mistral-7b-v0.3", MISTRAL, head_dim=128, pad_token_id=770, sliding_window=None, unsloth_version="2024.9")
add("NousResearch/Yarn-Mistral-7b-128k", MISTRAL, auto_map=dict(AutoConfig="configuration_mistral.MistralConfig"), max_sequence_length=131072,
    rope_scaling=dict(factor=16.0, finetuned=True, original_max_position_embeddings=8192, type="yarn"))
add("Mistral 7B v0.1 without its window's key", MISTRAL, drop=["sliding_window"])
add("Mistral 7B v0.3 as transformers 5 saves it", {k: v for k, v in MISTRAL.items() if k not in SAVED4}, SAVED5, drop=["rope_theta"],
    sliding_window=None, head_dim=None, rope_parameters=dict(rope_theta=1000000.0, rope_type="default"))

# --- Qwen 2, 2.5, 3
QWEN2 = dict(
    architectures=["Qwen2ForCausalLM"], attention_dropout=0.0, bos_token_id=151643, eos_token_id=151643, hidden_act="silu",
    hidden_size=896, initializer_range=0.02, intermediate_size=4864, max_position_embeddings=32768, max_window_layers=24,
    model_type="qwen2", num_attention_heads=14, num_hidden_layers=24, num_key_value_heads=2, rms_norm_eps=1e-6, rope_theta=1000000.0,
    sliding_window=32768, tie_word_embeddings=True, use_sliding_window=False, vocab_size=151936, **SAVED4,
)
YARN = dict(factor=4.0, original_max_position_embeddings=32768, type="yarn")
add("Qwen/Qwen2-0.5B", QWEN2)
add("Qwen/Qwen2-7B-Instruct", QWEN2, tie_word_embeddings=False)
add("Qwen/Qwen2.5-0.5B", QWEN2, use_mrope=False)
add("Qwen/Qwen2.5-7B-Instruct", QWEN2, tie_word_embeddings=False)
add("Qwen/Qwen2.5-7B-Instruct with its yarn", QWEN2, rope_scaling=YARN)
add("Qwen/Qwen2.5-7B-Instruct-1M", QWEN2, dual_chunk_attention_config=dict(
    chunk_size=262144, local_size=8192, original_max_position_embeddings=262144), tie_word_embeddings=False)
add("deepseek-ai/DeepSeek-R1-Distill-Qwen-1.5B", QWEN2, use_mrope=False, tie_word_embeddings=False, sliding_window=4096)
add("unsloth/Qwen2.5-0.5B", QWEN2, pad_token_id=151654, unsloth_fixed=True, rope_scaling=None)
add("a Qwen 2 with its windows in force", QWEN2, use_sliding_window=True)
add("Qwen 2.5 0.5B as transformers 5 saves it", {k: v for k, v in QWEN2.items() if k not in SAVED4}, SAVED5, drop=["rope_theta"],
    layer_types=["full_attention"] * 24, rope_parameters=dict(rope_theta=1e6, rope_type="default"), sliding_window=None, use_mrope=False,
    pad_token_id=None)
add("Alibaba-NLP/gte-Qwen2-1.5B-instruct", QWEN2, refused="both directions", is_causal=False, auto_map=dict(AutoModel="x.Y"))
QWEN3 = dict(
    QWEN2, architectures=["Qwen3ForCausalLM"], model_type="qwen3", attention_bias=False, head_dim=128, rope_scaling=None,
    sliding_window=None, num_key_value_heads=8)
add("Qwen/Qwen3-0.6B", QWEN3)
add("Qwen/Qwen3-8B", QWEN3, tie_word_embeddings=False)
add("Qwen/Qwen3-Embedding-0.6B", QWEN3)
add("unsloth/Qwen3-0.6B", QWEN3, pad_token_id=151654, unsloth_fixed=True, unsloth_version="2025.4.7")
add("deepseek-ai/DeepSeek-R1-0528-Qwen3-8B", QWEN3, tie_word_embeddings=False, rope_scaling=dict(
    attn_factor=0.8782488562869419, factor=4.0, original_max_position_embeddings=32768, rope_type="yarn"))
add("Qwen 3 0.6B as transformers 5 saves it", {k: v for k, v in QWEN3.items() if k not in SAVED4}, SAVED5,
    drop=["rope_theta", "rope_scaling"], layer_types=["full_attention"] * 28, rope_parameters=dict(rope_theta=1e6, rope_type="default"))

# --- Gemma 1, 2, 3
GEMMA = dict(
    architectures=["GemmaForCausalLM"], attention_bias=False, attention_dropout=0.0, bos_token_id=2, eos_token_id=1, head_dim=256,
    hidden_act="gelu", hidden_size=2048, initializer_range=0.02, intermediate_size=16384, max_position_embeddings=8192,
    model_type="gemma", num_attention_heads=8, num_hidden_layers=18, num_key_value_heads=1, pad_token_id=0, rms_norm_eps=1e-6,
    rope_scaling=None, rope_theta=10000.0, vocab_size=256000, **SAVED4,
)
add("google/gemma-2b", GEMMA)
add("google/gemma-7b", GEMMA, num_key_value_heads=8, hidden_activation=None)
add("google/gemma-1.1-2b-it", GEMMA, hidden_act="gelu_pytorch_tanh", hidden_activation="gelu_pytorch_tanh")
add("unsloth/gemma-2b", GEMMA, hidden_activation=None, unsloth_version="2024.9")
GEMMA2 = dict(
    {k: v for k, v in GEMMA.items() if k != "rope_scaling"}, architectures=["Gemma2ForCausalLM"], model_type="gemma2",
    attn_logit_softcapping=50.0, final_logit_softcapping=30.0, cache_implementation="hybrid", hidden_act="gelu_pytorch_tanh",
    hidden_activation="gelu_pytorch_tanh", num_key_value_heads=4, query_pre_attn_scalar=256, sliding_window=4096)
add("google/gemma-2-2b", GEMMA2)
add("google/gemma-2-9b", GEMMA2, sliding_window_size=4096)
add("google/gemma-2-27b", GEMMA2, query_pre_attn_scalar=144, _attn_implementation="eager", sliding_window_size=4096)
add("unsloth/gemma-2-2b", GEMMA2, unsloth_version="2024.9", eos_token_id=[1, 107])
add("Gemma 2 2B without its caps, scalar and window", GEMMA2, drop=[
    "attn_logit_softcapping", "final_logit_softcapping", "query_pre_attn_scalar", "sliding_window"])
GEMMA3 = dict(
    {k: v for k, v in GEMMA2.items() if k not in ("hidden_act", "cache_implementation")}, architectures=["Gemma3ForCausalLM"],
    model_type="gemma3_text", attn_logit_softcapping=None, final_logit_softcapping=None, num_key_value_heads=1, rope_theta=1000000,
    rope_local_base_freq=10000, rope_scaling=None, sliding_window=512, max_position_embeddings=32768, vocab_size=262144,
    cache_implementation="hybrid")
KINDS = ["sliding_attention"] * 5 + ["full_attention"] + ["sliding_attention"] * 5 + ["full_attention"]
add("google/gemma-3-1b-pt", GEMMA3, sliding_window_pattern=6)
add("google/gemma-3-1b-it", GEMMA3, sliding_window_pattern=6, eos_token_id=[1, 106])
add("google/gemma-3-270m", {k: v for k, v in GEMMA3.items() if k != "cache_implementation"}, _sliding_window_pattern=6, layer_types=KINDS,
    use_bidirectional_attention=False)
add("unsloth/gemma-3-1b-it", GEMMA3, sliding_window_pattern=6, unsloth_fixed=True, unsloth_version="2025.3.14")
add("Gemma 3 1B as transformers 5 saves it", {k: v for k, v in GEMMA3.items() if k not in SAVED4}, SAVED5,
    drop=["rope_theta", "rope_local_base_freq", "rope_scaling"], layer_types=KINDS, sliding_window_pattern=6, _sliding_window_pattern=6,
    tie_word_embeddings=True, use_bidirectional_attention=False, rope_parameters=dict(
        full_attention=dict(rope_theta=1000000, rope_type="default"), sliding_attention=dict(rope_theta=10000, rope_type="default")))
add("Gemma 3 1B without its window, with a cap that nobody reads", GEMMA3, drop=["sliding_window"], sliding_window_pattern=6,
    attn_logit_softcapping=4.0)
add("google/embeddinggemma-300m", GEMMA3, refused="both directions", _sliding_window_pattern=6, layer_types=KINDS,
    use_bidirectional_attention=True)
VISION = dict(hidden_size=1152, image_size=896, model_type="siglip_vision_model", num_hidden_layers=27, patch_size=14, vision_use_head=False)
INNER = dict(
    architectures=["Gemma3ForConditionalGeneration"], boi_token_index=255999, eoi_token_index=256000, eos_token_id=[1, 106],
    image_token_index=262144, initializer_range=0.02, mm_tokens_per_image=256, model_type="gemma3", torch_dtype="bfloat16",
    transformers_version="4.50.0.dev0", vision_config=VISION)
add("google/gemma-3-4b-pt", INNER, text_config=dict(
    hidden_size=2560, intermediate_size=10240, model_type="gemma3_text", num_hidden_layers=34,
    rope_scaling=dict(factor=8.0, rope_type="linear"), sliding_window=1024, vocab_size=262208))
add("google/gemma-3-27b-it", INNER, text_config=dict(
    head_dim=128, hidden_size=5376, intermediate_size=21504, model_type="gemma3_text", num_attention_heads=32, num_hidden_layers=62,
    num_key_value_heads=16, query_pre_attn_scalar=168, rope_scaling=dict(factor=8.0, rope_type="linear"), sliding_window=1024,
    vocab_size=262208))
add("a Gemma 3 that reads images and no text", INNER, refused="text_config")
add("mistralai/Mistral-Small-3.1-24B-Instruct-2503", dict(
    architectures=["Mistral3ForConditionalGeneration"], image_token_index=10, model_type="mistral3", multimodal_projector_bias=False,
    projector_hidden_act="gelu", spatial_merge_size=2, torch_dtype="bfloat16", transformers_version="4.50.0.dev0", vision_feature_layer=-1,
    vision_config=dict(hidden_size=1024, image_size=1540, model_type="pixtral"), text_config=dict(
        attention_dropout=0.0, head_dim=128, hidden_act="silu", hidden_size=5120, initializer_range=0.02, intermediate_size=32768,
        max_position_embeddings=131072, model_type="mistral", num_attention_heads=32, num_hidden_layers=40, num_key_value_heads=8,
        rms_norm_eps=1e-5, rope_theta=1e9, sliding_window=None, use_cache=True, vocab_size=131072)))

# --- Phi, Phi-3
PHI = dict(
    architectures=["PhiForCausalLM"], attention_dropout=0.0, bos_token_id=50256, embd_pdrop=0.0, eos_token_id=50256, hidden_act="gelu_new",
    hidden_size=2560, initializer_range=0.02, intermediate_size=10240, layer_norm_eps=1e-5, max_position_embeddings=2048,
    model_type="phi", num_attention_heads=32, num_hidden_layers=32, num_key_value_heads=32, partial_rotary_factor=0.4,
    qk_layernorm=False, resid_pdrop=0.1, rope_scaling=None, rope_theta=10000.0, tie_word_embeddings=False, vocab_size=51200, **SAVED4,
)
add("microsoft/phi-2", PHI)
add("microsoft/phi-1_5", PHI, partial_rotary_factor=0.5, num_key_value_heads=None, bos_token_id=None, eos_token_id=None, resid_pdrop=0.0)
add("microsoft/phi-1 with its code", PHI, auto_map=dict(AutoConfig="configuration_phi.PhiConfig"))
add("Phi 2 without its share", PHI, drop=["partial_rotary_factor"])
add("a Phi whose queries and keys have norms", PHI, qk_layernorm=True)
PHI3 = dict(
    architectures=["Phi3ForCausalLM"], attention_bias=False, attention_dropout=0.0, auto_map=dict(
        AutoConfig="configuration_phi3.Phi3Config", AutoModelForCausalLM="modeling_phi3.Phi3ForCausalLM"), bos_token_id=1, embd_pdrop=0.0,
    eos_token_id=32000, hidden_act="silu", hidden_size=3072, initializer_range=0.02, intermediate_size=8192,
    max_position_embeddings=4096, model_type="phi3", num_attention_heads=32, num_hidden_layers=32, num_key_value_heads=32,
    original_max_position_embeddings=4096, pad_token_id=32000, resid_pdrop=0.0, rms_norm_eps=1e-5, rope_scaling=None,
    rope_theta=10000.0, sliding_window=2047, tie_word_embeddings=False, vocab_size=32064, **SAVED4,
)
LONG = dict(long_factor=[1.0], short_factor=[1.0], type="longrope")
add("microsoft/Phi-3-mini-4k-instruct", PHI3)
add("microsoft/Phi-3-mini-128k-instruct", PHI3, max_position_embeddings=131072, sliding_window=262144, rope_scaling=LONG)
add("microsoft/Phi-3.5-mini-instruct", PHI3, max_position_embeddings=131072, sliding_window=262144, rope_scaling=LONG)
add("microsoft/Phi-3-medium-4k-instruct", PHI3, num_key_value_heads=8)
add("microsoft/phi-4", PHI3, drop=["auto_map"], num_key_value_heads=8, sliding_window=None, rope_theta=250000)
add("microsoft/Phi-4-mini-instruct", PHI3, full_attn_mod=1, interpolate_factor=1, lm_head_bias=False, mlp_bias=False,
    partial_rotary_factor=0.75, num_key_value_heads=8, rope_scaling=LONG, sliding_window=262144, tie_word_embeddings=True,
    max_position_embeddings=131072)
add("Phi-4-mini as transformers 5 saves it", {k: v for k, v in PHI3.items() if k not in SAVED4}, SAVED5, drop=["rope_theta", "rope_scaling"],
    rope_parameters=dict({k: v for k, v in LONG.items() if k != "type"}, rope_type="longrope", rope_theta=10000.0,
                         partial_rotary_factor=0.75, original_max_position_embeddings=4096), num_key_value_heads=8)

# --- OLMo 2, StarCoder 2
OLMO2 = dict(
    architectures=["Olmo2ForCausalLM"], attention_bias=False, attention_dropout=0.0, eos_token_id=100257, hidden_act="silu",
    hidden_size=4096, initializer_range=0.02, intermediate_size=11008, max_position_embeddings=4096, model_type="olmo2",
    num_attention_heads=32, num_hidden_layers=32, num_key_value_heads=32, pad_token_id=100277, rms_norm_eps=1e-6, rope_scaling=None,
    rope_theta=500000, tie_word_embeddings=False, vocab_size=100352, **SAVED4,
)
add("allenai/OLMo-2-1124-7B", OLMO2)
add("allenai/OLMo-2-0425-1B", OLMO2, _attn_implementation_autoset=True)
add("allenai/OLMo-2-0325-32B-Instruct", OLMO2, num_key_value_heads=8, bos_token_id=100257)
STAR = dict(
    architectures=["Starcoder2ForCausalLM"], attention_dropout=0.1, attention_softmax_in_fp32=True, bos_token_id=0, embedding_dropout=0.1,
    eos_token_id=0, hidden_act="gelu_pytorch_tanh", hidden_size=3072, initializer_range=0.018042, intermediate_size=12288,
    layer_norm_epsilon=1e-5, max_position_embeddings=16384, mlp_type="default", model_type="starcoder2", norm_epsilon=1e-5,
    norm_type="layer_norm", num_attention_heads=24, num_hidden_layers=30, num_key_value_heads=2, residual_dropout=0.1,
    rope_theta=999999.4420358813, scale_attention_softmax_in_fp32=True, scale_attn_weights=True, sliding_window=4096, use_bias=True,
    vocab_size=49152, **SAVED4,
)
add("bigcode/starcoder2-3b", STAR)
add("bigcode/starcoder2-15b", STAR, num_key_value_heads=4, rope_theta=100000, tie_word_embeddings=False)

# --- OLMo 1 and 3, Granite, SmolLM3, StableLM, Cohere, GLM-4
OLMO = dict(
    architectures=["OlmoForCausalLM"], attention_bias=False, attention_dropout=0.0, clip_qkv=None, eos_token_id=50279, hidden_act="silu",
    hidden_size=2048, initializer_range=0.02, intermediate_size=8192, max_position_embeddings=2048, model_type="olmo",
    num_attention_heads=16, num_hidden_layers=16, num_key_value_heads=16, pad_token_id=1, pretraining_tp=1, rope_scaling=None,
    rope_theta=10000.0, tie_word_embeddings=True, vocab_size=50304, **SAVED4,
)
add("allenai/OLMo-1B-hf", OLMO)
add("allenai/OLMo-7B-hf", OLMO, tie_word_embeddings=False)
add("allenai/OLMo-7B-0424-hf", OLMO, clip_qkv=8.0)
add("an OLMo that cuts off what its shrunk weights give", OLMO, clip_qkv=0.7)
OLMO3 = dict(
    OLMO2, architectures=["Olmo3ForCausalLM"], model_type="olmo3",
    sliding_window=4096, max_position_embeddings=65536, layer_types=KINDS, rope_scaling=dict(
        attention_factor=1.2079441541679836, beta_fast=32.0, beta_slow=1.0, factor=8.0, original_max_position_embeddings=8192,
        rope_type="yarn"))
add("allenai/Olmo-3-1025-7B", OLMO3)
add("an OLMo 3 without its kinds of layers", OLMO3, drop=["layer_types", "rope_scaling", "rope_theta"])
GRANITE = dict(
    architectures=["GraniteForCausalLM"], attention_bias=False, attention_dropout=0.0, attention_multiplier=0.015625, bos_token_id=0,
    embedding_multiplier=12.0, eos_token_id=0, hidden_act="silu", hidden_size=2048, initializer_range=0.02, intermediate_size=8192,
    logits_scaling=8.0, max_position_embeddings=131072, mlp_bias=False, model_type="granite", num_attention_heads=32,
    num_hidden_layers=40, num_key_value_heads=8, pad_token_id=0, residual_multiplier=0.22, rms_norm_eps=1e-5, rope_scaling=None,
    rope_theta=10000000.0, tie_word_embeddings=True, vocab_size=49159, **SAVED4,
)
add("ibm-granite/granite-3.3-2b-instruct", GRANITE)
add("a Granite without its multipliers", GRANITE,
    drop=["attention_multiplier", "embedding_multiplier", "logits_scaling", "residual_multiplier"])
SMOLLM3 = dict(
    architectures=["SmolLM3ForCausalLM"], attention_bias=False, attention_dropout=0.0, bos_token_id=None, eos_token_id=128012,
    hidden_act="silu", hidden_size=2048, initializer_range=0.02, intermediate_size=11008, layer_types=["full_attention"] * 36,
    max_position_embeddings=65536, max_window_layers=28, mlp_bias=False, model_type="smollm3", no_rope_layer_interval=4,
    no_rope_layers=[1, 1, 1, 0] * 9, num_attention_heads=16, num_hidden_layers=36, num_key_value_heads=4, pad_token_id=128004,
    pretraining_tp=2, rms_norm_eps=1e-6, rope_scaling=None, rope_theta=5000000.0, sliding_window=None, use_sliding_window=False,
    vocab_size=128256, **SAVED4,
)
add("HuggingFaceTB/SmolLM3-3B", SMOLLM3)
add("SmolLM3 without its list", SMOLLM3, drop=["no_rope_layers", "layer_types", "rope_theta", "num_key_value_heads"], no_rope_layer_interval=2)
STABLELM = dict(
    architectures=["StableLmForCausalLM"], attention_dropout=0.0, bos_token_id=100257, eos_token_id=100257, hidden_act="silu",
    hidden_dropout=0.0, hidden_size=2048, initializer_range=0.02, intermediate_size=5632, layer_norm_eps=1e-5,
    max_position_embeddings=4096, model_type="stablelm", num_attention_heads=32, num_hidden_layers=24, num_key_value_heads=32,
    partial_rotary_factor=0.25, qk_layernorm=False, rope_scaling=None, rope_theta=10000, tie_word_embeddings=False, use_qkv_bias=True,
    use_parallel_residual=False, vocab_size=100352, **SAVED4,
)
add("stabilityai/stablelm-2-1_6b", STABLELM)
add("StableLM without its share", STABLELM, drop=["partial_rotary_factor", "use_qkv_bias", "use_parallel_residual"])
add("stabilityai/stablelm-2-12b", STABLELM, qk_layernorm=True, use_parallel_residual=True)
COHERE = dict(
    architectures=["CohereForCausalLM"], attention_bias=False, attention_dropout=0.0, bos_token_id=5, eos_token_id=255001,
    hidden_act="silu", hidden_size=8192, initializer_range=0.02, intermediate_size=22528, layer_norm_eps=1e-5, logit_scale=0.0625,
    max_position_embeddings=8192, model_max_length=131072, model_type="cohere", num_attention_heads=64, num_hidden_layers=40,
    num_key_value_heads=64, pad_token_id=0, pretraining_tp=1, rope_theta=8000000.0, vocab_size=256000, **SAVED4,
)
add("CohereLabs/c4ai-command-r-v01", COHERE)
add("CohereLabs/aya-23-8B without its base", COHERE, drop=["rope_theta", "logit_scale"], num_key_value_heads=8, use_qk_norm=False)
add("CohereLabs/c4ai-command-r-plus", COHERE, use_qk_norm=True, num_key_value_heads=8)
COHERE2 = dict(
    COHERE, architectures=["Cohere2ForCausalLM"], cache_implementation="hybrid", head_dim=128, layer_switch=4, logit_scale=0.25,
    model_type="cohere2", num_key_value_heads=8, order_of_interleaved_layers="local_attn_first", position_embedding_type="rope_gptj",
    rope_scaling=None, rope_theta=50000, rotary_pct=1.0, sliding_window=4096, sliding_window_pattern=4, use_embedding_sharing=True,
    use_gated_activation=True, use_parallel_block=True, use_parallel_embedding=True)
add("CohereLabs/c4ai-command-r7b-12-2024", COHERE2)
add("a Cohere 2 without its pattern", COHERE2, drop=["sliding_window_pattern", "layer_switch", "logit_scale"])
GLM4 = dict(
    architectures=["Glm4ForCausalLM"], attention_bias=False, attention_dropout=0.0, eos_token_id=[151329, 151336, 151338], head_dim=128,
    hidden_act="silu", hidden_size=4096, initializer_range=0.02, intermediate_size=13696, max_position_embeddings=32768,
    model_type="glm4", num_attention_heads=32, num_hidden_layers=40, num_key_value_heads=2, pad_token_id=151329,
    partial_rotary_factor=0.5, rms_norm_eps=1e-5, rope_theta=10000.0, tie_word_embeddings=False, vocab_size=151552, **SAVED4,
)
add("zai-org/GLM-4-9B-0414", GLM4)
add("GLM-4 without what its class has", GLM4, drop=["attention_bias", "partial_rotary_factor", "rms_norm_eps", "rope_theta"])

# --- GPT-2 and what is built like it
GPT2 = dict(
    activation_function="gelu_new", architectures=["GPT2LMHeadModel"], attn_pdrop=0.1, bos_token_id=50256, embd_pdrop=0.1,
    eos_token_id=50256, initializer_range=0.02, layer_norm_epsilon=1e-5, model_type="gpt2", n_ctx=1024, n_embd=768, n_head=12,
    n_layer=12, n_positions=1024, resid_pdrop=0.1, summary_activation=None, summary_first_dropout=0.1, summary_proj_to_labels=True,
    summary_type="cls_index", summary_use_proj=True, task_specific_params={"text-generation": {"do_sample": True, "max_length": 50}},
    vocab_size=50257,
)
OLD = dict(
    finetuning_task=None, num_labels=1, output_attentions=False, output_hidden_states=False, output_past=True, pruned_heads={},
    torchscript=False, use_bfloat16=False)
add("openai-community/gpt2", GPT2)
add("openai-community/gpt2-medium", GPT2, n_special=0, predict_special_tokens=True)
add("openai-community/gpt2-xl", GPT2, output_past=True)
add("GPT-2 of 2019", GPT2, OLD, drop=["activation_function", "architectures", "task_specific_params"])
add("distilbert/distilgpt2", GPT2, _num_labels=1, id2label={"0": "LABEL_0"}, label2id={"LABEL_0": 0})
add("microsoft/DialoGPT-medium", GPT2, task_specific_params=dict(conversational=dict(max_length=1000)))
add("uer/gpt2-chinese-cluecorpussmall", GPT2, gradient_checkpointing=False, tokenizer_class="BertTokenizer")
add("stanford-crfm/alias-gpt2-small-x21", GPT2, n_inner=None, reorder_and_upcast_attn=True, scale_attn_by_inverse_layer_idx=True,
    scale_attn_weights=True, use_cache=False, gradient_checkpointing=True, transformers_version="4.6.0.dev0")
add("cerebras/Cerebras-GPT-111M", GPT2, activation_function="gelu", n_inner=3072, scale_attn_weights=True)
add("codeparrot/codeparrot-small", GPT2, n_inner=None, reorder_and_upcast_attn=True, scale_attn_by_inverse_layer_idx=False)
add("rinna/japanese-gpt2-medium", GPT2, gradient_checkpointing=False, n_inner=4096, scale_attn_weights=True, tokenizer_class="T5Tokenizer")
add("a GPT-2 with a second model to look at", GPT2, refused="add_cross_attention", add_cross_attention=True)
NEO = dict(
    activation_function="gelu_new", architectures=["GPTNeoForCausalLM"], attention_dropout=0, attention_layers=["global", "local"] * 6,
    attention_types=[[["global", "local"], 6]], bos_token_id=50256, embed_dropout=0, eos_token_id=50256, gradient_checkpointing=False,
    hidden_size=768, initializer_range=0.02, intermediate_size=None, layer_norm_epsilon=1e-5, max_position_embeddings=2048,
    model_type="gpt_neo", num_heads=12, num_layers=12, resid_dropout=0, summary_activation=None, summary_first_dropout=0.1,
    summary_proj_to_labels=True, summary_type="cls_index", summary_use_proj=True, transformers_version="4.9.0.dev0", use_cache=True,
    vocab_size=50257, window_size=256,
)
add("EleutherAI/gpt-neo-125m", NEO)
add("EleutherAI/gpt-neo-1.3B", NEO, tokenizer_class="GPT2Tokenizer", task_specific_params={"text-generation": {"do_sample": True}})
add("roneneldan/TinyStories-33M", NEO, _name_or_path="EleutherAI/gpt-neo-125M", classifier_dropout=0.1, torch_dtype="float32")
GPTJ = dict(
    activation_function="gelu_new", architectures=["GPTJForCausalLM"], attn_pdrop=0.0, bos_token_id=50256, embd_pdrop=0.0,
    eos_token_id=50256, gradient_checkpointing=False, initializer_range=0.02, layer_norm_epsilon=1e-5, model_type="gptj", n_embd=4096,
    n_head=16, n_inner=None, n_layer=28, n_positions=2048, resid_pdrop=0.0, rotary=True, rotary_dim=64, scale_attn_weights=True,
    summary_activation=None, summary_first_dropout=0.1, summary_proj_to_labels=True, summary_type="cls_index", summary_use_proj=True,
    tie_word_embeddings=False, tokenizer_class="GPT2Tokenizer", transformers_version="4.18.0.dev0", use_cache=True, vocab_size=50400,
)
add("EleutherAI/gpt-j-6b", GPTJ)

# --- GPT-NeoX
NEOX = dict(
    architectures=["GPTNeoXForCausalLM"], bos_token_id=0, eos_token_id=0, hidden_act="gelu", hidden_size=512, initializer_range=0.02,
    intermediate_size=2048, layer_norm_eps=1e-5, max_position_embeddings=2048, model_type="gpt_neox", num_attention_heads=8,
    num_hidden_layers=6, rotary_emb_base=10000, rotary_pct=0.25, tie_word_embeddings=False, torch_dtype="float16",
    transformers_version="4.24.0", use_cache=True, use_parallel_residual=True, vocab_size=50304,
)
add("EleutherAI/pythia-70m", NEOX)
add("EleutherAI/pythia-6.9b-deduped as transformers 4.51 saves it", NEOX, attention_bias=True, attention_dropout=0.0, classifier_dropout=0.1,
    hidden_dropout=0.0, partial_rotary_factor=0.25, rope_scaling=None, rope_theta=10000)
add("EleutherAI/gpt-neox-20b", NEOX, attention_probs_dropout_prob=0, hidden_dropout_prob=0, hidden_act="gelu_fast")
add("databricks/dolly-v2-3b", NEOX, custom_pipelines={"text-generation": {"impl": "instruct_pipeline.InstructionTextGenerationPipeline"}},
    gradient_checkpointing=False)
add("togethercomputer/RedPajama-INCITE-Base-3B-v1", NEOX, rotary_pct=1.0, use_parallel_residual=False)
add("stabilityai/stablelm-base-alpha-3b", NEOX, rotary_pct=0.5)
add("EleutherAI/polyglot-ko-1.3b", NEOX, rotary_pct=0.5, _name_or_path="x", gradient_checkpointing=False)
add("h2oai/h2ogpt-oig-oasst1-512-6_9b", NEOX, custom_pipelines={"text-generation": {"impl": "h2oai_pipeline.H2OTextGenerationPipeline"}},
    rotary_pct=0.5, use_cache=True)
add("Pythia 70M as transformers 5 saves it", {k: v for k, v in NEOX.items() if not k.startswith("rotary") and k not in SAVED4}, SAVED5,
    attention_bias=True, is_decoder=False, rope_parameters=dict(partial_rotary_factor=0.5, rope_theta=10000, rope_type="default"))
add("Pythia of one matrix", NEOX, tie_word_embeddings=True)

# --- OPT, BERT
OPT = dict(
    _name_or_path="facebook/opt-125m", activation_dropout=0.0, activation_function="relu", architectures=["OPTForCausalLM"],
    attention_dropout=0.0, bos_token_id=2, do_layer_norm_before=True, dropout=0.1, eos_token_id=2, ffn_dim=3072, hidden_size=768,
    init_std=0.02, layerdrop=0.0, max_position_embeddings=2048, model_type="opt", num_attention_heads=12, num_hidden_layers=12,
    pad_token_id=1, prefix="</s>", torch_dtype="float16", transformers_version="4.21.0.dev0", use_cache=True, vocab_size=50272,
    word_embed_proj_dim=768,
)
add("facebook/opt-125m", OPT)
add("facebook/opt-1.3b", OPT, _remove_final_layer_norm=False, enable_bias=True, layer_norm_elementwise_affine=True)
add("facebook/galactica-125m", OPT, enable_bias=True, layer_norm_elementwise_affine=True, activation_function="gelu", learned_embeddings=True,
    scale_embeddings=False)
add("facebook/opt-350m", OPT, refused="do_layer_norm_before", do_layer_norm_before=False, word_embed_proj_dim=512)
BERT = dict(
    architectures=["BertForMaskedLM"], attention_probs_dropout_prob=0.1, hidden_act="gelu", hidden_dropout_prob=0.1, hidden_size=768,
    initializer_range=0.02, intermediate_size=3072, layer_norm_eps=1e-12, max_position_embeddings=512, model_type="bert",
    num_attention_heads=12, num_hidden_layers=12, pad_token_id=0, type_vocab_size=2, vocab_size=30522,
)
POOLER = dict(
    directionality="bidi", pooler_fc_size=768, pooler_num_attention_heads=12, pooler_num_fc_layers=3, pooler_size_per_head=128,
    pooler_type="first_token_transform")
add("google-bert/bert-base-uncased", BERT, gradient_checkpointing=False, position_embedding_type="absolute", transformers_version="4.6.0.dev0",
    use_cache=True)
add("google-bert/bert-base-chinese", BERT, POOLER)
add("google-bert/bert-base-multilingual-cased", BERT, POOLER, classifier_dropout=None, position_embedding_type="absolute")
add("hfl/chinese-bert-wwm-ext", BERT, POOLER, OLD, architectures=["BertForMaskedLM"])
add("emilyalsentzer/Bio_ClinicalBERT", BERT, drop=["architectures"])
add("dbmdz/bert-base-german-cased", BERT, output_past=True, directionality="bidi")
add("nlpaueb/legal-bert-base-uncased", BERT, POOLER, bos_token_id=0, eos_token_ids=0, output_past=True)
add("a BERT that decodes", BERT, refused="is_decoder", is_decoder=True)
add("a BERT of relative positions", BERT, refused="relative", position_embedding_type="relative_key_query")

ROBERTA = dict(
    architectures=["RobertaForMaskedLM"], attention_probs_dropout_prob=0.1, bos_token_id=0, eos_token_id=2, hidden_act="gelu",
    hidden_dropout_prob=0.1, hidden_size=768, initializer_range=0.02, intermediate_size=3072, layer_norm_eps=1e-5,
    max_position_embeddings=514, model_type="roberta", num_attention_heads=12, num_hidden_layers=12, pad_token_id=1, type_vocab_size=1,
    vocab_size=50265,
)
add("FacebookAI/roberta-base", ROBERTA)
add("FacebookAI/xlm-roberta-base", ROBERTA, model_type="xlm-roberta", architectures=["XLMRobertaForMaskedLM"], output_past=True,
    position_embedding_type="absolute", vocab_size=250002, use_cache=True, transformers_version="4.17.0.dev0")
add("a RoBERTa of two segments", ROBERTA, drop=["type_vocab_size"])
add("a RoBERTa of another activation", ROBERTA, refused="GELU", hidden_act="relu")

# --- Falcon, GPT-BigCode, BLOOM, MPT
FALCON = dict(
    alibi=False, apply_residual_connection_post_layernorm=False, architectures=["FalconForCausalLM"], attention_dropout=0.0, bias=False,
    bos_token_id=11, eos_token_id=11, hidden_dropout=0.0, hidden_size=4544, initializer_range=0.02, layer_norm_epsilon=1e-5,
    model_type="falcon", multi_query=True, new_decoder_architecture=False, num_attention_heads=71, num_hidden_layers=32,
    parallel_attn=True, vocab_size=65024, **SAVED4,
)
add("tiiuae/falcon-7b", FALCON)
add("tiiuae/falcon-40b", FALCON, hidden_size=8192, new_decoder_architecture=True, num_attention_heads=128, num_kv_heads=8)
add("tiiuae/falcon-11B", FALCON, hidden_size=4096, new_decoder_architecture=True, num_attention_heads=32, num_kv_heads=8,
    num_ln_in_parallel_attn=1, ffn_hidden_size=16384, ff_factor=4, rope_theta=500042.0, rope_scaling=None, tie_word_embeddings=False)
add("a Falcon of branches one after the other", FALCON, multi_query=False, parallel_attn=False, bias=True)
add("tiiuae/falcon-rw-1b", FALCON, refused="ALiBi", alibi=True, bias=True, multi_query=False, parallel_attn=False)
BIGCODE = dict(
    activation_function="gelu_pytorch_tanh", architectures=["GPTBigCodeForCausalLM"], attention_softmax_in_fp32=True, multi_query=True,
    attn_pdrop=0.1, bos_token_id=0, embd_pdrop=0.1, eos_token_id=0, inference_runner=0, initializer_range=0.02,
    layer_norm_epsilon=1e-5, max_batch_size=None, max_sequence_length=None, model_type="gpt_bigcode", n_embd=2048, n_head=16,
    n_inner=8192, n_layer=24, n_positions=8192, pad_key_length=True, pre_allocate_kv_cache=False, resid_pdrop=0.1,
    scale_attention_softmax_in_fp32=True, scale_attn_weights=True, summary_activation=None, summary_first_dropout=0.1,
    summary_proj_to_labels=True, summary_type="cls_index", summary_use_proj=True, validate_runner_input=True, vocab_size=49152,
)
add("bigcode/starcoderbase-1b", BIGCODE)
add("a GPT-BigCode of many heads", BIGCODE, multi_query=False, scale_attn_weights=False, n_inner=None)
BLOOM = dict(
    apply_residual_connection_post_layernorm=False, architectures=["BloomForCausalLM"], attention_dropout=0.0,
    attention_softmax_in_fp32=True, bias_dropout_fusion=True, bos_token_id=1, eos_token_id=2, hidden_dropout=0.0,
    initializer_range=0.02, layer_norm_epsilon=1e-5, masked_softmax_fusion=True, model_type="bloom", n_embed=1024, n_inner=None,
    n_layer=24, num_attention_heads=16, offset_alibi=100, pad_token_id=3, pretraining_tp=1, skip_bias_add=True,
    skip_bias_add_qkv=False, transformers_version="4.20.0", unk_token_id=0, use_cache=True, vocab_size=250880,
)
add("bigscience/bloom-560m", BLOOM)
add("bigscience/bloomz-560m", BLOOM, drop=["n_embed", "num_attention_heads"], hidden_size=1024, n_head=16, seq_length=2048)
MPT = dict(
    architectures=["MPTForCausalLM"], attn_config=dict(
        alibi=True, alibi_bias_max=8, attn_impl="torch", attn_pdrop=0, attn_type="multihead_attention", attn_uses_sequence_id=False,
        clip_qkv=None, prefix_lm=False, qk_ln=False, softmax_scale=None), d_model=4096, emb_pdrop=0, embedding_fraction=1.0,
    expansion_ratio=4, init_config=dict(fan_mode="fan_in", init_div_is_residual=True, name="kaiming_normal_"), init_device="cpu",
    learned_pos_emb=True, logit_scale=None, max_seq_len=2048, model_type="mpt", n_heads=32, n_layers=32, no_bias=True,
    norm_type="low_precision_layernorm", resid_pdrop=0, tokenizer_name="EleutherAI/gpt-neox-20b", torch_dtype="bfloat16",
    transformers_version="4.28.1", use_cache=False, verbose=0, vocab_size=50432,
)
add("mosaicml/mpt-7b", MPT)
add("an MPT without the settings of its attention", MPT, drop=["attn_config"])
add("mosaicml/mpt-7b-storywriter", MPT, refused="takes 8", attn_config=dict(alibi=True, alibi_bias_max=16, clip_qkv=6))
add("an MPT that cuts off what its shrunk weights give", MPT, attn_config=dict(alibi=True, alibi_bias_max=8, clip_qkv=0.7))
MODERNBERT = dict(
    architectures=["ModernBertForMaskedLM"], attention_bias=False, attention_dropout=0.0, bos_token_id=50281, classifier_activation="gelu",
    classifier_bias=False, classifier_dropout=0.0, classifier_pooling="mean", cls_token_id=50281, decoder_bias=True,
    deterministic_flash_attn=False, embedding_dropout=0.0, eos_token_id=50282, global_attn_every_n_layers=3, global_rope_theta=160000.0,
    gradient_checkpointing=False, hidden_activation="gelu", hidden_size=768, initializer_cutoff_factor=2.0, initializer_range=0.02,
    intermediate_size=1152, layer_norm_eps=1e-5, local_attention=128, local_rope_theta=10000.0, max_position_embeddings=8192,
    mlp_bias=False, mlp_dropout=0.0, model_type="modernbert", norm_bias=False, norm_eps=1e-5, num_attention_heads=12, num_hidden_layers=22,
    pad_token_id=50283, position_embedding_type="absolute", sep_token_id=50282, tie_word_embeddings=True, torch_dtype="float32",
    transformers_version="4.47.0.dev0", vocab_size=50368,
)
add("answerdotai/ModernBERT-base", MODERNBERT)
add("answerdotai/ModernBERT-large", MODERNBERT, classifier_pooling="mean", hidden_size=1024, intermediate_size=2624, num_attention_heads=16,
    num_hidden_layers=28, repad_logits_with_grad=False, sparse_pred_ignore_index=-100, sparse_prediction=False)
add("a ModernBERT that leaves its settings out, with biases", MODERNBERT, attention_bias=True, classifier_bias=True, mlp_bias=True,
    norm_bias=True, decoder_bias=False, tie_word_embeddings=False, drop=[
        "global_attn_every_n_layers", "global_rope_theta", "hidden_activation", "classifier_activation", "local_rope_theta", "norm_eps"])
add("a ModernBERT whose head has another activation", MODERNBERT, classifier_activation="relu", refused="classifier_activation")


# --- Checkpoints of tied models that have an unembedding
HEAD = "lm_head.weight"
SAVED = [
    ("meta-llama/Llama-3.2-1B", [HEAD], []),
    ("meta-llama/Llama-3.2-1B", [HEAD], ["model.embed_tokens.weight"]),
    ("openai-community/gpt2", [HEAD], []),
    ("openai-community/gpt2", [HEAD], ["transformer.wte.weight"]),
    ("google/gemma-2-2b", [HEAD], []),
    ("google/gemma-3-1b-pt", [HEAD], []),
    ("Qwen/Qwen2.5-0.5B", [HEAD], []),
    ("facebook/opt-125m", [HEAD], []),
    ("EleutherAI/gpt-neo-125m", [HEAD], []),
    ("bigcode/starcoder2-3b", [HEAD], []),
    ("Pythia of one matrix", ["lm_head.weight"], []),
    ("Pythia of one matrix", ["lm_head.weight"], ["gpt_neox.embed_in.weight"]),
    ("google-bert/bert-base-uncased", ["cls.predictions.decoder.weight", "cls.predictions.decoder.bias"], []),
    ("google-bert/bert-base-uncased", ["cls.predictions.decoder.bias"], []),
]


def main():
    lines = []
    for name, config, refused in PUBLISHED:
        small = shrunk(config)
        small.update(FEWER_HEADS.get(config["model_type"], {}))
        line = dict(name=name, config=small)
        if refused:
            line["refused"] = refused
        else:
            line["logits"] = logits(small)
        lines.append(json.dumps(line, ensure_ascii=False, separators=(",", ":")))
        print(name, "refused" if refused else "%.3f" % max(map(abs, line["logits"])))
    configs = {name: config for name, config, _ in PUBLISHED}
    for name, extra, without in SAVED:
        small = shrunk(configs[name])
        small.update(FEWER_HEADS.get(small["model_type"], {}))
        line = dict(name=name, config=small, extra=extra, without=without, logits=logits(small, extra, without))
        lines.append(json.dumps(line, ensure_ascii=False, separators=(",", ":")))
    (pathlib.Path(__file__).parent / "published.jsonl").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
