//! Steering: the XDP program on one NIC, and the maps that tell it what to redirect.
//!
//! The only file that knows aya. Dropping a [`Steering`] detaches the program, and the kernel does
//! the same when the process dies: traffic then goes to the kernel's network stack again.

use std::{
    fmt, io,
    net::{IpAddr, SocketAddr},
    os::fd::AsRawFd,
};

use aya::{
    Ebpf, EbpfError, EbpfLoader,
    maps::{Array, HashMap, LpmTrie, Map, MapData, MapError, PerCpuArray, XskMap, lpm_trie::Key},
    programs::{ProgramError, Xdp, XdpMode, links::FdLink},
};
use headgate_ebpf::{
    BlockedPrefix, Endpoint, OBJECT, OnDead, PoolKey, PoolRule, Protocol, ServiceRule, Settings,
    Verdict, map,
};
use ipnet::IpNet;

/// Where in the receive path the program runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AttachMode {
    /// In the driver.
    Native,
    /// In the kernel's generic receive path: works everywhere, slower.
    Generic,
}

impl AttachMode {
    /// The name as in the configuration.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Native => "native",
            Self::Generic => "generic",
        }
    }
}

/// Why traffic cannot be steered.
#[derive(Debug, thiserror::Error)]
pub enum SteerError {
    /// The kernel refused the program or a map.
    #[error(
        "cannot load the XDP program: {0}; headgate needs Linux 5.10 or later, and root or CAP_BPF with CAP_NET_ADMIN"
    )]
    Load(#[from] EbpfError),
    /// The program is not in the object.
    #[error("the XDP program is not as expected: {0}; rebuild it with `cargo xtask ebpf`")]
    Program(#[source] ProgramError),
    /// A map is not in the object, or is of another type.
    #[error("cannot use map {name}: {source}")]
    Map {
        /// Its name.
        name: &'static str,
        /// What is wrong.
        source: MapError,
    },
    /// A map is not in the object.
    #[error("the XDP program has no map {0}; rebuild it with `cargo xtask ebpf`")]
    NoMap(&'static str),
    /// Another program is attached to the NIC.
    #[error(
        "{nic} has an XDP program already; headgate does not replace it: remove it first (see `ip link show dev {nic}` and `bpftool net`)"
    )]
    Occupied {
        /// The NIC's name.
        nic: String,
    },
    /// The kernel refused to attach.
    #[error("cannot attach to {nic} in {mode} mode: {source}{remedy}")]
    Attach {
        /// The NIC's name.
        nic: String,
        /// The mode that was tried.
        mode: &'static str,
        /// What the kernel said.
        source: io::Error,
        /// What to do.
        remedy: &'static str,
    },
}

/// The XDP program on one NIC.
pub struct Steering {
    // The link goes before the program and its maps.
    link: Option<FdLink>,
    mode: AttachMode,
    xsks: XskMap<MapData>,
    services: HashMap<MapData, [u8; Endpoint::SIZE], [u8; ServiceRule::SIZE]>,
    pools: HashMap<MapData, [u8; PoolKey::SIZE], [u8; PoolRule::SIZE]>,
    settings: Array<MapData, [u64; Settings::WORDS]>,
    counters: PerCpuArray<MapData, u64>,
    ebpf: Ebpf,
}

/// A worker's sign of life on one NIC queue.
pub struct Pulse {
    heartbeat: Array<MapData, u64>,
    queue: u32,
}

impl Steering {
    /// Loads the program and attaches it to a NIC, in the first of `modes` that the kernel accepts.
    /// It passes everything until [`enable`](Self::enable). `pool_addresses` is how many there is
    /// room for.
    ///
    /// # Errors
    /// The kernel's refusal of the last mode; or that the NIC is taken.
    pub fn attach(
        nic: &str,
        ifindex: u32,
        modes: &[AttachMode],
        pool_addresses: u32,
    ) -> Result<Self, SteerError> {
        let mut loader = EbpfLoader::new();
        let mut ebpf = loader.map_max_entries(map::POOLS, pool_addresses).load(OBJECT)?;
        let program: &mut Xdp = ebpf
            .program_mut(map::PROGRAM)
            .ok_or(SteerError::Program(ProgramError::NotLoaded))?
            .try_into()
            .map_err(SteerError::Program)?;
        program.load().map_err(SteerError::Program)?;
        let (link, mode) = attach_first(program, nic, ifindex, modes)?;
        Ok(Self {
            link: Some(link),
            mode,
            xsks: take(&mut ebpf, map::XSKS)?,
            services: take(&mut ebpf, map::SERVICES)?,
            pools: take(&mut ebpf, map::POOLS)?,
            settings: take(&mut ebpf, map::SETTINGS)?,
            counters: take(&mut ebpf, map::COUNTERS)?,
            ebpf,
        })
    }

    /// The mode that was obtained.
    #[must_use]
    pub fn mode(&self) -> AttachMode {
        self.mode
    }

    /// Redirects matching packets of `queue` to an AF_XDP socket.
    ///
    /// # Errors
    /// When the queue's number is beyond the map's size.
    pub fn add_socket(&mut self, queue: u32, socket: impl AsRawFd) -> Result<(), SteerError> {
        self.xsks.set(queue, socket, 0).map_err(named(map::XSKS))
    }

    /// Steers TCP to a service's address.
    ///
    /// # Errors
    /// When the map is full.
    pub fn add_service(
        &mut self,
        protocol: Protocol,
        address: SocketAddr,
        service: u32,
        on_dead: OnDead,
    ) -> Result<(), SteerError> {
        let key = Endpoint::new(protocol, address).to_bytes();
        let rule = ServiceRule::new(service, on_dead).to_bytes();
        self.services.insert(key, rule, 0).map_err(named(map::SERVICES))
    }

    /// Steers what comes back to a range of ports of a pool address.
    ///
    /// # Errors
    /// When the map is full.
    pub fn add_pool(
        &mut self,
        protocol: Protocol,
        address: IpAddr,
        ports: (u16, u16),
        on_dead: OnDead,
    ) -> Result<(), SteerError> {
        let key = PoolKey::new(protocol, address).to_bytes();
        let rule = PoolRule::new(ports.0, ports.1, on_dead).to_bytes();
        self.pools.insert(key, rule, 0).map_err(named(map::POOLS))
    }

    /// Drops whatever comes from these prefixes.
    ///
    /// # Errors
    /// When a map is full.
    pub fn block(&mut self, prefixes: &[IpNet]) -> Result<(), SteerError> {
        let mut v4: LpmTrie<_, [u8; 4], u32> = borrow(&mut self.ebpf, map::BLOCKED_V4)?;
        for prefix in prefixes {
            if let Some(BlockedPrefix::V4 { length, data }) =
                BlockedPrefix::new(prefix.addr(), prefix.prefix_len())
            {
                v4.insert(&Key::new(length, data), 1, 0).map_err(named(map::BLOCKED_V4))?;
            }
        }
        let mut v6: LpmTrie<_, [u8; 16], u32> = borrow(&mut self.ebpf, map::BLOCKED_V6)?;
        for prefix in prefixes {
            if let Some(BlockedPrefix::V6 { length, data }) =
                BlockedPrefix::new(prefix.addr(), prefix.prefix_len())
            {
                v6.insert(&Key::new(length, data), 1, 0).map_err(named(map::BLOCKED_V6))?;
            }
        }
        Ok(())
    }

    /// Switches steering on: from here on, rules apply to queues whose worker gave a sign of life
    /// within the last `limit_ns` nanoseconds.
    ///
    /// # Errors
    /// When the kernel refuses, which it has no reason to.
    pub fn enable(&mut self, limit_ns: u64) -> Result<(), SteerError> {
        let settings = Settings::enabled(limit_ns).to_words();
        self.settings.set(0, settings, 0).map_err(named(map::SETTINGS))
    }

    /// Switches steering off: everything passes.
    ///
    /// # Errors
    /// When the kernel refuses, which it has no reason to.
    pub fn disable(&mut self) -> Result<(), SteerError> {
        self.settings.set(0, Settings::DISABLED.to_words(), 0).map_err(named(map::SETTINGS))
    }

    /// The heart of the worker that serves `queue`.
    ///
    /// # Errors
    /// When the process has no file descriptor left.
    pub fn pulse(&mut self, queue: u32) -> Result<Pulse, SteerError> {
        let Some(Map::Array(data)) = self.ebpf.map_mut(map::HEARTBEAT) else {
            return Err(SteerError::NoMap(map::HEARTBEAT));
        };
        let id = data.info().map_err(named(map::HEARTBEAT))?.id();
        let data = MapData::from_id(id).map_err(named(map::HEARTBEAT))?;
        let heartbeat = Array::try_from(Map::Array(data)).map_err(named(map::HEARTBEAT))?;
        Ok(Pulse { heartbeat, queue })
    }

    /// How many frames got which verdict, on all CPUs.
    #[must_use]
    pub fn verdicts(&self) -> Vec<(&'static str, u64)> {
        Verdict::ALL
            .iter()
            .map(|verdict| {
                let values = self.counters.get(&verdict.index(), 0);
                (verdict.name(), values.map_or(0, |values| values.iter().sum()))
            })
            .collect()
    }
}

impl fmt::Debug for Steering {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Steering").field("mode", &self.mode).finish_non_exhaustive()
    }
}

impl Drop for Steering {
    fn drop(&mut self) {
        // Off first: while the link goes, no packet meets half a gateway.
        let _ = self.disable();
        drop(self.link.take());
    }
}

impl Pulse {
    /// The worker lives. `now_ns` is CLOCK_MONOTONIC in nanoseconds.
    pub fn beat(&mut self, now_ns: u64) {
        // The index is within the map, as `add_socket` proved: there is no error to be had.
        let _ = self.heartbeat.set(self.queue, now_ns, 0);
    }
}

impl fmt::Debug for Pulse {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pulse").field("queue", &self.queue).finish_non_exhaustive()
    }
}

fn attach_first(
    program: &mut Xdp,
    nic: &str,
    ifindex: u32,
    modes: &[AttachMode],
) -> Result<(FdLink, AttachMode), SteerError> {
    let mut refusal = None;
    for &mode in modes {
        let flag = match mode {
            AttachMode::Native => XdpMode::Driver,
            AttachMode::Generic => XdpMode::Skb,
        };
        match program.attach_to_if_index(ifindex, flag) {
            Ok(id) => {
                let link = program.take_link(id).map_err(SteerError::Program)?;
                // aya falls back to netlink where BPF links are unknown. Such an attachment would
                // survive a killed process: refused.
                let link = FdLink::try_from(link).map_err(|_| {
                    let source = io::Error::from_raw_os_error(libc::EOPNOTSUPP);
                    refused(nic, mode, source)
                })?;
                return Ok((link, mode));
            }
            Err(ProgramError::SyscallError(error)) => {
                if matches!(error.io_error.raw_os_error(), Some(libc::EBUSY | libc::EEXIST)) {
                    return Err(SteerError::Occupied { nic: nic.into() });
                }
                refusal = Some(refused(nic, mode, error.io_error));
            }
            Err(error) => refusal = Some(refused(nic, mode, io::Error::other(error))),
        }
    }
    Err(refusal.unwrap_or(SteerError::Program(ProgramError::NotAttached)))
}

fn refused(nic: &str, mode: AttachMode, source: io::Error) -> SteerError {
    let remedy = match source.raw_os_error() {
        Some(libc::EPERM) => "; run as root, or with CAP_BPF and CAP_NET_ADMIN",
        Some(libc::ENOSPC) => {
            "; the NIC has fewer queues than its peer sends on: raise its combined channels (ethtool -L)"
        }
        Some(libc::EOPNOTSUPP) => {
            "; the driver or kernel cannot: set attach = \"generic\", or run with --port packet"
        }
        Some(libc::ERANGE | libc::EINVAL) => {
            "; the driver may want an MTU of at most 3498, or LRO off (ethtool -K)"
        }
        _ => "",
    };
    SteerError::Attach { nic: nic.into(), mode: mode.name(), source, remedy }
}

fn take<T: TryFrom<Map, Error = MapError>>(
    ebpf: &mut Ebpf,
    name: &'static str,
) -> Result<T, SteerError> {
    T::try_from(ebpf.take_map(name).ok_or(SteerError::NoMap(name))?).map_err(named(name))
}

fn borrow<'a, T: TryFrom<&'a mut Map, Error = MapError>>(
    ebpf: &'a mut Ebpf,
    name: &'static str,
) -> Result<T, SteerError> {
    T::try_from(ebpf.map_mut(name).ok_or(SteerError::NoMap(name))?).map_err(named(name))
}

fn named(name: &'static str) -> impl Fn(MapError) -> SteerError {
    move |source| SteerError::Map { name, source }
}
