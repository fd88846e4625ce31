//! The values of the configuration that TOML has no type for: durations, sizes, addresses, prefixes, ports.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::ops::RangeInclusive;
use std::time::Duration;

use ipnet::IpNet;

use super::problem::Problem;
use crate::pool::PortRange;

/// `"500ms"`, `"10s"`, `"2m"`, `"1h"`, `"7d"`.
pub(super) fn duration(text: &str) -> Option<Duration> {
    let (number, unit) = split(text)?;
    let millis: u64 = match unit {
        "ms" => 1,
        "s" => 1_000,
        "m" => 60_000,
        "h" => 3_600_000,
        "d" => 86_400_000,
        _ => return None,
    };
    number.checked_mul(millis).map(Duration::from_millis)
}

/// The inverse of [`duration`], in the largest unit that shows it exactly (a millisecond at least).
pub(super) fn show(duration: Duration) -> String {
    let millis = duration.as_millis();
    let units = [(86_400_000, "d"), (3_600_000, "h"), (60_000, "m"), (1_000, "s")];
    match units.iter().find(|(unit, _)| millis >= *unit && millis.is_multiple_of(*unit)) {
        Some((unit, name)) => format!("{}{name}", millis / unit),
        None => format!("{millis}ms"),
    }
}

/// `"4096"`, `"64KiB"`, `"1MiB"`, `"64kB"`, `"1MB"`, in bytes.
pub(super) fn size(text: &str) -> Option<u64> {
    let (number, unit) = split(text)?;
    let bytes = match unit {
        "" | "B" => 1,
        "kB" => 1_000,
        "MB" => 1_000_000,
        "KiB" => 1 << 10,
        "MiB" => 1 << 20,
        _ => return None,
    };
    number.checked_mul(bytes)
}

/// `"20000-59999"` or `"20000"`.
pub(super) fn ports(text: &str) -> Option<PortRange> {
    let (first, last) = text.split_once('-').unwrap_or((text, text));
    PortRange::new(port(first)?, port(last)?)
}

/// One item of a pool: an address, a range of addresses, or a prefix (every address of it). Both ends included.
pub(super) fn address_range(text: &str) -> Result<RangeInclusive<IpAddr>, AddressError> {
    if text.contains('/') {
        let prefix = prefix(text)?;
        return Ok(prefix.network()..=prefix.broadcast());
    }
    let (first, last) = text.split_once('-').unwrap_or((text, text));
    let parse = |text: &str| text.trim().parse::<IpAddr>().map_err(|_| AddressError::Unparsable);
    let (first, last) = (parse(first)?, parse(last)?);
    if first.is_ipv4() != last.is_ipv4() {
        return Err(AddressError::Unparsable);
    }
    if first > last {
        return Err(AddressError::Problem(Problem::Backwards { range: text.to_owned() }));
    }
    Ok(first..=last)
}

/// `"192.0.2.0/24"`, or a single address. Bits behind the length are an error.
pub(super) fn prefix(text: &str) -> Result<IpNet, AddressError> {
    if let Ok(address) = text.parse::<IpAddr>() {
        return Ok(IpNet::from(address));
    }
    let prefix: IpNet = text.parse().map_err(|_| AddressError::Unparsable)?;
    if prefix.addr() != prefix.network() {
        let network = prefix.trunc().to_string();
        return Err(AddressError::Problem(Problem::HostBits { prefix: text.to_owned(), network }));
    }
    Ok(prefix)
}

/// Why a text is no address range or prefix.
#[derive(Debug)]
pub(super) enum AddressError {
    /// It does not look like one.
    Unparsable,
    /// It does, but it cannot be meant.
    Problem(Problem),
}

/// How many addresses lie in the range, `None` if they are more than 2^64.
pub(super) fn count(range: &RangeInclusive<IpAddr>) -> Option<u64> {
    let difference = bits(*range.end()) - bits(*range.start());
    u64::try_from(difference).ok()?.checked_add(1)
}

/// The addresses of the range, in order.
pub(super) fn addresses(range: RangeInclusive<IpAddr>) -> impl Iterator<Item = IpAddr> {
    let v4 = range.start().is_ipv4();
    (bits(*range.start())..=bits(*range.end())).map(move |bits| match u32::try_from(bits) {
        Ok(bits) if v4 => Ipv4Addr::from(bits).into(),
        _ => Ipv6Addr::from(bits).into(),
    })
}

/// Refuses addresses that no flow through a NIC can have.
pub(super) fn usable(address: IpAddr) -> Result<(), Problem> {
    let unusable = |what, remedy| Err(Problem::UnusableAddress { address, what, remedy });
    let (loopback, v4) = match address {
        IpAddr::V4(v4) => (v4.is_loopback(), v4),
        IpAddr::V6(v6) => {
            if v6.to_ipv4_mapped().is_some() {
                return unusable("an IPv4 address in IPv6 form", "write it as an IPv4 address");
            }
            if v6.is_unicast_link_local() {
                return unusable("a link-local address", "use a global or unique local one");
            }
            (v6.is_loopback(), Ipv4Addr::new(192, 0, 2, 1))
        }
    };
    if address.is_unspecified() {
        unusable("the unspecified address", "name the exact address, wildcards are not supported")
    } else if loopback {
        unusable("a loopback address, which no NIC carries", "use an address of the network")
    } else if address.is_multicast() || v4.is_broadcast() {
        unusable("a multicast or broadcast address", "use a unicast address")
    } else if v4.octets()[0] >= 240 {
        unusable("a reserved address (240.0.0.0/4)", "use a unicast address")
    } else if v4.octets()[0] == 0 {
        unusable("an address of \"this network\" (0.0.0.0/8)", "use a unicast address")
    } else {
        Ok(())
    }
}

fn split(text: &str) -> Option<(u64, &str)> {
    let end = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let number = text[..end].parse().ok()?;
    Some((number, text[end..].trim_start()))
}

fn port(text: &str) -> Option<u16> {
    let text = text.trim();
    // u16 also parses "+1".
    text.bytes().all(|byte| byte.is_ascii_digit()).then(|| text.parse().ok())?
}

fn bits(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(v4) => v4.to_bits().into(),
        IpAddr::V6(v6) => v6.to_bits(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_have_units_and_do_not_overflow() {
        assert_eq!(duration("500ms"), Some(Duration::from_millis(500)));
        assert_eq!(duration("2m"), Some(Duration::from_secs(120)));
        assert_eq!(duration("1 h"), Some(Duration::from_secs(3600)));
        for bad in ["", "s", "10", "-1s", "1.5s", "10 parsecs", "18446744073709551615d", "१s"] {
            assert_eq!(duration(bad), None, "{bad:?}");
        }
        for text in ["1ms", "1500ms", "90s", "2h", "3d"] {
            assert_eq!(show(duration(text).unwrap()), text);
        }
    }

    #[test]
    fn sizes_are_decimal_or_binary() {
        assert_eq!(size("64KiB"), Some(65536));
        assert_eq!(size("64kB"), Some(64000));
        assert_eq!(size("17"), Some(17));
        for bad in ["", "KiB", "64k", "1GiB", "99999999999999999999"] {
            assert_eq!(size(bad), None, "{bad:?}");
        }
    }

    #[test]
    fn port_ranges_are_ordered_and_not_zero() {
        assert_eq!(ports("20000-59999"), PortRange::new(20000, 59999));
        assert_eq!(ports("8080"), PortRange::new(8080, 8080));
        for bad in ["", "-", "0", "0-5", "9-8", "1-65536", "+1", "1-2-3", "a-b"] {
            assert_eq!(ports(bad), None, "{bad:?}");
        }
    }

    #[test]
    fn address_ranges_include_both_ends() {
        let expand = |text| address_range(text).map(addresses).unwrap().collect::<Vec<_>>();
        assert_eq!(expand("192.0.2.254-192.0.3.1").len(), 4);
        assert_eq!(expand("192.0.2.0/30").len(), 4);
        assert_eq!(expand("2001:db8::ffff").len(), 1);
        assert_eq!(
            expand("::ffff-::1:0"),
            ["::ffff", "::1:0"].map(|a| a.parse::<IpAddr>().unwrap())
        );
        assert_eq!(count(&address_range("::/0").unwrap()), None);
        assert_eq!(count(&address_range("0.0.0.0/0").unwrap()), Some(1 << 32));
        for bad in
            ["192.0.2.9-192.0.2.1", "192.0.2.1-2001:db8::1", "192.0.2.1/24", "x", "1.2.3.4/33"]
        {
            assert!(address_range(bad).is_err(), "{bad:?}");
        }
    }
}
