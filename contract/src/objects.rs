//! The objects of the contract. Zero and false are always serialized.

use serde::Serialize;
use utoipa::ToSchema;
use vidlog_schemas::rows;

/// A user, relative to the caller.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, ToSchema)]
pub struct User {
    /// The user's id, below 2^53.
    pub id: i64,
    /// The user's name.
    pub name: String,
    /// Number of users that it follows.
    pub follow_count: i64,
    /// Number of its followers.
    pub follower_count: i64,
    /// Whether the caller follows it.
    pub is_follow: bool,
    /// URL of the avatar.
    pub avatar: String,
    /// URL of the profile's background image.
    pub background_image: String,
    /// The profile's text.
    pub signature: String,
    /// Number of likes of its videos.
    pub total_favorited: i64,
    /// The length of publish/list for the caller.
    pub work_count: i64,
    /// Number of videos that it likes.
    pub favorite_count: i64,
}

/// The state of an upload.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum VideoState {
    /// The upload is being checked and transcoded; visible to its author only.
    Processing,
    /// Visible to everyone.
    Published,
    /// The upload cannot be published; visible to its author only, with the reason.
    Rejected,
}

impl From<rows::VideoState> for VideoState {
    fn from(state: rows::VideoState) -> Self {
        match state {
            rows::VideoState::Processing => Self::Processing,
            rows::VideoState::Published => Self::Published,
            rows::VideoState::Rejected => Self::Rejected,
        }
    }
}

/// A video, relative to the caller.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, ToSchema)]
pub struct Video {
    /// The video's id, below 2^53.
    pub id: i64,
    /// The user who uploaded it.
    pub author: User,
    /// URL of the playable file; of a placeholder until the video is published.
    pub play_url: String,
    /// URL of the cover; of a placeholder until the video is published.
    pub cover_url: String,
    /// Number of likes.
    pub favorite_count: i64,
    /// Number of comments.
    pub comment_count: i64,
    /// Whether the caller likes it.
    pub is_favorite: bool,
    /// The title.
    pub title: String,
    /// The state of the upload. Always `published` for callers other than the author.
    pub state: VideoState,
    /// The reason of a rejection; empty otherwise.
    pub state_reason: String,
}

/// A comment on a video.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, ToSchema)]
pub struct Comment {
    /// The comment's id, below 2^53.
    pub id: i64,
    /// The user who wrote it.
    pub user: User,
    /// The text.
    pub content: String,
    /// The date of the comment, "mm-dd", UTC.
    #[schema(example = "11-14")]
    pub create_date: String,
}

/// A chat message.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, ToSchema)]
pub struct Message {
    /// The message's id, below 2^53.
    pub id: i64,
    /// The recipient.
    pub to_user_id: i64,
    /// The sender.
    pub from_user_id: i64,
    /// The text.
    pub content: String,
    /// The time in milliseconds since 1970; strictly increasing within a conversation.
    pub create_time: i64,
}

/// A mutual follow, with the latest message between it and the caller.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, ToSchema)]
pub struct FriendUser {
    /// The user.
    #[serde(flatten)]
    pub user: User,
    /// The latest message between the two; empty if there is none.
    pub message: String,
    /// 1 if the caller sent that message, else 0.
    #[serde(rename = "msgType")]
    pub msg_type: i32,
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn user() -> User {
        User {
            id: 1,
            name: "Ada".to_owned(),
            follow_count: 0,
            follower_count: 0,
            is_follow: false,
            avatar: "a".to_owned(),
            background_image: "b".to_owned(),
            signature: String::new(),
            total_favorited: 0,
            work_count: 0,
            favorite_count: 0,
        }
    }

    #[test]
    fn zero_and_false_are_serialized() {
        let expected = json!({
            "id": 1, "name": "Ada", "follow_count": 0, "follower_count": 0, "is_follow": false, "avatar": "a",
            "background_image": "b", "signature": "", "total_favorited": 0, "work_count": 0, "favorite_count": 0,
        });
        assert_eq!(serde_json::to_value(user()).unwrap(), expected);
    }

    #[test]
    fn friend_is_a_user_with_two_more_fields() {
        let friend = FriendUser { user: user(), message: String::new(), msg_type: 0 };
        let value = serde_json::to_value(friend).unwrap();
        assert_eq!(
            (&value["name"], &value["message"], &value["msgType"]),
            (&json!("Ada"), &json!(""), &json!(0))
        );
    }
}
