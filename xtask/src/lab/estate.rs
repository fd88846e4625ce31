//! What a lab owns, written down before it is made, so that whoever comes after a crash can remove it.

use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, Once, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use nix::errno::Errno;
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;
use serde::{Deserialize, Serialize};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

use super::Namespace;
use crate::process;

/// A lab's namespaces and folder, and the one right to remove them.
#[derive(Debug)]
pub(super) struct Estate {
    record: Mutex<Record>,
    directory: PathBuf,
    /// Held while something is being made or removed: never both.
    state: Mutex<State>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Standing,
    Disowned,
    Gone,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
struct Record {
    name: String,
    /// The process that will remove the lab; none for a lab that stays until it is told to go.
    owner: Option<Owner>,
    namespaces: Vec<String>,
    directory: PathBuf,
}

/// A process, told from a later one with the same pid by its start time (clock ticks since boot).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Owner {
    pid: u32,
    started: u64,
}

impl Estate {
    /// Writes the record of a lab that is about to be made.
    pub(super) fn found(name: &str, namespaces: [String; 3]) -> Result<Arc<Estate>> {
        end_with_the_process();
        let file = record_file(name);
        if file.exists() || namespaces.iter().any(|n| Namespace::named(n.as_str()).exists()) {
            bail!("there is a lab {name} already; `cargo xtask lab down --name {name}` removes it");
        }
        let directory = std::env::temp_dir().join(format!("{FOLDER_PREFIX}{name}"));
        let record = Record {
            name: name.to_owned(),
            owner: Owner::of(std::process::id()),
            namespaces: namespaces.to_vec(),
            directory: directory.clone(),
        };
        record.write()?;
        let estate = Arc::new(Estate {
            record: Mutex::new(record),
            directory: directory.clone(),
            state: Mutex::new(State::Standing),
        });
        lock(&LIVE).push(Arc::clone(&estate));
        fs::create_dir_all(&directory)
            .with_context(|| format!("cannot make {}", directory.display()))?;
        Ok(estate)
    }

    /// Makes the lab; takes down what there is of it when that fails.
    pub(super) fn building(&self, build: impl FnOnce() -> Result<()>) -> Result<()> {
        let result = self.while_standing(build);
        if result.is_err() {
            self.demolish()?;
        }
        result
    }

    /// Runs `work` while nothing can take the lab down.
    pub(super) fn while_standing<T>(&self, work: impl FnOnce() -> Result<T>) -> Result<T> {
        let state = lock(&self.state);
        if *state == State::Gone {
            bail!("the lab has been taken down");
        }
        work()
    }

    pub(super) fn directory(&self) -> &Path {
        &self.directory
    }

    /// Leaves everything standing after this process.
    pub(super) fn disown(&self) -> Result<()> {
        let mut record = lock(&self.record);
        record.owner = None;
        record.write()?;
        *lock(&self.state) = State::Disowned;
        self.forget();
        Ok(())
    }

    /// Ends the lab's processes and removes everything it owns. Does nothing the second time.
    pub(super) fn demolish(&self) -> Result<()> {
        let mut state = lock(&self.state);
        if *state == State::Standing {
            *state = State::Gone;
            lock(&self.record).demolish()?;
            self.forget();
        }
        Ok(())
    }

    fn forget(&self) {
        lock(&LIVE).retain(|other| !std::ptr::eq(Arc::as_ptr(other), self));
    }
}

/// Takes down the lab called `name`, whoever owns it. Returns whether there was one.
pub(super) fn remove(name: &str) -> Result<bool> {
    let Ok(text) = fs::read_to_string(record_file(name)) else { return Ok(false) };
    let record: Record = serde_json::from_str(&text)
        .with_context(|| format!("{} is damaged", record_file(name).display()))?;
    record.demolish()?;
    Ok(true)
}

/// Takes down every lab whose process is gone; returns their names. A lab that resists is left for
/// the next time.
pub(super) fn sweep() -> Vec<String> {
    let mut swept = Vec::new();
    for name in names().unwrap_or_default() {
        let Ok(text) = fs::read_to_string(record_file(&name)) else { continue };
        let Ok(record) = serde_json::from_str::<Record>(&text) else { continue };
        let abandoned = record.owner.is_some_and(|owner| Owner::of(owner.pid) != Some(owner));
        if abandoned && record.demolish().is_ok() {
            swept.push(name);
        }
    }
    swept
}

pub(super) fn names() -> Result<Vec<String>> {
    let entries = match fs::read_dir(record_folder()) {
        Ok(entries) => entries,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error).context("cannot list the labs"),
    };
    let mut names: Vec<String> = entries
        .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
        .filter_map(|file| file.strip_suffix(".json").map(str::to_owned))
        .collect();
    names.sort();
    Ok(names)
}

impl Record {
    fn write(&self) -> Result<()> {
        let file = record_file(&self.name);
        fs::create_dir_all(record_folder())
            .and_then(|()| fs::write(&file, serde_json::to_vec_pretty(self)?))
            .with_context(|| format!("cannot write {}", file.display()))
    }

    fn demolish(&self) -> Result<()> {
        let namespaces: Vec<Namespace> =
            self.namespaces.iter().map(|n| Namespace::named(n.as_str())).collect();
        end_processes(&namespaces)?;
        for namespace in namespaces.iter().filter(|n| n.exists()) {
            process::output(process::command("ip").args(["netns", "del", namespace.name()]))?;
        }
        let ours = self
            .directory
            .file_name()
            .is_some_and(|name| name.to_string_lossy().starts_with(FOLDER_PREFIX));
        if ours {
            gone(fs::remove_dir_all(&self.directory))
                .with_context(|| format!("cannot remove {}", self.directory.display()))?;
        }
        let file = record_file(&self.name);
        gone(fs::remove_file(&file)).with_context(|| format!("cannot remove {}", file.display()))
    }
}

impl Owner {
    /// The process `pid`, when it lives.
    fn of(pid: u32) -> Option<Owner> {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        // The program's name may hold anything; the fields are counted from its closing parenthesis.
        let fields = stat.rsplit_once(')')?.1;
        let started = fields.split_whitespace().nth(19)?.parse().ok()?;
        Some(Owner { pid, started })
    }
}

/// Asks the processes in `namespaces` to end, and makes those that do not.
fn end_processes(namespaces: &[Namespace]) -> Result<()> {
    for (signal, patience) in [(Signal::SIGTERM, 3), (Signal::SIGKILL, 5)] {
        for pid in pids(namespaces)? {
            match kill(Pid::from_raw(pid), signal) {
                Ok(()) | Err(Errno::ESRCH) => {}
                Err(error) => return Err(error).with_context(|| format!("cannot end {pid}")),
            }
            // A stopped process takes SIGTERM only once it goes on.
            let _ = kill(Pid::from_raw(pid), Signal::SIGCONT);
        }
        let empty = || pids(namespaces).is_ok_and(|pids| pids.is_empty()).then_some(());
        if process::wait_for(Duration::from_secs(patience), empty).is_some() {
            return Ok(());
        }
    }
    bail!("processes {:?} do not end", pids(namespaces)?)
}

fn pids(namespaces: &[Namespace]) -> Result<Vec<i32>> {
    let own = std::process::id().cast_signed();
    let mut all = Vec::new();
    for namespace in namespaces {
        all.extend(namespace.pids()?.into_iter().filter(|pid| *pid != own));
    }
    Ok(all)
}

/// On SIGINT, SIGTERM and SIGHUP: takes down this process's labs, then ends it.
fn end_with_the_process() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let Ok(mut signals) = Signals::new([SIGINT, SIGTERM, SIGHUP]) else { return };
        std::thread::spawn(move || {
            let Some(signal) = signals.forever().next() else { return };
            eprintln!("\nsignal {signal}: taking down the lab");
            let live: Vec<Arc<Estate>> = lock(&LIVE).clone();
            for estate in live {
                if let Err(error) = estate.demolish() {
                    eprintln!("{error:#}");
                }
            }
            // Whatever still waits for its exit status to be read would be left to init.
            while matches!(waitpid(None, Some(WaitPidFlag::WNOHANG)), Ok(status) if status != WaitStatus::StillAlive) {}
            std::process::exit(128 + signal);
        });
    });
}

fn record_file(name: &str) -> PathBuf {
    record_folder().join(format!("{name}.json"))
}

fn record_folder() -> PathBuf {
    if nix::unistd::geteuid().is_root() {
        PathBuf::from("/run/headgate-lab")
    } else {
        std::env::temp_dir().join("headgate-lab-records")
    }
}

/// Removing what is not there is success.
fn gone(result: std::io::Result<()>) -> std::io::Result<()> {
    match result {
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

/// A test that panicked while it held a lock must not keep its lab from being removed.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

static LIVE: Mutex<Vec<Arc<Estate>>> = Mutex::new(Vec::new());
const FOLDER_PREFIX: &str = "headgate-lab-";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_is_told_from_a_later_one_with_its_pid() {
        let me = Owner::of(std::process::id()).unwrap();
        assert_eq!(Owner::of(me.pid), Some(me));
        assert_ne!(Some(Owner { started: me.started + 1, ..me }), Owner::of(me.pid));
        assert_eq!(Owner::of(u32::MAX), None);
    }
}
