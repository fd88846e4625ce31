//! The data plane between a client and an origin, all in memory.

use std::{
    collections::{HashMap, HashSet, VecDeque},
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

use headgate::{
    config::Config,
    memory_port::Memory,
    neighbours::Neighbours,
    plane::Plane,
    port::{Batch, Nic, Port},
    routes::{Link, Neighbour, NeighbourState, Route, RouteHop, Routes},
    setup::{NicFacts, Secrets, Shared},
    tally::{Event, Reason, Tally},
    waker::Waker,
};
use rand::{Rng, SeedableRng, rngs::SmallRng};
use userspace_tcp::{Duration, Instant};

use crate::{
    hosts::{Client, Manner, OriginHost},
    wire::{Impairment, Wire},
};

/// Where services listen, in the rig: origin over IPv4, and over IPv6, for clients of each family.
pub const SERVICES: [&str; 4] =
    ["198.51.100.80:80", "198.51.100.81:80", "[2001:db8:1::80]:80", "[2001:db8:1::81]:80"];

/// The configuration of the rig.
pub const CONFIG: &str = r#"
[nic.client]
frames = 512
ring = 128

[nic.origin]
frames = 512
ring = 128

[tcp]
max-connections = 512
max-half-open = 256
receive-buffer = "32KiB"
send-buffer = "64KiB"

[pool.main]
addresses = ["192.0.2.16-192.0.2.17", "2001:db8:2::10-2001:db8:2::11"]
ports = "20000-20999"
method = "random"

[origin.v4]
addresses = ["192.0.2.80:80"]

[origin.v6]
addresses = ["[2001:db8:2::80]:80"]

[service.v4-v4]
mode = "tcp"
listen = ["198.51.100.80:80"]
origin = "v4"
pool = "main"

[service.v4-v6]
mode = "tcp"
listen = ["198.51.100.81:80"]
origin = "v6"
pool = "main"

[service.v6-v4]
mode = "tcp"
listen = ["[2001:db8:1::80]:80"]
origin = "v4"
pool = "main"

[service.v6-v6]
mode = "tcp"
listen = ["[2001:db8:1::81]:80"]
origin = "v6"
pool = "main"
"#;

/// What a rig is made of.
#[derive(Clone, Copy, Debug)]
pub struct RigConfig {
    /// How many workers.
    pub workers: usize,
    /// What the wires do.
    pub impairment: Impairment,
    /// How the origin behaves.
    pub manner: Manner,
    /// Whether packets arrive at any worker, instead of always the same for a flow.
    pub scatter: bool,
    /// Whether the origin's station is known.
    pub neighbour: NeighbourState,
    /// Where randomness comes from.
    pub seed: u64,
    /// How many of the latest frames are kept in [`Rig::seen`].
    pub memory: usize,
}

impl Default for RigConfig {
    fn default() -> Self {
        Self {
            workers: 1,
            impairment: Impairment::default(),
            manner: Manner::Echo,
            scatter: false,
            neighbour: NeighbourState::Valid,
            seed: 1,
            memory: 0,
        }
    }
}

/// A frame that passed between the gateway and the world.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Seen {
    /// The gateway's NIC that it came in or went out through.
    pub nic: Nic,
    /// Whether it came in.
    pub is_incoming: bool,
    /// The frame, from the destination MAC address on.
    pub frame: Vec<u8>,
}

/// Where a packet goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum To {
    Client,
    Origin,
    Gateway(Nic),
}

/// The world.
#[derive(Debug)]
pub struct Rig {
    /// The time.
    pub now: Instant,
    /// The workers with their ports.
    pub workers: Vec<(Plane, Memory)>,
    /// The client.
    pub client: Client,
    /// The origin.
    pub origin: OriginHost,
    /// The stations of the client's router and of the origin.
    pub peers: [[u8; 6]; 2],
    /// The latest frames, oldest first; those of [`inject`](Self::inject) are not among them.
    pub seen: VecDeque<Seen>,
    routes: Arc<arc_swap::ArcSwap<Routes>>,
    wire: Wire<To>,
    scatter: bool,
    memory: usize,
    rng: SmallRng,
}

const CLIENT: Nic = 0;
const ORIGIN: Nic = 1;
const MACS: [[u8; 6]; 2] = [[2, 0, 0, 0, 0, 1], [2, 0, 0, 0, 0, 2]];
const PEERS: [[u8; 6]; 2] = [[2, 0, 0, 0, 1, 1], [2, 0, 0, 0, 1, 2]];

impl Rig {
    /// A world in which nothing has happened yet.
    #[must_use]
    pub fn new(config: RigConfig) -> Self {
        let now = Instant::from_secs(1000);
        let parsed = Config::parse(CONFIG).expect("the configuration is good");
        let nics: Vec<_> = (0..2)
            .map(|nic| NicFacts { ifindex: nic as u32 + 1, mac: MACS[nic], mtu: 1500 })
            .collect();
        let wakers = (0..config.workers).map(|_| Waker::new().expect("an eventfd")).collect();
        let shared = Shared::new(&parsed, &nics, wakers, [7; 32]);
        let routes = Arc::new(arc_swap::ArcSwap::from_pointee(routes(config.neighbour, PEERS[1])));
        let worker = |me| {
            let secrets = Secrets { stack: [me as u8; 32], seed: [me as u8; 32] };
            let neighbours = Neighbours::fixed(routes.clone());
            let plane = shared.plane(&parsed, me, neighbours, secrets, now);
            (plane.expect("the TCP layer starts"), Memory::new(1024))
        };
        let host = userspace_tcp::Config {
            max_connections: 512,
            max_half_open: 512,
            max_time_wait: 4096,
            ..Default::default()
        };
        Self {
            now,
            workers: (0..config.workers).map(worker).collect(),
            client: Client::new(now, host.clone()),
            origin: OriginHost::new(now, host, config.manner),
            peers: PEERS,
            seen: VecDeque::with_capacity(config.memory),
            routes: routes.clone(),
            wire: Wire::new(config.impairment),
            scatter: config.scatter,
            memory: config.memory,
            rng: SmallRng::seed_from_u64(config.seed),
        }
    }

    /// Opens a stream of the client with so many bytes of noise.
    pub fn open(&mut self, service: usize, port: u16, len: usize) {
        let to: SocketAddr = SERVICES[service].parse().expect("an address");
        let from: IpAddr = if to.is_ipv4() { "198.51.100.2" } else { "2001:db8:1::2" }
            .parse()
            .expect("an address");
        let bytes = (0..len).map(|_| self.rng.random()).collect();
        self.client.open(self.now, (from, port).into(), to, bytes);
    }

    /// Lets the world go on until nothing is left to do, or for `limit` at most.
    pub fn run(&mut self, limit: Duration) {
        let end = self.now + limit;
        while self.now < end {
            self.step();
            if self.is_idle() {
                return;
            }
            self.skip_to_next(end);
        }
    }

    /// Lets so much time pass, whether or not anything is left to do, in `turns` turns at most.
    /// Returns how many it took.
    pub fn pass(&mut self, time: Duration, turns: usize) -> usize {
        let end = self.now + time;
        let mut taken = 0;
        while self.now < end && taken < turns {
            self.step();
            self.skip_to_next(end);
            taken += 1;
        }
        taken
    }

    /// Changes what the wires do to packets from now on.
    pub fn impair(&mut self, impairment: Impairment) {
        self.wire.impair(impairment);
    }

    /// Whether all streams have ended, and all sessions.
    #[must_use]
    pub fn is_idle(&self) -> bool {
        self.client.streams.iter().all(|stream| stream.end.is_some())
            && self.workers.iter().all(|(plane, _)| plane.session_count() == 0)
    }

    /// Lets a frame arrive at a worker.
    pub fn inject(&mut self, worker: usize, nic: Nic, frame: &[u8]) -> bool {
        self.workers[worker].1.inject(nic, frame)
    }

    /// One turn of everybody.
    pub fn step(&mut self) {
        while let Some((to, mut packet)) = self.wire.arrive(self.now) {
            match to {
                To::Client => self.client.ingress(self.now, &mut packet),
                To::Origin => self.origin.ingress(self.now, &mut packet),
                To::Gateway(nic) => {
                    let worker = self.queue_of(&packet);
                    let mut frame = arriving(nic, &packet);
                    frame[6..12].copy_from_slice(&self.peers[nic as usize]);
                    self.workers[worker].1.inject(nic, &frame);
                    self.remember(nic, true, frame);
                }
            }
        }
        self.client.turn(self.now);
        self.origin.turn(self.now);
        for index in 0..self.workers.len() {
            self.turn(index);
        }
        for packet in std::mem::take(&mut self.client.out.packets) {
            self.wire.send(self.now, To::Gateway(CLIENT), packet, &mut self.rng);
        }
        for packet in std::mem::take(&mut self.origin.out.packets) {
            self.wire.send(self.now, To::Gateway(ORIGIN), packet, &mut self.rng);
        }
    }

    /// The kernel comes to know this of the origin's station.
    pub fn resolve(&self, state: NeighbourState) {
        let mut routes = (**self.routes.load()).clone();
        set_station(&mut routes, state, self.peers[1]);
        self.routes.store(Arc::new(routes));
    }

    /// Resets all sessions of all workers.
    pub fn cut_off(&mut self) {
        for (plane, port) in &mut self.workers {
            plane.cut_off(self.now, port);
            port.flush();
        }
    }

    /// The counters of all workers together.
    #[must_use]
    pub fn tally(&self) -> Tally {
        let mut tally = Tally::default();
        for (plane, _) in &self.workers {
            tally.add(plane.tally());
        }
        tally
    }

    /// How often something happened at any worker.
    #[must_use]
    pub fn event(&self, event: Event) -> u64 {
        self.tally().event(event)
    }

    /// Packets that any worker dropped for this reason.
    #[must_use]
    pub fn dropped(&self, reason: Reason) -> u64 {
        self.tally().dropped(reason)
    }

    /// Panics unless every frame is accounted for at every worker.
    #[track_caller]
    pub fn assert_conserved(&mut self) {
        for (plane, port) in &mut self.workers {
            let census = port.census();
            let tally = plane.tally();
            assert!(census.balances(), "{census:?}");
            assert_eq!(census.held, 0, "{census:?}");
            let ended = tally.transmitted + tally.retired();
            assert_eq!(tally.received + tally.allocated, ended, "{tally:?}");
        }
    }

    /// Panics unless no session, connection, handshake or lease is left (TIME-WAIT may be).
    #[track_caller]
    pub fn assert_empty(&self) {
        for (plane, _) in &self.workers {
            let census = plane.stack().census();
            assert_eq!(plane.session_count(), 0);
            assert_eq!((census.connections, census.half_open), (0, 0), "{census:?}");
        }
    }

    fn turn(&mut self, index: usize) {
        let (plane, port) = &mut self.workers[index];
        let mut batch = Batch::new();
        port.receive(&mut batch);
        for (nic, frame) in batch {
            plane.ingress(self.now, nic, frame, port);
        }
        plane.take_over(self.now, port);
        plane.turn(self.now, port);
        port.flush();
        while let Some((nic, frame)) = self.workers[index].1.take() {
            let to = if nic == CLIENT { To::Client } else { To::Origin };
            let station = nic as usize;
            let known = [PEERS[station], self.peers[station]];
            assert!(known.iter().any(|mac| frame[..6] == *mac), "to a station of that link");
            self.wire.send(self.now, to, frame[14..].to_vec(), &mut self.rng);
            self.remember(nic, false, frame);
        }
    }

    /// Lets time pass until something is due.
    fn skip_to_next(&mut self, end: Instant) {
        let deadlines = self.workers.iter().map(|(plane, _)| plane.next_deadline());
        let next = deadlines
            .chain([self.client.next_deadline(), self.origin.next_deadline()])
            .chain([self.wire.next_arrival()])
            .flatten()
            .min();
        // More than a batch came in, or was handed over after its owner's turn.
        let is_behind = self
            .workers
            .iter_mut()
            .any(|(plane, port)| plane.has_parcels() || port.census().receiving > 0);
        let next = if is_behind { Some(self.now) } else { next };
        let soonest = self.now + Duration::from_micros(100);
        self.now = next.map_or(end, |next| next.max(soonest)).min(end);
    }

    fn remember(&mut self, nic: Nic, is_incoming: bool, frame: Vec<u8>) {
        if self.memory == 0 {
            return;
        }
        if self.seen.len() == self.memory {
            self.seen.pop_front();
        }
        self.seen.push_back(Seen { nic, is_incoming, frame });
    }

    /// The queue on which a NIC would put a packet.
    fn queue_of(&mut self, packet: &[u8]) -> usize {
        if self.scatter {
            return self.rng.random_range(0..self.workers.len());
        }
        // Ports are enough of a hash here.
        let header = if packet.first().is_some_and(|byte| byte >> 4 == 6) { 40 } else { 20 };
        let ports = packet.get(header..header + 4).unwrap_or(&[0]);
        ports.iter().map(|&byte| byte as usize).sum::<usize>() % self.workers.len()
    }
}

/// The frame in which a neighbour on `nic` sends a packet to the gateway.
#[must_use]
pub fn arriving(nic: Nic, packet: &[u8]) -> Vec<u8> {
    let mut frame = ethernet(MACS[nic as usize], PEERS[nic as usize], packet);
    frame.extend_from_slice(packet);
    frame
}

/// An Ethernet header for a packet.
#[must_use]
pub fn ethernet(to: [u8; 6], from: [u8; 6], packet: &[u8]) -> Vec<u8> {
    let v6 = packet.first().is_some_and(|byte| byte >> 4 == 6);
    let mut header = [to, from].concat();
    header.extend_from_slice(if v6 { &[0x86, 0xdd] } else { &[0x08, 0x00] });
    header
}

fn routes(state: NeighbourState, station: [u8; 6]) -> Routes {
    let mut routes = Routes::default();
    let link = |nic: usize| {
        let name = ["client", "origin"][nic].to_owned();
        (nic as u32 + 1, Link { name, mac: Some(MACS[nic]), mtu: 1500, up: true })
    };
    let route = |prefix: &str, ifindex| Route {
        prefix: prefix.parse().expect("a prefix"),
        metric: 0,
        hops: vec![RouteHop { ifindex, gateway: None, weight: 1, dead: false }],
    };
    routes.replace_topology(
        HashMap::from([link(0), link(1)]),
        HashSet::new(),
        [
            route("198.51.100.0/24", 1),
            route("2001:db8:1::/64", 1),
            route("192.0.2.0/24", 2),
            route("2001:db8:2::/64", 2),
        ],
    );
    set_station(&mut routes, state, station);
    routes
}

fn set_station(routes: &mut Routes, state: NeighbourState, station: [u8; 6]) {
    for origin in ["192.0.2.80", "2001:db8:2::80"] {
        let neighbour = Neighbour { state, mac: Some(station) };
        routes.set_neighbour(2, origin.parse().expect("an address"), Some(neighbour));
    }
}
