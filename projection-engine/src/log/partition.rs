//! Partitions of the log's streams.

use std::str::FromStr;

use vidlog_events::Stream;
use vidlog_schemas::keys::partition_field;

/// A partition of a stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Partition {
    /// The stream.
    pub stream: Stream,
    /// The partition's number.
    pub number: i32,
}

impl Partition {
    /// The id in stores, logs and commands: `likes:3`.
    pub fn id(self) -> String {
        partition_field(self.stream.name(), self.number)
    }
}

impl FromStr for Partition {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let parse = || {
            let (stream, number) = text.split_once(':')?;
            let stream = Stream::ALL.into_iter().find(|candidate| candidate.name() == stream)?;
            Some(Self { stream, number: number.parse().ok()? })
        };
        parse()
            .ok_or_else(|| format!("invalid partition {text:?}; expected <stream>:<number>, such as likes:3"))
    }
}
