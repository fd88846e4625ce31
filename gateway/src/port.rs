//! The seam between the gateway and the world: batches of frames in, batches of frames out.
//!
//! Implementations: [`Memory`](crate::memory_port::Memory) (tests), AF_XDP rings
//! ([`crate::xsk`]) and AF_PACKET sockets ([`crate::packet_port`]).

use std::time::Duration;

use serde::Serialize;

use crate::frame::{Frame, Slot};

/// A NIC of this worker: its index in the configuration's order.
pub type Nic = u8;

/// Where the frames of a port are. The parts always add up to `total`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct FrameCensus {
    /// All frames of the port.
    pub total: usize,
    /// Free, to be allocated or to be lent to the kernel.
    pub free: usize,
    /// Lent to the kernel for reception (fill ring, and received but not yet fetched).
    pub receiving: usize,
    /// Given to the kernel for transmission and not yet returned.
    pub sending: usize,
    /// Held by the gateway: received or allocated, and neither transmitted nor retired.
    pub held: usize,
}

impl FrameCensus {
    /// Whether every frame is accounted for.
    #[must_use]
    pub fn balances(&self) -> bool {
        self.free + self.receiving + self.sending + self.held == self.total
    }
}

/// Receives and transmits Ethernet frames on one queue of each NIC of a worker.
pub trait Port {
    /// Moves received frames to the end of `batch`, up to its capacity.
    fn receive(&mut self, batch: &mut Batch);

    /// The contents of `frame`.
    fn bytes_mut(&mut self, frame: &mut Frame) -> &mut [u8];

    /// How many frames [`allocate`](Self::allocate) would give for transmission right now.
    fn room(&self) -> usize;

    /// A free frame with room for `len` bytes, with unspecified contents. `None` if none is free,
    /// or `len` exceeds what a frame holds.
    fn allocate(&mut self, len: usize) -> Option<Frame>;

    /// Queues `frame` for transmission on `nic`, after all frames queued before.
    fn transmit(&mut self, nic: Nic, frame: Frame);

    /// Takes a retired frame back.
    fn recycle(&mut self, slot: Slot);

    /// Hands what was queued to the kernel, takes back what was sent, and lends free frames for
    /// reception. Called once for a batch.
    fn flush(&mut self);

    /// Sleeps until something was received, another thread used the [`Waker`], or `limit` passed.
    fn wait(&mut self, limit: Duration);

    /// Where the frames are.
    fn census(&mut self) -> FrameCensus;

    /// Counters of the rings by NIC, for the operator.
    fn rings(&mut self) -> Vec<RingCounters>;
}

/// What the kernel counts for one NIC's rings of this worker.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct RingCounters {
    /// The NIC's name.
    pub nic: String,
    /// The queue of the NIC.
    pub queue: u32,
    /// Frames queued that the kernel has not taken yet.
    pub backlog: usize,
    /// Frames dropped because a ring or the memory was full, or for other reasons.
    pub rx_dropped: u64,
    /// Frames dropped because the receive ring was full.
    pub rx_ring_full: u64,
    /// Receptions that found the fill ring empty.
    pub rx_fill_ring_empty: u64,
    /// Descriptors that the kernel called invalid, in either direction.
    pub invalid_descriptors: u64,
    /// System calls to start transmission.
    pub tx_kicks: u64,
    /// Of those, the ones that were told to come again.
    pub tx_kicks_again: u64,
    /// Frames refused by the kernel at transmission.
    pub tx_errors: u64,
}

/// The most frames that are received at a time.
pub const BATCH: usize = 64;

/// Frames received in one turn of the loop.
pub type Batch = Vec<(Nic, Frame)>;
