//! Event types and their payloads. The `stream!` macro declares a stream's enum with the JSON encoding of its payloads.

use schemars::{JsonSchema, Schema};
use serde::{Serialize, de::DeserializeOwned};
use thiserror::Error;

use crate::Stream;

/// An event type: its stream, its `ce_type` and the JSON Schema of its payload.
pub struct EventType {
    /// The stream of the event.
    pub stream: Stream,
    /// The `ce_type` attribute.
    pub name: &'static str,
    /// Generates the JSON Schema (2020-12) of the payload. Its `$id` is the event's `ce_dataschema`.
    pub schema: fn() -> schemars::Schema,
}

/// The reason why a record cannot be decoded.
#[derive(Debug, Error, PartialEq)]
pub enum DecodeError {
    /// A required attribute is missing.
    #[error("the record has no header {0}")]
    MissingHeader(&'static str),
    /// An attribute is invalid.
    #[error("header {header} holds {value:?}, which is not {expected}")]
    InvalidHeader {
        /// The header.
        header: &'static str,
        /// The invalid value.
        value: String,
        /// The expected format.
        expected: &'static str,
    },
    /// The event type is unknown: the reader is older than the writer, or another system wrote the record.
    #[error("stream {stream} has no event type {name:?}")]
    UnknownType {
        /// The stream of the record.
        stream: Stream,
        /// The `ce_type` of the record.
        name: String,
    },
    /// The payload does not match its type. The message contains no payload values, which may be personal.
    #[error("the payload is not a {name}: {reason}")]
    Payload {
        /// The `ce_type`.
        name: String,
        /// The kind and position of the error.
        reason: String,
    },
}

/// Decodes a payload of a stream's enum.
pub(crate) fn decode_payload<T: DeserializeOwned>(name: &str, value: &[u8]) -> Result<T, DecodeError> {
    serde_json::from_slice(value).map_err(|error| DecodeError::Payload {
        name: name.to_owned(),
        // serde's own message quotes values, which may be personal.
        reason: format!("{:?} error at line {}, column {}", error.classify(), error.line(), error.column()),
    })
}

/// Encodes a payload of a stream's enum.
pub(crate) fn encode_payload(payload: &impl Serialize) -> Result<Vec<u8>, serde_json::Error> {
    serde_json::to_vec(payload)
}

/// Generates the JSON Schema of a payload. Its `$id` is the event's `ce_dataschema`.
pub(crate) fn payload_schema<T: JsonSchema>(name: &str) -> Schema {
    let mut schema = schemars::schema_for!(T);
    schema.insert("$id".to_owned(), data_schema(name).into());
    schema
}

/// Returns the `ce_dataschema` of an event type: a URN, so that records do not depend on the address of a schema
/// server.
pub(crate) fn data_schema(name: &str) -> String {
    format!("urn:vidlog:schemas:events:{name}")
}

/// Declares a stream's enum from its payload types and their `ce_type`s, with encoding and decoding.
macro_rules! stream {
    ($(#[$doc:meta])* $enum:ident in $stream:expr, $($variant:ident as $name:literal),+ $(,)?) => {
        $(#[$doc])*
        #[derive(Clone, Debug, PartialEq, Eq)]
        #[expect(missing_docs, reason = "each variant is documented at its payload")]
        pub enum $enum {
            $($variant($variant),)+
        }

        impl $enum {
            /// Returns the `ce_type`.
            pub const fn type_name(&self) -> &'static str {
                match self {
                    $(Self::$variant(_) => $name,)+
                }
            }

            /// Returns the event types of this stream.
            pub fn types() -> Vec<$crate::payload::EventType> {
                vec![$($crate::payload::EventType {
                    stream: $stream,
                    name: $name,
                    schema: || $crate::payload::payload_schema::<$variant>($name),
                },)+]
            }

            pub(crate) fn decode(name: &str, value: &[u8]) -> Result<Self, $crate::payload::DecodeError> {
                match name {
                    $($name => $crate::payload::decode_payload(name, value).map(Self::$variant),)+
                    _ => Err($crate::payload::DecodeError::UnknownType { stream: $stream, name: name.to_owned() }),
                }
            }

            pub(crate) fn payload(&self) -> Result<Vec<u8>, serde_json::Error> {
                match self {
                    $(Self::$variant(payload) => $crate::payload::encode_payload(payload),)+
                }
            }
        }
    };
}
pub(crate) use stream;
