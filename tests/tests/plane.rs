//! The data plane over the in-memory port: streams through it over good and bad wires, with one
//! worker and several, origins of every manner, and frames nobody should send.

use headgate::{
    port::Nic,
    routes::NeighbourState,
    tally::{Event, Reason},
};
use headgate_tests::{
    fuzzing::mend,
    hosts::Manner,
    rig::{Rig, RigConfig, SERVICES, ethernet},
    wire::Impairment,
};
use proptest::prelude::*;
use userspace_tcp::{CloseReason, Duration};

const MINUTES: Duration = Duration::from_secs(600);

#[track_caller]
fn assert_echoed(rig: &mut Rig, seed: u64) {
    for (index, stream) in rig.client.streams.iter().enumerate() {
        let told = || format!("stream {index}, seed {seed}: {:?}", rig.tally());
        assert_eq!(stream.end, Some(CloseReason::Finished), "{}", told());
        assert!(stream.received == stream.bytes, "stream {index} differs, seed {seed}");
    }
    rig.assert_empty();
    rig.assert_conserved();
}

#[test]
fn streams_of_every_family_pair_come_back_whole() {
    let mut rig = Rig::new(RigConfig::default());
    for service in 0..SERVICES.len() {
        for (n, len) in [0, 1, 1460, 100_000].into_iter().enumerate() {
            rig.open(service, (1000 + 10 * service + n) as u16, len);
        }
    }
    rig.run(MINUTES);
    assert_echoed(&mut rig, 0);
    assert_eq!(rig.event(Event::SessionOpened), 16);
    assert_eq!(rig.event(Event::SessionFinished), 16);
    let pool = ["192.0.2.16", "192.0.2.17", "2001:db8:2::10", "2001:db8:2::11"];
    for seen in &rig.origin.seen {
        assert!(pool.contains(&seen.ip().to_string().as_str()), "{seen}");
        assert!((20_000..=20_999).contains(&seen.port()), "{seen}");
    }
}

#[test]
fn streams_survive_bad_wires() {
    for seed in 0..40 {
        let impairment = Impairment {
            loss: 0.02 * (seed % 5) as f64 / 4.0,
            duplicate: 0.05,
            corrupt: 0.01,
            delay: Duration::from_millis(seed % 20),
            jitter: Duration::from_millis(5),
        };
        let workers = 1 + seed as usize % 4;
        let scatter = seed % 2 == 1;
        let config = RigConfig { workers, impairment, scatter, seed, ..RigConfig::default() };
        let mut rig = Rig::new(config);
        for n in 0..8 {
            rig.open(n as usize % 4, 1000 + n, 5_000 * n as usize);
        }
        rig.run(MINUTES);
        assert_echoed(&mut rig, seed);
    }
}

#[test]
fn flows_that_hop_between_workers_keep_working() {
    for workers in [2, 3, 4] {
        let config = RigConfig { workers, scatter: true, ..RigConfig::default() };
        let mut rig = Rig::new(config);
        for n in 0..20 {
            rig.open(n as usize % 4, 1000 + n, 50_000);
        }
        rig.run(MINUTES);
        assert_echoed(&mut rig, workers as u64);
        rig.step();
        assert!(rig.event(Event::HandedOver) > 100);
        assert_eq!(rig.event(Event::HandedOver), rig.event(Event::TakenOver));
        // An acknowledgment that was overtaken by the last one finds nothing any more.
        assert!(rig.dropped(Reason::UnknownFlow) < 5, "{:?}", rig.tally());
    }
}

#[test]
fn a_bad_origin_gives_the_client_the_honest_equivalent() {
    let cases = [
        (Manner::Refuse, CloseReason::ResetByPeer, Event::OriginRefused),
        (Manner::Silent, CloseReason::ResetByPeer, Event::OriginUnanswered),
        (Manner::ResetOnData, CloseReason::ResetByPeer, Event::OriginReset),
        (Manner::CloseEarly, CloseReason::Finished, Event::SessionFinished),
    ];
    for (manner, end, event) in cases {
        let mut rig = Rig::new(RigConfig { manner, ..RigConfig::default() });
        rig.open(0, 1000, 5000);
        rig.open(3, 1001, 5000);
        rig.run(MINUTES);
        for stream in &rig.client.streams {
            assert_eq!(stream.end, Some(end), "{manner:?}");
        }
        assert_eq!(rig.event(event), 2, "{manner:?}: {:?}", rig.tally());
        rig.assert_empty();
        rig.assert_conserved();
    }
}

#[test]
fn each_side_may_end_early_and_the_other_goes_on() {
    // The client's end reaches the origin before most of the echo is on its way back.
    let mut rig = Rig::new(RigConfig::default());
    rig.open(0, 1000, 300_000);
    rig.run(MINUTES);
    assert_echoed(&mut rig, 0);
    // The origin's end comes first, and it takes all that the client has to say after it.
    let mut rig = Rig::new(RigConfig { manner: Manner::CloseEarly, ..RigConfig::default() });
    rig.open(0, 1000, 300_000);
    rig.open(2, 1001, 200_000);
    rig.run(MINUTES);
    assert_eq!(rig.origin.taken, 500_000);
    for stream in &rig.client.streams {
        assert_eq!(stream.end, Some(CloseReason::Finished));
    }
    rig.assert_empty();
    rig.assert_conserved();
}

#[test]
fn a_stalled_origin_stops_the_client_and_ends_by_a_limit() {
    let mut rig = Rig::new(RigConfig { manner: Manner::Stall, ..RigConfig::default() });
    rig.open(0, 1000, 2_000_000);
    rig.run(Duration::from_secs(30));
    assert_eq!(rig.client.streams[0].end, None, "back-pressure, not an error");
    rig.run(Duration::from_secs(3600));
    assert!(rig.client.streams[0].end.is_some());
    rig.assert_empty();
    rig.assert_conserved();
}

#[test]
fn an_unreachable_origin_resets_the_client() {
    for (neighbour, event) in [
        (NeighbourState::Failed, Event::OriginNoNeighbour),
        (NeighbourState::Incomplete, Event::OriginNoNeighbour),
    ] {
        let mut rig = Rig::new(RigConfig { neighbour, ..RigConfig::default() });
        rig.open(0, 1000, 10);
        rig.run(MINUTES);
        assert_eq!(rig.client.streams[0].end, Some(CloseReason::ResetByPeer));
        assert_eq!(rig.event(event), 1);
        assert_eq!(rig.event(Event::OriginExhausted), 1);
        rig.assert_empty();
        rig.assert_conserved();
    }
}

#[test]
fn an_origin_is_dialled_as_soon_as_its_station_is_known() {
    let config = RigConfig { neighbour: NeighbourState::Incomplete, ..RigConfig::default() };
    let mut rig = Rig::new(config);
    for n in 0..20 {
        rig.open(n as usize % 4, 1000 + n, 10);
    }
    rig.run(Duration::from_millis(50));
    rig.resolve(NeighbourState::Valid);
    rig.run(Duration::from_millis(900));
    assert_echoed(&mut rig, 0);
}

#[test]
fn a_client_that_resets_takes_the_origin_connection_with_it() {
    let mut rig = Rig::new(RigConfig { manner: Manner::Stall, ..RigConfig::default() });
    rig.open(0, 1000, 100_000);
    rig.run(Duration::from_secs(5));
    rig.client.abort(rig.now, 0);
    rig.run(Duration::from_secs(5));
    assert_eq!(rig.event(Event::ClientReset), 1);
    rig.assert_empty();
    rig.assert_conserved();
}

#[test]
fn too_many_clients_are_refused_and_counted() {
    let mut rig = Rig::new(RigConfig { manner: Manner::Stall, ..RigConfig::default() });
    // 512 connections are 256 sessions.
    for n in 0..256 {
        rig.open(0, 1000 + n, 1);
    }
    rig.run(Duration::from_secs(5));
    rig.open(0, 5000, 1);
    rig.run(Duration::from_secs(5));
    assert_eq!(rig.event(Event::SessionOpened), 256);
    let tally = rig.tally();
    let refused = tally.event(Event::SessionLimit) + tally.dropped(Reason::TableFull);
    assert!(refused > 0, "{tally:?}");
    rig.cut_off();
    rig.assert_conserved();
}

#[test]
fn a_draining_plane_refuses_and_a_cut_ends_all() {
    let mut rig = Rig::new(RigConfig { manner: Manner::Stall, ..RigConfig::default() });
    rig.open(0, 1000, 1000);
    rig.run(Duration::from_secs(2));
    rig.workers[0].0.drain();
    rig.open(0, 1001, 1000);
    rig.run(Duration::from_secs(2));
    assert_eq!(rig.client.streams[1].end, Some(CloseReason::Refused));
    assert_eq!(rig.dropped(Reason::Draining), 1);
    assert_eq!(rig.client.streams[0].end, None);
    rig.cut_off();
    rig.run(Duration::from_secs(2));
    assert_eq!(rig.client.streams[0].end, Some(CloseReason::ResetByPeer));
    rig.assert_empty();
    rig.assert_conserved();
}

#[test]
fn every_truncation_of_a_segment_is_a_counted_drop() {
    let mut rig = Rig::new(RigConfig::default());
    for service in [0, 2] {
        for frame in syn_frames(service) {
            for len in 0..frame.len() {
                let before = rig.tally();
                assert!(rig.inject(0, 0, &frame[..len]));
                rig.step();
                let after = rig.tally();
                let drops: u64 = after.drops().map(|drop| drop.count).sum();
                let old: u64 = before.drops().map(|drop| drop.count).sum();
                assert_eq!(drops, old + 1, "{len} bytes of {}", frame.len());
            }
        }
    }
    rig.assert_empty();
    rig.assert_conserved();
}

#[test]
fn stray_segments_are_reset_at_a_limited_rate() {
    let mut rig = Rig::new(RigConfig::default());
    for port in 1000..3000 {
        let mut other = Rig::new(RigConfig::default());
        other.open(0, port, 0);
        let mut packet = other.client.out.packets.remove(0);
        // An ACK to a port without a service.
        packet[33] = 0x10;
        packet[22..24].copy_from_slice(&81_u16.to_be_bytes());
        mend(&mut packet);
        rig.inject(
            0,
            0,
            &[ethernet([2, 0, 0, 0, 0, 1], [2, 0, 0, 0, 1, 1], &packet), packet].concat(),
        );
        rig.step();
    }
    assert_eq!(rig.dropped(Reason::UnknownFlow), 2000);
    let sent = rig.event(Event::ResetSent);
    assert!((50..=200).contains(&sent), "{sent}");
    rig.assert_conserved();
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn arbitrary_frames_never_break_it(
        frames in prop::collection::vec(
            (0..2_u8, prop::collection::vec(any::<u8>(), 0..200)),
            1..50,
        ),
    ) {
        let mut rig = Rig::new(RigConfig { workers: 2, ..RigConfig::default() });
        for (nic, frame) in frames {
            rig.inject(0, nic, &frame);
            rig.step();
        }
        rig.run(Duration::from_secs(60));
        rig.assert_empty();
        rig.assert_conserved();
    }

    #[test]
    fn mutated_segments_never_break_it(
        mutations in prop::collection::vec((0..80_usize, any::<u8>(), 0..2_usize), 1..20),
        mended: bool,
        service in 0..4_usize,
    ) {
        let mut rig = Rig::new(RigConfig::default());
        rig.open(service, 1000, 3000);
        rig.step();
        rig.step();
        for (at, byte, index) in mutations {
            let mut packet = syn_frames(service)[index].split_off(14);
            if let Some(found) = packet.get_mut(at) {
                *found = byte;
            }
            if mended {
                mend(&mut packet);
            }
            let nic: Nic = 0;
            let header = ethernet([2, 0, 0, 0, 0, 1], [2, 0, 0, 0, 1, 1], &packet);
            rig.inject(0, nic, &[header, packet].concat());
            rig.step();
        }
        rig.run(MINUTES);
        rig.assert_empty();
        rig.assert_conserved();
    }
}

/// Frames of a client: its SYN, and the SYN with the flags of an ACK.
fn syn_frames(service: usize) -> Vec<Vec<u8>> {
    let mut rig = Rig::new(RigConfig::default());
    rig.open(service, 1000, 0);
    let syn = rig.client.out.packets.remove(0);
    let mut ack = syn.clone();
    let tcp = if syn[0] >> 4 == 4 { 20 } else { 40 };
    ack[tcp + 13] = 0x10;
    mend(&mut ack);
    [syn, ack]
        .map(|packet| [ethernet([2, 0, 0, 0, 0, 1], [2, 0, 0, 0, 1, 1], &packet), packet].concat())
        .into()
}
