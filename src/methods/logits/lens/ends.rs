//! What was seen at the ends of prompts, and is kept until the likeliest tokens are known.

use std::collections::BTreeMap;

use crate::methods::logits::vocabulary::Sums;

/// Bytes of streams at the ends that are kept until the likeliest tokens are known; what is beyond runs again.
const KEPT_BYTES: usize = 32 << 20;

/// The distributions at the ends of prompts.
#[derive(Debug, Default)]
pub(super) struct Ends {
    pub sums: Sums,
    /// Of each item that is in the sums its streams there, if there was room.
    pub streams: BTreeMap<usize, Option<EndStreams>>,
    bytes: usize,
}

/// The streams at the end of one prompt: enough to find any one probability again.
#[derive(Debug)]
pub(super) struct EndStreams {
    /// `[stream * d_model]`, as the unembedding reads them.
    pub normed: Vec<f32>,
    /// `[stream]`
    pub lse: Vec<f64>,
}

impl Ends {
    pub fn keep(&mut self, item: usize, streams: EndStreams) {
        self.bytes += 4 * streams.normed.len() + 8 * streams.lse.len();
        let has_room = self.bytes <= KEPT_BYTES;
        self.streams.insert(item, has_room.then_some(streams));
    }

    pub fn of(&self, item: usize) -> Option<&EndStreams> {
        self.streams.get(&item)?.as_ref()
    }
}
