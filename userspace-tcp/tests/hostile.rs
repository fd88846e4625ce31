//! Segments that somebody on the path, or off it, might send.

mod support;

use proptest::prelude::*;
use support::packet::{self, Packet};
use support::*;
use userspace_tcp::{
    Checksums, CloseReason, Config, ConnId, DropReason, Flags, Ingress, Instant, Segment, Status,
};

/// An established connection of the server, and the numbers that its client would use.
struct Victim {
    server: Host,
    id: ConnId,
    now: Instant,
    seq: u32,
    ack: u32,
}

impl Victim {
    fn new() -> Self {
        Self::with(Config::default())
    }

    fn with(config: Config) -> Self {
        let config = Config { max_connections: 8, max_half_open: 8, max_time_wait: 8, ..config };
        let mut server = Host::new(config, 3);
        let now = Instant::ZERO;
        server.receive(now, &Packet::syn(v4(1), 999).bytes(), true);
        let isn = packet::read(&server.out.packets.remove(0)).seq;
        let ack = isn.wrapping_add(1);
        server.receive(now, &Packet::new(v4(1), Flags::ACK, 1000, ack).bytes(), true);
        let id = server.accepted.pop().expect("accepted");
        assert!(server.out.packets.is_empty());
        Self { server, id, now, seq: 1000, ack }
    }

    fn receive(&mut self, packet: &Packet) -> Ingress {
        self.server.receive(self.now, &packet.bytes(), true).expect("a valid segment")
    }

    fn send(&mut self, bytes: &[u8]) -> Vec<Segment> {
        assert_eq!(self.server.send(self.now, self.id, bytes), bytes.len());
        self.sent()
    }

    fn sent(&mut self) -> Vec<Segment> {
        self.server.out.packets.drain(..).map(|sent| packet::read(&sent)).collect()
    }

    fn flags(&self, flags: Flags, seq: u32) -> Packet {
        Packet::new(v4(1), flags, seq, self.ack)
    }

    fn data(&self, offset: u32, payload: &[u8]) -> Packet {
        Packet::data(v4(1), self.seq.wrapping_add(offset), self.ack, payload)
    }

    fn read(&mut self) -> Vec<u8> {
        self.server.read(self.now, self.id)
    }

    #[track_caller]
    fn assert_challenged(&mut self, reason: DropReason, packet: &Packet) {
        self.now += secs(1);
        assert_eq!(self.receive(packet), Ingress::Dropped(reason));
        let sent = self.sent();
        assert_eq!(sent.len(), 1, "one challenge ACK");
        assert_eq!((sent[0].flags, sent[0].ack), (Flags::ACK, self.seq));
        // Not for each of a flood.
        for _ in 0..100 {
            assert_eq!(self.receive(packet), Ingress::Dropped(reason));
        }
        assert_eq!(self.sent().len(), 0);
        assert_eq!(self.server.status(self.id), OPEN);
    }
}

#[test]
fn only_a_reset_at_the_edge_ends_a_connection() {
    let mut victim = Victim::new();
    for offset in [1, 1000, 65_534] {
        let blind = victim.flags(Flags::RST, victim.seq + offset);
        victim.assert_challenged(DropReason::ResetInWindow, &blind);
    }
    for offset in [65_535, 1 << 20, u32::MAX] {
        let blind = victim.flags(Flags::RST, victim.seq.wrapping_add(offset));
        assert_eq!(victim.receive(&blind), Ingress::Dropped(DropReason::ResetOutOfWindow));
        assert!(victim.sent().is_empty());
    }
    victim.receive(&victim.data(0, b"unread"));
    let exact = victim.flags(Flags::RST, victim.seq + 6);
    assert_eq!(victim.receive(&exact), Ingress::Touched(victim.id));
    assert_eq!(victim.server.status(victim.id), Status::Closed(CloseReason::ResetByPeer));
    assert_eq!(victim.read(), b"unread");
    assert!(victim.sent().is_empty(), "a RST is not answered");
}

#[test]
fn a_syn_in_a_connection_is_challenged() {
    let mut victim = Victim::new();
    for offset in [0, 5, 1 << 30] {
        let syn = Packet::syn(v4(1), victim.seq + offset);
        victim.assert_challenged(DropReason::UnexpectedSyn, &syn);
    }
    let again = victim.flags(Flags::SYN.with(Flags::ACK), 999);
    victim.assert_challenged(DropReason::UnexpectedSyn, &again);
}

#[test]
fn acknowledgments_must_be_of_something_sent_and_not_ancient() {
    let mut victim = Victim::new();
    let beyond = Packet::data(v4(1), victim.seq, victim.ack + 1, b"x");
    victim.assert_challenged(DropReason::AckOfUnsent, &beyond);
    let ancient = Packet::data(v4(1), victim.seq, victim.ack.wrapping_sub(1 << 24), b"x");
    victim.assert_challenged(DropReason::AckTooOld, &ancient);
    let none = Packet { flags: Flags::FIN, ..victim.data(0, b"x") };
    assert_eq!(victim.receive(&none), Ingress::Dropped(DropReason::NoAck));
    assert_eq!(victim.read(), b"");
}

#[test]
fn queued_but_unsent_bytes_cannot_be_acknowledged() {
    let mut victim = Victim::new();
    let sent = victim.send(&pattern(100_000));
    let end = sent.iter().map(Segment::end).max().expect("something was sent");
    assert!(end.wrapping_sub(victim.ack) < 100_000, "the congestion window holds some back");
    let optimist = Packet::new(v4(1), Flags::ACK, victim.seq, end.wrapping_add(1000));
    victim.assert_challenged(DropReason::AckOfUnsent, &optimist);
    assert_eq!(victim.server.stack.queued(victim.id), 100_000);
}

#[test]
fn data_with_an_old_acknowledgment_is_not_lost() {
    let mut victim = Victim::new();
    let old = victim.ack;
    victim.send(b"response");
    victim.ack += 8;
    // Two segments change places on the way: the one that acknowledges overtakes the one that does not.
    victim.receive(&victim.data(5, b"world"));
    let late = Packet { window: 1, ..Packet::data(v4(1), victim.seq, old, b"hello") };
    victim.receive(&late);
    assert_eq!(victim.read(), b"helloworld");
    assert_eq!(victim.server.stack.queued(victim.id), 0);
    // The old window is not taken for the current one.
    victim.sent();
    assert_eq!(victim.send(b"next")[0].payload_len(), 4);
}

#[test]
fn a_reordered_bare_acknowledgment_is_no_duplicate() {
    let mut victim = Victim::new();
    let old = victim.ack;
    victim.send(&pattern(3000));
    victim.receive(&Packet::new(v4(1), Flags::ACK, victim.seq, old + 1460));
    victim.sent();
    for _ in 0..10 {
        let stale = Packet::new(v4(1), Flags::ACK, victim.seq, old);
        assert_eq!(victim.receive(&stale), Ingress::Dropped(DropReason::StaleAck));
    }
    assert!(victim.sent().is_empty(), "no fast retransmission");
}

#[test]
fn three_duplicates_retransmit_at_once() {
    let mut victim = Victim::new();
    // Open the congestion window.
    for _ in 0..10 {
        let sent = victim.send(&pattern(1460));
        victim.ack = sent[0].end();
        victim.receive(&Packet::new(v4(1), Flags::ACK, victim.seq, victim.ack));
    }
    let lost = victim.send(&pattern(8000))[0];
    for n in 1..=3 {
        victim.receive(&Packet::new(v4(1), Flags::ACK, victim.seq, lost.seq));
        assert_eq!(victim.sent().iter().any(|sent| sent.seq == lost.seq), n == 3);
    }
}

#[test]
fn an_acknowledgment_during_a_retransmission_is_one_that_the_peer_takes() {
    let mut victim = Victim::new();
    victim.ack = victim.send(&pattern(1460))[0].end();
    victim.receive(&victim.flags(Flags::ACK, victim.seq));
    let sent = victim.send(&pattern(3000));
    let end = sent.iter().map(Segment::end).max().expect("something was sent");
    victim.now += secs(2);
    victim.server.expire(victim.now);
    let again = victim.sent();
    assert_eq!(again[0].seq, sent[0].seq, "retransmitted");
    assert_ne!(again.iter().map(Segment::end).max(), Some(end), "but not everything");
    // The peer has it all, only its acknowledgments do not arrive; it sends data.
    victim.receive(&victim.data(0, b"hello"));
    victim.now += millis(20);
    victim.server.expire(victim.now);
    let acknowledgment = victim.sent().pop().expect("an acknowledgment");
    assert_eq!((acknowledgment.payload_len(), acknowledgment.seq), (0, end));
}

#[test]
fn an_acknowledgment_is_not_beyond_a_closed_window() {
    let mut victim = Victim::new();
    victim.receive(&Packet { window: 0, ..victim.flags(Flags::ACK, victim.seq) });
    victim.server.send(victim.now, victim.id, &pattern(100));
    victim.now += secs(2);
    victim.server.expire(victim.now);
    let probes = victim.sent();
    assert_eq!((probes[0].seq, probes[0].payload_len()), (victim.ack, 1));
    victim.receive(&Packet { window: 0, ..victim.data(0, b"hello") });
    victim.now += millis(20);
    victim.server.expire(victim.now);
    let acknowledgment = victim.sent().pop().expect("an acknowledgment");
    assert_eq!((acknowledgment.payload_len(), acknowledgment.seq), (0, victim.ack));
}

#[test]
fn a_fin_that_comes_before_its_data_is_remembered() {
    let mut victim = Victim::new();
    let fin = Packet { flags: Flags::FIN.with(Flags::ACK), ..victim.data(5, b"world") };
    victim.receive(&fin);
    assert_eq!(victim.server.status(victim.id), OPEN);
    victim.receive(&victim.data(0, b"hello"));
    assert_eq!(victim.read(), b"helloworld");
    assert_eq!(
        victim.server.status(victim.id),
        Status::Open { may_receive: false, may_send: true }
    );
    victim.now += millis(20);
    victim.server.expire(victim.now);
    let acknowledged = victim.sent().last().map(|sent| sent.ack);
    assert_eq!(acknowledged, Some(victim.seq + 11), "the FIN too, without another one");
}

#[test]
fn a_fin_behind_data_that_did_not_fit_is_not_taken() {
    let mut victim = Victim::with(Config { receive_buffer: 1000, ..Config::default() });
    let data = pattern(1400);
    let fin = Packet { flags: Flags::FIN.with(Flags::ACK), ..victim.data(0, &data) };
    victim.receive(&fin);
    let mut received = victim.read();
    assert_eq!(received.len(), 1000);
    assert_eq!(victim.server.status(victim.id), OPEN, "400 bytes are missing");
    victim.receive(&Packet {
        flags: Flags::FIN.with(Flags::ACK),
        ..victim.data(1000, &data[1000..])
    });
    received.extend(victim.read());
    assert!(received == data);
    assert!(matches!(victim.server.status(victim.id), Status::Open { may_receive: false, .. }));
}

#[test]
fn a_fin_that_comes_with_old_data_is_taken() {
    let mut victim = Victim::new();
    victim.receive(&victim.data(0, b"hello"));
    let again = Packet { flags: Flags::FIN.with(Flags::ACK), ..victim.data(0, b"hello") };
    victim.receive(&again);
    assert_eq!(victim.read(), b"hello");
    assert!(matches!(victim.server.status(victim.id), Status::Open { may_receive: false, .. }));
}

#[test]
fn the_acknowledgment_of_a_fin_with_old_data_counts() {
    let mut victim = Victim::new();
    victim.receive(&victim.data(0, b"hello"));
    victim.ack = victim.send(b"response")[0].end();
    victim.receive(&Packet { flags: Flags::FIN.with(Flags::ACK), ..victim.data(0, b"hello") });
    assert_eq!(victim.server.stack.queued(victim.id), 0);
}

#[test]
fn there_is_nothing_behind_a_fin() {
    for flags in [Flags::ACK, Flags::ACK.with(Flags::FIN)] {
        let mut victim = Victim::new();
        let mut last = victim.data(0, b"all");
        last.flags = last.flags.with(Flags::FIN);
        victim.receive(&last);
        for offset in [1, 4, 5] {
            let mut more = victim.data(offset, b"more");
            more.flags = flags;
            victim.receive(&more);
        }
        assert_eq!(victim.read(), b"all");
        victim.server.close(victim.now, victim.id);
        assert!(victim.sent().iter().all(|sent| sent.ack == victim.seq + 4));
        // The acknowledgment of our FIN counts whatever comes with it.
        victim.ack = victim.ack.wrapping_add(1);
        let mut more = victim.data(4, b"more");
        more.flags = flags;
        victim.receive(&more);
        assert_eq!(victim.server.status(victim.id), Status::Closed(CloseReason::Finished));
    }
}

#[test]
fn acknowledgments_are_old_only_beyond_the_scaled_window() {
    let mut victim = Victim::new();
    let begin = victim.ack;
    while victim.ack.wrapping_sub(begin) < 200_000 {
        victim.ack = victim.send(&pattern(1460))[0].end();
        victim.receive(&victim.flags(Flags::ACK, victim.seq));
    }
    victim.receive(&Packet::data(v4(1), victim.seq, begin.wrapping_add(50_000), b"late"));
    assert_eq!(victim.read(), b"late");
}

#[test]
fn a_full_buffer_takes_nothing_more_and_answers_probes() {
    let mut victim = Victim::with(Config { receive_buffer: 2000, ..Config::default() });
    victim.receive(&victim.data(0, &pattern(1000)));
    victim.receive(&victim.data(1000, &pattern(1400)));
    victim.now += millis(20);
    victim.server.expire(victim.now);
    victim.sent();
    for offset in [2000, 2001, 2500] {
        victim.receive(&victim.data(offset, b"!"));
        let sent = victim.sent();
        assert_eq!((sent[0].ack, sent[0].window), (victim.seq + 2000, 0));
    }
    assert_eq!(victim.read().len(), 2000);
    assert_eq!(victim.sent()[0].window, 2000, "a window update");
}

#[test]
fn data_before_the_first_acknowledgment_went_out_stays_within_the_window() {
    // What makes smoltcp panic with larger buffers: more than a window in order before any ACK.
    let mut victim = Victim::new();
    let data = pattern(70_000);
    for n in 0..70 {
        let (from, to) = (n * 1000, n * 1000 + 1000);
        let packet = victim.data(from as u32, &data[from..to]).bytes();
        victim.server.receive(victim.now, &packet, false);
    }
    assert!(victim.read() == data[..65_535]);
    assert_eq!(victim.server.counters().closes(CloseReason::Panicked), 0);
}

#[test]
fn half_open_connections_are_guarded_too() {
    let mut server = Host::new(Config { max_connections: 4, ..Config::default() }, 3);
    let now = Instant::ZERO;
    server.receive(now, &Packet::syn(v4(1), 999).bytes(), true);
    let isn = packet::read(&server.out.packets.remove(0)).seq;
    let mut check = |packet: Packet, expected: Ingress, answer: Option<Flags>| {
        assert_eq!(server.receive(now, &packet.bytes(), true), Some(expected), "{packet:?}");
        let sent: Vec<_> = server.out.packets.drain(..).map(|sent| packet::read(&sent)).collect();
        assert_eq!(sent.first().map(|sent| sent.flags), answer, "{packet:?}");
    };
    let rst = Flags::RST;
    let wrong_ack = Packet::new(v4(1), Flags::ACK, 1000, isn);
    check(wrong_ack, Ingress::Dropped(DropReason::WrongHandshakeAck), Some(rst));
    let blind = Packet::new(v4(1), rst, 1001, 0);
    check(blind, Ingress::Dropped(DropReason::ResetInWindow), Some(Flags::ACK));
    let far = Packet::new(v4(1), rst, 999, 0);
    check(far, Ingress::Dropped(DropReason::ResetOutOfWindow), None);
    let other = Packet::syn(v4(1), 5);
    check(other, Ingress::Dropped(DropReason::UnexpectedSyn), None);
    let outside = Packet::new(v4(1), Flags::ACK, 1000 + 65_535, isn.wrapping_add(1));
    check(outside, Ingress::Dropped(DropReason::WrongHandshakeSeq), None);
    check(Packet::new(v4(1), rst, 1000, 0), Ingress::Absorbed, None);
    check(Packet::new(v4(1), Flags::ACK, 1000, isn.wrapping_add(1)), Ingress::Unknown, Some(rst));
    assert_eq!(server.stack.census().tuples, 0);
}

#[test]
fn the_first_acknowledgment_may_bring_data_or_come_late() {
    for early in [false, true] {
        let mut server = Host::new(Config { max_connections: 4, ..Config::default() }, 3);
        let now = Instant::ZERO;
        server.receive(now, &Packet::syn(v4(1), 999).bytes(), true);
        let ack = packet::read(&server.out.packets.remove(0)).seq.wrapping_add(1);
        let (first, second) =
            (Packet::data(v4(1), 1000, ack, b"GET "), Packet::data(v4(1), 1004, ack, b"/"));
        let order = if early { [&second, &first] } else { [&first, &second] };
        assert!(matches!(server.receive(now, &order[0].bytes(), true), Some(Ingress::Accepted(_))));
        server.receive(now, &order[1].bytes(), true);
        let id = server.accepted[0];
        assert_eq!(server.read(now, id), b"GET /");
    }
}

#[test]
fn a_scaled_window_is_used() {
    let mut victim = Victim::new();
    // 10 times 128 bytes (the SYN said scale 7), and no more.
    victim.receive(&Packet { window: 10, ..victim.flags(Flags::ACK, victim.seq) });
    let sent: u32 = victim.send(&pattern(5000)).iter().map(Segment::payload_len).sum();
    assert_eq!(sent, 1280);
}

#[test]
fn an_opening_connection_believes_only_the_right_answer() {
    let mut client = Host::new(Config { max_connections: 4, ..Config::default() }, 3);
    let now = Instant::ZERO;
    let id = client.stack.connect(now, v4(1), (), 0, &mut client.out).unwrap();
    let isn = packet::read(&client.out.packets.remove(0)).seq;
    let from = v4(1).reversed();
    let (ack, syn_ack) = (isn.wrapping_add(1), Flags::SYN.with(Flags::ACK));
    for (packet, expected, answered) in [
        (Packet::new(from, syn_ack, 5, isn), DropReason::WrongHandshakeAck, true),
        (
            Packet::new(from, Flags::ACK, 5, ack.wrapping_add(9)),
            DropReason::WrongHandshakeAck,
            true,
        ),
        (Packet::new(from, Flags::RST, 0, 0), DropReason::ResetOutOfWindow, false),
        (
            Packet::new(from, Flags::RST.with(Flags::ACK), 0, isn),
            DropReason::ResetOutOfWindow,
            false,
        ),
        (Packet::new(from, Flags::ACK, 5, ack), DropReason::NoAck, false),
    ] {
        assert_eq!(client.receive(now, &packet.bytes(), true), Some(Ingress::Dropped(expected)));
        let sent: Vec<_> = client.out.packets.drain(..).collect();
        assert_eq!(sent.len(), usize::from(answered));
        assert!(sent.iter().all(|sent| packet::read(sent).flags.rst()));
        assert_eq!(client.status(id), Status::Opening);
    }
    client.receive(now, &Packet::new(from, syn_ack, 5, ack).bytes(), true);
    assert_eq!(client.status(id), OPEN);
    let third = packet::read(&client.out.packets[0]);
    assert_eq!((third.flags, third.seq, third.ack), (Flags::ACK, ack, 6));
}

#[test]
fn opening_from_both_sides_at_once_gives_one_connection() {
    let mut pair = Pair::new();
    let a = pair.client.stack.connect(pair.now, v4(1), (), 0, &mut pair.client.out).unwrap();
    let b =
        pair.server.stack.connect(pair.now, v4(1).reversed(), (), 0, &mut pair.server.out).unwrap();
    pair.pass(secs(5));
    assert_eq!((pair.client.status(a), pair.server.status(b)), (OPEN, OPEN));
    pair.upload(a, b, 10_000);
    pair.download(b, a, 10_000);
}

#[test]
fn a_reset_tells_the_sender_exactly_what_it_needs() {
    let mut server = Host::new(Config { max_connections: 4, ..Config::default() }, 3);
    server.listens = false;
    let mut answer = |packet: Packet| {
        server.receive(Instant::ZERO, &packet.bytes(), true);
        server.out.packets.pop().map(|sent| packet::read(&sent))
    };
    let syn = answer(Packet { payload: b"abc".to_vec(), ..Packet::syn(v6(1), 100) }).unwrap();
    assert_eq!((syn.seq, syn.ack, syn.flags), (0, 104, Flags::RST.with(Flags::ACK)));
    let data = answer(Packet::data(v6(1), 7, 1234, b"abc")).unwrap();
    assert_eq!((data.seq, data.flags), (1234, Flags::RST));
    assert_eq!(answer(Packet::new(v6(1), Flags::RST, 7, 0)), None);
}

#[test]
fn a_packet_shorter_than_its_segment_is_dropped() {
    let mut victim = Victim::new();
    let mut packet = victim.data(0, b"hello").bytes();
    let segment = Segment::parse(&packet, Checksums::Verify).unwrap();
    packet.truncate(30);
    let ingress =
        victim.server.stack.ingress(victim.now, &segment, &mut packet, (), &mut victim.server.out);
    assert_eq!(ingress, Ingress::Dropped(DropReason::NotThisPacket));
}

#[derive(Clone, Debug)]
enum Step {
    Segment {
        port: u16,
        flags: u8,
        seq: u32,
        ack: u32,
        window: u16,
        options: Vec<u8>,
        payload: usize,
    },
    Pass(u64),
    Send(usize),
    Read,
    Close,
    Abort,
    Connect(u16),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    // Numbers near to what is expected, mostly; they are offsets from it.
    let offset = prop_oneof![
        4 => Just(0u32),
        4 => 0u32..3000,
        2 => (0u32..3000).prop_map(u32::wrapping_neg),
        1 => any::<u32>(),
    ];
    let options = prop_oneof![3 => Just(vec![]), 1 => Just(vec![2, 4, 0, 1, 3, 3, 14, 0]), 1 => prop::collection::vec(any::<u8>(), 0..10).prop_map(|mut o| { o.resize(o.len() / 4 * 4, 1); o })];
    let flags = prop_oneof![6 => Just(0x10u8), 3 => Just(0x11u8), 2 => Just(0x02u8), 1 => Just(0x12u8), 1 => Just(0x14u8), 2 => 0u8..64];
    let window = prop_oneof![Just(0u16), Just(1), 0u16..2000, any::<u16>()];
    let payload = prop_oneof![Just(0usize), 1usize..1400];
    let segment = (1u16..4, flags, offset.clone(), offset, window, options, payload).prop_map(
        |(port, flags, seq, ack, window, options, payload)| Step::Segment {
            port,
            flags,
            seq,
            ack,
            window,
            options,
            payload,
        },
    );
    let step = prop_oneof![
        20 => segment,
        3 => (0u64..5000).prop_map(Step::Pass),
        1 => (0u64..200_000).prop_map(Step::Pass),
        4 => (1usize..5000).prop_map(Step::Send),
        3 => Just(Step::Read),
        1 => Just(Step::Close),
        1 => Just(Step::Abort),
        1 => (1u16..4).prop_map(Step::Connect),
    ];
    prop::collection::vec(step, 1..120)
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, cases: 1500, ..ProptestConfig::default() })]

    #[test]
    fn arbitrary_segments_neither_panic_nor_pile_up(steps in steps()) {
        let limits = Config { max_connections: 2, max_half_open: 2, max_time_wait: 2, receive_buffer: 3000, send_buffer: 4000, ..Config::default() };
        let mut host = Host::new(limits, 9);
        let mut now = Instant::ZERO;
        // What the stack last said on each port: the numbers that a peer would continue with.
        let mut said = [(1000u32, 0u32); 4];
        let mut ids = vec![];
        for step in steps {
            match step {
                Step::Segment { port, flags, seq, ack, window, options, payload } => {
                    let (next_seq, next_ack) = said[usize::from(port)];
                    let packet = Packet {
                        tuple: v4(port),
                        seq: next_seq.wrapping_add(seq),
                        ack: next_ack.wrapping_add(ack),
                        flags: Flags::from_bits(flags),
                        window,
                        options,
                        payload: pattern(payload),
                    };
                    host.receive(now, &packet.bytes(), true);
                }
                Step::Pass(ms) => {
                    now += millis(ms);
                    ids.extend(host.expire(now));
                }
                Step::Send(len) => for id in &ids { host.send(now, *id, &pattern(len)); },
                Step::Read => for id in &ids { host.read(now, *id); },
                Step::Close => for id in &ids { host.close(now, *id); },
                Step::Abort => for id in &ids { host.abort(now, *id); },
                Step::Connect(port) => {
                    let connected = host.stack.connect(now, v4(port).reversed(), (), 0, &mut host.out);
                    ids.extend(connected);
                }
            }
            ids.append(&mut host.accepted);
            for sent in host.out.packets.drain(..) {
                let sent = packet::read(&sent);
                if sent.flags.ack() && !sent.flags.rst() {
                    said[usize::from(sent.tuple.local.port)] = (sent.ack, sent.end());
                }
            }
            ids.retain(|id| {
                let over = matches!(host.stack.status(*id), Status::Closed(_));
                if over {
                    host.stack.release(*id);
                }
                !over
            });
            let census = host.stack.census();
            prop_assert_eq!(host.counters().closes(CloseReason::Panicked), 0);
            prop_assert_eq!(host.counters().drops(DropReason::Panicked), 0);
            let listed = census.half_open + census.time_wait;
            prop_assert!((listed..=listed + census.connections).contains(&census.tuples));
            prop_assert!(host.stack.backlog() <= 2);
        }
        // Whatever happened, time ends it all.
        for _ in 0..100 {
            now += secs(30);
            for id in host.expire(now) {
                host.stack.release(id);
            }
            host.out.packets.clear();
        }
        // But for what nobody reads.
        for id in ids {
            let released = host.status(id) == Status::Closed(CloseReason::Released);
            prop_assert!(released || host.stack.received_len(id) > 0);
            host.stack.release(id);
        }
        host.assert_empty();
    }
}
