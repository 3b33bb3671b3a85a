//! Where information flows: which states of the stream a position's state is made of, layer by layer, token by token.
//!
//! A state is a sum, so that each part of it can be weighed against the whole without a gradient and without a second run. What is
//! followed from the answer's position downwards is a graph of states and of the parts that lead from one to the next.

mod alti;
mod cells;
mod encoder;
mod globenc;
mod layered;
mod neurons;
mod parts;
mod place;
mod route;
mod routes;

pub use alti::AltiFlowConfig;
pub use encoder::{Against, GlobEncConfig};
pub use globenc::{GlobEnc, Rung, globenc};
pub use parts::{Importance, proximity};
pub use route::{Route, RouteEdge, RouteSettings, Via, routes};
pub use routes::RouteConfig;
