//! Segments without payload that the stack writes by itself: SYN-ACK, RST, challenge ACK, and synthetic ones for the engine.

use smoltcp::phy::ChecksumCapabilities;
use smoltcp::wire::{IpAddress, IpProtocol, IpRepr, TcpControl, TcpPacket, TcpRepr, TcpSeqNumber};

use crate::segment::Flags;
use crate::tuple::Tuple;

/// The headers of a segment without payload. `tuple.local` is the sender.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Header {
    pub(crate) tuple: Tuple,
    pub(crate) seq: u32,
    pub(crate) ack: u32,
    pub(crate) flags: Flags,
    pub(crate) window: u16,
    pub(crate) options: SynOptions,
}

/// The options of a SYN.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct SynOptions {
    pub(crate) mss: Option<u16>,
    pub(crate) window_scale: Option<u8>,
    pub(crate) sack_permitted: bool,
}

impl Header {
    /// Length of the whole packet in bytes, at most [`MAX_LEN`].
    pub(crate) fn len(&self) -> usize {
        self.ip_repr().buffer_len()
    }

    /// Writes the packet over the whole of `packet`, which must be [`Header::len`] bytes long.
    pub(crate) fn write(&self, packet: &mut [u8]) {
        let (ip, tcp) = (self.ip_repr(), self.tcp_repr());
        let checksums = ChecksumCapabilities::default();
        ip.emit(&mut *packet, &checksums);
        let mut segment = TcpPacket::new_unchecked(&mut packet[ip.header_len()..]);
        tcp.emit(&mut segment, &self.source(), &self.destination(), &checksums);
    }

    fn ip_repr(&self) -> IpRepr {
        let payload_len = self.tcp_repr().buffer_len();
        IpRepr::new(self.source(), self.destination(), IpProtocol::Tcp, payload_len, HOP_LIMIT)
    }

    fn tcp_repr(&self) -> TcpRepr<'static> {
        TcpRepr {
            src_port: self.tuple.local.port,
            dst_port: self.tuple.remote.port,
            control: match (self.flags.syn(), self.flags.fin(), self.flags.rst()) {
                (true, _, _) => TcpControl::Syn,
                (_, true, _) => TcpControl::Fin,
                (_, _, true) => TcpControl::Rst,
                (false, false, false) => TcpControl::None,
            },
            seq_number: TcpSeqNumber(self.seq as i32),
            ack_number: self.flags.ack().then_some(TcpSeqNumber(self.ack as i32)),
            window_len: self.window,
            window_scale: self.options.window_scale,
            max_seg_size: self.options.mss,
            sack_permitted: self.options.sack_permitted,
            sack_ranges: [None; 3],
            timestamp: None,
            payload: &[],
        }
    }

    fn source(&self) -> IpAddress {
        self.tuple.local.addr.into()
    }

    fn destination(&self) -> IpAddress {
        self.tuple.remote.addr.into()
    }
}

/// The longest packet of a [`Header`]: IPv6, and a TCP header full of options.
pub(crate) const MAX_LEN: usize = 40 + 60;
const HOP_LIMIT: u8 = 64;
