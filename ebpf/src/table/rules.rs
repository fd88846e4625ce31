//! The contents of the maps in a test.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::vec::Vec;

use crate::classify::Tables;
use crate::map::{
    BlockedPrefix, Endpoint, MAX_QUEUES, OnDead, PoolKey, PoolRule, Protocol, ServiceRule, Settings,
};

/// Contents of the maps.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rules {
    /// The settings.
    pub settings: Settings,
    /// How many ns ago the worker of queue 0 gave its last sign of life; `None` for never.
    pub heartbeat_age_ns: Option<u64>,
    /// The services.
    pub services: BTreeMap<Endpoint, ServiceRule>,
    /// The pool addresses.
    pub pools: BTreeMap<PoolKey, PoolRule>,
    /// The blocked prefixes.
    pub blocked: Vec<BlockedPrefix>,
}

impl Rules {
    /// What the host's clock shows in tests, in ns.
    pub const NOW_NS: u64 = 1_000_000_000_000;

    /// Services and pools of both families and protocols, some blocked prefixes, worker alive.
    pub fn standard() -> Self {
        let services = [
            ("198.51.100.80:80", Protocol::Tcp, OnDead::Pass),
            ("198.51.100.81:80", Protocol::Tcp, OnDead::Drop),
            ("198.51.100.80:53", Protocol::Udp, OnDead::Pass),
            ("[2001:db8:1::80]:80", Protocol::Tcp, OnDead::Pass),
            ("[2001:db8:1::81]:80", Protocol::Tcp, OnDead::Drop),
            ("[2001:db8:1::80]:53", Protocol::Udp, OnDead::Pass),
        ];
        let pools = [
            ("192.0.2.16", Protocol::Tcp, OnDead::Pass),
            ("192.0.2.17", Protocol::Tcp, OnDead::Drop),
            ("192.0.2.18", Protocol::Udp, OnDead::Pass),
            ("2001:db8:2::10", Protocol::Tcp, OnDead::Pass),
            ("2001:db8:2::11", Protocol::Udp, OnDead::Drop),
        ];
        let blocked = [
            ("203.0.113.0", 24),
            ("10.1.2.3", 32),
            ("2001:db8:bad::", 48),
            ("2001:db8:1::bad", 128),
        ];
        Self {
            settings: Settings::enabled(HOUR_NS),
            heartbeat_age_ns: Some(0),
            services: (0..)
                .zip(services)
                .map(|(number, (at, protocol, on_dead))| {
                    (Endpoint::new(protocol, socket(at)), ServiceRule::new(number, on_dead))
                })
                .collect(),
            pools: pools
                .into_iter()
                .map(|(at, protocol, on_dead)| {
                    (PoolKey::new(protocol, address(at)), PoolRule::new(20000, 59999, on_dead))
                })
                .collect(),
            blocked: blocked
                .into_iter()
                .filter_map(|(at, length)| BlockedPrefix::new(address(at), length))
                .collect(),
        }
    }

    pub(super) fn with_settings(self, settings: Settings) -> Self {
        Self { settings, ..self }
    }

    pub(super) fn with_heartbeat_age_ns(self, heartbeat_age_ns: Option<u64>) -> Self {
        Self { heartbeat_age_ns, ..self }
    }

    pub(super) fn blocking(self, prefix: &str, length: u8) -> Self {
        let blocked = BlockedPrefix::new(address(prefix), length).into_iter().collect();
        Self { blocked, ..self }
    }

    pub(crate) fn is_blocked(&self, source: IpAddr) -> bool {
        self.blocked.iter().any(|prefix| prefix.contains(source))
    }
}

impl Tables for Rules {
    fn settings(&self) -> Option<Settings> {
        Some(self.settings)
    }

    fn heartbeat_ns(&self, queue: u32) -> Option<u64> {
        match queue {
            0 => Some(self.heartbeat_age_ns.map_or(0, |age| Self::NOW_NS.saturating_sub(age))),
            1..MAX_QUEUES => Some(0),
            _ => None,
        }
    }

    fn service(&self, endpoint: &Endpoint) -> Option<ServiceRule> {
        self.services.get(endpoint).copied()
    }

    fn pool(&self, key: &PoolKey) -> Option<PoolRule> {
        self.pools.get(key).copied()
    }

    fn is_blocked_v4(&self, source: [u8; 4]) -> bool {
        self.is_blocked(source.into())
    }

    fn is_blocked_v6(&self, source: [u8; 16]) -> bool {
        self.is_blocked(source.into())
    }
}

pub(super) fn address(text: &str) -> IpAddr {
    text.parse().unwrap_or_else(|_| panic!("{text} is no address"))
}

pub(super) fn socket(text: &str) -> SocketAddr {
    text.parse().unwrap_or_else(|_| panic!("{text} is no address and port"))
}

const HOUR_NS: u64 = 3_600_000_000_000;
