//! The lab's address plan: documentation prefixes (RFC 5737, RFC 3849), both families on every link.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// Listening addresses, origin addresses: this many of each family stand on the interfaces.
pub const SPARES: u8 = 8;
/// Pool addresses of each family.
pub const POOL: u8 = 16;

/// The client's addresses.
pub const CLIENT: [IpAddr; 2] =
    [v4(198, 51, 100, 2), IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 1, 0, 0, 0, 0, 2))];
/// The gateway host's own addresses on the client's link: not a service, the kernel answers there.
pub const GATEWAY_CLIENT_SIDE: [IpAddr; 2] =
    [v4(198, 51, 100, 1), IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 1, 0, 0, 0, 0, 1))];
/// The gateway host's own addresses on the origin's link.
pub const GATEWAY_ORIGIN_SIDE: [IpAddr; 2] =
    [v4(192, 0, 2, 1), IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 2, 0, 0, 0, 0, 1))];
/// The client on the link that leads straight to the origin (only with `LabConfig::direct`).
pub const DIRECT_CLIENT: IpAddr = v4(203, 0, 113, 2);
/// The origin on that link.
pub const DIRECT_ORIGIN: IpAddr = v4(203, 0, 113, 80);
/// An address on the origin's link that nobody has: nothing answers its ARP.
pub const ORIGIN_ABSENT_V4: IpAddr = v4(192, 0, 2, 199);

/// The `n`-th IPv4 listening address, 198.51.100.80 and up; below [`SPARES`].
pub fn vip4(n: u8) -> IpAddr {
    v4(198, 51, 100, 80 + n)
}

/// The `n`-th IPv6 listening address, 2001:db8:1::80 and up (written as in IPv4: ::80, ::81 …).
pub fn vip6(n: u8) -> IpAddr {
    IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 1, 0, 0, 0, 0, 0x80 + u16::from(n)))
}

/// The `n`-th IPv4 address of the origin, 192.0.2.80 and up; below [`SPARES`].
pub fn origin4(n: u8) -> IpAddr {
    v4(192, 0, 2, 80 + n)
}

/// The `n`-th IPv6 address of the origin, 2001:db8:2::80 and up.
pub fn origin6(n: u8) -> IpAddr {
    IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 2, 0, 0, 0, 0, 0x80 + u16::from(n)))
}

/// The `n`-th IPv4 pool address, 192.0.2.16 and up; below [`POOL`].
pub fn pool4(n: u8) -> IpAddr {
    v4(192, 0, 2, 16 + n)
}

/// The `n`-th IPv6 pool address, 2001:db8:2::10 and up.
pub fn pool6(n: u8) -> IpAddr {
    IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 2, 0, 0, 0, 0, 0x10 + u16::from(n)))
}

/// Whether `address` is one of the lab's pool addresses.
pub fn in_pool(address: IpAddr) -> bool {
    (0..POOL).any(|n| address == pool4(n) || address == pool6(n))
}

const fn v4(a: u8, b: u8, c: u8, d: u8) -> IpAddr {
    IpAddr::V4(Ipv4Addr::new(a, b, c, d))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_plan_is_the_documented_one() {
        assert_eq!(vip4(1).to_string(), "198.51.100.81");
        assert_eq!(vip6(0).to_string(), "2001:db8:1::80");
        assert_eq!(origin6(1).to_string(), "2001:db8:2::81");
        assert_eq!(pool4(15).to_string(), "192.0.2.31");
        assert_eq!(pool6(15).to_string(), "2001:db8:2::1f");
        assert!(in_pool(pool6(3)) && !in_pool(origin4(0)) && !in_pool(GATEWAY_ORIGIN_SIDE[0]));
    }
}
