use std::fs::File;

use candle_core::Device;

use super::*;
use crate::model::LoadOptions;
use crate::run::{Quiet, run_with_cache};
use crate::task::{ExpandOptions, TaskFile, expand};

/// The embedded model on prompts of several lengths.
fn subject() -> (Model, Tokenizer, Task) {
    let loaded = crate::model::load("embedded", &LoadOptions::default()).unwrap();
    let options = ExpandOptions {
        n_pairs: Some(5),
        ..ExpandOptions::default()
    };
    let file = TaskFile::open("embedded").unwrap();
    let task = expand(&file, &loaded.tokenizer, &options).unwrap();
    (loaded.model, loaded.tokenizer, task)
}

fn hooks() -> Vec<Hook> {
    [
        "resid_post1",
        "z2",
        "pattern0",
        "ln_final.scale",
        "mlp.post3",
    ]
    .iter()
    .map(|name| name.parse().unwrap())
    .collect()
}

#[test]
fn tensors_are_what_a_run_holds_and_zeros_beyond() {
    let (model, tokenizer, task) = subject();
    let prompts = prompts_of(&task, Runs::Both);
    let lengths: Vec<usize> = prompts.iter().map(|prompt| prompt.tokens.len()).collect();
    assert!(lengths.iter().any(|&n| n != lengths[0]), "lengths differ");
    let folder = tempfile::tempdir().unwrap();
    for end_only in [false, true] {
        let path = folder.path().join(format!("{end_only}.safetensors"));
        let config = ActivationsConfig {
            end_only,
            memory: 100_000,
            ..ActivationsConfig::of(hooks())
        };
        let command = ["candlewick".to_string(), "cache".to_string()];
        let plan = write_activations(
            &model, &tokenizer, &prompts, &config, &path, &command, &Quiet,
        )
        .unwrap();
        assert_eq!(plan.prompts, 10);
        let read = candle_core::safetensors::load(&path, &Device::Cpu).unwrap();
        let kept: Vec<i64> = read["lengths"].to_vec1().unwrap();
        assert_eq!(kept, lengths.iter().map(|&n| n as i64).collect::<Vec<_>>());
        for (i, prompt) in prompts.iter().enumerate() {
            let ids: Vec<i64> = read["tokens"].get(i).unwrap().to_vec1().unwrap();
            let (own, beyond) = ids.split_at(prompt.tokens.len());
            assert!(
                own.iter()
                    .zip(&prompt.tokens)
                    .all(|(a, &b)| *a == i64::from(b))
            );
            assert!(beyond.iter().all(|&id| id == -1));
            let (_, cache) =
                run_with_cache(&model, std::slice::from_ref(&prompt.tokens), &hooks()).unwrap();
            for hook in hooks() {
                let mut here = read[&hook.to_string()].get(i).unwrap();
                let mut there = cache.get(hook).unwrap().get(0).unwrap();
                let axis = query_axis(hook.kind, &model.spec) - 1;
                if end_only {
                    there = there.narrow(axis, there.dim(axis).unwrap() - 1, 1).unwrap();
                }
                let sum = |t: &candle_core::Tensor| {
                    t.abs()
                        .unwrap()
                        .sum_all()
                        .unwrap()
                        .to_scalar::<f32>()
                        .unwrap()
                };
                let all = sum(&here);
                for (axis, &n) in there.dims().iter().enumerate() {
                    here = here.narrow(axis, 0, n).unwrap();
                }
                let gap = sum(&(&here - &there).unwrap());
                assert!(gap <= 1e-5 * all, "{hook} of prompt {i}: {gap} of {all}");
                assert!(
                    (sum(&here) - all).abs() <= 1e-6 * all,
                    "{hook}: zeros beyond"
                );
            }
        }
    }
}

#[test]
fn rows_are_the_same_vectors_with_their_tokens() {
    let (model, tokenizer, task) = subject();
    let prompts = prompts_of(&task, Runs::Clean);
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("acts.parquet");
    let config = ActivationsConfig::of(hooks());
    write_activations(&model, &tokenizer, &prompts, &config, &path, &[], &Quiet).unwrap();
    let file = File::open(&path).unwrap();
    use polars::prelude::SerReader;
    let table = polars_io::parquet::read::ParquetReader::new(file)
        .finish()
        .unwrap();
    let positions: usize = prompts.iter().map(|prompt| prompt.tokens.len()).sum();
    let heads = model.spec.n_heads;
    assert_eq!(table.height(), positions * (1 + heads + heads + 1 + 1));
    // The pattern of the last prompt's head 1: each row of it sums to 1.
    let column = |name: &str| table.column(name).unwrap().as_materialized_series().clone();
    let (hook, values) = (column("hook"), column("values"));
    let values = values.list().unwrap();
    for row in 0..table.height() {
        let vector = values.get_as_series(row).unwrap();
        if hook.str().unwrap().get(row) == Some(Kind::Pattern.name()) {
            let sum = vector.f32().unwrap().iter().flatten().sum::<f32>();
            assert!((sum - 1.0).abs() < 1e-5, "{sum}");
        }
    }
    let (prompt, pos, token) = (column("prompt"), column("pos"), column("token"));
    for row in (0..table.height()).step_by(7) {
        let prompt = &prompts[prompt.i32().unwrap().get(row).unwrap() as usize];
        let id = prompt.tokens[pos.i32().unwrap().get(row).unwrap() as usize];
        assert_eq!(token.str().unwrap().get(row).unwrap(), tokenizer.token(id));
    }
}

#[test]
fn what_cannot_be_written_is_refused_before_it_runs() {
    let (model, _, task) = subject();
    let prompts = prompts_of(&task, Runs::Clean);
    let refused = |names: &[&str], prompts: &[Prompt], says: &str| {
        let hooks = names.iter().map(|name| name.parse().unwrap()).collect();
        let error = ActivationsConfig::of(hooks)
            .plan(&model.spec, prompts)
            .unwrap_err();
        assert!(error.to_string().contains(says), "{error}");
    };
    refused(&["resid_post9"], &prompts, "9");
    refused(&["z1", "z1"], &prompts, "named twice");
    refused(&[], &prompts, "at least one hook");
    refused(&["z1"], &[], "one prompt");
    refused(&["z1"], &[Prompt::default()], "no token");
    assert!(ActivationsFormat::of(Path::new("a.pt")).is_err());
}
