//! Rows of the MySQL read models.

use sqlx::FromRow;

/// What became of an upload.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum VideoState {
    /// The media worker has not decided yet. Only the author sees it.
    Processing = 0,
    /// Everyone sees it.
    Published = 1,
    /// It can't be published. Only the author sees it, with the reason.
    Rejected = 2,
}

impl VideoState {
    /// The state of a stored number.
    pub const fn from_number(number: i8) -> Option<Self> {
        match number {
            0 => Some(Self::Processing),
            1 => Some(Self::Published),
            2 => Some(Self::Rejected),
            _ => None,
        }
    }

    /// The number that is stored.
    pub const fn number(self) -> i8 {
        self as i8
    }
}

/// A row of `users`.
#[derive(Clone, Debug, PartialEq, Eq, FromRow)]
pub struct UserRow {
    /// The user.
    pub user_id: i64,
    /// The name, as it was typed.
    pub name: String,
    /// When the user registered, milliseconds since 1970.
    pub registered_ms: i64,
}

/// A row of `videos`.
#[derive(Clone, Debug, PartialEq, Eq, FromRow)]
pub struct VideoRow {
    /// The video.
    pub video_id: i64,
    /// Who uploaded it.
    pub author_id: i64,
    /// The title, as it was typed.
    pub title: String,
    /// A [`VideoState`] number.
    pub state: i8,
    /// When it was uploaded, milliseconds since 1970.
    pub uploaded_ms: i64,
    /// When it was published, milliseconds since 1970; 0 until then.
    pub published_ms: i64,
    /// The object key of the playable file; empty until it is published.
    pub play_key: String,
    /// The object key of the cover; empty until it is published.
    pub cover_key: String,
    /// Why it was rejected; empty if it was not.
    pub reason: String,
}

/// A row of `comments`. Deleted comments stay, without their text, so that a repeated event can't bring one back.
#[derive(Clone, Debug, PartialEq, Eq, FromRow)]
pub struct CommentRow {
    /// The comment.
    pub comment_id: i64,
    /// The video.
    pub video_id: i64,
    /// Who wrote it.
    pub user_id: i64,
    /// The text, as it was typed; empty of a deleted one.
    pub text: String,
    /// When it was posted, milliseconds since 1970.
    pub posted_ms: i64,
    /// Whether it was deleted.
    pub deleted: bool,
}

/// A row of `messages`.
#[derive(Clone, Debug, PartialEq, Eq, FromRow)]
pub struct MessageRow {
    /// The message.
    pub message_id: i64,
    /// Who sent it.
    pub from_user_id: i64,
    /// Who receives it.
    pub to_user_id: i64,
    /// The text, as it was typed.
    pub content: String,
    /// The time that readers see, milliseconds since 1970; it rises strictly within a conversation.
    pub create_ms: i64,
}
