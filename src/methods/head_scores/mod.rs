//! What single heads are to a model's answers: scores of heads by changing each of them alone.
//!
//! [`ReplacementConfig`]: heads that answers rest on and heads that stand against them, by putting the mean of the layer's other heads in
//! the place of each ("V-SEAM: Visual Semantic Editing and Attention Modulating", its part about heads).

mod each;
mod replacement;

use each::EachHead;
pub use replacement::{ReplaceBy, ReplacementConfig};
