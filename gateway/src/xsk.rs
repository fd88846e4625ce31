//! AF_XDP: a socket for each NIC queue of a worker, all on one UMEM.
//!
//! The only file that knows xsk-rs, and the only `unsafe` of the gateway. What makes it sound is
//! one table: `place` says for every frame who owns it, a [`Frame`] exists exactly for the ones that
//! are `Held`, and a frame's bytes are reached only through its [`Frame`]. Whatever address the
//! kernel reports is checked against that table before it is believed.

#![expect(unsafe_code, reason = "xsk-rs leaves the ownership of frames to its caller")]

mod terms;

use std::{
    collections::VecDeque,
    ffi::CString,
    io,
    num::NonZeroU32,
    os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd},
    time::Duration,
};

use nix::{
    errno::Errno,
    poll::{PollFd, PollFlags, PollTimeout},
    sys::socket::{MsgFlags, send, setsockopt, sockopt},
};
use xsk_rs::{
    CompQueue, FillQueue, FrameDesc, RxQueue, Socket, TxQueue, Umem,
    config::{BindFlags, FrameSize, Interface, LibxdpFlags, QueueSize, SocketConfig, UmemConfig},
};

pub use self::terms::{BindError, BindMode, QueueSpec};
use crate::{
    frame::{Frame, Slot},
    port::{BATCH, Batch, FrameCensus, Nic, Port, RingCounters},
    waker::Waker,
};

/// Bytes of a frame, of which the kernel takes the first 256 for XDP's headroom.
const FRAME_SIZE: usize = 2048;
/// The longest packet a frame holds, in bytes.
pub const CAPACITY: usize = FRAME_SIZE - 256;
/// `XDP_MAX_TX_SKB_BUDGET` (Linux 6.17): descriptors sent by one `sendto` in copy mode.
const XDP_MAX_TX_SKB_BUDGET: libc::c_int = 9;
/// Without it, the kernel sends this many.
const DEFAULT_TX_BUDGET: usize = 32;
/// In copy mode every queued packet is charged to the socket: room for a whole ring of them.
const SEND_BUFFER: usize = 32 << 20;

/// The AF_XDP port of one worker.
#[derive(Debug)]
pub struct Xsk {
    sides: Vec<Side>,
    /// The side that is looked at first by the next reception.
    first: usize,
    free: Vec<u32>,
    held: usize,
    /// What the kernel or [`Port::allocate`] last said about each frame.
    descs: Box<[FrameDesc]>,
    /// Each frame as it was born: with the packet at the start of its room.
    home: Box<[FrameDesc]>,
    place: Box<[Place]>,
    scratch: [FrameDesc; BATCH],
    reserve: usize,
    waker: Waker,
    umem: Umem,
}

/// Who owns a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    Free,
    Held,
    Receiving(SideId),
    Sending(SideId),
}

/// The rings of one NIC queue, by their number in this port.
type SideId = u16;

/// The rings of one NIC queue.
#[derive(Debug)]
struct Side {
    id: SideId,
    nic: Nic,
    name: String,
    queue: u32,
    ring: usize,
    rx: RxQueue,
    tx: TxQueue,
    fill: FillQueue,
    comp: CompQueue,
    /// Frames to be sent that the TX ring has no room for.
    backlog: VecDeque<u32>,
    receiving: usize,
    sending: usize,
    /// The frames that this queue brought along: as many may be on their way out.
    share: usize,
    tx_budget: usize,
    /// The last attempt to send failed: the NIC is down.
    is_stuck: bool,
    tx_kicks: u64,
    tx_kicks_again: u64,
    tx_errors: u64,
    bad_addresses: u64,
}

impl Xsk {
    /// Makes a UMEM and binds one socket on it to each queue, and lends the kernel frames to
    /// receive into. Nothing is received before the sockets are in the XSKMAP.
    ///
    /// A queue that was just given up may be busy for some milliseconds: `patience` says how often
    /// to try again, a call of `pause` apart.
    ///
    /// # Errors
    /// The kernel's refusal, with what to do about it.
    pub fn bind(
        specs: &[QueueSpec],
        mode: BindMode,
        waker: Waker,
        patience: u32,
        mut pause: impl FnMut(),
    ) -> Result<Self, BindError> {
        let mut tries = 0;
        loop {
            match Self::bind_once(specs, mode, waker.clone()) {
                Err(BindError::Socket { source, .. })
                    if source.raw_os_error() == Some(libc::EBUSY) && tries < patience =>
                {
                    tries += 1;
                    pause();
                }
                done => return done,
            }
        }
    }

    fn bind_once(specs: &[QueueSpec], mode: BindMode, waker: Waker) -> Result<Self, BindError> {
        let frames: u32 = specs.iter().map(|spec| spec.frames).sum();
        let ring = specs.iter().map(|spec| spec.ring).max().unwrap_or(64);
        let umem_error = |source| BindError::Umem { frames, source };
        let (umem, home) = Umem::new(
            UmemConfig::builder()
                .frame_size(FrameSize::new(FRAME_SIZE as u32).map_err(|e| umem_error(other(e)))?)
                .fill_queue_size(queue_size(ring).map_err(umem_error)?)
                .comp_queue_size(queue_size(ring).map_err(umem_error)?)
                .build()
                .map_err(|e| umem_error(other(e)))?,
            NonZeroU32::new(frames).ok_or_else(|| umem_error(Errno::EINVAL.into()))?,
            false,
        )
        .map_err(|e| umem_error(os_error(&e)))?;

        let sides = specs
            .iter()
            .zip(0..)
            .map(|(spec, id)| {
                Side::bind(spec, id, &umem, mode).map_err(|source| BindError::Socket {
                    nic: spec.name.clone(),
                    queue: spec.queue,
                    mode: mode.name(),
                    source,
                })
            })
            .collect::<Result<Vec<_>, _>>()?;

        let mut port = Self {
            sides,
            first: 0,
            free: (0..frames).rev().collect(),
            held: 0,
            descs: home.clone().into_boxed_slice(),
            place: vec![Place::Free; home.len()].into_boxed_slice(),
            home: home.into_boxed_slice(),
            scratch: [FrameDesc::default(); BATCH],
            reserve: frames as usize / 4,
            waker,
            umem,
        };
        port.refill();
        Ok(port)
    }

    /// The sockets, to be put in the XSKMAP of their NIC: (NIC, queue, descriptor).
    pub fn sockets(&self) -> impl Iterator<Item = (Nic, u32, RawFd)> {
        self.sides.iter().map(|side| (side.nic, side.queue, side.rx.fd().as_raw_fd()))
    }

    /// Lends free frames to the kernel, but for a reserve to transmit from.
    fn refill(&mut self) {
        for index in 0..self.sides.len() {
            let side = &mut self.sides[index];
            let mut missing = side.ring - side.receiving;
            while missing > 0 && self.free.len() > self.reserve {
                let count = missing.min(BATCH).min(self.free.len() - self.reserve);
                let first = self.free.len() - count;
                for (desc, &slot) in self.scratch.iter_mut().zip(&self.free[first..]) {
                    *desc = self.home[slot as usize];
                }
                // SAFETY: these frames are in `free`, so no `Frame` and no ring refers to them.
                let taken = unsafe { side.fill.produce(&self.scratch[..count]) };
                if taken == 0 {
                    break;
                }
                for slot in self.free.drain(first..) {
                    self.place[slot as usize] = Place::Receiving(side.id);
                }
                side.receiving += count;
                missing -= count;
            }
        }
    }

    /// Takes back the frames that the kernel has sent.
    fn reap(&mut self, index: usize) {
        let side = &mut self.sides[index];
        if side.sending == 0 {
            return;
        }
        loop {
            // SAFETY: the queue and the descriptors belong to this UMEM, the only one here.
            let count = unsafe { side.comp.consume(&mut self.scratch) };
            for desc in &self.scratch[..count] {
                let slot = desc.addr() / FRAME_SIZE;
                // An invalid descriptor may complete with an address that means nothing.
                if self.place.get(slot) == Some(&Place::Sending(side.id)) {
                    self.place[slot] = Place::Free;
                    self.free.push(slot as u32);
                    side.sending -= 1;
                } else {
                    side.bad_addresses += 1;
                }
            }
            if count < BATCH {
                return;
            }
        }
    }

    /// Moves the backlog to the TX ring and makes the kernel send it.
    fn push(&mut self, index: usize) {
        // In copy mode one kick sends `tx_budget` descriptors at most; twice the needed number of
        // turns leaves room for completions in between, and bounds the loop.
        let turns = 2 + 2 * self.sides[index].ring.div_ceil(self.sides[index].tx_budget);
        for _ in 0..turns {
            let side = &mut self.sides[index];
            side.produce(&self.descs, &mut self.scratch);
            let queued = side.ring - side.tx.nb_free_exact() as usize;
            if queued == 0 && side.backlog.is_empty() {
                return;
            }
            if !side.tx.needs_wakeup() || !side.kick() {
                return;
            }
            let left = side.ring - side.tx.nb_free_exact() as usize;
            self.reap(index);
            if left == queued && self.sides[index].backlog.is_empty() {
                return;
            }
        }
    }
}

impl Port for Xsk {
    fn receive(&mut self, batch: &mut Batch) {
        let count = self.sides.len();
        for turn in 0..count {
            let side = &mut self.sides[(self.first + turn) % count];
            let wanted = BATCH - batch.len();
            // SAFETY: the queue and the descriptors belong to this UMEM, the only one here.
            let count = unsafe { side.rx.consume(&mut self.scratch[..wanted]) };
            for desc in &self.scratch[..count] {
                let slot = desc.addr() / FRAME_SIZE;
                if self.place.get(slot) != Some(&Place::Receiving(side.id)) {
                    side.bad_addresses += 1;
                    continue;
                }
                self.place[slot] = Place::Held;
                self.descs[slot] = *desc;
                side.receiving -= 1;
                self.held += 1;
                batch.push((side.nic, Frame::occupying(slot as u32)));
            }
        }
        self.first = (self.first + 1) % count.max(1);
    }

    fn bytes_mut(&mut self, frame: &mut Frame) -> &mut [u8] {
        let desc = &mut self.descs[frame.slot() as usize];
        let len = desc.lengths().data();
        // SAFETY: the frame is `Held`: neither a ring nor another `Frame` refers to it, and both
        // this port and the frame are borrowed for as long as the bytes are.
        let mut data = unsafe { self.umem.data_mut(desc) };
        let start = data.contents_mut().as_mut_ptr();
        // SAFETY: the same bytes; `DataMut` only cannot be returned from behind its own borrow.
        unsafe { std::slice::from_raw_parts_mut(start, len) }
    }

    fn room(&self) -> usize {
        self.free.len()
    }

    fn allocate(&mut self, len: usize) -> Option<Frame> {
        if len > CAPACITY {
            return None;
        }
        let slot = self.free.pop()?;
        let desc = &mut self.descs[slot as usize];
        *desc = self.home[slot as usize];
        // SAFETY: the frame was free: nothing else refers to it.
        unsafe { self.umem.data_mut(desc) }.cursor().set_pos(len);
        self.place[slot as usize] = Place::Held;
        self.held += 1;
        Some(Frame::occupying(slot))
    }

    fn transmit(&mut self, nic: Nic, frame: Frame) {
        let slot = frame.into_slot();
        self.held -= 1;
        // A worker has a queue of every NIC. Of several it is always the first, for the order's sake.
        // A NIC that sends nothing must not take all frames: what exceeds its share is lost.
        let side = self.sides.iter_mut().find(|side| side.nic == nic);
        debug_assert!(side.is_some(), "no queue of NIC {nic}");
        match side {
            Some(side) if side.sending < side.share => {
                self.place[slot as usize] = Place::Sending(side.id);
                side.sending += 1;
                side.backlog.push_back(slot);
                return;
            }
            Some(side) => side.tx_errors += 1,
            None => {}
        }
        self.place[slot as usize] = Place::Free;
        self.free.push(slot);
    }

    fn recycle(&mut self, slot: Slot) {
        let slot = slot.index();
        self.place[slot as usize] = Place::Free;
        self.held -= 1;
        self.free.push(slot);
    }

    fn flush(&mut self) {
        for index in 0..self.sides.len() {
            self.reap(index);
            if self.sides[index].sending > 0 {
                self.push(index);
                self.reap(index);
            }
        }
        self.refill();
    }

    fn wait(&mut self, limit: Duration) {
        let unsent = self.sides.iter().any(|side| side.sending > 0 && !side.is_stuck);
        let limit = if unsent { limit.min(Duration::from_millis(1)) } else { limit };
        let millis = limit.as_nanos().div_ceil(1_000_000).min(60_000) as u16;
        let mut fds = Vec::with_capacity(self.sides.len() + 1);
        fds.push(PollFd::new(self.waker.as_fd(), PollFlags::POLLIN));
        fds.extend(self.sides.iter().map(|side| PollFd::new(side.fd(), PollFlags::POLLIN)));
        // An interrupted wait is a short wait.
        let _ = nix::poll::poll(&mut fds, PollTimeout::from(millis));
    }

    fn census(&mut self) -> FrameCensus {
        FrameCensus {
            total: self.place.len(),
            free: self.free.len(),
            receiving: self.sides.iter().map(|side| side.receiving).sum(),
            sending: self.sides.iter().map(|side| side.sending).sum(),
            held: self.held,
        }
    }

    fn rings(&mut self) -> Vec<RingCounters> {
        let mut rings: Vec<_> = self.sides.iter().map(|side| (side.id, side.counters())).collect();
        rings.sort_by_key(|(id, _)| *id);
        rings.into_iter().map(|(_, counters)| counters).collect()
    }
}

impl Side {
    fn bind(spec: &QueueSpec, id: SideId, umem: &Umem, mode: BindMode) -> io::Result<Self> {
        let copy = match mode {
            BindMode::ZeroCopy => BindFlags::XDP_ZEROCOPY,
            BindMode::Copy => BindFlags::XDP_COPY,
        };
        let config = SocketConfig::builder()
            .rx_queue_size(queue_size(spec.ring)?)
            .tx_queue_size(queue_size(spec.ring)?)
            .libxdp_flags(LibxdpFlags::XSK_LIBXDP_FLAGS_INHIBIT_PROG_LOAD)
            .bind_flags(copy | BindFlags::XDP_USE_NEED_WAKEUP)
            .build();
        let interface = Interface::new(CString::new(spec.name.as_str()).map_err(other)?);
        // SAFETY: libxdp loads no program (flag above), which is what the contract asks for.
        let bound = unsafe { Socket::new(config, umem, &interface, spec.queue) };
        let (tx, rx, rings) = bound.map_err(|e| os_error(&e))?;
        let (fill, comp) = rings.ok_or_else(|| {
            io::Error::other("this queue has a socket already: it is configured twice")
        })?;
        let mut side = Self {
            id,
            nic: spec.nic,
            name: spec.name.clone(),
            queue: spec.queue,
            ring: spec.ring as usize,
            rx,
            tx,
            fill,
            comp,
            backlog: VecDeque::with_capacity(spec.frames as usize),
            receiving: 0,
            sending: 0,
            share: spec.frames as usize,
            tx_budget: DEFAULT_TX_BUDGET,
            is_stuck: false,
            tx_kicks: 0,
            tx_kicks_again: 0,
            tx_errors: 0,
            bad_addresses: 0,
        };
        side.raise_limits();
        Ok(side)
    }

    /// Lets one system call send a whole ring. Kernels that cannot are kicked more often.
    fn raise_limits(&mut self) {
        let _ = setsockopt(&self.fd(), sockopt::SndBufForce, &SEND_BUFFER);
        let budget = self.ring as u32;
        // SAFETY: the option reads four bytes, and `budget` has them.
        let set = unsafe {
            libc::setsockopt(
                self.rx.fd().as_raw_fd(),
                libc::SOL_XDP,
                XDP_MAX_TX_SKB_BUDGET,
                (&raw const budget).cast(),
                size_of_val(&budget) as libc::socklen_t,
            )
        };
        if set == 0 {
            self.tx_budget = self.ring;
        }
    }

    fn fd(&self) -> BorrowedFd<'_> {
        // SAFETY: the descriptor is open as long as the queues of the socket live.
        unsafe { BorrowedFd::borrow_raw(self.rx.fd().as_raw_fd()) }
    }

    /// Moves as much of the backlog to the TX ring as it has room for.
    fn produce(&mut self, descs: &[FrameDesc], scratch: &mut [FrameDesc; BATCH]) {
        while !self.backlog.is_empty() {
            let wanted = self.backlog.len().min(BATCH);
            let count = wanted.min(self.tx.nb_free(wanted as u32) as usize);
            for (desc, &slot) in scratch.iter_mut().zip(self.backlog.iter().take(count)) {
                *desc = descs[slot as usize];
            }
            // SAFETY: these frames are `Sending`: no `Frame` and no other ring refers to them.
            if count == 0 || unsafe { self.tx.produce(&scratch[..count]) } == 0 {
                return;
            }
            self.backlog.drain(..count);
        }
    }

    /// Makes the kernel send; whether it is of use to go on.
    fn kick(&mut self) -> bool {
        self.tx_kicks += 1;
        self.is_stuck = false;
        match send(self.rx.fd().as_raw_fd(), &[], MsgFlags::MSG_DONTWAIT) {
            Ok(_) => true,
            Err(Errno::EAGAIN) => {
                self.tx_kicks_again += 1;
                true
            }
            Err(_) => {
                self.tx_errors += 1;
                self.is_stuck = true;
                false
            }
        }
    }

    fn counters(&self) -> RingCounters {
        let mut counters = RingCounters {
            nic: self.name.clone(),
            queue: self.queue,
            backlog: self.backlog.len(),
            invalid_descriptors: self.bad_addresses,
            tx_kicks: self.tx_kicks,
            tx_kicks_again: self.tx_kicks_again,
            tx_errors: self.tx_errors,
            ..RingCounters::default()
        };
        if let Ok(kernel) = self.rx.fd().xdp_statistics() {
            counters.rx_dropped = kernel.rx_dropped();
            counters.rx_ring_full = kernel.rx_ring_full();
            counters.rx_fill_ring_empty = kernel.rx_fill_ring_empty_descs();
            counters.invalid_descriptors += kernel.rx_invalid_descs() + kernel.tx_invalid_descs();
        }
        counters
    }
}

fn queue_size(ring: u32) -> io::Result<QueueSize> {
    QueueSize::new(ring).map_err(other)
}

fn other(error: impl std::error::Error + Send + Sync + 'static) -> io::Error {
    io::Error::other(error)
}

/// The kernel's error inside of one of xsk-rs.
fn os_error(error: &dyn std::error::Error) -> io::Error {
    match error.source().and_then(|source| source.downcast_ref::<io::Error>()) {
        Some(source) => match source.raw_os_error() {
            Some(code) => io::Error::from_raw_os_error(code),
            None => io::Error::other(format!("{error}: {source}")),
        },
        None => io::Error::other(error.to_string()),
    }
}
