//! The form and the response of registration and login. The response's fields are present on failure too.

use std::time::Duration;

use axum::{
    Json,
    response::{IntoResponse, Response},
};
use serde::Serialize;
use tokio::time::Instant;
use tracing::error;
use utoipa::ToSchema;
use vidlog_contract::{ApiError, ApiResponse, Call, error::Status, limits};

use crate::{execute::COMMAND_TIMEOUT, passwords::PasswordError, state::CommandState};

/// Description of the response in the `OpenAPI` document.
pub(super) const RESPONSE_DESCRIPTION: &str =
    "`user_id` and `token` are always present: 0 and empty on failure, whatever its HTTP status.";

/// Time that a call needs after the password is hashed: for its transaction and the append.
const AFTER_HASHING: Duration = Duration::from_secs(1);

/// A user's id and token.
#[derive(Serialize, ToSchema)]
pub(crate) struct Credentials {
    /// The user's id; 0 on failure.
    user_id: i64,
    /// A token, valid for 30 days; empty on failure.
    token: String,
}

/// A failed registration or login.
pub(crate) struct CredentialsError(ApiError);

/// The user name and password as typed.
pub(super) struct LoginForm<'a> {
    pub(super) username: &'a str,
    pub(super) password: &'a str,
    /// Deadline for hashing the password.
    pub(super) hashing_deadline: Instant,
}

impl Credentials {
    /// The response for a user, with a new token.
    pub(super) fn for_user(state: &CommandState, user_id: i64) -> Result<ApiResponse<Self>, ApiError> {
        Ok(ApiResponse::new(Self { user_id, token: state.tokens.sign(user_id)? }))
    }
}

impl<'a> LoginForm<'a> {
    pub(super) fn from_call(call: &'a Call) -> Result<Self, ApiError> {
        Ok(Self {
            username: call.params.limited_text("username", limits::USERNAME)?,
            password: call.params.limited_text("password", limits::PASSWORD)?,
            hashing_deadline: Instant::now() + COMMAND_TIMEOUT.saturating_sub(AFTER_HASHING),
        })
    }
}

impl From<ApiError> for CredentialsError {
    fn from(error: ApiError) -> Self {
        Self(error)
    }
}

impl IntoResponse for CredentialsError {
    fn into_response(self) -> Response {
        #[derive(Serialize)]
        struct Fields {
            #[serde(flatten)]
            status: Status,
            #[serde(flatten)]
            credentials: Credentials,
        }
        let Self(error) = self;
        let fields = Fields {
            status: Status { status_code: error.code.number(), status_msg: error.message },
            credentials: Credentials { user_id: 0, token: String::new() },
        };
        (error.code.http_status(), Json(fields)).into_response()
    }
}

impl From<PasswordError> for ApiError {
    fn from(error: PasswordError) -> Self {
        match error {
            PasswordError::Busy => {
                Self::unavailable("too many logins and registrations right now; try again in a moment")
            }
            PasswordError::Hash(_) | PasswordError::Thread(_) | PasswordError::Panicked => {
                error!(%error, "failed to hash or verify password");
                Self::internal()
            }
        }
    }
}
