//! What the XDP program of headgate and the gateway have in common: the types in the BPF maps, and
//! [`classify`], which decides what happens to a frame.
//!
//! The same source runs in the kernel (`main.rs`, built by `program/Cargo.toml`) and on the host,
//! where tests call it on byte slices. It allocates nothing, reads no clock and keeps no state.
//!
//! Only exact matches leave the kernel's path: a frame is redirected when its destination address,
//! protocol and destination port are those of a service, or when the address is a pool address and
//! the port lies in that address's range. Everything else passes to the kernel stack: ARP,
//! neighbour discovery, ICMP, VLANs, IPv6 extension headers, whatever is malformed or unknown.
//! Three things are dropped: frames from blocked prefixes, first fragments of what would have
//! matched, and, where a rule says so, matching frames while no worker is alive to take them.

#![no_std]
#![warn(missing_docs)]

#[cfg(any(test, feature = "table"))]
extern crate std;

mod classify;
pub mod map;
#[cfg(feature = "object")]
mod object;
#[cfg(any(test, feature = "table"))]
pub mod table;
mod verdict;

pub use classify::{Decision, Packet, Tables, classify};
pub use map::{
    BlockedPrefix, Endpoint, OnDead, PoolKey, PoolRule, Protocol, ServiceRule, Settings,
};
#[cfg(feature = "object")]
pub use object::OBJECT;
pub use verdict::{Action, Verdict};
