//! What can be wrong with a configuration, each with its remedy.

use std::fmt;
use std::net::{IpAddr, SocketAddr};

use crate::origin::Family;

/// One thing wrong with a configuration: `FILE:LINE:COL: what is wrong; what to do`.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{file}{place}: {}", one_line(problem))]
pub struct ConfigError {
    /// Name of the file, as it was given.
    pub file: String,
    /// Where in the file.
    pub place: Place,
    /// What is wrong there, and what to do about it.
    pub problem: Problem,
}

/// A place in the configuration's text. The default stands for the file as a whole.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Place {
    /// Line, counted from 1; 0 for the file as a whole.
    pub line: u32,
    /// Column in characters, counted from 1.
    pub column: u32,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.line {
            0 => Ok(()),
            line => write!(f, ":{line}:{}", self.column),
        }
    }
}

/// What is wrong.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
#[expect(missing_docs, reason = "the message of each variant is its documentation")]
pub enum Problem {
    #[error("cannot read the configuration: {0}")]
    Unreadable(String),
    #[error("{0}; fix the TOML syntax here first")]
    Syntax(String),
    #[error("unknown key `{key}` in {section}; {hint}")]
    UnknownKey { section: String, key: String, hint: Hint },
    #[error("{section} has no `{key}`; add for example `{key} = {example}`")]
    MissingKey { section: String, key: &'static str, example: &'static str },
    #[error("there is no [{kind}.NAME] section; add at least one")]
    MissingSection { kind: &'static str },
    #[error("`{key}` is {found}; write {wanted}")]
    WrongType { key: String, found: &'static str, wanted: &'static str },
    #[error("`{key}` does not take {found:?}; write {wanted}")]
    BadValue { key: String, found: String, wanted: &'static str },
    #[error("`{key}` does not know {found:?}; {hint}")]
    UnknownChoice { key: String, found: String, hint: Hint },
    #[error("`{key}` is {found}; choose between {least} and {most}")]
    OutOfRange { key: String, found: String, least: String, most: String },
    #[error("`{key}` is empty; list at least one")]
    EmptyList { key: String },
    #[error("`{key}` lists more than {most}; shorten it")]
    TooMany { key: String, most: usize },
    #[error("{kind} `{name}` is not defined; {hint}")]
    UnknownName { kind: &'static str, name: String, hint: Hint },
    #[error("{name:?} cannot name {kind}; {rule}")]
    BadName { kind: &'static str, name: String, rule: &'static str },

    #[error("{address} is {what}; {remedy}")]
    UnusableAddress { address: IpAddr, what: &'static str, remedy: &'static str },
    #[error("{address} has no port; give one between 1 and 65535")]
    PortZero { address: SocketAddr },
    #[error("{prefix} has bits set behind its length; write {network}")]
    HostBits { prefix: String, network: String },
    #[error("the range {range:?} runs backwards; write the lower end first")]
    Backwards { range: String },
    #[error(
        "the pools together would hold more than {most} addresses with {item:?}; \
         use a longer prefix or a shorter range"
    )]
    TooManyAddresses { item: String, most: usize },
    #[error("{address} is in [pool.{other}] already; an address belongs to exactly one pool, once")]
    OverlappingPools { address: IpAddr, other: String },
    #[error(
        "{address} is listened on by [service.{other}] already; \
         give each service an address and port of its own"
    )]
    DuplicateListen { address: SocketAddr, other: String },
    #[error(
        "{address} lies in the ports {ports} that [pool.{pool}] leases on that address; \
         listen on another port or narrow the pool's `ports`"
    )]
    ListenInPool { address: SocketAddr, pool: String, ports: String },
    #[error(
        "{address} is also a listening address of [service.{service}], so flows would loop; \
         name the origin's own address"
    )]
    OriginIsService { address: SocketAddr, service: String },
    #[error(
        "{address} is also an address of [pool.{pool}], so flows would loop; \
         take it out of the pool or name another origin address"
    )]
    OriginInPool { address: SocketAddr, pool: String },
    #[error(
        "{address} lies in the blocked prefix {prefix}, so its replies would be dropped; \
         take the prefix out of [block] or split it"
    )]
    OriginBlocked { address: SocketAddr, prefix: String },
    #[error(
        "`family = {choice:?}` leaves [origin.{origin}] without an address; add an {family} one"
    )]
    OriginWithoutFamily { origin: String, choice: &'static str, family: Family },
    #[error(
        "[service.{service}] reaches [origin.{origin}] over {family}, but [pool.{pool}] has no {family} \
         address; add one to the pool or set the origin's `family`"
    )]
    PoolWithoutFamily { service: String, origin: String, pool: String, family: Family },
    #[error(
        "[service.{service}] has {family} clients and [origin.{origin}] follows the client's family, \
         but has no {family} address; add one or set `family = \"any\"`"
    )]
    ClientWithoutOrigin { service: String, origin: String, family: Family },
    #[error(
        "{address} is the ssh port, which the host is managed through; \
         choose another port, or set `allow-management = true` in this service if you mean it"
    )]
    ManagementPort { address: SocketAddr },
    #[error(
        "{prefix} blocks every {family} address, the host's ssh clients included; name smaller prefixes"
    )]
    BlocksAll { prefix: String, family: Family },
    #[error("`ring = {ring}` is not a power of two; use {nearest}")]
    RingSize { ring: u32, nearest: u32 },
    #[error(
        "`frames = {frames}` are too few for `ring = {ring}`: a worker fills the receive ring and \
         needs as many again to send; use at least {least} frames or a smaller ring"
    )]
    TooFewFrames { frames: u32, ring: u32, least: u32 },

    #[error("this host has no network interface `{name}`; {hint}")]
    NoInterface { name: String, hint: Hint },
    #[error("{name} is not an Ethernet interface; name one that is")]
    NotEthernet { name: String },
    #[error(
        "cannot count the receive queues of {name}: /sys shows another network namespace; \
         mount its own /sys, as `ip netns exec` does"
    )]
    QueuesUnknown { name: String },
    #[error(
        "`queues = {queues}`, but {name} has {active} active receive queues; \
         lower it, or raise the NIC's with `ethtool -L {name} combined {queues}`"
    )]
    TooFewQueues { name: String, queues: u32, active: u32 },
    #[error(
        "{name} has {active} active receive queues, headgate serves at most {most}; \
         lower the NIC's with `ethtool -L {name} combined {most}`"
    )]
    TooManyQueues { name: String, active: u32, most: u32 },
    #[error(
        "{address} would be taken from the program that listens on {listener} on this host; \
         bind that program to other addresses or ports, or choose another listening address here"
    )]
    ListenerLosesService { address: SocketAddr, listener: SocketAddr },
    #[error(
        "[pool.{pool}] leases ports {ports} of {address}, and would take the traffic of the program that \
         listens on {listener} on this host; bind that program to other addresses, or narrow the pool's `ports`"
    )]
    ListenerInPool { pool: String, ports: String, address: IpAddr, listener: SocketAddr },
    #[error(
        "{address} is an address of this host, and origins are only reached through a NIC; \
         name the address of another host"
    )]
    OriginIsLocal { address: SocketAddr },
}

/// Names come from the file as they are: a line break or an escape sequence in them must not reach the terminal, and
/// of a long one only the ends are told.
fn one_line(problem: &Problem) -> String {
    let escape = |c: char| match c.is_control() {
        true => c.escape_default().to_string(),
        false => c.to_string(),
    };
    let line: String = problem.to_string().chars().map(escape).collect();
    if line.len() <= MAX_LINE {
        return line;
    }
    let start = line.floor_char_boundary(MAX_LINE / 2);
    let end = line.ceil_char_boundary(line.len() - MAX_LINE / 2);
    format!("{} … {}", &line[..start], &line[end..])
}

/// The longest message, in bytes.
const MAX_LINE: usize = 600;

/// What to write in place of something unknown.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Hint {
    /// This is so close to it that it was probably meant.
    DidYouMean(String),
    /// These are all that is known, perhaps none.
    Known(Vec<String>),
}

impl Hint {
    /// The hint for `unknown`, where `known` would have been understood.
    pub fn new<S: AsRef<str>>(unknown: &str, known: impl IntoIterator<Item = S>) -> Self {
        let known: Vec<String> = known.into_iter().map(|name| name.as_ref().to_owned()).collect();
        let nearest = known
            .iter()
            .map(|name| (strsim::damerau_levenshtein(unknown, name), name))
            .min()
            .filter(|(distance, name)| *distance <= 1 + name.chars().count() / 4);
        match nearest {
            Some((_, name)) => Self::DidYouMean(name.clone()),
            None => Self::Known(known),
        }
    }
}

impl fmt::Display for Hint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::DidYouMean(name) => write!(f, "did you mean `{name}`?"),
            Self::Known(names) if names.is_empty() => f.write_str("there is none"),
            Self::Known(names) => {
                const SHOWN: usize = 16;
                write!(f, "there is {}", names[..names.len().min(SHOWN)].join(", "))?;
                if names.len() > SHOWN {
                    write!(f, " and {} more", names.len() - SHOWN)
                } else {
                    Ok(())
                }
            }
        }
    }
}
