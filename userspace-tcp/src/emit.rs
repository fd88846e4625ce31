//! Where packets go.

use crate::header;
use crate::segment::Flags;
use crate::seq;

/// Takes the packets that a stack sends.
///
/// `P` is the opaque path (next hop) that the caller stored with the connection.
pub trait Emit<P> {
    /// How many packets would be taken right now.
    fn room(&self) -> usize;

    /// Sends one IP packet of exactly `len` bytes, which `fill` writes. Called only while [`Emit::room`] is not zero.
    ///
    /// The slice given to `fill` must be exactly `len` bytes long; what it held before does not matter. `fill` does not panic.
    fn emit<R>(&mut self, path: &P, len: usize, fill: impl FnOnce(&mut [u8]) -> R) -> R;
}

/// What a connection has told its peer so far, read from the packets it sent.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Sent {
    /// The highest sequence number sent, plus one (SND.NXT before any retransmission).
    pub(crate) max: u32,
    /// The last acknowledgment number sent.
    pub(crate) ack: u32,
    /// Right edge of the window last advertised: acknowledgment number plus window.
    pub(crate) edge: u32,
    /// Right edge of the window that the peer advertised: the farthest so far, or where it is closed.
    pub(crate) permitted: u32,
    /// Packets sent.
    pub(crate) packets: u64,
    /// Replies that were lost because there was no room for them.
    pub(crate) lost: u64,
}

impl Sent {
    /// The sequence number of an acknowledgment without data: SND.NXT (RFC 9293 section 3.10.7.4), but not beyond what the peer
    /// permits. A probe of its closed window was beyond that, and there it would take no acknowledgment for acceptable.
    pub(crate) fn acceptable_seq(&self) -> u32 {
        if seq::before(self.permitted, self.max) { self.permitted } else { self.max }
    }

    /// Corrects the sequence number of a bare acknowledgment: smoltcp gives it the one that it went back to for a
    /// retransmission. A peer that has received more finds that one outside of its window and ignores the acknowledgment; if
    /// both sides went back, none would ever hear the other again.
    pub(crate) fn straighten(&self, packet: &mut [u8]) {
        let tcp_at = if packet[0] >> 4 == 4 { usize::from(packet[0] & 0x0f) * 4 } else { 40 };
        let tcp = &mut packet[tcp_at..];
        let is_bare = Flags::from_bits(tcp[13] & !Flags::PSH.bits()) == Flags::ACK
            && tcp.len() == usize::from(tcp[12] >> 4) * 4;
        if is_bare {
            let written = u32::from_be_bytes([tcp[4], tcp[5], tcp[6], tcp[7]]);
            let seq = seq::later(written, self.acceptable_seq());
            tcp[4..8].copy_from_slice(&seq.to_be_bytes());
        }
    }

    /// Takes note of a packet with valid headers that is about to leave.
    pub(crate) fn note(&mut self, packet: &[u8]) {
        let tcp_at = if packet[0] >> 4 == 4 { usize::from(packet[0] & 0x0f) * 4 } else { 40 };
        let tcp = &packet[tcp_at..];
        let be32 = |at: usize| u32::from_be_bytes([tcp[at], tcp[at + 1], tcp[at + 2], tcp[at + 3]]);
        let flags = Flags::from_bits(tcp[13]);
        let payload_len = tcp.len() - usize::from(tcp[12] >> 4) * 4;
        let end = be32(4)
            .wrapping_add(payload_len as u32)
            .wrapping_add(u32::from(flags.syn()) + u32::from(flags.fin()));
        self.max = seq::later(self.max, end);
        if flags.ack() {
            self.ack = be32(8);
            self.edge = self.ack.wrapping_add(u32::from(u16::from_be_bytes([tcp[14], tcp[15]])));
        }
        self.packets += 1;
    }
}

/// Takes packets and forgets them.
pub(crate) struct Swallow;

impl Emit<()> for Swallow {
    fn room(&self) -> usize {
        1
    }

    fn emit<R>(&mut self, _path: &(), len: usize, fill: impl FnOnce(&mut [u8]) -> R) -> R {
        let mut packet = [0; header::MAX_LEN];
        fill(&mut packet[..len])
    }
}
