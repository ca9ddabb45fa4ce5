//! Parser of the names of views' keys.

use crate::projections::{self, Projection, View};

/// The first generation of a view.
pub const FIRST_GENERATION: u32 = 1;

/// Kinds of a view's bookkeeping keys, which belong to its generation.
const KINDS_ABOUT_A_VIEW: [&str; 3] = ["checkpoint", "parked", "progress"];

/// The parsed name of a view's key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ViewKey {
    /// The projection that owns the view.
    pub projection: Projection,
    /// The view's generation.
    pub generation: u32,
    /// The name without the generation, equal in all generations.
    pub name: String,
}

impl ViewKey {
    /// Parses a key's name; `None` if it is not a view's key.
    pub fn parse(name: &str) -> Option<Self> {
        let (shard, kind, generation, entity) = split(name)?;
        let has_kind =
            |projection: &&Projection| matches!(projection.view, View::Redis(kinds) if kinds.contains(&kind));
        let projection = *projections::ALL.iter().find(has_kind)?;
        Some(Self { projection, generation, name: format!("{shard}}}:{kind}:{entity}") })
    }

    /// Returns the generation of a projection's view, if a key is the view's data or bookkeeping.
    pub fn generation_of(name: &str, projection: &Projection) -> Option<u32> {
        let View::Redis(kinds) = projection.view else {
            return None;
        };
        let (_, kind, generation, entity) = split(name)?;
        let is_about =
            KINDS_ABOUT_A_VIEW.contains(&kind) && entity.split(':').next() == Some(projection.name);
        (kinds.contains(&kind) || is_about).then_some(generation)
    }
}

/// Splits a key's name into namespace and shard, kind, generation, and entity.
fn split(name: &str) -> Option<(&str, &str, u32, &str)> {
    let (shard, rest) = name.split_once("}:")?;
    let (kind, entity) = rest.split_once(':')?;
    match kind.split_once('.') {
        Some((kind, generation)) => Some((shard, kind, generation.parse().ok()?, entity)),
        None => Some((shard, kind, FIRST_GENERATION, entity)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        Keys,
        keys::{DEFAULT_SHARDS, Key, Shard},
    };

    #[test]
    fn generations_have_distinct_keys() {
        let keys = Keys::new("n", DEFAULT_SHARDS);
        let next = keys.of_generation(&projections::LIKES, 2);
        assert_eq!(next.likers(1).name, "n:{s01}:likers.2:1");
        assert_eq!(keys.likers(1).name, "n:{s01}:likers:1");
        let read = |key: Key| ViewKey::parse(&key.name).map(|key| (key.projection, key.generation, key.name));
        let name = keys.likers(1).name;
        assert_eq!(read(next.likers(1)), Some((projections::LIKES, 2, name.clone())));
        assert_eq!(read(keys.likers(1)), Some((projections::LIKES, 1, name)));
        assert_eq!(next.to_current_generation(&keys.likers(1).name), Some(next.likers(1).name));
        assert_eq!(next.works(1), keys.works(1), "other views keep their generation");
        let generation = |key: Key| ViewKey::generation_of(&key.name, &projections::LIKES);
        for (of_first, of_next) in [
            (keys.likers(1), next.likers(1)),
            (keys.progress(&projections::LIKES), next.progress(&projections::LIKES)),
            (keys.parked(&projections::LIKES), next.parked(&projections::LIKES)),
            (
                keys.parts_checkpoint(Shard(0), &projections::LIKES),
                next.parts_checkpoint(Shard(0), &projections::LIKES),
            ),
        ] {
            assert_eq!((generation(of_first), generation(of_next)), (Some(1), Some(2)));
        }
        assert_eq!(generation(keys.works(1)), None);
        assert_eq!(generation(keys.checkpoint(Shard(0), &projections::FEED)), None);
        keys.clone().set_generation(&projections::LIKES, 3);
        assert_eq!(keys.generation(&projections::LIKES), 3);
    }

    #[test]
    fn view_keys_map_to_their_projection() {
        let keys = Keys::new("n", DEFAULT_SHARDS);
        let of_views = [
            (projections::USER_CARDS, keys.user_card(1)),
            (projections::FOLLOWS, keys.following(1)),
            (projections::FOLLOWS, keys.followers(1)),
            (projections::LIKES, keys.favorites(1)),
            (projections::LIKES, keys.favorited(1)),
            (projections::LIKES, keys.likers(1)),
            (projections::WORKS, keys.works(1)),
            (projections::WORKS, keys.uploads(1)),
            (projections::VIDEO_CARDS, keys.video_card(1)),
            (projections::COMMENT_COUNTS, keys.comments(1)),
            (projections::COMMENT_COUNTS, keys.deleted_comments(1)),
            (projections::TOP_VIDEOS, keys.top_likers(1)),
            (projections::TOP_VIDEOS, keys.top_of_video(1)),
            (projections::FEED, keys.feed_week(1)),
            (projections::FEED, keys.feed_weeks()),
        ];
        for (projection, key) in of_views {
            assert_eq!(ViewKey::parse(&key.name).map(|key| key.projection), Some(projection), "{key:?}");
        }
        let shard = Shard(0);
        for key in [
            keys.checkpoint(shard, &projections::FEED),
            keys.parked(&projections::FEED),
            keys.progress(&projections::FEED),
            keys.generations(),
        ] {
            assert_eq!(ViewKey::parse(&key.name), None, "{key:?}");
        }
    }
}
