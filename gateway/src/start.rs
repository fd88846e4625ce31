//! From a configuration to a running gateway, and back to a host without one.
//!
//! Order: facts of the host are checked → XDP programs attached (passing everything) → sockets bound
//! and fill rings full → XSKMAP → workers run → rules → steering on. Going down: no new connections →
//! workers end → steering off → detached.

mod error;
mod watch;

use std::{
    io,
    sync::Arc,
    thread::{self, JoinHandle},
    time::Duration,
};

use clap::ValueEnum;
use headgate_ebpf::{OnDead as SteerOnDead, Protocol, map};
use rand::{Rng, SeedableRng, rngs::StdRng};
use signal_hook::{
    consts::{SIGHUP, SIGINT, SIGTERM},
    iterator::Signals,
};

pub use self::error::StartError;
use self::watch::NicWatch;
use crate::{
    admin::Admin,
    config::{Attach, Bind, Config, OnDead},
    host::{self, HostFacts, Interface},
    neighbours::Neighbours,
    netlink::Mirror,
    overview::Overview,
    packet_port::{Packets, Rules, Shield},
    port::{Nic, Port},
    setup::{NicFacts, Secrets, Shared},
    steer::{AttachMode, Pulse, SteerError, Steering},
    waker::Waker,
    worker::{Desk, Order, Worker, clock, instant},
    xsk::{BindMode, QueueSpec, Xsk},
};

/// How packets get to and from the NICs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum PortKind {
    /// XDP and AF_XDP rings
    Xdp,
    /// AF_PACKET sockets, for machines without XDP: slower, one worker
    Packet,
}

/// How often a queue that was just given up is tried again, and how far apart.
const BIND_PATIENCE: (u32, Duration) = (50, Duration::from_millis(20));
/// How often the main thread looks for signals and dead workers.
const LOOK: Duration = Duration::from_millis(50);

/// Serves until SIGTERM or SIGINT, then drains and stops.
///
/// # Errors
/// Whatever keeps the gateway from running; nothing is attached then.
pub fn run(config: &Config, kind: PortKind) -> Result<(), StartError> {
    let mut signals = Signals::new([SIGTERM, SIGINT, SIGHUP]).map_err(StartError::System)?;
    let facts = HostFacts::read()?;
    for warning in host::check_against_host(config, &facts).map_err(StartError::Config)? {
        tracing::warn!("{warning}");
    }
    let nics = interfaces(config, &facts)?;
    let admin = Admin::bind(&config.gateway.admin)?;
    let mirror = Mirror::start()?;
    let gateway = match kind {
        PortKind::Xdp => start_xdp(config, &nics, &mirror)?,
        PortKind::Packet => start_packet(config, &nics, &mirror)?,
    };
    admin.serve({
        let overview = gateway.overview.clone();
        move || overview.status()
    })?;
    let workers = gateway.threads.len();
    let buffers = config.tcp.receive_buffer + config.tcp.send_buffer;
    let most_mib = (workers * config.tcp.max_connections * buffers) >> 20;
    tracing::info!(
        services = config.services.len(),
        workers,
        buffers_most_mib = most_mib,
        "serving"
    );
    let mut watch = NicWatch::new(&nics, &mirror);
    let outcome = gateway.serve(config, &mut signals, &mut watch);
    drop(admin);
    let stopped = gateway.stop();
    outcome.and(stopped)
}

/// A running gateway. Fields go in this order.
#[derive(Debug)]
struct Gateway {
    threads: Vec<JoinHandle<()>>,
    desks: Vec<Arc<Desk>>,
    overview: Arc<Overview>,
    _shield: Option<Shield>,
}

impl Gateway {
    /// Waits for a signal, and then for the workers' clients to leave.
    fn serve(
        &self,
        config: &Config,
        signals: &mut Signals,
        watch: &mut NicWatch,
    ) -> Result<(), StartError> {
        let mut drain_until = None;
        loop {
            for signal in signals.pending() {
                if signal == SIGHUP {
                    tracing::warn!(
                        "SIGHUP: the configuration is not reloaded; restart to change it"
                    );
                    continue;
                }
                if drain_until.is_some() {
                    tracing::info!("second signal: not waiting any longer");
                    return Ok(());
                }
                tracing::info!(limit = ?config.gateway.drain, "draining");
                drain_until = Some(clock() + config.gateway.drain);
                self.overview.set_draining();
                self.order(Order::Drain);
            }
            if let Some(dead) = self.threads.iter().position(JoinHandle::is_finished) {
                return Err(StartError::WorkerDied(dead));
            }
            watch.look()?;
            if let Some(until) = drain_until {
                // A report that is older than the order does not count.
                let drained = clock() + config.gateway.drain >= until + 2 * LOOK;
                let sessions: usize = self.desks.iter().map(|desk| desk.report().sessions).sum();
                if (sessions == 0 && drained) || clock() >= until {
                    tracing::info!(sessions, "drained");
                    return Ok(());
                }
            }
            thread::park_timeout(LOOK);
        }
    }

    /// Ends the workers, and says whether every frame was accounted for.
    fn stop(self) -> Result<(), StartError> {
        self.order(Order::Stop);
        let mut outcome = Ok(());
        for (index, thread) in self.threads.into_iter().enumerate() {
            if thread.join().is_err() {
                outcome = Err(StartError::WorkerDied(index));
            } else if !self.desks[index].report().is_conserved() {
                tracing::error!(worker = index, report = ?self.desks[index].report(), "frames lost");
                outcome = Err(StartError::NotConserved(index));
            }
        }
        // What the kernel gets from here on is no longer ours.
        self.overview.detach();
        tracing::info!("stopped");
        outcome
    }

    fn order(&self, order: Order) {
        for desk in &self.desks {
            desk.order(order);
        }
    }
}

/// The interface of each configured NIC.
fn interfaces(config: &Config, facts: &HostFacts) -> Result<Vec<Interface>, StartError> {
    let found = config.nics.iter().map(|nic| {
        facts.interface(&nic.name).cloned().ok_or_else(|| {
            StartError::System(io::Error::other(format!("interface {} has gone", nic.name)))
        })
    });
    found.collect()
}

fn start_xdp(
    config: &Config,
    interfaces: &[Interface],
    mirror: &Mirror,
) -> Result<Gateway, StartError> {
    let mut steerings = Vec::new();
    for (index, nic) in config.nics.iter().enumerate() {
        let modes: &[_] = match nic.attach {
            Attach::Auto => &[AttachMode::Native, AttachMode::Generic],
            Attach::Native => &[AttachMode::Native],
            Attach::Generic => &[AttachMode::Generic],
        };
        let pools = config.pools.iter().map(|pool| pool.addresses.len()).sum::<usize>();
        let room = (pools as u32).max(map::MAX_POOLS);
        steerings.push(attach(&nic.name, interfaces[index].index, modes, room)?);
    }
    let queues: Vec<u32> = config
        .nics
        .iter()
        .zip(interfaces)
        .map(|(nic, found)| nic.queues.or(found.queues).unwrap_or(1).min(map::MAX_QUEUES))
        .collect();
    // Every worker has a queue of every NIC at least; the rest are dealt out in turn.
    let count = queues.iter().copied().min().unwrap_or(1).max(1);
    let wakers = wakers(count as usize)?;
    let mut ports = Vec::new();
    let mut pulses: Vec<Vec<Pulse>> = Vec::new();
    let mut modes = Vec::new();
    for (worker, waker) in wakers.iter().enumerate() {
        let (port, mode) = bind(config, &queues, (worker as u32, count), waker)?;
        let mut hearts = Vec::new();
        for (nic, queue, socket) in port.sockets() {
            steerings[nic as usize].add_socket(queue, socket)?;
            hearts.push(steerings[nic as usize].pulse(queue)?);
        }
        ports.push(port);
        pulses.push(hearts);
        modes.push(mode);
    }
    for (index, (nic, steering)) in config.nics.iter().zip(&steerings).enumerate() {
        let (attach, bind) = (steering.mode().name(), modes[0].name());
        tracing::info!(nic = nic.name, attach, bind, queues = queues[index], "attached");
        if steering.mode() == AttachMode::Generic {
            refuse_merged(&nic.name, "generic XDP")?;
            tracing::warn!(nic = nic.name, "generic XDP: slower than the driver's own");
        }
    }
    let mut gateway = spawn(config, interfaces, mirror, wakers, ports, pulses)?;
    if let Err(error) = steerings.iter_mut().try_for_each(|steering| install(config, steering)) {
        // The first error is the one to tell.
        let _ = gateway.stop();
        return Err(error);
    }
    let nics = queues.into_iter().map(|queues| (queues, modes[0].name().into())).collect();
    Arc::get_mut(&mut gateway.overview)
        .ok_or_else(|| StartError::System(io::Error::other("the overview is shared already")))?
        .attached(steerings, nics);
    Ok(gateway)
}

fn start_packet(
    config: &Config,
    interfaces: &[Interface],
    mirror: &Mirror,
) -> Result<Gateway, StartError> {
    tracing::warn!("AF_PACKET port: every packet is copied and costs a system call");
    if !config.blocked.is_empty() {
        return Err(StartError::BlockNeedsXdp);
    }
    for nic in &config.nics {
        refuse_merged(&nic.name, "an AF_PACKET socket")?;
    }
    let mut rules = Rules::default();
    for service in &config.services {
        for listen in &service.listen {
            rules.add_service(Protocol::Tcp, listen.address);
        }
    }
    for pool in &config.pools {
        for &address in &pool.addresses {
            rules.add_pool(Protocol::Tcp, address, (pool.ports.first(), pool.ports.last()));
        }
    }
    let shield = Shield::raise(&rules).map_err(StartError::Shield)?;
    let wakers = wakers(1)?;
    let names: Vec<(Nic, String)> =
        config.nics.iter().enumerate().map(|(i, nic)| (i as Nic, nic.name.clone())).collect();
    let frames = config.nics.iter().map(|nic| nic.frames).sum();
    let port =
        Packets::open(&names, frames, rules, wakers[0].clone()).map_err(StartError::Packet)?;
    let mut gateway = spawn(config, interfaces, mirror, wakers, vec![port], vec![Vec::new()])?;
    gateway._shield = Some(shield);
    Ok(gateway)
}

/// One worker for each port.
fn spawn<P: Port + Send + 'static>(
    config: &Config,
    interfaces: &[Interface],
    mirror: &Mirror,
    wakers: Vec<Waker>,
    ports: Vec<P>,
    pulses: Vec<Vec<Pulse>>,
) -> Result<Gateway, StartError> {
    if let Some(pool) = config.pools.iter().find(|pool| pool.ports.count() < ports.len()) {
        let (name, count) = (pool.name.clone(), pool.ports.count());
        return Err(StartError::FewPorts { pool: name, ports: count, workers: ports.len() });
    }
    let nics: Vec<_> = interfaces.iter().map(facts_of).collect();
    let mut random = StdRng::from_os_rng();
    let shared = Shared::new(config, &nics, wakers.clone(), random.random());
    let desks: Vec<_> = wakers.into_iter().map(|waker| Arc::new(Desk::new(waker))).collect();
    let mut threads = Vec::new();
    for (me, (port, pulses)) in ports.into_iter().zip(pulses).enumerate() {
        let secrets = Secrets { stack: random.random(), seed: random.random() };
        let neighbours = Neighbours::mirrored(mirror);
        let plane = shared.plane(config, me, neighbours, secrets, instant(clock()))?;
        let beat = config.gateway.heartbeat_limit / 5;
        let worker = Worker { plane, port, pulses, beat, desk: desks[me].clone() };
        let thread = thread::Builder::new().name(format!("worker-{me}"));
        threads.push(thread.spawn(move || worker.run()).map_err(StartError::System)?);
    }
    let overview = Arc::new(Overview::new(config, desks.clone()));
    Ok(Gateway { threads, desks, overview, _shield: None })
}

fn facts_of(found: &Interface) -> NicFacts {
    let mac = found.mac.unwrap_or_default();
    NicFacts { ifindex: found.index, mac, mtu: found.mtu }
}

/// Attaches the XDP program. That of a process which was just killed goes in a moment.
fn attach(
    nic: &str,
    ifindex: u32,
    modes: &[AttachMode],
    pool_addresses: u32,
) -> Result<Steering, SteerError> {
    let (patience, apart) = BIND_PATIENCE;
    for _ in 0..patience {
        match Steering::attach(nic, ifindex, modes, pool_addresses) {
            Err(SteerError::Occupied { .. }) => thread::park_timeout(apart),
            attached => return attached,
        }
    }
    Steering::attach(nic, ifindex, modes, pool_addresses)
}

fn refuse_merged(nic: &str, what: &'static str) -> Result<(), StartError> {
    match host::merges_received(nic) {
        Some(false) => Ok(()),
        Some(true) => Err(StartError::Merges { nic: nic.into(), what }),
        None => {
            tracing::warn!(
                nic,
                "cannot see (no ethtool) whether GRO and LRO are off: they must be"
            );
            Ok(())
        }
    }
}

/// Binds a worker's sockets: zero-copy on all its NICs, or copy on all, since they share memory.
fn bind(
    config: &Config,
    queues: &[u32],
    (worker, workers): (u32, u32),
    waker: &Waker,
) -> Result<(Xsk, BindMode), StartError> {
    let nics = config.nics.iter().enumerate();
    let specs: Vec<_> = nics
        .flat_map(|(index, nic)| {
            let served = (worker..queues[index]).step_by(workers as usize);
            served.map(move |queue| QueueSpec {
                nic: index as Nic,
                name: nic.name.clone(),
                queue,
                ring: nic.ring,
                frames: nic.frames,
            })
        })
        .collect();
    let modes: &[_] = if config.nics.iter().any(|nic| nic.bind == Bind::Copy) {
        &[BindMode::Copy]
    } else if config.nics.iter().any(|nic| nic.bind == Bind::ZeroCopy) {
        &[BindMode::ZeroCopy]
    } else {
        &[BindMode::ZeroCopy, BindMode::Copy]
    };
    let (patience, apart) = BIND_PATIENCE;
    let mut refusal = None;
    for &mode in modes {
        match Xsk::bind(&specs, mode, waker.clone(), patience, || thread::park_timeout(apart)) {
            Ok(port) => return Ok((port, mode)),
            Err(error) => {
                tracing::debug!(%error, "AF_XDP mode not to be had");
                refusal = Some(error);
            }
        }
    }
    Err(refusal.map_or_else(|| StartError::System(io::Error::other("no mode")), Into::into))
}

/// Tells the XDP program of one NIC what is ours, and switches it on.
fn install(config: &Config, steering: &mut Steering) -> Result<(), StartError> {
    steering.block(&config.blocked)?;
    for (index, pool) in config.pools.iter().enumerate() {
        let mut users = config.services.iter().filter(|service| service.pool == index);
        let on_dead = if users.any(|service| service.on_dead == OnDead::Drop) {
            SteerOnDead::Drop
        } else {
            SteerOnDead::Pass
        };
        let ports = (pool.ports.first(), pool.ports.last());
        for &address in &pool.addresses {
            steering.add_pool(Protocol::Tcp, address, ports, on_dead)?;
        }
    }
    for (index, service) in config.services.iter().enumerate() {
        let on_dead = match service.on_dead {
            OnDead::Drop => SteerOnDead::Drop,
            OnDead::Pass => SteerOnDead::Pass,
        };
        for listen in &service.listen {
            steering.add_service(Protocol::Tcp, listen.address, index as u32, on_dead)?;
        }
    }
    let limit = u64::try_from(config.gateway.heartbeat_limit.as_nanos()).unwrap_or(u64::MAX);
    steering.enable(limit)?;
    Ok(())
}

fn wakers(count: usize) -> Result<Vec<Waker>, StartError> {
    (0..count).map(|_| Waker::new()).collect::<Result<_, _>>().map_err(StartError::System)
}
