//! The topics: names, partitions, settings.

use std::fmt;

/// Partitions of a topic in production: a number with many divisors, so that 2, 3, 4, 6 or 12 instances share
/// the work evenly. It can't change for a topic that has data: a key's events would land in two partitions.
pub const PARTITIONS: i32 = 12;

/// A stream of events: one topic, one key space, one enum.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Stream {
    /// Keyed by user id.
    Users,
    /// Keyed by video id.
    Videos,
    /// Keyed by video id.
    Likes,
    /// Keyed by the follower's user id.
    Follows,
    /// Keyed by video id.
    Comments,
    /// Keyed by conversation.
    Messages,
}

impl Stream {
    /// Every stream.
    pub const ALL: [Self; 6] =
        [Self::Users, Self::Videos, Self::Likes, Self::Follows, Self::Comments, Self::Messages];

    /// The stream's name: the last part of its topic's name.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Users => "users",
            Self::Videos => "videos",
            Self::Likes => "likes",
            Self::Follows => "follows",
            Self::Comments => "comments",
            Self::Messages => "messages",
        }
    }
}

impl fmt::Display for Stream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// The topics of one namespace, so that several systems can live on one broker side by side.
#[derive(Clone, Debug)]
pub struct Topics {
    namespace: String,
}

impl Topics {
    /// Settings that every topic is created with: events are kept for ever, and as they were written.
    pub const SETTINGS: [(&'static str, &'static str); 4] = [
        ("cleanup.policy", "delete"),
        ("retention.ms", "-1"),
        ("retention.bytes", "-1"),
        ("message.timestamp.type", "CreateTime"),
    ];

    /// The topics under a namespace.
    pub fn new(namespace: impl Into<String>) -> Self {
        Self { namespace: namespace.into() }
    }

    /// The topic of a stream, `<namespace>.<stream>`.
    pub fn name(&self, stream: Stream) -> String {
        format!("{}.{stream}", self.namespace)
    }

    /// The topic of a stream's dead letters, `<namespace>.<stream>.dead-letters`: the records that a projection could
    /// not fold, and those of the same keys that wait behind them. It has the partitions of the stream's own.
    pub fn dead_letters(&self, stream: Stream) -> String {
        format!("{}.{stream}.dead-letters", self.namespace)
    }

    /// The stream that a topic of this namespace carries.
    pub fn stream(&self, topic: &str) -> Option<Stream> {
        let name = topic.strip_prefix(&self.namespace)?.strip_prefix('.')?;
        Stream::ALL.into_iter().find(|stream| stream.name() == name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_topic_names_its_stream() {
        let topics = Topics::new("prod");
        for stream in Stream::ALL {
            assert_eq!(topics.stream(&topics.name(stream)), Some(stream));
            assert_eq!(topics.stream(&topics.dead_letters(stream)), None);
        }
        assert_eq!(topics.stream("prod2.likes"), None);
    }
}
