//! Handshakes that a client began: answered without a socket, and forgotten if the client does not complete them.

use smoltcp::time::{Duration, Instant};

use crate::counters::DropReason;
use crate::engine::Handshake;
use crate::header::{Header, SynOptions};
use crate::segment::{Flags, Segment};
use crate::seq;

/// About 128 bytes, and no buffer.
#[derive(Debug)]
pub(crate) struct HalfOpen<P> {
    pub(crate) handshake: Handshake,
    pub(crate) tag: u32,
    pub(crate) path: P,
    /// What our SYN-ACK says.
    mss: u16,
    window: u16,
    retries: u8,
    opened: Instant,
    challenged: Option<Instant>,
}

/// What is to be done about a segment for a half-open connection.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Answer {
    /// The handshake is complete.
    Complete,
    /// The SYN-ACK, once more.
    SynAck,
    /// The client gave up.
    Reset,
    /// An acknowledgment of what was received.
    Challenge(DropReason),
    /// A RST for the segment.
    Refuse(DropReason),
    Drop(DropReason),
}

impl<P> HalfOpen<P> {
    pub(crate) fn new(
        syn: &Segment,
        (tag, path): (u32, P),
        isn: u32,
        (mss, window): (u16, u16),
        now: Instant,
    ) -> Self {
        let options = SynOptions {
            mss: syn.mss,
            window_scale: syn.window_scale,
            sack_permitted: syn.sack_permitted,
        };
        let handshake = Handshake {
            tuple: syn.tuple,
            isn,
            irs: syn.seq,
            window: syn.window,
            options,
            answered: now,
        };
        Self { handshake, tag, path, mss, window, retries: 0, opened: now, challenged: None }
    }

    /// SYN-RECEIVED, RFC 9293 section 3.10.7.4, with RFC 5961.
    pub(crate) fn examine(&self, segment: &Segment) -> Answer {
        let (rcv_nxt, flags) = (self.rcv_nxt(), segment.flags);
        let edge = rcv_nxt.wrapping_add(u32::from(self.window));
        let in_window = !seq::before(segment.seq, rcv_nxt) && seq::before(segment.seq, edge);
        if flags.rst() {
            return match segment.seq == rcv_nxt {
                true => Answer::Reset,
                false if in_window => Answer::Challenge(DropReason::ResetInWindow),
                false => Answer::Drop(DropReason::ResetOutOfWindow),
            };
        }
        if segment.is_initial_syn() && segment.seq == self.handshake.irs {
            return Answer::SynAck;
        }
        if flags.syn() {
            return Answer::Challenge(DropReason::UnexpectedSyn);
        }
        if !flags.ack() {
            return Answer::Drop(DropReason::NoAck);
        }
        if segment.ack != self.snd_nxt() {
            return Answer::Refuse(DropReason::WrongHandshakeAck);
        }
        if !in_window {
            return Answer::Challenge(DropReason::WrongHandshakeSeq);
        }
        Answer::Complete
    }

    pub(crate) fn syn_ack(&self) -> Header {
        let options = SynOptions {
            mss: Some(self.mss),
            // Our own window needs no scale, but without the option the client must not use one either.
            window_scale: self.handshake.options.window_scale.map(|_| 0),
            sack_permitted: self.handshake.options.sack_permitted,
        };
        Header { seq: self.handshake.isn, options, ..self.header(Flags::SYN.with(Flags::ACK)) }
    }

    /// An acknowledgment, unless there was one a moment ago.
    pub(crate) fn challenge(&mut self, now: Instant) -> Option<Header> {
        if self.challenged.is_some_and(|last| now < last + CHALLENGE_INTERVAL) {
            return None;
        }
        self.challenged = Some(now);
        Some(self.header(Flags::ACK))
    }

    /// Takes note that the SYN-ACK was sent again. Returns when it is to be sent next, or the record dropped.
    pub(crate) fn retried(&mut self, now: Instant, retries: u8, timeout: Duration) -> Instant {
        self.retries = self.retries.saturating_add(1);
        self.handshake.answered = now;
        self.next(now, retries, timeout)
    }

    pub(crate) fn next(&self, now: Instant, retries: u8, timeout: Duration) -> Instant {
        let ends = self.opened + timeout;
        if self.retries >= retries {
            return ends;
        }
        ends.min(now + FIRST_RETRY * (1 << self.retries.min(16)))
    }

    pub(crate) fn is_over(&self, now: Instant, timeout: Duration) -> bool {
        now >= self.opened + timeout
    }

    fn header(&self, flags: Flags) -> Header {
        Header {
            tuple: self.handshake.tuple,
            seq: self.snd_nxt(),
            ack: self.rcv_nxt(),
            flags,
            window: self.window,
            options: SynOptions::default(),
        }
    }

    fn rcv_nxt(&self) -> u32 {
        self.handshake.irs.wrapping_add(1)
    }

    fn snd_nxt(&self) -> u32 {
        self.handshake.isn.wrapping_add(1)
    }
}

const FIRST_RETRY: Duration = Duration::from_secs(1);
const CHALLENGE_INTERVAL: Duration = Duration::from_millis(500);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_is_small() {
        let size = size_of::<Option<HalfOpen<[u8; 8]>>>();
        assert!(size <= 144, "{size} bytes");
    }
}
