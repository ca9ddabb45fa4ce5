//! Every limit of the client contract. Text is counted in characters, not bytes.

use std::ops::RangeInclusive;

/// The largest id: clients hold ids in doubles, which are exact below 2^53.
pub const MAX_ID: i64 = (1 << 53) - 1;
/// A user name.
pub const USERNAME: RangeInclusive<usize> = 1..=32;
/// A password. Its upper bound also bounds the work of hashing it.
pub const PASSWORD: RangeInclusive<usize> = 5..=32;
/// The title of a video.
pub const TITLE: RangeInclusive<usize> = 1..=120;
/// The text of a comment. The column that holds it is as wide.
pub const COMMENT_TEXT: RangeInclusive<usize> = 1..=255;
/// The text of a chat message. The column that holds it is as wide.
pub const MESSAGE_CONTENT: RangeInclusive<usize> = 1..=255;

/// Bytes of any body that is not an upload.
pub const FORM_BYTES: usize = 64 * 1024;
/// Bytes of an upload, where nothing else was configured.
pub const UPLOAD_BYTES: u64 = 200 * 1024 * 1024;

/// Videos in a page of the feed.
pub const FEED_PAGE: usize = 30;
/// Videos in one answer of publish/list.
pub const WORKS_LIST: usize = 500;
/// Videos in one answer of favorite/list.
pub const FAVORITE_LIST: usize = 500;
/// Comments in one answer of comment/list.
pub const COMMENT_LIST: usize = 500;
/// Users in one answer of the lists of relations.
pub const RELATION_LIST: usize = 1000;
/// Messages in one answer of message/chat.
pub const CHAT_LIST: usize = 1000;
