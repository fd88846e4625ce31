//! The command line: what an operator can ask for.

#![expect(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a command line talks to a terminal"
)]

use std::{path::PathBuf, process::ExitCode};

use clap::{Parser, Subcommand, ValueEnum};
use tracing_subscriber::EnvFilter;

use crate::{admin, bench, config::Config, start, status::Status};

/// The arguments of `headgate`.
#[derive(Debug, Parser)]
#[command(name = "headgate", version, about = "A kernel-bypass, packet-level edge gateway")]
#[command(after_help = "Exit codes: 0 done; 1 failed; 2 the configuration or command line is bad.")]
pub struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Check a configuration file, without touching anything
    Check {
        /// The configuration file
        file: PathBuf,
    },
    /// Serve until SIGTERM or SIGINT; a second signal ends the drain
    Run {
        /// The configuration file
        #[arg(long, default_value = "/etc/headgate/headgate.toml")]
        config: PathBuf,
        /// How packets get to and from the NICs
        #[arg(long, value_enum, default_value = "xdp")]
        port: start::PortKind,
        /// The form of the log, which goes to standard error (RUST_LOG sets its level)
        #[arg(long, value_enum, default_value = "text")]
        log: LogForm,
    },
    /// Show the state of the running gateway
    Status {
        /// As JSON
        #[arg(long)]
        json: bool,
        /// The admin socket of the gateway
        #[arg(long, default_value = "/run/headgate/admin.sock")]
        socket: PathBuf,
    },
    /// Measure this machine's packet rates, in namespaces that you made
    #[command(subcommand, hide = true)]
    Bench(bench::Bench),
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum LogForm {
    Text,
    Json,
}

/// The exit code of a bad configuration: the same that bad arguments have.
const BAD_CONFIG: u8 = 2;

/// Does what was asked for.
#[must_use]
pub fn run(arguments: Arguments) -> ExitCode {
    match arguments.command {
        Command::Check { file } => match load(&file) {
            Ok(config) => {
                println!(
                    "{}: good ({} services, {} origins, {} pools, {} NICs)",
                    file.display(),
                    config.services.len(),
                    config.origins.len(),
                    config.pools.len(),
                    config.nics.len()
                );
                ExitCode::SUCCESS
            }
            Err(code) => code,
        },
        Command::Run { config, port, log } => {
            start_log(log);
            let config = match load(&config) {
                Ok(config) => config,
                Err(code) => return code,
            };
            match start::run(&config, port) {
                Ok(()) => ExitCode::SUCCESS,
                Err(start::StartError::Config(errors)) => {
                    print_errors(&errors);
                    ExitCode::from(BAD_CONFIG)
                }
                Err(error) => fail(&error),
            }
        }
        Command::Status { json, socket } => match admin::ask_status(&socket) {
            Ok(text) if json => {
                print!("{text}");
                ExitCode::SUCCESS
            }
            Ok(text) => match serde_json::from_str::<Status>(&text) {
                Ok(status) => {
                    print!("{}", status.to_text());
                    ExitCode::SUCCESS
                }
                Err(error) => fail(&admin::AdminError::from(error)),
            },
            Err(error) => fail(&error),
        },
        Command::Bench(bench) => match bench.run() {
            Ok(text) => {
                println!("{text}");
                ExitCode::SUCCESS
            }
            Err(error) => fail(&*error),
        },
    }
}

fn load(file: &PathBuf) -> Result<Config, ExitCode> {
    Config::load(file).map_err(|errors| {
        print_errors(&errors);
        ExitCode::from(BAD_CONFIG)
    })
}

fn print_errors(errors: &[impl std::fmt::Display]) {
    for error in errors {
        eprintln!("{error}");
    }
}

fn fail(error: &dyn std::error::Error) -> ExitCode {
    eprintln!("headgate: {error}");
    ExitCode::FAILURE
}

fn start_log(form: LogForm) {
    let level = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info"));
    let log = tracing_subscriber::fmt().with_env_filter(level).with_writer(std::io::stderr);
    match form {
        LogForm::Text => log.with_ansi(false).init(),
        LogForm::Json => log.json().init(),
    }
}
