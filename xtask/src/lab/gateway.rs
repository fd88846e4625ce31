//! headgate itself in a lab: its configuration, its process, what it says about itself.

use std::fmt::Write as _;
use std::fs;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use nix::sys::signal::Signal;
use serde_json::Value;

use super::address::{POOL, origin4, origin6, pool4, pool6, vip4, vip6};
use super::estate::Estate;
use super::network::{GATEWAY_CLIENT_NIC, GATEWAY_ORIGIN_NIC};
use super::{Namespace, Service, target_directory};
use crate::process;

/// A configuration for the lab's two interfaces and one pool of all its pool addresses.
#[derive(Clone, Debug)]
pub struct GatewayConfig {
    /// Queues to work on, for each interface.
    pub queues: u32,
    /// How the pool chooses: `hash`, `round-robin` or `random`.
    pub method: &'static str,
    /// How long to finish flows after SIGTERM.
    pub drain: Duration,
    /// How old a worker's heartbeat may be before the XDP program stops redirecting to it.
    pub heartbeat_limit: Duration,
    /// The services, each with an origin of its own.
    pub services: Vec<ServiceConfig>,
    /// More text for the end of the file.
    pub extra: String,
}

/// One service and its origin, both under one name.
#[derive(Clone, Debug)]
pub struct ServiceConfig {
    /// Name of the service and of its origin.
    pub name: String,
    /// Addresses that clients connect to.
    pub listen: Vec<SocketAddr>,
    /// The origin's addresses.
    pub origin: Vec<SocketAddr>,
    /// `any`, `v4`, `v6` or `client`.
    pub family: &'static str,
    /// Whether the origin is told the client's address by the PROXY protocol, version 2.
    pub proxy_protocol: bool,
    /// What happens to packets while headgate hangs: `pass` or `drop`.
    pub on_dead: &'static str,
}

impl ServiceConfig {
    /// A service with one listening address and one origin address.
    pub fn new(name: &str, listen: SocketAddr, origin: SocketAddr) -> ServiceConfig {
        ServiceConfig {
            name: name.to_owned(),
            listen: vec![listen],
            origin: vec![origin],
            family: "any",
            proxy_protocol: false,
            on_dead: "pass",
        }
    }
}

impl GatewayConfig {
    /// `services` on `queues` queues. A lab's machine is small and busy: a worker may wait long for
    /// its turn, and is not to be taken for one that hangs.
    pub fn new(queues: u32, services: Vec<ServiceConfig>) -> GatewayConfig {
        GatewayConfig {
            queues,
            method: "hash",
            drain: Duration::from_secs(2),
            heartbeat_limit: Duration::from_secs(10),
            services,
            extra: String::new(),
        }
    }

    /// The text of the configuration file; `{admin}` stands where [`super::Lab::headgate`] puts the
    /// path of the admin socket.
    pub fn render(&self) -> String {
        let mut text = format!(
            "[gateway]\nadmin = \"{{admin}}\"\ndrain = \"{}ms\"\nheartbeat-limit = \"{}ms\"\n\n",
            self.drain.as_millis(),
            self.heartbeat_limit.as_millis()
        );
        for nic in [GATEWAY_CLIENT_NIC, GATEWAY_ORIGIN_NIC] {
            let _ = writeln!(text, "[nic.{nic}]\nqueues = {}\n", self.queues);
        }
        let _ = writeln!(
            text,
            "[pool.main]\naddresses = [\"{}-{}\", \"{}-{}\"]\nports = \"20000-59999\"\n\
             method = \"{}\"\n",
            pool4(0),
            pool4(POOL - 1),
            pool6(0),
            pool6(POOL - 1),
            self.method
        );
        for service in &self.services {
            text += &service.render();
        }
        text + &self.extra
    }
}

impl ServiceConfig {
    fn render(&self) -> String {
        let name = &self.name;
        let mut text = format!(
            "[origin.{name}]\naddresses = {}\nfamily = \"{}\"\n",
            list(&self.origin),
            self.family
        );
        if self.proxy_protocol {
            text += "proxy-protocol = \"v2\"\n";
        }
        let _ = writeln!(
            text,
            "\n[service.{name}]\nmode = \"tcp\"\nlisten = {}\norigin = \"{name}\"\npool = \"main\"\n\
             on-dead = \"{}\"\n",
            list(&self.listen),
            self.on_dead
        );
        text
    }
}

/// One service for each pair of address families, client's side first: `v4-v4`, `v4-v6`, `v6-v4`,
/// `v6-v6`. They listen on port 80 of the lab's first two VIPs of each family; the origins are the
/// lab's first addresses, at `port`.
pub fn four_pairs(port: u16) -> Vec<ServiceConfig> {
    let at = |address: IpAddr, port| SocketAddr::new(address, port);
    vec![
        ServiceConfig::new("v4-v4", at(vip4(0), 80), at(origin4(0), port)),
        ServiceConfig::new("v4-v6", at(vip4(1), 80), at(origin6(0), port)),
        ServiceConfig::new("v6-v4", at(vip6(0), 80), at(origin4(0), port)),
        ServiceConfig::new("v6-v6", at(vip6(1), 80), at(origin6(0), port)),
    ]
}

/// The headgate program that labs run: `$HEADGATE_BIN`, else the release build of this workspace.
pub fn headgate_binary() -> PathBuf {
    std::env::var_os("HEADGATE_BIN")
        .map_or_else(|| target_directory().join("release/headgate"), PathBuf::from)
}

/// A running headgate.
#[derive(Debug)]
pub struct Headgate {
    service: Service,
    socket: PathBuf,
}

impl Headgate {
    pub(super) fn start(
        namespace: &Namespace,
        estate: &Arc<Estate>,
        config: &str,
        arguments: &[&str],
    ) -> Result<Headgate> {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let binary = headgate_binary();
        ensure!(
            binary.is_file(),
            "{} is missing; `cargo build --release -p headgate` makes it",
            binary.display()
        );
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let socket = estate.directory().join("admin.sock");
        let file = estate.directory().join(format!("headgate-{number}.toml"));
        fs::write(&file, config.replace("{admin}", &socket.to_string_lossy()))?;
        let mut command = namespace.command(&binary.to_string_lossy());
        command.arg("run").arg("--config").arg(&file).args(arguments);
        let service = Service::start(estate, "headgate", command)?;
        let mut headgate = Headgate { service, socket };
        headgate.wait_until_running()?;
        Ok(headgate)
    }

    /// What `headgate status --json` says.
    pub fn status(&self) -> Result<Value> {
        let text = process::output(
            Command::new(headgate_binary())
                .args(["status", "--json", "--socket"])
                .arg(&self.socket),
        )?;
        serde_json::from_str(&text).with_context(|| format!("headgate status said {text}"))
    }

    /// What `headgate status` says to people.
    pub fn status_text(&self) -> Result<String> {
        process::output(
            Command::new(headgate_binary()).args(["status", "--socket"]).arg(&self.socket),
        )
    }

    /// How often something happened to its sessions, by the name that `status` gives it.
    pub fn event(&self, name: &str) -> Result<u64> {
        let events = &self.status()?["events"];
        events[name].as_u64().with_context(|| format!("status knows no event {name}: {events}"))
    }

    /// Waits until it serves nobody and every frame of every worker is accounted for, with none in
    /// work or on its way out. An error with the last status when that does not come within `limit`.
    pub fn settle(&self, limit: Duration) -> Result<Value> {
        let settled = || self.status().ok().filter(is_settled);
        match process::wait_for(limit, settled) {
            Some(status) => Ok(status),
            None => bail!("headgate does not settle within {limit:?}: {}", self.status()?),
        }
    }

    /// The path of its admin socket.
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// Everything it has logged.
    pub fn log(&self) -> String {
        self.service.log()
    }

    /// Its process id.
    pub fn pid(&self) -> i32 {
        self.service.pid()
    }

    /// How it ended, when it has.
    pub fn ended(&mut self) -> Result<Option<ExitStatus>> {
        self.service.ended()
    }

    /// SIGTERM, and waits for the end; an exit status other than 0 is an error.
    pub fn stop(&mut self, patience: Duration) -> Result<()> {
        let status = self.service.stop(patience)?;
        ensure!(status.success(), "headgate ended with {status}:\n{}", self.service.log_tail());
        Ok(())
    }

    /// SIGKILL, and waits for the end.
    pub fn kill(&mut self) -> Result<()> {
        self.service.kill().map(drop)
    }

    /// SIGSTOP: it hangs until [`Headgate::resume`].
    pub fn pause(&mut self) -> Result<()> {
        self.service.signal(Signal::SIGSTOP)
    }

    /// SIGCONT.
    pub fn resume(&mut self) -> Result<()> {
        self.service.signal(Signal::SIGCONT)
    }

    fn wait_until_running(&mut self) -> Result<()> {
        let own = i64::from(self.pid());
        let state = process::wait_for(Duration::from_secs(20), || match self.service.ended() {
            Ok(None) => {
                let status = self.status().ok()?;
                (status["state"] == "running" && status["pid"] == own).then_some(Ok(()))
            }
            Ok(Some(status)) => Some(Err(status.to_string())),
            Err(error) => Some(Err(error.to_string())),
        });
        match state {
            Some(Ok(())) => Ok(()),
            Some(Err(end)) => bail!("headgate ended at once, {end}:\n{}", self.service.log_tail()),
            None => bail!("headgate does not say that it runs:\n{}", self.service.log_tail()),
        }
    }
}

fn is_settled(status: &Value) -> bool {
    let Some(workers) = status["workers"].as_array() else { return false };
    !workers.is_empty()
        && workers.iter().all(|worker| {
            let frames = &worker["frames"];
            let idle = |place: &str| frames[place] == 0;
            worker["sessions"] == 0
                && frames["conserved"] == true
                && idle("held")
                && idle("sending")
        })
}

fn list(addresses: &[SocketAddr]) -> String {
    let quoted: Vec<String> = addresses.iter().map(|a| format!("\"{a}\"")).collect();
    format!("[{}]", quoted.join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settled_means_nobody_served_and_no_frame_under_way() {
        let status = |sessions: u32, sending: u32, conserved: bool| {
            let frames = serde_json::json!(
                {"total": 8, "free": 4, "receiving": 4, "sending": sending, "held": 0, "conserved": conserved}
            );
            serde_json::json!({"workers": [{"sessions": sessions, "frames": frames}]})
        };
        assert!(is_settled(&status(0, 0, true)));
        for unsettled in [status(1, 0, true), status(0, 1, true), status(0, 0, false)] {
            assert!(!is_settled(&unsettled));
        }
        assert!(!is_settled(&serde_json::json!({"workers": []})));
    }

    #[test]
    fn a_configuration_names_everything() {
        let text = GatewayConfig::new(4, four_pairs(80)).render();
        for part in [
            "admin = \"{admin}\"\ndrain = \"2000ms\"\nheartbeat-limit = \"10000ms\"\n",
            "[nic.gc]\nqueues = 4\n\n[nic.go]\nqueues = 4\n",
            "addresses = [\"192.0.2.16-192.0.2.31\", \"2001:db8:2::10-2001:db8:2::1f\"]",
            "[origin.v6-v4]\naddresses = [\"192.0.2.80:80\"]\nfamily = \"any\"\n\n\
             [service.v6-v4]\nmode = \"tcp\"\nlisten = [\"[2001:db8:1::80]:80\"]\n",
        ] {
            assert!(text.contains(part), "{part}\nis not in\n{text}");
        }
    }
}
