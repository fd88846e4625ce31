//! Which worker owns a client's connection, when there are several.
//!
//! A connection belongs to the worker that saw its SYN. The others ask here, and only when they
//! get a segment that they know nothing about: established traffic on the right queue never
//! touches a lock. Claims of handshakes that never completed expire by themselves.

use std::{
    hash::BuildHasher,
    sync::{Mutex, MutexGuard, PoisonError},
};

use hashbrown::HashTable;
use siphasher::sip::SipHasher13;
use userspace_tcp::{Duration, Instant, Tuple};

const SHARDS: usize = 64;

/// The claims of all workers on client connections.
#[derive(Debug)]
pub struct Directory {
    shards: Box<[Mutex<Shard>]>,
    hasher: Keyed,
    /// Claims of one shard, at most.
    capacity: usize,
    /// How long an unconfirmed claim holds.
    handshake: Duration,
}

#[derive(Clone, Debug)]
struct Keyed([u8; 16]);

#[derive(Debug)]
struct Shard {
    claims: HashTable<Claim>,
    swept: Instant,
}

#[derive(Clone, Debug)]
struct Claim {
    tuple: Tuple,
    worker: u8,
    /// Until when the claim holds without being confirmed; `None` once it is.
    until: Option<Instant>,
}

/// What became of a claim.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Claimed {
    /// The connection is the caller's.
    Mine,
    /// It belongs to that worker.
    Theirs(usize),
    /// There are too many connections.
    Full,
}

impl Directory {
    /// A directory for `capacity` connections in all, keyed with a secret.
    #[must_use]
    pub fn new(capacity: usize, handshake: Duration, key: [u8; 16]) -> Self {
        let shard = || Shard { claims: HashTable::new(), swept: Instant::ZERO };
        Self {
            shards: (0..SHARDS).map(|_| Mutex::new(shard())).collect(),
            hasher: Keyed(key),
            // The hash spreads unevenly: half as much again for the fullest shard.
            capacity: (capacity / SHARDS) * 3 / 2 + 16,
            handshake,
        }
    }

    /// Claims a connection whose SYN arrived at `worker`.
    pub fn claim(&self, now: Instant, tuple: &Tuple, worker: usize) -> Claimed {
        let hash = self.hasher.hash_one(tuple);
        let mut shard = self.shard(hash);
        let until = Some(now + self.handshake);
        if let Some(claim) = shard.claims.find_mut(hash, |claim| claim.tuple == *tuple) {
            if claim.worker as usize != worker && claim.until.is_none_or(|until| now < until) {
                return Claimed::Theirs(claim.worker as usize);
            }
            claim.worker = worker as u8;
            claim.until = until;
            return Claimed::Mine;
        }
        if shard.claims.len() >= self.capacity {
            shard.sweep(now);
            if shard.claims.len() >= self.capacity {
                return Claimed::Full;
            }
        }
        let claim = Claim { tuple: *tuple, worker: worker as u8, until };
        shard.claims.insert_unique(hash, claim, |claim| self.hasher.hash_one(claim.tuple));
        Claimed::Mine
    }

    /// The handshake completed: the claim holds until [`release`](Self::release).
    pub fn confirm(&self, tuple: &Tuple) {
        let hash = self.hasher.hash_one(tuple);
        if let Some(claim) = self.shard(hash).claims.find_mut(hash, |claim| claim.tuple == *tuple) {
            claim.until = None;
        }
    }

    /// The worker that owns the connection.
    #[must_use]
    pub fn find(&self, now: Instant, tuple: &Tuple) -> Option<usize> {
        let hash = self.hasher.hash_one(tuple);
        let shard = self.shard(hash);
        let claim = shard.claims.find(hash, |claim| claim.tuple == *tuple)?;
        claim.until.is_none_or(|until| now < until).then_some(claim.worker as usize)
    }

    /// The connection is over, but `worker` remembers it (TIME-WAIT) until then: what comes of it, and
    /// a SYN that may replace it, still belongs there.
    pub fn rest(&self, tuple: &Tuple, worker: usize, until: Instant) {
        let hash = self.hasher.hash_one(tuple);
        let mine = |claim: &Claim| claim.tuple == *tuple && claim.worker as usize == worker;
        if let Some(claim) = self.shard(hash).claims.find_mut(hash, mine) {
            claim.until = Some(until);
        }
    }

    /// Gives up a claim of `worker`.
    pub fn release(&self, tuple: &Tuple, worker: usize) {
        let hash = self.hasher.hash_one(tuple);
        let mut shard = self.shard(hash);
        let mine = |claim: &Claim| claim.tuple == *tuple && claim.worker as usize == worker;
        if let Ok(entry) = shard.claims.find_entry(hash, mine) {
            entry.remove();
        }
    }

    fn shard(&self, hash: u64) -> MutexGuard<'_, Shard> {
        // The table uses the low and the highest bits: these are in between.
        let index = (hash >> 40) as usize % SHARDS;
        self.shards[index].lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Shard {
    /// Removes expired claims, at most once in a second: a flood must not make every SYN walk all.
    fn sweep(&mut self, now: Instant) {
        if now < self.swept + Duration::from_secs(1) {
            return;
        }
        self.swept = now;
        self.claims.retain(|claim| claim.until.is_none_or(|until| now < until));
    }
}

impl BuildHasher for Keyed {
    type Hasher = SipHasher13;

    fn build_hasher(&self) -> SipHasher13 {
        SipHasher13::new_with_key(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tuple(port: u16) -> Tuple {
        let remote = std::net::SocketAddr::from(([198, 51, 100, 2], port));
        Tuple::new("198.51.100.80:80".parse::<std::net::SocketAddr>().unwrap(), remote)
    }

    fn directory() -> Directory {
        Directory::new(64 * SHARDS, Duration::from_secs(5), [7; 16])
    }

    #[test]
    fn a_claim_holds_against_other_workers() {
        let directory = directory();
        let start = Instant::from_secs(100);
        assert_eq!(directory.claim(start, &tuple(1), 0), Claimed::Mine);
        assert_eq!(directory.claim(start, &tuple(1), 0), Claimed::Mine);
        assert_eq!(directory.claim(start, &tuple(1), 1), Claimed::Theirs(0));
        assert_eq!(directory.find(start, &tuple(1)), Some(0));
        assert_eq!(directory.find(start, &tuple(2)), None);
        directory.release(&tuple(1), 1);
        assert_eq!(directory.find(start, &tuple(1)), Some(0));
        directory.release(&tuple(1), 0);
        assert_eq!(directory.claim(start, &tuple(1), 1), Claimed::Mine);
    }

    #[test]
    fn an_unconfirmed_claim_expires() {
        let directory = directory();
        let start = Instant::from_secs(100);
        let later = start + Duration::from_secs(6);
        directory.claim(start, &tuple(1), 0);
        directory.claim(start, &tuple(2), 0);
        directory.confirm(&tuple(2));
        assert_eq!(directory.find(later, &tuple(1)), None);
        assert_eq!(directory.find(later, &tuple(2)), Some(0));
        assert_eq!(directory.claim(later, &tuple(1), 1), Claimed::Mine);
        assert_eq!(directory.claim(later, &tuple(2), 1), Claimed::Theirs(0));
    }

    #[test]
    fn a_flood_of_claims_is_bounded_and_passes() {
        let directory = Directory::new(1000, Duration::from_secs(5), [7; 16]);
        let start = Instant::from_secs(100);
        let full = (1..=u16::MAX)
            .filter(|&port| directory.claim(start, &tuple(port), 0) == Claimed::Full)
            .count();
        assert!(full > 60_000, "{full}");
        let later = start + Duration::from_secs(6);
        assert_eq!(directory.claim(later, &tuple(1), 1), Claimed::Mine);
    }
}
