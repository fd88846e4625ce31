//! A program that runs in a lab until it is stopped.

use std::fs::File;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use anyhow::{Context, Result};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::estate::Estate;
use crate::process;

/// A running program of the lab. Dropping it ends it.
#[derive(Debug)]
pub struct Service {
    name: String,
    child: Child,
    log: PathBuf,
}

impl Service {
    /// Starts `command`; what it writes goes to a file in the lab's folder.
    pub(super) fn start(estate: &Arc<Estate>, name: &str, mut command: Command) -> Result<Service> {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let name = Path::new(name)
            .file_name()
            .map_or_else(|| name.to_owned(), |file| file.to_string_lossy().into_owned());
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let log = estate.directory().join(format!("{name}-{number}.log"));
        let child = estate.while_standing(|| {
            let file =
                File::create(&log).with_context(|| format!("cannot write {}", log.display()))?;
            command
                .stdin(Stdio::null())
                .stdout(file.try_clone()?)
                .stderr(file)
                // A ctrl-C at the terminal is for the lab's owner, who ends its programs in order.
                .process_group(0)
                .spawn()
                .with_context(|| format!("cannot start {}", process::line(&command)))
        })?;
        Ok(Service { name, child, log })
    }

    /// The process's id.
    pub fn pid(&self) -> i32 {
        self.child.id().cast_signed()
    }

    /// Everything it has written so far to standard output and standard error.
    pub fn log(&self) -> String {
        process::tail(&self.log, usize::MAX)
    }

    /// The last lines it has written.
    pub fn log_tail(&self) -> String {
        process::tail(&self.log, 20)
    }

    /// How it ended, when it has.
    pub fn ended(&mut self) -> Result<Option<ExitStatus>> {
        Ok(self.child.try_wait()?)
    }

    /// Sends a signal; nothing to do when it has ended.
    pub fn signal(&mut self, signal: Signal) -> Result<()> {
        if self.ended()?.is_none() {
            kill(Pid::from_raw(self.pid()), signal)
                .with_context(|| format!("cannot signal {}", self.name))?;
        }
        Ok(())
    }

    /// SIGTERM, then waits for the end, at most for `patience`; then SIGKILL, which is an error.
    pub fn stop(&mut self, patience: Duration) -> Result<ExitStatus> {
        self.signal(Signal::SIGTERM)?;
        if let Some(status) = process::wait_for(patience, || self.ended().ok().flatten()) {
            return Ok(status);
        }
        self.kill()?;
        anyhow::bail!(
            "{} did not end within {patience:?} of SIGTERM:\n{}",
            self.name,
            self.log_tail()
        )
    }

    /// SIGKILL, and waits for the end.
    pub fn kill(&mut self) -> Result<ExitStatus> {
        self.signal(Signal::SIGKILL)?;
        Ok(self.child.wait()?)
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        let _ = self.signal(Signal::SIGCONT);
        let _ = self.stop(Duration::from_secs(2));
    }
}
