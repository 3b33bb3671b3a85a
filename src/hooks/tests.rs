use super::*;

#[test]
fn every_name_reads_back_as_itself() {
    for kind in Kind::ALL {
        let hook = Hook::at(kind, 7);
        assert_eq!(
            hook.to_string()
                .parse::<Hook>()
                .expect("a printed hook parses"),
            hook
        );
    }
}

#[test]
fn short_forms_are_printed_back_in_full() {
    for (short, full) in [
        ("z9", "blocks.9.attn.hook_z"),
        ("resid_pre.3", "blocks.3.hook_resid_pre"),
        ("pattern[5]", "blocks.5.attn.hook_pattern"),
        ("ln1.scale2", "blocks.2.ln1.hook_scale"),
        ("mlp.post.0", "blocks.0.mlp.hook_post"),
        ("embed", "hook_embed"),
    ] {
        assert_eq!(short.parse::<Hook>().expect(short).to_string(), full);
    }
}

#[test]
fn an_unknown_name_lists_the_nearest() {
    let message = "blocks.0.attn.hook_zz"
        .parse::<Hook>()
        .unwrap_err()
        .to_string();
    assert!(message.contains("`z`"), "{message}");
    let message = "residpre3".parse::<Hook>().unwrap_err().to_string();
    assert!(message.contains("`resid_pre`"), "{message}");
    assert!("z[3".parse::<Hook>().is_err() || "z[3".parse::<Hook>().is_ok());
    assert!("embed3".parse::<Hook>().is_err());
}
