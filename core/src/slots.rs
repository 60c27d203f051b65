//! [`Slots`]: a dense table with generational ids, so that a stale id finds nothing instead of a stranger.

/// An index with the generation of what stands there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct SlotId {
    pub(crate) index: u32,
    pub(crate) generation: u32,
}

pub(crate) struct Slots<T> {
    slots: Vec<Slot<T>>,
    free: Vec<u32>,
}

struct Slot<T> {
    generation: u32,
    value: Option<T>,
}

impl<T> Slots<T> {
    #[cfg(test)]
    pub(crate) const SLOT_BYTES: usize = size_of::<Slot<T>>();

    pub(crate) fn new() -> Self {
        Self {
            slots: Vec::new(),
            free: Vec::new(),
        }
    }

    pub(crate) fn len(&self) -> usize {
        self.slots.len() - self.free.len()
    }

    pub(crate) fn insert(&mut self, value: T) -> SlotId {
        let index = self.free.pop().unwrap_or_else(|| {
            self.slots.push(Slot {
                generation: 0,
                value: None,
            });
            (self.slots.len() - 1) as u32
        });
        let slot = &mut self.slots[index as usize];
        debug_assert!(slot.value.is_none());
        slot.value = Some(value);
        SlotId {
            index,
            generation: slot.generation,
        }
    }

    pub(crate) fn remove(&mut self, id: SlotId) -> Option<T> {
        let slot = self.slots.get_mut(id.index as usize)?;
        if slot.generation != id.generation {
            return None;
        }
        let value = slot.value.take()?;
        slot.generation = slot.generation.wrapping_add(1);
        self.free.push(id.index);
        Some(value)
    }

    pub(crate) fn get(&self, id: SlotId) -> Option<&T> {
        let slot = self.slots.get(id.index as usize)?;
        (slot.generation == id.generation)
            .then_some(slot.value.as_ref())
            .flatten()
    }

    pub(crate) fn get_mut(&mut self, id: SlotId) -> Option<&mut T> {
        let slot = self.slots.get_mut(id.index as usize)?;
        (slot.generation == id.generation)
            .then_some(slot.value.as_mut())
            .flatten()
    }

    /// What stands at `index`, whatever its generation: for links between tables that are kept in step.
    pub(crate) fn at(&self, index: u32) -> Option<(SlotId, &T)> {
        let slot = self.slots.get(index as usize)?;
        let id = SlotId {
            index,
            generation: slot.generation,
        };
        slot.value.as_ref().map(|value| (id, value))
    }

    /// As [`Self::at`].
    pub(crate) fn at_mut(&mut self, index: u32) -> Option<(SlotId, &mut T)> {
        let slot = self.slots.get_mut(index as usize)?;
        let id = SlotId {
            index,
            generation: slot.generation,
        };
        slot.value.as_mut().map(|value| (id, value))
    }

    pub(crate) fn iter_mut(&mut self) -> impl Iterator<Item = (SlotId, &mut T)> {
        let slots = self.slots.iter_mut().enumerate();
        slots.filter_map(|(index, Slot { generation, value })| {
            let id = SlotId {
                index: index as u32,
                generation: *generation,
            };
            value.as_mut().map(|value| (id, value))
        })
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (SlotId, &T)> {
        (0..self.slots.len() as u32).filter_map(|index| self.at(index))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stale_id_finds_nothing() {
        let mut slots = Slots::new();
        let first = slots.insert('a');
        assert_eq!(slots.remove(first), Some('a'));
        let second = slots.insert('b');
        assert_eq!(second.index, first.index);
        assert_eq!(slots.get(first), None);
        assert_eq!(slots.get_mut(first), None);
        assert_eq!(slots.remove(first), None);
        assert_eq!(slots.get(second), Some(&'b'));
        assert_eq!(slots.len(), 1);
        assert_eq!(slots.iter().count(), 1);
    }
}
