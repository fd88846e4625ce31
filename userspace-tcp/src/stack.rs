//! The stack: every connection, handshake and TIME-WAIT record of one worker.

use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};

use smoltcp::time::Instant;

use crate::bucket::Bucket;
use crate::config::{Config, ConfigError};
use crate::connection::Connection;
use crate::counters::{Census, CloseReason, Counters, DropReason, Refusal};
use crate::emit::Emit;
use crate::engine::{self, Engine, Host, SmolEngine};
use crate::half_open::HalfOpen;
use crate::header::{Header, SynOptions};
use crate::isn::IsnSource;
use crate::segment::{Flags, Segment};
use crate::slab::Slab;
use crate::table::{Place, Table, Tuples};
use crate::time_wait::TimeWait;
use crate::tuple::Tuple;
use crate::wheel::Wheel;

mod ingress;
mod lifecycle;

/// TCP for one worker. `P` is the path (next hop) of a packet, which the stack stores and hands back.
#[derive(Debug)]
pub struct Stack<P, E = SmolEngine> {
    config: Config,
    host: Host,
    isns: IsnSource,
    table: Table,
    records: Records<P, E>,
    wheel: Wheel,
    /// Connections that have something to send, and found no room or used up their turn.
    waiting: VecDeque<ConnId>,
    spare: Vec<E>,
    resets: Bucket,
    counters: Counters,
    started: Instant,
}

/// Names a connection of one [`Stack`]. A released connection's name never comes to mean another one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ConnId {
    index: u32,
    generation: u32,
}

impl ConnId {
    /// A number below [`Config::max_connections`], unique among the connections that are not released.
    pub fn index(self) -> usize {
        self.index as usize
    }
}

/// What became of a segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ingress {
    /// This handshake is complete, and a connection now. Data that came with the segment is in it.
    Accepted(ConnId),
    /// A handshake or a TIME-WAIT record dealt with it.
    Absorbed,
    /// Nobody took it.
    Dropped(DropReason),
    /// A SYN for a tuple that is not in use, or in TIME-WAIT and replaceable:
    /// [`Stack::accept`], [`Stack::reset`], or do nothing.
    NewSyn,
    /// This connection took it. What it has to say waits for [`Stack::flush`].
    Touched(ConnId),
    /// Another segment for a tuple that is not in use: [`Stack::reset`], or do nothing.
    Unknown,
}

/// What [`Stack::expire`] did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Expired {
    /// This connection ended: look at its [`Status`].
    Attend(ConnId),
    /// One piece of work; there may be more.
    Handled,
    /// Nothing is due, or there is no room for it.
    Nothing,
}

/// How a connection stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Status {
    /// Our SYN is not answered yet.
    Opening,
    /// Established, or on the way to being closed.
    Open {
        /// Whether there are received bytes to consume, or more may come. False is the end of the peer's stream.
        may_receive: bool,
        /// Whether bytes may be queued: neither we closed, nor the peer reset.
        may_send: bool,
    },
    /// Over. After [`CloseReason::Finished`] every received byte was consumed; after anything else there may be some left.
    Closed(CloseReason),
}

/// Why a stack cannot start.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StartError {
    /// The configuration is wrong.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// smoltcp does not use the initial sequence numbers that it is given.
    #[error(
        "smoltcp does not draw initial sequence numbers as version 0.14.0 does: build with exactly that version, and with the features of this workspace only"
    )]
    InitialSequenceNumbers,
}

impl<P: Copy> Stack<P> {
    /// A stack without connections. Its tables are allocated here, for the most that `config` allows.
    ///
    /// `secret` keys the hash table and the initial sequence numbers: it must be random, and not known to anybody.
    ///
    /// # Errors
    /// [`StartError`] if a value of the configuration is out of range, or smoltcp is not the one that this crate was made for.
    pub fn new(config: Config, secret: [u8; 32], now: Instant) -> Result<Self, StartError> {
        Self::with_engine(config, secret, now)
    }
}

impl<P: Copy, E: Engine> Stack<P, E> {
    /// As [`Stack::new`], with another engine.
    ///
    /// # Errors
    /// As [`Stack::new`].
    pub fn with_engine(config: Config, secret: [u8; 32], now: Instant) -> Result<Self, StartError> {
        config.validate()?;
        if !engine::draws_chosen_numbers(&config) {
            return Err(StartError::InitialSequenceNumbers);
        }
        let (mut isn_key, mut table_key) = ([0; 16], [0; 16]);
        isn_key.copy_from_slice(&secret[..16]);
        table_key.copy_from_slice(&secret[16..]);
        let timed = config.max_connections + config.max_half_open;
        Ok(Self {
            host: Host::new(&config),
            isns: IsnSource::new(&isn_key),
            table: Table::new(timed + config.max_time_wait, &table_key),
            records: Records {
                connections: Slab::new(config.max_connections),
                half_open: Slab::new(config.max_half_open),
                time_wait: TimeWait::new(config.max_time_wait),
            },
            wheel: Wheel::new(timed),
            waiting: VecDeque::with_capacity(config.max_connections),
            spare: Vec::with_capacity(config.max_spare.min(config.max_connections)),
            resets: Bucket::new(config.resets_per_second, config.resets_burst, now),
            counters: Counters::default(),
            started: now,
            config,
        })
    }

    /// Answers a SYN for which [`Stack::ingress`] said [`Ingress::NewSyn`]. The handshake costs one small record; when it is
    /// complete, [`Ingress::Accepted`] names the connection, which has this `tag` and this `path`.
    ///
    /// # Errors
    /// [`Refusal`] says why there is no room for it, or that the segment is not such a SYN. Nothing was sent.
    pub fn accept(
        &mut self,
        now: Instant,
        syn: &Segment,
        path: P,
        tag: u32,
        out: &mut impl Emit<P>,
    ) -> Result<(), Refusal> {
        let accepted = self.try_accept(now, syn, path, tag, out);
        accepted.inspect_err(|refusal| self.counters.count_refusal(*refusal))
    }

    /// Opens a connection from `tuple.local`, which may be any address, and sends the SYN.
    ///
    /// # Errors
    /// [`Refusal`] says why not. Nothing was sent.
    pub fn connect(
        &mut self,
        now: Instant,
        tuple: Tuple,
        path: P,
        tag: u32,
        out: &mut impl Emit<P>,
    ) -> Result<ConnId, Refusal> {
        let connected = self.try_connect(now, tuple, path, tag, out);
        connected.inspect_err(|refusal| self.counters.count_refusal(*refusal))
    }

    /// Answers a segment that belongs to no connection with a RST (RFC 9293 section 3.10.7.1), if the rate limit allows it.
    /// A RST is never answered. Returns whether something was sent.
    pub fn reset(
        &mut self,
        now: Instant,
        segment: &Segment,
        path: P,
        out: &mut impl Emit<P>,
    ) -> bool {
        if segment.flags.rst() {
            return false;
        }
        if !self.resets.take(now) {
            self.counters.resets_limited += 1;
            return false;
        }
        let (seq, ack, flags) = match segment.flags.ack() {
            true => (segment.ack, 0, Flags::RST),
            false => (0, segment.end(), Flags::RST.with(Flags::ACK)),
        };
        let options = SynOptions::default();
        let reset = Header { tuple: segment.tuple, seq, ack, flags, window: 0, options };
        self.answer(&path, &reset, out)
    }

    /// Whether a connection, a handshake or a TIME-WAIT record has this tuple.
    pub fn contains(&self, tuple: &Tuple) -> bool {
        self.table.find(tuple, &self.records).is_some()
    }

    /// How a connection stands.
    pub fn status(&self, id: ConnId) -> Status {
        let Some(connection) = self.connection(id) else {
            return Status::Closed(CloseReason::Released);
        };
        let engine = &connection.engine;
        match connection.closed {
            Some(CloseReason::Finished) if engine.received_len() > 0 => {
                Status::Open { may_receive: true, may_send: false }
            }
            Some(reason) => Status::Closed(reason),
            None if connection.is_opening() => Status::Opening,
            None => Status::Open {
                may_receive: !connection.fin_received() || engine.received_len() > 0,
                may_send: connection.may_send(),
            },
        }
    }

    /// What was given to [`Stack::accept`] or [`Stack::connect`]; zero for a released connection.
    pub fn tag(&self, id: ConnId) -> u32 {
        self.connection(id).map_or(0, |connection| connection.tag)
    }

    /// The tuple of a connection that is not released.
    pub fn tuple(&self, id: ConnId) -> Option<Tuple> {
        self.connection(id).map(|connection| connection.tuple)
    }

    /// Changes the tag of a connection.
    pub fn set_tag(&mut self, id: ConnId, tag: u32) {
        if let Some(connection) = self.connection_mut(id) {
            connection.tag = tag;
        }
    }

    /// Changes the path of a connection.
    pub fn set_path(&mut self, id: ConnId, path: P) {
        if let Some(connection) = self.connection_mut(id) {
            connection.path = path;
        }
    }

    /// Sends packets of at most `mtu` bytes from now on, or of the smallest configured size if all are larger. Never raises it.
    pub fn lower_mtu(&mut self, id: ConnId, mtu: u16) {
        let class = self.host.class_for(mtu);
        if let Some(connection) = self.connection_mut(id) {
            connection.class = connection.class.max(class);
        }
    }

    /// Received bytes in order, as many as lie in one piece.
    pub fn received(&mut self, id: ConnId) -> &[u8] {
        match self.connection_mut(id) {
            Some(connection) if connection.closed != Some(CloseReason::Panicked) => {
                connection.engine.received()
            }
            _ => &[],
        }
    }

    /// How many bytes were received and not consumed.
    pub fn received_len(&self, id: ConnId) -> usize {
        match self.connection(id) {
            Some(connection) if connection.closed != Some(CloseReason::Panicked) => {
                connection.engine.received_len()
            }
            _ => 0,
        }
    }

    /// Gives up the first `len` received bytes, and so opens the window. Returns how many there were.
    pub fn consume(&mut self, id: ConnId, len: usize) -> usize {
        self.run(id, |connection| connection.consume(len))
    }

    /// Queues bytes, as many as there is room for. Returns how many.
    pub fn send(&mut self, id: ConnId, bytes: &[u8]) -> usize {
        self.run(id, |connection| connection.send(bytes))
    }

    /// How many bytes [`Stack::send`] would take now.
    pub fn send_space(&self, id: ConnId) -> usize {
        match self.connection(id) {
            Some(connection) if connection.closed.is_none() => connection.engine.send_space(),
            _ => 0,
        }
    }

    /// Bytes queued and not yet acknowledged by the peer.
    pub fn queued(&self, id: ConnId) -> usize {
        self.connection(id).map_or(0, |connection| connection.engine.queued())
    }

    /// Moves received bytes of one connection into the send queue of another, in one copy, as many as there is room for.
    /// Returns how many. Both want a [`Stack::flush`] after that.
    pub fn splice(&mut self, from: ConnId, to: ConnId) -> usize {
        if self.connection(from).is_none() || self.connection(to).is_none() {
            return 0;
        }
        let Some((a, b)) = self.records.connections.pair_mut(from.index, to.index) else {
            return 0;
        };
        if b.closed.is_some() || a.closed == Some(CloseReason::Panicked) {
            return 0;
        }
        if let Some(moved) = caught(|| a.splice(b)) {
            return moved;
        }
        self.panicked(from.index);
        self.panicked(to.index);
        0
    }

    /// Ends our stream: a FIN follows what is queued. The peer may go on sending. A connection that is still opening is aborted.
    pub fn close(&mut self, id: ConnId) {
        match self.connection(id).map(Connection::is_opening) {
            Some(true) => self.abort(id),
            Some(false) => self.run(id, |connection| connection.engine.close()),
            None => {}
        }
    }

    /// Ends the connection at once. The RST goes out with the next [`Stack::flush`].
    pub fn abort(&mut self, id: ConnId) {
        if self.connection(id).is_some_and(|connection| connection.closed.is_none()) {
            self.fail(id.index, CloseReason::Aborted);
        }
    }

    /// Forgets a connection. Call it when its [`Status`] is [`Status::Closed`]; before that, the peer would not learn of it.
    pub fn release(&mut self, id: ConnId) {
        if self.connection(id).is_none() {
            return;
        }
        self.detach(id.index);
        let Some(mut connection) = self.records.connections.remove(id.index) else { return };
        let is_sound = connection.closed != Some(CloseReason::Panicked);
        if is_sound
            && self.spare.len() < self.spare_limit()
            && caught(|| connection.engine.abort()).is_some()
        {
            self.spare.push(connection.engine);
        }
    }

    /// When [`Stack::expire`] is worth calling. Connections that wait for room (see [`Stack::backlog`]) are not in it.
    pub fn next_deadline(&self) -> Option<Instant> {
        let wheel = self.wheel.next_tick().map(|tick| self.instant(tick));
        let time_wait = self.records.time_wait.oldest().map(|(_, ends)| ends);
        wheel.into_iter().chain(time_wait).min()
    }

    /// How many connections have more to send and wait for [`Stack::expire`], which serves them while there is room.
    pub fn backlog(&self) -> usize {
        self.waiting.len()
    }

    /// What was counted.
    pub fn counters(&self) -> &Counters {
        &self.counters
    }

    /// How many records there are.
    pub fn census(&self) -> Census {
        let Records { connections, half_open, time_wait } = &self.records;
        Census {
            connections: connections.len(),
            half_open: half_open.len(),
            time_wait: time_wait.len(),
            spare: self.spare.len(),
            tuples: self.table.len(),
            max_connections: connections.limit(),
            max_half_open: half_open.limit(),
            max_time_wait: time_wait.limit(),
        }
    }

    /// The limits and timeouts.
    pub fn config(&self) -> &Config {
        &self.config
    }

    fn connection(&self, id: ConnId) -> Option<&Connection<P, E>> {
        let is_current = self.records.connections.generation(id.index) == Some(id.generation);
        if is_current { self.records.connections.at(id.index) } else { None }
    }

    fn connection_mut(&mut self, id: ConnId) -> Option<&mut Connection<P, E>> {
        let is_current = self.records.connections.generation(id.index) == Some(id.generation);
        if is_current { self.records.connections.at_mut(id.index) } else { None }
    }

    fn id(&self, index: u32) -> ConnId {
        let generation = self.records.connections.generation(index).unwrap_or_default();
        ConnId { index, generation }
    }

    /// Does something to a connection's engine. A panic costs this connection only.
    fn run<R: Default>(&mut self, id: ConnId, f: impl FnOnce(&mut Connection<P, E>) -> R) -> R {
        let Some(connection) = self.connection_mut(id) else { return R::default() };
        if connection.closed == Some(CloseReason::Panicked) {
            return R::default();
        }
        caught(|| f(connection)).unwrap_or_else(|| {
            self.panicked(id.index);
            R::default()
        })
    }

    fn spare_limit(&self) -> usize {
        self.config.max_spare.min(self.config.max_connections)
    }

    fn instant(&self, tick: u64) -> Instant {
        Instant::from_micros(self.started.total_micros().saturating_add(tick as i64 * 1000))
    }
}

#[derive(Debug)]
struct Records<P, E> {
    connections: Slab<Connection<P, E>>,
    half_open: Slab<HalfOpen<P>>,
    time_wait: TimeWait,
}

impl<P, E> Tuples for Records<P, E> {
    fn tuple(&self, place: Place) -> Option<Tuple> {
        match place {
            Place::Connection(index) => self.connections.at(index).map(|record| record.tuple),
            Place::HalfOpen(index) => self.half_open.at(index).map(|record| record.handshake.tuple),
            Place::TimeWait(index) => self.time_wait.at(index).map(|record| record.tuple),
        }
    }
}

/// The result, or nothing if it panicked. smoltcp panics on sequence numbers that should be impossible.
fn caught<R>(f: impl FnOnce() -> R) -> Option<R> {
    catch_unwind(AssertUnwindSafe(f)).ok()
}
