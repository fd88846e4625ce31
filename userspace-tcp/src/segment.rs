//! A received TCP segment: parsed and verified once, infallible afterwards.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::ops::Range;

use smoltcp::wire::TcpOption;

use crate::checksum;
use crate::tuple::{Endpoint, Tuple, is_unicast};

/// Whether checksums are to be verified.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Checksums {
    /// The checksums were verified by somebody else, or the packet never left memory.
    Trust,
    /// Verify the IPv4 header checksum and the TCP checksum.
    Verify,
}

/// Why a packet is no TCP segment that this stack could take.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Malformed {
    /// The TCP data offset is below 20 bytes or beyond the packet.
    DataOffset,
    /// Flags that contradict one another: SYN with FIN or RST, FIN with RST, or none of SYN, ACK, RST and FIN.
    Flags,
    /// A fragment; only whole packets are taken.
    Fragment,
    /// The IPv4 header checksum is wrong.
    HeaderChecksum,
    /// The IP header's length field is below the minimum or beyond the packet.
    HeaderLength,
    /// Source or destination is not a unicast address.
    NotUnicast,
    /// The payload is not TCP (for IPv6 this includes every extension header).
    NotTcp,
    /// A TCP option with an impossible length (RFC 9293, MUST-7).
    Options,
    /// Source or destination port zero.
    PortZero,
    /// Source and destination are one and the same (the LAND attack).
    SameEndpoint,
    /// The TCP checksum is wrong.
    TcpChecksum,
    /// The packet says that it is longer than the bytes given.
    Truncated,
    /// Neither IPv4 nor IPv6.
    Version,
}

/// The control bits of a segment (RFC 9293 section 3.1).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Flags(u8);

impl Flags {
    /// No bit.
    pub const NONE: Self = Self(0x00);
    /// No more data from the sender.
    pub const FIN: Self = Self(0x01);
    /// Synchronize sequence numbers.
    pub const SYN: Self = Self(0x02);
    /// Reset the connection.
    pub const RST: Self = Self(0x04);
    /// Push function.
    pub const PSH: Self = Self(0x08);
    /// The acknowledgment field is significant.
    pub const ACK: Self = Self(0x10);

    /// The flags from the fourteenth byte of a TCP header.
    pub const fn from_bits(bits: u8) -> Self {
        Self(bits)
    }

    /// The fourteenth byte of a TCP header.
    pub const fn bits(self) -> u8 {
        self.0
    }

    /// These flags and the others.
    pub const fn with(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// Whether FIN is set.
    pub const fn fin(self) -> bool {
        self.0 & Self::FIN.0 != 0
    }

    /// Whether SYN is set.
    pub const fn syn(self) -> bool {
        self.0 & Self::SYN.0 != 0
    }

    /// Whether RST is set.
    pub const fn rst(self) -> bool {
        self.0 & Self::RST.0 != 0
    }

    /// Whether ACK is set.
    pub const fn ack(self) -> bool {
        self.0 & Self::ACK.0 != 0
    }

    const fn are_possible(self) -> bool {
        matches!(
            (self.syn(), self.fin(), self.rst()),
            (true, false, false) | (false, _, false) | (false, false, true)
        ) && (self.syn() || self.fin() || self.rst() || self.ack())
    }
}

/// A TCP segment, parsed from one IP packet. Numbers are in host byte order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segment {
    /// Local is the packet's destination, remote its source.
    pub tuple: Tuple,
    /// Sequence number of the first byte (of the SYN, if there is one).
    pub seq: u32,
    /// Acknowledgment number; significant only with [`Flags::ACK`].
    pub ack: u32,
    /// Control bits.
    pub flags: Flags,
    /// The window field as it was received, not scaled.
    pub window: u16,
    /// Maximum segment size option; zero and absent are the same.
    pub mss: Option<u16>,
    /// Window scale option, at most 14 (RFC 7323 section 2.3).
    pub window_scale: Option<u8>,
    /// Whether selective acknowledgments are permitted (RFC 2018).
    pub sack_permitted: bool,
    tcp_at: u16,
    payload_at: u16,
    packet_len: u32,
}

impl Segment {
    /// Parses an IPv4 packet (options allowed) or an IPv6 packet (no extension headers) that begins at `packet[0]`.
    ///
    /// The slice may be longer than the packet, as Ethernet pads short frames: only [`Segment::packet_len`] bytes belong to it.
    ///
    /// # Errors
    /// [`Malformed`] names what is wrong. Nothing of such a packet may be used.
    pub fn parse(packet: &[u8], checksums: Checksums) -> Result<Self, Malformed> {
        let ip = match packet.first().ok_or(Malformed::Truncated)? >> 4 {
            4 => Ip::parse_v4(packet, checksums)?,
            6 => Ip::parse_v6(packet)?,
            _ => return Err(Malformed::Version),
        };
        let packet = &packet[..ip.packet_len];
        let tcp = &packet[ip.tcp_at..];
        if tcp.len() < MIN_TCP_HEADER {
            return Err(Malformed::Truncated);
        }
        let data_offset = usize::from(tcp[12] >> 4) * 4;
        if data_offset < MIN_TCP_HEADER || data_offset > tcp.len() {
            return Err(Malformed::DataOffset);
        }
        if checksums == Checksums::Verify {
            let pseudo_header = checksum::pseudo_header(ip.source, ip.destination, tcp.len());
            if checksum::fold(pseudo_header + checksum::sum(tcp)) != 0xffff {
                return Err(Malformed::TcpChecksum);
            }
        }
        let flags = Flags::from_bits(tcp[13]);
        if !flags.are_possible() {
            return Err(Malformed::Flags);
        }
        let tuple = Tuple {
            local: Endpoint::new(ip.destination, be16(tcp, 2)),
            remote: Endpoint::new(ip.source, be16(tcp, 0)),
        };
        if tuple.local.port == 0 || tuple.remote.port == 0 {
            return Err(Malformed::PortZero);
        }
        if tuple.local == tuple.remote {
            return Err(Malformed::SameEndpoint);
        }
        let mut segment = Self {
            tuple,
            seq: be32(tcp, 4),
            ack: be32(tcp, 8),
            flags,
            window: be16(tcp, 14),
            mss: None,
            window_scale: None,
            sack_permitted: false,
            tcp_at: ip.tcp_at as u16,
            payload_at: (ip.tcp_at + data_offset) as u16,
            packet_len: ip.packet_len as u32,
        };
        segment.read_options(&tcp[MIN_TCP_HEADER..data_offset])?;
        Ok(segment)
    }

    /// Length of the IP packet in bytes, without any padding behind it.
    pub fn packet_len(&self) -> usize {
        self.packet_len as usize
    }

    /// Where the payload is in the packet.
    pub fn payload(&self) -> Range<usize> {
        usize::from(self.payload_at)..self.packet_len()
    }

    /// Length of the payload in bytes.
    pub fn payload_len(&self) -> u32 {
        self.packet_len - u32::from(self.payload_at)
    }

    /// The sequence number behind the segment, SYN and FIN counted.
    pub fn end(&self) -> u32 {
        self.payload_end().wrapping_add(u32::from(self.flags.syn()) + u32::from(self.flags.fin()))
    }

    /// Whether this opens a connection: SYN without ACK.
    pub fn is_initial_syn(&self) -> bool {
        self.flags.syn() && !self.flags.ack()
    }

    /// The sequence number behind the payload, that is, of the FIN if there is one.
    pub(crate) fn payload_end(&self) -> u32 {
        self.seq.wrapping_add(self.payload_len())
    }

    /// Where the TCP header begins in the packet.
    pub(crate) fn tcp_at(&self) -> usize {
        usize::from(self.tcp_at)
    }

    fn read_options(&mut self, mut options: &[u8]) -> Result<(), Malformed> {
        while !options.is_empty() {
            let (rest, option) = TcpOption::parse(options).map_err(|_| Malformed::Options)?;
            match option {
                TcpOption::EndOfList => break,
                TcpOption::MaxSegmentSize(mss) => self.mss = (mss != 0).then_some(mss),
                TcpOption::WindowScale(shift) => {
                    self.window_scale = Some(shift.min(MAX_WINDOW_SHIFT))
                }
                TcpOption::SackPermitted => self.sack_permitted = true,
                TcpOption::NoOperation
                | TcpOption::SackRange(_)
                | TcpOption::TimeStamp { .. }
                | TcpOption::Unknown { .. } => {}
            }
            options = rest;
        }
        Ok(())
    }
}

struct Ip {
    source: IpAddr,
    destination: IpAddr,
    tcp_at: usize,
    packet_len: usize,
}

impl Ip {
    fn parse_v4(packet: &[u8], checksums: Checksums) -> Result<Self, Malformed> {
        if packet.len() < MIN_IPV4_HEADER {
            return Err(Malformed::Truncated);
        }
        let tcp_at = usize::from(packet[0] & 0x0f) * 4;
        let packet_len = usize::from(be16(packet, 2));
        if tcp_at < MIN_IPV4_HEADER || packet_len < tcp_at {
            return Err(Malformed::HeaderLength);
        }
        if packet_len > packet.len() {
            return Err(Malformed::Truncated);
        }
        if checksums == Checksums::Verify
            && checksum::fold(checksum::sum(&packet[..tcp_at])) != 0xffff
        {
            return Err(Malformed::HeaderChecksum);
        }
        if be16(packet, 6) & MORE_FRAGMENTS_OR_OFFSET != 0 {
            return Err(Malformed::Fragment);
        }
        if packet[9] != PROTOCOL_TCP {
            return Err(Malformed::NotTcp);
        }
        let addr = |at: usize| {
            IpAddr::V4(Ipv4Addr::new(packet[at], packet[at + 1], packet[at + 2], packet[at + 3]))
        };
        Self { source: addr(12), destination: addr(16), tcp_at, packet_len }.unicast()
    }

    fn parse_v6(packet: &[u8]) -> Result<Self, Malformed> {
        let Some((header, _)) = packet.split_first_chunk::<IPV6_HEADER>() else {
            return Err(Malformed::Truncated);
        };
        let packet_len = IPV6_HEADER + usize::from(be16(header, 4));
        if packet_len > packet.len() {
            return Err(Malformed::Truncated);
        }
        match header[6] {
            PROTOCOL_TCP => {}
            FRAGMENT_HEADER => return Err(Malformed::Fragment),
            _ => return Err(Malformed::NotTcp),
        }
        let addr = |at: usize| {
            let mut octets = [0; 16];
            octets.copy_from_slice(&header[at..at + 16]);
            IpAddr::V6(Ipv6Addr::from(octets))
        };
        Self { source: addr(8), destination: addr(24), tcp_at: IPV6_HEADER, packet_len }.unicast()
    }

    fn unicast(self) -> Result<Self, Malformed> {
        if is_unicast(self.source) && is_unicast(self.destination) {
            Ok(self)
        } else {
            Err(Malformed::NotUnicast)
        }
    }
}

fn be16(bytes: &[u8], at: usize) -> u16 {
    u16::from_be_bytes([bytes[at], bytes[at + 1]])
}

fn be32(bytes: &[u8], at: usize) -> u32 {
    u32::from_be_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

const MIN_IPV4_HEADER: usize = 20;
const IPV6_HEADER: usize = 40;
const MIN_TCP_HEADER: usize = 20;
const PROTOCOL_TCP: u8 = 6;
const FRAGMENT_HEADER: u8 = 44;
const MORE_FRAGMENTS_OR_OFFSET: u16 = 0x3fff;
const MAX_WINDOW_SHIFT: u8 = 14;
