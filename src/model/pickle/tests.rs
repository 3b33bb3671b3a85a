//! Checkpoints written here byte by byte, as `torch.save` writes them; candle's reader is the second opinion.

use super::*;
use candle_core::{DType, Device};

/// A state dict in the making: the pickle so far, and the storages.
#[derive(Default)]
pub(crate) struct Writer {
    program: Vec<u8>,
    files: Vec<(String, Vec<u8>)>,
    /// What stands around the dictionary of tensors.
    before: Vec<u8>,
    after: Vec<u8>,
}

fn text(text: &str) -> Vec<u8> {
    let mut bytes = b"X".to_vec();
    bytes.extend((text.len() as u32).to_le_bytes());
    bytes.extend(text.as_bytes());
    bytes
}

fn integer(n: usize) -> Vec<u8> {
    let mut bytes = b"J".to_vec();
    bytes.extend((n as i32).to_le_bytes());
    bytes
}

fn integers(sizes: &[usize]) -> Vec<u8> {
    let mut bytes = b"(".to_vec();
    sizes.iter().for_each(|n| bytes.extend(integer(*n)));
    bytes.push(b't');
    bytes
}

impl Writer {
    /// A storage; the key by which tensors name it is its number.
    pub(crate) fn storage(&mut self, bytes: Vec<u8>) -> usize {
        let key = self.files.len();
        self.files.push((format!("archive/data/{key}"), bytes));
        key
    }

    /// A tensor of a storage of `count` numbers.
    #[rustfmt::skip]
    #[allow(clippy::too_many_arguments)]
    pub(crate) fn view(&mut self, name: &str, class: &str, key: usize, count: usize,
                       offset: usize, shape: &[usize], strides: &[usize]) -> &mut Self {
        let program = &mut self.program;
        program.extend(text(name));
        program.extend(b"ctorch._utils\n_rebuild_tensor_v2\n((");
        program.extend(text("storage"));
        program.extend(format!("ctorch\n{class}\n").as_bytes());
        program.extend(text(&key.to_string()));
        program.extend(text("cpu"));
        program.extend(integer(count));
        program.extend(b"tQ");
        program.extend(integer(offset));
        program.extend(integers(shape));
        program.extend(integers(strides));
        // requires_grad, and an OrderedDict of hooks.
        program.extend(b"\x89ccollections\nOrderedDict\n)RtR");
        self
    }

    /// A contiguous f32 tensor.
    pub(crate) fn tensor(&mut self, name: &str, shape: &[usize], values: &[f32]) -> &mut Self {
        let bytes = values.iter().flat_map(|x| x.to_le_bytes()).collect();
        let key = self.storage(bytes);
        let strides: Vec<usize> = (0..shape.len())
            .map(|axis| shape[axis + 1..].iter().product())
            .collect();
        self.view(name, "FloatStorage", key, values.len(), 0, shape, &strides)
    }

    pub(crate) fn bytes(&self) -> Vec<u8> {
        let mut program = b"\x80\x02".to_vec();
        program.extend(&self.before);
        program.extend(b"ccollections\nOrderedDict\n)R(");
        program.extend(&self.program);
        program.push(b'u');
        // `_metadata`, as every module's state dict has it.
        program.extend(b"}");
        program.extend(text("_metadata"));
        program.extend(b"}sb");
        program.extend(&self.after);
        program.push(b'.');
        let mut files = vec![("archive/data.pkl", program)];
        files.extend(
            self.files
                .iter()
                .map(|(name, bytes)| (name.as_str(), bytes.clone())),
        );
        zip::tests::written(&files, true)
    }
}

fn open(bytes: &[u8]) -> Result<StateDict> {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("pytorch_model.bin");
    std::fs::write(&path, bytes).unwrap();
    StateDict::open(vec![path])
}

fn decoded(checkpoint: &StateDict, name: &str) -> Vec<f32> {
    let count = checkpoint.tensors[name].tensor.shape.iter().product();
    let mut out = vec![0.0; count];
    checkpoint.decode(name, 0, &mut out).unwrap();
    out
}

fn refused(bytes: &[u8], word: &str) {
    let message = open(bytes).unwrap_err().to_string();
    assert!(message.contains(word), "`{message}` does not say `{word}`");
}

/// Two tensors, one of them a transposed view from the middle of a storage.
fn two() -> Writer {
    let mut writer = Writer::default();
    writer.tensor("a", &[2, 3], &[1.0, 2.0, 3.0, 4.0, 5.0, 6.0]);
    let key = writer.storage((0..8).flat_map(|n| (n as f32).to_le_bytes()).collect());
    writer.view("b", "FloatStorage", key, 8, 2, &[3, 2], &[1, 3]);
    writer
}

#[test]
fn tensors_are_read_in_place_and_views_are_followed() {
    let checkpoint = open(&two().bytes()).unwrap();
    assert_eq!(
        checkpoint.tensors(),
        [("a", [2, 3].as_slice()), ("b", [3, 2].as_slice())]
    );
    assert_eq!(decoded(&checkpoint, "a"), [1.0, 2.0, 3.0, 4.0, 5.0, 6.0]);
    assert_eq!(decoded(&checkpoint, "b"), [2.0, 5.0, 3.0, 6.0, 4.0, 7.0]);
    let mut row = [0.0; 2];
    checkpoint.decode("b", 2, &mut row).unwrap();
    assert_eq!(row, [3.0, 6.0]);
    assert_eq!(checkpoint.storage(), "pytorch F32");
}

#[test]
fn candle_reads_the_same_numbers() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("x.pt");
    let mut writer = Writer::default();
    writer.tensor("a", &[2, 3], &[1.0, 2.0, 3.0, 4.0, 5.0, 6.0]);
    writer.tensor("c", &[2], &[0.5, -1.0]);
    std::fs::write(&path, writer.bytes()).unwrap();
    let theirs = candle_core::pickle::read_all(&path).unwrap();
    let ours = StateDict::open(vec![path]).unwrap();
    assert_eq!(theirs.len(), 2);
    for (name, tensor) in theirs {
        let values: Vec<f32> = tensor.flatten_all().unwrap().to_vec1().unwrap();
        assert_eq!(decoded(&ours, &name), values);
        assert_eq!(ours.tensors[&name].tensor.shape, tensor.dims());
    }
}

#[test]
fn half_precision_decodes_and_integers_are_no_weights() {
    let mut writer = Writer::default();
    let tensor = candle_core::Tensor::new(&[1.5f32, -2.0], &Device::Cpu).unwrap();
    for (class, dtype) in [
        ("HalfStorage", DType::F16),
        ("BFloat16Storage", DType::BF16),
    ] {
        let tensor = tensor.to_dtype(dtype).unwrap();
        let mut bytes = Vec::new();
        tensor.write_bytes(&mut bytes).unwrap();
        let key = writer.storage(bytes);
        writer.view(class, class, key, 2, 0, &[2], &[1]);
    }
    let key = writer.storage(vec![0; 16]);
    writer.view("n", "LongStorage", key, 2, 0, &[2], &[1]);
    let checkpoint = open(&writer.bytes()).unwrap();
    assert_eq!(decoded(&checkpoint, "HalfStorage"), [1.5, -2.0]);
    assert_eq!(decoded(&checkpoint, "BFloat16Storage"), [1.5, -2.0]);
    let error = checkpoint.decode("n", 0, &mut [0.0; 2]).unwrap_err();
    assert!(error.to_string().contains("I64"), "{error}");
}

#[test]
fn a_state_dict_is_found_where_training_scripts_put_it() {
    for name in WRAPPERS {
        let mut writer = two();
        writer.before = [b"}(".to_vec(), text("epoch"), b"K\x03".to_vec(), text(name)].concat();
        writer.after = b"u".to_vec();
        assert_eq!(open(&writer.bytes()).unwrap().tensors.len(), 2, "{name}");
    }
}

#[test]
fn a_whole_object_is_refused_by_the_class_that_it_names() {
    let object = |program: &[u8]| {
        let files = [("archive/data.pkl", program.to_vec())];
        open(&zip::tests::written(&files, true)).unwrap_err()
    };
    for (program, class) in [
        // An object that gets its state; the same made with NEWOBJ; a call; a state dict inside an object inside a dictionary.
        (b"c__main__\nNet\n)R}b.".as_slice(), "__main__.Net"),
        (b"c__main__\nNet\n)\x81}b.", "__main__.Net"),
        (b"cos\nsystem\nX\x02\x00\x00\x00ls\x85R.", "os.system"),
        (
            b"}X\x05\x00\x00\x00modelc__main__\nNet\n)\x81}bs.",
            "__main__.Net",
        ),
        (b"c__torch__.m\nModule\n)\x81}b.", "__torch__.m.Module"),
    ] {
        let error = object(program);
        assert!(
            matches!(&error, Error::ObjectPickle { class: named, .. } if named == class),
            "{error}"
        );
        assert!(error.to_string().contains("state_dict()"), "{error}");
    }
    assert!(matches!(object(b"K\x01."), Error::Malformed { .. }));
    assert!(
        object(b"}X\x01\x00\x00\x00aK\x01s.")
            .to_string()
            .contains("`a` is no tensor")
    );
    assert!(object(b"}.").to_string().contains("no tensor"));
}

#[test]
fn the_old_format_is_refused_with_a_remedy() {
    let error = open(b"\x80\x02\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19.rest").unwrap_err();
    assert!(matches!(error, Error::OldPickle { .. }));
    assert!(error.to_string().contains("torch.save"), "{error}");
    refused(b"\x80\x02}.", "no zip");
}

#[test]
fn hostile_tensors_are_refused() {
    let one = |class: &str, count, offset, shape: &[usize], strides: &[usize]| {
        let mut writer = Writer::default();
        let key = writer.storage(vec![0; 16]);
        writer.view("a", class, key, count, offset, shape, strides);
        writer.bytes()
    };
    let float = |count, offset, shape: &[usize], strides: &[usize]| {
        one("FloatStorage", count, offset, shape, strides)
    };
    assert!(open(&float(4, 0, &[2, 2], &[2, 1])).is_ok());
    refused(&float(5, 0, &[4], &[1]), "cut short");
    refused(&float(4, 1, &[4], &[1]), "does not fit");
    refused(&float(4, 0, &[2, 2], &[3, 1]), "does not fit");
    refused(&float(4, 0, &[1 << 20, 1 << 20], &[0, 0]), "does not fit");
    refused(&float(4, 0, &[1 << 30; 8], &[1 << 30; 8]), "does not fit");
    refused(&float(4, 0, &[2, 2], &[1]), "does not fit");
    refused(&float(4, 0, &[1; 9], &[1; 9]), "no sizes");
    refused(&one("QInt8Storage", 4, 0, &[4], &[1]), "QInt8Storage");
    let mut elsewhere = Writer::default();
    elsewhere.view("a", "FloatStorage", 7, 0, 0, &[0], &[1]);
    refused(&elsewhere.bytes(), "no storage `7`");
    let short = b"}X\x01\x00\x00\x00actorch._utils\n_rebuild_tensor_v2\n)Rs.";
    let files = [("archive/data.pkl", short.to_vec())];
    refused(&zip::tests::written(&files, false), "0 arguments");
    refused(
        &zip::tests::written(&[("a", Vec::new())], false),
        "data.pkl",
    );
    let mut twice = two();
    twice.tensor("a", &[1], &[1.0]);
    refused(&twice.bytes(), "twice");
}

#[test]
fn no_byte_of_a_file_can_do_harm() {
    let whole = two().bytes();
    for length in 0..whole.len() {
        assert!(open(&whole[..length]).is_err(), "cut to {length} bytes");
    }
    for at in 0..whole.len() {
        for value in [0, b'.', 0x7f, 0xff] {
            let mut changed = whole.clone();
            changed[at] = value;
            if let Ok(bytes) = StateDict::from_bytes("x", changed) {
                let names: Vec<String> = bytes.tensors.keys().cloned().collect();
                for name in names {
                    let count = bytes.tensors[&name].tensor.shape.iter().product();
                    let _ = bytes.decode(&name, 0, &mut vec![0.0; count]);
                }
            }
        }
    }
}
