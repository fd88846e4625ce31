//! Source addresses: leases of exact 4-tuples.
//!
//! A lease is (pool address, port, origin address, origin port): the same pool address and port may be leased towards
//! another origin at the same time. A worker has a [`Pool`] of its own, with ports that no other worker has
//! ([`PortRange::owner_of`]), so that nothing is shared.
//!
//! Invariants: no tuple is leased twice at a time; a lease is given back exactly once, to the pool it came from; the
//! memory in use follows the leases, and is bounded by [`Share::max_pairs`] port bitmaps.

mod bitmap;
mod ports;
mod side;

use std::collections::{HashMap, VecDeque};
use std::hash::BuildHasher;
use std::net::{IpAddr, SocketAddr};

use rand::Rng;
use siphasher::sip::SipHasher13;
use userspace_tcp::{Duration, Instant};

use self::bitmap::Bitmap;
pub use self::ports::PortRange;
use self::side::Side;
use crate::origin::Family;

/// How the pool address for a flow is chosen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Method {
    /// By a keyed hash of the client's address: the same client gets the same address, and adding one of N addresses
    /// moves about one client in N. (From 256 addresses to 257 another hashing takes over, and most clients move once.)
    Hash,
    /// In turn.
    RoundRobin,
    /// At random.
    Random,
}

/// One worker's share of a pool.
#[derive(Debug, Clone)]
pub struct Share<'a> {
    /// The addresses of the whole pool, both families.
    pub addresses: &'a [IpAddr],
    /// The ports of the whole pool.
    pub ports: PortRange,
    /// How the address for a flow is chosen.
    pub method: Method,
    /// Most (pool address, origin) pairs with a port in use or cooling at a time.
    pub max_pairs: usize,
    /// How long a tuple cools after [`Release::TimeWait`].
    pub time_wait: Duration,
    /// This worker, counted from 0.
    pub worker: usize,
    /// How many workers there are, at least one.
    pub workers: usize,
    /// The same for all workers, so that all choose the same address for a client.
    pub secret: [u8; 16],
}

/// The leases of one worker.
#[derive(Debug)]
pub struct Pool {
    v4: Side,
    v6: Side,
    method: Method,
    ports: PortRange,
    worker: usize,
    workers: usize,
    time_wait: Duration,
    max_pairs: usize,
    hasher: Keyed,
    /// Pairs with a port in use or cooling, by target and address.
    pair_of: HashMap<(u32, u32), u32, Keyed>,
    pairs: Vec<Pair>,
    /// Pairs without any; their bitmaps are kept.
    spare_pairs: Vec<u32>,
    target_of: HashMap<SocketAddr, u32, Keyed>,
    targets: Vec<Target>,
    spare_targets: Vec<u32>,
    /// All cooling tuples, oldest first; the cooling time is the same for all.
    cooling: VecDeque<Cooling>,
    /// How many ever left the front of `cooling`.
    cooled: u64,
    census: Census,
}

/// The ports of one address towards one origin.
#[derive(Debug)]
struct Pair {
    target: u32,
    address: u32,
    /// Where it stands in the target's list.
    place: usize,
    used: Bitmap,
}

/// One origin.
#[derive(Debug)]
struct Target {
    origin: SocketAddr,
    /// The addresses (by index) that have no port free.
    full: Bitmap,
    /// Cooling tuples, oldest first, as they were numbered.
    cooling: VecDeque<u64>,
    /// Its pairs, in no order.
    pairs: Vec<u32>,
}

#[derive(Debug, Clone, Copy)]
struct Cooling {
    pair: u32,
    port: u32,
    since: Instant,
    /// Leased again before its time was over.
    taken: bool,
}

/// An exact 4-tuple that belongs to one flow. Give it back by [`Pool::release`]: dropping it loses the tuple for good,
/// and is an assertion failure in debug builds.
#[derive(Debug)]
#[must_use = "a lease must be given back to its pool"]
pub struct Lease {
    local: SocketAddr,
    origin: SocketAddr,
    pair: u32,
    port: u32,
}

/// How a lease is given back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Release {
    /// The tuple may be leased again at once: the connection never came to be, or was reset.
    Free,
    /// The tuple cools first: the connection was closed by this side, and old segments may be under way.
    TimeWait,
}

/// Why there is no lease.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Refused {
    /// The pool has no address of the origin's family.
    NoAddress,
    /// Every port of every address is in use towards this origin, or has cooled for less than a second.
    Exhausted,
    /// As many (address, origin) pairs are in use as the configuration allows.
    PairLimit,
}

/// What is in use.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Census {
    /// Leases that are out.
    pub leased: usize,
    /// Tuples that cool.
    pub cooling: usize,
    /// (address, origin) pairs of both.
    pub pairs: usize,
}

impl Pool {
    /// The share of one worker. Nothing is allocated per port yet.
    pub fn new(share: &Share<'_>) -> Self {
        let hasher = Keyed(share.secret);
        let side = |family| {
            Side::new(share.addresses, family, share.worker, |address| hasher.hash_one(address))
        };
        Self {
            v4: side(Family::V4),
            v6: side(Family::V6),
            method: share.method,
            ports: share.ports,
            worker: share.worker,
            workers: share.workers.max(1),
            time_wait: share.time_wait,
            max_pairs: share.max_pairs,
            pair_of: HashMap::with_hasher(hasher.clone()),
            pairs: Vec::new(),
            spare_pairs: Vec::new(),
            target_of: HashMap::with_hasher(hasher.clone()),
            targets: Vec::new(),
            spare_targets: Vec::new(),
            hasher,
            cooling: VecDeque::new(),
            cooled: 0,
            census: Census::default(),
        }
    }

    /// Leases a tuple for a flow of `client` to `origin`. The pool address has the origin's family; where the one that
    /// the method chooses has no port left, the next one with a port is taken; where none has, the tuple that cooled
    /// longest, if that was a second at least.
    pub fn lease(
        &mut self,
        now: Instant,
        client: IpAddr,
        origin: SocketAddr,
        rng: &mut impl Rng,
    ) -> Result<Lease, Refused> {
        self.expire(now, EXPIRED_PER_LEASE);
        let count = self.side(origin).addresses.len();
        if count == 0 {
            return Err(Refused::NoAddress);
        }
        if self.ports_per_address() == 0 {
            return Err(Refused::Exhausted);
        }
        let chosen = self.choose(client, origin, rng);
        let Some(&target) = self.target_of.get(&origin) else {
            let pair = self.new_pair(chosen, origin, rng)?;
            return Ok(self.take_port(pair));
        };
        let full = &self.targets[target as usize].full;
        let Some(address) = full.first_clear_from(chosen) else {
            return self.take_cooling(now, target).ok_or(Refused::Exhausted);
        };
        match self.pair_of.get(&(target, address)) {
            Some(&pair) => Ok(self.take_port(pair)),
            None => match self.new_pair(address, origin, rng) {
                Ok(pair) => Ok(self.take_port(pair)),
                Err(refused) => self.take_existing(target, address).ok_or(refused),
            },
        }
    }

    /// Takes a lease back.
    pub fn release(&mut self, lease: Lease, now: Instant, how: Release) {
        let Lease { local, origin, pair, port } = lease;
        std::mem::forget(lease);
        self.expire(now, EXPIRED_PER_LEASE);
        let ours = self.pairs.get(pair as usize).is_some_and(|found| {
            let target = &self.targets[found.target as usize];
            let side = if origin.is_ipv4() { &self.v4 } else { &self.v6 };
            target.origin == origin
                && side.addresses.get(found.address as usize) == Some(&local.ip())
                && found.used.contains(port)
        });
        debug_assert!(ours, "the lease {local} to {origin} is not of this pool");
        if !ours {
            return;
        }
        self.census.leased -= 1;
        match how {
            Release::TimeWait if self.time_wait > Duration::ZERO => {
                let target = self.pairs[pair as usize].target;
                let number = self.cooled + self.cooling.len() as u64;
                self.targets[target as usize].cooling.push_back(number);
                self.cooling.push_back(Cooling { pair, port, since: now, taken: false });
                self.census.cooling += 1;
            }
            Release::Free | Release::TimeWait => self.free(pair, port),
        }
    }

    /// Frees tuples that cooled long enough, at most `budget`, and returns how many it looked at. [`Pool::lease`] and
    /// [`Pool::release`] do a part of it each; calling it is only needed to see an idle pool's census fall.
    pub fn expire(&mut self, now: Instant, budget: usize) -> usize {
        for done in 0..budget {
            match self.cooling.front() {
                Some(front) if front.taken => self.pop_cooling(),
                Some(&Cooling { pair, port, since, .. }) if now >= since + self.time_wait => {
                    let target = self.pairs[pair as usize].target as usize;
                    let number = self.targets[target].cooling.pop_front();
                    debug_assert_eq!(number, Some(self.cooled), "both queues have one order");
                    self.pop_cooling();
                    self.census.cooling -= 1;
                    self.free(pair, port);
                }
                _ => return done,
            }
        }
        budget
    }

    /// What is in use.
    pub fn census(&self) -> Census {
        self.census
    }

    /// How many ports this worker has on each address.
    pub fn ports_per_address(&self) -> usize {
        self.ports.owned(self.worker, self.workers)
    }

    fn choose(&mut self, client: IpAddr, origin: SocketAddr, rng: &mut impl Rng) -> u32 {
        let (method, hash) = (self.method, self.hasher.hash_one(client));
        let side = self.side(origin);
        match method {
            Method::Hash => side.by_hash(hash),
            Method::RoundRobin => side.in_turn(),
            Method::Random => rng.random_range(0..side.addresses.len() as u32),
        }
    }

    fn side(&mut self, origin: SocketAddr) -> &mut Side {
        if origin.is_ipv4() { &mut self.v4 } else { &mut self.v6 }
    }

    /// Takes a free port of a pair that has one.
    fn take_port(&mut self, pair: u32) -> Lease {
        let found = &mut self.pairs[pair as usize];
        let port = found.used.take_next().expect("a pair that is not full has a free port");
        if found.used.is_full() {
            self.targets[found.target as usize].full.insert(found.address);
        }
        self.lease_of(pair, port)
    }

    /// Takes the tuple that cooled longest of all towards this origin.
    fn take_cooling(&mut self, now: Instant, target: u32) -> Option<Lease> {
        let queue = &mut self.targets[target as usize].cooling;
        let cooling = &mut self.cooling[(*queue.front()? - self.cooled) as usize];
        if now < cooling.since + self.time_wait.min(LEAST_COOLING) {
            return None;
        }
        queue.pop_front();
        cooling.taken = true;
        let (pair, port) = (cooling.pair, cooling.port);
        self.census.cooling -= 1;
        Some(self.lease_of(pair, port))
    }

    /// At the limit of pairs: a port of a pair that is there, the same one for the same choice while it lasts.
    fn take_existing(&mut self, target: u32, chosen: u32) -> Option<Lease> {
        let pairs = &self.targets[target as usize].pairs;
        let start = chosen as usize % pairs.len().max(1);
        let round = pairs[start..].iter().chain(&pairs[..start]).take(TRIED_AT_PAIR_LIMIT);
        let open = round.copied().find(|pair| !self.pairs[*pair as usize].used.is_full())?;
        Some(self.take_port(open))
    }

    fn lease_of(&mut self, pair: u32, port: u32) -> Lease {
        let Pair { target, address, .. } = self.pairs[pair as usize];
        let origin = self.targets[target as usize].origin;
        let address = self.side(origin).addresses[address as usize];
        let local = SocketAddr::new(address, self.ports.nth_owned(port, self.worker, self.workers));
        self.census.leased += 1;
        Lease { local, origin, pair, port }
    }

    fn new_pair(
        &mut self,
        address: u32,
        origin: SocketAddr,
        rng: &mut impl Rng,
    ) -> Result<u32, Refused> {
        if self.census.pairs >= self.max_pairs {
            return Err(Refused::PairLimit);
        }
        let target = match self.target_of.get(&origin) {
            Some(&target) => target,
            None => self.new_target(origin),
        };
        let ports = self.ports_per_address() as u32;
        let pair = self.spare_pairs.pop().unwrap_or_else(|| {
            self.pairs.push(Pair { target, address, place: 0, used: Bitmap::new(ports) });
            (self.pairs.len() - 1) as u32
        });
        let found = &mut self.pairs[pair as usize];
        (found.target, found.address) = (target, address);
        found.used.start_at(rng.random_range(0..ports));
        self.pair_of.insert((target, address), pair);
        let siblings = &mut self.targets[target as usize].pairs;
        self.pairs[pair as usize].place = siblings.len();
        siblings.push(pair);
        self.census.pairs += 1;
        Ok(pair)
    }

    fn new_target(&mut self, origin: SocketAddr) -> u32 {
        let addresses = self.side(origin).addresses.len() as u32;
        // A spare one may be of the other family, and its bitmap of another length.
        let fresh = Target {
            origin,
            full: Bitmap::new(addresses),
            cooling: VecDeque::new(),
            pairs: Vec::new(),
        };
        let target = match self.spare_targets.pop() {
            Some(spare) => {
                self.targets[spare as usize] = fresh;
                spare
            }
            None => {
                self.targets.push(fresh);
                (self.targets.len() - 1) as u32
            }
        };
        self.target_of.insert(origin, target);
        target
    }

    fn pop_cooling(&mut self) {
        self.cooling.pop_front();
        self.cooled += 1;
    }

    /// Clears a port, and lets go of its pair and target when it was their last.
    fn free(&mut self, pair: u32, port: u32) {
        let found = &mut self.pairs[pair as usize];
        let target = &mut self.targets[found.target as usize];
        found.used.remove(port);
        target.full.remove(found.address);
        if !found.used.is_empty() {
            return;
        }
        let (number, address, place) = (found.target, found.address, found.place);
        self.pair_of.remove(&(number, address));
        self.spare_pairs.push(pair);
        self.census.pairs -= 1;
        target.pairs.swap_remove(place);
        if let Some(&moved) = target.pairs.get(place) {
            self.pairs[moved as usize].place = place;
        }
        if target.pairs.is_empty() {
            self.target_of.remove(&target.origin);
            self.spare_targets.push(number);
        }
    }
}

impl Lease {
    /// The pool address and port.
    pub fn local(&self) -> SocketAddr {
        self.local
    }

    /// The origin's address and port.
    pub fn origin(&self) -> SocketAddr {
        self.origin
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        debug_assert!(
            std::thread::panicking(),
            "the lease {} to {} was not given back",
            self.local,
            self.origin
        );
    }
}

/// SipHash-1-3 under a secret, so that nobody outside can aim at an address or a bucket.
#[derive(Clone)]
struct Keyed([u8; 16]);

impl BuildHasher for Keyed {
    type Hasher = SipHasher13;

    fn build_hasher(&self) -> SipHasher13 {
        SipHasher13::new_with_key(&self.0)
    }
}

impl std::fmt::Debug for Keyed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Keyed")
    }
}

/// A tuple in TIME-WAIT is not leased again before.
const LEAST_COOLING: Duration = Duration::from_secs(1);
/// More than one, so that a burst of closed connections is caught up with.
const EXPIRED_PER_LEASE: usize = 8;
const TRIED_AT_PAIR_LIMIT: usize = 64;

#[cfg(test)]
mod tests;
