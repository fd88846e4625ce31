//! The configuration: what an operator wrote, validated as a whole, with names resolved to indices.
//!
//! [`Config::parse`] reports everything that is wrong in one go; what it returns needs no further checks but those
//! that ask this host ([`crate::host::check_against_host`]). Keys that are not known are errors.
//!
//! Lists are bounded: [`MAX_POOL_ADDRESSES`], [`MAX_LISTENS`], [`MAX_ORIGIN_ADDRESSES`], [`MAX_BLOCKED`].

mod check;
mod problem;
mod sections;
mod text;
mod value;

use std::fs::File;
use std::io::Read;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use ipnet::IpNet;

pub use self::problem::{ConfigError, Hint, Place, Problem};
use crate::origin::Families;
use crate::pool::{Method, PortRange};

/// A whole configuration. Everything in it is consistent; indices point into the vectors beside them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// Name of the file it came from, for messages.
    pub file: String,
    /// `[gateway]`
    pub gateway: Gateway,
    /// `[tcp]`
    pub tcp: Tcp,
    /// `[nic.NAME]`, in the order of the file; at least one.
    pub nics: Vec<Nic>,
    /// `[pool.NAME]`, in the order of the file.
    pub pools: Vec<Pool>,
    /// `[origin.NAME]`, in the order of the file.
    pub origins: Vec<Origin>,
    /// `[service.NAME]`, in the order of the file; at least one.
    pub services: Vec<Service>,
    /// `[block] prefixes`: packets from there are dropped before anything else.
    pub blocked: Vec<IpNet>,
}

/// The process as a whole.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Gateway {
    /// `admin`: path of the unix socket for `headgate status`. Default `/run/headgate/admin.sock`.
    pub admin: PathBuf,
    /// `drain`: how long flows may go on after SIGTERM. Default 10 s.
    pub drain: Duration,
    /// `heartbeat-limit`: a worker silent for longer counts as dead. Default 500 ms.
    pub heartbeat_limit: Duration,
}

/// Limits of the user-space TCP; all counts and sizes are per worker.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tcp {
    /// `receive-buffer`: bytes per connection, at most 65535 (no window scaling on this side). Default 65535.
    pub receive_buffer: usize,
    /// `send-buffer`: bytes per connection, at most 1 MiB. Default 128 KiB.
    pub send_buffer: usize,
    /// `max-connections`: connections of both legs together. Default 16384: at most 3 GiB of buffers.
    pub max_connections: usize,
    /// `max-half-open`: handshakes of clients that are not finished. Default 65536.
    pub max_half_open: usize,
    /// `idle`: a connection without a byte in either direction for this long ends, and one whose peer keeps its window
    /// closed; keep-alives do not count.
    /// Default 10 min.
    pub idle: Duration,
    /// `handshake`: a handshake that takes longer fails, towards clients and origins. Default 10 s.
    pub handshake: Duration,
    /// `fin-wait`: how long a peer that only may send any more can be silent before its connection ends. Default 10 min,
    /// as `idle`: a client that ended its request early may wait long for the answer.
    pub fin_wait: Duration,
    /// `time-wait`: how long a 4-tuple rests after its connection (RFC 9293 section 3.6.1). Default 60 s.
    pub time_wait: Duration,
}

/// A network interface to take traffic from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Nic {
    /// Name of the interface.
    pub name: String,
    /// Where its section stands.
    pub place: Place,
    /// `attach`: how the XDP program is attached. Default `auto`.
    pub attach: Attach,
    /// `bind`: how AF_XDP sockets move packets. Default `auto`.
    pub bind: Bind,
    /// `queues`: how many receive queues to serve, from queue 0 on. Default: all active ones.
    pub queues: Option<u32>,
    /// `frames`: packet buffers (UMEM frames) per worker, at least twice `ring`. Default 4096, or twice `ring` if that is more.
    pub frames: u32,
    /// `ring`: descriptors per ring; a power of two. Default 2048.
    pub ring: u32,
    /// `checksums`: whether received TCP checksums are verified here. Default `verify`.
    pub checksums: Checksums,
}

/// How the XDP program is attached.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Attach {
    /// Native if the driver can, else generic.
    Auto,
    /// In the driver.
    Native,
    /// In the kernel's generic receive path.
    Generic,
}

/// How AF_XDP sockets move packets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Bind {
    /// Zero-copy if the driver can, else copy.
    Auto,
    /// The NIC writes into the UMEM.
    ZeroCopy,
    /// The kernel copies.
    Copy,
}

/// Who verifies the checksums of received packets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Checksums {
    /// headgate does.
    Verify,
    /// The NIC or the sender is trusted (a veth whose peer leaves checksums incomplete, say).
    Trust,
}

/// A pool of source addresses.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pool {
    /// Its name.
    pub name: String,
    /// Where its section stands.
    pub place: Place,
    /// `addresses`: single ones, ranges and prefixes (every address of them), expanded, each in one pool only.
    pub addresses: Vec<IpAddr>,
    /// `ports`: the ports leased on each address. Default 20000-59999.
    pub ports: PortRange,
    /// `method`: how the address for a flow is chosen. Default `hash`.
    pub method: Method,
    /// `max-pairs`: most (pool address, origin address) pairs with a port in use at a time, per worker; each costs
    /// up to 8 KiB. At the limit flows share the pairs that are there. Default 4096.
    pub max_pairs: usize,
}

/// Where a service's flows go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Origin {
    /// Its name.
    pub name: String,
    /// Where its section stands.
    pub place: Place,
    /// `addresses`, in the order of the file, without doubles.
    pub addresses: Vec<SocketAddr>,
    /// `family`: which of the addresses may be used. Default `any`.
    pub family: Families,
    /// `proxy-protocol`: a header in front of the client's bytes. Default: none.
    pub proxy_protocol: Option<ProxyProtocol>,
}

/// Version of the PROXY protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ProxyProtocol {
    /// The binary one.
    V2,
}

/// What clients can connect to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Service {
    /// Its name.
    pub name: String,
    /// Where its section stands.
    pub place: Place,
    /// `mode`: what happens to a client's packets. Required.
    pub mode: Mode,
    /// `listen`: exact addresses and ports, each in one service only.
    pub listen: Vec<Listen>,
    /// `origin`: index into [`Config::origins`].
    pub origin: usize,
    /// `pool`: index into [`Config::pools`].
    pub pool: usize,
    /// `on-dead`: what happens to the service's packets while its worker is dead. Default `drop`:
    /// the kernel could only reset flows that it knows nothing of, and a worker may only be late.
    pub on_dead: OnDead,
    /// `allow-management`: whether the ssh port may be listened on, and ports that a program of this host listens on.
    /// Default false.
    pub allow_management: bool,
}

/// An address that a service listens on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Listen {
    /// The exact address and port.
    pub address: SocketAddr,
    /// Where it stands.
    pub place: Place,
}

/// What happens to a client's packets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// Both connections end here, bytes are copied.
    Tcp,
}

/// What happens to a service's packets while its worker is dead.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OnDead {
    /// They go to the kernel.
    Pass,
    /// They are dropped, so that clients retransmit.
    Drop,
}

impl Config {
    /// Reads a configuration from its text. All errors are returned, in the order of the text; only while there are
    /// syntax errors are the others not looked for.
    pub fn parse(text: &str) -> Result<Self, Vec<ConfigError>> {
        sections::read("headgate.toml", text)
    }

    /// Reads a configuration from a file, as [`Config::parse`].
    pub fn load(path: impl AsRef<Path>) -> Result<Self, Vec<ConfigError>> {
        let path = path.as_ref();
        let file = path.display().to_string();
        let unreadable = |reason: String| {
            vec![ConfigError {
                file: file.clone(),
                place: Place::default(),
                problem: Problem::Unreadable(reason),
            }]
        };
        let mut text = Vec::new();
        File::open(path)
            .and_then(|opened| opened.take(MAX_FILE + 1).read_to_end(&mut text))
            .map_err(|error| unreadable(format!("{error}; name a file that can be read")))?;
        if text.len() as u64 > MAX_FILE {
            let most = MAX_FILE >> 20;
            return Err(unreadable(format!("it is larger than {most} MiB; name another file")));
        }
        let text = String::from_utf8(text).map_err(|error| {
            let good = error.utf8_error().valid_up_to();
            unreadable(format!("byte {good} is not UTF-8; save the file as UTF-8"))
        })?;
        sections::read(&file, &text)
    }
}

/// Most addresses in all pools together.
pub const MAX_POOL_ADDRESSES: usize = 65_536;
/// Most listening addresses of all services together.
pub const MAX_LISTENS: usize = 4_096;
/// Most addresses of one origin.
pub const MAX_ORIGIN_ADDRESSES: usize = 256;
/// Most blocked prefixes.
pub const MAX_BLOCKED: usize = 1 << 19;
/// Most receive queues served of one NIC.
pub const MAX_QUEUES: u32 = 64;

/// A blocklist of [`MAX_BLOCKED`] prefixes fits well.
const MAX_FILE: u64 = 64 << 20;

#[cfg(test)]
mod tests;
