//! Fuzzing: `tests/fuzz` under libFuzzer, by cargo-fuzz and nightly Rust.
//!
//! Inputs that reach something new are kept in `target/fuzz/corpus`, and help later runs. What is
//! checked in, `tests/fuzz/corpus`, is a small choice of them; it is only read here.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail, ensure};

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
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let mut targets = targets(&root.join("tests/fuzz/targets"))?;
    if let Some(name) = &options.target {
        ensure!(targets.contains(name), "there is no target {name}; there are {targets:?}");
        targets.retain(|target| target == name);
    }
    if !works(cargo().arg("--version")) {
        bail!(
            "fuzzers are built by nightly Rust; install it: \
             rustup toolchain install nightly --profile minimal"
        );
    }
    if !works(cargo().args(["fuzz", "--version"])) {
        process::run(cargo().args(["install", "cargo-fuzz", "--locked"]))?;
    }
    for target in &targets {
        fuzz(&root, target, options.seconds)?;
    }
    Ok(())
}

fn fuzz(root: &Path, target: &str, seconds: u64) -> Result<()> {
    let found = format!("target/fuzz/corpus/{target}");
    fs::create_dir_all(root.join(&found)).with_context(|| format!("cannot create {found}"))?;
    let kept = format!("tests/fuzz/corpus/{target}");
    let dictionary = format!("tests/fuzz/{target}.dict");
    let dictionary = root.join(&dictionary).exists().then(|| format!("-dict={dictionary}"));
    process::run(
        cargo()
            // Without unsafe code there is nothing for a sanitizer to find, and it is slow.
            .args(["fuzz", "run", "--sanitizer", "none", "--fuzz-dir", "tests/fuzz"])
            .args([target, &found, &kept, "--"])
            .args(LIMITS)
            .args(dictionary)
            .arg(format!("-max_total_time={seconds}"))
            .current_dir(root),
    )
}

/// The targets' names, which are those of their files.
fn targets(folder: &Path) -> Result<Vec<String>> {
    let mut targets = Vec::new();
    let unreadable = || format!("cannot read {}", folder.display());
    for entry in fs::read_dir(folder).with_context(unreadable)? {
        let path = entry.with_context(unreadable)?.path();
        targets.extend(path.file_stem().and_then(|stem| stem.to_str()).map(String::from));
    }
    targets.sort();
    Ok(targets)
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

const LIMITS: [&str; 3] = ["-max_len=2048", "-rss_limit_mb=4096", "-timeout=30"];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_target_that_is_not_there_is_an_error_that_names_the_others() {
        let options = Options { target: Some("nothing".into()), seconds: 1 };
        let error = run(&options).unwrap_err().to_string();
        assert!(error.contains("\"plane\"") && error.contains("\"segment\""), "{error}");
    }
}
