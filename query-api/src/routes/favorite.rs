//! GET favorite/list.

use axum::extract::State;
use vidlog_contract::{Answer, ApiError, Call, error::Failures, limits};
use vidlog_read_models::Scope;

use super::{Answered, CARDS, VideoList, need, user_of};
use crate::{
    QueryState,
    paging::Page,
    reads::{self, list::List},
};

/// The videos that a user likes, the latest like first.
#[utoipa::path(
    get,
    path = "/douyin/favorite/list/",
    tag = "videos",
    params(
        ("user_id" = Option<i64>, Query, description = "missing: the caller"),
        ("token" = Option<String>, Query, description = "missing or empty: an anonymous reader"),
        ("limit" = Option<i64>, Query, description = "1 to 500"),
        ("cursor" = Option<String>, Query, description = "`next_cursor` of the page before"),
    ),
    responses((status = 200, body = Answer<VideoList>), Failures)
)]
pub(crate) async fn list(State(state): State<QueryState>, call: Call) -> Answered<VideoList> {
    let user = user_of(&call)?;
    let page = Page::of(&call.params, limits::FAVORITE_LIST)?;
    let need = need(&call, Some(Scope::User(user)), CARDS)?;
    let models = &state.models;
    let read = models
        .freshness
        .read(need, |source| reads::list::videos(models, source, call.viewer(), List::Favorites(user), page))
        .await?
        .ok_or(ApiError::not_found("user"))?;
    Ok(read.map(|(video_list, next_cursor)| Answer::new(VideoList { video_list, next_cursor })))
}
