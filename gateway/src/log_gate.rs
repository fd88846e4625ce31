//! Keeps the log readable when every client fails at once: a few lines in a second, the rest counted.

use userspace_tcp::{Duration, Instant};

/// Lets a few lines through in every second.
#[derive(Debug)]
pub(crate) struct LogGate {
    since: Instant,
    passed: u32,
    held_back: u64,
}

/// Lines in a second, at most.
const LINES: u32 = 10;

impl LogGate {
    pub(crate) fn new(now: Instant) -> Self {
        Self { since: now, passed: 0, held_back: 0 }
    }

    /// Whether a line may be written now, and how many were not since the last one.
    pub(crate) fn pass(&mut self, now: Instant) -> Option<u64> {
        if now >= self.since + Duration::from_secs(1) {
            self.since = now;
            self.passed = 0;
        }
        if self.passed == LINES {
            self.held_back += 1;
            return None;
        }
        self.passed += 1;
        Some(std::mem::take(&mut self.held_back))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flood_is_counted_and_told_later() {
        let mut gate = LogGate::new(Instant::ZERO);
        let passed = (0..100).filter(|_| gate.pass(Instant::ZERO).is_some()).count();
        assert_eq!(passed, LINES as usize);
        assert_eq!(gate.pass(Instant::from_secs(1)), Some(90));
        assert_eq!(gate.pass(Instant::from_secs(1)), Some(0));
    }
}
