//! What is counted, and the names of every reason.

/// Generates an enum of reasons with a name for each, and a table of counters indexed by it.
macro_rules! reasons {
    ($(#[$doc:meta])* $name:ident, $($(#[$variant_doc:meta])* $variant:ident = $text:literal,)+) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum $name { $($(#[$variant_doc])* $variant,)+ }

        impl $name {
            /// Every reason, in the order of their counters.
            pub const ALL: &[Self] = &[$(Self::$variant,)+];

            /// A name in kebab case, for metrics and logs.
            pub const fn name(self) -> &'static str {
                match self { $(Self::$variant => $text,)+ }
            }
        }

        impl std::fmt::Display for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.pad(self.name())
            }
        }
    };
}

reasons! {
    /// Why a segment was not taken.
    DropReason,
    /// It acknowledges something that was never sent; answered by a challenge ACK (RFC 5961 section 5.2).
    AckOfUnsent = "ack-of-unsent",
    /// It acknowledges less than the greatest window ago; answered by a challenge ACK (RFC 5961 section 5.2).
    AckTooOld = "ack-too-old",
    /// The handshake is complete, but there are as many connections as allowed; the client will try again.
    ConnectionsFull = "connections-full",
    /// smoltcp panicked while it looked at the segment; the connection is gone.
    Panicked = "panicked",
    /// The packet given is shorter than the segment that was parsed from it.
    NotThisPacket = "not-this-packet",
    /// No ACK bit where there must be one.
    NoAck = "no-ack",
    /// A RST inside the window, but not at its left edge; answered by a challenge ACK (RFC 5961 section 3.2).
    ResetInWindow = "reset-in-window",
    /// A RST outside of the window.
    ResetOutOfWindow = "reset-out-of-window",
    /// A RST for a connection in TIME-WAIT (RFC 1337).
    ResetInTimeWait = "reset-in-time-wait",
    /// An acknowledgment that says less than an earlier one, without data.
    StaleAck = "stale-ack",
    /// A SYN for a synchronized connection; answered by a challenge ACK (RFC 5961 section 4.2).
    UnexpectedSyn = "unexpected-syn",
    /// An acknowledgment in the handshake with a wrong number; answered by a RST.
    WrongHandshakeAck = "wrong-handshake-ack",
    /// Outside of the receive window during the handshake; answered by an ACK.
    WrongHandshakeSeq = "wrong-handshake-seq",
}

reasons! {
    /// How a connection ended.
    CloseReason,
    /// By us, with [`Stack::abort`](crate::Stack::abort).
    Aborted = "aborted",
    /// The peer was silent for too long after our FIN.
    FinWaitTimeout = "fin-wait-timeout",
    /// Both sides sent a FIN, and both were acknowledged.
    Finished = "finished",
    /// The handshake that we began was not completed in time.
    HandshakeTimeout = "handshake-timeout",
    /// No progress in either direction for too long.
    IdleTimeout = "idle-timeout",
    /// smoltcp panicked.
    Panicked = "panicked",
    /// The peer kept its window closed for too long.
    PersistTimeout = "persist-timeout",
    /// A RST in answer to our SYN.
    Refused = "refused",
    /// There is no such connection (any more).
    Released = "released",
    /// The peer sent a RST.
    ResetByPeer = "reset-by-peer",
    /// The peer did not acknowledge for too long.
    RetransmissionTimeout = "retransmission-timeout",
}

reasons! {
    /// Why a connection cannot be opened.
    Refusal,
    /// There are as many connections as allowed.
    ConnectionsFull = "connections-full",
    /// There are as many half-open connections as allowed.
    HalfOpenFull = "half-open-full",
    /// The segment is not a SYN without ACK.
    NotInitialSyn = "not-initial-syn",
    /// smoltcp refused or panicked.
    Engine = "engine",
    /// The tuple is in use.
    TupleInUse = "tuple-in-use",
    /// Not two different unicast endpoints of one family.
    TupleUnusable = "tuple-unusable",
}

/// What a stack counted since it began. Every segment given to [`Stack::ingress`](crate::Stack::ingress) is in exactly one
/// of `touched`, `accepted`, `absorbed`, `new_syns`, `unknown`, and the drops.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Segments that went to an existing connection.
    pub touched: u64,
    /// Segments that completed a handshake which a client began.
    pub accepted: u64,
    /// Segments that a half-open connection or a TIME-WAIT record dealt with.
    pub absorbed: u64,
    /// SYN segments for which the caller had to decide.
    pub new_syns: u64,
    /// Other segments for which the caller had to decide.
    pub unknown: u64,
    /// Packets sent by connections.
    pub sent: u64,
    /// SYN-ACK, RST and ACK packets sent by the stack itself.
    pub answered: u64,
    /// Packets that were to be sent at once but found no room; as if the network had lost them.
    pub no_room: u64,
    /// Resets withheld by the rate limit.
    pub resets_limited: u64,
    /// Half-open connections whose client never completed the handshake.
    pub half_open_expired: u64,
    /// Half-open connections that a RST of the client ended.
    pub half_open_reset: u64,
    /// Half-open connections begun.
    pub half_opened: u64,
    /// Connections begun by us.
    pub connected: u64,
    /// TIME-WAIT records that gave way before their time, as there were too many.
    pub time_wait_recycled: u64,
    /// TIME-WAIT records replaced by a new connection of the same tuple.
    pub time_wait_replaced: u64,
    drops: [u64; DropReason::ALL.len()],
    closes: [u64; CloseReason::ALL.len()],
    refusals: [u64; Refusal::ALL.len()],
}

impl Counters {
    /// Segments dropped for this reason.
    pub fn drops(&self, reason: DropReason) -> u64 {
        self.drops[reason as usize]
    }

    /// Connections closed for this reason.
    pub fn closes(&self, reason: CloseReason) -> u64 {
        self.closes[reason as usize]
    }

    /// Connections that could not be opened for this reason.
    pub fn refusals(&self, reason: Refusal) -> u64 {
        self.refusals[reason as usize]
    }

    pub(crate) fn count_drop(&mut self, reason: DropReason) {
        self.drops[reason as usize] += 1;
    }

    pub(crate) fn count_close(&mut self, reason: CloseReason) {
        self.closes[reason as usize] += 1;
    }

    pub(crate) fn count_refusal(&mut self, reason: Refusal) {
        self.refusals[reason as usize] += 1;
    }
}

/// How many records a stack holds now, and how many it may.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Census {
    /// Connections, closed ones that were not released included.
    pub connections: usize,
    /// Handshakes that a client began.
    pub half_open: usize,
    /// TIME-WAIT records.
    pub time_wait: usize,
    /// Buffers kept for later connections.
    pub spare: usize,
    /// Tuples in the table.
    pub tuples: usize,
    /// [`Config::max_connections`](crate::Config::max_connections).
    pub max_connections: usize,
    /// [`Config::max_half_open`](crate::Config::max_half_open).
    pub max_half_open: usize,
    /// [`Config::max_time_wait`](crate::Config::max_time_wait).
    pub max_time_wait: usize,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counters_and_names_match_their_reasons() {
        let mut counters = Counters::default();
        for (n, reason) in DropReason::ALL.iter().enumerate() {
            assert_eq!(*reason as usize, n);
            (0..=n).for_each(|_| counters.count_drop(*reason));
            assert_eq!(counters.drops(*reason), n as u64 + 1);
        }
        let mut names: Vec<_> = CloseReason::ALL.iter().map(|reason| reason.name()).collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), CloseReason::ALL.len());
    }
}
