//! Packets that arrived at the wrong worker, on their way to the right one.
//!
//! A NIC puts packets on queues by rules of its own, and may change its mind in the middle of a
//! flow. The worker that gets a packet of somebody else's flow copies it into a [`Parcel`] and puts
//! it in the owner's inbox. Inboxes are bounded: what does not fit is dropped and counted.

use crossbeam::queue::ArrayQueue;

use crate::{port::Nic, waker::Waker};

/// The longest packet that is handed over, in bytes: as long as a frame.
pub const PARCEL: usize = 1792;
/// Parcels that wait for one worker, at most.
const INBOX: usize = 1024;

/// A copied packet, with the NIC that it came from.
#[derive(Debug)]
pub struct Parcel {
    nic: Nic,
    len: usize,
    room: Box<[u8; PARCEL]>,
}

/// The inboxes of all workers.
#[derive(Debug)]
pub struct Exchange {
    inboxes: Vec<ArrayQueue<Parcel>>,
    /// Buffers that were used once and can be again.
    spares: ArrayQueue<Box<[u8; PARCEL]>>,
    wakers: Vec<Waker>,
}

impl Parcel {
    /// The NIC that received the packet.
    #[must_use]
    pub fn nic(&self) -> Nic {
        self.nic
    }

    /// The packet, from its Ethernet header on.
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        &mut self.room[..self.len]
    }
}

impl Exchange {
    /// Inboxes for as many workers as there are bells.
    #[must_use]
    pub fn new(wakers: Vec<Waker>) -> Self {
        Self {
            inboxes: wakers.iter().map(|_| ArrayQueue::new(INBOX)).collect(),
            spares: ArrayQueue::new(INBOX),
            wakers,
        }
    }

    /// How many workers there are.
    #[must_use]
    pub fn workers(&self) -> usize {
        self.inboxes.len()
    }

    /// Copies a packet into the inbox of worker `to`, and wakes that worker if it sleeps. `false`
    /// if the inbox is full or the packet longer than [`PARCEL`].
    #[must_use]
    pub fn send(&self, to: usize, nic: Nic, packet: &[u8]) -> bool {
        let Some(inbox) = self.inboxes.get(to) else { return false };
        if packet.len() > PARCEL || inbox.is_full() {
            return false;
        }
        let mut room = self.spares.pop().unwrap_or_else(|| Box::new([0; PARCEL]));
        room[..packet.len()].copy_from_slice(packet);
        let sent = inbox.push(Parcel { nic, len: packet.len(), room }).is_ok();
        self.wakers[to].wake();
        sent
    }

    /// The oldest parcel for worker `me`.
    #[must_use]
    pub fn receive(&self, me: usize) -> Option<Parcel> {
        self.inboxes.get(me)?.pop()
    }

    /// Whether nothing waits for worker `me`.
    #[must_use]
    pub fn is_empty(&self, me: usize) -> bool {
        self.inboxes.get(me).is_none_or(ArrayQueue::is_empty)
    }

    /// Gives a parcel's buffer back, to be used again.
    pub fn give_back(&self, parcel: Parcel) {
        // With enough spares already, the buffer is freed.
        let _ = self.spares.push(parcel.room);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn exchange(workers: usize) -> Exchange {
        Exchange::new((0..workers).map(|_| Waker::new().unwrap()).collect())
    }

    #[test]
    fn parcels_arrive_in_order_and_whole() {
        let exchange = exchange(2);
        assert!(exchange.send(1, 3, &[1; 60]));
        assert!(exchange.send(1, 4, &[2; PARCEL]));
        assert!(exchange.is_empty(0));
        let mut first = exchange.receive(1).unwrap();
        assert_eq!((first.nic(), first.bytes_mut().to_vec()), (3, vec![1; 60]));
        exchange.give_back(first);
        let mut second = exchange.receive(1).unwrap();
        assert_eq!((second.nic(), second.bytes_mut().len()), (4, PARCEL));
        assert!(exchange.receive(1).is_none());
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        let exchange = exchange(2);
        assert!(!exchange.send(1, 0, &[0; PARCEL + 1]));
        assert!(!exchange.send(2, 0, &[0; 60]));
        for _ in 0..INBOX {
            assert!(exchange.send(0, 0, &[0; 60]));
        }
        assert!(!exchange.send(0, 0, &[0; 60]));
    }
}
