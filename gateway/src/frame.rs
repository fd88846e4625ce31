//! Frames: the memory a packet lives in, as values that can be neither copied nor forgotten.
//!
//! A [`Frame`] comes out of a [`Port`](crate::port::Port) and ends in one of two ways: transmitted
//! (the port takes it), or retired with a [`Fate`], which counts. Every retirement moves a counter,
//! so that *frames in = frames out + frames retired* can be asserted at any time.

use crate::tally::{Fate, Tally};

/// A frame of a port's memory, owned by whoever holds this value.
///
/// Its bytes are reached through the port that it came from.
#[derive(Debug)]
#[must_use = "a frame is transmitted or retired, never dropped"]
pub struct Frame {
    slot: u32,
}

/// A frame's place in the port's memory after the frame was retired: what the port takes back.
#[derive(Debug)]
#[must_use = "a slot goes back to its port, or the port has one frame less"]
pub struct Slot(u32);

impl Frame {
    /// The frame that occupies `slot`. Only ports call this, once for a slot that is theirs.
    pub(crate) fn occupying(slot: u32) -> Self {
        Self { slot }
    }

    /// The index of the frame in the memory of its port.
    #[must_use]
    pub fn slot(&self) -> u32 {
        self.slot
    }

    /// Ends the frame, counts why, and gives its slot, to be handed to
    /// [`Port::recycle`](crate::port::Port::recycle).
    pub fn retire(self, fate: Fate, tally: &mut Tally) -> Slot {
        tally.retire(fate);
        Slot(self.into_slot())
    }

    /// Ends the value without counting: for a port that puts the frame on a ring.
    pub(crate) fn into_slot(self) -> u32 {
        let slot = self.slot;
        std::mem::forget(self);
        slot
    }
}

impl Slot {
    pub(crate) fn index(self) -> u32 {
        self.0
    }
}

impl Drop for Frame {
    fn drop(&mut self) {
        // Unwinding may pass a frame by; anything else is a bug that tests must see.
        debug_assert!(std::thread::panicking(), "frame {} was lost", self.slot);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tally::Reason;

    #[test]
    fn retiring_counts() {
        let mut tally = Tally::default();
        let slot = Frame::occupying(7).retire(Fate::Dropped(Reason::NotIp), &mut tally);
        assert_eq!(slot.index(), 7);
        assert_eq!(tally.dropped(Reason::NotIp), 1);
        assert_eq!(tally.retired(), 1);
    }

    #[test]
    #[cfg(debug_assertions)]
    #[should_panic(expected = "was lost")]
    fn losing_a_frame_is_seen() {
        drop(Frame::occupying(1));
    }
}
