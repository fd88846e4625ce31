//! Why the gateway does not run, and what to do about it.

use std::io;

use crate::{
    admin::AdminError, config::ConfigError, host::HostError, netlink::NetlinkError,
    steer::SteerError, xsk::BindError,
};

/// Why the gateway does not run.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The configuration does not fit this host.
    #[error("the configuration does not fit this host")]
    Config(Vec<ConfigError>),
    /// The host could not be asked.
    #[error(transparent)]
    Host(#[from] HostError),
    /// The kernel's tables could not be read.
    #[error(transparent)]
    Mirror(#[from] NetlinkError),
    /// Traffic could not be steered.
    #[error(transparent)]
    Steer(#[from] SteerError),
    /// A socket could not be bound.
    #[error(transparent)]
    Bind(#[from] BindError),
    /// A packet socket could not be opened.
    #[error("cannot open a packet socket: {0}; run as root, or with CAP_NET_RAW and CAP_NET_ADMIN")]
    Packet(io::Error),
    /// The kernel cannot be kept from answering.
    #[error("cannot keep the kernel from answering for the services: {0}")]
    Shield(io::Error),
    /// The admin socket is not to be had.
    #[error(transparent)]
    Admin(#[from] AdminError),
    /// The kernel merges packets before headgate gets them.
    #[error(
        "{nic} merges received packets (GRO or LRO) before {what} gets them, and merged ones do not fit a frame: \
         `ethtool -K {nic} gro off lro off`, then start again"
    )]
    Merges {
        /// The NIC's name.
        nic: String,
        /// Who gets them merged.
        what: &'static str,
    },
    /// Blocked prefixes are the XDP program's work.
    #[error(
        "[block] needs XDP: run with --port xdp, or block these prefixes with nftables and leave [block] out"
    )]
    BlockNeedsXdp,
    /// There are more workers than ports.
    #[error(
        "[pool.{pool}] has {ports} ports for {workers} workers, one for each queue that is served: give it more `ports`"
    )]
    FewPorts {
        /// The pool's name.
        pool: String,
        /// Its ports on each address.
        ports: usize,
        /// How many workers there are.
        workers: usize,
    },
    /// The TCP layer does not work with this build.
    #[error("the TCP layer refuses to start: {0}")]
    Stack(#[from] userspace_tcp::StartError),
    /// The system refused a thread, a descriptor or a signal handler.
    #[error("the system refuses a resource: {0}")]
    System(io::Error),
    /// An interface is gone.
    #[error("{0} has been removed: start again when it is back")]
    NicGone(String),
    /// A worker is gone.
    #[error(
        "worker {0} died: this is a bug, please report it with the log; traffic goes to the kernel"
    )]
    WorkerDied(usize),
    /// Frames are missing at the end.
    #[error(
        "worker {0} lost frames: this is a bug, please report it with the output of `headgate status`"
    )]
    NotConserved(usize),
}
