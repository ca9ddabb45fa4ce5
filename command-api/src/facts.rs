//! Facts: the current state that a decision depends on, read with the same freshness as any other read.

use axum::http::HeaderMap;
use vidlog_contract::{ApiError, objects::User};
use vidlog_read_models::{
    Fresh, FreshnessRequirement, Position, ReadError, ReadModels, Scope, Source, VideoFact,
    freshness::client_positions,
};
use vidlog_schemas::projections::{self, Projection};

use crate::commands::comment::CommentFacts;

/// Reads facts for a caller.
pub(crate) struct Facts<'a> {
    read_models: &'a ReadModels,
    caller: i64,
    client_positions: Vec<Position>,
}

impl<'a> Facts<'a> {
    /// Facts for a caller; reads wait for the positions in its headers.
    pub(crate) fn new(
        read_models: &'a ReadModels,
        caller: i64,
        headers: &HeaderMap,
    ) -> Result<Self, ApiError> {
        Ok(Self { read_models, caller, client_positions: client_positions(headers)? })
    }

    /// Reads a video.
    pub(crate) async fn video(&self, video_id: i64) -> Result<Fresh<Option<VideoFact>>, ApiError> {
        let read = |source| self.read_models.video_fact(source, video_id);
        self.read(Some(Scope::Video(video_id)), &[projections::VIDEO_CARDS], read).await
    }

    /// Reads whether a user exists.
    pub(crate) async fn user(&self, user_id: i64) -> Result<Fresh<Option<()>>, ApiError> {
        let read = |source| self.read_models.user_exists(source, user_id);
        let exists = self.read(Some(Scope::User(user_id)), &[projections::USER_CARDS], read).await?;
        Ok(exists.map(|exists| exists.then_some(())))
    }

    /// Reads a comment and its video.
    pub(crate) async fn comment(
        &self,
        video_id: i64,
        comment_id: i64,
    ) -> Result<Fresh<CommentFacts>, ApiError> {
        let projections = &[projections::VIDEO_CARDS, projections::COMMENTS_TABLE];
        let read = async |source| {
            let (video, comment) = tokio::try_join!(
                self.read_models.video_fact(source, video_id),
                self.read_models.comment_fact(video_id, comment_id),
            )?;
            Ok(CommentFacts { video, comment })
        };
        self.read(Some(Scope::Video(video_id)), projections, read).await
    }

    /// Reads the caller's own user card.
    pub(crate) async fn caller(&self) -> Result<User, ApiError> {
        let projections =
            &[projections::USER_CARDS, projections::FOLLOWS, projections::LIKES, projections::WORKS];
        let ids = [self.caller];
        let read = |source| self.read_models.users(source, Some(self.caller), &ids);
        let users = self.read(None, projections, read).await?;
        // Only users with an account have tokens, so a missing user is one that is not folded yet.
        users.value.into_iter().next().flatten().ok_or_else(|| {
            ApiError::unavailable(
                "nothing was written: your account is not available yet; try again in a moment",
            )
        })
    }

    async fn read<T, Reading>(
        &self,
        scope: Option<Scope>,
        projections: &'static [Projection],
        read: impl Fn(Source) -> Reading,
    ) -> Result<Fresh<T>, ApiError>
    where
        Reading: Future<Output = Result<T, ReadError>>,
    {
        let scopes = scope.into_iter().chain([Scope::User(self.caller)]).collect();
        let need =
            FreshnessRequirement { scopes, projections, client_positions: self.client_positions.clone() };
        Ok(self.read_models.freshness.read(need, read).await?)
    }
}
