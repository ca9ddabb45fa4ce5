//! The log, read back as anyone would.

use std::time::{Duration, Instant};

use rdkafka::{
    ClientConfig, Message, Offset, TopicPartitionList,
    consumer::{BaseConsumer, Consumer},
    message::Headers,
};
use vidlog_events::{Envelope, Stream, Topics, decode};

use super::PARTITIONS;

const PATIENCE: Duration = Duration::from_mins(1);

/// The topics of a namespace.
#[derive(Clone)]
pub(crate) struct Log {
    pub(crate) brokers: String,
    pub(crate) topics: Topics,
}

/// An event as it is in the log.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Logged {
    pub(crate) envelope: Envelope,
    pub(crate) key: String,
    pub(crate) partition: i32,
    pub(crate) offset: i64,
    pub(crate) timestamp_ms: i64,
}

impl Logged {
    /// What a reader waits for who must see it.
    pub(crate) fn position(&self) -> String {
        format!("{}:{}:{}", self.envelope.event.stream(), self.partition, self.offset + 1)
    }
}

impl Log {
    /// Every event of a stream that is there now.
    pub(crate) async fn read(&self, stream: Stream) -> Vec<Logged> {
        let log = self.clone();
        tokio::task::spawn_blocking(move || log.read_now(stream)).await.unwrap()
    }

    /// Every event of every stream.
    pub(crate) async fn read_all(&self) -> Vec<Logged> {
        let mut all = Vec::new();
        for stream in Stream::ALL {
            all.extend(self.read(stream).await);
        }
        all
    }

    fn read_now(&self, stream: Stream) -> Vec<Logged> {
        let topic = self.topics.name(stream);
        let consumer: BaseConsumer = ClientConfig::new()
            .set("bootstrap.servers", &self.brokers)
            .set("group.id", "never-used")
            .set("enable.auto.commit", "false")
            .create()
            .unwrap();
        let mut assignment = TopicPartitionList::new();
        let mut expected = 0;
        for partition in 0..PARTITIONS {
            expected += end_of(&consumer, &topic, partition);
            assignment.add_partition_offset(&topic, partition, Offset::Beginning).unwrap();
        }
        consumer.assign(&assignment).unwrap();
        (0..expected)
            .map(|_| {
                let message = consumer.poll(PATIENCE).expect("the record is there").unwrap();
                let header = |name: &str| {
                    message
                        .headers()?
                        .iter()
                        .find(|header| header.key == name)
                        .and_then(|header| header.value)
                };
                Logged {
                    envelope: decode(stream, header, message.payload().unwrap()).unwrap(),
                    key: String::from_utf8(message.key().unwrap().to_vec()).unwrap(),
                    partition: message.partition(),
                    offset: message.offset(),
                    timestamp_ms: message.timestamp().to_millis().unwrap(),
                }
            })
            .collect()
    }
}

/// Where a partition ends. Right after a topic was made its broker may not know yet that it leads it.
fn end_of(consumer: &BaseConsumer, topic: &str, partition: i32) -> i64 {
    let begun = Instant::now();
    loop {
        match consumer.fetch_watermarks(topic, partition, PATIENCE) {
            Ok((_, end)) => return end,
            Err(error) => assert!(begun.elapsed() < PATIENCE, "{topic}[{partition}]: {error}"),
        }
        // Serves the client's own events, and waits.
        consumer.poll(Duration::from_millis(20));
    }
}
