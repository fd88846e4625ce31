//! Connections from SYN to TIME-WAIT, over a wire that loses nothing.

mod support;

use support::packet::{self, Packet};
use support::*;
use userspace_tcp::{CloseReason, Config, Flags, Ingress, Instant, Refusal, Status};

#[test]
fn a_connection_carries_bytes_both_ways_and_ends_in_order() {
    for tuple in [v4(40_000), v6(40_000)] {
        let mut pair = Pair::new();
        let (client, server) = pair.open(tuple);
        assert_eq!((pair.client.stack.tag(client), pair.server.stack.tag(server)), (5, 7));

        let request = pattern(100);
        assert_eq!(pair.client.send(pair.now, client, &request), 100);
        pair.pass(millis(20));
        assert_eq!(pair.server.read(pair.now, server), request);
        assert_eq!(pair.client.stack.queued(client), 0, "acknowledged");

        pair.download(server, client, 1_000_000);

        pair.client.close(pair.now, client);
        pair.exchange();
        assert_eq!(pair.server.status(server), HALF_CLOSED);
        pair.server.close(pair.now, server);
        pair.exchange();
        assert_eq!(pair.client.status(client), FINISHED);
        assert_eq!(pair.server.status(server), FINISHED);
        assert_eq!(pair.client.stack.census().time_wait, 1);
        assert_eq!(pair.server.stack.census().time_wait, 0, "who closes last needs not wait");

        pair.client.stack.release(client);
        pair.server.stack.release(server);
        assert!(pair.client.stack.contains(&tuple));
        pair.pass(Config::default().time_wait);
        pair.client.assert_empty();
        pair.server.assert_empty();
        assert_eq!(pair.client.status(client), Status::Closed(CloseReason::Released));
    }
}

#[test]
fn each_direction_can_be_closed_while_the_other_goes_on() {
    let mut pair = Pair::new();
    let (client, server) = pair.open(v4(1));
    pair.client.close(pair.now, client);
    pair.exchange();
    assert_eq!(pair.client.status(client), Status::Open { may_receive: true, may_send: false });
    pair.download(server, client, 300_000);

    let (client, server) = pair.open(v4(2));
    pair.server.close(pair.now, server);
    pair.exchange();
    assert_eq!(pair.client.status(client), HALF_CLOSED);
    pair.client.send(pair.now, client, b"still here");
    pair.exchange();
    assert_eq!(pair.server.read(pair.now, server), b"still here");
}

#[test]
fn closing_at_the_same_time_finishes_both() {
    let mut pair = Pair::new();
    let (client, server) = pair.open(v4(1));
    pair.client.close(pair.now, client);
    pair.server.close(pair.now, server);
    pair.exchange();
    assert_eq!(pair.client.status(client), FINISHED);
    assert_eq!(pair.server.status(server), FINISHED);
    assert_eq!(pair.client.stack.census().time_wait, 1);
    assert_eq!(pair.server.stack.census().time_wait, 1);
}

#[test]
fn what_was_received_before_the_end_can_be_read_after_it() {
    let mut pair = Pair::new();
    let (client, server) = pair.open(v4(1));
    pair.client.close(pair.now, client);
    pair.server.send(pair.now, server, b"last words");
    pair.server.close(pair.now, server);
    pair.pass(millis(20));
    assert_eq!(pair.client.stack.census().time_wait, 1, "TCP is done");
    assert_eq!(pair.client.status(client), Status::Open { may_receive: true, may_send: false });
    assert_eq!(pair.client.read(pair.now, client), b"last words");
    assert_eq!(pair.client.status(client), FINISHED);
}

#[test]
fn an_abort_resets_the_peer() {
    let mut pair = Pair::new();
    let (client, server) = pair.open(v4(1));
    pair.server.abort(pair.now, server);
    pair.exchange();
    assert_eq!(pair.server.status(server), Status::Closed(CloseReason::Aborted));
    assert_eq!(pair.client.status(client), Status::Closed(CloseReason::ResetByPeer));
    assert!(!pair.client.stack.contains(&v4(1)) && !pair.server.stack.contains(&v4(1).reversed()));
    assert_eq!(pair.client.send(pair.now, client, b"x"), 0);
}

#[test]
fn an_abort_waits_for_room() {
    let mut pair = Pair::new();
    let (client, server) = pair.open(v4(1));
    pair.server.out.room = 0;
    pair.server.abort(pair.now, server);
    assert_eq!(pair.server.stack.backlog(), 1);
    pair.server.out.room = 1;
    assert_eq!(pair.server.expire(pair.now), [server]);
    pair.exchange();
    assert_eq!(pair.client.status(client), Status::Closed(CloseReason::ResetByPeer));
}

#[test]
fn nobody_listening_refuses() {
    let mut pair = Pair::new();
    pair.server.listens = false;
    let client = pair.connect(v4(1));
    pair.exchange();
    assert_eq!(pair.client.status(client), Status::Closed(CloseReason::Refused));
    assert_eq!(pair.server.counters().answered, 1);
}

#[test]
fn closing_before_the_handshake_is_complete_gives_up() {
    let mut pair = Pair::new();
    let client = pair.connect(v4(1));
    pair.client.close(pair.now, client);
    assert_eq!(pair.client.status(client), Status::Closed(CloseReason::Aborted));
    pair.client.stack.release(client);
    pair.client.assert_empty();
}

#[test]
fn a_closed_tuple_waits_and_may_be_used_again() {
    let mut pair = Pair::new();
    // The server closes first and has the TIME-WAIT record; the client comes again from the same port.
    for round in 0..5 {
        let (client, server) = pair.open(v4(1));
        pair.server.send(pair.now, server, &pattern(10_000));
        pair.exchange();
        pair.server.close(pair.now, server);
        pair.exchange();
        pair.client.read(pair.now, client);
        pair.client.close(pair.now, client);
        pair.exchange();
        assert_eq!((pair.client.status(client), pair.server.status(server)), (FINISHED, FINISHED));
        pair.client.stack.release(client);
        pair.server.stack.release(server);
        assert_eq!(pair.server.stack.census().time_wait, 1);
        assert_eq!(pair.server.counters().time_wait_replaced, round);
        // Nothing of the client is left; a new SYN has a later number, if its clock has moved on.
        pair.client.assert_empty();
        pair.now += secs(1);
    }
}

#[test]
fn an_active_open_may_replace_time_wait_with_a_later_number() {
    let mut pair = Pair::new();
    let (client, server) = pair.open(v4(1));
    pair.client.send(pair.now, client, &pattern(50_000));
    pair.exchange();
    pair.server.read(pair.now, server);
    pair.client.close(pair.now, client);
    pair.exchange();
    pair.server.close(pair.now, server);
    pair.exchange();
    pair.server.stack.release(server);
    pair.client.stack.release(client);
    assert_eq!(pair.client.stack.census().time_wait, 1);
    // At the same instant: the clock alone would choose the old number again.
    let (client, server) = pair.open(v4(1));
    assert_eq!(pair.client.counters().time_wait_replaced, 1);
    pair.client.send(pair.now, client, b"again");
    pair.exchange();
    assert_eq!(pair.server.read(pair.now, server), b"again");
}

#[test]
fn an_old_syn_does_not_replace_time_wait() {
    let mut pair = Pair::new();
    let (client, server) = pair.open(v4(1));
    pair.server.close(pair.now, server);
    pair.exchange();
    pair.client.close(pair.now, client);
    let fin = pair.client.out.packets.last().cloned().expect("a FIN");
    pair.exchange();
    let fin_seq = packet::read(&fin).seq;
    for (seq, expected) in [(fin_seq, Ingress::Absorbed), (fin_seq + 2, Ingress::NewSyn)] {
        pair.server.listens = false;
        let syn = Packet::syn(v4(1), seq).bytes();
        assert_eq!(pair.server.receive(pair.now, &syn, true), Some(expected));
    }
    pair.server.out.packets.clear();
    // A FIN that comes again is acknowledged again.
    assert_eq!(pair.server.receive(pair.now, &fin, true), Some(Ingress::Absorbed));
    let acknowledgment = packet::read(&pair.server.out.packets[0]);
    assert_eq!((acknowledgment.ack, acknowledgment.flags), (fin_seq + 1, Flags::ACK));
    // A RST does not end it (RFC 1337).
    let reset = Packet::new(v4(1), Flags::RST, fin_seq + 1, 0).bytes();
    pair.server.receive(pair.now, &reset, true);
    assert_eq!(pair.server.stack.census().time_wait, 1);
}

#[test]
fn a_tuple_in_use_cannot_be_opened_again() {
    let mut pair = Pair::new();
    pair.open(v4(1));
    let again = pair.client.stack.connect(pair.now, v4(1), (), 0, &mut pair.client.out);
    assert_eq!(again, Err(Refusal::TupleInUse));
    for unusable in [
        tuple("198.51.100.7:1", "[2001:db8::1]:80"),
        tuple("198.51.100.7:0", "192.0.2.1:80"),
        tuple("198.51.100.7:1", "0.0.0.0:80"),
        tuple("198.51.100.7:1", "255.255.255.255:80"),
        tuple("192.0.2.1:80", "192.0.2.1:80"),
    ] {
        let refused = pair.client.stack.connect(pair.now, unusable, (), 0, &mut pair.client.out);
        assert_eq!(refused, Err(Refusal::TupleUnusable), "{unusable}");
    }
    assert_eq!(pair.client.counters().refusals(Refusal::TupleUnusable), 5);
}

#[test]
fn tables_do_not_grow_beyond_their_limits() {
    let limits = Config {
        max_connections: 3,
        max_half_open: 2,
        max_time_wait: 2,
        resets_burst: 5,
        ..Config::default()
    };
    let mut pair = Pair::with(Config::default(), limits);
    // Half-open: SYNs whose SYN-ACKs nobody answers.
    for port in 1..=9 {
        pair.server.receive(pair.now, &Packet::syn(v4(port), 1).bytes(), true);
    }
    assert_eq!(pair.server.stack.census().half_open, 2);
    assert_eq!(pair.server.counters().refusals(Refusal::HalfOpenFull), 7);
    pair.server.out.packets.clear();
    pair.pass(secs(60));
    pair.server.assert_empty();

    // Connections: handshakes that complete when there is no room any more are left to the client to repeat.
    for port in 1..=3 {
        pair.open(v4(100 + port));
    }
    let fourth = pair.connect(v4(110));
    pair.exchange();
    assert_eq!(pair.client.status(fourth), Status::Opening);
    assert_eq!(pair.server.counters().refusals(Refusal::ConnectionsFull), 1);
    let own = pair.server.stack.connect(pair.now, v4(9), (), 0, &mut pair.server.out);
    assert_eq!(own, Err(Refusal::ConnectionsFull));

    // Resets: no more than the burst.
    for port in 1..=20 {
        let stray = Packet::new(v4(200 + port), Flags::ACK, 1, 1).bytes();
        assert_eq!(pair.server.receive(pair.now, &stray, true), Some(Ingress::Unknown));
    }
    assert_eq!(pair.server.out.packets.len(), 5);
    assert_eq!(pair.server.counters().resets_limited, 15);
}

#[test]
fn the_oldest_time_wait_record_gives_way() {
    let limits = Config { max_time_wait: 2, ..Config::default() };
    let mut pair = Pair::with(limits, Config::default());
    for port in 1..=5 {
        let (client, server) = pair.open(v4(port));
        pair.client.close(pair.now, client);
        pair.exchange();
        pair.server.close(pair.now, server);
        pair.exchange();
        pair.client.stack.release(client);
        pair.server.stack.release(server);
    }
    assert_eq!(pair.client.stack.census().time_wait, 2);
    assert_eq!(pair.client.counters().time_wait_recycled, 3);
    let left: Vec<bool> = (1..=5).map(|port| pair.client.stack.contains(&v4(port))).collect();
    assert_eq!(left, [false, false, false, true, true]);
}

#[test]
fn sequence_numbers_wrap_around_in_both_directions() {
    for tuple in [v4(1), v6(1)] {
        // The initial number follows the clock, four microseconds each: find the time at which it is about to wrap.
        for client_wraps in [true, false] {
            let mut pair = Pair::new();
            pair.connect(tuple);
            let syn = packet::read(&pair.client.out.packets[0]);
            pair.exchange();
            let id = pair.server.accepted.pop().expect("accepted");
            pair.server.send(pair.now, id, b"x");
            let sent = packet::read(&pair.server.out.packets[0]);
            let isn = if client_wraps { syn.seq } else { sent.seq.wrapping_sub(1) };
            let distance = 0u32.wrapping_sub(isn).wrapping_sub(100_000);

            let mut pair = Pair::new();
            pair.now = Instant::from_micros(i64::from(distance) * 4);
            let (client, server) = pair.open(tuple);
            pair.download(server, client, 300_000);
            pair.upload(client, server, 300_000);
        }
    }
}

#[test]
fn a_released_connection_leaves_nothing_to_the_next_one() {
    let mut pair = Pair::new();
    let (client, server) = pair.open(v4(1));
    pair.client.send(pair.now, client, b"secret");
    pair.exchange();
    pair.server.abort(pair.now, server);
    pair.exchange();
    pair.server.stack.release(server);
    pair.client.stack.release(client);
    assert_eq!(pair.server.stack.census().spare, 1);
    let (client, new) = pair.open(v4(2));
    assert_eq!((pair.server.stack.census().spare, new.index()), (0, server.index()));
    assert_eq!(pair.server.stack.received(new), b"");
    assert_eq!(pair.server.stack.received(server), b"");
    assert_eq!(pair.server.stack.send(server, b"stale name"), 0);
    assert_eq!(pair.server.status(server), Status::Closed(CloseReason::Released));
    pair.client.send(pair.now, client, b"new");
    pair.exchange();
    assert_eq!(pair.server.read(pair.now, new), b"new");
}

#[test]
fn splicing_moves_everything_and_waits_for_room() {
    let small = Config { send_buffer: 2000, ..Config::default() };
    let mut pair = Pair::with(Config::default(), small);
    let (from_client, from) = pair.open(v4(1));
    let (to_client, to) = pair.open(v4(2));
    let data = pattern(200_000);
    let (mut sent, mut received) = (0, vec![]);
    while received.len() < data.len() {
        sent += pair.client.send(pair.now, from_client, &data[sent..]);
        pair.pass(millis(1));
        pair.server.stack.splice(from, to);
        pair.server.stack.flush(pair.now, from, &mut pair.server.out);
        pair.server.stack.flush(pair.now, to, &mut pair.server.out);
        pair.pass(millis(1));
        received.extend(pair.client.read(pair.now, to_client));
        assert!(pair.now < Instant::from_secs(100), "stuck at {}", received.len());
    }
    assert!(received == data);
    assert_eq!(pair.server.stack.splice(from, from), 0);
}

#[test]
fn a_full_receive_buffer_is_not_emptied_in_crumbs() {
    let small = Config { send_buffer: 2000, receive_buffer: 8000, ..Config::default() };
    let mut pair = Pair::with(Config::default(), small);
    let (from_client, from) = pair.open(v4(1));
    let (_, to) = pair.open(v4(2));
    pair.client.send(pair.now, from_client, &pattern(20_000));
    pair.pass(millis(100));
    assert_eq!(pair.server.stack.received_len(from), 8000);
    pair.server.stack.send(to, &pattern(1900));
    assert_eq!(pair.server.stack.splice(from, to), 0, "100 bytes are not worth a window update");
    pair.server.stack.flush(pair.now, to, &mut pair.server.out);
    pair.pass(millis(100));
    assert_eq!(pair.server.stack.splice(from, to), 2000);
}

#[test]
fn packets_are_no_larger_than_the_path_allows() {
    let mut pair = Pair::new();
    let (client, server) = pair.open(v4(1));
    let sizes = |pair: &mut Pair| -> Vec<usize> {
        let sizes = pair.server.out.packets.iter().map(Vec::len).collect();
        pair.pass(millis(50));
        pair.client.read(pair.now, client);
        pair.pass(millis(50));
        sizes
    };
    pair.server.send(pair.now, server, &pattern(20_000));
    assert_eq!(sizes(&mut pair).into_iter().max(), Some(1500));
    for (mtu, expected) in [(1450, 1400), (1279, 576), (100, 576), (9000, 576)] {
        pair.server.stack.lower_mtu(server, mtu);
        pair.server.send(pair.now, server, &pattern(20_000));
        assert_eq!(sizes(&mut pair).into_iter().max(), Some(expected), "after {mtu}");
    }
}

#[test]
fn one_flush_sends_a_bounded_number_of_packets() {
    let config = Config { send_buffer: 1024 * 1024, lower_mtus: vec![576], ..Config::default() };
    let mut pair = Pair::with(Config::default(), config);
    let (client, server) = pair.open(v4(1));
    // Open the congestion window first.
    for _ in 0..20 {
        pair.server.send(pair.now, server, &pattern(60_000));
        pair.pass(millis(100));
        pair.client.read(pair.now, client);
        pair.pass(millis(100));
    }
    pair.server.stack.lower_mtu(server, 576);
    pair.server.send(pair.now, server, &pattern(60_000));
    assert_eq!(pair.server.out.packets.len(), 64);
    assert_eq!(pair.server.stack.backlog(), 1);
    pair.server.expire(pair.now);
    assert!(pair.server.out.packets.len() > 64);
    assert_eq!(pair.server.stack.backlog(), 0);
}

const HALF_CLOSED: Status = Status::Open { may_receive: false, may_send: true };
const FINISHED: Status = Status::Closed(CloseReason::Finished);
