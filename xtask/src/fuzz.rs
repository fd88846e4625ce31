//! Fuzzing: `tests/fuzz` under libFuzzer, by cargo-fuzz and nightly Rust.

use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Result, bail};

use crate::process;

/// What to fuzz, and for how long.
#[derive(Debug)]
pub struct Options {
    /// The target; all, one after the other, if none is named.
    pub target: Option<String>,
    /// Seconds for each target.
    pub seconds: u64,
}

/// Fuzzes, and installs cargo-fuzz before that if it is missing.
///
/// Fails when nightly Rust is missing, when there is no such target, and when an input breaks one;
/// cargo-fuzz then says where it keeps the input.
pub fn run(options: &Options) -> Result<()> {
    let targets: Vec<&str> = match &options.target {
        None => TARGETS.to_vec(),
        Some(name) => match TARGETS.iter().find(|target| *target == name) {
            Some(target) => vec![target],
            None => bail!("there is no target {name}; there are {}", TARGETS.join(", ")),
        },
    };
    if !works(cargo().arg("--version")) {
        bail!(
            "fuzzers are built by nightly Rust; install it: \
             rustup toolchain install nightly --profile minimal"
        );
    }
    if !works(cargo().args(["fuzz", "--version"])) {
        process::run(cargo().args(["install", "cargo-fuzz", "--locked"]))?;
    }
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    for target in targets {
        process::run(
            cargo()
                .args(["fuzz", "run", "--fuzz-dir", "tests/fuzz", target, "--"])
                .args(LIMITS)
                .arg(format!("-max_total_time={}", options.seconds))
                .current_dir(&root),
        )?;
    }
    Ok(())
}

/// Nightly's cargo, whatever toolchain runs this program.
fn cargo() -> Command {
    let mut command = Command::new("rustup");
    command.args(["run", "nightly", "cargo"]);
    command
}

/// Whether the command runs and ends well.
fn works(command: &mut Command) -> bool {
    command
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .is_ok_and(|status| status.success())
}

const TARGETS: [&str; 4] = ["classify", "config", "plane", "segment"];
const LIMITS: [&str; 3] = ["-max_len=2048", "-rss_limit_mb=4096", "-timeout=30"];
