//! Two stacks and the wire between them, in virtual time.
#![allow(dead_code, unreachable_pub, reason = "every test file uses another part")]

pub mod packet;

use std::net::SocketAddr;

use userspace_tcp::{
    Checksums, Config, ConnId, Counters, Duration, Emit, Expired, Ingress, Instant, Refusal,
    Segment, Stack, Status, Tuple,
};

/// Packets on their way out, with room for so many.
#[derive(Debug)]
pub struct Out {
    pub packets: Vec<Vec<u8>>,
    pub room: usize,
}

impl Default for Out {
    fn default() -> Self {
        Self { packets: vec![], room: usize::MAX }
    }
}

impl Emit<()> for Out {
    fn room(&self) -> usize {
        self.room - self.packets.len().min(self.room)
    }

    fn emit<R>(&mut self, _path: &(), len: usize, fill: impl FnOnce(&mut [u8]) -> R) -> R {
        assert!(self.room() > 0, "emit without room");
        // What a ring frame would hold: stale bytes.
        let mut packet = vec![0xa5; len];
        let result = fill(&mut packet);
        self.packets.push(packet);
        result
    }
}

/// One end of the wire.
pub struct Host {
    pub stack: Stack<()>,
    pub out: Out,
    pub accepted: Vec<ConnId>,
    /// Whether SYNs are accepted, and strangers reset.
    pub listens: bool,
}

impl Host {
    pub fn new(config: Config, secret: u8) -> Self {
        Self {
            stack: Stack::new(config, [secret; 32], Instant::ZERO).expect("a stack"),
            out: Out::default(),
            accepted: vec![],
            listens: true,
        }
    }

    /// Takes one packet, and flushes what it touched unless told otherwise.
    pub fn receive(&mut self, now: Instant, packet: &[u8], flush: bool) -> Option<Ingress> {
        let mut packet = packet.to_vec();
        let segment = Segment::parse(&packet, Checksums::Verify).ok()?;
        self.stack.anticipate([&segment]);
        let ingress = self.stack.ingress(now, &segment, &mut packet, (), &mut self.out);
        match ingress {
            Ingress::NewSyn if self.listens => {
                let refused = self.stack.accept(now, &segment, (), 7, &mut self.out);
                assert!(!matches!(refused, Err(Refusal::NotInitialSyn | Refusal::TupleInUse)));
            }
            Ingress::NewSyn | Ingress::Unknown => {
                self.stack.reset(now, &segment, (), &mut self.out);
            }
            Ingress::Accepted(id) => self.accepted.push(id),
            _ => {}
        }
        if let (Ingress::Accepted(id) | Ingress::Touched(id), true) = (ingress, flush) {
            self.stack.flush(now, id, &mut self.out);
        }
        Some(ingress)
    }

    /// Does everything that is due.
    pub fn expire(&mut self, now: Instant) -> Vec<ConnId> {
        let mut ended = vec![];
        for _ in 0..1_000_000 {
            match self.stack.expire(now, &mut self.out) {
                Expired::Attend(id) => ended.push(id),
                Expired::Handled => {}
                Expired::Nothing => return ended,
            }
        }
        panic!("the stack never comes to rest");
    }

    pub fn send(&mut self, now: Instant, id: ConnId, bytes: &[u8]) -> usize {
        let n = self.stack.send(id, bytes);
        self.stack.flush(now, id, &mut self.out);
        n
    }

    pub fn close(&mut self, now: Instant, id: ConnId) {
        self.stack.close(id);
        self.stack.flush(now, id, &mut self.out);
    }

    pub fn abort(&mut self, now: Instant, id: ConnId) {
        self.stack.abort(id);
        self.stack.flush(now, id, &mut self.out);
    }

    pub fn read(&mut self, now: Instant, id: ConnId) -> Vec<u8> {
        let mut all = vec![];
        loop {
            let piece = self.stack.received(id).to_vec();
            if piece.is_empty() {
                self.stack.flush(now, id, &mut self.out);
                return all;
            }
            assert_eq!(self.stack.consume(id, piece.len()), piece.len());
            all.extend(piece);
        }
    }

    pub fn status(&self, id: ConnId) -> Status {
        self.stack.status(id)
    }

    pub fn counters(&self) -> &Counters {
        self.stack.counters()
    }

    pub fn assert_empty(&self) {
        let census = self.stack.census();
        let records = (census.connections, census.half_open, census.time_wait, census.tuples);
        assert_eq!(records, (0, 0, 0, 0));
        assert_eq!(self.stack.next_deadline(), None, "a timer without a record");
    }
}

/// A client, a server, and a wire without loss or delay.
pub struct Pair {
    pub now: Instant,
    pub client: Host,
    pub server: Host,
}

impl Pair {
    pub fn new() -> Self {
        Self::with(Config::default(), Config::default())
    }

    pub fn with(client: Config, server: Config) -> Self {
        let small = |config: Config| Config {
            max_connections: config.max_connections.min(64),
            max_half_open: config.max_half_open.min(64),
            max_time_wait: config.max_time_wait.min(64),
            ..config
        };
        Self {
            now: Instant::ZERO,
            client: Host::new(small(client), 1),
            server: Host::new(small(server), 2),
        }
    }

    /// Carries packets both ways until there are none.
    pub fn exchange(&mut self) {
        for _ in 0..100_000 {
            let (to_server, to_client) = (
                std::mem::take(&mut self.client.out.packets),
                std::mem::take(&mut self.server.out.packets),
            );
            if to_server.is_empty() && to_client.is_empty() {
                return;
            }
            for packet in to_server {
                self.server.receive(self.now, &packet, true);
            }
            for packet in to_client {
                self.client.receive(self.now, &packet, true);
            }
        }
        panic!("packets go on for ever");
    }

    /// Lets the time pass, stopping at every deadline, and carries the packets.
    pub fn pass(&mut self, duration: Duration) {
        let end = self.now + duration;
        loop {
            self.exchange();
            let next = self.client.stack.next_deadline().into_iter();
            let Some(next) = next.chain(self.server.stack.next_deadline()).min() else { break };
            if next > end {
                break;
            }
            self.now = self.now.max(next);
            self.client.expire(self.now);
            self.server.expire(self.now);
        }
        self.now = end;
        self.exchange();
    }

    /// Time passes for one side, while the other is gone.
    pub fn pass_alone(&mut self, duration: Duration) -> Vec<Vec<u8>> {
        let end = self.now + duration;
        let mut sent = vec![];
        while let Some(next) = self.client.stack.next_deadline().filter(|next| *next <= end) {
            self.now = self.now.max(next);
            self.client.expire(self.now);
            sent.append(&mut self.client.out.packets);
        }
        self.now = end;
        sent
    }

    /// Carries so many bytes from the server to the client, and looks at every one.
    pub fn download(&mut self, server: ConnId, client: ConnId, len: usize) {
        let Self { server: from, client: to, .. } = self;
        std::mem::swap(from, to);
        self.upload(server, client, len);
        let Self { server: from, client: to, .. } = self;
        std::mem::swap(from, to);
    }

    /// The same from the client to the server.
    pub fn upload(&mut self, client: ConnId, server: ConnId, len: usize) {
        let data = pattern(len);
        let (mut sent, mut received) = (0, vec![]);
        let end = self.now + secs(60);
        while received.len() < len {
            sent += self.client.send(self.now, client, &data[sent..]);
            self.pass(millis(1));
            received.extend(self.server.read(self.now, server));
            assert!(self.now < end, "stuck at {} of {len}", received.len());
        }
        assert!(received == data, "bytes changed");
    }

    pub fn connect(&mut self, tuple: Tuple) -> ConnId {
        self.client
            .stack
            .connect(self.now, tuple, (), 5, &mut self.client.out)
            .expect("a connection")
    }

    /// An established connection: its name at the client, and at the server.
    pub fn open(&mut self, tuple: Tuple) -> (ConnId, ConnId) {
        let client = self.connect(tuple);
        self.exchange();
        let server = self.server.accepted.pop().expect("accepted");
        assert_eq!(self.client.status(client), OPEN);
        assert_eq!(self.server.status(server), OPEN);
        assert_eq!(self.server.stack.tuple(server), Some(tuple.reversed()));
        (client, server)
    }
}

pub const OPEN: Status = Status::Open { may_receive: true, may_send: true };

/// The client's view of a connection from this port.
pub fn v4(port: u16) -> Tuple {
    tuple(&format!("198.51.100.7:{port}"), "192.0.2.1:443")
}

pub fn v6(port: u16) -> Tuple {
    tuple(&format!("[2001:db8:1::7]:{port}"), "[2001:db8:2::1]:443")
}

pub fn tuple(local: &str, remote: &str) -> Tuple {
    let parse = |text: &str| text.parse::<SocketAddr>().expect("an address");
    Tuple::new(parse(local), parse(remote))
}

pub fn secs(secs: u64) -> Duration {
    Duration::from_secs(secs)
}

pub fn millis(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

/// Bytes that do not repeat with any small period.
pub fn pattern(len: usize) -> Vec<u8> {
    (0..len as u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 24) as u8).collect()
}
