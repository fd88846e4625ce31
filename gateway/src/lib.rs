//! headgate: a kernel-bypass, packet-level edge gateway.
//!
//! The core takes bytes and the time, and gives back bytes, verdicts and the next deadline:
//! [`plane`] (a packet's way), [`relay`](crate::plane) and [`session`] (two connections as one),
//! [`pool`], [`origin`], [`setup`], [`hop`], [`frame`], [`tally`]. The shell does the rest:
//! [`cli`], [`config`], [`start`], [`host`], [`netlink`], [`steer`] (aya), [`xsk`] (xsk-rs),
//! [`packet_port`], [`worker`] (the loop and the clock), [`admin`].

#![warn(missing_docs)]

pub mod admin;
pub mod bench;
pub mod cli;
pub mod config;
mod dial;
pub mod directory;
pub mod exchange;
pub mod frame;
pub mod hop;
pub mod host;
mod log_gate;
pub mod memory_port;
pub mod neighbours;
pub mod netlink;
pub mod origin;
pub mod overview;
pub mod packet_port;
pub mod plane;
pub mod pool;
pub mod port;
mod relay;
pub mod routes;
pub mod session;
pub mod setup;
pub mod start;
pub mod status;
pub mod steer;
pub mod tally;
mod waiting;
pub mod waker;
pub mod worker;
pub mod xsk;
