//! The whole gateway at a glance: gathers the workers' reports and the XDP programs' counters.

use std::{
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use crate::{
    config::{Config, Mode},
    port::RingCounters,
    status::{Counts, FrameStatus, NicStatus, RingStatus, ServiceStatus, Status, WorkerStatus},
    steer::Steering,
    tally::{Named, Tally},
    worker::{Desk, Report, clock},
};

/// What the status is made of.
#[derive(Debug)]
pub struct Overview {
    since: Duration,
    draining: AtomicBool,
    desks: Vec<Arc<Desk>>,
    services: Vec<ServiceStatus>,
    nic_names: Vec<String>,
    /// Queues and bind mode of each NIC, if XDP is used.
    bound: Vec<(u32, String)>,
    steerings: Mutex<Vec<Steering>>,
}

impl Overview {
    /// The overview of these workers, without XDP.
    #[must_use]
    pub fn new(config: &Config, desks: Vec<Arc<Desk>>) -> Self {
        let services = config.services.iter().map(|service| ServiceStatus {
            name: service.name.clone(),
            mode: match service.mode {
                Mode::Tcp => "tcp".into(),
            },
            listen: service.listen.iter().map(|listen| listen.address.to_string()).collect(),
            origin: config.origins[service.origin].name.clone(),
            pool: config.pools[service.pool].name.clone(),
        });
        Self {
            since: clock(),
            draining: AtomicBool::new(false),
            desks,
            services: services.collect(),
            nic_names: config.nics.iter().map(|nic| nic.name.clone()).collect(),
            bound: Vec::new(),
            steerings: Mutex::default(),
        }
    }

    /// Adds the XDP programs, and the queues and bind mode of each NIC.
    pub fn attached(&mut self, steerings: Vec<Steering>, bound: Vec<(u32, String)>) {
        self.bound = bound;
        self.steerings = Mutex::new(steerings);
    }

    /// Detaches the XDP programs.
    pub fn detach(&self) {
        self.steerings.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }

    /// No new connection is taken from here on.
    pub fn set_draining(&self) {
        self.draining.store(true, Ordering::Relaxed);
    }

    /// The status as of the workers' latest reports.
    #[must_use]
    pub fn status(&self) -> Status {
        let reports: Vec<_> = self.desks.iter().map(|desk| desk.report()).collect();
        let mut tally = Tally::default();
        let mut tcp = Counts::new();
        for report in &reports {
            tally.add(&report.tally);
            for (name, count) in &report.tcp_counters {
                *tcp.entry((*name).into()).or_default() += count;
            }
        }
        let state = if self.draining.load(Ordering::Relaxed) { "draining" } else { "running" };
        Status {
            version: env!("CARGO_PKG_VERSION").into(),
            pid: std::process::id(),
            uptime_s: clock().saturating_sub(self.since).as_secs(),
            state: state.into(),
            port: if self.bound.is_empty() { "packet" } else { "xdp" }.into(),
            nics: self.nics(),
            services: self.services.clone(),
            workers: reports.into_iter().enumerate().map(|(i, r)| worker(i, r)).collect(),
            drops: counts(tally.drops()),
            events: counts(tally.events()),
            tcp,
        }
    }

    fn nics(&self) -> Vec<NicStatus> {
        let steerings = self.steerings.lock().unwrap_or_else(PoisonError::into_inner);
        let names = self.nic_names.iter().enumerate();
        names
            .map(|(index, name)| match (steerings.get(index), self.bound.get(index)) {
                (Some(steering), Some((queues, bind))) => NicStatus {
                    name: name.clone(),
                    attach: steering.mode().name().into(),
                    bind: bind.clone(),
                    queues: *queues,
                    verdicts: steering
                        .verdicts()
                        .into_iter()
                        .map(|(name, count)| (name.into(), count))
                        .collect(),
                },
                _ => NicStatus {
                    name: name.clone(),
                    attach: "none".into(),
                    bind: "af-packet".into(),
                    queues: 1,
                    verdicts: Counts::new(),
                },
            })
            .collect()
    }
}

fn worker(index: usize, report: Report) -> WorkerStatus {
    WorkerStatus {
        index,
        sessions: report.sessions,
        connections: report.tcp.open,
        half_open: report.tcp.half_open,
        time_wait: report.tcp.time_wait,
        leases: report.leases,
        frames: FrameStatus {
            total: report.frames.total,
            free: report.frames.free,
            receiving: report.frames.receiving,
            sending: report.frames.sending,
            held: report.frames.held,
            conserved: report.is_conserved(),
        },
        received: report.tally.received,
        transmitted: report.tally.transmitted,
        rings: report.rings.into_iter().map(ring).collect(),
    }
}

fn ring(ring: RingCounters) -> RingStatus {
    let counters = [
        ("rx-dropped", ring.rx_dropped),
        ("rx-ring-full", ring.rx_ring_full),
        ("rx-fill-ring-empty", ring.rx_fill_ring_empty),
        ("invalid-descriptors", ring.invalid_descriptors),
        ("tx-kicks", ring.tx_kicks),
        ("tx-kicks-again", ring.tx_kicks_again),
        ("tx-errors", ring.tx_errors),
    ];
    RingStatus {
        nic: ring.nic,
        queue: ring.queue,
        backlog: ring.backlog,
        counters: counters.into_iter().map(|(name, count)| (name.into(), count)).collect(),
    }
}

fn counts(named: impl Iterator<Item = Named>) -> Counts {
    named.map(|named| (named.name.into(), named.count)).collect()
}
