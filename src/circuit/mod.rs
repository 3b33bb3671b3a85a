//! A model as a graph: components that write to the residual stream, and edges to every place that reads it.
//!
//! Because the stream is a sum, what a reader sees can be taken apart by who wrote it, and an edge can be changed on its own.
//! [`Graph`] numbers nodes and edges; [`ScoredGraph`] holds what was found of them, and exchanges it with other tools.

mod graph;
mod json;
mod table;

pub use graph::Graph;
pub use json::ScoredGraph;
pub use table::Agreement;
