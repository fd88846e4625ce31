//! The life of a session: bytes move between its two connections, and their ends are passed on.
//!
//! Back-pressure is TCP's own: bytes stay in the receive buffer of one leg until the send buffer of
//! the other has room, and the window towards the sender closes.

use std::net::SocketAddr;

use ppp::v2::{Builder, Command, Protocol, Version};
use userspace_tcp::{CloseReason, ConnId, Instant, Status, Tuple};

use crate::{
    config::ProxyProtocol,
    hop::Outlet,
    plane::Plane,
    port::Port,
    session::{Leg, OriginLeg},
    tally::Event,
};

impl Plane {
    /// Does what there is to do for one session: after its packets, timers and acknowledgements.
    pub(crate) fn attend(&mut self, now: Instant, index: u32, port: &mut impl Port) {
        let Some(session) = self.sessions.get_mut(index) else { return };
        let client = session.client;
        if matches!(session.origin, OriginLeg::Undialled) {
            self.dial(now, index, port);
        } else if let OriginLeg::Dialling(origin, _) = session.origin {
            match (self.stack.status(origin), self.stack.status(client)) {
                (Status::Opening, _) => {}
                (Status::Open { .. }, _) => self.connected(index),
                (Status::Closed(_), Status::Closed(_)) => self.end_origin(now, index),
                (Status::Closed(reason), _) => {
                    self.redial(now, index, origin, reason, port);
                }
            }
        }
        let Some(session) = self.sessions.get_mut(index) else { return };
        if let OriginLeg::Open(origin, _) = session.origin {
            self.relay(client, origin);
            self.relay(origin, client);
        }
        self.flush(now, index, port);
        self.settle(now, index, port);
    }

    /// The origin accepted: it may be told who the client is, and gets what the client has sent.
    fn connected(&mut self, index: u32) {
        let Some(session) = self.sessions.get_mut(index) else { return };
        let leg = std::mem::replace(&mut session.origin, OriginLeg::Gone);
        let OriginLeg::Dialling(origin, lease) = leg else { return };
        session.origin = OriginLeg::Open(origin, lease);
        if let Some(ProxyProtocol::V2) =
            self.setup.services[session.service as usize].proxy_protocol
        {
            // The send buffer is empty and larger than any header.
            self.stack.send(origin, &proxy_header(&session.tuple));
        }
    }

    /// Moves what `from` received to what `to` sends, and the end of the stream after it.
    fn relay(&mut self, from: ConnId, to: ConnId) {
        while self.stack.splice(from, to) > 0 {}
        if self.end(to).is_some() {
            // Nobody takes it any more.
            self.stack.consume(from, self.stack.received_len(from));
        }
        if self.is_at_end(from)
            && matches!(self.stack.status(to), Status::Open { may_send: true, .. })
        {
            self.stack.close(to);
        }
    }

    /// Whether the peer's stream has ended in order, and everything of it was taken.
    fn is_at_end(&self, id: ConnId) -> bool {
        matches!(
            self.stack.status(id),
            Status::Open { may_receive: false, .. } | Status::Closed(CloseReason::Finished)
        )
    }

    /// How a connection ended, if it did.
    fn end(&self, id: ConnId) -> Option<CloseReason> {
        match self.stack.status(id) {
            Status::Closed(reason) => Some(reason),
            Status::Opening | Status::Open { .. } => None,
        }
    }

    fn flush(&mut self, now: Instant, index: u32, port: &mut impl Port) {
        let Some(session) = self.sessions.get_mut(index) else { return };
        let (client, origin) = (session.client, session.origin.connection());
        let mut outlet = Outlet { port, tally: &mut self.tally };
        if let Some(origin) = origin {
            self.stack.flush(now, origin, &mut outlet);
        }
        self.stack.flush(now, client, &mut outlet);
    }

    /// Ends what has ended: an abnormal end of one leg resets the other, and a session whose legs are
    /// both closed is removed.
    fn settle(&mut self, now: Instant, index: u32, port: &mut impl Port) {
        let Some(session) = self.sessions.get_mut(index) else { return };
        let (client, origin) = (session.client, session.origin.connection());
        let client_end = self.end(client);
        let origin_end = origin.map(|origin| self.end(origin));
        match (client_end, origin_end) {
            // Both, or the only one.
            (Some(reason), None) => self.finish(now, index, reason, None),
            (Some(reason), Some(Some(other))) => self.finish(now, index, reason, Some(other)),
            (Some(reason), Some(None)) if reason != CloseReason::Finished => {
                self.note_end(now, index, Leg::Client, reason);
                self.abort(now, origin, port);
                self.finish(now, index, CloseReason::Aborted, None);
            }
            (None, Some(Some(reason))) if reason != CloseReason::Finished => {
                self.note_end(now, index, Leg::Origin, reason);
                self.abort(now, Some(client), port);
                self.finish(now, index, CloseReason::Aborted, None);
            }
            (Some(_), Some(None)) | (None, _) => {}
        }
    }

    /// Resets one leg.
    fn abort(&mut self, now: Instant, id: Option<ConnId>, port: &mut impl Port) {
        if let Some(id) = id {
            self.stack.abort(id);
            self.stack.flush(now, id, &mut Outlet { port, tally: &mut self.tally });
        }
    }

    /// Gives the client up: there is no origin to serve it. The reset leaves when it is attended to.
    pub(crate) fn fail(&mut self, now: Instant, index: u32) {
        let Some(session) = self.sessions.get_mut(index) else { return };
        session.origin = OriginLeg::Gone;
        self.stack.abort(session.client);
        if let Some(held_back) = self.log.pass(now) {
            let service = &self.setup.services[session.service as usize].name;
            let why = session.failure.map_or("origin-without-address", Event::name);
            tracing::info!(service, client = %session.tuple.remote, why, held_back, "client reset");
        }
    }

    /// Resets both legs.
    pub(crate) fn cut(&mut self, index: u32) {
        let Some(session) = self.sessions.get_mut(index) else { return };
        self.stack.abort(session.client);
        if let Some(origin) = session.origin.connection() {
            self.stack.abort(origin);
        }
    }

    /// Removes a session whose legs are closed.
    fn finish(
        &mut self,
        now: Instant,
        index: u32,
        client: CloseReason,
        origin: Option<CloseReason>,
    ) {
        if client == CloseReason::Finished && origin.is_none_or(|end| end == CloseReason::Finished)
        {
            self.tally.note(Event::SessionFinished);
        } else if client != CloseReason::Aborted {
            self.note_end(now, index, Leg::Client, client);
        }
        self.end_origin(now, index);
        let Some(session) = self.sessions.remove(index) else { return };
        self.stack.release(session.client);
        if let Some(directory) = &self.directory {
            if self.stack.contains(&session.tuple) {
                let until = now + self.stack.config().time_wait;
                directory.rest(&session.tuple, self.me, until);
            } else {
                directory.release(&session.tuple, self.me);
            }
        }
    }

    /// Counts and tells how a leg ended, if not in order.
    fn note_end(&mut self, now: Instant, index: u32, leg: Leg, reason: CloseReason) {
        let event = match (leg, reason) {
            (_, CloseReason::Panicked) => Event::Panicked,
            (_, CloseReason::Finished | CloseReason::Aborted) => return,
            (Leg::Client, CloseReason::ResetByPeer | CloseReason::Refused) => Event::ClientReset,
            (Leg::Client, _) => Event::ClientTimeout,
            (Leg::Origin, CloseReason::ResetByPeer | CloseReason::Refused) => Event::OriginReset,
            (Leg::Origin, _) => Event::OriginTimeout,
        };
        self.tally.note(event);
        let Some(session) = self.sessions.get_mut(index) else { return };
        if let Some(held_back) = self.log.pass(now) {
            let service = &self.setup.services[session.service as usize].name;
            let (client, end, reason) = (session.tuple.remote, event.name(), reason.name());
            tracing::info!(service, %client, end, reason, held_back, "session ended");
        }
    }
}

/// The PROXY protocol's header, version 2, for a client's connection.
fn proxy_header(tuple: &Tuple) -> Vec<u8> {
    let addresses = (SocketAddr::from(tuple.remote), SocketAddr::from(tuple.local));
    Builder::with_addresses(Version::Two | Command::Proxy, Protocol::Stream, addresses)
        .build()
        .expect("two addresses fit the length field")
}
