//! The commands of a run with their outcomes.

use std::fmt;

/// A command that was sent, or a record that the harness appended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Command {
    /// The request id, the same in every attempt; the event carries it as correlation id.
    pub(crate) id: String,
    /// Its kind.
    pub(crate) kind: Kind,
    /// Attempts.
    pub(crate) attempts: u32,
    /// Its outcome.
    pub(crate) outcome: Outcome,
}

/// A kind of command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Likes or unlikes a video.
    Like,
    /// Follows or unfollows a user.
    Follow,
    /// Comments on a video.
    Comment,
    /// Deletes a comment.
    DeleteComment,
    /// Sends a message.
    Message,
    /// Registers a user; the answer may come before the event is in the log.
    Register,
    /// Uploads, publishes or rejects a video; the harness itself appends the event.
    Video,
    /// An undecodable record; the harness itself appends it.
    BadRecord,
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
            Self::BadRecord => "undecodable record",
        })
    }
}

/// The outcome of a command.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// Success, with the event's position in most answers.
    Acknowledged(Option<LogPosition>),
    /// A business failure.
    Refused,
    /// No answer, or one that leaves open whether it succeeded.
    Unknown,
}

/// The position of a record in the log.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct LogPosition {
    /// The stream.
    pub(crate) stream: String,
    /// The partition.
    pub(crate) partition: i32,
    /// The offset.
    pub(crate) offset: i64,
}

impl LogPosition {
    /// The position of the record right before a `Vidlog-Position`, such as `likes:3:1042`.
    pub(crate) fn before(position: &str) -> Option<Self> {
        let mut parts = position.split(':');
        let (stream, partition, next) = (parts.next()?, parts.next()?, parts.next()?);
        let offset = next.parse::<i64>().ok()? - 1;
        Some(Self { stream: stream.to_owned(), partition: partition.parse().ok()?, offset })
    }
}

impl fmt::Display for LogPosition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{} at offset {}", self.stream, self.partition, self.offset)
    }
}

/// Numbers of commands by outcome.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Counts {
    /// All commands.
    pub(crate) sent: usize,
    /// Acknowledged ones.
    pub(crate) acknowledged: usize,
    /// Refused ones.
    pub(crate) refused: usize,
    /// Ones without a known outcome.
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
