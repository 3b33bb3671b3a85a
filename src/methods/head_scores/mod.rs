//! What single heads are to a model's answers: scores of heads by changing each of them alone, or by where they look.
//!
//! [`ReplacementConfig`]: heads that answers rest on and heads that stand against them, by putting the mean of the layer's other heads in
//! the place of each ("V-SEAM: Visual Semantic Editing and Attention Modulating", its part about heads). [`ShipsConfig`]: how far the next token's
//! distribution moves, and which heads together turn the model ("On the Role of Attention Heads in Large Language Model Safety").
//! [`NegativeConfig`]: heads that look at the negative one of two answers ("Correcting Negative Bias in Large Language Models").

mod angles;
mod answers;
mod candidate;
mod changing;
mod declining;
mod each;
mod negative;
mod replacement;
mod sahara;
mod ships;

pub use candidate::Candidate;
use each::EachHead;
pub use negative::NegativeConfig;
pub use replacement::{ReplaceBy, ReplacementConfig};
pub use sahara::Search;
pub use ships::{HeadChange, ShipsConfig};
