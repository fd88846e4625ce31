//! Wakes a worker that sleeps in its port.

use std::{
    io,
    os::fd::{AsFd, BorrowedFd},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use nix::sys::eventfd::{EfdFlags, EventFd};

/// One worker's bell. Clones ring the same one.
#[derive(Clone, Debug)]
pub struct Waker {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    event: EventFd,
    asleep: AtomicBool,
}

impl Waker {
    /// A bell of its own.
    ///
    /// # Errors
    /// When the process has no file descriptor left.
    pub fn new() -> io::Result<Self> {
        let event = EventFd::from_flags(EfdFlags::EFD_NONBLOCK | EfdFlags::EFD_CLOEXEC)?;
        Ok(Self { inner: Arc::new(Inner { event, asleep: AtomicBool::new(false) }) })
    }

    /// Ends the worker's sleep, if it sleeps; costs one load if it does not.
    pub fn wake(&self) {
        let asleep = &self.inner.asleep;
        if asleep.load(Ordering::SeqCst) && asleep.swap(false, Ordering::SeqCst) {
            // Cannot fail but by overflow of the counter, and then it is readable anyway.
            let _ = self.inner.event.write(1);
        }
    }

    /// The worker is about to sleep: whatever it looks at after this call, nobody can change
    /// without waking it.
    pub fn doze(&self) {
        self.inner.asleep.store(true, Ordering::SeqCst);
    }

    /// The worker is awake.
    pub fn rise(&self) {
        self.inner.asleep.store(false, Ordering::SeqCst);
        // Nothing to read is the usual case.
        let _ = self.inner.event.read();
    }
}

impl AsFd for Waker {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.inner.event.as_fd()
    }
}
