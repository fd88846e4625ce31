//! The floor that every figure stands on: frames that AF_XDP receives, turns round and sends back,
//! with nothing in between. headgate's own hidden subcommands do it, on the same rings.

use std::time::Duration;

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

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

/// What `headgate bench-generate` says, in JSON on one line.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Counts {
    /// Frames sent.
    pub(super) sent: u64,
    /// Frames that came back.
    pub(super) received: u64,
    /// How long it took.
    pub(super) seconds: f64,
}

/// Sends frames of `size` bytes from the client to an echo on the gateway's first queue. A headgate
/// without these subcommands is no error, but an outcome without figures.
pub(super) fn measure(lab: &Lab, size: u32, length: Duration) -> Result<Echo> {
    let binary = headgate_binary();
    let binary = binary.to_string_lossy();
    let mut echo = lab.spawn(
        lab.gateway(),
        &binary,
        &["bench-echo", "--nic", GATEWAY_CLIENT_NIC, "--queue", "0"],
    )?;
    // It takes a moment to bind; a program without the subcommand ends at once.
    if let Some(status) = process::wait_for(Duration::from_millis(500), || echo.ended().ok()?) {
        return Ok(Echo { size, outcome: Err(format!("bench-echo ended with {status}")) });
    }
    let mut generate = lab.client().command(&binary);
    generate.args(["bench-generate", "--nic", CLIENT_NIC, "--queue", "0"]).args([
        "--size",
        &size.to_string(),
        "--seconds",
        &length.as_secs().max(1).to_string(),
    ]);
    let outcome = process::output(&mut generate).and_then(|said| parse(&said));
    echo.stop(Duration::from_secs(5))?;
    Ok(Echo { size, outcome: outcome.map_err(|error| format!("{error:#}")) })
}

fn parse(said: &str) -> Result<Counts> {
    let line = said.lines().find(|line| line.starts_with('{')).context("it printed no figures")?;
    serde_json::from_str(line).with_context(|| format!("it printed {line}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_are_read() {
        let said = "queue 0, copy\n{\"sent\":1000,\"received\":900,\"seconds\":2.0,\"more\":1}\n";
        let counts = Counts { sent: 1000, received: 900, seconds: 2.0 };
        assert_eq!(parse(said).unwrap(), counts);
        assert!(parse("nothing").is_err());
    }
}
