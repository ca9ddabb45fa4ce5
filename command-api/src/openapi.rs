//! The command side's part of the `OpenAPI` document.

use utoipa::OpenApi;

use crate::routes::{comment, favorite, login, message, publish, register, relation};

#[derive(OpenApi)]
#[openapi(paths(
    register::register,
    login::login,
    publish::action,
    favorite::action,
    comment::action,
    relation::action,
    message::action,
))]
struct Document;

/// The `OpenAPI` description of the command side's endpoints.
pub fn openapi() -> utoipa::openapi::OpenApi {
    Document::openapi()
}
