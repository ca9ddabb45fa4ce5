//! Positions in the log, and what a write was about.

use std::fmt;

use vidlog_schemas::{keys::partition_field, projections};

/// How many positions a reader may name: more than one request can follow from, few enough to look up at once.
const MAX_POSITIONS: usize = 16;

/// A position in the log: just behind a record. As text it is `likes:3:1042`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Position {
    /// The stream's name.
    pub stream: &'static str,
    /// The partition.
    pub partition: i32,
    /// The offset of the record, plus one.
    pub next_offset: i64,
}

/// A text names no positions.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "a position is written stream:partition:offset, and there are at most {MAX_POSITIONS}, comma separated"
)]
pub struct PositionError;

impl Position {
    /// The positions of a header, comma separated.
    pub fn parse_list(text: &str) -> Result<Vec<Self>, PositionError> {
        let parts: Vec<_> = text.split(',').map(str::trim).filter(|part| !part.is_empty()).collect();
        if parts.len() > MAX_POSITIONS {
            return Err(PositionError);
        }
        parts.into_iter().map(|part| Self::parse(part).ok_or(PositionError)).collect()
    }

    pub(crate) fn field(&self) -> String {
        partition_field(self.stream, self.partition)
    }

    /// The position of a field of [`Position::field`].
    pub(crate) fn of_field(field: &str, next_offset: i64) -> Option<Self> {
        let (stream, partition) = field.split_once(':')?;
        let partition = partition.parse().ok().filter(|partition| *partition >= 0)?;
        Some(Self { stream: known_stream(stream)?, partition, next_offset })
    }

    fn parse(text: &str) -> Option<Self> {
        let (field, next_offset) = text.rsplit_once(':')?;
        Self::of_field(field, next_offset.parse().ok().filter(|offset| *offset >= 0)?)
    }
}

impl fmt::Display for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}:{}", self.stream, self.partition, self.next_offset)
    }
}

fn known_stream(name: &str) -> Option<&'static str> {
    projections::ALL.iter().flat_map(|projection| projection.streams).copied().find(|stream| *stream == name)
}

/// Whose readers must see a write: who wrote, and what was written to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    /// A user: as a writer, or as one that was followed.
    User(i64),
    /// A video.
    Video(i64),
    /// The conversation of two users, in either order.
    Conversation(i64, i64),
}

impl fmt::Display for Scope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::User(user) => write!(f, "user:{user}"),
            Self::Video(video) => write!(f, "video:{video}"),
            Self::Conversation(one, other) => {
                write!(f, "conversation:{}-{}", one.min(other), one.max(other))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_position_is_read_as_it_is_written() {
        let position = Position { stream: "likes", partition: 3, next_offset: 1042 };
        assert_eq!(position.to_string(), "likes:3:1042");
        assert_eq!(
            Position::parse_list(" likes:3:1042 , follows:0:1,"),
            Ok(vec![position, Position { stream: "follows", partition: 0, next_offset: 1 },])
        );
        assert_eq!(Position::parse_list(""), Ok(Vec::new()));
    }

    #[test]
    fn anything_else_is_no_position() {
        for text in ["likes", "likes:3", "dreams:3:1", "likes:x:1", "likes:-1:1", "likes:3:-1", "likes:3:1:2"]
        {
            assert_eq!(Position::parse_list(text), Err(PositionError), "{text}");
        }
        assert_eq!(Position::parse_list(&["likes:3:1"; MAX_POSITIONS + 1].join(",")), Err(PositionError));
    }

    #[test]
    fn a_conversation_does_not_depend_on_who_writes() {
        assert_eq!(Scope::Conversation(7, 3).to_string(), "conversation:3-7");
        assert_eq!(Scope::Conversation(3, 7).to_string(), "conversation:3-7");
        assert_eq!(Scope::User(7).to_string(), "user:7");
        assert_eq!(Scope::Video(7).to_string(), "video:7");
    }
}
