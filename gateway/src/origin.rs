//! Which address of an origin a flow goes to, and which next when that one fails.
//!
//! Pure: the only state is the turn of the round-robin. An [`Attempt`] names each candidate at most once.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::num::NonZeroUsize;

/// An address family.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

/// Which families an origin may be reached over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Families {
    /// Either.
    Any,
    /// IPv4 only.
    V4,
    /// IPv6 only.
    V6,
    /// That of the client.
    Client,
}

/// The addresses of one origin, in turn.
#[derive(Debug, Clone)]
pub struct Origin {
    addresses: Box<[SocketAddr]>,
    families: Families,
    /// By client family where that decides, else the first for all.
    turns: [usize; 2],
}

/// The candidates of one flow: each address of the origin that is allowed, once, best first.
#[derive(Debug, Clone)]
pub struct Attempt {
    families: Families,
    client: Family,
    start: usize,
    tried: usize,
}

impl Origin {
    /// An origin with these addresses, of which `families` may be used.
    pub fn new(addresses: impl Into<Box<[SocketAddr]>>, families: Families) -> Self {
        Self { addresses: addresses.into(), families, turns: [0; 2] }
    }

    /// Its addresses, allowed or not.
    pub fn addresses(&self) -> &[SocketAddr] {
        &self.addresses
    }

    /// Begins a flow for a client of family `client`. Consecutive flows begin with consecutive candidates.
    pub fn attempt(&mut self, client: Family) -> Attempt {
        let turn = usize::from(self.families == Families::Client && client == Family::V6);
        let mut attempt =
            Attempt { families: self.families, client, start: self.turns[turn], tried: 0 };
        if let Some(count) = NonZeroUsize::new(self.addresses.len()) {
            attempt.start = (attempt.start + self.skipped(&attempt)) % count;
            self.turns[turn] = (attempt.start + 1) % count;
        }
        attempt
    }

    /// How many addresses from the attempt's start on are not allowed.
    fn skipped(&self, attempt: &Attempt) -> usize {
        let round = self.addresses.iter().cycle().skip(attempt.start);
        round.take(self.addresses.len()).take_while(|address| !attempt.allows(**address)).count()
    }
}

impl Attempt {
    /// The next candidate of `origin` (the one that [`Origin::attempt`] was called on), or `None` when all were named.
    pub fn next(&mut self, origin: &Origin) -> Option<SocketAddr> {
        while self.tried < origin.addresses.len() {
            let address = origin.addresses[(self.start + self.tried) % origin.addresses.len()];
            self.tried += 1;
            if self.allows(address) {
                return Some(address);
            }
        }
        None
    }

    fn allows(&self, address: SocketAddr) -> bool {
        match self.families {
            Families::Any => true,
            Families::V4 => address.is_ipv4(),
            Families::V6 => address.is_ipv6(),
            Families::Client => Family::of(address.ip()) == self.client,
        }
    }
}

impl Family {
    /// The family of `address`.
    pub fn of(address: IpAddr) -> Self {
        if address.is_ipv4() { Self::V4 } else { Self::V6 }
    }
}

impl fmt::Display for Family {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::V4 => "IPv4",
            Self::V6 => "IPv6",
        })
    }
}

impl Families {
    /// The words of the configuration, and what they stand for.
    pub const NAMES: [(&'static str, Self); 4] =
        [("any", Self::Any), ("v4", Self::V4), ("v6", Self::V6), ("client", Self::Client)];
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flows_take_turns_and_fall_back_through_all_addresses_once() {
        let mut origin = origin(Families::Any);
        assert_eq!(all(&mut origin, Family::V4), ["a4", "b6", "c4", "d6"]);
        assert_eq!(all(&mut origin, Family::V4), ["b6", "c4", "d6", "a4"]);
        assert_eq!(all(&mut origin, Family::V6), ["c4", "d6", "a4", "b6"]);
    }

    #[test]
    fn a_family_takes_even_turns_among_its_own() {
        let mut v6 = origin(Families::V6);
        assert_eq!(all(&mut v6, Family::V4), ["b6", "d6"]);
        assert_eq!(all(&mut v6, Family::V4), ["d6", "b6"]);
        assert_eq!(all(&mut v6, Family::V4), ["b6", "d6"]);
    }

    #[test]
    fn the_client_decides_where_it_may() {
        let mut client = origin(Families::Client);
        assert_eq!(all(&mut client, Family::V4), ["a4", "c4"]);
        assert_eq!(all(&mut client, Family::V6), ["b6", "d6"]);
        assert_eq!(all(&mut client, Family::V4), ["c4", "a4"]);
        assert_eq!(all(&mut client, Family::V6), ["d6", "b6"]);
    }

    #[test]
    fn no_candidate_is_no_attempt() {
        let mut none = Origin::new([], Families::Any);
        assert_eq!(none.attempt(Family::V4).next(&none), None);
        let mut other = Origin::new([NAMED[0].1.parse().unwrap()], Families::V6);
        assert_eq!(other.attempt(Family::V6).next(&other), None);
    }

    fn all(origin: &mut Origin, client: Family) -> Vec<&'static str> {
        let mut attempt = origin.attempt(client);
        std::iter::from_fn(|| attempt.next(origin))
            .map(|address| NAMED.iter().find(|(_, text)| text.parse() == Ok(address)).unwrap().0)
            .collect()
    }

    fn origin(families: Families) -> Origin {
        let addresses: Vec<_> = NAMED.iter().map(|(_, text)| text.parse().unwrap()).collect();
        Origin::new(addresses, families)
    }

    const NAMED: [(&str, &str); 4] = [
        ("a4", "192.0.2.1:80"),
        ("b6", "[2001:db8::1]:80"),
        ("c4", "192.0.2.2:80"),
        ("d6", "[2001:db8::2]:80"),
    ];
}
