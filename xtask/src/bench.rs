//! headgate beside HAProxy, nginx, and a client that talks to the origin directly: same run, same
//! machine, same offloads, CPU of the whole machine included.
//!
//! *Added CPU* is the whole machine's CPU time per unit of work through a proxy, minus the same with
//! no proxy. The lab has everything on one machine, so client and origin are in both and cancel out.

mod cpu;
mod echo;
mod peer;
mod report;
mod work;

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use crate::lab::{Lab, LabConfig, NginxConfig, target_directory};
use crate::{demo, setup};
use peer::Peer;
use report::Report;
use work::Work;

/// How to measure.
#[derive(Clone, Debug)]
pub struct Options {
    /// One short round instead of several long ones.
    pub quick: bool,
    /// Where to write the figures; `target/bench.json` by default.
    pub json: Option<PathBuf>,
    /// Queues of every interface.
    pub queues: u32,
    /// Names of the proxies to measure; empty for all.
    pub only: Vec<String>,
}

/// How long, and how often.
#[derive(Clone, Copy, Debug)]
struct Plan {
    rounds: usize,
    /// Of each run of wrk.
    run: Duration,
    warm_up: Duration,
    /// Downloads in a row.
    downloads: u32,
}

/// Measures everything in `options`, prints a table and writes the figures.
pub fn run(options: &Options) -> Result<()> {
    setup::packages()?;
    let peers = Peer::chosen(&options.only)?;
    if peers.contains(&Peer::Headgate) {
        demo::build_headgate()?;
    }
    let plan = if options.quick { QUICK } else { THOROUGH };
    let lab =
        Lab::new(&LabConfig { queues: options.queues, direct: true, ..LabConfig::default() })?;
    let _origin = lab.nginx(&NginxConfig {
        access_log: false,
        files: vec![("bulk".to_owned(), work::BULK_BYTES, 1)],
        ..NginxConfig::default()
    })?;
    let mut report = Report::new(options.queues, plan.rounds);
    report.busy(busy_share()?);
    for round in 1..=plan.rounds {
        for &peer in &peers {
            println!("bench: round {round} of {}, {}", plan.rounds, peer.name());
            measure(&lab, peer, &plan, &mut report)
                .with_context(|| format!("measuring {}", peer.name()))?;
        }
    }
    if peers.contains(&Peer::Headgate) {
        for size in [60, 1500] {
            report.echo(echo::measure(&lab, size, plan.run)?);
        }
    }
    report.busy(busy_share()?);
    println!("\n{}", report.render());
    let file = options.json.clone().unwrap_or_else(|| target_directory().join("bench.json"));
    if let Some(folder) = file.parent() {
        std::fs::create_dir_all(folder)?;
    }
    std::fs::write(&file, serde_json::to_vec_pretty(&report.json())?)
        .with_context(|| format!("cannot write {}", file.display()))?;
    println!("figures: {}", file.display());
    Ok(())
}

/// All work through one peer, which runs only meanwhile: an XDP program on the interfaces, or a
/// process that polls, would count against the others.
fn measure(lab: &Lab, peer: Peer, plan: &Plan, report: &mut Report) -> Result<()> {
    let mut running = peer.start(lab)?;
    let target = peer.target();
    work::keep_alive(lab, target, plan.warm_up)?;
    for work in Work::ALL {
        let pids = if peer == Peer::Direct { Vec::new() } else { lab.gateway().pids()? };
        let before = cpu::Sample::take(&pids)?;
        let outcome = match work {
            Work::KeepAlive => work::keep_alive(lab, target, plan.run)?,
            Work::NewConnections => work::new_connections(lab, target, plan.run)?,
            Work::Bulk => work::bulk(lab, target, plan.downloads)?,
        };
        let spent = cpu::Sample::take(&pids)?.since(&before);
        ensure!(outcome.units > 0.0, "{} did no work at all", peer.name());
        report.add(peer, work, outcome, spent);
    }
    running.stop()
}

/// How much of the machine is busy for a second, from 0 to 1.
fn busy_share() -> Result<f64> {
    let before = cpu::Sample::take(&[])?;
    let watched = Duration::from_secs(1);
    std::thread::sleep(watched);
    let spent = cpu::Sample::take(&[])?.since(&before);
    let cpus = std::thread::available_parallelism()?.get();
    Ok(spent.machine.as_secs_f64() / watched.as_secs_f64() / cpus as f64)
}

const QUICK: Plan = Plan {
    rounds: 1,
    run: Duration::from_secs(2),
    warm_up: Duration::from_millis(1000),
    downloads: 2,
};
const THOROUGH: Plan = Plan {
    rounds: 3,
    run: Duration::from_secs(5),
    warm_up: Duration::from_millis(1000),
    downloads: 5,
};
