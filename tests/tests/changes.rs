//! The world around the data plane changes while connections are open: routers, stations, workers;
//! and whoever is not part of a connection cannot change it.

use headgate::{routes::NeighbourState, tally::Event};
use headgate_tests::{
    fuzzing::mend,
    hosts::Manner,
    rig::{Rig, RigConfig, arriving},
    wire::Impairment,
};
use userspace_tcp::{CloseReason, Duration};

const CLIENT: u8 = 0;
const ORIGIN: u8 = 1;
const NEW_STATION: [u8; 6] = [2, 0, 0, 0, 9, 9];

/// A rig in which a large stream is under way.
fn busy() -> Rig {
    let mut rig = Rig::new(RigConfig { memory: 100_000, ..RigConfig::default() });
    rig.open(0, 1000, 3_000_000);
    tick(&mut rig, 10);
    rig
}

/// Lets so many milliseconds pass, one by one.
fn tick(rig: &mut Rig, millis: u64) {
    for _ in 0..millis {
        rig.step();
        rig.now += Duration::from_millis(1);
    }
}

/// Frames that left through `nic`, and how many of them went to `station`.
fn sent_to(rig: &Rig, nic: u8, station: [u8; 6]) -> (usize, usize) {
    let sent = rig.seen.iter().filter(|seen| seen.nic == nic && !seen.is_incoming);
    let there = sent.clone().filter(|seen| seen.frame[..6] == station);
    (sent.count(), there.count())
}

#[test]
fn clients_are_followed_to_another_router() {
    let mut rig = busy();
    rig.peers[0] = NEW_STATION;
    tick(&mut rig, 2);
    rig.seen.clear();
    tick(&mut rig, 100);
    let (all, there) = sent_to(&rig, CLIENT, NEW_STATION);
    assert!(all > 100 && all == there, "{there} of {all}");
    rig.cut_off();
}

#[test]
fn origins_are_followed_to_another_station() {
    for dial_between in [false, true] {
        let mut rig = busy();
        rig.peers[1] = NEW_STATION;
        rig.resolve(NeighbourState::Valid);
        if dial_between {
            rig.open(0, 1001, 0);
        }
        tick(&mut rig, 5);
        rig.seen.clear();
        tick(&mut rig, 100);
        let (all, there) = sent_to(&rig, ORIGIN, NEW_STATION);
        assert!(all > 100 && all == there, "{there} of {all}, dial between: {dial_between}");
        rig.cut_off();
    }
}

#[test]
fn a_blind_segment_does_not_move_the_client() {
    let mut rig = busy();
    let incoming = rig.seen.iter().rev().find(|seen| seen.nic == CLIENT && seen.is_incoming);
    let mut packet = incoming.expect("the client sent something").frame[14..].to_vec();
    // A bare acknowledgment far outside of the window.
    packet.truncate(40);
    packet[2..4].copy_from_slice(&40_u16.to_be_bytes());
    packet[24] ^= 0x40;
    packet[33] = 0x10;
    mend(&mut packet);
    let mut frame = arriving(CLIENT, &packet);
    frame[6..12].copy_from_slice(&NEW_STATION);
    rig.seen.clear();
    rig.inject(0, CLIENT, &frame);
    // Nothing of the client's own sets it right again.
    rig.impair(Impairment { loss: 1.0, ..Impairment::default() });
    rig.peers[0] = NEW_STATION;
    tick(&mut rig, 3000);
    let (all, there) = sent_to(&rig, CLIENT, NEW_STATION);
    assert!(all > 0 && there == 0, "{there} of {all}");
    rig.cut_off();
}

#[test]
fn a_port_is_used_again_while_another_worker_remembers_it() {
    let config = RigConfig {
        workers: 2,
        scatter: true,
        manner: Manner::CloseEarly,
        seed: 3,
        ..RigConfig::default()
    };
    let mut rig = Rig::new(config);
    for n in 0..20 {
        rig.open(0, 1000, 30_000);
        let mut millis = 0;
        while rig.client.streams[0].end.is_none() {
            tick(&mut rig, 1);
            millis += 1;
            assert!(millis < 900, "connection {n} takes longer than a retransmission");
        }
        assert_eq!(rig.client.streams[0].end, Some(CloseReason::Finished));
        rig.client.streams.clear();
        tick(&mut rig, 1500);
    }
}

#[test]
fn refused_sessions_leave_no_claim() {
    let config =
        RigConfig { workers: 2, neighbour: NeighbourState::Incomplete, ..RigConfig::default() };
    let mut rig = Rig::new(config);
    // 512 connections are 256 sessions; all wait for a station that is not there.
    let mut ports = (1000_u16..).filter(|port| (port >> 8).wrapping_add(*port).is_multiple_of(2));
    for _ in 0..10 {
        for port in ports.by_ref().take(400) {
            rig.open(0, port, 0);
        }
        rig.run(Duration::from_secs(60));
        rig.client.streams.clear();
    }
    assert!(rig.event(Event::SessionLimit) > 1000, "{:?}", rig.tally());
    rig.resolve(NeighbourState::Valid);
    tick(&mut rig, 20_000);
    for n in 0..100 {
        rig.open(0, 30_000 + n, 10);
        rig.run(Duration::from_secs(30));
        assert_eq!(rig.client.streams[0].end, Some(CloseReason::Finished), "client {n}");
        rig.client.streams.clear();
    }
    rig.assert_empty();
    rig.assert_conserved();
}

#[test]
fn the_end_of_a_drain_resets_everybody() {
    let mut rig =
        Rig::new(RigConfig { manner: Manner::Stall, memory: 100_000, ..RigConfig::default() });
    for n in 0..200 {
        rig.open(0, 1000 + n, 10);
        tick(&mut rig, 2);
    }
    tick(&mut rig, 20);
    assert_eq!(rig.workers[0].0.session_count(), 200);
    rig.cut_off();
    rig.run(Duration::from_secs(5));
    for stream in &rig.client.streams {
        assert_eq!(stream.end, Some(CloseReason::ResetByPeer));
    }
    rig.assert_empty();
    rig.assert_conserved();
}
