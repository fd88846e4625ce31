//! Asks the kernel, on behalf of workers, to find or confirm the Ethernet address of a neighbour.

use std::collections::HashMap;
use std::io;
use std::net::IpAddr;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crossbeam::queue::ArrayQueue;
use nix::sys::eventfd::{EfdFlags, EventFd};
use userspace_tcp::{Duration, Instant};

/// A handle to ask with, for any thread. Asking never waits.
#[derive(Debug, Clone)]
pub struct Resolver {
    questions: Arc<ArrayQueue<(u32, IpAddr)>>,
    bell: Arc<Bell>,
}

/// Wakes the mirror's thread.
#[derive(Debug)]
pub(super) struct Bell {
    event: EventFd,
    rung: AtomicBool,
    stopped: AtomicBool,
}

/// Who was asked for, and when: each address at most once per [`INTERVAL`].
#[derive(Debug, Default)]
pub(super) struct Asked {
    records: HashMap<(u32, IpAddr), Record>,
}

#[derive(Debug, Clone, Copy)]
struct Record {
    /// When a worker last wanted it.
    wanted: Instant,
    /// When the kernel was last asked.
    asked: Instant,
}

impl Resolver {
    pub(super) fn new(bell: Arc<Bell>) -> Self {
        Self { questions: Arc::new(ArrayQueue::new(QUESTIONS)), bell }
    }

    /// Asks the kernel to find or confirm the Ethernet address of `address` on the link; the answer comes with a later
    /// snapshot. An address that was asked for in the last minute is also confirmed again whenever the kernel begins to
    /// doubt it. Repeated questions are dropped (one per second and address is passed on), and so are questions beyond
    /// the 1024 that wait: returns false then.
    pub fn ask(&self, ifindex: u32, address: IpAddr) -> bool {
        let taken = self.questions.push((ifindex, address)).is_ok();
        self.bell.ring();
        taken
    }

    pub(super) fn next_question(&self) -> Option<(u32, IpAddr)> {
        self.questions.pop()
    }

    pub(super) fn bell(&self) -> &Bell {
        &self.bell
    }
}

impl Bell {
    pub(super) fn new() -> io::Result<Self> {
        let event = EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)?;
        Ok(Self { event, rung: AtomicBool::new(false), stopped: AtomicBool::new(false) })
    }

    /// Wakes the thread, unless it was woken already and did not look yet.
    fn ring(&self) {
        if !self.rung.swap(true, Ordering::AcqRel) {
            // Fails only when the counter is full, and then the bell has been ringing for long.
            let _ = self.event.write(1);
        }
    }

    /// To be called before looking at the questions.
    pub(super) fn answer(&self) {
        if self.rung.load(Ordering::Acquire) {
            let _ = self.event.read();
            self.rung.store(false, Ordering::Release);
        }
    }

    pub(super) fn stop(&self) {
        self.stopped.store(true, Ordering::Release);
        let _ = self.event.write(1);
    }

    pub(super) fn is_stopped(&self) -> bool {
        self.stopped.load(Ordering::Acquire)
    }
}

impl AsFd for Bell {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.event.as_fd()
    }
}

impl Asked {
    /// A worker wants the address. True if the kernel is to be asked.
    pub(super) fn ask(&mut self, ifindex: u32, address: IpAddr, now: Instant) -> bool {
        if let Some(record) = self.records.get_mut(&(ifindex, address)) {
            record.wanted = now;
            return record.ask(now);
        }
        if self.records.len() >= MAX_RECORDS {
            self.records.retain(|_, record| now < record.wanted + IN_USE);
        }
        if self.records.len() >= MAX_RECORDS {
            return false;
        }
        self.records.insert((ifindex, address), Record { wanted: now, asked: now });
        true
    }

    /// The kernel doubts the address. True if it is in use, so that the kernel is to be asked to confirm it.
    pub(super) fn refresh(&mut self, ifindex: u32, address: IpAddr, now: Instant) -> bool {
        let record = self.records.get_mut(&(ifindex, address));
        record.is_some_and(|record| now < record.wanted + IN_USE && record.ask(now))
    }
}

impl Record {
    fn ask(&mut self, now: Instant) -> bool {
        let due = now >= self.asked + INTERVAL;
        if due {
            self.asked = now;
        }
        due
    }
}

/// Questions that may wait.
pub(super) const QUESTIONS: usize = 1_024;
const MAX_RECORDS: usize = 4_096;
const INTERVAL: Duration = Duration::from_secs(1);
const IN_USE: Duration = Duration::from_secs(60);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_asked_for_once_a_second() {
        let mut asked = Asked::default();
        assert!(asked.ask(1, address(1), at(0)));
        assert!(!asked.ask(1, address(1), at(999)));
        assert!(asked.ask(2, address(1), at(999)), "another link");
        assert!(asked.ask(1, address(1), at(1000)));
        assert!(!asked.ask(1, address(1), at(1001)));
    }

    #[test]
    fn what_is_in_use_is_refreshed() {
        let mut asked = Asked::default();
        assert!(!asked.refresh(1, address(1), at(0)), "nobody wants it");
        asked.ask(1, address(1), at(0));
        assert!(!asked.refresh(1, address(1), at(500)), "asked a moment ago");
        assert!(asked.refresh(1, address(1), at(30_000)));
        assert!(!asked.refresh(1, address(1), at(60_000)), "nobody wants it any more");
    }

    #[test]
    fn memory_is_bounded_and_the_unused_make_room() {
        let mut asked = Asked::default();
        for n in 0..MAX_RECORDS as u32 {
            assert!(asked.ask(1, address(n), at(0)));
        }
        assert!(!asked.ask(1, address(u32::MAX), at(1)));
        assert_eq!(asked.records.len(), MAX_RECORDS);
        assert!(asked.ask(1, address(u32::MAX), at(60_000)));
        assert_eq!(asked.records.len(), 1);
    }

    #[test]
    fn a_full_queue_drops_questions_and_a_bell_rings_once() {
        let resolver = Resolver::new(Arc::new(Bell::new().unwrap()));
        for n in 0..QUESTIONS as u32 {
            assert!(resolver.ask(1, address(n)));
        }
        assert!(!resolver.ask(1, address(0)));
        assert_eq!(resolver.bell().event.read().unwrap(), 1);
        resolver.bell().rung.store(false, Ordering::Release);
        assert_eq!(resolver.next_question(), Some((1, address(0))));
        assert!(resolver.ask(1, address(7)));
        resolver.bell().answer();
        assert!(resolver.bell().event.read().is_err(), "nothing left to read");
    }

    fn address(number: u32) -> IpAddr {
        std::net::Ipv4Addr::from(number).into()
    }

    fn at(millis: i64) -> Instant {
        Instant::from_millis(millis)
    }
}
