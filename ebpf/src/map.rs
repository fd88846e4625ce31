//! Names, sizes and types of the BPF maps.
//!
//! The kernel's side declares the maps with these types; the gateway fills them with the same bytes
//! (`to_bytes`), so that a plain `[u8; N]` is all it needs. Addresses and ports stand in network
//! byte order, everything else in the host's, which is also the BPF machine's.

use core::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

/// The XDP program in the object.
pub const PROGRAM: &str = "headgate";
/// Hash map [`Endpoint`] → [`ServiceRule`].
pub const SERVICES: &str = "SERVICES";
/// Hash map [`PoolKey`] → [`PoolRule`].
pub const POOLS: &str = "POOLS";
/// LPM trie of blocked IPv4 source prefixes, value `u32` (not looked at); keys by [`BlockedPrefix`].
pub const BLOCKED_V4: &str = "BLOCKED_V4";
/// LPM trie of blocked IPv6 source prefixes, value `u32` (not looked at); keys by [`BlockedPrefix`].
pub const BLOCKED_V6: &str = "BLOCKED_V6";
/// AF_XDP socket by queue.
pub const XSKS: &str = "XSKS";
/// Array of `u64` by queue: `CLOCK_MONOTONIC` in ns of the worker's last sign of life, 0 for never.
///
/// The map is `BPF_F_MMAPABLE`. The clock is that of the initial time namespace.
pub const HEARTBEAT: &str = "HEARTBEAT";
/// Array of one [`Settings`].
pub const SETTINGS: &str = "SETTINGS";
/// Per-CPU array of `u64` by [`Verdict::index`](crate::Verdict::index): frames seen.
pub const COUNTERS: &str = "COUNTERS";

/// Most entries in [`SERVICES`].
pub const MAX_SERVICES: u32 = 4096;
/// Most entries in [`POOLS`].
pub const MAX_POOLS: u32 = 4096;
/// Most prefixes in each of [`BLOCKED_V4`] and [`BLOCKED_V6`]; memory is taken per entry.
pub const MAX_BLOCKED: u32 = 1 << 19;
/// Most queues of an interface: entries in [`XSKS`] and [`HEARTBEAT`].
pub const MAX_QUEUES: u32 = 64;

/// A transport protocol that can be matched.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(u8)]
pub enum Protocol {
    /// RFC 9293.
    Tcp = 6,
    /// RFC 768.
    Udp = 17,
}

impl Protocol {
    /// The protocol with this number in the IP header.
    #[inline(always)]
    pub const fn from_number(number: u8) -> Option<Self> {
        match number {
            6 => Some(Self::Tcp),
            17 => Some(Self::Udp),
            _ => None,
        }
    }

    /// Its number in the IP header.
    #[inline(always)]
    pub const fn number(self) -> u8 {
        self as u8
    }

    /// Octets in the shortest header.
    #[inline(always)]
    pub(crate) const fn header_length(self) -> usize {
        match self {
            Self::Tcp => 20,
            Self::Udp => 8,
        }
    }
}

/// What becomes of frames that match while no worker takes them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum OnDead {
    /// To the kernel stack, as if headgate were not there. The stack resets proxied TCP flows.
    #[default]
    Pass,
    /// Dropped, so that clients retransmit until the worker is back.
    Drop,
}

impl OnDead {
    #[inline(always)]
    const fn from_byte(byte: u8) -> Self {
        match byte {
            1 => Self::Drop,
            _ => Self::Pass,
        }
    }

    #[inline(always)]
    const fn to_byte(self) -> u8 {
        match self {
            Self::Pass => 0,
            Self::Drop => 1,
        }
    }
}

/// Key of [`SERVICES`]: destination address, protocol and destination port.
///
/// Octet 0 is the family (4 or 6), 1 the protocol, 2 and 3 the port, 4 to 19 the address; an IPv4
/// address takes the first four, the rest is zero.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(transparent)]
pub struct Endpoint([u8; Self::SIZE]);

impl Endpoint {
    /// Octets in the key.
    pub const SIZE: usize = 20;

    /// The key of `address` and its port.
    pub const fn new(protocol: Protocol, address: SocketAddr) -> Self {
        let port = address.port().to_be_bytes();
        match address {
            SocketAddr::V4(v4) => Self::v4(protocol, v4.ip().octets(), port),
            SocketAddr::V6(v6) => Self::v6(protocol, v6.ip().octets(), port),
        }
    }

    /// The key of an IPv4 address and a port as they stand in the packet.
    #[inline(always)]
    pub const fn v4(protocol: Protocol, address: [u8; 4], port: [u8; 2]) -> Self {
        Self(key(V4, protocol, port, widen(address)))
    }

    /// The key of an IPv6 address and a port as they stand in the packet.
    #[inline(always)]
    pub const fn v6(protocol: Protocol, address: [u8; 16], port: [u8; 2]) -> Self {
        Self(key(V6, protocol, port, address))
    }

    /// The key in these bytes, if its family and protocol are known.
    pub const fn from_bytes(bytes: [u8; Self::SIZE]) -> Option<Self> {
        if is_key(&bytes) { Some(Self(bytes)) } else { None }
    }

    /// The key as it stands in the map.
    pub const fn to_bytes(self) -> [u8; Self::SIZE] {
        self.0
    }

    /// The protocol.
    pub const fn protocol(&self) -> Protocol {
        protocol_of(&self.0)
    }

    /// Address and port.
    pub const fn address(&self) -> SocketAddr {
        SocketAddr::new(address_of(&self.0), self.port())
    }

    /// The port in host byte order.
    #[inline(always)]
    pub const fn port(&self) -> u16 {
        u16::from_be_bytes([self.0[2], self.0[3]])
    }

    /// The key under which a pool would hold this address.
    #[inline(always)]
    pub const fn pool_key(&self) -> PoolKey {
        let mut bytes = self.0;
        bytes[2] = 0;
        bytes[3] = 0;
        PoolKey(bytes)
    }
}

/// Key of [`POOLS`]: a pool address and a protocol. Laid out as [`Endpoint`], with port zero.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(transparent)]
pub struct PoolKey([u8; Self::SIZE]);

impl PoolKey {
    /// Octets in the key.
    pub const SIZE: usize = Endpoint::SIZE;

    /// The key of `address`.
    pub const fn new(protocol: Protocol, address: IpAddr) -> Self {
        Endpoint::new(protocol, SocketAddr::new(address, 0)).pool_key()
    }

    /// The key in these bytes, if its family and protocol are known and its port is zero.
    pub const fn from_bytes(bytes: [u8; Self::SIZE]) -> Option<Self> {
        if is_key(&bytes) && bytes[2] == 0 && bytes[3] == 0 { Some(Self(bytes)) } else { None }
    }

    /// The key as it stands in the map.
    pub const fn to_bytes(self) -> [u8; Self::SIZE] {
        self.0
    }

    /// The protocol.
    pub const fn protocol(&self) -> Protocol {
        protocol_of(&self.0)
    }

    /// The pool address.
    pub const fn address(&self) -> IpAddr {
        address_of(&self.0)
    }
}

/// Value of [`SERVICES`]. Any eight bytes are one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(transparent)]
pub struct ServiceRule([u8; Self::SIZE]);

impl ServiceRule {
    /// Octets in the value.
    pub const SIZE: usize = 8;

    /// A rule of the service with number `service`, which the gateway chooses.
    pub const fn new(service: u32, on_dead: OnDead) -> Self {
        let [a, b, c, d] = service.to_ne_bytes();
        Self([a, b, c, d, on_dead.to_byte(), 0, 0, 0])
    }

    /// The value in these bytes.
    pub const fn from_bytes(bytes: [u8; Self::SIZE]) -> Self {
        Self(bytes)
    }

    /// The value as it stands in the map.
    pub const fn to_bytes(self) -> [u8; Self::SIZE] {
        self.0
    }

    /// The service's number.
    pub const fn service(&self) -> u32 {
        u32::from_ne_bytes([self.0[0], self.0[1], self.0[2], self.0[3]])
    }

    /// What becomes of its frames while no worker takes them.
    #[inline(always)]
    pub const fn on_dead(&self) -> OnDead {
        OnDead::from_byte(self.0[4])
    }
}

/// Value of [`POOLS`]. Any eight bytes are one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(transparent)]
pub struct PoolRule([u8; Self::SIZE]);

impl PoolRule {
    /// Octets in the value.
    pub const SIZE: usize = 8;

    /// A rule for the ports from `first` to `last`, both included. Nothing matches if
    /// `first > last`.
    pub const fn new(first: u16, last: u16, on_dead: OnDead) -> Self {
        let [a, b] = first.to_ne_bytes();
        let [c, d] = last.to_ne_bytes();
        Self([a, b, c, d, on_dead.to_byte(), 0, 0, 0])
    }

    /// The value in these bytes.
    pub const fn from_bytes(bytes: [u8; Self::SIZE]) -> Self {
        Self(bytes)
    }

    /// The value as it stands in the map.
    pub const fn to_bytes(self) -> [u8; Self::SIZE] {
        self.0
    }

    /// First port of the range.
    #[inline(always)]
    pub const fn first(&self) -> u16 {
        u16::from_ne_bytes([self.0[0], self.0[1]])
    }

    /// Last port of the range.
    #[inline(always)]
    pub const fn last(&self) -> u16 {
        u16::from_ne_bytes([self.0[2], self.0[3]])
    }

    /// Whether `port` lies in the range.
    #[inline(always)]
    pub const fn contains(&self, port: u16) -> bool {
        self.first() <= port && port <= self.last()
    }

    /// What becomes of its frames while no worker takes them.
    #[inline(always)]
    pub const fn on_dead(&self) -> OnDead {
        OnDead::from_byte(self.0[4])
    }
}

/// A source prefix for [`BLOCKED_V4`] or [`BLOCKED_V6`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum BlockedPrefix {
    /// For [`BLOCKED_V4`].
    V4 {
        /// Prefix length in bits, at most 32.
        length: u32,
        /// The address, host bits zero.
        data: [u8; 4],
    },
    /// For [`BLOCKED_V6`].
    V6 {
        /// Prefix length in bits, at most 128.
        length: u32,
        /// The address, host bits zero.
        data: [u8; 16],
    },
}

impl BlockedPrefix {
    /// The prefix of `length` bits that `address` lies in; `None` if it has not so many bits.
    pub fn new(address: IpAddr, length: u8) -> Option<Self> {
        let length = u32::from(length);
        match address {
            IpAddr::V4(address) => {
                let host_bits = u32::BITS.checked_sub(length)?;
                let mask = u32::MAX.checked_shl(host_bits).unwrap_or(0);
                let data = (address.to_bits() & mask).to_be_bytes();
                Some(Self::V4 { length, data })
            }
            IpAddr::V6(address) => {
                let host_bits = u128::BITS.checked_sub(length)?;
                let mask = u128::MAX.checked_shl(host_bits).unwrap_or(0);
                let data = (address.to_bits() & mask).to_be_bytes();
                Some(Self::V6 { length, data })
            }
        }
    }

    /// Whether `address` lies in the prefix.
    pub fn contains(&self, address: IpAddr) -> bool {
        let length = match self {
            Self::V4 { length, .. } | Self::V6 { length, .. } => *length,
        };
        u8::try_from(length).ok().and_then(|length| Self::new(address, length)) == Some(*self)
    }
}

/// Value of [`SETTINGS`]. A fresh map holds zeros: switched off, everything passes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[repr(transparent)]
pub struct Settings([u64; Self::WORDS]);

impl Settings {
    /// 64-bit words in the value.
    pub const WORDS: usize = 2;

    /// Everything passes.
    pub const DISABLED: Self = Self([0; Self::WORDS]);

    /// Rules apply; a worker counts as alive for `heartbeat_limit_ns` nanoseconds after its last
    /// sign of life.
    pub const fn enabled(heartbeat_limit_ns: u64) -> Self {
        Self([heartbeat_limit_ns, 1])
    }

    /// The value in these words.
    pub const fn from_words(words: [u64; Self::WORDS]) -> Self {
        Self(words)
    }

    /// The value as it stands in the map.
    pub const fn to_words(self) -> [u64; Self::WORDS] {
        self.0
    }

    /// Whether rules apply at all.
    #[inline(always)]
    pub const fn is_enabled(&self) -> bool {
        self.0[1] != 0
    }

    /// How long a worker counts as alive after its last sign of life, in nanoseconds.
    #[inline(always)]
    pub const fn heartbeat_limit_ns(&self) -> u64 {
        self.0[0]
    }
}

#[inline(always)]
const fn key(family: u8, protocol: Protocol, port: [u8; 2], address: [u8; 16]) -> [u8; 20] {
    let [a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p] = address;
    let protocol = protocol.number();
    [family, protocol, port[0], port[1], a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p]
}

#[inline(always)]
const fn widen(v4: [u8; 4]) -> [u8; 16] {
    [v4[0], v4[1], v4[2], v4[3], 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]
}

const fn is_key(bytes: &[u8; 20]) -> bool {
    matches!(bytes[0], V4 | V6) && Protocol::from_number(bytes[1]).is_some()
}

const fn protocol_of(bytes: &[u8; 20]) -> Protocol {
    match Protocol::from_number(bytes[1]) {
        Some(protocol) => protocol,
        // No constructor makes a key of any other protocol.
        None => Protocol::Tcp,
    }
}

const fn address_of(bytes: &[u8; 20]) -> IpAddr {
    let [_, _, _, _, a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p] = *bytes;
    if bytes[0] == V4 {
        IpAddr::V4(Ipv4Addr::new(a, b, c, d))
    } else {
        IpAddr::V6(Ipv6Addr::from_octets([a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p]))
    }
}

const V4: u8 = 4;
const V6: u8 = 6;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn keys_survive_the_map(address: SocketAddr, is_tcp: bool) {
            let protocol = if is_tcp { Protocol::Tcp } else { Protocol::Udp };
            // What a map cannot hold: scope and flow label of a socket address.
            let address = SocketAddr::new(address.ip(), address.port());
            let endpoint = Endpoint::from_bytes(Endpoint::new(protocol, address).to_bytes()).unwrap();
            prop_assert_eq!((endpoint.protocol(), endpoint.address()), (protocol, address));

            let key = PoolKey::from_bytes(PoolKey::new(protocol, address.ip()).to_bytes()).unwrap();
            prop_assert_eq!((key.protocol(), key.address()), (protocol, address.ip()));
            prop_assert_eq!(endpoint.pool_key(), key);
        }

        #[test]
        fn any_bytes_are_a_rule(bytes: [u8; 8]) {
            let rule = ServiceRule::from_bytes(bytes);
            let again = ServiceRule::new(rule.service(), rule.on_dead());
            prop_assert_eq!((again.service(), again.on_dead()), (rule.service(), rule.on_dead()));

            let rule = PoolRule::from_bytes(bytes);
            let again = PoolRule::new(rule.first(), rule.last(), rule.on_dead());
            prop_assert_eq!((again.first(), again.last()), (rule.first(), rule.last()));
        }

        #[test]
        fn a_prefix_holds_the_addresses_that_share_its_bits(a: [u8; 16], b: [u8; 16], length in 0_u8..=128) {
            let (a, b) = (u128::from_be_bytes(a), u128::from_be_bytes(b));
            let shared = (a ^ b).leading_zeros();
            let prefix = BlockedPrefix::new(Ipv6Addr::from(a).into(), length).unwrap();
            prop_assert_eq!(prefix.contains(Ipv6Addr::from(b).into()), shared >= u32::from(length));
            prop_assert!(prefix.contains(Ipv6Addr::from(a).into()));
        }
    }

    #[test]
    fn an_endpoint_stands_in_network_order() {
        let endpoint = Endpoint::new(Protocol::Tcp, "198.51.100.80:8080".parse().unwrap());
        let mut expected = [0; Endpoint::SIZE];
        expected[..8].copy_from_slice(&[4, 6, 0x1f, 0x90, 198, 51, 100, 80]);
        assert_eq!(endpoint.to_bytes(), expected);
    }

    #[test]
    fn bytes_that_are_no_key_are_refused() {
        let good = Endpoint::new(Protocol::Udp, "[2001:db8::1]:53".parse().unwrap()).to_bytes();
        for (at, octet) in [(0, 0), (0, 5), (1, 0), (1, 1)] {
            let mut bad = good;
            bad[at] = octet;
            assert_eq!(Endpoint::from_bytes(bad), None);
        }
        assert_eq!(PoolKey::from_bytes(good), None, "a port in a pool key");
    }

    #[test]
    fn prefixes_lose_their_host_bits_and_have_no_more_bits_than_the_address() {
        let v4 = |length| BlockedPrefix::new(Ipv4Addr::new(203, 0, 113, 255).into(), length);
        assert_eq!(v4(0), Some(BlockedPrefix::V4 { length: 0, data: [0; 4] }));
        assert_eq!(v4(20), Some(BlockedPrefix::V4 { length: 20, data: [203, 0, 112, 0] }));
        assert_eq!(v4(32), Some(BlockedPrefix::V4 { length: 32, data: [203, 0, 113, 255] }));
        assert_eq!(v4(33), None);
        assert_eq!(BlockedPrefix::new(Ipv6Addr::LOCALHOST.into(), 129), None);
    }

    #[test]
    fn a_fresh_map_is_switched_off() {
        assert!(!Settings::from_words([0; Settings::WORDS]).is_enabled());
        let settings = Settings::from_words(Settings::enabled(500).to_words());
        assert!(settings.is_enabled());
        assert_eq!(settings.heartbeat_limit_ns(), 500);
    }
}
