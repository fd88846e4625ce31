//! A hierarchical timer wheel over nodes that are numbered by the caller.
//!
//! Five levels of 256 slots and one tick per millisecond reach 34 years. The nodes are an array that is allocated once;
//! arming, cancelling and expiring allocate nothing. A deadline that moves later needs no work at all if the caller leaves
//! the node where it is and arms it again when it fires.

/// Timer wheel. Ticks are milliseconds since whatever the caller counts from.
#[derive(Debug)]
pub(crate) struct Wheel {
    nodes: Vec<Node>,
    heads: Box<[[u32; SLOTS]; LEVELS]>,
    occupied: [[u64; SLOTS / 64]; LEVELS],
    tick: u64,
    armed: usize,
}

/// What [`Wheel::pop`] found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Popped {
    /// This node's deadline has come; it is not armed any more.
    Due(u32),
    /// A node came nearer; there may be more to do.
    Moved,
    /// Nothing is due.
    Nothing,
}

impl Wheel {
    /// A wheel for nodes numbered from zero to `nodes - 1`.
    pub(crate) fn new(nodes: usize) -> Self {
        Self {
            nodes: vec![Node::UNLINKED; nodes],
            heads: Box::new([[NONE; SLOTS]; LEVELS]),
            occupied: [[0; SLOTS / 64]; LEVELS],
            tick: 0,
            armed: 0,
        }
    }

    /// Lets the node fire at `due`, or at once if that has passed. An earlier arming of it is forgotten.
    pub(crate) fn arm(&mut self, node: u32, due: u64) {
        self.cancel(node);
        self.armed += 1;
        self.link(node, due.min(MAX_TICK));
    }

    /// Takes the node out, if it is armed.
    pub(crate) fn cancel(&mut self, node: u32) {
        if self.nodes[node as usize].place != NOWHERE {
            self.unlink(node);
            self.armed -= 1;
        }
    }

    /// Does one bounded piece of work, which is at most one node.
    pub(crate) fn pop(&mut self, now: u64) -> Popped {
        let Some((level, slot, begins)) = self.next_slot() else {
            self.tick = self.tick.max(now.min(MAX_TICK));
            return Popped::Nothing;
        };
        if begins > now {
            self.tick = self.tick.max(now);
            return Popped::Nothing;
        }
        self.tick = self.tick.max(begins);
        let node = self.heads[level][slot];
        let due = self.nodes[node as usize].due;
        self.unlink(node);
        if due <= now {
            self.armed -= 1;
            return Popped::Due(node);
        }
        self.link(node, due);
        Popped::Moved
    }

    /// The tick at which [`Wheel::pop`] is worth calling next: never later than the earliest deadline.
    pub(crate) fn next_tick(&self) -> Option<u64> {
        self.next_slot().map(|(_, _, begins)| begins)
    }

    /// How many nodes are armed.
    #[cfg(test)]
    pub(crate) fn armed(&self) -> usize {
        self.armed
    }

    /// The first occupied slot: everything at a level comes before everything at the next, but for a slot of a higher level
    /// that has begun and is not emptied yet.
    fn next_slot(&self) -> Option<(usize, usize, u64)> {
        for level in 1..LEVELS {
            let slot = (self.tick >> (level * SLOT_BITS)) as usize & (SLOTS - 1);
            if self.occupied[level][slot / 64] & 1 << (slot % 64) != 0 {
                return Some((level, slot, self.tick));
            }
        }
        for level in 0..LEVELS {
            let words = &self.occupied[level];
            let Some(word) = words.iter().position(|bits| *bits != 0) else { continue };
            let slot = word * 64 + words[word].trailing_zeros() as usize;
            let shift = level * SLOT_BITS;
            let above = self.tick >> shift >> SLOT_BITS << SLOT_BITS << shift;
            return Some((level, slot, above | (slot as u64) << shift));
        }
        None
    }

    fn link(&mut self, node: u32, due: u64) {
        let at = due.max(self.tick);
        let level =
            ((63 - ((at ^ self.tick) | 1).leading_zeros() as usize) / SLOT_BITS).min(LEVELS - 1);
        let slot = (at >> (level * SLOT_BITS)) as usize & (SLOTS - 1);
        let head = std::mem::replace(&mut self.heads[level][slot], node);
        self.occupied[level][slot / 64] |= 1 << (slot % 64);
        self.nodes[node as usize] =
            Node { due, previous: NONE, next: head, place: (level * SLOTS + slot) as u32 };
        if head != NONE {
            self.nodes[head as usize].previous = node;
        }
    }

    fn unlink(&mut self, node: u32) {
        let Node { previous, next, place, .. } = self.nodes[node as usize];
        self.nodes[node as usize].place = NOWHERE;
        if next != NONE {
            self.nodes[next as usize].previous = previous;
        }
        if previous != NONE {
            self.nodes[previous as usize].next = next;
            return;
        }
        let (level, slot) = (place as usize / SLOTS, place as usize % SLOTS);
        self.heads[level][slot] = next;
        if next == NONE {
            self.occupied[level][slot / 64] &= !(1 << (slot % 64));
        }
    }
}

#[derive(Clone, Copy, Debug)]
struct Node {
    due: u64,
    previous: u32,
    next: u32,
    place: u32,
}

impl Node {
    const UNLINKED: Self = Self { due: 0, previous: NONE, next: NONE, place: NOWHERE };
}

const LEVELS: usize = 5;
const SLOT_BITS: usize = 8;
const SLOTS: usize = 1 << SLOT_BITS;
const MAX_TICK: u64 = (1 << (LEVELS * SLOT_BITS)) - 1;
const NONE: u32 = u32::MAX;
const NOWHERE: u32 = u32::MAX;

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    fn pop_all(wheel: &mut Wheel, now: u64) -> Vec<u32> {
        let mut due = vec![];
        for _ in 0..1_000_000 {
            match wheel.pop(now) {
                Popped::Due(node) => due.push(node),
                Popped::Moved => {}
                Popped::Nothing => return due,
            }
        }
        panic!("the wheel never comes to rest");
    }

    #[test]
    fn every_distance_fires_at_its_tick_and_not_before() {
        for start in [0, 1, 255, 256, 65_535, 1 << 24, (1 << 32) - 1] {
            for shift in 0..39 {
                for distance in [(1u64 << shift) - 1, 1 << shift, (1 << shift) + 1] {
                    let mut wheel = Wheel::new(1);
                    pop_all(&mut wheel, start);
                    wheel.arm(0, start + distance);
                    if distance > 0 {
                        assert_eq!(pop_all(&mut wheel, start + distance - 1), []);
                    }
                    assert_eq!(pop_all(&mut wheel, start + distance), [0], "{start} + {distance}");
                }
            }
        }
    }

    #[test]
    fn next_tick_leads_to_every_deadline_without_waiting_too_long() {
        let mut wheel = Wheel::new(1);
        wheel.arm(0, 1_234_567_890);
        let mut steps = 0;
        loop {
            let now = wheel.next_tick().unwrap();
            assert!(now <= 1_234_567_890);
            match wheel.pop(now) {
                Popped::Due(0) => break assert_eq!(now, 1_234_567_890),
                _ => steps += 1,
            }
            assert!(steps < 10, "one step per level");
        }
    }

    #[test]
    fn what_is_beyond_the_range_waits_at_its_end() {
        let mut wheel = Wheel::new(1);
        wheel.arm(0, u64::MAX);
        assert_eq!(pop_all(&mut wheel, MAX_TICK - 1), []);
        assert_eq!(pop_all(&mut wheel, u64::MAX), [0]);
    }

    #[test]
    fn a_pop_moves_one_node_at_most() {
        let mut wheel = Wheel::new(1000);
        (0..1000).for_each(|node| wheel.arm(node, 70_000 + u64::from(node % 7)));
        assert_eq!(wheel.pop(69_999), Popped::Moved);
        assert_eq!(wheel.armed(), 1000);
    }

    proptest! {
        #[test]
        fn it_behaves_like_a_sorted_map(
            steps in prop::collection::vec((0u8..3, 0u32..40, 0u64..3_000_000), 1..200)
        ) {
            let mut wheel = Wheel::new(40);
            let mut model = BTreeMap::new();
            let mut now = 0;
            for (kind, node, distance) in steps {
                match kind {
                    0 => {
                        wheel.arm(node, now + distance);
                        model.insert(node, now + distance);
                    }
                    1 => {
                        wheel.cancel(node);
                        model.remove(&node);
                    }
                    _ => {
                        now += distance;
                        let mut fired = pop_all(&mut wheel, now);
                        let mut expected: Vec<u32> =
                            model.iter().filter(|(_, due)| **due <= now).map(|(n, _)| *n).collect();
                        model.retain(|_, due| *due > now);
                        fired.sort_unstable();
                        expected.sort_unstable();
                        prop_assert_eq!(fired, expected);
                    }
                }
                prop_assert_eq!(wheel.armed(), model.len());
                let earliest = model.values().min().copied();
                prop_assert_eq!(wheel.next_tick().is_some(), earliest.is_some());
                prop_assert!(wheel.next_tick() <= earliest.map(|due| due.max(now)));
            }
        }
    }
}
