//! The addresses of one family, and the consistent choice among them.

use std::net::IpAddr;

use crate::origin::Family;

/// The addresses of one family.
#[derive(Debug)]
pub(super) struct Side {
    pub(super) addresses: Box<[IpAddr]>,
    choice: Choice,
    turn: u32,
}

/// Two ways to the same end: every address is equally likely, and a new one takes its share evenly from the others.
#[derive(Debug)]
enum Choice {
    /// Rendezvous hashing: the address with the highest weight for the client. The time grows with the addresses.
    Rendezvous(Box<[u64]>),
    /// A large sparse table: the first slot with an address among those that the client tries. The time shrinks with
    /// the addresses.
    Sparse(Sparse),
}

#[derive(Debug)]
struct Sparse {
    /// A bit for each slot with an address.
    occupied: Box<[u64]>,
    /// Indices of addresses.
    slots: Box<[u32]>,
}

impl Side {
    /// The addresses of `family` among `addresses`; the first turn is that of number `turn`.
    pub(super) fn new(
        addresses: &[IpAddr],
        family: Family,
        turn: usize,
        hash: impl Fn(&IpAddr) -> u64,
    ) -> Self {
        let of_family = |address: &&IpAddr| Family::of(**address) == family;
        let addresses: Box<[IpAddr]> = addresses.iter().filter(of_family).copied().collect();
        let hashes: Box<[u64]> = addresses.iter().map(hash).collect();
        let choice = match hashes.len() {
            ..=RENDEZVOUS => Choice::Rendezvous(hashes),
            _ => Choice::Sparse(Sparse::new(&hashes)),
        };
        let turn = if addresses.is_empty() { 0 } else { (turn % addresses.len()) as u32 };
        Self { addresses, choice, turn }
    }

    /// The address for a client with this hash. There must be one.
    pub(super) fn by_hash(&self, client: u64) -> u32 {
        match &self.choice {
            Choice::Rendezvous(hashes) => {
                let weight = |(_, hash): &(u32, &u64)| mix(client ^ **hash);
                (0..).zip(hashes.iter()).max_by_key(weight).map_or(0, |(index, _)| index)
            }
            Choice::Sparse(sparse) => sparse.find(client),
        }
    }

    /// The next address. There must be one.
    pub(super) fn in_turn(&mut self) -> u32 {
        let turn = self.turn;
        self.turn = (turn + 1) % self.addresses.len() as u32;
        turn
    }
}

impl Sparse {
    fn new(hashes: &[u64]) -> Self {
        let mut sparse =
            Self { occupied: vec![0; SLOTS / 64].into(), slots: vec![0; SLOTS].into() };
        for (index, hash) in (0..).zip(hashes) {
            // Tables are filled to a quarter at most, by MAX_POOL_ADDRESSES.
            if let Some(slot) = tries(*hash).find(|slot| !sparse.is_occupied(*slot)) {
                sparse.occupied[slot / 64] |= 1 << (slot % 64);
                sparse.slots[slot] = index;
            }
        }
        sparse
    }

    /// Takes 4 tries with 65536 addresses, 1024 with 256.
    fn find(&self, client: u64) -> u32 {
        tries(client).find(|slot| self.is_occupied(*slot)).map_or(0, |slot| self.slots[slot])
    }

    fn is_occupied(&self, slot: usize) -> bool {
        self.occupied[slot / 64] & (1 << (slot % 64)) != 0
    }
}

/// The slots to try for this hash; so many that not to find one is out of the question.
fn tries(hash: u64) -> impl Iterator<Item = usize> {
    let golden = move |n: u64| hash.wrapping_add(n.wrapping_mul(0x9e37_79b9_7f4a_7c15));
    (0..1 << 18).map(move |n| mix(golden(n)) as usize % SLOTS)
}

/// The finalizer of MurmurHash3: every bit of the input changes every bit of the output with probability one half.
fn mix(mut bits: u64) -> u64 {
    bits = (bits ^ (bits >> 33)).wrapping_mul(0xff51_afd7_ed55_8ccd);
    bits = (bits ^ (bits >> 33)).wrapping_mul(0xc4ce_b9fe_1a85_ec53);
    bits ^ (bits >> 33)
}

/// Most addresses for rendezvous hashing, about a microsecond.
const RENDEZVOUS: usize = 256;
const SLOTS: usize = 1 << 18;
