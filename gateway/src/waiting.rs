//! Sessions that wait for the kernel to find the station of an origin's next hop.
//!
//! They wait by the origin's address, so that looking whether the kernel knows by now costs as much
//! for a thousand of them as for one.

use std::{collections::VecDeque, net::IpAddr};

use hashbrown::HashMap;
use userspace_tcp::{ConnId, Duration, Instant};

/// A waiting session: its index, and the client's connection that tells it from later ones.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Waiter {
    pub(crate) session: u32,
    pub(crate) client: ConnId,
    pub(crate) since: Instant,
}

/// Everybody who waits, by the origin's address, longest first.
#[derive(Debug, Default)]
pub(crate) struct Waiting {
    by_origin: HashMap<IpAddr, VecDeque<Waiter>>,
    next_look: Option<Instant>,
}

/// How often to look. The kernel's answer comes within a millisecond, or never.
const LOOK: Duration = Duration::from_millis(5);

impl Waiting {
    /// Lets a session wait.
    pub(crate) fn push(&mut self, now: Instant, origin: IpAddr, waiter: Waiter) {
        self.by_origin.entry(origin).or_default().push_back(waiter);
        self.next_look.get_or_insert(now + LOOK);
    }

    /// When to look next.
    pub(crate) fn next_look(&self) -> Option<Instant> {
        self.next_look
    }

    /// The addresses that are waited for, if it is time to look.
    pub(crate) fn due(&mut self, now: Instant) -> Vec<IpAddr> {
        if self.next_look.is_none_or(|due| now < due) {
            return Vec::new();
        }
        self.next_look = (!self.by_origin.is_empty()).then_some(now + LOOK);
        // Looked up by address, answered one by one: their order decides nothing.
        let mut addresses: Vec<_> = self.by_origin.keys().copied().collect();
        addresses.sort_unstable();
        addresses
    }

    /// Takes those out who have waited for `origin` since `until` or longer.
    pub(crate) fn take(&mut self, origin: IpAddr, until: Instant) -> Vec<Waiter> {
        let Some(waiters) = self.by_origin.get_mut(&origin) else { return Vec::new() };
        let count = waiters.iter().take_while(|waiter| waiter.since <= until).count();
        let taken = waiters.drain(..count).collect();
        if waiters.is_empty() {
            self.by_origin.remove(&origin);
        }
        taken
    }

    /// Forgets those whose sessions are over, which they are unless `lives` says otherwise.
    pub(crate) fn retain(&mut self, mut lives: impl FnMut(&Waiter) -> bool) {
        self.by_origin.retain(|_, waiters| {
            waiters.retain(&mut lives);
            !waiters.is_empty()
        });
    }

    /// How many wait, or did and are gone.
    pub(crate) fn len(&self) -> usize {
        self.by_origin.values().map(VecDeque::len).sum()
    }
}
