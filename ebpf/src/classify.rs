//! The decision about one frame.

use crate::map::{Endpoint, OnDead, PoolKey, PoolRule, Protocol, ServiceRule, Settings};
use crate::verdict::Verdict;

/// The bytes of a frame, from the destination MAC address on.
pub trait Packet {
    /// The `N` bytes at `offset`, if the frame has them.
    fn read<const N: usize>(&self, offset: usize) -> Option<[u8; N]>;

    /// Whether the frame has at least `length` bytes.
    fn holds(&self, length: usize) -> bool;
}

impl Packet for [u8] {
    fn read<const N: usize>(&self, offset: usize) -> Option<[u8; N]> {
        self.get(offset..)?.first_chunk().copied()
    }

    fn holds(&self, length: usize) -> bool {
        self.len() >= length
    }
}

/// The maps, as [`classify`] asks them.
pub trait Tables {
    /// The settings, if there are any.
    fn settings(&self) -> Option<Settings>;

    /// When the worker of `queue` last gave a sign of life, in ns of the clock of `now_ns`; 0 for
    /// never, `None` if there can be no such queue.
    fn heartbeat_ns(&self, queue: u32) -> Option<u64>;

    /// The rule of the service at `endpoint`.
    fn service(&self, endpoint: &Endpoint) -> Option<ServiceRule>;

    /// The rule of the pool address `key`.
    fn pool(&self, key: &PoolKey) -> Option<PoolRule>;

    /// Whether the source address lies in a blocked prefix.
    fn is_blocked_v4(&self, source: [u8; 4]) -> bool;

    /// Whether the source address lies in a blocked prefix.
    fn is_blocked_v6(&self, source: [u8; 16]) -> bool;
}

/// What is to happen to a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Decision {
    /// The verdict.
    pub verdict: Verdict,
    /// The verdict in its place if it is a redirect and the queue turns out to have no socket.
    pub without_socket: Verdict,
}

/// Decides about `packet`, which arrived on receive queue `queue`.
///
/// `now_ns` is asked only if the frame matches, and must be of the same clock as the heartbeats.
/// Steps, the first that decides ends it:
///
/// 1. switched off: pass;
/// 2. a group MAC address, a VLAN tag, not IP, an IP header that is cut short or contradicts
///    itself: pass;
/// 3. source address in a blocked prefix: drop;
/// 4. not TCP or UDP, IPv6 extension header, an IPv4 fragment without ports, a frame shorter than
///    its IP length: pass;
/// 5. neither the endpoint of a service nor in the range of a pool address: pass;
/// 6. worker of the queue dead: as the rule says;
/// 7. first fragment of an IPv4 datagram: drop;
/// 8. redirect.
#[inline(always)]
pub fn classify(
    packet: &(impl Packet + ?Sized),
    tables: &impl Tables,
    queue: u32,
    now_ns: impl FnOnce() -> u64,
) -> Decision {
    match steer(packet, tables, queue, now_ns) {
        Ok(decision) => decision,
        Err(verdict) => Decision { verdict, without_socket: verdict },
    }
}

#[inline(always)]
fn steer(
    packet: &(impl Packet + ?Sized),
    tables: &impl Tables,
    queue: u32,
    now_ns: impl FnOnce() -> u64,
) -> Result<Decision, Verdict> {
    let settings = tables.settings().ok_or(Verdict::PassDisabled)?;
    if !settings.is_enabled() {
        return Err(Verdict::PassDisabled);
    }
    let Destination { endpoint, is_fragment } = match ethertype(packet)? {
        IPV4 => ipv4(packet, tables)?,
        _ => ipv6(packet, tables)?,
    };
    let (verdict, on_dead) = matching(&endpoint, tables).ok_or(Verdict::PassNoMatch)?;
    if !is_alive(tables.heartbeat_ns(queue), settings, now_ns) {
        return Err(Verdict::dead(on_dead));
    }
    if is_fragment {
        return Err(Verdict::DropFragment);
    }
    Ok(Decision { verdict, without_socket: Verdict::no_socket(on_dead) })
}

/// Where a TCP segment or UDP datagram, or the first fragment of one, wants to go.
struct Destination {
    endpoint: Endpoint,
    is_fragment: bool,
}

/// [`IPV4`] or [`IPV6`], of a unicast frame.
#[inline(always)]
fn ethertype(packet: &(impl Packet + ?Sized)) -> Result<u16, Verdict> {
    let ethernet: [u8; ETHERNET] = packet.read(0).ok_or(Verdict::PassTruncated)?;
    if ethernet[0] & GROUP_ADDRESS != 0 {
        return Err(Verdict::PassNotUnicast);
    }
    match u16::from_be_bytes([ethernet[12], ethernet[13]]) {
        ethertype @ (IPV4 | IPV6) => Ok(ethertype),
        VLAN | SERVICE_VLAN | OLD_SERVICE_VLAN => Err(Verdict::PassVlan),
        _ => Err(Verdict::PassNotIp),
    }
}

/// RFC 791.
#[inline(always)]
fn ipv4(packet: &(impl Packet + ?Sized), tables: &impl Tables) -> Result<Destination, Verdict> {
    let header: [u8; 20] = packet.read(ETHERNET).ok_or(Verdict::PassTruncated)?;
    let header_length = usize::from(header[0] & 0x0f) * 4;
    if header[0] >> 4 != 4 || header_length < header.len() {
        return Err(Verdict::PassMalformed);
    }
    let [.., s0, s1, s2, s3, d0, d1, d2, d3] = header;
    if tables.is_blocked_v4([s0, s1, s2, s3]) {
        return Err(Verdict::DropBlocked);
    }
    let fragment = u16::from_be_bytes([header[6], header[7]]);
    if fragment & FRAGMENT_OFFSET != 0 {
        return Err(Verdict::PassFragment);
    }
    let is_fragment = fragment & MORE_FRAGMENTS != 0;
    let protocol = Protocol::from_number(header[9]).ok_or(Verdict::PassOtherProtocol)?;

    let total_length = usize::from(u16::from_be_bytes([header[2], header[3]]));
    let least = if is_fragment { PORTS } else { protocol.header_length() };
    if total_length < header_length + least {
        return Err(Verdict::PassMalformed);
    }
    let port = destination_port(packet, header_length, total_length)?;
    Ok(Destination { endpoint: Endpoint::v4(protocol, [d0, d1, d2, d3], port), is_fragment })
}

/// RFC 8200.
#[inline(always)]
fn ipv6(packet: &(impl Packet + ?Sized), tables: &impl Tables) -> Result<Destination, Verdict> {
    let header: [u8; 40] = packet.read(ETHERNET).ok_or(Verdict::PassTruncated)?;
    if header[0] >> 4 != 6 {
        return Err(Verdict::PassMalformed);
    }
    let source: [u8; 16] = packet.read(ETHERNET + 8).ok_or(Verdict::PassTruncated)?;
    if tables.is_blocked_v6(source) {
        return Err(Verdict::DropBlocked);
    }
    let next_header = header[6];
    if is_extension_header(next_header) {
        return Err(Verdict::PassExtensionHeader);
    }
    let protocol = Protocol::from_number(next_header).ok_or(Verdict::PassOtherProtocol)?;

    let payload_length = usize::from(u16::from_be_bytes([header[4], header[5]]));
    if payload_length < protocol.header_length() {
        return Err(Verdict::PassMalformed);
    }
    let port = destination_port(packet, header.len(), header.len() + payload_length)?;
    let destination: [u8; 16] = packet.read(ETHERNET + 24).ok_or(Verdict::PassTruncated)?;
    Ok(Destination { endpoint: Endpoint::v6(protocol, destination, port), is_fragment: false })
}

/// The destination port as it stands in the packet, if the whole IP packet is there.
#[inline(always)]
fn destination_port(
    packet: &(impl Packet + ?Sized),
    header_length: usize,
    total_length: usize,
) -> Result<[u8; 2], Verdict> {
    if !packet.holds(ETHERNET + total_length) {
        return Err(Verdict::PassTruncated);
    }
    packet.read(ETHERNET + header_length + 2).ok_or(Verdict::PassTruncated)
}

#[inline(always)]
fn matching(endpoint: &Endpoint, tables: &impl Tables) -> Option<(Verdict, OnDead)> {
    if let Some(rule) = tables.service(endpoint) {
        return Some((Verdict::RedirectService, rule.on_dead()));
    }
    let rule = tables.pool(&endpoint.pool_key())?;
    rule.contains(endpoint.port()).then(|| (Verdict::RedirectPool, rule.on_dead()))
}

#[inline(always)]
fn is_alive(heartbeat_ns: Option<u64>, settings: Settings, now_ns: impl FnOnce() -> u64) -> bool {
    match heartbeat_ns {
        None | Some(0) => false,
        // Another CPU's clock may be a little ahead.
        Some(beat) => now_ns().saturating_sub(beat) <= settings.heartbeat_limit_ns(),
    }
}

/// IANA's "IPv6 Extension Header Types".
#[inline(always)]
const fn is_extension_header(next_header: u8) -> bool {
    matches!(next_header, 0 | 43 | 44 | 50 | 51 | 60 | 135 | 139 | 140 | 253 | 254)
}

const ETHERNET: usize = 14;
const GROUP_ADDRESS: u8 = 0x01;
const IPV4: u16 = 0x0800;
const IPV6: u16 = 0x86dd;
const VLAN: u16 = 0x8100;
const SERVICE_VLAN: u16 = 0x88a8;
const OLD_SERVICE_VLAN: u16 = 0x9100;
const MORE_FRAGMENTS: u16 = 0x2000;
const FRAGMENT_OFFSET: u16 = 0x1fff;
const PORTS: usize = 4;
