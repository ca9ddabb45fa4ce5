//! A record that was read and decoded.

use rdkafka::{
    Message,
    message::{BorrowedMessage, Headers},
};
use vidlog_events::{DecodeError, Envelope, Stream, decode};

/// An event at its place in a partition.
#[derive(Clone, Debug, PartialEq)]
pub struct Record {
    /// The place.
    pub offset: i64,
    /// The event.
    pub envelope: Envelope,
}

/// Decodes a message of a stream's topic.
pub(crate) fn decode_message(stream: Stream, message: &BorrowedMessage<'_>) -> Result<Envelope, DecodeError> {
    let header = |name: &str| {
        let headers = message.headers()?;
        headers.iter().find(|header| header.key == name).and_then(|header| header.value)
    };
    decode(stream, header, message.payload().unwrap_or_default())
}
