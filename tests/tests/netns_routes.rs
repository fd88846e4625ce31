//! The mirror of the kernel's routes and neighbours, in namespaces of its own.

#![expect(clippy::unwrap_used, reason = "a test")]

use std::fs::File;
use std::net::IpAddr;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use headgate::netlink::{Mirror, NetlinkError};
use headgate::routes::{NextHop, Routes};
use nix::sched::{CloneFlags, setns};

#[test]
#[ignore = "needs root: makes network namespaces"]
fn the_mirror_follows_the_kernel() {
    let net = Net::new();
    let mirror = net.enter(Mirror::start);

    // Connected, nobody asked yet.
    let hop = eventually(&mirror, "192.0.2.2", |hop| matches!(hop, NextHop::Unresolved { .. }));
    let NextHop::Unresolved { ifindex, gateway: gateway4 } = hop else { unreachable!() };
    assert_eq!(gateway4, ip("192.0.2.2"));
    assert_eq!(mirror.routes().load().link(ifindex).unwrap().name, "a0");
    assert_eq!(next_hop(&mirror, "192.0.2.1"), NextHop::Local);
    assert_eq!(next_hop(&mirror, "8.8.8.8"), NextHop::NoRoute);

    // The kernel resolves what it is asked for, in both families.
    let peer_mac = net.mac("b", "b0");
    for (peer, destination) in [("192.0.2.2", "203.0.113.9"), ("2001:db8::2", "2001:db8:9::9")] {
        net.ip("a", &["route", "add", "default", "via", peer]);
        eventually(
            &mirror,
            destination,
            |hop| matches!(hop, NextHop::Unresolved { gateway, .. } if gateway == ip(peer)),
        );
        mirror.resolver().ask(ifindex, ip(peer));
        let hop = eventually(&mirror, destination, |hop| matches!(hop, NextHop::Ready { .. }));
        let NextHop::Ready { mac, source_mac, .. } = hop else { unreachable!() };
        assert_eq!((mac, source_mac), (peer_mac, net.mac("a", "a0")));
    }

    // A longer prefix, and its end.
    net.ip("a", &["route", "add", "blackhole", "203.0.113.0/24"]);
    eventually(&mirror, "203.0.113.9", |hop| hop == NextHop::NoRoute);
    net.ip("a", &["route", "del", "blackhole", "203.0.113.0/24"]);
    eventually(&mirror, "203.0.113.9", |hop| matches!(hop, NextHop::Ready { .. }));

    // IPv4 by an IPv6 router.
    net.ip("a", &["route", "add", "198.51.100.0/24", "via", "inet6", "2001:db8::2", "dev", "a0"]);
    eventually(
        &mirror,
        "198.51.100.1",
        |hop| matches!(hop, NextHop::Ready { gateway, .. } if gateway == ip("2001:db8::2")),
    );

    // Several hops share the destinations.
    let hops = ["nexthop", "via", "192.0.2.2", "dev", "a0", "weight", "1"];
    let other = ["nexthop", "via", "192.0.2.3", "dev", "a0", "weight", "1"];
    net.ip("a", &[&["route", "add", "198.18.0.0/15"][..], &hops, &other].concat());
    let by_other = || {
        let by_other = |n: &u8| gateway(next_hop(&mirror, &format!("198.18.0.{n}")));
        (0..100).map(|n| by_other(&n)).filter(|by| *by == Some(ip("192.0.2.3"))).count()
    };
    until(|| by_other() > 0, || "no destination by the second hop".to_owned());
    assert!((20..80).contains(&by_other()), "{} of 100 by the second hop", by_other());

    // The neighbour changes its address.
    net.ip("a", &["neigh", "replace", "192.0.2.2", "lladdr", "02:00:00:00:00:77", "dev", "a0"]);
    eventually(&mirror, "192.0.2.2", |hop| {
        matches!(hop, NextHop::Ready { mac: [2, 0, 0, 0, 0, 0x77], .. })
    });

    // Nobody is there.
    mirror.resolver().ask(ifindex, ip("192.0.2.99"));
    eventually(&mirror, "192.0.2.99", |hop| matches!(hop, NextHop::Failed { .. }));

    // The kernel drops IPv4 routes of a link that goes down without saying so.
    net.ip("a", &["link", "set", "a0", "down"]);
    eventually(&mirror, "203.0.113.9", |hop| hop == NextHop::NoRoute);
    net.ip("a", &["link", "set", "a0", "up"]);
    eventually(&mirror, "192.0.2.2", |hop| matches!(hop, NextHop::Unresolved { .. }));

    // No carrier.
    net.ip("b", &["link", "set", "b0", "down"]);
    eventually(&mirror, "192.0.2.2", |hop| hop == NextHop::NoRoute);
}

#[test]
#[ignore = "needs root: makes network namespaces"]
fn a_flood_of_changes_ends_in_the_kernels_state() {
    let net = Net::new();
    let mirror = net.enter(Mirror::start);
    flood(&net, &mirror);
}

#[test]
#[ignore = "needs root: makes network namespaces"]
fn lost_notifications_are_made_up_for() {
    let net = Net::new();
    let mirror = net.enter(|| Mirror::with_buffer(4096));
    flood(&net, &mirror);
    let overruns = mirror.counters().overruns.load(Ordering::Relaxed);
    assert!(overruns > 0, "the flood was too small to test anything");
}

/// Many changes in a short time; whatever happened to the notifications, the end is the kernel's state.
fn flood(net: &Net, mirror: &Mirror) {
    const COUNT: u32 = 40_000;
    const DELETED: u32 = 20_000;
    let entry = |verb: &str, n: u32| {
        let [_, _, high, low] = n.to_be_bytes();
        format!("neigh {verb} 10.0.{high}.{low} lladdr 02:00:00:00:{high:02x}:{low:02x} dev a0\n")
    };
    net.ip("a", &["route", "add", "10.0.0.0/16", "dev", "a0"]);
    let mut batch: String = (0..COUNT).map(|n| entry("replace", n)).collect();
    batch.extend((0..DELETED).map(|n| entry("del", n)));
    batch.extend((0..500).map(|n| format!("route add 10.1.{}.{}/32 dev a0\n", n / 250, n % 250)));
    net.batch("a", &batch);
    let is_ready = |n: u32| {
        let [_, _, high, low] = n.to_be_bytes();
        let hop = next_hop(mirror, &format!("10.0.{high}.{low}"));
        matches!(hop, NextHop::Ready { mac: [2, 0, 0, 0, h, l], .. } if (h, l) == (high, low))
    };
    let wrong = || (0..COUNT).filter(|&n| is_ready(n) != (n >= DELETED)).count();
    until(|| wrong() == 0, || format!("{} neighbours are wrong", wrong()));
    eventually(mirror, "10.1.1.249", |hop| hop != NextHop::NoRoute);
}

/// Two namespaces with a link between them.
struct Net {
    a: String,
    b: String,
}

impl Net {
    fn new() -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let id = format!("hgr{}-{count}", std::process::id());
        let net = Self { a: format!("{id}a"), b: format!("{id}b") };
        for namespace in [&net.a, &net.b] {
            run(Command::new("ip").args(["netns", "add", namespace]));
        }
        net.ip("a", &["link", "add", "a0", "type", "veth", "peer", "name", "b0", "netns", &net.b]);
        for (side, device, host) in [("a", "a0", 1), ("b", "b0", 2)] {
            net.ip(side, &["address", "add", &format!("192.0.2.{host}/24"), "dev", device]);
            let v6 = format!("2001:db8::{host}/64");
            net.ip(side, &["address", "add", &v6, "dev", device, "nodad"]);
            net.ip(side, &["link", "set", device, "up"]);
        }
        net
    }

    /// Starts a mirror of the tables in namespace `a`.
    fn enter(&self, start: fn() -> Result<Mirror, NetlinkError>) -> Mirror {
        let path = format!("/run/netns/{}", self.a);
        let enter = move || {
            setns(File::open(path).unwrap(), CloneFlags::CLONE_NEWNET).unwrap();
            start().unwrap()
        };
        std::thread::spawn(enter).join().unwrap()
    }

    fn ip(&self, side: &str, arguments: &[&str]) {
        run(Command::new("ip").args(["-n", self.name(side)]).args(arguments));
    }

    fn batch(&self, side: &str, lines: &str) {
        let path = std::env::temp_dir().join(format!("{}.batch", self.name(side)));
        std::fs::write(&path, lines).unwrap();
        run(Command::new("ip").args(["-n", self.name(side), "-force", "-batch"]).arg(&path));
        std::fs::remove_file(path).unwrap();
    }

    fn mac(&self, side: &str, device: &str) -> [u8; 6] {
        let path = format!("/sys/class/net/{device}/address");
        let output = Command::new("ip")
            .args(["netns", "exec", self.name(side), "cat", &path])
            .output()
            .unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        let bytes: Vec<u8> =
            text.trim().split(':').map(|byte| u8::from_str_radix(byte, 16).unwrap()).collect();
        bytes.try_into().unwrap()
    }

    fn name(&self, side: &str) -> &str {
        if side == "a" { &self.a } else { &self.b }
    }
}

impl Drop for Net {
    fn drop(&mut self) {
        for namespace in [&self.a, &self.b] {
            let _ = Command::new("ip").args(["netns", "del", namespace]).status();
        }
    }
}

fn next_hop(mirror: &Mirror, destination: &str) -> NextHop {
    let routes: Arc<Routes> = mirror.routes().load_full();
    routes.next_hop(ip(destination))
}

/// Waits until the next hop is as expected.
#[track_caller]
fn eventually(mirror: &Mirror, destination: &str, expected: impl Fn(NextHop) -> bool) -> NextHop {
    let hop = || next_hop(mirror, destination);
    until(|| expected(hop()), || format!("{destination} goes by {:?}", hop()));
    hop()
}

#[track_caller]
#[expect(clippy::disallowed_methods, reason = "waits for the kernel")]
fn until(mut done: impl FnMut() -> bool, otherwise: impl Fn() -> String) {
    let begun = Instant::now();
    while !done() {
        assert!(begun.elapsed() < Duration::from_secs(10), "{}", otherwise());
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn gateway(hop: NextHop) -> Option<IpAddr> {
    match hop {
        NextHop::Ready { gateway, .. }
        | NextHop::Unresolved { gateway, .. }
        | NextHop::Failed { gateway, .. } => Some(gateway),
        NextHop::Local | NextHop::NoRoute => None,
    }
}

fn run(command: &mut Command) {
    let output = command.output().unwrap();
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
}

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}
