//! What goes out, and what time brings: sending, timers, and the ends of connections.

use smoltcp::socket::tcp::State;
use smoltcp::time::{Duration, Instant};

use super::{ConnId, Expired, Stack, caught};
use crate::connection::Connection;
use crate::counters::CloseReason;
use crate::device::Line;
use crate::emit::Emit;
use crate::engine::Engine;
use crate::table::Place;
use crate::wheel::Popped;

impl<P: Copy, E: Engine> Stack<P, E> {
    /// Sends what the connection may send now, up to 64 packets, and sets its timer. If there is more, or no room, the
    /// connection is remembered, and [`Stack::expire`] goes on with it.
    pub fn flush(&mut self, now: Instant, id: ConnId, out: &mut impl Emit<P>) {
        if self.connection(id).is_some() {
            self.push(now, id.index, out);
        }
    }

    /// Does one piece of what is due: a connection that waits for room, a timer, the end of a TIME-WAIT record.
    ///
    /// Call it again until it says [`Expired::Nothing`], or until the loop's budget is used up.
    pub fn expire(&mut self, now: Instant, out: &mut impl Emit<P>) -> Expired {
        if out.room() > 0
            && let Some(id) = self.waiting.pop_front()
        {
            return match self.connection_mut(id) {
                Some(connection) => {
                    connection.waiting = false;
                    self.push_and_report(now, id.index, out)
                }
                None => Expired::Handled,
            };
        }
        if let Some((index, ends)) = self.records.time_wait.oldest()
            && ends <= now
        {
            self.forget_time_wait(index);
            return Expired::Handled;
        }
        match self.wheel.pop(self.tick_before(now)) {
            Popped::Nothing => Expired::Nothing,
            Popped::Moved => Expired::Handled,
            Popped::Due(node) => match node.checked_sub(self.config.max_connections as u32) {
                Some(half_open) => self.half_open_due(now, half_open, out),
                None => self.connection_due(now, node, out),
            },
        }
    }

    fn connection_due(&mut self, now: Instant, index: u32, out: &mut impl Emit<P>) -> Expired {
        let Some(connection) = self.records.connections.at_mut(index) else {
            return Expired::Handled;
        };
        connection.armed = None;
        if connection.closed.is_none() {
            let (at, reason) = connection.limit(&self.config);
            if at <= now {
                self.fail(index, reason);
            }
        }
        self.push_and_report(now, index, out)
    }

    fn push_and_report(&mut self, now: Instant, index: u32, out: &mut impl Emit<P>) -> Expired {
        self.push(now, index, out);
        match self.records.connections.at(index) {
            Some(connection) if connection.closed.is_some() => Expired::Attend(self.id(index)),
            _ => Expired::Handled,
        }
    }

    /// Sends, settles and sets the timer.
    pub(super) fn push(&mut self, now: Instant, index: u32, out: &mut impl Emit<P>) {
        let Some(connection) = self.records.connections.at_mut(index) else { return };
        if connection.detached {
            return;
        }
        connection.observe(now);
        let Connection { engine, path, sent, tuple, class, .. } = connection;
        let (host, class) = (&mut self.host, *class);
        let sending = caught(|| {
            for _ in 0..PACKETS_PER_TURN {
                if out.room() == 0 {
                    break;
                }
                let mut line = Line { out, path, sent, tuple };
                if !engine.egress(host, class, now, &mut line) {
                    return engine.deadline(host, class, now).map(|at| at.max(now + NOT_AT_ONCE));
                }
            }
            engine.deadline(host, class, now)
        });
        self.counters.sent += std::mem::take(&mut sent.packets);
        self.counters.no_room += std::mem::take(&mut sent.lost);
        let Some(mut deadline) = sending else { return self.panicked(index) };
        if deadline.is_some_and(|at| at <= now) {
            deadline = None;
            self.wait(index);
        }
        self.settle(now, index);
        self.set_timer(index, deadline);
    }

    /// Puts a connection at the end of the queue of those that have something to send.
    fn wait(&mut self, index: u32) {
        let id = self.id(index);
        let Some(connection) = self.records.connections.at_mut(index) else { return };
        if std::mem::replace(&mut connection.waiting, true) {
            return;
        }
        if self.waiting.len() == self.waiting.capacity() {
            let connections = &self.records.connections;
            self.waiting.retain(|id| connections.generation(id.index) == Some(id.generation));
        }
        self.waiting.push_back(id);
    }

    /// Arms the timer wheel, unless it is armed for an earlier time already.
    fn set_timer(&mut self, index: u32, deadline: Option<Instant>) {
        let Some(connection) = self.records.connections.at(index) else { return };
        if connection.detached {
            return;
        }
        let mut at = deadline;
        if connection.closed.is_none() {
            let (limit, _) = connection.limit(&self.config);
            at = Some(at.map_or(limit, |at| at.min(limit)));
        }
        let Some(tick) = at.map(|at| self.tick_after(at)) else { return };
        if connection.armed.is_none_or(|armed| tick < armed) {
            self.wheel.arm(index, tick);
            if let Some(connection) = self.records.connections.at_mut(index) {
                connection.armed = Some(tick);
            }
        }
    }

    /// Draws the conclusions from the state that the engine is in.
    pub(super) fn settle(&mut self, now: Instant, index: u32) {
        let Some(connection) = self.records.connections.at_mut(index) else { return };
        if connection.detached {
            return;
        }
        connection.observe(now);
        match connection.engine.state() {
            State::Closed if connection.closed.is_none() => self.end(index, CloseReason::Finished),
            State::Closed => {
                let (engine, class) = (&mut connection.engine, connection.class);
                if engine.deadline(&mut self.host, class, now).is_none() {
                    self.detach(index);
                }
            }
            State::TimeWait if connection.sent.ack == connection.rcv_nxt() => {
                self.enter_time_wait(now, index);
            }
            _ => {}
        }
    }

    /// The socket has nothing more to do: a record takes its place in the table.
    fn enter_time_wait(&mut self, now: Instant, index: u32) {
        if self.records.time_wait.is_full()
            && let Some((oldest, _)) = self.records.time_wait.oldest()
        {
            self.forget_time_wait(oldest);
            self.counters.time_wait_recycled += 1;
        }
        let Some(connection) = self.records.connections.at(index) else { return };
        let (tuple, snd_nxt, rcv_nxt) =
            (connection.tuple, connection.snd_una(), connection.rcv_nxt());
        let ends = now + self.config.time_wait;
        let Some(record) = self.records.time_wait.insert(tuple, snd_nxt, rcv_nxt, ends) else {
            return;
        };
        self.table.replace(&tuple, Place::Connection(index), Place::TimeWait(record));
        self.end(index, CloseReason::Finished);
    }

    /// Ends a connection with a RST to the peer, where that makes sense.
    pub(super) fn fail(&mut self, index: u32, reason: CloseReason) {
        if reason == CloseReason::HandshakeTimeout {
            return self.end(index, reason);
        }
        let Some(connection) = self.records.connections.at_mut(index) else { return };
        if caught(|| connection.engine.abort()).is_none() {
            return self.panicked(index);
        }
        connection.closed = Some(reason);
        self.counters.count_close(reason);
    }

    pub(super) fn panicked(&mut self, index: u32) {
        self.end(index, CloseReason::Panicked);
    }

    /// Ends a connection without another word to the peer.
    pub(super) fn end(&mut self, index: u32, reason: CloseReason) {
        self.detach(index);
        let Some(connection) = self.records.connections.at_mut(index) else { return };
        if connection.closed.is_none() {
            self.counters.count_close(reason);
        }
        if connection.closed.is_none() || reason == CloseReason::Panicked {
            connection.closed = Some(reason);
        }
    }

    /// Takes a connection out of the table and the timer wheel.
    pub(super) fn detach(&mut self, index: u32) {
        let Some(connection) = self.records.connections.at_mut(index) else { return };
        if std::mem::replace(&mut connection.detached, true) {
            return;
        }
        self.table.remove(&connection.tuple, Place::Connection(index));
        self.wheel.cancel(index);
    }

    /// The tick at which something due at `at` is certainly due.
    pub(super) fn tick_after(&self, at: Instant) -> u64 {
        let micros = at.total_micros().saturating_sub(self.started.total_micros());
        u64::try_from(micros).unwrap_or(0).div_ceil(MICROS_PER_TICK)
    }

    /// The last tick that has begun.
    fn tick_before(&self, now: Instant) -> u64 {
        let micros = now.total_micros().saturating_sub(self.started.total_micros());
        u64::try_from(micros).unwrap_or(0) / MICROS_PER_TICK
    }
}

const PACKETS_PER_TURN: usize = 64;
const MICROS_PER_TICK: u64 = 1000;
/// An engine that wants to send at once, but does not send, is asked again no sooner than this.
const NOT_AT_ONCE: Duration = Duration::from_millis(1);
