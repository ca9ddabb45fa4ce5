//! Facts about users, videos and comments, which commands are decided on.

use redis::cmd;
use vidlog_schemas::rows::VideoState;

use crate::{
    error::{ReadError, Store},
    models::ReadModels,
    stores::Source,
};

/// The author and state of a video.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VideoFact {
    /// The user who uploaded it.
    pub author_id: i64,
    /// The state of the upload.
    pub state: VideoState,
}

impl VideoFact {
    /// Returns whether a user sees the video: everyone if it is published, else only its author.
    pub fn is_visible_to(&self, viewer: Option<i64>) -> bool {
        self.state == VideoState::Published || viewer == Some(self.author_id)
    }
}

/// The author and state of a comment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CommentFact {
    /// The user who wrote it.
    pub user_id: i64,
    /// Whether it is deleted.
    pub deleted: bool,
}

impl ReadModels {
    /// Returns the fact of a video, if it exists.
    pub async fn video_fact(&self, source: Source, video: i64) -> Result<Option<VideoFact>, ReadError> {
        let (store, row): (_, Option<(i64, i8)>) = match source {
            Source::Views => {
                let command = cmd("HMGET").arg(self.keys.video_card(video)).arg(&["author", "state"]).take();
                let (author, state): (Option<i64>, Option<i8>) = self.views.query(&command).await?;
                (Store::Redis, author.zip(state))
            }
            Source::Tables => {
                let query =
                    sqlx::query_as("SELECT author_id, state FROM videos WHERE video_id = ?").bind(video);
                (Store::MySql, self.tables.run(query.fetch_optional(self.tables.pool())).await?)
            }
        };
        let Some((author_id, state)) = row else {
            return Ok(None);
        };
        let state = VideoState::from_number(state)
            .ok_or_else(|| ReadError::fault(store, format!("{state} is no video state")))?;
        Ok(Some(VideoFact { author_id, state }))
    }

    /// Returns whether a user exists.
    pub async fn user_exists(&self, source: Source, user: i64) -> Result<bool, ReadError> {
        match source {
            Source::Views => {
                let command = cmd("HEXISTS").arg(self.keys.user_card(user)).arg("name").take();
                self.views.query(&command).await
            }
            Source::Tables => {
                let query =
                    sqlx::query_scalar("SELECT EXISTS (SELECT 1 FROM users WHERE user_id = ?)").bind(user);
                self.tables.run(query.fetch_one(self.tables.pool())).await
            }
        }
    }

    /// Returns the fact of a comment, also of a deleted one. Comments are in MySQL only.
    pub async fn comment_fact(&self, video: i64, comment: i64) -> Result<Option<CommentFact>, ReadError> {
        let query =
            sqlx::query_as("SELECT user_id, deleted FROM comments WHERE video_id = ? AND comment_id = ?")
                .bind(video)
                .bind(comment);
        let row: Option<(i64, bool)> = self.tables.run(query.fetch_optional(self.tables.pool())).await?;
        Ok(row.map(|(user_id, deleted)| CommentFact { user_id, deleted }))
    }
}
