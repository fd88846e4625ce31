//! The `headgate` command. Exit codes: 0 done, 1 failed, 2 the configuration or command line is bad.

use std::process::ExitCode;

use clap::Parser;
use headgate::cli::{self, Arguments};

fn main() -> ExitCode {
    cli::run(Arguments::parse())
}
