//! The catalog of projections: each with its name, the streams that it folds, and the parts of its view.

/// The public description of a projection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Projection {
    /// The name, used in its checkpoint, consumer group and metrics.
    pub name: &'static str,
    /// The names of its input streams. A reader that must see a write waits for these.
    pub streams: &'static [&'static str],
    /// The view that it writes.
    pub view: View,
    /// The version of what a fold into MySQL writes, of which a program writes one only. See
    /// [`Projection::checkpoint_table`].
    pub format: u32,
}

/// The store of a view, and its parts there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum View {
    /// Redis keys of these kinds.
    Redis(&'static [&'static str]),
    /// These MySQL tables.
    MySql(&'static [&'static str]),
}

impl Projection {
    /// Returns the checkpoint table of a view in MySQL. Each generation has its own.
    ///
    /// It has the format in its name. A migration that changes the format renames it, and so fences the projectors of
    /// earlier versions: each of their transactions locks a row of the checkpoint table first, and fails.
    pub fn checkpoint_table(&self) -> String {
        let table = format!("checkpoints_{}", self.name.replace('-', "_"));
        if self.format == 1 { table } else { format!("{table}_{}", self.format) }
    }

    /// Returns the parked-keys table of a view in MySQL. Each generation has its own.
    pub fn parked_table(&self) -> String {
        format!("parked_{}", self.name.replace('-', "_"))
    }
}

macro_rules! projections {
    (@format) => { 1 };
    (@format $format:literal) => { $format };
    ($($(#[$doc:meta])* $constant:ident = $name:literal $(format $format:literal)? of $($stream:literal),+ in $store:ident $($part:literal),+;)+) => {
        $(
            $(#[$doc])*
            pub const $constant: Projection = Projection {
                name: $name,
                streams: &[$($stream),+],
                view: View::$store(&[$($part),+]),
                format: projections!(@format $($format)?),
            };
        )+

        /// Every projection.
        pub const ALL: &[Projection] = &[$($constant),+];
    };
}

projections! {
    /// The global feed by week.
    FEED = "feed" of "videos" in Redis "feed", "feed-weeks";
    /// Each author's works and uploads.
    WORKS = "works" of "videos" in Redis "works", "uploads";
    /// Video cards.
    VIDEO_CARDS = "video-cards" of "videos" in Redis "video";
    /// User cards.
    USER_CARDS = "user-cards" of "users" in Redis "user";
    /// Likers, favourites, authors' totals.
    LIKES = "likes" of "likes" in Redis "likers", "favorites", "favorited";
    /// Following and followers.
    FOLLOWS = "follows" of "follows" in Redis "following", "followers";
    /// Comment ids, for the count.
    COMMENT_COUNTS = "comment-counts" of "comments" in Redis "comments", "deleted-comments";
    /// The most liked videos of each week of publication.
    TOP_VIDEOS = "top-videos" of "videos", "likes" in Redis "top", "top-likers";
    /// Users.
    USERS_TABLE = "users-table" of "users" in MySql "users";
    /// Videos, and how many an author has.
    VIDEOS_TABLE = "videos-table" format 2 of "videos" in MySql "videos", "user_work_counts";
    /// Comments, and how many a video has.
    COMMENTS_TABLE = "comments-table" format 2 of "comments" in MySql "comments", "video_comment_counts";
    /// Messages, and the newest of each conversation.
    MESSAGES_TABLE = "messages-table" of "messages" in MySql "messages", "conversations";
    /// Likes: the durable copy of the sets in Redis. And how many a video, an author and a user have.
    LIKES_TABLE = "likes-table" format 2 of "likes" in MySql "likes", "video_like_counts", "user_like_counts";
    /// Follows: the durable copy of the sets in Redis. And how many a user has.
    FOLLOWS_TABLE = "follows-table" format 2 of "follows" in MySql "follows", "user_follow_counts";
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn views_share_no_parts() {
        let mut seen = HashSet::new();
        for projection in ALL {
            let (View::Redis(parts) | View::MySql(parts)) = projection.view;
            for part in parts {
                assert!(seen.insert((std::mem::discriminant(&projection.view), *part)), "{part}");
            }
        }
    }
}
