//! What happened to every frame and every session, as counters of one worker.
//!
//! Plain numbers: a worker owns its tally and publishes copies of it.

use serde::Serialize;

/// How a frame that is not transmitted ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// Its contents were taken in by the TCP layer.
    Consumed,
    /// Its contents went to the worker that owns the flow.
    HandedOver,
    /// Nobody wanted it, and this is why.
    Dropped(Reason),
}

macro_rules! named {
    ($(#[$meta:meta])* $name:ident { $($(#[$doc:meta])* $variant:ident = $text:literal,)* }) => {
        $(#[$meta])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum $name { $($(#[$doc])* $variant,)* }

        impl $name {
            /// Every value, in the order of their indices.
            pub const ALL: &'static [Self] = &[$(Self::$variant,)*];

            /// The stable name that operators see.
            #[must_use]
            pub const fn name(self) -> &'static str {
                match self { $(Self::$variant => $text,)* }
            }
        }
    };
}

named! {
    /// Why a packet was dropped in user space.
    Reason {
        /// An acknowledgment that cannot be, or says nothing new (RFC 5961 section 5).
        BadAck = "bad-ack",
        /// The IP header is malformed: version, lengths or header checksum.
        BadIpHeader = "bad-ip-header",
        /// A reset that is not exactly at the edge of the window (RFC 5961 section 3).
        BadReset = "bad-reset",
        /// The TCP checksum is wrong.
        BadTcpChecksum = "bad-tcp-checksum",
        /// The TCP header is malformed: lengths, options, ports or an impossible set of flags.
        BadTcpHeader = "bad-tcp-header",
        /// The draining gateway takes no new connection.
        Draining = "draining",
        /// A fragment: TCP segments are not reassembled.
        Fragment = "fragment",
        /// The table of handshakes is full.
        HalfOpenFull = "half-open-full",
        /// The queue to the worker that owns the flow is full.
        HandOverFull = "hand-over-full",
        /// The TCP layer failed on the segment; its connection is gone.
        Internal = "internal",
        /// Neither IPv4 nor IPv6.
        NotIp = "not-ip",
        /// Not TCP, and no service asked for it.
        NotTcp = "not-tcp",
        /// A source or destination that no single host has.
        NotUnicast = "not-unicast",
        /// Data outside of the window of a handshake.
        OutOfWindow = "out-of-window",
        /// A reset without a connection to reset.
        StrayReset = "stray-reset",
        /// A table of the TCP layer is full.
        TableFull = "table-full",
        /// The frame is too short for the headers or the length it announces.
        Truncated = "truncated",
        /// A SYN in the middle of a connection (RFC 5961 section 4).
        UnexpectedSyn = "unexpected-syn",
        /// No connection and no service has this address and port.
        UnknownFlow = "unknown-flow",
    }
}

named! {
    /// Things that happen to connections and sessions.
    Event {
        /// A client completed its handshake with a service.
        SessionOpened = "sessions-opened",
        /// A session ended with both sides closed in order.
        SessionFinished = "sessions-finished",
        /// The client reset its connection.
        ClientReset = "client-reset",
        /// The client's connection ran into a time limit.
        ClientTimeout = "client-timeout",
        /// The origin reset an established connection.
        OriginReset = "origin-reset",
        /// An established connection to the origin ran into a time limit.
        OriginTimeout = "origin-timeout",
        /// The origin refused the connection.
        OriginRefused = "origin-refused",
        /// The origin did not answer the SYN in time.
        OriginUnanswered = "origin-unanswered",
        /// No route, or a route through an interface that is not headgate's.
        OriginNoRoute = "origin-no-route",
        /// The next hop towards the origin does not answer ARP or ND.
        OriginNoNeighbour = "origin-no-neighbour",
        /// Every address of the origin was tried in vain.
        OriginExhausted = "origin-exhausted",
        /// All ports of all pool addresses towards an origin were taken.
        PoolExhausted = "pool-exhausted",
        /// The table of sessions was full.
        SessionLimit = "session-limit",
        /// The TCP layer refused to open a connection to the origin.
        DialRefused = "dial-refused",
        /// A connection was given up because its handling panicked.
        Panicked = "panicked",
        /// A session was cut off at the end of the drain time.
        DrainCut = "drain-cut",
        /// A reset was sent for a segment without a connection.
        ResetSent = "resets-sent",
        /// A packet came to a worker that does not own its flow, and was handed over.
        HandedOver = "handed-over",
        /// A packet was received from another worker.
        TakenOver = "taken-over",
        /// A packet could not be sent for want of a frame; its connection was put off.
        NoFrame = "no-frame",
    }
}

/// The counters of one worker.
#[derive(Clone, Debug)]
pub struct Tally {
    /// Frames taken from the receive rings.
    pub received: u64,
    /// Frames allocated to build a packet in.
    pub allocated: u64,
    /// Frames given to the transmit rings.
    pub transmitted: u64,
    /// Frames that ended without being transmitted.
    retired: u64,
    dropped: [u64; Reason::ALL.len()],
    events: [u64; Event::ALL.len()],
}

/// A counter's name and value.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Named {
    /// The stable name.
    pub name: &'static str,
    /// How often it happened.
    pub count: u64,
}

impl Default for Tally {
    fn default() -> Self {
        Self {
            received: 0,
            allocated: 0,
            transmitted: 0,
            retired: 0,
            dropped: [0; Reason::ALL.len()],
            events: [0; Event::ALL.len()],
        }
    }
}

impl Tally {
    /// Counts the end of a frame.
    pub(crate) fn retire(&mut self, fate: Fate) {
        self.retired += 1;
        match fate {
            Fate::Consumed => {}
            Fate::HandedOver => self.note(Event::HandedOver),
            Fate::Dropped(reason) => self.drop_packet(reason),
        }
    }

    /// Counts a drop of a packet that has no frame (it was handed over by another worker).
    pub fn drop_packet(&mut self, reason: Reason) {
        self.dropped[reason as usize] += 1;
    }

    /// Counts an event.
    pub fn note(&mut self, event: Event) {
        self.events[event as usize] += 1;
    }

    /// How many frames were retired by this worker, for whatever reason.
    #[must_use]
    pub fn retired(&self) -> u64 {
        self.retired
    }

    /// Packets dropped for `reason`.
    #[must_use]
    pub fn dropped(&self, reason: Reason) -> u64 {
        self.dropped[reason as usize]
    }

    /// How often `event` happened.
    #[must_use]
    pub fn event(&self, event: Event) -> u64 {
        self.events[event as usize]
    }

    /// All drops with their names, zeros included.
    pub fn drops(&self) -> impl Iterator<Item = Named> {
        Reason::ALL.iter().map(|&reason| Named { name: reason.name(), count: self.dropped(reason) })
    }

    /// All events with their names, zeros included.
    pub fn events(&self) -> impl Iterator<Item = Named> {
        Event::ALL.iter().map(|&event| Named { name: event.name(), count: self.event(event) })
    }

    /// Adds another worker's counters to these.
    pub fn add(&mut self, other: &Self) {
        self.received += other.received;
        self.allocated += other.allocated;
        self.transmitted += other.transmitted;
        self.retired += other.retired;
        for (mine, theirs) in self.dropped.iter_mut().zip(other.dropped) {
            *mine += theirs;
        }
        for (mine, theirs) in self.events.iter_mut().zip(other.events) {
            *mine += theirs;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_unique_and_indices_dense() {
        let mut names: Vec<_> = Reason::ALL.iter().map(|r| r.name()).collect();
        names.extend(Event::ALL.iter().map(|e| e.name()));
        let count = names.len();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), count);
        for (index, reason) in Reason::ALL.iter().enumerate() {
            assert_eq!(*reason as usize, index);
        }
    }
}
