//! The query API's part of the `OpenAPI` document.

use utoipa::OpenApi;

use crate::routes::{comment, favorite, feed, media, message, publish, relation, user};

#[derive(OpenApi)]
#[openapi(paths(
    feed::feed,
    feed::top,
    user::user,
    publish::list,
    favorite::list,
    comment::list,
    relation::follows,
    relation::followers,
    relation::friends,
    message::chat,
    media::serve,
))]
struct Document;

/// Returns the `OpenAPI` document of the query API.
pub fn openapi() -> utoipa::openapi::OpenApi {
    Document::openapi()
}
