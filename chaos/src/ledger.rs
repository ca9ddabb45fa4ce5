//! What was asked of the system, and what it said.

use std::fmt;

/// A command.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Command {
    /// The request's id, the same in every attempt; it goes into the event.
    pub(crate) id: String,
    /// What kind of command it is.
    pub(crate) kind: Kind,
    /// How often it was sent.
    pub(crate) attempts: u32,
    /// What came of it.
    pub(crate) outcome: Outcome,
}

/// A kind of command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Likes a video, or takes that back.
    Like,
    /// Follows a user, or takes that back.
    Follow,
    /// Comments on a video.
    Comment,
    /// Deletes a comment.
    DeleteComment,
    /// Sends a message.
    Message,
    /// Registers a user. It may be answered before its event is in the log.
    Register,
    /// Uploads a video, or says what became of it: appended by the harness itself.
    Video,
    /// Nothing that can be decoded: appended by the harness itself.
    Poison,
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Like => "like",
            Self::Follow => "follow",
            Self::Comment => "comment",
            Self::DeleteComment => "deletion of a comment",
            Self::Message => "message",
            Self::Register => "registration",
            Self::Video => "video",
            Self::Poison => "undecodable record",
        })
    }
}

/// What came of a command.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// It was answered with success, mostly with the position behind its event.
    Acknowledged(Option<Place>),
    /// It was answered that it can't be done.
    Refused,
    /// No answer, or one that it may be done or not.
    Unknown,
}

/// A place in the log.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Place {
    /// The stream.
    pub(crate) stream: String,
    /// The partition.
    pub(crate) partition: i32,
    /// The offset.
    pub(crate) offset: i64,
}

impl Place {
    /// The place of the record before a position, which is written `likes:3:1042`.
    pub(crate) fn before(position: &str) -> Option<Self> {
        let mut parts = position.split(':');
        let (stream, partition, next) = (parts.next()?, parts.next()?, parts.next()?);
        let offset = next.parse::<i64>().ok()? - 1;
        Some(Self { stream: stream.to_owned(), partition: partition.parse().ok()?, offset })
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{} at offset {}", self.stream, self.partition, self.offset)
    }
}

/// Commands by what came of them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Counts {
    /// All.
    pub(crate) sent: usize,
    /// Answered with success.
    pub(crate) acknowledged: usize,
    /// Answered that they can't be done.
    pub(crate) refused: usize,
    /// The others.
    pub(crate) unknown: usize,
}

impl Counts {
    /// Counts commands.
    pub(crate) fn of(commands: &[Command]) -> Self {
        let mut counts = Self { sent: commands.len(), ..Self::default() };
        for command in commands {
            match command.outcome {
                Outcome::Acknowledged(_) => counts.acknowledged += 1,
                Outcome::Refused => counts.refused += 1,
                Outcome::Unknown => counts.unknown += 1,
            }
        }
        counts
    }
}
