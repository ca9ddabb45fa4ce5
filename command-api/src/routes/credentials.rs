//! What registration and login have in common: the answer, whose fields are there also when they fail.

use axum::{
    Json,
    response::{IntoResponse, Response},
};
use serde::Serialize;
use tracing::error;
use utoipa::ToSchema;
use vidlog_contract::{Answer, ApiError, Call, error::Status, limits};

use crate::{passwords::PasswordError, state::CommandState};

/// What is there of the answer in any case, as the `OpenAPI` document says it.
pub(super) const IN_ANY_CASE: &str =
    "`user_id` and `token` are always there: 0 and empty in a failure, whatever its HTTP status.";

/// Who someone is now.
#[derive(Serialize, ToSchema)]
pub(crate) struct Credentials {
    /// The user; 0 on failure.
    user_id: i64,
    /// Its token, good for 30 days; empty on failure.
    token: String,
}

/// A failed registration or login.
pub(crate) struct Refused(ApiError);

/// A name and a password, as they were typed.
pub(super) struct Typed<'a> {
    pub(super) username: &'a str,
    pub(super) password: &'a str,
}

impl Credentials {
    /// The answer to someone who is a user.
    pub(super) fn of(state: &CommandState, user_id: i64) -> Result<Answer<Self>, ApiError> {
        Ok(Answer::new(Self { user_id, token: state.tokens.sign(user_id)? }))
    }
}

impl<'a> Typed<'a> {
    pub(super) fn of(call: &'a Call) -> Result<Self, ApiError> {
        Ok(Self {
            username: call.params.limited_text("username", limits::USERNAME)?,
            password: call.params.limited_text("password", limits::PASSWORD)?,
        })
    }
}

impl From<ApiError> for Refused {
    fn from(error: ApiError) -> Self {
        Self(error)
    }
}

impl IntoResponse for Refused {
    fn into_response(self) -> Response {
        #[derive(Serialize)]
        struct Fields {
            #[serde(flatten)]
            status: Status,
            #[serde(flatten)]
            nobody: Credentials,
        }
        let Self(error) = self;
        let fields = Fields {
            status: Status { status_code: error.code.number(), status_msg: error.message },
            nobody: Credentials { user_id: 0, token: String::new() },
        };
        (error.code.http_status(), Json(fields)).into_response()
    }
}

impl From<PasswordError> for ApiError {
    fn from(error: PasswordError) -> Self {
        match error {
            PasswordError::Busy => {
                Self::unavailable("too many people are coming in right now; try again in a moment")
            }
            PasswordError::Hash(_) | PasswordError::Cancelled(_) => {
                error!(%error, "a password was neither hashed nor verified");
                Self::internal()
            }
        }
    }
}
