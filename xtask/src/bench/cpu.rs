//! CPU time of the machine and of processes, from /proc.

use std::fs;
use std::time::Duration;

use anyhow::{Context, Result};

/// CPU time spent up to a moment.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Sample {
    machine: u64,
    user: u64,
    system: u64,
    stolen: u64,
}

/// CPU time spent between two samples.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct Spent {
    /// By all CPUs: user, system, and interrupts.
    pub(super) machine: Duration,
    /// By the processes asked for, in user mode.
    pub(super) user: Duration,
    /// By the processes asked for, in the kernel.
    pub(super) system: Duration,
    /// What the hypervisor gave to other machines instead.
    pub(super) stolen: Duration,
}

impl Sample {
    /// CPU time now: the machine's, and that of `pids` with all their threads.
    pub(super) fn take(pids: &[i32]) -> Result<Sample> {
        let stat = fs::read_to_string("/proc/stat").context("cannot read /proc/stat")?;
        let (machine, stolen) = machine(&stat).context("/proc/stat has another form")?;
        let mut sample = Sample { machine, stolen, ..Sample::default() };
        for pid in pids {
            let stat = fs::read_to_string(format!("/proc/{pid}/stat"))
                .with_context(|| format!("process {pid} ended during the measurement"))?;
            let (user, system) = process(&stat).context("/proc/PID/stat has another form")?;
            sample.user += user;
            sample.system += system;
        }
        Ok(sample)
    }

    pub(super) fn since(&self, before: &Sample) -> Spent {
        let time = |now: u64, then: u64| TICK * u32::try_from(now - then).unwrap_or(u32::MAX);
        Spent {
            machine: time(self.machine, before.machine),
            user: time(self.user, before.user),
            system: time(self.system, before.system),
            stolen: time(self.stolen, before.stolen),
        }
    }
}

/// Busy and stolen ticks of the `cpu` line, proc_stat(5): user, nice, system, (idle, iowait,) irq,
/// softirq, and steal. Guest time is part of user time.
fn machine(stat: &str) -> Option<(u64, u64)> {
    let line = stat.lines().find_map(|line| line.strip_prefix("cpu "))?;
    let fields: Vec<u64> =
        line.split_whitespace().map(str::parse).collect::<Result<_, _>>().ok()?;
    let [user, nice, system, _idle, _iowait, irq, softirq, steal, ..] = fields[..] else {
        return None;
    };
    Some((user + nice + system + irq + softirq, steal))
}

/// utime and stime of proc_pid_stat(5), in ticks; the fields are counted from the end of the name.
fn process(stat: &str) -> Option<(u64, u64)> {
    let mut fields = stat.rsplit_once(')')?.1.split_whitespace().skip(11);
    Some((fields.next()?.parse().ok()?, fields.next()?.parse().ok()?))
}

/// Linux shows CPU time in hundredths of a second (USER_HZ) on every architecture headgate runs on.
const TICK: Duration = Duration::from_millis(10);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn idle_and_waiting_time_is_not_busy_time() {
        let stat = "cpu  100 20 300 4000 500 6 70 8 9 10\ncpu0 1 2 3 4 5 6 7 8 9 10\nintr 5\n";
        assert_eq!(machine(stat), Some((100 + 20 + 300 + 6 + 70, 8)));
        assert_eq!(machine("intr 5\n"), None);
    }

    #[test]
    fn a_process_name_may_hold_anything() {
        let stat = "7 (a) b (c) S 1 7 7 0 -1 4194560 1 2 3 4 123 45 0 0 20 0 1 0 99 0";
        assert_eq!(process(stat), Some((123, 45)));
    }

    #[test]
    fn work_costs_time() {
        let own = [std::process::id().cast_signed()];
        let before = Sample::take(&own).unwrap();
        let start = std::time::Instant::now();
        while start.elapsed() < Duration::from_millis(150) {
            std::hint::black_box(Sample::take(&own).unwrap());
        }
        let spent = Sample::take(&own).unwrap().since(&before);
        assert!(spent.user + spent.system >= Duration::from_millis(50), "{spent:?}");
        assert!(spent.machine >= Duration::from_millis(50), "{spent:?}");
    }
}
