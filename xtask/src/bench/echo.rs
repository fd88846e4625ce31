//! The floor that every figure stands on: frames that AF_XDP receives, turns round and sends back,
//! with nothing in between. headgate's own hidden subcommands do it, on the same rings.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};

use crate::lab::address::{CLIENT, GATEWAY_CLIENT_SIDE};
use crate::lab::{CLIENT_NIC, GATEWAY_CLIENT_NIC, Lab, headgate_binary};
use crate::process;

/// Frames of one size there and back.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Echo {
    /// Length of a frame in bytes, without its check sequence.
    pub(super) size: u32,
    /// What came of it; the reason when there are no figures.
    pub(super) outcome: Result<Counts, String>,
}

/// Frames, and the time in which they were sent.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub(super) struct Counts {
    /// Frames sent by the generator.
    pub(super) sent: u64,
    /// Of these, frames that the echo received.
    pub(super) received: u64,
    /// Of these, frames that it sent back.
    pub(super) returned: u64,
    /// How long the generator sent.
    pub(super) seconds: f64,
}

/// What `headgate bench generate` and `headgate bench echo` say, in JSON on one line.
#[derive(Clone, Copy, Debug, PartialEq, Deserialize)]
struct Said {
    received: u64,
    transmitted: u64,
    seconds: f64,
}

/// Sends frames of `size` bytes from the client to an echo on the gateway's first queue. An echo or
/// a generator that fails is no error, but an outcome without figures.
pub(super) fn measure(lab: &Lab, size: u32, length: Duration) -> Result<Echo> {
    let outcome = there_and_back(lab, size, length.as_secs().max(1));
    Ok(Echo { size, outcome: outcome.map_err(|error| format!("{error:#}")) })
}

fn there_and_back(lab: &Lab, size: u32, seconds: u64) -> Result<Counts> {
    let binary = headgate_binary();
    let binary = binary.to_string_lossy();
    let to = SocketAddr::new(GATEWAY_CLIENT_SIDE[0], 9).to_string();
    let from = SocketAddr::new(CLIENT[0], 9).to_string();
    let station = format!("/sys/class/net/{GATEWAY_CLIENT_NIC}/address");
    let station = process::output(lab.gateway().command("cat").arg(station))?;
    // The echo outlives the generator, so that it gets all of its frames.
    let longer = (seconds + 2).to_string();
    let arguments =
        ["bench", "echo", "--nic", GATEWAY_CLIENT_NIC, "--seconds", &longer, "--address", &to];
    let mut echo = lab.spawn(lab.gateway(), &binary, &arguments)?;
    if let Some(status) = process::wait_for(Duration::from_millis(700), || echo.ended().ok()?) {
        bail!("the echo ended at once, {status}: {}", echo.log_tail());
    }
    let mut generate = lab.client().command(&binary);
    generate
        .args(["bench", "generate", "--nic", CLIENT_NIC, "--size", &size.to_string()])
        .args(["--seconds", &seconds.to_string(), "--mac", station.trim()])
        .args(["--from", &from, "--to", &to]);
    let generated = parse(&process::output(&mut generate)?)?;
    process::wait_for(Duration::from_secs(5), || echo.ended().ok()?)
        .context("the echo does not end")?;
    let echoed = parse(&echo.log())?;
    Ok(Counts {
        sent: generated.transmitted,
        received: echoed.received,
        returned: echoed.transmitted,
        seconds: generated.seconds,
    })
}

fn parse(said: &str) -> Result<Said> {
    let line = said.lines().find(|line| line.starts_with('{')).context("it printed no figures")?;
    serde_json::from_str(line).with_context(|| format!("it printed {line}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_are_read() {
        let said = "queue 0\n{\"received\":900,\"transmitted\":1000,\"seconds\":2.0,\"received_mpps\":1}\n";
        let read = Said { received: 900, transmitted: 1000, seconds: 2.0 };
        assert_eq!(parse(said).unwrap(), read);
        assert!(parse("nothing").is_err());
    }
}
