//! Every limit of the client contract. Text is counted in characters, not bytes.

use std::ops::RangeInclusive;

/// The largest id. Clients hold ids in doubles, which are exact below 2^53.
pub const MAX_ID: i64 = (1 << 53) - 1;
/// Characters of a user name.
pub const USERNAME: RangeInclusive<usize> = 1..=32;
/// Characters of a password. The upper bound also bounds the work of hashing it.
pub const PASSWORD: RangeInclusive<usize> = 5..=32;
/// Characters of a video's title.
pub const TITLE: RangeInclusive<usize> = 1..=120;
/// Characters of a comment, and the width of its column.
pub const COMMENT_TEXT: RangeInclusive<usize> = 1..=255;
/// Characters of a chat message, and the width of its column.
pub const MESSAGE_CONTENT: RangeInclusive<usize> = 1..=255;

/// Bytes of any body but an upload.
pub const FORM_BYTES: usize = 64 * 1024;
/// Bytes of an upload, by default.
pub const UPLOAD_BYTES: u64 = 200 * 1024 * 1024;

/// Videos on a page of feed.
pub const FEED_PAGE: usize = 30;
/// Videos in a response of publish/list.
pub const WORKS_LIST: usize = 500;
/// Videos in a response of favorite/list.
pub const FAVORITE_LIST: usize = 500;
/// Videos in a response of feed/top.
pub const TOP_LIST: usize = 500;
/// Comments in a response of comment/list.
pub const COMMENT_LIST: usize = 500;
/// Users in a response of the relation lists.
pub const RELATION_LIST: usize = 1000;
/// Messages in a response of message/chat.
pub const CHAT_LIST: usize = 1000;
