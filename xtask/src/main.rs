//! `cargo xtask`: see `cargo xtask help`.
#![allow(clippy::print_stdout, clippy::print_stderr, reason = "a task talks to a terminal")]

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Result, bail};
use clap::{Parser, Subcommand, ValueEnum};
use xtask::lab::{self, Lab, LabConfig};
use xtask::{bench, demo, ebpf, fuzz, process, setup, stages};

/// The project's own tasks.
#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask")]
struct Arguments {
    #[command(subcommand)]
    task: Task,
}

#[derive(Subcommand)]
enum Task {
    /// Install what building, testing and the lab need (as root), or say how
    Setup,
    /// Build headgate, put it between a client and nginx, and show what each side sees
    Demo {
        /// Queues of every interface
        #[arg(long, default_value_t = 2)]
        queues: u32,
    },
    /// Check and test everything; as root also on namespaces
    Test,
    /// Check formatting and lints only
    Check,
    /// Make, use and remove a network of namespaces: client, gateway, origin
    #[command(subcommand)]
    Lab(LabTask),
    /// Build the XDP program
    Ebpf {
        /// Compare with the object that is checked in instead of replacing it
        #[arg(long)]
        check: bool,
    },
    /// Look for inputs that break parsers and the data plane (needs nightly Rust)
    Fuzz {
        /// What to fuzz [default: all targets, one after the other]
        target: Option<String>,
        /// Seconds for each target
        #[arg(long, default_value_t = 300)]
        seconds: u64,
    },
    /// Measure headgate beside HAProxy, nginx, and no proxy at all
    Bench {
        /// Short runs, for a first look
        #[arg(long)]
        quick: bool,
        /// Where to write the figures [default: target/bench.json]
        #[arg(long, value_name = "FILE")]
        json: Option<PathBuf>,
        /// Queues of every interface
        #[arg(long, default_value_t = 1)]
        queues: u32,
        /// Measure only these, besides the direct connection
        #[arg(long, value_delimiter = ',', value_name = "NAME,…")]
        only: Vec<String>,
    },
}

#[derive(Subcommand)]
enum LabTask {
    /// Make a lab that stands until `lab down`
    Up {
        /// Its name
        #[arg(long, default_value = "lab")]
        name: String,
        /// Queues of every interface
        #[arg(long, default_value_t = 2)]
        queues: u32,
        /// MTU of every link, in bytes
        #[arg(long, default_value_t = 1500)]
        mtu: u32,
    },
    /// Run a command in one of the lab's namespaces
    Exec {
        /// The lab's name
        #[arg(long, default_value = "lab")]
        name: String,
        /// Which namespace
        place: Place,
        /// The command and its arguments
        #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true)]
        command: Vec<String>,
    },
    /// Remove a lab, and whatever labs of killed processes left behind
    Down {
        /// Its name
        #[arg(long, default_value = "lab")]
        name: String,
    },
}

#[derive(Clone, Copy, ValueEnum)]
enum Place {
    Client,
    Gateway,
    Origin,
}

fn main() -> ExitCode {
    match Arguments::parse().task.run() {
        Ok(code) => code,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

impl Task {
    fn run(self) -> Result<ExitCode> {
        match self {
            Task::Setup => setup::run()?,
            Task::Demo { queues } => demo::run(queues)?,
            Task::Test => stages::test()?,
            Task::Check => stages::check()?,
            Task::Lab(task) => return task.run(),
            Task::Ebpf { check } => ebpf::build(check)?,
            Task::Fuzz { target, seconds } => fuzz::run(&fuzz::Options { target, seconds })?,
            Task::Bench { quick, json, queues, only } => {
                bench::run(&bench::Options { quick, json, queues, only })?;
            }
        }
        Ok(ExitCode::SUCCESS)
    }
}

impl LabTask {
    fn run(self) -> Result<ExitCode> {
        match self {
            LabTask::Up { name, queues, mtu } => {
                let config = LabConfig { name: Some(name.clone()), queues, mtu, direct: false };
                Lab::new(&config)?.keep()?;
                println!("lab {name} stands; `cargo xtask lab exec --name {name} client bash`");
            }
            LabTask::Exec { name, place, command } => return exec(&name, place, &command),
            LabTask::Down { name } => {
                for other in lab::sweep() {
                    println!("removed what was left of lab {other}");
                }
                match lab::remove(&name)? {
                    true => println!("removed lab {name}"),
                    false => println!("there is no lab {name}"),
                }
            }
        }
        Ok(ExitCode::SUCCESS)
    }
}

/// Runs a command in a lab; its exit status becomes ours.
fn exec(name: &str, place: Place, command: &[String]) -> Result<ExitCode> {
    let [client, gateway, origin] = lab::namespaces(name);
    let namespace = match place {
        Place::Client => client,
        Place::Gateway => gateway,
        Place::Origin => origin,
    };
    if !namespace.exists() {
        bail!("there is no lab {name}; `cargo xtask lab up --name {name}` makes it");
    }
    let mut command_in = namespace.command(&command[0]);
    command_in.args(&command[1..]);
    let status = command_in
        .status()
        .map_err(|error| anyhow::anyhow!("cannot start {}: {error}", process::line(&command_in)))?;
    // A process ended by a signal has no code; shells say 128 and more.
    Ok(ExitCode::from(status.code().and_then(|code| u8::try_from(code).ok()).unwrap_or(128)))
}
