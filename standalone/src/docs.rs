//! The `OpenAPI` document of both APIs, and a page to try them.

use axum::Router;
use utoipa::{OpenApi as _, openapi::OpenApi};
use utoipa_swagger_ui::SwaggerUi;
use vidlog_contract::openapi::add_common_parts;

/// The document without endpoints.
#[derive(utoipa::OpenApi)]
#[openapi(info(
    title = "vidlog",
    description = "A short video service: users upload videos, like them, comment on them, follow each other and \
        exchange messages.\n\n\
        Every path under `/douyin` works with and without the trailing slash, and consecutive slashes count as one. \
        Parameters are read from the query; on POST then from the body: `application/x-www-form-urlencoded`, \
        `multipart/form-data`, or `application/json` with one flat object of strings, numbers and booleans. The query \
        takes precedence over the body, and the first value over later ones; empty values and `null` count as missing. \
        A malformed body, or a non-empty one of another type, is error 10001. Unknown parameters are ignored. Uploads \
        are `multipart/form-data`. Ids are below 2^53; `4.5e+15` is accepted too.\n\n\
        Every response is JSON with `status_code` and `status_msg`. Business errors are HTTP 200 with a `status_code` \
        that the schema `Status` lists; errors of transport and capacity have an HTTP status of their own.\n\n\
        A command responds once its event is in the log. Reads by its caller, and reads of the entities that it \
        changed, wait up to 2 s for the event; after that the response has `Vidlog-Stale: true`. So has every read of a \
        view that is known to be halted or far behind.\n\n\
        Browsers can call from the origins that the server lists (CORS), with the token as a parameter or in \
        `Authorization`."
))]
struct Document;

/// Returns the `OpenAPI` document of both APIs.
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
