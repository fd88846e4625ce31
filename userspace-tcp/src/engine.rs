//! What runs the state machine of one connection, behind a trait: everything else in this crate is independent of smoltcp's sockets.
//!
//! [`SmolEngine`] is a `SocketSet` with exactly one socket. smoltcp walks all sockets of a set for every packet, so that a
//! set of one is what makes the cost independent of the number of connections. All state of a connection is in the socket;
//! the interfaces of [`Host`] carry no more than the time, the packet size and a random state, and are shared.

use std::fmt;

use smoltcp::iface::{self, Interface, PollResult, SocketHandle, SocketSet, SocketStorage};
use smoltcp::socket::tcp::{CongestionControl, Socket, SocketBuffer, State};
use smoltcp::time::Instant;
use smoltcp::wire::{HardwareAddress, IpEndpoint};

use crate::config::Config;
pub use crate::device::Line;
use crate::device::{self, Wire};
use crate::emit::{Emit, Sent, Swallow};
use crate::header::{self, Header, SynOptions};
use crate::isn;
use crate::segment::Flags;
use crate::tuple::{Endpoint, Tuple};

/// The state machine and the buffers of one connection.
///
/// Whatever an engine does may panic: the caller catches that, and drops the engine.
pub trait Engine: Sized {
    /// An engine with empty buffers, closed.
    fn new(config: &Config) -> Self;

    /// Begins a connection; the SYN waits for [`Engine::egress`]. Returns false if the engine refuses. The engine may have
    /// served another connection before, of which nothing is left then.
    fn connect(&mut self, host: &mut Host, now: Instant, tuple: &Tuple, isn: u32) -> bool;

    /// Takes over a handshake whose SYN-ACK is out, as if the engine had sent it. Returns false if the engine refuses.
    fn take_over(&mut self, host: &mut Host, handshake: &Handshake) -> bool;

    /// Gives one valid packet of this connection to the state machine, which may answer at once.
    fn ingress<P, O: Emit<P>>(
        &mut self,
        host: &mut Host,
        class: MtuClass,
        now: Instant,
        packet: &[u8],
        line: &mut Line<'_, P, O>,
    );

    /// Sends at most one packet. Returns whether one was sent.
    fn egress<P, O: Emit<P>>(
        &mut self,
        host: &mut Host,
        class: MtuClass,
        now: Instant,
        line: &mut Line<'_, P, O>,
    ) -> bool;

    /// When [`Engine::egress`] has something to do; a time that is not after `now` means at once.
    fn deadline(&mut self, host: &mut Host, class: MtuClass, now: Instant) -> Option<Instant>;

    /// The state (RFC 9293 section 3.3.2).
    fn state(&self) -> State;
    /// Reads something of every part that a segment will need, only to have it in the cache. The result means nothing.
    fn touch(&self) -> usize {
        self.received_len() + self.queued()
    }

    /// Bytes in order that were not consumed yet.
    fn received_len(&self) -> usize;
    /// Those of them that lie in one piece.
    fn received(&mut self) -> &[u8];
    /// Gives up the first bytes of [`Engine::received`]; returns how many.
    fn consume(&mut self, len: usize) -> usize;
    /// Capacity for received bytes.
    fn receive_capacity(&self) -> usize;

    /// Queues bytes for sending, as many as there is room for and the state allows.
    fn send(&mut self, bytes: &[u8]) -> usize;
    /// Bytes queued: not sent, or not acknowledged.
    fn queued(&self) -> usize;
    /// How many bytes [`Engine::send`] would take.
    fn send_space(&self) -> usize;
    /// Moves at most `limit` received bytes into the other engine's queue, in one copy.
    fn splice(&mut self, to: &mut Self, limit: usize) -> usize;

    /// Sends a FIN behind what is queued.
    fn close(&mut self);
    /// Closes at once; a RST waits for [`Engine::egress`].
    fn abort(&mut self);
}

/// A handshake that was conducted without an engine.
#[derive(Clone, Copy, Debug)]
pub struct Handshake {
    pub(crate) tuple: Tuple,
    pub(crate) isn: u32,
    pub(crate) irs: u32,
    pub(crate) window: u16,
    pub(crate) options: SynOptions,
    pub(crate) answered: Instant,
}

/// Index of a packet size in [`Config::mtu`] followed by [`Config::lower_mtus`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct MtuClass(pub(crate) u8);

/// What all engines of a stack share: one smoltcp interface per packet size.
pub struct Host {
    classes: Vec<(u16, Interface)>,
}

impl Host {
    pub(crate) fn new(config: &Config) -> Self {
        let classes = config.mtu_classes();
        Self { classes: classes.into_iter().map(|mtu| (mtu, interface(mtu, 1))).collect() }
    }

    /// The class with the largest packets of at most `mtu` bytes, or the smallest class.
    pub(crate) fn class_for(&self, mtu: u16) -> MtuClass {
        let fits = self.classes.iter().position(|(size, _)| *size <= mtu);
        MtuClass(fits.unwrap_or(self.classes.len() - 1) as u8)
    }

    /// The MSS to announce to this peer.
    pub(crate) fn mss(&self, tuple: &Tuple) -> u16 {
        self.classes[0].0 - if tuple.local.addr.is_ipv4() { 40 } else { 60 }
    }

    /// An interface for one handshake, whose next initial sequence number is `isn`.
    fn seeded(&self, isn: u32) -> Interface {
        interface(self.classes[0].0, isn::seed_for(isn))
    }
}

impl fmt::Debug for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.classes.iter().map(|(mtu, _)| mtu)).finish()
    }
}

/// Whether the smoltcp in use draws its random numbers in the order that [`isn::seed_for`] relies on.
pub(crate) fn draws_chosen_numbers(config: &Config) -> bool {
    let mut host = Host::new(config);
    let config = Config { receive_buffer: 536, send_buffer: 536, ..Config::default() };
    [0, 1, 0x0000_ffff, 0x1234_5678, 0x7fff_ffff, 0x8000_0000, u32::MAX].into_iter().all(|isn| {
        let tuple = Tuple {
            local: Endpoint::new([192, 0, 2, 1].into(), 1),
            remote: Endpoint::new([192, 0, 2, 2].into(), 2),
        };
        let mut engine = SmolEngine::new(&config);
        let mut sent = Sent { max: isn, ..Sent::default() };
        let mut line = Line { out: &mut Swallow, path: &(), sent: &mut sent, tuple: &tuple };
        engine.connect(&mut host, Instant::ZERO, &tuple, isn)
            && engine.egress(&mut host, MtuClass(0), Instant::ZERO, &mut line)
            && sent.max == isn.wrapping_add(1)
    })
}

/// One smoltcp socket in a set of its own.
#[derive(Debug)]
pub struct SmolEngine {
    set: SocketSet<'static>,
    handle: SocketHandle,
}

impl SmolEngine {
    fn socket(&self) -> &Socket<'static> {
        self.set.get(self.handle)
    }

    fn socket_mut(&mut self) -> &mut Socket<'static> {
        self.set.get_mut(self.handle)
    }

    /// smoltcp's own reset of a socket forgets its congestion controller.
    fn renew(&mut self) {
        self.socket_mut().set_congestion_control(CongestionControl::Cubic);
    }
}

impl Engine for SmolEngine {
    fn new(config: &Config) -> Self {
        let mut socket = Socket::new(
            SocketBuffer::new(vec![0; config.receive_buffer]),
            SocketBuffer::new(vec![0; config.send_buffer]),
        );
        socket.set_nagle_enabled(false);
        socket.set_ack_delay((config.ack_delay.total_micros() > 0).then_some(config.ack_delay));
        let mut set = SocketSet::new(vec![SocketStorage::EMPTY]);
        let handle = set.add(socket);
        Self { set, handle }
    }

    fn connect(&mut self, host: &mut Host, now: Instant, tuple: &Tuple, isn: u32) -> bool {
        self.renew();
        let mut interface = host.seeded(isn);
        interface.poll_maintenance(now);
        let (remote, local) = (endpoint(tuple.remote), endpoint(tuple.local));
        self.socket_mut().connect(interface.context(), remote, local).is_ok()
    }

    fn take_over(&mut self, host: &mut Host, handshake: &Handshake) -> bool {
        self.renew();
        if self.socket_mut().listen(endpoint(handshake.tuple.local)).is_err() {
            return false;
        }
        let syn = Header {
            tuple: handshake.tuple.reversed(),
            seq: handshake.irs,
            ack: 0,
            flags: Flags::SYN,
            window: handshake.window,
            options: handshake.options,
        };
        let mut packet = [0; header::MAX_LEN];
        let packet = &mut packet[..syn.len()];
        syn.write(packet);

        // The time at which the SYN-ACK really left, so that the first acknowledgment is a sample of the round trip time.
        let (mut interface, now) = (host.seeded(handshake.isn), handshake.answered);
        let mut sent = Sent { max: handshake.isn, ..Sent::default() };
        let mut line =
            Line { out: &mut Swallow, path: &(), sent: &mut sent, tuple: &handshake.tuple };
        let mtu = host.classes[0].0;
        let mut wire = Wire { packet: Some(packet), line: &mut line, mtu };
        interface.poll_ingress_single(now, &mut wire, &mut self.set);
        interface.poll_egress(now, &mut wire, &mut self.set);
        self.state() == State::SynReceived && sent.max == handshake.isn.wrapping_add(1)
    }

    fn ingress<P, O: Emit<P>>(
        &mut self,
        host: &mut Host,
        class: MtuClass,
        now: Instant,
        packet: &[u8],
        line: &mut Line<'_, P, O>,
    ) {
        let (mtu, interface) = &mut host.classes[usize::from(class.0)];
        let mut wire = Wire { packet: Some(packet), line, mtu: *mtu };
        interface.poll_ingress_single(now, &mut wire, &mut self.set);
    }

    fn egress<P, O: Emit<P>>(
        &mut self,
        host: &mut Host,
        class: MtuClass,
        now: Instant,
        line: &mut Line<'_, P, O>,
    ) -> bool {
        let (mtu, interface) = &mut host.classes[usize::from(class.0)];
        let mut wire = Wire { packet: None, line, mtu: *mtu };
        interface.poll_egress(now, &mut wire, &mut self.set) == PollResult::SocketStateChanged
    }

    fn deadline(&mut self, host: &mut Host, class: MtuClass, now: Instant) -> Option<Instant> {
        host.classes[usize::from(class.0)].1.poll_at(now, &self.set)
    }

    fn state(&self) -> State {
        self.socket().state()
    }

    fn touch(&self) -> usize {
        let socket = self.socket();
        socket.recv_queue()
            + socket.send_queue()
            + socket.state() as usize
            + usize::from(socket.nagle_enabled())
            + usize::from(socket.local_endpoint().is_some())
            + usize::from(socket.timeout().is_some())
            + usize::from(socket.ack_delay().is_some())
            + usize::from(socket.keep_alive().is_some())
            + usize::from(socket.congestion_control() == CongestionControl::Cubic)
    }

    fn received_len(&self) -> usize {
        self.socket().recv_queue()
    }

    fn received(&mut self) -> &[u8] {
        self.socket_mut().peek(usize::MAX).unwrap_or_default()
    }

    fn consume(&mut self, len: usize) -> usize {
        let take = |received: &mut [u8], len: usize| {
            let n = received.len().min(len);
            (n, n)
        };
        let socket = self.socket_mut();
        let first = socket.recv(|received| take(received, len)).unwrap_or(0);
        if first == len {
            return first;
        }
        first + socket.recv(|received| take(received, len - first)).unwrap_or(0)
    }

    fn receive_capacity(&self) -> usize {
        self.socket().recv_capacity()
    }

    fn send(&mut self, bytes: &[u8]) -> usize {
        self.socket_mut().send_slice(bytes).unwrap_or(0)
    }

    fn queued(&self) -> usize {
        self.socket().send_queue()
    }

    fn send_space(&self) -> usize {
        let socket = self.socket();
        if socket.may_send() { socket.send_capacity() - socket.send_queue() } else { 0 }
    }

    fn splice(&mut self, to: &mut Self, limit: usize) -> usize {
        let (from, to) = (self.socket_mut(), to.socket_mut());
        let mut moved = 0;
        // Twice, as the received bytes may wrap around the end of their ring.
        for _ in 0..2 {
            let step = from.recv(|received| {
                let offered = received.len().min(limit - moved);
                let n = to.send_slice(&received[..offered]).unwrap_or(0);
                (n, n)
            });
            moved += step.unwrap_or(0);
        }
        moved
    }

    fn close(&mut self) {
        self.socket_mut().close();
    }

    fn abort(&mut self) {
        self.socket_mut().abort();
    }
}

fn interface(mtu: u16, seed: u64) -> Interface {
    let mut config = iface::Config::new(HardwareAddress::Ip);
    config.random_seed = seed;
    let mut interface = Interface::new(config, &mut NoDevice(mtu), Instant::ZERO);
    interface.set_any_ip(true);
    interface
}

fn endpoint(endpoint: Endpoint) -> IpEndpoint {
    IpEndpoint::new(endpoint.addr.into(), endpoint.port)
}

/// Says how large packets may be; `Interface::new` asks for no more.
struct NoDevice(u16);

impl smoltcp::phy::Device for NoDevice {
    type RxToken<'a> = device::Received<'a>;
    type TxToken<'a> = device::Permit<'a, (), Swallow>;

    fn receive(&mut self, _now: Instant) -> Option<(Self::RxToken<'_>, Self::TxToken<'_>)> {
        None
    }

    fn transmit(&mut self, _now: Instant) -> Option<Self::TxToken<'_>> {
        None
    }

    fn capabilities(&self) -> smoltcp::phy::DeviceCapabilities {
        device::capabilities(self.0)
    }
}
