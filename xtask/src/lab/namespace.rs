//! One network namespace, by name.

use std::fs::File;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result, anyhow};
use nix::sched::{CloneFlags, setns};

use crate::process;

/// A network namespace made by `ip netns`. Cloning copies the name; the lab owns the namespace.
#[derive(Clone, Debug)]
pub struct Namespace {
    name: String,
}

impl Namespace {
    /// The namespace called `name`, which need not exist yet.
    pub fn named(name: impl Into<String>) -> Namespace {
        Namespace { name: name.into() }
    }

    /// The name that `ip netns` knows.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// A command that runs `program` in this namespace. The process started is `program` itself,
    /// so its pid can be signalled.
    pub fn command(&self, program: &str) -> Command {
        let mut command = process::command("ip");
        command.args(["netns", "exec", &self.name]);
        command.arg(process::find(program).unwrap_or_else(|| PathBuf::from(program)));
        command
    }

    /// Runs `work` on a thread of its own inside this namespace. Sockets made there stay in the
    /// namespace, and so do threads started there.
    pub fn enter<T: Send>(&self, work: impl FnOnce() -> T + Send) -> Result<T> {
        let file = File::open(self.path())
            .with_context(|| format!("there is no namespace {}", self.name))?;
        std::thread::scope(|scope| {
            scope
                .spawn(|| -> Result<T> {
                    setns(&file, CloneFlags::CLONE_NEWNET)
                        .with_context(|| format!("cannot enter namespace {}", self.name))?;
                    Ok(work())
                })
                .join()
                .map_err(|_| anyhow!("the work in namespace {} panicked", self.name))?
        })
    }

    /// Whether the namespace exists.
    pub fn exists(&self) -> bool {
        self.path().exists()
    }

    /// Processes that live in this namespace; none when the namespace does not exist.
    pub fn pids(&self) -> Result<Vec<i32>> {
        if !self.exists() {
            return Ok(Vec::new());
        }
        let text = process::output(process::command("ip").args(["netns", "pids", &self.name]))?;
        Ok(text.lines().filter_map(|line| line.trim().parse().ok()).collect())
    }

    fn path(&self) -> PathBuf {
        PathBuf::from("/run/netns").join(&self.name)
    }
}
