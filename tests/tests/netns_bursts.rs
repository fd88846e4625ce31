//! Bursts through the AF_XDP port: what it is given leaves whole and in order, and what arrives while
//! nobody looks is all there afterwards. Every frame is accounted for after every burst.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::time::Duration;

use etherparse::{NetSlice, PacketBuilder, SlicedPacket, TransportSlice};
use headgate::port::{BATCH, Batch, FrameCensus, Nic, Port};
use headgate::steer::{AttachMode, Pulse, Steering};
use headgate::tally::{Fate, Tally};
use headgate::waker::Waker;
use headgate::worker::clock;
use headgate::xsk::{BindMode, CAPACITY, QueueSpec, Xsk};
use headgate_ebpf::{OnDead, Protocol};
use nix::ifaddrs::getifaddrs;
use nix::net::if_::if_nametoindex;
use nix::sys::socket::{setsockopt, sockopt};
use xtask::lab::address::{CLIENT, GATEWAY_CLIENT_SIDE, GATEWAY_ORIGIN_SIDE, origin4, vip4};
use xtask::lab::{
    CLIENT_NIC, GATEWAY_CLIENT_NIC, GATEWAY_ORIGIN_NIC, Lab, LabConfig, Namespace, ORIGIN_NIC,
};

/// One more than the kernel sends by itself in one call; more than a veth's own ring; a whole ring.
const BURSTS: [u32; 3] = [33, 300, 2048];
/// UDP port of the port's side.
const HERE: u16 = 7;
/// UDP port of the first peer's side.
const THERE: u16 = 7000;
/// How long to wait for a packet that does not come.
const PATIENCE: Duration = Duration::from_secs(5);

#[test]
#[ignore = "needs root: builds a network of namespaces"]
fn a_burst_is_sent_whole_and_in_order() {
    let lab = Lab::new(&LabConfig { queues: 1, ..LabConfig::default() }).unwrap();
    let from = SocketAddr::new(GATEWAY_CLIENT_SIDE[0], HERE);
    let client = Peer::new(lab.client(), CLIENT_NIC, SocketAddr::new(CLIENT[0], THERE));
    // With the smaller ring most of a burst has to wait for its turn.
    for (ring, frames) in [(4096, 8192), (64, 4096)] {
        in_namespace(lab.gateway(), || {
            let mut port = open(&[(0, GATEWAY_CLIENT_NIC)], 0, ring, frames);
            for burst in BURSTS {
                for number in 0..burst {
                    send(&mut port, 0, &client.frame(from, &payload(burst, number)));
                }
                drain(&mut port);
                client.expect((0..burst).map(|number| payload(burst, number)));
            }
            at_rest(&mut port);
        });
    }
}

#[test]
#[ignore = "needs root: builds a network of namespaces"]
fn a_burst_that_arrives_while_nobody_looks_is_whole_and_goes_back_whole() {
    for (queues, mode) in
        [(1, AttachMode::Native), (1, AttachMode::Generic), (4, AttachMode::Native)]
    {
        let lab = Lab::new(&LabConfig { queues, ..LabConfig::default() }).unwrap();
        // Flows enough for every queue to get some.
        let ports = THERE..THERE + if queues == 1 { 1 } else { 64 };
        let peers: Vec<_> = ports
            .map(|port| Peer::new(lab.client(), CLIENT_NIC, SocketAddr::new(CLIENT[0], port)))
            .collect();
        in_namespace(lab.gateway(), || {
            let mut gate = Gate::open(queues, mode);
            for burst in BURSTS {
                for number in 0..burst {
                    let peer = &peers[number as usize % peers.len()];
                    peer.socket.send_to(&payload(burst, number), gate.address).unwrap();
                }
                let counts = gate.echo(burst, &peers);
                if burst == 2048 {
                    assert!(
                        counts.iter().all(|count| *count > 0),
                        "a queue got nothing: {counts:?}"
                    );
                }
                for (first, peer) in peers.iter().enumerate() {
                    let own = (first as u32..burst).step_by(peers.len());
                    peer.expect(own.map(|number| payload(burst, number)));
                }
            }
            gate.ports.iter_mut().for_each(at_rest);
        });
    }
}

#[test]
#[ignore = "needs root: builds a network of namespaces"]
fn a_burst_crosses_from_one_nic_to_the_other_in_the_same_memory() {
    let lab = Lab::new(&LabConfig { queues: 1, ..LabConfig::default() }).unwrap();
    let client = Peer::new(lab.client(), CLIENT_NIC, SocketAddr::new(CLIENT[0], THERE));
    let origin = Peer::new(lab.origin(), ORIGIN_NIC, SocketAddr::new(origin4(0), THERE));
    in_namespace(lab.gateway(), || {
        let nics = [(0, GATEWAY_CLIENT_NIC), (1, GATEWAY_ORIGIN_NIC)];
        let mut gate = Gate::steer(vec![open(&nics, 0, 4096, 8192)], AttachMode::Native);
        for burst in BURSTS {
            for number in 0..burst {
                client.socket.send_to(&payload(burst, number), gate.address).unwrap();
            }
            let from = SocketAddr::new(GATEWAY_ORIGIN_SIDE[0], HERE);
            let port = &mut gate.ports[0];
            let mut left = burst;
            while left > 0 {
                let batch = receive(port);
                assert!(!batch.is_empty(), "{left} of {burst} did not come: {:?}", port.rings());
                left -= batch.len() as u32;
                for (_, mut frame) in batch {
                    let bytes = port.bytes_mut(&mut frame);
                    let (_, datagram) = parse(bytes);
                    let changed = origin.frame(from, datagram);
                    bytes.copy_from_slice(&changed);
                    port.transmit(1, frame);
                }
                port.flush();
                assert_balanced(&port.census());
            }
            drain(port);
            origin.expect((0..burst).map(|number| payload(burst, number)));
        }
        gate.ports.iter_mut().for_each(at_rest);
    });
}

#[test]
#[ignore = "needs root: builds a network of namespaces"]
fn when_the_frames_run_out_nothing_is_lost_but_what_the_kernel_counts() {
    const RING: u32 = 64;
    let lab = Lab::new(&LabConfig { queues: 1, ..LabConfig::default() }).unwrap();
    let client = Peer::new(lab.client(), CLIENT_NIC, SocketAddr::new(CLIENT[0], THERE));
    in_namespace(lab.gateway(), || {
        let port = open(&[(0, GATEWAY_CLIENT_NIC)], 0, RING, 256);
        let mut gate = Gate::steer(vec![port], AttachMode::Native);
        let (from, port) = (gate.address, &mut gate.ports[0]);
        assert!(port.allocate(CAPACITY + 1).is_none(), "a frame holds {CAPACITY} bytes");

        // All that is free, and then no more.
        let room = port.room();
        assert_eq!(room, 256 - RING as usize);
        let mut held = Vec::new();
        while let Some(frame) = port.allocate(60) {
            held.push(frame);
        }
        assert_eq!((held.len(), port.room(), port.census().held), (room, 0, room));
        assert_balanced(&port.census());

        // What was lent to the kernel before still receives.
        let send_all = |burst: u32| {
            for number in 0..burst {
                client.socket.send_to(&payload(burst, number), from).unwrap();
            }
        };
        send_all(RING);
        let mut received = receive_all(port, RING);
        assert_eq!(numbers(port, &mut received), (0..RING).collect::<Vec<_>>());
        // Nothing is lent any more: the kernel has to drop, and says so.
        port.flush();
        send_all(33);
        assert!(receive(port).is_empty());
        assert_eq!(port.rings()[0].rx_dropped, 33, "{:?}", port.rings());
        assert_eq!(port.census().held, 256);

        // What was held leaves, and all is as it was.
        for (number, mut frame) in held.into_iter().enumerate() {
            let bytes = client.frame(from, &(number as u64).to_be_bytes());
            port.bytes_mut(&mut frame)[..bytes.len()].copy_from_slice(&bytes);
            port.transmit(0, frame);
        }
        drain(port);
        client.expect((0..room as u64).map(|number| number.to_be_bytes().to_vec()));
        let mut tally = Tally::default();
        for (_, frame) in received {
            port.recycle(frame.retire(Fate::Consumed, &mut tally));
        }
        port.flush();
        assert_eq!((port.room(), tally.retired()), (room, u64::from(RING)));
        send_all(33);
        let mut received = receive_all(port, 33);
        assert_eq!(numbers(port, &mut received), (0..33).collect::<Vec<_>>());
        for (_, frame) in received {
            port.recycle(frame.retire(Fate::Consumed, &mut tally));
        }
        port.flush();
        at_rest(port);
    });
}

/// The gateway's end of the client's link: a port for each queue, and the XDP program that fills them.
struct Gate {
    ports: Vec<Xsk>,
    address: SocketAddr,
    _steering: Steering,
    _pulses: Vec<Pulse>,
}

impl Gate {
    fn open(queues: u32, mode: AttachMode) -> Gate {
        let port = |queue| open(&[(0, GATEWAY_CLIENT_NIC)], queue, 4096, 8192);
        Gate::steer((0..queues).map(port).collect(), mode)
    }

    /// Steers UDP for the first VIP to the ports.
    fn steer(ports: Vec<Xsk>, mode: AttachMode) -> Gate {
        let index = if_nametoindex(GATEWAY_CLIENT_NIC).unwrap();
        let mut steering = Steering::attach(GATEWAY_CLIENT_NIC, index, &[mode], 1).unwrap();
        let mut pulses = Vec::new();
        for port in &ports {
            for (_, queue, socket) in port.sockets().filter(|(nic, ..)| *nic == 0) {
                steering.add_socket(queue, socket).unwrap();
                let mut pulse = steering.pulse(queue).unwrap();
                pulse.beat(clock().as_nanos() as u64);
                pulses.push(pulse);
            }
        }
        let address = SocketAddr::new(vip4(0), HERE);
        steering.add_service(Protocol::Udp, address, 0, OnDead::Pass).unwrap();
        steering.enable(u64::MAX).unwrap();
        Gate { ports, address, _steering: steering, _pulses: pulses }
    }

    /// Takes a burst from all queues, and when it is there sends it back. The packets of a peer come
    /// in order. Returns how many came on each queue.
    fn echo(&mut self, burst: u32, peers: &[Peer]) -> Vec<usize> {
        let mut next: Vec<u32> = (0..peers.len() as u32).collect();
        let mut counts = Vec::new();
        let mut left = burst;
        for port in &mut self.ports {
            let mut got = Vec::new();
            while left > 0 {
                let batch = receive(port);
                if batch.is_empty() {
                    break;
                }
                left -= batch.len() as u32;
                got.extend(batch);
            }
            counts.push(got.len());
            for (_, frame) in &mut got {
                let (from, datagram) = parse(port.bytes_mut(frame));
                let peer = usize::from(from.port() - THERE);
                assert_eq!(datagram, payload(burst, next[peer]), "a datagram of {from}");
                next[peer] += peers.len() as u32;
            }
            assert_eq!(port.census().held, got.len());
            for (nic, mut frame) in got {
                swap(port.bytes_mut(&mut frame));
                port.transmit(nic, frame);
                assert_balanced(&port.census());
            }
        }
        let rings: Vec<_> = self.ports.iter_mut().flat_map(Port::rings).collect();
        assert_eq!(left, 0, "{left} of {burst} did not come: {rings:#?}");
        self.ports.iter_mut().for_each(drain);
        counts
    }
}

/// A UDP socket of the kernel's on the other end of a link.
struct Peer {
    socket: UdpSocket,
    address: SocketAddr,
    mac: [u8; 6],
}

impl Peer {
    fn new(namespace: &Namespace, nic: &str, address: SocketAddr) -> Peer {
        let (socket, mac) =
            namespace.enter(|| (UdpSocket::bind(address).unwrap(), mac_of(nic))).unwrap();
        setsockopt(&socket, sockopt::RcvBufForce, &(32 << 20)).unwrap();
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        Peer { socket, address, mac }
    }

    /// A frame with a datagram for this peer. The station it comes from does not matter.
    fn frame(&self, from: SocketAddr, datagram: &[u8]) -> Vec<u8> {
        let (IpAddr::V4(source), IpAddr::V4(destination)) = (from.ip(), self.address.ip()) else {
            panic!("IPv4 here");
        };
        let mut frame = Vec::new();
        PacketBuilder::ethernet2([2, 0, 0, 0, 0, 1], self.mac)
            .ipv4(source.octets(), destination.octets(), 64)
            .udp(from.port(), self.address.port())
            .write(&mut frame, datagram)
            .unwrap();
        frame
    }

    /// The socket receives exactly these datagrams, in this order.
    fn expect(&self, datagrams: impl Iterator<Item = Vec<u8>>) {
        let mut buffer = [0; 2048];
        for (number, wanted) in datagrams.enumerate() {
            let len = self.socket.recv(&mut buffer).unwrap_or_else(|error| {
                panic!("datagram {number} did not come to {}: {error}", self.address)
            });
            assert!(buffer[..len] == wanted[..], "not datagram {number} came to {}", self.address);
        }
        self.socket.set_nonblocking(true).unwrap();
        assert!(self.socket.recv(&mut buffer).is_err(), "{} got more than was sent", self.address);
        self.socket.set_nonblocking(false).unwrap();
    }
}

fn in_namespace(namespace: &Namespace, work: impl FnOnce() + Send) {
    namespace.enter(work).unwrap();
}

fn open(nics: &[(Nic, &str)], queue: u32, ring: u32, frames: u32) -> Xsk {
    let specs: Vec<_> = nics
        .iter()
        .map(|&(nic, name)| QueueSpec { nic, name: name.into(), queue, ring, frames })
        .collect();
    let pause = || std::thread::park_timeout(Duration::from_millis(20));
    Xsk::bind(&specs, BindMode::Copy, Waker::new().unwrap(), 50, pause).unwrap()
}

fn send(port: &mut Xsk, nic: Nic, bytes: &[u8]) {
    let mut frame = port.allocate(bytes.len()).expect("a free frame");
    port.bytes_mut(&mut frame).copy_from_slice(bytes);
    port.transmit(nic, frame);
    assert_balanced(&port.census());
}

/// One batch; empty if none comes.
fn receive(port: &mut Xsk) -> Batch {
    let mut batch = Batch::with_capacity(BATCH);
    port.receive(&mut batch);
    if batch.is_empty() {
        port.wait(Duration::from_millis(200));
        port.receive(&mut batch);
    }
    batch
}

fn receive_all(port: &mut Xsk, count: u32) -> Batch {
    let mut all = Batch::new();
    while all.len() < count as usize {
        let batch = receive(port);
        assert!(!batch.is_empty(), "{} of {count} came: {:?}", all.len(), port.rings());
        all.extend(batch);
    }
    all
}

/// Flushes until all has left.
fn drain(port: &mut Xsk) {
    for _ in 0..1000 {
        port.flush();
        let census = port.census();
        assert_balanced(&census);
        if census.sending == 0 {
            return;
        }
        port.wait(Duration::from_millis(1));
    }
    panic!("the kernel does not send: {:?}, {:?}", port.census(), port.rings());
}

fn assert_balanced(census: &FrameCensus) {
    assert!(census.balances(), "{census:?}");
}

/// Every frame is free or waits for a packet, and nothing went wrong on the way.
fn at_rest(port: &mut Xsk) {
    let census = port.census();
    assert_eq!((census.sending, census.held), (0, 0), "{census:?}");
    assert_eq!(census.free + census.receiving, census.total);
    for ring in port.rings() {
        let faults = (ring.backlog, ring.tx_errors, ring.invalid_descriptors);
        assert_eq!(faults, (0, 0, 0), "{ring:?}");
    }
}

/// The numbers in the datagrams of received frames.
fn numbers(port: &mut Xsk, batch: &mut Batch) -> Vec<u32> {
    let number = |bytes: &[u8]| u32::from_be_bytes(*parse(bytes).1[4..].first_chunk().unwrap());
    batch.iter_mut().map(|(_, frame)| number(port.bytes_mut(frame))).collect()
}

/// The contents of a burst's datagram: its size and bytes tell which one it is.
fn payload(burst: u32, number: u32) -> Vec<u8> {
    let mut bytes = [burst.to_be_bytes(), number.to_be_bytes()].concat();
    let size = 18 + (number as usize * 37) % 1455;
    bytes.extend(
        (bytes.len()..size).map(|at| (at as u32).wrapping_mul(31).wrapping_add(number) as u8),
    );
    bytes
}

/// Where a frame's datagram comes from, and what it says. Checksums are right.
fn parse(frame: &[u8]) -> (SocketAddr, &[u8]) {
    let packet = SlicedPacket::from_ethernet(frame).unwrap();
    let (Some(NetSlice::Ipv4(ip)), Some(TransportSlice::Udp(udp))) =
        (&packet.net, &packet.transport)
    else {
        panic!("not a datagram: {frame:02x?}");
    };
    let (header, udp_header) = (ip.header().to_header(), udp.to_header());
    assert_eq!(header.calc_header_checksum(), header.header_checksum);
    let sum = udp_header.calc_checksum_ipv4(&header, udp.payload()).unwrap();
    assert_eq!(sum, udp_header.checksum);
    let from = SocketAddr::new(ip.header().source_addr().into(), udp.source_port());
    (from, udp.payload())
}

/// Swaps stations, addresses and ports: no checksum changes by that.
fn swap(frame: &mut [u8]) {
    let (old, rest) = (frame[..38].to_vec(), &mut frame[..38]);
    for (to, from) in [(0..6, 6..12), (6..12, 0..6), (26..30, 30..34), (30..34, 26..30)] {
        rest[to].copy_from_slice(&old[from]);
    }
    rest[34..36].copy_from_slice(&old[36..38]);
    rest[36..38].copy_from_slice(&old[34..36]);
}

fn mac_of(nic: &str) -> [u8; 6] {
    let links = getifaddrs().unwrap().filter(|entry| entry.interface_name == nic);
    let mac = links.filter_map(|entry| entry.address?.as_link_addr()?.addr()).next();
    mac.unwrap_or_else(|| panic!("{nic} has no address"))
}
