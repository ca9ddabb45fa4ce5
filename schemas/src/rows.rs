//! Rows of the MySQL read models.

use sqlx::FromRow;

/// The state of an upload.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum VideoState {
    /// The media worker has not finished yet. Only the author sees it.
    Processing = 0,
    /// Everyone sees it.
    Published = 1,
    /// The file cannot be published. Only the author sees it, with the reason.
    Rejected = 2,
}

impl VideoState {
    /// Converts a stored number; `None` if it is no state.
    pub const fn from_number(number: i8) -> Option<Self> {
        match number {
            0 => Some(Self::Processing),
            1 => Some(Self::Published),
            2 => Some(Self::Rejected),
            _ => None,
        }
    }

    /// Returns the stored number.
    pub const fn number(self) -> i8 {
        self as i8
    }
}

/// A row of `users`.
#[derive(Clone, Debug, PartialEq, Eq, FromRow)]
pub struct UserRow {
    /// The user.
    pub user_id: i64,
    /// The name, as entered.
    pub name: String,
    /// When the user registered, milliseconds since 1970.
    pub registered_ms: i64,
}

/// A row of `videos`.
#[derive(Clone, Debug, PartialEq, Eq, FromRow)]
pub struct VideoRow {
    /// The video.
    pub video_id: i64,
    /// The uploader.
    pub author_id: i64,
    /// The title, as entered.
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
    /// The reason of a rejection; empty if there is none.
    pub reason: String,
}

/// A row of `comments`. A deleted comment keeps its row, without its text, so that a repeated event cannot restore it.
#[derive(Clone, Debug, PartialEq, Eq, FromRow)]
pub struct CommentRow {
    /// The comment.
    pub comment_id: i64,
    /// The video.
    pub video_id: i64,
    /// The commenter.
    pub user_id: i64,
    /// The text, as entered; empty if the comment is deleted.
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
    /// The sender.
    pub from_user_id: i64,
    /// The recipient.
    pub to_user_id: i64,
    /// The text, as entered.
    pub content: String,
    /// The time that clients show, milliseconds since 1970. It increases strictly within a conversation.
    pub create_ms: i64,
}
