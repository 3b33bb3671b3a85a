//! A model as a graph: components that write to the residual stream, and edges to every place that reads it.
//!
//! Because the stream is a sum, what a reader sees can be taken apart by who wrote it, and an edge can be changed on its own.
//! [`Graph`] numbers nodes and edges; [`ScoredGraph`] holds what was found of them, and exchanges it with other tools;
//! [`select`] makes an [`EdgeSet`] of it; a [`Circuit`] is such a set with what was claimed and measured, and its file. Files
//! of other tools are read and written in [`interchange`]; circuits of papers are in [`published`].

mod bounded;
// The noun of the room.
#[allow(clippy::module_inception)]
mod circuit;
mod classes;
mod compare;
mod edge_set;
mod graph;
mod helps;
pub mod interchange;
mod part;
pub mod published;
mod scored;
mod select;
mod stability;
mod table;
mod toml;

pub use circuit::{About, Circuit, CircuitFormat, NodeNote};
pub use classes::{Link, linked};
pub use compare::{Comparison, Overlap, Roc, RocPoint};
pub use edge_set::{EdgeSet, Pruning};
pub use graph::Graph;
pub use helps::Helps;
pub use part::{Part, Parts, Piece, PieceScores};
pub use scored::ScoredGraph;
pub use select::{Ranking, Rule, Selected, Selection, select, select_from};
pub use stability::{PairScores, Resampling, Stability, consistent, stability};
pub use table::EdgeAgreement;
