//! Facts about this host that a configuration has to fit, and whether it does.
//!
//! [`HostFacts::read`] asks the kernel; [`check_against_host`] is pure.

mod proc;

use std::collections::HashSet;
use std::fmt;
use std::fs;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::process::Command;

use crate::config::{Config, ConfigError, Hint, MAX_QUEUES, Nic, Place, Pool, Problem, Service};
use crate::netlink::{self, NetlinkError};
use crate::pool::PortRange;

/// What the kernel said at start.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct HostFacts {
    /// All network interfaces of this network namespace.
    pub interfaces: Vec<Interface>,
    /// The addresses configured on them.
    pub local: HashSet<IpAddr>,
    /// The TCP sockets that listen. The unspecified address stands for all addresses of its family, and the one of
    /// IPv6 perhaps for those of IPv4 too.
    pub listeners: Vec<SocketAddr>,
    /// The ports that the kernel gives its own connections (`net.ipv4.ip_local_port_range`).
    pub local_ports: Option<PortRange>,
    /// The ports of those that it leaves out (`net.ipv4.ip_local_reserved_ports`).
    pub reserved_ports: Vec<PortRange>,
}

/// A network interface.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Interface {
    /// Its name.
    pub name: String,
    /// Its index.
    pub index: u32,
    /// Its Ethernet address, if it has one.
    pub mac: Option<[u8; 6]>,
    /// Bytes of an IP packet that fit.
    pub mtu: u32,
    /// Active receive queues (not the most that it could have); `None` if /sys does not show this namespace.
    pub queues: Option<u32>,
    /// Whether it is up, with carrier.
    pub up: bool,
}

/// Why a fact cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum HostError {
    /// By netlink.
    #[error(transparent)]
    Netlink(#[from] NetlinkError),
    /// From a file.
    #[error("cannot read {path}: {source}; mount /proc and /sys as usual")]
    File {
        /// Which.
        path: String,
        /// Why.
        source: io::Error,
    },
}

/// Something that works, but perhaps not as intended: `FILE:LINE:COL: what; what to do`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Warning {
    /// Name of the file, as it was given.
    pub file: String,
    /// Where in the file.
    pub place: Place,
    /// What, and what to do about it.
    pub caution: Caution,
}

/// What may be amiss.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
#[expect(missing_docs, reason = "the message of each variant is its documentation")]
pub enum Caution {
    #[error("{name} is down or has no carrier; `ip link set {name} up`")]
    InterfaceDown { name: String },
    #[error(
        "{name} has {active} active receive queues and {queues} are served: what the interface puts on the others \
         is not; leave `queues` out, or `ethtool -L {name} combined {queues}`"
    )]
    QueuesUnserved { name: String, active: u32, queues: u32 },
    #[error(
        "the kernel may give its own connections the ports {local} of {address}, which [pool.{pool}] leases too; \
         add {ports} to the sysctl net.ipv4.ip_local_reserved_ports to keep them apart"
    )]
    EphemeralPorts { pool: String, ports: PortRange, address: IpAddr, local: PortRange },
    #[error(
        "{address} is not an address of this host, so the kernel does not answer ARP or neighbour discovery for it; \
         configure it on an interface unless a router sends it here"
    )]
    NotLocal { address: IpAddr },
    #[error(
        "{address} is taken from the program that listens on {listener} on this host, as `allow-management` wants"
    )]
    ListenerOverruled { address: SocketAddr, listener: SocketAddr },
    #[error(
        "a program listens on {listener} on this host; if it accepts IPv4 too (not IPV6_V6ONLY), \
         it loses the traffic of {taken}"
    )]
    PerhapsBothFamilies { listener: SocketAddr, taken: SocketAddr },
}

impl HostFacts {
    /// Asks the kernel. The network namespace is that of the calling thread.
    pub fn read() -> Result<Self, HostError> {
        let routes = netlink::read()?;
        let interfaces = routes.links().iter().map(|(&index, link)| Interface {
            name: link.name.clone(),
            index,
            mac: link.mac,
            mtu: link.mtu,
            queues: active_queues(&link.name, index),
            up: link.up,
        });
        let mut interfaces: Vec<_> = interfaces.collect();
        interfaces.sort_by_key(|interface| interface.index);
        let mut listeners = proc::listeners(&text("/proc/thread-self/net/tcp")?);
        match text("/proc/thread-self/net/tcp6") {
            Ok(table) => listeners.extend(proc::listeners(&table)),
            // A kernel without IPv6.
            Err(HostError::File { source, .. }) if source.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
        let local_ports = text("/proc/sys/net/ipv4/ip_local_port_range")?;
        let reserved_ports = text("/proc/sys/net/ipv4/ip_local_reserved_ports")?;
        Ok(Self {
            interfaces,
            local: routes.local_addresses().clone(),
            listeners,
            local_ports: proc::local_ports(&local_ports),
            reserved_ports: proc::reserved_ports(&reserved_ports),
        })
    }

    /// The interface of this name.
    pub fn interface(&self, name: &str) -> Option<&Interface> {
        self.interfaces.iter().find(|interface| interface.name == name)
    }
}

/// Whether the configuration fits this host: what to know about it, or everything that does not fit.
pub fn check_against_host(
    config: &Config,
    facts: &HostFacts,
) -> Result<Vec<Warning>, Vec<ConfigError>> {
    let mut check = Check { config, facts, warnings: Vec::new(), errors: Vec::new() };
    config.nics.iter().for_each(|nic| check.nic(nic));
    config.pools.iter().for_each(|pool| check.pool(pool));
    check.origins();
    config.services.iter().for_each(|service| check.service(service));
    let Check { mut warnings, mut errors, .. } = check;
    if errors.is_empty() {
        warnings.sort_by_key(|warning| warning.place);
        Ok(warnings)
    } else {
        errors.sort_by_key(|error| error.place);
        Err(errors)
    }
}

struct Check<'a> {
    config: &'a Config,
    facts: &'a HostFacts,
    warnings: Vec<Warning>,
    errors: Vec<ConfigError>,
}

impl Check<'_> {
    fn nic(&mut self, nic: &Nic) {
        let name = nic.name.clone();
        let Some(interface) = self.facts.interface(&name) else {
            let known = self.facts.interfaces.iter().map(|interface| &interface.name);
            let hint = Hint::new(&name, known);
            return self.refuse(nic.place, Problem::NoInterface { name, hint });
        };
        if interface.mac.is_none() {
            return self.refuse(nic.place, Problem::NotEthernet { name });
        }
        match (nic.queues, interface.queues) {
            (_, None) => self.refuse(nic.place, Problem::QueuesUnknown { name: name.clone() }),
            (Some(queues), Some(active)) if queues > active => {
                let problem = Problem::TooFewQueues { name: name.clone(), queues, active };
                self.refuse(nic.place, problem);
            }
            (None, Some(active)) if active > MAX_QUEUES => {
                let most = MAX_QUEUES;
                self.refuse(nic.place, Problem::TooManyQueues { name: name.clone(), active, most });
            }
            (Some(queues), Some(active)) if queues < active => {
                let caution = Caution::QueuesUnserved { name: name.clone(), active, queues };
                self.warn(nic.place, caution);
            }
            _ => {}
        }
        if !interface.up {
            self.warn(nic.place, Caution::InterfaceDown { name });
        }
    }

    fn pool(&mut self, pool: &Pool) {
        for &listener in &self.facts.listeners {
            if !pool.ports.contains(listener.port()) {
                continue;
            }
            let covers = |address: &&IpAddr| self.covers(listener, **address);
            if let Some(&address) = pool.addresses.iter().find(covers) {
                let (name, ports) = (pool.name.clone(), pool.ports.to_string());
                self.refuse(
                    pool.place,
                    Problem::ListenerInPool { pool: name, ports, address, listener },
                );
            } else if let Some(&address) =
                pool.addresses.iter().find(|address| self.perhaps_covers(listener, **address))
            {
                let taken = SocketAddr::new(address, listener.port());
                self.warn(pool.place, Caution::PerhapsBothFamilies { listener, taken });
            }
        }
        let first_local = pool.addresses.iter().find(|address| self.facts.local.contains(address));
        if let (Some(&address), Some(local)) = (first_local, self.contested_ports(pool.ports)) {
            let name = pool.name.clone();
            let caution = Caution::EphemeralPorts { pool: name, ports: pool.ports, address, local };
            self.warn(pool.place, caution);
        }
        self.expect_local(pool.place, pool.addresses.iter().copied());
    }

    fn origins(&mut self) {
        for origin in &self.config.origins {
            for &address in &origin.addresses {
                if self.facts.local.contains(&address.ip()) {
                    self.refuse(origin.place, Problem::OriginIsLocal { address });
                }
            }
        }
    }

    fn service(&mut self, service: &Service) {
        for listen in &service.listen {
            let address = listen.address;
            let same_port = |listener: &&SocketAddr| listener.port() == address.port();
            for &listener in self.facts.listeners.iter().filter(same_port) {
                if self.covers(listener, address.ip()) {
                    match service.allow_management {
                        true => self
                            .warn(listen.place, Caution::ListenerOverruled { address, listener }),
                        false => {
                            self.refuse(
                                listen.place,
                                Problem::ListenerLosesService { address, listener },
                            );
                        }
                    }
                } else if self.perhaps_covers(listener, address.ip()) {
                    let caution = Caution::PerhapsBothFamilies { listener, taken: address };
                    self.warn(listen.place, caution);
                }
            }
            self.expect_local(listen.place, [address.ip()]);
        }
    }

    /// Whether the listener gets what is sent to `address`.
    fn covers(&self, listener: SocketAddr, address: IpAddr) -> bool {
        let wildcard = listener.ip().is_unspecified() && listener.is_ipv4() == address.is_ipv4();
        listener.ip() == address || wildcard && self.facts.local.contains(&address)
    }

    /// Whether it does if it accepts IPv4 on an IPv6 socket, which the kernel's table does not tell.
    fn perhaps_covers(&self, listener: SocketAddr, address: IpAddr) -> bool {
        let wildcard = listener.ip().is_unspecified() && listener.is_ipv6() && address.is_ipv4();
        wildcard && self.facts.local.contains(&address)
    }

    /// The kernel's own ports that lie in `ports` and are not reserved, from the first to the last one.
    fn contested_ports(&self, ports: PortRange) -> Option<PortRange> {
        let local = self.facts.local_ports.filter(|local| local.overlaps(ports))?;
        let reserved = |port| self.facts.reserved_ports.iter().any(|range| range.contains(port));
        let mut contested = (ports.first().max(local.first())..=ports.last().min(local.last()))
            .filter(|port| !reserved(*port));
        let first = contested.next()?;
        PortRange::new(first, contested.next_back().unwrap_or(first))
    }

    /// One warning for the first address that is not local.
    fn expect_local(&mut self, place: Place, addresses: impl IntoIterator<Item = IpAddr>) {
        let foreign = addresses.into_iter().find(|address| !self.facts.local.contains(address));
        if let Some(address) = foreign {
            self.warn(place, Caution::NotLocal { address });
        }
    }

    fn refuse(&mut self, place: Place, problem: Problem) {
        self.errors.push(ConfigError { file: self.config.file.clone(), place, problem });
    }

    fn warn(&mut self, place: Place, caution: Caution) {
        self.warnings.push(Warning { file: self.config.file.clone(), place, caution });
    }
}

impl fmt::Display for Warning {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{}: {}", self.file, self.place, self.caution)
    }
}

/// Whether an interface merges received packets (GRO, LRO) on their way to the network stack; `None` without the program
/// `ethtool`.
pub fn merges_received(name: &str) -> Option<bool> {
    let listing = Command::new("ethtool").args(["-k", name]).output().ok()?;
    let text = String::from_utf8_lossy(&listing.stdout);
    listing.status.success().then(|| {
        ["generic-receive-offload: on", "large-receive-offload: on"]
            .iter()
            .any(|merging| text.lines().any(|line| line.trim().starts_with(merging)))
    })
}

/// sysfs has a folder for each active receive queue.
fn active_queues(name: &str, index: u32) -> Option<u32> {
    let folder = Path::new("/sys/class/net").join(name);
    let shown = fs::read_to_string(folder.join("ifindex")).ok()?;
    if shown.trim().parse() != Ok(index) {
        return None;
    }
    let queues = fs::read_dir(folder.join("queues")).ok()?.filter_map(Result::ok);
    let receive = queues.filter(|queue| queue.file_name().to_string_lossy().starts_with("rx-"));
    u32::try_from(receive.count()).ok()
}

fn text(path: &str) -> Result<String, HostError> {
    fs::read_to_string(path).map_err(|source| HostError::File { path: path.to_owned(), source })
}

#[cfg(test)]
mod tests;
