//! The project's own tasks, run by `cargo xtask …`, and the laboratory that the tests use.
//!
//! Nothing here needs a C library or depends on the gateway: it builds on a bare machine with Rust,
//! and then gets the rest ready.
#![warn(missing_docs)]
#![allow(
    clippy::disallowed_methods,
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a task reads the clock, waits, and talks to a terminal"
)]

pub mod bench;
pub mod demo;
pub mod ebpf;
pub mod fuzz;
pub mod lab;
pub mod process;
pub mod setup;
pub mod stages;
mod table;
