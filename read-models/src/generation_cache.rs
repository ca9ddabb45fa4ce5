//! A cache of the live generation of each Redis view, and of whether the view is complete.
//!
//! The source is one hash in Redis ([`Keys::generations`]), which is lost together with the views. Every pipeline ends
//! with a query of the hash: if it still names a view, the replies before it are of a complete view. So no reader pays a
//! round trip for the check.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

use redis::{Cmd, FromRedisValue, Value, cmd};
use vidlog_schemas::{
    Keys,
    projections::{self, Projection, View},
};

use crate::error::{ReadError, Store};

/// The latest observed generations. Clones share them.
#[derive(Clone)]
pub(crate) struct GenerationCache {
    keys: Keys,
    /// How often each view was observed as incomplete, in the order of [`views`].
    incomplete: Arc<[AtomicU64]>,
}

/// The observed state of the views of a read, taken before the read.
pub(crate) struct Snapshot(Vec<(Projection, u64, u32)>);

/// What changed since a snapshot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Change {
    /// Nothing: the result is of complete, live views.
    None,
    /// Another generation is live: the result may be of deleted keys, so the read must be repeated.
    Generation,
    /// A view is incomplete: the result may lack anything.
    Incomplete,
}

impl GenerationCache {
    pub(crate) fn new(keys: Keys) -> Self {
        Self { keys, incomplete: views().map(|_| AtomicU64::new(0)).collect() }
    }

    /// Returns the command that reads the hash, the last of every pipeline.
    pub(crate) fn generations_query(&self) -> Cmd {
        let mut query = cmd("HMGET");
        query.arg(self.keys.generations());
        for projection in views() {
            query.arg(projection.name);
        }
        query
    }

    /// Stores the reply of [`Self::generations_query`]. Keys are of the live generations from then on.
    pub(crate) fn observe(&self, reply: Value) -> Result<(), ReadError> {
        let generations = Vec::<Option<u32>>::from_redis_value(reply)
            .map_err(|error| ReadError::fault(Store::Redis, error))?;
        for ((projection, incomplete), generation) in views().zip(self.incomplete.iter()).zip(generations) {
            match generation {
                None => _ = incomplete.fetch_add(1, Ordering::Relaxed),
                Some(generation) => self.keys.set_generation(projection, generation),
            }
        }
        Ok(())
    }

    /// Returns the observed state of those projections that are Redis views.
    pub(crate) fn snapshot(&self, projections: &[Projection]) -> Snapshot {
        let states = views().zip(self.incomplete.iter()).filter(|(view, _)| projections.contains(view)).map(
            |(view, incomplete)| (*view, incomplete.load(Ordering::Relaxed), self.keys.generation(view)),
        );
        Snapshot(states.collect())
    }

    /// Returns what changed since a snapshot.
    pub(crate) fn change_since(&self, snapshot: &Snapshot) -> Change {
        let projections: Vec<_> = snapshot.0.iter().map(|(projection, ..)| *projection).collect();
        let now = self.snapshot(&projections);
        let pairs = || snapshot.0.iter().zip(&now.0);
        if pairs().any(|((_, before, _), (_, after, _))| before != after) {
            Change::Incomplete
        } else if pairs().any(|((.., before), (.., after))| before != after) {
            Change::Generation
        } else {
            Change::None
        }
    }
}

/// Returns the projections whose views are in Redis.
fn views() -> impl Iterator<Item = &'static Projection> {
    projections::ALL.iter().filter(|projection| matches!(projection.view, View::Redis(_)))
}

#[cfg(test)]
mod tests {
    use vidlog_schemas::projections::{FEED, LIKES, LIKES_TABLE};

    use super::*;

    fn reply(generation: impl Fn(&Projection) -> Option<u32>) -> Value {
        let value = |generation: Option<u32>| {
            generation.map_or(Value::Nil, |number| Value::BulkString(number.to_string().into_bytes()))
        };
        Value::Array(views().map(|projection| value(generation(projection))).collect())
    }

    #[test]
    fn change_covers_only_the_views_of_the_read() {
        let cache = GenerationCache::new(Keys::new("n", 16));
        let (likes, feed) = (cache.snapshot(&[LIKES, LIKES_TABLE]), cache.snapshot(&[FEED]));
        cache.observe(reply(|_| Some(1))).unwrap();
        assert_eq!((cache.change_since(&likes), cache.change_since(&feed)), (Change::None, Change::None));
        cache.observe(reply(|projection| (*projection != LIKES).then_some(1))).unwrap();
        assert_eq!(
            (cache.change_since(&likes), cache.change_since(&feed)),
            (Change::Incomplete, Change::None)
        );
    }

    #[test]
    fn loss_during_a_read_outlives_a_later_refill() {
        let cache = GenerationCache::new(Keys::new("n", 16));
        let snapshot = cache.snapshot(&[LIKES]);
        cache.observe(reply(|_| None)).unwrap();
        cache.observe(reply(|_| Some(2))).unwrap();
        assert_eq!(cache.change_since(&snapshot), Change::Incomplete);
    }

    #[test]
    fn clones_of_keys_share_the_observed_generation() {
        let keys = Keys::new("n", 16);
        let cache = GenerationCache::new(keys.clone());
        let snapshot = cache.snapshot(&[LIKES]);
        cache.observe(reply(|_| Some(2))).unwrap();
        assert_eq!(cache.change_since(&snapshot), Change::Generation);
        assert_eq!(keys.generation(&LIKES), 2);
        assert_eq!(cache.change_since(&cache.snapshot(&[LIKES])), Change::None);
    }
}
