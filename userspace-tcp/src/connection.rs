//! One connection: the engine, and the guard in front of it that mends what smoltcp takes too lightly on the open Internet.
//!
//! The guard knows the exact sequence numbers of both directions without asking the engine, by counting the bytes that go in
//! and out of its buffers.

use std::net::IpAddr;

use smoltcp::socket::tcp::State;
use smoltcp::time::{Duration, Instant};
use smoltcp::wire::{TcpPacket, TcpSeqNumber};

use crate::config::Config;
use crate::counters::{CloseReason, DropReason};
use crate::emit::Sent;
use crate::engine::{Engine, Handshake, MtuClass};
use crate::header::{Header, SynOptions};
use crate::segment::{Flags, Segment};
use crate::seq;
use crate::tuple::Tuple;

#[derive(Debug)]
pub(crate) struct Connection<P, E> {
    pub(crate) tuple: Tuple,
    pub(crate) tag: u32,
    pub(crate) path: P,
    pub(crate) class: MtuClass,
    pub(crate) engine: E,
    pub(crate) sent: Sent,
    /// The segment that was examined last lay in the window and was newer than all before.
    pub(crate) is_current: bool,
    /// Whether packets go back the way that the peer's came: the peer opened the connection.
    pub(crate) follows: bool,
    pub(crate) closed: Option<CloseReason>,
    /// Out of the table: no packet comes in or goes out any more.
    pub(crate) detached: bool,
    /// Waits in the queue of those that have something to send.
    pub(crate) waiting: bool,
    /// Tick for which the timer wheel holds it.
    pub(crate) armed: Option<u64>,

    /// Sequence number of the next byte that the caller will consume.
    read: u32,
    /// Sequence number behind the last byte that the caller queued.
    written: u32,
    peer: Peer,
    /// Sequence number of a FIN that came before its turn.
    fin: Option<u32>,
    challenged: Option<Instant>,
    times: Times,
    /// SND.UNA and RCV.NXT as of the last look, to notice progress.
    seen: (u32, u32),
}

/// What the peer announced.
#[derive(Debug)]
struct Peer {
    window: u16,
    scale: u8,
    /// SND.WL1 and SND.WL2 (RFC 9293 section 3.10.7.4): which segment the window came from.
    wl1: u32,
    wl2: u32,
    greatest_window: u32,
    zero_since: Option<Instant>,
}

#[derive(Debug)]
struct Times {
    opened: Instant,
    /// Last valid segment.
    heard: Instant,
    /// Last byte or FIN that advanced either direction.
    active: Instant,
    /// Last advance of SND.UNA, or when there began to be something unacknowledged.
    progress: Instant,
    outstanding: bool,
}

/// What the guard says about a segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// The engine shall have it.
    Take,
    /// Nothing of it but its FIN is new; the engine shall have that.
    FinOnly,
    /// The peer ended the connection.
    Reset,
    /// Not taken, and answered by an acknowledgment of what is.
    Challenge(DropReason),
    /// Not taken, and answered by a RST.
    Refuse(DropReason),
    /// Not taken.
    Drop(DropReason),
}

impl<P, E: Engine> Connection<P, E> {
    /// A connection whose SYN will carry `isn`.
    pub(crate) fn opening(
        tuple: Tuple,
        tag: u32,
        path: P,
        engine: E,
        isn: u32,
        now: Instant,
    ) -> Self {
        let peer =
            Peer { window: 0, scale: 0, wl1: 0, wl2: 0, greatest_window: 0, zero_since: None };
        let sent = Sent { max: isn, permitted: isn.wrapping_add(1), ..Sent::default() };
        Self::new((tuple, tag, path), engine, sent, (0, isn.wrapping_add(1)), peer, now)
    }

    /// A connection whose handshake wants only the client's acknowledgment.
    pub(crate) fn taken_over(
        handshake: &Handshake,
        tag: u32,
        path: P,
        engine: E,
        now: Instant,
    ) -> Self {
        let rcv_nxt = handshake.irs.wrapping_add(1);
        let snd_nxt = handshake.isn.wrapping_add(1);
        let edge = rcv_nxt.wrapping_add(engine.receive_capacity() as u32);
        let permitted = snd_nxt.wrapping_add(u32::from(handshake.window));
        let sent = Sent { max: snd_nxt, ack: rcv_nxt, edge, permitted, ..Sent::default() };
        let peer = Peer {
            window: handshake.window,
            scale: handshake.options.window_scale.unwrap_or(0),
            wl1: handshake.irs,
            wl2: handshake.isn,
            greatest_window: u32::from(handshake.window),
            zero_since: None,
        };
        let numbers = (rcv_nxt, snd_nxt);
        let new = Self::new((handshake.tuple, tag, path), engine, sent, numbers, peer, now);
        Self { follows: true, ..new }
    }

    fn new(
        (tuple, tag, path): (Tuple, u32, P),
        engine: E,
        sent: Sent,
        (read, written): (u32, u32),
        peer: Peer,
        now: Instant,
    ) -> Self {
        Self {
            tuple,
            tag,
            path,
            class: MtuClass::default(),
            engine,
            sent,
            is_current: false,
            follows: false,
            closed: None,
            detached: false,
            waiting: false,
            armed: None,
            read,
            written,
            peer,
            fin: None,
            challenged: None,
            times: Times { opened: now, heard: now, active: now, progress: now, outstanding: true },
            seen: (written.wrapping_sub(1), read),
        }
    }

    /// RCV.NXT.
    pub(crate) fn rcv_nxt(&self) -> u32 {
        let buffered = self.engine.received_len() as u32;
        self.read.wrapping_add(buffered).wrapping_add(u32::from(self.fin_received()))
    }

    /// SND.UNA.
    pub(crate) fn snd_una(&self) -> u32 {
        let unacknowledged = self.engine.queued() as u32;
        let una = self.written.wrapping_sub(unacknowledged);
        match self.engine.state() {
            State::SynSent | State::SynReceived => una.wrapping_sub(1),
            State::FinWait2 | State::TimeWait => una.wrapping_add(1),
            _ => una,
        }
    }

    pub(crate) fn is_opening(&self) -> bool {
        matches!(self.engine.state(), State::SynSent | State::SynReceived)
    }

    /// Whether the peer sent its FIN, and everything before it came.
    pub(crate) fn fin_received(&self) -> bool {
        matches!(
            self.engine.state(),
            State::CloseWait | State::LastAck | State::Closing | State::TimeWait
        )
    }

    pub(crate) fn may_send(&self) -> bool {
        matches!(self.engine.state(), State::Established | State::CloseWait)
    }

    /// Whether something that we sent waits for an acknowledgment.
    fn is_outstanding(&self) -> bool {
        self.engine.queued() > 0
            || matches!(self.engine.state(), State::FinWait1 | State::Closing | State::LastAck)
    }

    /// Looks at a segment, and rewrites in `packet` what smoltcp would misunderstand. Checksums are not kept: the engine
    /// does not look at them again.
    pub(crate) fn examine(
        &mut self,
        now: Instant,
        segment: &Segment,
        packet: &mut [u8],
    ) -> Verdict {
        self.is_current = false;
        if self.engine.state() == State::SynSent {
            return self.examine_syn_sent(now, segment);
        }
        if segment.flags.rst() {
            return self.examine_reset(segment);
        }
        if segment.flags.syn() {
            return Verdict::Challenge(DropReason::UnexpectedSyn);
        }
        if !segment.flags.ack() {
            return Verdict::Drop(DropReason::NoAck);
        }
        let (una, rcv_nxt) = (self.snd_una(), self.rcv_nxt());
        if seq::after(segment.ack, self.sent.max) {
            return match self.engine.state() {
                State::SynReceived => Verdict::Refuse(DropReason::WrongHandshakeAck),
                _ => Verdict::Challenge(DropReason::AckOfUnsent),
            };
        }
        if !self.is_acceptable(segment, rcv_nxt) {
            // The engine answers it with an acknowledgment and takes nothing. A FIN that was received before needs that too.
            return Verdict::Take;
        }
        self.times.heard = now;
        let is_old = seq::before(segment.ack, una);
        if is_old && una.wrapping_sub(segment.ack) > self.peer.greatest_window.max(1) {
            return Verdict::Challenge(DropReason::AckTooOld);
        }
        let is_bare = segment.payload_len() == 0 && !segment.flags.fin();
        let is_reordered = !self.is_newer_window(segment);
        if is_bare
            && (is_old || is_reordered && segment.ack == una && segment.window != self.peer.window)
        {
            return Verdict::Drop(DropReason::StaleAck);
        }
        let mut tcp = TcpPacket::new_unchecked(&mut packet[segment.tcp_at()..]);
        if is_old || is_reordered {
            // Data is data, whatever it acknowledges; smoltcp would drop it all.
            tcp.set_ack_number(TcpSeqNumber(seq::later(segment.ack, una) as i32));
            tcp.set_window_len(self.peer.window);
        } else {
            self.take_window(now, segment);
            self.is_current = true;
        }
        if self.fin_received() {
            // RFC 9293 section 3.10.7.4: there is nothing behind a FIN. smoltcp would queue it.
            tcp.set_fin(false);
            cut_payload(segment, packet);
            return Verdict::Take;
        }
        self.hold_back_fin(segment, rcv_nxt, &mut tcp)
    }

    /// SYN-SENT, RFC 9293 section 3.10.7.3.
    fn examine_syn_sent(&mut self, now: Instant, segment: &Segment) -> Verdict {
        if segment.flags.ack() && segment.ack != self.written {
            return match segment.flags.rst() {
                true => Verdict::Drop(DropReason::ResetOutOfWindow),
                false => Verdict::Refuse(DropReason::WrongHandshakeAck),
            };
        }
        if segment.flags.rst() {
            return match segment.flags.ack() {
                true => Verdict::Reset,
                false => Verdict::Drop(DropReason::ResetOutOfWindow),
            };
        }
        if !segment.flags.syn() {
            return Verdict::Drop(DropReason::NoAck);
        }
        self.times.heard = now;
        self.read = segment.seq.wrapping_add(1);
        self.seen.1 = self.read;
        self.sent.ack = segment.seq;
        self.sent.edge = self.read.wrapping_add(self.engine.receive_capacity() as u32);
        // A window in a SYN is never scaled, and what comes after it is.
        self.take_window(now, segment);
        self.peer.scale = segment.window_scale.unwrap_or(0);
        Verdict::Take
    }

    /// RFC 5961 section 3.2: only a RST at exactly RCV.NXT ends the connection.
    fn examine_reset(&self, segment: &Segment) -> Verdict {
        let rcv_nxt = self.rcv_nxt();
        if segment.seq == rcv_nxt {
            Verdict::Reset
        } else if seq::after(segment.seq, rcv_nxt) && seq::before(segment.seq, self.sent.edge) {
            Verdict::Challenge(DropReason::ResetInWindow)
        } else {
            Verdict::Drop(DropReason::ResetOutOfWindow)
        }
    }

    /// The four cases of RFC 9293 section 3.4, table 6.
    fn is_acceptable(&self, segment: &Segment, rcv_nxt: u32) -> bool {
        let begins = !seq::before(segment.seq, rcv_nxt) && seq::before(segment.seq, self.sent.edge);
        begins
            || segment.seq == rcv_nxt && segment.payload_len() == 0
            || seq::after(segment.end(), rcv_nxt)
                && !seq::after(segment.payload_end(), self.sent.edge)
    }

    fn is_newer_window(&self, segment: &Segment) -> bool {
        seq::before(self.peer.wl1, segment.seq)
            || self.peer.wl1 == segment.seq && !seq::before(segment.ack, self.peer.wl2)
    }

    fn take_window(&mut self, now: Instant, segment: &Segment) {
        let peer = &mut self.peer;
        let window = u32::from(segment.window) << peer.scale;
        peer.window = segment.window;
        (peer.wl1, peer.wl2) = (segment.seq, segment.ack);
        peer.greatest_window = peer.greatest_window.max(window);
        peer.zero_since = (window == 0).then(|| peer.zero_since.unwrap_or(now));
        // A SYN that does not acknowledge ours says nothing about where the window is.
        if segment.flags.ack() {
            let edge = segment.ack.wrapping_add(window);
            // A scaled window may seem to shrink by less than its unit. A closed one is exact.
            let farthest = seq::later(self.sent.permitted, edge);
            self.sent.permitted = if window == 0 { edge } else { farthest };
        }
    }

    /// smoltcp takes a FIN for received although bytes before it were cut off at the edge of the window, and forgets one that
    /// comes too early. So it gets a FIN only by itself, and when its turn has come.
    fn hold_back_fin(
        &mut self,
        segment: &Segment,
        rcv_nxt: u32,
        tcp: &mut TcpPacket<&mut [u8]>,
    ) -> Verdict {
        if !segment.flags.fin() {
            return Verdict::Take;
        }
        let fin = segment.payload_end();
        if segment.seq == fin && fin == rcv_nxt {
            return Verdict::Take;
        }
        if seq::before(fin, rcv_nxt) {
            return Verdict::Take;
        }
        tcp.set_fin(false);
        if !seq::after(fin, self.sent.edge) {
            self.fin = Some(fin);
        }
        if fin == rcv_nxt { Verdict::FinOnly } else { Verdict::Take }
    }

    /// The FIN that was held back, if it is due now: a segment from the peer with nothing else.
    pub(crate) fn due_fin(&mut self) -> Option<Header> {
        let fin = self.fin?;
        if self.fin_received() || fin != self.rcv_nxt() {
            return None;
        }
        self.fin = None;
        Some(Header {
            tuple: self.tuple.reversed(),
            seq: fin,
            // What it acknowledges may not have been told to the engine yet.
            ack: seq::later(self.snd_una(), self.peer.wl2),
            flags: Flags::FIN.with(Flags::ACK),
            window: self.peer.window,
            options: SynOptions::default(),
        })
    }

    /// An acknowledgment of what was received, unless one like it was sent a moment ago (RFC 5961 section 7). The limit is
    /// per connection: one that is shared between connections would tell strangers about them (CVE-2016-5696).
    pub(crate) fn challenge(&mut self, now: Instant) -> Option<Header> {
        if self.challenged.is_some_and(|last| now < last + CHALLENGE_INTERVAL) {
            return None;
        }
        self.challenged = Some(now);
        let ack = self.rcv_nxt();
        let seq = self.sent.acceptable_seq();
        let window = self.sent.edge.wrapping_sub(ack) as i32;
        Some(Header {
            tuple: self.tuple,
            seq,
            ack,
            flags: Flags::ACK,
            window: window.clamp(0, i32::from(u16::MAX)) as u16,
            options: SynOptions::default(),
        })
    }

    /// Notices progress since the last call.
    pub(crate) fn observe(&mut self, now: Instant) {
        let seen = (self.snd_una(), self.rcv_nxt());
        if seen.0 != self.seen.0 {
            self.times.progress = now;
        }
        if seen != self.seen {
            self.seen = seen;
            self.times.active = now;
        }
        let outstanding = self.is_outstanding();
        if outstanding && !self.times.outstanding {
            self.times.progress = now;
            self.times.active = now;
        }
        self.times.outstanding = outstanding;
    }

    /// When a limit ends the connection, and how.
    pub(crate) fn limit(&self, config: &Config) -> (Instant, CloseReason) {
        let times = &self.times;
        if self.is_opening() {
            return (times.opened + config.connect_timeout, CloseReason::HandshakeTimeout);
        }
        let mut limit = (times.active + config.idle_timeout, CloseReason::IdleTimeout);
        let mut consider = |at: Instant, reason| {
            if at < limit.0 {
                limit = (at, reason);
            }
        };
        if self.engine.state() == State::FinWait2 {
            consider(times.active + config.fin_wait_timeout, CloseReason::FinWaitTimeout);
        }
        if times.outstanding {
            let mut unanswered_since = times.progress;
            if let Some(zero_since) = self.peer.zero_since {
                consider(zero_since + config.persist_timeout, CloseReason::PersistTimeout);
                unanswered_since = unanswered_since.max(times.heard);
            }
            consider(
                unanswered_since + config.retransmission_timeout,
                CloseReason::RetransmissionTimeout,
            );
        }
        limit
    }

    pub(crate) fn consume(&mut self, len: usize) -> usize {
        let consumed = self.engine.consume(len);
        self.read = self.read.wrapping_add(consumed as u32);
        consumed
    }

    pub(crate) fn send(&mut self, bytes: &[u8]) -> usize {
        if self.closed.is_some() {
            return 0;
        }
        let sent = self.engine.send(bytes);
        self.written = self.written.wrapping_add(sent as u32);
        sent
    }

    /// Moves received bytes to the other connection, but not in crumbs that would make a window of crumbs (RFC 9293,
    /// MUST-39): a full receive buffer is emptied only when it is worth a window update.
    pub(crate) fn splice(&mut self, to: &mut Self) -> usize {
        let (buffered, capacity) = (self.engine.received_len(), self.engine.receive_capacity());
        let worth_it = (capacity / 2).min(WORTHWHILE_UPDATE);
        let space = to.engine.send_space();
        if space < worth_it && space < buffered && capacity - buffered < worth_it {
            return 0;
        }
        let moved = self.engine.splice(&mut to.engine, usize::MAX);
        self.read = self.read.wrapping_add(moved as u32);
        to.written = to.written.wrapping_add(moved as u32);
        moved
    }
}

/// Lets the IP packet end where the payload of its segment begins.
fn cut_payload(segment: &Segment, packet: &mut [u8]) {
    let (len, header) = (segment.payload().start as u16, segment.tcp_at() as u16);
    match segment.tuple.local.addr {
        IpAddr::V4(_) => packet[2..4].copy_from_slice(&len.to_be_bytes()),
        IpAddr::V6(_) => packet[4..6].copy_from_slice(&(len - header).to_be_bytes()),
    }
}

const CHALLENGE_INTERVAL: Duration = Duration::from_millis(500);
/// A segment of the usual size.
const WORTHWHILE_UPDATE: usize = 1460;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::SmolEngine;

    #[test]
    fn a_connection_without_its_socket_is_small() {
        let size = size_of::<Option<Connection<[u8; 8], SmolEngine>>>();
        assert!(size <= 320, "{size} bytes");
    }
}
