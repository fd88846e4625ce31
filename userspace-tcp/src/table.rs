//! The one lookup from 4-tuple to record, whatever kind of record it is.

use hashbrown::HashTable;
use siphasher::sip::SipHasher13;

use crate::tuple::Tuple;

/// Where the record of a tuple is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Place {
    Connection(u32),
    HalfOpen(u32),
    TimeWait(u32),
}

/// Knows the tuple of every place that is in the table.
pub(crate) trait Tuples {
    fn tuple(&self, place: Place) -> Option<Tuple>;
}

/// Hash table of places. The tuples stay in the records; a bucket costs five bytes.
///
/// The hash is keyed, as clients choose half of the tuple. The table is allocated once for twice its greatest number of
/// members, so that it neither grows nor, in practice, ever has to rehash.
#[derive(Debug)]
pub(crate) struct Table {
    places: HashTable<u32>,
    hasher: SipHasher13,
}

impl Table {
    pub(crate) fn new(members: usize, key: &[u8; 16]) -> Self {
        Self {
            places: HashTable::with_capacity(members * 2),
            hasher: SipHasher13::new_with_key(key),
        }
    }

    pub(crate) fn hash(&self, tuple: &Tuple) -> u64 {
        hash(&self.hasher, tuple)
    }

    pub(crate) fn find(&self, tuple: &Tuple, tuples: &impl Tuples) -> Option<Place> {
        self.find_hashed(self.hash(tuple), tuple, tuples)
    }

    pub(crate) fn find_hashed(
        &self,
        hash: u64,
        tuple: &Tuple,
        tuples: &impl Tuples,
    ) -> Option<Place> {
        self.places
            .find(hash, |packed| tuples.tuple(Place::unpack(*packed)).as_ref() == Some(tuple))
            .map(|packed| Place::unpack(*packed))
    }

    /// Adds the place of a tuple that is not in the table, and whose record exists already.
    pub(crate) fn insert(&mut self, tuple: &Tuple, place: Place, tuples: &impl Tuples) {
        let hasher = self.hasher;
        self.places.insert_unique(hash(&hasher, tuple), place.pack(), |packed| {
            tuples.tuple(Place::unpack(*packed)).map_or(0, |tuple| hash(&hasher, &tuple))
        });
    }

    /// Takes out a place. Its record may be gone already.
    pub(crate) fn remove(&mut self, tuple: &Tuple, place: Place) {
        let hash = hash(&self.hasher, tuple);
        if let Ok(entry) = self.places.find_entry(hash, |packed| *packed == place.pack()) {
            entry.remove();
        }
    }

    /// Puts one place where another was, for the same tuple.
    pub(crate) fn replace(&mut self, tuple: &Tuple, old: Place, new: Place) {
        let hash = hash(&self.hasher, tuple);
        if let Some(packed) = self.places.find_mut(hash, |packed| *packed == old.pack()) {
            *packed = new.pack();
        }
    }

    pub(crate) fn len(&self) -> usize {
        self.places.len()
    }
}

impl Place {
    fn pack(self) -> u32 {
        match self {
            Self::Connection(index) => index,
            Self::HalfOpen(index) => index | 1 << KIND_SHIFT,
            Self::TimeWait(index) => index | 2 << KIND_SHIFT,
        }
    }

    fn unpack(packed: u32) -> Self {
        let index = packed & MAX_INDEX;
        match packed >> KIND_SHIFT {
            0 => Self::Connection(index),
            1 => Self::HalfOpen(index),
            _ => Self::TimeWait(index),
        }
    }
}

fn hash(hasher: &SipHasher13, tuple: &Tuple) -> u64 {
    tuple.with_key(|key| hasher.hash(key))
}

const KIND_SHIFT: u32 = 30;
/// The greatest index that a [`Place`] can hold.
pub(crate) const MAX_INDEX: u32 = (1 << KIND_SHIFT) - 1;

#[cfg(test)]
mod tests {
    use std::net::{IpAddr, Ipv4Addr, SocketAddr};

    use super::*;

    struct Ports;

    impl Tuples for Ports {
        fn tuple(&self, place: Place) -> Option<Tuple> {
            let (Place::Connection(index) | Place::HalfOpen(index) | Place::TimeWait(index)) =
                place;
            Some(tuple(index))
        }
    }

    fn tuple(index: u32) -> Tuple {
        let local = SocketAddr::new(IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1)), 80);
        let remote = IpAddr::V4(Ipv4Addr::from_bits(0x0a00_0000 + (index >> 8)));
        Tuple::new(local, SocketAddr::new(remote, 1024 + (index & 0xff) as u16))
    }

    #[test]
    fn places_are_found_replaced_and_removed_without_growth() {
        let mut table = Table::new(10_000, &[1; 16]);
        let capacity = table.places.capacity();
        for round in 0..5 {
            for index in 0..10_000 {
                table.insert(&tuple(index), Place::Connection(index), &Ports);
            }
            for index in 0..10_000 {
                let (old, new) = (Place::Connection(index), Place::TimeWait(index));
                assert_eq!(table.find(&tuple(index), &Ports), Some(old), "round {round}");
                table.replace(&tuple(index), old, new);
                assert_eq!(table.find(&tuple(index), &Ports), Some(new));
                table.remove(&tuple(index), new);
                assert_eq!(table.find(&tuple(index), &Ports), None);
            }
        }
        assert_eq!(table.len(), 0);
        assert_eq!(table.places.capacity(), capacity);
    }

    #[test]
    fn every_place_survives_packing() {
        for index in [0, 1, MAX_INDEX] {
            for place in [Place::Connection(index), Place::HalfOpen(index), Place::TimeWait(index)]
            {
                assert_eq!(Place::unpack(place.pack()), place);
            }
        }
    }
}
