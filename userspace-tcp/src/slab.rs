//! Records of one kind in a bounded array; an index is reused, an index with its generation never is.

/// A bounded collection whose members are named by an index.
#[derive(Debug)]
pub(crate) struct Slab<T> {
    entries: Vec<Entry<T>>,
    free: Vec<u32>,
    limit: usize,
}

#[derive(Debug)]
struct Entry<T> {
    generation: u32,
    value: Option<T>,
}

impl<T> Slab<T> {
    /// An empty slab that never holds more than `limit` members. Its address space is reserved at once.
    pub(crate) fn new(limit: usize) -> Self {
        Self { entries: Vec::with_capacity(limit), free: Vec::with_capacity(limit), limit }
    }

    /// Adds a member, unless the slab is full.
    pub(crate) fn insert(&mut self, value: T) -> Option<u32> {
        if let Some(index) = self.free.pop() {
            self.entries[index as usize].value = Some(value);
            return Some(index);
        }
        if self.entries.len() == self.limit {
            return None;
        }
        self.entries.push(Entry { generation: 0, value: Some(value) });
        Some((self.entries.len() - 1) as u32)
    }

    /// Takes a member out; its generation will not come again for four billion removals.
    pub(crate) fn remove(&mut self, index: u32) -> Option<T> {
        let entry = self.entries.get_mut(index as usize)?;
        let value = entry.value.take()?;
        entry.generation = entry.generation.wrapping_add(1);
        self.free.push(index);
        Some(value)
    }

    pub(crate) fn at(&self, index: u32) -> Option<&T> {
        self.entries.get(index as usize)?.value.as_ref()
    }

    pub(crate) fn at_mut(&mut self, index: u32) -> Option<&mut T> {
        self.entries.get_mut(index as usize)?.value.as_mut()
    }

    /// Two different members at once.
    pub(crate) fn pair_mut(&mut self, a: u32, b: u32) -> Option<(&mut T, &mut T)> {
        let [a, b] = self.entries.get_disjoint_mut([a as usize, b as usize]).ok()?;
        Some((a.value.as_mut()?, b.value.as_mut()?))
    }

    pub(crate) fn generation(&self, index: u32) -> Option<u32> {
        self.entries.get(index as usize).map(|entry| entry.generation)
    }

    pub(crate) fn len(&self) -> usize {
        self.entries.len() - self.free.len()
    }

    pub(crate) fn is_full(&self) -> bool {
        self.len() == self.limit
    }

    pub(crate) fn limit(&self) -> usize {
        self.limit
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_holds_no_more_than_its_limit_and_changes_generations() {
        let mut slab = Slab::new(2);
        let a = slab.insert('a').unwrap();
        let b = slab.insert('b').unwrap();
        assert_eq!(slab.insert('c'), None);
        assert!(slab.is_full());
        let before = slab.generation(a);
        assert_eq!(slab.remove(a), Some('a'));
        assert_eq!(slab.remove(a), None);
        assert_eq!(slab.insert('d'), Some(a));
        assert_ne!(slab.generation(a), before);
        assert_eq!(slab.pair_mut(a, b), Some((&mut 'd', &mut 'b')));
        assert_eq!(slab.pair_mut(a, a), None);
        assert_eq!(slab.len(), 2);
    }
}
