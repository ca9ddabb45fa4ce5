//! Maps the errors of a command to API errors. The cause is logged where it occurs and never sent.

use vidlog_contract::ApiError;

use crate::{commands::Rejection, ids::IdError, publisher::AppendError};

impl From<Rejection> for ApiError {
    fn from(rejection: Rejection) -> Self {
        match rejection {
            Rejection::Invalid(reason) => Self::invalid(reason),
            Rejection::NotFound(entity) => Self::not_found(entity),
            Rejection::NotPublished => {
                Self::new(vidlog_contract::Code::NotFound, "the video is not published")
            }
            Rejection::Forbidden(reason) => Self::forbidden(reason),
            Rejection::Uncertain => Self::unavailable(
                "the video, user or comment could not be checked right now; try again in a moment",
            ),
        }
    }
}

impl From<AppendError> for ApiError {
    fn from(error: AppendError) -> Self {
        match error {
            AppendError::Busy => {
                Self::unavailable("nothing was written: too many writes are queued; try again in a moment")
            }
            AppendError::Unknown(_) => Self::unavailable(
                "the write may or may not have succeeded; try again in a moment, with the same Idempotency-Key",
            ),
            AppendError::Refused(_) => Self::internal(),
        }
    }
}

impl From<IdError> for ApiError {
    fn from(_: IdError) -> Self {
        Self::unavailable("nothing was written: no ids are available right now; try again in a moment")
    }
}

/// Converts an id from a parameter or token into its typed form.
pub(crate) fn typed_id<T: TryFrom<i64>>(id: i64) -> Result<T, ApiError> {
    T::try_from(id).map_err(|_| ApiError::invalid("an id must be between 1 and 2^53 - 1"))
}
