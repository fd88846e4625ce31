//! The data plane of one worker: from a frame to what becomes of it.
//!
//! A packet's way: Ethernet header → TCP segment ([`Segment::parse`]) → connection
//! ([`Stack::ingress`]) → its session is listed → at the end of the batch
//! [`turn`](Plane::turn) attends to every listed session once: bytes move between its legs
//! (`relay.rs`), and what may be sent is sent.
//!
//! Pure: no clock, no socket, no thread; `now` comes in, frames come in and go out through a
//! [`Port`], the next deadline is a return value.

use std::sync::Arc;

use rand::{SeedableRng, rngs::StdRng};
use userspace_tcp::{
    Checksums, ConnId, DropReason, Expired, Ingress, Instant, Malformed, Refusal, Segment, Stack,
};

use crate::{
    directory::{Claimed, Directory},
    exchange::{Exchange, Parcel},
    frame::Frame,
    hop::{Answers, ETHERNET, Ethernet, Hop, Outlet},
    log_gate::LogGate,
    neighbours::{Change, Neighbours},
    origin::{Family, Origin},
    pool::Pool,
    port::{BATCH, Nic, Port},
    session::{Leg, OriginLeg, Session, Sessions, Tag},
    setup::Setup,
    tally::{Event, Fate, Reason, Tally},
    waiting::Waiting,
};

/// The state of one worker.
#[derive(Debug)]
pub struct Plane {
    pub(crate) me: usize,
    pub(crate) setup: Arc<Setup>,
    pub(crate) stack: Stack<Hop>,
    pub(crate) sessions: Sessions,
    pub(crate) pools: Vec<Pool>,
    pub(crate) origins: Vec<Origin>,
    pub(crate) neighbours: Neighbours,
    pub(crate) rng: StdRng,
    pub(crate) tally: Tally,
    /// Sessions that wait for a next hop.
    pub(crate) waiting: Waiting,
    /// Bytes of an IP packet that fit every NIC, as far as it is less than at the start.
    pub(crate) lower_mtu: Option<u16>,
    /// Connections to be attended to at the end of this batch.
    listed: Vec<u32>,
    exchange: Arc<Exchange>,
    pub(crate) directory: Option<Arc<Directory>>,
    pub(crate) answers: Answers,
    draining: bool,
    pub(crate) log: LogGate,
}

/// What a plane is made of.
#[derive(Debug)]
pub struct Parts {
    /// The worker's number.
    pub me: usize,
    /// The configuration.
    pub setup: Arc<Setup>,
    /// The TCP layer.
    pub stack: Stack<Hop>,
    /// Room for how many sessions.
    pub max_sessions: usize,
    /// The worker's share of each pool.
    pub pools: Vec<Pool>,
    /// The origins.
    pub origins: Vec<Origin>,
    /// Next hops.
    pub neighbours: Neighbours,
    /// The inboxes of all workers.
    pub exchange: Arc<Exchange>,
    /// Who owns which connection, if there are several workers.
    pub directory: Option<Arc<Directory>>,
    /// Where randomness comes from.
    pub seed: [u8; 32],
    /// The time.
    pub now: Instant,
}

/// How a packet came to this worker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Via {
    Ring,
    Exchange,
}

/// Due timers that are handled in one turn, at most: a burst of them must not hold packets up.
const EXPIRIES: usize = 512;

impl Plane {
    /// A worker without connections.
    #[must_use]
    pub fn new(parts: Parts) -> Self {
        Self {
            me: parts.me,
            setup: parts.setup,
            stack: parts.stack,
            sessions: Sessions::new(parts.max_sessions),
            pools: parts.pools,
            origins: parts.origins,
            neighbours: parts.neighbours,
            rng: StdRng::from_seed(parts.seed),
            tally: Tally::default(),
            waiting: Waiting::default(),
            lower_mtu: None,
            listed: Vec::with_capacity(1024),
            exchange: parts.exchange,
            directory: parts.directory,
            answers: Answers::default(),
            draining: false,
            log: LogGate::new(parts.now),
        }
    }

    /// Takes a received frame to its end: its contents are taken in, handed over, or dropped.
    pub fn ingress(&mut self, now: Instant, nic: Nic, mut frame: Frame, port: &mut impl Port) {
        self.tally.received += 1;
        let fate = self.packet(now, nic, port.bytes_mut(&mut frame), Via::Ring);
        port.recycle(frame.retire(fate, &mut self.tally));
        self.answers.send(&mut Outlet { port, tally: &mut self.tally });
    }

    /// Takes packets that other workers received for this one; at most as many as one batch.
    pub fn take_over(&mut self, now: Instant, port: &mut impl Port) {
        for _ in 0..BATCH {
            let Some(mut parcel) = self.exchange.receive(self.me) else { return };
            self.tally.note(Event::TakenOver);
            if let Fate::Dropped(reason) = self.parcel(now, &mut parcel) {
                self.tally.drop_packet(reason);
            }
            self.answers.send(&mut Outlet { port, tally: &mut self.tally });
            self.exchange.give_back(parcel);
        }
    }

    /// Attends to every session that the batch touched, and to what is due by now.
    pub fn turn(&mut self, now: Instant, port: &mut impl Port) {
        self.attend_listed(now, port);
        for _ in 0..EXPIRIES {
            match self.stack.expire(now, &mut Outlet { port, tally: &mut self.tally }) {
                Expired::Attend(id) => self.list(id),
                Expired::Handled => {}
                Expired::Nothing => break,
            }
        }
        self.follow_the_kernel();
        for pool in &mut self.pools {
            pool.expire(now, BATCH);
        }
        self.look_again(now, port);
        self.attend_listed(now, port);
    }

    /// When [`turn`](Self::turn) is to be called next, if nothing arrives before.
    ///
    /// Connections that wait for room to send are no part of it: see
    /// [`waits_for_room`](Self::waits_for_room).
    #[must_use]
    pub fn next_deadline(&self) -> Option<Instant> {
        [self.stack.next_deadline(), self.waiting.next_look()].into_iter().flatten().min()
    }

    /// Takes no new connection from here on.
    pub fn drain(&mut self) {
        self.draining = true;
    }

    /// Resets all connections: the end of a drain.
    pub fn cut_off(&mut self, now: Instant, port: &mut impl Port) {
        let indices: Vec<_> = self.sessions.indices().collect();
        for index in indices {
            self.tally.note(Event::DrainCut);
            self.cut(index);
            self.list_session(index);
            if self.listed.len() == BATCH {
                self.attend_listed(now, port);
                port.flush();
            }
        }
        self.attend_listed(now, port);
    }

    /// How many sessions there are.
    #[must_use]
    pub fn session_count(&self) -> usize {
        self.sessions.len()
    }

    /// The counters.
    #[must_use]
    pub fn tally(&self) -> &Tally {
        &self.tally
    }

    /// The TCP layer, to be looked at.
    #[must_use]
    pub fn stack(&self) -> &Stack<Hop> {
        &self.stack
    }

    /// Pool ports that are leased, or rest after their connection.
    #[must_use]
    pub fn leases(&self) -> usize {
        self.pools.iter().map(|pool| pool.census().leased + pool.census().cooling).sum()
    }

    /// Whether a connection has something to send, and found no frame for it.
    #[must_use]
    pub fn waits_for_room(&self) -> bool {
        self.stack.backlog() > 0
    }

    /// Whether a parcel waits.
    #[must_use]
    pub fn has_parcels(&self) -> bool {
        !self.exchange.is_empty(self.me)
    }

    fn parcel(&mut self, now: Instant, parcel: &mut Parcel) -> Fate {
        let nic = parcel.nic();
        self.packet(now, nic, parcel.bytes_mut(), Via::Exchange)
    }

    /// A packet's way, from its Ethernet header on.
    fn packet(&mut self, now: Instant, nic: Nic, frame: &mut [u8], via: Via) -> Fate {
        let Some(ethernet) = Ethernet::parse(nic, frame) else {
            return Fate::Dropped(Reason::Truncated);
        };
        if !ethernet.carries_ip() {
            return Fate::Dropped(Reason::NotIp);
        }
        let checksums =
            self.setup.nics.get(nic as usize).map_or(Checksums::Verify, |nic| nic.checksums);
        let segment = match Segment::parse(&frame[ETHERNET..], checksums) {
            Ok(segment) => segment,
            Err(malformed) => return Fate::Dropped(malformed.into()),
        };
        let packet = &mut frame[ETHERNET..ETHERNET + segment.packet_len()];
        let back = ethernet.back;
        match self.stack.ingress(now, &segment, packet, back, &mut self.answers) {
            Ingress::Touched(id) => {
                self.list(id);
                Fate::Consumed
            }
            Ingress::Accepted(id) => {
                self.open(now, id);
                Fate::Consumed
            }
            Ingress::Absorbed => Fate::Consumed,
            Ingress::Dropped(reason) => Fate::Dropped(reason.into()),
            Ingress::NewSyn => self.syn(now, &segment, frame, back, via),
            Ingress::Unknown => self.stray(now, &segment, frame, back, via),
        }
    }

    /// A SYN without a connection.
    fn syn(&mut self, now: Instant, segment: &Segment, frame: &[u8], back: Hop, via: Via) -> Fate {
        let tuple = segment.tuple;
        let Some(service) = self.setup.service_at(&tuple.local.into()) else {
            return self.refuse(now, segment, back, Reason::UnknownFlow);
        };
        if self.draining {
            return self.refuse(now, segment, back, Reason::Draining);
        }
        if let Some(directory) = &self.directory {
            match directory.claim(now, &tuple, self.me) {
                Claimed::Mine => {}
                Claimed::Theirs(owner) if via == Via::Ring => {
                    return self.hand_over(owner, back.nic, frame);
                }
                Claimed::Theirs(_) => return Fate::Dropped(Reason::UnknownFlow),
                Claimed::Full => return Fate::Dropped(Reason::HalfOpenFull),
            }
        }
        match self.stack.accept(now, segment, back, service, &mut self.answers) {
            Ok(()) => Fate::Consumed,
            Err(refusal) => {
                if let Some(directory) = &self.directory {
                    directory.release(&tuple, self.me);
                }
                Fate::Dropped(refusal.into())
            }
        }
    }

    /// A segment without a connection: somebody else's, or nobody's.
    fn stray(
        &mut self,
        now: Instant,
        segment: &Segment,
        frame: &[u8],
        back: Hop,
        via: Via,
    ) -> Fate {
        if let (Via::Ring, Some(owner)) = (via, self.owner(now, segment)) {
            return self.hand_over(owner, back.nic, frame);
        }
        if segment.flags.rst() {
            return Fate::Dropped(Reason::StrayReset);
        }
        self.refuse(now, segment, back, Reason::UnknownFlow)
    }

    /// The other worker that owns a segment's connection.
    fn owner(&self, now: Instant, segment: &Segment) -> Option<usize> {
        let directory = self.directory.as_ref()?;
        let tuple = segment.tuple;
        let leased = self.setup.owner_of(&tuple.local.into());
        let owner = leased.or_else(|| directory.find(now, &tuple));
        owner.filter(|&owner| owner != self.me)
    }

    fn hand_over(&mut self, owner: usize, nic: Nic, frame: &[u8]) -> Fate {
        if self.exchange.send(owner, nic, frame) {
            Fate::HandedOver
        } else {
            Fate::Dropped(Reason::HandOverFull)
        }
    }

    /// Answers with a reset, as far as the limit of resets allows.
    fn refuse(&mut self, now: Instant, segment: &Segment, back: Hop, reason: Reason) -> Fate {
        if self.stack.reset(now, segment, back, &mut self.answers) {
            self.tally.note(Event::ResetSent);
        }
        Fate::Dropped(reason)
    }

    /// A client completed its handshake: its session begins.
    fn open(&mut self, now: Instant, client: ConnId) {
        let Some(tuple) = self.stack.tuple(client) else { return };
        let service = self.stack.tag(client);
        let Some(setup) = self.setup.services.get(service as usize) else { return };
        if let Some(directory) = &self.directory {
            directory.confirm(&tuple);
        }
        let attempt = self.origins[setup.origin].attempt(Family::of(tuple.remote.addr));
        let session = Session {
            service,
            client,
            tuple,
            origin: OriginLeg::Undialled,
            attempt,
            failure: None,
            listed: false,
        };
        match self.sessions.insert(session) {
            Ok(index) => {
                self.tally.note(Event::SessionOpened);
                self.stack.set_tag(client, Tag { session: index, leg: Leg::Client }.pack());
                if let Some(mtu) = self.lower_mtu {
                    self.stack.lower_mtu(client, mtu);
                }
                self.list_session(index);
            }
            Err(_) => {
                self.tally.note(Event::SessionLimit);
                if let Some(directory) = &self.directory {
                    directory.release(&tuple, self.me);
                }
                self.stack.abort(client);
                self.stack.flush(now, client, &mut self.answers);
                self.stack.release(client);
            }
        }
    }

    /// Takes over what changed in the kernel's tables: next hops, and smaller packets.
    fn follow_the_kernel(&mut self) {
        match self.neighbours.refresh(&self.setup) {
            Change::None => return,
            Change::Routes => {}
            Change::Hops => self.renew_hops(),
        }
        if let Some(mtu) = self.neighbours.smallest_mtu(&self.setup)
            && mtu < self.lower_mtu.unwrap_or(self.stack.config().mtu)
        {
            self.lower_mtu = Some(mtu);
            self.lower_mtus(mtu);
        }
    }

    /// Makes every connection send smaller packets.
    fn lower_mtus(&mut self, mtu: u16) {
        let indices: Vec<_> = self.sessions.indices().collect();
        for index in indices {
            let Some(session) = self.sessions.get_mut(index) else { continue };
            self.stack.lower_mtu(session.client, mtu);
            if let Some(origin) = session.origin.connection() {
                self.stack.lower_mtu(origin, mtu);
            }
        }
    }

    /// Puts a connection's session on the list of this turn.
    fn list(&mut self, id: ConnId) {
        let tag = Tag::unpack(self.stack.tag(id));
        self.list_session(tag.session);
    }

    pub(crate) fn list_session(&mut self, index: u32) {
        if let Some(session) = self.sessions.get_mut(index)
            && !session.listed
        {
            session.listed = true;
            self.listed.push(index);
        }
    }

    fn attend_listed(&mut self, now: Instant, port: &mut impl Port) {
        let mut next = 0;
        while let Some(&index) = self.listed.get(next) {
            next += 1;
            if let Some(session) = self.sessions.get_mut(index) {
                session.listed = false;
                self.attend(now, index, port);
            }
        }
        self.listed.clear();
    }
}

impl From<Malformed> for Reason {
    fn from(malformed: Malformed) -> Self {
        match malformed {
            Malformed::DataOffset
            | Malformed::Flags
            | Malformed::Options
            | Malformed::PortZero
            | Malformed::SameEndpoint => Self::BadTcpHeader,
            Malformed::Fragment => Self::Fragment,
            Malformed::HeaderChecksum | Malformed::HeaderLength | Malformed::Version => {
                Self::BadIpHeader
            }
            Malformed::NotUnicast => Self::NotUnicast,
            Malformed::NotTcp => Self::NotTcp,
            Malformed::TcpChecksum => Self::BadTcpChecksum,
            Malformed::Truncated => Self::Truncated,
        }
    }
}

impl From<DropReason> for Reason {
    fn from(reason: DropReason) -> Self {
        match reason {
            DropReason::ConnectionsFull => Self::TableFull,
            DropReason::ResetInTimeWait
            | DropReason::ResetInWindow
            | DropReason::ResetOutOfWindow => Self::BadReset,
            DropReason::AckOfUnsent
            | DropReason::AckTooOld
            | DropReason::NoAck
            | DropReason::StaleAck
            | DropReason::WrongHandshakeAck => Self::BadAck,
            DropReason::UnexpectedSyn => Self::UnexpectedSyn,
            DropReason::WrongHandshakeSeq => Self::OutOfWindow,
            DropReason::NotThisPacket | DropReason::Panicked => Self::Internal,
        }
    }
}

impl From<Refusal> for Reason {
    fn from(refusal: Refusal) -> Self {
        match refusal {
            Refusal::ConnectionsFull => Self::TableFull,
            Refusal::HalfOpenFull => Self::HalfOpenFull,
            Refusal::NotInitialSyn | Refusal::TupleUnusable => Self::BadTcpHeader,
            Refusal::Engine | Refusal::TupleInUse => Self::Internal,
        }
    }
}
