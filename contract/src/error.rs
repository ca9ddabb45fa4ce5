//! What is answered when a call fails.

use std::borrow::Cow;

use axum::{
    Json,
    http::{HeaderValue, StatusCode, header::CONNECTION},
    response::{IntoResponse, Response},
};
use serde::Serialize;
use utoipa::{
    ToSchema,
    openapi::{Object, Type},
};

/// Why a call failed, as the client sees it: the `status_code` of the answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Code {
    /// It did not fail.
    Ok = 0,
    /// A parameter is missing, malformed or out of its limits.
    InvalidParameter = 10001,
    /// There is no caller where one is needed, or the token does not verify.
    Unauthenticated = 10002,
    /// The caller may not do this.
    Forbidden = 10003,
    /// The user, video or comment does not exist.
    NotFound = 10004,
    /// Someone has this user name.
    NameTaken = 10005,
    /// User name or password is wrong.
    LoginFailed = 10006,
    /// The body is too large.
    PayloadTooLarge = 10007,
    /// Too many calls; try again later. Reserved: nothing answers it yet.
    TooManyRequests = 10008,
    /// A store or the log is away, or there is no capacity; try again later.
    Unavailable = 10009,
    /// A fault of ours.
    Internal = 10010,
    /// No such path, or not with this method.
    UnsupportedRequest = 10011,
}

impl Code {
    /// Every code: the one list that the documentation shows.
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

    /// The number on the wire. Clients compare it: it never changes.
    pub const fn number(self) -> i32 {
        self as i32
    }

    /// What it means, for the documentation.
    pub const fn meaning(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::InvalidParameter => "a parameter is missing, malformed or out of its limits",
            Self::Unauthenticated => "there is no caller where one is needed, or the token does not verify",
            Self::Forbidden => "the caller may not do this",
            Self::NotFound => "the user, video or comment does not exist",
            Self::NameTaken => "someone has this user name",
            Self::LoginFailed => "user name or password is wrong",
            Self::PayloadTooLarge => "the body is too large",
            Self::TooManyRequests => "too many calls; try again later (reserved: nothing answers it yet)",
            Self::Unavailable => "a store is away or there is no capacity; try again later",
            Self::Internal => "a fault of the server",
            Self::UnsupportedRequest => "no such path, or not with this method (HTTP 405)",
        }
    }

    /// The HTTP status: 200 for all that is about the business, its own for faults of transport or capacity.
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

/// A call that failed: a code and a sentence for the one who called. It never holds the text of an error from
/// inside; that is logged where it is handled.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{code:?}: {message}")]
pub struct ApiError {
    /// Why.
    pub code: Code,
    /// Why, in words.
    pub message: Cow<'static, str>,
}

impl ApiError {
    /// A failed call.
    pub fn new(code: Code, message: impl Into<Cow<'static, str>>) -> Self {
        Self { code, message: message.into() }
    }

    /// A parameter is missing, malformed or out of its limits.
    pub fn invalid(message: impl Into<Cow<'static, str>>) -> Self {
        Self::new(Code::InvalidParameter, message)
    }

    /// There is no caller, or the token does not verify.
    pub fn unauthenticated(message: impl Into<Cow<'static, str>>) -> Self {
        Self::new(Code::Unauthenticated, message)
    }

    /// The caller may not do this.
    pub fn forbidden(message: impl Into<Cow<'static, str>>) -> Self {
        Self::new(Code::Forbidden, message)
    }

    /// Something with this name does not exist: "user", "video".
    pub fn not_found(what: &str) -> Self {
        Self::new(Code::NotFound, format!("there is no such {what}"))
    }

    /// A store or the log is away. The message says what the caller can do about it.
    pub fn unavailable(what_to_do: impl Into<Cow<'static, str>>) -> Self {
        Self::new(Code::Unavailable, what_to_do)
    }

    /// A fault of ours, logged where it was found.
    pub const fn internal() -> Self {
        Self { code: Code::Internal, message: Cow::Borrowed("something went wrong on the server") }
    }

    /// A body above its limit.
    pub fn too_large(limit_bytes: u64) -> Self {
        Self::new(Code::PayloadTooLarge, format!("the body may have at most {limit_bytes} bytes"))
    }

    /// There is no such path: 404, with the two fields.
    pub const fn no_such_path() -> Self {
        Self { code: Code::UnsupportedRequest, message: Cow::Borrowed("there is no such path") }
    }
}

/// The two fields of every answer, and all that there is of a failed one where nothing else is said.
#[derive(Serialize, ToSchema)]
pub struct Status {
    /// 0, or why the call failed.
    #[schema(schema_with = status_code)]
    pub status_code: i32,
    /// The same in words.
    #[schema(example = "there is no such video")]
    pub status_msg: Cow<'static, str>,
}

/// The schema of `status_code`, with every code there is.
fn status_code() -> Object {
    let line = |code: Code| {
        format!("- {} (HTTP {}): {}", code.number(), code.http_status().as_u16(), code.meaning())
    };
    let mut schema = Object::with_type(Type::Integer);
    schema.description = Some(format!("0, or why the call failed:\n{}", Code::ALL.map(line).join("\n")));
    schema.enum_values = Some(Code::ALL.map(|code| code.number().into()).into());
    schema
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let status = Status { status_code: self.code.number(), status_msg: self.message };
        let mut response = (self.code.http_status(), Json(status)).into_response();
        if self.code == Code::PayloadTooLarge {
            // The rest of the body is not read, so that this connection can't carry another request.
            response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
        }
        response
    }
}

/// The answer to a known path with another method: 405, with the two fields.
pub fn method_not_allowed() -> Response {
    let error = ApiError::new(Code::UnsupportedRequest, "this path does not answer this method");
    let mut response = error.into_response();
    *response.status_mut() = StatusCode::METHOD_NOT_ALLOWED;
    response
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use axum::body::to_bytes;

    use super::*;

    #[test]
    fn every_code_is_listed_once_and_explained() {
        let numbers: HashSet<_> = Code::ALL.map(Code::number).into();
        assert_eq!(numbers.len(), Code::ALL.len());
        assert!(Code::ALL.iter().all(|code| !code.meaning().is_empty()));
        assert_eq!(numbers.iter().max(), Some(&Code::UnsupportedRequest.number()));
    }

    #[tokio::test]
    async fn an_error_is_the_two_fields_and_nothing_else() {
        let response = ApiError::not_found("video").into_response();
        assert_eq!(response.status(), StatusCode::OK);
        assert_eq!(response.headers()["content-type"], "application/json");
        let body = to_bytes(response.into_body(), usize::MAX).await.unwrap();
        assert_eq!(body, r#"{"status_code":10004,"status_msg":"there is no such video"}"#);
    }

    #[tokio::test]
    async fn faults_of_transport_and_capacity_have_their_own_http_status() {
        assert_eq!(ApiError::too_large(1).into_response().status(), 413);
        assert_eq!(ApiError::unavailable("try again").into_response().status(), 503);
        assert_eq!(ApiError::internal().into_response().status(), 500);
        assert_eq!(ApiError::no_such_path().into_response().status(), 404);
        assert_eq!(method_not_allowed().status(), 405);
    }
}
