//! Connections that ended, remembered for 2 MSL in a small record instead of a socket.

use smoltcp::time::{Duration, Instant};

use crate::counters::DropReason;
use crate::header::{Header, SynOptions};
use crate::segment::{Flags, Segment};
use crate::seq;
use crate::slab::Slab;
use crate::tuple::Tuple;

/// All records, oldest first: their delay is the same, so that a queue is enough to time them.
#[derive(Debug)]
pub(crate) struct TimeWait {
    records: Slab<Record>,
    oldest: u32,
    newest: u32,
}

#[derive(Debug)]
pub(crate) struct Record {
    pub(crate) tuple: Tuple,
    pub(crate) snd_nxt: u32,
    pub(crate) rcv_nxt: u32,
    ends: Instant,
    previous: u32,
    next: u32,
    answered: u32,
}

/// What is to be done about a segment for a connection in TIME-WAIT.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Answer {
    /// A SYN that may begin a new connection (RFC 9293 section 3.10.7.4, eighth; RFC 1122 section 4.2.2.13).
    NewSyn,
    /// The peer did not get the last acknowledgment; here it is.
    Acknowledge(Header),
    /// Nothing.
    Ignore,
    Drop(DropReason),
}

impl TimeWait {
    pub(crate) fn new(limit: usize) -> Self {
        Self { records: Slab::new(limit), oldest: NONE, newest: NONE }
    }

    /// Adds a record; there must be room.
    pub(crate) fn insert(
        &mut self,
        tuple: Tuple,
        snd_nxt: u32,
        rcv_nxt: u32,
        ends: Instant,
    ) -> Option<u32> {
        let record =
            Record { tuple, snd_nxt, rcv_nxt, ends, previous: NONE, next: NONE, answered: 0 };
        let index = self.records.insert(record)?;
        self.append(index);
        Some(index)
    }

    pub(crate) fn remove(&mut self, index: u32) -> Option<Record> {
        self.records.at(index)?;
        self.unlink(index);
        self.records.remove(index)
    }

    pub(crate) fn at(&self, index: u32) -> Option<&Record> {
        self.records.at(index)
    }

    pub(crate) fn is_full(&self) -> bool {
        self.records.is_full()
    }

    pub(crate) fn len(&self) -> usize {
        self.records.len()
    }

    pub(crate) fn limit(&self) -> usize {
        self.records.limit()
    }

    /// The record that ends next, and when.
    pub(crate) fn oldest(&self) -> Option<(u32, Instant)> {
        self.records.at(self.oldest).map(|record| (self.oldest, record.ends))
    }

    /// RFC 9293 section 3.10.7.4, for TIME-WAIT.
    pub(crate) fn examine(
        &mut self,
        now: Instant,
        index: u32,
        segment: &Segment,
        delay: Duration,
    ) -> Answer {
        let Some(record) = self.records.at_mut(index) else { return Answer::Ignore };
        if segment.flags.rst() {
            return Answer::Drop(DropReason::ResetInTimeWait);
        }
        if record.may_give_way_to(segment) {
            return Answer::NewSyn;
        }
        let is_last_fin = segment.flags.fin() && segment.end() == record.rcv_nxt;
        if !is_last_fin && !record.may_answer(now) {
            return Answer::Ignore;
        }
        let acknowledgment = record.acknowledgment();
        if is_last_fin {
            record.ends = now + delay;
            self.unlink(index);
            self.append(index);
        } else if segment.flags.ack() && segment.payload_len() == 0 && !segment.flags.syn() {
            // An acknowledgment of our acknowledgment would go on for ever.
            return Answer::Ignore;
        }
        Answer::Acknowledge(acknowledgment)
    }

    fn append(&mut self, index: u32) {
        let last = std::mem::replace(&mut self.newest, index);
        if let Some(record) = self.records.at_mut(index) {
            (record.previous, record.next) = (last, NONE);
        }
        match self.records.at_mut(last) {
            Some(last) => last.next = index,
            None => self.oldest = index,
        }
    }

    fn unlink(&mut self, index: u32) {
        let Some(&Record { previous, next, .. }) = self.records.at(index) else { return };
        match self.records.at_mut(previous) {
            Some(previous) => previous.next = next,
            None => self.oldest = next,
        }
        match self.records.at_mut(next) {
            Some(next) => next.previous = previous,
            None => self.newest = previous,
        }
    }
}

impl Record {
    /// Whether a segment begins a connection that no old segment of this one could be taken for.
    pub(crate) fn may_give_way_to(&self, segment: &Segment) -> bool {
        segment.is_initial_syn() && seq::after(segment.seq, self.rcv_nxt)
    }

    fn acknowledgment(&self) -> Header {
        Header {
            tuple: self.tuple,
            seq: self.snd_nxt,
            ack: self.rcv_nxt,
            flags: Flags::ACK,
            window: 0,
            options: SynOptions::default(),
        }
    }

    /// At most twice a second.
    fn may_answer(&mut self, now: Instant) -> bool {
        let half_seconds = (now.total_millis() / 500) as u32;
        std::mem::replace(&mut self.answered, half_seconds) != half_seconds
    }
}

const NONE: u32 = u32::MAX;

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;

    use super::*;

    fn tuple(port: u16) -> Tuple {
        let local: SocketAddr = "192.0.2.1:80".parse().unwrap();
        Tuple::new(local, SocketAddr::new("198.51.100.9".parse().unwrap(), port))
    }

    #[test]
    fn a_record_is_small() {
        let size = size_of::<Option<Record>>();
        assert!(size <= 80, "{size} bytes");
    }

    #[test]
    fn the_oldest_comes_first_whatever_is_removed() {
        let mut waiting = TimeWait::new(4);
        let at = Instant::from_secs;
        let records: Vec<u32> =
            (1..=4).map(|n| waiting.insert(tuple(n), 0, 0, at(n.into())).unwrap()).collect();
        assert!(waiting.is_full());
        assert_eq!(waiting.insert(tuple(5), 0, 0, at(5)), None);
        waiting.remove(records[1]);
        waiting.remove(records[3]);
        let sixth = waiting.insert(tuple(6), 0, 0, at(6)).unwrap();
        let mut order = vec![];
        while let Some((index, ends)) = waiting.oldest() {
            order.push((index, ends));
            assert!(waiting.remove(index).is_some());
        }
        assert_eq!(order, [(records[0], at(1)), (records[2], at(3)), (sixth, at(6))]);
        assert_eq!((waiting.len(), waiting.oldest, waiting.newest), (0, NONE, NONE));
    }
}
