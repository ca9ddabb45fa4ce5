//! Which views of Redis are complete, and which generation of each is live.
//!
//! Redis says so in one hash ([`Keys::generations`]), which is lost together with the views if Redis loses everything.
//! It is asked for at the end of every pipeline: what was read before it is of a complete view if it is still there, and
//! no reader pays a round trip for that.

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

/// What was heard of the views. Clones share it.
#[derive(Clone)]
pub(crate) struct Live {
    keys: Keys,
    /// How often each was heard to be incomplete, in the order of [`views`].
    incomplete: Arc<[AtomicU64]>,
}

/// What was known before a read of the views that it reads.
pub(crate) struct Known(Vec<(Projection, u64, u32)>);

/// What was heard while a read went on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Heard {
    /// Nothing new: what was read is right.
    Nothing,
    /// Another generation is live: what was read may be of keys that are gone. It has to be read again.
    Switch,
    /// A view is not complete: what was read may lack anything.
    Loss,
}

impl Live {
    pub(crate) fn new(keys: Keys) -> Self {
        Self { keys, incomplete: views().map(|_| AtomicU64::new(0)).collect() }
    }

    /// What to ask Redis after the last command of a pipeline.
    pub(crate) fn question(&self) -> Cmd {
        let mut question = cmd("HMGET");
        question.arg(self.keys.generations());
        for projection in views() {
            question.arg(projection.name);
        }
        question
    }

    /// Takes the answer. Keys are made of the live generation from now on.
    pub(crate) fn hear(&self, answer: Value) -> Result<(), ReadError> {
        let generations = Vec::<Option<u32>>::from_redis_value(answer)
            .map_err(|error| ReadError::fault(Store::Redis, error))?;
        for ((projection, incomplete), generation) in views().zip(self.incomplete.iter()).zip(generations) {
            match generation {
                None => _ = incomplete.fetch_add(1, Ordering::Relaxed),
                Some(generation) => self.keys.set_generation(projection, generation),
            }
        }
        Ok(())
    }

    /// What is known of those of some projections that are views of Redis.
    pub(crate) fn known(&self, projections: &[Projection]) -> Known {
        let known = views().zip(self.incomplete.iter()).filter(|(view, _)| projections.contains(view)).map(
            |(view, incomplete)| (*view, incomplete.load(Ordering::Relaxed), self.keys.generation(view)),
        );
        Known(known.collect())
    }

    /// What was heard since.
    pub(crate) fn heard_since(&self, known: &Known) -> Heard {
        let projections: Vec<_> = known.0.iter().map(|(projection, ..)| *projection).collect();
        let now = self.known(&projections);
        let pairs = || known.0.iter().zip(&now.0);
        if pairs().any(|((_, before, _), (_, after, _))| before != after) {
            Heard::Loss
        } else if pairs().any(|((.., before), (.., after))| before != after) {
            Heard::Switch
        } else {
            Heard::Nothing
        }
    }
}

/// The projections whose views are in Redis.
fn views() -> impl Iterator<Item = &'static Projection> {
    projections::ALL.iter().filter(|projection| matches!(projection.view, View::Redis(_)))
}

#[cfg(test)]
mod tests {
    use vidlog_schemas::projections::{FEED, LIKES, LIKES_TABLE};

    use super::*;

    fn answer(generation: impl Fn(&Projection) -> Option<u32>) -> Value {
        let value = |generation: Option<u32>| {
            generation.map_or(Value::Nil, |number| Value::BulkString(number.to_string().into_bytes()))
        };
        Value::Array(views().map(|projection| value(generation(projection))).collect())
    }

    #[test]
    fn a_read_hears_of_what_it_reads_and_of_nothing_else() {
        let live = Live::new(Keys::new("n", 16));
        let (likes, feed) = (live.known(&[LIKES, LIKES_TABLE]), live.known(&[FEED]));
        live.hear(answer(|_| Some(1))).unwrap();
        assert_eq!((live.heard_since(&likes), live.heard_since(&feed)), (Heard::Nothing, Heard::Nothing));
        live.hear(answer(|projection| (*projection != LIKES).then_some(1))).unwrap();
        assert_eq!((live.heard_since(&likes), live.heard_since(&feed)), (Heard::Loss, Heard::Nothing));
    }

    #[test]
    fn a_loss_that_anyone_heard_of_during_a_read_is_not_forgotten() {
        let live = Live::new(Keys::new("n", 16));
        let known = live.known(&[LIKES]);
        live.hear(answer(|_| None)).unwrap();
        live.hear(answer(|_| Some(2))).unwrap();
        assert_eq!(live.heard_since(&known), Heard::Loss);
    }

    #[test]
    fn all_clones_make_keys_of_the_generation_that_was_heard_of() {
        let keys = Keys::new("n", 16);
        let live = Live::new(keys.clone());
        let known = live.known(&[LIKES]);
        live.hear(answer(|_| Some(2))).unwrap();
        assert_eq!(live.heard_since(&known), Heard::Switch);
        assert_eq!(keys.generation(&LIKES), 2);
        assert_eq!(live.heard_since(&live.known(&[LIKES])), Heard::Nothing);
    }
}
