//! A network of namespaces on this machine: a client, the gateway's host, and the origins.
//!
//! ```text
//!   client                     gateway                         origin
//!   c0 ─────────────────────── gc        go ────────────────── o0
//!   198.51.100.2               198.51.100.1, VIPs .80 and up   192.0.2.80 and up
//!   2001:db8:1::2              2001:db8:1::1, VIPs ::80        2001:db8:2::80 and up
//!                              192.0.2.1, pool .16 to .31
//!                              2001:db8:2::1, pool ::10 to ::1f
//! ```
//!
//! Labs stand side by side, each under its own name. A [`Lab`] that goes out of scope, or whose
//! process is told to end (SIGINT, SIGTERM), takes its processes, namespaces and files along; what
//! a killed process left behind is removed by the next lab, and by [`remove`].

pub mod address;
mod estate;
mod gateway;
mod namespace;
mod network;
mod nginx;
mod origin;
pub mod pattern;
mod service;
mod transfer;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::{Context, Result, ensure};

use estate::Estate;
pub use gateway::{GatewayConfig, Headgate, ServiceConfig, four_pairs, headgate_binary};
pub use namespace::Namespace;
pub use network::{
    CLIENT_NIC, DIRECT_NIC, GATEWAY_CLIENT_NIC, GATEWAY_ORIGIN_NIC, OFFLOADS_OFF, ORIGIN_NIC,
};
pub use nginx::{LogLine, Nginx, NginxConfig};
pub use origin::{Behaviour, Origin};
pub use service::Service;
pub use transfer::Transfer;

/// How to build a lab.
#[derive(Clone, Debug)]
pub struct LabConfig {
    /// Name of the lab; `None` makes one up that no other lab has.
    pub name: Option<String>,
    /// Receive and transmit queues of every interface.
    pub queues: u32,
    /// MTU of every link, in bytes.
    pub mtu: u32,
    /// Also connect client and origin directly, for measurements beside the gateway.
    pub direct: bool,
}

impl Default for LabConfig {
    fn default() -> LabConfig {
        LabConfig { name: None, queues: 2, mtu: 1500, direct: false }
    }
}

/// A lab that stands.
#[derive(Debug)]
pub struct Lab {
    name: String,
    queues: u32,
    client: Namespace,
    gateway: Namespace,
    origin: Namespace,
    estate: Arc<Estate>,
}

impl Lab {
    /// Builds a lab. Needs root.
    ///
    /// # Errors
    /// When not root, when a lab of that name stands, or when a tool (`ip`, `ethtool`, `ping`) is
    /// missing or refuses.
    pub fn new(config: &LabConfig) -> Result<Lab> {
        ensure!(nix::unistd::geteuid().is_root(), "a lab needs root: it makes network namespaces");
        ensure!((1..=64).contains(&config.queues), "a lab has 1 to 64 queues");
        estate::sweep();
        let name = match &config.name {
            Some(name) => checked_name(name)?.to_owned(),
            None => made_up_name(),
        };
        let [client, gateway, origin] = namespaces(&name);
        let owned = [&client, &gateway, &origin].map(|n| n.name().to_owned());
        let estate = Estate::found(&name, owned)?;
        estate.building(|| network::build(&client, &gateway, &origin, config))?;
        Ok(Lab { name, queues: config.queues, client, gateway, origin, estate })
    }

    /// The lab's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Queues of every interface.
    pub fn queues(&self) -> u32 {
        self.queues
    }

    /// Where the client's programs run.
    pub fn client(&self) -> &Namespace {
        &self.client
    }

    /// Where headgate runs.
    pub fn gateway(&self) -> &Namespace {
        &self.gateway
    }

    /// Where the origins run.
    pub fn origin(&self) -> &Namespace {
        &self.origin
    }

    /// A folder of the lab's own, removed with it.
    pub fn directory(&self) -> &Path {
        self.estate.directory()
    }

    /// Starts `program` in `namespace` and looks after it: its output goes to a file in the lab's
    /// folder, and the lab ends it.
    pub fn spawn(
        &self,
        namespace: &Namespace,
        program: &str,
        arguments: &[&str],
    ) -> Result<Service> {
        let mut command = namespace.command(program);
        command.args(arguments);
        Service::start(&self.estate, program, command)
    }

    /// Starts nginx in the origin's namespace.
    pub fn nginx(&self, config: &NginxConfig) -> Result<Nginx> {
        Nginx::start(&self.origin, &self.estate, config)
    }

    /// Starts headgate in the gateway's namespace with `config` (the text of its configuration
    /// file, where `{admin}` stands for the path of the lab's admin socket) and waits until it says
    /// that it is running.
    pub fn headgate(&self, config: &str) -> Result<Headgate> {
        self.headgate_with(config, &[])
    }

    /// As [`Lab::headgate`], with more arguments for `headgate run`.
    pub fn headgate_with(&self, config: &str, arguments: &[&str]) -> Result<Headgate> {
        Headgate::start(&self.gateway, &self.estate, config, arguments)
    }

    /// Leaves the lab standing for other processes; [`remove`] takes it down.
    pub fn keep(self) -> Result<()> {
        self.estate.disown()
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        if let Err(error) = self.estate.demolish() {
            eprintln!("lab {}: {error:#}", self.name);
        }
    }
}

/// The namespaces of the lab called `name`, whether or not it stands: client, gateway, origin.
pub fn namespaces(name: &str) -> [Namespace; 3] {
    ["client", "gateway", "origin"].map(|part| Namespace::named(format!("hg-{name}-{part}")))
}

/// Takes down the lab called `name`, whoever made it. Returns whether there was one.
pub fn remove(name: &str) -> Result<bool> {
    estate::remove(checked_name(name)?)
}

/// Takes down every lab whose process is gone. Returns their names.
pub fn sweep() -> Vec<String> {
    estate::sweep()
}

/// Names of the labs that left a record: those that stand, and those that a killed process left.
pub fn names() -> Result<Vec<String>> {
    estate::names()
}

fn made_up_name() -> String {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    format!("{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed))
}

/// A name becomes part of file and namespace names: letters, digits and dashes only.
fn checked_name(name: &str) -> Result<&str> {
    let fits = |c: char| c.is_ascii_alphanumeric() || c == '-';
    ensure!(
        !name.is_empty() && name.len() <= 32 && name.chars().all(fits) && !name.starts_with('-'),
        "{name:?} cannot name a lab: use up to 32 letters, digits and dashes"
    );
    Ok(name)
}

/// The workspace's root folder.
pub fn workspace() -> PathBuf {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    here.parent().unwrap_or(here).to_path_buf()
}

/// The folder that cargo builds into.
pub fn target_directory() -> PathBuf {
    match std::env::var_os("CARGO_TARGET_DIR") {
        Some(folder) => workspace().join(folder),
        None => workspace().join("target"),
    }
}

/// Reads a file of the lab, with an error that names it.
pub(crate) fn read(file: &Path) -> Result<String> {
    std::fs::read_to_string(file).with_context(|| format!("cannot read {}", file.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_would_leave_their_folder_are_refused() {
        for bad in ["", "../x", "a b", "-rf", &"x".repeat(33)] {
            assert!(checked_name(bad).is_err(), "{bad:?}");
        }
        assert_eq!(checked_name("lab-2").unwrap(), "lab-2");
        assert_ne!(made_up_name(), made_up_name());
    }
}
