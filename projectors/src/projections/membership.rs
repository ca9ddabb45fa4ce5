//! Nets the additions and removals of a batch, for the tables that are sets.

use std::collections::{BTreeMap, BTreeSet};

/// Net effect of a batch on a set of unknown content: apply the removals, then add the members that are
/// absent.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Net<K, V> {
    /// Members that the batch removes at some point.
    pub(super) removed: Vec<K>,
    /// Members that are present at the end, with the value of their first addition after their last removal.
    pub(super) added: Vec<(K, V)>,
}

impl<K: Ord, V> Net<K, V> {
    /// Returns the members that it may change.
    pub(super) fn keys(&self) -> BTreeSet<&K> {
        self.removed.iter().chain(self.added.iter().map(|(key, _)| key)).collect()
    }

    /// Returns the effect on a set of known content: the removals of members that are present, and the additions of those
    /// that are absent then.
    pub(super) fn on(mut self, is_present: impl Fn(&K) -> bool) -> Self {
        let removed: BTreeSet<&K> = self.removed.iter().collect();
        self.added.retain(|(key, _)| removed.contains(key) || !is_present(key));
        self.removed.retain(is_present);
        self
    }
}

/// Returns the net effect of changes in order: `Some` adds a member unless it is present, `None` removes it.
pub(super) fn net<K: Ord + Copy, V>(changes: impl IntoIterator<Item = (K, Option<V>)>) -> Net<K, V> {
    let mut members: BTreeMap<K, (bool, Option<V>)> = BTreeMap::new();
    for (key, change) in changes {
        let (removed, added) = members.entry(key).or_insert((false, None));
        if let Some(value) = change {
            added.get_or_insert(value);
        } else {
            (*removed, *added) = (true, None);
        }
    }
    let removed = members.iter().filter(|(_, (removed, _))| *removed).map(|(key, _)| *key).collect();
    let added = members.into_iter().filter_map(|(key, (_, added))| added.map(|value| (key, value))).collect();
    Net { removed, added }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    type Change = (u8, Option<u32>);

    fn one_by_one(set: &mut BTreeMap<u8, u32>, changes: &[Change]) {
        for (key, change) in changes {
            match change {
                Some(value) => _ = set.entry(*key).or_insert(*value),
                None => _ = set.remove(key),
            }
        }
    }

    fn at_once(set: &mut BTreeMap<u8, u32>, changes: &[Change]) {
        let net = net(changes.iter().copied()).on(|key| set.contains_key(key));
        for key in net.removed {
            assert!(set.remove(&key).is_some());
        }
        for (key, value) in net.added {
            assert!(set.insert(key, value).is_none());
        }
    }

    proptest! {
        #[test]
        fn cutting_a_run_anywhere_comes_to_the_same(
            changes in prop::collection::vec((0..4_u8, prop::option::of(any::<u32>())), 0..40),
            cut in any::<prop::sample::Index>(),
        ) {
            let cut = cut.index(changes.len() + 1);
            let (mut expected, mut actual) = (BTreeMap::new(), BTreeMap::new());
            one_by_one(&mut expected, &changes);
            at_once(&mut actual, &changes[..cut]);
            at_once(&mut actual, &changes[cut..]);
            prop_assert_eq!(expected, actual);
        }
    }
}
