//! Endpoints and 4-tuples: what identifies a connection.

use std::fmt;
use std::net::{IpAddr, SocketAddr};

/// One end of a connection: an address and a port.
///
/// Twenty bytes, where a `SocketAddr` has thirty-two; scope identifiers and flow labels play no part in TCP.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Endpoint {
    /// The address.
    pub addr: IpAddr,
    /// The port, in host byte order.
    pub port: u16,
}

impl Endpoint {
    /// An endpoint from its parts.
    pub const fn new(addr: IpAddr, port: u16) -> Self {
        Self { addr, port }
    }

    /// Whether a peer may have this endpoint: unicast address, and a port other than zero.
    pub fn is_usable(&self) -> bool {
        self.port != 0 && is_unicast(self.addr)
    }
}

impl From<SocketAddr> for Endpoint {
    fn from(addr: SocketAddr) -> Self {
        Self { addr: addr.ip(), port: addr.port() }
    }
}

impl From<Endpoint> for SocketAddr {
    fn from(endpoint: Endpoint) -> Self {
        SocketAddr::new(endpoint.addr, endpoint.port)
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        SocketAddr::from(*self).fmt(f)
    }
}

/// The two ends of a connection, as this side sees them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Tuple {
    /// Our end: the destination of a received packet.
    pub local: Endpoint,
    /// The peer's end: the source of a received packet.
    pub remote: Endpoint,
}

impl Tuple {
    /// A tuple from our end and the peer's.
    pub fn new(local: impl Into<Endpoint>, remote: impl Into<Endpoint>) -> Self {
        Self { local: local.into(), remote: remote.into() }
    }

    /// The same connection seen from the peer.
    pub fn reversed(&self) -> Self {
        Self { local: self.remote, remote: self.local }
    }

    /// Whether a connection may have this tuple: both ends usable, of one family, and not one and the same.
    pub fn is_usable(&self) -> bool {
        self.local.is_usable()
            && self.remote.is_usable()
            && self.local.addr.is_ipv4() == self.remote.addr.is_ipv4()
            && self.local != self.remote
    }

    /// The bytes that are hashed. Families differ in length, so that they cannot collide by construction.
    pub(crate) fn with_key<R>(&self, f: impl FnOnce(&[u8]) -> R) -> R {
        let mut key = [0; 36];
        key[0..2].copy_from_slice(&self.local.port.to_ne_bytes());
        key[2..4].copy_from_slice(&self.remote.port.to_ne_bytes());
        match (self.local.addr, self.remote.addr) {
            (IpAddr::V4(local), IpAddr::V4(remote)) => {
                key[4..8].copy_from_slice(&local.octets());
                key[8..12].copy_from_slice(&remote.octets());
                f(&key[..12])
            }
            (local, remote) => {
                key[4..20].copy_from_slice(&octets(local));
                key[20..36].copy_from_slice(&octets(remote));
                f(&key)
            }
        }
    }
}

impl fmt::Display for Tuple {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} <- {}", self.local, self.remote)
    }
}

/// Whether packets may come from this address: not unspecified (the whole of 0/8), multicast, reserved or broadcast.
pub(crate) fn is_unicast(addr: IpAddr) -> bool {
    match addr {
        IpAddr::V4(addr) => !matches!(addr.octets()[0], 0 | 224..),
        IpAddr::V6(addr) => !addr.is_unspecified() && !addr.is_multicast(),
    }
}

fn octets(addr: IpAddr) -> [u8; 16] {
    match addr {
        IpAddr::V4(addr) => addr.to_ipv6_mapped().octets(),
        IpAddr::V6(addr) => addr.octets(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn endpoint(text: &str) -> Endpoint {
        text.parse::<SocketAddr>().unwrap().into()
    }

    #[test]
    fn a_tuple_needs_two_unicast_ends_of_one_family() {
        let v4 = endpoint("192.0.2.1:80");
        let v6 = endpoint("[2001:db8::1]:80");
        assert!(Tuple::new(v4, endpoint("198.51.100.7:1024")).is_usable());
        assert!(Tuple::new(v6, endpoint("[2001:db8::2]:1024")).is_usable());
        for remote in ["0.0.0.0:9", "0.1.2.3:9", "224.0.0.1:9", "255.255.255.255:9", "192.0.2.2:0"]
        {
            assert!(!Tuple::new(v4, endpoint(remote)).is_usable(), "{remote}");
        }
        for remote in ["[::]:9", "[ff02::1]:9"] {
            assert!(!Tuple::new(v6, endpoint(remote)).is_usable(), "{remote}");
        }
        assert!(!Tuple::new(v4, v6).is_usable());
        assert!(!Tuple::new(v4, v4).is_usable());
    }

    #[test]
    fn keys_tell_tuples_apart() {
        let a = Tuple::new(endpoint("192.0.2.1:80"), endpoint("192.0.2.2:81"));
        let b = Tuple::new(endpoint("192.0.2.1:81"), endpoint("192.0.2.2:80"));
        let key = |tuple: &Tuple| tuple.with_key(<[u8]>::to_vec);
        assert_ne!(key(&a), key(&b));
        assert_ne!(key(&a), key(&a.reversed()));
        assert_eq!(key(&a).len(), 12);
        assert_eq!(a.reversed().reversed(), a);
    }
}
