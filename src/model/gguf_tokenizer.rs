//! placeholder
use super::gguf::Gguf;
use super::tokenizer::Tokenizer;
use crate::error::Result;
pub fn read(_gguf: &Gguf) -> Result<(Tokenizer, String)> {
    unimplemented!()
}
