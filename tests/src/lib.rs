//! A world in memory around headgate's data plane, for tests and fuzzers: clients and an origin made
//! of TCP stacks of their own, a wire that loses, delays, duplicates and reorders, several workers,
//! and a clock that only moves when told to.

#![warn(missing_docs)]

pub mod fuzzing;
pub mod hosts;
pub mod rig;
pub mod wire;
