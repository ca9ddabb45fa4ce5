//! The projections by name, with the streams that each folds: what a reader may have to wait for.

/// A projection, as readers and operators know it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Projection {
    /// The name: of its checkpoint, its consumer group, its metrics.
    pub name: &'static str,
    /// The names of the streams that it folds.
    pub streams: &'static [&'static str],
}

macro_rules! projections {
    ($($(#[$doc:meta])* $constant:ident = $name:literal of $($stream:literal),+;)+) => {
        $($(#[$doc])* pub const $constant: Projection = Projection { name: $name, streams: &[$($stream),+] };)+

        /// Every projection.
        pub const ALL: &[Projection] = &[$($constant),+];
    };
}

projections! {
    /// Redis: the global feed by week.
    FEED = "feed" of "videos";
    /// Redis: each author's works and uploads.
    WORKS = "works" of "videos";
    /// Redis: video cards.
    VIDEO_CARDS = "video-cards" of "videos";
    /// Redis: user cards.
    USER_CARDS = "user-cards" of "users";
    /// Redis: likers, favourites, authors' totals.
    LIKES = "likes" of "likes";
    /// Redis: following and followers.
    FOLLOWS = "follows" of "follows";
    /// Redis: comment ids, for the count.
    COMMENT_COUNTS = "comment-counts" of "comments";
    /// MySQL: `users`.
    USERS_TABLE = "users-table" of "users";
    /// MySQL: `videos`.
    VIDEOS_TABLE = "videos-table" of "videos";
    /// MySQL: `comments`.
    COMMENTS_TABLE = "comments-table" of "comments";
    /// MySQL: `conversations` and `messages`.
    MESSAGES_TABLE = "messages-table" of "messages";
    /// MySQL: `likes`.
    LIKES_TABLE = "likes-table" of "likes";
    /// MySQL: `follows`.
    FOLLOWS_TABLE = "follows-table" of "follows";
}
