//! What the client talks to: the origin itself, headgate, HAProxy, or nginx.

use std::fs;
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde::Serialize;

use crate::lab::address::{DIRECT_ORIGIN, origin4, vip4};
use crate::lab::{GatewayConfig, Headgate, Lab, Service, ServiceConfig};
use crate::process;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum Peer {
    Direct,
    Headgate,
    /// Mode http: reads requests and keeps connections to the origin.
    Haproxy,
    /// Mode tcp: copies bytes, a connection to the origin for each of a client's.
    HaproxyTcp,
    Nginx,
}

/// A peer that runs in the gateway's namespace.
pub(super) enum Running {
    Nothing,
    Headgate(Headgate),
    Service(Service),
}

impl Peer {
    const ALL: [Peer; 5] =
        [Peer::Direct, Peer::Headgate, Peer::Haproxy, Peer::HaproxyTcp, Peer::Nginx];

    /// The direct connection, and those named in `only` (all when it is empty).
    pub(super) fn chosen(only: &[String]) -> Result<Vec<Peer>> {
        if let Some(name) = only.iter().find(|name| !Peer::ALL.iter().any(|p| p.key() == *name)) {
            bail!("no peer {name}; there are {}", Peer::ALL.map(Peer::key).join(", "));
        }
        let wanted = |peer: &Peer| {
            *peer == Peer::Direct || only.is_empty() || only.iter().any(|name| peer.key() == name)
        };
        Ok(Peer::ALL.into_iter().filter(wanted).collect())
    }

    fn key(self) -> &'static str {
        match self {
            Peer::Direct => "direct",
            Peer::Headgate => "headgate",
            Peer::Haproxy => "haproxy",
            Peer::HaproxyTcp => "haproxy-tcp",
            Peer::Nginx => "nginx",
        }
    }

    pub(super) fn name(self) -> &'static str {
        match self {
            Peer::Direct => "direct",
            Peer::Headgate => "headgate (mode tcp)",
            Peer::Haproxy => "HAProxy (mode http)",
            Peer::HaproxyTcp => "HAProxy (mode tcp)",
            Peer::Nginx => "nginx",
        }
    }

    /// Whether headgate is compared with it.
    pub(super) fn is_rival(self) -> bool {
        !matches!(self, Peer::Direct | Peer::Headgate)
    }

    /// Where the client finds it.
    pub(super) fn target(self) -> SocketAddr {
        let address = match self {
            Peer::Direct => DIRECT_ORIGIN,
            Peer::Headgate => vip4(0),
            Peer::Haproxy | Peer::HaproxyTcp => vip4(2),
            Peer::Nginx => vip4(3),
        };
        SocketAddr::new(address, 80)
    }

    pub(super) fn start(self, lab: &Lab) -> Result<Running> {
        let origin = SocketAddr::new(origin4(0), 80);
        let running = match self {
            Peer::Direct => Running::Nothing,
            Peer::Headgate => {
                let service = ServiceConfig::new("bench", self.target(), origin);
                let config = GatewayConfig::new(lab.queues(), vec![service]);
                Running::Headgate(lab.headgate(&config.render())?)
            }
            Peer::Haproxy => haproxy(lab, "http", self.target(), origin)?,
            Peer::HaproxyTcp => haproxy(lab, "tcp", self.target(), origin)?,
            Peer::Nginx => nginx(lab, self.target(), origin)?,
        };
        let up = || {
            let reach = || TcpStream::connect_timeout(&self.target(), Duration::from_secs(1));
            lab.client().enter(reach).ok()?.ok()
        };
        process::wait_for(Duration::from_secs(10), up)
            .with_context(|| format!("nothing answers at {}: {}", self.target(), running.log()))?;
        Ok(running)
    }
}

impl Running {
    fn log(&self) -> String {
        match self {
            Running::Nothing => String::new(),
            Running::Headgate(headgate) => headgate.log(),
            Running::Service(service) => service.log_tail(),
        }
    }

    pub(super) fn stop(&mut self) -> Result<()> {
        match self {
            Running::Nothing => Ok(()),
            Running::Headgate(headgate) => headgate.stop(Duration::from_secs(10)),
            Running::Service(service) => service.stop(Duration::from_secs(10)).map(drop),
        }
    }
}

fn haproxy(lab: &Lab, mode: &str, at: SocketAddr, origin: SocketAddr) -> Result<Running> {
    let http = match mode {
        "http" => "  option http-keep-alive\n  http-reuse always\n",
        _ => "",
    };
    let text = format!(
        "global
  nbthread 1
  maxconn 8000
defaults
  mode {mode}
  timeout connect 5s
  timeout client 60s
  timeout server 60s
{http}
frontend clients
  bind {at}
  default_backend origin
backend origin
  server origin {origin}
"
    );
    let file = lab.directory().join(format!("haproxy-{mode}.cfg"));
    fs::write(&file, text)?;
    let service = lab.spawn(lab.gateway(), "haproxy", &["-db", "-f", &file.to_string_lossy()])?;
    Ok(Running::Service(service))
}

fn nginx(lab: &Lab, at: SocketAddr, origin: SocketAddr) -> Result<Running> {
    let folder = lab.directory().join("proxy-nginx");
    fs::create_dir_all(folder.join("temp"))?;
    let here = folder.display();
    let text = format!(
        "user root;
worker_processes 1;
worker_rlimit_nofile 16384;
daemon off;
pid {here}/nginx.pid;
error_log {here}/error.log warn;
events {{ worker_connections 8192; }}
http {{
  access_log off;
  client_body_temp_path {here}/temp/body;
  proxy_temp_path {here}/temp/proxy;
  fastcgi_temp_path {here}/temp/fastcgi;
  uwsgi_temp_path {here}/temp/uwsgi;
  scgi_temp_path {here}/temp/scgi;
  keepalive_requests 100000000;
  upstream origin {{ server {origin}; keepalive 128; keepalive_requests 100000000; }}
  server {{
    listen {at} backlog=4096;
    location / {{
      proxy_pass http://origin;
      proxy_http_version 1.1;
      proxy_set_header Connection \"\";
      proxy_max_temp_file_size 0;
    }}
  }}
}}
"
    );
    let file = folder.join("nginx.conf");
    fs::write(&file, text)?;
    let error_log = folder.join("error.log");
    let arguments = ["-e", &error_log.to_string_lossy(), "-c", &file.to_string_lossy()];
    Ok(Running::Service(lab.spawn(lab.gateway(), "nginx", &arguments)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_direct_connection_is_always_measured() {
        assert_eq!(Peer::chosen(&[]).unwrap(), Peer::ALL);
        let chosen = Peer::chosen(&["nginx".to_owned()]).unwrap();
        assert_eq!(chosen, [Peer::Direct, Peer::Nginx]);
        let error = Peer::chosen(&["envoy".to_owned()]).unwrap_err().to_string();
        assert!(error.contains("no peer envoy; there are direct, headgate"), "{error}");
    }

    #[test]
    fn proxies_do_not_share_a_listening_address_with_headgate() {
        for rival in Peer::ALL.into_iter().filter(|peer| peer.is_rival()) {
            assert_ne!(rival.target(), Peer::Headgate.target());
        }
    }
}
