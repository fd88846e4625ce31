//! A wire between hosts: seeded loss, duplication, delay and corruption.

use std::{cmp::Reverse, collections::BinaryHeap};

use rand::{Rng, rngs::SmallRng};
use userspace_tcp::{Duration, Instant};

/// What the wire does to packets. Probabilities are from 0 to 1.
#[derive(Clone, Copy, Debug, Default)]
pub struct Impairment {
    /// A packet is lost.
    pub loss: f64,
    /// A packet arrives twice.
    pub duplicate: f64,
    /// One bit of a packet is turned.
    pub corrupt: f64,
    /// Every packet takes this long at least,
    pub delay: Duration,
    /// and up to so much longer, which reorders.
    pub jitter: Duration,
}

/// Packets on their way to `T`.
#[derive(Debug)]
pub struct Wire<T> {
    impairment: Impairment,
    flying: BinaryHeap<Reverse<Flying<T>>>,
    sent: u64,
}

#[derive(Debug)]
struct Flying<T> {
    at: Instant,
    order: u64,
    to: T,
    bytes: Vec<u8>,
}

impl<T: Copy> Wire<T> {
    /// An empty wire.
    #[must_use]
    pub fn new(impairment: Impairment) -> Self {
        Self { impairment, flying: BinaryHeap::new(), sent: 0 }
    }

    /// Changes what happens to packets that are sent from now on.
    pub fn impair(&mut self, impairment: Impairment) {
        self.impairment = impairment;
    }

    /// Puts a packet on the wire.
    pub fn send(&mut self, now: Instant, to: T, mut bytes: Vec<u8>, rng: &mut SmallRng) {
        let Impairment { loss, duplicate, corrupt, delay, jitter } = self.impairment;
        if rng.random_bool(loss) {
            return;
        }
        let copies = if rng.random_bool(duplicate) { 2 } else { 1 };
        if rng.random_bool(corrupt) && !bytes.is_empty() {
            let bit = rng.random_range(0..bytes.len() * 8);
            bytes[bit / 8] ^= 1 << (bit % 8);
        }
        for _ in 0..copies {
            let extra = rng.random_range(0..=jitter.total_micros());
            self.sent += 1;
            let at = now + delay + Duration::from_micros(extra);
            self.flying.push(Reverse(Flying { at, order: self.sent, to, bytes: bytes.clone() }));
        }
    }

    /// The next packet that has arrived by now.
    pub fn arrive(&mut self, now: Instant) -> Option<(T, Vec<u8>)> {
        if self.flying.peek()?.0.at > now {
            return None;
        }
        self.flying.pop().map(|Reverse(flying)| (flying.to, flying.bytes))
    }

    /// When the next packet arrives.
    #[must_use]
    pub fn next_arrival(&self) -> Option<Instant> {
        self.flying.peek().map(|Reverse(flying)| flying.at)
    }
}

impl<T> PartialEq for Flying<T> {
    fn eq(&self, other: &Self) -> bool {
        self.order == other.order
    }
}

impl<T> Eq for Flying<T> {}

impl<T> PartialOrd for Flying<T> {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl<T> Ord for Flying<T> {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        (self.at, self.order).cmp(&(other.at, other.order))
    }
}
