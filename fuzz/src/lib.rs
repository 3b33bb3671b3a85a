//! What is fuzzed: every reader of files from strangers, each as a function of bytes that may fail and must not do harm.
//!
//! `fuzz_targets/` hands these to libFuzzer; `tests/fuzz_corpus.rs` of the library runs them over the corpus and its mutations.

use std::fmt::{Debug, Display};
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::LazyLock;

use candlewick::circuit::interchange::{Format, parse};
use candlewick::circuit::{Graph, ScoredGraph};
use candlewick::hooks::{Edge, Edit, Hook, Kind, Node, Pos, Site};
use candlewick::lab::Lab;
use candlewick::methods::interchange::{Inputs, Value};
use candlewick::methods::{
    Heads, Layers, PatchConfig, PatchSource, ProgramFile, Removal, Sites, Summary, TokenMethod,
};
use candlewick::model::checkpoint::Checkpoint;
use candlewick::model::families::{Description, from_config, from_gguf, transformer_lens};
use candlewick::model::gguf::Gguf;
use candlewick::model::gguf_tokenizer;
use candlewick::model::pickle::StateDict;
use candlewick::model::safetensors::SafeTensors;
use candlewick::model::{LoadOptions, ModelSpec, Tokenizer, load_parts};
use candlewick::sae::Sae;
use candlewick::scores::{Conditions, Scores, Shard, SortKeys};
use candlewick::task::{ExpandOptions, PromptExample, TaskFile, expand, from_pairs_file};

/// A reader's name, and what feeds it bytes.
pub type Reader = (&'static str, fn(&[u8]));

/// Each reader by its name, which is also that of its folder of the corpus.
pub const READERS: [Reader; 15] = [
    ("safetensors", safetensors),
    ("gguf", gguf),
    ("pickle", pickle),
    ("config", config),
    ("tokenizer", tokenizer),
    ("task", task),
    ("program", program),
    ("circuit", circuit),
    ("circuit_json", circuit_json),
    ("pairs", pairs),
    ("table", table),
    ("dictionary", dictionary),
    ("conditions", conditions),
    ("grammar", grammar),
    ("chat", chat),
];

/// Text to try a tokenizer on: words, a run of spaces, letters beyond ASCII, a character that is four bytes.
const TEXT: &str = "When Mary  and\nZoë went 🙂 0x1F";

pub fn safetensors(bytes: &[u8]) {
    if let Ok(checkpoint) = SafeTensors::from_bytes("x.safetensors", bytes) {
        decode_all(&checkpoint, bytes.len());
    }
}

pub fn pickle(bytes: &[u8]) {
    if let Ok(checkpoint) = StateDict::from_bytes("x.pt", bytes.to_vec()) {
        decode_all(&checkpoint, bytes.len());
    }
}

pub fn gguf(bytes: &[u8]) {
    let Ok(gguf) = Gguf::from_bytes("x.gguf", bytes.to_vec()) else {
        return;
    };
    decode_all(&gguf, bytes.len());
    if let Ok(description) = from_gguf(&gguf) {
        check(&description.spec);
    }
    if let Ok((tokenizer, _)) = gguf_tokenizer::read(&gguf) {
        round_trip(&tokenizer);
    }
}

pub fn config(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else {
        return;
    };
    if let Ok(description) = from_config(text) {
        check(&description.spec);
        load_whole(text, &description);
    }
    // The same text beside a toy checkpoint, whose shapes it has to agree with.
    let tensors: [(&str, &[usize]); 8] = [
        ("embed.W_E", &[7, 8]),
        ("pos_embed.W_pos", &[5, 8]),
        ("unembed.W_U", &[8, 7]),
        ("blocks.0.attn.W_Q", &[2, 8, 4]),
        ("blocks.0.attn.W_K", &[2, 8, 4]),
        ("blocks.0.attn.W_V", &[2, 8, 4]),
        ("blocks.0.attn.W_O", &[2, 4, 8]),
        ("blocks.0.mlp.W_in", &[8, 16]),
    ];
    if let Ok(description) = transformer_lens::describe(Some(text), &tensors, &[]) {
        check(&description.spec);
    }
}

/// Loads a checkpoint of zeros that is made for a config, if the model is small.
fn load_whole(config: &str, description: &Description) {
    const MOST_BYTES: usize = 1 << 18;
    const TOKENIZER: &str = r#"{
        "version": "1.0", "added_tokens": [],
        "model": {"type": "WordLevel", "vocab": {"a": 0}, "unk_token": "a"}
    }"#;
    let (mut header, mut end) = (Vec::new(), 0usize);
    for (name, shape) in description.layout.tensors(&description.spec) {
        let bytes = shape
            .iter()
            .try_fold(4usize, |product, n| product.checked_mul(*n));
        let begin = end;
        match bytes.and_then(|bytes| end.checked_add(bytes)) {
            Some(sum) if sum <= MOST_BYTES => end = sum,
            _ => return,
        }
        header.push(format!(
            r#""{name}": {{"dtype": "F32", "shape": {shape:?}, "data_offsets": [{begin}, {end}]}}"#
        ));
    }
    let header = format!("{{{}}}", header.join(", "));
    let mut file = (header.len() as u64).to_le_bytes().to_vec();
    file.extend(header.as_bytes());
    file.resize(file.len() + end, 0);
    let options = LoadOptions::default();
    let _ = load_parts("x", config, &file, TOKENIZER.as_bytes(), None, &options);
}

/// A tokenizer.json and, after a zero byte, a tokenizer_config.json.
pub fn tokenizer(bytes: &[u8]) {
    let (json, config) = match bytes.iter().position(|byte| *byte == 0) {
        Some(zero) => (&bytes[..zero], Some(&bytes[zero + 1..])),
        None => (bytes, None),
    };
    if let Ok(tokenizer) = Tokenizer::from_bytes(json, config) {
        round_trip(&tokenizer);
    }
}

pub fn task(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else {
        return;
    };
    let Ok(file) = TaskFile::parse(text, "x.toml") else {
        return;
    };
    let options = ExpandOptions {
        n_pairs: Some(4),
        ..ExpandOptions::default()
    };
    let _ = expand(&file, &tokenizer_of_words(None), &options);
}

/// A high-level program, and what it says of a prompt.
pub fn program(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else {
        return;
    };
    let Ok(file) = ProgramFile::parse(text, Path::new("x.toml")) else {
        return;
    };
    let columns = ["IO", "S1", "S2"].map(|name| (name.to_string(), Value::from(name)));
    let places = ["IO.pos", "S1.pos"].map(|name| (name.to_string(), Value::from(3.0)));
    let inputs: Inputs = columns.into_iter().chain(places).collect();
    let _ = file.program.run(&inputs, &[]);
}

/// A tokenizer of few words, perhaps with a chat template.
fn tokenizer_of_words(template: Option<&str>) -> Tokenizer {
    let words: serde_json::Map<String, serde_json::Value> = ["<s>", "<unk>", "Mary", "John", "the"]
        .into_iter()
        .enumerate()
        .map(|(id, word)| (word.to_string(), id.into()))
        .collect();
    let json = serde_json::json!({
        "version": "1.0", "added_tokens": [], "pre_tokenizer": { "type": "Whitespace" },
        "model": { "type": "WordLevel", "vocab": words, "unk_token": "<unk>" },
    });
    let config = template
        .map(|text| serde_json::json!({ "chat_template": text, "bos_token": "<s>" }).to_string());
    let config = config.as_ref().map(String::as_bytes);
    Tokenizer::from_bytes(json.to_string().as_bytes(), config).expect("a well-formed tokenizer")
}

/// A Jinja chat template.
pub fn chat(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else {
        return;
    };
    let _ = tokenizer_of_words(Some(text)).chat("Who?");
}

/// The graph of the model whose circuits are read.
const LIKE: Graph = Graph {
    n_layers: 2,
    n_heads: 2,
    d_model: 8,
    has_mlp: true,
    parallel: false,
};

/// A circuit in each of the formats that are text.
pub fn circuit(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else {
        return;
    };
    for format in [
        Format::Toml,
        Format::Dot,
        Format::GraphMl,
        Format::NodeList,
        Format::EdgeList,
        Format::AutoCircuit,
    ] {
        if let Ok(circuit) = parse(text, format, Some(&LIKE)) {
            assert!(circuit.edges.len() <= circuit.graph().n_edges());
        }
    }
}

/// The JSON of the field: of a model that is known, and by itself.
pub fn circuit_json(bytes: &[u8]) {
    let file = File::new(bytes, "json");
    let _ = ScoredGraph::read_alone(&file.0);
    if let Ok(scored) = ScoredGraph::read(&file.0, LIKE) {
        assert_eq!(scored.matrix().len(), LIKE.n_src() * LIKE.n_dst());
    }
}

/// The user's own pairs, in each format that is text.
pub fn pairs(bytes: &[u8]) {
    let tokenizer = tokenizer_of_words(None);
    for ending in ["csv", "json", "jsonl"] {
        let file = File::new(bytes, ending);
        let _ = from_pairs_file(&file.0, &tokenizer, &ExpandOptions::default());
    }
}

/// A parquet file, as a table of results and as pairs.
pub fn table(bytes: &[u8]) {
    let file = File::new(bytes, "parquet");
    if let Ok(scores) = Scores::read_parquet(&file.0) {
        let _ = scores.to_string();
    }
    let tokenizer = tokenizer_of_words(None);
    let _ = from_pairs_file(&file.0, &tokenizer, &ExpandOptions::default());
}

/// A sparse autoencoder: arrays of an `.npz`; and a folder, whose configuration is the text up to the first empty line.
pub fn dictionary(bytes: &[u8]) {
    let hook = "blocks.0.hook_resid_post".parse().expect("a hook");
    let file = File::new(bytes, "npz");
    let folder = file.0.with_extension("sae");
    std::fs::create_dir_all(&folder).expect("a scratch folder");
    let gap = bytes.windows(2).position(|two| two == b"\n\n");
    let (config, weights) = match gap {
        Some(at) => (&bytes[..at], &bytes[at + 2..]),
        None => (bytes, &[][..]),
    };
    for (name, bytes) in [("cfg.json", config), ("sae_weights.safetensors", weights)] {
        std::fs::write(folder.join(name), bytes).expect("it is written");
    }
    for sae in [Sae::open(&file.0, Some(hook)), Sae::open(&folder, None)] {
        if let Ok(sae) = sae.as_ref()
            && sae.d_in * sae.d_sae < 1 << 20
        {
            let x = vec![0.5; 2 * sae.d_in];
            sae.decode(&sae.encode(&x), &x);
        }
    }
    let _ = std::fs::remove_dir_all(&folder);
}

/// Conditions on the rows of a table, and what to sort it by.
pub fn conditions(bytes: &[u8]) {
    static SCORES: LazyLock<Scores> = LazyLock::new(|| {
        let lab = Lab::open("embedded", "embedded").expect("it is part of the library");
        let heads = PatchConfig::sites("z").expect("a hook");
        lab.first(2).measure(&heads).expect("it is measured")
    });
    let Ok(text) = std::str::from_utf8(bytes) else {
        return;
    };
    if let Ok(conditions) = text.parse::<Conditions>() {
        assert_eq!(conditions.to_string(), text);
        if let Ok(kept) = SCORES.matching(&conditions) {
            assert!(kept.table.height() <= SCORES.table.height());
        }
    }
    if let Ok(keys) = text.parse::<SortKeys>() {
        let _ = SCORES.sorted(&keys);
    }
}

/// What is typed: hooks, sites, edits, nodes, edges and choices of methods. What prints is read again as the same.
pub fn grammar(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else {
        return;
    };
    reads_again::<Hook>(text);
    reads_again::<Pos>(text);
    reads_again::<Site>(text);
    reads_again::<Node>(text);
    reads_again::<Edge>(text);
    let _ = (
        text.parse::<Kind>(),
        text.parse::<Edit>(),
        text.parse::<Sites>(),
    );
    let _ = (text.parse::<Layers>(), text.parse::<Heads>());
    let _ = (text.parse::<Shard>(), text.parse::<PromptExample>());
    let _ = (text.parse::<TokenMethod>(), text.parse::<PatchSource>());
    let _ = (text.parse::<Removal>(), text.parse::<Summary>());
}

fn reads_again<T: FromStr + Display + Debug + PartialEq>(text: &str)
where
    T::Err: Debug,
{
    if let Ok(value) = text.parse::<T>() {
        let again = value.to_string().parse::<T>();
        assert_eq!(again.expect("what prints can be read"), value, "{text}");
    }
}

/// A file for readers that take a path; it goes with the value.
struct File(PathBuf);

impl File {
    fn new(bytes: &[u8], ending: &str) -> Self {
        let name = format!(
            "candlewick-fuzz-{}-{:?}.{ending}",
            std::process::id(),
            std::thread::current().id()
        );
        let path = std::env::temp_dir().join(name);
        std::fs::write(&path, bytes).expect("a place for temporary files");
        File(path)
    }
}

impl Drop for File {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

/// Decodes every tensor, which must not be larger than its file can be: three numbers a byte, as in the smallest quantisation.
fn decode_all(checkpoint: &dyn Checkpoint, file: usize) {
    for (name, shape) in checkpoint.tensors() {
        let count: usize = shape.iter().product();
        assert!(count <= 4 * file, "`{name}` of {shape:?} in {file} bytes");
        let _ = checkpoint.decode(name, 0, &mut vec![0.0; count]);
    }
    let _ = (checkpoint.storage(), checkpoint.hash());
}

/// A spec that was let through has lists as long as its layers and heads that divide.
fn check(spec: &ModelSpec) {
    assert_eq!(spec.attn_scale.len(), spec.n_layers);
    assert_eq!(spec.windows.len(), spec.n_layers);
    assert!(spec.n_heads.is_multiple_of(spec.n_kv_heads) && spec.d_head > 0);
    assert!(spec.n_layers < 1 << 16, "{} layers", spec.n_layers);
}

/// Encodes and decodes; every id must be one that the vocabulary has, every span one of the text.
fn round_trip(tokenizer: &Tokenizer) {
    if let Ok(encoded) = tokenizer.encode(TEXT, tokenizer.adds_bos()) {
        assert_eq!(encoded.ids.len(), encoded.spans.len());
        assert!(encoded.ids.iter().all(|id| *id <= tokenizer.max_id()));
        assert!(
            encoded
                .spans
                .iter()
                .all(|span| span.start <= span.end && span.end <= TEXT.len())
        );
        let _ = tokenizer.decode(&encoded.ids);
    }
    let _ = tokenizer.token(0);
    let _ = tokenizer.chat("Who?");
}
