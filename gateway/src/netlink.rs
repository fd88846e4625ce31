//! Mirrors the kernel's links, addresses, routes and neighbours by rtnetlink, and asks it to resolve neighbours.
//!
//! A thread of its own listens to the kernel's notifications and publishes [`Routes`] as immutable snapshots. Routes
//! are not followed change by change (the kernel removes some without a word) but read again after any change, at
//! most a tenth of the time; neighbours are followed one by one. When notifications are lost (`ENOBUFS`), everything
//! is read again.

mod decode;
mod resolver;
mod socket;

use std::io;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use arc_swap::ArcSwap;
use netlink_packet_route::RouteNetlinkMessage as Message;
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use userspace_tcp::Instant;

pub use self::resolver::Resolver;
use self::resolver::{Asked, Bell};
use self::socket::{Control, Events};
use crate::routes::{NeighbourState, Routes};

/// The mirror. Dropping it ends the thread.
#[derive(Debug)]
pub struct Mirror {
    routes: Arc<ArcSwap<Routes>>,
    resolver: Resolver,
    bell: Arc<Bell>,
    counters: Arc<Counters>,
    thread: Option<JoinHandle<()>>,
}

/// What the mirror did.
#[derive(Debug, Default)]
pub struct Counters {
    /// Snapshots published.
    pub published: AtomicU64,
    /// Times that notifications were lost and everything was read again.
    pub overruns: AtomicU64,
    /// Neighbours the kernel was asked to resolve or confirm.
    pub asked: AtomicU64,
    /// Requests the kernel refused, or that failed.
    pub failed: AtomicU64,
}

/// Why there is no mirror.
#[derive(Debug, thiserror::Error)]
pub enum NetlinkError {
    /// No netlink socket.
    #[error(
        "cannot open a netlink socket for routes: {0}; the process needs AF_NETLINK (systemd: RestrictAddressFamilies)"
    )]
    Open(io::Error),
    /// The tables cannot be read.
    #[error("cannot read the kernel's {what} by netlink: {source}")]
    Read {
        /// Which.
        what: &'static str,
        /// Why.
        source: io::Error,
    },
    /// No thread.
    #[error("cannot start the thread that follows routes: {0}")]
    Thread(io::Error),
}

impl Mirror {
    /// Reads everything once, then follows it. The network namespace is that of the calling thread.
    pub fn start() -> Result<Self, NetlinkError> {
        Self::with_buffer(EVENT_BUFFER)
    }

    /// As [`Mirror::start`], with this many bytes for notifications that wait. The fewer, the sooner some are lost and
    /// everything has to be read again.
    pub fn with_buffer(bytes: usize) -> Result<Self, NetlinkError> {
        let bell = Arc::new(Bell::new().map_err(NetlinkError::Open)?);
        let mut follower = Follower {
            events: Events::open(bytes).map_err(NetlinkError::Open)?,
            control: Control::open().map_err(NetlinkError::Open)?,
            resolver: Resolver::new(bell.clone()),
            asked: Asked::default(),
            routes: Routes::default(),
            published: Arc::new(ArcSwap::from_pointee(Routes::default())),
            counters: Arc::default(),
            clock: Clock::start(),
            published_at: Instant::ZERO,
            publish_due: None,
            topology_due: None,
            neighbours_due: false,
            topology_cost: Duration::ZERO,
        };
        follower.read_topology()?;
        follower.read_neighbours()?;
        follower.publish();
        let (routes, resolver) = (follower.published.clone(), follower.resolver.clone());
        let counters = follower.counters.clone();
        let thread = std::thread::Builder::new()
            .name("routes".to_owned())
            .spawn(move || follower.run())
            .map_err(NetlinkError::Thread)?;
        Ok(Self { routes, resolver, bell, counters, thread: Some(thread) })
    }

    /// The latest snapshot; workers read it through an [`arc_swap::Cache`].
    pub fn routes(&self) -> Arc<ArcSwap<Routes>> {
        self.routes.clone()
    }

    /// A handle to ask for neighbours with, for any thread.
    pub fn resolver(&self) -> Resolver {
        self.resolver.clone()
    }

    /// What the mirror did so far.
    pub fn counters(&self) -> &Counters {
        &self.counters
    }
}

/// Everything as it is now, read once. The network namespace is that of the calling thread.
pub fn read() -> Result<Routes, NetlinkError> {
    let mut control = Control::open().map_err(NetlinkError::Open)?;
    let mut routes = Routes::default();
    read_topology(&mut control, &mut routes)?;
    routes.replace_neighbours(control.neighbours().map_err(reading("neighbours"))?);
    Ok(routes)
}

impl Drop for Mirror {
    fn drop(&mut self) {
        self.bell.stop();
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("the thread that follows routes panicked");
        }
    }
}

/// The thread.
#[derive(Debug)]
struct Follower {
    events: Events,
    control: Control,
    resolver: Resolver,
    asked: Asked,
    routes: Routes,
    published: Arc<ArcSwap<Routes>>,
    counters: Arc<Counters>,
    clock: Clock,
    published_at: Instant,
    /// When the changes so far are to be published.
    publish_due: Option<Instant>,
    /// When links, addresses and routes are to be read again.
    topology_due: Option<Instant>,
    /// Neighbours are to be read again: notifications were lost.
    neighbours_due: bool,
    /// How long that took the last time.
    topology_cost: Duration,
}

impl Follower {
    fn run(mut self) {
        while !self.resolver.bell().is_stopped() {
            if let Err(error) = self.step() {
                count(&self.counters.failed);
                tracing::error!(%error, "cannot follow the kernel's routes; trying again");
                // Not a busy loop, and still listening to the bell.
                self.topology_due = Some(self.clock.now() + RETRY.into());
                let mut bell = [PollFd::new(self.resolver.bell().as_fd(), PollFlags::POLLIN)];
                let _ = poll(&mut bell, PollTimeout::from(RETRY.as_millis() as u16));
            }
        }
    }

    fn step(&mut self) -> Result<(), NetlinkError> {
        self.wait()?;
        self.take_events()?;
        if self.topology_due.is_some_and(|due| due <= self.clock.now()) {
            self.read_topology()?;
        }
        if self.neighbours_due {
            self.read_neighbours()?;
        }
        if self.publish_due.is_some_and(|due| due <= self.clock.now()) {
            self.publish();
        }
        self.take_questions();
        Ok(())
    }

    fn wait(&self) -> Result<(), NetlinkError> {
        let timeout = match self.topology_due.into_iter().chain(self.publish_due).min() {
            None => PollTimeout::NONE,
            Some(due) => {
                let now = self.clock.now();
                let left = if due > now { (due - now).total_millis() + 1 } else { 0 };
                PollTimeout::try_from(left.min(60_000) as i32).unwrap_or(PollTimeout::ZERO)
            }
        };
        let mut sources = [
            PollFd::new(self.events.as_fd(), PollFlags::POLLIN),
            PollFd::new(self.resolver.bell().as_fd(), PollFlags::POLLIN),
        ];
        match poll(&mut sources, timeout) {
            Ok(_) | Err(Errno::EINTR) => Ok(()),
            Err(error) => Err(NetlinkError::Read { what: "notifications", source: error.into() }),
        }
    }

    /// Takes what the kernel told so far.
    fn take_events(&mut self) -> Result<(), NetlinkError> {
        for _ in 0..EVENT_BATCH {
            let messages = match self.events.receive() {
                Ok(Some(messages)) => messages,
                Ok(None) => break,
                Err(error) if error.raw_os_error() == Some(Errno::ENOBUFS as i32) => {
                    count(&self.counters.overruns);
                    tracing::debug!(
                        "notifications of route changes were lost; reading everything again"
                    );
                    // What waits is older than what was lost, and would undo what is read next.
                    self.events.discard();
                    self.neighbours_due = true;
                    self.read_neighbours()?;
                    self.change_topology();
                    continue;
                }
                Err(source) => return Err(NetlinkError::Read { what: "notifications", source }),
            };
            for message in messages {
                self.take_event(message);
            }
        }
        Ok(())
    }

    fn take_event(&mut self, message: Message) {
        let (message, gone) = match message {
            Message::NewNeighbour(message) => (message, false),
            Message::DelNeighbour(message) => (message, true),
            _ => return self.change_topology(),
        };
        let Some((ifindex, address, neighbour)) = decode::neighbour(&message) else { return };
        let stale = !gone && neighbour.state == NeighbourState::Stale;
        if stale && self.asked.refresh(ifindex, address, self.clock.now()) {
            self.resolve(ifindex, address);
        }
        if self.routes.set_neighbour(ifindex, address, (!gone).then_some(neighbour)) {
            self.change();
        }
    }

    /// Links, addresses or routes changed.
    fn change_topology(&mut self) {
        let pause = MIN_PAUSE.max(self.topology_cost * 10);
        self.topology_due.get_or_insert(self.clock.now() + pause.into());
    }

    /// The tables here changed. The first change is published at once, those that follow together.
    fn change(&mut self) {
        let due = self.clock.now().max(self.published_at + PUBLISH_PAUSE.into());
        self.publish_due.get_or_insert(due);
    }

    /// Passes on what workers ask for.
    fn take_questions(&mut self) {
        self.resolver.bell().answer();
        // No more than fit, so that workers cannot keep the thread here.
        for _ in 0..resolver::QUESTIONS {
            let Some((ifindex, address)) = self.resolver.next_question() else { break };
            if self.asked.ask(ifindex, address, self.clock.now()) {
                self.resolve(ifindex, address);
            }
        }
    }

    fn resolve(&mut self, ifindex: u32, address: std::net::IpAddr) {
        count(&self.counters.asked);
        if let Err(error) = self.control.resolve(ifindex, address) {
            count(&self.counters.failed);
            tracing::debug!(ifindex, %address, %error, "the kernel refused to resolve a neighbour");
        }
    }

    fn read_topology(&mut self) -> Result<(), NetlinkError> {
        let begun = self.clock.now();
        self.topology_due = None;
        read_topology(&mut self.control, &mut self.routes)?;
        self.topology_cost = (self.clock.now() - begun).into();
        self.change();
        Ok(())
    }

    fn read_neighbours(&mut self) -> Result<(), NetlinkError> {
        let neighbours = self.control.neighbours().map_err(reading("neighbours"))?;
        self.routes.replace_neighbours(neighbours);
        self.neighbours_due = false;
        self.change();
        Ok(())
    }

    fn publish(&mut self) {
        self.publish_due = None;
        self.published_at = self.clock.now();
        count(&self.counters.published);
        self.published.store(Arc::new(self.routes.clone()));
    }
}

fn read_topology(control: &mut Control, routes: &mut Routes) -> Result<(), NetlinkError> {
    let links = control.links().map_err(reading("links"))?;
    let local = control.addresses().map_err(reading("addresses"))?;
    routes.replace_topology(links, local, control.routes().map_err(reading("routes"))?);
    Ok(())
}

/// The time since the mirror started; nothing but intervals is made of it.
#[derive(Debug)]
struct Clock(std::time::Instant);

impl Clock {
    #[expect(
        clippy::disallowed_methods,
        reason = "a thread of the shell, with intervals of its own"
    )]
    fn start() -> Self {
        Self(std::time::Instant::now())
    }

    fn now(&self) -> Instant {
        Instant::from_micros(self.0.elapsed().as_micros() as i64)
    }
}

fn reading(what: &'static str) -> impl FnOnce(io::Error) -> NetlinkError {
    move |source| NetlinkError::Read { what, source }
}

fn count(counter: &AtomicU64) {
    counter.fetch_add(1, Ordering::Relaxed);
}

/// Least time between two readings of the routes.
const MIN_PAUSE: Duration = Duration::from_millis(20);
/// Least time between two snapshots.
const PUBLISH_PAUSE: Duration = Duration::from_millis(5);
const RETRY: Duration = Duration::from_secs(1);
const EVENT_BUFFER: usize = 4 << 20;
/// Datagrams taken before the snapshot is published.
const EVENT_BATCH: usize = 256;
