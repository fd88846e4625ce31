//! Parsing: what is refused, and for which reason.

mod support;

use proptest::prelude::*;
use support::packet::{Packet, fix_checksums};
use support::*;
use userspace_tcp::{Checksums, Flags, Malformed, Segment};

fn parse(packet: &[u8]) -> Result<Segment, Malformed> {
    Segment::parse(packet, Checksums::Verify)
}

/// Changes a valid packet, repairs its checksums, and says what becomes of it.
fn changed(v6_instead: bool, change: impl Fn(&mut Vec<u8>)) -> Result<Segment, Malformed> {
    let tuple = if v6_instead { v6(9) } else { v4(9) };
    let mut packet = Packet::data(tuple, 1, 2, b"hello").bytes();
    change(&mut packet);
    fix_checksums(&mut packet);
    parse(&packet)
}

#[test]
fn every_field_is_read() {
    for tuple in [v4(1234), v6(1234)] {
        let mut syn = Packet::syn(tuple, 0xfedc_ba98);
        syn.payload = b"early".to_vec();
        let packet = syn.bytes();
        let segment = parse(&packet).unwrap();
        assert_eq!(segment.tuple, tuple.reversed());
        assert_eq!((segment.seq, segment.ack, segment.window), (0xfedc_ba98, 0, 65_535));
        assert_eq!(
            (segment.mss, segment.window_scale, segment.sack_permitted),
            (Some(1460), Some(7), true)
        );
        assert!(segment.is_initial_syn());
        assert_eq!(&packet[segment.payload()], b"early");
        assert_eq!(segment.end(), 0xfedc_ba98 + 6);
        assert_eq!(segment.packet_len(), packet.len());
    }
}

#[test]
fn padding_behind_the_packet_is_not_payload() {
    let mut packet = Packet::data(v4(9), 1, 2, b"hello").bytes();
    let len = packet.len();
    packet.extend([0xee; 17]);
    let segment = parse(&packet).unwrap();
    assert_eq!((segment.packet_len(), segment.payload_len()), (len, 5));
}

#[test]
fn ip_options_are_skipped() {
    let mut packet = Packet::data(v4(9), 1, 2, b"hello").bytes();
    packet.splice(20..20, [1; 40]);
    packet[0] = 0x4f;
    let len = packet.len() as u16;
    packet[2..4].copy_from_slice(&len.to_be_bytes());
    fix_checksums(&mut packet);
    let segment = parse(&packet).unwrap();
    assert_eq!(&packet[segment.payload()], b"hello");
    let tuple = segment.tuple;
    assert_eq!(tuple, v4(9).reversed());
}

#[test]
fn every_truncation_is_refused() {
    for tuple in [v4(9), v6(9)] {
        let packet = Packet::syn(tuple, 7).bytes();
        for len in 0..packet.len() {
            assert!(parse(&packet[..len]).is_err(), "{len} bytes of {tuple}");
        }
    }
}

#[test]
fn every_single_bit_error_in_a_v4_packet_is_refused() {
    let packet = Packet::data(v4(9), 1, 2, b"hello, world").bytes();
    for bit in 0..packet.len() * 8 {
        let mut packet = packet.clone();
        packet[bit / 8] ^= 1 << (bit % 8);
        assert!(parse(&packet).is_err(), "bit {bit}");
    }
}

#[test]
fn every_flaw_has_its_name() {
    let set = |at: usize, bytes: &'static [u8]| {
        move |packet: &mut Vec<u8>| packet[at..at + bytes.len()].copy_from_slice(bytes)
    };
    let cases = [
        (Malformed::Version, parse(&[0x55; 60])),
        (Malformed::Truncated, parse(&[])),
        (Malformed::HeaderLength, parse(&[0x44; 60])),
        (Malformed::Fragment, changed(false, set(6, &[0x20, 0]))),
        (Malformed::Fragment, changed(false, set(6, &[0, 1]))),
        (Malformed::NotTcp, changed(false, set(9, &[17]))),
        (Malformed::NotUnicast, changed(false, set(12, &[224, 0, 0, 1]))),
        (Malformed::NotUnicast, changed(false, set(12, &[255, 255, 255, 255]))),
        (Malformed::NotUnicast, changed(false, set(12, &[0, 0, 0, 0]))),
        (Malformed::NotUnicast, changed(false, set(16, &[239, 1, 1, 1]))),
        (Malformed::PortZero, changed(false, set(20, &[0, 0]))),
        (Malformed::PortZero, changed(false, set(22, &[0, 0]))),
        (Malformed::DataOffset, changed(false, set(32, &[0x40]))),
        (Malformed::DataOffset, changed(false, set(32, &[0xf0]))),
        (Malformed::Flags, changed(false, set(33, &[0x03]))),
        (Malformed::Flags, changed(false, set(33, &[0x06]))),
        (Malformed::Flags, changed(false, set(33, &[0x15]))),
        (Malformed::Flags, changed(false, set(33, &[0x00]))),
        (Malformed::Flags, changed(false, set(33, &[0x08]))),
        (Malformed::Fragment, changed(true, set(6, &[44]))),
        (Malformed::NotTcp, changed(true, set(6, &[0]))),
        (Malformed::NotUnicast, changed(true, set(8, &[0xff, 0x02]))),
        (Malformed::NotUnicast, changed(true, set(8, &[0; 16]))),
    ];
    for (n, (expected, result)) in cases.into_iter().enumerate() {
        assert_eq!(result.err(), Some(expected), "case {n}");
    }
    let land = tuple("192.0.2.1:80", "192.0.2.1:80");
    let land = Packet::new(land, Flags::SYN, 1, 0).bytes();
    assert_eq!(parse(&land), Err(Malformed::SameEndpoint));
    let options = Packet { options: vec![2, 0, 0, 0], ..Packet::syn(v4(9), 1) }.bytes();
    assert_eq!(parse(&options), Err(Malformed::Options));
}

#[test]
fn checksums_are_verified_or_trusted_as_asked() {
    let mut packet = Packet::data(v4(9), 1, 2, b"hello").bytes();
    packet[16 + 20] ^= 1;
    assert_eq!(parse(&packet), Err(Malformed::TcpChecksum));
    assert!(Segment::parse(&packet, Checksums::Trust).is_ok());
    let mut packet = Packet::data(v4(9), 1, 2, b"hello").bytes();
    packet[8] -= 1;
    assert_eq!(parse(&packet), Err(Malformed::HeaderChecksum));
    assert!(Segment::parse(&packet, Checksums::Trust).is_ok());
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, cases: 2000, ..ProptestConfig::default() })]

    #[test]
    fn arbitrary_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        _ = parse(&bytes);
        _ = Segment::parse(&bytes, Checksums::Trust);
    }

    #[test]
    fn arbitrary_headers_stay_inside_of_the_packet(
        v6 in any::<bool>(),
        mut bytes in prop::collection::vec(any::<u8>(), 40..200),
    ) {
        bytes[0] = if v6 { 0x60 } else { 0x40 | bytes[0] & 0x0f };
        bytes[if v6 { 6 } else { 9 }] = 6;
        if let Ok(segment) = Segment::parse(&bytes, Checksums::Trust) {
            prop_assert!(segment.packet_len() <= bytes.len());
            prop_assert!(bytes.get(segment.payload()).is_some());
            prop_assert_eq!(segment.payload().len() as u32, segment.payload_len());
        }
    }
}
