//! GET feed.

use axum::extract::State;
use serde::Serialize;
use utoipa::ToSchema;
use vidlog_contract::{ApiResponse, Call, objects::Video, times};

use super::{CARD_PROJECTIONS, FreshResult, freshness_requirement};
use crate::{reads, state::QueryState};

/// A page of the feed.
#[derive(Serialize, ToSchema)]
pub(crate) struct Feed {
    video_list: Vec<Video>,
    /// The publish time (ms) of the oldest video on the page, the `latest_time` of the next page. The current time on an
    /// empty page.
    next_time: i64,
}

/// The newest videos of all users, at most 30.
#[utoipa::path(
    get,
    path = "/douyin/feed/",
    operation_id = "feed",
    tag = "videos",
    params(
        ("latest_time" = Option<String>, Query, description = "only videos published before it; milliseconds, or \
            seconds up to 1e11; missing, empty, 0 or not a number: now"),
    ),
    security((), ("token" = []), ("bearer" = [])),
    responses((status = 200, body = ApiResponse<Feed>))
)]
pub(crate) async fn feed(State(state): State<QueryState>, call: Call) -> FreshResult<Feed> {
    let before = times::parse(call.params.optional("latest_time")?);
    let requirement = freshness_requirement(&call, None, CARD_PROJECTIONS)?;
    let models = &state.models;
    let read = models
        .freshness
        .read(requirement, |source| reads::feed::page(models, source, call.viewer(), before))
        .await?;
    Ok(read.map(|page| {
        let next_time = page.last().map_or_else(|| state.clock.now_ms(), |oldest| oldest.published_ms);
        let video_list = page.into_iter().map(|published| published.video).collect();
        ApiResponse::new(Feed { video_list, next_time })
    }))
}
