//! What the client is told when a command fails. What happened inside was logged where it was found.

use vidlog_contract::ApiError;

use crate::{commands::Rejection, ids::NoId, publisher::AppendError};

impl From<Rejection> for ApiError {
    fn from(rejection: Rejection) -> Self {
        match rejection {
            Rejection::Invalid(why) => Self::invalid(why),
            Rejection::NotFound(what) => Self::not_found(what),
            Rejection::NotPublished => {
                Self::new(vidlog_contract::Code::NotFound, "the video is not published")
            }
            Rejection::Forbidden(why) => Self::forbidden(why),
            Rejection::Uncertain => {
                Self::unavailable("what this is about is not known yet; try again in a moment")
            }
        }
    }
}

impl From<AppendError> for ApiError {
    fn from(error: AppendError) -> Self {
        match error {
            AppendError::Busy => {
                Self::unavailable("nothing was written: too much is waiting; try again in a moment")
            }
            AppendError::Unknown(_) => Self::unavailable(
                "it is not known whether this was written; try again in a moment, with the same Idempotency-Key",
            ),
            AppendError::Refused(_) => Self::internal(),
        }
    }
}

impl From<NoId> for ApiError {
    fn from(_: NoId) -> Self {
        Self::unavailable("nothing new can be written right now; try again in a moment")
    }
}

/// An id that came from a checked parameter or token, as the type of what it names.
pub(crate) fn checked<T: TryFrom<i64>>(id: i64) -> Result<T, ApiError> {
    T::try_from(id).map_err(|_| ApiError::invalid("an id is not within 1 and 2^53 - 1"))
}
