//! The description of the whole API, and a page to try it.

use axum::Router;
use utoipa::openapi::OpenApi;
use utoipa_swagger_ui::SwaggerUi;

/// The `OpenAPI` document of both APIs.
pub fn openapi() -> OpenApi {
    let mut document = vidlog_command_api::openapi();
    document.merge(vidlog_query_api::openapi());
    document
}

/// Serves the document at `/openapi.json` and the page at `/docs/`.
pub(crate) fn router() -> Router {
    SwaggerUi::new("/docs").url("/openapi.json", openapi()).into()
}
