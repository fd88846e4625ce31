//! Every state has an end, even if the peer never says another word.

mod support;

use support::packet::{self, Packet};
use support::*;
use userspace_tcp::{CloseReason, Config, ConnId, Flags, Instant, Status};

#[test]
fn a_syn_that_nobody_answers_times_out() {
    let mut pair = Pair::new();
    let client = pair.connect(v4(1));
    let sent = pair.pass_alone(millis(9_900));
    assert_eq!(sent.len(), 4, "at once, and after 1, 3 and 7 seconds");
    assert_eq!(pair.client.status(client), Status::Opening);
    assert!(pair.pass_alone(millis(200)).is_empty(), "no RST for a handshake");
    assert_ends(&mut pair, client, CloseReason::HandshakeTimeout);
}

#[test]
fn a_half_open_connection_repeats_itself_and_is_forgotten() {
    let mut pair = Pair::new();
    pair.server.receive(pair.now, &Packet::syn(v4(1), 100).bytes(), true);
    let first = pair.server.out.packets.remove(0);
    let syn_ack = packet::read(&first);
    assert_eq!((syn_ack.flags, syn_ack.ack), (Flags::SYN.with(Flags::ACK), 101));
    assert_eq!(
        (syn_ack.mss, syn_ack.window_scale, syn_ack.sack_permitted),
        (Some(1460), Some(0), true)
    );
    assert_eq!(syn_ack.window, 65_535);

    // A duplicate of the SYN gets the same answer at once.
    pair.server.receive(pair.now, &Packet::syn(v4(1), 100).bytes(), true);
    assert_eq!(pair.server.out.packets.remove(0), first);

    std::mem::swap(&mut pair.client, &mut pair.server);
    let mut times = vec![];
    for ms in (0..20_000).step_by(100) {
        pair.now = Instant::from_millis(ms);
        pair.client.expire(pair.now);
        for packet in pair.client.out.packets.drain(..) {
            assert_eq!(packet, first);
            times.push(ms);
        }
    }
    assert_eq!(times, [1_000, 3_000, 7_000]);
    assert_eq!(pair.client.counters().half_open_expired, 1);
    pair.client.assert_empty();
}

#[test]
fn data_that_is_never_acknowledged_times_out() {
    let mut pair = Pair::new();
    let (client, _) = pair.open(v4(1));
    pair.client.send(pair.now, client, b"is anybody there?");
    let sent = pair.pass_alone(millis(59_900));
    assert!((3..10).contains(&sent.len()), "{} retransmissions", sent.len());
    assert_eq!(pair.client.status(client), OPEN);
    let last = pair.pass_alone(millis(200));
    assert!(packet::read(last.last().expect("a RST")).flags.rst());
    assert_ends(&mut pair, client, CloseReason::RetransmissionTimeout);
}

#[test]
fn slow_progress_is_progress() {
    let mut pair = Pair::new();
    let (client, _) = pair.open(v4(1));
    pair.client.send(pair.now, client, &pattern(100));
    let sent = packet::read(&pair.client.out.packets[0]);
    for n in 1..10 {
        // There is always something unacknowledged, but never the same.
        pair.pass_alone(secs(40));
        let ack = sent.seq.wrapping_add(10 * n);
        let acknowledgment = Packet::new(v4(1).reversed(), Flags::ACK, sent.ack, ack);
        pair.client.receive(pair.now, &acknowledgment.bytes(), true);
        assert_eq!(pair.client.status(client), OPEN);
    }
    assert_eq!(pair.client.stack.queued(client), 10);
    pair.pass_alone(secs(59));
    assert_eq!(pair.client.status(client), OPEN);
    pair.pass_alone(secs(2));
    assert_ends(&mut pair, client, CloseReason::RetransmissionTimeout);
}

#[test]
fn a_fin_that_is_never_acknowledged_times_out() {
    let mut pair = Pair::new();
    let (client, _) = pair.open(v4(1));
    pair.client.close(pair.now, client);
    pair.pass_alone(secs(61));
    assert_ends(&mut pair, client, CloseReason::RetransmissionTimeout);
}

#[test]
fn a_peer_that_never_closes_its_side_times_out() {
    let mut pair = Pair::new();
    let (client, server) = pair.open(v4(1));
    pair.client.close(pair.now, client);
    pair.exchange();
    pair.pass(secs(100));
    // Data keeps it alive.
    pair.server.send(pair.now, server, b"not yet");
    pair.exchange();
    pair.client.read(pair.now, client);
    pair.pass(secs(119));
    assert_eq!(pair.client.status(client), Status::Open { may_receive: true, may_send: false });
    pair.pass(secs(2));
    assert_ends(&mut pair, client, CloseReason::FinWaitTimeout);
    assert_eq!(pair.server.status(server), Status::Closed(CloseReason::ResetByPeer));
}

#[test]
fn an_idle_connection_times_out_and_a_busy_one_does_not() {
    let patient = Config { idle_timeout: secs(1000), ..Config::default() };
    let mut pair = Pair::with(Config::default(), patient);
    let (client, server) = pair.open(v4(1));
    for _ in 0..10 {
        pair.pass(secs(200));
        pair.client.send(pair.now, client, b"x");
        pair.exchange();
        pair.server.read(pair.now, server);
    }
    pair.pass(secs(299));
    assert_eq!(pair.client.status(client), OPEN);
    pair.pass(secs(2));
    assert_ends(&mut pair, client, CloseReason::IdleTimeout);
}

#[test]
fn keep_alives_do_not_keep_an_idle_connection() {
    let mut pair = Pair::new();
    let (client, _) = pair.open(v4(1));
    pair.client.send(pair.now, client, b"x");
    let sent = packet::read(&pair.client.out.packets[0]);
    pair.pass(millis(50));
    for _ in 0..18 {
        let probe = Packet::new(v4(1).reversed(), Flags::ACK, sent.ack.wrapping_sub(1), sent.end());
        pair.client.receive(pair.now, &probe.bytes(), true);
        assert_eq!(packet::read(&pair.client.out.packets[0]).ack, sent.ack, "answered");
        pair.client.out.packets.clear();
        pair.pass(secs(16));
    }
    pair.pass_alone(secs(13));
    assert_ends(&mut pair, client, CloseReason::IdleTimeout);
}

#[test]
fn a_window_that_stays_closed_times_out_although_probes_are_answered() {
    let mut pair = Pair::new();
    let (client, server) = pair.open(v4(1));
    // The server never reads.
    let mut sent = 0;
    while sent < 150_000 {
        sent += pair.client.send(pair.now, client, &pattern(150_000)[sent..]);
        pair.pass(millis(10));
    }
    assert_eq!(pair.server.stack.received_len(server), 65_535);
    pair.pass(secs(118));
    assert_eq!(pair.client.status(client), OPEN);
    assert!(pair.client.counters().sent > 50, "with probes");
    pair.pass(secs(4));
    assert_ends(&mut pair, client, CloseReason::PersistTimeout);
}

#[test]
fn a_window_that_opens_again_lets_everything_through() {
    let mut pair = Pair::new();
    let (client, server) = pair.open(v4(1));
    let data = pattern(200_000);
    let (mut sent, mut received) = (0, vec![]);
    for _ in 0..4 {
        sent += pair.client.send(pair.now, client, &data[sent..]);
        pair.pass(secs(100));
        received.extend(pair.server.read(pair.now, server));
    }
    while received.len() < data.len() {
        sent += pair.client.send(pair.now, client, &data[sent..]);
        pair.pass(millis(10));
        received.extend(pair.server.read(pair.now, server));
        assert!(pair.now < Instant::from_secs(450), "stuck at {}", received.len());
    }
    assert!(received == data);
}

#[test]
fn a_peer_that_dies_with_its_window_closed_times_out_sooner() {
    let mut pair = Pair::new();
    let (client, _) = pair.open(v4(1));
    let mut sent = 0;
    while sent < 150_000 {
        sent += pair.client.send(pair.now, client, &pattern(150_000)[sent..]);
        pair.pass(millis(10));
    }
    pair.pass_alone(secs(62));
    assert_ends(&mut pair, client, CloseReason::RetransmissionTimeout);
}

#[test]
fn time_wait_ends_at_its_time() {
    for seconds in [1, 60] {
        let config = Config { time_wait: secs(seconds), ..Config::default() };
        let mut pair = Pair::with(config, Config::default());
        let (client, server) = pair.open(v4(1));
        pair.client.close(pair.now, client);
        pair.exchange();
        pair.server.close(pair.now, server);
        pair.exchange();
        pair.client.stack.release(client);
        pair.pass(millis(seconds * 1000 - 1));
        assert!(pair.client.stack.contains(&v4(1)));
        pair.pass(millis(1));
        pair.client.assert_empty();
    }
}

#[test]
fn a_repeated_fin_begins_time_wait_again() {
    let mut pair = Pair::new();
    let (client, server) = pair.open(v4(1));
    pair.client.close(pair.now, client);
    pair.exchange();
    pair.server.close(pair.now, server);
    let fin = pair.server.out.packets[0].clone();
    pair.exchange();
    pair.client.stack.release(client);
    pair.pass(secs(50));
    pair.client.receive(pair.now, &fin, true);
    pair.pass(secs(50));
    assert!(pair.client.stack.contains(&v4(1)));
    pair.pass(secs(11));
    pair.client.assert_empty();
}

fn assert_ends(pair: &mut Pair, client: ConnId, reason: CloseReason) {
    assert_eq!(pair.client.status(client), Status::Closed(reason));
    assert_eq!(pair.client.counters().closes(reason), 1);
    pair.client.stack.release(client);
    pair.client.assert_empty();
}
