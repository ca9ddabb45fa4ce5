//! The objects of the contract, exactly as the client knows them. Zero and false are always written.

use serde::Serialize;
use utoipa::ToSchema;
use vidlog_schemas::rows;

/// A user, as one caller sees it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, ToSchema)]
pub struct User {
    /// The user's id, below 2^53.
    pub id: i64,
    /// The user's name.
    pub name: String,
    /// How many users it follows.
    pub follow_count: i64,
    /// How many users follow it.
    pub follower_count: i64,
    /// Whether the caller follows it.
    pub is_follow: bool,
    /// Address of its picture.
    pub avatar: String,
    /// Address of the picture at the top of its page.
    pub background_image: String,
    /// What it says about itself.
    pub signature: String,
    /// How many likes its videos have.
    pub total_favorited: i64,
    /// The length of publish/list as the caller sees it.
    pub work_count: i64,
    /// How many videos it likes.
    pub favorite_count: i64,
}

/// What became of an upload.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum VideoState {
    /// It is still being checked and converted; only its author sees it.
    Processing,
    /// Everyone sees it.
    Published,
    /// It can't be published; only its author sees it, with the reason.
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

/// A video, as one caller sees it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, ToSchema)]
pub struct Video {
    /// The video's id, below 2^53.
    pub id: i64,
    /// Who uploaded it.
    pub author: User,
    /// Address of the file to play; of a placeholder until it is published.
    pub play_url: String,
    /// Address of its cover picture; of a placeholder until it is published.
    pub cover_url: String,
    /// How many users like it.
    pub favorite_count: i64,
    /// How many comments it has.
    pub comment_count: i64,
    /// Whether the caller likes it.
    pub is_favorite: bool,
    /// Its title.
    pub title: String,
    /// What became of the upload. Others than the author only ever see `published`.
    pub state: VideoState,
    /// Why it was rejected; empty if it was not.
    pub state_reason: String,
}

/// A comment on a video.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, ToSchema)]
pub struct Comment {
    /// The comment's id, below 2^53.
    pub id: i64,
    /// Who wrote it.
    pub user: User,
    /// Its text.
    pub content: String,
    /// When it was written, "mm-dd", UTC.
    #[schema(example = "11-14")]
    pub create_date: String,
}

/// A chat message.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, ToSchema)]
pub struct Message {
    /// The message's id, below 2^53.
    pub id: i64,
    /// Who receives it.
    pub to_user_id: i64,
    /// Who sent it.
    pub from_user_id: i64,
    /// Its text.
    pub content: String,
    /// When, milliseconds since 1970; it rises strictly within a conversation.
    pub create_time: i64,
}

/// A user who follows the caller and is followed back, with their latest message.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, ToSchema)]
pub struct FriendUser {
    /// The user.
    #[serde(flatten)]
    pub user: User,
    /// The latest message between the two; empty where there is none.
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
    fn zero_and_false_are_written() {
        let expected = json!({
            "id": 1, "name": "Ada", "follow_count": 0, "follower_count": 0, "is_follow": false, "avatar": "a",
            "background_image": "b", "signature": "", "total_favorited": 0, "work_count": 0, "favorite_count": 0,
        });
        assert_eq!(serde_json::to_value(user()).unwrap(), expected);
    }

    #[test]
    fn a_friend_is_a_user_with_two_more_fields() {
        let friend = FriendUser { user: user(), message: String::new(), msg_type: 0 };
        let value = serde_json::to_value(friend).unwrap();
        assert_eq!(
            (&value["name"], &value["message"], &value["msgType"]),
            (&json!("Ada"), &json!(""), &json!(0))
        );
    }
}
