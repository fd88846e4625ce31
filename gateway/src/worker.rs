//! The loop of one worker, and the only clock of the data plane.

use std::{
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU8, Ordering},
    },
    time::Duration,
};

use nix::time::{ClockId, clock_gettime};
use serde::Serialize;
use userspace_tcp::{Census, Counters, Instant};

use crate::{
    plane::Plane,
    port::{BATCH, Batch, FrameCensus, Port, RingCounters},
    steer::Pulse,
    tally::Tally,
    waker::Waker,
};

/// What the main thread wants of a worker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Order {
    /// Serve.
    Run,
    /// Serve whom you have, and take no new connection.
    Drain,
    /// Reset what is left, and end.
    Stop,
}

/// What a worker and the main thread share.
#[derive(Debug)]
pub struct Desk {
    order: AtomicU8,
    report: Mutex<Report>,
    waker: Waker,
}

/// What a worker says about itself, about twenty times a second.
#[derive(Clone, Debug, Default)]
pub struct Report {
    /// Its counters.
    pub tally: Tally,
    /// Where its frames are.
    pub frames: FrameCensus,
    /// Its rings.
    pub rings: Vec<RingCounters>,
    /// Sessions: clients with a completed handshake.
    pub sessions: usize,
    /// Connections of the TCP layer.
    pub tcp: Connections,
    /// What the TCP layer counts.
    pub tcp_counters: Vec<(&'static str, u64)>,
    /// Leased ports, of all pools.
    pub leases: usize,
}

/// How many records of each kind the TCP layer has.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Connections {
    /// Connections with buffers, towards clients and origins.
    pub open: usize,
    /// Handshakes of clients that are not complete.
    pub half_open: usize,
    /// 4-tuples that rest.
    pub time_wait: usize,
}

/// A worker: the plane, its port and its heart.
#[derive(Debug)]
pub struct Worker<P> {
    /// The core.
    pub plane: Plane,
    /// The way to the NICs.
    pub port: P,
    /// A heart for each NIC queue it serves; none without XDP.
    pub pulses: Vec<Pulse>,
    /// How often the heart beats.
    pub beat: Duration,
    /// The main thread's orders and our report.
    pub desk: Arc<Desk>,
}

/// How long to wait for sent frames to come back, when a connection needs one.
const ROOM: Duration = Duration::from_millis(1);
/// How often the report is renewed.
const REPORT: Duration = Duration::from_millis(50);

impl Desk {
    /// A desk for the worker that `waker` wakes.
    #[must_use]
    pub fn new(waker: Waker) -> Self {
        let order = AtomicU8::new(Order::Run as u8);
        Self { order, report: Mutex::default(), waker }
    }

    /// Tells the worker what to do.
    pub fn order(&self, order: Order) {
        self.order.store(order as u8, Ordering::SeqCst);
        self.waker.wake();
    }

    /// The worker's latest report.
    #[must_use]
    pub fn report(&self) -> Report {
        self.report.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn ordered(&self) -> Order {
        match self.order.load(Ordering::SeqCst) {
            0 => Order::Run,
            1 => Order::Drain,
            _ => Order::Stop,
        }
    }
}

impl Report {
    /// Whether every frame that came in went out or ended with a reason.
    #[must_use]
    pub fn is_conserved(&self) -> bool {
        let taken = self.tally.received + self.tally.allocated;
        let ended = self.tally.transmitted + self.tally.retired();
        self.frames.balances() && taken == ended + self.frames.held as u64
    }
}

impl<P: Port> Worker<P> {
    /// Serves until told to stop; the last report is left on the desk.
    pub fn run(mut self) {
        let mut batch = Batch::with_capacity(BATCH);
        let mut beat_due = Duration::ZERO;
        let mut report_due = Duration::ZERO;
        loop {
            let clock = clock();
            let now = instant(clock);
            if clock >= beat_due {
                beat_due = clock + self.beat;
                for pulse in &mut self.pulses {
                    pulse.beat(clock.as_nanos() as u64);
                }
            }
            match self.desk.ordered() {
                Order::Run => {}
                Order::Drain => self.plane.drain(),
                Order::Stop => return self.stop(now),
            }
            self.port.receive(&mut batch);
            let busy = !batch.is_empty();
            for (nic, frame) in batch.drain(..) {
                self.plane.ingress(now, nic, frame, &mut self.port);
            }
            self.plane.take_over(now, &mut self.port);
            self.plane.turn(now, &mut self.port);
            self.port.flush();
            if clock >= report_due {
                report_due = clock + REPORT;
                self.report();
            }
            if !busy {
                self.sleep(now, beat_due.min(report_due.max(clock + REPORT)).saturating_sub(clock));
            }
        }
    }

    /// Waits for packets, the next deadline, or the next beat.
    fn sleep(&mut self, now: Instant, limit: Duration) {
        let limit = match self.plane.next_deadline() {
            Some(deadline) if deadline <= now => return,
            Some(deadline) => limit.min((deadline - now).into()),
            None => limit,
        };
        let limit = if self.plane.waits_for_room() { limit.min(ROOM) } else { limit };
        self.desk.waker.doze();
        if !self.plane.has_parcels() && self.desk.ordered() != Order::Stop {
            self.port.wait(limit);
        }
        self.desk.waker.rise();
    }

    fn stop(mut self, now: Instant) {
        self.plane.drain();
        self.plane.cut_off(now, &mut self.port);
        // What was cut off leaves as resets; the rings get a moment to send them.
        for _ in 0..100 {
            self.port.flush();
            if self.port.census().sending == 0 {
                break;
            }
            self.port.wait(Duration::from_millis(1));
        }
        self.report();
    }

    fn report(&mut self) {
        let census: Census = self.plane.stack().census();
        let report = Report {
            tally: self.plane.tally().clone(),
            frames: self.port.census(),
            rings: self.port.rings(),
            sessions: self.plane.session_count(),
            tcp: Connections {
                open: census.connections,
                half_open: census.half_open,
                time_wait: census.time_wait,
            },
            tcp_counters: named(self.plane.stack().counters()),
            leases: self.plane.leases(),
        };
        *self.desk.report.lock().unwrap_or_else(PoisonError::into_inner) = report;
    }
}

/// What the TCP layer counts besides drops, which are in the tally.
fn named(counters: &Counters) -> Vec<(&'static str, u64)> {
    vec![
        ("segments-touched", counters.touched),
        ("segments-absorbed", counters.absorbed),
        ("packets-sent", counters.sent),
        ("packets-answered", counters.answered),
        ("packets-without-room", counters.no_room),
        ("resets-limited", counters.resets_limited),
        ("handshakes-begun", counters.half_opened),
        ("handshakes-completed", counters.accepted),
        ("handshakes-expired", counters.half_open_expired),
        ("handshakes-reset", counters.half_open_reset),
        ("connections-dialled", counters.connected),
        ("time-wait-recycled", counters.time_wait_recycled),
        ("time-wait-replaced", counters.time_wait_replaced),
    ]
}

/// CLOCK_MONOTONIC, the clock of `bpf_ktime_get_ns`.
#[expect(clippy::disallowed_methods, reason = "the one clock of the data plane")]
#[must_use]
pub fn clock() -> Duration {
    clock_gettime(ClockId::CLOCK_MONOTONIC).map_or(Duration::ZERO, Duration::from)
}

/// The same time for the core.
#[must_use]
pub fn instant(clock: Duration) -> Instant {
    Instant::from_micros(clock.as_micros() as i64)
}
