//! [`BucketSet`]: some of the buckets.

/// The most buckets that keys can be hashed into.
pub(crate) const MAX_BUCKETS: u32 = 16 * 1024;

/// A set of buckets. Their number is a power of two, so that buckets of one number nest in those of a smaller one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct BucketSet {
    words: Box<[u64]>,
    count: u32,
}

impl BucketSet {
    /// None of `count` buckets.
    pub(crate) fn none(count: u32) -> Self {
        Self {
            words: vec![0; count.div_ceil(64) as usize].into(),
            count,
        }
    }

    /// Of how many it is a set.
    pub(crate) fn count(&self) -> u32 {
        self.count
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.words.iter().all(|&word| word == 0)
    }

    pub(crate) fn contains(&self, bucket: u32) -> bool {
        self.words
            .get(bucket as usize / 64)
            .is_some_and(|word| word >> (bucket % 64) & 1 == 1)
    }

    pub(crate) fn insert(&mut self, bucket: u32) {
        if let Some(word) = self.words.get_mut(bucket as usize / 64) {
            *word |= 1 << (bucket % 64);
        }
    }

    pub(crate) fn remove(&mut self, bucket: u32) {
        if let Some(word) = self.words.get_mut(bucket as usize / 64) {
            *word &= !(1 << (bucket % 64));
        }
    }

    pub(crate) fn insert_all(&mut self) {
        (0..self.count).for_each(|bucket| self.insert(bucket));
    }

    pub(crate) fn clear(&mut self) {
        self.words.fill(0);
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = u32> {
        (0..self.count).filter(|&bucket| self.contains(bucket))
    }

    /// Whether any key can be in one of these buckets and in bucket `part` of `parts`.
    pub(crate) fn meets(&self, part: u32, parts: u32) -> bool {
        let fewer = self.count.min(parts);
        self.iter().any(|bucket| bucket % fewer == part % fewer)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::key::EntityKey;

    #[test]
    fn a_part_that_is_passed_by_has_no_key_of_the_set() {
        for count in [1, 4, 64, 1024] {
            for parts in [2, 64] {
                let mut set = BucketSet::none(count);
                set.insert(3 % count);
                set.insert(700 % count);
                for id in 0..500 {
                    let key = EntityKey::new("items", &id.to_string()).expect("short");
                    if set.contains(key.bucket(count)) {
                        assert!(set.meets(key.bucket(parts), parts));
                    }
                }
            }
        }
        let mut set = BucketSet::none(1024);
        assert!(set.is_empty() && !set.meets(3, 64));
        set.insert(3 + 64);
        assert!(set.meets(3, 64) && !set.meets(4, 64));
        assert_eq!(set.iter().collect::<Vec<_>>(), [67]);
        set.remove(67);
        assert!(set.is_empty());
        set.insert_all();
        assert_eq!(set.iter().count(), 1024);
    }
}
