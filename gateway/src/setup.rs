//! What every worker knows of the configuration, in the form that packets need.

use std::net::{IpAddr, SocketAddr};

use hashbrown::HashMap;

use crate::{
    config::{Checksums, Config, ProxyProtocol},
    pool::PortRange,
    port::Nic,
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
    /// Who verifies checksums.
    pub checksums: userspace_tcp::Checksums,
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
    /// The setup of a configuration for so many workers; `nics` gives interface index and station
    /// address of each NIC, in the configuration's order.
    #[must_use]
    pub fn new(config: &Config, nics: &[(u32, [u8; 6])], workers: usize) -> Self {
        let nics = config.nics.iter().zip(nics).map(|(nic, &(ifindex, mac))| NicSetup {
            name: nic.name.clone(),
            ifindex,
            mac,
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
        let pool_ports = config.pools.iter().flat_map(|pool| {
            pool.addresses.iter().map(move |&address| (address, pool.ports))
        });
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
