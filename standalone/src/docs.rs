//! The description of the whole API, and a page to try it.

use axum::Router;
use utoipa::{OpenApi as _, openapi::OpenApi};
use utoipa_swagger_ui::SwaggerUi;
use vidlog_contract::openapi::add_common_parts;

/// What is said of the whole.
#[derive(utoipa::OpenApi)]
#[openapi(info(
    title = "vidlog",
    description = "A short video service: users upload videos, like them, comment on them, follow each other and \
        exchange messages.\n\n\
        Every path under `/douyin` answers with and without the slash at its end. A parameter may stand in the query; \
        of a POST also in the body, as `application/x-www-form-urlencoded` (of an upload as `multipart/form-data`). \
        What stands in both is taken from the query, what stands there twice is taken the first time, and what is \
        unknown is ignored. Ids are below 2^53.\n\n\
        Every answer is JSON with `status_code` and `status_msg`. HTTP 200 says that a call was answered, \
        `status_code` whether it went well; an HTTP status of its own have only faults of transport and capacity. \
        The schema `Status` lists the codes.\n\n\
        A command is answered once its event is in the log. Its caller, and whoever reads what it was about, wait for \
        it to be seen: for 2 s at most, then `Vidlog-Stale: true` says that it may be lacking."
))]
struct Document;

/// The `OpenAPI` document of both APIs.
pub fn openapi() -> OpenApi {
    let mut document = Document::openapi();
    document.merge(vidlog_command_api::openapi());
    document.merge(vidlog_query_api::openapi());
    add_common_parts(&mut document);
    document
}

/// Serves the document at `/openapi.json` and the page at `/docs/`.
pub(crate) fn router() -> Router {
    SwaggerUi::new("/docs").url("/openapi.json", openapi()).into()
}
