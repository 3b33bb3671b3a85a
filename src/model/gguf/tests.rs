use super::header::ARRAY;
use super::*;

/// A GGUF written by hand.
#[derive(Default)]
pub(crate) struct Writer {
    entries: Vec<Vec<u8>>,
    tensors: Vec<(String, Vec<usize>, u32, u64)>,
    data: Vec<u8>,
}

fn text_bytes(text: &str) -> Vec<u8> {
    [&(text.len() as u64).to_le_bytes(), text.as_bytes()].concat()
}

impl Writer {
    pub(crate) fn raw(&mut self, key: &str, kind: u32, value: &[u8]) -> &mut Self {
        self.entries
            .push([&text_bytes(key), &kind.to_le_bytes()[..], value].concat());
        self
    }
    pub(crate) fn text(&mut self, key: &str, text: &str) -> &mut Self {
        self.raw(key, STRING, &text_bytes(text))
    }
    pub(crate) fn size(&mut self, key: &str, n: u32) -> &mut Self {
        self.raw(key, 4, &n.to_le_bytes())
    }
    pub(crate) fn float(&mut self, key: &str, x: f32) -> &mut Self {
        self.raw(key, 6, &x.to_le_bytes())
    }
    pub(crate) fn texts(&mut self, key: &str, texts: &[&str]) -> &mut Self {
        let mut bytes = STRING.to_le_bytes().to_vec();
        bytes.extend((texts.len() as u64).to_le_bytes());
        texts.iter().for_each(|text| bytes.extend(text_bytes(text)));
        self.raw(key, ARRAY, &bytes)
    }
    pub(crate) fn integers(&mut self, key: &str, numbers: &[i32]) -> &mut Self {
        let mut bytes = 5u32.to_le_bytes().to_vec();
        bytes.extend((numbers.len() as u64).to_le_bytes());
        numbers.iter().for_each(|n| bytes.extend(n.to_le_bytes()));
        self.raw(key, ARRAY, &bytes)
    }
    pub(crate) fn floats(&mut self, key: &str, numbers: &[f64]) -> &mut Self {
        let mut bytes = 6u32.to_le_bytes().to_vec();
        bytes.extend((numbers.len() as u64).to_le_bytes());
        numbers
            .iter()
            .for_each(|x| bytes.extend((*x as f32).to_le_bytes()));
        self.raw(key, ARRAY, &bytes)
    }
    pub(crate) fn tensor(&mut self, name: &str, shape: &[usize], values: &[f32]) -> &mut Self {
        let offset = self.data.len() as u64;
        self.tensors
            .push((name.to_string(), shape.to_vec(), 0, offset));
        values
            .iter()
            .for_each(|x| self.data.extend(x.to_le_bytes()));
        self.data.resize(self.data.len().next_multiple_of(32), 0);
        self
    }
    /// A tensor in any ggml type, by its number.
    pub(crate) fn stored(
        &mut self,
        name: &str,
        shape: &[usize],
        dtype: u32,
        bytes: &[u8],
    ) -> &mut Self {
        let offset = self.data.len() as u64;
        self.data.extend(bytes);
        self.data.resize(self.data.len().next_multiple_of(32), 0);
        self.claim(name, shape, dtype, offset)
    }
    /// A tensor description that need not be true.
    fn claim(&mut self, name: &str, shape: &[usize], dtype: u32, offset: u64) -> &mut Self {
        self.tensors
            .push((name.to_string(), shape.to_vec(), dtype, offset));
        self
    }
    pub(crate) fn bytes(&self) -> Vec<u8> {
        let mut bytes = b"GGUF".to_vec();
        bytes.extend(3u32.to_le_bytes());
        bytes.extend((self.tensors.len() as u64).to_le_bytes());
        bytes.extend((self.entries.len() as u64).to_le_bytes());
        bytes.extend(self.entries.concat());
        for (name, shape, dtype, offset) in &self.tensors {
            bytes.extend(text_bytes(name));
            bytes.extend((shape.len() as u32).to_le_bytes());
            shape
                .iter()
                .rev()
                .for_each(|n| bytes.extend((*n as u64).to_le_bytes()));
            bytes.extend(dtype.to_le_bytes());
            bytes.extend(offset.to_le_bytes());
        }
        bytes.resize(bytes.len().next_multiple_of(32), 0);
        bytes.extend(&self.data);
        bytes
    }
}

fn open(bytes: &[u8]) -> Result<Gguf> {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("x.gguf");
    std::fs::write(&path, bytes).unwrap();
    Gguf::open(&path)
}

fn refused(bytes: &[u8], word: &str) {
    let message = open(bytes).unwrap_err().to_string();
    assert!(message.contains(word), "`{message}` does not say `{word}`");
}

#[test]
fn a_sound_file_reads() {
    let mut writer = Writer::default();
    writer
        .text("general.architecture", "llama")
        .float("eps", 1e-5)
        .size("n", 7);
    writer
        .texts("words", &["a", "b"])
        .integers("kinds", &[1, -3]);
    writer.tensor("x", &[2, 1], &[1.5, -2.0]);
    let gguf = open(&writer.bytes()).unwrap();
    assert_eq!(gguf.number("eps").unwrap(), 1e-5);
    assert_eq!(gguf.size("n").unwrap(), 7);
    assert_eq!(gguf.texts("words").unwrap(), ["a", "b"]);
    assert_eq!(gguf.numbers("kinds").unwrap(), [1.0, -3.0]);
    assert_eq!(gguf.tensors(), [("x", [2, 1].as_slice())]);
    let mut out = [0.0; 2];
    gguf.decode("x", 0, &mut out).unwrap();
    assert_eq!(out, [1.5, -2.0]);
    assert!(gguf.size("eps").is_err() && gguf.size("gone").is_err());
    assert_eq!(gguf.storage(), "gguf F32 (dequantised to f32)");
}

#[test]
fn hostile_headers_are_refused() {
    let head = |tensors: u64, entries: u64| {
        let mut bytes = b"GGUF\x03\0\0\0".to_vec();
        bytes.extend(tensors.to_le_bytes());
        bytes.extend(entries.to_le_bytes());
        bytes
    };
    refused(b"GGUF", "claimed");
    refused(b"GGML\x03\0\0\0", "does not begin");
    refused(b"GGUF\0\0\0\x03", "version");
    refused(&head(0, 4_000_000_000), "room for 0");
    refused(&head(u64::MAX, 0), "room for 0");
    let long_key = [head(0, 1), u64::MAX.to_le_bytes().to_vec(), vec![0; 32]].concat();
    refused(&long_key, "room for");
    let huge = |kind: u32, count: u64| [&kind.to_le_bytes()[..], &count.to_le_bytes()].concat();
    let entry = |kind, value: &[u8]| Writer::default().raw("k", kind, value).bytes();
    refused(&entry(ARRAY, &huge(4, 1 << 62)), "room for");
    refused(&entry(ARRAY, &huge(STRING, 1 << 40)), "room for");
    refused(&entry(ARRAY, &huge(ARRAY, 1)), "arrays of type 9");
    refused(&entry(99, &[]), "value type 99");
    refused(
        &Writer::default().size("general.alignment", 0).bytes(),
        "alignment 0",
    );
    refused(
        &Writer::default().size("general.alignment", 3).bytes(),
        "alignment 3",
    );
    refused(
        &Writer::default().size("a", 0).size("a", 0).bytes(),
        "twice",
    );
}

#[test]
fn hostile_tensors_are_refused() {
    let claim =
        |shape: &[usize], dtype, offset| Writer::default().claim("x", shape, dtype, offset).bytes();
    refused(&claim(&[4], 0, 0), "cut short");
    refused(&claim(&[4], 0, u64::MAX), "overflows");
    refused(&claim(&[1 << 40, 1 << 40], 0, 0), "cannot be F32");
    refused(&claim(&[33], 8, 0), "cannot be Q8_0");
    refused(&claim(&[1], 77, 0), "ggml type 77");
    refused(&claim(&[1; 5], 0, 0), "5 axes");
    refused(&claim(&[], 0, 0), "0 axes");
    let mut overlapping = Writer::default();
    overlapping
        .tensor("x", &[16], &[0.0; 16])
        .claim("y", &[8], 0, 32);
    refused(&overlapping.bytes(), "overlaps");
    let mut skewed = Writer::default();
    skewed
        .tensor("x", &[4], &[0.0; 4])
        .tensor("z", &[8], &[0.0; 8])
        .claim("y", &[1], 0, 20);
    refused(&skewed.bytes(), "aligned");
    let mut whole = Writer::default();
    whole
        .text("general.architecture", "llama")
        .tensor("x", &[64], &[1.0; 64]);
    let whole = whole.bytes();
    for length in 0..whole.len() {
        assert!(open(&whole[..length]).is_err(), "cut to {length} bytes");
    }
}

#[test]
fn what_keeps_us_from_candles_reader_is_there_still() {
    use candle_core::quantized::gguf_file::{Content, Value as Theirs};

    let theirs = |writer: &mut Writer| {
        let bytes = writer.bytes();
        crate::panics::caught(|| Content::read(&mut std::io::Cursor::new(bytes)))
    };
    let mut hostile = Writer::default();
    hostile.size("general.alignment", 0);
    assert!(theirs(&mut hostile).is_none(), "it no longer divides by 0");
    refused(&hostile.bytes(), "alignment 0");

    let mut tokens = Writer::default();
    tokens.texts("tokenizer.ggml.tokens", &["a", "\0"]);
    let read = theirs(&mut tokens).unwrap().unwrap();
    let Theirs::Array(found) = &read.metadata["tokenizer.ggml.tokens"] else {
        panic!("{:?}", read.metadata)
    };
    assert_eq!(found[1].to_string().unwrap(), "", "it keeps zeros now");
    let ours = Gguf::from_bytes("x.gguf", tokens.bytes()).unwrap();
    assert_eq!(ours.texts("tokenizer.ggml.tokens").unwrap(), ["a", "\0"]);

    assert!(size_of::<Theirs>() >= 24, "entries of arrays are small now");
}
