//! Circuits: how much of the task a set of edges does, which small set does most of it, and how sure that is.

mod acdc;
mod curve;
mod evaluation;
mod find;
mod ground;
mod limits;
mod masked;
mod plain;
mod prune;
mod quality;
mod scored;
mod soft;
mod split;
mod streams;
mod writes;

pub use acdc::{AcdcCircuit, AcdcConfig, acdc};
pub use curve::{CurvePoint, FRACTIONS, cmd, cpr, curve};
pub use evaluation::{CircuitEval, NamedCircuit, circuit_values_plain};
pub use find::{FindConfig, FindRule, FindSize, FoundCircuit, find_circuit};
pub use plain::CircuitMode;
pub use prune::{Gates, PruneConfig, PrunedCircuit, prune_circuit};
pub use quality::{QualityConfig, quality_circuits, quality_lines};
pub use scored::Level;
pub use soft::{MaskGradient, mask_gradient};
