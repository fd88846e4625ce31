//! Port ranges, and their partition among workers.

use std::fmt;

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

    /// How many ports there are.
    pub const fn count(self) -> usize {
        (self.last - self.first) as usize + 1
    }

    /// Whether `port` is one of them.
    pub const fn contains(self, port: u16) -> bool {
        self.first <= port && port <= self.last
    }

    /// Whether the two ranges have a port in common.
    pub const fn overlaps(self, other: Self) -> bool {
        self.first <= other.last && other.first <= self.last
    }

    /// Which of the `workers` leases `port`: the ports are dealt out in turn. `None` outside the range.
    pub const fn owner_of(self, port: u16, workers: usize) -> Option<usize> {
        if self.contains(port) && workers > 0 {
            Some((port - self.first) as usize % workers)
        } else {
            None
        }
    }

    /// How many ports `worker` leases.
    pub(super) const fn owned(self, worker: usize, workers: usize) -> usize {
        self.count().saturating_sub(worker).div_ceil(workers)
    }

    /// The port with this index among those that `worker` leases.
    pub(super) const fn nth_owned(self, index: u32, worker: usize, workers: usize) -> u16 {
        self.first + (worker + index as usize * workers) as u16
    }
}

impl fmt::Display for PortRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.first, self.last)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn every_port_has_exactly_one_owner(first in 1u16.., len in 0u16..300, workers in 1usize..9) {
            let range = PortRange::new(first, first.saturating_add(len)).unwrap();
            let mut dealt: Vec<u16> = (0..workers)
                .flat_map(|worker| (0..range.owned(worker, workers) as u32).map(move |index| (worker, index)))
                .map(|(worker, index)| {
                    let port = range.nth_owned(index, worker, workers);
                    assert_eq!(range.owner_of(port, workers), Some(worker));
                    port
                })
                .collect();
            dealt.sort_unstable();
            prop_assert_eq!(dealt, (range.first()..=range.last()).collect::<Vec<_>>());
        }
    }

    #[test]
    fn outside_the_range_nobody_owns() {
        let range = PortRange::new(100, 200).unwrap();
        assert_eq!(
            (range.owner_of(99, 2), range.owner_of(201, 2), range.owner_of(150, 0)),
            (None, None, None)
        );
        assert!(range.overlaps(PortRange::new(200, 300).unwrap()));
        assert!(!range.overlaps(PortRange::new(201, 300).unwrap()));
    }
}
