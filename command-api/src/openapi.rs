//! The command side's part of the `OpenAPI` document.

use utoipa::OpenApi;

use crate::routes::{comment, favorite, login, message, register, relation};

#[derive(OpenApi)]
#[openapi(
    info(title = "vidlog, command side", description = "Every POST of the client contract."),
    paths(
        register::register,
        login::login,
        favorite::action,
        comment::action,
        relation::action,
        message::action,
    )
)]
struct Document;

/// The endpoints of the command side, as `OpenAPI` describes them.
pub fn openapi() -> utoipa::openapi::OpenApi {
    Document::openapi()
}
