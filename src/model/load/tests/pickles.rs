//! The fixtures saved as PyTorch saves them are the same models.

use super::*;
use crate::model::pickle::tests::Writer;

/// A model folder with a fixture's config and tokenizer, and nothing else.
fn folder(name: &str) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    for file in ["config.json", "tokenizer.json"] {
        fs::copy(fixture(name).join(file), dir.path().join(file)).unwrap();
    }
    dir
}

fn written(tensors: &[(String, Tensor)]) -> Vec<u8> {
    let mut writer = Writer::default();
    for (name, tensor) in tensors {
        writer.tensor(name, tensor.dims(), &flat(tensor));
    }
    writer.bytes()
}

#[test]
fn a_state_dict_is_the_same_model() {
    for name in [LLAMA, GPT2] {
        let dir = folder(name);
        let tensors: Vec<(String, Tensor)> = raw(name).into_iter().collect();
        fs::write(dir.path().join("pytorch_model.bin"), written(&tensors)).unwrap();
        let model = load(dir.path().to_str().unwrap(), &LoadOptions::default());
        let model = model.unwrap().model;
        let twin = load_edited(name, |_| ()).unwrap().model;
        assert_eq!(values(&model), values(&twin));
        assert_eq!(model.spec, twin.spec);
        assert_eq!(model.origin.storage, "pytorch F32");
        assert_ne!(model.origin.weight_hash, twin.origin.weight_hash);
    }
}

#[test]
fn sharded_state_dicts_are_the_same_model() {
    let dir = folder(LLAMA);
    let mut shards = [Vec::new(), Vec::new()];
    let mut weight_map = serde_json::Map::new();
    for (i, (name, tensor)) in raw(LLAMA).into_iter().enumerate() {
        let file = format!("pytorch_model-{}.bin", i % 2);
        weight_map.insert(name.clone(), file.into());
        shards[i % 2].push((name, tensor));
    }
    for (i, shard) in shards.iter().enumerate() {
        let file = format!("pytorch_model-{i}.bin");
        fs::write(dir.path().join(file), written(shard)).unwrap();
    }
    let index = serde_json::json!({ "weight_map": weight_map }).to_string();
    fs::write(dir.path().join("pytorch_model.bin.index.json"), index).unwrap();
    let model = load(dir.path().to_str().unwrap(), &LoadOptions::default());
    let twin = load_edited(LLAMA, |_| ()).unwrap().model;
    assert_eq!(values(&model.unwrap().model), values(&twin));
}

#[test]
fn one_weight_file_of_a_folder_can_be_named() {
    let dir = folder(LLAMA);
    let tensors: Vec<(String, Tensor)> = raw(LLAMA).into_iter().collect();
    for file in ["step_100.pt", "step_200.pth"] {
        let path = dir.path().join(file);
        fs::write(&path, written(&tensors)).unwrap();
        let loaded = load(path.to_str().unwrap(), &LoadOptions::default()).unwrap();
        let id = path.to_str().unwrap();
        assert_eq!(loaded.model.origin.id, id);
        assert_eq!(
            read_spec(id, &LoadOptions::default()).unwrap(),
            loaded.model.spec
        );
    }
}
