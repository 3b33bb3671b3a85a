use super::*;

/// One layer of two heads; an MLP, norm weights, positions where asked for.
fn tensors(parts: &[&str]) -> Vec<(&'static str, &'static [usize])> {
    let all: [(&str, &str, &[usize]); 13] = [
        ("", "embed.W_E", &[7, 8]),
        ("", "unembed.W_U", &[8, 7]),
        ("", "blocks.0.attn.W_Q", &[2, 8, 4]),
        ("", "blocks.0.attn.W_K", &[2, 8, 4]),
        ("", "blocks.0.attn.W_V", &[2, 8, 4]),
        ("", "blocks.0.attn.W_O", &[2, 4, 8]),
        ("pos", "pos_embed.W_pos", &[5, 8]),
        ("mlp", "blocks.0.mlp.W_in", &[8, 16]),
        ("mlp", "blocks.0.mlp.W_out", &[16, 8]),
        ("ln", "blocks.0.ln1.w", &[8]),
        ("ln", "blocks.0.ln1.b", &[8]),
        ("rms", "blocks.0.ln1.w", &[8]),
        ("", "blocks.0.attn.mask", &[5, 5]),
    ];
    all.into_iter()
        .filter(|(part, _, _)| part.is_empty() || parts.contains(part))
        .map(|(_, name, shape)| (name, shape))
        .collect()
}

fn spec_of(parts: &[&str], config: &str) -> Result<ModelSpec> {
    Ok(describe(Some(config), &tensors(parts), &[])?.spec)
}

#[test]
fn shapes_say_what_they_can() {
    assert!(is_native(&tensors(&[])));
    let spec = describe(None, &tensors(&["pos", "ln"]), &[]).unwrap().spec;
    let sizes = (
        spec.n_layers,
        spec.n_heads,
        spec.d_head,
        spec.n_ctx,
        spec.d_vocab,
    );
    assert_eq!(sizes, (1, 2, 4, 5, 7));
    assert_eq!((spec.mlp, spec.norm), (Mlp::None, NormKind::Layer));
    assert_eq!(spec.attn_scale, [0.5]);
    let rms = describe(None, &tensors(&["pos", "rms"]), &[]).unwrap().spec;
    assert_eq!(rms.norm, NormKind::Rms);
}

#[test]
fn what_shapes_cannot_say_must_be_said() {
    let unsaid = |parts: &[&str], config, key: &str| {
        let message = spec_of(parts, config).unwrap_err().to_string();
        assert!(
            message.contains(key) && message.contains("config.json"),
            "{message}"
        );
    };
    unsaid(&["pos"], "{}", "normalization_type");
    unsaid(&["pos", "mlp", "ln"], "{}", "act_fn");
    unsaid(&["ln"], "{}", "positional_embedding_type");
    unsaid(
        &["ln"],
        r#"{"positional_embedding_type": "rotary"}"#,
        "n_ctx",
    );
    let none = spec_of(&["pos"], r#"{"normalization_type": null}"#).unwrap();
    assert_eq!(none.norm_placement, NormPlacement::None);
    let folded = spec_of(&["pos"], r#"{"normalization": "LNPre", "eps": 1e-4}"#).unwrap();
    assert_eq!(
        (folded.norm_placement, folded.norm_eps),
        (NormPlacement::Pre, 1e-4)
    );
    let by_hand = spec_of(&["pos"], r#"{"arch": "attn+mlp, no layernorm"}"#).unwrap();
    assert_eq!(by_hand.norm_placement, NormPlacement::None);
}

#[test]
fn a_config_is_followed_or_refused() {
    let spec = |extra: &str| {
        spec_of(
            &["pos", "mlp", "ln"],
            &format!(r#"{{"act": "relu", {extra}}}"#),
        )
    };
    assert_eq!(spec(r#""attn_scale": 2.0"#).unwrap().attn_scale, [0.5]);
    assert_eq!(
        spec(r#""use_attn_scale": false"#).unwrap().attn_scale,
        [1.0]
    );
    assert_eq!(
        spec(r#""act_fn_": null"#).unwrap().activation,
        Activation::Relu
    );
    let rotary =
        r#"{"positional_embedding_type": "rotary", "n_ctx": 9, "rotary_adjacent_pairs": true}"#;
    let rotary = spec_of(&["ln"], rotary).unwrap();
    assert_eq!(rotary.n_ctx, 9);
    assert!(matches!(rotary.position, Position::Rotary(r) if r.style == RotaryStyle::Interleaved));
    for (extra, word) in [
        (r#""n_heads": 3"#, "the tensors say 2"),
        (r#""attn_only": true"#, "otherwise"),
        (r#""normalization_type": "RMS"#, "cannot be read"),
        (r#""normalization_type": "RMS""#, "`blocks.0.ln1.b`"),
        (r#""attention_dir": "bidirectional""#, "bidirectional"),
        (r#""use_local_attn": true"#, "use_local_attn"),
        (
            r#""positional_embedding_type": "shortformer""#,
            "shortformer",
        ),
        (r#""attn_scale": 0"#, "no divisor"),
    ] {
        let message = spec(extra).unwrap_err().to_string();
        assert!(message.contains(word), "{extra}: {message}");
    }
}
