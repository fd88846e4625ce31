//! The next hop of a packet, and the Ethernet header that leads there (IEEE 802.3, RFC 894, 2464).

use userspace_tcp::Emit;

use crate::{
    port::{Nic, Port},
    tally::{Event, Tally},
};

/// Bytes of an Ethernet header.
pub const ETHERNET: usize = 14;

/// Where a packet leaves, and to which station.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Hop {
    /// The NIC it leaves through.
    pub nic: Nic,
    /// Our address there.
    pub source: [u8; 6],
    /// The station it goes to.
    pub destination: [u8; 6],
}

/// An Ethernet frame's header and what it carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ethernet {
    /// The hop that an answer takes.
    pub back: Hop,
    /// EtherType, in host byte order.
    pub ethertype: u16,
}

impl Ethernet {
    /// Reads the header of a frame that came in through `nic`; `None` if it is too short for one.
    #[must_use]
    pub fn parse(nic: Nic, frame: &[u8]) -> Option<Self> {
        let (destination, rest) = frame.split_first_chunk::<6>()?;
        let (source, rest) = rest.split_first_chunk::<6>()?;
        let (ethertype, _) = rest.split_first_chunk::<2>()?;
        Some(Self {
            back: Hop { nic, source: *destination, destination: *source },
            ethertype: u16::from_be_bytes(*ethertype),
        })
    }

    /// Whether an IPv4 or IPv6 packet follows.
    #[must_use]
    pub fn carries_ip(&self) -> bool {
        matches!(self.ethertype, 0x0800 | 0x86dd)
    }
}

/// Sends the packets of the TCP layer through a port.
#[derive(Debug)]
pub struct Outlet<'a, P> {
    /// Where frames come from and go to.
    pub port: &'a mut P,
    /// Counts them.
    pub tally: &'a mut Tally,
}

impl<P: Port> Emit<Hop> for Outlet<'_, P> {
    fn room(&self) -> usize {
        self.port.room()
    }

    fn emit<R>(&mut self, hop: &Hop, len: usize, fill: impl FnOnce(&mut [u8]) -> R) -> R {
        let Some(mut frame) = self.port.allocate(ETHERNET + len) else {
            // The TCP layer asked for room first, so this is a packet longer than any MTU here:
            // lost as on a wire, and sent again.
            self.tally.note(Event::NoFrame);
            return fill(&mut vec![0; len]);
        };
        self.tally.allocated += 1;
        let bytes = self.port.bytes_mut(&mut frame);
        let (header, packet) = bytes.split_at_mut(ETHERNET);
        let result = fill(packet);
        write_header(header, hop, packet);
        self.port.transmit(hop.nic, frame);
        self.tally.transmitted += 1;
        result
    }
}

/// The answers to one packet, kept until the packet's own frame is out of the way.
#[derive(Debug)]
pub struct Answers {
    packets: Vec<(Hop, usize, [u8; ANSWER])>,
}

/// The longest answer, in bytes: IPv6 and TCP headers with all options.
const ANSWER: usize = 100;
/// The most answers to one packet.
const ANSWERS: usize = 4;

impl Default for Answers {
    fn default() -> Self {
        Self { packets: Vec::with_capacity(ANSWERS) }
    }
}

impl Answers {
    /// Sends what was kept.
    pub fn send<P: Port>(&mut self, outlet: &mut Outlet<'_, P>) {
        for (hop, len, bytes) in self.packets.drain(..) {
            if outlet.room() == 0 {
                outlet.tally.note(Event::NoFrame);
                continue;
            }
            outlet.emit(&hop, len, |packet| packet.copy_from_slice(&bytes[..len]));
        }
    }
}

impl Emit<Hop> for Answers {
    fn room(&self) -> usize {
        ANSWERS - self.packets.len()
    }

    fn emit<R>(&mut self, hop: &Hop, len: usize, fill: impl FnOnce(&mut [u8]) -> R) -> R {
        if len > ANSWER || self.packets.len() == ANSWERS {
            // Not an answer but data: lost as on a wire, and sent again at the next flush.
            debug_assert!(false, "an answer of {len} bytes");
            return fill(&mut vec![0; len]);
        }
        let mut bytes = [0; ANSWER];
        let result = fill(&mut bytes[..len]);
        self.packets.push((*hop, len, bytes));
        result
    }
}

fn write_header(header: &mut [u8], hop: &Hop, packet: &[u8]) {
    let ethertype: u16 =
        if packet.first().is_some_and(|byte| byte >> 4 == 6) { 0x86dd } else { 0x0800 };
    header[..6].copy_from_slice(&hop.destination);
    header[6..12].copy_from_slice(&hop.source);
    header[12..14].copy_from_slice(&ethertype.to_be_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory_port::Memory;

    const HOP: Hop = Hop { nic: 1, source: [2, 0, 0, 0, 0, 1], destination: [2, 0, 0, 0, 0, 2] };

    #[test]
    fn an_answer_goes_back_where_the_frame_came_from() {
        let mut port = Memory::new(2);
        let mut tally = Tally::default();
        let mut answers = Answers::default();
        answers.emit(&HOP, 40, |packet| packet.fill(0x60));
        answers.send(&mut Outlet { port: &mut port, tally: &mut tally });
        port.flush();
        let (nic, bytes) = port.take().unwrap();
        assert_eq!((nic, bytes.len()), (1, 54));
        let parsed = Ethernet::parse(0, &bytes).unwrap();
        assert_eq!(parsed.ethertype, 0x86dd);
        assert!(parsed.carries_ip());
        assert_eq!(parsed.back, Hop { nic: 0, source: HOP.destination, destination: HOP.source });
        assert_eq!(tally.transmitted, 1);
    }

    #[test]
    fn short_frames_have_no_header() {
        for len in 0..ETHERNET {
            assert_eq!(Ethernet::parse(0, &[0; ETHERNET][..len]), None);
        }
    }
}
