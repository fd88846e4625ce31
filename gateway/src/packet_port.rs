//! AF_PACKET: the port for machines whose NIC or kernel cannot do XDP. Slower, and complete.
//!
//! One socket per NIC gets a copy of every frame that the host receives; [`classify`] picks the
//! ones that are ours, as the XDP program would. The kernel must not answer them as well: a
//! [`Shield`] makes it drop them behind our back.

use std::{
    collections::VecDeque,
    ffi::CString,
    io::{self, Write},
    net::{IpAddr, SocketAddr},
    os::fd::{AsFd, AsRawFd, OwnedFd},
    process::{Child, Command, Stdio},
    time::Duration,
};

use hashbrown::HashMap;
use headgate_ebpf::{
    Endpoint, OnDead, PoolKey, PoolRule, Protocol, ServiceRule, Settings, Tables, Verdict, classify,
};
use nix::{
    errno::Errno,
    poll::{PollFd, PollFlags, PollTimeout},
    sys::socket::{
        AddressFamily, LinkAddr, MsgFlags, SockFlag, SockProtocol, SockType, bind, recvfrom, send,
        setsockopt, socket, sockopt,
    },
};

use crate::{
    frame::{Frame, Slot},
    port::{BATCH, Batch, FrameCensus, Nic, Port, RingCounters},
    waker::Waker,
};

/// The longest frame that is taken, in bytes.
pub const CAPACITY: usize = 1792;
/// A byte more tells longer frames from those that just fit.
const ROOM: usize = CAPACITY + 1;
/// Bytes of the kernel's queues of a socket.
const SOCKET_BUFFER: usize = 16 << 20;
/// `PACKET_OUTGOING`: a frame that the host itself sent.
const OUTGOING: u8 = 4;

/// What of a NIC's traffic is ours: the same tables as the XDP program has.
#[derive(Clone, Debug, Default)]
pub struct Rules {
    services: HashMap<[u8; Endpoint::SIZE], ServiceRule>,
    pools: HashMap<[u8; PoolKey::SIZE], PoolRule>,
}

/// One NIC's socket.
#[derive(Debug)]
struct Side {
    nic: Nic,
    name: String,
    socket: OwnedFd,
    too_long: u64,
    tx_errors: u64,
}

/// The AF_PACKET port. There is one worker with it.
#[derive(Debug)]
pub struct Packets {
    sides: Vec<Side>,
    rules: Rules,
    memory: Vec<[u8; ROOM]>,
    lengths: Vec<usize>,
    free: Vec<u32>,
    queued: VecDeque<(Nic, u32)>,
    held: usize,
    waker: Waker,
}

impl Rules {
    /// Takes the packets for a service's address.
    pub fn add_service(&mut self, protocol: Protocol, address: SocketAddr) {
        let rule = ServiceRule::new(0, OnDead::Pass);
        self.services.insert(Endpoint::new(protocol, address).to_bytes(), rule);
    }

    /// Takes what comes back to a range of ports of a pool address.
    pub fn add_pool(&mut self, protocol: Protocol, address: IpAddr, ports: (u16, u16)) {
        let rule = PoolRule::new(ports.0, ports.1, OnDead::Pass);
        self.pools.insert(PoolKey::new(protocol, address).to_bytes(), rule);
    }

    /// Whether the XDP program would redirect this frame.
    fn take(&self, frame: &[u8]) -> bool {
        let verdict = classify(frame, self, 0, || 0).verdict;
        matches!(verdict, Verdict::RedirectService | Verdict::RedirectPool)
    }

    /// The same rules for nftables: a table of ours that drops what we take.
    fn nft(&self) -> String {
        let mut text = String::from(
            "add table inet headgate { flags owner; }\n\
             add chain inet headgate taken { type filter hook prerouting priority -310; }\n",
        );
        for key in self.services.keys() {
            if let Some(endpoint) = Endpoint::from_bytes(*key) {
                let address = endpoint.address();
                text.push_str(&drop_rule(address.ip(), &address.port().to_string()));
            }
        }
        for (key, rule) in &self.pools {
            if let Some(key) = PoolKey::from_bytes(*key) {
                let ports = format!("{}-{}", rule.first(), rule.last());
                text.push_str(&drop_rule(key.address(), &ports));
            }
        }
        text
    }
}

impl Tables for Rules {
    fn settings(&self) -> Option<Settings> {
        Some(Settings::enabled(u64::MAX))
    }

    fn heartbeat_ns(&self, _queue: u32) -> Option<u64> {
        // Who asks is alive.
        Some(1)
    }

    fn service(&self, endpoint: &Endpoint) -> Option<ServiceRule> {
        self.services.get(&endpoint.to_bytes()).copied()
    }

    fn pool(&self, key: &PoolKey) -> Option<PoolRule> {
        self.pools.get(&key.to_bytes()).copied()
    }

    fn is_blocked_v4(&self, _source: [u8; 4]) -> bool {
        false
    }

    fn is_blocked_v6(&self, _source: [u8; 16]) -> bool {
        false
    }
}

/// Rules in the kernel's packet filter that drop what this process takes, for as long as it lives.
///
/// The table belongs to an `nft` process that reads from a pipe of ours: when this process ends, in
/// whatever way, the pipe closes, `nft` ends, and the kernel removes the table.
#[derive(Debug)]
pub struct Shield {
    nft: Child,
}

impl Shield {
    /// Installs the rules.
    ///
    /// # Errors
    /// When `nft` is not installed, or refuses.
    pub fn raise(rules: &Rules) -> io::Result<Self> {
        // The table of one that was just killed goes in a moment.
        let mut tries = 0;
        while raised()?.is_some() {
            tries += 1;
            if tries == TRIES {
                return Err(io::Error::other(
                    "the nftables table `inet headgate` is another process's; stop that headgate first",
                ));
            }
            std::thread::park_timeout(APART);
        }
        let mut nft = Command::new("nft")
            .arg("--interactive")
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .map_err(|error| {
                io::Error::new(error.kind(), format!("cannot run nft: {error}; install nftables"))
            })?;
        if let Some(pipe) = nft.stdin.as_mut() {
            pipe.write_all(rules.nft().as_bytes())?;
            pipe.flush()?;
        }
        let shield = Self { nft };
        // The pipe tells nothing back: ask whether the rules are there.
        for _ in 0..TRIES {
            if raised()? == Some(rules.services.len() + rules.pools.len()) {
                return Ok(shield);
            }
            std::thread::park_timeout(APART);
        }
        Err(io::Error::other(
            "nft did not install the rules that keep the kernel from answering; try `nft list ruleset`",
        ))
    }
}

impl Drop for Shield {
    fn drop(&mut self) {
        drop(self.nft.stdin.take());
        let _ = self.nft.wait();
    }
}

/// How often to look at nft's rules, and how far apart.
const TRIES: usize = 100;
const APART: Duration = Duration::from_millis(20);

/// How many rules are in place; `None` if the table does not exist.
fn raised() -> io::Result<Option<usize>> {
    let listing = Command::new("nft")
        .args(["list", "table", "inet", "headgate"])
        .env("LC_ALL", "C")
        .output()
        .map_err(|error| {
            io::Error::new(error.kind(), format!("cannot run nft: {error}; install nftables"))
        })?;
    if !listing.status.success() {
        let said = String::from_utf8_lossy(&listing.stderr);
        return match said.contains("No such file or directory") {
            true => Ok(None),
            false => {
                let said = said.lines().next().unwrap_or_default();
                Err(io::Error::other(format!("nft says {said:?}; run as root")))
            }
        };
    }
    let text = String::from_utf8_lossy(&listing.stdout);
    let rules = text.lines().filter(|line| line.trim_end().ends_with(" drop")).count();
    Ok(Some(rules))
}

fn drop_rule(address: IpAddr, ports: &str) -> String {
    let family = if address.is_ipv4() { "ip" } else { "ip6" };
    format!("add rule inet headgate taken {family} daddr {address} tcp dport {ports} drop\n")
}

impl Packets {
    /// Opens a socket on each NIC: (index in the configuration, name).
    ///
    /// # Errors
    /// When a NIC does not exist, or the right CAP_NET_RAW is missing.
    pub fn open(
        nics: &[(Nic, String)],
        frames: u32,
        rules: Rules,
        waker: Waker,
    ) -> io::Result<Self> {
        let sides = nics.iter().map(|(nic, name)| Side::open(*nic, name)).collect::<Result<_, _>>();
        Ok(Self {
            sides: sides?,
            rules,
            memory: vec![[0; ROOM]; frames as usize],
            lengths: vec![0; frames as usize],
            free: (0..frames).rev().collect(),
            queued: VecDeque::with_capacity(frames as usize),
            held: 0,
            waker,
        })
    }
}

impl Port for Packets {
    fn receive(&mut self, batch: &mut Batch) {
        // Whichever NIC is first is so only this time; frames that are not ours count against the
        // turn as well, so that other traffic cannot hold the loop up.
        self.sides.rotate_left(1);
        for side in &mut self.sides {
            let mut looks = 4 * BATCH;
            while batch.len() < BATCH && looks > 0 {
                looks -= 1;
                let Some(&slot) = self.free.last() else { return };
                let room = &mut self.memory[slot as usize][..];
                match side.receive(room) {
                    Received::Nothing => break,
                    Received::Frame(len) if self.rules.take(&room[..len]) => {
                        self.free.pop();
                        self.lengths[slot as usize] = len;
                        self.held += 1;
                        batch.push((side.nic, Frame::occupying(slot)));
                    }
                    Received::Frame(_) | Received::Other => {}
                }
            }
        }
    }

    fn bytes_mut(&mut self, frame: &mut Frame) -> &mut [u8] {
        let slot = frame.slot() as usize;
        &mut self.memory[slot][..self.lengths[slot]]
    }

    fn room(&self) -> usize {
        self.free.len()
    }

    fn allocate(&mut self, len: usize) -> Option<Frame> {
        if len > CAPACITY {
            return None;
        }
        let slot = self.free.pop()?;
        self.lengths[slot as usize] = len;
        self.held += 1;
        Some(Frame::occupying(slot))
    }

    fn transmit(&mut self, nic: Nic, frame: Frame) {
        self.held -= 1;
        self.queued.push_back((nic, frame.into_slot()));
    }

    fn recycle(&mut self, slot: Slot) {
        self.held -= 1;
        self.free.push(slot.index());
    }

    fn flush(&mut self) {
        while let Some(&(nic, slot)) = self.queued.front() {
            let bytes = &self.memory[slot as usize][..self.lengths[slot as usize]];
            if let Some(side) = self.sides.iter_mut().find(|side| side.nic == nic) {
                match send(side.socket.as_raw_fd(), bytes, MsgFlags::MSG_DONTWAIT) {
                    Ok(_) => {}
                    Err(Errno::EAGAIN) => return,
                    Err(_) => side.tx_errors += 1,
                }
            }
            self.queued.pop_front();
            self.free.push(slot);
        }
    }

    fn wait(&mut self, limit: Duration) {
        let limit =
            if self.queued.is_empty() { limit } else { limit.min(Duration::from_millis(1)) };
        let millis = limit.as_nanos().div_ceil(1_000_000).min(60_000) as u16;
        let mut fds = vec![PollFd::new(self.waker.as_fd(), PollFlags::POLLIN)];
        fds.extend(
            self.sides.iter().map(|side| PollFd::new(side.socket.as_fd(), PollFlags::POLLIN)),
        );
        // An interrupted wait is a short wait.
        let _ = nix::poll::poll(&mut fds, PollTimeout::from(millis));
    }

    fn census(&mut self) -> FrameCensus {
        FrameCensus {
            total: self.memory.len(),
            free: self.free.len(),
            receiving: 0,
            sending: self.queued.len(),
            held: self.held,
        }
    }

    fn rings(&mut self) -> Vec<RingCounters> {
        let mut sides: Vec<_> = self.sides.iter().collect();
        sides.sort_by_key(|side| side.nic);
        let backlog = |nic| self.queued.iter().filter(|(queued, _)| *queued == nic).count();
        sides
            .into_iter()
            .map(|side| RingCounters {
                nic: side.name.clone(),
                backlog: backlog(side.nic),
                rx_dropped: side.too_long,
                tx_errors: side.tx_errors,
                ..RingCounters::default()
            })
            .collect()
    }
}

/// What a look into a socket brought.
enum Received {
    Nothing,
    Frame(usize),
    /// A frame that we sent, or a longer one than we take.
    Other,
}

impl Side {
    fn open(nic: Nic, name: &str) -> io::Result<Self> {
        let socket = socket(
            AddressFamily::Packet,
            SockType::Raw,
            SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK,
            SockProtocol::EthAll,
        )?;
        let address = link_address(name)?;
        bind(socket.as_raw_fd(), &address)?;
        setsockopt(&socket, sockopt::RcvBufForce, &SOCKET_BUFFER)?;
        setsockopt(&socket, sockopt::SndBufForce, &SOCKET_BUFFER)?;
        Ok(Self { nic, name: name.into(), socket, too_long: 0, tx_errors: 0 })
    }

    fn receive(&mut self, room: &mut [u8]) -> Received {
        match recvfrom::<LinkAddr>(self.socket.as_raw_fd(), room) {
            Ok((_, Some(from))) if from.pkttype() == OUTGOING => Received::Other,
            Ok((len, _)) if len > CAPACITY => {
                self.too_long += 1;
                Received::Other
            }
            Ok((len, _)) => Received::Frame(len),
            Err(_) => Received::Nothing,
        }
    }
}

/// The address of a NIC for packet sockets, which the system only gives in its list of interfaces.
fn link_address(name: &str) -> io::Result<LinkAddr> {
    // A name with a NUL byte is no interface's.
    CString::new(name)?;
    nix::ifaddrs::getifaddrs()?
        .filter(|interface| interface.interface_name == name)
        .find_map(|interface| interface.address?.as_link_addr().copied())
        .ok_or_else(|| io::Error::new(io::ErrorKind::NotFound, format!("no interface {name}")))
}
