//! A set of small numbers, of which the next missing one is found quickly.

/// A set of numbers below `len`.
#[derive(Debug, Clone)]
pub(super) struct Bitmap {
    /// Bits at and beyond `len` are set.
    words: Box<[u64]>,
    len: u32,
    count: u32,
    next: u32,
}

impl Bitmap {
    /// The empty set of numbers below `len`.
    pub(super) fn new(len: u32) -> Self {
        let mut words = vec![0; len.div_ceil(64) as usize].into_boxed_slice();
        if let Some(last) = words.last_mut()
            && !len.is_multiple_of(64)
        {
            *last = !0 << (len % 64);
        }
        Self { words, len, count: 0, next: 0 }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.count == 0
    }

    pub(super) fn is_full(&self) -> bool {
        self.count == self.len
    }

    pub(super) fn contains(&self, number: u32) -> bool {
        number < self.len && self.words[number as usize / 64] & (1 << (number % 64)) != 0
    }

    pub(super) fn insert(&mut self, number: u32) {
        if !self.contains(number) {
            self.words[number as usize / 64] |= 1 << (number % 64);
            self.count += 1;
        }
    }

    pub(super) fn remove(&mut self, number: u32) {
        if self.contains(number) {
            self.words[number as usize / 64] &= !(1 << (number % 64));
            self.count -= 1;
        }
    }

    /// Where [`Bitmap::take_next`] begins to look.
    pub(super) fn start_at(&mut self, number: u32) {
        self.next = number;
    }

    /// Inserts the next missing number after the one inserted before, around the end; `None` when full.
    pub(super) fn take_next(&mut self) -> Option<u32> {
        let number = self.first_clear_from(self.next)?;
        self.insert(number);
        self.next = number + 1;
        Some(number)
    }

    /// The first missing number from `start` on, around the end; `None` when full.
    pub(super) fn first_clear_from(&self, start: u32) -> Option<u32> {
        if self.is_full() {
            return None;
        }
        let start = if start < self.len { start } else { 0 };
        let first = start as usize / 64;
        let behind = !self.words[first] & (!0 << (start % 64));
        if behind != 0 {
            return Some(first as u32 * 64 + behind.trailing_zeros());
        }
        let round = (first + 1..self.words.len()).chain(0..=first);
        round
            .map(|word| (word as u32 * 64, !self.words[word]))
            .find(|(_, clear)| *clear != 0)
            .map(|(base, clear)| base + clear.trailing_zeros())
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn every_number_is_taken_once_around_the_end() {
        for len in [1, 63, 64, 65, 130] {
            let mut bitmap = Bitmap::new(len);
            bitmap.start_at(len / 2);
            let taken: Vec<u32> = std::iter::from_fn(|| bitmap.take_next()).collect();
            let expected: Vec<u32> = (len / 2..len).chain(0..len / 2).collect();
            assert_eq!(taken, expected);
            assert!(bitmap.is_full());
        }
    }

    #[test]
    fn an_empty_range_is_full() {
        assert_eq!(Bitmap::new(0).take_next(), None);
    }

    proptest! {
        #[test]
        fn it_is_a_set(len in 1u32..200, steps in prop::collection::vec((0u32..200, 0..3), 0..300)) {
            let (mut bitmap, mut model) = (Bitmap::new(len), BTreeSet::new());
            for (number, step) in steps {
                let number = number % len;
                match step {
                    0 => { bitmap.insert(number); model.insert(number); }
                    1 => { bitmap.remove(number); model.remove(&number); }
                    _ => {
                        let expected = (number..len).chain(0..number).find(|n| !model.contains(n));
                        prop_assert_eq!(bitmap.first_clear_from(number), expected);
                    }
                }
                prop_assert_eq!(bitmap.contains(number), model.contains(&number));
                prop_assert_eq!(bitmap.is_empty(), model.is_empty());
                prop_assert_eq!(bitmap.is_full(), model.len() == len as usize);
            }
        }
    }
}
