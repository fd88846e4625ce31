//! What fuzzers and corpora are run through: each target takes any bytes, and panics if the code
//! under test breaks a promise. All are deterministic.
//!
//! `tests/fuzz` calls them from libFuzzer (`cargo xtask fuzz`), `tests/fuzz_corpus.rs` from
//! ordinary tests.

mod packet;
mod plane;
mod script;

pub use self::packet::mend;

use std::{
    net::{IpAddr, SocketAddr},
    sync::{Arc, LazyLock},
};

use arc_swap::ArcSwap;
use headgate::{
    config::{self, Config},
    neighbours::Neighbours,
    origin::{Family, Origin},
    pool::{Pool, Release, Share},
    routes::Routes,
    setup::{NicFacts, Secrets, Setup, Shared},
    waker::Waker,
};
use headgate_ebpf::{
    Endpoint, PoolKey, Protocol, Settings, Tables, Verdict, classify as decide, table::Rules,
};
use rand::{SeedableRng, rngs::SmallRng};
use userspace_tcp::{Checksums, Instant, Malformed, Segment};

pub use plane::plane;

/// The targets' names, in `tests/fuzz` too.
pub const TARGETS: [&str; 4] = ["classify", "config", "plane", "segment"];

/// [`Segment::parse`] on an IP packet, as it is and with its checksums mended: what it says about
/// the packet lies within the packet, and verifying refuses nothing but wrong checksums.
pub fn segment(data: &[u8]) {
    let trusted = Segment::parse(data, Checksums::Trust);
    let verified = Segment::parse(data, Checksums::Verify);
    if let Ok(segment) = &trusted {
        assert_within(segment, data);
    }
    let is_checksum = matches!(verified, Err(Malformed::HeaderChecksum | Malformed::TcpChecksum));
    assert!(is_checksum || verified == trusted, "{verified:?}, {trusted:?}");

    let mut mended = data.to_vec();
    packet::mend(&mut mended);
    if let Ok(trusted) = Segment::parse(&mended, Checksums::Trust) {
        assert_eq!(Segment::parse(&mended, Checksums::Verify), Ok(trusted));
        // What is behind the packet is not part of it.
        let alone = &mended[..trusted.packet_len()];
        assert_eq!(Segment::parse(alone, Checksums::Verify), Ok(trusted));
        for cut in [1, 4, 20] {
            let cut = &alone[..alone.len() - cut];
            assert_eq!(Segment::parse(cut, Checksums::Trust), Err(Malformed::Truncated));
        }
    }
}

/// [`Config::parse`]: whatever is wrong is said in one printable line each, and what is accepted
/// can be started.
pub fn config(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    match Config::parse(text) {
        Ok(config) => assert_startable(&config),
        Err(errors) => {
            assert!(!errors.is_empty(), "refused without a reason");
            for error in errors {
                let line = error.to_string();
                assert!(line.len() > error.file.len() + 2, "nothing said");
                assert!(!line.contains(char::is_control), "{line:?}");
                let lines = text.split('\n').count() as u32;
                assert!(error.place.line <= lines + 1, "{line} in a text of {lines} lines");
            }
        }
    }
}

/// [`headgate_ebpf::classify`] on a frame behind two bytes that choose settings and queue: it
/// redirects what user space understands and somebody asked for, and nothing else.
pub fn classify(data: &[u8]) {
    let [choice, queue, frame @ ..] = data else { return };
    let age = [Some(0), Some(1), Some(2_000), None][usize::from(choice >> 1 & 3)];
    let settings = if choice & 1 == 0 { Settings::enabled(1_000) } else { Settings::default() };
    let rules = Rules { settings, heartbeat_age_ns: age, ..RULES.clone() };
    let queue = u32::from(queue >> 6);
    let decision = decide(frame, &rules, queue, || Rules::NOW_NS);

    let verdict = decision.verdict;
    let is_redirect = matches!(verdict, Verdict::RedirectService | Verdict::RedirectPool);
    assert!(is_redirect || decision.without_socket == verdict);
    let is_alive = choice & 1 == 0 && age.is_some_and(|age| age <= 1_000) && queue == 0;
    assert!(is_alive || !is_redirect, "{verdict:?}");

    let parsed = frame.get(14..).map(|packet| Segment::parse(packet, Checksums::Trust));
    if is_redirect && is_tcp(frame) {
        // User space may dislike what is in the TCP header, but not how it got there.
        let disagrees = matches!(
            parsed,
            None | Some(Err(Malformed::Fragment
                | Malformed::HeaderLength
                | Malformed::NotTcp
                | Malformed::Truncated
                | Malformed::Version))
        );
        assert!(!disagrees, "{verdict:?}, {parsed:?}");
    }
    if let Some(Ok(segment)) = parsed
        && is_alive
        && is_unicast_ip(frame)
    {
        assert_eq!(verdict, expected(&rules, &segment));
    }
}

fn assert_within(segment: &Segment, packet: &[u8]) {
    assert!(segment.packet_len() <= packet.len());
    let payload = packet.get(segment.payload()).expect("the payload lies within the packet");
    assert_eq!(payload.len() as u32, segment.payload_len());
    assert!(segment.payload().end == segment.packet_len());
    let controls = u32::from(segment.flags.syn()) + u32::from(segment.flags.fin());
    assert_eq!(segment.end().wrapping_sub(segment.seq), segment.payload_len() + controls);
    assert!(segment.tuple.is_usable() && segment.mss != Some(0));
    assert!(segment.window_scale.is_none_or(|shift| shift <= 14));
}

fn assert_startable(config: &Config) {
    let facts = NicFacts { ifindex: 1, mac: [2, 0, 0, 0, 0, 1], mtu: 1500 };
    let facts = vec![facts; config.nics.len()];
    let setup = Setup::new(config, &facts, 3);
    for (index, service) in config.services.iter().enumerate() {
        let pool = &config.pools[service.pool];
        let origin = &config.origins[service.origin];
        for listen in &service.listen {
            assert_eq!(setup.service_at(&listen.address), Some(index as u32));
            let mut origin = Origin::new(origin.addresses.clone(), origin.family);
            let mut attempt = origin.attempt(Family::of(listen.address.ip()));
            let address = attempt.next(&origin).expect("every client has an origin");
            let mut family = pool.addresses.iter().filter(|a| a.is_ipv4() == address.is_ipv4());
            let source = family.next().expect("the pool has the origin's family");
            for port in [pool.ports.first(), pool.ports.last()] {
                assert!(setup.owner_of(&(*source, port).into()).is_some_and(|owner| owner < 3));
            }
        }
    }
    config.pools.iter().filter(|pool| pool.addresses.len() <= 512).for_each(assert_leases);
    if config.tcp.max_connections.max(config.tcp.max_half_open) <= 4096 {
        let wakers = vec![Waker::new().expect("an eventfd")];
        let shared = Shared::new(config, &facts, wakers, [7; 32]);
        let neighbours = Neighbours::fixed(Arc::new(ArcSwap::from_pointee(Routes::default())));
        let secrets = Secrets { stack: [1; 32], seed: [2; 32] };
        let plane = shared.plane(config, 0, neighbours, secrets, Instant::from_secs(1000));
        plane.expect("what is accepted can be started");
    }
}

fn assert_leases(pool: &config::Pool) {
    let mut rng = SmallRng::seed_from_u64(1);
    let mut leasing = Pool::new(&Share {
        addresses: &pool.addresses,
        ports: pool.ports,
        method: pool.method,
        max_pairs: pool.max_pairs,
        time_wait: userspace_tcp::Duration::from_secs(60),
        worker: 0,
        workers: 1,
        secret: [3; 16],
    });
    for address in pool.addresses.iter().take(4) {
        let origin = if address.is_ipv4() { "203.0.113.9:80" } else { "[2001:db8:9::9]:80" };
        let origin = origin.parse().expect("an address");
        let now = Instant::from_secs(1000);
        let lease = leasing.lease(now, *address, origin, &mut rng).expect("a fresh pool has ports");
        assert!(pool.addresses.contains(&lease.local().ip()));
        leasing.release(lease, now, Release::Free);
    }
}

fn is_tcp(frame: &[u8]) -> bool {
    frame.get(if frame[12] == 8 { 23 } else { 20 }) == Some(&6)
}

/// Whether the frame goes to one station, and its EtherType is right.
fn is_unicast_ip(frame: &[u8]) -> bool {
    let ethertype = match frame[14] >> 4 {
        4 => [0x08, 0x00],
        _ => [0x86, 0xdd],
    };
    frame[0] & 1 == 0 && frame[12..14] == ethertype
}

/// The verdict about a segment in a good frame, while the worker is alive.
fn expected(rules: &Rules, segment: &Segment) -> Verdict {
    let is_blocked = match segment.tuple.remote.addr {
        IpAddr::V4(source) => rules.is_blocked_v4(source.octets()),
        IpAddr::V6(source) => rules.is_blocked_v6(source.octets()),
    };
    let local = SocketAddr::from(segment.tuple.local);
    let pool = rules.pools.get(&PoolKey::new(Protocol::Tcp, local.ip()));
    if is_blocked {
        Verdict::DropBlocked
    } else if rules.services.contains_key(&Endpoint::new(Protocol::Tcp, local)) {
        Verdict::RedirectService
    } else if pool.is_some_and(|pool| (pool.first()..=pool.last()).contains(&local.port())) {
        Verdict::RedirectPool
    } else {
        Verdict::PassNoMatch
    }
}

static RULES: LazyLock<Rules> = LazyLock::new(Rules::standard);
