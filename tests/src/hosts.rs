//! The hosts at both ends: a client that sends a stream and wants it back, and an origin that
//! behaves in one of several ways.

use std::net::SocketAddr;

use userspace_tcp::{
    Checksums, CloseReason, Config, ConnId, Emit, Expired, Ingress, Instant, Segment, Stack,
    Status, Tuple,
};

/// How the origin treats connections.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Manner {
    /// Sends back what it gets, and closes after the peer did.
    Echo,
    /// Resets every SYN.
    Refuse,
    /// Answers nothing at all.
    Silent,
    /// Accepts, and resets when the first bytes come.
    ResetOnData,
    /// Accepts, and closes at once.
    CloseEarly,
    /// Accepts, acknowledges, and never reads nor closes.
    Stall,
}

/// Packets that a host sends.
#[derive(Debug, Default)]
pub struct Outbox {
    /// IP packets, oldest first.
    pub packets: Vec<Vec<u8>>,
}

impl Emit<()> for Outbox {
    fn room(&self) -> usize {
        1024
    }

    fn emit<R>(&mut self, _path: &(), len: usize, fill: impl FnOnce(&mut [u8]) -> R) -> R {
        let mut packet = vec![0; len];
        let result = fill(&mut packet);
        self.packets.push(packet);
        result
    }
}

/// A client with any number of streams.
#[derive(Debug)]
pub struct Client {
    stack: Stack<()>,
    /// Its streams.
    pub streams: Vec<Stream>,
    /// What it sends.
    pub out: Outbox,
}

/// One stream of the client: everything is sent, closed, and expected back.
#[derive(Debug)]
pub struct Stream {
    id: ConnId,
    /// What is sent.
    pub bytes: Vec<u8>,
    sent: usize,
    /// What came back.
    pub received: Vec<u8>,
    /// How it ended.
    pub end: Option<CloseReason>,
}

/// An origin.
#[derive(Debug)]
pub struct OriginHost {
    stack: Stack<()>,
    manner: Manner,
    open: Vec<ConnId>,
    /// What it sends.
    pub out: Outbox,
    /// The addresses that connected.
    pub seen: Vec<SocketAddr>,
    /// Bytes that it took after it had closed its own side.
    pub taken: usize,
}

impl Client {
    /// A client without streams.
    #[must_use]
    pub fn new(now: Instant, config: Config) -> Self {
        let stack = Stack::new(config, [1; 32], now).expect("the configuration is good");
        Self { stack, streams: Vec::new(), out: Outbox::default() }
    }

    /// Opens a stream.
    pub fn open(&mut self, now: Instant, from: SocketAddr, to: SocketAddr, bytes: Vec<u8>) {
        let connected = self.stack.connect(now, Tuple::new(from, to), (), 0, &mut self.out);
        let id = connected.expect("the tuple is free");
        self.streams.push(Stream { id, bytes, sent: 0, received: Vec::new(), end: None });
    }

    /// Takes a packet.
    pub fn ingress(&mut self, now: Instant, packet: &mut [u8]) {
        let Ok(segment) = Segment::parse(packet, Checksums::Verify) else { return };
        let len = segment.packet_len();
        match self.stack.ingress(now, &segment, &mut packet[..len], (), &mut self.out) {
            Ingress::Unknown | Ingress::NewSyn => {
                self.stack.reset(now, &segment, (), &mut self.out);
            }
            _ => {}
        }
    }

    /// Reads, writes and closes what can be.
    pub fn turn(&mut self, now: Instant) {
        while self.stack.expire(now, &mut self.out) != Expired::Nothing {}
        for stream in &mut self.streams {
            if stream.end.is_some() {
                continue;
            }
            let received = self.stack.received(stream.id).to_vec();
            stream.received.extend_from_slice(&received);
            self.stack.consume(stream.id, received.len());
            if stream.sent < stream.bytes.len() {
                stream.sent += self.stack.send(stream.id, &stream.bytes[stream.sent..]);
            }
            let status = self.stack.status(stream.id);
            if stream.sent == stream.bytes.len()
                && matches!(status, Status::Open { may_send: true, .. })
            {
                self.stack.close(stream.id);
            }
            self.stack.flush(now, stream.id, &mut self.out);
            if let Status::Closed(reason) = self.stack.status(stream.id) {
                stream.end = Some(reason);
                self.stack.release(stream.id);
            }
        }
    }

    /// Resets a stream.
    pub fn abort(&mut self, now: Instant, index: usize) {
        let id = self.streams[index].id;
        self.stack.abort(id);
        self.stack.flush(now, id, &mut self.out);
    }

    /// When [`turn`](Self::turn) is due.
    #[must_use]
    pub fn next_deadline(&self) -> Option<Instant> {
        self.stack.next_deadline()
    }
}

impl OriginHost {
    /// An origin of this manner.
    #[must_use]
    pub fn new(now: Instant, config: Config, manner: Manner) -> Self {
        let stack = Stack::new(config, [2; 32], now).expect("the configuration is good");
        Self { stack, manner, open: Vec::new(), out: Outbox::default(), seen: Vec::new(), taken: 0 }
    }

    /// Takes a packet.
    pub fn ingress(&mut self, now: Instant, packet: &mut [u8]) {
        if self.manner == Manner::Silent {
            return;
        }
        let Ok(segment) = Segment::parse(packet, Checksums::Verify) else { return };
        let len = segment.packet_len();
        match self.stack.ingress(now, &segment, &mut packet[..len], (), &mut self.out) {
            Ingress::NewSyn if self.manner != Manner::Refuse => {
                let accepted = self.stack.accept(now, &segment, (), 0, &mut self.out);
                accepted.expect("there is room");
            }
            Ingress::Unknown | Ingress::NewSyn => {
                self.stack.reset(now, &segment, (), &mut self.out);
            }
            Ingress::Accepted(id) => {
                self.seen.push(segment.tuple.remote.into());
                self.open.push(id);
            }
            _ => {}
        }
    }

    /// Behaves in its manner.
    pub fn turn(&mut self, now: Instant) {
        while self.stack.expire(now, &mut self.out) != Expired::Nothing {}
        let Self { stack, manner, open, out, taken, .. } = self;
        open.retain(|&id| {
            match manner {
                Manner::Echo | Manner::Refuse | Manner::Silent => echo(stack, id),
                Manner::ResetOnData if !stack.received(id).is_empty() => stack.abort(id),
                Manner::CloseEarly => {
                    let len = stack.received(id).len();
                    *taken += stack.consume(id, len);
                    if matches!(stack.status(id), Status::Open { may_send: true, .. }) {
                        stack.close(id);
                    }
                }
                Manner::ResetOnData | Manner::Stall => {}
            }
            stack.flush(now, id, out);
            let closed = matches!(stack.status(id), Status::Closed(_));
            if closed {
                stack.release(id);
            }
            !closed
        });
    }

    /// When [`turn`](Self::turn) is due.
    #[must_use]
    pub fn next_deadline(&self) -> Option<Instant> {
        self.stack.next_deadline()
    }
}

fn echo(stack: &mut Stack<()>, id: ConnId) {
    loop {
        let bytes = stack.received(id).to_vec();
        let sent = stack.send(id, &bytes);
        stack.consume(id, sent);
        if sent == 0 {
            break;
        }
    }
    if let Status::Open { may_receive: false, may_send: true } = stack.status(id) {
        stack.close(id);
    }
}
