//! Positions in the log, and the scopes of a write.

use std::fmt;

use vidlog_schemas::{keys::partition_field, projections};

/// The most positions of a request: more than a client collects between reads, few enough for one round trip.
const MAX_POSITIONS: usize = 16;

/// A position in the log: the offset after a record. Its text form is `likes:3:1042`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Position {
    /// The stream's name.
    pub stream: &'static str,
    /// The partition.
    pub partition: i32,
    /// The offset of the record, plus one.
    pub next_offset: i64,
}

/// A text that is no list of positions.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("give at most {MAX_POSITIONS} positions of the form stream:partition:offset, separated by commas")]
pub struct PositionError;

impl Position {
    /// Parses a comma-separated list.
    pub fn parse_list(text: &str) -> Result<Vec<Self>, PositionError> {
        let parts: Vec<_> = text.split(',').map(str::trim).filter(|part| !part.is_empty()).collect();
        if parts.len() > MAX_POSITIONS {
            return Err(PositionError);
        }
        parts.into_iter().map(|part| Self::parse(part).ok_or(PositionError)).collect()
    }

    /// Returns whether a read that includes this position also includes another.
    pub(crate) fn includes(&self, other: Self) -> bool {
        (self.stream, self.partition) == (other.stream, other.partition)
            && self.next_offset >= other.next_offset
    }

    /// Returns the field of its partition in marks and progress.
    pub(crate) fn field(&self) -> String {
        partition_field(self.stream, self.partition)
    }

    /// Returns the position of a field as [`Position::field`] writes it.
    pub(crate) fn from_field(field: &str, next_offset: i64) -> Option<Self> {
        let (stream, partition) = field.split_once(':')?;
        let partition = partition.parse().ok().filter(|partition| *partition >= 0)?;
        Some(Self { stream: find_stream(stream)?, partition, next_offset })
    }

    fn parse(text: &str) -> Option<Self> {
        let (field, next_offset) = text.rsplit_once(':')?;
        Self::from_field(field, next_offset.parse().ok().filter(|offset| *offset >= 0)?)
    }
}

impl fmt::Display for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}:{}", self.stream, self.partition, self.next_offset)
    }
}

fn find_stream(name: &str) -> Option<&'static str> {
    projections::ALL.iter().flat_map(|projection| projection.streams).copied().find(|stream| *stream == name)
}

/// A user or entity that a write concerns. Reads of it, or by it, wait for the write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    /// A user: the writer, or the user that the write affects.
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
    use proptest::prelude::*;

    use super::*;

    fn positions() -> impl Strategy<Value = Position> {
        (
            prop::sample::select(projections::ALL.to_vec()),
            any::<prop::sample::Index>(),
            0..=i32::MAX,
            0..=i64::MAX,
        )
            .prop_map(|(projection, index, partition, next_offset)| Position {
                stream: projection.streams[index.index(projection.streams.len())],
                partition,
                next_offset,
            })
    }

    proptest! {
        #[test]
        fn lists_round_trip_as_text(list in prop::collection::vec(positions(), 0..=MAX_POSITIONS)) {
            let text = list.iter().map(ToString::to_string).collect::<Vec<_>>().join(" , ");
            prop_assert_eq!(Position::parse_list(&text), Ok(list));
        }

        #[test]
        fn any_text_is_a_list_or_an_error(text in "\\PC{0,60}|([a-z]{0,8}:?[0-9+-]{0,12}:?[0-9+-]{0,22},?){0,20}") {
            if let Ok(list) = Position::parse_list(&text) {
                prop_assert!(list.len() <= MAX_POSITIONS);
                prop_assert!(list.iter().all(|position| position.partition >= 0 && position.next_offset >= 0));
            }
        }
    }

    #[test]
    fn position_round_trips_as_text() {
        let position = Position { stream: "likes", partition: 3, next_offset: 1042 };
        assert_eq!(position.to_string(), "likes:3:1042");
        assert_eq!(
            Position::parse_list(" likes:3:1042 , follows:0:1,"),
            Ok(vec![position, Position { stream: "follows", partition: 0, next_offset: 1 },])
        );
        assert_eq!(Position::parse_list(""), Ok(Vec::new()));
    }

    #[test]
    fn other_text_is_no_position() {
        for text in ["likes", "likes:3", "dreams:3:1", "likes:x:1", "likes:-1:1", "likes:3:-1", "likes:3:1:2"]
        {
            assert_eq!(Position::parse_list(text), Err(PositionError), "{text}");
        }
        assert_eq!(Position::parse_list(&["likes:3:1"; MAX_POSITIONS + 1].join(",")), Err(PositionError));
    }

    #[test]
    fn conversation_scope_ignores_direction() {
        assert_eq!(Scope::Conversation(7, 3).to_string(), "conversation:3-7");
        assert_eq!(Scope::Conversation(3, 7).to_string(), "conversation:3-7");
        assert_eq!(Scope::User(7).to_string(), "user:7");
        assert_eq!(Scope::Video(7).to_string(), "video:7");
    }
}
