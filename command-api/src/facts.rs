//! Facts: what commands are decided on, read after the same wait for recent writes as any read.

use axum::http::HeaderMap;
use vidlog_contract::{ApiError, objects::User};
use vidlog_read_models::{
    Fresh, Need, Position, ReadError, ReadModels, Scope, Source, VideoFact, freshness::named_positions,
};
use vidlog_schemas::projections::{self, Projection};

use crate::commands::comment::Deletable;

/// Reads facts for a caller.
pub(crate) struct Facts<'a> {
    read_models: &'a ReadModels,
    caller: i64,
    extra: Vec<Position>,
}

impl<'a> Facts<'a> {
    /// Facts for a caller, as new as the positions that it names in its headers.
    pub(crate) fn new(
        read_models: &'a ReadModels,
        caller: i64,
        headers: &HeaderMap,
    ) -> Result<Self, ApiError> {
        Ok(Self { read_models, caller, extra: named_positions(headers)? })
    }

    /// A video.
    pub(crate) async fn video(&self, video_id: i64) -> Result<Fresh<Option<VideoFact>>, ApiError> {
        let read = |source| self.read_models.video_fact(source, video_id);
        self.read(Some(Scope::Video(video_id)), &[projections::VIDEO_CARDS], read).await
    }

    /// Whether there is a user.
    pub(crate) async fn user(&self, user_id: i64) -> Result<Fresh<Option<()>>, ApiError> {
        let read = |source| self.read_models.user_exists(source, user_id);
        let exists = self.read(Some(Scope::User(user_id)), &[projections::USER_CARDS], read).await?;
        Ok(exists.map(|exists| exists.then_some(())))
    }

    /// A comment, and the video that it is on.
    pub(crate) async fn comment(&self, video_id: i64, comment_id: i64) -> Result<Fresh<Deletable>, ApiError> {
        let needed = &[projections::VIDEO_CARDS, projections::COMMENTS_TABLE];
        let read = async |source| {
            let (video, comment) = tokio::try_join!(
                self.read_models.video_fact(source, video_id),
                self.read_models.comment_fact(video_id, comment_id),
            )?;
            Ok(Deletable { video, comment })
        };
        self.read(Some(Scope::Video(video_id)), needed, read).await
    }

    /// The caller, as it sees itself.
    pub(crate) async fn caller(&self) -> Result<User, ApiError> {
        let needed = &[projections::USER_CARDS, projections::FOLLOWS, projections::LIKES, projections::WORKS];
        let ids = [self.caller];
        let read = |source| self.read_models.users(source, Some(self.caller), &ids);
        let users = self.read(None, needed, read).await?;
        // A token is only given to one who has an account, so the user must be about to appear.
        users.value.into_iter().next().flatten().ok_or_else(|| {
            ApiError::unavailable("nothing was written: you are not known yet; try again in a moment")
        })
    }

    async fn read<T, Reading>(
        &self,
        about: Option<Scope>,
        projections: &'static [Projection],
        read: impl Fn(Source) -> Reading,
    ) -> Result<Fresh<T>, ApiError>
    where
        Reading: Future<Output = Result<T, ReadError>>,
    {
        let scopes = about.into_iter().chain([Scope::User(self.caller)]).collect();
        let need = Need { scopes, projections, extra: self.extra.clone() };
        Ok(self.read_models.freshness.read(need, read).await?)
    }
}
