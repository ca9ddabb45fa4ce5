//! The answer to a command that was carried out.

use axum::{
    http::{
        HeaderValue,
        header::{CONTENT_TYPE, HeaderName},
    },
    response::{IntoResponse, Response},
};
use serde::{Deserialize, Serialize};
use tracing::error;
use vidlog_contract::{Answer, ApiError};
use vidlog_read_models::freshness::{POSITION_HEADER, STALE_HEADER};

use crate::append::{Acknowledged, Marked};

/// The answer to a command that was carried out: kept as it was sent, so that a retry gets the same.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reply {
    /// The JSON text.
    body: String,
    /// The position of the event, for readers elsewhere; unknown if its append is left to the relay.
    position: Option<String>,
    /// Whether the next reads may not see it yet. Of a retry's answer that is no longer of interest.
    #[serde(skip)]
    stale: bool,
}

impl Reply {
    /// The answer once an event is acknowledged.
    pub fn new<T: Serialize>(answer: &Answer<T>, acknowledged: &Acknowledged) -> Result<Self, ApiError> {
        Ok(Self {
            body: json(answer)?,
            position: Some(acknowledged.position.to_string()),
            stale: acknowledged.marked == Marked::No,
        })
    }

    /// The answer where the append of the event is left to the relay.
    pub fn before_append<T: Serialize>(answer: &Answer<T>) -> Result<Self, ApiError> {
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

fn json<T: Serialize>(answer: &Answer<T>) -> Result<String, ApiError> {
    serde_json::to_string(answer).map_err(|error| {
        error!(%error, "failed to write an answer");
        ApiError::internal()
    })
}

#[cfg(test)]
mod tests {
    use vidlog_read_models::Position;

    use super::*;

    fn reply(marked: Marked) -> Reply {
        let position = Position { stream: "likes", partition: 3, next_offset: 42 };
        Reply::new(&Answer::ok(), &Acknowledged { position, marked }).unwrap()
    }

    #[test]
    fn a_reply_tells_where_the_event_is() {
        let response = reply(Marked::Yes).into_response();
        assert_eq!(response.headers()["vidlog-position"], "likes:3:42");
        assert_eq!(response.headers()["content-type"], "application/json");
        assert!(!response.headers().contains_key("vidlog-stale"));
    }

    #[test]
    fn a_reply_tells_that_readers_will_not_wait() {
        let response = reply(Marked::No).into_response();
        assert_eq!(response.headers()["vidlog-stale"], "true");
        let response = Reply::before_append(&Answer::ok()).unwrap().into_response();
        assert_eq!(response.headers()["vidlog-stale"], "true");
        assert!(!response.headers().contains_key("vidlog-position"));
    }

    #[test]
    fn a_kept_reply_is_the_same() {
        let first = reply(Marked::Yes);
        let text = serde_json::to_string(&first).unwrap();
        assert_eq!(serde_json::from_str::<Reply>(&text).unwrap(), first);
    }
}
