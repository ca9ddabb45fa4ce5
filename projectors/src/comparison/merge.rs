//! Merges two ordered sides.

use std::cmp::Ordering;

use futures::{Stream, TryStreamExt, try_join};

/// Two ordered sides, read together. Holds one item of each.
pub(crate) struct Merge<E, F, K> {
    expected: E,
    found: F,
    next_expected: Next<K>,
    next_found: Next<K>,
}

/// The next item of a side.
enum Next<K> {
    Unread,
    Read(Option<(K, String)>),
}

/// A key and its content on each side; at least one side has it.
pub(crate) type Pair<K> = (K, Option<String>, Option<String>);

impl<K, E, F, Error> Merge<E, F, K>
where
    K: Ord,
    E: Stream<Item = Result<(K, String), Error>> + Unpin,
    F: Stream<Item = Result<(K, String), Error>> + Unpin,
{
    /// Merges two sides that are in order and have each key once.
    pub(crate) const fn new(expected: E, found: F) -> Self {
        Self { expected, found, next_expected: Next::Unread, next_found: Next::Unread }
    }

    /// Returns the next key of either side; `None` at the end.
    pub(crate) async fn next(&mut self) -> Result<Option<Pair<K>>, Error> {
        // Reads both sides concurrently, as each may need a round trip.
        let (expected, found) =
            try_join!(self.next_expected.read(&mut self.expected), self.next_found.read(&mut self.found))?;
        let order = match (&expected, &found) {
            (None, None) => return Ok(None),
            (Some(_), None) => Ordering::Less,
            (None, Some(_)) => Ordering::Greater,
            (Some((expected, _)), Some((found, _))) => expected.cmp(found),
        };
        Ok(match (expected, found) {
            (Some((key, expected)), found) if order.is_lt() => {
                self.next_found = Next::Read(found);
                Some((key, Some(expected), None))
            }
            (expected, Some((key, found))) if order.is_gt() => {
                self.next_expected = Next::Read(expected);
                Some((key, None, Some(found)))
            }
            (expected, found) => {
                let found = found.map(|(_, found)| found);
                expected.map(|(key, expected)| (key, Some(expected), found))
            }
        })
    }
}

impl<K> Next<K> {
    /// Takes the item that was peeked, or reads one.
    async fn read<Error>(
        &mut self,
        side: &mut (impl Stream<Item = Result<(K, String), Error>> + Unpin),
    ) -> Result<Option<(K, String)>, Error> {
        match std::mem::replace(self, Self::Unread) {
            Self::Unread => side.try_next().await,
            Self::Read(item) => Ok(item),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{
        collections::{BTreeMap, BTreeSet},
        convert::Infallible,
    };

    use futures::{FutureExt, stream};
    use proptest::prelude::*;

    use super::*;

    type Key = (i64, i64);
    type Side = BTreeMap<Key, String>;

    /// Few keys and contents, so that all collides.
    fn side() -> impl Strategy<Value = Side> {
        prop::collection::btree_map((-3..3_i64, -3..3_i64), "[ab]", 0..30)
    }

    fn rows(side: &Side) -> impl Stream<Item = Result<(Key, String), Infallible>> + Unpin {
        stream::iter(side.clone().into_iter().map(Ok))
    }

    fn merged(expected: &Side, found: &Side) -> Vec<Pair<Key>> {
        let mut all = Vec::new();
        let merging = async {
            let mut merge = Merge::new(rows(expected), rows(found));
            while let Ok(Some(pair)) = merge.next().await {
                all.push(pair);
            }
        };
        merging.now_or_never().expect("it waits for nothing");
        all
    }

    proptest! {
        #[test]
        fn merge_equals_lookup_of_every_key(expected in side(), found in side()) {
            let keys: BTreeSet<Key> = expected.keys().chain(found.keys()).copied().collect();
            let looked_up: Vec<_> =
                keys.into_iter().map(|key| (key, expected.get(&key).cloned(), found.get(&key).cloned())).collect();
            prop_assert_eq!(merged(&expected, &found), looked_up);
        }
    }
}
