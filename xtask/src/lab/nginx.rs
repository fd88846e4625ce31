//! nginx as an origin: files of known content, uploads, and a log of whom it saw.

use std::fmt::Write as _;
use std::fs;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, bail};

use super::estate::Estate;
use super::{Namespace, Service, pattern, read};
use crate::process;

/// How to run nginx.
#[derive(Clone, Debug)]
pub struct NginxConfig {
    /// Port of the plain HTTP listener, on every address of both families.
    pub port: u16,
    /// Port of the listener that expects the PROXY protocol before each connection's first byte.
    pub proxy_protocol_port: u16,
    /// Worker processes.
    pub workers: u32,
    /// Whether to write an access log.
    pub access_log: bool,
    /// Files to serve: name, length in bytes, seed of the [`pattern`].
    pub files: Vec<(String, u64, u64)>,
}

impl Default for NginxConfig {
    fn default() -> NginxConfig {
        NginxConfig {
            port: 80,
            proxy_protocol_port: 81,
            workers: 1,
            access_log: true,
            files: Vec::new(),
        }
    }
}

/// A running nginx. It answers `GET /small` with 45 bytes, `GET /NAME` with a file, and stores what
/// is `PUT` to `/upload/NAME`.
#[derive(Debug)]
pub struct Nginx {
    service: Service,
    folder: PathBuf,
}

/// One request in nginx's access log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogLine {
    /// The address the connection came from.
    pub remote: IpAddr,
    /// Its port.
    pub remote_port: u16,
    /// The address the connection came to.
    pub server: IpAddr,
    /// Its port.
    pub server_port: u16,
    /// The client's address according to the PROXY protocol, and its port.
    pub proxied_for: Option<(IpAddr, u16)>,
    /// Status of the response.
    pub status: u16,
    /// Request method.
    pub method: String,
    /// Request target as sent.
    pub uri: String,
}

impl Nginx {
    pub(super) fn start(
        namespace: &Namespace,
        estate: &Arc<Estate>,
        config: &NginxConfig,
    ) -> Result<Nginx> {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let folder = estate.directory().join(format!("nginx-{number}"));
        for sub in ["www", "upload", "temp"] {
            fs::create_dir_all(folder.join(sub))?;
        }
        for (name, length, seed) in &config.files {
            pattern::write_file(&folder.join("www").join(name), *length, *seed)
                .with_context(|| format!("cannot write {name} for nginx"))?;
        }
        let file = folder.join("nginx.conf");
        fs::write(&file, render(config, &folder))?;
        let mut command = namespace.command("nginx");
        command.arg("-e").arg(folder.join("error.log")).arg("-c").arg(&file);
        let service = Service::start(estate, "nginx", command)?;
        let mut nginx = Nginx { service, folder };
        nginx.wait_until_listening()?;
        Ok(nginx)
    }

    /// The requests logged so far. nginx logs a request once its response has been sent.
    pub fn log(&self) -> Result<Vec<LogLine>> {
        let text = read(&self.folder.join("access.log"))?;
        // The last line may still be in the writing.
        let whole = text.rfind('\n').map_or("", |end| &text[..end]);
        whole.lines().map(parse_line).collect()
    }

    /// The log line of the request for `uri`, waiting for it a little.
    pub fn logged(&self, uri: &str) -> Result<LogLine> {
        let line = || self.log().ok()?.into_iter().find(|line| line.uri == uri);
        process::wait_for(Duration::from_secs(3), line)
            .with_context(|| format!("nginx has logged no request for {uri}"))
    }

    /// SHA-256 of the file stored by `PUT /upload/NAME`.
    pub fn upload_sha256(&self, name: &str) -> Result<String> {
        let file = self.folder.join("upload").join(name);
        pattern::sha256_of_file(&file).with_context(|| format!("nginx has stored no {name}"))
    }

    /// Removes the file stored by `PUT /upload/NAME`.
    pub fn remove_upload(&self, name: &str) -> Result<()> {
        Ok(fs::remove_file(self.folder.join("upload").join(name))?)
    }

    /// The process.
    pub fn service(&mut self) -> &mut Service {
        &mut self.service
    }

    fn wait_until_listening(&mut self) -> Result<()> {
        let pid = self.folder.join("nginx.pid");
        let ready = || pid.exists().then_some(Ok(()));
        let state = process::wait_for(Duration::from_secs(10), || match self.service.ended() {
            Ok(None) => ready(),
            Ok(Some(status)) => Some(Err(status.to_string())),
            Err(error) => Some(Err(error.to_string())),
        });
        if let Some(Ok(())) = state {
            return Ok(());
        }
        let said = process::tail(&self.folder.join("error.log"), 10);
        bail!("nginx does not start ({state:?}): {} {said}", self.service.log_tail())
    }
}

fn render(config: &NginxConfig, folder: &Path) -> String {
    let here = folder.display();
    let log = match config.access_log {
        true => format!("{here}/access.log lab"),
        false => "off".to_owned(),
    };
    let mut text = format!(
        "user root;
worker_processes {workers};
daemon off;
pid {here}/nginx.pid;
error_log {here}/error.log warn;
worker_rlimit_nofile 16384;
events {{ worker_connections 8192; }}
http {{
  log_format lab '$remote_addr $remote_port $server_addr $server_port [$proxy_protocol_addr] '
    '[$proxy_protocol_port] $status $request_method $request_uri';
  access_log {log};
  client_body_temp_path {here}/temp/body;
  proxy_temp_path {here}/temp/proxy;
  fastcgi_temp_path {here}/temp/fastcgi;
  uwsgi_temp_path {here}/temp/uwsgi;
  scgi_temp_path {here}/temp/scgi;
  client_max_body_size 0;
  default_type application/octet-stream;
  sendfile on;
  tcp_nopush on;
  keepalive_requests 100000000;
",
        workers = config.workers,
    );
    for (port, extra) in [(config.port, ""), (config.proxy_protocol_port, " proxy_protocol")] {
        let _ = write!(
            text,
            "  server {{
    listen {port} backlog=4096{extra};
    listen [::]:{port} ipv6only=on backlog=4096{extra};
    root {here}/www;
    location = /small {{ return 200 \"{SMALL}\"; }}
    location /upload/ {{ root {here}; dav_methods PUT; }}
  }}
"
        );
    }
    text.push_str("}\n");
    text
}

fn parse_line(line: &str) -> Result<LogLine> {
    let fields: Vec<&str> = line.splitn(9, ' ').collect();
    let [remote, remote_port, server, server_port, proxied, proxied_port, status, method, uri] =
        fields[..]
    else {
        bail!("nginx's log has a line of another form: {line}");
    };
    let inner = |field: &str| field.trim_matches(['[', ']']).to_owned();
    let proxied_for = match inner(proxied).as_str() {
        "" | "-" => None,
        address => Some((address.parse()?, inner(proxied_port).parse()?)),
    };
    Ok(LogLine {
        remote: remote.parse()?,
        remote_port: remote_port.parse()?,
        server: server.parse()?,
        server_port: server_port.parse()?,
        proxied_for,
        status: status.parse()?,
        method: method.to_owned(),
        uri: uri.to_owned(),
    })
}

/// What `GET /small` answers: 45 bytes.
const SMALL: &str = "All is well at the origin. Have a nice day. \\n";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_small_body_has_45_bytes() {
        assert_eq!(SMALL.replace("\\n", "\n").len(), 45);
    }

    #[test]
    fn log_lines_of_both_listeners_are_read() {
        let plain = parse_line("192.0.2.17 20017 192.0.2.80 80 [] [] 200 GET /a?b=c d").unwrap();
        assert_eq!(plain.remote.to_string(), "192.0.2.17");
        assert_eq!((plain.remote_port, plain.server_port, plain.status), (20017, 80, 200));
        assert_eq!((plain.method.as_str(), plain.uri.as_str()), ("GET", "/a?b=c d"));
        assert_eq!(plain.proxied_for, None);
        let proxied = parse_line(
            "2001:db8:2::10 20001 2001:db8:2::80 81 [2001:db8:1::2] [4711] 201 PUT /upload/x",
        )
        .unwrap();
        assert_eq!(proxied.proxied_for, Some(("2001:db8:1::2".parse().unwrap(), 4711)));
        assert!(parse_line("what is this").is_err());
    }
}
