//! Frames that nobody sends in good faith, on the real data path: each is counted, or left to the
//! kernel; those who are served meanwhile notice nothing, and no frame is lost.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod forge;

use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use forge::{ACK, ETHERNET, FIN, Forged, PSH, RST, Raw, SYN, URG, mend_header};
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use serde_json::Value;
use xtask::lab::address::{CLIENT, origin4, origin6, pool4, pool6, vip4, vip6};
use xtask::lab::{
    Behaviour, CLIENT_NIC, GATEWAY_CLIENT_NIC, GATEWAY_ORIGIN_NIC, GatewayConfig, Headgate, Lab,
    LabConfig, Namespace, ORIGIN_NIC, Origin, Transfer, four_pairs, pattern,
};
use xtask::process;

/// Port of the services.
const WEB: u16 = 80;
/// How often each kind of frame is sent.
const TIMES: u64 = 10;
/// Frames a second that a worker on a busy machine can take.
const RATE: usize = 40_000;

#[test]
#[ignore = "needs root: builds a network of namespaces"]
fn frames_that_make_no_sense_are_counted_or_left_to_the_kernel() {
    let lab = Lab::new(&LabConfig::default()).unwrap();
    let _origin = origin(&lab);
    let mut headgate = start(&lab, "");
    let client = Attacker::new(&lab, lab.client(), CLIENT_NIC, GATEWAY_CLIENT_NIC, 0);
    let server = Attacker::new(&lab, lab.origin(), ORIGIN_NIC, GATEWAY_ORIGIN_NIC, 1);

    for (attacker, from, to, ports) in [
        (&client, CLIENT[0], vip4(0), (40_000, WEB)),
        (&client, CLIENT[1], vip6(0), (40_000, WEB)),
        (&server, origin4(0), pool4(0), (8000, 30_000)),
        (&server, origin6(0), pool6(0), (8000, 30_000)),
    ] {
        let frame = attacker.frame(&Forged::syn(from, to, ports));
        let cut = (ETHERNET..frame.len()).map(|len| frame[..len].to_vec());
        let count = cut.len() as u64;
        attacker.counted(&headgate, "every truncation of a SYN", "pass-truncated", count, cut);
    }
    for Case { name, counter, frame } in cases_v4(&client).into_iter().chain(cases_v6(&client)) {
        let frames = (0..TIMES).map(|_| frame.clone());
        client.counted(&headgate, name, counter, TIMES, frames);
    }
    for (name, counter, flags) in [
        ("a SYN for a pool address", "unknown-flow", SYN),
        ("an ACK for a pool address", "unknown-flow", ACK),
        ("a RST for a pool address", "stray-reset", RST),
    ] {
        for (from, to) in [(origin4(0), pool4(3)), (origin6(0), pool6(3))] {
            let forged = Forged { flags, ..Forged::syn(from, to, (8000, 20_000)) };
            let frames = (0..TIMES).map(|_| server.frame(&forged));
            server.counted(&headgate, name, counter, TIMES, frames);
        }
    }
    assert_eq!(headgate.event("sessions-opened").unwrap(), 0);
    well_and_whole(&lab, &mut headgate);
}

#[test]
#[ignore = "needs root: builds a network of namespaces"]
fn a_flood_of_syns_from_everywhere_is_bounded_and_clients_are_served() {
    // The first limit is never reached; the second one nearly all the time.
    for (limits, limit, patience) in
        [("", 65_536, 5), ("max-half-open = 2000\nhandshake = \"2s\"\n", 2000, 20)]
    {
        let lab = Lab::new(&LabConfig::default()).unwrap();
        let _origin = origin(&lab);
        let mut headgate = start(&lab, limits);
        let attacker = Attacker::new(&lab, lab.client(), CLIENT_NIC, GATEWAY_CLIENT_NIC, 0);
        served(&lab, 1, patience);
        let before = memory(&headgate);
        let over = AtomicBool::new(false);
        let (mut most, mut transfers) = (0, 0);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                attacker.raw.send_all(flood(&attacker, 20_000), 7000).unwrap();
                over.store(true, Ordering::Relaxed);
            });
            while !over.load(Ordering::Relaxed) {
                served(&lab, transfers, patience);
                transfers += 1;
                let status = headgate.status().unwrap();
                most = most.max(figures(&status, "half_open").into_iter().max().unwrap());
            }
        });
        let status = headgate.status().unwrap();
        assert!(most > 1000, "that was no flood, {most} half open: {status:#}");
        assert!(most <= limit, "{most} half open, at most {limit}: {status:#}");
        assert_eq!(count(&status, 0, "half-open-full") > 0, limit == 2000, "{status:#}");
        assert!(transfers > 0);
        let grown = memory(&headgate).saturating_sub(before);
        assert!(grown < 64 << 10, "the flood cost {grown} KiB");
        // Workers report twenty times a second.
        let opened = || headgate.event("sessions-opened").is_ok_and(|count| count > transfers);
        process::wait_for(Duration::from_secs(2), || opened().then_some(())).unwrap();
        let opened = headgate.event("sessions-opened").unwrap();
        assert_eq!(opened, transfers + 1, "somebody got a session without a handshake: {status:#}");
        well_and_whole(&lab, &mut headgate);
    }
}

#[test]
#[ignore = "needs root: builds a network of namespaces"]
fn blind_attacks_on_a_running_download_do_not_change_it() {
    // Fifteen seconds at the rate below: several times what the storm takes on an idle machine.
    const LENGTH: u64 = 30_000_000;
    let lab = Lab::new(&LabConfig::default()).unwrap();
    let origin = origin(&lab);
    for (round, (client, vip)) in
        [(CLIENT[0], vip4(0)), (CLIENT[1], vip6(1))].into_iter().enumerate()
    {
        let mut headgate = start(&lab, "");
        // The client's kernel lets a port rest.
        let (own, earlier) = (41_000 + round as u16, origin.peers().len());
        let here = Attacker::new(&lab, lab.client(), CLIENT_NIC, GATEWAY_CLIENT_NIC, 0);
        let there = Attacker::new(&lab, lab.origin(), ORIGIN_NIC, GATEWAY_ORIGIN_NIC, 1);
        std::thread::scope(|scope| {
            let download = scope.spawn(|| {
                let url = format!("http://{}/bytes/{LENGTH}?seed=3", SocketAddr::new(vip, WEB));
                let port = own.to_string();
                let arguments = ["--local-port", &port, "--limit-rate", "2M"];
                Transfer::with(lab.client(), &arguments, &url, Duration::from_secs(60)).unwrap()
            });
            let running = || origin.peers().get(earlier).copied();
            let leg = process::wait_for(Duration::from_secs(5), running).unwrap();
            let server = if leg.is_ipv4() { origin4(0) } else { origin6(0) };
            let towards_client = Forged::syn(client, vip, (own, WEB));
            let towards_origin = Forged::syn(server, leg.ip(), (8000, leg.port()));
            let mut rng = SmallRng::seed_from_u64(round as u64);
            std::thread::scope(|both| {
                for (attacker, target) in [(&here, towards_client), (&there, towards_origin)] {
                    let frames = storm(attacker, &target, &mut rng);
                    both.spawn(move || attacker.raw.send_all(frames, RATE).unwrap());
                }
            });
            let early = download.is_finished();
            let done = download.join().unwrap().success();
            let status = headgate.status().unwrap();
            let done =
                done.unwrap_or_else(|error| panic!("{error}\n{}\n{status:#}", headgate.log()));
            assert!(!early, "the storm came too late");
            assert_eq!((done.length, done.sha256), (LENGTH, pattern::sha256(LENGTH, 3)));
            for (counter, least) in
                [("bad-reset", 60_000), ("bad-ack", 1000), ("unexpected-syn", 500)]
            {
                let counted = count(&status, 0, counter);
                assert!(counted >= least, "{counted} {counter}, not {least}: {status:#}");
            }
        });
        well_and_whole(&lab, &mut headgate);
    }
}

/// Segments that would end or spoil a connection if they were believed. The attacker knows the
/// connection's addresses and ports, and none of its sequence numbers.
fn storm(attacker: &Attacker, target: &Forged, rng: &mut SmallRng) -> Vec<Vec<u8>> {
    let mut frames = Vec::new();
    let mut add = |flags, seq, ack, payload: &[u8]| {
        let (options, payload) = (Vec::new(), payload.to_vec());
        frames.push(attacker.frame(&Forged {
            flags,
            seq,
            ack,
            options,
            payload,
            ..target.clone()
        }));
    };
    // One of these lies in the window, wherever that is.
    let start: u32 = rng.random();
    for step in 0..=u32::MAX / 65_000 {
        add(RST, start.wrapping_add(step * 65_000), 0, b"");
    }
    for _ in 0..1000 {
        add(RST | ACK, rng.random(), rng.random(), b"");
        add(SYN, rng.random(), 0, b"");
        add(SYN | ACK, rng.random(), rng.random(), b"");
        add(FIN | ACK, rng.random(), rng.random(), b"");
        add(ACK | PSH, rng.random(), rng.random(), b"HTTP/1.1 500 no\r\n\r\n");
    }
    for _ in 0..20_000 {
        add(ACK, rng.random(), rng.random(), b"");
    }
    frames
}

/// SYNs of both families, from addresses and ports all over.
fn flood(attacker: &Attacker, count: usize) -> impl Iterator<Item = Vec<u8>> + '_ {
    let mut rng = SmallRng::seed_from_u64(11);
    (0..count).map(move |number| {
        let (from, to): (IpAddr, IpAddr) = match number % 2 {
            0 => (
                [198, 18 | rng.random::<u8>() & 1, rng.random(), rng.random_range(1..255)].into(),
                vip4(0),
            ),
            _ => ([0x2001, 0xdb8, 0xf, 0, rng.random(), rng.random(), 0, 1].into(), vip6(0)),
        };
        let ports = (rng.random_range(1024..=65_535), WEB);
        attacker.frame(&Forged { seq: rng.random(), ..Forged::syn(from, to, ports) })
    })
}

/// A frame, and what counts it.
struct Case {
    name: &'static str,
    counter: &'static str,
    frame: Vec<u8>,
}

fn cases_v4(attacker: &Attacker) -> Vec<Case> {
    let syn = Forged::syn(CLIENT[0], vip4(0), (40_001, WEB));
    let mut cases = cases_tcp(attacker, &syn);
    let from = |source: [u8; 4]| Forged { source: source.into(), ..syn.clone() };
    for (name, counter, forged) in [
        (
            "a record route option",
            "handshakes-begun",
            Forged { ip_options: vec![7, 7, 4, 0, 0, 0, 0, 0], ..port(&syn, 40_101) },
        ),
        (
            "forty bytes of options",
            "handshakes-begun",
            Forged { ip_options: vec![1; 40], ..port(&syn, 40_102) },
        ),
        ("a first fragment", "drop-fragment", Forged { fragment: 0x2000, ..syn.clone() }),
        ("a later fragment", "pass-fragment", Forged { fragment: 0x2001, ..syn.clone() }),
        ("the last fragment", "pass-fragment", Forged { fragment: 0x1fff, ..syn.clone() }),
        ("source 0.0.0.0", "not-unicast", from([0; 4])),
        ("a broadcast source", "not-unicast", from([255; 4])),
        ("a multicast source", "not-unicast", from([224, 0, 0, 1])),
    ] {
        cases.push(Case { name, counter, frame: attacker.frame(&forged) });
    }
    let frame = attacker.frame(&syn);
    // Offsets in the IPv4 header, RFC 791 section 3.1.
    for (name, counter, at, byte) in [
        ("IP version 5", "pass-malformed", 0, 0x55),
        ("a header of 16 bytes", "pass-malformed", 0, 0x44),
        ("a header longer than the packet", "pass-malformed", 0, 0x4f),
        ("a length without a TCP header", "pass-malformed", 3, 19),
        ("a length that cuts TCP's ports off", "pass-malformed", 3, 22),
        ("a length that cuts the TCP header", "pass-malformed", 3, 39),
        ("a length beyond the frame", "pass-truncated", 3, 200),
        ("UDP", "pass-no-match", 9, 17),
        ("ICMP", "pass-other-protocol", 9, 1),
        ("IP in IP", "pass-other-protocol", 9, 4),
    ] {
        let mut frame = frame.clone();
        frame[ETHERNET + at] = byte;
        mend_header(&mut frame);
        cases.push(Case { name, counter, frame });
    }
    let mut spoilt = frame.clone();
    spoilt[ETHERNET + 10] ^= 0x40;
    cases.push(Case { name: "a wrong header checksum", counter: "bad-ip-header", frame: spoilt });
    let mut tagged = frame.clone();
    tagged.splice(12..12, [0x81, 0, 0, 7]);
    cases.push(Case { name: "a VLAN tag", counter: "pass-vlan", frame: tagged });
    let mut other = frame.clone();
    other[12..14].copy_from_slice(&[0x88, 0xcc]);
    cases.push(Case { name: "another ethertype", counter: "pass-not-ip", frame: other });
    let mut broadcast = frame;
    broadcast[..6].fill(0xff);
    cases.push(Case { name: "a broadcast frame", counter: "pass-not-unicast", frame: broadcast });
    cases
}

fn cases_v6(attacker: &Attacker) -> Vec<Case> {
    let syn = Forged::syn(CLIENT[1], vip6(0), (40_002, WEB));
    let mut cases = cases_tcp(attacker, &syn);
    let from = |source: [u16; 8]| Forged { source: source.into(), ..syn.clone() };
    let after =
        |next, bytes: &[u8]| Forged { extension: Some((next, bytes.to_vec())), ..syn.clone() };
    // Numbers and forms of the headers: RFC 8200 section 4. TCP is number 6.
    for (name, counter, forged) in [
        ("hop-by-hop options", "pass-extension-header", after(0, &[6, 0, 1, 4, 0, 0, 0, 0])),
        ("destination options", "pass-extension-header", after(60, &[6, 0, 1, 4, 0, 0, 0, 0])),
        ("a routing header", "pass-extension-header", after(43, &[6, 0, 0, 0, 0, 0, 0, 0])),
        ("a fragment", "pass-extension-header", after(44, &[6, 0, 0, 1, 0, 0, 0, 9])),
        ("an atomic fragment", "pass-extension-header", after(44, &[6, 0, 0, 0, 0, 0, 0, 9])),
        (
            "a header longer than the packet",
            "pass-extension-header",
            after(60, &[6, 255, 1, 4, 0, 0, 0, 0]),
        ),
        ("an unspecified source", "not-unicast", from([0; 8])),
        ("a multicast source", "not-unicast", from([0xff02, 0, 0, 0, 0, 0, 0, 1])),
    ] {
        cases.push(Case { name, counter, frame: attacker.frame(&forged) });
    }
    let frame = attacker.frame(&syn);
    // Offsets in the IPv6 header, RFC 8200 section 3.
    for (name, counter, at, byte) in [
        ("IP version 4", "pass-malformed", 0, 0x40),
        ("a length beyond the frame", "pass-truncated", 5, 200),
        ("a length that cuts TCP's ports off", "pass-malformed", 5, 3),
        ("a length that cuts the TCP header", "pass-malformed", 5, 19),
        ("no next header", "pass-other-protocol", 6, 59),
        ("ICMP", "pass-other-protocol", 6, 1),
    ] {
        let mut frame = frame.clone();
        frame[ETHERNET + at] = byte;
        cases.push(Case { name, counter, frame });
    }
    cases
}

/// What both families have: faults in TCP.
fn cases_tcp(attacker: &Attacker, syn: &Forged) -> Vec<Case> {
    let flags = |flags| Forged { flags, ..syn.clone() };
    let options = |options: [u8; 4]| Forged { options: options.to_vec(), ..syn.clone() };
    let offset = |words| Forged { data_offset: Some(words), ..syn.clone() };
    let itself = Forged { source: syn.destination, ports: (WEB, WEB), ..syn.clone() };
    [
        ("a wrong checksum", "bad-tcp-checksum", Forged { bad_checksum: true, ..syn.clone() }),
        ("SYN and FIN", "bad-tcp-header", flags(SYN | FIN)),
        ("SYN and RST", "bad-tcp-header", flags(SYN | RST)),
        ("FIN and RST", "bad-tcp-header", flags(FIN | RST)),
        ("no flag", "bad-tcp-header", flags(0)),
        ("every flag", "bad-tcp-header", flags(0x3f)),
        ("FIN, PSH and URG", "unknown-flow", flags(FIN | PSH | URG)),
        ("a stray ACK", "unknown-flow", flags(ACK)),
        ("a stray SYN-ACK", "unknown-flow", flags(SYN | ACK)),
        ("a stray FIN", "unknown-flow", flags(FIN | ACK)),
        ("a stray RST", "stray-reset", flags(RST)),
        ("port 0", "bad-tcp-header", port(syn, 0)),
        ("a packet to itself", "bad-tcp-header", itself),
        ("a header of 16 bytes", "bad-tcp-header", offset(4)),
        ("no header at all", "bad-tcp-header", offset(0)),
        ("a header longer than the packet", "bad-tcp-header", offset(15)),
        ("an option of length 0", "bad-tcp-header", options([2, 0, 0, 0])),
        ("an option of length 1", "bad-tcp-header", options([3, 1, 0, 0])),
        ("an option longer than the header", "bad-tcp-header", options([1, 1, 2, 4])),
        (
            "an unknown option",
            "handshakes-begun",
            Forged { options: vec![253, 4, 9, 9], ..port(syn, 40_103) },
        ),
        (
            "data on a SYN",
            "handshakes-begun",
            Forged { payload: vec![b'x'; 1000], ..port(syn, 40_104) },
        ),
    ]
    .map(|(name, counter, forged)| Case { name, counter, frame: attacker.frame(&forged) })
    .into()
}

fn port(forged: &Forged, source: u16) -> Forged {
    Forged { ports: (source, WEB), ..forged.clone() }
}

/// Somebody on one side of the gateway who sends what he likes.
struct Attacker {
    raw: Raw,
    stations: ([u8; 6], [u8; 6]),
    /// The gateway's NIC on this side, by its place in the status.
    nic: usize,
}

impl Attacker {
    fn new(lab: &Lab, at: &Namespace, from: &str, to: &str, nic: usize) -> Attacker {
        let (raw, own) =
            at.enter(|| (Raw::open(from).unwrap(), forge::mac(from).unwrap())).unwrap();
        let gateway = lab.gateway().enter(|| forge::mac(to).unwrap()).unwrap();
        Attacker { raw, stations: (own, gateway), nic }
    }

    fn frame(&self, forged: &Forged) -> Vec<u8> {
        forged.frame(self.stations)
    }

    /// Sends frames: each moves the counter, or all of them together do once where a repetition of
    /// the same SYN is no new handshake.
    fn counted(
        &self,
        headgate: &Headgate,
        name: &str,
        counter: &str,
        times: u64,
        frames: impl Iterator<Item = Vec<u8>>,
    ) {
        let wanted = if counter == "handshakes-begun" { 1 } else { times };
        let before = headgate.status().unwrap();
        self.raw.send_all(frames, RATE).unwrap();
        let moved = || {
            let now = headgate.status().unwrap();
            (count(&now, self.nic, counter) >= count(&before, self.nic, counter) + wanted)
                .then_some(())
        };
        if process::wait_for(Duration::from_secs(3), moved).is_none() {
            let after = headgate.status().unwrap();
            panic!(
                "{name} ({:?}) does not count as {counter}, but\n{}",
                self.stations,
                moves(&before, &after)
            );
        }
    }
}

/// Everything that differs between two states of the counters.
fn moves(before: &Value, after: &Value) -> String {
    let mut text = String::new();
    for place in ["/drops", "/tcp", "/events", "/nics/0/verdicts", "/nics/1/verdicts"] {
        for (name, value) in after.pointer(place).unwrap().as_object().unwrap() {
            let old = &before.pointer(place).unwrap()[name];
            if old != value {
                text += &format!("{place}/{name}: {old} -> {value}\n");
            }
        }
    }
    text
}

/// A counter of the status: a verdict of a NIC's XDP program, a drop, or one of TCP's.
fn count(status: &Value, nic: usize, counter: &str) -> u64 {
    let groups = [&status["nics"][nic]["verdicts"], &status["drops"], &status["tcp"]];
    let found = groups.iter().find_map(|group| group[counter].as_u64());
    found.unwrap_or_else(|| panic!("no counter {counter} in {status:#}"))
}

fn figures(status: &Value, figure: &str) -> Vec<u64> {
    let workers = status["workers"].as_array().unwrap();
    workers.iter().map(|worker| worker[figure].as_u64().unwrap()).collect()
}

/// Resident memory of the gateway in KiB.
fn memory(headgate: &Headgate) -> u64 {
    let text = std::fs::read_to_string(format!("/proc/{}/status", headgate.pid())).unwrap();
    let line = text.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

fn start(lab: &Lab, limits: &str) -> Headgate {
    let mut config = GatewayConfig::new(lab.queues(), four_pairs(8000));
    config.extra = format!("[tcp]\n{limits}");
    lab.headgate(&config.render()).unwrap()
}

fn origin(lab: &Lab) -> Origin {
    let at = [SocketAddr::new(origin4(0), 8000), SocketAddr::new(origin6(0), 8000)];
    Origin::start(lab.origin(), &at, Behaviour::Serve).unwrap()
}

fn served(lab: &Lab, seed: u64, seconds: u64) {
    let at = SocketAddr::new(if seed.is_multiple_of(2) { vip4(0) } else { vip6(0) }, WEB);
    let url = format!("http://{at}/bytes/100000?seed={seed}");
    let got = Transfer::get(lab.client(), &url, Duration::from_secs(seconds)).unwrap();
    assert_eq!(got.success().unwrap().sha256, pattern::sha256(100_000, seed));
}

/// New clients are served, every frame is accounted for, and it ends as it should.
fn well_and_whole(lab: &Lab, headgate: &mut Headgate) {
    for seed in 0..4 {
        served(lab, seed, 20);
    }
    headgate.settle(Duration::from_secs(20)).unwrap();
    headgate.stop(Duration::from_secs(15)).unwrap();
    assert!(!headgate.log().contains("panicked"), "{}", headgate.log());
}
