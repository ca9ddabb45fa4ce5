//! Event types and their payloads: the `stream!` macro declares a stream's enum, and encodes and decodes its payloads as JSON.

use schemars::{JsonSchema, Schema};
use serde::{Serialize, de::DeserializeOwned};
use thiserror::Error;

use crate::Stream;

/// One event type as the catalogue lists it: its `ce_type` and the JSON Schema of its payload.
pub struct EventType {
    /// The stream that carries it.
    pub stream: Stream,
    /// The `ce_type` attribute.
    pub name: &'static str,
    /// Makes the JSON Schema (2020-12) of the payload; its `$id` is the event's `ce_dataschema`.
    pub schema: fn() -> schemars::Schema,
}

/// Why a record is not an event.
#[derive(Debug, Error, PartialEq)]
pub enum DecodeError {
    /// A required attribute is missing.
    #[error("the record has no header {0}")]
    MissingHeader(&'static str),
    /// An attribute can't be read.
    #[error("header {header} holds {value:?}, which is not {expected}")]
    InvalidHeader {
        /// The header.
        header: &'static str,
        /// What it holds.
        value: String,
        /// What it should hold.
        expected: &'static str,
    },
    /// This reader does not know the type: it is older than the writer, or the record is not ours.
    #[error("stream {stream} has no event type {name:?}")]
    UnknownType {
        /// The stream that was read.
        stream: Stream,
        /// The `ce_type` that it found.
        name: String,
    },
    /// The payload is not what its type says. The message has no value of the payload in it.
    #[error("the payload is not a {name}: {reason}")]
    Payload {
        /// The `ce_type`.
        name: String,
        /// Where and what, without the values.
        reason: String,
    },
}

/// Decodes one payload; for the stream enums.
pub(crate) fn decode_payload<T: DeserializeOwned>(name: &str, value: &[u8]) -> Result<T, DecodeError> {
    serde_json::from_slice(value).map_err(|error| DecodeError::Payload {
        name: name.to_owned(),
        // serde's own message quotes values, which may be personal.
        reason: format!("{:?} error at line {}, column {}", error.classify(), error.line(), error.column()),
    })
}

/// Encodes one payload; for the stream enums.
pub(crate) fn encode_payload(payload: &impl Serialize) -> Result<Vec<u8>, serde_json::Error> {
    serde_json::to_vec(payload)
}

/// The JSON Schema of one payload; for the stream enums. Its `$id` is what `ce_dataschema` says.
pub(crate) fn payload_schema<T: JsonSchema>(name: &str) -> Schema {
    let mut schema = schemars::schema_for!(T);
    schema.insert("$id".to_owned(), data_schema(name).into());
    schema
}

/// `ce_dataschema` of an event type: a URN, so that the log does not depend on where schemas are served.
pub(crate) fn data_schema(name: &str) -> String {
    format!("urn:vidlog:schemas:events:{name}")
}

/// Declares a stream's enum: its variants, their `ce_type`s, and how they are decoded.
macro_rules! stream {
    ($(#[$doc:meta])* $enum:ident in $stream:expr, $($variant:ident as $name:literal),+ $(,)?) => {
        $(#[$doc])*
        #[derive(Clone, Debug, PartialEq, Eq)]
        #[expect(missing_docs, reason = "each variant is documented at its payload")]
        pub enum $enum {
            $($variant($variant),)+
        }

        impl $enum {
            /// The `ce_type`.
            pub const fn type_name(&self) -> &'static str {
                match self {
                    $(Self::$variant(_) => $name,)+
                }
            }

            /// The event types of this stream.
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
