//! Two sides that are in the same order, walked over together.

use std::{cmp::Ordering, ops::ControlFlow};

use futures::{Stream, TryStreamExt, try_join};

/// Hands over each key that either side has, in order, with what they have under it; until it is told to break off. Of
/// each side it holds one item.
pub(super) async fn merge<K: Ord, E>(
    next: impl Stream<Item = Result<(K, String), E>>,
    live: impl Stream<Item = Result<(K, String), E>>,
    mut each: impl FnMut(K, Option<String>, Option<String>) -> ControlFlow<()>,
) -> Result<(), E> {
    let (mut next, mut live) = (std::pin::pin!(next), std::pin::pin!(live));
    let (mut expected, mut found) = (next.try_next().await?, live.try_next().await?);
    loop {
        let order = match (&expected, &found) {
            (None, None) => return Ok(()),
            (Some(_), None) => Ordering::Less,
            (None, Some(_)) => Ordering::Greater,
            (Some((expected, _)), Some((found, _))) => expected.cmp(found),
        };
        let of_next = if order.is_le() { expected.take() } else { None };
        let of_live = if order.is_ge() { found.take() } else { None };
        match order {
            Ordering::Less => expected = next.try_next().await?,
            Ordering::Greater => found = live.try_next().await?,
            // At once: the pages of two sides that are equal end together.
            Ordering::Equal => (expected, found) = try_join!(next.try_next(), live.try_next())?,
        }
        let flow = match (of_next, of_live) {
            (Some((key, next)), live) => each(key, Some(next), live.map(|(_, live)| live)),
            (None, Some((key, live))) => each(key, None, Some(live)),
            (None, None) => return Ok(()),
        };
        if flow.is_break() {
            return Ok(());
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeMap, convert::Infallible};

    use futures::{FutureExt, stream};
    use proptest::prelude::*;

    use super::*;
    use crate::audit::{Difference, Lines, compare};

    type Side = BTreeMap<(i64, i64), String>;
    type Merged = ((i64, i64), Option<String>, Option<String>);

    /// Few keys and contents, so that all collides.
    fn side() -> impl Strategy<Value = Side> {
        prop::collection::btree_map((-3..3_i64, -3..3_i64), "[ab]", 0..30)
    }

    fn named(side: &Side) -> Lines {
        side.iter().map(|((a, b), content)| (format!("{a}/{b}"), content.clone())).collect()
    }

    fn rows(side: &Side) -> impl Stream<Item = Result<((i64, i64), String), Infallible>> {
        stream::iter(side.clone().into_iter().map(Ok))
    }

    fn merged(next: &Side, live: &Side, most: usize) -> Vec<Merged> {
        let mut all = Vec::new();
        let merging = merge(rows(next), rows(live), |key, next, live| {
            all.push((key, next, live));
            if all.len() < most { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
        });
        let Ok(()) = merging.now_or_never().expect("it waits for nothing");
        all
    }

    proptest! {
        #[test]
        fn it_finds_what_comparing_maps_finds(next in side(), live in side()) {
            let all = merged(&next, &live, usize::MAX);
            prop_assert!(all.is_sorted_by(|(a, ..), (b, ..)| a < b), "each key once, in order");
            let lines = all.iter().filter(|(_, next, _)| next.is_some()).count();
            prop_assert_eq!(lines, next.len());
            let differing = all.iter().filter(|(_, next, live)| next != live);
            let mut found: Vec<Difference> = differing
                .map(|((a, b), expected, found)| Difference {
                    name: format!("{a}/{b}"),
                    expected: expected.clone(),
                    found: found.clone(),
                })
                .collect();
            let mut expected = compare(named(&next), named(&live));
            found.sort_by(|a, b| a.name.cmp(&b.name));
            expected.sort_by(|a, b| a.name.cmp(&b.name));
            prop_assert_eq!(found, expected);
        }

        #[test]
        fn it_ends_when_it_is_told_to(next in side(), live in side(), most in 1..10_usize) {
            let mut all = merged(&next, &live, usize::MAX);
            all.truncate(most);
            prop_assert_eq!(merged(&next, &live, most), all);
        }
    }
}
