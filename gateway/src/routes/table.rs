//! Longest prefix match: one hash map per prefix length in use.

use std::collections::HashMap;
use std::net::IpAddr;

use super::Route;

/// Routes of both families.
#[derive(Debug, Default)]
pub(super) struct Table {
    v4: Vec<Length>,
    v6: Vec<Length>,
    len: usize,
}

/// The routes of one prefix length, by their network address; those for the same prefix by metric.
#[derive(Debug)]
struct Length {
    bits: u8,
    routes: HashMap<u128, Vec<Route>>,
}

impl Table {
    pub(super) fn new(routes: impl IntoIterator<Item = Route>) -> Self {
        let mut table = Self::default();
        for route in routes {
            let (lengths, width) = match route.prefix.addr() {
                IpAddr::V4(_) => (&mut table.v4, 32),
                IpAddr::V6(_) => (&mut table.v6, 128),
            };
            let bits = route.prefix.prefix_len();
            let key = masked(route.prefix.addr(), width, bits);
            let index =
                lengths.iter().position(|length| length.bits == bits).unwrap_or_else(|| {
                    lengths.push(Length { bits, routes: HashMap::new() });
                    lengths.len() - 1
                });
            lengths[index].routes.entry(key).or_default().push(route);
            table.len += 1;
        }
        for lengths in [&mut table.v4, &mut table.v6] {
            lengths.sort_by_key(|length| std::cmp::Reverse(length.bits));
            for routes in lengths.iter_mut().flat_map(|length| length.routes.values_mut()) {
                routes.sort_by_key(|route| route.metric);
            }
        }
        table
    }

    /// The routes for a destination, best first.
    pub(super) fn matching(&self, destination: IpAddr) -> impl Iterator<Item = &Route> {
        let (lengths, width) = match destination {
            IpAddr::V4(_) => (&self.v4, 32),
            IpAddr::V6(_) => (&self.v6, 128),
        };
        lengths
            .iter()
            .filter_map(move |length| length.routes.get(&masked(destination, width, length.bits)))
            .flatten()
    }
}

/// A number that differs between most destinations, the same at all times.
pub(super) fn spread(destination: IpAddr) -> u32 {
    let bits = bits(destination);
    let folded = (bits >> 64) as u64 ^ bits as u64;
    (folded.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32) as u32
}

fn masked(address: IpAddr, width: u32, bits: u8) -> u128 {
    let host = width - u32::from(bits);
    // A shift by the full width would overflow.
    self::bits(address).checked_shr(host).unwrap_or(0)
}

fn bits(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(v4) => v4.to_bits().into(),
        IpAddr::V6(v6) => v6.to_bits(),
    }
}
