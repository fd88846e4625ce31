//! What every worker knows of the configuration, in the form that packets need.

use std::{
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

use hashbrown::HashMap;
use userspace_tcp::{Instant, Stack, StartError};

use crate::{
    config::{self, Checksums, Config, ProxyProtocol},
    directory::Directory,
    exchange::Exchange,
    hop::ETHERNET,
    neighbours::Neighbours,
    origin::Origin,
    plane::{Parts, Plane},
    pool::{Pool, PortRange, Share},
    port::Nic,
    waker::Waker,
};

/// The configuration of the data plane, shared by all workers and never changed.
#[derive(Clone, Debug)]
pub struct Setup {
    /// The NICs, in the order of the configuration.
    pub nics: Vec<NicSetup>,
    /// The services, in the order of the configuration.
    pub services: Vec<ServiceSetup>,
    listeners: HashMap<SocketAddr, u32>,
    pool_ports: HashMap<IpAddr, PortRange>,
    workers: usize,
}

/// A NIC as packets see it.
#[derive(Clone, Debug)]
pub struct NicSetup {
    /// Its name.
    pub name: String,
    /// Its interface index.
    pub ifindex: u32,
    /// Its station address.
    pub mac: [u8; 6],
    /// Bytes of an IP packet that fit.
    pub mtu: u32,
    /// Who verifies checksums.
    pub checksums: userspace_tcp::Checksums,
}

/// A NIC as the host knows it.
#[derive(Clone, Copy, Debug)]
pub struct NicFacts {
    /// Its interface index.
    pub ifindex: u32,
    /// Its station address.
    pub mac: [u8; 6],
    /// Bytes of an IP packet that fit.
    pub mtu: u32,
}

/// A service as packets see it.
#[derive(Clone, Debug)]
pub struct ServiceSetup {
    /// Its name.
    pub name: String,
    /// Its origin, by index.
    pub origin: usize,
    /// Its pool, by index.
    pub pool: usize,
    /// Whether the origin is told the client's address.
    pub proxy_protocol: Option<ProxyProtocol>,
}

impl Setup {
    /// The setup of a configuration for so many workers; `nics` are its NICs, in its order.
    #[must_use]
    pub fn new(config: &Config, nics: &[NicFacts], workers: usize) -> Self {
        let nics = config.nics.iter().zip(nics).map(|(nic, facts)| NicSetup {
            name: nic.name.clone(),
            ifindex: facts.ifindex,
            mac: facts.mac,
            mtu: facts.mtu,
            checksums: match nic.checksums {
                Checksums::Verify => userspace_tcp::Checksums::Verify,
                Checksums::Trust => userspace_tcp::Checksums::Trust,
            },
        });
        let services = config.services.iter().map(|service| ServiceSetup {
            name: service.name.clone(),
            origin: service.origin,
            pool: service.pool,
            proxy_protocol: config.origins[service.origin].proxy_protocol,
        });
        let listeners = config.services.iter().enumerate().flat_map(|(index, service)| {
            service.listen.iter().map(move |listen| (listen.address, index as u32))
        });
        let pool_ports = config
            .pools
            .iter()
            .flat_map(|pool| pool.addresses.iter().map(move |&address| (address, pool.ports)));
        Self {
            nics: nics.collect(),
            services: services.collect(),
            listeners: listeners.collect(),
            pool_ports: pool_ports.collect(),
            workers,
        }
    }

    /// The service that listens on this address.
    #[must_use]
    pub fn service_at(&self, address: &SocketAddr) -> Option<u32> {
        self.listeners.get(address).copied()
    }

    /// The worker that leases this pool address and port; `None` if no pool has it.
    #[must_use]
    pub fn owner_of(&self, address: &SocketAddr) -> Option<usize> {
        self.pool_ports.get(&address.ip())?.owner_of(address.port(), self.workers)
    }

    /// The NIC with this interface index.
    #[must_use]
    pub fn nic_of(&self, ifindex: u32) -> Option<Nic> {
        self.nics.iter().position(|nic| nic.ifindex == ifindex).map(|index| index as Nic)
    }
}

/// What the workers of a gateway have in common.
#[derive(Clone, Debug)]
pub struct Shared {
    /// The configuration of the data plane.
    pub setup: Arc<Setup>,
    /// The inboxes of the workers.
    pub exchange: Arc<Exchange>,
    /// Who owns which connection, if there are several workers.
    pub directory: Option<Arc<Directory>>,
    pool_secret: [u8; 16],
}

/// Randomness for one worker, known to nobody else.
#[derive(Clone, Copy, Debug)]
pub struct Secrets {
    /// Keys the table of connections and their initial sequence numbers.
    pub stack: [u8; 32],
    /// Seeds the choice of addresses and ports.
    pub seed: [u8; 32],
}

impl Shared {
    /// One worker for each bell. `secret` keys what the workers share.
    #[must_use]
    pub fn new(config: &Config, nics: &[NicFacts], wakers: Vec<Waker>, secret: [u8; 32]) -> Self {
        let workers = wakers.len();
        let (directory_key, pool_secret) = split(secret);
        let connections = config.tcp.max_connections.saturating_add(config.tcp.max_half_open);
        let directory = (workers > 1).then(|| {
            // What rests in TIME-WAIT is claimed as well.
            let records =
                connections.saturating_add(userspace_tcp::Config::default().max_time_wait);
            let capacity = records.saturating_mul(workers);
            Arc::new(Directory::new(capacity, config.tcp.handshake.into(), directory_key))
        });
        Self {
            setup: Arc::new(Setup::new(config, nics, workers)),
            exchange: Arc::new(Exchange::new(wakers)),
            directory,
            pool_secret,
        }
    }

    /// The data plane of worker `me`.
    ///
    /// # Errors
    /// When the TCP layer does not work with this build.
    pub fn plane(
        &self,
        config: &Config,
        me: usize,
        neighbours: Neighbours,
        secrets: Secrets,
        now: Instant,
    ) -> Result<Plane, StartError> {
        let origins = config.origins.iter();
        Ok(Plane::new(Parts {
            me,
            setup: self.setup.clone(),
            stack: Stack::new(self.stack_config(config), secrets.stack, now)?,
            max_sessions: config.tcp.max_connections.div_ceil(2),
            pools: self.pools(config, me),
            origins: origins
                .map(|origin| Origin::new(origin.addresses.clone(), origin.family))
                .collect(),
            neighbours,
            exchange: self.exchange.clone(),
            directory: self.directory.clone(),
            seed: secrets.seed,
            now,
        }))
    }

    fn pools(&self, config: &Config, worker: usize) -> Vec<Pool> {
        let share = |pool: &config::Pool| {
            Pool::new(&Share {
                addresses: &pool.addresses,
                ports: pool.ports,
                method: pool.method,
                max_pairs: pool.max_pairs,
                time_wait: config.tcp.time_wait.into(),
                worker,
                workers: self.exchange.workers(),
                secret: self.pool_secret,
            })
        };
        config.pools.iter().map(share).collect()
    }

    fn stack_config(&self, config: &Config) -> userspace_tcp::Config {
        let mtu = self.setup.nics.iter().map(|nic| nic.mtu).min().unwrap_or(1500);
        userspace_tcp::Config {
            mtu: u16::try_from(mtu).unwrap_or(u16::MAX).min(MAX_MTU),
            receive_buffer: config.tcp.receive_buffer,
            send_buffer: config.tcp.send_buffer,
            max_connections: config.tcp.max_connections,
            max_half_open: config.tcp.max_half_open,
            handshake_timeout: config.tcp.handshake.into(),
            connect_timeout: config.tcp.handshake.into(),
            idle_timeout: config.tcp.idle.into(),
            // A client that pauses is idle, no more.
            persist_timeout: config.tcp.idle.into(),
            fin_wait_timeout: config.tcp.fin_wait.into(),
            time_wait: config.tcp.time_wait.into(),
            ..userspace_tcp::Config::default()
        }
    }
}

/// The largest IP packet that fits a frame, in bytes.
const MAX_MTU: u16 = (crate::exchange::PARCEL - ETHERNET) as u16;

fn split(secret: [u8; 32]) -> ([u8; 16], [u8; 16]) {
    let mut halves = ([0; 16], [0; 16]);
    halves.0.copy_from_slice(&secret[..16]);
    halves.1.copy_from_slice(&secret[16..]);
    halves
}
