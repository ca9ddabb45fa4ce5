//! Facts: what a command must know before it is decided, and a list before it is read.

use redis::cmd;
use vidlog_schemas::rows::VideoState;

use crate::{
    error::{ReadError, Store},
    models::ReadModels,
    stores::Source,
};

/// What there is to know about a video before something is done to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VideoFact {
    /// Who uploaded it.
    pub author_id: i64,
    /// What became of it.
    pub state: VideoState,
}

impl VideoFact {
    /// Whether a user sees it: everyone if it is published, else its author.
    pub fn is_visible_to(&self, viewer: Option<i64>) -> bool {
        self.state == VideoState::Published || viewer == Some(self.author_id)
    }
}

/// What there is to know about a comment before it is deleted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CommentFact {
    /// Who wrote it.
    pub user_id: i64,
    /// Whether it was deleted.
    pub deleted: bool,
}

impl ReadModels {
    /// A video, if there is one.
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
            .ok_or_else(|| ReadError::fault(store, format!("{state} is no video's state")))?;
        Ok(Some(VideoFact { author_id, state }))
    }

    /// Whether there is a user.
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

    /// A comment on a video, if there ever was one. Comments are in MySQL only.
    pub async fn comment_fact(&self, video: i64, comment: i64) -> Result<Option<CommentFact>, ReadError> {
        let query =
            sqlx::query_as("SELECT user_id, deleted FROM comments WHERE video_id = ? AND comment_id = ?")
                .bind(video)
                .bind(comment);
        let row: Option<(i64, bool)> = self.tables.run(query.fetch_optional(self.tables.pool())).await?;
        Ok(row.map(|(user_id, deleted)| CommentFact { user_id, deleted }))
    }
}
