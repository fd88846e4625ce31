//! The data plane under a script: streams of a real client and a real origin, and between them
//! frames that nobody should send.

use std::net::{IpAddr, SocketAddr};

use headgate::{
    port::{Nic, Port},
    routes::NeighbourState,
    tally::{Event, Reason},
};
use userspace_tcp::{
    Census, Checksums, CloseReason, DropReason, Duration, Flags, Refusal, Segment, Tuple,
};

use super::{
    packet::{self, Forged},
    script::Script,
};
use crate::{
    hosts::Manner,
    rig::{Rig, RigConfig, SERVICES, Seen, arriving},
    wire::Impairment,
};

/// Plays a script on a [`Rig`], and asserts after every step that every frame is accounted for and
/// no table exceeds its limit, that no engine panicked, and that everything ends in the end.
///
/// The first four bytes choose workers, origin, wires and end; then come operations, one byte for
/// which and some for how. As long as nothing was forged, streams must come back unharmed: loss,
/// duplicates, replays and resets may cut them short, but not change a byte.
pub fn plane(data: &[u8]) {
    let mut script = Script(data);
    let mut world = World::new(&mut script);
    for _ in 0..OPERATIONS {
        if script.is_over() {
            break;
        }
        world.operate(&mut script);
        world.audit();
    }
    world.end();
}

struct World {
    rig: Rig,
    ends_by_itself: bool,
    is_forged: bool,
    manner: Manner,
    /// How much more time the script may let pass.
    patience: Duration,
    /// The same in turns, which cost the fuzzer's time.
    turns: usize,
    /// Bytes that streams may still send.
    bytes: usize,
}

impl World {
    fn new(script: &mut Script<'_>) -> Self {
        let [who, wire, seed, end] = [(); 4].map(|()| script.byte());
        let manner = MANNERS[usize::from(who >> 2 & 7) % MANNERS.len()];
        let neighbour = match who >> 6 {
            0 | 1 => NeighbourState::Valid,
            2 => NeighbourState::Incomplete,
            _ => NeighbourState::Failed,
        };
        let rig = Rig::new(RigConfig {
            workers: 1 + usize::from(who & 3) % 3,
            impairment: impairment(wire),
            manner,
            scatter: who & 0x20 != 0,
            neighbour,
            seed: seed.into(),
            memory: REMEMBERED,
        });
        Self {
            rig,
            ends_by_itself: end & 1 == 0,
            is_forged: false,
            manner,
            patience: Duration::from_secs(1800),
            turns: TURNS,
            bytes: 100_000,
        }
    }

    fn operate(&mut self, script: &mut Script<'_>) {
        match script.byte() % 16 {
            0 => self.pass(Duration::ZERO),
            1 => self.open(script),
            2 | 3 => self.pass(Duration::from_micros(100 << (script.byte() % 21))),
            4 => self.jump(Duration::from_micros(100 << (script.byte() % 21))),
            5 => self.replay(script),
            6..=8 => self.forge(script),
            9 => self.raw(script),
            10 => self.build(script),
            11 => self.abort(script),
            12 => self.rig.impair(impairment(script.byte())),
            13 => self.burst(script),
            14 => self.break_off(script),
            _ => self.exchange(script),
        }
    }

    /// A client's stream, or two at once.
    fn open(&mut self, script: &mut Script<'_>) {
        let (choice, size) = (script.byte(), script.byte());
        if self.rig.client.streams.len() >= STREAMS {
            return;
        }
        let len = (usize::from(size & 15) << (size >> 4)).min(self.bytes);
        self.bytes -= len;
        let port = 1000 + self.rig.client.streams.len() as u16;
        self.rig.open(usize::from(choice) % SERVICES.len(), port, len);
    }

    /// Lets time pass in which everybody acts.
    fn pass(&mut self, time: Duration) {
        let time = time.min(self.patience);
        self.patience -= time;
        self.rig.step();
        self.turns -= self.rig.pass(time, self.turns);
    }

    /// Lets time pass in which nobody acts: a host that stood still.
    fn jump(&mut self, time: Duration) {
        let time = time.min(self.patience);
        self.patience -= time;
        self.rig.now += time;
    }

    /// A frame comes once more, or late.
    fn replay(&mut self, script: &mut Script<'_>) {
        let (which, worker) = (script.byte(), script.byte());
        let incoming = || self.rig.seen.iter().rev().filter(|seen| seen.is_incoming);
        let count = incoming().count();
        if count == 0 {
            return;
        }
        let seen = incoming().nth(usize::from(which) % count).cloned();
        if let Some(Seen { nic, frame, .. }) = seen {
            self.inject(worker, nic, &frame);
        }
    }

    /// A frame like one that was seen, or like the answer to one, with some changes.
    fn forge(&mut self, script: &mut Script<'_>) {
        let (which, worker, edits, care) =
            (script.byte(), script.byte(), script.below(5), script.byte());
        let Some((nic, mut packet)) = self.model(which) else { return };
        for _ in 0..edits {
            edit(&mut packet, script);
        }
        self.send(nic ^ (care >> 7), worker, care, packet);
    }

    /// Any bytes in an IP frame.
    fn raw(&mut self, script: &mut Script<'_>) {
        let (worker, care, len) = (script.byte(), script.byte(), script.byte());
        let packet = script.take(len.into()).to_vec();
        self.send(care >> 7, worker, care, packet);
    }

    /// A segment from nothing: of a client, or of the origin to some pool port.
    fn build(&mut self, script: &mut Script<'_>) {
        let (who, worker, flags) = (script.byte(), script.byte(), script.byte());
        let service = usize::from(who) % SERVICES.len();
        let service = SERVICES[service].parse().expect("an address");
        let (nic, tuple) = if who & 4 == 0 {
            let port = 2000 + u16::from(who >> 3);
            (0, Tuple::new(client(service, port), service))
        } else {
            let port = 19_990 + u16::from(script.byte()) * 4;
            (1, to_pool(service, port))
        };
        let (seq, ack, window) = (script.word(), script.word(), script.short());
        let (options, payload) = (script.byte() & 63, script.byte());
        let options = script.take(options.into()).to_vec();
        let payload = vec![payload; usize::from(payload)];
        let forged = Forged { tuple, seq, ack, flags, window, options, payload };
        self.send(nic, worker, 0, forged.packet());
    }

    /// A stream of the client is reset.
    fn abort(&mut self, script: &mut Script<'_>) {
        let which = script.byte();
        if let Some(count) = self.rig.client.streams.len().checked_sub(1) {
            let index = usize::from(which) % (count + 1);
            if self.rig.client.streams[index].end.is_none() {
                self.rig.client.abort(self.rig.now, index);
            }
        }
    }

    /// The same frame very often, with ascending source ports if asked for: more than a batch, or
    /// than there is room.
    fn burst(&mut self, script: &mut Script<'_>) {
        let (which, worker, count) = (script.byte(), script.byte(), script.byte());
        let Some((nic, mut packet)) = self.model(which) else { return };
        let Some(at) = packet::tcp_at(&packet) else { return };
        let port = u16::from_be_bytes([packet[at], packet[at + 1]]);
        for n in 0..u16::from(count) {
            if worker & 0x80 != 0 {
                packet[at..at + 2].copy_from_slice(&port.wrapping_add(n).to_be_bytes());
            }
            self.send(nic, worker, 0, packet.clone());
        }
    }

    /// One worker drains, or all sessions are cut off.
    fn break_off(&mut self, script: &mut Script<'_>) {
        match script.byte() {
            0..=31 => self.rig.cut_off(),
            32..=95 => {
                let worker = script.below(self.rig.workers.len());
                self.rig.workers[worker].0.drain();
            }
            _ => {}
        }
    }

    /// A whole handshake that the script conducts for a client, with a first segment of data.
    fn exchange(&mut self, script: &mut Script<'_>) {
        let (who, worker, data) = (script.byte(), script.byte(), script.byte());
        let service = SERVICES[usize::from(who) % SERVICES.len()].parse().expect("an address");
        let port = 3000 + u16::from(who >> 2);
        let tuple = Tuple::new(client(service, port), service);
        let seq = script.word();
        let options = OPTIONS[usize::from(worker >> 5) % OPTIONS.len()].to_vec();
        let flags = Flags::SYN.bits();
        let window = script.short();
        let mut forged = Forged { tuple, seq, ack: 0, flags, window, options, payload: Vec::new() };
        self.send(0, worker, 0, forged.packet());
        self.pass(Duration::ZERO);
        let answered =
            self.rig.seen.iter().rev().filter(|seen| !seen.is_incoming).find_map(|seen| {
                let segment = Segment::parse(&seen.frame[14..], Checksums::Verify).ok()?;
                (segment.tuple == tuple).then_some(segment.seq)
            });
        let Some(isn) = answered else { return };
        forged.options.clear();
        forged.flags = Flags::ACK.with(Flags::PSH).bits();
        (forged.seq, forged.ack) = (seq.wrapping_add(1), isn.wrapping_add(1));
        forged.payload = vec![data; usize::from(data & 0x7f)];
        self.send(0, worker, 0, forged.packet());
        self.pass(Duration::ZERO);
    }

    /// A frame to start from: one that arrived, or the answer to one that left.
    fn model(&self, which: u8) -> Option<(Nic, Vec<u8>)> {
        let count = self.rig.seen.len();
        let seen = self.rig.seen.iter().rev().nth(usize::from(which) % count.max(1))?;
        let packet = &seen.frame[14..];
        if seen.is_incoming {
            return Some((seen.nic, packet.to_vec()));
        }
        let segment = Segment::parse(packet, Checksums::Verify);
        let segment = segment.expect("what the gateway sends is well-formed");
        let flags = match (segment.flags.syn(), segment.flags.ack()) {
            (true, false) => Flags::SYN.with(Flags::ACK),
            _ => Flags::ACK,
        };
        let answer = Forged {
            tuple: segment.tuple,
            seq: segment.ack,
            ack: segment.end(),
            flags: flags.bits(),
            window: segment.window,
            options: Vec::new(),
            payload: Vec::new(),
        };
        Some((seen.nic, answer.packet()))
    }

    /// Lets a forged packet arrive, its length and checksums mended unless `care` says otherwise.
    fn send(&mut self, nic: Nic, worker: u8, care: u8, mut packet: Vec<u8>) {
        self.is_forged = true;
        packet.truncate(LONGEST);
        if care & 7 != 7 {
            packet::fix_length(&mut packet);
        }
        if care >> 3 & 7 != 7 {
            packet::mend(&mut packet);
        }
        if care & 0x40 != 0 {
            // Short frames are padded (IEEE 802.3).
            packet.resize(packet.len().max(46), 0xaa);
        }
        self.inject(worker, nic, &arriving(nic, &packet));
    }

    fn inject(&mut self, worker: u8, nic: Nic, frame: &[u8]) {
        let worker = usize::from(worker & 0x1f) % self.rig.workers.len();
        self.rig.inject(worker, nic, frame);
    }

    /// What must hold at any time.
    fn audit(&mut self) {
        self.rig.assert_conserved();
        for (plane, port) in &mut self.rig.workers {
            let Census { connections, half_open, time_wait, spare, tuples, .. } =
                plane.stack().census();
            let census = plane.stack().census();
            assert!(connections <= 512 && half_open <= 256, "{census:?}");
            assert!(time_wait <= census.max_time_wait && spare <= 512, "{census:?}");
            assert!(tuples <= connections + half_open + time_wait, "{census:?}");
            assert!(plane.session_count() <= 256 && connections <= 2 * plane.session_count());
            assert!(port.room() <= 1024);
            let counters = plane.stack().counters();
            assert_eq!(counters.closes(CloseReason::Panicked), 0, "a connection panicked");
            assert_eq!(counters.drops(DropReason::Panicked), 0, "a handshake panicked");
            assert_eq!(counters.refusals(Refusal::Engine), 0, "the engine refused");
            assert_eq!(plane.tally().dropped(Reason::Internal), 0, "an internal error");
        }
        if !self.is_forged {
            self.assert_unharmed();
        }
    }

    fn assert_unharmed(&self) {
        for stream in &self.rig.client.streams {
            assert!(stream.bytes.starts_with(&stream.received), "bytes changed on their way");
            let is_done = stream.end == Some(CloseReason::Finished);
            let is_whole = stream.received.len() == stream.bytes.len();
            assert!(!is_done || is_whole || self.manner != Manner::Echo, "bytes were lost");
        }
    }

    /// Whatever happened, nothing lasts: sessions end by their limits, or when they are cut off.
    fn end(mut self) {
        self.rig.impair(Impairment::default());
        self.rig.workers.iter_mut().for_each(|(plane, _)| plane.drain());
        if self.ends_by_itself {
            for _ in 0..60 {
                self.rig.pass(Duration::from_secs(60), TURNS);
                self.audit();
            }
        } else {
            self.rig.pass(Duration::from_secs(20), TURNS);
            self.rig.cut_off();
            self.audit();
            self.rig.pass(Duration::from_secs(60), TURNS);
        }
        self.audit();
        self.rig.assert_empty();

        // TIME-WAIT ends too, and then nothing happens any more.
        self.rig.pass(Duration::from_secs(400), TURNS);
        let turns = self.rig.pass(Duration::from_secs(1000), 100);
        assert!(turns < 100, "somebody is never quiet");
        self.audit();
        self.rig.assert_empty();
        for (plane, port) in &mut self.rig.workers {
            let census = plane.stack().census();
            assert_eq!((census.time_wait, census.tuples), (0, 0), "{census:?}");
            assert_eq!(plane.next_deadline(), None);
            assert_eq!(port.room(), 1024, "{:?}", port.census());
        }
        let tally = self.rig.tally();
        assert_eq!(tally.event(Event::HandedOver), tally.event(Event::TakenOver));
    }
}

/// Changes one thing about a packet.
fn edit(packet: &mut Vec<u8>, script: &mut Script<'_>) {
    let what = script.byte() % 14;
    let Some(at) = packet::tcp_at(packet) else { return };
    let mut add = |offset: usize, script: &mut Script<'_>| {
        let field = &mut packet[at + offset..at + offset + 4];
        let old = u32::from_be_bytes([field[0], field[1], field[2], field[3]]);
        let new = old.wrapping_add_signed(i32::from(script.short() as i16));
        field.copy_from_slice(&new.to_be_bytes());
    };
    match what {
        0 => packet[at + 13] = script.byte(),
        1 => add(4, script),
        2 => add(8, script),
        3 => packet[at + 4..at + 8].copy_from_slice(&script.word().to_be_bytes()),
        4 => packet[at + 8..at + 12].copy_from_slice(&script.word().to_be_bytes()),
        5 => packet[at + 14..at + 16].copy_from_slice(&script.short().to_be_bytes()),
        6 => {
            let (len, fill) = (usize::from(script.byte()) * 6, script.byte());
            packet.resize(packet.len() + len, fill);
        }
        7 => packet.truncate(at + 20 + usize::from(script.byte())),
        8 => packet[at..at + 2].copy_from_slice(&script.short().to_be_bytes()),
        9 => packet[at + 2..at + 4].copy_from_slice(&script.short().to_be_bytes()),
        10 => {
            let index = usize::from(script.byte()) % packet.len();
            packet[index] = script.byte();
        }
        11 => insert_options(packet, at, script),
        12 => packet.truncate(script.byte().into()),
        _ => packet[2..6].copy_from_slice(&script.word().to_be_bytes()),
    }
}

/// Puts options before those that are there, as far as a TCP header can hold them.
fn insert_options(packet: &mut Vec<u8>, at: usize, script: &mut Script<'_>) {
    let words = script.below(11);
    let header = usize::from(packet[at + 12] >> 4) + words;
    let mut options = script.take(words * 4).to_vec();
    if header <= 15 {
        options.resize(words * 4, 0);
        packet.splice(at + 20..at + 20, options);
        packet[at + 12] = (header << 4) as u8 | packet[at + 12] & 0x0f;
    }
}

fn impairment(choice: u8) -> Impairment {
    let some = |bits: u8, much| [0.0, 0.02, 0.2, much][usize::from(bits & 3)];
    Impairment {
        loss: some(choice, 1.0),
        duplicate: some(choice >> 2, 0.5),
        corrupt: some(choice >> 4, 0.3),
        delay: Duration::from_millis([0, 1, 40, 0][usize::from(choice >> 6)]),
        jitter: Duration::from_millis([0, 0, 30, 5][usize::from(choice >> 6)]),
    }
}

fn client(service: SocketAddr, port: u16) -> SocketAddr {
    let address = if service.is_ipv4() { "198.51.100.2" } else { "2001:db8:1::2" };
    (address.parse::<IpAddr>().expect("an address"), port).into()
}

/// From the origin of the service's family to a pool port.
fn to_pool(service: SocketAddr, port: u16) -> Tuple {
    let [origin, pool] = match service.is_ipv4() {
        true => ["192.0.2.80", "192.0.2.16"],
        false => ["2001:db8:2::80", "2001:db8:2::10"],
    };
    let address = |text: &str| text.parse::<IpAddr>().expect("an address");
    let origin = SocketAddr::from((address(origin), 80));
    Tuple::new(origin, SocketAddr::from((address(pool), port)))
}

const MANNERS: [Manner; 6] = [
    Manner::Echo,
    Manner::Refuse,
    Manner::Silent,
    Manner::ResetOnData,
    Manner::CloseEarly,
    Manner::Stall,
];
/// SYN options, as clients send them.
const OPTIONS: [&[u8]; 4] =
    [&[], &[2, 4, 5, 180, 1, 3, 3, 7, 4, 2], &[2, 4, 0, 1], &[3, 3, 14, 2, 4, 255, 255]];
const OPERATIONS: usize = 256;
const STREAMS: usize = 12;
const REMEMBERED: usize = 48;
const TURNS: usize = 20_000;
/// An IP packet that fits a frame, with room to spare.
const LONGEST: usize = 1700;
