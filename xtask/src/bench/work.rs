//! The three kinds of work: requests on connections kept alive, a connection for each request, and
//! one bulk download.

use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde::Serialize;

use crate::lab::Lab;
use crate::process;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum Work {
    KeepAlive,
    NewConnections,
    Bulk,
}

impl Work {
    pub(super) const ALL: [Work; 3] = [Work::KeepAlive, Work::NewConnections, Work::Bulk];

    pub(super) fn title(self) -> &'static str {
        match self {
            Work::KeepAlive => "keep-alive requests (wrk -t1 -c64, 45-byte body)",
            Work::NewConnections => "new connections (the same with Connection: close)",
            Work::Bulk => "bulk download (100 MB, one connection)",
        }
    }

    pub(super) fn unit(self) -> &'static str {
        match self {
            Work::KeepAlive => "request",
            Work::NewConnections => "connection",
            Work::Bulk => "MB",
        }
    }

    /// The share of the better peer's added CPU that headgate may cost.
    pub(super) fn target(self) -> f64 {
        match self {
            Work::KeepAlive => 1.0 / 2.0,
            Work::NewConnections => 1.0 / 3.0,
            Work::Bulk => 2.0 / 3.0,
        }
    }
}

/// What was done in one run.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Outcome {
    pub(super) units: f64,
    /// Units a second.
    pub(super) rate: f64,
    /// Median and 99th percentile of the latency, where it was measured.
    pub(super) latency: Option<(Duration, Duration)>,
    /// Connections that failed and answers that were not as they should be.
    pub(super) errors: u64,
}

pub(super) fn keep_alive(lab: &Lab, target: SocketAddr, length: Duration) -> Result<Outcome> {
    wrk(lab, target, length, &[])
}

pub(super) fn new_connections(lab: &Lab, target: SocketAddr, length: Duration) -> Result<Outcome> {
    wrk(lab, target, length, &["-H", "Connection: close"])
}

/// `times` downloads, one after the other, on a connection each.
pub(super) fn bulk(lab: &Lab, target: SocketAddr, times: u32) -> Result<Outcome> {
    let (mut bytes, mut seconds) = (0.0, 0.0);
    for _ in 0..times {
        let said = process::output(
            lab.client()
                .command("curl")
                .args(["--silent", "--show-error", "--fail", "--max-time", "120", "--noproxy", "*"])
                .args(["--write-out", "%{size_download} %{time_total}", "--output"])
                .arg(Path::new("/dev/null"))
                .arg(format!("http://{target}/bulk")),
        )?;
        let (size, time) = said.split_once(' ').with_context(|| format!("curl said {said}"))?;
        let size: f64 = size.parse()?;
        ensure!(size == BULK_BYTES as f64, "the download has {size} bytes");
        bytes += size;
        seconds += time.trim().parse::<f64>()?;
    }
    let units = bytes / 1e6;
    Ok(Outcome { units, rate: units / seconds, latency: None, errors: 0 })
}

fn wrk(lab: &Lab, target: SocketAddr, length: Duration, more: &[&str]) -> Result<Outcome> {
    let said = process::output(
        lab.client()
            .command("wrk")
            .args(["-t1", "-c64", "--latency", "--timeout", "10s"])
            .arg(format!("-d{}s", length.as_secs().max(1)))
            .args(more)
            .arg(format!("http://{target}/small")),
    )?;
    parse_wrk(&said).with_context(|| format!("wrk said {said}"))
}

fn parse_wrk(said: &str) -> Option<Outcome> {
    let after =
        |label: &str| said.lines().find_map(|line| line.trim().strip_prefix(label)).map(str::trim);
    let units = said
        .lines()
        .find_map(|line| line.trim().split_once(" requests in "))
        .and_then(|(count, _)| count.parse().ok())?;
    let errors = after("Socket errors:").map_or(0, |counts| {
        counts.split([' ', ',']).filter_map(|word| word.parse::<u64>().ok()).sum()
    });
    let refused: u64 = after("Non-2xx or 3xx responses:").map_or(Some(0), |n| n.parse().ok())?;
    Some(Outcome {
        units,
        rate: after("Requests/sec:")?.parse().ok()?,
        latency: Some((parse_time(after("50%")?)?, parse_time(after("99%")?)?)),
        errors: errors + refused,
    })
}

/// wrk's `812.00us`, `1.13ms`, `2.01s`, `1.50m`.
fn parse_time(text: &str) -> Option<Duration> {
    let digits = text.find(|c: char| c.is_ascii_alphabetic())?;
    let value: f64 = text[..digits].parse().ok()?;
    let unit = match &text[digits..] {
        "us" => 1e-6,
        "ms" => 1e-3,
        "s" => 1.0,
        "m" => 60.0,
        "h" => 3600.0,
        _ => return None,
    };
    Duration::try_from_secs_f64(value * unit).ok()
}

pub(super) const BULK_BYTES: u64 = 100_000_000;

#[cfg(test)]
mod tests {
    use super::*;

    const SAID: &str = "Running 5s test @ http://198.51.100.82/small
  1 threads and 64 connections
  Thread Stats   Avg      Stdev     Max   +/- Stdev
    Latency     1.40ms    1.00ms  41.16ms   95.85%
    Req/Sec    46.82k     1.91k   49.58k    72.00%
  Latency Distribution
     50%    1.27ms
     75%    1.66ms
     90%  812.00us
     99%    2.05s
  232945 requests in 5.00s, 61.98MB read
  Socket errors: connect 0, read 3, write 0, timeout 2
  Non-2xx or 3xx responses: 7
Requests/sec:  46585.83
Transfer/sec:     12.40MB
";

    #[test]
    fn wrk_is_read() {
        assert_eq!(
            parse_wrk(SAID),
            Some(Outcome {
                units: 232_945.0,
                rate: 46585.83,
                latency: Some((Duration::from_micros(1270), Duration::from_millis(2050))),
                errors: 3 + 2 + 7,
            })
        );
        assert_eq!(parse_wrk("unable to connect to 198.51.100.82:80 Connection refused"), None);
    }

    #[test]
    fn times_have_units() {
        assert_eq!(parse_time("812.00us"), Some(Duration::from_micros(812)));
        assert_eq!(parse_time("1.50m"), Some(Duration::from_secs(90)));
        assert_eq!(parse_time("12"), None);
        assert_eq!(parse_time("-1ms"), None);
    }
}
