//! What a segment costs, by the number of connections; what a connection costs; and what bytes cost.
//!
//! `cargo bench -p userspace-tcp`. A million connections take 3 GB: `STACK_BENCH_MILLION=1 cargo bench -p userspace-tcp`.

use std::hint::black_box;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use packet::{Packet, read};
use userspace_tcp::{
    Checksums, Config, ConnId, Duration, Emit, Flags, Ingress, Instant, Segment, Stack, Status,
    Tuple,
};

#[allow(dead_code, unreachable_pub, reason = "shared with the tests")]
#[path = "../tests/support/packet.rs"]
mod packet;

criterion_group!(benches, segments, connections, bytes, parsing);
criterion_main!(benches);

/// A small request and its acknowledgment, for a connection chosen at random.
fn segments(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("segment");
    group.throughput(Throughput::Elements(1));
    let mut counts = vec![1, 1000, 100_000];
    if std::env::var_os("STACK_BENCH_MILLION").is_some() {
        counts.push(1_000_000);
    }
    for count in counts {
        let mut server = Server::new(count, 536, 536);
        let mut clients: Vec<Client> = (0..count).map(|n| server.open(n as u32)).collect();
        let mut random = 1u64;
        group.bench_function(format!("{count} connections"), |bencher| {
            bencher.iter(|| {
                random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                let client = &mut clients[(random >> 33) as usize % count];
                let id = server.receive(client, &mut [0; 140]);
                let n = server.stack.received(id).len();
                server.stack.consume(id, black_box(n));
                server.stack.flush(NOW, id, &mut server.out);
            });
        });
        // The same in batches of 64, as they come from a ring.
        group.throughput(Throughput::Elements(BATCH as u64));
        group.bench_function(format!("{count} connections, batches of 64"), |bencher| {
            let mut packets = vec![[0; 140]; BATCH];
            let mut ids = Vec::with_capacity(BATCH);
            bencher.iter(|| {
                let segments: [Segment; BATCH] = std::array::from_fn(|n| {
                    random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                    let client = &mut clients[(random >> 33) as usize % count];
                    client.write_next(&mut packets[n]);
                    Segment::parse(&packets[n], Checksums::Trust).expect("valid")
                });
                server.stack.anticipate(&segments);
                for (segment, packet) in segments.iter().zip(&mut packets) {
                    ids.push(server.ingress(segment, packet).expect("touched"));
                }
                for id in ids.drain(..) {
                    let n = server.stack.received(id).len();
                    server.stack.consume(id, black_box(n));
                    server.stack.flush(NOW, id, &mut server.out);
                }
            });
        });
        group.throughput(Throughput::Elements(1));
    }
}

/// Five segments of a client, from SYN to the acknowledgment of our FIN.
fn connections(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("open and close");
    for (receive, send) in [(2048, 4096), (16_384, 16_384), (65_535, 131_072)] {
        for spare in [0, 16] {
            let mut server = Server::with_spare(4, receive, send, spare);
            let first = server.open(0);
            server.stack.abort(first.id);
            server.stack.flush(NOW, first.id, &mut server.out);
            server.stack.release(first.id);
            let ack = first.ack;
            let all: Vec<Vec<u8>> = [
                Packet::syn(tuple(0), 999),
                Packet::new(tuple(0), Flags::ACK, 1000, ack),
                Packet::new(tuple(0), Flags::FIN.with(Flags::ACK), 1000, ack),
                Packet::new(tuple(0), Flags::ACK, 1001, ack.wrapping_add(1)),
            ]
            .iter()
            .map(Packet::bytes)
            .collect();
            let name =
                format!("{receive} + {send} bytes, {}", if spare > 0 { "recycled" } else { "new" });
            group.bench_function(name, |bencher| {
                bencher.iter_batched(
                    || all.clone(),
                    |mut packets| {
                        for packet in &mut packets {
                            let id = server.step(packet);
                            let Some(id) = id else { continue };
                            if let Status::Open { may_receive: false, .. } = server.stack.status(id)
                            {
                                server.stack.close(id);
                            }
                            server.stack.flush(NOW, id, &mut server.out);
                            if let Status::Closed(_) = server.stack.status(id) {
                                server.stack.release(id);
                            }
                        }
                    },
                    BatchSize::SmallInput,
                );
            });
            assert_eq!(server.stack.census().tuples, 0);
        }
    }
}

/// Bulk data with full segments in one direction.
fn bytes(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("bulk");
    group.throughput(Throughput::Bytes(1460));
    let mut server = Server::new(4, 65_535, 131_072);
    let mut client = server.open(0);
    group.bench_function("receive", |bencher| {
        bencher.iter(|| {
            let id = server.receive(&mut client, &mut [0; 1500]);
            let n = server.stack.received(id).len();
            server.stack.consume(id, black_box(n));
            server.stack.flush(NOW, id, &mut server.out);
        });
    });
    let client = server.open(1);
    let mut acknowledgment = Packet::new(client.tuple, Flags::ACK, client.seq, client.ack).bytes();
    let payload = [7; 1460];
    let mut ack = client.ack;
    group.bench_function("send", |bencher| {
        bencher.iter(|| {
            assert_eq!(server.stack.send(client.id, black_box(&payload)), 1460);
            server.stack.flush(NOW, client.id, &mut server.out);
            ack = ack.wrapping_add(1460);
            acknowledgment[28..32].copy_from_slice(&ack.to_be_bytes());
            server.step(&mut acknowledgment);
        });
    });
}

fn parsing(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("parse and verify");
    for len in [0, 100, 1460] {
        let packet = Packet::data(tuple(0), 1, 2, &vec![7; len]).bytes();
        group.throughput(Throughput::Bytes(packet.len() as u64));
        group.bench_function(format!("{len} bytes"), |bencher| {
            bencher.iter(|| Segment::parse(black_box(&packet), Checksums::Verify));
        });
    }
}

struct Server {
    stack: Stack<u64>,
    out: Frame,
}

/// A client that sends in order.
struct Client {
    id: ConnId,
    tuple: Tuple,
    seq: u32,
    ack: u32,
}

impl Server {
    fn new(connections: usize, receive: usize, send: usize) -> Self {
        Self::with_spare(connections, receive, send, 0)
    }

    fn with_spare(connections: usize, receive: usize, send: usize, spare: usize) -> Self {
        let config = Config {
            max_connections: connections,
            max_half_open: 16,
            max_time_wait: 16,
            max_spare: spare,
            receive_buffer: receive,
            send_buffer: send,
            ack_delay: Duration::ZERO,
            ..Config::default()
        };
        let stack = Stack::new(config, [7; 32], NOW).expect("a stack");
        Self { stack, out: Frame { bytes: vec![0; 2048], len: 0 } }
    }

    fn open(&mut self, n: u32) -> Client {
        let tuple = tuple(n);
        self.step(&mut Packet::syn(tuple, 999).bytes());
        let ack = read(&self.out.bytes[..self.out.len]).seq.wrapping_add(1);
        let id = self.step(&mut Packet::new(tuple, Flags::ACK, 1000, ack).bytes());
        Client { id: id.expect("accepted"), tuple, seq: 1000, ack }
    }

    fn step(&mut self, packet: &mut [u8]) -> Option<ConnId> {
        let segment = Segment::parse(packet, Checksums::Trust).expect("valid");
        self.ingress(&segment, packet)
    }

    fn ingress(&mut self, segment: &Segment, packet: &mut [u8]) -> Option<ConnId> {
        match self.stack.ingress(NOW, segment, packet, 0, &mut self.out) {
            Ingress::Accepted(id) | Ingress::Touched(id) => Some(id),
            Ingress::NewSyn => {
                self.stack.accept(NOW, segment, 0, 0, &mut self.out).expect("accepted");
                None
            }
            other => panic!("{other:?}"),
        }
    }

    fn receive(&mut self, client: &mut Client, packet: &mut [u8]) -> ConnId {
        client.write_next(packet);
        self.step(packet).expect("touched")
    }
}

impl Client {
    /// Its next segment, written by hand: checksums are not looked at.
    fn write_next(&mut self, packet: &mut [u8]) {
        let len = packet.len();
        let (IpAddr::V4(source), IpAddr::V4(destination)) =
            (self.tuple.local.addr, self.tuple.remote.addr)
        else {
            unreachable!("all are IPv4")
        };
        packet[0] = 0x45;
        packet[2..4].copy_from_slice(&(len as u16).to_be_bytes());
        packet[8..10].copy_from_slice(&[64, 6]);
        packet[12..16].copy_from_slice(&source.octets());
        packet[16..20].copy_from_slice(&destination.octets());
        packet[20..22].copy_from_slice(&self.tuple.local.port.to_be_bytes());
        packet[22..24].copy_from_slice(&self.tuple.remote.port.to_be_bytes());
        packet[24..28].copy_from_slice(&self.seq.to_be_bytes());
        packet[28..32].copy_from_slice(&self.ack.to_be_bytes());
        packet[32..36].copy_from_slice(&[0x50, 0x10, 0xff, 0xff]);
        self.seq = self.seq.wrapping_add(len as u32 - 40);
    }
}

/// One transmit frame, used again and again.
struct Frame {
    bytes: Vec<u8>,
    len: usize,
}

impl Emit<u64> for Frame {
    fn room(&self) -> usize {
        64
    }

    fn emit<R>(&mut self, _path: &u64, len: usize, fill: impl FnOnce(&mut [u8]) -> R) -> R {
        self.len = len;
        fill(&mut self.bytes[..len])
    }
}

fn tuple(n: u32) -> Tuple {
    let client = IpAddr::V4(Ipv4Addr::from_bits(0x0a00_0001 + n / 50_000));
    let server = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1));
    let port = 1024 + (n % 50_000) as u16;
    Tuple::new(SocketAddr::new(client, port), SocketAddr::new(server, 443))
}

const NOW: Instant = Instant::from_micros_const(1_000_000_000);
const BATCH: usize = 64;
