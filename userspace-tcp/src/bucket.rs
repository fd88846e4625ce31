//! A token bucket, for answers that strangers can provoke.

use smoltcp::time::Instant;

/// Grants at most `burst` tokens at once and `rate` per second on average.
#[derive(Clone, Debug)]
pub(crate) struct Bucket {
    rate: u64,
    burst: u64,
    /// Millionths of a token, so that no fraction gets lost however often the bucket is asked.
    level: u64,
    filled: Instant,
}

impl Bucket {
    pub(crate) fn new(rate: u32, burst: u32, now: Instant) -> Self {
        let burst = u64::from(burst) * TOKEN;
        Self { rate: u64::from(rate), burst, level: burst, filled: now }
    }

    /// Takes one token, if there is one.
    pub(crate) fn take(&mut self, now: Instant) -> bool {
        let elapsed =
            (now.total_micros() - self.filled.total_micros()).clamp(0, MAX_ELAPSED) as u64;
        self.filled = self.filled.max(now);
        self.level = (self.level + elapsed * self.rate).min(self.burst);
        if self.level < TOKEN {
            return false;
        }
        self.level -= TOKEN;
        true
    }
}

const TOKEN: u64 = 1_000_000;
const MAX_ELAPSED: i64 = 1 << 31;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_grants_its_burst_and_then_its_rate() {
        let mut bucket = Bucket::new(10, 5, Instant::ZERO);
        assert_eq!((0..100).filter(|_| bucket.take(Instant::ZERO)).count(), 5);
        let granted = (0..10_000).filter(|ms| bucket.take(Instant::from_millis(*ms))).count();
        assert_eq!(granted, 99, "ten per second for ten seconds, the first after 100 ms");
        assert!(!bucket.take(Instant::ZERO), "a clock that steps back grants nothing");
    }
}
