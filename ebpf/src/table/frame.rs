//! Frames to spoil: built right by `etherparse`, then changed octet by octet.

use std::net::IpAddr;
use std::string::ToString;
use std::vec;
use std::vec::Vec;

use etherparse::{PacketBuilder, PacketBuilderStep, ip_number};

use super::{Case, Rules, address};
use crate::verdict::Verdict;

/// A frame in the making. Offsets count from the destination MAC address.
#[derive(Clone)]
pub(super) struct Frame(Vec<u8>);

impl Frame {
    /// A TCP segment with eleven octets of payload.
    pub(super) fn tcp(source: &str, source_port: u16, to: &str, port: u16) -> Self {
        Self::tcp_with(source, source_port, to, port, 11)
    }

    /// A UDP datagram with eleven octets of payload.
    pub(super) fn udp(source: &str, source_port: u16, to: &str, port: u16) -> Self {
        Self::udp_with(source, source_port, to, port, 11)
    }

    /// An ICMP or ICMPv6 echo request.
    pub(super) fn icmp_echo(source: &str, to: &str) -> Self {
        let step = ethernet();
        match (address(source), address(to)) {
            (IpAddr::V4(source), IpAddr::V4(to)) => {
                let step = step.ipv4(source.octets(), to.octets(), 64);
                built(|frame| step.icmpv4_echo_request(1, 2).write(frame, &[0; 56]))
            }
            (IpAddr::V6(source), IpAddr::V6(to)) => {
                let step = step.ipv6(source.octets(), to.octets(), 64);
                built(|frame| step.icmpv6_echo_request(1, 2).write(frame, &[0; 56]))
            }
            _ => panic!("{source} and {to} are of two families"),
        }
    }

    /// An ARP request for the service's address, to our own MAC address.
    pub(super) fn arp() -> Self {
        let mut frame = vec![];
        frame.extend(OURS);
        frame.extend(THEIRS);
        frame.extend([8, 6, 0, 1, 8, 0, 6, 4, 0, 1]);
        frame.extend(THEIRS);
        frame.extend([198, 51, 100, 2]);
        frame.extend([0; 6]);
        frame.extend([198, 51, 100, 80]);
        Self(frame)
    }

    /// The same flow with `length` octets of payload.
    pub(super) fn payload(self, length: usize) -> Self {
        let (protocol, source, to, l4) = if self.0[12] == 8 {
            let source: [u8; 4] = self.array(26);
            let to: [u8; 4] = self.array(30);
            (self.0[23], IpAddr::from(source), IpAddr::from(to), 34)
        } else {
            let source: [u8; 16] = self.array(22);
            let to: [u8; 16] = self.array(38);
            (self.0[20], IpAddr::from(source), IpAddr::from(to), 54)
        };
        let source_port = u16::from_be_bytes(self.array(l4));
        let port = u16::from_be_bytes(self.array(l4 + 2));
        let with = if protocol == ip_number::TCP.0 { Self::tcp_with } else { Self::udp_with };
        with(&source.to_string(), source_port, &to.to_string(), port, length)
    }

    /// `octets` in the place of those at `offset`.
    pub(super) fn set(mut self, offset: usize, octets: &[u8]) -> Self {
        self.0[offset..offset + octets.len()].copy_from_slice(octets);
        self
    }

    /// `octets` before those at `offset`; an IPv6 payload length grows with them.
    pub(super) fn insert(mut self, offset: usize, octets: &[u8]) -> Self {
        if self.0[12] == 0x86 && offset >= 54 {
            let length = self.ip_length() + octets.len() as u16;
            self = self.set(18, &length.to_be_bytes());
        }
        self.0.splice(offset..offset, octets.iter().copied());
        self
    }

    /// `words` times four octets of IPv4 options.
    pub(super) fn ipv4_options(mut self, words: u8) -> Self {
        let octets = usize::from(words) * 4;
        let length = self.ip_length() + octets as u16;
        self = self.set(14, &[0x45 + words]).set(16, &length.to_be_bytes());
        self.insert(34, &vec![NO_OPERATION; octets])
    }

    /// Other ports, behind whatever IPv4 options there are.
    pub(super) fn ports(self, source_port: u16, port: u16) -> Self {
        let l4 = 14 + usize::from(self.0[14] & 15) * 4;
        self.set(l4, &source_port.to_be_bytes()).set(l4 + 2, &port.to_be_bytes())
    }

    /// `length` octets behind the IP packet, as Ethernet adds them to short frames.
    pub(super) fn padded(mut self, length: usize) -> Self {
        self.0.resize(self.0.len() + length, 0);
        self
    }

    /// Only the first `length` octets.
    pub(super) fn cut(mut self, length: usize) -> Self {
        self.0.truncate(length);
        self
    }

    /// Octets in the frame.
    pub(super) fn len(&self) -> usize {
        self.0.len()
    }

    /// The total length of IPv4, the payload length of IPv6.
    pub(super) fn ip_length(&self) -> u16 {
        u16::from_be_bytes(self.array(if self.0[12] == 8 { 16 } else { 18 }))
    }

    /// The frame, with the standard rules.
    pub(super) fn case(self, name: &str, verdict: Verdict) -> Case {
        Case { name: name.to_string(), frame: self.0, rules: Rules::standard(), verdict }
    }

    fn tcp_with(source: &str, source_port: u16, to: &str, port: u16, payload: usize) -> Self {
        let step = ip(source, to);
        built(|frame| step.tcp(source_port, port, 1, 1024).write(frame, &vec![0xaa; payload]))
    }

    fn udp_with(source: &str, source_port: u16, to: &str, port: u16, payload: usize) -> Self {
        let step = ip(source, to);
        built(|frame| step.udp(source_port, port).write(frame, &vec![0xaa; payload]))
    }

    fn array<const N: usize>(&self, offset: usize) -> [u8; N] {
        *self.0[offset..].first_chunk().unwrap_or_else(|| panic!("no {N} octets at {offset}"))
    }
}

fn ethernet() -> PacketBuilderStep<etherparse::Ethernet2Header> {
    PacketBuilder::ethernet2(THEIRS, OURS)
}

fn ip(source: &str, to: &str) -> PacketBuilderStep<etherparse::IpHeaders> {
    match (address(source), address(to)) {
        (IpAddr::V4(source), IpAddr::V4(to)) => ethernet().ipv4(source.octets(), to.octets(), 64),
        (IpAddr::V6(source), IpAddr::V6(to)) => ethernet().ipv6(source.octets(), to.octets(), 64),
        _ => panic!("{source} and {to} are of two families"),
    }
}

fn built<E: core::fmt::Debug>(write: impl FnOnce(&mut Vec<u8>) -> Result<(), E>) -> Frame {
    let mut frame = Vec::new();
    write(&mut frame).unwrap_or_else(|error| panic!("a frame that cannot be: {error:?}"));
    Frame(frame)
}

const OURS: [u8; 6] = [0x52, 0x54, 0, 0, 0, 1];
const THEIRS: [u8; 6] = [0x52, 0x54, 0, 0, 0, 2];
const NO_OPERATION: u8 = 1;
