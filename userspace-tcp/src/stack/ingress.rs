//! What comes in: segments, and the two ways to open a connection.

use smoltcp::time::Instant;

use super::{Expired, Ingress, Stack, caught};
use crate::connection::{Connection, Verdict};
use crate::counters::{CloseReason, DropReason, Refusal};
use crate::device::Line;
use crate::emit::Emit;
use crate::engine::Engine;
use crate::half_open::{self, HalfOpen};
use crate::header::{self, Header};
use crate::segment::Segment;
use crate::table::Place;
use crate::time_wait;
use crate::tuple::Tuple;

impl<P: Copy, E: Engine> Stack<P, E> {
    /// Gives a segment to what it belongs to. `packet` is what it was parsed from, and `path` the way back to its sender; some
    /// bytes of the packet may be changed.
    ///
    /// Nothing is sent but immediate replies. The caller collects the connections that were touched, does with them what it
    /// wants, and then calls [`Stack::flush`] once for each.
    pub fn ingress(
        &mut self,
        now: Instant,
        segment: &Segment,
        packet: &mut [u8],
        path: P,
        out: &mut impl Emit<P>,
    ) -> Ingress {
        let ingress = match packet.get_mut(..segment.packet_len()) {
            Some(packet) => self.dispatch(now, segment, packet, path, out),
            None => Ingress::Dropped(DropReason::NotThisPacket),
        };
        match ingress {
            Ingress::Accepted(_) => self.counters.accepted += 1,
            Ingress::Absorbed => self.counters.absorbed += 1,
            Ingress::Dropped(reason) => self.counters.count_drop(reason),
            Ingress::NewSyn => self.counters.new_syns += 1,
            Ingress::Touched(_) => self.counters.touched += 1,
            Ingress::Unknown => self.counters.unknown += 1,
        }
        ingress
    }

    /// Touches the memory that a batch of segments will need, as far as it is known: 64 of them.
    ///
    /// With very many connections most of a segment's cost is waiting for memory. Here the waits of a whole batch overlap.
    /// Nothing changes, and nothing depends on it. With few connections it is not worth its time.
    pub fn anticipate<'s>(&self, segments: impl IntoIterator<Item = &'s Segment>) {
        // Each loop ends in loads that do not depend on one another, which the processor then does at the same time.
        let mut batch = [None; BATCH];
        let mut count = 0;
        for (segment, slot) in segments.into_iter().zip(&mut batch) {
            *slot = Some((self.table.hash(&segment.tuple), &segment.tuple));
            count += 1;
        }
        let mut places = [None; BATCH];
        for (place, slot) in places.iter_mut().zip(&batch[..count]) {
            if let Some((hash, tuple)) = slot {
                *place = self.table.find_hashed(*hash, tuple, &self.records);
            }
        }
        let mut touched = 0;
        for place in &places[..count] {
            if let Some(Place::Connection(index)) = place
                && let Some(connection) = self.records.connections.at(*index)
            {
                touched += connection.engine.touch();
            }
        }
        std::hint::black_box(touched);
    }

    fn dispatch(
        &mut self,
        now: Instant,
        segment: &Segment,
        packet: &mut [u8],
        path: P,
        out: &mut impl Emit<P>,
    ) -> Ingress {
        match self.table.find(&segment.tuple, &self.records) {
            Some(Place::Connection(index)) => {
                self.for_connection(now, index, segment, packet, path, out)
            }
            Some(Place::HalfOpen(index)) => {
                self.for_half_open(now, index, segment, packet, path, out)
            }
            Some(Place::TimeWait(index)) => self.for_time_wait(now, index, segment, path, out),
            None if segment.is_initial_syn() => Ingress::NewSyn,
            None => Ingress::Unknown,
        }
    }

    fn for_connection(
        &mut self,
        now: Instant,
        index: u32,
        segment: &Segment,
        packet: &mut [u8],
        back: P,
        out: &mut impl Emit<P>,
    ) -> Ingress {
        let Some(connection) = self.records.connections.at_mut(index) else {
            return Ingress::Unknown;
        };
        if connection.closed.is_some() {
            // Its RST has not found room yet.
            return Ingress::Touched(self.id(index));
        }
        let path = connection.path;
        let verdict = connection.examine(now, segment, packet);
        if connection.is_current && connection.follows {
            connection.path = back;
        }
        match verdict {
            Verdict::Take => {
                if !self.feed(now, index, packet, out) {
                    return Ingress::Touched(self.id(index));
                }
            }
            Verdict::FinOnly => {}
            Verdict::Reset => {
                let reason = match connection.is_opening() {
                    true => CloseReason::Refused,
                    false => CloseReason::ResetByPeer,
                };
                self.end(index, reason);
                return Ingress::Touched(self.id(index));
            }
            Verdict::Challenge(reason) => {
                if let Some(acknowledgment) = connection.challenge(now) {
                    self.answer(&path, &acknowledgment, out);
                }
                return Ingress::Dropped(reason);
            }
            Verdict::Refuse(reason) => {
                self.reset(now, segment, path, out);
                return Ingress::Dropped(reason);
            }
            Verdict::Drop(reason) => return Ingress::Dropped(reason),
        }
        self.feed_due_fin(now, index, out);
        self.settle(now, index);
        Ingress::Touched(self.id(index))
    }

    /// Lets the engine have a packet. Returns false if that was its end.
    fn feed(&mut self, now: Instant, index: u32, packet: &[u8], out: &mut impl Emit<P>) -> bool {
        let Some(connection) = self.records.connections.at_mut(index) else { return false };
        let Connection { engine, path, sent, tuple, class, .. } = connection;
        let (host, class) = (&mut self.host, *class);
        let mut line = Line { out, path, sent, tuple };
        let fed = caught(|| engine.ingress(host, class, now, packet, &mut line));
        if fed.is_none() {
            self.panicked(index);
        }
        fed.is_some()
    }

    fn feed_due_fin(&mut self, now: Instant, index: u32, out: &mut impl Emit<P>) {
        let connection = self.records.connections.at_mut(index);
        if let Some(fin) = connection.and_then(Connection::due_fin) {
            let mut packet = [0; header::MAX_LEN];
            let packet = &mut packet[..fin.len()];
            fin.write(packet);
            self.feed(now, index, packet, out);
        }
    }

    fn for_half_open(
        &mut self,
        now: Instant,
        index: u32,
        segment: &Segment,
        packet: &mut [u8],
        path: P,
        out: &mut impl Emit<P>,
    ) -> Ingress {
        let Some(record) = self.records.half_open.at_mut(index) else { return Ingress::Unknown };
        match record.examine(segment) {
            half_open::Answer::Complete => {
                return self.complete(now, index, segment, packet, path, out);
            }
            half_open::Answer::SynAck => {
                record.path = path;
                let syn_ack = record.syn_ack();
                self.answer(&path, &syn_ack, out);
            }
            half_open::Answer::Reset => {
                self.forget_half_open(index);
                self.counters.half_open_reset += 1;
            }
            half_open::Answer::Challenge(reason) => {
                if let Some(acknowledgment) = record.challenge(now) {
                    self.answer(&path, &acknowledgment, out);
                }
                return Ingress::Dropped(reason);
            }
            half_open::Answer::Refuse(reason) => {
                self.reset(now, segment, path, out);
                return Ingress::Dropped(reason);
            }
            half_open::Answer::Drop(reason) => return Ingress::Dropped(reason),
        }
        Ingress::Absorbed
    }

    /// Makes a connection of a handshake.
    fn complete(
        &mut self,
        now: Instant,
        index: u32,
        segment: &Segment,
        packet: &mut [u8],
        path: P,
        out: &mut impl Emit<P>,
    ) -> Ingress {
        if self.records.connections.is_full() {
            return Ingress::Dropped(DropReason::ConnectionsFull);
        }
        let Some(record) = self.records.half_open.at(index) else { return Ingress::Unknown };
        let (handshake, tag) = (record.handshake, record.tag);
        let engine = self.engine_that(|engine, host| engine.take_over(host, &handshake));
        let Some(engine) = engine else {
            self.forget_half_open(index);
            return Ingress::Dropped(DropReason::Panicked);
        };
        let connection = Connection::taken_over(&handshake, tag, path, engine, now);
        let Some(new) = self.records.connections.insert(connection) else {
            return Ingress::Dropped(DropReason::ConnectionsFull);
        };
        let (old, new_place) = (Place::HalfOpen(index), Place::Connection(new));
        self.table.replace(&handshake.tuple, old, new_place);
        self.wheel.cancel(self.half_open_node(index));
        self.records.half_open.remove(index);
        self.for_connection(now, new, segment, packet, path, out);
        Ingress::Accepted(self.id(new))
    }

    fn for_time_wait(
        &mut self,
        now: Instant,
        index: u32,
        segment: &Segment,
        path: P,
        out: &mut impl Emit<P>,
    ) -> Ingress {
        let delay = self.config.time_wait;
        match self.records.time_wait.examine(now, index, segment, delay) {
            time_wait::Answer::NewSyn => return Ingress::NewSyn,
            time_wait::Answer::Acknowledge(acknowledgment) => {
                self.answer(&path, &acknowledgment, out);
            }
            time_wait::Answer::Ignore => {}
            time_wait::Answer::Drop(reason) => return Ingress::Dropped(reason),
        }
        Ingress::Absorbed
    }

    pub(super) fn try_accept(
        &mut self,
        now: Instant,
        syn: &Segment,
        path: P,
        tag: u32,
        out: &mut impl Emit<P>,
    ) -> Result<(), Refusal> {
        if !syn.is_initial_syn() {
            return Err(Refusal::NotInitialSyn);
        }
        let tuple = syn.tuple;
        let replaced = match self.table.find(&tuple, &self.records) {
            None => None,
            Some(Place::TimeWait(index)) => match self.records.time_wait.at(index) {
                Some(record) if record.may_give_way_to(syn) => Some((index, record.snd_nxt)),
                _ => return Err(Refusal::TupleInUse),
            },
            Some(_) => return Err(Refusal::TupleInUse),
        };
        if self.records.connections.is_full() {
            return Err(Refusal::ConnectionsFull);
        }
        if self.records.half_open.is_full() {
            return Err(Refusal::HalfOpenFull);
        }
        let isn = self.isn(now, &tuple, replaced);
        let announced = (self.host.mss(&tuple), self.config.receive_buffer as u16);
        let record = HalfOpen::new(syn, (tag, path), isn, announced, now);
        let (syn_ack, retry) = (
            record.syn_ack(),
            record.next(now, self.config.syn_ack_retries, self.config.handshake_timeout),
        );
        let index = self.records.half_open.insert(record).ok_or(Refusal::HalfOpenFull)?;
        self.table.insert(&tuple, Place::HalfOpen(index), &self.records);
        self.wheel.arm(self.half_open_node(index), self.tick_after(retry));
        self.counters.half_opened += 1;
        self.answer(&path, &syn_ack, out);
        Ok(())
    }

    pub(super) fn try_connect(
        &mut self,
        now: Instant,
        tuple: Tuple,
        path: P,
        tag: u32,
        out: &mut impl Emit<P>,
    ) -> Result<super::ConnId, Refusal> {
        if !tuple.is_usable() {
            return Err(Refusal::TupleUnusable);
        }
        let replaced = match self.table.find(&tuple, &self.records) {
            None => None,
            Some(Place::TimeWait(index)) => {
                self.records.time_wait.at(index).map(|record| (index, record.snd_nxt))
            }
            Some(_) => return Err(Refusal::TupleInUse),
        };
        if self.records.connections.is_full() {
            return Err(Refusal::ConnectionsFull);
        }
        let isn = self.isn(now, &tuple, replaced);
        let engine = self.engine_that(|engine, host| engine.connect(host, now, &tuple, isn));
        let connection =
            Connection::opening(tuple, tag, path, engine.ok_or(Refusal::Engine)?, isn, now);
        let index = self.records.connections.insert(connection).ok_or(Refusal::ConnectionsFull)?;
        self.table.insert(&tuple, Place::Connection(index), &self.records);
        self.counters.connected += 1;
        self.push(now, index, out);
        Ok(self.id(index))
    }

    /// An initial sequence number; a TIME-WAIT record of the same tuple gives way.
    fn isn(&mut self, now: Instant, tuple: &Tuple, replaced: Option<(u32, u32)>) -> u32 {
        let Some((index, snd_nxt)) = replaced else { return self.isns.isn(now, tuple) };
        self.forget_time_wait(index);
        self.counters.time_wait_replaced += 1;
        self.isns.isn_beyond(now, tuple, snd_nxt)
    }

    /// An engine, used or new, with which `begin` succeeded.
    fn engine_that(
        &mut self,
        begin: impl FnOnce(&mut E, &mut crate::engine::Host) -> bool,
    ) -> Option<E> {
        let mut engine = match self.spare.pop() {
            Some(engine) => engine,
            None => caught(|| E::new(&self.config))?,
        };
        caught(|| begin(&mut engine, &mut self.host))?.then_some(engine)
    }

    /// Sends a segment of our own. Returns whether there was room.
    pub(super) fn answer(&mut self, path: &P, header: &Header, out: &mut impl Emit<P>) -> bool {
        if out.room() == 0 {
            self.counters.no_room += 1;
            return false;
        }
        self.counters.answered += 1;
        out.emit(path, header.len(), |packet| header.write(packet));
        true
    }

    pub(super) fn half_open_due(
        &mut self,
        now: Instant,
        index: u32,
        out: &mut impl Emit<P>,
    ) -> Expired {
        let (retries, timeout) = (self.config.syn_ack_retries, self.config.handshake_timeout);
        let Some(record) = self.records.half_open.at_mut(index) else { return Expired::Handled };
        if record.is_over(now, timeout) {
            self.forget_half_open(index);
            self.counters.half_open_expired += 1;
            return Expired::Handled;
        }
        let (syn_ack, path) = (record.syn_ack(), record.path);
        let next = record.retried(now, retries, timeout);
        self.answer(&path, &syn_ack, out);
        self.wheel.arm(self.half_open_node(index), self.tick_after(next));
        Expired::Handled
    }

    fn forget_half_open(&mut self, index: u32) {
        self.wheel.cancel(self.half_open_node(index));
        if let Some(record) = self.records.half_open.remove(index) {
            self.table.remove(&record.handshake.tuple, Place::HalfOpen(index));
        }
    }

    pub(super) fn forget_time_wait(&mut self, index: u32) {
        if let Some(record) = self.records.time_wait.remove(index) {
            self.table.remove(&record.tuple, Place::TimeWait(index));
        }
    }

    pub(super) fn half_open_node(&self, index: u32) -> u32 {
        self.config.max_connections as u32 + index
    }
}

const BATCH: usize = 64;
