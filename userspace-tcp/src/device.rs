//! The device that smoltcp talks to: it hands over at most one packet, and passes on what is sent.

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};

use smoltcp::phy::{self, Checksum, ChecksumCapabilities, Device, DeviceCapabilities, Medium};
use smoltcp::time::Instant;

use crate::checksum;
use crate::emit::{Emit, Sent};
use crate::header;
use crate::tuple::Tuple;

/// Where the packets of one connection go, and what is remembered of them.
#[derive(Debug)]
pub struct Line<'a, P, O> {
    pub(crate) out: &'a mut O,
    pub(crate) path: &'a P,
    pub(crate) sent: &'a mut Sent,
    pub(crate) tuple: &'a Tuple,
}

/// One packet in, and a line out.
pub(crate) struct Wire<'a, 'l, P, O> {
    pub(crate) packet: Option<&'a [u8]>,
    pub(crate) line: &'a mut Line<'l, P, O>,
    pub(crate) mtu: u16,
}

impl<P, O: Emit<P>> Device for Wire<'_, '_, P, O> {
    type RxToken<'b>
        = Received<'b>
    where
        Self: 'b;
    type TxToken<'b>
        = Permit<'b, P, O>
    where
        Self: 'b;

    fn receive(&mut self, _now: Instant) -> Option<(Received<'_>, Permit<'_, P, O>)> {
        let packet = self.packet.take()?;
        Some((Received(packet), Permit::new(self.line)))
    }

    fn transmit(&mut self, _now: Instant) -> Option<Permit<'_, P, O>> {
        (self.line.out.room() > 0).then(|| Permit::new(self.line))
    }

    fn capabilities(&self) -> DeviceCapabilities {
        capabilities(self.mtu)
    }
}

/// What smoltcp has to know: received checksums are verified already, and TCP checksums are computed in [`Permit`].
pub(crate) fn capabilities(mtu: u16) -> DeviceCapabilities {
    let mut capabilities = DeviceCapabilities::default();
    capabilities.medium = Medium::Ip;
    capabilities.max_transmission_unit = usize::from(mtu);
    capabilities.checksum = ChecksumCapabilities::default();
    capabilities.checksum.ipv4 = Checksum::Tx;
    capabilities.checksum.tcp = Checksum::None;
    capabilities
}

/// The packet received.
pub(crate) struct Received<'a>(&'a [u8]);

impl phy::RxToken for Received<'_> {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, f: F) -> R {
        f(self.0)
    }
}

/// Permission to send one packet.
pub(crate) struct Permit<'a, P, O> {
    out: &'a mut O,
    path: &'a P,
    sent: &'a mut Sent,
    tuple: &'a Tuple,
}

impl<'a, P, O> Permit<'a, P, O> {
    fn new(line: &'a mut Line<'_, P, O>) -> Self {
        Self { out: line.out, path: line.path, sent: line.sent, tuple: line.tuple }
    }
}

impl<P, O: Emit<P>> phy::TxToken for Permit<'_, P, O> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, len: usize, f: F) -> R {
        let Self { out, path, sent, tuple } = self;
        if out.room() == 0 {
            sent.lost += 1;
            return into_nowhere(len, f, sent);
        }
        // A panic must not unwind through the caller's ring.
        let written = out.emit(path, len, |packet| {
            catch_unwind(AssertUnwindSafe(|| {
                let written = f(packet);
                sent.straighten(packet);
                finish_checksum(packet, tuple);
                sent.note(packet);
                written
            }))
        });
        written.unwrap_or_else(|panic| resume_unwind(panic))
    }
}

/// A reply to a received packet cannot be refused any more, but it is no longer than its headers.
fn into_nowhere<R>(len: usize, f: impl FnOnce(&mut [u8]) -> R, sent: &mut Sent) -> R {
    let mut packet = [0; header::MAX_LEN];
    let packet = &mut packet[..len];
    let written = f(packet);
    // The engine believes that it was sent.
    sent.note(packet);
    written
}

fn finish_checksum(packet: &mut [u8], tuple: &Tuple) {
    let tcp_at = if tuple.local.addr.is_ipv4() { 20 } else { 40 };
    let tcp = &mut packet[tcp_at..];
    let sum = checksum::pseudo_header(tuple.local.addr, tuple.remote.addr, tcp.len());
    let sum = !checksum::fold(sum + checksum::sum(tcp));
    tcp[16..18].copy_from_slice(&sum.to_ne_bytes());
}
