//! Ethernet frames with TCP over IP, right in every detail until told otherwise, and a socket that
//! sends them as they are.

use std::{
    io,
    net::IpAddr,
    os::fd::{AsRawFd, OwnedFd},
    time::Duration,
};

use nix::sys::socket::{AddressFamily, LinkAddr, MsgFlags, SockFlag, SockType, bind, send, socket};
use userspace_tcp::{Checksums, Malformed, Segment};

/// Bytes of an Ethernet header.
pub(crate) const ETHERNET: usize = 14;
/// Control bits of a TCP header (RFC 9293 section 3.1): no more data.
pub(crate) const FIN: u8 = 0x01;
/// Synchronize.
pub(crate) const SYN: u8 = 0x02;
/// Reset.
pub(crate) const RST: u8 = 0x04;
/// Push.
pub(crate) const PSH: u8 = 0x08;
/// Acknowledge.
pub(crate) const ACK: u8 = 0x10;
/// Urgent.
pub(crate) const URG: u8 = 0x20;

/// A TCP segment to be put into a frame. Numbers are in host byte order.
#[derive(Clone, Debug)]
pub(crate) struct Forged {
    /// Address it claims to come from.
    pub(crate) source: IpAddr,
    /// Address it goes to, of the same family.
    pub(crate) destination: IpAddr,
    /// Ports, source first.
    pub(crate) ports: (u16, u16),
    /// Sequence number.
    pub(crate) seq: u32,
    /// Acknowledgment number.
    pub(crate) ack: u32,
    /// Control bits.
    pub(crate) flags: u8,
    /// TCP options: whole 32-bit words, at most ten.
    pub(crate) options: Vec<u8>,
    /// The data offset to claim in place of the right one, in 32-bit words.
    pub(crate) data_offset: Option<u8>,
    /// What it carries.
    pub(crate) payload: Vec<u8>,
    /// IPv4 options: whole 32-bit words, at most ten.
    pub(crate) ip_options: Vec<u8>,
    /// IPv4 flags and fragment offset.
    pub(crate) fragment: u16,
    /// IPv6 extension headers in front of TCP: the number of the first, and all their bytes.
    pub(crate) extension: Option<(u8, Vec<u8>)>,
    /// Turns the TCP checksum's bits.
    pub(crate) bad_checksum: bool,
}

impl Forged {
    /// A SYN as a client's kernel would send it.
    pub(crate) fn syn(source: IpAddr, destination: IpAddr, ports: (u16, u16)) -> Self {
        Self {
            source,
            destination,
            ports,
            seq: 0x1234_5678,
            ack: 0,
            flags: SYN,
            options: vec![2, 4, 5, 0xb4, 1, 3, 3, 7],
            data_offset: None,
            payload: Vec::new(),
            ip_options: Vec::new(),
            fragment: 0,
            extension: None,
            bad_checksum: false,
        }
    }

    /// The frame, from the station `stations.0` to `stations.1`.
    pub(crate) fn frame(&self, stations: ([u8; 6], [u8; 6])) -> Vec<u8> {
        let tcp = self.segment();
        let mut frame = [stations.1, stations.0].concat();
        match (self.source, self.destination) {
            (IpAddr::V4(source), IpAddr::V4(destination)) => {
                frame.extend([0x08, 0x00]);
                let header_len = 20 + self.ip_options.len();
                let mut header = vec![0x40 | (header_len / 4) as u8, 0];
                header.extend(((header_len + tcp.len()) as u16).to_be_bytes());
                header.extend([0, 0]);
                header.extend(self.fragment.to_be_bytes());
                header.extend([64, TCP, 0, 0]);
                header.extend(source.octets());
                header.extend(destination.octets());
                header.extend(&self.ip_options);
                let sum = checksum(&[&header]);
                header[10..12].copy_from_slice(&sum.to_be_bytes());
                frame.extend(header);
            }
            (IpAddr::V6(source), IpAddr::V6(destination)) => {
                frame.extend([0x86, 0xdd, 0x60, 0, 0, 0]);
                let (next, extension) = match &self.extension {
                    Some((next, bytes)) => (*next, &bytes[..]),
                    None => (TCP, &[][..]),
                };
                frame.extend(((extension.len() + tcp.len()) as u16).to_be_bytes());
                frame.extend([next, 64]);
                frame.extend(source.octets());
                frame.extend(destination.octets());
                frame.extend(extension);
            }
            families => panic!("no packet goes from one family to the other: {families:?}"),
        }
        frame.extend(tcp);
        frame
    }

    fn segment(&self) -> Vec<u8> {
        let words = self.data_offset.unwrap_or(5 + (self.options.len() / 4) as u8);
        let mut tcp = [self.ports.0.to_be_bytes(), self.ports.1.to_be_bytes()].concat();
        tcp.extend(self.seq.to_be_bytes());
        tcp.extend(self.ack.to_be_bytes());
        tcp.extend([words << 4, self.flags, 0xfa, 0xf0, 0, 0, 0, 0]);
        tcp.extend(&self.options);
        tcp.extend(&self.payload);
        let length = (tcp.len() as u32).to_be_bytes();
        let (source, destination) = (octets(self.source), octets(self.destination));
        let mut sum = checksum(&[&source, &destination, &length, &[0, 0, 0, TCP], &tcp]);
        if self.bad_checksum {
            sum = !sum;
        }
        tcp[16..18].copy_from_slice(&sum.to_be_bytes());
        tcp
    }
}

/// Makes the header checksum of a frame's IPv4 packet right again after a change.
pub(crate) fn mend_header(frame: &mut [u8]) {
    let end = ETHERNET + usize::from(frame[ETHERNET] & 0x0f) * 4;
    let end = end.clamp(ETHERNET + 20, frame.len());
    frame[ETHERNET + 10..ETHERNET + 12].fill(0);
    let sum = checksum(&[&frame[ETHERNET..end]]);
    frame[ETHERNET + 10..ETHERNET + 12].copy_from_slice(&sum.to_be_bytes());
}

/// Sends frames through one interface, as they are.
#[derive(Debug)]
pub(crate) struct Raw {
    socket: OwnedFd,
}

impl Raw {
    /// Opens a socket on `nic` of the calling thread's network namespace.
    ///
    /// # Errors
    /// When there is no such interface, or the right to use packet sockets is missing.
    pub(crate) fn open(nic: &str) -> io::Result<Self> {
        // Protocol 0: it receives nothing.
        let socket = socket(AddressFamily::Packet, SockType::Raw, SockFlag::SOCK_CLOEXEC, None)?;
        bind(socket.as_raw_fd(), &link_address(nic)?)?;
        Ok(Self { socket })
    }

    /// Sends one frame of at least [`ETHERNET`] bytes.
    ///
    /// # Errors
    /// What the kernel says.
    pub(crate) fn send(&self, frame: &[u8]) -> io::Result<()> {
        let sent = send(self.socket.as_raw_fd(), frame, MsgFlags::empty())?;
        assert_eq!(sent, frame.len());
        Ok(())
    }

    /// Sends many, at most about `rate` of them a second, so that the other side can keep up.
    ///
    /// # Errors
    /// What the kernel says.
    pub(crate) fn send_all(
        &self,
        frames: impl IntoIterator<Item = Vec<u8>>,
        rate: usize,
    ) -> io::Result<()> {
        let breath = rate.div_ceil(200);
        for (number, frame) in frames.into_iter().enumerate() {
            self.send(&frame)?;
            if number % breath == breath - 1 {
                std::thread::park_timeout(Duration::from_millis(5));
            }
        }
        Ok(())
    }
}

/// The station's address of an interface of the calling thread's network namespace.
///
/// # Errors
/// When there is no such interface.
pub(crate) fn mac(nic: &str) -> io::Result<[u8; 6]> {
    link_address(nic)?.addr().ok_or_else(|| io::ErrorKind::AddrNotAvailable.into())
}

fn link_address(nic: &str) -> io::Result<LinkAddr> {
    nix::ifaddrs::getifaddrs()?
        .filter(|entry| entry.interface_name == nic)
        .find_map(|entry| entry.address?.as_link_addr().copied())
        .ok_or_else(|| io::Error::new(io::ErrorKind::NotFound, format!("no interface {nic}")))
}

fn octets(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(address) => address.octets().to_vec(),
        IpAddr::V6(address) => address.octets().to_vec(),
    }
}

/// RFC 1071, over parts that all but the last have an even length.
fn checksum(parts: &[&[u8]]) -> u16 {
    let words = parts.iter().flat_map(|part| part.chunks(2));
    let mut sum: u32 =
        words.map(|w| u32::from(w[0]) << 8 | u32::from(*w.get(1).unwrap_or(&0))).sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

const TCP: u8 = 6;

#[test]
fn what_is_forged_without_a_fault_is_a_segment() {
    for (source, destination) in [("192.0.2.1", "192.0.2.2"), ("2001:db8::1", "2001:db8::2")] {
        let (source, destination) = (source.parse().unwrap(), destination.parse().unwrap());
        let good = Forged {
            payload: vec![7; 33],
            ip_options: vec![1; 8],
            ..Forged::syn(source, destination, (40_000, 80))
        };
        let frame = good.frame(([2; 6], [4; 6]));
        let segment = Segment::parse(&frame[ETHERNET..], Checksums::Verify).unwrap();
        assert_eq!((segment.tuple.local.addr, segment.tuple.remote.port), (destination, 40_000));
        assert_eq!((segment.seq, segment.mss), (good.seq, Some(1460)));
        let bad = Forged { bad_checksum: true, ..good }.frame(([2; 6], [4; 6]));
        let fault = Segment::parse(&bad[ETHERNET..], Checksums::Verify).unwrap_err();
        assert_eq!(fault, Malformed::TcpChecksum);
    }
}
