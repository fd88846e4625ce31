//! `cargo xtask test`: every check there is, in stages, each with its time.

use std::io::{BufRead, BufReader, Write};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Result, bail};

use crate::{demo, ebpf, lab, process, setup, table};

/// Formatting and lints.
pub fn check() -> Result<()> {
    let mut report = Report::default();
    lints(&mut report);
    report.close()
}

/// Everything: setup, formatting, lints, tests, the XDP program's bytes; as root also the tests on
/// namespaces. Goes on after a stage that failed, and fails at the end.
pub fn test() -> Result<()> {
    let mut report = Report::default();
    let root = nix::unistd::geteuid().is_root();
    if root {
        report.stage("setup", || setup::run().map(|()| Tally::default()));
    } else {
        report.left_out("setup", "needs root");
        let missing = setup::missing(Some(setup::Purpose::Build));
        if !missing.is_empty() {
            bail!("packages are missing; as root, run:\n  {}", setup::install_command(&missing));
        }
    }
    lints(&mut report);
    report.stage("tests that need no root", || cargo_test(&["--workspace", "--no-fail-fast"]));
    match ebpf::toolchain_ready() {
        Ok(()) => report.stage("XDP program is what its source builds", || {
            ebpf::build(true).map(|()| Tally::default())
        }),
        Err(lacking) if root => {
            report.stage("XDP program is what its source builds", || bail!(lacking))
        }
        Err(lacking) => report.left_out("XDP program is what its source builds", &lacking),
    }
    if root {
        report.stage("release build", || demo::build_headgate().map(|()| Tally::default()));
        report.stage("tests on namespaces", || {
            cargo_test(&[
                "--package",
                "headgate-tests",
                "--no-fail-fast",
                "--",
                "--ignored",
                "--test-threads=1",
            ])
        });
    } else {
        report.left_out("tests on namespaces", "need root");
    }
    report.close()
}

fn lints(report: &mut Report) {
    report.stage("formatting", || cargo(&["fmt", "--all", "--check"]));
    report.stage("lints", || {
        cargo(&["clippy", "--workspace", "--all-targets", "--quiet", "--", "-D", "warnings"])
    });
}

/// What test programs said: the sums over cargo's `test result:` lines.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Tally {
    passed: u32,
    failed: u32,
    ignored: u32,
}

impl Tally {
    /// Adds a line of a test program's output, when it is a result.
    fn add(&mut self, line: &str) {
        let Some(rest) = line.strip_prefix("test result: ") else { return };
        for part in rest.split(['.', ';']) {
            let Some((count, what)) = part.trim().split_once(' ') else { continue };
            let Ok(count) = count.parse::<u32>() else { continue };
            match what {
                "passed" => self.passed += count,
                "failed" => self.failed += count,
                "ignored" => self.ignored += count,
                _ => {}
            }
        }
    }
}

#[derive(Debug, Default)]
struct Report {
    rows: Vec<Vec<String>>,
    failed: Vec<String>,
    left_out: Vec<String>,
    total: Duration,
}

impl Report {
    fn stage(&mut self, name: &str, work: impl FnOnce() -> Result<Tally>) {
        println!("\n=== {name}");
        let start = Instant::now();
        let result = work();
        let took = start.elapsed();
        self.total += took;
        let outcome = match &result {
            Ok(Tally { passed: 0, .. }) => "ok".to_owned(),
            Ok(tally) => format!("ok, {} tests passed", tally.passed),
            Err(error) => {
                eprintln!("error: {error:#}");
                self.failed.push(name.to_owned());
                "FAILED".to_owned()
            }
        };
        println!("=== {name}: {outcome}, {:.1} s", took.as_secs_f64());
        self.rows.push(vec![name.to_owned(), outcome, format!("{:.1}", took.as_secs_f64())]);
    }

    fn left_out(&mut self, name: &str, why: &str) {
        println!("\n=== {name}: LEFT OUT, {why}");
        self.left_out.push(name.to_owned());
        self.rows.push(vec![name.to_owned(), format!("LEFT OUT: {why}"), String::new()]);
    }

    fn close(self) -> Result<()> {
        println!("\n{}", table::markdown(&["stage", "outcome", "seconds"], &self.rows));
        println!("in all {:.0} s", self.total.as_secs_f64());
        if !self.left_out.is_empty() {
            println!("LEFT OUT (run as root for all of it): {}", self.left_out.join(", "));
        }
        if !self.failed.is_empty() {
            bail!("failed: {}", self.failed.join(", "));
        }
        Ok(())
    }
}

fn cargo_command(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO"));
    command.current_dir(lab::workspace()).args(arguments);
    command
}

fn cargo(arguments: &[&str]) -> Result<Tally> {
    process::run(&mut cargo_command(arguments)).map(|()| Tally::default())
}

/// `cargo test`, its output passed on line by line and its results added up.
fn cargo_test(arguments: &[&str]) -> Result<Tally> {
    let mut command = cargo_command(&["test"]);
    let mut child = command.args(arguments).stdout(Stdio::piped()).spawn()?;
    let mut tally = Tally::default();
    if let Some(output) = child.stdout.take() {
        let mut to = std::io::stdout().lock();
        for line in BufReader::new(output).lines() {
            let line = line?;
            writeln!(to, "{line}")?;
            tally.add(&line);
        }
    }
    let status = child.wait()?;
    if !status.success() {
        bail!("{} ended with {status}, {} tests failed", process::line(&command), tally.failed);
    }
    Ok(tally)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_of_several_programs_add_up() {
        let mut tally = Tally::default();
        for line in [
            "running 12 tests",
            "test result: ok. 12 passed; 0 failed; 3 ignored; 0 measured; 0 filtered out; finished in 0.01s",
            "test result: FAILED. 1 passed; 2 failed; 0 ignored; 0 measured; 0 filtered out; finished in 1.20s",
        ] {
            tally.add(line);
        }
        assert_eq!(tally, Tally { passed: 13, failed: 2, ignored: 3 });
    }

    #[test]
    fn a_failed_stage_fails_the_whole_and_one_left_out_does_not() {
        let mut report = Report::default();
        report.left_out("a", "needs root");
        report.stage("b", || Ok(Tally { passed: 2, ..Tally::default() }));
        assert_eq!(report.rows[1][1], "ok, 2 tests passed");
        report.stage("c", || bail!("no"));
        assert_eq!(report.close().unwrap_err().to_string(), "failed: c");
    }
}
