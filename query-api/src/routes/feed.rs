//! GET feed.

use axum::extract::State;
use serde::Serialize;
use utoipa::ToSchema;
use vidlog_contract::{ApiResponse, Call, limits, objects::Video, times};
use vidlog_schemas::{
    keys::TOP_COUNTS,
    projections::{self, Projection},
};

use super::{FEED_PROJECTIONS, FreshResult, VideoList, freshness_requirement};
use crate::{paging::Page, reads, state::QueryState};

/// The projections behind the ranking of videos, and behind their cards.
const TOP_PROJECTIONS: &[Projection] = &[
    projections::TOP_VIDEOS,
    projections::VIDEO_CARDS,
    projections::COMMENT_COUNTS,
    projections::USER_CARDS,
    projections::FOLLOWS,
    projections::WORKS,
    projections::LIKES,
];

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
    let requirement = freshness_requirement(&call, None, FEED_PROJECTIONS)?;
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

/// The last week whose scores in a ranking are exact (see [`TOP_COUNTS`]).
const LAST_WEEK: i64 = (limits::MAX_ID / TOP_COUNTS) - 1;

/// The most liked videos published in a week, most liked first.
#[utoipa::path(
    get,
    path = "/douyin/feed/top/",
    operation_id = "feedTop",
    tag = "videos",
    params(
        ("week" = Option<i64>, Query, description = "weeks since 1970-01-01; default: the newest with a published video"),
        ("limit" = Option<i64>, Query, description = "1 to 500"),
        ("cursor" = Option<String>, Query, description = "`next_cursor` of the previous page"),
    ),
    security((), ("token" = []), ("bearer" = [])),
    responses((status = 200, body = ApiResponse<VideoList>))
)]
pub(crate) async fn top(State(state): State<QueryState>, call: Call) -> FreshResult<VideoList> {
    let week = call.params.optional_number("week", 0..=LAST_WEEK)?;
    let page = Page::from_params(&call.params, limits::TOP_LIST)?;
    let requirement = freshness_requirement(&call, None, TOP_PROJECTIONS)?;
    let models = &state.models;
    let read = models
        .freshness
        .read(requirement, |source| reads::top::page(models, source, call.viewer(), week, page))
        .await?;
    Ok(read.map(|(video_list, next_cursor)| ApiResponse::new(VideoList { video_list, next_cursor })))
}
