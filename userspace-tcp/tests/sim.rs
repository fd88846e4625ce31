//! A deterministic simulation: two stacks over a wire that loses, delays, reorders, duplicates and corrupts packets.
//!
//! Whatever the wire does, every byte arrives in order and exactly once, or the connection ends with a reason; and in the end
//! nothing is left. A failure names its seed: `SIM_SEED=… cargo test --test sim` runs that one only.

mod support;

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::ops::Range;

use support::*;
use userspace_tcp::{CloseReason, Config, ConnId, Duration, Instant, Status};

#[test]
fn a_good_wire_finishes_every_connection() {
    for seed in seeds(0..60) {
        let mut world = World::new(seed, Wire { jitter: millis(0), ..Wire::GOOD });
        world.run();
        world.assert_all_finished();
    }
}

#[test]
fn a_reordering_wire_finishes_every_connection() {
    for seed in seeds(1000..1060) {
        let mut world = World::new(seed, Wire { duplicate: 5, ..Wire::GOOD });
        world.run();
        world.assert_all_finished();
    }
}

#[test]
fn a_bad_wire_delivers_every_byte_in_order_or_gives_a_reason() {
    let mut finished = 0;
    for seed in seeds(2000..2150) {
        let mut dice = Dice(seed ^ 0xbad);
        let wire = Wire {
            loss: dice.below(20),
            duplicate: dice.below(10),
            corrupt: dice.below(10),
            delay: millis(dice.below(150)),
            jitter: millis(dice.below(60)),
        };
        let mut world = World::new(seed, wire);
        world.run();
        finished += world.finished();
    }
    assert!(finished > 0);
}

#[test]
fn aborts_at_any_moment_leave_nothing_behind() {
    for seed in seeds(3000..3100) {
        let mut world = World::new(seed, Wire { loss: 5, ..Wire::GOOD });
        world.aborts = true;
        world.run();
    }
}

#[test]
fn a_wire_that_is_cut_for_a_while_costs_only_time() {
    for seed in seeds(5000..5080) {
        let mut world = World::new(seed, Wire::GOOD);
        let from = world.now + millis(world.dice.below(300));
        world.cut = from..from + millis(world.dice.below(6000));
        world.run();
        world.assert_all_finished();
    }
}

#[test]
fn little_room_to_send_delays_and_loses_nothing() {
    for seed in seeds(4000..4040) {
        let mut world = World::new(seed, Wire { jitter: millis(0), ..Wire::GOOD });
        world.client.out.room = 2;
        world.server.out.room = 3;
        world.run();
        world.assert_all_finished();
    }
}

fn seeds(range: Range<u64>) -> Vec<u64> {
    match std::env::var("SIM_SEED").ok().and_then(|seed| seed.parse().ok()) {
        Some(seed) if range.contains(&seed) => vec![seed],
        Some(_) => vec![],
        None => range.collect(),
    }
}

/// Probabilities in percent.
#[derive(Clone, Copy, Debug)]
struct Wire {
    loss: u64,
    duplicate: u64,
    corrupt: u64,
    delay: Duration,
    jitter: Duration,
}

impl Wire {
    const GOOD: Self = Self {
        loss: 0,
        duplicate: 0,
        corrupt: 0,
        delay: Duration::from_millis(10),
        jitter: Duration::from_millis(5),
    };
}

/// One end of one connection, and what it wants.
#[derive(Debug)]
struct End {
    id: Option<ConnId>,
    /// What it sends before its FIN.
    data: Vec<u8>,
    sent: usize,
    closed: bool,
    received: Vec<u8>,
    /// Reads so many bytes at a time.
    appetite: usize,
    ended: Option<CloseReason>,
}

/// When it arrives, its number, whether the server is the destination, and the packet.
type Flight = (Instant, u64, bool, Vec<u8>);

struct World {
    seed: u64,
    now: Instant,
    wire: Wire,
    dice: Dice,
    client: Host,
    server: Host,
    /// Client ends, and the server ends with the same port.
    ends: Vec<(u16, [End; 2])>,
    flying: BinaryHeap<Reverse<Flight>>,
    flown: u64,
    aborts: bool,
    /// While it is cut, the wire loses everything.
    cut: Range<Instant>,
}

impl World {
    fn new(seed: u64, wire: Wire) -> Self {
        let mut dice = Dice(seed);
        let mut config = || Config {
            receive_buffer: [536, 4096, 65_535][dice.below(3) as usize],
            send_buffer: [600, 10_000, 262_144][dice.below(3) as usize],
            ack_delay: millis(dice.below(2) * 10),
            max_connections: 16,
            max_half_open: 16,
            max_time_wait: 16,
            max_spare: 2,
            ..Config::default()
        };
        let (client, server) = (Host::new(config(), seed as u8), Host::new(config(), !seed as u8));
        let ports = 50_000..=50_000 + dice.below(3) as u16;
        let ends = ports.map(|port| (port, [0, 1].map(|_| End::new(&mut dice)))).collect();
        Self {
            seed,
            now: Instant::from_micros(dice.below(1 << 40) as i64),
            wire,
            ends,
            dice,
            client,
            server,
            flying: BinaryHeap::new(),
            flown: 0,
            aborts: false,
            cut: Instant::ZERO..Instant::ZERO,
        }
    }

    fn run(&mut self) {
        let begin = self.now;
        for n in 0..self.ends.len() {
            let tuple =
                if self.seed.is_multiple_of(2) { v4(self.ends[n].0) } else { v6(self.ends[n].0) };
            let id = self.client.stack.connect(self.now, tuple, (), 0, &mut self.client.out);
            self.ends[n].1[0].id = id.ok();
        }
        for _ in 0..3_000_000 {
            self.step();
            if self.is_over() {
                break;
            }
            let next = [
                self.flying.peek().map(|Reverse((at, ..))| *at),
                self.client.stack.next_deadline(),
                self.server.stack.next_deadline(),
                // Applications get round to reading every few milliseconds.
                self.ends
                    .iter()
                    .any(|(_, ends)| ends.iter().any(End::is_alive))
                    .then(|| self.now + millis(3)),
            ];
            let Some(next) = next.into_iter().flatten().min() else { break };
            self.now = self.now.max(next);
            assert!(
                self.now < begin + secs(4000),
                "seed {}: never ends: {:?}",
                self.seed,
                self.ends
                    .iter()
                    .map(|(_, e)| e.each_ref().map(|e| (
                        e.id,
                        e.data.len(),
                        e.sent,
                        e.received.len(),
                        e.ended
                    )))
                    .collect::<Vec<_>>()
            );
        }
        self.check();
    }

    /// Everything that happens at one instant.
    fn step(&mut self) {
        while let Some(Reverse((at, ..))) = self.flying.peek()
            && *at <= self.now
        {
            let Some(Reverse((_, _, to_server, packet))) = self.flying.pop() else { break };
            let host = if to_server { &mut self.server } else { &mut self.client };
            host.receive(self.now, &packet, false);
            self.launch();
        }
        for _ in 0..100 {
            self.client.expire(self.now);
            self.server.expire(self.now);
            if !self.launch() {
                break;
            }
        }
        self.meet();
        for n in 0..self.ends.len() {
            for side in 0..2 {
                self.act(n, side);
                self.launch();
            }
        }
    }

    /// Finds the connection end that a newly accepted connection belongs to.
    fn meet(&mut self) {
        for id in std::mem::take(&mut self.server.accepted) {
            let port = self.server.stack.tuple(id).map(|tuple| tuple.remote.port);
            let end = self.ends.iter_mut().find(|(p, _)| Some(*p) == port).expect("a port of ours");
            match end.1[1].id {
                None => end.1[1].id = Some(id),
                // The client's SYN came twice, the second time after everything was over.
                Some(_) => {
                    self.server.stack.abort(id);
                    self.server.stack.flush(self.now, id, &mut self.server.out);
                    self.server.stack.release(id);
                }
            }
        }
    }

    /// The application at one end.
    fn act(&mut self, n: usize, side: usize) {
        let end = &mut self.ends[n].1[side];
        let host = if side == 0 { &mut self.client } else { &mut self.server };
        let Some(id) = end.id.filter(|_| end.ended.is_none()) else { return };
        if self.aborts && self.dice.below(400) == 0 {
            host.stack.abort(id);
        }
        let piece = host.stack.received(id);
        let piece = piece[..piece.len().min(end.appetite)].to_vec();
        assert_eq!(host.stack.consume(id, piece.len()), piece.len());
        end.received.extend_from_slice(&piece);
        if let Status::Open { may_send: true, .. } = host.stack.status(id) {
            end.sent += host.stack.send(id, &end.data[end.sent..]);
            if end.sent == end.data.len() && !end.closed {
                end.closed = true;
                host.stack.close(id);
            }
        }
        host.stack.flush(self.now, id, &mut host.out);
        if let Status::Closed(reason) = host.stack.status(id) {
            end.ended = Some(reason);
            // A connection with a RST that found no room yet keeps it until it is released; let it try.
            host.stack.flush(self.now, id, &mut host.out);
            host.stack.release(id);
        }
    }

    /// Puts what both sides sent on the wire. Returns whether there was anything.
    fn launch(&mut self) -> bool {
        let mut any = false;
        for to_server in [true, false] {
            let host = if to_server { &mut self.client } else { &mut self.server };
            for mut packet in std::mem::take(&mut host.out.packets) {
                any = true;
                if self.dice.percent(self.wire.loss) || self.cut.contains(&self.now) {
                    continue;
                }
                if self.dice.percent(self.wire.corrupt) {
                    let at = self.dice.below(packet.len() as u64) as usize;
                    packet[at] ^= 1 << self.dice.below(8);
                }
                let copies = 1 + u64::from(self.dice.percent(self.wire.duplicate));
                for _ in 0..copies {
                    let jitter = self.dice.below(self.wire.jitter.total_micros() + 1);
                    let at = self.now + self.wire.delay + Duration::from_micros(jitter);
                    self.flown += 1;
                    self.flying.push(Reverse((at, self.flown, to_server, packet.clone())));
                }
            }
        }
        any
    }

    fn is_over(&self) -> bool {
        let census = [self.client.stack.census(), self.server.stack.census()];
        self.flying.is_empty()
            && self.ends.iter().all(|(_, ends)| ends[0].ended.is_some())
            && census.iter().all(|census| census.tuples == 0 && census.connections == 0)
    }

    fn check(&self) {
        for host in [&self.client, &self.server] {
            assert_eq!(host.counters().closes(CloseReason::Panicked), 0, "seed {}", self.seed);
            host.assert_empty();
        }
        for (port, ends) in &self.ends {
            for (end, other) in [(&ends[0], &ends[1]), (&ends[1], &ends[0])] {
                let sent = &other.data;
                let context = format!("seed {} port {port}: {:?}", self.seed, end.ended);
                assert!(sent.starts_with(&end.received), "{context}: bytes changed");
                if end.ended == Some(CloseReason::Finished) {
                    assert_eq!(end.received.len(), sent.len(), "{context}: bytes missing");
                }
            }
        }
    }

    fn finished(&self) -> usize {
        let ends = self.ends.iter().flat_map(|(_, ends)| ends);
        ends.filter(|end| end.ended == Some(CloseReason::Finished)).count()
    }

    fn assert_all_finished(&self) {
        assert_eq!(
            self.finished(),
            self.ends.len() * 2,
            "seed {}: {:?}",
            self.seed,
            self.ends.iter().map(|(_, e)| (e[0].ended, e[1].ended)).collect::<Vec<_>>()
        );
    }
}

impl End {
    fn new(dice: &mut Dice) -> Self {
        let length = [0, 1, 1460, 20_000, 150_000][dice.below(5) as usize];
        Self {
            id: None,
            data: pattern(dice.below(length + 1) as usize),
            sent: 0,
            closed: false,
            received: vec![],
            appetite: [300, 2000, usize::MAX][dice.below(3) as usize],
            ended: None,
        }
    }

    fn is_alive(&self) -> bool {
        self.id.is_some() && self.ended.is_none()
    }
}

/// SplitMix64.
struct Dice(u64);

impl Dice {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, limit: u64) -> u64 {
        self.next() % limit.max(1)
    }

    fn percent(&mut self, percent: u64) -> bool {
        self.below(100) < percent
    }
}
