//! Error codes and the body of an error response.

use std::borrow::Cow;

use axum::{
    Json,
    http::{StatusCode, header::RETRY_AFTER},
    response::{IntoResponse, Response},
};
use serde::Serialize;
use utoipa::{
    ToSchema,
    openapi::{Object, Type},
};

/// The `status_code` of a response: success, or why the request failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Code {
    /// Success.
    Ok = 0,
    /// A parameter or the body is missing, malformed or out of its limits.
    InvalidParameter = 10001,
    /// The request needs a caller and is anonymous, or its token does not verify.
    Unauthenticated = 10002,
    /// The caller lacks the permission.
    Forbidden = 10003,
    /// The user, video or comment does not exist.
    NotFound = 10004,
    /// The user name is taken.
    NameTaken = 10005,
    /// The user name or the password is wrong.
    LoginFailed = 10006,
    /// The body is too large.
    PayloadTooLarge = 10007,
    /// The caller sends too many requests.
    TooManyRequests = 10008,
    /// A store or the log is unavailable, or there is no capacity. The caller can retry.
    Unavailable = 10009,
    /// A fault of the server.
    Internal = 10010,
    /// The path does not exist, or does not take this method.
    UnsupportedRequest = 10011,
}

impl Code {
    /// Every code, in the order of the documentation.
    pub const ALL: [Self; 12] = [
        Self::Ok,
        Self::InvalidParameter,
        Self::Unauthenticated,
        Self::Forbidden,
        Self::NotFound,
        Self::NameTaken,
        Self::LoginFailed,
        Self::PayloadTooLarge,
        Self::TooManyRequests,
        Self::Unavailable,
        Self::Internal,
        Self::UnsupportedRequest,
    ];

    /// Returns the number on the wire. Clients compare it, so it never changes.
    pub const fn number(self) -> i32 {
        self as i32
    }

    /// Returns the meaning, for the documentation.
    pub const fn meaning(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::InvalidParameter => "a parameter is missing, malformed or out of its limits",
            Self::Unauthenticated => "the request needs a token and has none, or the token does not verify",
            Self::Forbidden => "the caller lacks the permission",
            Self::NotFound => "the user, video or comment does not exist",
            Self::NameTaken => "the user name is taken",
            Self::LoginFailed => "the user name or the password is wrong",
            Self::PayloadTooLarge => "the body is too large",
            Self::TooManyRequests => "too many requests; try again after Retry-After seconds",
            Self::Unavailable => "a store is unavailable or there is no capacity; try again later",
            Self::Internal => "a fault of the server",
            Self::UnsupportedRequest => "the path does not exist, or does not take this method (HTTP 405)",
        }
    }

    /// Returns the HTTP status: 200 for business errors, its own for errors of transport or capacity.
    pub const fn http_status(self) -> StatusCode {
        match self {
            Self::PayloadTooLarge => StatusCode::PAYLOAD_TOO_LARGE,
            Self::TooManyRequests => StatusCode::TOO_MANY_REQUESTS,
            Self::Unavailable => StatusCode::SERVICE_UNAVAILABLE,
            Self::Internal => StatusCode::INTERNAL_SERVER_ERROR,
            Self::UnsupportedRequest => StatusCode::NOT_FOUND,
            Self::Ok
            | Self::InvalidParameter
            | Self::Unauthenticated
            | Self::Forbidden
            | Self::NotFound
            | Self::NameTaken
            | Self::LoginFailed => StatusCode::OK,
        }
    }
}

/// An error response: a code and a sentence for the caller.
///
/// It never contains the text of an internal error, which is logged where it is handled.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{code:?}: {message}")]
pub struct ApiError {
    /// The error code.
    pub code: Code,
    /// The reason, for people.
    pub message: Cow<'static, str>,
    /// Seconds after which the caller can try again, for the header `Retry-After`.
    pub retry_after_s: Option<u32>,
}

impl ApiError {
    /// Returns an error with a code.
    pub fn new(code: Code, message: impl Into<Cow<'static, str>>) -> Self {
        Self { code, message: message.into(), retry_after_s: None }
    }

    /// Adds the time after which the caller can try again.
    #[must_use]
    pub const fn retry_after_s(mut self, seconds: u32) -> Self {
        self.retry_after_s = Some(seconds);
        self
    }

    /// Returns the error of a missing, malformed or out-of-range parameter.
    pub fn invalid(message: impl Into<Cow<'static, str>>) -> Self {
        Self::new(Code::InvalidParameter, message)
    }

    /// Returns the error of a missing or invalid token.
    pub fn unauthenticated(message: impl Into<Cow<'static, str>>) -> Self {
        Self::new(Code::Unauthenticated, message)
    }

    /// Returns the error of a caller without permission.
    pub fn forbidden(message: impl Into<Cow<'static, str>>) -> Self {
        Self::new(Code::Forbidden, message)
    }

    /// Returns the error of a missing entity, such as "user".
    pub fn not_found(entity: &str) -> Self {
        Self::new(Code::NotFound, format!("there is no such {entity}"))
    }

    /// Returns the error of an unavailable store, log or slot. The message says what the caller can do.
    pub fn unavailable(message: impl Into<Cow<'static, str>>) -> Self {
        Self::new(Code::Unavailable, message)
    }

    /// Returns the error of a server fault, which is logged where it occurs.
    pub const fn internal() -> Self {
        Self {
            code: Code::Internal,
            message: Cow::Borrowed("something went wrong on the server"),
            retry_after_s: None,
        }
    }

    /// Returns the error of a body above its limit.
    pub fn too_large(limit_bytes: u64) -> Self {
        Self::new(Code::PayloadTooLarge, format!("the body may have at most {limit_bytes} bytes"))
    }

    /// Returns the error of an unknown path: 404 with the two status fields.
    pub const fn no_such_path() -> Self {
        Self {
            code: Code::UnsupportedRequest,
            message: Cow::Borrowed("there is no such path"),
            retry_after_s: None,
        }
    }
}

/// The two status fields of every response. An error response has no others unless its endpoint documents them.
#[derive(Serialize, ToSchema)]
pub struct Status {
    /// 0, or the error code.
    #[schema(schema_with = status_code)]
    pub status_code: i32,
    /// The reason, for people.
    #[schema(example = "there is no such video")]
    pub status_msg: Cow<'static, str>,
}

/// Returns the `OpenAPI` schema of `status_code`, which lists every code.
fn status_code() -> Object {
    let line = |code: Code| {
        format!("- {} (HTTP {}): {}", code.number(), code.http_status().as_u16(), code.meaning())
    };
    let mut schema = Object::with_type(Type::Integer);
    schema.description = Some(format!("0, or the error code:\n{}", Code::ALL.map(line).join("\n")));
    schema.enum_values = Some(Code::ALL.map(|code| code.number().into()).into());
    schema
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let status = Status { status_code: self.code.number(), status_msg: self.message };
        let mut response = (self.code.http_status(), Json(status)).into_response();
        if let Some(seconds) = self.retry_after_s {
            response.headers_mut().insert(RETRY_AFTER, seconds.into());
        }
        response
    }
}

/// Returns the response to a known path with another method: 405 with the two status fields.
pub fn method_not_allowed() -> Response {
    let error = ApiError::new(Code::UnsupportedRequest, "this path does not take this method");
    let mut response = error.into_response();
    *response.status_mut() = StatusCode::METHOD_NOT_ALLOWED;
    response
}

/// Returns the response to a request on a connection above the limit: 503 with the two status fields.
pub fn too_many_connections() -> Response {
    ApiError::unavailable("too busy; try again in a moment").into_response()
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use axum::body::to_bytes;

    use super::*;

    #[test]
    fn every_code_is_listed_and_documented() {
        let numbers: HashSet<_> = Code::ALL.map(Code::number).into();
        assert_eq!(numbers.len(), Code::ALL.len());
        assert!(Code::ALL.iter().all(|code| !code.meaning().is_empty()));
        assert_eq!(numbers.iter().max(), Some(&Code::UnsupportedRequest.number()));
    }

    #[tokio::test]
    async fn error_body_has_only_the_status_fields() {
        let response = ApiError::not_found("video").into_response();
        assert_eq!(response.status(), StatusCode::OK);
        assert_eq!(response.headers()["content-type"], "application/json");
        let body = to_bytes(response.into_body(), usize::MAX).await.unwrap();
        assert_eq!(body, r#"{"status_code":10004,"status_msg":"there is no such video"}"#);
    }

    #[tokio::test]
    async fn transport_and_capacity_errors_have_an_http_status() {
        let busy = ApiError::new(Code::TooManyRequests, "try again").retry_after_s(7).into_response();
        assert_eq!((busy.status().as_u16(), &busy.headers()["retry-after"]), (429, &"7".parse().unwrap()));
        assert_eq!(ApiError::too_large(1).into_response().status(), 413);
        assert_eq!(ApiError::unavailable("try again").into_response().status(), 503);
        assert_eq!(ApiError::internal().into_response().status(), 500);
        assert_eq!(ApiError::no_such_path().into_response().status(), 404);
        assert_eq!(method_not_allowed().status(), 405);
    }
}
