//! Source addresses: leases of exact 4-tuples.

use std::fmt;

/// How the pool address for a flow is chosen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Method {
    /// By a keyed hash of the client's address: the same client gets the same address, and adding one of N addresses
    /// moves about one client in N.
    Hash,
    /// In turn.
    RoundRobin,
    /// At random.
    Random,
}

/// A range of ports, both ends included, never empty, without port 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PortRange {
    first: u16,
    last: u16,
}

impl PortRange {
    /// The ports of a pool that names none.
    pub const DEFAULT: Self = Self { first: 20_000, last: 59_999 };

    /// The ports from `first` to `last`; `None` if there are none or `first` is 0.
    pub const fn new(first: u16, last: u16) -> Option<Self> {
        if first == 0 || first > last { None } else { Some(Self { first, last }) }
    }

    /// The lowest port.
    pub const fn first(self) -> u16 {
        self.first
    }

    /// The highest port.
    pub const fn last(self) -> u16 {
        self.last
    }

    /// Whether `port` is one of them.
    pub const fn contains(self, port: u16) -> bool {
        self.first <= port && port <= self.last
    }
}

impl fmt::Display for PortRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.first, self.last)
    }
}
