//! Next hops towards origins, from the mirror of the kernel's routes and neighbours.

use std::{net::IpAddr, sync::Arc};

use arc_swap::{ArcSwap, Cache};
use hashbrown::HashMap;

use crate::{
    hop::Hop,
    netlink::{Mirror, Resolver},
    routes::{self, Routes},
    setup::Setup,
};

/// Where a packet to an origin goes next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NextHop {
    /// To this station.
    Ready(Hop),
    /// The kernel was asked for the station's address.
    Unresolved,
    /// The station did not answer the kernel.
    Failed,
    /// There is no route, or it leads through an interface that is not headgate's, or to this host.
    NoRoute,
}

/// One worker's view of the mirror.
#[derive(Debug)]
pub struct Neighbours {
    cache: Cache<Arc<ArcSwap<Routes>>, Arc<Routes>>,
    /// The snapshot that `used` is from.
    generation: u64,
    /// The hops that connections were given, by the origin's address.
    used: HashMap<IpAddr, Hop>,
    /// A hop in `used` was replaced since the last [`refresh`](Self::refresh).
    replaced: bool,
    resolver: Option<Resolver>,
}

impl Neighbours {
    /// The view of a mirror that follows the kernel.
    #[must_use]
    pub fn mirrored(mirror: &Mirror) -> Self {
        Self::new(mirror.routes(), Some(mirror.resolver()))
    }

    /// The view of routes that somebody else keeps; nobody resolves what is missing.
    #[must_use]
    pub fn fixed(routes: Arc<ArcSwap<Routes>>) -> Self {
        Self::new(routes, None)
    }

    fn new(routes: Arc<ArcSwap<Routes>>, resolver: Option<Resolver>) -> Self {
        let mut cache = Cache::new(routes);
        let generation = cache.load().generation();
        Self { cache, generation, used: HashMap::new(), replaced: false, resolver }
    }

    /// Where a packet to `destination` goes next. Whatever is missing or in doubt is asked for.
    pub fn next_hop(&mut self, setup: &Setup, destination: IpAddr) -> NextHop {
        let hop = self.cache.load().next_hop(destination);
        let (ifindex, gateway, answer) = match hop {
            routes::NextHop::Ready { ifindex, mac, source_mac, gateway, fresh } => {
                let Some(nic) = setup.nic_of(ifindex) else { return NextHop::NoRoute };
                let hop = Hop { nic, source: source_mac, destination: mac };
                let before = self.used.insert(destination, hop);
                self.replaced |= before.is_some_and(|before| before != hop);
                if fresh {
                    return NextHop::Ready(hop);
                }
                (ifindex, gateway, NextHop::Ready(hop))
            }
            routes::NextHop::Unresolved { ifindex, gateway } => {
                (ifindex, gateway, NextHop::Unresolved)
            }
            routes::NextHop::Failed { ifindex, gateway } => (ifindex, gateway, NextHop::Failed),
            routes::NextHop::Local | routes::NextHop::NoRoute => return NextHop::NoRoute,
        };
        if setup.nic_of(ifindex).is_none() {
            return NextHop::NoRoute;
        }
        if let Some(resolver) = &self.resolver {
            resolver.ask(ifindex, gateway);
        }
        answer
    }

    /// What changed since the last call: one load, if nothing did.
    pub fn refresh(&mut self, setup: &Setup) -> Change {
        let routes = self.cache.load();
        let mut changed = std::mem::take(&mut self.replaced);
        if routes.generation() == self.generation {
            return if changed { Change::Hops } else { Change::None };
        }
        self.generation = routes.generation();
        for (&destination, hop) in &mut self.used {
            if let routes::NextHop::Ready { ifindex, mac, source_mac, .. } =
                routes.next_hop(destination)
                && let Some(nic) = setup.nic_of(ifindex)
            {
                let now = Hop { nic, source: source_mac, destination: mac };
                changed |= std::mem::replace(hop, now) != now;
            }
        }
        if changed { Change::Hops } else { Change::Routes }
    }

    /// Bytes of an IP packet that fit every NIC; `None` if a NIC is unknown.
    pub fn smallest_mtu(&mut self, setup: &Setup) -> Option<u16> {
        let routes = self.cache.load();
        let mtus = setup.nics.iter().map(|nic| routes.link(nic.ifindex).map(|link| link.mtu));
        let smallest = mtus.min()??;
        Some(u16::try_from(smallest).unwrap_or(u16::MAX))
    }
}

/// What changed in the kernel's tables.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// Nothing.
    None,
    /// Something, but no hop that was given out.
    Routes,
    /// A hop that was given out is another one by now.
    Hops,
}
