//! TCP in user space, for very many connections.
//!
//! A [`Stack`] takes IP packets and the time, and gives back packets, bytes and the next deadline. It does no I/O, reads no
//! clock, draws no randomness, decides no policy, and allocates nothing for a packet of an existing connection.
//!
//! * A [`Segment`] is parsed and verified once.
//! * One table finds what it belongs to by its [`Tuple`]: a connection, a handshake that a client began (a small record, no
//!   buffers), or a connection in TIME-WAIT (a smaller record).
//! * A connection is one smoltcp socket in a set of its own, behind a guard that mends what smoltcp takes too lightly on the
//!   open Internet: blind resets (RFC 5961), data with an old acknowledgment, a FIN that comes too early, limits on every state.
//! * One timer wheel wakes connections and handshakes. Every piece of work is bounded.
//!
//! The loop around a stack looks like this:
//!
//! ```
//! # use userspace_tcp::{Config, Emit, Expired, Ingress, Instant, Segment, Checksums, Stack, Status};
//! # fn turn(stack: &mut Stack<()>, now: Instant, packets: &mut [Vec<u8>], out: &mut impl Emit<()>) {
//! let mut touched = vec![];
//! for packet in packets {
//!     let Ok(segment) = Segment::parse(packet, Checksums::Verify) else { continue };
//!     match stack.ingress(now, &segment, packet, (), out) {
//!         Ingress::NewSyn => _ = stack.accept(now, &segment, (), 0, out),
//!         Ingress::Unknown => _ = stack.reset(now, &segment, (), out),
//!         Ingress::Accepted(id) | Ingress::Touched(id) => touched.push(id),
//!         Ingress::Absorbed | Ingress::Dropped(_) => {}
//!     }
//! }
//! for _ in 0..64 {
//!     match stack.expire(now, out) {
//!         Expired::Attend(id) => touched.push(id),
//!         Expired::Handled => {}
//!         Expired::Nothing => break,
//!     }
//! }
//! touched.sort_unstable();
//! touched.dedup();
//! for id in touched {
//!     // Echo what came; then say what there is to say.
//!     let bytes = stack.received(id).to_vec();
//!     let n = stack.send(id, &bytes);
//!     stack.consume(id, n);
//!     stack.flush(now, id, out);
//!     if let Status::Closed(_) = stack.status(id) {
//!         stack.release(id);
//!     }
//! }
//! // Sleep until a packet comes, or until stack.next_deadline().
//! # }
//! ```
#![warn(missing_docs)]

mod bucket;
mod checksum;
mod config;
mod connection;
mod counters;
mod device;
mod emit;
pub mod engine;
mod half_open;
mod header;
mod isn;
mod segment;
mod seq;
mod slab;
mod stack;
mod table;
mod time_wait;
mod tuple;
mod wheel;

pub use smoltcp::time::{Duration, Instant};

pub use config::{Config, ConfigError};
pub use counters::{Census, CloseReason, Counters, DropReason, Refusal};
pub use emit::Emit;
pub use segment::{Checksums, Flags, Malformed, Segment};
pub use stack::{ConnId, Expired, Ingress, Stack, StartError, Status};
pub use tuple::{Endpoint, Tuple};
