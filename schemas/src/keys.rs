//! The Redis keys.
//!
//! A key is `<namespace>:{sNN}:<kind>:<entity>`. The hash tag in braces is the entity's shard, so all keys of an entity
//! are on one node of a Redis Cluster, and one script can change them together with the shard's checkpoint. A single
//! Redis has the same keys.
//!
//! From its second generation on, a view has the generation in the kinds of its keys: `likers`, then `likers.2`. Two
//! generations can exist at once, on the same shards.

mod view_key;

use std::sync::{
    Arc,
    atomic::{AtomicU32, Ordering},
};

pub use self::view_key::{FIRST_GENERATION, ViewKey};
use crate::{
    hash::fnv1a,
    projections::{self, Projection, View},
};

/// Default number of shards of a namespace: enough for about eight nodes.
pub const DEFAULT_SHARDS: u16 = 16;

/// Milliseconds in a week. The global feed is one ZSET per week, so that no ZSET grows without bound.
pub const WEEK_MS: i64 = 7 * 24 * 60 * 60 * 1000;

/// Builds the keys of one namespace. Clones share the current generations.
#[derive(Clone, Debug)]
pub struct Keys {
    namespace: Arc<str>,
    shards: u16,
    /// In the order of [`projections::ALL`].
    generations: Arc<[AtomicU32]>,
}

/// A shard of a namespace.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Shard(u16);

impl Shard {
    /// Returns the shard's number, from 0.
    pub const fn index(self) -> usize {
        self.0 as usize
    }
}

/// A key and its shard.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Key {
    /// The shard.
    pub shard: Shard,
    /// The complete Redis key.
    pub name: String,
}

impl redis::ToRedisArgs for Key {
    fn write_redis_args<W: ?Sized + redis::RedisWrite>(&self, out: &mut W) {
        self.name.write_redis_args(out);
    }
}

impl redis::ToSingleRedisArg for Key {}

impl Keys {
    /// Builds keys of a namespace in its first generations.
    ///
    /// The number of shards is fixed when the namespace is created, because it determines the shard of every entity.
    pub fn new(namespace: &str, shards: u16) -> Self {
        let generations = projections::ALL.iter().map(|_| AtomicU32::new(FIRST_GENERATION)).collect();
        Self { namespace: namespace.into(), shards: shards.max(1), generations }
    }

    /// Returns a copy with another generation of one view. It shares no generations with `self`.
    #[must_use]
    pub fn of_generation(&self, projection: &Projection, generation: u32) -> Self {
        let copied = self.generations.iter().map(|own| AtomicU32::new(own.load(Ordering::Relaxed))).collect();
        let keys = Self { generations: copied, ..self.clone() };
        keys.set_generation(projection, generation);
        keys
    }

    /// Sets the current generation of a view, in all clones.
    pub fn set_generation(&self, projection: &Projection, generation: u32) {
        if let Some(own) = self.own_generation(projection) {
            own.store(generation, Ordering::Relaxed);
        }
    }

    /// Returns the current generation of a view.
    pub fn generation(&self, projection: &Projection) -> u32 {
        self.own_generation(projection).map_or(FIRST_GENERATION, |own| own.load(Ordering::Relaxed))
    }

    /// Iterates over all shards.
    pub fn shards(&self) -> impl Iterator<Item = Shard> + use<> {
        (0..self.shards).map(Shard)
    }

    /// Returns the `SCAN` pattern of all keys.
    pub fn pattern(&self) -> String {
        format!("{}:{{s*", self.namespace)
    }

    /// HASH of a user's card: `name`, `registered_ms`.
    pub fn user_card(&self, user: i64) -> Key {
        self.of_view(&projections::USER_CARDS, "user", user)
    }

    /// ZSET of the users that a user follows: member user id, score the time of the follow in ms. Its size is the count.
    pub fn following(&self, user: i64) -> Key {
        self.of_view(&projections::FOLLOWS, "following", user)
    }

    /// ZSET of a user's followers: member user id, score the time of the follow in ms. Its size is the count. It is on
    /// the shard of [`Keys::following`], so one `ZINTER` returns friends.
    pub fn followers(&self, user: i64) -> Key {
        self.of_view(&projections::FOLLOWS, "followers", user)
    }

    /// ZSET of the videos that a user likes: member video id, score the time of the like in ms.
    pub fn favorites(&self, user: i64) -> Key {
        self.of_view(&projections::LIKES, "favorites", user)
    }

    /// HASH of the like counts of an author's videos: field video id, value its count, and field `total`, their sum.
    /// Values are absolute, so writes are idempotent.
    pub fn favorited(&self, author: i64) -> Key {
        self.of_view(&projections::LIKES, "favorited", author)
    }

    /// ZSET of an author's published videos: member and score the video id, which is in time order.
    pub fn works(&self, author: i64) -> Key {
        self.of_view(&projections::WORKS, "works", author)
    }

    /// ZSET of an author's uploads in any state: member and score the video id.
    pub fn uploads(&self, author: i64) -> Key {
        self.of_view(&projections::WORKS, "uploads", author)
    }

    /// HASH of a video's card: `author`, `title`, `state` (a [`crate::rows::VideoState`] number), and when it is
    /// published `play_key`, `cover_key`, `published_ms`, when rejected `reason`.
    pub fn video_card(&self, video: i64) -> Key {
        self.of_view(&projections::VIDEO_CARDS, "video", video)
    }

    /// SET of the users who like a video. Its size is the count.
    pub fn likers(&self, video: i64) -> Key {
        self.of_view(&projections::LIKES, "likers", video)
    }

    /// SET of a video's comment ids. Its size is the count.
    pub fn comments(&self, video: i64) -> Key {
        self.of_view(&projections::COMMENT_COUNTS, "comments", video)
    }

    /// SET of a video's deleted comment ids: a repeated `CommentPosted` must not restore one.
    pub fn deleted_comments(&self, video: i64) -> Key {
        self.of_view(&projections::COMMENT_COUNTS, "deleted-comments", video)
    }

    /// ZSET of the videos published in a week of the global feed: member video id, score the publish time in ms.
    pub fn feed_week(&self, week: i64) -> Key {
        self.of_view(&projections::FEED, "feed", week)
    }

    /// ZSET of the weeks with published videos: member and score the week's number.
    pub fn feed_weeks(&self) -> Key {
        self.key(self.shard(fnv1a(b"all")), &self.kind(&projections::FEED, "feed-weeks"), "all")
    }

    /// SET of the users who like a video, as the ranking of videos counts them.
    pub fn top_likers(&self, video: i64) -> Key {
        self.of_view(&projections::TOP_VIDEOS, "top-likers", video)
    }

    /// ZSET that ranks the published videos of one shard: member video id, score [`top_score`]. It is the ZSET of the shard
    /// of [`Keys::top_likers`], so that one script updates both.
    pub fn top(&self, shard: Shard) -> Key {
        self.key(shard, &self.kind(&projections::TOP_VIDEOS, "top"), "all")
    }

    /// The ranking that a video is in.
    pub fn top_of_video(&self, video: i64) -> Key {
        self.top(self.top_likers(video).shard)
    }

    /// HASH of a projection's position on one shard: field `<stream>:<partition>`, value the next offset.
    pub fn checkpoint(&self, shard: Shard, projection: &Projection) -> Key {
        self.key(shard, &self.kind(projection, "checkpoint"), projection.name)
    }

    /// HASH like [`Keys::checkpoint`], for the parts of totals, which are written after it.
    pub fn parts_checkpoint(&self, shard: Shard, projection: &Projection) -> Key {
        self.key(shard, &self.kind(projection, "checkpoint"), &format!("{}:parts", projection.name))
    }

    /// HASH of a projection's parked keys, all on one shard: field `<stream>:<partition>:<key>`, value
    /// `<first offset>:<last offset>:<records that wait>:<class>:<message>`.
    pub fn parked(&self, projection: &Projection) -> Key {
        self.key(Shard(0), &self.kind(projection, "parked"), projection.name)
    }

    /// HASH of the live generations: field the name of a projection in Redis, value its generation.
    ///
    /// A missing field marks the view incomplete, because it is new or Redis lost writes: readers must not use it.
    /// During a refill, field `<name>:filling` has the claim token.
    pub fn generations(&self) -> Key {
        self.key(Shard(0), "meta", "generations")
    }

    /// HASH of a projection's position over all shards: field `<stream>:<partition>`, value the next offset. Readers
    /// compare it with the position of a write that they must see.
    pub fn progress(&self, projection: &Projection) -> Key {
        self.of_name(&self.kind(projection, "progress"), projection.name)
    }

    /// ZSET of the positions of recent writes that a reader of a scope must wait for: member
    /// `<stream>:<partition>`, score the next offset. A scope is `user:<id>`, `video:<id>` or `conversation:<ids>`.
    pub fn recent_writes(&self, scope: &str) -> Key {
        self.of_name("recent", scope)
    }

    /// ZSET with the highest position of a partition that a command was answered with: member `<stream>:<partition>`,
    /// score the next offset. Readers wait for no later position, whatever a client sends.
    pub fn issued(&self, field: &str) -> Key {
        self.of_name("issued", field)
    }

    /// HASH of a command with an idempotency key: its reserved ids, and its response once it has one.
    pub fn idempotency(&self, user: i64, key: &str) -> Key {
        self.of_name("idempotency", &format!("{user}:{key}"))
    }

    /// STRING of a caller's state in a rate limit: the time in µs at which the caller has regained its whole quota. It
    /// expires then.
    pub fn rate_limit(&self, limit: &str, subject: &str) -> Key {
        self.of_name("limit", &format!("{limit}:{subject}"))
    }

    /// STRING: the number of shards of the namespace, as fixed at its creation.
    pub fn shard_count(&self) -> Key {
        self.key(Shard(0), "meta", "shards")
    }

    /// Converts the name of a view's key from the first generation to the current one.
    pub fn to_current_generation(&self, name: &str) -> Option<String> {
        let key = ViewKey::parse(name)?;
        let (shard, rest) = key.name.split_once("}:")?;
        let (kind, entity) = rest.split_once(':')?;
        Some(format!("{shard}}}:{}:{entity}", self.kind(&key.projection, kind)))
    }

    /// HASH of the logs that the views are folded from: field `<stream>:<partition>`, value the id of the first record.
    pub fn logs(&self) -> Key {
        self.key(Shard(0), "meta", "logs")
    }

    fn own_generation(&self, projection: &Projection) -> Option<&AtomicU32> {
        // Generations of a view in MySQL share their table names.
        let View::Redis(_) = projection.view else {
            return None;
        };
        let index = projections::ALL.iter().position(|known| known.name == projection.name)?;
        self.generations.get(index)
    }

    /// The kind of a key in the current generation of its view.
    fn kind(&self, projection: &Projection, kind: &str) -> String {
        match self.generation(projection) {
            FIRST_GENERATION => kind.to_owned(),
            generation => format!("{kind}.{generation}"),
        }
    }

    fn of_view(&self, projection: &Projection, kind: &str, id: i64) -> Key {
        self.key(self.shard(id.unsigned_abs()), &self.kind(projection, kind), &id.to_string())
    }

    fn of_name(&self, kind: &str, name: &str) -> Key {
        self.key(self.shard(fnv1a(name.as_bytes())), kind, name)
    }

    fn key(&self, shard: Shard, kind: &str, entity: &str) -> Key {
        Key { shard, name: format!("{}:{{s{:02}}}:{kind}:{entity}", self.namespace, shard.0) }
    }

    /// Maps a hash to a shard. A change of this function loses all entities until their views are rebuilt.
    fn shard(&self, hash: u64) -> Shard {
        // The finalizer of splitmix64 spreads adjacent ids over the shards.
        let mut z = hash.wrapping_add(0x9e37_79b9_7f4a_7c15);
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^= z >> 31;
        let shard = z % u64::from(self.shards);
        Shard(u16::try_from(shard).unwrap_or_default())
    }
}

/// Returns the field of a partition's position in checkpoints, progress and recent writes.
pub fn partition_field(stream: &str, partition: i32) -> String {
    format!("{stream}:{partition}")
}

/// Returns the week of the global feed that contains a time.
pub const fn feed_week_of(time_ms: i64) -> i64 {
    time_ms.div_euclid(WEEK_MS)
}

/// The scores of one week in a ranking: a count of likes is below it. Weeks and counts then fit into 2^53, up to which a
/// ZSET's scores are exact.
pub const TOP_COUNTS: i64 = 1 << 32;

/// The score of a video in a ranking: the week of its publication, then its likes. So the videos of one week are a range
/// of scores, and the key of the ranking follows from the video alone.
pub const fn top_score(week: i64, likes: i64) -> i64 {
    week * TOP_COUNTS + likes
}

/// The week of publication that a score in a ranking belongs to.
pub const fn top_week_of(score: i64) -> i64 {
    score.div_euclid(TOP_COUNTS)
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn keys_of_an_entity_share_a_shard() {
        let keys = Keys::new("test", DEFAULT_SHARDS);
        assert_eq!(keys.following(42).shard, keys.followers(42).shard);
        assert_eq!(keys.video_card(42).shard, keys.likers(42).shard);
        assert_eq!(keys.top_of_video(42).shard, keys.top_likers(42).shard);
        assert!(keys.works(42).name.starts_with("test:{s"));
        assert!(keys.works(42).name.ends_with("}:works:42"));
    }

    #[test]
    fn shards_of_ids_are_stable() {
        let keys = Keys::new("n", DEFAULT_SHARDS);
        let names: Vec<_> = [1, 2, 3].map(|id| keys.user_card(id).name).into();
        assert_eq!(names, ["n:{s01}:user:1", "n:{s14}:user:2", "n:{s13}:user:3"]);
    }

    #[test]
    fn ranking_sorts_weeks_before_likes() {
        assert!(top_score(7, 0) > top_score(6, TOP_COUNTS - 1));
        assert!(top_score(7, 3) > top_score(7, 2));
        assert_eq!((top_week_of(top_score(7, 0)), top_week_of(top_score(7, TOP_COUNTS - 1))), (7, 7));
        let last_week = feed_week_of(i64::from(u32::MAX) * 1000);
        assert!(top_score(last_week, TOP_COUNTS - 1) < 1 << 53, "exact as a double until 2106");
    }

    #[test]
    fn adjacent_ids_spread_over_all_shards() {
        let keys = Keys::new("n", DEFAULT_SHARDS);
        let used: HashSet<_> = (1..200).map(|id| keys.user_card(id << 12).shard).collect();
        assert_eq!(used.len(), usize::from(DEFAULT_SHARDS));
    }
}
