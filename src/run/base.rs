//! The base run of a sweep: one forward pass that keeps what resumed runs need.

use candle_core::Tensor;

use super::forward::Stage;
use super::{Cache, Logits, Request, Roles, Source, Sources, walk};
use crate::error::Result;
use crate::hooks::{Edit, Hook, Kind};
use crate::model::Model;
use crate::spec::{Block, Mlp};

/// Prompts of equal length, run once, with the stream, keys and values of every layer.
#[derive(Debug, Clone)]
pub struct BaseRun {
    pub prompts: Vec<Vec<u32>>,
    pub roles: Vec<Roles>,
    /// The edits in force in the base run and in every variant of it (Gaussian noise on the embeddings, say).
    pub edits: Vec<Edit>,
    pub sources: Sources,
    pub length: usize,
    pub(crate) cache: Cache,
    /// What the unembedding reads, `[prompts * length, d_model]`.
    pub(crate) normed: Tensor,
}

impl BaseRun {
    /// Runs `prompts`, keeping what variants that start at `starts` (a hook's kind each) will need.
    /// # Shapes
    /// `prompts [prompts, pos]`, `roles` one for each prompt, or none at all.
    /// # Errors
    /// Those of [`super::run`].
    pub fn new(
        model: &Model,
        prompts: Vec<Vec<u32>>,
        roles: Vec<Roles>,
        edits: Vec<Edit>,
        sources: Sources,
        starts: &[Kind],
    ) -> Result<Self> {
        let spec = &model.spec;
        let mut kinds = vec![
            Kind::ResidPre,
            Kind::RotQ,
            Kind::RotK,
            Kind::V,
            Kind::ResidPost,
        ];
        for &start in starts {
            kinds.extend(needs(start, spec.block));
            // The hook's own value tells edits that change nothing from those that do.
            if !matches!(
                start,
                Kind::Result | Kind::QInput | Kind::KInput | Kind::VInput
            ) {
                kinds.push(start);
            }
        }
        kinds.retain(|kind| kind.absent(spec).is_none());
        kinds.sort_unstable();
        kinds.dedup();
        let layers = |kind: &Kind| -> Vec<Hook> {
            match (kind.per_layer(), kind) {
                (false, _) => vec![Hook::global(*kind)],
                // Only the last block's output is not some other block's input, unless variants start there.
                (true, Kind::ResidPost) if !starts.contains(&Kind::ResidPost) => {
                    vec![Hook::at(*kind, spec.n_layers - 1)]
                }
                (true, _) => (0..spec.n_layers)
                    .map(|layer| Hook::at(*kind, layer))
                    .filter(|hook| hook.absent(spec).is_none())
                    .collect(),
            }
        };
        let capture: Vec<Hook> = kinds.iter().flat_map(layers).collect();
        let request = Request {
            edits: &edits,
            sources: sources.clone(),
            capture: &capture,
            logits: Logits::All,
            roles: &roles,
        };
        let examples: Vec<usize> = (0..prompts.len()).collect();
        let (normed, mut cache) = walk(model, &prompts, &examples, &request)?;
        let normed = normed.expect("asked for");
        let length = cache.length;
        if spec.block != Block::Sequential && spec.mlp != Mlp::None {
            // What the residual stream would be between attention and MLP if a parallel block had such a place.
            for layer in 0..spec.n_layers {
                if let Ok(attn_out) = cache.packed(Hook::at(Kind::AttnOut, layer)).cloned() {
                    let mid = (cache.packed(Hook::at(Kind::ResidPre, layer))? + attn_out)?;
                    cache.insert(Hook::at(Kind::ResidMid, layer), mid);
                }
            }
        }
        Ok(BaseRun {
            prompts,
            roles,
            edits,
            sources,
            length,
            cache,
            normed,
        })
    }

    /// Whether the run kept a hook's values.
    pub fn keeps(&self, hook: Hook) -> bool {
        self.cache.contains(hook)
    }

    /// What the run kept, as a source of edits in other runs.
    /// # Errors
    /// Those of copying from the device.
    pub fn source(&self) -> Result<Source> {
        Source::run(self.cache.clone())
    }

    /// Bytes of activations held.
    pub fn bytes(&self) -> usize {
        self.cache.bytes()
    }
}

/// What must be kept for variants that start at a hook, besides the streams, queries, keys and values.
fn needs(start: Kind, block: Block) -> Vec<Kind> {
    let mid = match block {
        Block::Sequential => Kind::ResidMid,
        Block::Parallel { .. } => Kind::AttnOut,
    };
    match Stage::of(start) {
        None | Some(Stage::ResidPre) => vec![],
        Some(Stage::Qkv) => vec![Kind::Q, Kind::K],
        Some(Stage::Z) => vec![Kind::Z],
        Some(Stage::AttnOut) => vec![Kind::AttnOut],
        Some(Stage::ResidMid) => vec![mid],
        Some(Stage::MlpPost) => vec![mid, Kind::MlpPost],
        Some(Stage::MlpOut) => vec![mid, Kind::MlpOut],
        Some(Stage::ResidPost) => vec![Kind::ResidPost],
    }
}
