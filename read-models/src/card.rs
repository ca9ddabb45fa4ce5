//! The cards of users and videos, as either store returns them.

use vidlog_schemas::rows::VideoState;

/// A user as a store returns it. `name` is `None` if the user does not exist or its card is late.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct UserCard {
    pub(crate) name: Option<String>,
    pub(crate) follow_count: i64,
    pub(crate) follower_count: i64,
    pub(crate) is_follow: bool,
    pub(crate) total_favorited: i64,
    pub(crate) work_count: i64,
    pub(crate) favorite_count: i64,
}

/// A video as a store returns it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct VideoCard {
    pub(crate) author_id: i64,
    pub(crate) title: String,
    pub(crate) state: VideoState,
    pub(crate) play_key: String,
    pub(crate) cover_key: String,
    pub(crate) reason: String,
    pub(crate) favorite_count: i64,
    pub(crate) comment_count: i64,
    pub(crate) is_favorite: bool,
}
