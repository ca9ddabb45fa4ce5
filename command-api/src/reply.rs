//! The response to a successful command.

use axum::{
    http::{
        HeaderValue,
        header::{CONTENT_TYPE, HeaderName},
    },
    response::{IntoResponse, Response},
};
use serde::{Deserialize, Serialize};
use tracing::error;
use vidlog_contract::{ApiError, ApiResponse};
use vidlog_read_models::freshness::{POSITION_HEADER, STALE_HEADER};

use crate::append::Acknowledged;

/// The response to a successful command; stored as sent, so that a retry receives the same.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reply {
    /// JSON body.
    body: String,
    /// Position of the event; `None` if the outbox relay appends it later.
    position: Option<String>,
    /// Whether the next reads may miss the event. Not stored: it is obsolete by the time of a retry.
    #[serde(skip)]
    stale: bool,
}

impl Reply {
    /// The reply once the event is acknowledged.
    pub fn new<T: Serialize>(answer: &ApiResponse<T>, acknowledged: &Acknowledged) -> Result<Self, ApiError> {
        Ok(Self {
            body: json(answer)?,
            position: Some(acknowledged.position.to_string()),
            stale: !acknowledged.is_recorded,
        })
    }

    /// The reply if the outbox relay appends the event later.
    pub fn pending_append<T: Serialize>(answer: &ApiResponse<T>) -> Result<Self, ApiError> {
        Ok(Self { body: json(answer)?, position: None, stale: true })
    }
}

impl IntoResponse for Reply {
    fn into_response(self) -> Response {
        let mut response = self.body.into_response();
        let headers = response.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        let mut insert = |name: HeaderName, value: &str| {
            if let Ok(value) = HeaderValue::from_str(value) {
                headers.insert(name, value);
            }
        };
        if let Some(position) = &self.position {
            insert(POSITION_HEADER, position);
        }
        if self.stale {
            insert(STALE_HEADER, "true");
        }
        response
    }
}

fn json<T: Serialize>(answer: &ApiResponse<T>) -> Result<String, ApiError> {
    serde_json::to_string(answer).map_err(|error| {
        error!(%error, "failed to serialize reply");
        ApiError::internal()
    })
}

#[cfg(test)]
mod tests {
    use vidlog_read_models::Position;

    use super::*;

    fn reply(is_recorded: bool) -> Reply {
        let position = Position { stream: "likes", partition: 3, next_offset: 42 };
        Reply::new(&ApiResponse::ok(), &Acknowledged { position, is_recorded }).unwrap()
    }

    #[test]
    fn reply_carries_the_position() {
        let response = reply(true).into_response();
        assert_eq!(response.headers()["vidlog-position"], "likes:3:42");
        assert_eq!(response.headers()["content-type"], "application/json");
        assert!(!response.headers().contains_key("vidlog-stale"));
    }

    #[test]
    fn reply_without_recorded_position_is_stale() {
        let response = reply(false).into_response();
        assert_eq!(response.headers()["vidlog-stale"], "true");
        let response = Reply::pending_append(&ApiResponse::ok()).unwrap().into_response();
        assert_eq!(response.headers()["vidlog-stale"], "true");
        assert!(!response.headers().contains_key("vidlog-position"));
    }

    #[test]
    fn stored_reply_round_trips() {
        let first = reply(true);
        let text = serde_json::to_string(&first).unwrap();
        assert_eq!(serde_json::from_str::<Reply>(&text).unwrap(), first);
    }
}
