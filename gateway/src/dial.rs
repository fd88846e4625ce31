//! Opening the connection to an origin: choose its address, the next hop, a pool address and port.
//!
//! Whatever fails moves on to the origin's next address; when none is left, the client's connection
//! is reset, which is what a client of a dead origin would see.

use std::net::SocketAddr;

use userspace_tcp::{CloseReason, ConnId, Duration, Instant, Tuple};

use crate::{
    hop::{Hop, Outlet},
    neighbours::NextHop,
    plane::Plane,
    pool::Release,
    port::Port,
    session::{Leg, OriginLeg, Sessions, Tag},
    tally::Event,
    waiting::Waiter,
};

/// How long the kernel may take to resolve a next hop: as long as it tries (three probes, one
/// second apart) and a little more.
const RESOLUTION: Duration = Duration::from_millis(3500);
/// How long a failure may be an old one, that the kernel has not yet taken back.
const FAILURE: Duration = Duration::from_millis(1500);

/// Whether the session that began to wait still does.
fn is_waiting(sessions: &mut Sessions, waiter: &Waiter) -> bool {
    sessions.get_mut(waiter.session).is_some_and(|session| {
        session.client == waiter.client && matches!(session.origin, OriginLeg::Resolving { .. })
    })
}

impl Plane {
    /// Goes on to the origin's next address: until a handshake is under way, or a next hop is being
    /// resolved, or none is left.
    pub(crate) fn dial(&mut self, now: Instant, index: u32, port: &mut impl Port) {
        loop {
            let Some(session) = self.sessions.get_mut(index) else { return };
            let origin = &self.origins[self.setup.services[session.service as usize].origin];
            let Some(address) = session.attempt.next(origin) else {
                self.tally.note(Event::OriginExhausted);
                self.fail(now, index);
                return;
            };
            match self.neighbours.next_hop(&self.setup, address.ip()) {
                NextHop::Ready(hop) => {
                    if self.connect(now, index, address, hop, port) {
                        return;
                    }
                }
                NextHop::Unresolved | NextHop::Failed => {
                    // Failed may be long ago: the kernel was asked again.
                    self.wait_for_station(now, index, address);
                    return;
                }
                NextHop::NoRoute => self.blame(index, Event::OriginNoRoute),
            }
        }
    }

    /// Lets a session wait for the station of its next hop.
    fn wait_for_station(&mut self, now: Instant, index: u32, address: SocketAddr) {
        if self.waiting.len() >= 2 * self.sessions.capacity() {
            let sessions = &mut self.sessions;
            self.waiting.retain(|waiter| is_waiting(sessions, waiter));
        }
        let Some(session) = self.sessions.get_mut(index) else { return };
        session.origin = OriginLeg::Resolving { address };
        let waiter = Waiter { session: index, client: session.client, since: now };
        self.waiting.push(now, address.ip(), waiter);
    }

    /// Looks whether the stations that sessions wait for are known by now, if it is time to.
    pub(crate) fn look_again(&mut self, now: Instant, port: &mut impl Port) {
        for origin in self.waiting.due(now) {
            let hop = self.neighbours.next_hop(&self.setup, origin);
            let until = match hop {
                NextHop::Ready(_) | NextHop::NoRoute => now,
                NextHop::Unresolved => now - RESOLUTION,
                NextHop::Failed => now - FAILURE,
            };
            for waiter in self.waiting.take(origin, until) {
                if is_waiting(&mut self.sessions, &waiter) {
                    self.waited(now, waiter.session, hop, port);
                    self.list_session(waiter.session);
                }
            }
        }
    }

    /// The end of a session's wait.
    fn waited(&mut self, now: Instant, index: u32, hop: NextHop, port: &mut impl Port) {
        let Some(session) = self.sessions.get_mut(index) else { return };
        let OriginLeg::Resolving { address } = session.origin else { return };
        match hop {
            NextHop::Ready(hop) if self.connect(now, index, address, hop, port) => return,
            NextHop::Ready(_) => {}
            NextHop::Unresolved | NextHop::Failed => self.blame(index, Event::OriginNoNeighbour),
            NextHop::NoRoute => self.blame(index, Event::OriginNoRoute),
        }
        self.dial(now, index, port);
    }

    /// A SYN to this address, from a leased pool address and port. `false` if there is none to be had.
    fn connect(
        &mut self,
        now: Instant,
        index: u32,
        address: SocketAddr,
        hop: Hop,
        port: &mut impl Port,
    ) -> bool {
        let Some(session) = self.sessions.get_mut(index) else { return false };
        let pool = &mut self.pools[self.setup.services[session.service as usize].pool];
        let client = session.tuple.remote.addr;
        let lease = match pool.lease(now, client, address, &mut self.rng) {
            Ok(lease) => lease,
            Err(_) => {
                self.blame(index, Event::PoolExhausted);
                return false;
            }
        };
        let tuple = Tuple::new(lease.local(), address);
        let tag = Tag { session: index, leg: Leg::Origin }.pack();
        let mut outlet = Outlet { port, tally: &mut self.tally };
        match self.stack.connect(now, tuple, hop, tag, &mut outlet) {
            Ok(id) => {
                session.origin = OriginLeg::Dialling(id, lease);
                if let Some(mtu) = self.lower_mtu {
                    self.stack.lower_mtu(id, mtu);
                }
                true
            }
            Err(refusal) => {
                tracing::debug!(%address, ?refusal, "cannot open a connection to the origin");
                pool.release(lease, now, Release::Free);
                self.blame(index, Event::DialRefused);
                false
            }
        }
    }

    /// The handshake with the origin did not complete: counts why, and goes on to the next address.
    pub(crate) fn redial(
        &mut self,
        now: Instant,
        index: u32,
        id: ConnId,
        reason: CloseReason,
        port: &mut impl Port,
    ) {
        let event = match reason {
            CloseReason::Refused | CloseReason::ResetByPeer => Event::OriginRefused,
            CloseReason::Panicked => Event::Panicked,
            _ => Event::OriginUnanswered,
        };
        self.blame(index, event);
        if let Some(tuple) = self.stack.tuple(id) {
            tracing::debug!(address = %tuple.remote, reason = event.name(), "no connection to the origin");
        }
        self.end_origin(now, index);
        self.dial(now, index, port);
    }

    /// Counts why an address of the origin did not do, and remembers it for the log.
    fn blame(&mut self, index: u32, event: Event) {
        self.tally.note(event);
        if let Some(session) = self.sessions.get_mut(index) {
            session.failure = Some(event);
        }
    }

    /// Gives the origin's connection and its lease back.
    pub(crate) fn end_origin(&mut self, now: Instant, index: u32) {
        let Some(session) = self.sessions.get_mut(index) else { return };
        let leg = std::mem::replace(&mut session.origin, OriginLeg::Gone);
        let (OriginLeg::Dialling(id, lease) | OriginLeg::Open(id, lease)) = leg else { return };
        let tuple = self.stack.tuple(id);
        self.stack.release(id);
        // The TCP layer remembers what has to rest; whatever it does not remember can be used again.
        let rests = tuple.is_some_and(|tuple| self.stack.contains(&tuple));
        let release = if rests { Release::TimeWait } else { Release::Free };
        let pool = self.setup.services[session.service as usize].pool;
        self.pools[pool].release(lease, now, release);
    }

    /// Gives every connection to an origin its next hop anew: after a change of routes or stations.
    pub(crate) fn renew_hops(&mut self) {
        let indices: Vec<_> = self.sessions.indices().collect();
        for index in indices {
            let origin = self.sessions.get_mut(index).and_then(|s| s.origin.connection());
            if let Some(id) = origin
                && let Some(tuple) = self.stack.tuple(id)
                && let NextHop::Ready(hop) =
                    self.neighbours.next_hop(&self.setup, tuple.remote.addr)
            {
                self.stack.set_path(id, hop);
            }
        }
    }
}
