//! A panic in the engine costs one connection.

mod support;

use std::panic;

use smoltcp::socket::tcp::State;
use support::packet::{self, Packet};
use support::*;
use userspace_tcp::engine::{Engine, Handshake, Host, Line, MtuClass, SmolEngine};
use userspace_tcp::{
    Checksums, CloseReason, Config, ConnId, DropReason, Emit, Expired, Flags, Ingress, Instant,
    Segment, Stack, Status, Tuple,
};

/// smoltcp, until it is given a certain byte.
struct Fragile(SmolEngine);

impl Engine for Fragile {
    fn new(config: &Config) -> Self {
        Self(SmolEngine::new(config))
    }

    fn connect(&mut self, host: &mut Host, now: Instant, tuple: &Tuple, isn: u32) -> bool {
        assert_ne!(tuple.remote.port, 13);
        self.0.connect(host, now, tuple, isn)
    }

    fn take_over(&mut self, host: &mut Host, handshake: &Handshake) -> bool {
        self.0.take_over(host, handshake)
    }

    fn ingress<P, O: Emit<P>>(
        &mut self,
        host: &mut Host,
        class: MtuClass,
        now: Instant,
        packet: &[u8],
        line: &mut Line<'_, P, O>,
    ) {
        assert_ne!(packet.last(), Some(&IN));
        self.0.ingress(host, class, now, packet, line);
    }

    fn egress<P, O: Emit<P>>(
        &mut self,
        host: &mut Host,
        class: MtuClass,
        now: Instant,
        line: &mut Line<'_, P, O>,
    ) -> bool {
        assert_ne!(self.0.received().last(), Some(&OUT));
        self.0.egress(host, class, now, line)
    }

    fn deadline(&mut self, host: &mut Host, class: MtuClass, now: Instant) -> Option<Instant> {
        self.0.deadline(host, class, now)
    }

    fn state(&self) -> State {
        self.0.state()
    }

    fn received_len(&self) -> usize {
        self.0.received_len()
    }

    fn received(&mut self) -> &[u8] {
        self.0.received()
    }

    fn consume(&mut self, len: usize) -> usize {
        assert_ne!(self.0.received().last(), Some(&READ));
        self.0.consume(len)
    }

    fn receive_capacity(&self) -> usize {
        self.0.receive_capacity()
    }

    fn send(&mut self, bytes: &[u8]) -> usize {
        assert_ne!(bytes.last(), Some(&SEND));
        self.0.send(bytes)
    }

    fn queued(&self) -> usize {
        self.0.queued()
    }

    fn send_space(&self) -> usize {
        self.0.send_space()
    }

    fn splice(&mut self, to: &mut Self, limit: usize) -> usize {
        assert_ne!(self.0.received().last(), Some(&SPLICE));
        self.0.splice(&mut to.0, limit)
    }

    fn close(&mut self) {
        self.0.close();
    }

    fn abort(&mut self) {
        self.0.abort();
    }
}

const IN: u8 = 1;
const OUT: u8 = 2;
const READ: u8 = 3;
const SEND: u8 = 4;
const SPLICE: u8 = 5;

struct Rig {
    stack: Stack<(), Fragile>,
    out: Out,
}

impl Rig {
    fn new() -> Self {
        // Panics are expected here; their messages would only hide others.
        panic::set_hook(Box::new(|_| {}));
        let config = Config { max_connections: 4, max_half_open: 4, ..Config::default() };
        let stack = Stack::with_engine(config, [0; 32], Instant::ZERO).expect("a stack");
        Self { stack, out: Out::default() }
    }

    fn receive(&mut self, packet: &Packet) -> Ingress {
        let mut packet = packet.bytes();
        let segment = Segment::parse(&packet, Checksums::Verify).expect("a valid segment");
        let out = &mut self.out;
        let ingress = self.stack.ingress(Instant::ZERO, &segment, &mut packet, (), out);
        if ingress == Ingress::NewSyn {
            self.stack.accept(Instant::ZERO, &segment, (), 0, &mut self.out).expect("accepted");
        }
        ingress
    }

    /// A connection whose first data end with this byte.
    fn open(&mut self, port: u16, last: u8) -> ConnId {
        self.receive(&Packet::syn(v4(port), 999));
        let ack = packet::read(&self.out.packets.pop().expect("a SYN-ACK")).seq.wrapping_add(1);
        let Ingress::Accepted(id) = self.receive(&Packet::new(v4(port), Flags::ACK, 1000, ack))
        else {
            panic!("not accepted")
        };
        let data = Packet::data(v4(port), 1000, ack, &[b'x', last]);
        assert_eq!(self.receive(&data), Ingress::Touched(id));
        id
    }

    #[track_caller]
    fn assert_lost(&mut self, id: ConnId, healthy: ConnId, count: u64) {
        assert_eq!(self.stack.status(id), Status::Closed(CloseReason::Panicked));
        assert_eq!(self.stack.counters().closes(CloseReason::Panicked), count);
        assert_eq!(self.stack.received(id), b"");
        assert_eq!((self.stack.received_len(id), self.stack.send_space(id)), (0, 0));
        assert_eq!((self.stack.consume(id, 1), self.stack.send(id, b"x")), (0, 0));
        self.stack.flush(Instant::ZERO, id, &mut self.out);
        let spare = self.stack.census().spare;
        self.stack.release(id);
        assert_eq!(self.stack.census().spare, spare, "not used again");
        assert_eq!(self.stack.status(healthy), OPEN);
    }
}

#[test]
fn a_panic_costs_one_connection() {
    let mut rig = Rig::new();
    let healthy = rig.open(100, b'!');

    let id = rig.open(1, IN);
    rig.assert_lost(id, healthy, 1);
    let id = rig.open(2, OUT);
    rig.stack.flush(Instant::ZERO, id, &mut rig.out);
    rig.assert_lost(id, healthy, 2);
    let id = rig.open(3, READ);
    assert_eq!(rig.stack.consume(id, 2), 0);
    rig.assert_lost(id, healthy, 3);
    let id = rig.open(4, b'!');
    assert_eq!(rig.stack.send(id, &[SEND]), 0);
    rig.assert_lost(id, healthy, 4);
    let (id, to) = (rig.open(5, SPLICE), rig.open(6, b'!'));
    assert_eq!(rig.stack.splice(id, to), 0);
    rig.assert_lost(id, healthy, 6);
    rig.stack.release(to);

    let bad = tuple("192.0.2.9:1024", "192.0.2.8:13");
    assert!(rig.stack.connect(Instant::ZERO, bad, (), 0, &mut rig.out).is_err());
    assert!(!rig.stack.contains(&bad));

    assert_eq!(rig.stack.received(healthy), b"x!");
    rig.stack.release(healthy);
    assert_eq!(rig.stack.census().tuples, 0);
    assert_eq!(rig.stack.expire(Instant::from_secs(1000), &mut rig.out), Expired::Nothing);
    assert_eq!(rig.stack.counters().drops(DropReason::Panicked), 0);
}
