//! curl as the lab's client: one transfer, and how it ended.

use std::net::SocketAddr;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use super::{Namespace, pattern};

/// A transfer by curl.
#[derive(Clone, Debug)]
pub struct Transfer {
    /// curl's exit code, as curl(1) lists them: 0 is success, 7 no connection, 18 a body cut short,
    /// 28 out of time, 52 no answer at all, 56 reset.
    pub exit: i32,
    /// What curl said of a failure.
    pub error: String,
    /// Status of the response, 0 when there was none.
    pub status: u16,
    /// The address curl talked to.
    pub remote: Option<SocketAddr>,
    /// The address it talked from.
    pub local: Option<SocketAddr>,
    /// Length of the response's body as far as it came.
    pub length: u64,
    /// SHA-256 of that, in hexadecimal.
    pub sha256: String,
    /// The start of the body, at most 256 bytes.
    pub beginning: String,
}

impl Transfer {
    /// Gets `url` from inside `namespace`.
    pub fn get(namespace: &Namespace, url: &str, limit: Duration) -> Result<Transfer> {
        Transfer::with(namespace, &[], url, limit)
    }

    /// Puts the contents of `file` to `url`.
    pub fn put(namespace: &Namespace, file: &Path, url: &str, limit: Duration) -> Result<Transfer> {
        Transfer::with(namespace, &["--upload-file", &file.to_string_lossy()], url, limit)
    }

    /// Runs curl with more arguments.
    pub fn with(
        namespace: &Namespace,
        arguments: &[&str],
        url: &str,
        limit: Duration,
    ) -> Result<Transfer> {
        let mut command = namespace.command("curl");
        command
            .args(["--silent", "--show-error", "--globoff", "--noproxy", "*"])
            .args(["--max-time", &limit.as_secs_f64().to_string()])
            .args(["--write-out", FORMAT])
            .args(arguments)
            .arg(url);
        run(&mut command)
    }

    /// The transfer when it succeeded with a status from 200 to 299; otherwise an error that tells
    /// how it failed.
    pub fn success(self) -> Result<Transfer> {
        ensure!(
            self.exit == 0 && (200..300).contains(&self.status),
            "curl exit {}, status {}, {} bytes from {:?}: {}",
            self.exit,
            self.status,
            self.length,
            self.remote,
            self.error
        );
        Ok(self)
    }
}

fn run(command: &mut Command) -> Result<Transfer> {
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .context("cannot start curl")?;
    let mut body = Beginning { kept: Vec::new(), from: child.stdout.take().context("no pipe")? };
    let (sha256, length) = pattern::sha256_of(&mut body)?;
    let beginning = String::from_utf8_lossy(&body.kept).into_owned();
    let output = child.wait_with_output()?;
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    let exit = output.status.code().unwrap_or(-1);
    Ok(Transfer { sha256, length, beginning, ..parse(&said, exit)? })
}

/// Passes bytes on and keeps the first of them.
struct Beginning<R> {
    kept: Vec<u8>,
    from: R,
}

impl<R: std::io::Read> std::io::Read for Beginning<R> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let count = self.from.read(buffer)?;
        let keep = (256 - self.kept.len()).min(count);
        self.kept.extend_from_slice(&buffer[..keep]);
        Ok(count)
    }
}

/// Reads what curl wrote to standard error: complaints first, then the line of [`FORMAT`].
fn parse(said: &str, exit: i32) -> Result<Transfer> {
    let (error, facts) = said.rsplit_once(MARK).with_context(|| format!("curl said {said:?}"))?;
    let fields: Vec<&str> = facts.trim().split('|').collect();
    let [status, remote, remote_port, local, local_port] = fields[..] else {
        anyhow::bail!("curl said {facts:?}");
    };
    let at = |address: &str, port: &str| {
        Some(SocketAddr::new(address.parse().ok()?, port.parse().ok()?))
    };
    Ok(Transfer {
        exit,
        error: error.trim().to_owned(),
        status: status.parse()?,
        remote: at(remote, remote_port),
        local: at(local, local_port),
        length: 0,
        sha256: String::new(),
        beginning: String::new(),
    })
}

const MARK: &str = "@facts@";
const FORMAT: &str =
    "%{stderr}@facts@%{http_code}|%{remote_ip}|%{remote_port}|%{local_ip}|%{local_port}\n";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_curl_says_is_read() {
        let good = parse("@facts@200|2001:db8:1::80|80|2001:db8:1::2|51000\n", 0).unwrap();
        assert_eq!(good.remote.unwrap().to_string(), "[2001:db8:1::80]:80");
        assert_eq!(good.local.unwrap().port(), 51000);
        assert!(good.success().is_ok());
        let bad = parse("curl: (7) Failed to connect\n@facts@000||0||0\n", 7).unwrap();
        assert_eq!((bad.remote, bad.status), (None, 0));
        let error = bad.success().unwrap_err().to_string();
        assert!(error.contains("curl exit 7") && error.contains("Failed to connect"), "{error}");
        assert!(parse("Segmentation fault", 139).is_err());
    }
}
