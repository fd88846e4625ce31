//! What `headgate status` tells.

use serde::{Deserialize, Serialize};

/// The state of the whole gateway.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Status {
    /// The version of the running program.
    pub version: String,
    /// Its process.
    pub pid: u32,
    /// Seconds since it began to serve.
    pub uptime_s: u64,
    /// `running` or `draining`.
    pub state: String,
    /// `xdp` or `packet`.
    pub port: String,
    /// The NICs, with the modes that were obtained.
    pub nics: Vec<NicStatus>,
    /// The services.
    pub services: Vec<ServiceStatus>,
    /// The workers.
    pub workers: Vec<WorkerStatus>,
    /// Packets dropped in user space, by reason, of all workers.
    pub drops: Counts,
    /// What happened to sessions, of all workers.
    pub events: Counts,
    /// What the TCP layer counted, of all workers.
    pub tcp: Counts,
}

/// Counters by name.
pub type Counts = std::collections::BTreeMap<String, u64>;

/// One NIC.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct NicStatus {
    /// Its name.
    pub name: String,
    /// How the XDP program is attached: `native`, `generic` or `none`.
    pub attach: String,
    /// How packets get to user space: `zero-copy`, `copy` or `af-packet`.
    pub bind: String,
    /// Queues that are served.
    pub queues: u32,
    /// What the XDP program decided, by verdict.
    pub verdicts: Counts,
}

/// One service.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ServiceStatus {
    /// Its name.
    pub name: String,
    /// Its mode.
    pub mode: String,
    /// The addresses it listens on.
    pub listen: Vec<String>,
    /// Its origin.
    pub origin: String,
    /// Its pool.
    pub pool: String,
}

/// One worker.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct WorkerStatus {
    /// Its number, which is the number of the queues it serves.
    pub index: usize,
    /// Clients being served.
    pub sessions: usize,
    /// Connections, towards clients and origins.
    pub connections: usize,
    /// Handshakes of clients that are not complete.
    pub half_open: usize,
    /// 4-tuples that rest in TIME-WAIT.
    pub time_wait: usize,
    /// Pool ports that are leased or rest.
    pub leases: usize,
    /// Where its frames are.
    pub frames: FrameStatus,
    /// Its rings.
    pub rings: Vec<RingStatus>,
    /// Packets from its receive rings.
    pub received: u64,
    /// Packets to its transmit rings.
    pub transmitted: u64,
}

/// Where a worker's frames are.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct FrameStatus {
    /// All of them.
    pub total: usize,
    /// Free.
    pub free: usize,
    /// With the kernel, to receive into.
    pub receiving: usize,
    /// With the kernel, to be sent.
    pub sending: usize,
    /// In work.
    pub held: usize,
    /// Whether all are accounted for.
    pub conserved: bool,
}

/// One NIC's rings of a worker.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct RingStatus {
    /// The NIC.
    pub nic: String,
    /// Its queue.
    pub queue: u32,
    /// Frames that wait for room in the transmit ring.
    pub backlog: usize,
    /// The kernel's and our counters.
    pub counters: Counts,
}

impl Status {
    /// The state as text for a terminal.
    #[must_use]
    pub fn to_text(&self) -> String {
        let mut lines = vec![format!(
            "headgate {} (pid {}) {} for {} s, port {}",
            self.version, self.pid, self.state, self.uptime_s, self.port
        )];
        lines.push("NICs:".into());
        for nic in &self.nics {
            lines.push(format!(
                "  {}: attach {}, bind {}, queues {}",
                nic.name, nic.attach, nic.bind, nic.queues
            ));
            push_counts(&mut lines, "    ", &nic.verdicts);
        }
        lines.push("services:".into());
        for service in &self.services {
            lines.push(format!(
                "  {} ({}): {} -> origin {}, pool {}",
                service.name,
                service.mode,
                service.listen.join(", "),
                service.origin,
                service.pool
            ));
        }
        lines.push("workers:".into());
        for worker in &self.workers {
            worker.push_text(&mut lines);
        }
        for (title, counts) in
            [("drops:", &self.drops), ("events:", &self.events), ("tcp:", &self.tcp)]
        {
            lines.push(title.into());
            push_counts(&mut lines, "  ", counts);
        }
        lines.push(String::new());
        lines.join("\n")
    }
}

impl WorkerStatus {
    fn push_text(&self, lines: &mut Vec<String>) {
        lines.push(format!(
            "  {}: {} sessions, {} connections, {} half-open, {} time-wait, {} leases, \
             {} packets in, {} out",
            self.index,
            self.sessions,
            self.connections,
            self.half_open,
            self.time_wait,
            self.leases,
            self.received,
            self.transmitted
        ));
        let frames = &self.frames;
        lines.push(format!(
            "    frames: {} = {} free + {} receiving + {} sending + {} held{}",
            frames.total,
            frames.free,
            frames.receiving,
            frames.sending,
            frames.held,
            if frames.conserved { "" } else { " (NOT CONSERVED: please report this)" }
        ));
        for ring in &self.rings {
            lines.push(format!("    {} queue {}: backlog {}", ring.nic, ring.queue, ring.backlog));
            push_counts(lines, "      ", &ring.counters);
        }
    }
}

/// One line for each counter that is not zero.
fn push_counts(lines: &mut Vec<String>, indent: &str, counts: &Counts) {
    let counted = counts.iter().filter(|(_, count)| **count > 0);
    lines.extend(counted.map(|(name, count)| format!("{indent}{name} {count}")));
}
