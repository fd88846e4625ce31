//! What is bound, how, and why not.

use std::io;

use crate::port::Nic;

/// Whether packets are copied between the NIC's memory and ours.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BindMode {
    /// The NIC reads and writes the UMEM itself.
    ZeroCopy,
    /// The kernel copies every packet.
    Copy,
}

impl BindMode {
    /// The name as in the configuration.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::ZeroCopy => "zero-copy",
            Self::Copy => "copy",
        }
    }
}

/// One NIC queue to bind to.
#[derive(Clone, Debug)]
pub struct QueueSpec {
    /// The NIC, by its index in the configuration.
    pub nic: Nic,
    /// The NIC's name.
    pub name: String,
    /// The queue of the NIC.
    pub queue: u32,
    /// Descriptors in each ring: a power of two.
    pub ring: u32,
    /// Frames of the UMEM that this NIC adds.
    pub frames: u32,
}

/// Why no AF_XDP socket could be had.
#[derive(Debug, thiserror::Error)]
pub enum BindError {
    /// The UMEM could not be registered.
    #[error(
        "cannot register {frames} frames of memory with AF_XDP: {source}; raise the limit of locked memory (ulimit -l) or lower `frames`"
    )]
    Umem {
        /// How many frames.
        frames: u32,
        /// What the kernel said.
        source: io::Error,
    },
    /// The socket could not be bound.
    #[error(
        "cannot bind an AF_XDP socket to {nic} queue {queue} in {mode} mode: {source}{}",
        remedy(source)
    )]
    Socket {
        /// The NIC's name.
        nic: String,
        /// The queue of the NIC.
        queue: u32,
        /// The mode that was tried.
        mode: &'static str,
        /// What the kernel said.
        source: io::Error,
    },
}

fn remedy(source: &io::Error) -> &'static str {
    match source.raw_os_error() {
        Some(libc::EBUSY) => "; another process holds this queue: stop it first",
        Some(libc::EOPNOTSUPP) => "; this NIC's driver cannot: set bind = \"copy\" or \"auto\"",
        Some(libc::EINVAL) => {
            "; the NIC has fewer queues than configured, or the ring is too large"
        }
        Some(libc::EPERM) => "; run as root, or with CAP_NET_RAW and CAP_NET_ADMIN",
        Some(libc::ENOBUFS | libc::ENOMEM) => {
            "; raise the limit of locked memory, or lower `frames`"
        }
        _ => "",
    }
}
