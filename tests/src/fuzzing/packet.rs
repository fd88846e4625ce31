//! Packets to be forged: built, read, and mended after a change.

use std::net::IpAddr;

use userspace_tcp::{Endpoint, Tuple};

/// A TCP segment in the making.
#[derive(Clone, Debug)]
pub(super) struct Forged {
    /// From the sender's side: local is the source.
    pub(super) tuple: Tuple,
    pub(super) seq: u32,
    pub(super) ack: u32,
    pub(super) flags: u8,
    pub(super) window: u16,
    pub(super) options: Vec<u8>,
    pub(super) payload: Vec<u8>,
}

impl Forged {
    /// The IP packet, with good lengths and checksums; the options are padded to whole words.
    pub(super) fn packet(&self) -> Vec<u8> {
        let options = self.options.len().min(MAX_OPTIONS).next_multiple_of(4);
        let mut tcp = Vec::with_capacity(20 + options + self.payload.len());
        tcp.extend(self.tuple.local.port.to_be_bytes());
        tcp.extend(self.tuple.remote.port.to_be_bytes());
        tcp.extend(self.seq.to_be_bytes());
        tcp.extend(self.ack.to_be_bytes());
        tcp.extend([((20 + options) << 2) as u8, self.flags]);
        tcp.extend(self.window.to_be_bytes());
        tcp.extend([0; 4]);
        tcp.extend(self.options.iter().take(MAX_OPTIONS));
        tcp.resize(20 + options, 0);
        tcp.extend(&self.payload);
        let mut packet = ip_header(&self.tuple.local, &self.tuple.remote);
        packet.extend(tcp);
        fix_length(&mut packet);
        mend(&mut packet);
        packet
    }
}

/// Where the TCP header of an IP packet begins, if there is room for one.
pub(super) fn tcp_at(packet: &[u8]) -> Option<usize> {
    let at = match packet.first()? >> 4 {
        4 => usize::from(packet[0] & 0x0f) * 4,
        6 => 40,
        _ => return None,
    };
    (at >= 20 && packet.len() >= at + 20).then_some(at)
}

/// Lets the IP header say how long the packet is.
pub(super) fn fix_length(packet: &mut [u8]) {
    let Ok(len) = u16::try_from(packet.len()) else { return };
    match packet.first().map(|byte| byte >> 4) {
        Some(4) if packet.len() >= 20 => packet[2..4].copy_from_slice(&len.to_be_bytes()),
        Some(6) if packet.len() >= 40 => packet[4..6].copy_from_slice(&(len - 40).to_be_bytes()),
        _ => {}
    }
}

/// Computes the checksums anew, as far as the headers allow.
pub fn mend(packet: &mut [u8]) {
    let Some(at) = tcp_at(packet) else { return };
    let (end, addresses) = match packet[0] >> 4 {
        4 => {
            packet[10..12].fill(0);
            let sum = checksum(&[&packet[..at]]);
            packet[10..12].copy_from_slice(&sum);
            (usize::from(u16::from_be_bytes([packet[2], packet[3]])), 12..20)
        }
        _ => (40 + usize::from(u16::from_be_bytes([packet[4], packet[5]])), 8..40),
    };
    if end < at + 20 || end > packet.len() {
        return;
    }
    packet[at + 16..at + 18].fill(0);
    let len = (end - at) as u32;
    let sum = checksum(&[&packet[addresses], &len.to_be_bytes(), &[0, 6], &packet[at..end]]);
    packet[at + 16..at + 18].copy_from_slice(&sum);
}

fn ip_header(from: &Endpoint, to: &Endpoint) -> Vec<u8> {
    match (from.addr, to.addr) {
        (IpAddr::V4(from), IpAddr::V4(to)) => {
            let mut header = vec![0x45, 0, 0, 0, 0, 0, 0x40, 0, 64, 6, 0, 0];
            header.extend(from.octets());
            header.extend(to.octets());
            header
        }
        (from, to) => {
            let octets = |address| match address {
                IpAddr::V4(address) => address.to_ipv6_mapped().octets(),
                IpAddr::V6(address) => address.octets(),
            };
            let mut header = vec![0x60, 0, 0, 0, 0, 0, 6, 64];
            header.extend(octets(from));
            header.extend(octets(to));
            header
        }
    }
}

/// RFC 1071; every part but the last has an even length.
fn checksum(parts: &[&[u8]]) -> [u8; 2] {
    let words = parts.iter().flat_map(|part| part.chunks(2));
    let mut sum: u32 = words
        .map(|word| u32::from(u16::from_be_bytes([word[0], word.get(1).copied().unwrap_or(0)])))
        .sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    (!(sum as u16)).to_be_bytes()
}

const MAX_OPTIONS: usize = 40;
