//! A port made of queues in memory: what tests and fuzzers plug the gateway into.

use std::{collections::VecDeque, time::Duration};

use crate::{
    frame::{Frame, Slot},
    port::{BATCH, Batch, FrameCensus, Nic, Port, RingCounters},
};

/// The longest frame that fits a slot, in bytes: as in the AF_XDP port.
pub const CAPACITY: usize = 1792;

/// Frames in memory; what is put in with [`inject`](Self::inject) is received, and what is
/// transmitted can be taken out with [`take`](Self::take).
#[derive(Debug)]
pub struct Memory {
    slots: Vec<Vec<u8>>,
    free: Vec<u32>,
    arriving: VecDeque<(Nic, u32)>,
    queued: VecDeque<(Nic, u32)>,
    sent: VecDeque<(Nic, Vec<u8>)>,
    held: usize,
    overrun: u64,
}

impl Memory {
    /// A port with `frames` frames.
    #[must_use]
    pub fn new(frames: u32) -> Self {
        Self {
            slots: (0..frames).map(|_| Vec::with_capacity(CAPACITY)).collect(),
            free: (0..frames).rev().collect(),
            arriving: VecDeque::new(),
            queued: VecDeque::new(),
            sent: VecDeque::new(),
            held: 0,
            overrun: 0,
        }
    }

    /// Lets `bytes` arrive on `nic`. Without a free frame, or if longer than a frame, they are
    /// lost, as on a wire; the answer says whether they were taken.
    pub fn inject(&mut self, nic: Nic, bytes: &[u8]) -> bool {
        if bytes.len() > CAPACITY {
            return false;
        }
        let Some(slot) = self.free.pop() else {
            self.overrun += 1;
            return false;
        };
        let room = &mut self.slots[slot as usize];
        room.clear();
        room.extend_from_slice(bytes);
        self.arriving.push_back((nic, slot));
        true
    }

    /// The oldest frame that was transmitted and not yet taken.
    pub fn take(&mut self) -> Option<(Nic, Vec<u8>)> {
        self.sent.pop_front()
    }
}

impl Port for Memory {
    fn receive(&mut self, batch: &mut Batch) {
        while batch.len() < BATCH {
            let Some((nic, slot)) = self.arriving.pop_front() else { return };
            self.held += 1;
            batch.push((nic, Frame::occupying(slot)));
        }
    }

    fn bytes_mut(&mut self, frame: &mut Frame) -> &mut [u8] {
        &mut self.slots[frame.slot() as usize]
    }

    fn room(&self) -> usize {
        self.free.len()
    }

    fn allocate(&mut self, len: usize) -> Option<Frame> {
        if len > CAPACITY {
            return None;
        }
        let slot = self.free.pop()?;
        self.slots[slot as usize].resize(len, 0);
        self.held += 1;
        Some(Frame::occupying(slot))
    }

    fn transmit(&mut self, nic: Nic, frame: Frame) {
        self.held -= 1;
        self.queued.push_back((nic, frame.into_slot()));
    }

    fn recycle(&mut self, slot: Slot) {
        self.held -= 1;
        self.free.push(slot.index());
    }

    fn flush(&mut self) {
        while let Some((nic, slot)) = self.queued.pop_front() {
            self.sent.push_back((nic, self.slots[slot as usize].clone()));
            self.free.push(slot);
        }
    }

    fn wait(&mut self, _limit: Duration) {}

    fn census(&mut self) -> FrameCensus {
        FrameCensus {
            total: self.slots.len(),
            free: self.free.len(),
            receiving: self.arriving.len(),
            sending: self.queued.len(),
            held: self.held,
        }
    }

    fn rings(&mut self) -> Vec<RingCounters> {
        vec![RingCounters {
            nic: "memory".into(),
            rx_dropped: self.overrun,
            ..RingCounters::default()
        }]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tally::{Fate, Tally};

    #[test]
    fn frames_are_conserved() {
        let mut port = Memory::new(4);
        let mut tally = Tally::default();
        for byte in 0..5 {
            assert_eq!(port.inject(0, &[byte; 60]), byte < 4);
        }
        let mut batch = Batch::new();
        port.receive(&mut batch);
        assert_eq!(batch.len(), 4);
        assert!(port.allocate(60).is_none());
        for (index, (nic, frame)) in batch.drain(..).enumerate() {
            if index % 2 == 0 {
                port.transmit(nic, frame);
            } else {
                port.recycle(frame.retire(Fate::Consumed, &mut tally));
            }
            assert!(port.census().balances());
        }
        port.flush();
        assert_eq!(port.census().free, 4);
        assert_eq!(port.take(), Some((0, vec![0; 60])));
        assert_eq!(port.take(), Some((0, vec![2; 60])));
        assert!(port.allocate(CAPACITY + 1).is_none());
    }
}
