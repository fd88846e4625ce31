//! Packets written by hand, independently of what the crate uses to write its own.

use std::net::IpAddr;

use userspace_tcp::{Checksums, Flags, Segment, Tuple};

/// A segment as its sender sees it: `tuple.local` is the source.
#[derive(Clone, Debug)]
pub struct Packet {
    pub tuple: Tuple,
    pub seq: u32,
    pub ack: u32,
    pub flags: Flags,
    pub window: u16,
    pub options: Vec<u8>,
    pub payload: Vec<u8>,
}

impl Packet {
    pub fn new(tuple: Tuple, flags: Flags, seq: u32, ack: u32) -> Self {
        Self { tuple, seq, ack, flags, window: 65_535, options: vec![], payload: vec![] }
    }

    pub fn syn(tuple: Tuple, seq: u32) -> Self {
        // MSS 1460, SACK permitted, NOP, window scale 7.
        let options = vec![2, 4, 0x05, 0xb4, 4, 2, 1, 3, 3, 7, 1, 1];
        Self { options, ..Self::new(tuple, Flags::SYN, seq, 0) }
    }

    pub fn data(tuple: Tuple, seq: u32, ack: u32, payload: &[u8]) -> Self {
        Self {
            payload: payload.to_vec(),
            ..Self::new(tuple, Flags::ACK.with(Flags::PSH), seq, ack)
        }
    }

    pub fn bytes(&self) -> Vec<u8> {
        let mut tcp = vec![];
        tcp.extend(self.tuple.local.port.to_be_bytes());
        tcp.extend(self.tuple.remote.port.to_be_bytes());
        tcp.extend(self.seq.to_be_bytes());
        tcp.extend(self.ack.to_be_bytes());
        tcp.extend([(((20 + self.options.len()) / 4) << 4) as u8, self.flags.bits()]);
        tcp.extend(self.window.to_be_bytes());
        tcp.extend([0; 4]);
        tcp.extend(&self.options);
        tcp.extend(&self.payload);
        let mut packet = match (self.tuple.local.addr, self.tuple.remote.addr) {
            (IpAddr::V4(source), IpAddr::V4(destination)) => {
                let mut ip = vec![0x45, 0];
                ip.extend((20 + tcp.len() as u16).to_be_bytes());
                ip.extend([0, 0, 0x40, 0, 64, 6, 0, 0]);
                ip.extend(source.octets());
                ip.extend(destination.octets());
                ip
            }
            (IpAddr::V6(source), IpAddr::V6(destination)) => {
                let mut ip = vec![0x60, 0, 0, 0];
                ip.extend((tcp.len() as u16).to_be_bytes());
                ip.extend([6, 64]);
                ip.extend(source.octets());
                ip.extend(destination.octets());
                ip
            }
            _ => panic!("one family"),
        };
        packet.extend(tcp);
        fix_checksums(&mut packet);
        packet
    }
}

/// Reads a packet that a stack sent.
pub fn read(packet: &[u8]) -> Segment {
    Segment::parse(packet, Checksums::Verify).expect("a stack sends valid segments")
}

/// Writes the checksums that a packet with valid lengths should have.
pub fn fix_checksums(packet: &mut [u8]) {
    let (tcp_at, addresses) = match packet[0] >> 4 {
        4 => {
            let header = usize::from(packet[0] & 15) * 4;
            packet[10..12].fill(0);
            let sum = checksum(&[&packet[..header]]);
            packet[10..12].copy_from_slice(&sum.to_be_bytes());
            (header, 12..20)
        }
        _ => (40, 8..40),
    };
    let tcp_len = (packet.len() - tcp_at) as u16;
    packet[tcp_at + 16..tcp_at + 18].fill(0);
    let length = tcp_len.to_be_bytes();
    let sum = checksum(&[&packet[addresses], &[0, 6], &length, &packet[tcp_at..]]);
    packet[tcp_at + 16..tcp_at + 18].copy_from_slice(&sum.to_be_bytes());
}

fn checksum(parts: &[&[u8]]) -> u16 {
    let mut sum = 0u32;
    for part in parts {
        for pair in part.chunks(2) {
            sum += u32::from(u16::from_be_bytes([pair[0], *pair.get(1).unwrap_or(&0)]));
        }
    }
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}
