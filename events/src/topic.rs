//! Streams and their topics: names, partitions, settings.

use std::fmt;

/// Number of partitions of a topic in production, which 2, 3, 4, 6 or 12 instances can share evenly.
///
/// It must not change for a topic with data: a key's events would be in two partitions.
pub const PARTITIONS: i32 = 12;

/// A stream of events, with one topic, one key space and one enum.
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
    /// All streams.
    pub const ALL: [Self; 6] =
        [Self::Users, Self::Videos, Self::Likes, Self::Follows, Self::Comments, Self::Messages];

    /// Returns the stream's name, which is the last part of its topic's name.
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

/// The topics of one namespace. Several systems can share a broker, each with its own namespace.
#[derive(Clone, Debug)]
pub struct Topics {
    namespace: String,
}

impl Topics {
    /// Settings of all topics at creation: unlimited retention, no compaction, the producer's timestamps.
    pub const SETTINGS: [(&'static str, &'static str); 4] = [
        ("cleanup.policy", "delete"),
        ("retention.ms", "-1"),
        ("retention.bytes", "-1"),
        ("message.timestamp.type", "CreateTime"),
    ];

    /// Creates the topics of a namespace.
    pub fn new(namespace: impl Into<String>) -> Self {
        Self { namespace: namespace.into() }
    }

    /// Returns the topic of a stream, `<namespace>.<stream>`.
    pub fn name(&self, stream: Stream) -> String {
        format!("{}.{stream}", self.namespace)
    }

    /// Returns the dead-letter topic of a stream, `<namespace>.<stream>.dead-letters`.
    ///
    /// It contains the records that a projection failed to fold, and later records of the same keys. It has as many
    /// partitions as the stream's topic.
    pub fn dead_letters(&self, stream: Stream) -> String {
        format!("{}.{stream}.dead-letters", self.namespace)
    }

    /// Returns the stream of a topic; `None` if the topic is not a stream of this namespace.
    pub fn stream(&self, topic: &str) -> Option<Stream> {
        let name = topic.strip_prefix(&self.namespace)?.strip_prefix('.')?;
        Stream::ALL.into_iter().find(|stream| stream.name() == name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn topic_name_maps_back_to_its_stream() {
        let topics = Topics::new("prod");
        for stream in Stream::ALL {
            assert_eq!(topics.stream(&topics.name(stream)), Some(stream));
            assert_eq!(topics.stream(&topics.dead_letters(stream)), None);
        }
        assert_eq!(topics.stream("prod2.likes"), None);
    }
}
