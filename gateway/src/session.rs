//! Sessions: a client's connection and the origin's connection that serves it.

use std::net::SocketAddr;

use userspace_tcp::{ConnId, Tuple};

use crate::{origin::Attempt, pool::Lease, tally::Event};

/// Which of a session's two connections.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Leg {
    /// Towards the client.
    Client,
    /// Towards the origin.
    Origin,
}

/// What the TCP layer keeps with each connection for us: whose connection it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tag {
    /// The session, by its index.
    pub session: u32,
    /// Which of its legs.
    pub leg: Leg,
}

/// One client being served.
#[derive(Debug)]
pub struct Session {
    /// The service, by its index in the configuration.
    pub service: u32,
    /// The client's connection.
    pub client: ConnId,
    /// Its addresses: local is where the service listens.
    pub tuple: Tuple,
    /// The connection to the origin, as far as it got.
    pub origin: OriginLeg,
    /// The addresses of the origin that are still to be tried.
    pub attempt: Attempt,
    /// Why the last address of the origin that was tried did not do.
    pub failure: Option<Event>,
    /// Whether the session is on the list of those to be attended to in this turn.
    pub listed: bool,
}

/// How far the connection to the origin got.
#[derive(Debug)]
pub enum OriginLeg {
    /// Not begun.
    Undialled,
    /// Waiting for the kernel to find out the next hop's station address.
    Resolving {
        /// The origin's address.
        address: SocketAddr,
    },
    /// Waiting for the origin to complete the handshake.
    Dialling(ConnId, Lease),
    /// Connected.
    Open(ConnId, Lease),
    /// There is none any more.
    Gone,
}

/// The sessions of one worker: a bounded table with stable indices.
#[derive(Debug)]
pub struct Sessions {
    slots: Vec<Option<Session>>,
    free: Vec<u32>,
}

impl Tag {
    /// Packs the tag into what the TCP layer keeps.
    #[must_use]
    pub fn pack(self) -> u32 {
        self.session << 1 | u32::from(self.leg == Leg::Origin)
    }

    /// The tag that was packed.
    #[must_use]
    pub fn unpack(packed: u32) -> Self {
        let leg = if packed & 1 == 0 { Leg::Client } else { Leg::Origin };
        Self { session: packed >> 1, leg }
    }
}

impl Sessions {
    /// A table for `capacity` sessions, allocated at once.
    #[must_use]
    pub fn new(capacity: usize) -> Self {
        let capacity = capacity.min(u32::MAX as usize >> 1);
        Self {
            slots: (0..capacity).map(|_| None).collect(),
            free: (0..capacity as u32).rev().collect(),
        }
    }

    /// Keeps a session; gives it back if the table is full.
    ///
    /// # Errors
    /// The session, if there is no room for it.
    pub fn insert(&mut self, session: Session) -> Result<u32, Box<Session>> {
        let Some(index) = self.free.pop() else { return Err(Box::new(session)) };
        self.slots[index as usize] = Some(session);
        Ok(index)
    }

    /// The session with this index.
    #[must_use]
    pub fn get_mut(&mut self, index: u32) -> Option<&mut Session> {
        self.slots.get_mut(index as usize)?.as_mut()
    }

    /// Takes the session out.
    pub fn remove(&mut self, index: u32) -> Option<Session> {
        let session = self.slots.get_mut(index as usize)?.take()?;
        self.free.push(index);
        Some(session)
    }

    /// How many there may be.
    #[must_use]
    pub fn capacity(&self) -> usize {
        self.slots.len()
    }

    /// How many there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.slots.len() - self.free.len()
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The indices of all sessions: for the end of a drain, not for packets.
    pub fn indices(&self) -> impl Iterator<Item = u32> {
        let slots = self.slots.iter().enumerate();
        slots.filter(|(_, slot)| slot.is_some()).map(|(index, _)| index as u32)
    }
}

impl OriginLeg {
    /// Its connection, if there is one.
    #[must_use]
    pub fn connection(&self) -> Option<ConnId> {
        match self {
            Self::Dialling(id, _) | Self::Open(id, _) => Some(*id),
            Self::Undialled | Self::Resolving { .. } | Self::Gone => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tags_survive_packing() {
        for session in [0, 1, 77, u32::MAX >> 1] {
            for leg in [Leg::Client, Leg::Origin] {
                let tag = Tag { session, leg };
                assert_eq!(Tag::unpack(tag.pack()), tag);
            }
        }
    }
}
