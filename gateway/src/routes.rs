//! The kernel's links, addresses, routes and neighbours, as one immutable snapshot, and the next hop they give.
//!
//! Pure: [`crate::netlink`] fills it. What it holds is the main table of each family (RFC 1812 section 5.2.4.3,
//! longest match, then lowest metric); policy routing rules and other tables are not followed.

mod table;

use std::collections::{HashMap, HashSet};
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;

use self::table::Table;

/// A snapshot. Cloning is cheap; the parts that change are copied when they do.
#[derive(Debug, Clone, Default)]
pub struct Routes {
    links: Arc<HashMap<u32, Link>>,
    local: Arc<HashSet<IpAddr>>,
    table: Arc<Table>,
    neighbours: Arc<HashMap<(u32, IpAddr), Neighbour>>,
    generation: u64,
}

/// A network interface.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Link {
    /// Its name.
    pub name: String,
    /// Its Ethernet address, if it has one.
    pub mac: Option<[u8; 6]>,
    /// Bytes of an IP packet that fit.
    pub mtu: u32,
    /// Whether it is up, with carrier.
    pub up: bool,
}

/// A route of the main table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Route {
    /// The destinations it is for.
    pub prefix: IpNet,
    /// Of several routes for a prefix the one with the lowest metric counts.
    pub metric: u32,
    /// Where packets go. None: such destinations are unreachable by intention (`blackhole`, `unreachable`, `prohibit`).
    pub hops: Vec<RouteHop>,
}

/// One way of a route.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RouteHop {
    /// Index of the interface.
    pub ifindex: u32,
    /// The router, of either family; none if the destination is on the link.
    pub gateway: Option<IpAddr>,
    /// Share among the hops of a route, at least 1.
    pub weight: u32,
    /// The kernel does not use it now.
    pub dead: bool,
}

/// What the kernel knows about a station on a link (RFC 826, RFC 4861 section 7.3.2).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Neighbour {
    /// How sure the kernel is.
    pub state: NeighbourState,
    /// The station's Ethernet address, if it was ever known.
    pub mac: Option<[u8; 6]>,
}

/// How sure the kernel is of a neighbour.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NeighbourState {
    /// It is being asked for, or nothing is known.
    Incomplete,
    /// Confirmed lately, being confirmed, or configured.
    Valid,
    /// It may be outdated; good enough to send to, but should be confirmed.
    Stale,
    /// It did not answer.
    Failed,
}

/// Where a packet goes next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NextHop {
    /// To this station.
    Ready {
        /// Index of the interface it leaves through.
        ifindex: u32,
        /// The station's Ethernet address.
        mac: [u8; 6],
        /// The interface's own.
        source_mac: [u8; 6],
        /// The station's IP address: the router's, or the destination itself.
        gateway: IpAddr,
        /// If not, the kernel should be asked to confirm it ([`crate::netlink::Resolver::ask`]); sending meanwhile is fine.
        fresh: bool,
    },
    /// The kernel has to be asked for the station's Ethernet address first.
    Unresolved {
        /// Index of the interface.
        ifindex: u32,
        /// The station's IP address.
        gateway: IpAddr,
    },
    /// The station did not answer when the kernel asked. It may when it is asked again.
    Failed {
        /// Index of the interface.
        ifindex: u32,
        /// The station's IP address.
        gateway: IpAddr,
    },
    /// The destination is an address of this host.
    Local,
    /// No route leads there, or only one through an interface that is down or not Ethernet.
    NoRoute,
}

impl Routes {
    /// Where a packet to `destination` goes next. Of a route with several hops a destination always takes the same one.
    pub fn next_hop(&self, destination: IpAddr) -> NextHop {
        if self.local.contains(&destination) {
            return NextHop::Local;
        }
        let Some((hop, source_mac)) = self.hop(destination) else { return NextHop::NoRoute };
        let gateway = hop.gateway.unwrap_or(destination);
        let ifindex = hop.ifindex;
        match self.neighbours.get(&(ifindex, gateway)) {
            Some(Neighbour { state: NeighbourState::Failed, .. }) => {
                NextHop::Failed { ifindex, gateway }
            }
            Some(Neighbour {
                state: state @ (NeighbourState::Valid | NeighbourState::Stale),
                mac: Some(mac),
            }) => {
                let fresh = *state == NeighbourState::Valid;
                NextHop::Ready { ifindex, mac: *mac, source_mac, gateway, fresh }
            }
            _ => NextHop::Unresolved { ifindex, gateway },
        }
    }

    /// The interface with this index.
    pub fn link(&self, ifindex: u32) -> Option<&Link> {
        self.links.get(&ifindex)
    }

    /// All interfaces, by index.
    pub fn links(&self) -> &HashMap<u32, Link> {
        &self.links
    }

    /// The addresses configured on this host.
    pub fn local_addresses(&self) -> &HashSet<IpAddr> {
        &self.local
    }

    /// What is known about a station on a link.
    pub fn neighbour(&self, ifindex: u32, address: IpAddr) -> Option<Neighbour> {
        self.neighbours.get(&(ifindex, address)).copied()
    }

    /// Differs between any two snapshots that were published.
    pub fn generation(&self) -> u64 {
        self.generation
    }

    /// Replaces links, local addresses and routes.
    pub fn replace_topology(
        &mut self,
        links: HashMap<u32, Link>,
        local: HashSet<IpAddr>,
        routes: impl IntoIterator<Item = Route>,
    ) {
        self.links = Arc::new(links);
        self.local = Arc::new(local);
        self.table = Arc::new(Table::new(routes));
        self.generation += 1;
    }

    /// Replaces all neighbours.
    pub fn replace_neighbours(&mut self, neighbours: HashMap<(u32, IpAddr), Neighbour>) {
        self.neighbours = Arc::new(neighbours);
        self.generation += 1;
    }

    /// Sets (`Some`) or forgets (`None`) one neighbour; true if that changed anything.
    pub fn set_neighbour(
        &mut self,
        ifindex: u32,
        address: IpAddr,
        neighbour: Option<Neighbour>,
    ) -> bool {
        if self.neighbour(ifindex, address) == neighbour {
            return false;
        }
        let neighbours = Arc::make_mut(&mut self.neighbours);
        match neighbour {
            Some(neighbour) => neighbours.insert((ifindex, address), neighbour),
            None => neighbours.remove(&(ifindex, address)),
        };
        self.generation += 1;
        true
    }

    /// The hop for a destination, and the Ethernet address of its interface.
    fn hop(&self, destination: IpAddr) -> Option<(&RouteHop, [u8; 6])> {
        let usable = |hop: &RouteHop| {
            let link = self.links.get(&hop.ifindex).filter(|link| link.up && !hop.dead)?;
            link.mac
        };
        for route in self.table.matching(destination) {
            if route.hops.is_empty() {
                return None;
            }
            let total: u32 =
                route.hops.iter().filter(|hop| usable(hop).is_some()).map(|hop| hop.weight).sum();
            if total == 0 {
                continue;
            }
            let mut share = table::spread(destination) % total;
            for hop in &route.hops {
                if let Some(mac) = usable(hop) {
                    if share < hop.weight {
                        return Some((hop, mac));
                    }
                    share -= hop.weight;
                }
            }
        }
        None
    }
}

#[cfg(test)]
mod tests;
