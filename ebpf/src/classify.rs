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

#[cfg(test)]
mod tests {
    use std::net::{IpAddr, SocketAddr};
    use std::vec::Vec;

    use etherparse::{Ethernet2Slice, Ipv4Slice, Ipv6HeaderSlice, TcpHeaderSlice, UdpHeaderSlice};
    use proptest::prelude::*;
    use proptest::sample::{Index, select};

    use super::*;
    use crate::map::MAX_QUEUES;
    use crate::table::{Rules, cases, mutate};
    use crate::verdict::Action;

    #[test]
    fn table() {
        for case in cases() {
            let decision = classify(&case.frame[..], &case.rules, 0, || Rules::NOW_NS);
            assert_eq!(decision.verdict, case.verdict, "{}: {:02x?}", case.name, case.frame);
        }
    }

    #[test]
    fn table_has_every_verdict_that_classify_gives() {
        let cases = cases();
        for verdict in Verdict::ALL {
            let is_later = matches!(verdict, Verdict::PassNoSocket | Verdict::DropNoSocket);
            assert_eq!(
                cases.iter().any(|case| case.verdict == verdict),
                !is_later,
                "{}",
                verdict.name()
            );
        }
    }

    #[test]
    fn without_socket_the_rule_decides() {
        for case in cases().into_iter().filter(|case| case.verdict.action() == Action::Redirect) {
            let decision = classify(&case.frame[..], &case.rules, 0, || Rules::NOW_NS);
            // What the same frame meets when the worker is dead says what its rule wants.
            let dead = Rules { heartbeat_age_ns: None, ..case.rules };
            let expected = match classify(&case.frame[..], &dead, 0, || Rules::NOW_NS).verdict {
                Verdict::PassDead => Verdict::PassNoSocket,
                Verdict::DropDead => Verdict::DropNoSocket,
                other => panic!("{}: {other:?}", case.name),
            };
            assert_eq!(decision.without_socket, expected, "{}", case.name);
        }
    }

    #[test]
    fn only_the_queue_with_a_heartbeat_is_alive() {
        let case = redirected();
        for queue in [1, MAX_QUEUES - 1, MAX_QUEUES, u32::MAX] {
            let decision = classify(&case[..], &Rules::standard(), queue, || Rules::NOW_NS);
            assert_eq!(decision.verdict, Verdict::PassDead, "queue {queue}");
        }
    }

    #[test]
    fn heartbeat_is_good_up_to_its_limit_and_when_ahead_of_the_clock() {
        let rules = Rules { settings: Settings::enabled(1000), ..Rules::standard() };
        let verdict = |now| classify(&redirected()[..], &rules, 0, || now).verdict;
        assert_eq!(verdict(Rules::NOW_NS - 1), Verdict::RedirectService);
        assert_eq!(verdict(Rules::NOW_NS + 1000), Verdict::RedirectService);
        assert_eq!(verdict(Rules::NOW_NS + 1001), Verdict::PassDead);
    }

    #[test]
    fn clock_is_read_for_matches_only() {
        for case in cases() {
            let mut reads = 0;
            let decision = classify(&case.frame[..], &case.rules, 0, || {
                reads += 1;
                Rules::NOW_NS
            });
            let may_read = matches!(
                decision.verdict,
                Verdict::RedirectService
                    | Verdict::RedirectPool
                    | Verdict::PassDead
                    | Verdict::DropDead
                    | Verdict::DropFragment
            );
            assert!(reads <= u32::from(may_read), "{}", case.name);
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 4000, ..ProptestConfig::default() })]

        #[test]
        fn any_bytes_get_a_verdict(frame in prop::collection::vec(any::<u8>(), 0..200)) {
            agrees_with_the_other_parser(&frame)?;
        }

        #[test]
        fn spoilt_frames_are_redirected_only_if_they_match(
            (frame, entropy) in (select(frames()), prop::collection::vec(any::<u32>(), 1..32))
        ) {
            let mut frame = frame;
            let mut entropy = entropy.into_iter().cycle();
            mutate(&mut frame, || entropy.next().unwrap());
            agrees_with_the_other_parser(&frame)?;
        }

        #[test]
        fn cut_frames_are_never_redirected(frame in select(frames()), at: Index) {
            let ip_length = match &frame[12..14] {
                [8, 0] => usize::from(u16::from_be_bytes([frame[16], frame[17]])),
                _ => 40 + usize::from(u16::from_be_bytes([frame[18], frame[19]])),
            };
            let cut = &frame[..at.index((14 + ip_length).min(frame.len()))];
            let decision = classify(cut, &Rules::standard(), 0, || Rules::NOW_NS);
            prop_assert_ne!(decision.verdict.action(), Action::Redirect);
        }
    }

    fn agrees_with_the_other_parser(frame: &[u8]) -> Result<(), TestCaseError> {
        let rules = Rules::standard();
        let decision = classify(frame, &rules, 0, || Rules::NOW_NS);
        let expected = parsed(frame).filter(|flow| !rules.is_blocked(flow.source)).and_then(
            |Flow { protocol, to, .. }| {
                let endpoint = Endpoint::new(protocol, to);
                if rules.services.contains_key(&endpoint) {
                    return Some(Verdict::RedirectService);
                }
                let rule = rules.pools.get(&PoolKey::new(protocol, to.ip()))?;
                (rule.first()..=rule.last()).contains(&to.port()).then_some(Verdict::RedirectPool)
            },
        );
        let redirected = Some(decision.verdict).filter(|v| v.action() == Action::Redirect);
        prop_assert_eq!(redirected, expected, "{:02x?}", frame);
        Ok(())
    }

    struct Flow {
        source: IpAddr,
        protocol: Protocol,
        to: SocketAddr,
    }

    /// The flow of an unfragmented frame to a unicast MAC address, as `etherparse` reads it.
    fn parsed(frame: &[u8]) -> Option<Flow> {
        let ethernet = Ethernet2Slice::from_slice_without_fcs(frame).ok()?;
        if ethernet.destination()[0] % 2 == 1 {
            return None;
        }
        let (source, to, protocol, payload) = match ethernet.ether_type().0 {
            0x0800 => {
                let ip = Ipv4Slice::from_slice(ethernet.payload_slice()).ok()?;
                let header = ip.header();
                if header.more_fragments() || header.fragments_offset().value() != 0 {
                    return None;
                }
                let (source, to) = (header.source_addr().into(), header.destination_addr().into());
                (source, to, header.protocol().0, ip.payload().payload)
            }
            0x86dd => {
                let ip = Ipv6HeaderSlice::from_slice(ethernet.payload_slice()).ok()?;
                let payload = &ethernet.payload_slice()[40..];
                let payload = payload.get(..usize::from(ip.payload_length()))?;
                let (source, to) = (ip.source_addr().into(), ip.destination_addr().into());
                (source, to, ip.next_header().0, payload)
            }
            _ => return None,
        };
        // The kernel's side does not look into the TCP header beyond the ports.
        let (protocol, port) = match protocol {
            6 if payload.len() >= 20 => {
                let mut header: [u8; 20] = *payload.first_chunk()?;
                header[12] = 5 << 4;
                (Protocol::Tcp, TcpHeaderSlice::from_slice(&header).ok()?.destination_port())
            }
            17 => (Protocol::Udp, UdpHeaderSlice::from_slice(payload).ok()?.destination_port()),
            _ => return None,
        };
        Some(Flow { source, protocol, to: SocketAddr::new(to, port) })
    }

    fn redirected() -> Vec<u8> {
        frames().swap_remove(0)
    }

    /// The frames of the table that match the standard rules.
    fn frames() -> Vec<Vec<u8>> {
        cases()
            .into_iter()
            .filter(|case| case.verdict.action() == Action::Redirect)
            .filter(|case| case.rules == Rules::standard())
            .map(|case| case.frame)
            .collect()
    }
}
