//! The contrasts of CausalGym as tasks: prompts that differ in one word, which turns the next one. They go by `causalgym/NAME`.
//!
//! Arora, Jurafsky and Potts 2024, arXiv 2402.12560, on forms of SyntaxGym (Gauthier et al. 2020); sentences and words are ours, and so are
//! the forms of some, as each file says. All pairs have prompts of equal length, so that positions are roles: every slot is one.

macro_rules! contrasts {
    ($($name:literal)*) => {
        /// Name and text.
        pub(super) const CONTRASTS: &[(&str, &str)] = &[$((
            concat!("causalgym/", $name),
            include_str!(concat!("../../circuits/causalgym/", $name, ".toml")),
        )),*];
    };
}

contrasts! {
    "agr_gender"
    "agr_refl_num_obj_relc"
    "agr_refl_num_pp"
    "agr_refl_num_subj_relc"
    "agr_sv_num_obj_relc"
    "agr_sv_num_pp"
    "agr_sv_num_subj_relc"
    "cleft"
    "cleft_mod"
    "filler_gap_embed_3"
    "filler_gap_embed_4"
    "filler_gap_hierarchy"
    "filler_gap_obj"
    "filler_gap_pp"
    "filler_gap_subj"
    "garden_mvrr"
    "garden_mvrr_mod"
    "garden_npz_obj"
    "garden_npz_obj_mod"
    "garden_npz_vtrans"
    "garden_npz_vtrans_mod"
    "gss_subord"
    "gss_subord_obj_relc"
    "gss_subord_pp"
    "gss_subord_subj_relc"
    "npi_any_obj_relc"
    "npi_any_subj_relc"
    "npi_ever_obj_relc"
    "npi_ever_subj_relc"
}

/// The names of the 29 contrasts.
pub fn causal_gym() -> impl Iterator<Item = &'static str> {
    CONTRASTS.iter().map(|(name, _)| *name)
}
