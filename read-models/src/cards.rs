//! Batched reads of users and videos.
//!
//! For any number of ids, users take one round trip, and videos one more.

use std::collections::HashMap;

use redis::{Cmd, cmd};
use vidlog_contract::objects::{User, Video};
use vidlog_schemas::rows::VideoState;

use crate::{
    card::{UserCard, VideoCard},
    error::{ReadError, Store},
    fallback,
    media::builtin,
    models::ReadModels,
    stores::{Replies, Source},
};

impl ReadModels {
    /// Returns users in the order of the ids; `None` for a user that does not exist.
    pub async fn users(
        &self,
        source: Source,
        viewer: Option<i64>,
        ids: &[i64],
    ) -> Result<Vec<Option<User>>, ReadError> {
        let cards = self.user_cards(source, viewer, &distinct(ids)).await?;
        let user = |id: &i64| {
            let card = cards.get(id).filter(|card| card.name.is_some())?;
            Some(self.user(*id, card.clone()))
        };
        Ok(ids.iter().map(user).collect())
    }

    /// Returns users that exist because an event names them. A user whose card is late has an empty name: without it
    /// the list would be shorter than its count.
    pub async fn listed_users(
        &self,
        source: Source,
        viewer: Option<i64>,
        ids: &[i64],
    ) -> Result<Vec<User>, ReadError> {
        let cards = self.user_cards(source, viewer, &distinct(ids)).await?;
        Ok(ids.iter().map(|id| self.user(*id, cards.get(id).cloned().unwrap_or_default())).collect())
    }

    /// Returns videos in the order of the ids; `None` for a video that does not exist or that the viewer cannot see.
    /// Only its author sees an unpublished video.
    pub async fn videos(
        &self,
        source: Source,
        viewer: Option<i64>,
        ids: &[i64],
    ) -> Result<Vec<Option<Video>>, ReadError> {
        let mut cards = match source {
            Source::Views => self.video_cards(viewer, &distinct(ids)).await?,
            Source::Tables => fallback::video_cards(&self.tables, viewer, &distinct(ids)).await?,
        };
        cards.retain(|_, card| card.state == VideoState::Published || viewer == Some(card.author_id));
        let authors: Vec<_> = cards.values().map(|card| card.author_id).collect();
        let authors = self.user_cards(source, viewer, &distinct(&authors)).await?;
        let video = |id: &i64| {
            let card = cards.get(id)?.clone();
            let author = authors.get(&card.author_id).cloned().unwrap_or_default();
            Some(self.video(*id, card, author))
        };
        Ok(ids.iter().map(video).collect())
    }

    fn user(&self, id: i64, card: UserCard) -> User {
        User {
            id,
            name: card.name.unwrap_or_default(),
            follow_count: card.follow_count,
            follower_count: card.follower_count,
            is_follow: card.is_follow,
            avatar: self.media.url(builtin::AVATAR),
            background_image: self.media.url(builtin::BACKGROUND),
            signature: String::new(),
            total_favorited: card.total_favorited,
            work_count: card.work_count,
            favorite_count: card.favorite_count,
        }
    }

    fn video(&self, id: i64, card: VideoCard, author: UserCard) -> Video {
        let (play_key, cover_key) = match card.state {
            VideoState::Published => (card.play_key.as_str(), card.cover_key.as_str()),
            VideoState::Processing => (builtin::PROCESSING_CLIP, builtin::PROCESSING_COVER),
            VideoState::Rejected => (builtin::REJECTED_CLIP, builtin::REJECTED_COVER),
        };
        Video {
            id,
            author: self.user(card.author_id, author),
            play_url: self.media.url(play_key),
            cover_url: self.media.url(cover_key),
            favorite_count: card.favorite_count,
            comment_count: card.comment_count,
            is_favorite: card.is_favorite,
            title: card.title,
            state: card.state.into(),
            state_reason: card.reason,
        }
    }

    async fn user_cards(
        &self,
        source: Source,
        viewer: Option<i64>,
        ids: &[i64],
    ) -> Result<HashMap<i64, UserCard>, ReadError> {
        if source == Source::Tables {
            return fallback::user_cards(&self.tables, viewer, ids).await;
        }
        let mut commands: Vec<_> = ids.iter().flat_map(|id| self.user_commands(viewer, *id)).collect();
        commands.extend(viewer.filter(|_| !ids.is_empty()).map(|viewer| {
            // The last reply: the users that the viewer follows.
            cmd("ZMSCORE").arg(self.keys.following(viewer)).arg(ids).take()
        }));
        let mut replies = self.views.pipeline(&commands).await?;
        let mut cards = HashMap::with_capacity(ids.len());
        for id in ids {
            cards.insert(*id, user_card(&mut replies)?);
        }
        for id in members(viewer, ids, &mut replies)? {
            cards.entry(id).or_default().is_follow = true;
        }
        Ok(cards)
    }

    fn user_commands(&self, viewer: Option<i64>, id: i64) -> [Cmd; 6] {
        let keys = &self.keys;
        let works = if viewer == Some(id) { keys.uploads(id) } else { keys.works(id) };
        [
            cmd("HGET").arg(keys.user_card(id)).arg("name").take(),
            cmd("ZCARD").arg(keys.following(id)).take(),
            cmd("ZCARD").arg(keys.followers(id)).take(),
            cmd("HGET").arg(keys.favorited(id)).arg("total").take(),
            cmd("ZCARD").arg(works).take(),
            cmd("ZCARD").arg(keys.favorites(id)).take(),
        ]
    }

    async fn video_cards(
        &self,
        viewer: Option<i64>,
        ids: &[i64],
    ) -> Result<HashMap<i64, VideoCard>, ReadError> {
        let mut commands: Vec<_> = ids.iter().flat_map(|id| self.video_commands(*id)).collect();
        commands.extend(viewer.filter(|_| !ids.is_empty()).map(|viewer| {
            // The last reply: the videos that the viewer likes.
            cmd("ZMSCORE").arg(self.keys.favorites(viewer)).arg(ids).take()
        }));
        let mut replies = self.views.pipeline(&commands).await?;
        let mut cards = HashMap::with_capacity(ids.len());
        for id in ids {
            if let Some(card) = video_card(&mut replies)? {
                cards.insert(*id, card);
            }
        }
        for id in members(viewer, ids, &mut replies)? {
            cards.entry(id).and_modify(|card| card.is_favorite = true);
        }
        Ok(cards)
    }

    fn video_commands(&self, id: i64) -> [Cmd; 3] {
        let keys = &self.keys;
        let fields = ["author", "title", "state", "play_key", "cover_key", "reason"];
        [
            cmd("HMGET").arg(keys.video_card(id)).arg(&fields).take(),
            cmd("SCARD").arg(keys.likers(id)).take(),
            cmd("SCARD").arg(keys.comments(id)).take(),
        ]
    }
}

fn user_card(replies: &mut Replies) -> Result<UserCard, ReadError> {
    Ok(UserCard {
        name: replies.take()?,
        follow_count: replies.take()?,
        follower_count: replies.take()?,
        is_follow: false,
        total_favorited: replies.take::<Option<i64>>()?.unwrap_or(0),
        work_count: replies.take()?,
        favorite_count: replies.take()?,
    })
}

type VideoFields = (Option<i64>, Option<String>, Option<i8>, Option<String>, Option<String>, Option<String>);

fn video_card(replies: &mut Replies) -> Result<Option<VideoCard>, ReadError> {
    let (author, title, state, play_key, cover_key, reason): VideoFields = replies.take()?;
    let (favorite_count, comment_count) = (replies.take()?, replies.take()?);
    let (Some(author_id), Some(state)) = (author, state) else {
        return Ok(None);
    };
    let state = VideoState::from_number(state)
        .ok_or_else(|| ReadError::fault(Store::Redis, format!("{state} is no video state")))?;
    Ok(Some(VideoCard {
        author_id,
        title: title.unwrap_or_default(),
        state,
        play_key: play_key.unwrap_or_default(),
        cover_key: cover_key.unwrap_or_default(),
        reason: reason.unwrap_or_default(),
        favorite_count,
        comment_count,
        is_favorite: false,
    }))
}

/// Returns the ids that have a score in the reply to the `ZMSCORE`, which anonymous reads do not send.
fn members(viewer: Option<i64>, ids: &[i64], replies: &mut Replies) -> Result<Vec<i64>, ReadError> {
    if viewer.is_none() || ids.is_empty() {
        return Ok(Vec::new());
    }
    let scores: Vec<Option<f64>> = replies.take()?;
    Ok(ids.iter().zip(scores).filter(|(_, score)| score.is_some()).map(|(id, _)| *id).collect())
}

fn distinct(ids: &[i64]) -> Vec<i64> {
    let mut ids = ids.to_vec();
    ids.sort_unstable();
    ids.dedup();
    ids
}
