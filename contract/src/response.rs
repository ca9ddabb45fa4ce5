//! The body of a successful response.

use axum::{
    Json,
    response::{IntoResponse, Response},
};
use serde::Serialize;
use utoipa::ToSchema;

use crate::error::Code;

/// A successful response: the two status fields of every response, then the fields of the content.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, ToSchema)]
pub struct ApiResponse<T> {
    /// Always 0.
    #[schema(example = 0)]
    status_code: i32,
    /// Always "ok".
    #[schema(example = "ok")]
    status_msg: &'static str,
    #[serde(flatten)]
    content: T,
}

impl<T> ApiResponse<T> {
    /// Returns a response with the fields of a content.
    pub const fn new(content: T) -> Self {
        Self { status_code: Code::Ok.number(), status_msg: Code::Ok.meaning(), content }
    }
}

/// The content of a response that has only the two status fields.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, ToSchema)]
pub struct Empty {}

impl ApiResponse<Empty> {
    /// Returns a response without content.
    pub const fn ok() -> Self {
        Self::new(Empty {})
    }
}

impl<T: Serialize> IntoResponse for ApiResponse<T> {
    fn into_response(self) -> Response {
        Json(self).into_response()
    }
}

#[cfg(test)]
mod tests {
    use axum::body::to_bytes;

    use super::*;

    #[derive(Serialize)]
    struct List {
        video_list: Vec<i64>,
    }

    async fn body(response: Response) -> String {
        String::from_utf8(to_bytes(response.into_body(), usize::MAX).await.unwrap().to_vec()).unwrap()
    }

    #[tokio::test]
    async fn content_fields_follow_the_status_fields() {
        let response = ApiResponse::new(List { video_list: Vec::new() }).into_response();
        assert_eq!(response.headers()["content-type"], "application/json");
        assert_eq!(body(response).await, r#"{"status_code":0,"status_msg":"ok","video_list":[]}"#);
        assert_eq!(body(ApiResponse::ok().into_response()).await, r#"{"status_code":0,"status_msg":"ok"}"#);
    }
}
