//! One thin file per family: from the real `config.json` to a `ModelSpec`, and the checkpoint name of each weight.
