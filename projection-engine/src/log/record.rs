//! Records of the log, and their decoding.

use rdkafka::{
    Message,
    message::{BorrowedMessage, Headers, OwnedMessage},
};
use vidlog_events::{DecodeError, Envelope, Stream, decode};

use crate::log::RecordKey;

/// An event and its offset.
#[derive(Clone, Debug, PartialEq)]
pub struct Record {
    /// The offset in the partition.
    pub offset: i64,
    /// The event.
    pub envelope: Envelope,
}

/// A record with its message, which goes to the dead letters if the record cannot be folded.
#[derive(Debug)]
pub struct Delivery {
    /// The message.
    pub message: OwnedMessage,
    /// The event, or the decoding error.
    pub decoded: Result<Envelope, DecodeError>,
}

impl Delivery {
    /// Decodes a message of a stream's topic.
    pub fn read(stream: Stream, message: &BorrowedMessage<'_>) -> Self {
        Self { message: message.detach(), decoded: decode_message(stream, message) }
    }

    /// The record's offset in its partition.
    pub fn offset(&self) -> i64 {
        self.message.offset()
    }

    /// The record, if it is an event.
    pub fn record(&self) -> Option<Record> {
        let envelope = self.decoded.as_ref().ok()?.clone();
        Some(Record { offset: self.offset(), envelope })
    }

    /// The record's key.
    pub fn key(&self) -> RecordKey {
        RecordKey::of(self.message.key())
    }
}

/// Decodes a message of a stream's topic or dead-letter topic.
pub fn decode_message<M: Message>(stream: Stream, message: &M) -> Result<Envelope, DecodeError> {
    let header = |name: &str| {
        let headers = message.headers()?;
        headers.iter().find(|header| header.key == name).and_then(|header| header.value)
    };
    decode(stream, header, message.payload().unwrap_or_default())
}
