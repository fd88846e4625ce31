//! Frames and what must become of them: one table, run against [`classify`](crate::classify) on the
//! host and against the loaded program in the kernel.

use std::format;
use std::string::String;
use std::vec::Vec;

use crate::map::{Endpoint, OnDead, Protocol, ServiceRule, Settings};
use crate::verdict::Verdict;

mod frame;
mod rules;

use frame::Frame;
pub use rules::Rules;
use rules::{address, socket};

/// A frame and what must become of it on queue 0.
#[derive(Clone, Debug)]
pub struct Case {
    /// What is special about it.
    pub name: String,
    /// The frame, from the destination MAC address on.
    pub frame: Vec<u8>,
    /// What the maps hold.
    pub rules: Rules,
    /// The verdict while the queue has a socket.
    pub verdict: Verdict,
}

/// The table.
pub fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    cases.extend(matches());
    cases.extend(misses());
    cases.extend(link_layer());
    cases.extend(ipv4_headers());
    cases.extend(ipv4_fragments());
    cases.extend(ipv6_headers());
    cases.extend(blocked());
    cases.extend(dead_workers());
    cases.extend(truncations());
    cases
}

/// Spoils `frame` a little, mostly where the headers are; `entropy` returns random numbers.
///
/// The frame keeps 1 to 1500 bytes.
pub fn mutate(frame: &mut Vec<u8>, mut entropy: impl FnMut() -> u32) {
    for _ in 0..=entropy() % 4 {
        let headers = frame.len().min(80) as u32;
        let at = (entropy() % headers) as usize;
        let value = entropy();
        match entropy() % 8 {
            0 => frame[at] = value as u8,
            1 => frame[at] ^= 1 << (value % 8),
            2 => frame[at] = [0, 1, 4, 6, 17, 44, 58, 0x45, 0x46, 0x4f, 0x60][value as usize % 11],
            3 => frame[at] = frame[at].wrapping_add(1),
            4 => frame[at] = frame[at].wrapping_sub(1),
            5 => frame.truncate(value as usize % frame.len() + 1),
            6 => frame.resize((frame.len() + value as usize % 64).min(1500), 0),
            _ => frame.swap(at, value as usize % headers as usize),
        }
    }
}

fn matches() -> Vec<Case> {
    let mut cases = Vec::new();
    for (client, service) in [(V4, "198.51.100.80"), (V6, "2001:db8:1::80")] {
        let tcp = Frame::tcp(client, 40000, service, 80);
        cases.push(tcp.clone().case("TCP service", Verdict::RedirectService));
        cases.push(tcp.payload(1000).case("TCP service, payload", Verdict::RedirectService));
        let udp = Frame::udp(client, 40000, service, 53);
        cases.push(udp.clone().case("UDP service", Verdict::RedirectService));
        cases.push(udp.payload(0).case("UDP service, empty", Verdict::RedirectService));
        let padded = Frame::tcp(client, 40000, service, 80).payload(0).padded(6);
        cases.push(padded.case("padding behind the packet", Verdict::RedirectService));
    }
    for (origin, tcp, udp) in
        [(V4_ORIGIN, "192.0.2.16", "192.0.2.18"), (V6_ORIGIN, "2001:db8:2::10", "2001:db8:2::11")]
    {
        for port in [20000, 20001, 59999] {
            let name = format!("pool port {port}");
            let frame = Frame::tcp(origin, 80, tcp, port);
            cases.push(frame.case(&name, Verdict::RedirectPool));
            let frame = Frame::udp(origin, 53, udp, port);
            cases.push(frame.case(&name, Verdict::RedirectPool));
        }
    }
    cases.push(service_within_pool());
    cases
}

fn service_within_pool() -> Case {
    let mut rules = Rules::standard();
    let endpoint = Endpoint::new(Protocol::Tcp, socket("192.0.2.16:30000"));
    rules.services.insert(endpoint, ServiceRule::new(9, OnDead::Pass));
    let frame = Frame::tcp(V4, 40000, "192.0.2.16", 30000);
    Case { rules, ..frame.case("service before pool", Verdict::RedirectService) }
}

fn misses() -> Vec<Case> {
    let mut cases = Vec::new();
    for (client, service, pool, udp_pool) in [
        (V4, "198.51.100.80", "192.0.2.16", "192.0.2.18"),
        (V6, "2001:db8:1::80", "2001:db8:2::10", "2001:db8:2::11"),
    ] {
        for (name, frame) in [
            ("ssh to a service's address", Frame::tcp(client, 40000, service, 22)),
            ("next port", Frame::tcp(client, 40000, service, 81)),
            ("port with its octets swapped", Frame::tcp(client, 40000, service, 80 << 8)),
            ("port zero", Frame::tcp(client, 40000, service, 0)),
            ("source port is the service's", Frame::tcp(client, 80, service, 40000)),
            ("UDP to a TCP service", Frame::udp(client, 40000, service, 80)),
            ("TCP to a UDP service", Frame::tcp(client, 40000, service, 53)),
            ("from a service, not to it", Frame::tcp(service, 80, client, 80)),
            ("below the pool's range", Frame::tcp(client, 80, pool, 19999)),
            ("above the pool's range", Frame::tcp(client, 80, pool, 60000)),
            ("ssh to a pool address", Frame::tcp(client, 40000, pool, 22)),
            ("UDP to a TCP pool", Frame::udp(client, 80, pool, 30000)),
            ("TCP to a UDP pool", Frame::tcp(client, 80, udp_pool, 30000)),
        ] {
            cases.push(frame.case(name, Verdict::PassNoMatch));
        }
    }
    let neighbour = Frame::tcp(V4, 40000, "198.51.100.82", 80);
    cases.push(neighbour.case("next address", Verdict::PassNoMatch));
    let neighbour = Frame::tcp(V6, 40000, "2001:db8:1::82", 80);
    cases.push(neighbour.case("next address", Verdict::PassNoMatch));
    let mapped = Frame::tcp(V6, 40000, "::ffff:198.51.100.80", 80);
    cases.push(mapped.case("IPv4-mapped address", Verdict::PassNoMatch));
    let same_octets = Frame::tcp(V6, 40000, "c633:6450::", 80);
    cases.push(same_octets.case("octets of an IPv4 service", Verdict::PassNoMatch));
    cases
}

fn link_layer() -> Vec<Case> {
    let v4 = Frame::tcp(V4, 40000, "198.51.100.80", 80);
    let v6 = Frame::tcp(V6, 40000, "2001:db8:1::80", 80);
    let mut cases = Vec::new();
    for frame in [&v4, &v6] {
        for (name, mac, verdict) in [
            ("broadcast", [0xff; 6], Verdict::PassNotUnicast),
            ("IPv4 multicast", [1, 0, 0x5e, 0, 0, 1], Verdict::PassNotUnicast),
            ("IPv6 multicast", [0x33, 0x33, 0, 0, 0, 1], Verdict::PassNotUnicast),
            ("locally administered", [2, 0, 0, 0, 0, 9], Verdict::RedirectService),
            ("zero MAC address", [0; 6], Verdict::RedirectService),
        ] {
            cases.push(frame.clone().set(0, &mac).case(name, verdict));
        }
        for ethertype in [0x8100, 0x88a8, 0x9100_u16] {
            let tagged = frame.clone().insert(12, &[ethertype.to_be_bytes(), [0, 7]].concat());
            cases.push(tagged.case("VLAN tag", Verdict::PassVlan));
        }
        for ethertype in [0, 46, 0x05dc, 0x0806, 0x0842, 0x8847, 0x8863, 0x88cc, 0xffff_u16] {
            let name = format!("ethertype {ethertype:#06x}");
            let frame = frame.clone().set(12, &ethertype.to_be_bytes());
            cases.push(frame.case(&name, Verdict::PassNotIp));
        }
    }
    cases.push(v4.clone().set(12, &[0x86, 0xdd]).case("IPv4 said IPv6", Verdict::PassMalformed));
    cases.push(v6.clone().set(12, &[8, 0]).case("IPv6 said IPv4", Verdict::PassMalformed));
    cases.push(Frame::arp().case("ARP request to our MAC address", Verdict::PassNotIp));
    cases.push(Frame::arp().set(0, &[0xff; 6]).case("ARP request", Verdict::PassNotUnicast));
    cases
}

fn ipv4_headers() -> Vec<Case> {
    let plain = Frame::tcp(V4, 40000, "198.51.100.80", 80);
    let mut cases = Vec::new();
    for words in 1..=10 {
        let name = format!("{words} words of options");
        let frame = plain.clone().ipv4_options(words);
        cases.push(frame.clone().case(&name, Verdict::RedirectService));
        // The port of a service in the options, another one in the TCP header.
        let decoy = frame.set(36, &80_u16.to_be_bytes()).ports(40000, 81);
        cases.push(decoy.case(&format!("{name}, decoy"), Verdict::PassNoMatch));
    }
    for words in 0..5 {
        let name = format!("IHL {words}");
        cases.push(plain.clone().set(14, &[0x40 | words]).case(&name, Verdict::PassMalformed));
    }
    for version in [0, 3, 5, 6, 15] {
        let name = format!("version {version}");
        let frame = plain.clone().set(14, &[version << 4 | 5]);
        cases.push(frame.case(&name, Verdict::PassMalformed));
    }
    let whole = plain.ip_length();
    for (length, verdict) in [
        (0, Verdict::PassMalformed),
        (19, Verdict::PassMalformed),
        (39, Verdict::PassMalformed),
        (40, Verdict::RedirectService),
        (whole, Verdict::RedirectService),
        (whole + 1, Verdict::PassTruncated),
        (u16::MAX, Verdict::PassTruncated),
    ] {
        let name = format!("total length {length}");
        cases.push(plain.clone().set(16, &length.to_be_bytes()).case(&name, verdict));
    }
    for protocol in [0, 1, 2, 4, 41, 47, 50, 58, 132, 255] {
        let name = format!("protocol {protocol}");
        cases.push(plain.clone().set(23, &[protocol]).case(&name, Verdict::PassOtherProtocol));
    }
    let short = Frame::udp(V4, 40000, "198.51.100.80", 53).set(16, &27_u16.to_be_bytes());
    cases.push(short.case("shorter than a UDP header", Verdict::PassMalformed));
    let ping = Frame::icmp_echo(V4, "198.51.100.80");
    cases.push(ping.case("ping", Verdict::PassOtherProtocol));
    cases
}

fn ipv4_fragments() -> Vec<Case> {
    let service = Frame::tcp(V4, 40000, "198.51.100.80", 80);
    let pool = Frame::tcp(V4_ORIGIN, 80, "192.0.2.16", 30000);
    let ssh = Frame::tcp(V4, 40000, "198.51.100.80", 22);
    let mut cases = Vec::new();
    for (name, field, verdict) in [
        ("don't fragment", 0x4000_u16, Verdict::RedirectService),
        ("reserved flag", 0x8000, Verdict::RedirectService),
        ("first fragment", 0x2000, Verdict::DropFragment),
        ("first fragment, every flag", 0xe000, Verdict::DropFragment),
        ("second fragment", 0x2001, Verdict::PassFragment),
        ("last fragment", 0x0001, Verdict::PassFragment),
        ("last possible fragment", 0x1fff, Verdict::PassFragment),
        ("fragment at 256 words", 0x0100, Verdict::PassFragment),
    ] {
        cases.push(service.clone().set(20, &field.to_be_bytes()).case(name, verdict));
    }
    let more = 0x2000_u16.to_be_bytes();
    let to_pool = pool.set(20, &more);
    cases.push(to_pool.case("first fragment to the pool", Verdict::DropFragment));
    let to_ssh = ssh.set(20, &more);
    cases.push(to_ssh.case("first fragment to ssh", Verdict::PassNoMatch));
    let tiny = service.clone().payload(0).set(20, &more).set(16, &28_u16.to_be_bytes());
    cases.push(tiny.cut(14 + 28).case("tiny first fragment", Verdict::DropFragment));
    let portless = service.clone().set(20, &more).set(16, &23_u16.to_be_bytes());
    cases.push(portless.case("first fragment without ports", Verdict::PassMalformed));
    let ping = Frame::icmp_echo(V4, "198.51.100.80").set(20, &more);
    cases.push(ping.case("first fragment of a ping", Verdict::PassOtherProtocol));
    let dead = Rules::standard().with_heartbeat_age_ns(None);
    let case = service.set(20, &more).case("first fragment, worker dead", Verdict::PassDead);
    cases.push(Case { rules: dead, ..case });
    cases
}

fn ipv6_headers() -> Vec<Case> {
    let plain = Frame::tcp(V6, 40000, "2001:db8:1::80", 80);
    let mut cases = Vec::new();
    for next in [0, 43, 44, 50, 51, 60, 135, 139, 140, 253, 254] {
        let name = format!("extension header {next}");
        cases.push(plain.clone().set(20, &[next]).case(&name, Verdict::PassExtensionHeader));
    }
    // Hop-by-hop options of eight octets, then a TCP header that would match.
    let hop_by_hop = plain.clone().set(20, &[0]).insert(54, &[6, 0, 1, 4, 0, 0, 0, 0]);
    cases.push(hop_by_hop.case("hop-by-hop options, then TCP", Verdict::PassExtensionHeader));
    let fragment = plain.clone().set(20, &[44]).insert(54, &[6, 0, 0, 1, 0, 0, 0, 9]);
    cases.push(fragment.case("first fragment", Verdict::PassExtensionHeader));
    for next in [1, 2, 4, 41, 47, 58, 59, 132, 255] {
        let name = format!("next header {next}");
        cases.push(plain.clone().set(20, &[next]).case(&name, Verdict::PassOtherProtocol));
    }
    for version in [0, 4, 5, 7, 15] {
        let name = format!("version {version}");
        cases.push(plain.clone().set(14, &[version << 4]).case(&name, Verdict::PassMalformed));
    }
    let whole = plain.ip_length();
    for (length, verdict) in [
        (0, Verdict::PassMalformed),
        (19, Verdict::PassMalformed),
        (20, Verdict::RedirectService),
        (whole, Verdict::RedirectService),
        (whole + 1, Verdict::PassTruncated),
        (u16::MAX, Verdict::PassTruncated),
    ] {
        let name = format!("payload length {length}");
        cases.push(plain.clone().set(18, &length.to_be_bytes()).case(&name, verdict));
    }
    let labelled = plain.set(14, &[0x6f, 0xff, 0xff, 0xff]);
    cases.push(labelled.case("traffic class and flow label", Verdict::RedirectService));
    let ping = Frame::icmp_echo(V6, "2001:db8:1::80");
    cases.push(ping.clone().case("ping", Verdict::PassOtherProtocol));
    let solicitation = ping.set(0, &[0x33, 0x33, 0xff, 0, 0, 0x80]).set(54, &[135]);
    cases.push(solicitation.case("neighbour solicitation", Verdict::PassNotUnicast));
    cases
}

fn blocked() -> Vec<Case> {
    let mut cases = Vec::new();
    for (source, verdict) in [
        ("203.0.113.0", Verdict::DropBlocked),
        ("203.0.113.255", Verdict::DropBlocked),
        ("203.0.112.255", Verdict::RedirectService),
        ("203.0.114.0", Verdict::RedirectService),
        ("10.1.2.3", Verdict::DropBlocked),
        ("10.1.2.2", Verdict::RedirectService),
    ] {
        let frame = Frame::tcp(source, 40000, "198.51.100.80", 80);
        cases.push(frame.case(&format!("from {source}"), verdict));
    }
    for (source, verdict) in [
        ("2001:db8:bad::", Verdict::DropBlocked),
        ("2001:db8:bad:ffff:ffff:ffff:ffff:ffff", Verdict::DropBlocked),
        ("2001:db8:bac:ffff::1", Verdict::RedirectService),
        ("2001:db8:bae::", Verdict::RedirectService),
        ("2001:db8:1::bad", Verdict::DropBlocked),
        ("2001:db8:1::bac", Verdict::RedirectService),
    ] {
        let frame = Frame::tcp(source, 40000, "2001:db8:1::80", 80);
        cases.push(frame.case(&format!("from {source}"), verdict));
    }
    let bad = "203.0.113.7";
    let worse = "2001:db8:bad::7";
    for (name, frame) in [
        ("ssh from a blocked prefix", Frame::tcp(bad, 40000, "198.51.100.1", 22)),
        ("ping from a blocked prefix", Frame::icmp_echo(bad, "198.51.100.80")),
        ("ping from a blocked prefix", Frame::icmp_echo(worse, "2001:db8:1::80")),
        ("fragment from a blocked prefix", Frame::tcp(bad, 1, bad, 1).set(20, &[0x20, 1])),
        ("options from a blocked prefix", Frame::tcp(bad, 1, bad, 1).ipv4_options(3)),
        ("extension from a blocked prefix", Frame::tcp(worse, 1, worse, 1).set(20, &[0])),
        ("cut behind a blocked address", Frame::tcp(bad, 1, bad, 1).cut(34)),
        ("cut behind a blocked address", Frame::tcp(worse, 1, worse, 1).cut(54)),
    ] {
        cases.push(frame.case(name, Verdict::DropBlocked));
    }
    let to_blocked = Frame::tcp(V4, 40000, bad, 80);
    cases.push(to_blocked.case("to a blocked prefix", Verdict::PassNoMatch));
    let broadcast = Frame::tcp(bad, 1, bad, 1).set(0, &[0xff; 6]);
    cases.push(broadcast.case("broadcast from a blocked prefix", Verdict::PassNotUnicast));

    let everything_v4 = Rules::standard().blocking("0.0.0.0", 0);
    let everything_v6 = Rules::standard().blocking("::", 0);
    let v4 = Frame::tcp(V4, 40000, "198.51.100.80", 80);
    let v6 = Frame::tcp(V6, 40000, "2001:db8:1::80", 80);
    for (frame, rules, verdict) in [
        (&v4, &everything_v4, Verdict::DropBlocked),
        (&v4, &everything_v6, Verdict::RedirectService),
        (&v6, &everything_v4, Verdict::RedirectService),
        (&v6, &everything_v6, Verdict::DropBlocked),
    ] {
        let case = frame.clone().case("a whole family blocked", verdict);
        cases.push(Case { rules: rules.clone(), ..case });
    }
    cases
}

fn dead_workers() -> Vec<Case> {
    let standard = Rules::standard();
    let stale = standard.clone().with_settings(Settings::enabled(MS_NS));
    let states = [
        ("worker never seen", standard.clone().with_heartbeat_age_ns(None), true),
        ("worker hangs", stale.clone().with_heartbeat_age_ns(Some(1000 * MS_NS)), true),
        ("worker was seen", standard.clone().with_heartbeat_age_ns(Some(MS_NS)), false),
    ];
    let mut cases = Vec::new();
    for (name, rules, is_dead) in states {
        for (frame, alive, dead) in [
            (Frame::tcp(V4, 1, "198.51.100.80", 80), Verdict::RedirectService, Verdict::PassDead),
            (Frame::tcp(V4, 1, "198.51.100.81", 80), Verdict::RedirectService, Verdict::DropDead),
            (Frame::tcp(V6, 1, "2001:db8:1::81", 80), Verdict::RedirectService, Verdict::DropDead),
            (Frame::tcp(V4, 1, "192.0.2.16", 30000), Verdict::RedirectPool, Verdict::PassDead),
            (Frame::tcp(V4, 1, "192.0.2.17", 30000), Verdict::RedirectPool, Verdict::DropDead),
            (Frame::udp(V6, 1, "2001:db8:2::11", 30000), Verdict::RedirectPool, Verdict::DropDead),
            (Frame::tcp(V4, 1, "198.51.100.81", 22), Verdict::PassNoMatch, Verdict::PassNoMatch),
            (Frame::tcp("10.1.2.3", 1, V4, 1), Verdict::DropBlocked, Verdict::DropBlocked),
        ] {
            let case = frame.case(name, if is_dead { dead } else { alive });
            cases.push(Case { rules: rules.clone(), ..case });
        }
    }
    let disabled = standard.with_settings(Settings::DISABLED);
    for frame in [
        Frame::tcp(V4, 1, "198.51.100.80", 80),
        Frame::tcp(V4, 1, "198.51.100.81", 80),
        Frame::tcp("10.1.2.3", 1, "198.51.100.80", 80),
        Frame::arp(),
    ] {
        let case = frame.case("switched off", Verdict::PassDisabled);
        cases.push(Case { rules: disabled.clone(), ..case });
    }
    cases
}

/// Frames that match, cut after each octet.
fn truncations() -> Vec<Case> {
    let mut cases = Vec::new();
    for (name, frame) in [
        ("TCP over IPv4", Frame::tcp(V4, 40000, "198.51.100.80", 80)),
        ("UDP over IPv4", Frame::udp(V4, 40000, "198.51.100.80", 53)),
        ("TCP over IPv6", Frame::tcp(V6, 40000, "2001:db8:1::80", 80)),
        ("UDP over IPv6", Frame::udp(V6, 40000, "2001:db8:1::80", 53)),
        ("options", Frame::tcp(V4, 40000, "198.51.100.80", 80).ipv4_options(10)),
        ("to the pool", Frame::tcp(V6_ORIGIN, 80, "2001:db8:2::10", 30000)),
    ] {
        for length in 0..frame.len() {
            let name = format!("{name}, first {length} octets");
            cases.push(frame.clone().cut(length).case(&name, Verdict::PassTruncated));
        }
    }
    cases
}

const V4: &str = "198.51.100.2";
const V6: &str = "2001:db8:1::2";
const V4_ORIGIN: &str = "192.0.2.80";
const V6_ORIGIN: &str = "2001:db8:2::80";
const MS_NS: u64 = 1_000_000;
